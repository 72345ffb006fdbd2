"""Small copies of sets of items to choose among, each in exactly the form that its authors give it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import small
from numpy.typing import NDArray

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split

#: id, images as ids of rows, texts, right, part
Expected = tuple[str, list[str], list[str], list[tuple[int, int]], str]
FIRST = [(0, 0)]
BOTH = [(0, 0), (1, 1)]


def put(root: Path, files: Mapping[str, Any]) -> Path:
    """Write bytes, texts, and anything else as JSON; returns `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, bytes | str):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def pictures(names: Iterable[str]) -> dict[str, bytes]:
    """Name → a picture of its own."""
    return {name: small.picture(number) for number, name in enumerate(dict.fromkeys(names))}


def table(heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """CSV as pandas writes it."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([heading, *rows])
    return out.getvalue()


# ------------------------------------------------------------------ SugarCrepe

SUGARCREPE = ("add_att", "add_obj", "replace_att", "replace_obj", "replace_rel", "swap_att", "swap_obj")


def sugarcrepe() -> dict[str, Any]:
    """Seven parts of two items each; the numbers have gaps, and one image is in all of them."""
    return {
        f"data/{part}.json": {
            key: {
                "filename": f"{image:012d}.jpg",
                "caption": f"A {part} is right, {key}. ",
                "negative_caption": f"A {part} is wrong, {key}.",
            }
            for key, image in (("0", 139), ("7", 200 + number))
        }
        for number, part in enumerate(SUGARCREPE)
    }


def write_sugarcrepe(root: Path, folder: str = "val2017") -> Path:
    images = pictures(f"{folder}/{i:012d}.jpg" for i in (139, *range(200, 207)))
    unrefined = {f"data_unrefined/{part}.json": {"0": {"not": "read"}} for part in SUGARCREPE}
    return put(root, {**sugarcrepe(), **unrefined, **images})


def sugarcrepe_items(folder: str = "val2017") -> list[Expected]:
    return [
        (
            f"{part}/{key}".replace("_", "-"),
            [f"{folder}/{image:012d}.jpg"],
            [f"A {part} is right, {key}. ", f"A {part} is wrong, {key}."],
            FIRST,
            part.replace("_", "-"),
        )
        for number, part in enumerate(SUGARCREPE)
        for key, image in (("0", 139), ("7", 200 + number))
    ]


def sugarcrepe_pp() -> dict[str, Any]:
    return {
        f"data/{part}.json": [
            {
                "id": number,
                "filename": f"{139 + number:012d}.jpg",
                "caption": f"{part}, {number}",
                "caption2": f"again {part}, {number}",
                "negative_caption": f"not {part}, {number}",
            }
            for number in (0, 4)
        ]
        for part in SUGARCREPE[2:]
    }


def write_sugarcrepe_pp(root: Path) -> Path:
    return put(root, sugarcrepe_pp() | pictures(f"images/val2017/{139 + n:012d}.jpg" for n in (0, 4)))


def sugarcrepe_pp_items() -> list[Expected]:
    return [
        (
            f"{part.replace('_', '-')}/{number}",
            [f"images/val2017/{139 + number:012d}.jpg"],
            [f"{part}, {number}", f"again {part}, {number}", f"not {part}, {number}"],
            [(0, 0), (0, 1)],
            part.replace("_", "-"),
        )
        for part in SUGARCREPE[2:]
        for number in (0, 4)
    ]


# ----------------------------------------------------------------------- VALSE

#: part → image file, and the folder where its data set keeps it
VALSE = {
    "existence": ("v7w_2352150.jpg", "visual7w/images"),
    "plurals": ("000000001111.jpg", "val2017"),
    "counting-hard": ("v7w_2352151.jpg", "visual7w/images"),
    "counting-small-quant": ("v7w_2352150.jpg", "visual7w/images"),
    "counting-adversarial": ("v7w_2352152.jpg", "visual7w/images"),
    "relations": ("000000001112.jpg", "val2017"),
    "action-replacement": ("exercising_255.jpg", "swig"),
    "actant-swap": ("exercising_255.jpg", "swig"),
    "coreference-standard": ("COCO_train2014_000000000009.jpg", "train2014"),
    "coreference-hard": ("VisualDialog_val2018_000000000010.jpg", "VisualDialog_val2018"),
    "foil-it": ("COCO_val2014_000000000011.jpg", "val2014"),
}


def valse() -> dict[str, Any]:
    """Three items a part, of which annotators agreed on the first and the last."""
    return {
        f"data/{part}.json": {
            f"{part}_{number}": {
                "dataset": "as the folder",
                "original_split": "test",
                "image_file": image,
                "caption": f"{part} {number}",
                "foil": f"no {part} {number}",
                "mturk": {"foil": 3 - agreed, "caption": agreed, "other": 0},
            }
            for number, agreed in enumerate((3, 1, 2))
        }
        for part, (image, _) in VALSE.items()
    }


def write_valse(root: Path) -> Path:
    return put(root, valse() | pictures(f"{folder}/{image}" for image, folder in VALSE.values()))


def valse_items() -> list[Expected]:
    return [
        (f"{part}/{part}_{n}", [f"{folder}/{image}"], [f"{part} {n}", f"no {part} {n}"], FIRST, part)
        for part, (image, folder) in VALSE.items()
        for n in (0, 2)
    ]


# ------------------------------------------------------------------------- ARO


def aro(kind: str = "relation") -> list[dict[str, Any]]:
    """Four items: two boxes of one image, one of them twice, and one of another image."""
    boxes = [("1.jpg", 1, 2, 5, 4), ("2.jpg", 0, 0, 8, 8), ("1.jpg", 1, 2, 5, 4), ("1.jpg", 0, 1, 3, 3)]
    names = ["on", "behind", "on", "behind"]
    made = []
    for number, (image, x, y, w, h) in enumerate(boxes):
        entry: dict[str, Any] = {
            "image_id": number,
            "image_path": image,
            "bbox_x": x,
            "bbox_y": y,
            "bbox_w": w,
            "bbox_h": h,
            "true_caption": f"the cat is {names[number]} the mat {number}",
            "false_caption": f"the mat is {names[number]} the cat {number}",
        }
        entry |= (
            {"relation_name": names[number]} if kind == "relation" else {"attributes": [names[number], "old"]}
        )
        made.append(entry)
    return made


def write_aro(root: Path) -> Path:
    both = {f"visual_genome_{kind}.json": aro(kind[:8]) for kind in ("relation", "attribution")}
    return put(root, both | pictures(["images/1.jpg", "images/2.jpg"]))


def aro_items(attributes: bool = False) -> list[Expected]:
    return [
        (
            str(number),
            [f"images/{e['image_path']}#{e['bbox_x']},{e['bbox_y']},"
             f"{e['bbox_x'] + e['bbox_w']},{e['bbox_y'] + e['bbox_h']}"],
            [e["true_caption"], e["false_caption"]],
            FIRST,
            f"{e['relation_name']}_old" if attributes else e["relation_name"],
        )
        for number, e in enumerate(aro())
    ]  # fmt: skip


# ------------------------------------------------------------- pairs of images

MMVP = ("Camera Perspective", "Color")


def write_mmvp(root: Path) -> Path:
    """Two types of two pairs each."""
    kinds = [MMVP[0]] * 4 + [MMVP[1]] * 4
    rows = [(number, kind, f'a dog, "{number}"') for number, kind in enumerate(kinds, 1)]
    images = pictures(f"MLLM_VLM Images/{kind}/{number}.jpg" for number, kind, _ in rows)
    return put(root, {"Questions.csv": table(["Question ID", "Type", "Statement"], rows)} | images)


def mmvp_items() -> list[Expected]:
    return [
        (
            str(one),
            [f"MLLM_VLM Images/{kind}/{n}.jpg" for n in (one, one + 1)],
            [f'a photo of a dog, "{n}"' for n in (one, one + 1)],
            BOTH,
            kind,
        )
        for one, kind in ((1, MMVP[0]), (3, MMVP[0]), (5, MMVP[1]), (7, MMVP[1]))
    ]


_COLA = "https://cs-people.bu.edu/array/data/vg_gqa_images"


def cola() -> list[list[str]]:
    return [
        [f"{_COLA}/2414605.jpg", "red cat and blue hat", f"{_COLA}/7.jpg?x=1", "blue cat and red hat"],
        [f"{_COLA}/7.jpg", "old dog and new log", f"{_COLA}/9.jpg", "new dog and old log"],
    ]


def write_cola(root: Path) -> Path:
    images = pictures(f"images/{number}.jpg" for number in (2414605, 7, 9))
    return put(root, {"data/COLA_multiobjects_matching_benchmark.json": cola()} | images)


def cola_items() -> list[Expected]:
    names = [["images/2414605.jpg", "images/7.jpg"], ["images/7.jpg", "images/9.jpg"]]
    return [(str(n), names[n], [one, two], BOTH, "") for n, (_, one, _, two) in enumerate(cola())]


def eqben() -> list[dict[str, str]]:
    return [
        {"image0": "eqbenag/a/1.png", "image1": "eqbenag/a/2.png", "caption0": "one", "caption1": "two"},
        {
            "image0": "eqbenyoucook2/v/3.npy",
            "image1": "eqbenyoucook2/v/4.npy",
            "caption0": "a raw egg",
            "caption1": "a boiled egg",
        },
    ]


def frame(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A frame of YouCook2: blue, green, red."""
    return np.random.default_rng(number).integers(0, 256, (6, 7, 3)).astype(np.uint8)


def array(values: np.ndarray[Any, Any]) -> bytes:
    out = io.BytesIO()
    np.save(out, values)
    return out.getvalue()


def write_eqben(root: Path, name: str = "eqben_subset_10percent_final", folder: str = "image_subset") -> Path:
    images = pictures(f"{folder}/eqbenag/a/{number}.png" for number in (1, 2))
    frames = {f"{folder}/eqbenyoucook2/v/{number}.npy": array(frame(number)) for number in (3, 4)}
    return put(root, {f"{name}.json": eqben()} | images | frames)


def eqben_items(folder: str = "image_subset") -> list[Expected]:
    return [
        (
            str(number),
            [f"{folder}/{entry['image0']}", f"{folder}/{entry['image1']}"],
            [entry["caption0"], entry["caption1"]],
            BOTH,
            entry["image0"].partition("/")[0],
        )
        for number, entry in enumerate(eqben())
    ]


SVO = ("sentence", "pos_triplet", "neg_triplet", "pos_url", "neg_url", "pos_image_id", "neg_image_id")


def svo_probes() -> str:
    """Four rows: one a part, and one of which an image is not to be had."""
    truths = {"subject": (True, False, False), "verb": (False, True, False), "object": (False, False, True)}
    rows = [
        (f"A {part} does it.", "a,b,c", "d,b,c", "http://x/1", "http://x/2", n, n + 1, *truths[part])
        for n, part in enumerate([*truths, "verb"])
    ]
    return table([*SVO, "subj_neg", "verb_neg", "obj_neg"], rows)


def write_svo_probes(root: Path) -> Path:
    return put(root, {"svo_probes.csv": svo_probes()} | pictures(f"images/{n}.jpg" for n in range(4)))


def svo_items() -> list[Expected]:
    return [
        (str(n), [f"images/{n}.jpg", f"images/{n + 1}.jpg"], [f"A {part} does it."], FIRST, part)
        for n, part in enumerate(["subject", "verb", "object"])
    ]


# ------------------------------------------------------ one image, several texts

_WHATSUP = {
    "controlled-a": ("controlled_images_dataset.json", "controlled_images"),
    "controlled-b": ("controlled_clevr_dataset.json", "controlled_clevr"),
    "coco-one": ("coco_qa_one_obj.json", "val2017"),
    "coco-two": ("coco_qa_two_obj.json", "val2017"),
    "gqa-one": ("vg_qa_one_obj.json", "vg_images"),
    "gqa-two": ("vg_qa_two_obj.json", "vg_images"),
}


def whatsup() -> dict[str, Any]:
    files: dict[str, Any] = {}
    for part, (file, folder) in _WHATSUP.items():
        if part.startswith("controlled"):
            files[file] = [
                {
                    "image_path": f"data/{folder}/{n}.jpeg",
                    "caption_options": [f"{part} {n} {k}" for k in "abcd"],
                }
                for n in range(2)
            ]
        else:
            files[file] = [[40 + n, f"{part} {n} right", f"{part} {n} wrong"] for n in range(2)]
    return files


def _whatsup_image(folder: str, number: int) -> str:
    if folder.startswith("controlled"):
        return f"{folder}/{number}.jpeg"
    return f"val2017/{40 + number:012d}.jpg" if folder == "val2017" else f"{folder}/{40 + number}.jpg"


def write_whatsup(root: Path) -> Path:
    images = [_whatsup_image(folder, n) for _, folder in _WHATSUP.values() for n in range(2)]
    return put(root, whatsup() | pictures(images))


def whatsup_items() -> list[Expected]:
    return [
        (
            f"{part}/{n}",
            [_whatsup_image(folder, n)],
            [f"{part} {n} {k}" for k in "abcd"]
            if part.startswith("controlled")
            else [f"{part} {n} right", f"{part} {n} wrong"],
            FIRST,
            part,
        )
        for part, (_, folder) in _WHATSUP.items()
        for n in range(2)
    ]


CREPE = [(kind, n) for kind in ("atom", "negate", "swap") for n in range(4, 13)]


def crepe_row(kind: str, n: int) -> tuple[Any, ...]:
    negatives = [f"a {kind} {n}", f'it\'s {kind}, "{n}"', f"[{kind}]"]
    return (0, f"a cat and {n}", str(negatives), 1, 2, 3, 4)


def write_crepe(root: Path) -> Path:
    heading = ["image_id", "caption", "hard_negs", "x", "y", "width", "height"]
    files = {
        f"prod_hard_negatives/{kind}/prod_vg_hard_negs_{kind}_complexity_{n}.csv": table(
            ["", *heading], [(number, 100 + number, *crepe_row(kind, n)[1:]) for number in range(2)]
        )
        for kind, n in CREPE
    }
    return put(root, files | pictures(["VG_100K/100.jpg", "VG_100K_2/101.jpg"]))


def crepe_items() -> list[Expected]:
    folders = ("VG_100K", "VG_100K_2")
    return [
        (
            f"{kind}-{n}/{number}",
            [f"{folders[number]}/{100 + number}.jpg#1,2,4,6"],
            [f"a cat and {n}", f"a {kind} {n}", f'it\'s {kind}, "{n}"', f"[{kind}]"],
            FIRST,
            f"{kind}-{n}",
        )
        for kind, n in CREPE
        for number in range(2)
    ]


_CHECKLIST = {
    "Attribute/vg/color": "VG_100K/2361911.jpg",
    "Object/Size/hake_size/hake_obj_small": "openimages/0030.jpg",
    "Relation/swig_action": "exercising_1.jpg",
}


def write_vl_checklist(root: Path) -> Path:
    files = {
        f"data/{part}.json": [[image, {"POS": [f"{part} on", "unread"], "NEG": [f"{part} under"]}]] * 2
        for part, image in _CHECKLIST.items()
    }
    roots = zip(("vg", "hake", "swig"), _CHECKLIST.values(), strict=True)
    return put(root, files | pictures(f"{above}/{image}" for above, image in roots))


def vl_checklist_items() -> list[Expected]:
    roots = zip(("vg", "hake", "swig"), _CHECKLIST.items(), strict=True)
    return [
        (f"{part}/{n}", [f"{above}/{image}"], [f"{part} on", f"{part} under"], FIRST, part)
        for above, (part, image) in roots
        for n in range(2)
    ]


_SPAR = ["filename", "world_name", "character_name", "character2_name", "character1_pos", "character_texture"]
#: the first animal, the second, where the first is, textures; and what is asked: right, wrong, part
SPAR: list[tuple[tuple[str, str, str, str, str], tuple[str, str, str] | None]] = [
    (("blank", "blank", "left", "Default", "Default"), None),
    (("Cat", "blank", "left", "Default", "Default"),
     ("a Cat on the left of the picture", "a Cat on the right of the picture", "one-left-right")),
    (("blank", "Cat", "bottom", "Default", "Default"),
     ("a Cat on the top of the picture", "a Cat on the bottom of the picture", "one-bottom-top")),
    (("Cat", "Dog", "left", "Default", "Default"),
     ("a Cat on the left and a Dog on the right of the picture",
      "a Dog on the left and a Cat on the right of the picture", "two-left-right")),
    (("Cat", "Dog", "bottom", "Default", "Default"),
     ("a Cat on the bottom and a Dog on the top of the picture",
      "a Dog on the bottom and a Cat on the top of the picture", "two-bottom-top")),
    (("Cat", "Cat", "left", "Default", "Default"), None),
    (("Cat", "Dog", "left", "Blue", "Red"),
     ("a Cat textured with Blue and a Dog textured with Red",
      "a Dog textured with Blue and a Cat textured with Red", "two-blue-red")),
    (("Cat", "Dog", "left", "Grass", "Stone"),
     ("a Cat textured with Grass and a Dog textured with Stone",
      "a Dog textured with Grass and a Cat textured with Stone", "two-grass-stone")),
    (("Cat", "blank", "left", "Blue", "Default"), None),
]  # fmt: skip


def write_pug_spar(root: Path) -> Path:
    rows = [(f"Desert/{n}.png", "Desert", *factors) for n, (factors, _) in enumerate(SPAR)]
    images = pictures(row[0] for row in rows)
    return put(root, {"labels.csv": table([*_SPAR, "character2_texture"], rows)} | images)


def pug_spar_items() -> list[Expected]:
    begins = "This is a photo of "
    return [
        (str(n), [f"Desert/{n}.png"], [begins + asked[0], begins + asked[1]], FIRST, asked[2])
        for n, (_, asked) in enumerate(SPAR)
        if asked is not None
    ]


def sdci() -> dict[str, Any]:
    """Entries of sDCI: one with two masks, of which one is large enough; and one without negatives."""
    negatives = {"basic": ["basic"], "layout": ["layout"], "swaps": ["swapped", "swapped again"]}
    scores = {"basic_0": 20.5, "layout_0": 30.5, "swaps_0": 10.0, "swaps_1": 30.5}

    def mask(number: int, left: int, side: int) -> dict[str, Any]:
        corners = {"topLeft": {"x": left, "y": 0}, "bottomRight": {"x": left + side, "y": side}}
        return {"idx": number, "bounds": corners, "mask_quality": 0, "label": "a", "caption": "b"}

    keys = ("base", "m-0-sc", "m-1-sc")
    whole = {
        "image": "sa_1.png",
        "short_caption": "short",
        "mask_data": {"0": mask(0, 40, 240), "1": mask(1, 0, 100)},
        "summaries": {"base": "all of it", "m-0-sc": ["a crop", "another"], "m-1-sc": "small"},
        "negatives": dict.fromkeys(keys, negatives),
        "clip_scores": dict.fromkeys(keys, scores),
    }
    return {
        "splits.json": {"train": ["sa_9.json"], "test": ["sa_1.json", "sa_2.json"]},
        "complete/sa_1.json": whole,
        "complete/sa_2.json": {key: value for key, value in whole.items() if key != "negatives"},
    }


def write_sdci(root: Path) -> Path:
    files = sdci() | {"photos/sa_1.png": small.picture(0, 300)}
    return put(root, {f"densely_captioned_images/{name}": content for name, content in files.items()})


def sdci_items() -> list[Expected]:
    crop = "photos/sa_1.png#4,-36,316,276"  # 36 px more on each side, to be cut where the image ends
    return [
        (f"sa_1/{key}/{kind}", [image], [right, wrong], FIRST, kind)
        for key, image, right in (("base", "photos/sa_1.png", "all of it"), ("m-0-sc", crop, "a crop"))
        for kind, wrong in (("swaps", "swapped"), ("hardest", "swapped again"))
    ]


@dataclass(frozen=True)
class Form:
    """A form: what writes a copy, what is in it, and the split's name where that says which file is meant."""

    write: Callable[[Path], Path]
    items: Callable[[], list[Expected]]
    split: str = "test"


#: id of the card → its form
FORMS = {
    "sugarcrepe": Form(write_sugarcrepe, sugarcrepe_items, "sugarcrepe"),
    "sugarcrepe-pp": Form(write_sugarcrepe_pp, sugarcrepe_pp_items, "sugarcrepe-pp"),
    "valse": Form(write_valse, valse_items, "valse"),
    "aro-vg-relation": Form(write_aro, aro_items, "visual_genome_relation"),
    "aro-vg-attribution": Form(write_aro, lambda: aro_items(True), "visual_genome_attribution"),
    "mmvp-vlm": Form(write_mmvp, mmvp_items, "mmvp-vlm"),
    "cola": Form(write_cola, cola_items, "cola"),
    "eqben": Form(write_eqben, eqben_items, "eqben_subset_10percent_final"),
    "svo-probes": Form(write_svo_probes, svo_items, "svo-probes"),
    "whatsup": Form(write_whatsup, whatsup_items, "whatsup"),
    "crepe": Form(write_crepe, crepe_items, "crepe"),
    "vl-checklist": Form(write_vl_checklist, vl_checklist_items, "vl-checklist"),
    "pug-spar": Form(write_pug_spar, pug_spar_items, "pug-spar"),
    "sdci": Form(write_sdci, sdci_items, "sdci-test"),
}


def entry(name: str, **changes: Any) -> Entry[TaskCard]:
    """A card of the form `name`, its counts left out."""
    fields: dict[str, Any] = {
        "title": name,
        "source": {"local": True},
        "splits": {"test": {"name": FORMS[name].split}},
        "kind": "choices",
        "protocols": {"pick": {}},
    }
    return Entry(name, TaskCard.model_validate(fields | changes), Path(f"tasks/{name}.yaml"))


def open_copy(name: str, root: Path, **changes: Any) -> Split:
    return open_split(entry(name, **changes), "test", DataPaths({name: root}, ()))


def seen(split: Split) -> list[Expected]:
    """The items of a split, images by their ids."""
    return [
        (c.id, [split.ids[row] for row in c.images], list(c.texts), list(c.right), c.part)
        for c in split.choices or ()
    ]


# ------------------------------------------------------------------ rows of features

Rows = NDArray[np.float64]
Vector = Callable[[str], Rows]


def drawn(seed: int) -> Vector:
    """A row for each name, as if drawn at random."""

    def row(name: str) -> Rows:
        digest = sum(ord(c) * (i + 1) for i, c in enumerate(name)) + 7919 * seed
        found: Rows = np.random.default_rng(digest).normal(size=8)
        return found / np.linalg.norm(found)

    return row
