"""The SVM protocol against scikit-learn's LinearSVC done by hand, and the size that images are scaled to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import small
from fakes import FakeEncoder, FakeSplit, card, given, unit
from pydantic import ValidationError
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from clipbench.catalog import Catalog
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime
from clipbench.errors import DataError, NotApplicable
from clipbench.evaluation import Options, evaluate
from clipbench.metrics import average_precision, clustered
from clipbench.metrics.average_precision import APKind
from clipbench.protocols.base import Needs
from clipbench.protocols.svm_map import PROTOCOL, Params, needs, run
from clipbench.solvers.svm import folds_of_clusters

one_thread = small.one_thread


def things(seed: int = 0, count: int = 420, width: int = 16, classes: int = 4) -> dict[str, Split]:
    """Features that tell the classes apart as well as real ones do, with objects marked difficult."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, width)).astype(np.float32) * rng.uniform(0.5, 3, (count, 1)).astype(
        np.float32
    )
    score = x @ rng.standard_normal((width, classes)) / np.linalg.norm(x, axis=1, keepdims=True)
    score += 0.7 * rng.standard_normal(score.shape)
    labels = (score > 1).astype(np.uint8)
    labels[(score > 0.8) & (score <= 1)] = 255
    half = count // 2
    return {
        "train": given("train", x[:half], labels[:half], classes),
        "test": given("test", x[half:], labels[half:], classes),
    }


def test_protocol_is_virtexs_done_by_hand(tmp_path: Path) -> None:
    splits = things()
    params = Params(resize=None, difficult="ignore")
    outcome = run(card(tmp_path, 4, kind="multi-label"), splits, FakeEncoder(), params, seed=0)
    train, test = splits["train"], splits["test"]
    assert isinstance(train, FakeSplit)
    assert isinstance(test, FakeSplit)
    x, held = (unit(s.features) for s in (train, test) if s.features is not None)
    precisions, kinds = [], get_args(APKind)[1:]
    for c in range(4):
        y = np.where(train.labels[:, c] == 1, 1, -1)
        curve = []
        for cost in (0.01, 0.1, 1.0, 10.0):
            folds = []
            for fit, out in StratifiedKFold(3).split(x, y):
                folds.append(
                    average_precision_score(
                        y[out] == 1, svm(cost).fit(x[fit], y[fit]).decision_function(x[out])
                    )
                )
            curve.append(np.mean(folds))
        best = int(np.argmax(curve))
        cost = (0.01, 0.1, 1.0, 10.0)[best]
        assert outcome.evidence["chosen"][f"c{c}"]["C"] == cost
        found = outcome.evidence["cross_validation"][f"c{c}"]
        np.testing.assert_allclose(list(found.values()), curve, atol=2e-3)
        decision = svm(cost).fit(x, y).decision_function(held)
        kept = test.labels[:, c] != 255
        truth = test.labels[:, c][kept] == 1
        precisions.append(average_precision_score(truth, decision[kept]))
        for kind in kinds:
            expected = average_precision.mean_average_precision(
                decision[kept, None], truth[:, None].astype(np.uint8), kind
            )
            assert outcome.per_class[f"ap_{kind}"][c] == pytest.approx(expected, abs=2e-3)
    assert outcome.scores["map_area"].value == pytest.approx(np.mean(precisions), abs=5e-4)
    assert set(outcome.scores) == {"map_area", "map_11pt", "map_envelope"}
    assert outcome.evidence["not_converged"] == []
    assert outcome.evidence["criterion"].startswith("estimated f − min f ≤ 1e-06 · ")


def svm(cost: float) -> LinearSVC:
    return LinearSVC(C=cost, class_weight={1: 2, -1: 1}, dual=False, tol=1e-8, max_iter=20_000)


def test_difficult_objects_are_negatives_in_training_unless_positive_in_the_test(tmp_path: Path) -> None:
    splits = things()
    described = card(tmp_path, 4, kind="multi-label")
    scores = {
        rule: run(described, splits, FakeEncoder(), Params(resize=None, difficult=rule), seed=0).scores["map_area"]
        for rule in ("ignore", "negative", "positive")
    }  # fmt: skip
    assert len({score.value for score in scores.values()}) == 3


def test_class_with_too_few_positives_is_an_error(tmp_path: Path) -> None:
    splits = things()
    splits["train"].labels[:, 1] = 0
    splits["train"].labels[:2, 1] = 1
    with pytest.raises(DataError, match="3-fold cross-validation needs 3 positives and 3 negatives"):
        run(card(tmp_path, 4, kind="multi-label"), splits, FakeEncoder(), Params(resize=None), seed=0)


def test_what_did_not_converge_is_named_by_class_cost_and_fold(tmp_path: Path) -> None:
    params = Params(resize=None, max_iter=1, costs=(1.0,))
    outcome = run(card(tmp_path, 4, kind="multi-label"), things(), FakeEncoder(), params, seed=0)
    found: Any = outcome.evidence["not_converged"]
    assert [one["fold"] for one in found if one["class"] == "c0"] == [0, 1, 2, None]  # the last fit is of all
    assert {one["C"] for one in found} == {1.0}


def test_the_defaults_are_virtexs() -> None:
    assert Params().model_dump() == {
        "primary": "map_area", "train": "train", "test": "test", "resize": 256, "costs": (0.01, 0.1, 1.0, 10.0),
        "folds": 3, "positive_weight": 2.0, "tolerance": 1e-6, "max_iter": 2000, "difficult": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "least", "refused"),
    [
        ("resize", 1, 0),
        ("folds", 2, 1),
        ("max_iter", 1, 0),
        ("positive_weight", 1e-3, 0),
        ("tolerance", 1e-9, 0),
    ],
)
def test_numbers_have_a_least_value(name: str, least: float, refused: float) -> None:
    assert getattr(Params.model_validate({name: least}), name) == least
    with pytest.raises(ValidationError, match="greater than"):
        Params.model_validate({name: refused})


def test_clusters_of_most_positives_are_dealt_first() -> None:
    """Of 1, 3, 3, 4 and 5 positives: 5 and 3 against 4, 3 and 1, which the other way round were 9 against 7."""
    cluster = np.repeat(np.arange(5), [2, 4, 4, 5, 6])
    positive = np.diff(cluster, prepend=-1) == 0  # all but the first of each
    fold = folds_of_clusters(positive, cluster, 2)
    assert np.bincount(fold[positive]).tolist() == [8, 8]
    assert fold[[0, 2, 6, 10, 15]].tolist() == [1, 1, 0, 1, 0]


def test_folds_keep_clusters_whole(tmp_path: Path) -> None:
    splits, described = things(), card(tmp_path, 4, kind="multi-label")
    train = splits["train"]
    names = np.array([f"s{k // 7}" for k in range(210)], dtype=object)
    plain = run(described, splits, FakeEncoder(), Params(resize=None), seed=0)
    train.clusters = names
    found = run(described, splits, FakeEncoder(), Params(resize=None), seed=0)
    assert "folds" not in plain.evidence
    assert found.evidence["folds"] == "3, of whole clusters"
    assert isinstance(train, FakeSplit)
    assert train.features is not None
    x, y = unit(train.features), train.labels[:, 2] == 1
    fold = folds_of_clusters(y, clustered.codes(names))
    for name in names:
        assert len(set(fold[names == name])) == 1
    for kind in (y, ~y):
        shares = np.bincount(fold[kind]) / kind.sum()
        assert np.all(np.abs(shares - 1 / 3) < 0.07)
    scores = [
        average_precision_score(y[out], svm(1.0).fit(x[~out], 2 * y[~out] - 1).decision_function(x[out]))
        for out in (fold == k for k in range(3))
    ]
    assert found.evidence["cross_validation"]["c2"]["1.0"] == pytest.approx(np.mean(scores), abs=2e-3)
    train.clusters = np.array([f"s{k // 105}" for k in range(210)], dtype=object)
    with pytest.raises(DataError, match=r"keeps clusters whole needs 3 clusters with positives \(found 2\)"):
        run(described, splits, FakeEncoder(), Params(resize=None), seed=0)
    with pytest.raises(DataError, match="leaves a fold without negatives"):
        folds_of_clusters(np.array([True, True, True, False, False, False]), np.array([0, 1, 2, 0, 0, 0]))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"train": "trian"}, 'unknown split "trian"'),
        ({"test": "train"}, "train and test must be different"),
        ({"costs": (1.0, 0.1)}, "costs must ascend"),
        ({"costs": (0.0, 0.1)}, "costs must be above 0"),
        (
            {"resize": None, "interpolation": "bilinear-no-antialias"},
            "interpolation is of resize, which is null",
        ),
    ],
)
def test_params_that_a_card_cannot_have(params: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in (PROTOCOL.misfit(card(tmp_path, 4, kind="multi-label"), Params(**params)) or "")


# ------------------------------------------------------------------ the size of images


def test_presets_name_the_size_that_images_are_scaled_to() -> None:
    assert needs(Params(), "joint") == Needs((("train", "backbone@256"), ("test", "backbone@256")))
    assert needs(Params(resize=224), "joint").images[0] == ("train", "backbone@224")
    assert needs(Params(resize=None), "tokens").images[0] == ("train", "backbone")
    clip_lite = Params.model_validate(PROTOCOL.variants["clip-lite"])
    assert needs(clip_lite, "joint").images[0] == ("train", "backbone@224:bilinear-no-antialias")


@pytest.fixture
def pictures(tmp_path: Path) -> tuple[Catalog, Options]:
    data = small.write_images(tmp_path / "data", 24, side=40)
    catalog = Catalog([small.write_task(tmp_path / "cards")])
    return catalog, Options(Runtime("cpu", "fp32"), data=DataPaths({"animals": data}, ()), progress=False)


def test_size_of_a_space_overrides_the_models_own(tmp_path: Path, pictures: tuple[Catalog, Options]) -> None:
    from clipbench.data.open import open_split

    catalog, options = pictures
    split = open_split(catalog.dataset("animals"), "test", options.data)
    encoder = ModelEncoder(
        catalog.model(str(small.write_run(tmp_path / "run"))), options.runtime, progress=False
    )
    own, same, larger = (np.asarray(encoder.images(split, f"backbone{size}")) for size in ("", "@8", "@12"))
    np.testing.assert_array_equal(own, same)
    assert not np.allclose(own, larger)
    assert encoder.preprocess("backbone@12").size == 12
    assert encoder.preprocess("backbone@12").side == 8
    assert len(list(encoder.root.iterdir())) == 2  # the model's own size and the other one
    card = encoder.adapter.card.preprocess
    assert encoder.preprocess("backbone@8").canonical() == card.canonical()
    ways = [f"backbone@{size}:bilinear-no-antialias" for size in (8, 12)]
    changed = {"interpolation": "bilinear-no-antialias", "order": "convert-first"}
    assert encoder.preprocess(ways[0]).canonical() == card.canonical() | changed
    assert encoder.preprocess(ways[1]).canonical() == card.canonical() | changed | {"size": 12, "crop": 8}
    for before, way in ((same, ways[0]), (larger, ways[1])):
        assert not np.allclose(before, np.asarray(encoder.images(split, way)))
    assert len(list(encoder.root.iterdir())) == 4
    with pytest.raises(NotApplicable, match="images are not scaled to 4 px and cropped"):
        encoder.images(split, "backbone@4")


def test_model_that_takes_images_as_they_are_cannot_do_it(pictures: tuple[Catalog, Options]) -> None:
    catalog, options = pictures
    encoder = ModelEncoder(catalog.model("digits-clip-lite"), options.runtime, progress=False)
    with pytest.raises(NotApplicable, match="resize: pad"):
        encoder.require("backbone@256")
    encoder.require("backbone")


@pytest.mark.shared
def test_a_devkit_of_real_photos_the_whole_way(tmp_path: Path, shared_data: Path) -> None:
    """VOC's layout with lists, two thirds of the photos to train on, for the classes that are frequent enough."""
    kit = tmp_path / "VOCdevkit" / "VOC2012"
    (kit / "ImageSets" / "Main").mkdir(parents=True)
    for name in ("JPEGImages", "Annotations"):
        (kit / name).symlink_to(shared_data / "voc2012-100" / name)
    ids = sorted(path.stem for path in (kit / "Annotations").iterdir())
    for role in ("train", "test"):
        chosen = [i for n, i in enumerate(ids) if (n % 3 == 0) == (role == "test")]
        (kit / "ImageSets" / "Main" / f"{role}.txt").write_text("\n".join(chosen) + "\n")
    frequent = ("person", "car", "chair", "dog")
    card = {
        "base": "voc07",
        "source": {"local": True},
        "classes": list(frequent),
        "other_labels": "ignore",
        "splits": {"train": {"name": "train"}, "test": {"name": "test"}},
        "protocols": {"svm": {"difficult": "ignore", "resize": 32}, "lp": {"primary": "map_11pt"}},
    }
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "photos2012.yaml").write_text(json.dumps(card))
    catalog = Catalog([tmp_path / "cards"])
    model = catalog.model(str(small.write_run(tmp_path / "run", size=24)))
    options = Options(Runtime("cpu", "fp32"), data=DataPaths({"photos2012": tmp_path}, ()), progress=False)
    results = list(evaluate([model], catalog.tasks(["photos2012-svm", "photos2012-lp"]), options))
    for result in results:
        assert result.record is not None, result
        assert result.record.scores["map_11pt"].n == 34
        assert 0 < result.record.scores["map_area"].value < 1
    assert results[0].record is not None
    assert "map_envelope" in results[0].record.scores
    assert set(results[0].record.per_class["ap_area"]) == set(frequent)
