"""Every set of items to choose among, from its shipped card and a small copy, measured from the command line."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import commandline
import numpy as np
import pytest
import small
from choice_copies import FORMS, Expected, Rows, Vector, drawn, open_copy, seen, write_eqben
from commandline import Run, mended
from embedded import npy

from clipbench.catalog import Catalog
from clipbench.records import store
from clipbench.records.record import Record

one_thread = small.one_thread
run = commandline.run


def cards_of(form: str, folder: Path) -> Path:
    """The shipped card, without the numbers of items that a small copy has not; returns `folder`."""
    text = Catalog().dataset(form).path.read_text()
    folder.mkdir(exist_ok=True)
    (folder / f"{form}.yaml").write_text(re.sub(r", rows: \d+|, least: \d+", "", text))
    return folder


def measured(run: Run, tmp_path: Path, form: str, model: str | Path, *more: str) -> Record:
    """The record of `<form>-pick` on the small copy."""
    results = tmp_path / "results" / ("".join(more) or "plain")
    done = run(
        *("eval", "--model", model, "--task", f"{form}-pick{''.join(more)}", "--precision", "fp32"),
        *("--cards", cards_of(form, tmp_path / "cards"), "--data", f"{form}={tmp_path / 'copy'}"),
        *("--results", results),
    )
    assert done.code == 0, done.err
    (stored,) = store.read_all(results)
    return stored.record


def given(tmp_path: Path, form: str, image: Vector, text: Vector) -> str:
    """A model whose rows of the copy's images and texts are told."""
    split = open_copy(form, tmp_path / "copy")
    texts = sorted({t for choice in split.choices or () for t in choice.texts})
    folder = tmp_path / "given"
    npy(folder / f"{form}/test.npy", np.stack([image(name) for name in split.ids]), list(split.ids))
    np.save(folder / "texts.npy", np.stack([text(t) for t in texts]))
    (folder / "texts.json").write_text(json.dumps(texts))
    return f"embeddings:{folder}"


@pytest.mark.parametrize("form", FORMS)
def test_the_whole_task_runs(form: str, run: Run, tmp_path: Path) -> None:
    FORMS[form].write(tmp_path / "copy")
    record = measured(run, tmp_path, form, small.write_run(tmp_path / "run"))
    assert record.primary in record.scores
    counted = [item for item in FORMS[form].items() if form != "sdci" or item[4] == "swaps"]
    assert record.evidence["items"] == len(counted) or record.primary.endswith("parts")


def test_the_small_set_of_eqben_runs(run: Run, tmp_path: Path) -> None:
    write_eqben(tmp_path / "copy", "all_select", "images")
    record = measured(run, tmp_path, "eqben-mini", small.write_run(tmp_path / "run"))
    assert (record.primary, record.evidence["items"]) == ("group_acc", 2)


# --------------------------------------------------------------- against a reference


def by_force(items: list[Expected], image: Vector, text: Vector) -> dict[str, list[float]]:
    """Winoground's three scores of each item, with loops and no ties."""
    found: dict[str, list[float]] = defaultdict(list)
    for _, images, texts, right, _ in items:
        s = [[float(image(i) @ text(t)) for t in texts] for i in images]
        pairs = set(right)
        own = [(i, t) for i in range(len(images)) for t in range(len(texts)) if (i, t) in pairs]
        by_text = all(s[i][t] > s[i][o] for i, t in own for o in range(len(texts)) if (i, o) not in pairs)
        by_image = all(s[i][t] > s[o][t] for i, t in own for o in range(len(images)) if (o, t) not in pairs)
        found["text_acc"].append(float(by_text))
        found["image_acc"].append(float(by_image))
        found["group_acc"].append(float(by_text and by_image))
    return found


@pytest.mark.parametrize("form", FORMS)
def test_scores_are_those_of_loops(form: str, run: Run, tmp_path: Path) -> None:
    FORMS[form].write(tmp_path / "copy")
    image, text = drawn(1), drawn(2)
    items = [
        item for item in seen(open_copy(form, tmp_path / "copy")) if form != "sdci" or item[4] == "swaps"
    ]
    record = measured(run, tmp_path, form, given(tmp_path, form, image, text))
    expected = by_force(items, image, text)
    measures = [name for name in expected if name in record.scores]
    assert measures
    for name in measures:
        values = expected[name]
        assert record.scores[name].value == pytest.approx(np.mean(values), abs=1e-12)
        of_part: dict[str, list[float]] = defaultdict(list)
        for item, value in zip(items, values, strict=True):
            of_part[item[4]].append(value)
        means = [np.mean(found) for found in of_part.values()]
        if f"{name}_mean_of_parts" in record.scores:
            assert record.scores[f"{name}_mean_of_parts"].value == pytest.approx(np.mean(means), abs=1e-12)


@pytest.mark.parametrize(
    ("form", "chance"),
    [
        ("sugarcrepe", 1 / 2),
        ("sugarcrepe-pp", 1 / 3),
        ("valse", 1 / 2),
        ("aro-vg-relation", 1 / 2),
        ("mmvp-vlm", 1 / 4),
        ("cola", 1 / 4),
        ("eqben", 1 / 6),
        ("svo-probes", 1 / 2),
        ("whatsup", (1 / 4 + 1 / 2 + 1 / 2) / 3),
        ("crepe", 1 / 4),
        ("vl-checklist", 1 / 2),
        ("pug-spar", 1 / 2),
        ("sdci", 1 / 2),
    ],
)
def test_a_model_that_tells_nothing_apart_scores_chance(
    form: str, chance: float, run: Run, tmp_path: Path
) -> None:
    FORMS[form].write(tmp_path / "copy")
    alike: Vector = lambda name: np.array([0.6, 0.8])  # noqa: E731
    model = given(tmp_path, form, alike, alike)
    record = measured(run, tmp_path, form, model)
    score = record.scores[record.primary]
    assert score.value == pytest.approx(chance)
    assert score.chance == pytest.approx(chance)
    strict = measured(run, tmp_path, form, model, "@strict")
    assert strict.scores[strict.primary].value == 0


# -------------------------------------------------------------------- worked by hand

RIGHT, WRONG, IMAGE = np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0.8, 0.6, 0])


def test_sugarcrepe_by_hand(run: Run, tmp_path: Path) -> None:
    """Right: both items of add_att, one of add_obj and of swap_att; a tie: one of swap_obj."""
    FORMS["sugarcrepe"].write(tmp_path / "copy")
    won = {"add_att is right, 0", "add_att is right, 7", "add_obj is right, 0", "swap_att is right, 7"}

    def text(caption: str) -> Rows:
        name = caption.removeprefix("A ").rstrip(". ")
        if "swap_obj" in name and name.endswith("0"):
            return RIGHT
        return (
            RIGHT if name in won or ("wrong" in name and name.replace("wrong", "right") not in won) else WRONG
        )

    model = given(tmp_path, "sugarcrepe", lambda name: IMAGE, text)
    scores = measured(run, tmp_path, "sugarcrepe", model).scores
    parts = [1, 0.5, 0, 0, 0, 0.5, 0.25]
    assert scores["text_acc"].value == pytest.approx((2 + 1 + 0 + 1 + 0.5) / 14)
    assert scores["text_acc_mean_of_parts"].value == pytest.approx(sum(parts) / 7)
    assert scores["text_acc_mean_of_groups"].value == pytest.approx((0.75 + 0 + 0.375) / 3)
    for variant, value in (("add-att", 1), ("add-obj", 0.5), ("replace-rel", 0), ("swap-obj", 0.25)):
        one = measured(run, tmp_path, "sugarcrepe", model, f"@{variant}")
        assert (one.primary, one.scores["text_acc"].value) == ("text_acc", value)
        assert one.scores["text_acc"].n == 2


def test_mmvp_by_hand(run: Run, tmp_path: Path) -> None:
    """Of the first type one pair is right and of the other one text picks the other's image; the second has none."""
    FORMS["mmvp-vlm"].write(tmp_path / "copy")
    axes: list[Rows] = list(np.eye(8))
    picks = {1: 1, 2: 2, 3: 3, 4: 3, 5: 6, 6: 5, 7: 8, 8: 8}

    def image(name: str) -> Rows:
        return axes[int(Path(name).stem) - 1]

    def text(statement: str) -> Rows:
        assert statement.startswith('a photo of a dog, "')
        return axes[picks[int(statement.split('"')[1])] - 1]

    record = measured(run, tmp_path, "mmvp-vlm", given(tmp_path, "mmvp-vlm", image, text))
    assert record.primary == "image_acc_mean_of_parts"
    assert record.scores["image_acc_mean_of_parts"].value == pytest.approx((1 / 2 + 0) / 2)
    assert record.scores["image_acc"].value == pytest.approx(1 / 4)


def test_sugarcrepe_plus_plus_by_hand(run: Run, tmp_path: Path) -> None:
    """The image prefers both right captions; of the captions alone the second right one is nearer to the wrong one."""
    FORMS["sugarcrepe-pp"].write(tmp_path / "copy")

    def text(caption: str) -> Rows:
        angle = 1.0 if caption.startswith("not") else 0.6 if caption.startswith("again") else 0.0
        return np.array([np.cos(angle), np.sin(angle)])

    model = given(tmp_path, "sugarcrepe-pp", lambda name: np.array([1.0, 0]), text)
    record = measured(run, tmp_path, "sugarcrepe-pp", model)
    assert record.scores["text_acc_mean_of_parts"].value == 1
    assert record.scores["text_only_acc"].value == 0
    assert measured(run, tmp_path, "sugarcrepe-pp", model, "@tot").primary == "text_only_acc_mean_of_parts"


def test_valse_averages_pieces_first(run: Run, tmp_path: Path) -> None:
    FORMS["valse"].write(tmp_path / "copy")
    won = ("existence", "counting-hard", "actant-swap", "coreference-hard", "coreference-standard")

    def text(caption: str) -> Rows:
        foil, part = caption.startswith("no "), caption.removeprefix("no ").split()[0]
        return RIGHT if foil != (part in won) else WRONG

    scores = measured(run, tmp_path, "valse", given(tmp_path, "valse", lambda name: IMAGE, text)).scores
    assert scores["text_acc_mean_of_parts"].value == pytest.approx(5 / 11)
    assert scores["text_acc_mean_of_groups"].value == pytest.approx((1 + 0 + 1 / 3 + 0 + 1 / 2 + 1 + 0) / 7)


# ------------------------------------------------------------------------- mistakes


def test_a_limit_takes_whole_items_and_says_where_none_fits(run: Run, tmp_path: Path) -> None:
    FORMS["cola"].write(tmp_path / "copy")
    common = [
        *("eval", "--model", small.write_run(tmp_path / "run"), "--task", "cola-pick", "--precision", "fp32"),
        *("--cards", cards_of("cola", tmp_path / "cards"), "--data", f"cola={tmp_path / 'copy'}"),
    ]
    done = run(*common, "--results", tmp_path / "two", "--limit", 2)
    assert done.code == 0, done.err
    (stored,) = store.read_all(tmp_path / "two")
    assert stored.record.evidence["items"] == 1
    done = run(*common, "--results", tmp_path / "one", "--limit", 1)
    mended(done, "cola: every item has more than 1 images", "raise --limit, or leave it out")


def test_a_copy_with_another_number_of_items_is_an_error(run: Run, tmp_path: Path) -> None:
    FORMS["sugarcrepe"].write(tmp_path / "copy")
    done = run(
        *("eval", "--model", small.write_run(tmp_path / "run"), "--task", "sugarcrepe-pick"),
        *("--data", f"sugarcrepe={tmp_path / 'copy'}", "--results", tmp_path / "results"),
    )
    mended(done, "14 items, the card says 7,511")


def test_a_check_of_a_copy_counts_items(run: Run, tmp_path: Path) -> None:
    FORMS["sugarcrepe"].write(tmp_path / "copy")
    cards = cards_of("sugarcrepe", tmp_path / "cards")
    card = cards / "sugarcrepe.yaml"
    for rows, code in ((14, 0), (15, 2)):
        card.write_text(
            re.sub(r'name: "sugarcrepe"[^}]*', f'name: "sugarcrepe", rows: {rows}', card.read_text())
        )
        done = run(
            "data", "check", "sugarcrepe", "--cards", cards, "--data", f"sugarcrepe={tmp_path / 'copy'}"
        )
        assert done.code == code, done
        assert ("14    14        –        8  well" in done.out) is (code == 0)
        assert ("14 items, the card says 15" in done.out) is (code == 2)


def test_without_a_copy_the_error_says_what_to_give(run: Run, tmp_path: Path) -> None:
    done = run(
        "eval", "--model", small.write_run(tmp_path / "run"), "--task", "valse-pick", "--results", tmp_path
    )
    mended(done, "valse has no public copy to fetch", "--data valse=<folder>")


@pytest.mark.parametrize(
    ("form", "items"),
    [("sugarcrepe", 7511), ("sugarcrepe-pp", 4757), ("mmvp-vlm", 135), ("cola", 210), ("valse", 7702)],
)
def test_counts_of_the_cards_are_those_that_were_counted(form: str, items: int) -> None:
    assert Catalog().dataset(form).card.splits["test"].rows == items


def test_attributes_with_few_items_do_not_count() -> None:
    params = Catalog().task("aro-vg-attribution-pick").params.canonical()
    assert (params["least"], params["primary"]) == (25, "text_acc_mean_of_parts")
