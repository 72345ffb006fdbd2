"""What a model has seen of a split: how cards say it, how it is counted, and where it shows."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import small
import yaml
from recorded import SAMPLES, make_record
from rich.console import Console

import clipbench
from clipbench.cards.base import fingerprint
from clipbench.cards.model import Images
from clipbench.cards.task import Part
from clipbench.catalog import Catalog
from clipbench.data.paths import DataPaths
from clipbench.encoding.runtime import Runtime
from clipbench.evaluation import Options, evaluate
from clipbench.records import store
from clipbench.records.check import check
from clipbench.records.eligibility import Eligibility
from clipbench.records.exposure import exposure
from clipbench.records.record import Record, Seen
from clipbench.report import dataframe, leaderboard, listing, site, table
from clipbench.report.sections import sections

one_thread = small.one_thread
ROOT = Path(__file__).parents[2]
PARTS = {
    "test": {"name": "test", "rows": 60},
    "train": {"name": "test", "rows": 45, "part": {"seed": 3, "start": 0.2}},
    "held-out": {"name": "test", "rows": 15, "part": {"seed": 3, "end": 0.2}},
    "other": {"name": "test", "part": {"seed": 4, "end": 0.2}},
    "val": {"name": "valid", "rows": 30},
}
ZS = {"zs": {"variants": {role: {"split": role} for role in ("held-out", "other", "val")}}}


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    """`animals` with parts; `copy`, whose test is of animals' test; `copy-of-copy`; `sibling`; `hubbed`; `child`."""
    folder = tmp_path / "cards"
    small.write_task(folder, splits=PARTS, protocols=ZS)
    of_animals = {"test": [{"dataset": "animals", "split": "test"}]}
    small.write_task(folder, "copy", images_of=of_animals, splits={"test": {"name": "all", "rows": 9}})
    small.write_task(folder, "copy-of-copy", images_of={"test": [{"dataset": "copy", "split": "test"}]})
    small.write_task(folder, "sibling", images_of=of_animals)
    small.write_task(folder, "hubbed", source={"hub": "them/pictures"})
    small.write_task(folder, "listed", images_of={"test": [{"name": "coco", "split": "train2017"}]})
    base: dict[str, Any] = {"base": "copy", "splits": {"test": {"name": "own"}}}
    (folder / "child.yaml").write_text(json.dumps(base | {"protocols": {"zs": {}}}))
    return folder


@pytest.mark.parametrize(
    ("trained_on", "task", "role", "said"),
    [
        ({"dataset": "animals", "split": "train"}, "animals", "test", "animals train: 45 of 60 images"),
        ({"dataset": "animals", "split": "train"}, "animals", "held-out", None),
        ({"dataset": "animals", "split": "train"}, "animals", "train", "animals train: 45 of 45 images"),
        ({"dataset": "animals", "split": "train"}, "animals", "other", "animals train"),  # another hash
        ({"dataset": "animals", "split": "train"}, "animals", "val", None),
        ({"dataset": "animals", "split": "test"}, "animals", "held-out", "animals test: 15 of 15 images"),
        ({"dataset": "animals"}, "animals", "val", "animals: 30 of 30 images"),
        ({"dataset": "animals", "split": "valid"}, "animals", "val", "animals valid: 30 of 30 images"),
        ({"dataset": "animals", "split": "train"}, "copy", "test", "animals train: some or all of 9 images"),
        ({"dataset": "copy", "split": "test"}, "animals", "test", "copy test: some or all of 60 images"),
        ({"dataset": "copy", "split": "test"}, "animals", "val", None),
        ({"dataset": "animals", "split": "test"}, "copy-of-copy", "test", "animals test"),
        ({"dataset": "copy-of-copy"}, "animals", "test", "copy-of-copy: some or all of 60 images"),
        (
            {"dataset": "sibling"},
            "copy",
            "test",
            None,
        ),  # both of one set: whether of the same images is not said
        ({"dataset": "animals", "split": "test"}, "child", "test", None),  # inherits no images
        ({"name": "them/pictures", "split": "train"}, "hubbed", "test", "them/pictures train"),
        ({"name": "animals", "split": "train"}, "animals", "test", "animals train: 60 of 60 images"),
        ({"name": "animals", "split": "valid"}, "animals", "test", None),
        ({"name": "coco", "split": "train2017"}, "listed", "test", "coco train2017"),
        ({"name": "coco"}, "listed", "test", "coco"),
        ({"name": "coco", "split": "val2017"}, "listed", "test", None),
        ({"name": "yfcc15m"}, "animals", "test", None),
    ],
)
def test_what_cards_say_that_a_model_has_seen(
    trained_on: dict[str, str], task: str, role: str, said: str | None, cards: Path
) -> None:
    catalog = Catalog([cards])
    found = exposure([Images.model_validate(trained_on)], catalog.dataset(task), role, catalog)
    assert [one.text for one in found.seen] == ([] if said is None else [said])
    assert found.unknown == ()


def test_data_that_no_card_knows_is_named(cards: Path) -> None:
    catalog = Catalog([cards])
    given = [Images(dataset="nowhere", split="train"), Images(dataset="animals", split="tset")]
    found = exposure(given, catalog.dataset("animals"), "test", catalog)
    assert (found.seen, found.unknown) == ((), ("nowhere train", "animals tset"))


# ------------------------------------------------------------------- records


def _measured(
    cards: Path, folder: Path, tasks: list[str], trained_on: list[Any], **options: Any
) -> list[Record]:
    run = small.write_run(folder / "run")
    card = json.loads((run / "card.yaml").read_text()) | {"trained_on": trained_on}
    (run / "card.yaml").write_text(json.dumps(card))
    small.write_images(folder / "data", 60)
    catalog = Catalog([cards])
    settings = Options(
        Runtime.choose("cpu", "fp32"), DataPaths({"animals": folder / "data"}, ()), progress=False, **options
    )
    found = list(evaluate([catalog.model(str(run))], catalog.tasks(tasks), settings, catalog))
    return [result.record for result in found if result.record]


def test_a_record_counts_by_ids_what_its_model_has_seen(cards: Path, tmp_path: Path) -> None:
    root = small.write_images(tmp_path / "data", 60) / "test"
    ids = [path.relative_to(root).as_posix() for path in root.rglob("*.png")]
    held = sum(Part(seed=3, end=0.2).holds(name) for name in ids)
    parts = {
        "test": {"name": "test", "rows": 60},
        "train": {"name": "test", "rows": 60 - held, "part": {"seed": 3, "start": 0.2}},
        "held-out": {"name": "test", "rows": held, "part": {"seed": 3, "end": 0.2}},
    }
    small.write_task(cards, splits=parts, protocols={"zs": {"variants": {"held-out": {"split": "held-out"}}}})
    trained_on = [{"dataset": "animals", "split": "train"}, {"dataset": "nowhere", "split": "train"}]
    whole, apart = _measured(cards, tmp_path, ["animals-zs", "animals-zs@held-out"], trained_on)
    assert [one.text for one in whole.seen] == [f"animals train: {60 - held} of 60 images"]
    assert 0 < held < 60
    assert apart.seen == ()
    (note,) = whole.notes
    assert (note.split, note.kind, note.examples) == ("test", "unknown-training-data", ("nowhere train",))
    assert "whether they hold images of this split is not known" in note.text
    (few,) = _measured(cards, tmp_path, ["animals-zs"], trained_on, limit=10)
    assert few.seen[0].of == 10


def test_the_mark_is_in_every_table_and_keeps_off_the_leaderboard(tmp_path: Path) -> None:
    seen = [{"data": "digits train", "images": 90, "of": 360}, {"data": "photos", "of": 360}]
    store.write(make_record(task="animals-zs", seen=seen), SAMPLES, tmp_path)
    store.write(make_record(model="other", task="animals-zs"), SAMPLES, tmp_path)
    text = "digits train: 90 of 360 images; photos: some or all of 360 images"
    rows = dataframe.read(tmp_path, Catalog(), primary=True)
    assert [(row.model, row.seen, row.kept_off) for row in rows] == [
        ("other", "", ""),
        ("small", text, "seen"),
    ]
    found = sections(rows, Catalog())
    for shown in (table.terminal(found), table.markdown(found), table.latex(found)):
        assert "T trained on: the model has seen images of this split" in shown
    assert "75.00 ±5.00 T" in table.markdown(found)
    assert "75.00\\,$\\pm$\\,5.00 T" in table.latex(found)
    read = list(csv.DictReader(io.StringIO(table.csv_text(rows, {}))))
    assert [row["seen"] for row in read] == ["", text]
    assert [row["seen"] for row in json.loads(table.json_text(rows, {}))] == ["", text]
    board_text = leaderboard.leaderboard(rows, Catalog())
    assert f"| small | animals-zs | trained on {text} |" in board_text
    assert "| other | 75.00 ±5.00 |" in board_text
    data = clipbench.results(tmp_path)
    assert dict(zip(data.model, data.seen, strict=True)) == {"other": "", "small": text}


def test_a_card_that_tells_more_marks_older_records_and_makes_none_stale(cards: Path, tmp_path: Path) -> None:
    model = {
        "title": "Own",
        "family": "dual",
        "config": yaml.safe_load((small.write_run(tmp_path / "run") / "card.yaml").read_text())["config"],
        "preprocess": {"size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "weights": {"file": "own.safetensors"},
    }
    path = cards / "own.yaml"
    path.write_text(json.dumps(model))
    (cards / "own.safetensors").write_bytes(b"weights")

    def judged(stored: Record, said: list[dict[str, str]]) -> dict[str, str]:
        path.write_text(json.dumps(model | ({"trained_on": said} if said else {})))
        at = store.read(store.write(stored, SAMPLES, tmp_path / "results"))
        return {reason.kind: reason.text for reason in Eligibility(Catalog([cards])).reasons(at)}

    catalog = Catalog([cards])
    task = catalog.task("animals-zs")
    before = catalog.model("own").card.canonical()
    assert "trained_on" not in before
    record = make_record(
        model="own", task="animals-zs",
        protocol={"name": "zs", "version": task.protocol.version, "params": task.params.canonical()},
        fingerprints={"model_card": fingerprint(before)},
        cards={"model": before, "task": task.dataset.card.canonical()},
    )  # fmt: skip
    assert judged(record, []) == {}
    train = [{"dataset": "animals", "split": "train"}]
    assert judged(record, train) == {"seen": "trained on animals train: 45 of 60 images"}
    assert not [said for said in check(Catalog([cards]), tmp_path / "results").problems if "stale" in said]
    counted = record.model_copy(update={"seen": (Seen(data="animals train", images=44, of=60),)})
    assert judged(counted, train) == {"seen": "trained on animals train: 44 of 60 images"}
    assert list(judged(counted, [])) == ["seen"]  # until it is made again


def test_check_names_misspelt_data_sets_and_splits(cards: Path, tmp_path: Path) -> None:
    small.write_run(tmp_path / "run")
    model = json.loads((tmp_path / "run" / "card.yaml").read_text())
    (cards / "model.safetensors").write_bytes((tmp_path / "run" / "model.safetensors").read_bytes())
    for name, images in (("a", {"dataset": "animls"}), ("b", {"dataset": "animals", "split": "trian"})):
        (cards / f"{name}.yaml").write_text(json.dumps(model | {"trained_on": [{"name": "x"}, images]}))
    (cards / "c.yaml").write_text(json.dumps(model | {"trained_on": [{"name": "anything"}]}))
    small.write_task(cards, "lost", images_of={"test": [{"dataset": "animals", "split": "tset"}]})
    problems = check(Catalog([cards]), tmp_path / "none").problems
    assert len(problems) == 3
    assert 'data set lost: images_of.test: animals: unknown split "tset"' in problems[0]
    assert 'model a: trained_on: unknown data set "animls"' in problems[1]
    assert "{name: animls}" in problems[1]
    assert 'model b: trained_on: animals: unknown split "trian"' in problems[2]
    small.write_task(cards, "lost", images_of={"tset": [{"dataset": "animals"}]})
    with pytest.raises(clipbench.errors.CardError, match='"tset" is no split of this card'):
        Catalog([cards]).dataset("lost")


def test_eval_says_it_and_show_tells_what_a_model_was_trained_on(tmp_path: Path) -> None:
    record = make_record(seen=[{"data": "digits train", "images": 90, "of": 360}])
    console = Console(width=80, file=io.StringIO(), color_system=None)
    console.print(table.record_table(record))
    assert isinstance(console.file, io.StringIO)
    assert "T trained on: the model has seen images of this split" in console.file.getvalue()
    assert "trained on digits train: 90 of 360 images" in console.file.getvalue()
    value, view = listing.show("digits-clip-lite", Catalog())
    assert value["trained_on"] == [
        {"dataset": "digits", "split": "train"}, {"dataset": "digits-scenes", "split": "train"}
    ]  # fmt: skip
    console.print(view)
    assert "trained_on:\n- dataset: digits\n  split: train\n" in console.file.getvalue().replace(" \n", "\n")
    value, view = listing.show("lite-minilm", Catalog())  # a model and its recipe
    assert value["model"]["trained_on"][2] == {"dataset": "flickr8k-1000", "split": "train"}
    assert value["recipe"]["schedule"]["steps"] == 400


def test_the_page_tells_what_a_model_was_trained_on(tmp_path: Path) -> None:
    said = [{"dataset": "digits", "split": "train"}]
    seen = [{"data": "digits train", "images": 90, "of": 360}]
    cards = {"model": {"title": "Small", "trained_on": said}, "task": {"title": "Animals"}}
    store.write(make_record(task="animals-zs", seen=seen, cards=cards), SAMPLES, tmp_path)
    text = site.build(tmp_path, Catalog())
    assert '<td class="wrap">trained on digits train: 90 of 360 images</td>' in text
    assert "of images that the model was trained on stays off the leaderboard" in " ".join(text.split())


# ------------------------------------------------------------------- what ships


@pytest.mark.parametrize(
    ("model", "dataset", "role", "said"),
    [
        ("lite-minilm", "flickr8k-1000", "test", "flickr8k-1000 train: 800 of 1,000 images"),
        ("lite-minilm", "flickr8k-1000", "held-out", ""),
        ("lite-minilm", "flickr8k", "test", "flickr8k-1000 train: some or all of 1,000 images"),
        ("lite-minilm", "coco-363-captions", "held-out", ""),
        ("lite-minilm", "coco-363-captions", "test", "coco-363-captions train: 291 of 363 images"),
        ("lite-minilm", "coco-363", "test", "coco-363-captions train: some or all of 159 images"),
        ("lite-minilm", "coco-363-voc", "test", "coco-363-captions train: some or all of 159 images"),
        ("lite-minilm", "coco-363-expressions", "test", "coco-363-captions train"),
        ("lite-minilm", "coco-363-objects", "test", "coco-363-captions train: some or all of 134 images"),
        ("lite-minilm", "imagenet-1k-sample", "test", "imagenet train: some or all of 1,000 images"),
        ("lite-minilm", "imagenet", "test", ""),
        ("lite-minilm", "tiny-imagenet", "test", ""),
        ("lite-minilm", "cifar10", "test", ""),
        ("efficientnet-lite0", "imagenet-1k-sample", "test", "imagenet train: some or all of 1,000 images"),
        ("efficientnet-lite0", "cifar10", "test", ""),
        ("digits-clip-lite", "digits", "test", ""),
        ("digits-clip-lite", "digits-scenes", "test", ""),
        ("digits-clip-lite", "digits", "train",
         "digits train: 1,437 of 1,437 images; digits-scenes train: some or all of 1,437 images"),
        ("clip-lite-r50", "coco-karpathy", "test", "coco train2017: some or all of 5,000 images"),
        ("clip-lite-r50", "coco-val2017", "test", ""),
        ("clip-vit-b32", "imagenet", "test", ""),
    ],
)  # fmt: skip
def test_shipped_models_and_what_they_have_seen(model: str, dataset: str, role: str, said: str) -> None:
    catalog = Catalog()
    card = catalog.model(model).card
    assert card.trained_on
    found = exposure(card.trained_on, catalog.dataset(dataset), role, catalog)
    assert "; ".join(one.text for one in found.seen) == said
    assert found.unknown == ()


def test_the_ids_of_the_shared_photos_are_those_that_were_trained_on(shared_data: Path) -> None:
    """So that `lite-minilm` on all 1,000 photos of Flickr8k cannot pass for zero-shot: it saw 800 of them."""
    from clipbench.data.open import open_split

    catalog = Catalog()
    paths = DataPaths({"flickr8k-1000": shared_data / "flickr8k-1000"}, ())
    entry, trained_on = catalog.dataset("flickr8k-1000"), catalog.model("lite-minilm").card.trained_on
    texts = {}
    for role in ("test", "held-out"):
        ids = open_split(entry, role, paths).ids
        texts[role] = [one.text for one in exposure(trained_on, entry, role, catalog, ids).seen]
    assert texts == {"test": ["flickr8k-1000 train: 800 of 1,000 images"], "held-out": []}
