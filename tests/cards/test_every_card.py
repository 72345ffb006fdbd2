"""Every data set of the reference page has its card, as its tables say; and every hosted one runs from a small copy."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import commandline
import pytest
import sets
import small
from class_copies import add, write_wds

from clipbench.catalog import Catalog
from clipbench.records import store

run = commandline.run
PAGE: Final = Path(__file__).parents[2] / "../shared/reference/suites.md"
#: data sets of the page that have no card, and why
NONE: Final = {
    "imagenet-w": "its watermark comes as a package of its own and is not to be had here",
    "sharegpt4v-1k": "its list of images is not to be found",
    "pug-imagenet": "its list of classes is under a non-commercial licence",
    "babel-imagenet": "its names are under a non-commercial licence: a card is made from the user's own file",
}
#: those whose cards are still to come
PENDING: Final = {"hateful-memes"}


def rows(section: int) -> Iterator[list[str]]:
    """The cells of the tables of a section whose first cell names data sets."""
    if not PAGE.is_file():
        return
    text = re.split(r"^## (\d+)\. ", PAGE.read_text(), flags=re.MULTILINE)
    for line in text[text.index(str(section)) + 1].splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and "`" in cells[0] and len(cells) > 2:
            yield cells


def ids(cell: str) -> list[str]:
    """Ids of data sets that a cell names."""
    return [name.split("@")[0].removesuffix("-<lang>") for name in re.findall(r"`([^`]+)`", cell)]


WANTED: Final = sorted(
    {name for section in (2, 3, 4, 5, 6, 7, 8) for cells in rows(section) for name in ids(cells[0])}
)
#: kinds that CLIP_benchmark's layout holds
KINDS: Final = ("single-label", "multi-label", "captions")
#: cells of the table of hosted sets, by id
HOSTED: Final = {name: cells for cells in rows(2) for name in ids(cells[0])}


def numbers(text: str) -> list[int]:
    return [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", text)]


@pytest.mark.parametrize("name", WANTED)
def test_every_set_of_the_page_has_its_card(name: str) -> None:
    assert name in Catalog().dataset_files or name in {*NONE, *PENDING}
    assert not (name in Catalog().dataset_files and name in NONE)


@pytest.mark.parametrize("name", sorted(set(HOSTED) - {*NONE, *PENDING}))
def test_a_hosted_set_is_as_the_page_says(name: str) -> None:
    _, hosted, sizes, primary, *_ = HOSTED[name]
    card = Catalog().dataset(name).card
    if (card.source.hub or "").startswith("clip-benchmark/"):
        assert card.source.hub == f"clip-benchmark/wds_{hosted.replace('/', '-')}"
    first, *rest = numbers(sizes)
    assert card.splits["test"].rows == first
    if card.kind in ("single-label", "multi-label"):
        assert len(card.classes) == rest[0]
        if name != "diabetic-retinopathy":  # the page asks for the mean over classes
            wanted = {"mpc": "mean_per_class_recall", "mAP": "map_area"}.get(primary, primary)
            assert card.protocols["zs"]["primary"] == wanted
    else:
        assert card.protocols["ret"] is not None


def hub_cards() -> list[str]:
    """Cards whose source is a WebDataset of CLIP_benchmark's layout on the hub, without metadata beside labels."""
    catalog = Catalog()
    cards = {name: catalog.dataset(name).card for name in catalog.dataset_files}
    return [
        name
        for name, card in cards.items()
        if "/wds_" in (card.source.hub or "") and not card.columns.beside and card.kind in KINDS
    ]


def write_copy(root: Path, name: str, count: int = 12) -> None:
    """A copy of a card's test split in exactly the hub's form."""
    card = Catalog().dataset(name).card
    images = [(i, small.picture(i)) for i in range(count)]
    if card.kind == "captions":
        captions = {f"s{i:07d}": f"picture {i}\npicture {i} again" for i, _ in images}
        (root / "test").mkdir(parents=True)
        with tarfile.open(root / "test" / "0.tar", "w") as tar:
            for (key, text), (_, image) in zip(captions.items(), images, strict=True):
                add(tar, f"{key}.txt", text.encode())
                add(tar, f"{key}.png", image)
        (root / "test" / "nshards.txt").write_text("1")
        (root / "dataset_type.txt").write_text("retrieval")
    elif card.kind == "multi-label":
        hot = [[int(c % count == i) for c in range(len(card.classes))] for i in range(count)]
        write_wds(root, [(hot[i], image) for i, image in images], card.classes, label_suffix="npy")
        (root / "dataset_type.txt").write_text("multilabel")
    else:
        write_wds(root, [(i % len(card.classes), image) for i, image in images], card.classes)
    if card.kind != "captions":
        templates = card.templates["default"]
        assert not isinstance(templates, dict)
        (root / "zeroshot_classification_templates.txt").write_text("\n".join(templates) + "\n")


@pytest.mark.parametrize("name", hub_cards())
def test_a_hosted_set_runs_from_a_small_copy(
    name: str, tmp_path: Path, run: commandline.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    catalog = Catalog()
    card = catalog.dataset(name).card
    small.write_run(tmp_path / "run")
    write_copy(tmp_path / "copy", name)
    # the shipped card, but for the numbers of samples
    shipped = catalog.dataset_files[name].read_text()
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / f"{name}.yaml").write_text(re.sub(r", rows: \d+", "", shipped))
    protocol = "ret" if card.kind == "captions" else "zs"
    more = (
        ["--task", f"{name}-{protocol}@difficult-positive"]
        if name == "voc07"
        else ["--task", f"{name}-{protocol}"]
    )
    done = run(
        *("eval", "--model", tmp_path / "run", *more, "--cards", tmp_path / "cards"),
        *("--data", f"{name}={tmp_path / 'copy'}", "--results", tmp_path / "results", "--precision", "fp32"),
    )
    assert done.code == 0, done.err
    (stored,) = store.read_all(tmp_path / "results")
    record = stored.record
    assert record.scores[record.primary].n == 12 or card.kind == "multi-label"
    if card.kind == "single-label":
        assert record.scores["acc1"].chance == pytest.approx(1 / len(card.classes))


def test_the_page_of_all_sets_is_current() -> None:
    assert sets.PAGE.read_text(encoding="utf-8") == sets.page(), "make sets writes it"


def test_the_page_was_read() -> None:
    """Without it, the tests by its rows are none at all."""
    if not PAGE.is_file():
        pytest.skip("needs ../shared/reference")
    assert len(WANTED) >= 90
    assert len(HOSTED) == 41


@pytest.mark.parametrize("name", [name for cells in rows(3) for name in ids(cells[0])])
def test_a_set_of_datacomps_is_as_the_page_says(name: str) -> None:
    """Its copy on the hub, where the card takes that one; and how many classes there are."""
    cells = next(cells for cells in rows(3) if name in ids(cells[0]))
    card = Catalog().dataset(name).card
    hub = card.source.hub or ""
    if hub.startswith("djghosh/"):
        assert hub in cells[2]
    counts = numbers(cells[3])
    if card.classes and len(counts) > 1:
        assert (card.splits["test"].rows, len(card.classes)) == tuple(counts[:2])
