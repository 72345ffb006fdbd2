"""Small copies of sets of items to choose among, in exactly the hub's forms: parquet tables, and WinoGAViL's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import small
from choice_copies import BOTH, FIRST, Expected, put, table

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def image(number: int) -> dict[str, Any]:
    """A picture of its own, as `datasets` writes it."""
    return {"bytes": small.picture(number), "path": f"{number}.png"}


def write(path: Path, columns: Mapping[str, Sequence[Any]], types: Mapping[str, Any], group: int = 2) -> None:
    """A table in row groups of `group`, with the types that are not plain."""
    arrays = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays), path, row_group_size=group)


# ------------------------------------------------------------------ Winoground

TAGS = ("Object", "Relation", "Object")


def write_winoground(root: Path) -> Path:
    columns: dict[str, Any] = {
        "id": [0, 1, 2],
        "image_0": [image(0), image(2), image(4)],
        "image_1": [image(1), image(3), image(0)],  # of the first item again
        "caption_0": ["an old person kisses a young person", "a tree smashed a car", "اب 树, “quoted” "],
        "caption_1": ["a young person kisses an old person", "a car smashed a tree", "树 اب, “quoted” "],
        "tag": ["Adjective-Age", "Noun", "Noun"],
        "secondary_tag": ["", "Morpheme-Level", ""],
        "num_main_preds": [1, 1, 2],
        "collapsed_tag": list(TAGS),
    }
    write(root / "data/test-00000-of-00001.parquet", columns, {"image_0": IMAGE, "image_1": IMAGE})
    return root


def winoground_items() -> list[Expected]:
    return [
        (
            "0000000",
            ["0000000/0", "0000000/1"],
            ["an old person kisses a young person", "a young person kisses an old person"],
            BOTH,
            "Object",
        ),
        (
            "0000001",
            ["0000001/0", "0000001/1"],
            ["a tree smashed a car", "a car smashed a tree"],
            BOTH,
            "Relation",
        ),
        (
            "0000002",
            ["0000002/0", "0000000/0"],
            ["اب 树, “quoted” ", "树 اب, “quoted” "],
            BOTH,
            "Object",
        ),
    ]


def write_colorswap(root: Path) -> Path:
    columns: dict[str, Any] = {
        "id": [0, 1],
        "image_1": [image(0), image(2)],
        "image_2": [image(1), image(3)],
        "caption_1": ["someone with a red shirt and blue pants", "a green cup on a white plate"],
        "caption_2": ["someone with a blue shirt and red pants", "a white cup on a green plate"],
        "image_source": ["midjourney", "dalle3"],
        "caption_source": ["human", "gpt"],
    }
    write(root / "data/test-00000-of-00001.parquet", columns, {"image_1": IMAGE, "image_2": IMAGE})
    return root


def colorswap_items() -> list[Expected]:
    texts = (
        ["someone with a red shirt and blue pants", "someone with a blue shirt and red pants"],
        ["a green cup on a white plate", "a white cup on a green plate"],
    )
    return [
        (f"000000{row}", [f"000000{row}/0", f"000000{row}/1"], of, BOTH, "") for row, of in enumerate(texts)
    ]


# ------------------------------------------------------------------------- ARO


def write_aro_relation(root: Path) -> Path:
    """Two files; the second item shows the box of the first, the third another box of the same image."""
    box = pa.struct([(side, pa.float32()) for side in "xywh"])
    sides = [(1, 2, 4, 3), (1, 2, 4, 3), (0, 0, 6, 6), (0, 0, 8, 8)]
    columns: dict[str, Any] = {
        "image": [image(0), image(0), image(0), image(1)],
        "true_caption": [
            "the dog is on the mat",
            "the dog is near the mat",
            "the man holds the hat",
            "a on b",
        ],
        "false_caption": [
            "the mat is on the dog",
            "the mat is near the dog",
            "the hat holds the man",
            "b on a",
        ],
        "relation_name": ["on", "near", "holding", "on"],
        "bbox": [dict(zip("xywh", map(float, of), strict=True)) for of in sides],
    }
    for number, rows in enumerate((slice(0, 3), slice(3, 4))):
        part = {name: values[rows] for name, values in columns.items()}
        write(root / f"data/test-{number:05d}-of-00002.parquet", part, {"image": IMAGE, "bbox": box})
    return root


def aro_relation_items() -> list[Expected]:
    return [
        ("0000000", ["0000000"], ["the dog is on the mat", "the mat is on the dog"], FIRST, "on"),
        ("0000001", ["0000000"], ["the dog is near the mat", "the mat is near the dog"], FIRST, "near"),
        ("0000002", ["0000002"], ["the man holds the hat", "the hat holds the man"], FIRST, "holding"),
        ("0000003", ["0000003"], ["a on b", "b on a"], FIRST, "on"),
    ]


def write_aro_attribution(root: Path) -> Path:
    columns: dict[str, Any] = {
        "image": [image(0), image(1)],
        "true_caption": ["the white dog and the black cat", "the tall tree and the small car"],
        "false_caption": ["the black dog and the white cat", "the small tree and the tall car"],
        "attributes": [["white", "black"], ["tall", "small"]],
        "bbox": [{"x": 0.0, "y": 0.0, "w": 4.0, "h": 4.0}] * 2,
    }
    write(root / "data/test-00000-of-00001.parquet", columns, {"image": IMAGE})
    return root


def aro_attribution_items() -> list[Expected]:
    texts = (
        ["the white dog and the black cat", "the black dog and the white cat"],
        ["the tall tree and the small car", "the small tree and the tall car"],
    )
    return [
        (f"000000{row}", [f"000000{row}"], of, FIRST, part)
        for row, (of, part) in enumerate(zip(texts, ("white_black", "tall_small"), strict=True))
    ]


def orders(row: int) -> list[str]:
    """A caption and four orders of its words; of row 1 the second is the caption itself."""
    words = f"a cat sits in box {row}".split()
    turned = [" ".join(words[turn:] + words[:turn]) for turn in range(1, 5)]
    return [" ".join(words), *([" ".join(words), *turned[1:]] if row == 1 else turned)]


def write_aro_order(root: Path) -> Path:
    """Four captions of two images."""
    names = ["correct_caption", *(f"hard_text_{n}" for n in range(1, 5))]
    columns: dict[str, Any] = {"images": [image(row // 2) for row in range(4)]}
    columns |= {name: [orders(row)[n] for row in range(4)] for n, name in enumerate(names)}
    write(root / "data/test-00000-of-00001.parquet", columns, {"images": IMAGE})
    return root


def aro_order_items() -> list[Expected]:
    return [(f"000000{row}", [f"000000{row // 2 * 2}"], orders(row), FIRST, "") for row in range(4)]


# ------------------------------------------------------------------ SugarCrepe


def write_sugarcrepe_fmt(root: Path) -> Path:
    columns: dict[str, Any] = {
        "images": [image(0), image(1), image(0)],
        "caption": ["A dog in a car.", "Two hens.", "A dog is seen."],
        "negative_caption": ["A cat in a car.", "Three hens.", "A cow is seen."],
    }
    write(root / "data/train-00000-of-00001.parquet", columns, {"images": IMAGE})
    return root


def sugarcrepe_fmt_items() -> list[Expected]:
    return [
        ("0000000", ["0000000"], ["A dog in a car.", "A cat in a car."], FIRST, ""),
        ("0000001", ["0000001"], ["Two hens.", "Three hens."], FIRST, ""),
        ("0000002", ["0000000"], ["A dog is seen.", "A cow is seen."], FIRST, ""),
    ]


# ------------------------------------------------------------------- ImageCoDe


def write_imagecode(root: Path) -> Path:
    """Three queries of two sets of ten images; the third query has the first's set, as copies of its own."""
    corpus = [f"{query}-{place}" for query in range(3) for place in range(10)]
    shown = [*range(10), *range(10, 20), *range(10)]
    write(
        root / "corpus-00000-of-00001.parquet",
        {"id": corpus, "modality": ["image"] * 30, "image": [image(number) for number in shown]},
        {"image": IMAGE},
        group=7,
    )
    write(
        root / "query-00000-of-00001.parquet",
        {
            "id": ["q0", "q1", "q2"],
            "modality": ["text"] * 3,
            "text": ["the hand is up", "no one looks at us", "a foot"],
        },
        {},
    )
    scores = [int(place == right) for right in (3, 0, 9) for place in range(10)]
    answers = {"query-id": [f"q{n}" for n in range(3) for _ in range(10)], "corpus-id": corpus}
    write(
        root / "qrels-00000-of-00001.parquet",
        {**answers, "score": scores},
        {"score": pa.int8()},
        group=30,
    )
    return root


def imagecode_items() -> list[Expected]:
    found = []
    for number, (text, right) in enumerate((("the hand is up", 3), ("no one looks at us", 0), ("a foot", 9))):
        first = 0 if number == 2 else 10 * number
        order = [right, *(place for place in range(10) if place != right)]
        found.append((f"q{number}", [f"{first + place:07d}" for place in order], [text], FIRST, ""))
    return found


# ------------------------------------------------------------------- WinoGAViL

GAMES: tuple[tuple[str, list[str], list[str]], ...] = (
    ("Owl", ["moon", "night", "car", "book", "tree"], ["moon", "night"]),
    ("pogonophile", ["bison", "shelter", "beard", "flea", "cattle", "moon"], ["bison", "beard"]),
    ("ant's", [f"thing{n}" for n in range(9)] + ["moon"], ["thing0", "thing8", "moon"]),
    ("Über", [f"thing{n}" for n in range(12)], ["thing3", "thing4"]),
)
CANDIDATES = list(dict.fromkeys(name for _, names, _ in GAMES for name in names))
CUES = ("An owl", "A pogonophile", "An ant's", "A über")


def write_winogavil(root: Path, dump: Callable[[Any], str] = json.dumps) -> Path:
    heading = [
        *("ID", "cue", "candidates", "associations", "score_fool_the_ai", "num_associations"),
        *("num_candidates", "solvers_jaccard_mean", "solvers_jaccard_std"),
    ]
    rows = [
        (300 + n, cue, dump(names), dump(right), 80, len(right), len(names), 1.0, 0.0)
        for n, (cue, names, right) in enumerate(GAMES)
    ]
    pictures = {f"winogavil_images/{name}.jpg": small.picture(n) for n, name in enumerate(CANDIDATES)}
    return put(root, {"winogavil_dataset.csv": table(heading, rows), **pictures})


def winogavil_items() -> list[Expected]:
    return [
        (
            str(300 + number),
            [f"winogavil_images/{name}.jpg" for name in names],
            [CUES[number]],
            [(place, 0) for place, name in enumerate(names) if name in right],
            "",
        )
        for number, (_, names, right) in enumerate(GAMES)
    ]


def write_winogavil_tables(root: Path) -> Path:
    columns: dict[str, Any] = {
        "candidates": [names for _, names, _ in GAMES],
        "candidate_images": [
            [{"bytes": small.picture(CANDIDATES.index(name)), "path": None} for name in names]
            for _, names, _ in GAMES
        ],
        "cue": [cue for cue, _, _ in GAMES],
        "associations": [right for _, _, right in GAMES],
        "ID": [300 + number for number in range(len(GAMES))],
    }
    write(root / "test-00000-of-00001.parquet", columns, {"candidate_images": pa.list_(IMAGE)})
    return root


def winogavil_table_items() -> list[Expected]:
    seen: dict[str, str] = {}
    found = []
    for row, (_, names, right) in enumerate(GAMES):
        for place, name in enumerate(names):
            seen.setdefault(name, f"{row:07d}/{place}")
        places = [(place, 0) for place, name in enumerate(names) if name in right]
        found.append((f"{row:07d}", [seen[name] for name in names], [CUES[row]], places, ""))
    return found


# ------------------------------------------------------------------------ all


@dataclass(frozen=True)
class Copy:
    """A copy of the data set of a shipped card: what writes it, its items, and the task that is run on it."""

    dataset: str
    write: Callable[[Path], Path]
    items: Callable[[], list[Expected]]
    variant: str = ""


COPIES = {
    "winoground": Copy("winoground", write_winoground, winoground_items),
    "colorswap": Copy("colorswap", write_colorswap, colorswap_items),
    "aro-vg-relation": Copy("aro-vg-relation", write_aro_relation, aro_relation_items),
    "aro-vg-attribution": Copy("aro-vg-attribution", write_aro_attribution, aro_attribution_items),
    "aro-coco-order": Copy("aro-coco-order", write_aro_order, aro_order_items),
    "aro-flickr-order": Copy("aro-flickr-order", write_aro_order, aro_order_items),
    "sugarcrepe": Copy("sugarcrepe", write_sugarcrepe_fmt, sugarcrepe_fmt_items, "@micro"),
    "imagecode": Copy("imagecode", write_imagecode, imagecode_items),
    "winogavil": Copy("winogavil", write_winogavil, winogavil_items),
    "winogavil-tables": Copy("winogavil", write_winogavil_tables, winogavil_table_items),
}


def entry(dataset: str) -> Entry[TaskCard]:
    """The shipped card, without the number of items, which a small copy has not."""
    shipped = Catalog().dataset(dataset)
    splits = {role: spec.model_copy(update={"rows": None}) for role, spec in shipped.card.splits.items()}
    return Entry(dataset, shipped.card.model_copy(update={"splits": splits}), shipped.path)


def open_copy(name: str, root: Path) -> Split:
    dataset = COPIES[name].dataset
    return open_split(entry(dataset), "test", DataPaths({dataset: root}, ()))
