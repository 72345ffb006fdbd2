"""The bias probe against the same numbers by other means, what a card may say, and the whole way on real images."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from fakes import FakeEncoder, FakeSplit, unit
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.metrics import average_precision_score

from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.data.paths import DataPaths
from clipbench.data.split import Objects
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, DataError
from clipbench.evaluation import Options, Result, evaluate
from clipbench.protocols.base import Needs
from clipbench.protocols.bias import Params, needs, run, texts
from clipbench.records import store

one_thread = small.one_thread
Array = NDArray[np.float32]
DIM = 12
PAIRS = [["woman", "man"], ["she", "he"], ["girl", "boy"]]
QUERIES = ["a doctor", "a nurse", "a cook"]
OBJECTS = ["cup", "teddy bear", "dog", "tie"]


def card(**changes: Any) -> TaskCard:
    fields: dict[str, Any] = {
        "title": "T",
        "source": {"local": True},
        "splits": {"test": {"name": "test"}},
        "also": ["objects"],
        "classes": ["man", "woman"],
        "templates": {"default": ["a {c}", "one {c}"]},
        "prompts_source": "tests",
        "protocols": {"bias": {}},
    }
    return TaskCard.model_validate(fields | changes)


def params(**changes: Any) -> Params:
    fields = {"pairs": PAIRS, "queries": QUERIES, "objects": OBJECTS, "top": 5, "skew_at": 12}
    return Params.model_validate(fields | changes)


class World:
    """Images of two groups that differ along one direction, which pairs of words show, and objects."""

    def __init__(self, seed: int = 0, count: int = 60, effect: float = 1.0) -> None:
        rng = np.random.default_rng(seed)
        self.axis = unit(rng.standard_normal((1, DIM)).astype(np.float32))[0]
        self.groups = rng.permutation(np.arange(count) % 3 == 0).astype(np.int64)
        self.present = (rng.random((count, len(OBJECTS))) < 0.4).astype(np.uint8)
        self.present[0] = 0
        objects = 0.4 * rng.standard_normal((len(OBJECTS), DIM))
        side = np.where(self.groups == 1, effect, -effect)[:, None] * self.axis
        noise = 0.5 * rng.standard_normal((count, DIM))
        self.images = unit((noise + side + self.present @ objects).astype(np.float32))
        self.texts = {
            q: unit((0.3 * rng.standard_normal((1, DIM)) + self.axis).astype(np.float32))[0] for q in QUERIES
        }
        for name, vector in zip(OBJECTS, objects, strict=True):
            for template in ("a {c}", "one {c}"):
                noisy = vector + 0.3 * rng.standard_normal(DIM)
                self.texts[template.replace("{c}", name)] = unit(noisy[None].astype(np.float32))[0]
        for woman, man in PAIRS:
            middle = rng.standard_normal(DIM)
            for word, sign in ((woman, 1), (man, -1)):
                shifted = middle + sign * self.axis + 0.1 * rng.standard_normal(DIM)
                self.texts[word] = unit(shifted[None].astype(np.float32))[0]

    def split(self) -> FakeSplit:
        split = FakeSplit(self.groups, ("man", "woman"))
        # In another order and spelling than the card's.
        split.objects = Objects(("tie", "teddy_bear", "cup", "dog"), self.present[:, [3, 1, 0, 2]])
        return split

    def encoder(self) -> FakeEncoder:
        return FakeEncoder(self.images, self.texts)

    def debiased(self) -> NDArray[np.float64]:
        """Image vectors without the concept, by scikit-learn's PCA."""
        rows = []
        for first, second in PAIRS:
            a, b = self.texts[first].astype(np.float64), self.texts[second].astype(np.float64)
            rows += [a - (a + b) / 2, b - (a + b) / 2]
        g = PCA(n_components=1, svd_solver="full").fit(np.array(rows)).components_[0]
        images = self.images.astype(np.float64)
        removed = images - (images @ g)[:, None] * g
        found: NDArray[np.float64] = removed / np.linalg.norm(removed, axis=1, keepdims=True)
        return found


@pytest.fixture(scope="module")
def world() -> World:
    return World()


# ----------------------------------------------------------------------- numbers


@pytest.mark.parametrize("stage", ["before", "after"])
def test_every_number_is_what_it_says(world: World, stage: str) -> None:
    outcome = run(card(), {"test": world.split()}, world.encoder(), params(), seed=0)
    images = world.images if stage == "before" else world.debiased()
    gaps, skews = [], []
    for query in QUERIES:
        similar = images @ world.texts[query]
        means = [np.sort(similar[world.groups == group])[-5:].mean() for group in (0, 1)]
        found = outcome.evidence["queries"][query][stage]
        assert list(found["top5"].values()) == pytest.approx(means, abs=1e-6)
        gaps.append(abs(means[0] - means[1]))
        best = world.groups[np.argsort(-similar)[:12]]
        shares = [np.mean(best == group) / np.mean(world.groups == group) for group in (0, 1)]
        skews.append(np.log(max(shares)))
        assert found["maxskew@12"] == pytest.approx(skews[-1], abs=1e-9)
    assert outcome.scores[f"gap_{stage}"].value == pytest.approx(np.mean(gaps), abs=1e-6)
    assert outcome.scores[f"maxskew@12_{stage}"].value == pytest.approx(np.mean(skews), abs=1e-9)
    weights = []
    for name in OBJECTS:
        mean = np.mean([world.texts[f"a {name}"], world.texts[f"one {name}"]], axis=0)
        weights.append(mean / np.linalg.norm(mean))
    logits = images @ np.array(weights).T
    some = world.present.any(axis=1)
    hits = world.present[np.arange(len(images)), logits.argmax(axis=1)][some]
    score = outcome.scores[f"object_acc1_{stage}"]
    assert score.value == pytest.approx(hits.mean())
    assert score.n == some.sum()
    assert score.chance == pytest.approx(world.present[some].mean())
    precision = [average_precision_score(world.present[:, c], logits[:, c]) for c in range(len(OBJECTS))]
    assert outcome.scores[f"object_map_{stage}"].value == pytest.approx(np.mean(precision), abs=1e-6)
    column = np.asarray(outcome.samples[f"object_hit_{stage}"])
    assert np.array_equal(column[some], hits)
    assert np.isnan(column[~some]).all()


def test_removal_takes_the_gap_and_says_how_far(world: World) -> None:
    outcome = run(card(), {"test": world.split()}, world.encoder(), params(), seed=0)
    scores, said = outcome.scores, outcome.evidence
    assert scores["gap_before"].ci95[0] > scores["gap_after"].value
    for name in ("gap", "maxskew@12", "object_acc1"):
        change = scores[f"{name}_after"].value - scores[f"{name}_before"].value
        assert scores[f"{name}_change"].value == pytest.approx(change)
    assert scores["gap_change"].ci95[1] < 0
    projections = said["mean_projection"]
    assert projections["before"]["woman"] - projections["before"]["man"] > 0.3
    assert abs(projections["after"]["woman"] - projections["after"]["man"]) < 1e-6
    assert 0.8 < said["share_of_pairs_along_direction"] < 1
    assert said["images"] == {"man": 40, "woman": 20}
    assert "not what people say of themselves" in said["does_not_measure"]
    for score in scores.values():
        assert score.ci95[0] <= score.value <= score.ci95[1]
    np.testing.assert_allclose(
        outcome.per_class["top5_before"],
        np.mean([list(q["before"]["top5"].values()) for q in said["queries"].values()], axis=0),
    )


def test_where_nothing_is_removed_nothing_changes(world: World) -> None:
    encoder = FakeEncoder(world.debiased().astype(np.float32), world.texts)
    scores = run(card(), {"test": world.split()}, encoder, params(), seed=0).scores
    assert scores["gap_before"].ci95[1] > 0.01
    for name in ("gap", "maxskew@12", "object_acc1"):
        change = scores[f"{name}_change"]
        assert [change.value, *change.ci95] == pytest.approx([0, 0, 0], abs=1e-6), name


def test_a_model_that_does_not_see_the_groups_is_at_chance() -> None:
    outside = 0
    for seed in range(4):
        blind = World(seed, effect=0.0)
        scores = run(card(), {"test": blind.split()}, blind.encoder(), params(), seed=0).scores
        for name in ("gap_before", "maxskew@12_before"):
            chance = scores[name].chance
            assert chance is not None
            assert chance > 0
            outside += not scores[name].ci95[0] <= chance <= scores[name].ci95[1]
    assert outside <= 2
    seen = World(0)
    scores = run(card(), {"test": seen.split()}, seen.encoder(), params(), seed=0).scores
    assert scores["gap_before"].chance < scores["gap_before"].ci95[0]  # type: ignore[operator]


def test_chance_is_the_mean_over_shuffled_groups(world: World) -> None:
    scores = run(card(), {"test": world.split()}, world.encoder(), params(), seed=0).scores
    rng = np.random.default_rng(9)
    gaps = []
    for _ in range(2000):
        groups = rng.permutation(world.groups)
        similar = world.images @ np.stack([world.texts[q] for q in QUERIES], axis=1)
        tops = [np.sort(similar[groups == group], axis=0)[-5:].mean(axis=0) for group in (0, 1)]
        gaps.append(np.abs(tops[0] - tops[1]).mean())
    assert scores["gap_before"].chance == pytest.approx(np.mean(gaps), rel=0.03)


def test_a_constant_model_has_neither_gap_nor_skew(world: World) -> None:
    encoder = FakeEncoder(np.tile(world.images[:1], (60, 1)), world.texts)
    scores = run(card(), {"test": world.split()}, encoder, params(), seed=0).scores
    for name in ("gap_before", "gap_after", "maxskew@12_before", "maxskew@12_after"):
        assert scores[name].value == pytest.approx(0, abs=1e-9)
        assert scores[name].chance == pytest.approx(0, abs=1e-9)


def test_images_that_could_not_be_decoded_are_left_out(world: World) -> None:
    broken = world.images.copy()
    broken[[3, 8]] = np.nan
    found = run(card(), {"test": world.split()}, FakeEncoder(broken, world.texts), params(), seed=0)
    assert found.scores["gap_before"].n == 58
    assert not {"id3", "id8"} & set(found.samples["id"])


def test_a_group_of_which_nothing_could_be_decoded_is_named(world: World) -> None:
    broken = world.images.copy()
    broken[world.groups == 1] = np.nan
    with pytest.raises(DataError, match="0 images of woman, fewer than the 5"):
        run(card(), {"test": world.split()}, FakeEncoder(broken, world.texts), params(), seed=0)


def test_the_texts_that_it_lists_are_those_that_it_reads(world: World) -> None:
    encoder = world.encoder()
    run(card(), {"test": world.split()}, encoder, params(), seed=0)
    listed = texts(card(), {"test": world.split()}, params())
    assert set(listed) == set(encoder.asked)
    assert len(listed) == len(set(listed))


def test_without_objects_there_is_no_cost(world: World) -> None:
    split = world.split()
    split.objects = Objects(tuple(OBJECTS), np.zeros((60, 4), dtype=np.uint8))
    scores = run(card(), {"test": split}, world.encoder(), params(), seed=0).scores
    assert not [name for name in scores if name.startswith("object")]


# ------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top": 21}, "20 images of woman, fewer than the 21"),
        ({"skew_at": 61}, "60 images, fewer than the 61 of maxskew@61"),
        (
            {"objects": ["cup", "dog", "tie"]},
            "the data labels 4 objects, the card names 3; not in both: teddy_bear",
        ),
        ({"objects": ["cup", "dog", "tie", *"uvwxyz"]}, r"not in both: teddy_bear, u, v, w, x\n"),
    ],
)
def test_data_that_does_not_go_with_the_card(world: World, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(card(), {"test": world.split()}, world.encoder(), params(**changes), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pairs": [["man", "man"]]}, "two different words"),
        ({"pairs": []}, "two different words"),
        ({"queries": ["a", "a"]}, "queries must hold one at least, and none twice"),
        ({"objects": ["hot dog", "hot_dog"]}, "objects must hold one at least, and none twice"),
        ({"split": "tset"}, 'did you mean "test"'),
        ({"templates": "defalt"}, 'did you mean "default"'),
        ({"primary": "gap"}, "primary"),
        ({"tops": 3}, 'did you mean "top"'),
    ],
)
def test_cards_that_are_wrong(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    settings = {"pairs": PAIRS, "queries": QUERIES, "objects": OBJECTS} | changes
    fields = card().model_dump(mode="json", exclude_none=True) | {"protocols": {"bias": settings}}
    (tmp_path / "mine.yaml").write_text(json.dumps(fields))
    with pytest.raises(CardError, match=message):
        Catalog([tmp_path]).dataset("mine")


def test_sets_without_objects_or_with_other_than_two_groups_are_refused(tmp_path: Path) -> None:
    settings = {"pairs": PAIRS, "queries": QUERIES, "objects": OBJECTS}
    fields = card().model_dump(mode="json", exclude_none=True) | {"protocols": {"bias": settings}}
    for change, message in (
        ({"also": []}, "bias is for sets of kind objects"),
        ({"classes": ["man", "woman", "child"]}, "between two groups"),
        ({"templates": {"default": {"man": ["m"], "woman": ["w"]}}}, "finished prompts of the classes"),
    ):
        (tmp_path / "mine.yaml").write_text(json.dumps(fields | change))
        with pytest.raises(CardError, match=message):
            Catalog([tmp_path]).dataset("mine")


# --------------------------------------------------------------------- real images


def captioned(root: Path) -> list[dict[str, Any]]:
    """Annotations of coco-363 in our layout: images whose captions name one gender, and their boxes' objects."""
    captions = json.loads((root / "annotations" / "captions.json").read_text())
    instances = json.loads((root / "annotations" / "instances.json").read_text())
    names = {c["id"]: c["name"] for c in instances["categories"]}
    objects: dict[int, set[str]] = {}
    for box in instances["annotations"]:
        objects.setdefault(box["image_id"], set()).add(names[box["category_id"]])
    words: dict[int, set[str]] = {}
    for caption in captions["annotations"]:
        words.setdefault(caption["image_id"], set()).update(re.findall(r"[a-z]+", caption["caption"].lower()))
    found = []
    for image in captions["images"]:
        said = {"man": {"man", "boy"}, "woman": {"woman", "girl", "lady"}}
        genders = [g for g, own in said.items() if own & words.get(image["id"], set())]
        if len(genders) == 1:
            shown = sorted(objects.get(image["id"], set()) - {"person"})
            name = f"COCO_val2014_{image['file_name']}"
            found.append({"file_name": name, "gender": genders[0], "objects": shown})
    return found


def measured(tmp_path: Path, shared_data: Path, model: str, limit: int | None = None) -> tuple[Result, int]:
    root = shared_data / "coco-363"
    shipped = Catalog().dataset("coco-gender").card
    copy = tmp_path / "coco"
    (copy / "annotations").mkdir(parents=True)
    (copy / "images").symlink_to(root / "images")
    images = captioned(root)
    settings = shipped.protocols["bias"] | {"skew_at": 20}
    (copy / "annotations" / "gender_mini.json").write_text(
        json.dumps({"objects": settings["objects"], "images": images})
    )
    del settings["variants"]
    changed = {"base": "coco-gender", "splits": {"test": {"name": "mini"}}, "protocols": {"bias": settings}}
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "mini.yaml").write_text(json.dumps(changed | {"title": "Mini"}))
    catalog = Catalog([tmp_path / "cards"])
    options = Options(
        Runtime("cpu", "fp32", workers=0), DataPaths({"mini": copy}, ()), limit=limit, progress=False
    )
    (result,) = evaluate([catalog.model(model)], catalog.tasks(["mini-bias"]), options)
    return result, len(images)


def test_the_whole_way_on_real_images(tmp_path: Path, shared_data: Path) -> None:
    result, count = measured(tmp_path, shared_data, str(small.write_run(tmp_path / "run")))
    assert result.error is None
    assert result.record is not None
    record = store.read(store.write(result.record, result.samples, tmp_path / "results")).record
    assert record.protocol.name == "bias"
    assert record.protocol.params["skew_at"] == 20
    assert record.scores["gap_before"].n == count > 60
    evidence: Any = record.evidence
    assert len(evidence["queries"]) == 28
    said = evidence["mean_projection"]["after"]
    assert abs(said["man"] - said["woman"]) < 1e-6
    assert {"object_acc1_before", "object_map_after", "gap_change"} <= set(record.scores)


def test_a_limit_takes_both_groups_and_too_few_images_are_an_error(tmp_path: Path, shared_data: Path) -> None:
    run_folder = str(small.write_run(tmp_path / "run"))
    result, _ = measured(tmp_path / "a", shared_data, run_folder, limit=30)
    assert result.record is not None
    assert result.record.evidence["images"] == {"man": 15, "woman": 15}
    result, _ = measured(tmp_path / "b", shared_data, run_folder, limit=12)
    assert result.error is not None
    assert "6 images of man, fewer than the 10" in str(result.error)


def test_it_reads_one_vector_an_image_whatever_a_model_compares() -> None:
    assert needs(params(), "tokens") == Needs((("test", "joint"),))
