"""Copies of one small set of referring expressions in each layout, and its card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import small

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Expressions, Split

#: images of 9 × 8 px; the third has no expression in the split
NAMES = [f"COCO_train2014_{number:012d}.jpg" for number in (139, 285, 632)]
#: image, ref id, box (x, y, width, height), sentences
REFS: list[tuple[int, int, list[float], list[str]]] = [
    (0, 11, [1.0, 2.0, 3.5, 4.0], ["left cat", "the cat"]),
    (1, 12, [0.0, 0.0, 9.3, 8.0], ["all of it"]),
    (0, 13, [5.0, 1.0, 2.0, 2.0], ["a mouse"]),
]
TEXTS = ("left cat", "the cat", "a mouse", "all of it")
BOXES: list[list[float]] = [
    [1, 2, 4.5, 6],
    [1, 2, 4.5, 6],
    [5, 1, 7, 3],
    [0, 0, 9, 8],
]  # the last clipped to the image


def entry(**changes: Any) -> Entry[TaskCard]:
    fields: dict[str, Any] = {
        "title": "Refer",
        "source": {"local": True},
        "splits": {"val": {"name": "refcoco_unc_val"}, "testA": {"name": "refcoco_unc_testA"}},
        "kind": "expressions",
        "protocols": {"ground": {"split": "val"}},
    }
    return Entry("refcoco", TaskCard.model_validate(fields | changes), Path("tasks/refcoco.yaml"))


def open_val(root: Path, role: str = "val", **changes: Any) -> Split:
    return open_split(entry(**changes), role, DataPaths({"refcoco": root}, ()))


def of(split: Split) -> Expressions:
    assert split.expressions is not None
    return split.expressions


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(small.jpeg(number))


def sentences(texts: list[str], first: int) -> list[dict[str, Any]]:
    return [
        {"raw": f"{t.upper()}!", "sent": t, "sent_id": first + k, "tokens": t.split()}
        for k, t in enumerate(texts)
    ]


def refs() -> list[dict[str, Any]]:
    made = [
        {
            "ref_id": ref,
            "ann_id": 100 + ref,
            "image_id": int(NAMES[image][-16:-4]),
            "file_name": NAMES[image].replace(".jpg", f"_{ref}.jpg"),
            "split": "val",
            "category_id": 1,
            "sent_ids": [],
            "sentences": sentences(texts, 10 * ref),
        }
        for image, ref, _, texts in REFS
    ]
    return [
        *made,
        made[0] | {"ref_id": 99, "ann_id": 199, "split": "testA", "sentences": sentences(["x"], 990)},
    ]


def write_refer(root: Path, found: Any = None, images: str = "train2014") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    boxes = {100 + ref: (image, box) for image, ref, box, _ in REFS} | {199: (2, [1, 1, 2, 2])}
    instances = {
        "images": [{"id": int(n[-16:-4]), "file_name": n, "height": 8, "width": 9} for n in NAMES],
        "annotations": [
            {
                "id": key,
                "image_id": int(NAMES[i][-16:-4]),
                "bbox": box,
                "segmentation": [[1, 2, 3]],
                "area": 3,
            }
            for key, (i, box) in boxes.items()
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "instances.json").write_text(json.dumps(instances))
    (root / "refs(unc).json").write_text(json.dumps(refs() if found is None else found))
    write_images(root / images)
    return root


def plain() -> list[dict[str, Any]]:
    return [
        {
            "file_name": NAMES[image],
            "expression": text,
            "bbox_xyxy": [box[0], box[1], box[0] + box[2], box[1] + box[3]],
        }
        for image, _, box, texts in REFS
        for text in texts
    ]


def write_plain(root: Path, found: Any = None, name: str = "referring_expressions_val.json") -> Path:
    write_images(root / "images")
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / name).write_text(json.dumps(plain() if found is None else found))
    return root


def write_table(
    root: Path, rows: list[dict[str, Any]], name: str = "refcoco_unc_val-00000-of-00001.parquet"
) -> Path:
    (root / "data").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "data" / name)
    return root


def image_rows() -> list[dict[str, Any]]:
    """As jxu124/refcoco-benchmark: one row an image."""
    rows = []
    for number in (0, 1):
        of_image = [r for r in REFS if r[0] == number]
        rows.append(
            {
                "ref_list": [
                    {
                        "ann_info": {"bbox": box, "id": 100 + ref, "segmentation": [[1.0, 2.0]]},
                        "ref_info": {"ref_id": ref, "sentences": sentences(texts, 10 * ref), "split": "val"},
                    }
                    for _, ref, box, texts in of_image
                ],
                "image_info": {"file_name": NAMES[number], "height": 8, "width": 9},
                "image": {"bytes": small.jpeg(number), "path": None},
            }
        )
    return rows


def object_rows() -> list[dict[str, Any]]:
    """As lmms-lab/RefCOCO: one row an object, its image in every row."""
    return [
        {
            "question_id": str(ref),
            "image": {"bytes": small.jpeg(image), "path": None},
            "question": "Which region?",
            "answer": texts,
            "segmentation": [1.0, 2.0],
            "bbox": box,
            "iscrowd": 0,
            "file_name": NAMES[image].replace(".jpg", f"_{number}.jpg"),
        }
        for number, (image, ref, box, texts) in enumerate(REFS)
    ]


def path_rows() -> list[dict[str, Any]]:
    """As jxu124/refcoco: one row an object, images elsewhere; `bbox` has been corners and sizes."""
    return [
        ref
        | {
            "raw_anns": json.dumps({"bbox": box}),
            "image_path": f"coco/train2014/{NAMES[image]}",
            "bbox": [7.0, 7.0, 7.0, 7.0],
        }
        for ref, (image, _, box, _) in zip(refs(), [*REFS, REFS[0]], strict=True)
    ]


def write_paths(root: Path) -> Path:
    write_images(root / "train2014")
    return write_table(root, path_rows(), "validation-0.parquet")


FORMS: dict[str, Callable[[Path], Path]] = {
    "refer": write_refer,
    "refer, images beside": lambda root: write_refer(root, images="../images/mscoco/images/train2014"),
    "plain": write_plain,
    "one row an image": lambda root: write_table(root, image_rows()),
    "one row an object": lambda root: write_table(root, object_rows()),
    "images elsewhere": write_paths,
}
