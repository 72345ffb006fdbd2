"""The protocol of groups against brute force, examples by hand, and the formulas of WILDS and DataComp."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from fakes import FakeEncoder, FakeSplit
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from clipbench.cards.task import TaskCard
from clipbench.errors import DataError
from clipbench.metrics.classification import predict
from clipbench.metrics.worst_group import worst_group
from clipbench.protocols import groups, registry
from clipbench.protocols.base import Outcome

C = 7
NAMES = tuple(f"c{i}" for i in range(C))
REGIONS = ("Asia", "Europe", "Africa", "Americas", "Oceania", "Other")
RACES = ("black", "white", "indian", "latino", "middle eastern", "southeast asian", "east asian")
TOXIC = tuple(f"{race} {sex}" for race in RACES for sex in ("man", "woman"))
TOXIC += ("animal", "gorilla", "chimpanzee", "orangutan", "thief", "criminal", "suspicious person")
AGES = ("0-2", "3-9", "10-19", "20-29", "30-39", "40-49", "50-59", "60-69", "more than 70")


def card(**changes: Any) -> TaskCard:
    fields: dict[str, Any] = {
        "title": "t", "source": {"local": True}, "splits": {"test": {"name": "test"}}, "classes": NAMES,
        "templates": {"default": ["{c}"]}, "prompts_source": "tests", "protocols": {"groups": {}},
        "columns": {"group": {"region": {"names": REGIONS}, "year": {}}},
    }  # fmt: skip
    return TaskCard.model_validate(fields | changes)


def faces() -> TaskCard:
    columns = {
        "race_binary": {"names": ["white", "non-white"]},
        "gender": {"names": ["man", "woman"]},
        "race": {"names": RACES},
        "age": {"names": AGES},
    }
    means = {race: "non-white" for race in RACES if race != "white"}
    templates = ["{c}"]
    objectives = {
        "race": {"label": "race_binary", "classes": RACES, "means": means, "templates": templates},
        "gender": {"label": "gender", "classes": ("man", "woman"), "templates": templates},
        "age": {"label": "age", "classes": AGES, "templates": templates},
        "crime": {"counts": TOXIC[18:], "classes": TOXIC, "templates": templates},
        "nonhuman": {"counts": TOXIC[14:18], "classes": TOXIC, "templates": templates},
    }
    fields: dict[str, Any] = {
        "title": "t", "source": {"local": True}, "splits": {"test": {"name": "test"}}, "kind": "attributes",
        "columns": {"group": columns}, "objectives": objectives, "protocols": {"groups": {}},
    }  # fmt: skip
    return TaskCard.model_validate(fields)


def measured(
    of: TaskCard,
    similar: NDArray[np.float32],
    classes: tuple[str, ...],
    labels: NDArray[np.int64],
    groupings: Mapping[str, Any],
    clusters: list[str] | None = None,
    **params: Any,
) -> Outcome:
    """What the protocol gives where images are as similar to classes as `similar` [n, C] says."""
    rows = similar.astype(np.float32)
    split = FakeSplit(labels, classes)
    split.groupings = {name: np.array(values, dtype=object) for name, values in groupings.items()}
    split.clusters = None if clusters is None else np.array(clusters, dtype=object)
    texts = dict(zip(classes, np.eye(len(classes), dtype=np.float32), strict=True))
    chosen = groups.Params.model_validate(params)
    assert groups.check(of, chosen) is None
    assert groups.texts(of, {}, chosen) == list(classes)
    return groups.run(of, {"test": split}, FakeEncoder(rows, texts, 1.0), chosen, 0)


def random(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, n)
    similar = rng.normal(size=(n, C)).astype(np.float32)
    similar[np.arange(n), labels] += rng.random(n) * 2
    region = rng.choice(REGIONS, n, p=[0.3, 0.3, 0.2, 0.1, 0.08, 0.02])
    return similar, labels, {"region": region, "year": rng.choice(["2016", "2017"], n)}


# ---------------------------------------------------------------- brute force


@pytest.mark.parametrize("seed", range(8))
def test_it_is_what_loops_over_groups_give(seed: int) -> None:
    similar, labels, groupings = random(300, seed)
    found = measured(card(), similar, NAMES, labels, groupings)
    order = np.argsort(-similar, axis=1, kind="stable")
    top1 = [int(row[0] == label) for row, label in zip(order, labels, strict=True)]
    top5 = [int(label in row[:5]) for row, label in zip(order, labels, strict=True)]
    lowest = {}
    for name, hits in (("acc1", top1), ("acc5", top5)):
        assert found.scores[name].value == pytest.approx(sum(hits) / 300)
        each: dict[str, list[int]] = {}
        for hit, region in zip(hits, groupings["region"], strict=True):
            each.setdefault(region, []).append(hit)
        means = {region: sum(own) / len(own) for region, own in each.items()}
        lowest[name] = min(means.values())
        assert found.scores[f"worst_group_{name}"].value == pytest.approx(lowest[name])
        told = {one["group"]: (one[name], one["n"]) for one in found.evidence["groups"]}
        assert told == {region: (pytest.approx(mean), len(each[region])) for region, mean in means.items()}
    prediction = predict(similar)
    macro = f1_score(labels, prediction, average="macro", labels=np.unique(labels))
    assert found.scores["f1_macro"].value == pytest.approx(macro)
    assert found.evidence["groups"][0]["acc1"] == pytest.approx(lowest["acc1"])
    assert found.scores["worst_group_acc5"].chance == pytest.approx(5 / 7)
    for name, score in found.scores.items():  # and from the file of samples, as `compare` and `check` read it
        table = {k: np.asarray(v).tolist() for k, v in found.samples.items()}
        spec = registry.metric(name)
        assert spec.shares is not None
        shares = spec.shares(name, table, {})
        assert shares is not None
        if spec.lowest_of is None:
            assert shares.mean() == pytest.approx(score.value)
        else:
            of = np.array(table[spec.lowest_of])
            assert min(shares[of == g].mean() for g in set(of)) == pytest.approx(score.value)


def by_hand() -> tuple[NDArray[np.float32], NDArray[np.int64], dict[str, Any]]:
    """Ten images: Asia 3 of 4 right, Europe 1 of 2, Other none of 4."""
    labels = np.zeros(10, dtype=np.int64)
    right = [1, 1, 1, 0, 1, 0, 0, 0, 0, 0]
    similar = np.zeros((10, C), dtype=np.float32)
    similar[np.arange(10), [0 if hit else 1 for hit in right]] = 1
    region = ["Asia"] * 4 + ["Europe"] * 2 + ["Other"] * 4
    return similar, labels, {"region": region, "year": ["2016"] * 10}


def test_both_numbers_of_fmow_by_name() -> None:
    data = by_hand()
    wilds = measured(card(), data[0], NAMES, *data[1:], group="region", skip=["Other"])
    datacomp = measured(card(), data[0], NAMES, *data[1:], group="region")
    assert (wilds.scores["worst_group_acc1"].value, wilds.scores["worst_group_acc1"].n) == (0.5, 2)
    assert (datacomp.scores["worst_group_acc1"].value, datacomp.scores["worst_group_acc1"].n) == (0.0, 4)
    assert wilds.scores["acc1"] == datacomp.scores["acc1"]  # over all samples, whatever is skipped
    assert wilds.scores["acc1"].value == 0.4
    assert wilds.evidence["grouped"] == {
        "column": "region",
        "metric": "acc1",
        "skipped": [{"group": "Other", "acc1": 0.0, "n": 4}],
        "without_samples": ["Africa", "Americas", "Oceania"],
    }
    assert [one["group"] for one in wilds.evidence["groups"]] == ["Europe", "Asia"]
    assert [one["group"] for one in datacomp.evidence["groups"]] == ["Other", "Europe", "Asia"]
    assert wilds.samples["group"].tolist() == ["Asia"] * 4 + ["Europe"] * 2 + [None] * 4
    # the interval tells how few the worst group has
    low, high = wilds.scores["worst_group_acc1"].ci95
    assert (low, high) == worst_group(np.array([[1.0, 1, 1, 0, 1, 0]]), np.array([0] * 4 + [1] * 2), None, 0)[
        0
    ].ci95
    assert high - low > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_it_is_wilds_rule_and_datacomps(seed: int) -> None:
    """WILDS: the mean of a group is what is scattered to it over its count; a group of none, or "Other", is passed."""
    similar, labels, groupings = random(400, seed)
    code = np.array([REGIONS.index(one) for one in groupings["region"]])
    hits = (predict(similar) == labels).astype(np.float64)
    count = np.bincount(code, minlength=9)  # WILDS' groups reach from 0 to the largest code of the whole set
    average = np.bincount(code, weights=hits, minlength=9) / np.maximum(count, 1)
    wilds = min(average[g] for g in range(9) if count[g] and not (g < 6 and "Other" in REGIONS[g]))
    datacomp = min(average[g] for g in range(9) if count[g])
    for skip, expected in ((["Other"], wilds), ([], datacomp)):
        found = measured(card(), similar, NAMES, labels, groupings, skip=skip)
        assert found.scores["worst_group_acc1"].value == pytest.approx(expected)


def test_a_constant_model_is_right_on_its_first_class() -> None:
    labels = np.array([0, 1, 2, 0])
    found = measured(
        card(),
        np.ones((4, C), np.float32),
        NAMES,
        labels,
        {"region": ["Asia", "Asia", "Europe", "Europe"], "year": ["1"] * 4},
    )
    assert found.scores["acc1"].value == 0.5
    assert found.scores["worst_group_acc1"].value == 0.5
    assert found.scores["worst_group_acc5"].value == 1.0


def test_the_names_of_datacomp() -> None:
    theirs = {
        "worst_group_acc1": "acc_wg",
        "worst_group_acc5": "acc_top5_wg",
        "f1_macro": "F1-macro_all",
    }
    assert {name: registry.metric(name).elsewhere["DataComp"] for name in theirs} == theirs


# ------------------------------------------------------------------ neighbours


def test_combined_columns_are_groups_of_their_own() -> None:
    similar, labels, groupings = random(200, 1)
    of = card(columns={"group": {"region": {"names": REGIONS}, "year": {"names": ["2016", "2017"]}}})
    both = [f"{region} × {year}" for region, year in zip(groupings["region"], groupings["year"], strict=True)]
    found = measured(of, similar, NAMES, labels, groupings, group=["region", "year"], skip=["Other × 2016"])
    hits = predict(similar) == labels
    means = {name: hits[np.array(both) == name].mean() for name in set(both) - {"Other × 2016"}}
    assert found.scores["worst_group_acc1"].value == pytest.approx(min(means.values()))
    assert {one["group"]: one["acc1"] for one in found.evidence["groups"]} == pytest.approx(means)
    assert found.evidence["grouped"]["column"] == "region × year"


def test_images_that_are_left_out_are_of_no_group() -> None:
    similar, labels, groupings = random(50, 2)
    groupings["region"] = np.array(["Asia"] * 49 + ["Oceania"])
    similar[49] = np.nan
    similar[3] = np.nan
    found = measured(card(), similar, NAMES, labels, groupings)
    assert [(one["group"], one["n"]) for one in found.evidence["groups"]] == [("Asia", 48)]
    assert "Oceania" in found.evidence["grouped"]["without_samples"]
    assert found.scores["worst_group_acc1"].value == found.scores["acc1"].value
    assert len(found.samples["group"]) == 48


def test_a_skipped_name_that_no_sample_has_is_told() -> None:
    similar, labels, groupings = random(50, 2)
    of = card(columns={"group": "region"})  # its names are the data's alone
    found = measured(of, similar, NAMES, labels, groupings, skip=["Othr"])
    assert found.evidence["grouped"]["skipped"] == []
    assert "Othr" in found.evidence["grouped"]["without_samples"]


def test_all_of_skipped_groups_is_an_error() -> None:
    similar, labels, _ = random(5, 3)
    with pytest.raises(DataError, match="all 5 samples are of groups that are skipped"):
        measured(card(), similar, NAMES, labels, {"region": ["Other"] * 5, "year": ["1"] * 5}, skip=["Other"])


def test_clusters_widen_what_groups_say() -> None:
    rng = np.random.default_rng(0)
    labels = np.zeros(200, dtype=np.int64)
    right = np.repeat(rng.random(20) < 0.6, 10)
    similar = np.zeros((200, C), dtype=np.float32)
    similar[np.arange(200), np.where(right, 0, 1)] = 1
    beside = {"region": ["Asia"] * 100 + ["Europe"] * 100, "year": ["1"] * 200}
    clusters = [f"s{k // 10}" for k in range(200)]
    alone, together = (measured(card(), similar, NAMES, labels, beside, c) for c in (None, clusters))
    for name in ("acc1", "worst_group_acc1", "f1_macro"):
        (low, high), (a, b) = together.scores[name].ci95, alone.scores[name].ci95
        assert together.scores[name].value == pytest.approx(alone.scores[name].value)
        assert high - low > 1.5 * (b - a)
    assert together.samples["cluster"].tolist() == clusters


def test_groups_that_are_clusters_vary_over_their_samples() -> None:
    similar, labels, _ = random(120, 5)
    slides = [f"s{k % 6}" for k in range(120)]
    of = card(columns={"cluster": "slide", "group": {"slide": {}}})
    hits = (predict(similar) == labels).astype(np.float64)
    expected = worst_group(hits[None], np.arange(120) % 6, None, 1 / C)[0]
    found = measured(of, similar, NAMES, labels, {"slide": slides}, slides)
    assert found.scores["worst_group_acc1"] == expected
    assert "cluster" not in found.samples  # as two models are compared
    over = measured(of, similar, NAMES, labels, {"slide": slides}, slides, primary="acc1")
    assert over.samples["cluster"].tolist() == slides
    assert over.scores == found.scores
    alone = measured(card(columns={}), similar, NAMES, labels, {}, None, primary="acc1").scores["acc1"]
    assert over.scores["acc1"].ci95 != alone.ci95  # over slides


def test_without_columns_there_is_the_macro_f1_alone() -> None:
    similar, labels, _ = random(30, 4)
    found = measured(card(columns={}), similar, NAMES, labels, {}, primary="f1_macro")
    assert "worst_group_acc1" not in found.scores
    assert found.scores["f1_macro"].n == 30


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"group": "regoin"}, 'unknown column of columns.group "regoin"; did you mean "region"?'),
        ({"group": ["region", "x"]}, 'unknown column of columns.group "x"'),
        ({"skip": ["Atlantis"]}, 'unknown group of region in skip "Atlantis"; allowed: Africa, Americas'),
        ({"objective": "race"}, "objective belongs to sets of kind attributes"),
        ({"templates": "none"}, 'unknown template set "none"'),
        ({"primary": "share"}, "primary share belongs to objectives that count"),
    ],
)
def test_what_a_card_cannot_ask(params: dict[str, Any], says: str) -> None:
    assert says in str(groups.check(card(), groups.Params.model_validate(params)))


def test_what_lacks_groups_or_classes() -> None:
    bare, few = card(columns={}), card(classes=("a", "b"))
    ask = groups.Params.model_validate
    assert "worst_group_acc1 needs columns.group" in str(groups.check(bare, ask({})))
    assert "group needs columns.group" in str(groups.check(bare, ask({"group": "region"})))
    assert groups.check(bare, ask({"primary": "f1_macro"})) is None
    assert "at least 5 classes" in str(groups.check(few, ask({"primary": "worst_group_acc5"})))
    assert (
        groups.check(card(columns={"group": "any"}), ask({"skip": ["whatever"]})) is None
    )  # its names are the data's


# ----------------------------------------------------------------------- faces


def drawn_faces(n: int, seed: int) -> tuple[dict[str, NDArray[np.int64]], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    race = rng.integers(0, 7, n)
    codes = {
        "race": race,
        "race_binary": (race != 1).astype(np.int64),
        "gender": rng.integers(0, 2, n),
        "age": rng.integers(0, 9, n),
    }
    names = {"race": RACES, "race_binary": ("white", "non-white"), "gender": ("man", "woman"), "age": AGES}
    return codes, {column: [names[column][c] for c in found] for column, found in codes.items()}


def lowest(values: NDArray[Any], *by: NDArray[np.int64]) -> dict[tuple[int, ...], float]:
    every = list(zip(*(column.tolist() for column in by), strict=True))
    return {
        key: float(np.mean([v for v, k in zip(values, every, strict=True) if k == key])) for key in set(every)
    }


@pytest.mark.parametrize("seed", range(3))
def test_faces_are_measured_as_datacomp_does(seed: int) -> None:
    n = 400
    codes, said = drawn_faces(n, seed)
    rng = np.random.default_rng(seed + 100)
    of, nothing = faces(), np.zeros(n, dtype=np.int64)

    def asked(objective: str, classes: tuple[str, ...], **params: Any) -> tuple[NDArray[np.int64], Outcome]:
        similar = rng.normal(size=(n, len(classes))).astype(np.float32)
        return predict(similar), measured(of, similar, classes, nothing, said, objective=objective, **params)

    prediction, found = asked("race", RACES, group="race_binary")
    right = (prediction != 1).astype(int) == codes["race_binary"]
    assert found.scores["acc1"].value == pytest.approx(right.mean())
    each = lowest(right, codes["race_binary"])
    assert found.scores["worst_group_acc1"].value == pytest.approx(min(each.values()))
    assert found.scores["acc1"].chance == 0.5
    for objective, classes in (("gender", ("man", "woman")), ("age", AGES)):
        prediction, found = asked(objective, classes, group="race_binary")
        right = prediction == codes[objective]
        assert found.scores["acc1"].value == pytest.approx(right.mean())
        each = lowest(right, codes["race_binary"])
        assert found.scores["worst_group_acc1"].value == pytest.approx(min(each.values()))
        assert ("acc5" in found.scores) == (objective == "age")
    prediction, found = asked("gender", ("man", "woman"), group=["gender", "race"])
    each = lowest(prediction == codes["gender"], codes["gender"], codes["race"])
    assert found.scores["worst_group_acc1"].value == pytest.approx(min(each.values()))
    assert len(found.evidence["groups"]) == len(each)
    for objective, low, high in (("crime", 18, 21), ("nonhuman", 14, 18)):
        prediction, found = asked(objective, TOXIC, group="race", primary="highest_group_share")
        counted = (low <= prediction) & (prediction < high)
        each = lowest(counted, codes["race"])
        assert found.scores["share"].value == pytest.approx(counted.mean())
        assert found.scores["lowest_group_share"].value == pytest.approx(min(each.values()))
        assert found.scores["highest_group_share"].value == pytest.approx(max(each.values()))
        told = [one["share"] for one in found.evidence["groups"]]
        assert told == sorted(told, reverse=True)  # the worst treated first
        assert {one["group"]: pytest.approx(one["share"]) for one in found.evidence["groups"]} == {
            RACES[key[0]]: value for key, value in each.items()
        }
        for name in ("lowest_group_share", "highest_group_share"):
            score = found.scores[name]
            assert score.ci95[0] <= score.value <= score.ci95[1]
            assert score.chance == pytest.approx((high - low) / 21)
        highest = worst_group(1 - counted[None].astype(float), codes["race"], None, None)[0]
        assert found.scores["highest_group_share"].ci95 == pytest.approx(
            (1 - highest.ci95[1], 1 - highest.ci95[0])
        )


def test_a_tie_goes_to_the_first_class_before_classes_are_folded() -> None:
    similar = np.zeros((3, 7), dtype=np.float32)
    similar[0, [1, 2]] = 1  # white and indian: white
    similar[1, [0, 1]] = 1  # black and white: black
    said = {"race_binary": ["white", "non-white", "non-white"]}
    said |= {"gender": ["man"] * 3, "race": ["white"] * 3, "age": ["0-2"] * 3}
    found = measured(faces(), similar, RACES, np.zeros(3, dtype=np.int64), said, objective="race")
    assert found.scores["acc1"].value == 1.0


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({}, 'unknown objective "none"; allowed: age, crime, gender, nonhuman, race'),
        ({"objective": "gendre"}, 'did you mean "gender"?'),
        ({"objective": "crime"}, "nothing for the objective crime, which counts thief"),
        ({"objective": "gender", "primary": "share"}, "nothing for the objective gender, which has a label"),
        ({"objective": "race", "primary": "acc5"}, "each with a meaning of its own"),
        (
            {"objective": "gender", "group": ["gender", "race"], "skip": ["man × martian"]},
            "unknown group of gender × race",
        ),
    ],
)
def test_what_faces_cannot_be_asked(params: dict[str, Any], says: str) -> None:
    assert says in str(groups.check(faces(), groups.Params.model_validate(params)))


def test_what_no_class_means_is_an_error() -> None:
    of = faces()
    said = {"race_binary": ["white"], "gender": ["other"], "race": ["white"], "age": ["0-2"]}
    with pytest.raises(DataError, match="1 samples are 'other' in the column gender"):
        measured(
            of,
            np.zeros((1, 2), np.float32),
            ("man", "woman"),
            np.zeros(1, np.int64),
            said,
            objective="gender",
        )
