"""Runs over a damaged, shared or awkward store: the record is that of a run which nothing disturbed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from damage import layout
from measuring import FP32, measure, record_of

from clipbench.catalog import Catalog
from clipbench.data import decode
from clipbench.data.decode_stream import Batch, decode_stream
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.encoding import batches as one_batch
from clipbench.encoding import encoder, images, plans
from clipbench.encoding import runtime as execution
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.feature_store import FOLDER, FeatureFile
from clipbench.encoding.plans import Cost
from clipbench.encoding.runtime import Runtime, Tower
from clipbench.errors import ClipbenchError
from clipbench.records.record import Record, same

one_thread = small.one_thread
FIXED = replace(FP32, deterministic=True)
COUNT = 1_100  # three shards


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 1,100 images, a model and a task card."""
    folder = tmp_path_factory.mktemp("place")
    small.write_parquet(folder / "data" / "test.parquet", COUNT)
    small.write_run(folder / "run")
    small.write_task(folder / "cards")
    return folder


def run(place: Path, **options: Any) -> Record:
    (result,) = measure(
        [place / "run"], ["animals-zs"], cards=place / "cards", data=place / "data", **options
    )
    return record_of(result)


def shards(cache: Path, number: int) -> list[Path]:
    """The shards of that number: of images, and of texts for the first."""
    return sorted(cache.glob(f"{FOLDER}/*/{number:05}.shard"))


def image_shard(cache: Path, number: int) -> Path:
    """A shard of images, which come in several."""
    return next(cache.glob(f"{FOLDER}/*/00001.shard")).with_name(f"{number:05}.shard")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def zero(path: Path) -> None:
    content = path.read_bytes()
    start = layout(content)[1]
    path.write_bytes(content[:start] + bytes(640) + content[start + 640 :])


DAMAGE: dict[str, Callable[[Path], object]] = {
    "header": lambda path: flip(path, 60),
    "checksum": lambda path: flip(path, layout(path.read_bytes())[0]),
    "first row": lambda path: flip(path, layout(path.read_bytes())[1]),
    "last byte": lambda path: flip(path, -1),
    "zeroed rows": zero,
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-400]),
    "another's": lambda path: path.write_bytes(path.with_name("00001.shard").read_bytes()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_named_and_encoded_again_in_the_same_run(
    place: Path, isolated_cache: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run(place, runtime=FIXED)
    path = image_shard(isolated_cache, 0)
    whole = path.read_bytes()
    DAMAGE[kind](path)
    after = run(place, runtime=FIXED)
    assert same(after, before)
    assert after.timing.images_encoded == 512
    assert f"{path} is damaged" in capsys.readouterr().err
    assert layout(path.read_bytes())[1] == layout(whole)[1]
    assert path.read_bytes() == whole
    assert run(place, runtime=FIXED).timing.images_encoded == 0


def test_a_damaged_shard_of_texts_is_encoded_again(
    place: Path, isolated_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = run(place, runtime=FIXED)
    (path,) = set(shards(isolated_cache, 0)) - {image_shard(isolated_cache, 0)}
    flip(path, -3)
    after = run(place, runtime=FIXED)
    assert same(after, before)
    assert after.timing.texts_encoded == before.timing.texts_encoded == 10
    assert f"{path} is damaged" in capsys.readouterr().err


def test_a_sample_of_a_split_that_was_damaged_has_the_rows_that_it_had(
    place: Path, isolated_cache: Path
) -> None:
    run(place)
    before = run(place, limit=100)
    flip(image_shard(isolated_cache, 1), -1)
    after = run(place, limit=100)
    assert same(after, before)
    assert after.timing.images_encoded == 512
    assert len(shards(isolated_cache, 0)) == 2  # none of the sample's own


def test_texts_share_their_batches_with_the_same_others_whatever_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "_TEXT_SHARDS", 2)
    model = Catalog().model(str(small.write_run(tmp_path / "run")))
    texts = [f"{'long ' * (i % 3)}text {i}" for i in range(3 * 512 + 5)]
    batches: list[list[tuple[int, ...]]] = []
    unit = one_batch.unit

    def counted(rows: torch.Tensor, piece: int | None = 0) -> torch.Tensor:
        batches[-1].append(tuple(rows.shape))
        return unit(rows, piece)

    monkeypatch.setattr(encoder, "unit", counted)

    def encoded() -> np.ndarray[Any, Any]:
        batches.append([])
        return np.asarray(ModelEncoder(model, FIXED, progress=False, root=tmp_path / "features").texts(texts))

    before = encoded()
    next((tmp_path / "features").glob("*/00001.shard")).unlink()
    np.testing.assert_array_equal(encoded(), before)
    assert 0 < len(batches[1]) < len(batches[0])
    assert batches[1] == batches[0][: len(batches[1])]


# --------------------------------------------------------------------------------- plans


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Trials, which find that a row takes so many seconds; nothing is known before."""
    seconds = {"plain": 100.0, "channels_last": 90.0, "packed": 95.0, "compiled": 1e9}

    def measured(make: Callable[[], Tower], batch: torch.Tensor) -> tuple[Tower, Cost]:
        tower = make()
        return tower, Cost(0.0, seconds[tower.plan])

    monkeypatch.setattr(plans, "measured", measured)
    monkeypatch.setattr(plans, "shipped", lambda *_: ({}, False))
    monkeypatch.setattr(plans, "_TRIAL_ROWS", {True: 1})
    monkeypatch.setattr(plans, "_COMPILE_S", float("inf"))
    return seconds


def test_a_file_keeps_the_plan_that_it_was_begun_with_and_the_record_names_it(
    place: Path, isolated_cache: Path, slow: dict[str, float]
) -> None:
    before = run(place)
    assert before.encoder["plans"] == {"test:joint": "channels_last", "text:joint": "plain"}
    image_shard(isolated_cache, 1).unlink()
    for path in (isolated_cache / "plans-3").iterdir():
        path.unlink()
    slow["packed"] = 1.0  # another would win now
    after = run(place)
    assert after.timing.images_encoded == 512
    assert same(after, before)
    fresh = run(place, limit=600, seed=3)
    assert fresh.encoder["plans"]["test:joint"] == "channels_last"  # type: ignore[index, call-overload]


def test_a_plan_that_cannot_be_run_here_is_said(
    place: Path, isolated_cache: Path, slow: dict[str, float]
) -> None:
    run(place)
    image_shard(isolated_cache, 2).unlink()

    def no_layout(module: object, runtime: object, plan: str) -> Any:
        raise ImportError("no such layout")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "_prepare", no_layout)
        with pytest.raises(
            ClipbenchError, match=r"begun under the plan channels_last.*no such layout"
        ) as caught:
            run(place)
    assert "delete that folder" in str(caught.value.hint)
    file = FeatureFile({"a": 1}, 1, isolated_cache)
    file.begin("folded")
    with pytest.raises(
        ClipbenchError, match="under the plan folded, which cannot be run here: it knows plain"
    ):
        execution.under(*(None,) * 2, "folded", None, file.folder)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b'{"plan": "packed"}', b"\xff\0", b'{"plan": "none"}'])
def test_a_damaged_choice_of_plan_is_tried_again(
    place: Path,
    isolated_cache: Path,
    slow: dict[str, float],
    content: bytes,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = run(place)
    (path,) = [p for p in (isolated_cache / "plans-3").iterdir() if b"channels_last" in p.read_bytes()]
    whole = path.read_bytes()
    path.write_bytes(content)
    image_shard(isolated_cache, 0).parent.rename(isolated_cache / "elsewhere")
    assert same(run(place), before)
    assert path.read_bytes() == whole
    assert f"{path} is damaged" in capsys.readouterr().err


# ------------------------------------------------------------------------- deterministic


def test_a_deterministic_run_says_so_and_meets_no_rows_of_another(
    place: Path, isolated_cache: Path, slow: dict[str, float]
) -> None:
    ordinary = run(place)
    fixed = run(place, runtime=FIXED)
    assert fixed.timing.images_encoded == COUNT
    assert fixed.encoder["deterministic"] is True
    assert fixed.encoder["plans"] == {"test:joint": "plain", "text:joint": "plain"}
    assert fixed.encoder["fixed"]["threads"] == 1  # type: ignore[index, call-overload]
    assert "deterministic" not in ordinary.encoder
    assert run(place).timing.images_encoded == 0
    small_batches = run(place, runtime=replace(FIXED, batch_size=32))
    assert small_batches.timing.images_encoded == COUNT
    # A sample has its own rows, so that it does not matter what was encoded before.
    sample = run(place, runtime=FIXED, limit=100)
    assert sample.timing.images_encoded == 100


def test_a_deterministic_run_goes_on_to_the_same_record(place: Path, isolated_cache: Path) -> None:
    before = run(place, runtime=FIXED)
    kept = {p.name: p.read_bytes() for p in image_shard(isolated_cache, 0).parent.glob("*.shard")}
    for number in (0, 2):
        image_shard(isolated_cache, number).unlink()
    assert same(run(place, runtime=replace(FIXED, workers=1)), before)
    assert {p.name: p.read_bytes() for p in image_shard(isolated_cache, 0).parent.glob("*.shard")} == kept


def test_torch_is_as_it_was_after_a_deterministic_run(place: Path) -> None:
    with Runtime("cpu", "fp32", deterministic=True).reproducible():
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


# --------------------------------------------------------------------------------- notes


def test_remarks_on_images_stand_in_the_record_of_a_cached_run_too(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(decode.REMARKS, "turned", "images turned as their EXIF says")
    stream = decode_stream
    entry = Catalog([place / "cards"]).dataset("animals")
    ids = open_split(entry, "test", DataPaths({"animals": place / "data"}, ())).ids

    def remarked(samples: Any, *args: Any, **options: Any) -> Iterator[Batch]:
        for number, batch in enumerate(stream(samples, *args, **options)):
            yield replace(batch, remarks=((ids[64 * number], "turned"),))

    with monkeypatch.context() as patch:
        patch.setattr(images, "decode_stream", remarked)
        first = run(place)
    cached = run(place)
    assert cached.timing.images_encoded == 0
    assert same(first, cached)
    (note,) = [note for note in cached.notes if note.kind == "turned"]
    assert (note.split, note.text, note.count) == ("test", "images turned as their EXIF says", 18)
    assert note.examples == (ids[0], ids[64], ids[128])


def test_images_that_are_tested_and_trained_on_are_counted(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)) for _ in range(12)]
    for role, chosen in (("train", range(8)), ("test", [6, 7, 8, 9, 10, 10])):
        for place, number in enumerate(chosen):
            folder = tmp_path / "data" / role / ("cat", "dog")[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pictures[number].save(folder / f"{place}.png")
    card = {
        "title": "Animals", "source": {"local": True}, "classes": ["cat", "dog"], "prompts_source": "own",
        "splits": {"train": {"name": "train"}, "test": {"name": "test"}},
        "templates": {"default": ["a {c}"]},
        "protocols": {"zs": {}, "lp": {"classifier": {"kind": "knn", "k": 1}}},
    }  # fmt: skip
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "animals.yaml").write_text(json.dumps(card))
    found = measure(
        [small.write_run(tmp_path / "run")], ["animals-zs", "animals-lp@knn"],
        cards=tmp_path / "cards", data=tmp_path / "data",
    )  # fmt: skip
    zs, probe = (
        {note.kind: note for note in record_of(result).notes if note.split == "test"} for result in found
    )
    assert set(zs) == {"repeated-images"}
    assert set(probe) == {"repeated-images", "test-in-training"}
    assert (probe["repeated-images"].count, probe["test-in-training"].count) == (1, 2)
    assert "also in train, byte for byte" in probe["test-in-training"].text
    assert len(probe["test-in-training"].examples) == 2


def test_what_checks_cost_is_measured(place: Path) -> None:
    from rich.console import Console

    from clipbench.bench import cached
    from clipbench.evaluation import Options

    catalog = Catalog([place / "cards"])
    options = Options(runtime=FP32, data=DataPaths({"animals": place / "data"}, ()), progress=False)
    found = cached.measure(
        catalog.model(str(place / "run")), catalog.tasks(["animals-zs"]), options, rows=1_000, columns=16
    )
    assert set(found["ratios"]) == {"checked_over_unchecked", "checks_of_run"}
    assert 0 < found["ratios"]["checks_of_run"] < 1
    assert found["mib"] == 0.1
    console = Console(width=80, record=True)
    console.print(cached.view(found))
    assert "checks_of_run" in console.export_text()
