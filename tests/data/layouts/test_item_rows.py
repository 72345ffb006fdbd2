"""Items to choose among in the hub's tables: what is read, what is shared, and what is refused."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import item_copies
import numpy as np
import pyarrow as pa
import pytest
import servers
import small
from choice_copies import seen
from item_copies import COPIES, IMAGE, image, open_copy, write
from PIL import Image
from servers import FIRST, Hub

from clipbench.cards.columns import ItemColumns
from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.errors import DataError

hub = servers.data_hub

ITEMS = {"images": ["image"], "texts": ["right", "wrong"], "right": [[0, 0]]}


def opened(root: Path, items: dict[str, Any] = ITEMS, name: str = "test", **changes: Any) -> Split:
    fields: dict[str, Any] = {
        "title": "Things",
        "source": {"local": True},
        "columns": {"items": items},
        "splits": {"test": {"name": name}},
        "kind": "choices",
        "protocols": {"pick": {}},
    }
    card = TaskCard.model_validate(fields | changes)
    return open_split(
        Entry("things", card, Path("tasks/things.yaml")), "test", DataPaths({"things": root}, ())
    )


def rows(**columns: Any) -> dict[str, Any]:
    plain = {"image": [image(0), image(1)], "right": ["a", "b"], "wrong": ["c", "d"]}
    return plain | columns


@pytest.mark.parametrize("name", COPIES)
def test_every_form_gives_its_items_and_each_image_once(name: str, tmp_path: Path) -> None:
    COPIES[name].write(tmp_path / "copy")
    split = open_copy(name, tmp_path / "copy")
    assert seen(split) == COPIES[name].items()
    samples = list(split.samples(np.arange(len(split))))
    assert [sample.id for sample in samples] == list(split.ids)
    digests = [hashlib.sha256(sample.image).digest() for sample in samples]
    assert len(set(digests)) == len(digests) == len(split)
    again = open_copy(name, tmp_path / "copy")  # from what is kept
    assert (again.fingerprint, seen(again)) == (split.fingerprint, seen(split))


@pytest.mark.parametrize("name", COPIES)
def test_some_images_alone(name: str, tmp_path: Path) -> None:
    split = open_copy(name, COPIES[name].write(tmp_path / "copy"))
    every = list(split.samples(np.arange(len(split))))
    some = np.array([0, len(split) - 1])
    assert list(split.samples(some)) == [every[row] for row in some]


def test_a_box_is_cut_out(tmp_path: Path) -> None:
    split = open_copy("aro-vg-relation", COPIES["aro-vg-relation"].write(tmp_path / "copy"))
    whole = Image.open(io.BytesIO(small.picture(0))).convert("RGB")
    shown = [Image.open(io.BytesIO(s.image)) for s in split.samples(np.arange(len(split)))]
    assert [one.size for one in shown] == [(4, 3), (6, 6), (8, 8)]
    assert shown[0].tobytes() == whole.crop((1, 2, 5, 5)).tobytes()
    assert shown[1].tobytes() == whole.crop((0, 0, 6, 6)).tobytes()


def test_texts_and_images_in_lists(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "images": [[image(0), image(1)], [image(1), image(2)]],
        "true": ["a", "b"],
        "false": [["c", "d"], ["e", "f"]],
    }
    write(tmp_path / "test.parquet", columns, {"images": pa.list_(IMAGE)})
    of = {"images": ["images"], "texts": ["true", "false"], "right": [[0, 0], [1, 2]]}
    assert seen(opened(tmp_path, of)) == [
        ("0000000", ["0000000/0", "0000000/1"], ["a", "c", "d"], [(0, 0), (1, 2)], ""),
        ("0000001", ["0000000/1", "0000001/1"], ["b", "e", "f"], [(0, 0), (1, 2)], ""),
    ]


def test_the_order_of_columns_in_the_table_means_nothing(tmp_path: Path) -> None:
    plain = rows()
    for name, order in (("a", plain), ("b", dict(reversed(plain.items())))):
        write(tmp_path / name / "test.parquet", order, {"image": IMAGE})
    assert seen(opened(tmp_path / "a")) == seen(opened(tmp_path / "b"))


def test_other_columns_are_another_split(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", rows(), {"image": IMAGE})
    turned = {**ITEMS, "texts": ["wrong", "right"]}
    assert opened(tmp_path).fingerprint != opened(tmp_path, turned).fingerprint


def test_images_that_are_files_beside_the_table(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(small.picture(number))
    write(tmp_path / "test.parquet", rows(image=["0.png", "1.png"]), {})
    split = opened(tmp_path)
    assert [s.image for s in split.samples(np.arange(2))] == [small.picture(0), small.picture(1)]
    (tmp_path / "1.png").write_bytes(small.picture(5))
    assert opened(tmp_path).fingerprint != split.fingerprint


def test_an_image_that_is_missing_is_a_row_of_its_own_and_named(tmp_path: Path) -> None:
    nothing = {"bytes": None, "path": None}
    write(
        tmp_path / "test.parquet",
        rows(image=[nothing, nothing, image(1)], right=["a", "b", "c"], wrong=["d", "e", "f"]),
        {"image": IMAGE},
    )
    split = opened(tmp_path)
    assert [choice.images for choice in split.choices or ()] == [(0,), (1,), (2,)]
    assert [len(s.image) > 0 for s in split.samples(np.arange(3))] == [False, False, True]
    assert [(note.kind, note.count, note.examples) for note in split.notes] == [
        ("no-image", 2, ("row 0", "row 1"))
    ]


def test_tables_of_another_name_are_taken_where_the_set_has_one_split(tmp_path: Path) -> None:
    split = open_copy("sugarcrepe", COPIES["sugarcrepe"].write(tmp_path / "copy"))
    assert [(note.kind, note.count) for note in split.notes] == [("other-name", 1)]


@pytest.mark.parametrize(
    ("columns", "types", "message"),
    [
        (rows(wrong=["", "d"]), {}, "row 0 has '' in the column 'wrong', expected a text"),
        (rows(right=["a", None]), {}, "row 1 has nothing in the column 'right', expected a text"),
        (rows(wrong=[1, 2]), {}, "row 0 has '1' in the column 'wrong', expected a text"),
        (rows(wrong=[[], ["d"]]), {}, r"row 0 has '\[\]' in the column 'wrong', expected a text"),
        ({k: v for k, v in rows().items() if k != "wrong"}, {}, "no column 'wrong'; it has 'image', 'right'"),
        (rows(image=[1, 2]), {"image": None}, "the column 'image' holds whole numbers, expected encoded"),
    ],
)
def test_tables_that_are_refused(columns: Any, types: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", columns, {"image": IMAGE, **types})
    with pytest.raises(DataError, match=message):
        opened(tmp_path)


def test_places_that_no_row_has(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", rows(), {"image": IMAGE})
    with pytest.raises(DataError, match=r"row 0 has 1 images and 2 texts; .* names image 1 and text 1"):
        opened(tmp_path, {**ITEMS, "right": [[0, 0], [1, 1]]})


@pytest.mark.parametrize("box", [{"x": 1.0, "y": 0.0, "w": 0.0, "h": 4.0}, {"x": 1.0}, None])
def test_boxes_that_are_none(box: Any, tmp_path: Path) -> None:
    kind = pa.struct([(side, pa.float32()) for side in "xywh"])
    write(tmp_path / "test.parquet", rows(box=[box, box]), {"image": IMAGE, "box": kind})
    with pytest.raises(DataError, match=r"row 0 has .* in the column 'box', expected x, y, w and h"):
        opened(tmp_path, {**ITEMS, "box": "box"})


def test_a_box_beyond_its_image(tmp_path: Path) -> None:
    kind = pa.struct([(side, pa.float32()) for side in "xywh"])
    far = {"x": 90.0, "y": 0.0, "w": 4.0, "h": 4.0}
    write(tmp_path / "test.parquet", rows(box=[far, far]), {"image": IMAGE, "box": kind})
    split = opened(tmp_path, {**ITEMS, "box": "box"})
    with pytest.raises(DataError, match="8 × 8 pixels, of which the box 90, 0, 94, 4"):
        list(split.samples(np.arange(2)))


def test_parts_are_texts_or_whole_numbers(tmp_path: Path) -> None:
    write(tmp_path / "test.parquet", rows(part=["x", None]), {"image": IMAGE})
    with pytest.raises(DataError, match="row 1 has nothing in the column 'part'"):
        opened(tmp_path, {**ITEMS, "part": "part"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"right": []}, "right needs pairs"),
        ({"right": [[0]]}, "right needs pairs"),
        ({"right": [[0, -1]]}, "right needs pairs"),
        ({"right": [[0, 0], [0, 0]]}, "right holds a pair twice"),
        ({"images": []}, "images needs the names of columns"),
        ({"texts": ["a", "a"]}, "texts needs the names of columns, each once"),
    ],
)
def test_cards_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ItemColumns.model_validate(ITEMS | changes)


def test_items_belong_to_sets_of_choices() -> None:
    with pytest.raises(ValueError, match="items goes with kind: choices"):
        TaskCard.model_validate(
            {
                "title": "Pets",
                "source": {"local": True},
                "splits": {"test": {"name": "test"}},
                "kind": "captions",
                "columns": {"items": ITEMS},
                "protocols": {"ret": {}},
            }
        )


def test_items_of_the_hub_are_those_of_a_local_copy(hub: Hub, tmp_path: Path) -> None:
    """The cards of sets that the hub has as tables; in a copy the images are the same, and the commit is recorded."""
    names = ("winoground", "colorswap", "aro-coco-order")
    cards = {name: item_copies.entry(name).card for name in names}
    for name in names:
        hub.repos[str(cards[name].source.hub)] = {FIRST: COPIES[name].write(tmp_path / name)}
    wanted = [
        (name, "test", card.model_dump(mode="json", exclude_unset=True)) for name, card in cards.items()
    ]
    for offline in (False, True):
        found = servers.open_from_hub(hub, tmp_path / "home", wanted, offline=offline)
        for name in names:
            split = open_copy(name, tmp_path / name)
            images = [hashlib.sha256(s.image).hexdigest() for s in split.samples(np.arange(len(split)))]
            assert found[name].get("images") == images, found[name]


# ------------------------------------------------------------------- ImageCoDe


def test_imagecode_needs_its_three_tables(tmp_path: Path) -> None:
    item_copies.write_imagecode(tmp_path)
    (tmp_path / "qrels-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"has no qrels-\*\.parquet"):
        open_copy("imagecode", tmp_path)


@pytest.mark.parametrize(
    ("table", "columns", "message"),
    [
        ("query", {"id": ["q0", "q0"], "text": ["a", "b"]}, "query 'q0' needs a text, .* to be there once"),
        ("query", {"id": ["q7"], "text": ["a"]}, "has 0 right and 0 wrong ones"),
        ("query", {"id": ["q0"], "text": [""]}, r"are \('q0', ''\), expected texts or whole numbers"),
        ("query", {"id": ["q0"]}, "has no column 'text'"),
        (
            "qrels",
            {"query-id": ["q0"], "corpus-id": ["other"], "score": [1]},
            "name the image 'other', which is not in the corpus",
        ),
    ],
)
def test_tables_of_imagecode_that_are_refused(
    table: str, columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    item_copies.write_imagecode(tmp_path)
    write(tmp_path / f"{table}-00000-of-00001.parquet", columns, {})
    with pytest.raises(DataError, match=message):
        open_copy("imagecode", tmp_path)


# ------------------------------------------------------------------- WinoGAViL


def test_lists_of_winogavil_have_the_quotes_of_json_or_python(tmp_path: Path) -> None:
    item_copies.write_winogavil(tmp_path / "json")
    item_copies.write_winogavil(tmp_path / "python", dump=str)
    expected = item_copies.winogavil_items()
    assert seen(open_copy("winogavil", tmp_path / "json")) == expected
    assert seen(open_copy("winogavil", tmp_path / "python")) == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '""moon"", ""night""]',
            '""moon"", ""dark""]',
            "5 candidates, of which 1 are among its associations",
        ),
        ("Owl", "", "has the cue '', expected a text"),
        ('[""moon""', "__import__('os')", "has the candidates None, expected a list"),
        ("cue,", "clue,", "has no column 'cue'"),
    ],
)
def test_winogavil_that_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    file = item_copies.write_winogavil(tmp_path) / "winogavil_dataset.csv"
    text = file.read_text()
    assert old in text
    place = text.rindex(old) if "dark" in new else text.index(old)
    file.write_text(text[:place] + new + text[place + len(old) :])
    with pytest.raises(DataError, match=message):
        open_copy("winogavil", tmp_path)


def test_winogavil_without_an_image(tmp_path: Path) -> None:
    item_copies.write_winogavil(tmp_path)
    (tmp_path / "winogavil_images/moon.jpg").unlink()
    with pytest.raises(DataError, match=r"moon\.jpg is not there"):
        open_copy("winogavil", tmp_path)
