"""Pairs that are read and decoded while a model trains: the same batches as from memory, and the same after a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioned import rows_of, sample_of, server, write_shard, write_shards, write_table
from pydantic import TypeAdapter
from small import one_thread, picture, write_parquet, write_task
from training import decode_all

from clipbench.cards.model import Preprocess
from clipbench.cards.pairs import AnyPairs
from clipbench.cards.recipe import Recipe
from clipbench.catalog import Catalog
from clipbench.data.pairs.sources import open_pairs
from clipbench.data.pairs.tables import RowSplit
from clipbench.data.paths import DataPaths
from clipbench.errors import DataError
from clipbench.pretrain.data import pairs
from clipbench.pretrain.data.batch import Batch
from clipbench.pretrain.data.loader import FileLoader, Order, StreamLoader, permutation
from clipbench.pretrain.data.pairs import DrawnPairs
from clipbench.pretrain.data.source import Source
from clipbench.pretrain.loop import pretrain
from clipbench.pretrain.objectives.base import Wants

__all__ = ["one_thread", "server"]
PREPROCESS = Preprocess(size=8, mean=(0.5,) * 3, std=(0.25,) * 3)
CPU = torch.device("cpu")
CROPS = {"kind": "moco-v2", "blur": 0, "jitter": 0.5}


def source(folder: Path, **wanted: Any) -> Source:
    named = {} if wanted["kind"] == "task-card" else {"name": "mine"}
    parsed: AnyPairs = TypeAdapter(AnyPairs).validate_python({**named, **wanted})
    catalog = Catalog([folder / "cards"]) if (folder / "cards").is_dir() else Catalog()
    found = open_pairs(
        parsed, catalog.dataset, DataPaths({"mine": folder, "animals": folder}, ()), Path("r.yaml")
    )
    return Source(*found, parsed)


def tokenize(texts: Any) -> tuple[torch.Tensor, torch.Tensor]:
    lengths = torch.tensor([len(text) for text in texts])
    tokens = torch.zeros(len(texts), int(lengths.max()), dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        row[: len(text)] = torch.tensor(list(map(ord, text)))
    return tokens, lengths


def drawn(sources: list[Source], batch_size: int = 4, workers: int = 0, **more: Any) -> DrawnPairs:
    return DrawnPairs(
        sources, PREPROCESS, tokenize, batch_size=batch_size, seed=3, device=CPU,
        wants=Wants(views=(None,), altered=True), workers=workers, **more,
    )  # fmt: skip


def said(batch: Batch) -> list[str]:
    return ["".join(map(chr, batch.tokens[row].tolist())).rstrip("\0") for row in batch.rows.tolist()]


def content(batch: Batch) -> list[Any]:
    """All of a batch, to be compared."""
    assert batch.altered is not None
    return [
        batch.images.tolist(), said(batch), batch.views[0].tolist(),
        batch.altered[0].tolist(), batch.altered[1].tolist(),
    ]  # fmt: skip


@pytest.fixture
def mixed(tmp_path: Path) -> list[Source]:
    """Eleven pairs of a table, seven of shards, nine labelled pictures in parquet, each augmented in its own way."""
    table = write_table(tmp_path / "t", rows_of([f"Row {i}, {'very ' * i}long!" for i in range(11)]))
    shards = write_shards(tmp_path / "s", 1, 7)
    write_task(tmp_path / "p" / "cards" / "tasks")
    write_parquet(tmp_path / "p" / "test.parquet", 9)
    return [
        source(table, kind="csv", file="pairs.csv", images="images", augment=CROPS, clean=True, alter=0.5),
        source(shards, kind="webdataset"),
        source(
            tmp_path / "p", kind="task-card", dataset="animals", split="test", templates=["simple", "default"]
        ),
    ]


def test_every_epoch_is_another_permutation_and_a_place_is_enough() -> None:
    order = Order(11, 4, seed=5)
    batches = order.batches([0, 0])
    seen = [next(batches) for _ in range(5)]
    assert [place for place, _ in seen] == [[0, 4], [0, 8], [1, 4], [1, 8], [2, 4]]
    epochs = [torch.cat([rows for (e, _), rows in seen if e == epoch]).tolist() for epoch in (0, 1)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1]
    for place, after in ((seen[0][0], seen[1]), (seen[1][0], seen[2]), (seen[3][0], seen[4])):
        again = next(order.batches(place))
        assert again[0] == after[0]
        assert torch.equal(again[1], after[1])
    assert sorted(permutation(9, 1, 2).tolist()) == list(range(9))
    assert permutation(9, 1, 2).tolist() != permutation(9, 2, 1).tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_from_memory_and_from_files(
    workers: int, mixed: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = drawn(mixed)
    monkeypatch.setattr(pairs, "HELD_BYTES", 0)
    streamed = drawn(mixed, workers=workers)
    assert isinstance(streamed._loader, FileLoader)
    texts = set()
    for _ in range(15):  # of two epochs and a bit
        batch = held.next_batch()
        assert content(batch) == content(streamed.next_batch())
        texts |= {text.split()[0] for text in said(batch)}
    assert texts >= {"row", "caption", "a"}  # cleaned, and of all sources


@pytest.mark.parametrize("held", [True, False])
def test_a_stream_goes_on_in_the_middle_of_an_epoch(
    held: bool, mixed: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "HELD_BYTES", 2**31 if held else 0)
    whole = drawn(mixed)
    for _ in range(8):
        whole.next_batch()
    state = whole.state()
    state["generator"] = state["generator"].clone()
    wanted = [content(whole.next_batch()) for _ in range(4)]
    resumed = drawn(mixed)
    resumed.next_batch()
    resumed.restore(state)
    assert [content(resumed.next_batch()) for _ in range(4)] == wanted


@pytest.mark.parametrize("held", [True, False])
def test_broken_images_are_counted_and_named_and_never_replaced(
    held: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "HELD_BYTES", 2**31 if held else 0)
    folder = write_table(tmp_path, rows_of([f"text {i}" for i in range(12)]))
    (folder / "images" / "5.png").write_bytes(picture(5)[:60])
    (folder / "images" / "7.png").unlink()
    wanted = {"kind": "csv", "file": "pairs.csv", "images": "images", "on_bad_image": "skip"}
    made = drawn([source(folder, **wanted)])
    batches = [made.next_batch() for _ in range(2 if held else 3)]
    texts = [text for batch in batches for text in said(batch)]
    assert len(set(texts)) == len(texts)
    assert all(len(batch.images) == len(batch.rows) == len(batch.views[0]) for batch in batches)
    if held:  # an epoch is one of the ten that can be decoded
        assert not {"text 5", "text 7"} & set(texts)
    else:  # what is broken leaves its batch smaller
        assert set(texts) == {f"text {i}" for i in range(12)} - {"text 5", "text 7"}
    count, names = made.skipped
    assert count == 2
    assert set(names) == {"5.png", "7.png"}
    assert "no bytes" in names["7.png"]
    (folder / "images" / "7.png").write_bytes(picture(7))
    del wanted["on_bad_image"]

    def stop() -> None:
        stopping = drawn([source(folder, **wanted)])
        for _ in range(3):
            stopping.next_batch()

    with pytest.raises(DataError, match=r"image 5\.png cannot be decoded.*\n.*on_bad_image: skip"):
        stop()


@pytest.mark.parametrize("held", [True, False])
def test_processes_that_share_a_batch_have_its_parts(
    held: bool, mixed: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an image of one part is broken: the others' draws stay."""
    monkeypatch.setattr(pairs, "HELD_BYTES", 2**31 if held else 0)
    if not held:
        lenient = mixed[0].wanted.model_copy(update={"on_bad_image": "skip"})
        mixed[0] = Source(mixed[0].split, mixed[0].card, lenient)
        broken = mixed[0].rows.samples(np.array([4]))
        assert isinstance(mixed[0].split, RowSplit)
        (mixed[0].split._images / next(broken).id).write_bytes(b"broken")
    whole = drawn(mixed, batch_size=6)
    parts = [drawn(mixed, batch_size=6, rank=rank, world=2) for rank in (0, 1)]
    sizes = set()
    for _ in range(9):
        batch, first, second = whole.next_batch(), parts[0].next_batch(), parts[1].next_batch()
        assert said(first) + said(second) == said(batch)
        assert torch.equal(torch.cat([first.images, second.images]), batch.images)
        assert torch.equal(torch.cat([first.views[0], second.views[0]]), batch.views[0])
        noise = [part.draws.rand(2) for part in (batch, first, second)]
        assert torch.equal(torch.cat(noise[1:]), noise[0])
        sizes.add(len(batch.images))
    assert sizes == ({6} if held else {5, 6})


def test_images_that_match_their_texts(mixed: list[Source], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where decoding ran ahead: every picture is the one that its caption numbers."""
    monkeypatch.setattr(pairs, "HELD_BYTES", 0)
    shards = drawn([mixed[1]], batch_size=3, workers=2)
    reference = {f"caption {i}": decode_all(mixed[1].rows, PREPROCESS)[i] for i in range(7)}
    for _ in range(6):
        batch = shards.next_batch()
        for image, text in zip(batch.images, said(batch), strict=True):
            shown = (image * 0.25 + 0.5).mul(255).round().to(torch.uint8)
            assert torch.equal(shown, reference[text])


def test_streamed_shards_come_once_an_epoch_and_go_on_exactly(
    tmp_path: Path, server: tuple[str, list[str]]
) -> None:
    address, asked = server
    write_shards(tmp_path / "served", 5, 3)
    wanted = {
        "kind": "webdataset",
        "shards": [f"{address}/{{00000..00004}}.tar"],
        "rows": 15,
        "augment": CROPS,
    }
    made = drawn([source(tmp_path, **wanted)])
    assert isinstance(made._loader, StreamLoader)
    contents, texts, states = [], [], []
    for _ in range(7):
        batch = made.next_batch()
        contents.append(content(batch))
        texts += said(batch)
        states.append(made.state())
    assert set(texts[:15]) == {f"caption {i}" for i in range(15)}
    assert set(texts[15:]) <= set(texts[:15])
    assert texts[:13] != texts[15:28]
    asked.clear()
    resumed = drawn([source(tmp_path, **wanted)])
    resumed.restore(states[4])
    assert [content(resumed.next_batch()) for _ in range(2)] == contents[5:]
    assert len(asked) < 10


def test_shards_without_any_pair(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    address, _ = server
    write_shard(tmp_path / "served" / "0.tar", [("a", {"txt": b"bare"})])
    made = drawn([source(tmp_path, kind="webdataset", shards=[f"{address}/0.tar"], rows=5)])
    with pytest.raises(DataError, match="no pair of an image and a caption in any shard"):
        made.next_batch()


# ------------------------------------------------------------------------ runs


def recipe(data: list[dict[str, Any]], **changes: Any) -> Recipe:
    value: dict[str, Any] = {
        "title": "t", "command": "c", "cost": "none", "data": data,
        "model": {
            "config": {
                "image": {"kind": "convnet", "width": 4, "stages": 1},
                "text": {"kind": "bytes", "width": 8, "layers": 1, "heads": 2, "context_length": 20},
                "embed_dim": 8, "projection": "linear",
            },
            "preprocess": {"size": 8, "mean": [0.5] * 3, "std": [0.25] * 3},
        },
        "objective": {"kind": "clip"}, "optim": {"name": "adamw", "lr": 0.01},
        "schedule": {"steps": 8, "batch_size": 4, "checkpoint_every": 1},
    }  # fmt: skip
    return Recipe.model_validate(value | changes)


def trained(wanted: Recipe, folder: Path, out: Path, **more: Any) -> Path:
    found = [
        open_pairs(data, Catalog().dataset, DataPaths({"mine": folder}, ()), Path("r.yaml"))
        for data in wanted.data
    ]
    return pretrain(wanted, "r", out, data=found, device="cpu", progress=False, **more)


@pytest.fixture(params=["files", "stream"])
def run_data(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    server: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[Path, dict[str, Any]]:
    """A folder, and a source in it of thirteen pairs, of which one image is broken."""
    monkeypatch.setattr(pairs, "HELD_BYTES", 0)
    broken = ("x", {"png": picture(0)[:50], "txt": b"broken"})
    samples = [*(sample_of(i) for i in range(12)), broken]
    data: dict[str, Any] = {"kind": "webdataset", "name": "mine", "augment": CROPS, "on_bad_image": "skip"}
    write_shard(tmp_path / "served" / "0.tar", samples[:6])
    write_shard(tmp_path / "served" / "1.tar", samples[6:])
    if request.param == "stream":
        data |= {"shards": [f"{server[0]}/{{0..1}}.tar"], "rows": 13, "window": 1}
    return tmp_path / "served", data


def test_a_run_that_reads_files_resumes_exactly(
    run_data: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, data = run_data
    wanted = recipe([data])
    whole = trained(wanted, folder, tmp_path / "whole", workers=1)
    out = tmp_path / "resumed"
    for stop in (2, 5, 8):
        trained(wanted, folder, out, stop_after=stop)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    skipped = [json.loads((run / "skipped.json").read_text()) for run in (whole, out)]
    assert skipped[0] == skipped[1]
    assert skipped[0]["skipped"] > 0
    assert [name.endswith("/x") for name in skipped[0]["images"]] == [True]


def test_pairs_that_are_left_out_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_table(tmp_path, rows_of(["one", "", "two", "three", "four"]))
    data = {"kind": "csv", "name": "mine", "file": "pairs.csv", "images": "images"}
    trained(recipe([data]), folder, tmp_path / "run", stop_after=1)
    assert "mine: left out 1 rows without a caption: 1.png" in capsys.readouterr().err.replace("\n", " ")
