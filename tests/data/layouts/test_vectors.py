"""Metadata beside labels: vectors in `.npy`, fields of `.json` and columns, and what codes are called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import class_copies
import hosted_groups
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small
from beside import message, opened, tar_of
from hosted_groups import npy

from clipbench.cards.task import Columns, TaskCard
from clipbench.data.split import Subset

LABELS = [0, 1, 2, 3, 4, 0]
VECTORS = [[0, 14, 0], [1, 15, 1], [0, 14, 2], [2, 15, 3], [1, 14, 4], [0, 15, 0]]
COLUMNS: dict[str, Any] = {
    "values": ["region", "year", "y"],
    "group": {
        "region": {"names": ["Asia", "Europe", "Other"]},
        "year": {"names": {"14": "2016", "15": "2017"}},
    },
}
REGIONS = ["Asia", "Europe", "Asia", "Other", "Europe", "Asia"]


def copy(root: Path, vectors: Any = VECTORS, labels: Any = LABELS) -> Path:
    return hosted_groups.write(root, labels, vectors, small.CLASSES)


@pytest.mark.parametrize("kind", [np.int64, np.int16, np.float32, np.float64])
def test_values_are_read_by_their_names(tmp_path: Path, kind: type) -> None:
    copy(tmp_path, np.array(VECTORS, dtype=kind))
    split = opened(tmp_path, columns=COLUMNS)
    assert split.labels.tolist() == LABELS  # the .npy is no label
    assert {name: groups.tolist() for name, groups in split.groupings.items()} == {
        "region": REGIONS,
        "year": ["2016", "2017", "2016", "2017", "2016", "2017"],
    }
    assert split.groups is split.groupings["region"]
    again = opened(tmp_path, columns=COLUMNS)  # from the index that was kept
    assert again.groupings["year"].tolist() == split.groupings["year"].tolist()
    part = Subset(split, np.array([1, 3]))
    assert part.groupings["region"].tolist() == ["Europe", "Other"]
    assert split.fingerprint == opened(tmp_path, columns=None).fingerprint  # features stay
    assert [note.kind for note in split.notes] == []


def test_a_vector_beside_a_class_number_is_no_label_where_the_card_names_no_values(tmp_path: Path) -> None:
    copy(tmp_path, [[1, 0, 0, 0, 1]] * 6)
    assert opened(tmp_path, columns=None).labels.tolist() == LABELS


def test_a_vector_is_no_label_where_there_is_no_class_number(tmp_path: Path) -> None:
    copy(tmp_path, labels=None)
    said = message(tmp_path, columns=COLUMNS)
    assert "has no label" in said
    assert ".cls" in said


@pytest.mark.parametrize(
    ("vectors", "says"),
    [
        ([[0, 14]] * 6, "s0000000.npy holds 2 values, columns.values on the task card names 3 (region, year, y)"),
        ([*VECTORS[:5], [0, 1, 2, 3]], "s0000005.npy holds 4 values"),
        ([*VECTORS[:5], [[0, 1, 2]]], "s0000005.npy holds an array (1, 3)"),
        ([*VECTORS[:5], 3], "s0000005.npy holds an array ()"),
        ([*VECTORS[:5], [0.5, 14, 0]], "sample s0000005 has no text or whole number as 'region' in its .npy (it says"),
        ([*VECTORS[:5], [3, 14, 0]], "has the code '3', which columns.group.region.names does not name (it names 0 A"),
        ([*VECTORS[:5], [-1, 14, 0]], "has the code '-1'"),
        ([*VECTORS[:5], [np.nan, 14, 0]], "(NaN) in the column of columns.group.region; 1 such sample in all"),
        ([*VECTORS[:5], b"no array"], "s0000005.npy cannot be read"),
        ([*VECTORS[:5], npy(np.array([0, None, 2], dtype=object))[:1] + b"x" * 200], "cannot be read"),
    ],
)  # fmt: skip
def test_what_no_vector_may_be(tmp_path: Path, vectors: Any, says: str) -> None:
    assert says in message(copy(tmp_path, vectors), columns=COLUMNS)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "harm",))

    pickled = np.array([Harm(), 14, 0], dtype=object)
    said = message(copy(tmp_path / "copy", [*VECTORS[:5], npy(pickled)]), columns=COLUMNS)
    assert "s0000005.npy cannot be read: Object arrays cannot be loaded when allow_pickle=False" in said
    assert not (tmp_path / "harm").exists()


def test_the_last_values_may_be_lacking_where_the_card_says_so(tmp_path: Path) -> None:
    columns = {"values": ["region", "year", "y", "domain?"], "group": "region"}
    copy(tmp_path, [*VECTORS[:5], [0, 15, 0, 1]])
    split = opened(tmp_path, columns=columns)
    assert split.groups is not None
    assert split.groups.tolist() == ["0", "1", "0", "2", "1", "0"]
    copy(tmp_path / "other", [*VECTORS[:5], [0, 15, 0, 1, 2]])
    said = message(tmp_path / "other", columns=columns)
    assert "holds 5 values, columns.values on the task card names 3 to 4 (region, year, y, domain)" in said


def test_another_y_than_the_label_is_noted(tmp_path: Path) -> None:
    copy(tmp_path, [*VECTORS[:4], [1, 14, 3], [0, 15, 9]])
    for _ in range(2):
        (note,) = opened(tmp_path, columns=COLUMNS).notes
        assert (note.kind, note.count) == ("other-y", 2)
        assert note.examples == ("1/s0000004: y 3, label 4", "1/s0000005: y 9, label 0")


def test_a_number_that_is_none_can_be_named(tmp_path: Path) -> None:
    copy(tmp_path, [*VECTORS[:5], [np.nan, 14, 0]])
    named = {"names": {"0": "Asia", "1": "Europe", "2": "Other", "nan": "unknown"}}
    split = opened(tmp_path, columns=COLUMNS | {"group": {"region": named}})
    assert split.groupings["region"].tolist() == [*REGIONS[:5], "unknown"]
    said = message(tmp_path, columns=COLUMNS | {"group": "region"})
    assert (
        "sample 1/s0000005 has no number (NaN) in the column of columns.group; 1 such sample in all" in said
    )
    assert "names" in said
    assert "no text or whole number as 'region'" in message(tmp_path, columns=COLUMNS | {"cluster": "region"})


def test_groups_of_texts_and_clusters_from_the_vector(tmp_path: Path) -> None:
    copy(tmp_path, np.array([["north", "a"], ["south", "b"]] * 3))
    split = opened(tmp_path, columns={"values": ["region", "slide"], "group": "region", "cluster": "slide"})
    assert split.groups is not None
    assert split.clusters is not None
    assert split.groups.tolist() == ["north", "south"] * 3
    assert split.clusters.tolist() == ["a", "b"] * 3


@pytest.mark.parametrize("values", [[0, 1, 0, 2, 1, 0], [0.0, 1.0, 0.0, 2.0, 1.0, 0.0], list("010210")])
@pytest.mark.parametrize("layout", ["json", "parquet"])
def test_fields_and_columns_have_the_same_codes(tmp_path: Path, layout: str, values: list[Any]) -> None:
    columns = {"group": {"place": {"column": "region", "names": COLUMNS["group"]["region"]["names"]}}}
    images = [small.picture(row) for row in range(6)]
    if layout == "parquet":
        cells = [{"bytes": image, "path": None} for image in images]
        pq.write_table(
            pa.table({"image": cells, "label": LABELS, "region": values}), tmp_path / "test.parquet"
        )
    else:
        files = [
            file
            for row in range(6)
            for file in (
                (f"{row}.png", images[row]),
                (f"{row}.json", json.dumps({"label": LABELS[row], "region": values[row]}).encode()),
            )
        ]
        tar_of(tmp_path / "test" / "0.tar", files)
    assert opened(tmp_path, columns=columns).groupings["place"].tolist() == REGIONS


def test_columns_of_fractions(tmp_path: Path) -> None:
    cells = [{"bytes": small.picture(row), "path": None} for row in range(3)]
    for name, region in (("half", [0.0, 1.0, 0.5]), ("none", [0.0, None, 1.0])):
        table = pa.table({"image": cells, "label": [0, 1, 2], "region": region})
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "test.parquet")
    said = message(tmp_path / "half", columns={"group": "region"})
    assert "row 2 has '0.5', no text or whole number, in the column 'region'" in said
    assert "has no number (NaN)" in message(tmp_path / "none", columns={"group": "region"})
    names = {"0": "a", "1": "b", "nan": "?"}
    split = opened(tmp_path / "none", columns={"group": {"region": {"names": names}}})
    assert split.groupings["region"].tolist() == ["a", "?", "b"]
    assert "expected texts or whole numbers" in message(tmp_path / "none", columns={"cluster": "region"})


def test_a_copy_with_vectors_that_the_card_does_not_name(tmp_path: Path) -> None:
    said = message(copy(tmp_path), columns={"group": "region"})
    assert "sample s0000000 has no text or whole number as 'region'" in said
    assert "columns.values" in said


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"group": {}}, "group is empty"),
        ({"group": {"region": {"names": []}}}, "names is empty"),
        ({"values": ["a", "a"]}, "values holds the same name twice"),
        ({"values": ["a?", "b"]}, "names that end in [?] stand at the end"),
        ({"group": {"region": {"name": "x"}}}, "name"),
    ],
)
def test_what_columns_cannot_say(columns: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Columns.model_validate(columns)


def test_cards_without_values_keep_their_fingerprints() -> None:
    assert Columns().model_dump() == {"image": "image", "label": "label"}
    assert Columns(group="region").model_dump() == {"image": "image", "label": "label", "group": "region"}


def test_sets_of_attributes_have_no_label(tmp_path: Path) -> None:
    fields: dict[str, Any] = {
        "kind": "attributes",
        "columns": {"values": ["age", "gender"], "group": {"gender": {"names": ["man", "woman"]}}},
        "classes": None,
        "templates": None,
        "objectives": {"gender": {"label": "gender", "classes": ["man", "woman"], "templates": ["a {c}"]}},
        "protocols": {"groups": {"objective": "gender"}},
    }
    hosted_groups.write(tmp_path / "tars", None, [[3, 0], [4, 1], [5, 1]], ["gender:man", "gender:woman"])
    hosted_groups.write(tmp_path / "with", [7, 8, 9], [[3, 0], [4, 1], [5, 1]])
    table = {"image": [{"bytes": small.picture(row), "path": None} for row in range(3)], "gender": [0, 1, 1]}
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table(table), tmp_path / "table" / "test.parquet")
    for name in ("tars", "with", "table"):
        split = opened(tmp_path / name, **fields)
        assert split.groupings["gender"].tolist() == ["man", "woman", "woman"]
        assert split.labels.tolist() == [0, 0, 0]
        assert len(class_copies.stored(split)) == 3


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["gender:man", "gender:woman", "toxic:thief"], None),
        (["man", "woman"], None),
        (["gender:woman", "gender:man"], "for the objective gender 'woman' as number 0, the card 'man'"),
        (["gender:man", "gender:woman", "gender:other"], "for the objective gender 3 names, the card 2"),
    ],
)
def test_names_of_a_copy_are_those_that_are_asked(tmp_path: Path, lines: list[str], says: str | None) -> None:
    fields: dict[str, Any] = {
        "kind": "attributes",
        "columns": {"values": ["age", "gender"], "group": {"gender": {"names": ["man", "woman"]}}},
        "classes": None,
        "templates": None,
        "objectives": {"gender": {"label": "gender", "classes": ["man", "woman"], "templates": ["a {c}"]}},
        "protocols": {"groups": {"objective": "gender"}},
    }
    hosted_groups.write(tmp_path, None, [[3, 0], [4, 1]], lines)
    if says is None:
        assert opened(tmp_path, **fields).groupings["gender"].tolist() == ["man", "woman"]
    else:
        assert says in message(tmp_path, **fields)


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ({"label": "sex"}, "unknown column of columns.group"),
        ({"classes": ["man", "girl"]}, 'columns.group.gender has the names man, woman, but no "girl"'),
        ({"counts": ["man"]}, "give exactly one of label, counts"),
        ({"label": None}, "give exactly one of label, counts"),
        ({"label": None, "counts": ["boy"]}, 'counts names the unknown class "boy"'),
        ({"means": {"boy": "man"}}, 'means names the unknown class "boy"'),
        ({"templates": ["a face"]}, "templates needs a list of prompts with {c}"),
        ({"classes": ["man", "man"]}, "classes needs at least 2 names"),
    ],
)
def test_what_objectives_cannot_say(objective: dict[str, Any], says: str) -> None:
    gender = {"label": "gender", "classes": ["man", "woman"], "templates": ["a {c}"]} | objective
    fields = {
        "title": "d", "source": {"local": True}, "splits": {"test": {"name": "test"}}, "kind": "attributes",
        "columns": {"group": {"gender": {"names": ["man", "woman"]}}}, "protocols": {"groups": {}},
        "objectives": {"gender": gender},
    }  # fmt: skip
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - all of them say more
        TaskCard.model_validate(fields)
    assert says in str(caught.value)


def test_what_a_set_of_attributes_needs() -> None:
    gender = {"label": "gender", "classes": ["man", "woman"], "templates": ["a {c}"]}
    fields: dict[str, Any] = {
        "title": "d", "source": {"local": True}, "splits": {"test": {"name": "test"}}, "kind": "attributes",
        "columns": {"group": {"gender": {"names": ["man", "woman"]}}}, "protocols": {"groups": {}},
        "objectives": {"gender": gender},
    }  # fmt: skip
    TaskCard.model_validate(fields)
    for changes, says in (
        ({"objectives": {}}, 'missing key "objectives"'),
        ({"classes": ["a", "b"]}, "attributes has no classes"),
        ({"kind": "single-label", "classes": ["a", "b"], "templates": {"default": ["{c}"]}, "prompts_source": "t"},
         "single-label has no objectives"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            TaskCard.model_validate(fields | changes)
