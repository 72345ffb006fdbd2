"""The grounding protocol on maps that are known, and the whole way on real photographs."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from fakes import FakeEncoder
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from clipbench import cli
from clipbench.cards.task import TaskCard
from clipbench.catalog import Catalog
from clipbench.data.decode import normalise, pixels
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Expressions, Sample, Split
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, DataError
from clipbench.evaluation import Options, Result, evaluate
from clipbench.metrics import boxes
from clipbench.models import families
from clipbench.models.saliency import SaliencyMaps, of_tower
from clipbench.models.weights.reading import read_state_dict
from clipbench.models.weights.resolve import resolve_source
from clipbench.protocols import _overlays
from clipbench.protocols.grounding import PROTOCOL, Params, run
from clipbench.records import store
from clipbench.records.record import same
from clipbench.report import dataframe, table

one_thread = small.one_thread
CARD = TaskCard.model_validate(
    {
        "title": "Things",
        "source": {"local": True},
        "splits": {"test": {"name": "test"}},
        "kind": "expressions",
        "protocols": {"ground": {}},
    }
)
FP32 = Runtime("cpu", "fp32")


class Given(Split):
    """Images without pixels, and expressions."""

    def __init__(
        self,
        image: Sequence[int],
        found: Sequence[Sequence[float]],
        candidates: Sequence[Sequence[Sequence[float]]] | None = None,
    ) -> None:
        self.dataset, self.role, self.fingerprint = "things", "test", "0" * 64
        self.ids = [f"{n}.jpg" for n in range(max(image) + 1)]
        self.labels, self.classes = np.zeros(len(self.ids), dtype=np.int64), ()
        self.expressions = Expressions(
            tuple(f"e{n}" for n in range(len(image))),
            tuple(f"thing {n}" for n in range(len(image))),
            np.array(image, dtype=np.int64),
            np.array(found, dtype=np.float64),
            None
            if candidates is None
            else tuple(np.array(c, dtype=float).reshape(-1, 4) for c in candidates),
        )

    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        raise AssertionError("no pixels")


class Maps(FakeEncoder):
    """Gives the maps [M, height, width] of an array; images in `bad` could not be decoded."""

    def __init__(self, maps: NDArray[np.float32], bad: Sequence[int] = ()) -> None:
        self.maps, self.bad = maps, bad

    def heat(
        self,
        split: Split,
        texts: Sequence[str],
        image: NDArray[np.int64],
        *,
        whole: bool = True,
        block: int | None = None,
    ) -> Iterator[SaliencyMaps]:
        height, width = self.maps.shape[1:]
        for sample in np.unique(image).tolist():
            if sample not in self.bad:
                own = np.flatnonzero(image == sample)
                maps = torch.from_numpy(self.maps[own])
                scores = np.zeros(len(own), dtype=np.float32)
                yield SaliencyMaps(sample, own, maps, scores, (width, height), (0, 0, width, height), "given")


def spots(*places: tuple[int, int], size: tuple[int, int] = (10, 8)) -> NDArray[np.float32]:
    """A map with 1 at each place (x, y), alone."""
    maps = np.zeros((len(places), size[1], size[0]), dtype=np.float32)
    for number, (x, y) in enumerate(places):
        maps[number, y, x] = 1
    return maps


# ------------------------------------------------------------------ the scores


def test_worked_out_by_hand() -> None:
    maps = spots((2, 3), (9, 7), (0, 0))
    maps[0, 5, 5] = 3  # a quarter of the heat at (2, 3), the peak at (5, 5)
    maps[2] = 0
    split = Given([0, 0, 2], [[2, 3, 3, 4], [5, 4, 10, 8], [0, 0, 2, 2]])
    outcome = run(CARD, {"test": split}, Maps(maps), Params(), seed=0)
    columns = {name: list(column) for name, column in outcome.samples.items()}
    assert PROTOCOL.texts is not None
    assert PROTOCOL.texts(CARD, {"test": split}, Params()) == list(dict.fromkeys(columns["expression"]))
    assert columns == {
        "id": ["e0", "e1", "e2"],
        "image": ["0.jpg", "0.jpg", "2.jpg"],
        "expression": ["thing 0", "thing 1", "thing 2"],
        "hit": [False, True, True],  # a map of zeros points at the first pixel
        "centre_hit": [False, True, False],  # of a map of 10 × 8 pixels the middle is in pixel (5, 4)
        "energy": [0.25, 1.0, 0.0],
        "x": [5, 9, 0],
        "y": [5, 7, 0],
    }
    point, heat = outcome.scores["pointing_game"], outcome.scores["heat_energy_in_box"]
    assert point.value == pytest.approx(2 / 3)
    assert point.n == 3
    assert point.chance == pytest.approx((1 + 20 + 4) / 80 / 3)
    assert heat.value == pytest.approx(1.25 / 3)
    assert heat.chance == point.chance
    assert "acc@iou0.5" not in outcome.scores
    centre = outcome.evidence.pop("centre_baseline")
    assert outcome.evidence == {"heat_maps": "given", "images": 2, "maps_of_zeros": 1}
    assert (centre["value"], centre["above"]) == pytest.approx((1 / 3, 1 / 3))
    assert centre["above_ci95"] == [
        0,
        1,
    ]  # an image where both fare alike, and one where only the model is right


def test_pointing_at_the_middle_is_the_baseline_and_no_score() -> None:
    """Of 40 images 30 have their object in the middle; the model finds those and 5 of the others."""
    middle, corner = [2, 2, 8, 7], [0, 0, 2, 2]
    split = Given(list(range(40)), [middle] * 30 + [corner] * 10)
    always = run(CARD, {"test": split}, Maps(spots(*[(5, 4)] * 40)), Params(), seed=0)
    assert always.scores["pointing_game"].value == 0.75
    assert always.evidence["centre_baseline"] == {"value": 0.75, "above": 0.0, "above_ci95": None}
    better = run(
        CARD, {"test": split}, Maps(spots(*[(5, 4)] * 30, *[(1, 1)] * 5, *[(9, 7)] * 5)), Params(), seed=0
    )
    centre = better.evidence["centre_baseline"]
    assert better.scores["pointing_game"].value == 0.875
    assert (centre["value"], centre["above"]) == (0.75, 0.125)
    low, high = centre["above_ci95"]
    spread = math.sqrt(0.125 * 0.875 / 40)
    assert (low, high) == pytest.approx((0.125 - 1.96 * spread, 0.125 + 1.96 * spread), abs=0.03)
    assert "centre" not in " ".join(better.scores)


def test_maps_of_noise_score_chance() -> None:
    rng = np.random.default_rng(0)
    count, width, height = 1500, 24, 18
    corners = np.sort(rng.uniform(size=(count, 2, 2)), axis=1) * [width, height]
    found = corners.reshape(count, 4)
    split = Given(np.repeat(np.arange(count // 3), 3).tolist(), found.tolist())
    maps = rng.random((count, height, width), dtype=np.float32)
    outcome = run(CARD, {"test": split}, Maps(maps), Params(), seed=0)
    areas = np.prod(found[:, 2:] - found[:, :2], axis=1) / (width * height)
    for score in outcome.scores.values():
        assert score.chance == pytest.approx(areas.mean(), rel=1e-9)
        low, high = score.ci95
        assert low < areas.mean() < high
    low, high = outcome.scores["pointing_game"].ci95
    assert high - low < 0.05


def test_detections_are_ranked_by_heat_for_their_size() -> None:
    maps = np.zeros((4, 8, 10), dtype=np.float32)
    maps[:, 2:6, 2:6] = 1
    right, wide, empty = [2, 2, 6, 6], [0, 0, 10, 8], [6, 6, 9, 8]
    candidates = [[wide, right, empty], [], [wide, empty]]
    split = Given([0, 0, 1, 2], [[2, 2, 6, 5], [7, 6, 9, 8], right, right], candidates)
    outcome = run(CARD, {"test": split}, Maps(maps), Params(primary="acc@iou0.5"), seed=0)
    score = outcome.scores["acc@iou0.5"]
    ious = [12 / 16, 0, 0, 16 / 80]  # without candidates there is no answer, which is a miss
    assert np.asarray(outcome.samples["iou"]).tolist() == pytest.approx(ious)
    assert score.value == 0.25
    assert score.chance == pytest.approx((1 / 3 + 1 / 3 + 0 + 0) / 4)
    assert outcome.evidence["without_candidates"] == 1


def test_an_overlap_of_one_half_is_found() -> None:
    """Boxes of 8 and of 4 pixels, one in the other; and of 8 and of 3.9."""
    candidates: list[list[list[float]]] = [[[0, 0, 4, 1]], [[0, 0, 3.9, 1]]]
    split = Given([0, 1], [[0, 0, 8, 1]] * 2, candidates)
    outcome = run(CARD, {"test": split}, Maps(spots((1, 0), (1, 0))), Params(primary="acc@iou0.5"), seed=0)
    assert np.asarray(outcome.samples["iou"]).tolist() == pytest.approx([0.5, 3.9 / 8])
    score = outcome.scores["acc@iou0.5"]
    assert (score.value, score.chance) == (0.5, 0.5)


def test_detections_are_needed_where_they_are_the_metric() -> None:
    split = Given([0], [[0, 0, 2, 2]])
    with pytest.raises(
        DataError, match=r"things: acc@iou0\.5 needs the boxes of a detector.*\n.*detections\.json"
    ):
        run(CARD, {"test": split}, Maps(spots((0, 0))), Params(primary="acc@iou0.5"), seed=0)


def test_images_that_could_not_be_decoded_are_left_out() -> None:
    split = Given([0, 1, 1, 2], [[0, 0, 1, 1]] * 4, [[[0, 0, 1, 1]]] * 3)
    maps = spots((0, 0), (5, 5), (5, 5), (0, 0))
    outcome = run(CARD, {"test": split}, Maps(maps, bad=[1]), Params(), seed=0)
    assert np.asarray(outcome.samples["id"]).tolist() == ["e0", "e3"]
    assert outcome.scores["pointing_game"].value == 1
    assert outcome.scores["acc@iou0.5"].value == 1
    with pytest.raises(DataError, match="none of the 3 images could be decoded"):
        run(CARD, {"test": split}, Maps(maps, bad=[0, 1, 2]), Params(), seed=0)


def test_expressions_of_an_image_are_resampled_together() -> None:
    """Ten equal expressions an image tell no more than one."""
    hits = np.arange(40) % 2 == 0
    one = Given(list(range(40)), [[0, 0, 1, 1]] * 40)
    ten = Given(np.repeat(np.arange(40), 10).tolist(), [[0, 0, 1, 1]] * 400)
    at = [(0, 0) if hit else (5, 5) for hit in hits]
    maps = spots(*at)
    first = run(CARD, {"test": one}, Maps(maps), Params(), seed=0).scores["pointing_game"]
    second = run(CARD, {"test": ten}, Maps(np.repeat(maps, 10, axis=0)), Params(), seed=0).scores[
        "pointing_game"
    ]
    assert second.n == 400
    assert first.ci95 == second.ci95
    assert first.ci95[1] - first.ci95[0] == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 40), rel=0.1)


@pytest.mark.parametrize(
    ("box", "pixel", "inside"),
    [
        ((1, 1, 2, 2), (1, 1), True),
        ((1.6, 1, 3, 2), (1, 1), False),
        ((1.5, 1.5, 3, 3), (1, 1), True),  # its centre is on the corner
        ((1, 1, 2, 2), (2, 1), False),
        ((1, 1, 2.5, 2), (2, 1), True),
    ],
)
def test_a_pixel_is_where_its_centre_is(box: tuple[float, ...], pixel: tuple[int, int], inside: bool) -> None:
    heat = spots(pixel)[0]
    assert boxes.contains(box, pixel) == inside
    assert boxes.energy(heat, box) == float(inside)


def test_energies_of_boxes_that_divide_an_image_add_up() -> None:
    rng = np.random.default_rng(0)
    heat = rng.random((8, 10)).astype(np.float32)
    for cut in rng.uniform(0, 10, 20):
        parts = [boxes.energy(heat, (0, 0, cut, 8)), boxes.energy(heat, (cut, 0, 10, 8))]
        assert sum(parts) == pytest.approx(1)


# -------------------------------------------------------------------- the card


def test_params_that_do_not_suit_the_card(tmp_path: Path) -> None:
    problem = PROTOCOL.misfit(CARD, Params(split="tset"))
    assert problem is not None
    assert problem.startswith('unknown split "tset"; did you mean "test"?')
    small.write_task(tmp_path, protocols={"zs": {}, "ground": {}})
    with pytest.raises(
        CardError, match=r"ground is for sets of kind expressions, this one is of kind single-label"
    ):
        Catalog([tmp_path]).task("animals-ground")
    assert Params(block=0).block == 0
    with pytest.raises(ValidationError, match=r"block\n.*greater than or equal to 0"):
        Params(block=-1)


def test_splits_of_refcoco_are_apart() -> None:
    catalog = Catalog()
    splits = {
        task: catalog.task(task).params.canonical()["split"]
        for task in (
            "refcoco-ground",
            "refcoco-ground@testA",
            "refcocoplus-ground@testB",
            "refcocog-ground@test",
        )
    }
    assert list(splits.values()) == ["val", "testA", "testB", "test"]
    assert catalog.task("refcoco-ground@crop").params.canonical()["view"] == "crop"


# --------------------------------------------------------------- the whole way


def photo(seed: int, size: tuple[int, int] = (48, 32)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def write_things(root: Path, count: int = 20, **spoilt: bytes) -> Path:
    """Photos of 48 × 32 and 32 × 48 px with 1 to 3 expressions each, in a folder; and a card `things`."""
    folder = root / "data" / "images"
    folder.mkdir(parents=True)
    listed = []
    for number in range(count):
        name = f"{number:02d}.png"
        size = (48, 32) if number % 2 else (32, 48)
        (folder / name).write_bytes(spoilt.get(f"n{number}", photo(number, size)))
        for k in range(1 + number % 3):
            corner = [4 * k, 3 * k, 4 * k + 15, 3 * k + 20]
            listed.append({"file_name": name, "expression": f"thing {number} {k}", "bbox_xyxy": corner})
    (root / "data" / "referring_expressions.json").write_text(json.dumps(listed))
    (root / "cards").mkdir()
    card = {k: CARD.canonical()[k] for k in ("title", "kind", "protocols")}
    card |= {"source": {"local": True}, "splits": {"test": {"name": "test"}}}
    (root / "cards" / "things.yaml").write_text(json.dumps(card))
    return root


def measure(root: Path, *tasks: str, model: str = "run", **options: Any) -> list[Result]:
    catalog = Catalog([root / "cards"])
    chosen = Options(FP32, DataPaths({"things": root / "data"}, ()), progress=False, **options)
    return list(
        evaluate([catalog.model(str(root / model))], catalog.tasks(tasks or ["things-ground"]), chosen)
    )


def test_scores_inside_are_cosines_of_the_ordinary_features(tmp_path: Path) -> None:
    write_things(tmp_path)
    small.write_run(tmp_path / "run", size=16)
    catalog = Catalog([tmp_path / "cards"])
    encoder = ModelEncoder(catalog.model(str(tmp_path / "run")), Runtime("cpu", "fp32", 3), progress=False)
    split = open_split(catalog.dataset("things"), "test", DataPaths({"things": tmp_path / "data"}, ()))
    found = split.expressions
    assert found is not None
    before = np.array(encoder.images(split))
    cosines = (before[found.image] * encoder.texts(list(found.texts))).sum(axis=1)
    heats = list(encoder.saliency.heat(split, found.texts, found.image, whole=False))
    assert [h.sample for h in heats] == list(range(20))
    assert np.concatenate([h.texts for h in heats]).tolist() == list(range(len(found.texts)))
    np.testing.assert_allclose(np.concatenate([h.scores for h in heats]), cosines, atol=1e-5)
    assert {h.size for h in heats} == {(48, 32), (32, 48)}
    assert {h.seen for h in heats} == {(8, 0, 40, 32), (0, 8, 32, 40)}
    assert {h.seen for h in encoder.saliency.heat(split, found.texts, found.image)} == {
        (0, 0, 48, 32),
        (0, 0, 32, 48),
    }
    # what is cached, and what would be encoded anew, is as before
    other = ModelEncoder(encoder.model, encoder.runtime, progress=False, root=tmp_path / "other")
    other.adapter = encoder.adapter
    np.testing.assert_array_equal(np.asarray(other.images(split)), before)


def test_a_record_of_grounding(tmp_path: Path) -> None:
    write_things(tmp_path)
    small.write_run(tmp_path / "run", size=16)
    first, again, crop = (
        measure(tmp_path, task)[0] for task in ("things-ground", "things-ground", "things-ground@crop")
    )
    assert first.record is not None
    assert again.record is not None
    assert crop.record is not None
    assert same(first.record, again.record)
    assert first.record.scores != crop.record.scores
    assert first.record.protocol.params == {
        "primary": "pointing_game", "split": "test", "view": "whole", "block": None,
    }  # fmt: skip
    assert first.record.evidence["heat_maps"] == "Grad-CAM on 0.blocks"
    centre = float(np.asarray(first.samples["centre_hit"]).mean())
    assert centre > 0
    row, other = dataframe.rows([store.Stored(Path(), first.record, "whole")])
    assert (row.metric, row.centre_baseline) == ("pointing_game", centre)
    assert other.centre_baseline is None
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table.record_table(first.record))
    shown = console.export_text()
    assert f"always pointing at the image's middle gets {100 * centre:.2f}; the pointing game is " in shown
    assert first.record.timing.images_encoded == 20
    assert first.record.timing.encode_images_s > 0
    assert first.record.encoder["plans"] == {"test:heat": "plain, fp32", "text:joint": "plain"}
    few = measure(tmp_path, limit=5)[0].record
    assert few is not None
    assert few.limit == 5
    assert few.timing.images_encoded == 5


def test_images_that_cannot_be_decoded_stop_or_are_named(tmp_path: Path) -> None:
    write_things(tmp_path, n3=b"no image", n8=photo(8)[:300])
    small.write_run(tmp_path / "run", size=16)
    (stopped,) = measure(tmp_path)
    assert stopped.error is not None
    assert "image 03.png cannot be decoded" in str(stopped.error)
    (skipping,) = measure(tmp_path, on_bad_image="skip", pictures=4)
    assert skipping.record is not None
    assert {s.id for s in skipping.record.skipped} == {"03.png", "08.png"}
    assert skipping.record.scores["pointing_game"].n == 39 - 1 - 3
    assert 2 <= len(skipping.pictures) <= 5


def test_models_without_maps_are_not_applicable(tmp_path: Path) -> None:
    write_things(tmp_path)
    catalog = Catalog([tmp_path / "cards"])
    options = Options(FP32, DataPaths({"things": tmp_path / "data"}, ()), progress=False)
    (result,) = evaluate([catalog.model("efficientnet-lite0")], catalog.tasks(["things-ground"]), options)
    assert result.record is None
    assert result.reason == "EfficientNet-Lite0 (ImageNet-1k), image tower only: images only, no text tower"


# -------------------------------------------------------------------- pictures


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    def run_it(*arguments: str | Path) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["clipbench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert isinstance(end.value.code, int)
        return end.value.code, capsys.readouterr().err

    return run_it


def test_pictures_are_written_beside_the_record(
    tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    write_things(tmp_path)
    small.write_run(tmp_path / "run", size=16)
    arguments = [
        *("eval", "--model", tmp_path / "run", "--task", "things-ground", "--cards", tmp_path / "cards"),
        *("--data", f"things={tmp_path / 'data'}", "--results", tmp_path / "results", "--precision", "fp32"),
    ]
    code, err = command(*arguments, "--save-heatmaps", "5")
    assert code == 0
    (folder,) = (tmp_path / "results").glob("*/things-ground.heatmaps")
    assert "6 pictures in" in err
    names = sorted(p.name for p in folder.iterdir())
    assert len(names) == 6
    assert names[-1] == "contact-sheet.png"
    assert all(name.startswith(f"{n:03d}-") for n, name in enumerate(names[:-1]))
    for name in names:
        with Image.open(folder / name) as picture:
            assert picture.width >= 480
    assert command(*arguments, "--save-heatmaps", "2")[0] == 0
    assert len(list(folder.iterdir())) == 3  # those of the first run are gone
    record = store.read(folder.parent / "things-ground.json").record
    assert command(*arguments)[0] == 0
    assert same(record, store.read(folder.parent / "things-ground.json").record)  # pictures move no number


def test_pictures_are_asked_for_where_there_are_none(
    tmp_path: Path, command: Callable[..., tuple[int, str]]
) -> None:
    code, err = command("eval", "--model", "digits-clip-lite", "--task", "digits-zs", "--save-heatmaps", "3")
    assert code == 2
    assert "none of the tasks has heat maps (digits-zs)" in err


def test_an_overlay_shows_box_point_heat_and_verdict() -> None:
    grey = io.BytesIO()
    Image.new("RGB", (240, 120), (90, 90, 90)).save(grey, format="PNG")
    heat = np.zeros((120, 240), dtype=np.float32)
    heat[20:60, 20:60] = 1
    box = np.array([120.0, 40, 200, 100])
    made = _overlays.overlay(grey.getvalue(), heat, box, (30, 30), "word " * 80, hit=False, energy=0.25)
    assert made.width == 480
    assert made.height > 240 + 60  # three lines of text at most, and the verdict
    shown = np.asarray(made)[:240].astype(int)
    green = (shown == [0, 0xE6, 0x76]).all(axis=2)
    assert green[80, 240:400].all()
    assert green[80:200, 240].all()
    assert not green[:79].any()
    hot, cold = shown[110, 110], shown[220, 30]
    assert hot.sum() > cold.sum() + 200
    red = (np.asarray(made) == [0xB3, 0x26, 0x1E]).all(axis=2)
    assert red[:240].any()
    assert red[240:].any()
    sheet = _overlays.contact_sheet([made] * 5)
    assert sheet.width > 4 * 240
    assert sheet.height > made.height


# ------------------------------------------------------------------- real data


@pytest.mark.shared
def test_real_photos_and_human_expressions(shared_data: Path, tmp_path: Path) -> None:
    """Published towers with random heads: nothing is to be expected of the score but its form."""
    small.write_published(tmp_path / "lite.yaml", "clean: true")
    catalog = Catalog([tmp_path])
    options = Options(FP32, DataPaths({"coco-363-expressions": shared_data / "coco-363"}, ()), progress=False)
    model = catalog.model("lite")
    tasks = catalog.tasks(["coco-363-expressions-ground"])
    (result,) = evaluate([model], tasks, options)
    assert result.record is not None
    assert result.record.evidence["heat_maps"] == "Grad-CAM on 0.net.bn2"
    for score in result.record.scores.values():
        assert score.n == 41
        assert score.chance is not None
        assert 0 < score.chance < 0.2
        assert 0 <= score.ci95[0] <= score.value <= score.ci95[1] <= 1
    assert len(result.samples["id"]) == 41
    encoder = ModelEncoder(model, FP32, progress=False)
    same = encoder.texts(["The red CUP, on the left!", "the red cup on the left"])
    np.testing.assert_array_equal(same[0], same[1])  # ALBEF's cleaning, where the card asks for it


#: category of COCO → class of ImageNet that is the same thing, or one kind of it
IMAGENET = {
    "zebra": 340, "elephant": 386, "pizza": 963, "banana": 954, "laptop": 620, "teddy bear": 850, "orange": 950,
    "broccoli": 937, "traffic light": 920, "parking meter": 704, "umbrella": 879, "sheep": 348, "cow": 345, "cat": 281,
    "dog": 207, "bear": 294, "toilet": 861, "microwave": 651, "airplane": 404, "vase": 883,
}  # fmt: skip


@pytest.mark.shared
def test_maps_of_a_trained_tower_point_at_what_is_asked_for(shared_data: Path) -> None:
    """EfficientNet-Lite0, the rows of its own ImageNet classifier as texts, the boxes of COCO's categories."""
    root = shared_data / "coco-363"
    listed = json.loads((root / "annotations" / "instances.json").read_text())
    names = {image["id"]: image["file_name"] for image in listed["images"]}
    category = {c["id"]: c["name"] for c in listed["categories"]}
    wanted: dict[tuple[int, str], list[list[float]]] = {}
    for entry in listed["annotations"]:
        x, y, width, height = entry["bbox"]
        if category[entry["category_id"]] in IMAGENET:
            key = (entry["image_id"], category[entry["category_id"]])
            wanted.setdefault(key, []).append([x, y, x + width, y + height])
    adapter = families.load(Catalog().model("efficientnet-lite0"))
    file, _ = resolve_source(adapter.card.weights, owner="test", folder=Path())
    rows = torch.nn.functional.normalize(read_state_dict(file)["_fc.weight"], dim=1)
    whole = adapter.preprocess.model_copy(update={"resize": "squash"})
    maps = of_tower(adapter.image_tower("backbone"), whole, "lite")
    hits, chances = [], []
    for (image, name), found in wanted.items():
        with Image.open(root / "images" / names[image]) as opened:
            size = opened.size
            batch = normalise(torch.from_numpy(pixels(opened, whole)[None].copy()), whole)
        made, scores = maps(batch, rows[[IMAGENET[name]]], torch.tensor([0]))
        heat = SaliencyMaps(0, np.arange(1), made, scores.numpy(), size, (0, 0, *size), maps.described).large(
            0
        )
        hits.append(any(boxes.contains(box, boxes.peak(heat)) for box in found))
        chances.append(min(1.0, sum(boxes.share(box, *size) for box in found)))
    assert len(hits) > 80
    assert np.mean(hits) > 2 * np.mean(chances)


class Halves(Split):
    """Two photos in one image, side by side or one above the other, and the name of what each shows."""

    def __init__(self, photos: Path, names: dict[str, str]) -> None:
        self.dataset, self.role, self.fingerprint = "halves", "test", "0" * 64
        self.images: list[bytes] = []
        self.texts: list[str] = []
        self.boxes: list[tuple[int, int, int, int]] = []
        kinds = list(names)
        for first, second in zip(kinds[::2], kinds[1::2], strict=True):
            below = len(self.images) % 2 == 1
            both = Image.new("RGB", (96, 192) if below else (192, 96))
            for kind, at in ((first, (0, 0)), (second, (0, 96) if below else (96, 0))):
                with Image.open(next((photos / kind).iterdir())) as image:
                    both.paste(image.convert("RGB").resize((96, 96)), at)
                self.texts.append(f"a photo of a {names[kind]}.")
                self.boxes.append((*at, at[0] + 96, at[1] + 96))
            buffer = io.BytesIO()
            both.save(buffer, format="PNG")
            self.images.append(buffer.getvalue())
        self.ids = [str(n) for n in range(len(self.images))]
        self.labels, self.classes = np.zeros(len(self.ids), dtype=np.int64), ()

    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        for row in rows.tolist():
            yield Sample(self.ids[row], self.images[row])


@pytest.mark.shared
def test_heads_on_a_frozen_tower_point_at_the_half_that_shows_what_is_asked_for(shared_data: Path) -> None:
    """Half of the points would do by chance; a map that is flipped, transposed or negative gets fewer still."""
    photos = shared_data / "imagenet-1k-sample"
    known = json.loads((shared_data / "tiny-imagenet" / "words.json").read_text())
    kinds = sorted(known.keys() & {folder.name for folder in photos.iterdir()})[::8][:20]
    split = Halves(photos, {kind: known[kind].split(",")[0] for kind in kinds})
    encoder = ModelEncoder(Catalog().model("lite-minilm"), FP32, progress=False)
    hits = [
        boxes.contains(split.boxes[number], boxes.peak(heat.large(place)))
        for heat in encoder.saliency.heat(split, split.texts, np.repeat(np.arange(10), 2))
        for place, number in enumerate(heat.texts.tolist())
    ]
    assert len(hits) == 20
    assert sum(hits) >= 16  # 15 or fewer in 99.4 of 100 cases by chance
