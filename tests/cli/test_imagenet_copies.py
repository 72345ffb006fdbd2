"""The sets that have ImageNet's classes, each from a small copy in the hub's form and in the authors' to its record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commandline
import imagenet_copies as copies
import numpy as np
import pyarrow.parquet as pq
import pytest
import small
from commandline import Run, mended

from clipbench.cards.entry import Entry
from clipbench.cards.task import SplitSpec, TaskCard
from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.records import store
from clipbench.records.record import Record

one_thread = small.one_thread
run = commandline.run
#: of small copies: each class is told from its neighbours, and comes in no order
LABELS = [7, 0, 10, 3, 112, 2, 3, 1]


class World:
    """A model, and cards of one's own for small copies of shipped sets."""

    def __init__(self, root: Path, run: Run) -> None:
        self.root, self._run = root, run
        small.write_run(root / "run")
        (root / "cards").mkdir()

    def card(self, dataset: str) -> TaskCard:
        return Catalog().dataset(dataset).card

    def eval(self, dataset: str, task: str, data: Path, **changes: Any) -> commandline.Done:
        """Measure the copy at `data` by the shipped card, whose number of rows does not hold for it."""
        splits = {
            role: spec.model_dump(exclude={"rows"}) | {"part": None}
            for role, spec in self.card(dataset).splits.items()
        }
        own = {"base": dataset, "title": "Small", "splits": splits} | changes
        (self.root / "cards" / f"mine-{dataset}.yaml").write_text(json.dumps(own))
        return self._run(
            *(
                "eval",
                "--model",
                self.root / "run",
                "--task",
                f"mine-{dataset}-{task}",
                "--precision",
                "fp32",
            ),
            *(
                "--cards",
                self.root / "cards",
                "--data",
                f"mine-{dataset}={data}",
                "--results",
                self.root / "out",
            ),
        )

    def record(self) -> tuple[Record, list[dict[str, Any]]]:
        (stored,) = store.read_all(self.root / "out")
        return stored.record, pq.read_table(store.samples_path(stored.path)).to_pylist()


@pytest.fixture
def world(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("COLUMNS", "80")
    return World(tmp_path, run)


def by_wnid(root: Path, card: TaskCard, labels: list[int]) -> Path:
    assert card.label_names is not None
    return copies.write_folders(root, labels, card.label_names)


def by_number(root: Path, card: TaskCard, labels: list[int]) -> Path:
    folder = root / "imagenetv2-matched-frequency-format-val"
    copies.write_folders(folder, labels, [str(i) for i in range(1000)], "jpeg")
    return root


def objectnet(root: Path, card: TaskCard, labels: list[int]) -> Path:
    assert card.label_names is not None
    return copies.write_objectnet(root, labels, card.label_names, card.classes)


def hub(root: Path, card: TaskCard, labels: list[int]) -> Path:
    return copies.write_hub(root, labels, card.classes)


def hub_without_names(root: Path, card: TaskCard, labels: list[int]) -> Path:
    return copies.write_hub(root, labels, None)


FORMS: list[tuple[str, Callable[[Path, TaskCard, list[int]], Path]]] = [
    *(
        (name, hub)
        for name in ("imagenetv2", "imagenet-sketch", "imagenet-a", "imagenet-r", "imagenet-o", "objectnet")
    ),
    ("imagenet-a", hub_without_names),
    ("imagenetv2", by_number),
    *((name, by_wnid) for name in ("imagenet-sketch", "imagenet-a", "imagenet-r", "imagenet-o")),
    ("objectnet", objectnet),
]


@pytest.mark.parametrize(("dataset", "form"), FORMS, ids=[f"{name}-{form.__name__}" for name, form in FORMS])
def test_a_copy_is_measured_with_each_image_in_its_class(
    dataset: str, form: Callable[[Path, TaskCard, list[int]], Path], world: World
) -> None:
    card = world.card(dataset)
    labels = LABELS if len(card.classes) < 1000 else [*LABELS[:-2], 999, 250]
    done = world.eval(dataset, "zs@simple", form(world.root / "data", card, labels))
    assert done.code == 0, done.err
    record, samples = world.record()
    number = {row["id"]: int(Path(row["id"]).stem.removeprefix("s")) for row in samples}
    assert {number[row["id"]]: row["target"] for row in samples} == dict(enumerate(labels))
    assert record.scores["acc1"].n == len(labels)
    assert record.scores["acc1"].value == np.mean([row["rank"] == 0 for row in samples])
    assert record.scores["acc1"].chance == 1 / len(card.classes)
    assert record.primary == "acc1"


def test_folders_of_imagenetv2_are_numbers_and_no_places_in_a_list(world: World) -> None:
    """Sorted as names they are 0, 1, 10, 100, …: all but two of these images would have another class."""
    data = copies.write_folders(world.root / "data", [5, 1, 10, 2, 100], [str(i) for i in range(1000)])
    assert world.eval("imagenetv2", "zs@simple", data).code == 0
    _, samples = world.record()
    assert [(row["id"].partition("/")[0], row["target"]) for row in samples] == [
        (str(label), label) for label in (1, 10, 100, 2, 5)
    ]


def test_another_variant_of_imagenetv2_is_not_taken_for_the_one_asked_for(world: World) -> None:
    folder = world.root / "data" / "imagenetv2-threshold0.7-format-val"
    copies.write_folders(folder, [3, 4], [str(i) for i in range(1000)])
    mended(world.eval("imagenetv2", "zs@simple", folder), "is not the test split")
    assert world.eval("imagenetv2", "zs@threshold-0.7", folder.parent).code == 0
    record, _ = world.record()
    assert record.protocol.params["split"] == "threshold-0.7"
    copies.write_folders(folder, [0], ["1000"])
    mended(world.eval("imagenetv2", "zs@threshold-0.7", folder.parent), "the card has the classes 0 to 999")


def test_a_folder_of_another_class_is_an_error_where_the_card_has_a_subset(world: World) -> None:
    """n01440764 is a class of ImageNet, and none of ImageNet-A."""
    data = by_wnid(world.root / "data", world.card("imagenet-a"), [0, 1])
    copies.write_folders(data, [0], ["n01440764"])
    mended(world.eval("imagenet-a", "zs@simple", data), "1 names are not on it, first 'n01440764'")


def test_objectnets_border_is_cut_and_other_folders_are_counted(world: World) -> None:
    card = world.card("objectnet")
    data = objectnet(world.root / "data", card, [2, 0])
    entry = Entry(
        "objectnet", card.model_copy(update={"splits": {"test": SplitSpec(name="test")}}), Path("x")
    )
    split = open_split(entry, "test", DataPaths({"objectnet": data}, ()))
    assert [note.count for note in split.notes if note.kind == "other-classes"] == [2]
    (first, second) = split.samples(np.arange(2))
    np.testing.assert_array_equal(copies.pixels(first.image), copies.pixels(copies.image(1, "PNG")))
    np.testing.assert_array_equal(copies.pixels(second.image), copies.pixels(copies.image(0, "PNG")))
    assert split.labels.tolist() == [0, 2]


def test_a_map_of_objectnet_that_is_another_is_refused(world: World) -> None:
    data = objectnet(world.root / "data", world.card("objectnet"), [2, 0])
    file = data / "objectnet-1.0" / "mappings" / "objectnet_to_imagenet_1k.json"
    file.write_text(json.dumps({"Alarm clock": "x"}))
    mended(world.eval("objectnet", "zs@simple", data), "maps 0 folders to ImageNet, the card has 113")
    file.write_text("[1]")
    mended(world.eval("objectnet", "zs@simple", data), "is no mapping of names to names")
    file.unlink()
    mended(world.eval("objectnet", "zs@simple", data), "objectnet_to_imagenet_1k.json cannot be read")


# ------------------------------------------------------------------------- ReaL


@pytest.mark.parametrize("flat", [True, False])
def test_a_prediction_is_right_if_any_accepted_class_is_it(flat: bool, world: World) -> None:
    accepted = [[3], [], [5, 900, 17], [999, 2], [], [0, *range(500, 1000)]]
    folders = None if flat else world.card("imagenet").label_names
    data = copies.write_real(world.root / "data", accepted, folders)
    done = world.eval("imagenet-real", "zs@simple", data)
    assert done.code == 0, done.err
    record, samples = world.record()
    kept = [one for one in accepted if one]
    assert [row["labels"] for row in samples] == [sorted(one) for one in kept]
    right = [row["prediction"] in one for row, one in zip(samples, kept, strict=True)]
    assert record.scores["acc1"].value == np.mean(right)
    assert [row["rank"] == 0 for row in samples] == right
    assert record.scores["acc1"].chance == pytest.approx(np.mean([len(one) for one in kept]) / 1000)
    (note,) = [note for note in record.notes if note.kind == "without-label"]
    assert (note.count, note.examples[0]) == (2, "ILSVRC2012_val_00000002.JPEG")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "holds no list"),
        ("[[1], 2]", "entry 2 is 2, expected a list of class numbers, 0 to 999"),
        ("[[1], [1000]]", "entry 2 is [1000]"),
        ("[[1]]", "is image 2, and"),
        ("[[1]", "cannot be read"),
    ],
)
def test_a_wrong_real_json_is_one_error(text: str, words: str, world: World) -> None:
    data = copies.write_real(world.root / "data", [[1], [2]])
    (data / "real.json").write_text(text)
    mended(world.eval("imagenet-real", "zs@simple", data), words)


# ------------------------------------------------------------------- conditions


def test_imagenet_c_is_the_mean_over_its_conditions_and_the_mce_against_alexnet(world: World) -> None:
    card = world.card("imagenet-c")
    assert card.label_names is not None
    corruptions = list(card.protocols["conditions"]["reference"])
    conditions = [f"{name}/{s}" for name in corruptions for s in range(1, 6)]
    data = copies.write_conditions(world.root / "data", [*conditions, "spatter/1"], [4, 9], card.label_names)
    done = world.eval("imagenet-c", "conditions@mce", data)
    assert done.code == 0, done.err
    record, samples = world.record()
    right: dict[str, list[bool]] = {}
    for row in samples:
        right.setdefault("/".join(row["id"].split("/")[:2]), []).append(row["prediction"] == row["target"])
    assert len(right) == 75
    error = {name: [1 - np.mean(right[f"{name}/{s}"]) for s in range(1, 6)] for name in corruptions}
    reference = card.protocols["conditions"]["reference"]
    mce = np.mean([np.sum(error[name]) / (5 * reference[name]) for name in corruptions])
    assert record.scores["mce"].value == pytest.approx(mce)
    assert record.scores["mean_acc1"].value == pytest.approx(1 - np.mean([*error.values()]))
    assert record.evidence["left_out"] == 2
    assert len(record.evidence["conditions"]) == 75  # type: ignore[arg-type]
    assert "2 samples" not in done.err


def test_conditions_that_are_not_there_are_named(world: World) -> None:
    card = world.card("imagenet-c")
    assert card.label_names is not None
    data = copies.write_conditions(
        world.root / "data", ["fog/1", "noise/shot_noise/2"], [4, 9], card.label_names
    )
    mended(
        world.eval("imagenet-c", "conditions", data),
        "no image of 73 of 75 conditions, first gaussian_noise/1 (there are 2: fog/1, shot_noise/2)",
    )
    flat = by_wnid(world.root / "flat", card, [1, 2])
    mended(world.eval("imagenet-c", "conditions", flat), "and no folders of conditions")


@pytest.mark.parametrize("below", ["/val", ""])
@pytest.mark.parametrize("numbered", [True, False])
def test_the_background_gap_of_imagenet_9(below: str, numbered: bool, world: World) -> None:
    card = world.card("imagenet-9")
    assert card.label_names is not None
    folders = card.label_names if numbered else card.classes
    names = [f"{name}{below}" for name in ("mixed_same", "mixed_rand", "original")]
    data = copies.write_conditions(world.root / "data", names, [2, 0, 8, 5, 6], folders)
    done = world.eval("imagenet-9", "conditions@simple", data)
    assert done.code == 0, done.err
    record, samples = world.record()
    right: dict[str, list[bool]] = {}
    for row in samples:
        right.setdefault(row["id"].split("/")[0], []).append(row["prediction"] == row["target"])
    assert record.scores["gap"].value == pytest.approx(
        np.mean(right["mixed_same"]) - np.mean(right["mixed_rand"])
    )
    low, high = record.scores["gap"].ci95
    assert low <= record.scores["gap"].value <= high
    assert record.scores["gap"].chance == 0
    assert {row["target"] for row in samples} == {2, 0, 8, 5, 6}


def test_the_drop_of_imagenet_e_is_from_the_images_as_they_were(world: World) -> None:
    card = world.card("imagenet-e")
    assert card.label_names is not None
    data = copies.write_conditions(
        world.root / "data", ["original", "size", "turn"], [4, 9, 30], card.label_names
    )
    done = world.eval("imagenet-e", "conditions@simple", data)
    assert done.code == 0, done.err
    record, samples = world.record()
    right: dict[str, list[bool]] = {}
    for row in samples:
        right.setdefault(row["id"].split("/")[0], []).append(row["prediction"] == row["target"])
    mean = {name: float(np.mean(values)) for name, values in right.items()}
    assert record.scores["drop"].value == pytest.approx(mean["original"] - (mean["size"] + mean["turn"]) / 2)
