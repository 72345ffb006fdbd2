"""Data sets through `datasets`: every layout gives the same samples, labels go by name, and a hub that changes or
goes away is noticed. The hub is a small server on this machine that the real client talks to."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sqlite3
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import servers
from class_copies import (
    CLASSES,
    IMAGES,
    LABELS,
    LAYOUTS,
    add,
    at,
    by_image,
    entry,
    open_test,
    stored,
    write_folder,
    write_parquet,
    write_wds,
)  # fmt: skip
from damage import flip
from servers import FIRST, SECOND, Hub, run_python

from clipbench.cards.task import TaskCard
from clipbench.data import layouts
from clipbench.data.layouts.base import FileLayout, Layout
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.errors import CardError, ClipbenchError, DataError
from clipbench.utils import plugins

hub = servers.data_hub

# ---------------------------------------------------------- the three layouts


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_samples(layout: str, tmp_path: Path) -> None:
    split = open_test(LAYOUTS[layout](tmp_path / "copy"))
    assert len(split) == 12
    assert split.labels.dtype == np.int64
    assert split.labels.tolist() == LABELS
    assert [image for _, image in stored(split)] == [image for _, image in IMAGES]
    assert [i for i, _ in stored(split)] == split.ids
    assert len(set(split.ids)) == 12
    assert (split.dataset, split.role, split.classes) == ("animals", "test", CLASSES)
    again = open_test(tmp_path / "copy")  # from the kept index and hashes
    assert (again.fingerprint, again.ids) == (split.fingerprint, split.ids)
    assert again.labels.tolist() == LABELS


@pytest.mark.parametrize("layout", LAYOUTS)
def test_some_rows_in_order(layout: str, tmp_path: Path) -> None:
    split = open_test(LAYOUTS[layout](tmp_path))
    chosen = [0, 1, 5, 11]
    assert stored(split, chosen) == [(split.ids[row], IMAGES[row][1]) for row in chosen]
    assert stored(split, []) == []


def test_many_shards_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    wds = open_test(write_wds(tmp_path / "wds", shards=12))
    parquet = open_test(write_parquet(tmp_path / "parquet", shards=12))
    assert [i for _, i in stored(wds)] == [i for _, i in stored(parquet)] == [i for _, i in IMAGES]
    assert wds.ids[10] == "10/s0000010"


def test_parquet_in_a_data_folder_and_in_a_split_folder(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "data")
    write_parquet(tmp_path / "b" / "test")
    assert by_image(open_test(tmp_path / "a")) == by_image(open_test(tmp_path / "b"))


def test_image_folder_without_a_split_folder(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    assert open_test(root / "test").labels.tolist() == LABELS


def test_other_column_names(tmp_path: Path) -> None:
    write_parquet(tmp_path, columns=("img", "fine_label"))
    split = open_test(tmp_path, columns={"image": "img", "label": "fine_label"})
    assert split.labels.tolist() == LABELS


def test_split_is_called_by_its_name_or_its_role(tmp_path: Path) -> None:
    card = {"splits": {"test": {"name": "valid"}}}
    write_parquet(tmp_path / "by-name", split="valid")
    write_parquet(tmp_path / "by-role")
    for folder in ("by-name", "by-role"):
        assert open_test(tmp_path / folder, **card).labels.tolist() == LABELS


def test_role_does_not_stand_for_a_larger_split(tmp_path: Path) -> None:
    write_parquet(tmp_path, split="train")
    with pytest.raises(DataError, match="no train data"):
        open_split(entry(splits={"train": {"name": "trainval"}}), "train", at(tmp_path))


# -------------------------------------------------------------------- labels


@pytest.mark.parametrize("layout", LAYOUTS)
def test_labels_go_by_name_not_by_position(layout: str, tmp_path: Path) -> None:
    expected = {image: label for label, image in IMAGES}
    turned = ("Sea_Lion", "bat", "CAT")  # other order, case and punctuation
    renumbered = [((label + 1) % 3, image) for label, image in IMAGES]
    writers: dict[str, Callable[..., Path]] = {
        "parquet": write_parquet,
        "folder": write_folder,
        "wds": write_wds,
    }
    split = open_test(writers[layout](tmp_path, renumbered, turned))
    assert by_image(split) == expected


def test_label_names_of_the_card_translate(tmp_path: Path) -> None:
    wnids = ("n02139199", "n02121620", "n02077923")
    card = {"label_names": wnids}
    expected = {image: label for label, image in IMAGES}
    as_text = [(wnids[label], image) for label, image in IMAGES]
    assert by_image(open_test(write_parquet(tmp_path / "text", as_text, None), **card)) == expected
    assert by_image(open_test(write_folder(tmp_path / "folder", names=wnids), **card)) == expected
    # plain class names still do
    plain = [(CLASSES[label], image) for label, image in IMAGES]
    assert by_image(open_test(write_parquet(tmp_path / "plain", plain, None), **card)) == expected


def test_numbers_without_names_are_positions(tmp_path: Path) -> None:
    assert open_test(write_parquet(tmp_path / "p", names=None)).labels.tolist() == LABELS
    assert open_test(write_wds(tmp_path / "w", names=None)).labels.tolist() == LABELS


def test_class_name_that_occurs_twice_goes_by_position(tmp_path: Path) -> None:
    twice = ("crane", "cat", "crane")
    assert open_test(write_wds(tmp_path, names=twice), classes=twice).labels.tolist() == LABELS


def test_multi_label_matrix(tmp_path: Path) -> None:
    matrix = np.array([[1, 0, 255], [0, 1, 1], [1, 1, 0], [0, 0, 1]], dtype=np.uint8)
    images = [(row, image) for row, (_, image) in zip(matrix, IMAGES[::3], strict=True)]
    write_wds(tmp_path / "a", images, label_suffix="npy")
    split = open_test(tmp_path / "a", kind="multi-label")
    assert split.labels.dtype == np.uint8
    assert split.labels.tolist() == matrix.tolist()
    turned = [(row[[2, 0, 1]], image) for row, image in images]
    write_wds(tmp_path / "b", turned, ("sea lion", "bat", "cat"), label_suffix="npy")
    assert open_test(tmp_path / "b", kind="multi-label").labels.tolist() == matrix.tolist()
    with pytest.raises(DataError, match=r"have 3 columns, the card has 2 classes"):
        open_test(tmp_path / "a", kind="multi-label", classes=("bat", "cat"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1, 0, 0], [0, -1, 1]], r"sample \S+1 in .* the label -1 in column 1; allowed: 0 \(absent\)"),
        ([[1, 0, 0], [0, 1, 0], [0, 1]], r"sample \S+2 in .* \[0, 1\], expected a row of 3 numbers"),
    ],
)
def test_multi_label_matrix_that_is_wrong(rows: list[list[int]], message: str, tmp_path: Path) -> None:
    images = [(row, IMAGES[i][1]) for i, row in enumerate(rows)]
    write_wds(tmp_path, images, label_suffix="npy", shards=1)
    with pytest.raises(DataError, match=message):
        open_test(tmp_path, kind="multi-label")


# -------------------------------------------------------------------- errors

Break = Callable[[Path], Any]


def _without_nshard(root: Path) -> None:
    write_wds(root)
    (root / "test" / "1.tar").unlink()


def _odd_nshards(root: Path) -> None:
    write_wds(root)
    (root / "test" / "nshards.txt").write_text("three")


def _cut_parquet(root: Path) -> None:
    write_parquet(root)
    path = next(root.glob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])


def _tar_without_labels(root: Path) -> None:
    (root / "test").mkdir(parents=True)
    with tarfile.open(root / "test" / "0.tar", "w") as tar:
        add(tar, "a.png", IMAGES[0][1])


def _cut_tar(root: Path) -> None:
    write_wds(root, shards=1)
    path = root / "test" / "0.tar"
    path.write_bytes(path.read_bytes()[: 512 * 9 + 100])


def _strangers(root: Path) -> None:
    write_wds(root, names=("bat", "cat", "see lion"))


WRONG: dict[str, tuple[Break, str]] = {
    "unmatched name": (
        _strangers,
        r"1 names are not on it, first 'see lion' \(is it \"sea lion\"\?\).*label_names",
    ),
    "unmatched folder": (
        lambda root: write_folder(root, names=("bat", "cat", "cow")),
        r"copy/test do not agree.*first 'cow'.*label_names in tasks/animals\.yaml",
    ),
    "too many classes": (
        lambda root: write_parquet(root, names=(*CLASSES, "cow", "dog")),
        r"copy.*the data has 5 classes, the card 3; 2 names are not on it, first 'cow'",
    ),
    "name twice": (
        lambda root: write_wds(root, names=("bat", "bat", "cat")),
        r"copy/test do not agree.*names repeat",
    ),
    "label too high": (
        lambda root: write_wds(root, [(label + 1, image) for label, image in IMAGES]),
        r"sample 2/s0000008 in \S+copy/test has the label 3, but there are 3 classes \(0 to 2\); 4 such",
    ),
    "label below zero": (
        lambda root: write_parquet(root, [(label - 1, image) for label, image in IMAGES], None),
        r"sample 0000000 in \S+copy has the label -1.*tasks/animals\.yaml",
    ),
    "text label unknown": (
        lambda root: write_parquet(root, [("cat", IMAGES[0][1]), ("cow", IMAGES[1][1])], None),
        r"sample 0000001 in \S+copy has the label 'cow', not a class.*label_names",
    ),
    "no image column": (
        lambda root: write_parquet(root, columns=("img", "label")),
        r"copy: no column 'image'; it has 'img', 'label'.*columns\.image",
    ),
    "no label column": (
        lambda root: write_parquet(root, columns=("image", "fine_label")),
        r"copy: no column 'label'; it has 'image', 'fine_label'.*columns\.label",
    ),
    "other split only": (
        lambda root: write_parquet(root, split="validation"),
        r"no test data in \S+copy \(it holds validation-00000-of-00001\.parquet\).*test/<class>/<image>",
    ),
    "other split folder only": (
        lambda root: write_folder(root, split="train"),
        r"no test data in \S+copy \(it holds train\).*test\*\.parquet",
    ),
    "empty folder": (lambda root: root.mkdir(), r"no test data in \S+copy \(it holds nothing\)"),
    "class folders without images": (
        lambda root: (root / "test" / "cat").mkdir(parents=True),
        r"no test data in \S+copy \(it holds test\)",
    ),
    "empty table": (lambda root: write_parquet(root, []), r"the test split at \S+copy is empty"),
    "no label": (
        lambda root: write_parquet(root, [(0, IMAGES[0][1]), (None, IMAGES[1][1])], None),
        r"sample 0000001 in \S+copy has the label None, expected a class number or name",
    ),
    "many labels": (
        lambda root: write_wds(root, [([0, 1, 0], image) for _, image in IMAGES], label_suffix="npy"),
        r"copy/test has \(3,\) labels, the card says one.*kind: multi-label",
    ),
    "missing tar": (_without_nshard, r"nshards\.txt says '3' tar files, 2 are there.*fetch"),
    "odd nshards": (_odd_nshards, r"nshards\.txt says 'three' tar files, 3 are there.*number"),
    "broken parquet": (_cut_parquet, r"copy/test-00000-of-00001\.parquet cannot be read as parquet"),
    "broken tar": (_cut_tar, r"copy/test/0\.tar is no whole tar file: unexpected end of data"),
    "tar without labels": (
        _tar_without_labels,
        r"test/0\.tar: no sample: its files end in png; expected an image.*\.cls",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_copies_that_are_wrong(case: str, tmp_path: Path) -> None:
    breaks, message = WRONG[case]
    root = tmp_path / "copy"
    breaks(root)
    with pytest.raises(DataError, match=f"(?s){message}") as caught:
        open_test(root)
    assert "\n" not in caught.value.message


def test_tar_cut_after_indexing_is_noticed_when_read(tmp_path: Path) -> None:
    split = open_test(write_wds(tmp_path, shards=1))
    path = tmp_path / "test" / "0.tar"
    path.write_bytes(path.read_bytes()[: 512 * 9 + 100])
    with pytest.raises(DataError, match=r"0\.tar is no whole tar file: it is shorter than it was"):
        stored(split)


def test_image_that_vanishes(tmp_path: Path) -> None:
    split = open_test(write_folder(tmp_path))
    (tmp_path / "test" / "cat" / "005.png").unlink()
    with pytest.raises(DataError, match=r"cat/005\.png cannot be read: No such file"):
        stored(split)


def test_card_that_leads_nowhere(tmp_path: Path) -> None:
    nowhere = DataPaths({}, ())
    with pytest.raises(CardError, match='"tset"; did you mean "test"'):
        open_split(entry(), "tset", nowhere)
    with pytest.raises(DataError, match=r"no public copy.*\n.*--data animals="):
        open_split(entry(), "test", nowhere)
    with pytest.raises(
        DataError, match=r"no public copy to fetch; no folder animals in .*card_that_leads_nowhere"
    ):
        open_split(entry(), "test", DataPaths({}, (tmp_path,)))
    card = tmp_path / "tasks" / "animals.yaml"
    with pytest.raises(DataError, match=r"no data folder .*elsewhere.*\n.*source\.path in .*animals\.yaml"):
        open_split(entry(card, source={"path": "../elsewhere"}), "test", nowhere)
    write_folder(tmp_path / "elsewhere")
    card.parent.mkdir()
    split = open_split(entry(card, source={"path": "../elsewhere"}), "test", nowhere)
    assert split.labels.tolist() == LABELS


# ----------------------------------------------------------------- DataPaths

HUB = TaskCard.model_validate(entry().card.canonical() | {"source": {"hub": "org/wds_vtab-pets"}})


def test_named_copy_comes_before_roots(tmp_path: Path) -> None:
    for folder in ("mine", "root/animals"):
        (tmp_path / folder).mkdir(parents=True)
    paths = DataPaths.parse([f"animals={tmp_path / 'mine'}", str(tmp_path / "root")])
    assert paths.find("animals", HUB) == tmp_path / "mine"
    assert paths.find("other", HUB) is None
    assert DataPaths.parse([str(tmp_path / "root")]).find("animals", HUB) == tmp_path / "root" / "animals"


def test_first_mention_counts(tmp_path: Path) -> None:
    for folder in ("a/animals", "b/animals"):
        (tmp_path / folder).mkdir(parents=True)
    roots = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert DataPaths.parse(roots).find("animals", HUB) == tmp_path / "a" / "animals"
    named = [f"animals={root}" for root in roots]
    assert DataPaths.parse(named).find("animals", HUB) == tmp_path / "a"


@pytest.mark.parametrize("name", ["wds_vtab-pets", "org/wds_vtab-pets", "animals"])
def test_folder_with_the_name_on_the_hub(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir(parents=True)
    assert DataPaths((), (tmp_path,)).find("animals", HUB) == tmp_path / name  # type: ignore[arg-type]
    assert DataPaths({}, (tmp_path / name,)).find("animals", HUB) == tmp_path / name


def test_environment_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("a/animals", "b/other"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("CLIPBENCH_DATA", os.pathsep.join([str(tmp_path / "a"), f"named={tmp_path / 'b'}"]))
    paths = DataPaths.parse([])
    assert paths.find("animals", HUB) == tmp_path / "a" / "animals"
    assert paths.find("named", HUB) == tmp_path / "b"
    monkeypatch.chdir(tmp_path / "a" / "animals")
    assert DataPaths.parse(["."]).find("animals", HUB) == Path()


def test_paths_that_are_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"no data folder .*gone \(for animals\)"):
        DataPaths.parse([f"animals={tmp_path / 'gone'}"])
    (tmp_path / "file.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"no data folder .*file\.parquet.*\n.*<dataset>=<folder>"):
        DataPaths.parse([str(tmp_path / "file.parquet")])
    monkeypatch.setenv("CLIPBENCH_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"no data folder .*gone"):
        DataPaths.parse([])


# --------------------------------------------------------------- fingerprint


@pytest.mark.parametrize("layout", LAYOUTS)
def test_fingerprint_follows_content_only(layout: str, tmp_path: Path) -> None:
    root = LAYOUTS[layout](tmp_path / "a")
    first = open_test(root).fingerprint
    shutil.copytree(root, tmp_path / "b" / "moved")
    assert open_test(tmp_path / "b" / "moved").fingerprint == first
    files = sorted(p for p in root.rglob("*") if p.suffix in {".parquet", ".png", ".tar"})
    for path in files:
        os.utime(path, (1, 1))
    assert open_test(root).fingerprint == first
    data = bytearray(files[-1].read_bytes())
    offset = data.find(IMAGES[11][1]) + 41  # inside the pixels: the file stays readable
    data[offset] ^= 1
    files[-1].write_bytes(data)
    assert open_test(root).fingerprint != first


def test_fingerprint_knows_column_and_order_of_files(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a", shards=2)
    first = open_test(tmp_path / "a").fingerprint
    one, two = sorted((tmp_path / "a").iterdir())
    spare = tmp_path / "a" / "spare"
    one.rename(spare), two.rename(one), spare.rename(two)
    assert open_test(tmp_path / "a").fingerprint != first


def test_only_changed_files_are_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolated_cache: Path
) -> None:
    from clipbench.data import digests

    root = write_folder(tmp_path / "copy")
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(digests, "sha256_file", counting)
    monkeypatch.setattr(digests, "RACY_NS", 0)  # files count as old enough to be remembered
    open_test(root)
    assert sorted(hashed) == [f"{i:03d}.png" for i in range(12)]
    hashed.clear()
    open_test(root)
    assert hashed == []
    (root / "test" / "cat" / "006.png").write_bytes(IMAGES[0][1])
    open_test(root)
    assert hashed == ["006.png"]
    with sqlite3.connect(isolated_cache / "files.sqlite") as connection:
        assert connection.execute("select count(*) from digests").fetchone() == (12,)
    connection.close()


# -------------------------------------------------------------------- memory

MEMORY = """
import re, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[2])
from class_copies import open_test
# Not ru_maxrss, which starts at what the parent process held.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
def read(root):
    split = open_test(Path(root))
    return len(split), sum(len(s.image) for s in split.samples(np.arange(len(split))))
read(sys.argv[1] + "/few")
before = peak()
rows, total = read(sys.argv[1] + "/many")
print(rows, total / 2**20, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the peak of memory in /proc")
def test_reading_twenty_thousand_rows_does_not_hold_them(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [random.Random(i).randbytes(5_000) for i in range(500)]
    for name, rows in (("few", 1_000), ("many", 20_000)):
        data = pa.array(images * (rows // 500))
        column = pa.StructArray.from_arrays([data, pa.nulls(rows, pa.string())], ["bytes", "path"])
        table = pa.table({"image": column, "label": pa.array(np.arange(rows) % 3)})
        (tmp_path / name).mkdir()
        path = tmp_path / name / "test-0.parquet"
        pq.write_table(table, path, row_group_size=500, compression="none", use_dictionary=False)
    read, total, grown = map(float, run_python(MEMORY, tmp_path, Path(servers.__file__).parent).split())
    assert read == 20_000
    assert total > 90  # MiB of images went by
    assert grown < 40


# ------------------------------------------------------------------- the hub


def open_from_hub(
    hub: Hub, home: Path, wanted: dict[str, tuple[str, dict[str, Any]]], *, offline: bool = False
) -> dict[str, dict[str, Any]]:
    """As `servers` does, of changes to the card by name."""
    cards = [(name, role, entry(**changes).card.canonical()) for name, (role, changes) in wanted.items()]
    return servers.open_from_hub(hub, home, cards, offline=offline)


DIGESTS = [hashlib.sha256(image).hexdigest() for _, image in IMAGES]


def from_hub(name: str, rows: int | None = 12, **changes: Any) -> dict[str, Any]:
    source = {"hub": name, **changes.pop("source", {})}
    splits = {"train": {"name": "train"}, "test": {"name": "test", "rows": rows}}
    return {"source": source, "splits": splits, **changes}


def holds_the_images(found: dict[str, Any]) -> bool:
    return found.get("labels") == LABELS and found.get("images") == DIGESTS


def test_hub_fetches_one_split_and_pins_its_commit(hub: Hub, tmp_path: Path, isolated_cache: Path) -> None:
    parquet, wds, voc = tmp_path / "parquet", tmp_path / "wds", tmp_path / "voc"
    write_parquet(parquet / "data", shards=2)
    write_parquet(parquet / "data", IMAGES[:6], split="train")
    turned = ("sea lion", "bat", "cat")
    write_wds(wds, [((label + 1) % 3, image) for label, image in IMAGES], turned, shards=11)
    write_wds(wds, names=None, split="train")
    write_wds(voc, split="trainval")
    write_wds(voc)
    table, bare = tmp_path / "table", tmp_path / "bare"
    for folder, name, text in (
        (table, "test.csv", "image,label\na.png,0\n"),
        (bare, "README.md", "# Nothing\n"),
    ):
        folder.mkdir()
        (folder / name).write_text(text)
    folders = {"parquet": parquet, "wds": wds, "voc": voc, "table": table, "bare": bare}
    hub.repos = {f"org/{name}": {FIRST: folder} for name, folder in folders.items()}
    home = tmp_path / "home"
    wanted = {
        "parquet": ("test", from_hub("org/parquet")),
        "wds": ("test", from_hub("org/wds")),
        "trainval": ("train", from_hub("org/voc") | {"splits": {"train": {"name": "trainval", "rows": 12}}}),
        "branch": ("test", from_hub("org/parquet", source={"revision": "v1"})),
        "rows": ("test", from_hub("org/parquet", rows=10)),
        "split": ("train", from_hub("org/parquet") | {"splits": {"train": {"name": "valid"}}}),
        "missing": ("test", from_hub("org/none")),
        "commit": ("test", from_hub("org/parquet", source={"revision": SECOND})),
        "table": ("test", from_hub("org/table")),
        "bare": ("test", from_hub("org/bare")),
    }
    found = open_from_hub(hub, home, wanted)

    for name in ("parquet", "wds", "trainval", "branch"):
        assert holds_the_images(found[name]), found[name]
    assert "has 12 samples, the card says 10" in found["rows"]["error"]
    assert "splits.test.rows in tasks/animals.yaml" in found["rows"]["hint"]
    assert 'unknown split of org/parquet "valid"; allowed: test, train' in found["split"]["error"]
    assert "org/none is not in the local cache and cannot be fetched" in found["missing"]["error"]
    assert "Repository Not Found" in found["missing"]["error"]
    assert "Revision Not Found" in found["commit"]["error"]
    assert "files of the kind .csv; parquet and WebDataset" in found["table"]["error"]
    assert "org/bare" in found["bare"]["error"]
    for name in ("missing", "commit", "table", "bare"):
        assert "--data animals=<folder>" in found[name]["hint"]
    sent = hub.downloads()
    assert {"data/test-00000-of-00002.parquet", "test/0.tar", "test/10.tar", "trainval/0.tar"} <= sent
    assert not [file for file in sent if "train-" in file or file.startswith("train/")]
    ledger = json.loads((isolated_cache / "ledger.json").read_text())["data"]
    assert {entry["value"] for entry in ledger.values()} == {FIRST}
    assert {"org/parquet", "org/wds", "org/voc", "org/parquet@v1"} <= set(ledger)

    # The data set changes under its name: the commit of the first use stays, and no other is asked for, except
    # by a card that states it, whatever the ledger says of the name.
    changed = tmp_path / "changed"
    write_parquet(changed / "data", IMAGES[:6])
    hub.repos["org/parquet"][SECOND] = changed
    hub.asked.clear()
    names = ("parquet", "wds", "branch")
    stated = {"stated": ("test", from_hub("org/parquet", 6, source={"revision": SECOND}))}
    again = open_from_hub(hub, home, {name: wanted[name] for name in names} | stated)
    for name in names:
        assert holds_the_images(again[name])
        assert again[name]["fingerprint"] == found[name]["fingerprint"]
    assert again["stated"]["images"] == DIGESTS[:6]
    assert again["stated"]["fingerprint"] != found["parquet"]["fingerprint"]
    assert not [asked for asked in hub.asked if "org/" in asked and SECOND not in asked]

    # A damaged listing is asked for again.
    for kept in (isolated_cache / "hub").iterdir():
        flip(kept, 40)
    mended = open_from_hub(hub, home, {"parquet": wanted["parquet"]})
    assert holds_the_images(mended["parquet"])
    assert [asked for asked in hub.asked if "org/parquet" in asked and SECOND not in asked]
    open_from_hub(hub, home, {"wds": wanted["wds"]})

    # No network: what was fetched serves; the rest says what to do, soon.
    hub.stop()
    for offline, cached, uncached in (
        (True, "parquet", {"missing": wanted["missing"]}),
        (False, "wds", {"other split": ("train", from_hub("org/wds")), "missing": wanted["missing"]}),
    ):
        without = open_from_hub(hub, home, {cached: wanted[cached], **uncached}, offline=offline)
        assert holds_the_images(without[cached])
        for name in uncached:
            assert "not in the local cache and cannot be fetched" in without[name]["error"]
            assert "--data animals=<folder>" in without[name]["hint"]
            assert without[name]["seconds"] < 20


def test_ledger_of_another_commit_is_an_error(isolated_cache: Path) -> None:
    from clipbench.utils.cache import remember

    remember("data", "org/parquet", FIRST, what="the commit")
    with pytest.raises(ClipbenchError, match=f"the commit of org/parquet has changed: {FIRST}.*{SECOND}"):
        remember("data", "org/parquet", SECOND, what="the commit")


def layouts_below(kind: Any) -> Iterator[type[Layout]]:
    for cls in kind.__subclasses__():
        yield cls
        yield from layouts_below(cls)


def test_layouts_keep_their_names_in_fingerprints() -> None:
    # Another name would make every feature that was encoded so far be encoded again.
    for module in plugins.modules("layouts", layouts).values():
        module.load()
    found = {
        cls.__name__: cls.name_in_fingerprint
        for cls in layouts_below(Layout)
        if cls is not FileLayout and cls.__module__ in sys.modules  # no more those of other tests' plugins
    }
    assert found == {
        "Batches": "CIFAR",
        "Archived": "archive",
        "Parquet": "_Parquet",
        "Rows": "Rows",
        "WebDataset": "_WebDataset",
        "ImageFolder": "_Folder",
        "CaptionFile": "CaptionFile",
        "_Instances": "_Instances",
        "_Annotated": "_Annotated",
        "_Listed": "_Listed",
        "_ClassFiles": "_ClassFiles",
        "_Boxes": "_Boxes",
        "ChoiceFiles": "ChoiceFiles",
        "_Frames": "ChoiceFiles",
        "_Clipped": "ChoiceFiles",
        "CaptionFiles": "CaptionFiles",
        "CaptionLines": "CaptionLines",
        "DCI": "DCI",
        "JsonLines": "JsonLines",
        "ParquetLanguages": "ParquetLanguages",
        "XM3600": "XM3600",
        "ItemTables": "ItemTables",
        "ItemRows": "ItemRows",
        "ImageCode": "ImageCode",
        "Table": "WinoGAViL",
        "Conditions": "Conditions",
        "NumberedFolders": "NumberedFolders",
        "ObjectNetFolders": "ObjectNet",
        "Reassessed": "Reassessed",
    }
