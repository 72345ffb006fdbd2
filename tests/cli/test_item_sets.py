"""Sets of items in the hub's tables, from their shipped cards and small copies, measured from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import commandline
import numpy as np
import pytest
import small
from choice_copies import Expected, Rows, Vector, drawn, seen
from commandline import Done, Run, mended
from embedded import npy
from item_copies import COPIES, open_copy

from clipbench.catalog import Catalog
from clipbench.records import store
from clipbench.records.record import Record

one_thread = small.one_thread
run = commandline.run


def evaluated(run: Run, folder: Path, name: str, model: str | Path, *more: str, variant: str = "") -> Done:
    """`clipbench eval` of the task of a copy, with the shipped card but for its number of items."""
    of = COPIES[name]
    cards = folder / "cards"
    cards.mkdir(exist_ok=True)
    text = Catalog().dataset(of.dataset).path.read_text()
    (cards / f"{of.dataset}.yaml").write_text(re.sub(r", rows: \d+|, least: \d+", "", text))
    if not (folder / "copy").exists():
        of.write(folder / "copy")
    return run(
        *("eval", "--model", model, "--task", f"{of.dataset}-pick{variant or of.variant}"),
        *("--precision", "fp32", "--cards", cards, "--data", f"{of.dataset}={folder / 'copy'}", *more),
    )


def measured(
    run: Run, folder: Path, name: str, model: str | Path, results: str = "results", variant: str = ""
) -> Record:
    done = evaluated(run, folder, name, model, "--results", str(folder / results), variant=variant)
    assert done.code == 0, done.err
    (stored,) = store.read_all(folder / results)
    return stored.record


def given(folder: Path, name: str, image: Vector, text: Vector) -> str:
    """A model whose rows of the copy's images and texts are told."""
    if not (folder / "copy").exists():
        COPIES[name].write(folder / "copy")
    split = open_copy(name, folder / "copy")
    texts = sorted({t for choice in split.choices or () for t in choice.texts})
    model = folder / "given"
    npy(model / f"{COPIES[name].dataset}/test.npy", np.stack([image(n) for n in split.ids]), list(split.ids))
    np.save(model / "texts.npy", np.stack([text(t) for t in texts]))
    (model / "texts.json").write_text(json.dumps(texts))
    return f"embeddings:{model}"


def by_force(items: list[Expected], image: Vector, text: Vector) -> dict[str, float]:
    """The scores with loops, for items without ties."""
    found: dict[str, list[float]] = {}
    for _, images, texts, right, _ in items:
        s = [[float(image(i) @ text(t)) for t in texts] for i in images]
        own = set(right)
        wrong = [(i, t) for i in range(len(images)) for t in range(len(texts)) if (i, t) not in own]
        by_text = all(s[i][t] > s[j][u] for i, t in own for j, u in wrong if i == j)
        by_image = all(s[i][t] > s[j][u] for i, t in own for j, u in wrong if t == u)
        best = set(sorted(range(len(images)), key=lambda i: -s[i][0])[: len(own)])
        hits = len(best & {i for i, _ in own})
        of_item: dict[str, float] = {"text_acc": by_text, "image_acc": by_image}
        of_item["group_acc"] = by_text and by_image
        of_item["jaccard"] = hits / (2 * len(own) - hits)
        of_item |= {"jaccard_10-12": of_item["jaccard"]} if len(images) >= 10 else {}
        for key, value in of_item.items():
            found.setdefault(key, []).append(float(value))
    return {key: float(np.mean(values)) for key, values in found.items()}


#: measures of each copy, and what random scores give
CHANCE: dict[str, dict[str, float]] = {
    "winoground": {"text_acc": 1 / 4, "image_acc": 1 / 4, "group_acc": 1 / 6},
    "colorswap": {"text_acc": 1 / 4, "image_acc": 1 / 4, "group_acc": 1 / 6},
    "aro-vg-relation": {"text_acc": 1 / 2},
    "aro-vg-attribution": {"text_acc": 1 / 2},
    "aro-coco-order": {"text_acc": 1 / 5},
    "aro-flickr-order": {"text_acc": 1 / 5},
    "sugarcrepe": {"text_acc": 1 / 2},
    "imagecode": {"image_acc": 1 / 10},
}


def jaccard_by_chance(candidates: int, right: int) -> float:
    """By all choices of as many images."""
    from itertools import combinations

    every = [len(set(found) & set(range(right))) for found in combinations(range(candidates), right)]
    return float(np.mean([hits / (2 * right - hits) for hits in every]))


FEW, MANY = [(5, 2), (6, 2)], [(10, 3), (12, 2)]
for _name in ("winogavil", "winogavil-tables"):
    CHANCE[_name] = {
        "jaccard": float(np.mean([jaccard_by_chance(*of) for of in FEW + MANY])),
        "jaccard_10-12": float(np.mean([jaccard_by_chance(*of) for of in MANY])),
    }


@pytest.mark.parametrize("name", COPIES)
def test_scores_are_those_of_loops(name: str, run: Run, tmp_path: Path) -> None:
    image, text = drawn(1), drawn(2)
    record = measured(run, tmp_path, name, given(tmp_path, name, image, text))
    items = seen(open_copy(name, tmp_path / "copy"))
    assert record.evidence["items"] == len(items) == len(COPIES[name].items())
    if name in ("aro-coco-order", "aro-flickr-order"):  # of one item a wrong caption is the right one
        items = [item for item in items if len(set(item[2])) == 5]
        assert record.evidence["same_texts"] == {"items": 1, "examples": ["0000001"]}
        assert record.evidence["tied_items"] == 1
    else:
        assert record.evidence["tied_items"] == 0
        expected = by_force(items, image, text)
        for measure in CHANCE[name]:
            assert record.scores[measure].value == pytest.approx(expected[measure], abs=1e-12)


def test_a_caption_that_is_right_and_wrong_is_a_tie(run: Run, tmp_path: Path) -> None:
    """Its image prefers it to the three other orders: of the two that are alike each is first half of the time."""

    def text(words: str) -> Rows:
        return np.array([1.0, 0.0]) if words.startswith("a cat") else np.array([0.0, 1.0])

    record = measured(
        run, tmp_path, "aro-coco-order", given(tmp_path, "aro-coco-order", lambda _: np.array([1.0, 0]), text)
    )
    assert record.scores["text_acc"].value == pytest.approx((3 + 1 / 2) / 4)


@pytest.mark.parametrize("name", COPIES)
def test_a_model_that_tells_nothing_apart_scores_chance(name: str, run: Run, tmp_path: Path) -> None:
    alike: Vector = lambda _: np.array([0.6, 0.8])  # noqa: E731
    model = given(tmp_path, name, alike, alike)
    record = measured(run, tmp_path, name, model)
    for measure, chance in CHANCE[name].items():
        assert record.scores[measure].value == pytest.approx(chance)
        assert record.scores[measure].chance == pytest.approx(chance)
    assert record.evidence["tied_items"] == record.evidence["items"]
    if name == "sugarcrepe":  # this copy says no parts, of which @strict gives the mean
        return
    strict = measured(run, tmp_path, name, model, "strict", "@strict")
    assert {strict.scores[measure].value for measure in CHANCE[name]} == {0.0}


def test_argmax_gives_a_model_that_tells_nothing_apart_all(run: Run, tmp_path: Path) -> None:
    """As the peers do, which list the right caption first; of two images and captions it gives none."""
    alike: Vector = lambda _: np.array([0.6, 0.8])  # noqa: E731
    for name, expected in (("aro-coco-order", 1.0), ("imagecode", 1.0), ("winoground", 0.0)):
        (tmp_path / name).mkdir()
        model = given(tmp_path / name, name, alike, alike)
        record = measured(run, tmp_path / name, name, model, variant="@argmax")
        assert record.scores[record.primary].value == expected


def test_winoground_by_hand(run: Run, tmp_path: Path) -> None:
    """Item 0 is right in all; in 1 both images choose caption 1; of 2 both captions choose the image of item 0."""
    axes: Mapping[str, Rows] = {
        "0000000/0": np.array([1.0, 0, 0, 0]),
        "0000000/1": np.array([0, 1.0, 0, 0]),
        "0000001/0": np.array([0, 0, 0.6, 0.8]),
        "0000001/1": np.array([0, 0, 0, 1.0]),
        "0000002/0": np.array([0.6, 0.8, 0, 0]),
    }
    first, second = (item[2] for item in COPIES["winoground"].items()[:2])
    told = {
        first[0]: [1.0, 0, 0, 0],
        first[1]: [0, 1.0, 0, 0],
        second[0]: [0, 0, 1.0, 0],
        second[1]: [0, 0, 0, 1.0],
    }
    third = COPIES["winoground"].items()[2][2]
    told |= {third[0]: [1.0, 0, 0, 0], third[1]: [0.96, -0.28, 0, 0]}
    model = given(tmp_path, "winoground", lambda n: axes[n], lambda t: np.array(told[t]))
    record = measured(run, tmp_path, "winoground", model)
    # 1: s = [[.6, .8], [0, 1]]: image 0 chooses caption 1; caption 0 chooses image 0 (.6 > 0), 1 image 1 (1 > .8).
    # 2: s = [[.6, .352], [1, .96]]: image 0 is right, image 1 chooses caption 0; captions choose image 1.
    assert {name: record.scores[name].value for name in CHANCE["winoground"]} == pytest.approx(
        {"text_acc": 1 / 3, "image_acc": 2 / 3, "group_acc": 1 / 3}
    )
    parts: Any = record.evidence["parts"]
    of = {one["part"]: one["group_acc"]["value"] for one in parts}
    assert of == {"Object": 0.5, "Relation": 0}


def test_an_item_with_a_damaged_image_is_left_out_and_told(run: Run, tmp_path: Path) -> None:
    from item_copies import IMAGE, image, write

    good, bad = image(0), {"bytes": b"no image", "path": None}
    columns: dict[str, Any] = {
        "image_1": [good, image(2), image(4)],
        "image_2": [image(1), bad, {"bytes": None, "path": None}],
        "caption_1": ["a", "b", "c"],
        "caption_2": ["d", "e", "f"],
    }
    write(tmp_path / "copy/test.parquet", columns, {"image_1": IMAGE, "image_2": IMAGE})
    model = small.write_run(tmp_path / "run")
    done = evaluated(run, tmp_path, "colorswap", model, "--results", str(tmp_path / "results"))
    mended(done, "image 0000001/1 cannot be decoded", "--on-bad-image skip")
    skip = ("--on-bad-image", "skip", "--results", str(tmp_path / "results"))
    done = evaluated(run, tmp_path, "colorswap", model, *skip)
    assert done.code == 0, done.err
    (stored,) = store.read_all(tmp_path / "results")
    record = stored.record
    assert (record.evidence["items"], record.evidence["left_out"]) == (1, 2)
    assert "no-image" in {note.kind for note in record.notes}


def test_from_the_copy_to_report_compare_gate_check_and_page(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    results = tmp_path / "results"
    for seed in (0, 1):
        model = small.write_run(tmp_path / f"run{seed}", seed=seed)
        done = evaluated(run, tmp_path, "winoground", model, "--results", str(results))
        assert done.code == 0, done.err
    cards, data = tmp_path / "cards", f"winoground={tmp_path / 'copy'}"
    report = run("report", "--results", results, "--cards", cards)
    assert report.code == 0, report.err
    assert "winoground-pick" in report.said
    one, other = sorted(path for path in results.rglob("*.json") if "samples" not in path.name)[:2]
    compared = run("compare", tmp_path / "run0", tmp_path / "run1", "--results", results, "--cards", cards)
    assert compared.code == 0, compared.err
    assert "winoground-pick" in compared.said
    gate = run("gate", "--candidate", results, "--baseline", results, "--cards", cards)
    assert gate.code == 0, gate.said
    checked = run("data", "check", "winoground", "--cards", cards, "--data", data)
    assert checked.code == 0, checked.err
    assert "3 items" in checked.said or " 3 " in checked.out
    page = run("site", "--results", results, "--out", tmp_path / "site", "--cards", cards)
    assert page.code == 0, page.err
    assert "winoground" in (tmp_path / "site/index.html").read_text()
    assert one != other
    assert max(map(len, report.out.splitlines())) <= 80
