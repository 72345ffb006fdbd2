"""Items to choose among, in the files of their authors: every form is read as it stands, or refused in words."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
from choice_copies import (
    FORMS,
    SUGARCREPE,
    aro,
    array,
    cola,
    frame,
    open_copy,
    pictures,
    put,
    sdci,
    seen,
    sugarcrepe_items,
    svo_probes,
    table,
    write_eqben,
    write_sugarcrepe,
)
from PIL import Image

from clipbench.data.split import Subset
from clipbench.errors import DataError


def image_of(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_read_as_it_stands(form: str, tmp_path: Path) -> None:
    root = FORMS[form].write(tmp_path)
    split = open_copy(form, root)
    assert seen(split) == FORMS[form].items()
    assert (split.labels.tolist(), split.classes) == ([0] * len(split), ())
    assert len(set(split.ids)) == len(split)
    every = list(split.samples(np.arange(len(split))))
    assert [s.id for s in every] == list(split.ids)
    assert all(image_of(s.image).size > (0, 0) for s in every)
    last = np.array([len(split) - 1])
    assert [s.image for s in split.samples(last)] == [every[-1].image]
    assert open_copy(form, root).fingerprint == split.fingerprint


@pytest.mark.parametrize("form", FORMS)
def test_what_decides_the_items_is_in_the_fingerprint(form: str, tmp_path: Path) -> None:
    root = FORMS[form].write(tmp_path)
    before = open_copy(form, root).fingerprint
    for file in sorted(path for path in root.rglob("*") if path.suffix in (".json", ".csv")):
        if "unrefined" in str(file) or (form.startswith("aro") and form.rpartition("-")[2] not in file.stem):
            continue
        good = file.read_bytes()
        file.write_bytes(good + b"\n")
        assert open_copy(form, root).fingerprint != before, file
        file.write_bytes(good)


@pytest.mark.parametrize("form", sorted({*FORMS} - {"svo-probes"}))
def test_a_missing_image_is_an_error(form: str, tmp_path: Path) -> None:
    root = FORMS[form].write(tmp_path)
    name = open_copy(form, root).ids[0].partition("#")[0]
    next(path for path in root.rglob("*") if path.as_posix().endswith(name)).unlink()
    with pytest.raises(DataError, match=r"is not there; 1 of the \d+ images .* are missing\n.*looked for in"):
        open_copy(form, root)


@pytest.mark.parametrize("form", FORMS)
def test_the_card_counts_items(form: str, tmp_path: Path) -> None:
    root, count = FORMS[form].write(tmp_path), len(FORMS[form].items())
    name = FORMS[form].split
    assert open_copy(form, root, splits={"test": {"name": name, "rows": count}}).choices is not None
    with pytest.raises(DataError, match=rf"has {count} items, the card says {count + 1}"):
        open_copy(form, root, splits={"test": {"name": name, "rows": count + 1}})


def test_a_subset_keeps_the_items_of_which_it_has_all_images(tmp_path: Path) -> None:
    split = open_copy("cola", FORMS["cola"].write(tmp_path))
    few = Subset(split, np.array([1, 2]))
    assert seen(few) == FORMS["cola"].items()[1:]
    assert few.choices is not None
    assert few.choices[0].images == (0, 1)


# -------------------------------------------------------------------- what is seen


def test_images_that_parts_share_are_one_row(tmp_path: Path) -> None:
    split = open_copy("sugarcrepe", write_sugarcrepe(tmp_path))
    assert len(split) == 8
    assert split.choices is not None
    assert [c.images[0] for c in split.choices][::2] == [0] * 7


@pytest.mark.parametrize("folder", ["images/val2017", "coco/images/val2017", "images", "."])
def test_coco_may_lie_in_several_folders(folder: str, tmp_path: Path) -> None:
    split = open_copy("sugarcrepe", write_sugarcrepe(tmp_path, folder))
    assert seen(split) == sugarcrepe_items(folder) or folder == "."
    assert len(split) == 8


def test_a_box_is_cut_out_and_black_lies_beyond_the_image(tmp_path: Path) -> None:
    entries = aro()[:2]
    entries[1] |= {"bbox_x": 6.4, "bbox_y": -2, "bbox_w": 4.2, "bbox_h": 5}
    root = put(
        tmp_path, {"visual_genome_relation.json": entries} | pictures(["images/1.jpg", "images/2.jpg"])
    )
    split = open_copy("aro-vg-relation", root)
    one, two = (image_of(s.image) for s in split.samples(np.arange(2)))
    whole = [np.asarray(image_of(small.picture(number))) for number in range(2)]
    assert np.array_equal(np.asarray(one), whole[0][2:6, 1:6])
    assert two.size == (5, 5)
    pixels = np.asarray(two)
    assert np.array_equal(pixels[2:, :2], whole[1][0:3, 6:8])
    assert not pixels[:2].any()
    assert not pixels[:, 2:].any()


def test_a_box_of_an_image_that_is_none_is_no_image(tmp_path: Path) -> None:
    files = {"visual_genome_relation.json": aro(), "images/1.jpg": b"\xff\xd8broken"}
    split = open_copy("aro-vg-relation", put(tmp_path, files | pictures(["images/2.jpg"])))
    assert [bool(s.image) for s in split.samples(np.arange(3))] == [False, False, True]


def test_a_box_that_is_no_part_of_the_image_is_an_error(tmp_path: Path) -> None:
    for box in ({"bbox_x": 8}, {"bbox_y": -40}, {"bbox_w": 4000, "bbox_h": 4000}):
        entries = [aro()[0] | box]
        root = put(tmp_path, {"visual_genome_relation.json": entries} | pictures(["images/1.jpg"]))
        split = open_copy("aro-vg-relation", root)
        with pytest.raises(DataError, match=r"has 8 × 8 pixels, of which the box .* is no part"):
            list(split.samples(np.array([0])))


def test_a_crop_with_its_margin_ends_where_the_image_does(tmp_path: Path) -> None:
    split = open_copy("sdci", FORMS["sdci"].write(tmp_path))
    whole, crop = (np.asarray(image_of(s.image)) for s in split.samples(np.arange(2)))
    assert np.array_equal(crop, whole[0:276, 4:300])


def test_frames_that_are_arrays_are_images_of_the_same_pixels(tmp_path: Path) -> None:
    root = write_eqben(tmp_path)
    broken = root / "image_subset/eqbenyoucook2/v/4.npy"
    split = open_copy("eqben", root)
    rows = {s.id: s.image for s in split.samples(np.arange(4))}
    pixels = np.asarray(image_of(rows["image_subset/eqbenyoucook2/v/3.npy"]))
    assert np.array_equal(pixels, frame(3)[:, :, ::-1])
    for bad in (b"", b"\x93NUMPY\x01\x00", array(np.zeros((2, 2))), array(np.array([{}], dtype=object))):
        broken.write_bytes(bad)
        rows = {s.id: s.image for s in open_copy("eqben", root).samples(np.arange(4))}
        assert rows["image_subset/eqbenyoucook2/v/4.npy"] == b""


def test_nothing_of_an_array_is_run(tmp_path: Path) -> None:
    root = write_eqben(tmp_path)
    harm = np.array([small.Caller(tmp_path / "witness")], dtype=object)
    (root / "image_subset/eqbenyoucook2/v/4.npy").write_bytes(array(harm))
    split = open_copy("eqben", root)
    assert [bool(s.image) for s in split.samples(np.arange(4))] == [True, True, True, False]
    assert not (tmp_path / "witness").exists()


def test_the_small_set_of_eqben_has_its_own_name(tmp_path: Path) -> None:
    root = write_eqben(tmp_path, "all_select", "images")
    assert seen(open_copy("eqben", root, splits={"test": {"name": "all_select"}}))[1][4] == "eqbenyoucook2"
    with pytest.raises(DataError, match=r"no test data in"):
        open_copy("eqben", root)


# ----------------------------------------------------------- what is left out


def left_out(form: str, root: Path) -> list[str]:
    return [str(note) for note in open_copy(form, root).notes]


def test_items_that_annotators_doubted_are_counted(tmp_path: Path) -> None:
    (note,) = left_out("valse", FORMS["valse"].write(tmp_path))
    assert note.startswith("11 items left out: fewer than two of three annotators chose the caption")


def test_rows_without_images_are_counted(tmp_path: Path) -> None:
    (note,) = left_out("svo-probes", FORMS["svo-probes"].write(tmp_path))
    assert note.startswith("1 rows left out: one of their images")
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    with pytest.raises(DataError, match=r"no row of .*svo_probes\.csv has both its images in"):
        open_copy("svo-probes", tmp_path)


def test_images_of_other_questions_are_counted(tmp_path: Path) -> None:
    (note,) = left_out("pug-spar", FORMS["pug-spar"].write(tmp_path))
    assert note.startswith("3 images left out: no caption with one thing exchanged")


def test_images_without_negatives_are_counted(tmp_path: Path) -> None:
    (note,) = left_out("sdci", FORMS["sdci"].write(tmp_path))
    assert note == "1 images left out: their entry lacks a summary, a negative or its score (sa_2.json)"


def lacking(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda entry: entry | changes


@pytest.mark.parametrize(
    "change",
    [
        {"summaries": {"base": "all of it"}},
        {"negatives": {"base": {"swaps": ["x"]}}},
        {"negatives": {"base": {"swaps": ["x"]}}, "mask_data": {}},
        {"negatives": {"base": {"swaps": []}, "m-0-sc": {"swaps": ["x"]}}},
        {"clip_scores": {"base": {"swaps_0": 1}, "m-0-sc": {}}},
        {"clip_scores": None},
    ],
)
def test_an_entry_of_sdci_that_lacks_something_is_left_out_as_a_whole(
    change: dict[str, Any], tmp_path: Path
) -> None:
    files = sdci()
    files["complete/sa_2.json"] = files["complete/sa_1.json"] | change
    split = open_copy("sdci", put(tmp_path, files | {"photos/sa_1.png": small.picture(0, 300)}))
    assert len(split.choices or ()) == 4
    assert [note.count for note in split.notes] == [1]


# ---------------------------------------------------------------------- errors


def rewritten(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """What changes the content of a JSON file."""

    def write(root: Path) -> None:
        path = root / file
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return write


def moved(file: str, to: str | None) -> Callable[[Path], None]:
    def move(root: Path) -> None:
        if to is None:
            (root / file).unlink()
        else:
            (root / to).parent.mkdir(parents=True, exist_ok=True)
            (root / file).rename(root / to)

    return move


def written(file: str, content: bytes | str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        put(root, {file: content})

    return write


_SWAP = "data/swap_obj.json"
_LIST = "data/COLA_multiobjects_matching_benchmark.json"
_GENOME = "visual_genome_relation.json"
_CREPE = "prod_hard_negatives/atom/prod_vg_hard_negs_atom_complexity_4.csv"
_CREPE_HEADING = ["image_id", "caption", "hard_negs", "x", "y", "width", "height"]
_SVO_ROW = svo_probes().splitlines()[1]


def first(key: str, value: Any) -> Callable[[Any], Any]:
    """Set a field of the first entry; None takes it out."""

    def change(content: Any) -> Any:
        entry = content[next(iter(content))] if isinstance(content, dict) else content[0]
        if value is None:
            del entry[key]
        else:
            entry[key] = value
        return content

    return change


BROKEN: list[tuple[str, Callable[[Path], None], str]] = [
    ("sugarcrepe", moved(_SWAP, None), r"data has no swap_obj\.json\n.*all parts"),
    ("sugarcrepe", rewritten(_SWAP, first("caption", None)), r"swap_obj\.json: item 0 has no caption \(text\)"),
    ("sugarcrepe", rewritten(_SWAP, first("caption", 7)), r"item 0 has the caption 7, expected a text"),
    ("sugarcrepe", rewritten(_SWAP, first("negative_caption", " ")), r"negative_caption ' ', expected a text"),
    ("sugarcrepe", rewritten(_SWAP, first("filename", "../../x.jpg")), r"'\.\./\.\./x\.jpg' leads out of"),
    ("sugarcrepe", rewritten(_SWAP, first("filename", "/etc/x.jpg")), r"'/etc/x\.jpg' leads out of"),
    ("sugarcrepe", rewritten(_SWAP, lambda c: c | {"7": ["x"]}), r"item 7 is \['x'\], expected a mapping"),
    ("sugarcrepe", rewritten(_SWAP, lambda c: list(c.values())), r"mixes SugarCrepe\+\+ \(swap_obj\.json\) and"),
    ("sugarcrepe", rewritten(_SWAP, lambda c: "x"), r"swap_obj\.json: it is 'x', expected a mapping"),
    ("sugarcrepe", written(_SWAP, '{"0": {}, "0": {}}'), r"cannot be read as JSON: the key '0' is there twice"),
    ("sugarcrepe", written(_SWAP, "{"), r"swap_obj\.json cannot be read as JSON"),
    ("sugarcrepe", written("swap_obj.json", "{}"), r"and its data/ both hold files of parts"),
    ("sugarcrepe-pp", rewritten(_SWAP, lambda c: [c[0], c[0]]), r"swap-obj/0 is there twice"),
    ("sugarcrepe-pp", rewritten(_SWAP, first("caption2", None)), r"item 0 has no caption2"),
    ("sugarcrepe-pp", rewritten(_SWAP, first("id", [1])), r"has the id \[1\], expected a whole number or a text"),
    ("valse", moved("data/plurals.json", None), r"data has no plurals\.json"),
    ("valse", rewritten("data/plurals.json", first("mturk", None)), r"item plurals_0 has no mturk"),
    ("valse", rewritten("data/plurals.json", first("mturk", {"foil": 1})), r"plurals_0, mturk has no caption"),
    ("valse", rewritten("data/plurals.json", first("mturk", {"caption": "3"})), r"caption '3', expected a whole"),
    ("valse", rewritten("data/plurals.json", first("foil", ["x"])), r"has the foil \['x'\], expected a text"),
    ("aro-vg-relation", rewritten(_GENOME, first("bbox_w", 0)), r"item 0 has the box .*, expected left, top"),
    ("aro-vg-relation", rewritten(_GENOME, first("bbox_w", float("nan"))), r"bbox_w nan, expected a number"),
    ("aro-vg-relation", rewritten(_GENOME, first("bbox_h", True)), r"bbox_h True, expected a number"),
    ("aro-vg-relation", rewritten(_GENOME, first("bbox_x", None)), r"item 0 has no bbox_x"),
    ("aro-vg-relation", rewritten(_GENOME, lambda c: {"0": c[0]}), r"is no list of items, so it is no file of ARO"),
    ("aro-vg-relation", rewritten(_GENOME, lambda c: []), r"is no list of items"),
    ("aro-vg-relation", written(_GENOME, '[{"bbox_x": 1, "bbox_x": 2}]'), r"the key 'bbox_x' is there twice"),
    ("aro-vg-attribution",
     rewritten("visual_genome_attribution.json", first("attributes", ["one"])), r"a list of 2 or more texts"),
    ("mmvp-vlm", written("Questions.csv", "id,type,statement\n"), r"has no rows below its heading"),
    ("mmvp-vlm", written("Questions.csv", "a,b,c\n1,Color,x\n"), r":2: expected a pair .* found 1 \(Color"),
    ("mmvp-vlm", written("Questions.csv", "a,b,c\n2,Color,x\n3,Color,y\n"), r":2: expected a pair of one type, an odd"),
    ("mmvp-vlm", written("Questions.csv", "a,b,c\n1,Color,x\n2,Text,y\n"), r"found 1 \(Color\) and 2 \(Text\)"),
    ("mmvp-vlm", written("Questions.csv", "a,b,c\n1,Color\n2,Color,y\n"), r":2: expected an id, a type and a stat"),
    ("mmvp-vlm", written("Questions.csv", 'a,b,c\n1,Color,"x\n'), r"Questions\.csv:\d: unexpected end of data"),
    ("mmvp-vlm", written("Questions.csv", b"a,b,c\n1,Color,\xe9\n"), r"not UTF-8"),
    ("cola", rewritten(_LIST, lambda c: [c[0][:3]]), r"item 0 is .*, expected a list of image 1, caption 1, image 2"),
    ("cola", rewritten(_LIST, lambda c: [["http://[x/1.jpg", "a", "http://x/2.jpg", "b"]]), r"expected the address"),
    ("cola", rewritten(_LIST, lambda c: [["http://x/", "a", "http://x/2.jpg", "b"]]), r"expected the address of an"),
    ("eqben", written("eqben_subset_10percent_final.json", '[{"image0": "a"}]'), r"item 0 has no image1"),
    ("svo-probes", written("svo_probes.csv", "sentence\nx\n"), r"has no column 'pos_image_id', or has it twice"),
    ("svo-probes", written("svo_probes.csv", svo_probes() + "a,b\n"), r"csv:6: 2 fields, the heading has 10"),
    ("svo-probes", written("svo_probes.csv", svo_probes() + _SVO_ROW.replace("False", "True", 1) + "\n"),
     r"line 6 differs in subject and verb, expected one of"),
    ("svo-probes", written("svo_probes.csv", svo_probes().replace("False", "No", 1)), r"verb_neg 'no', expected True"),
    ("whatsup", moved("coco_qa_two_obj.json", None), r"has no coco_qa_two_obj\.json"),
    ("whatsup", rewritten("coco_qa_two_obj.json", lambda c: [[1, "a"]]), r"expected a list of image, right caption"),
    ("whatsup", rewritten("controlled_clevr_dataset.json", first("caption_options", ["a"])), r"a list of 2 or more"),
    ("crepe", moved(_CREPE, None), r"has no prod_vg_hard_negs_atom_complexity_4\.csv\n"),
    *(
        ("crepe", written(_CREPE, table(_CREPE_HEADING, [(100, "a", text, 1, 2, 3, 4)])),
         r"line 2 has the hard_negs .*, expected a list of texts")
        for text in ("[]", "['a' 'b']", "['a', 3]", "['a'", "__import__('os')", "['\\x']", "[''.join('a')]")
    ),
    ("vl-checklist", moved("data/Attribute/vg/color.json", "data/color.json"), r"no JSON file in Attribute/"),
    ("vl-checklist", rewritten("data/Relation/swig_action.json", lambda c: [["x.jpg", {"POS": ["a"]}]]),
     r"item 0, captions has no NEG"),
    ("vl-checklist", rewritten("data/Relation/swig_action.json", lambda c: [["x.jpg", {"POS": ["a"], "NEG": []}]]),
     r"has the NEG \[\], expected a list of 1 or more texts"),
    ("pug-spar", written("labels.csv", "filename\nx\n"), r"has no column 'character_name'"),
    ("pug-spar", written("labels.csv", ""), r"has no column 'filename'"),
    ("sdci", written("densely_captioned_images/splits.json", '{"train": ["x"]}'), r'unknown split "test"'),
    ("sdci", written("densely_captioned_images/splits.json", '{"test": ["../x"]}'), r"which leads out of complete/"),
    ("sdci", written("densely_captioned_images/complete/sa_1.json", "[]"), r"json: it is \[\], expected a mapping"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "change", "words"), BROKEN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_copy_that_is_wrong_says_what_and_where(
    form: str, change: Callable[[Path], None], words: str, tmp_path: Path
) -> None:
    root = FORMS[form].write(tmp_path)
    change(root)
    with pytest.raises(DataError, match=words):
        open_copy(form, root)


def test_the_unrefined_items_are_never_taken_for_the_set(tmp_path: Path) -> None:
    root = write_sugarcrepe(tmp_path)
    with pytest.raises(DataError, match=r"data_unrefined holds the unrefined items, which are another set"):
        open_copy("sugarcrepe", root / "data_unrefined")
    for part in SUGARCREPE:
        (root / f"data/{part}.json").unlink()
    with pytest.raises(DataError, match=r"no test data in"):
        open_copy("sugarcrepe", root)


def test_the_card_says_which_of_several_sets_in_a_folder_is_meant(tmp_path: Path) -> None:
    root = write_sugarcrepe(FORMS["cola"].write(FORMS["valse"].write(tmp_path)))
    for form in ("cola", "valse", "sugarcrepe"):
        assert len(open_copy(form, root).choices or ()) == len(FORMS[form].items())


@pytest.mark.parametrize("form", FORMS)
def test_the_folder_of_another_set_is_an_error_that_says_what_is_expected(form: str, tmp_path: Path) -> None:
    other = "cola" if form != "cola" else "valse"
    root = FORMS[other].write(tmp_path)
    with pytest.raises(DataError, match=r"no test data in \S+ \(it holds .*\)\n *expected [^\n]{10,140}$"):
        open_copy(form, root)


def test_sugarcrepe_and_its_successor_are_never_taken_for_each_other(tmp_path: Path) -> None:
    for form, other in (("sugarcrepe", "sugarcrepe-pp"), ("sugarcrepe-pp", "sugarcrepe")):
        root = FORMS[other].write(tmp_path / form)
        with pytest.raises(
            DataError, match=f"data holds {other}, the card asks for {form}\n.*the other set's"
        ):
            open_copy(form, root)


def test_nothing_is_fetched_from_addresses(tmp_path: Path) -> None:
    put(tmp_path, {_LIST: cola()})
    with pytest.raises(DataError, match=r"2414605\.jpg is not there; 3 of the 3 images"):
        open_copy("cola", tmp_path)
