"""How often intervals hold the truth: simulations that the tests run small and `make coverage` runs large.

Each takes the number of trials and a seed, and gives the share of 95 % intervals that held what is known to be true.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from clipbench.metrics import classification, clustered, f1, intervals, paired_tests, worst_group
from clipbench.metrics.average_precision import APKind, per_class_average_precision
from clipbench.metrics.average_precision_intervals import mean_average_precision_scores
from clipbench.metrics.joint import Contributions, summed


@dataclass(frozen=True)
class Sets:
    """Multi-label test sets: each class with its share of positives and how far apart they score, drawn from ranges."""

    n: int
    classes: int
    positives: tuple[float, float]
    apart: tuple[float, float]

    def drawn(self, rng: np.random.Generator, n: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Scores and labels of n images, [n, classes]."""
        parts = np.random.default_rng(self.classes)
        share, apart = (parts.uniform(*bounds, self.classes) for bounds in (self.positives, self.apart))
        labels = (rng.random((n, self.classes)) < share).astype(np.uint8)
        return (rng.normal(size=labels.shape) + apart * labels).astype(np.float32), labels

    @cache  # noqa: B019  few, for the whole run
    def truth(self, kind: APKind) -> NDArray[np.float64]:
        """Each class's average precision: of all images there are, or (11pt) the mean over sets of n images."""
        rng = np.random.default_rng(99)
        if kind != "11pt":
            return per_class_average_precision(*self.drawn(rng, 200_000), kind)
        rounds = max(50, min(1_000, 200_000 // self.n))
        found: NDArray[np.float64] = np.nanmean(
            [per_class_average_precision(*self.drawn(rng, self.n), kind) for _ in range(rounds)],
            axis=0,
        )
        return found


RARE: Final = Sets(100, 20, (0.02, 0.3), (1.5, 1.5))
FEW_CLASSES: Final = Sets(100, 6, (0.05, 0.3), (1.0, 3.0))
EASY: Final = Sets(100, 6, (0.05, 0.3), (3.0, 5.0))
HARD: Final = Sets(100, 6, (0.05, 0.3), (0.0, 0.5))
COCO: Final = Sets(363, 80, (0.005, 0.1), (1.0, 2.5))
VOC: Final = Sets(4_952, 20, (0.02, 0.3), (1.5, 2.5))


def average_precision(sets: Sets, kind: APKind, trials: int, seed: int, count: int = 100) -> float:
    """Of the mean average precision of one kind, from `count` resamples."""
    rng = np.random.default_rng(seed)
    covered = 0
    for trial in range(trials):
        scores, labels = sets.drawn(rng, sets.n)
        truth = float(sets.truth(kind)[labels.any(axis=0)].mean())
        found = mean_average_precision_scores(scores, labels, trial, kinds=(kind,), count=count)
        low, high = found[f"map_{kind}"].ci95
        covered += low <= truth <= high
    return covered / trials


def paired_average_precision(
    sets: Sets, lift: float, trials: int, seed: int, count: int = 100
) -> tuple[float, float]:
    """Of the difference of two models, the second's positives being `lift` further apart; and how often p < 0.05."""
    rng = np.random.default_rng(seed)

    def both(n: int) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
        first, labels = sets.drawn(rng, n)
        second = first + lift * labels + rng.normal(scale=0.5, size=labels.shape)
        return (
            (first + rng.normal(scale=0.5, size=labels.shape)).astype(np.float32),
            second.astype(np.float32),
            labels,
        )

    one, other, labels = both(200_000)
    truth = per_class_average_precision(other, labels, "area") - per_class_average_precision(
        one, labels, "area"
    )
    covered = told = 0
    for trial in range(trials):
        one, other, labels = both(sets.n)
        found = paired_tests.of_average_precision(one, other, labels, "area", "ignore", trial, count)
        covered += found.ci95[0] <= (truth[labels.any(axis=0)].mean() if lift else 0) <= found.ci95[1]
        told += found.p < 0.05
    return covered / trials, told / trials


def suite_mean(shared: int, trials: int, seed: int) -> float:
    """Of the mean of `shared` tasks that are right on nearly the same ones of 300 images, and of one on others."""
    rng = np.random.default_rng(seed)
    covered = 0
    for _ in range(trials):
        easy = rng.random(300)
        parts = []
        for _ in range(shared):
            right = (easy < 0.7) ^ (rng.random(300) < 0.05)
            parts.append(Contributions("one", range(300), right / 300))
        parts.append(Contributions("other", range(300), (rng.random(300) < 0.6) / 300))
        values, error = summed(parts)
        truth = shared * (0.7 * 0.95 + 0.3 * 0.05) + 0.6
        covered += abs(values.sum() - truth) <= 1.96 * error
    return covered / trials


def few_shots(draws: int, trials: int, seed: int, *, images_alone: bool = False) -> float:
    """Of the mean accuracy over draws of shots, whose own accuracies have a standard deviation of 5.4 points."""
    rng = np.random.default_rng(seed)
    covered = 0
    for _ in range(trials):
        right = _right(rng, rng.normal(0.6, 0.054, draws), rng.normal(size=360))
        hits = right.mean(axis=0)
        error = float(hits.std()) / 359**0.5
        half, _ = intervals.of_draws(
            [0.6] * draws if images_alone else right.mean(axis=1).tolist(), error, 360
        )
        covered += abs(hits.mean() - 0.6) <= half
    return covered / trials


def _right(
    rng: np.random.Generator, accuracy: NDArray[np.float64], images: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which images each draw is right on, [draws, n]: some images are harder than others, for all draws."""
    cut: NDArray[np.float64] = norm.ppf(accuracy)
    return (images + rng.normal(size=(len(accuracy), len(images)))) / 2**0.5 < cut[:, None]


def few_shots_of_two(draws: int, trials: int, seed: int, *, same: bool) -> tuple[float, float]:
    """Of the difference of two equal models over draws, with the same shots or others; and how often p < 0.05."""
    rng = np.random.default_rng(seed)
    covered = told = 0
    for _ in range(trials):
        images, accuracy = rng.normal(size=360), rng.normal(0.6, 0.054, (2, draws))
        own = rng.normal(0, 0.02, (2, draws))  # what a draw does to one model alone
        of = [np.clip(accuracy[0 if same else side] + own[side], 0.01, 0.99) for side in (0, 1)]
        first, second = (_right(rng, one, images).astype(np.float64) for one in of)
        found, _ = paired_tests.of_draws(first, second, same=same)
        covered += found.ci95[0] <= 0 <= found.ci95[1]
        told += found.p < 0.05
    return covered / trials, told / trials


@dataclass(frozen=True)
class Clusters:
    """Test sets of `count` clusters of uneven size (geometric, 20 on average), whose samples agree: `agreement` is the
    intra-cluster correlation."""

    count: int
    agreement: float = 0.3

    def drawn(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """The cluster of each sample."""
        return np.repeat(np.arange(self.count), rng.geometric(1 / 20, self.count))

    def right(self, rng: np.random.Generator, cluster: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
        """Which samples are right, `share` of all there are: beta-binomial."""
        more = (1 - self.agreement) / self.agreement
        found: NDArray[np.bool_] = (
            rng.random(cluster.size) < rng.beta(share * more, (1 - share) * more, self.count)[cluster]
        )
        return found

    def noise(
        self, rng: np.random.Generator, cluster: NDArray[np.int64], columns: int
    ) -> NDArray[np.float64]:
        """Normal variables [n, columns] that correlate within clusters."""
        own, shared = rng.normal(size=(cluster.size, columns)), rng.normal(size=(self.count, columns))
        found: NDArray[np.float64] = self.agreement**0.5 * shared[cluster] + (1 - self.agreement) ** 0.5 * own
        return found


def clustered_accuracy(
    clusters: Clusters, share: float, trials: int, seed: int, *, samples_alone: bool = False
) -> float:
    """Of the accuracy over clusters; `samples_alone`: of Wilson's, as if samples were independent."""
    rng = np.random.default_rng(seed)
    covered = 0
    for _ in range(trials):
        cluster = clusters.drawn(rng)
        right = clusters.right(rng, cluster, share)
        score = intervals.accuracy_score(right, 0.1)
        if not samples_alone:
            score = clustered.mean_score(right.astype(np.float64), cluster, 0.1)
        covered += score.ci95[0] <= share <= score.ci95[1]
    return covered / trials


def clustered_recall(
    clusters: Clusters,
    share: float,
    trials: int,
    seed: int,
    *,
    of_one_class: bool,
    samples_alone: bool = False,
) -> float:
    """Of the mean recall of 5 classes of uneven size; `of_one_class`: all samples of a cluster are."""
    rng = np.random.default_rng(seed)
    classes = np.array([0.4, 0.25, 0.15, 0.1, 0.1])
    covered = 0
    for trial in range(trials):
        cluster = clusters.drawn(rng)
        target = rng.choice(5, clusters.count, p=classes)[cluster]
        if not of_one_class:
            target = rng.choice(5, cluster.size, p=classes)
        right = clusters.right(rng, cluster, share)
        prediction = np.where(right, target, (target + 1) % 5)
        if samples_alone:
            score = intervals.mean_per_class_recall_score(target, prediction, 5, trial)
        else:
            score = clustered.recall_score(target, prediction, 5, cluster)
        covered += score.ci95[0] <= share <= score.ci95[1]
    return covered / trials


def clustered_ece(
    clusters: Clusters,
    power: float,
    trials: int,
    seed: int,
    *,
    samples_alone: bool = False,
    count: int = 1_000,
) -> float:
    """Of the expected calibration error of a model that is right with its confidence to this power."""
    rng = np.random.default_rng(seed)
    every = rng.beta(5, 2, 200_000)
    gaps = np.bincount(classification.confidence_bin(every, 15), weights=every - every**power)
    truth = float(np.abs(gaps).sum() / every.size)
    covered = 0
    for trial in range(trials):
        cluster = clusters.drawn(rng)
        confidence = rng.beta(5, 2, cluster.size)
        correct = norm.cdf(clusters.noise(rng, cluster, 1)[:, 0]) < confidence**power
        if samples_alone:
            score = intervals.ece_score(confidence, correct, trial)
        else:
            score = clustered.ece_score(confidence, correct, cluster, trial, count=count)
        covered += score.ci95[0] <= truth <= score.ci95[1]
    return covered / trials


def _clustered_sets(
    clusters: Clusters, sets: Sets, trials: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.float64], np.random.Generator]]:
    """Cluster, labels and scores of sets whose labels and scores correlate within clusters."""
    rng = np.random.default_rng(seed)
    parts = np.random.default_rng(sets.classes)
    share, apart = (parts.uniform(*bounds, sets.classes) for bounds in (sets.positives, sets.apart))
    for _ in range(trials):
        cluster = clusters.drawn(rng)
        labels = (norm.cdf(clusters.noise(rng, cluster, sets.classes)) < share).astype(np.uint8)
        yield cluster, labels, clusters.noise(rng, cluster, sets.classes) + apart * labels, rng


def clustered_precision(
    clusters: Clusters, sets: Sets, trials: int, seed: int, *, samples_alone: bool = False
) -> float:
    """Of the mean average precision (`area`) over clusters."""
    covered = 0
    for trial, (cluster, labels, scores, _) in enumerate(_clustered_sets(clusters, sets, trials, seed)):
        truth = float(sets.truth("area")[labels.any(axis=0)].mean())
        of = None if samples_alone else cluster
        found = mean_average_precision_scores(scores, labels, trial, kinds=("area",), cluster=of)
        low, high = found["map_area"].ci95
        covered += low <= truth <= high
    return covered / trials


def clustered_precision_of_two(clusters: Clusters, sets: Sets, trials: int, seed: int) -> tuple[float, float]:
    """Of the difference of two equal models' mean average precisions over clusters; and how often p < 0.05."""
    covered = told = 0
    for cluster, labels, scores, rng in _clustered_sets(clusters, sets, trials, seed):
        own = (0.5 * clusters.noise(rng, cluster, sets.classes) for _ in range(2))
        one, other = ((scores + more).astype(np.float32) for more in own)
        found = paired_tests.of_average_precision(one, other, labels, "area", "ignore", 0, cluster=cluster)
        covered += found.ci95[0] <= 0 <= found.ci95[1]
        told += found.p < 0.05
    return covered / trials, told / trials


@dataclass(frozen=True)
class Groups:
    """Test sets whose groups have these shares of right samples, and sizes; `clusters`, whose samples agree (0.3), lie
    each in one group (geometric, 8 on average) or cross them (20 samples each)."""

    shares: tuple[float, ...]
    sizes: tuple[int, ...]
    clusters: Literal["none", "nested", "crossing"] = "none"

    def drawn(self, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """The group and the cluster of each sample."""
        group = np.repeat(np.arange(len(self.sizes)), self.sizes)
        if self.clusters == "none":
            return group, None
        if self.clusters == "crossing":
            numbers = rng.integers(0, max(4, group.size // 20), group.size)
        else:
            numbers = np.concatenate(
                [
                    g * group.size + np.sort(rng.integers(0, max(1, n // 8), n))
                    for g, n in enumerate(self.sizes)
                ]
            )
        return group, np.unique(numbers, return_inverse=True)[1]

    def right(
        self, rng: np.random.Generator, group: NDArray[np.int64], cluster: NDArray[np.int64] | None
    ) -> NDArray[np.float64]:
        """Which samples a model is right on, [1, n]."""
        noise = rng.normal(size=group.size)
        if cluster is not None:
            noise = 0.45**0.5 * rng.normal(size=int(cluster.max()) + 1)[cluster] + 0.55**0.5 * noise
        found: NDArray[np.float64] = (noise < norm.ppf(self.shares)[group]).astype(np.float64)[None]
        return found


def _with(shares: tuple[float, ...], sizes: tuple[int, ...]) -> Iterator[Groups]:
    for clusters in ("none", "nested", "crossing"):
        yield Groups(shares, sizes, clusters)


#: name → groups, of which each is tried without clusters, with nested and with crossing ones
GROUPS: Final[dict[str, tuple[Groups, ...]]] = {
    name: tuple(_with(shares, sizes))
    for name, shares, sizes in (
        ("2 groups, the worst of 10", (0.6, 0.85), (10, 100)),
        ("2 tied groups of 40", (0.6, 0.6), (40, 40)),
        ("5 groups, the worst of 40", (0.9, *[0.97] * 4), (40, *[100] * 4)),
        ("5 groups, the worst of 200", (0.6, *[0.85] * 4), (200, *[100] * 4)),
        ("5 tied groups of 10 to 400", (0.7,) * 5, (10, 40, 100, 200, 400)),
        ("5 groups close together", (0.6, 0.62, 0.64, 0.66, 0.68), (40,) * 5),
        ("20 groups, the worst of 10", (0.3, *[0.55] * 19), (10, *[100] * 19)),
        ("20 tied groups of 10", (0.9,) * 20, (10,) * 20),
        ("20 tied groups of 40", (0.6,) * 20, (40,) * 20),
        ("20 tied groups of 200", (0.3,) * 20, (200,) * 20),
        ("5 groups, all right", (1.0,) * 5, (40,) * 5),
        ("5 groups, one always wrong", (0.0, *[0.7] * 4), (40,) * 5),
        ("4 incomes, by the best five answers", (0.54, 0.72, 0.8, 0.85), (875,) * 4),
        (
            "6 regions, one of 4, by the best five answers",
            (0.9, 0.93, 0.95, 0.95, 0.96, 0.97),
            (4, *[200] * 5),
        ),
    )
}


def lowest_accuracy(groups: Groups, trials: int, seed: int, *, basic: bool = False) -> float:
    """Of the accuracy on the worst group; `basic`: of the basic bootstrap of the minimum, within groups."""
    return lowest_accuracy_and_width(groups, trials, seed, basic=basic)[0]


def lowest_accuracy_and_width(
    groups: Groups, trials: int, seed: int, *, basic: bool = False
) -> tuple[float, float]:
    """As `lowest_accuracy`; and how wide the intervals are, as a multiple of those of who knows the worst group."""
    rng = np.random.default_rng(seed)
    covered, width, known = 0, 0.0, 0.0
    for _ in range(trials):
        group, cluster = groups.drawn(rng)
        hits = groups.right(rng, group, cluster)
        score, every = worst_group.worst_group(hits, group, cluster, None)
        low, high = _basic_lowest(hits[0], group, cluster, rng) if basic else score.ci95
        covered += low <= min(groups.shares) <= high
        own = every[int(np.argmin(groups.shares))].ci95
        width, known = width + high - low, known + own[1] - own[0]
    return covered / trials, width / known


def _basic_lowest(
    hits: NDArray[np.float64],
    group: NDArray[np.int64],
    cluster: NDArray[np.int64] | None,
    rng: np.random.Generator,
) -> intervals.Interval:
    """The basic bootstrap interval of the lowest accuracy of a group, of samples or of clusters within groups."""
    draws = []
    for g in range(int(group.max()) + 1):
        own = np.flatnonzero(group == g)
        place = np.arange(own.size) if cluster is None else np.unique(cluster[own], return_inverse=True)[1]
        sums, counts = np.bincount(place, weights=hits[own]), np.bincount(place)
        times = rng.multinomial(counts.size, np.full(counts.size, 1 / counts.size), 200)
        draws.append((times @ sums) / (times @ counts))
    lowest = min(hits[group == g].mean() for g in range(int(group.max()) + 1))
    low, high = intervals.basic(lowest, np.min(draws, axis=0), 0.0)
    return low, min(1.0, high)


def lowest_accuracies_of_two(first: Groups, second: Groups, trials: int, seed: int) -> tuple[float, float]:
    """Of the difference of two models on their worst groups; and how often p < 0.05."""
    rng = np.random.default_rng(seed)
    covered = told = 0
    truth = min(second.shares) - min(first.shares)
    for _ in range(trials):
        group, cluster = first.drawn(rng)
        one, other = (groups.right(rng, group, cluster) for groups in (first, second))
        shared = (
            rng.random(group.size) < 0.5
        )  # samples on which the two do alike, where their groups are as hard
        alike = np.equal(first.shares, second.shares)[group]
        other = np.where(shared & alike, one, other)
        found = worst_group.difference(one, other, group, cluster, same=False)
        covered += found.ci95[0] <= truth <= found.ci95[1]
        told += found.p < 0.05
    return covered / trials, told / trials


@dataclass(frozen=True)
class Confused:
    """Test sets of `n` samples whose classes are as frequent as 1 / rank ^ `power`, and right about as often as `right`
    says (give or take `spread`); what is wrong goes to a few classes."""

    classes: int
    n: int
    power: float
    right: float
    spread: float = 0.2

    def joint(self, seed: int) -> NDArray[np.float64]:
        """How likely each class (row) is, with each answer (column)."""
        rng = np.random.default_rng(seed)
        share = 1 / np.arange(1, self.classes + 1) ** self.power
        right = np.clip(rng.normal(self.right, self.spread, self.classes), 0.002, 0.995)
        wrong = rng.dirichlet(np.full(self.classes, 0.3), size=self.classes)
        np.fill_diagonal(wrong, 0)
        found = wrong / wrong.sum(axis=1, keepdims=True) * (1 - right)[:, None]
        np.fill_diagonal(found, right)
        joint: NDArray[np.float64] = found * (share / share.sum())[:, None]
        return joint


CONFUSED: Final[dict[str, Confused]] = {
    "10 classes alike": Confused(10, 200, 0, 0.7),
    "20 classes, some rare": Confused(20, 400, 1, 0.6),
    "50 classes, most rare": Confused(50, 500, 1, 0.5),
    "50 classes, most rare, easy": Confused(50, 500, 1, 0.95, 0.03),
    "180 classes, most very rare": Confused(180, 5_000, 1.5, 0.4),
    "180 classes, nearly all wrong": Confused(180, 5_000, 1.5, 0.05, 0.05),
    "2 classes of 20": Confused(2, 40, 0, 0.8),
    "5 classes of 60, easy": Confused(5, 60, 0.5, 0.93, 0.05),
    "26 classes of 60, at chance": Confused(26, 60, 0.3, 0.03, 0.0),
}


def macro_f1(sets: Confused, trials: int, seed: int) -> float:
    """Of the macro F1 of the classes that a set has a sample of."""
    joint = sets.joint(seed)
    truth = 2 * np.diag(joint) / (joint.sum(axis=0) + joint.sum(axis=1))
    rng, upto, covered = np.random.default_rng(seed), joint.ravel().cumsum(), 0
    for _ in range(trials):
        cell = np.searchsorted(upto, rng.random(sets.n) * upto[-1])
        target, prediction = np.divmod(cell, sets.classes)
        low, high = f1.f1_score(target, prediction, sets.classes).ci95
        covered += low <= truth[np.unique(target)].mean() <= high
    return covered / trials


def clustered_macro_f1(
    clusters: Clusters, sets: Confused, trials: int, seed: int, *, samples_alone: bool = False
) -> float:
    """As `macro_f1`, over clusters, in which samples are of few classes and right together; answers are all classes
    alike."""
    rng, share = np.random.default_rng(seed), 1 / np.arange(1, sets.classes + 1) ** sets.power
    share = share / share.sum()
    hit = share * sets.right
    truth = 2 * hit / (share + hit + (1 - sets.right) / (sets.classes - 1) * (1 - share))
    covered = 0
    for _ in range(trials):
        cluster = clusters.drawn(rng)
        shared, own = (rng.choice(sets.classes, n, p=share) for n in (clusters.count, cluster.size))
        target = np.where(rng.random(cluster.size) < 0.5, shared[cluster], own)
        right = clusters.right(rng, cluster, sets.right)
        other = (target + rng.integers(1, sets.classes, cluster.size)) % sets.classes
        prediction = np.where(right, target, other)
        of = None if samples_alone else cluster
        low, high = f1.f1_score(target, prediction, sets.classes, of).ci95
        covered += low <= truth[np.unique(target)].mean() <= high
    return covered / trials


def _all() -> Iterator[tuple[str, Callable[[int, int], float], int]]:
    """Name, simulation, and how many trials of 1,000 it gets (large sets are slow)."""
    kinds: tuple[APKind, ...] = ("area", "11pt", "envelope")
    for kind in kinds:
        for name in ("RARE", "FEW_CLASSES", "EASY", "HARD", "COCO", "VOC"):
            sets: Sets = globals()[name]
            share = 1_000 if sets.n == 100 else 500 if sets.n < 1_000 else 200
            label = f"map_{kind}, {name.lower()}: n = {sets.n:,}, {sets.classes} classes"
            yield label, partial(average_precision, sets, kind), share
    yield "few shots, 5 draws", partial(few_shots, 5), 2_000
    yield "few shots, 3 draws", partial(few_shots, 3), 2_000
    yield "mean of a suite, 5 tasks of the same images", partial(suite_mean, 5), 2_000
    for count in (20, 50):
        clusters = Clusters(count)
        for right in (0.6, 0.9):
            label = f"{count} clusters, {right:.0%} right"
            yield f"accuracy, {label}", partial(clustered_accuracy, clusters, right), 5_000
            for of_one_class in (False, True):
                of = "one class each" if of_one_class else "several classes"
                recall = partial(clustered_recall, clusters, right, of_one_class=of_one_class)
                yield f"mean recall, {label}, of {of}", recall, 2_000
        for power in (1.0, 1.5):
            label = f"{count} clusters, right with confidence ^ {power:g}"
            yield f"ece, {label}", partial(clustered_ece, clusters, power), 500
        for name in ("FEW_CLASSES", "RARE", "EASY", "HARD"):
            precision = partial(clustered_precision, clusters, globals()[name])
            yield f"map_area, {name.lower()}, {count} clusters", precision, 500
    yield "difference of two map_area, few_classes", _difference, 1_000
    for name, answers in CONFUSED.items():
        yield f"macro F1, {name}", partial(macro_f1, answers), 2_000
    confused = Confused(6, 0, 1.0, 0.6)
    for count in (20, 50):
        yield f"macro F1, {count} clusters", partial(clustered_macro_f1, Clusters(count), confused), 2_000
    for name, kinds_of in GROUPS.items():
        for groups in kinds_of:
            yield f"worst group, {name}, clusters: {groups.clusters}", partial(lowest_accuracy, groups), 1_000


def _difference(trials: int, seed: int) -> float:
    return paired_average_precision(FEW_CLASSES, 0.5, trials, seed)[0]


def main() -> None:
    """Print the coverage of every simulation."""
    scale = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    for name, simulation, trials in _all():
        start, trials = time.perf_counter(), max(1, round(scale * trials))
        share = simulation(trials, 1)
        print(
            f"{100 * share:5.1f} %  {name} ({trials:,} trials, {time.perf_counter() - start:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
