"""Probes against scikit-learn on real features (handwritten digits), and what is drawn against what should be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from fakes import Array, FakeEncoder, FakeSplit, card, given
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, recall_score, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from clipbench.catalog import Catalog
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.encoding.runtime import Runtime
from clipbench.errors import DataError
from clipbench.evaluation import Options, evaluate
from clipbench.metrics import average_precision, intervals
from clipbench.protocols import _few_shot
from clipbench.protocols._logistic import best_of, hold_out
from clipbench.protocols.linear_probe import PROTOCOL, Params, needs, run
from clipbench.solvers.minibatch_probe import fit_adamw, fit_sgd

one_thread = small.one_thread
LAMBDAS = {"kind": "logistic", "lambdas": 7, "lowest": 1e-3, "highest": 1e3, "sweep": 0.0}


def digits(train: int = 600, test: int = 500) -> dict[str, Split]:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype(np.float32) / 16, y[order].astype(np.int64)
    return {
        "train": given("train", x[:train], y[:train], 10),
        "test": given("test", x[train : train + test], y[train : train + test], 10),
    }


def labels_of(split: Split) -> NDArray[np.int64]:
    return split.labels.astype(np.int64)


def features_of(split: Split) -> Array:
    assert isinstance(split, FakeSplit)
    assert split.features is not None
    return split.features


def reference(x: Array, y: NDArray[Any], lambda_: float) -> LogisticRegression:
    fitted = LogisticRegression(C=1 / lambda_, tol=1e-8, max_iter=20_000)
    return fitted.fit(x.astype(np.float64), y)


# ------------------------------------------------------------ logistic regression


@pytest.mark.parametrize("primary", ["acc1", "mean_per_class_recall"])
def test_the_whole_protocol_is_scikit_learns_done_by_hand(primary: str, tmp_path: Path) -> None:
    splits = digits()
    params = Params.model_validate({"primary": primary, "classifier": LAMBDAS})
    outcome = run(card(tmp_path), splits, FakeEncoder(), params, seed=3)
    x, y = features_of(splits["train"]), splits["train"].labels
    fit, held = hold_out(y, 0.2, 3)
    scored = []
    for lambda_ in np.geomspace(1e-3, 1e3, 7):
        predicted = reference(x[fit], y[fit], lambda_).predict(x[held])
        right = (predicted == y[held]).mean()
        scored.append(right if primary == "acc1" else recall_score(y[held], predicted, average="macro"))
    np.testing.assert_allclose([p["score"] for p in outcome.evidence["curve"]], scored, atol=1e-12)
    equal = [i for i in range(7) if scored[i] == max(scored)]
    best = equal[len(equal) // 2]
    chosen = np.geomspace(1e-3, 1e3, 7)[best]
    assert outcome.evidence["chosen"]["lambda"] == pytest.approx(chosen)
    assert outcome.evidence["chosen"]["C"] == pytest.approx(1 / chosen)
    final = reference(x, y, chosen)
    predicted = final.predict(features_of(splits["test"]))
    np.testing.assert_array_equal(outcome.samples["prediction"], predicted)
    right = (predicted == splits["test"].labels).mean()
    assert outcome.scores["acc1"].value == pytest.approx(right)
    assert right > 0.9
    assert set(outcome.scores) == {"acc1", "acc5", "mean_per_class_recall"}
    assert outcome.evidence["not_converged"] == []
    assert outcome.evidence["validation"] == {
        "metric": primary,
        "n": len(held),
        "source": "0.2 of train, held out",
    }


def test_the_best_five_may_choose(tmp_path: Path) -> None:
    splits = digits()
    params = Params.model_validate({"primary": "acc5", "classifier": LAMBDAS | {"lambdas": 3}})
    outcome = run(card(tmp_path), splits, FakeEncoder(), params, seed=3)
    x, y = features_of(splits["train"]), splits["train"].labels
    fit, held = hold_out(y, 0.2, 3)
    models = [reference(x[fit], y[fit], lambda_) for lambda_ in (1e-3, 1, 1e3)]
    scored = [top_k_accuracy_score(y[held], model.decision_function(x[held]), k=5) for model in models]
    assert [point["score"] for point in outcome.evidence["curve"]] == pytest.approx(scored)


def test_sweep_chooses_loosely_and_fits_exactly(tmp_path: Path) -> None:
    splits = digits()
    loose = Params.model_validate({"classifier": LAMBDAS | {"sweep": 1e-3}})
    outcome = run(card(tmp_path), splits, FakeEncoder(), loose, seed=3)
    chosen = outcome.evidence["chosen"]["lambda"]
    final = reference(features_of(splits["train"]), splits["train"].labels, chosen)
    same = np.asarray(outcome.samples["prediction"]) == final.predict(features_of(splits["test"]))
    assert same.sum() >= 499  # one image of the 500 lies on the boundary
    assert "‖g‖ ≤ 0.001 ‖g₀‖ min(5, max(1, " in outcome.evidence["criterion"]
    assert outcome.evidence["final"]["distance"] <= 1e-7


def test_validation_split_of_the_card_is_used_and_joined_for_the_last_fit(tmp_path: Path) -> None:
    splits = digits()
    x, y = features_of(splits["train"]), splits["train"].labels
    splits["train"] = given("train", x[:450], y[:450], 10)
    splits["val"] = given("val", x[450:], y[450:], 10)
    params = Params.model_validate({"validation": "val", "classifier": LAMBDAS | {"lambdas": 3}})
    assert sorted(needs(params, "joint").images) == [
        ("test", "backbone"),
        ("train", "backbone"),
        ("val", "backbone"),
    ]
    outcome = run(card(tmp_path), splits, FakeEncoder(), params, seed=0)
    chosen = outcome.evidence["chosen"]["lambda"]
    expected = reference(x, y, chosen).predict(features_of(splits["test"]))
    np.testing.assert_array_equal(outcome.samples["prediction"], expected)
    assert outcome.evidence["validation"]["n"] == 150


def test_best_at_the_edge_of_the_range_is_said(tmp_path: Path) -> None:
    narrow = {"kind": "logistic", "lambdas": 3, "lowest": 1e3, "highest": 1e5}
    outcome = run(
        card(tmp_path), digits(), FakeEncoder(), Params.model_validate({"classifier": narrow}), seed=0
    )
    assert "lowest of the range" in outcome.evidence["chosen"]["edge"]


def test_equal_scores_take_the_middle_one() -> None:
    assert best_of(np.array([0.1, 0.5, 0.5, 0.2])) == 2
    assert best_of(np.array([0.5, 0.5, 0.5, 0.1])) == 1
    assert best_of(np.array([0.1, 0.2, 0.5])) == 2


def test_penalty_that_did_not_converge_is_named(tmp_path: Path) -> None:
    hurried = LAMBDAS | {"max_iter": 1}
    outcome = run(
        card(tmp_path), digits(), FakeEncoder(), Params.model_validate({"classifier": hurried}), seed=0
    )
    assert len(outcome.evidence["not_converged"]) >= 5
    assert not outcome.evidence["final"]["converged"]


def test_images_that_could_not_be_decoded_are_left_out(tmp_path: Path) -> None:
    splits = digits()
    whole = run(card(tmp_path), splits, FakeEncoder(), Params.model_validate({"classifier": LAMBDAS}), seed=0)
    holes = {role: features_of(split).copy() for role, split in splits.items()}
    holes["train"] = np.concatenate([holes["train"], np.full((3, 64), np.nan, np.float32)])
    holes["test"][7] = np.nan
    labels = np.concatenate([splits["train"].labels, [0, 1, 2]])
    spoilt: dict[str, Split] = {
        "train": given("train", holes["train"], labels, 10),
        "test": given("test", holes["test"], splits["test"].labels, 10),
    }
    outcome = run(
        card(tmp_path), spoilt, FakeEncoder(), Params.model_validate({"classifier": LAMBDAS}), seed=0
    )
    assert outcome.scores["acc1"].n == 499
    expected = np.delete(np.asarray(whole.samples["prediction"]), 7)
    np.testing.assert_array_equal(outcome.samples["prediction"], expected)


def test_hold_out_takes_its_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2, 3], [50, 10, 2, 1])
    fit, held = hold_out(labels, 0.2, 5)
    assert np.bincount(labels[held], minlength=4).tolist() == [10, 2, 1, 0]
    assert sorted([*fit, *held]) == list(range(63))
    again = hold_out(labels, 0.2, 5)
    np.testing.assert_array_equal(again[1], held)
    assert not np.array_equal(hold_out(labels, 0.2, 6)[1], held)


# -------------------------------------------------------------- the other probes


def test_nearest_neighbours_are_scikit_learns(tmp_path: Path) -> None:
    splits = digits()
    params = Params.model_validate({"classifier": {"kind": "knn", "k": 5}})
    outcome = run(card(tmp_path), splits, FakeEncoder(), params, seed=0)
    x, y, test = features_of(splits["train"]), splits["train"].labels, features_of(splits["test"])
    nearest = KNeighborsClassifier(5, metric="cosine", algorithm="brute").fit(x, y)
    shares = nearest.predict_proba(test)
    clear = np.sort(shares, axis=1)[:, -1] > np.sort(shares, axis=1)[:, -2]
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(
        np.asarray(outcome.samples["prediction"])[clear], nearest.predict(test)[clear]
    )


@pytest.mark.parametrize(("queries", "keys"), [(7, 11), (512, 16_384)])
def test_neighbours_in_blocks_of_any_size(queries: int, keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipbench.solvers import neighbours

    rng = np.random.default_rng(0)
    train, test = (
        rng.standard_normal((40, 6)).astype(np.float32),
        rng.standard_normal((15, 6)).astype(np.float32),
    )
    labels = rng.integers(0, 4, 40)
    monkeypatch.setattr(neighbours, "_QUERIES", queries)
    monkeypatch.setattr(neighbours, "_KEYS", keys)
    votes = np.concatenate([v for _, v in neighbours.vote(train, labels, 4, test, 9)])
    unit = [m / np.linalg.norm(m, axis=1, keepdims=True) for m in (test, train)]
    order = np.argsort(-(unit[0] @ unit[1].T), axis=1)[:, :9]
    expected = np.stack([np.bincount(labels[row], minlength=4) for row in order])
    np.testing.assert_array_equal(np.floor(votes * 9 + 1e-3), expected)


def test_a_neighbour_on_the_other_side_is_one_too() -> None:
    from clipbench.solvers import neighbours

    train, test = np.array([[1, 0]], dtype=np.float32), np.array([[-1, 0]], dtype=np.float32)
    ((_, votes),) = neighbours.vote(train, np.array([1]), 2, test, 1, "cpu")
    assert votes.argmax(axis=1).tolist() == [1]


def test_adamw_is_its_recipe_written_out(tmp_path: Path) -> None:
    splits = digits(200)
    x, y = features_of(splits["train"]), labels_of(splits["train"])
    head = fit_adamw(x, y, 10, lr=0.1, weight_decay=0.01, epochs=3, batch_size=64, seed=1)
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 10)
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        torch.nn.init.uniform_(parameter, -1 / 8, 1 / 8, generator=generator)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 3 * 4)
    rng = np.random.default_rng(1)
    for _ in range(3):
        rng.permutation(1)
        order = rng.permutation(200)
        for start in range(0, 200, 64):
            rows = torch.from_numpy(order[start : start + 64])
            loss = torch.nn.functional.cross_entropy(
                layer(torch.from_numpy(x)[rows]), torch.from_numpy(y)[rows]
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    np.testing.assert_allclose(head.weights, layer.weight.detach(), rtol=1e-4, atol=1e-5)
    assert head.losses[-1] < head.losses[0]


def test_features_too_large_to_keep_are_read_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipbench.solvers import minibatch_probe

    splits = digits()
    x, y = features_of(splits["train"]), labels_of(splits["train"])
    settings: dict[str, Any] = {
        "width": 64,
        "lr": 0.3,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "batch_size": 32,
        "seed": 0,
    }
    kept = fit_sgd(lambda _: x, y, 10, epochs=20, **settings)
    monkeypatch.setattr(minibatch_probe, "_RESIDENT_BYTES", 0)
    monkeypatch.setattr(minibatch_probe, "_CHUNK_ROWS", 250)
    chunked = fit_sgd(lambda _: x, y, 10, epochs=20, **settings)
    test, labels = features_of(splits["test"]), splits["test"].labels
    for head in (kept, chunked):
        assert (head.scores(test).argmax(1) == labels).mean() > 0.9
    assert not np.allclose(kept.weights, chunked.weights)


@pytest.mark.parametrize("crops", [False, True])
def test_sgd_reads_stored_features_or_new_crops(crops: bool, tmp_path: Path) -> None:
    encoder = FakeEncoder()
    sgd = {"kind": "sgd-virtex", "epochs": 3, "crops": crops}
    outcome = run(card(tmp_path), digits(), encoder, Params.model_validate({"classifier": sgd}), seed=0)
    assert outcome.evidence["trained_on"] == ("new crops every epoch" if crops else "stored features")
    assert len(outcome.evidence["loss"]) == 3
    assert encoder.epochs == ([0, 1, 2] if crops else [])  # each is encoded once


def test_few_shots_are_drawn_from_data_set_seed_draw_and_shots_alone(tmp_path: Path) -> None:
    splits = digits(900)
    params = Params.model_validate({"shots": 4, "classifier": LAMBDAS})
    outcome = run(card(tmp_path), splits, FakeEncoder(), params, seed=0)
    again = run(card(tmp_path), splits, FakeEncoder(), params, seed=0)
    other = run(card(tmp_path), splits, FakeEncoder(), params, seed=1)
    per_draw = outcome.evidence["per_draw"]["acc1"]
    assert per_draw == again.evidence["per_draw"]["acc1"] != other.evidence["per_draw"]["acc1"]
    assert len(set(per_draw)) == 5
    assert outcome.scores["acc1"].value == pytest.approx(np.mean(per_draw))
    low, high = outcome.scores["acc1"].ci95
    assert low < np.mean(per_draw) < high
    shots_alone = intervals.of_draws(per_draw, 0.0, 1)[0]
    assert (high - low) / 2 > shots_alone * 0.9  # which shots were drawn is in it
    assert outcome.evidence["std"]["acc1"] == pytest.approx(np.std(per_draw, ddof=1))
    assert [draw["n"] for draw in outcome.evidence["draws"]] == [40] * 5
    more = Params.model_validate({"shots": 16, "classifier": LAMBDAS})
    better = run(card(tmp_path), splits, FakeEncoder(), more, seed=0)
    assert better.scores["acc1"].value > outcome.scores["acc1"].value + 0.03


def test_few_shots_hang_on_the_data_sets_id_and_on_no_word_of_its_card(tmp_path: Path) -> None:
    params = Params.model_validate({"shots": 1, "draws": 1, "classifier": LAMBDAS})

    def recall(dataset: str, **words: str) -> list[float]:
        splits = digits(300)
        for split in splits.values():
            split.dataset = dataset
        described = card(tmp_path).model_copy(update=words)
        return list(run(described, splits, FakeEncoder(), params, seed=0).per_class["recall"])

    first = recall("digits")
    assert recall("digits", title="Another title", description="d", notes="n") == first
    assert recall("other") != first


def test_shots_and_further_samples_do_not_meet() -> None:
    labels = np.repeat(np.arange(5), 12)
    shot, further = _few_shot._draw(labels, 8, np.random.default_rng(0))
    assert np.bincount(labels[shot]).tolist() == [8] * 5
    assert np.bincount(labels[further]).tolist() == [4] * 5
    assert not set(shot) & set(further)
    with pytest.raises(DataError, match="class number 0 has 12 training samples; 12 shots and one further"):
        _few_shot._draw(labels, 12, np.random.default_rng(0))


# ----------------------------------------------------------------- multi-label


def test_multi_label_is_one_probe_a_class_with_its_own_penalty(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 12)).astype(np.float32)
    scores = x @ rng.standard_normal((12, 3)) + 1.5 * rng.standard_normal((500, 3))
    labels = (scores > 1).astype(np.uint8)
    labels[(scores > 0.8) & (scores <= 1)] = 255
    splits: dict[str, Split] = {
        "train": given("train", x[:300], labels[:300], 3),
        "test": given("test", x[300:], labels[300:], 3),
    }
    settings = {"primary": "map_11pt", "difficult": "ignore", "classifier": LAMBDAS}
    params = Params.model_validate(settings)
    described = card(tmp_path, 3, kind="multi-label")
    outcome = run(described, splits, FakeEncoder(), params, seed=0)
    fit, held = hold_out(labels[:300], 0.2, 0)
    for c in range(3):
        trained = (labels[:300, c] == 1).astype(int)  # difficult: negative in training
        kept = labels[held, c] != 255
        curve = []
        for lambda_ in np.geomspace(1e-3, 1e3, 7):
            decision = reference(x[fit], trained[fit], lambda_).decision_function(x[held])
            curve.append(
                average_precision.mean_average_precision(
                    decision[kept, None], labels[held, c][kept, None], "11pt"
                )
            )
        equal = [i for i in range(7) if curve[i] == max(curve)]
        best = equal[len(equal) // 2]
        chosen = np.geomspace(1e-3, 1e3, 7)[best]
        assert outcome.evidence["chosen"][f"c{c}"]["lambda"] == pytest.approx(chosen)
        decision = reference(x[:300], trained, chosen).decision_function(x[300:])
        kept = labels[300:, c] != 255
        expected = average_precision_score(labels[300:, c][kept] == 1, decision[kept])
        assert outcome.per_class["ap_area"][c] == pytest.approx(expected, abs=5e-4)


def test_labels_without_marks_are_not_scored_as_if_they_had_them(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    labels = (x[:, :2] > 0).astype(np.uint8)
    splits: dict[str, Split] = {role: given(role, x, labels, 2) for role in ("train", "test")}
    params = Params.model_validate({"primary": "map_11pt", "difficult": "ignore", "classifier": LAMBDAS})
    with pytest.raises(DataError, match="does not mark difficult objects"):
        run(card(tmp_path, 2, kind="multi-label"), splits, FakeEncoder(), params, seed=0)


# ------------------------------------------------------------------ cards, the whole way


@pytest.mark.parametrize(
    ("kind", "name", "least", "below"),
    [
        *((kind, "lr", 1e-9, 0) for kind in ("adamw", "sgd-virtex")),
        *((kind, "weight_decay", 0, -1e-9) for kind in ("adamw", "sgd-virtex")),
        *((kind, name, 1, 0) for kind in ("adamw", "sgd-virtex") for name in ("epochs", "batch_size")),
        *(("sgd-virtex", "momentum", 0, bad) for bad in (-1e-9, 1)),
        ("knn", "k", 1, 0),
        *(("logistic", name, 1, 0) for name in ("lambdas", "max_iter")),
        *(("logistic", name, 1e-9, 0) for name in ("lowest", "highest", "tolerance")),
        ("logistic", "sweep", 0, -1e-9),
        *((None, "holdout", 0.1, bad) for bad in (0, 1)),
        *((None, name, 1, 0) for name in ("shots", "draws")),
    ],
)
def test_numbers_have_a_least_value(kind: str | None, name: str, least: float, below: float) -> None:
    def given(value: float) -> dict[str, Any]:
        return {"classifier": {"kind": kind, name: value}} if kind else {name: value}

    Params.model_validate(given(least))
    with pytest.raises(ValidationError, match=r"greater than|less than"):
        Params.model_validate(given(below))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"train": "trian"}, 'unknown split "trian"; did you mean "train"'),
        ({"test": "train"}, "train, validation and test must be different"),
        ({"primary": "map_11pt"}, "is no metric of a single-label set"),
        ({"shots": 1, "classifier": {"kind": "knn"}}, "shots belong to the logistic probe"),
        ({"difficult": "ignore"}, "difficult belongs to multi-label sets"),
        ({"classifier": {"kind": "logistic", "lowest": 2.0, "highest": 1.0}}, "lowest is above highest"),
    ],
)
def test_params_that_a_card_cannot_have(params: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in (PROTOCOL.misfit(card(tmp_path), Params.model_validate(params)) or "")


def test_every_card_gets_the_protocols_own_variants_where_they_suit(tmp_path: Path) -> None:
    folder = small.write_task(
        tmp_path / "single",
        "beasts",
        splits={r: {"name": r} for r in ("train", "test")},
        protocols={"lp": {}},
    )
    small.write_task(
        folder, "things", kind="multi-label", splits={r: {"name": r} for r in ("train", "test")},
        protocols={"lp": {"primary": "map_11pt"}},
    )  # fmt: skip
    ids = Catalog([folder]).task_ids()
    variants = {i.partition("@")[2] for i in ids if i.startswith("beasts-lp@")}
    assert variants == {"1-shot", "2-shot", "4-shot", "8-shot", "16-shot", "knn", "adamw"}
    assert [i for i in ids if i.startswith("things")] == ["things-lp"]
    task = Catalog([folder]).task("beasts-lp@adamw")
    assert task.params.canonical()["space"] == "joint"


def test_features_cached_or_not_give_the_same_record(tmp_path: Path) -> None:
    """A peer's probe gives another number when its features come from the cache."""
    data = tmp_path / "data"
    for role, count in (("train", 90), ("test", 40)):
        small.write_parquet(data / f"{role}.parquet", count)
    cards = small.write_task(
        tmp_path / "cards", splits={r: {"name": r} for r in ("train", "test")}, protocols={"lp": {}}
    )
    catalog = Catalog([cards])
    model = catalog.model(str(small.write_run(tmp_path / "run")))
    options = Options(Runtime("cpu", "fp32"), data=DataPaths({"animals": data}, ()), progress=False)
    tasks = catalog.tasks(["animals-lp", "animals-lp@knn", "animals-lp@adamw", "animals-lp@2-shot"])
    cold, warm = ([r.record for r in evaluate([model], tasks, options)] for _ in range(2))
    for first, second in zip(cold, warm, strict=True):
        assert first is not None
        assert second is not None
        assert first.scores == second.scores
        assert first.evidence == second.evidence
    assert warm[0] is not None
    assert warm[0].timing.images_encoded == 0
