"""Babel-ImageNet's files become a card: what stands in it, what is left out, what is refused, and a run by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import commandline
import imagenet_copies as copies
import pyarrow.parquet as pq
import pytest
import small
from commandline import Run, mended

from clipbench.catalog import Catalog
from clipbench.records import store

one_thread = small.one_thread
run = commandline.run
LABELS: dict[str, Any] = {
    "DE": [[7, 0, 999], ["Hahn", "Schleie", "Klopapier"]],
    "AR": [[1, 5, 6], ["سمكة\u200f ذهبية", "شعاع", "شعاع"]],
    "BR": [[0, 1], ["a", "b"]],
}
PROMPTS: dict[str, Any] = {"DE": ["ein Foto von {}.", "kein Platz", "{c}!"], "AR": ["{} صورة"], "XX": ["{}"]}


def write(folder: Path, labels: Any = LABELS, prompts: Any = PROMPTS) -> list[Path | str]:
    """The command's arguments for two files that hold these."""
    (folder / "labels.json").write_text(json.dumps(labels))
    (folder / "prompts.json").write_text(json.dumps(prompts))
    return [
        *("data", "babel-imagenet", folder / "labels.json"),
        *("--prompts", folder / "prompts.json", "--out", folder / "cards"),
    ]


def test_each_language_is_a_variant_with_names_as_they_stand(run: Run, tmp_path: Path) -> None:
    done = run(*write(tmp_path))
    assert done.code == 0, done.err
    assert "2 languages of 3 to 3 classes" in done.out
    assert "left out: DE: 1 of its templates" in done.err
    assert "left out: BR: prompts.json has no prompts of it" in done.err
    catalog = Catalog([tmp_path / "cards"])
    tasks = [i for i in catalog.task_ids() if i.startswith("babel-imagenet")]
    assert tasks == ["babel-imagenet-zs", "babel-imagenet-zs@DE", "babel-imagenet-zs@AR"]
    german = catalog.task("babel-imagenet-zs@DE")
    assert german.dataset.card.classes == ("Hahn", "Schleie", "Klopapier")
    assert german.dataset.card.templates == {"default": ("ein Foto von {c}.", "{c}!")}
    assert german.members == ((7,), (0,), (999,))
    assert german.dataset.card.splits["test"].rows == 150
    imagenet = catalog.dataset("imagenet").card
    assert imagenet.label_names is not None
    assert german.dataset.card.label_names == tuple(imagenet.label_names[i] for i in (7, 0, 999))
    assert catalog.task("babel-imagenet-zs@AR").dataset.card.classes == tuple(LABELS["AR"][1])


def test_a_language_is_measured_on_the_images_of_its_classes(run: Run, tmp_path: Path) -> None:
    assert run(*write(tmp_path)).code == 0
    small.write_run(tmp_path / "run")
    imagenet = Catalog().dataset("imagenet").card
    assert imagenet.label_names is not None
    labels = [0, 7, 3, 999, 0]
    data = copies.write_folders(tmp_path / "data", labels, imagenet.label_names)
    own = {"base": "babel-imagenet", "title": "Small", "splits": {"test": {"name": "test"}}}
    card = tmp_path / "cards" / "mine.yaml"
    card.write_text(json.dumps(own))
    done = run(
        *("eval", "--model", tmp_path / "run", "--task", "mine-zs@DE", "--cards", tmp_path / "cards"),
        *("--data", f"mine={data}", "--results", tmp_path / "out", "--precision", "fp32"),
    )
    assert done.code == 0, done.err
    (stored,) = store.read_all(tmp_path / "out")
    rows = pq.read_table(store.samples_path(stored.path)).to_pylist()
    assert {int(Path(row["id"]).stem): row["target"] for row in rows} == {0: 1, 1: 0, 3: 2, 4: 1}
    assert stored.record.scores["acc1"].chance == 1 / 3


@pytest.mark.parametrize(
    ("labels", "prompts", "words"),
    [
        ([1], PROMPTS, "labels.json is no mapping of languages"),
        ({"DE": [[1, 2]]}, PROMPTS, "DE: expected a list of class numbers and a list of names"),
        ({"DE": [[1, 2], ["a"]]}, PROMPTS, "DE has 2 class numbers and 1 names"),
        ({"DE": [[1, 1000], ["a", "b"]]}, PROMPTS, "1000 is no class of ImageNet, 0 to 999"),
        ({"DE": [[1, True], ["a", "b"]]}, PROMPTS, "True is no class of ImageNet"),
        ({"DE": [[1, 1], ["a", "b"]]}, PROMPTS, "DE has the class 1 twice"),
        ({"DE": [[1, 2], ["a", " "]]}, PROMPTS, "is no name of a class"),
        ({"DE": [[1, 2], ["a", None]]}, PROMPTS, "None is no name of a class"),
        ({"../x": [[1, 2], ["a", "b"]]}, PROMPTS, "is no code of a language"),
        (LABELS, {"DE": "x"}, "DE: expected a list of templates"),
        (LABELS, {"DE": ["x"]}, "DE has no template with {} for the name"),
        (LABELS, {"FR": ["{}"]}, "no language of"),
    ],
)
def test_files_of_another_form_are_refused(
    labels: Any, prompts: Any, words: str, run: Run, tmp_path: Path
) -> None:
    mended(run(*write(tmp_path, labels, prompts)), words)
    assert not (tmp_path / "cards").exists()


def test_nothing_of_ones_own_is_overwritten(run: Run, tmp_path: Path) -> None:
    assert run(*write(tmp_path)).code == 0
    card = tmp_path / "cards" / "babel-imagenet.yaml"
    card.write_text("title: mine\n")
    done = run(*write(tmp_path))
    assert done.code == 2
    assert card.read_text() == "title: mine\n"
    assert run(*write(tmp_path), "--force").code == 0
    assert "Babel" in card.read_text()
