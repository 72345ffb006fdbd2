"""Parquet tables: files by their own label names and types, images in the table or beside it, many rows an image."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
from PIL import Image

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.data import digests as digests_module
from clipbench.data.builtin import digits
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Captions, Split
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, DataError
from clipbench.evaluation import Options, evaluate

one_thread = small.one_thread
WORDS = ("bat", "cat", "sea lion")
FP32 = Runtime("cpu", "fp32", workers=0)


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number * 20, 255 - number * 20, 7)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [picture(number) for number in range(6)]
LABELS = [0, 1, 2, 2, 1, 0]


def entry(kind: str = "single-label", **changes: Any) -> Entry[TaskCard]:
    fields: dict[str, Any] = {
        "title": "Animals",
        "source": {"local": True},
        "splits": {"train": {"name": "train"}, "test": {"name": "test"}},
        "kind": kind,
    }
    if kind == "captions":
        fields |= {"protocols": {"ret": {}}}
    else:
        fields |= {
            "classes": WORDS,
            "templates": {"default": ["a photo of a {c}."]},
            "prompts_source": "tests",
            "protocols": {"zs": {}},
        }
    return Entry("animals", TaskCard.model_validate(fields | changes), Path("tasks/animals.yaml"))


def opened(root: Path, kind: str = "single-label", *, pairs: bool = False, **changes: Any) -> Split:
    return open_split(entry(kind, **changes), "test", DataPaths({"animals": root}, ()), pairs=pairs)


def message(root: Path, kind: str = "single-label", **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        opened(root, kind, **changes)
    return str(caught.value)


def images_of(split: Split) -> list[bytes]:
    return [sample.image for sample in split.samples(np.arange(len(split)))]


def write(
    root: Path, columns: dict[str, Any], *, names: Any = None, metadata: bytes | None = None, shard: int = 0
) -> Path:
    """A shard of the test split; `names` of the labels as `datasets` keeps them."""
    root.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if names is not None:
        described = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        metadata = json.dumps(described).encode()
    if metadata is not None:
        table = table.replace_schema_metadata({b"huggingface": metadata})
    pq.write_table(table, root / f"test-{shard:05d}.parquet")
    return root


# ---------------------------------------------------------------- label names


def test_each_file_is_read_by_its_own_label_names(tmp_path: Path) -> None:
    control = write(tmp_path / "control", {"image": IMAGES, "label": LABELS}, names=WORDS)
    for shard, names in enumerate((WORDS, WORDS[::-1])):
        part = slice(3 * shard, 3 * shard + 3)
        labels = [names.index(WORDS[label]) for label in LABELS[part]]
        write(tmp_path / "two", {"image": IMAGES[part], "label": labels}, names=names, shard=shard)
    assert opened(control).labels.tolist() == LABELS
    assert opened(tmp_path / "two").labels.tolist() == LABELS


def test_shards_with_reversed_names_score_as_the_control(tmp_path: Path) -> None:
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    whole = digits("test", tuple("0123456789"))
    samples, labels = list(whole.samples(np.arange(40))), whole.labels[:40].tolist()
    template = 'a photo of the number: "{c}".'
    cards = small.write_task(
        tmp_path / "cards", classes=list("0123456789"), label_names=words, templates={"default": [template]},
        protocols={"zs": {}},
    )  # fmt: skip
    scores = []
    for name, orders in (("control", (words, words)), ("two", (words, words[::-1]))):
        for shard, names in enumerate(orders):
            part = slice(20 * shard, 20 * shard + 20)
            numbers = [names.index(words[label]) for label in labels[part]]
            columns = {"image": [sample.image for sample in samples[part]], "label": numbers}
            write(tmp_path / name, columns, names=names, shard=shard)
        catalog = Catalog([cards])
        options = Options(FP32, DataPaths({"animals": tmp_path / name}, ()), progress=False)
        (result,) = evaluate([catalog.model("digits-clip-lite")], catalog.tasks(["animals-zs"]), options)
        assert result.record is not None
        scores.append(result.record.scores["acc1"].value)
    assert scores[0] > 0.9
    assert scores[1] == scores[0]


def test_texts_in_a_dictionary_are_labels(tmp_path: Path) -> None:
    texts = pa.array([WORDS[label] for label in LABELS]).dictionary_encode()
    split = opened(write(tmp_path, {"image": IMAGES, "label": texts}))
    assert split.labels.tolist() == LABELS


def test_a_label_that_its_file_does_not_name(tmp_path: Path) -> None:
    write(tmp_path, {"image": IMAGES[:3], "label": [0, 1, 2]}, names=WORDS)
    write(tmp_path, {"image": IMAGES[3:], "label": [0, 7, 2]}, names=WORDS[::-1], shard=1)
    assert "test-00001.parquet: row 1 has the label 7, but the file names 3 labels (0 to 2)" in message(
        tmp_path
    )


@pytest.mark.parametrize(
    ("columns", "names", "wanted"),
    [
        (
            {"image": IMAGES, "label": LABELS},
            None,
            "test-00001.parquet does not name its labels, test-00000.parquet",
        ),
        ({"image": IMAGES, "klass": LABELS}, WORDS, "test-00001.parquet has no column 'label', other files"),
        (
            {"image": IMAGES, "label": [WORDS[i] for i in LABELS]},
            None,
            "'label' holds texts; in test-00000.parquet it holds whole numbers",
        ),
        (
            {"image": LABELS, "label": LABELS},
            WORDS,
            "the column 'image' holds whole numbers, expected encoded images",
        ),
        (
            {"image": [[1, 2]] * 6, "label": LABELS},
            WORDS,
            "the column 'image' holds lists of whole numbers, expected encoded images",
        ),
        ({"image": IMAGES, "label": LABELS}, ("cat", "cat", "bat"), "names two labels alike"),
    ],
)
def test_files_that_disagree(columns: dict[str, Any], names: Any, wanted: str, tmp_path: Path) -> None:
    write(tmp_path, {"image": IMAGES, "label": LABELS}, names=WORDS)
    write(tmp_path, columns, names=names, shard=1)
    assert wanted in message(tmp_path)


def test_widths_and_encodings_do_not_disagree(tmp_path: Path) -> None:
    write(tmp_path, {"image": IMAGES, "label": pa.array(LABELS, pa.int8())})
    struct = pa.array([{"bytes": image, "path": None} for image in IMAGES])
    write(tmp_path, {"image": struct, "label": pa.array(LABELS, pa.uint64())}, shard=1)
    large = pa.array(IMAGES, pa.large_binary())
    write(tmp_path, {"image": large, "label": LABELS}, shard=2)
    write(tmp_path, {"image": pa.array(IMAGES).dictionary_encode(), "label": LABELS}, shard=3)
    split = opened(tmp_path)
    assert split.labels.tolist() == LABELS * 4
    assert images_of(split) == IMAGES * 4


@pytest.mark.parametrize(
    "metadata",
    [
        b"{broken",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b'{"info": []}',
        b'{"info": {"features": {"label": "x"}}}',
        b'{"info": {"features": {"label": {"names": [1, 2, 3]}}}}',
        b'{"info": {"features": {"label": {"names": "abc"}}}}',
    ],
)
def test_odd_metadata_is_a_note(metadata: bytes, tmp_path: Path) -> None:
    split = opened(write(tmp_path, {"image": IMAGES, "label": LABELS}, metadata=metadata))
    assert split.labels.tolist() == LABELS
    assert [(note.kind, note.count, note.examples) for note in split.notes] == [
        ("unread-metadata", 1, ("test-00000.parquet",))
    ]


@pytest.mark.parametrize("metadata", [b"{}", b'{"info": null}', b'{"info": {"features": {"other": {}}}}'])
def test_metadata_that_names_no_labels_is_none(metadata: bytes, tmp_path: Path) -> None:
    assert opened(write(tmp_path, {"image": IMAGES, "label": LABELS}, metadata=metadata)).notes == ()


# --------------------------------------------------------------------- images


def test_an_image_that_is_null_is_one_that_is_bad(tmp_path: Path) -> None:
    write(tmp_path, {"image": [*IMAGES[:2], None, *IMAGES[3:]], "label": LABELS})
    split = opened(tmp_path)
    assert images_of(split)[2] == b""
    cells = [{"bytes": image, "path": None} for image in IMAGES[:4]] + [None, {"bytes": None, "path": None}]
    write(tmp_path, {"image": cells, "label": LABELS})
    assert images_of(opened(tmp_path)) == [*IMAGES[:4], b"", b""]


def with_files(root: Path, cells: Sequence[Any], folder: str = "pics") -> Path:
    """A table of paths, and the images below `root`."""
    (root / folder).mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(IMAGES):
        (root / folder / f"{number}.png").write_bytes(image)
    return write(root, {"image": list(cells), "label": LABELS})


TEXTS = [f"pics/{number}.png" for number in range(6)]
STRUCTS = [{"bytes": None, "path": text} for text in TEXTS]


@pytest.mark.parametrize(
    "cells", [TEXTS, STRUCTS, [*[{"bytes": i, "path": "x"} for i in IMAGES[:3]], *STRUCTS[3:]]]
)
def test_images_beside_the_table_are_part_of_the_key(
    cells: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the process works is not where paths start
    root = with_files(tmp_path / "copy", cells)
    first = opened(root)
    assert images_of(first) == IMAGES
    assert opened(root).fingerprint == first.fingerprint
    moved = with_files(tmp_path / "moved", cells)
    assert opened(moved).fingerprint == first.fingerprint
    (root / "pics" / "4.png").write_bytes(picture(9))
    second = opened(root)
    assert second.fingerprint != first.fingerprint
    assert images_of(second) == [*IMAGES[:4], picture(9), IMAGES[5]]


def test_paths_start_from_the_table_or_from_the_data_folder(tmp_path: Path) -> None:
    with_files(tmp_path / "top", TEXTS)
    (tmp_path / "top" / "data").mkdir()
    (tmp_path / "top" / "test-00000.parquet").rename(tmp_path / "top" / "data" / "test-00000.parquet")
    assert images_of(opened(tmp_path / "top")) == IMAGES
    absolute = [str(tmp_path / "abs" / text) for text in TEXTS]
    assert images_of(opened(with_files(tmp_path / "abs", absolute))) == IMAGES


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("../secret.png", "'../secret.png' in the column 'image' leads out of"),
        ("/etc/passwd", "'/etc/passwd' in the column 'image' leads out of"),
        ("https://example.org/1.png", "is an address"),
        ("pics/9.png", "names 6 image files, of which 1 are not there, first 'pics/9.png'; looked in"),
        ("x" * 300, "of which 1 are not there"),
        ("pics/\0.png", "of which 1 are not there"),
    ],
)
def test_paths_that_lead_nowhere(text: str, wanted: str, tmp_path: Path) -> None:
    assert wanted in message(with_files(tmp_path, [*TEXTS[:5], text]))


def test_the_features_of_a_swapped_image_are_not_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests_module, "RACY_NS", 0)
    cards, model = small.write_task(tmp_path / "cards"), small.write_run(tmp_path / "run")
    catalog = Catalog([cards])
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(small.picture(number))
    write(tmp_path, {"image": [f"{n}.png" for n in range(5)], "label": list(range(5))}, names=small.CLASSES)

    def predictions() -> tuple[int, list[Any]]:
        options = Options(FP32, DataPaths({"animals": tmp_path}, ()), progress=False)
        (result,) = evaluate([catalog.model(str(model))], catalog.tasks(["animals-zs"]), options)
        assert result.record is not None
        return result.record.timing.images_encoded, [list(column) for column in result.samples.values()]

    assert predictions()[0] == 5
    assert predictions()[0] == 0
    image = tmp_path / "3.png"
    before = image.stat()
    other = small.picture(11)
    size = max(len(other), before.st_size)
    # Bytes behind its end mean nothing to a PNG: both have one size.
    image.write_bytes(small.picture(3).ljust(size, b"\0"))
    os.utime(image, ns=(before.st_mtime_ns, before.st_mtime_ns))
    predictions()
    image.write_bytes(other.ljust(size, b"\0"))
    os.utime(image, ns=(before.st_mtime_ns, before.st_mtime_ns))
    encoded, found = predictions()
    assert encoded == 5
    monkeypatch.setenv("CLIPBENCH_CACHE", str(tmp_path / "fresh"))
    assert predictions() == (5, found)


# ------------------------------------------------------------------- captions

SAID = ["a bat", "two bats", "a cat", "a sea lion", "lions", "at sea"]
#: rows → image; the rows of image 1 do not stand together
SHOWN = [0, 1, 0, 2, 1, 2]


def captions(split: Split) -> list[list[str]]:
    assert isinstance(split.captions, Captions)
    found: list[list[str]] = [[] for _ in range(len(split))]
    for text, image in zip(split.captions.texts, split.captions.image.tolist(), strict=True):
        found[image].append(text)
    return found


ROWS = {"image": [IMAGES[i] for i in SHOWN], "caption": SAID}
GROUPED = [["a bat", "a cat"], ["two bats", "lions"], ["a sea lion", "at sea"]]


@pytest.mark.parametrize("column", ["image_id", "imgid", "filename", "file_name", "path", "Image-ID"])
def test_rows_of_one_image_are_one_sample(column: str, tmp_path: Path) -> None:
    split = opened(write(tmp_path, ROWS | {column: [f"i{i}" for i in SHOWN]}), "captions")
    assert split.ids == ("0000000", "0000001", "0000003") or list(split.ids) == [
        "0000000",
        "0000001",
        "0000003",
    ]
    assert captions(split) == GROUPED
    assert images_of(split) == IMAGES[:3]
    assert [sample.id for sample in split.samples(np.array([2]))] == ["0000003"]
    assert [str(note) for note in split.notes] == [
        f"6 rows of the table are 3 images with their captions, by the column {column!r}"
    ]
    again = opened(tmp_path, "captions")  # by the digests that are kept
    assert (captions(again), again.fingerprint) == (GROUPED, split.fingerprint)
    assert split.fingerprint != opened(tmp_path, "captions", pairs=True).fingerprint


def test_rows_are_parted_at_line_ends_alone(tmp_path: Path) -> None:
    said = ["one\u2028still one", *SAID[1:]]
    split = opened(write(tmp_path, ROWS | {"caption": said, "image_id": SHOWN}), "captions")
    assert captions(split)[0] == ["one\u2028still one", "a cat"]


def test_the_path_of_an_image_says_which_it_is(tmp_path: Path) -> None:
    cells = [{"bytes": IMAGES[i], "path": f"{i}.png"} for i in SHOWN]
    assert captions(opened(write(tmp_path / "a", ROWS | {"image": cells}), "captions")) == GROUPED
    files = with_files(tmp_path / "b", TEXTS)
    texts = [f"pics/{i}.png" for i in SHOWN]
    assert captions(opened(write(files, ROWS | {"image": texts}), "captions")) == GROUPED


def test_images_that_repeat_without_a_name_are_refused(tmp_path: Path) -> None:
    said = message(write(tmp_path, ROWS | {"who": SHOWN}), "captions")
    assert (
        "samples 0000000 and 0000002 are the same image with a caption each; 3 images are there more than"
        in said
    )
    assert "columns.image_id on the task card (the table has 'image', 'caption', 'who')" in said
    assert captions(opened(tmp_path, "captions", columns={"image_id": "who"})) == GROUPED
    assert len(opened(tmp_path, "captions", pairs=True)) == 6  # for training a row is a pair


def test_bytes_alone_group_nothing(tmp_path: Path) -> None:
    columns = {"image": [IMAGES[0], *IMAGES[:5]], "caption": [[text, text + "!"] for text in SAID]}
    split = opened(write(tmp_path, columns), "captions")
    assert len(split) == 6
    assert [(note.kind, note.count, note.examples) for note in split.notes] == [
        ("repeated-images", 1, ("0000000",))
    ]
    single = write(tmp_path / "single", columns | {"caption": SAID, "name": list("abcdef")})
    assert "columns.image_id" in message(single, "captions")
    assert len(opened(single, "captions", columns={"image_id": "name"})) == 6


def test_ordinary_tables_stay_as_they_were(tmp_path: Path) -> None:
    plain = opened(write(tmp_path, {"image": IMAGES, "caption": SAID, "filename": ["x.png"] * 6}), "captions")
    assert list(plain.ids) == [f"{row:07d}" for row in range(6)]
    assert plain.notes == ()
    assert plain.fingerprint == opened(tmp_path, "captions", pairs=True).fingerprint


@pytest.mark.parametrize(
    ("who", "wanted"),
    [
        ([0, 0, 0, 2, 1, 2], "rows 0 and 1 have '0' in the column 'who', but not the same image"),
        ([0, 1, None, 2, 1, 2], "row 2 has nothing in the column 'who'"),
    ],
)
def test_a_column_that_calls_images_wrongly(who: list[Any], wanted: str, tmp_path: Path) -> None:
    root = write(tmp_path, ROWS | {"who": who})
    assert wanted in message(root, "captions", columns={"image_id": "who"})
    assert "no column 'whom'; it has 'image', 'caption', 'who'" in message(
        root, "captions", columns={"image_id": "whom"}
    )


def test_a_column_of_lists_says_of_no_row_which_image_it_is(tmp_path: Path) -> None:
    root = write(tmp_path, ROWS | {"path": [["a", str(i)] for i in SHOWN]})
    assert "columns.image_id" in message(root, "captions")
    assert "'path' holds lists of texts, expected texts" in message(
        root, "captions", columns={"image_id": "path"}
    )


def write_tar(path: Path, samples: Sequence[tuple[bytes, str]]) -> Path:
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for number, (image, text) in enumerate(samples):
            for name, data in ((f"s{number}.png", image), (f"s{number}.txt", text.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path.parents[1]


def test_tars_with_an_image_in_many_samples(tmp_path: Path) -> None:
    single = [(IMAGES[i], text) for i, text in zip(SHOWN, SAID, strict=True)]
    said = message(write_tar(tmp_path / "a" / "test" / "0.tar", single), "captions")
    assert "are the same image with a caption each; 3 images are there more than once" in said
    assert "pack each image once, with all its captions in its .txt, one a line" in said
    several = [(image, f"{text}\n{text}!") for image, text in single]
    split = opened(write_tar(tmp_path / "b" / "test" / "0.tar", several), "captions")
    assert [(note.kind, note.count) for note in split.notes] == [("repeated-images", 3)]


def test_image_id_is_for_captions() -> None:
    with pytest.raises((CardError, ValueError), match="image_id goes with kind: captions"):
        entry(columns={"image_id": "x"})
    assert entry("captions").card.columns.canonical() == {"image": "image", "label": "label"}


@pytest.mark.parametrize(
    "cells",
    [
        [[text, text + "!"] for text in SAID],
        pa.array([[text, text + "!"] for text in SAID], pa.large_list(pa.large_string())),
        [[{"raw": text, "sentid": 1}, {"raw": text + "!", "sentid": 2}] for text in SAID],
        [{"raw": [text, text + "!"]} for text in SAID],
        [f"{text}\n{text}!" for text in SAID],
    ],
)
def test_columns_of_captions(cells: Any, tmp_path: Path) -> None:
    split = opened(write(tmp_path, {"image": IMAGES, "caption": cells}), "captions")
    assert captions(split) == [[text, text + "!"] for text in SAID]


def test_one_mapping_is_one_caption(tmp_path: Path) -> None:
    split = opened(
        write(tmp_path, {"image": IMAGES, "caption": [{"raw": text} for text in SAID]}), "captions"
    )
    assert captions(split) == [[text] for text in SAID]


def test_a_caption_that_is_null(tmp_path: Path) -> None:
    said = message(write(tmp_path, {"image": IMAGES, "caption": [*SAID[:5], None]}), "captions")
    assert "image 0000005" in said
    ids = {"image_id": SHOWN}
    said = message(write(tmp_path, ROWS | {"caption": [*SAID[:5], None]} | ids), "captions")
    assert "caption 2 of image 0000003" in said
