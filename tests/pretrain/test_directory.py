"""What a resumed run reads is what was written: anything else is named, and an older checkpoint serves."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import commandline
import pytest
import torch
from damage import flip
from training import recipe_with, run

from clipbench.cards.model import ModelCard
from clipbench.cards.recipe import Recipe
from clipbench.cards.strict_yaml import Document, parse
from clipbench.errors import CardError, ClipbenchError, Damaged, WeightsError
from clipbench.models.adapter import Adapter
from clipbench.pretrain.run import events
from clipbench.pretrain.run.directory import RunDirectory
from clipbench.utils.cache import open_checked

cli = commandline.run
TASK = "digits-zs@val"


@dataclass(frozen=True)
class Score:
    value: float


@dataclass(frozen=True)
class Measured:
    task: str
    scores: dict[str, Score]


def by_weights(adapter: Adapter, tasks: Sequence[str]) -> list[Measured]:
    """An evaluation whose score only the weights decide."""
    return [Measured(task, {"acc1": Score(int(adapter.weights_sha256[:4], 16) / 65536)}) for task in tasks]


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    torch.set_num_threads(1)
    schedule = {"steps": 8, "batch_size": 16, "eval_every": 2, "checkpoint_every": 2, "keep": 3}
    best = {"task": TASK, "metric": "acc1"}
    return recipe_with({"kind": "clip"}, schedule=schedule, evaluate=[TASK], best=best, ema=0.9)


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, undisturbed."""
    return run(recipe, tmp_path_factory.mktemp("whole") / "run", evaluator=by_weights)


@pytest.fixture(scope="module")
def stopped(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run, stopped after step 7: checkpoints of steps 4, 6 and 7."""
    out = run(recipe, tmp_path_factory.mktemp("stopped") / "run", evaluator=by_weights, stop_after=7)
    assert [path.name[-4:] for path in sorted(out.glob("*.pt"))] == ["4.pt", "6.pt", "7.pt"]
    return out


@pytest.fixture
def out(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "run")


def outcome(out: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """The weights and metrics.jsonl, without what depends on the clock."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    clock = ("images_per_s", "data_wait")
    return (out / "model.safetensors").read_bytes(), [
        {key: value for key, value in line.items() if key not in clock} for line in lines
    ]


def checkpoint(out: Path, step: int) -> Path:
    return out / f"checkpoint-{step:08}.pt"


@pytest.mark.parametrize("place", [8 * 3000, -8 * 3000, -40, 5])
def test_a_damaged_checkpoint_is_named_and_an_older_one_serves(
    out: Path, whole: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str], place: int
) -> None:
    flip(checkpoint(out, 7), place)
    run(recipe, out, evaluator=by_weights)
    said = capsys.readouterr().err
    assert f"{checkpoint(out, 7)} is damaged: its content is not what its checksum says" in said
    assert "going on from checkpoint-00000006.pt" in said
    assert outcome(out) == outcome(whole)


def test_a_folder_that_is_refused_is_let_go(out: Path, recipe: Recipe) -> None:
    kept = (out / "recipe.yaml").read_bytes()
    (out / "recipe.yaml").write_bytes(b"not: a recipe\n")
    refused = RunDirectory(out, recipe)
    with pytest.raises(ClipbenchError):
        refused.__enter__()
    (out / "recipe.yaml").write_bytes(kept)
    with RunDirectory(out, recipe):  # which waits for nobody
        pass


def test_without_a_whole_checkpoint_the_run_says_what_to_do(out: Path, recipe: Recipe) -> None:
    for step in (4, 6, 7):
        flip(checkpoint(out, step), 8 * 3000)
    with pytest.raises(
        Damaged, match=r"checkpoint-00000007\.pt is damaged.*no older checkpoint is whole"
    ) as found:
        run(recipe, out, evaluator=by_weights)
    assert "choose another --out, to start the run over" in str(found.value)
    assert len(list(out.glob("*.pt"))) == 3


def test_a_damaged_checkpoint_does_not_count_among_the_newest(out: Path, whole: Path, recipe: Recipe) -> None:
    flip(checkpoint(out, 7), 8 * 3000)
    run(recipe, out, evaluator=by_weights, stop_after=6)
    assert [path.name[-4:] for path in sorted(out.glob("*.pt"))] == ["4.pt", "6.pt"]
    run(recipe, out, evaluator=by_weights)
    assert outcome(out) == outcome(whole)


# ------------------------------------------------------------------- metrics


def test_a_changed_line_sends_the_run_back_to_before_it(
    out: Path, whole: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    path = out / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    logged = next(i for i, line in enumerate(lines) if b'"step": 7' in line)
    flip(path, 8 * (sum(map(len, lines[:logged])) + len(lines[logged]) - 5))
    run(recipe, out, evaluator=by_weights)
    assert "metrics.jsonl is damaged: its first" in (said := capsys.readouterr().err)
    assert "going on from checkpoint-00000006.pt" in said
    assert outcome(out) == outcome(whole)


def test_a_line_that_all_checkpoints_follow(
    out: Path, whole: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(out / "metrics.jsonl", 8 * 9)  # "step": 1
    with pytest.raises(Damaged, match=r"metrics\.jsonl is damaged.*\n.*delete it: the curves") as found:
        run(recipe, out, evaluator=by_weights)
    assert len(list(out.glob("*.pt"))) == 3
    assert "put back a copy" in str(found.value)
    (out / "metrics.jsonl").unlink()  # as it says
    run(recipe, out, evaluator=by_weights)
    assert "metrics.jsonl is gone; its" in capsys.readouterr().err
    assert [line["step"] for line in outcome(out)[1] if "loss" in line] == [8]


@pytest.mark.parametrize("line", [b"\xff{}\n", b"[]\n", b'{"step": "a"}\n', b"{}\n", b"{\n"])
def test_a_line_that_is_none_is_named(out: Path, recipe: Recipe, line: bytes) -> None:
    (out / "metrics.jsonl").write_bytes(b'{"step": 1}\n' + line + b'{"half')
    with pytest.raises(Damaged, match=r"metrics\.jsonl:2: not a line that was written"):
        RunDirectory(out, recipe).lines()


# -------------------------------------------------------------- best weights


@pytest.mark.parametrize("gone", [False, True])
def test_best_weights_that_are_not_what_was_written(
    out: Path, whole: Path, recipe: Recipe, gone: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (best,) = out.glob("best-*")
    step = int(best.stem[5:])
    if gone:
        best.unlink()
    else:
        flip(best, -8 * 100)
    assert step == 6  # so that the checkpoint of step 4 is from before it
    run(recipe, out, evaluator=by_weights)
    said = capsys.readouterr().err
    assert f"{best}, the best weights of this run, is {'gone' if gone else 'damaged'}" in said
    assert "going on from checkpoint-00000004.pt" in said
    assert outcome(out) == outcome(whole)


def test_best_weights_that_are_damaged_while_the_run_goes_on(out: Path, recipe: Recipe) -> None:
    from clipbench.pretrain.run.directory import RunDirectory

    with RunDirectory(out, recipe) as folder:
        folder.save_best(8, b"weights")
        flip(out / "best-00000008.safetensors", 3)
        with pytest.raises(Damaged, match="the best weights of this run, is damaged"):
            folder.read_best(8)


# ------------------------------------------------------ code, earlier versions


class Malicious:
    """What runs a command when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("form", ["as torch writes it", "behind a right checksum", "a plain pickle"])
def test_a_checkpoint_that_holds_code_is_called_that(
    out: Path, recipe: Recipe, tmp_path: Path, form: str
) -> None:
    from clipbench.pretrain.run.directory import _CHECKPOINT
    from clipbench.utils.cache import write_checked

    whole = torch.load(io.BytesIO(open_checked(checkpoint(out, 7), _CHECKPOINT)), weights_only=True)
    buffer = io.BytesIO()
    torch.save(
        whole | {"more": Malicious(tmp_path / "ran")},
        buffer,
        _use_new_zipfile_serialization=form != "a plain pickle",
    )
    if form == "behind a right checksum":
        write_checked(checkpoint(out, 7), buffer.getvalue(), _CHECKPOINT)
    else:
        checkpoint(out, 7).write_bytes(buffer.getvalue())
    with pytest.raises(WeightsError) as found:
        run(recipe, out, evaluator=by_weights)
    said = str(found.value)
    assert (
        "checkpoint-00000007.pt is no checkpoint that clipbench wrote: it holds code (posix.system)" in said
    )
    assert "weights_only" not in said
    assert "convert" not in said
    assert not (tmp_path / "ran").exists()
    checkpoint(out, 7).unlink()  # as it says
    run(recipe, out, evaluator=by_weights)


def of_earlier_version(path: Path) -> None:
    from clipbench.pretrain.run.directory import _CHECKPOINT

    held = torch.load(io.BytesIO(open_checked(path, _CHECKPOINT)), weights_only=True)
    del held["beside"]
    torch.save(held, path)


def test_a_checkpoint_without_a_checksum_is_taken_and_said(
    out: Path, whole: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (4, 6, 7):
        of_earlier_version(checkpoint(out, step))
    run(recipe, out, evaluator=by_weights)
    assert "checkpoint-00000007.pt is of an earlier version, without a checksum" in capsys.readouterr().err
    assert outcome(out) == outcome(whole)


def test_a_flip_in_a_checkpoint_without_a_checksum_is_seen_by_the_archives(
    out: Path, whole: Path, recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    of_earlier_version(checkpoint(out, 7))
    with zipfile.ZipFile(checkpoint(out, 7)) as archive:
        tensor = max(archive.infolist(), key=lambda part: part.file_size)
    flip(checkpoint(out, 7), 8 * (tensor.header_offset + tensor.file_size // 2 + 100))
    run(recipe, out, evaluator=by_weights)
    assert "checkpoint-00000007.pt is damaged" in capsys.readouterr().err
    assert outcome(out) == outcome(whole)


# --------------------------------------------------------------------- cards


@pytest.mark.parametrize("name", ["card.yaml", "recipe.yaml"])
def test_every_changed_byte_of_a_card_is_seen(whole: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    shutil.copy(whole / name, path)
    model: type[ModelCard | Recipe] = ModelCard if name == "card.yaml" else Recipe
    content, held = path.read_bytes(), parse(model, Document(path))
    rng = random.Random(0)
    refused = 0
    for _ in range(100):
        path.write_bytes(content)
        flip(path, rng.randrange(8 * len(content)))
        try:
            found = parse(model, Document(path))
        except CardError:
            refused += 1
        else:
            assert found == held
    assert refused > 90


def test_a_card_that_was_changed_by_hand(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "card.yaml"
    text = (whole / "card.yaml").read_text()
    title = parse(ModelCard, Document(whole / "card.yaml")).title
    path.write_text(text.replace(title, "Mine"))
    with pytest.raises(
        CardError, match=r"not those that were written: their checksum differs\n.*delete this last line"
    ):
        Document(path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert parse(ModelCard, Document(path)).title == "Mine"


def test_weights_are_those_of_the_card(whole: Path, tmp_path: Path) -> None:
    from clipbench.catalog import Catalog
    from clipbench.models.families import load

    out = shutil.copytree(whole, tmp_path / "run")
    flip(out / "model.safetensors", -8)
    with pytest.raises(ClipbenchError, match=r"model\.safetensors is not the file that the card means"):
        load(Catalog().model(str(out)))


# ------------------------------------------------------------------- a full disk


@pytest.mark.parametrize("file", ["events.out.tfevents", "metrics.jsonl"])
@pytest.mark.parametrize("done", [0, 3])
def test_a_disk_that_fills_up_under_what_a_run_says_loses_nothing(
    file: str, done: int, tmp_path: Path, cli: commandline.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = {"steps": 5, "batch_size": 8, "checkpoint_every": 3}
    card = recipe_with({"kind": "clip"}, schedule=schedule).model_dump(mode="json", exclude_none=True)
    (tmp_path / "recipe.yaml").write_text(json.dumps(card))
    command = ["pretrain", "--recipe", tmp_path / "recipe.yaml", "--tensorboard", "--quiet", "--out"]
    assert cli(*command, tmp_path / "undisturbed").code == 0
    out, opened = tmp_path / "run", Path.open

    def on_a_full_disk(self: Path, *arguments: Any, **named: Any) -> Any:
        full = self.name.startswith(file) and arguments in (("wb",), ("ab",))
        return opened(Path("/dev/full") if full else self, *arguments, **named)

    if done:
        add = events.Events.add

        def stopping(self: events.Events, line: events.Line) -> None:
            add(self, line)
            if line["step"] == done + 1:
                raise ClipbenchError("stopped behind a checkpoint")

        with monkeypatch.context() as patched:
            patched.setattr(events.Events, "add", stopping)
            commandline.mended(cli(*command, out), "stopped behind a checkpoint")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", on_a_full_disk)
        ended = cli(*command, out)
    said = ended.err[ended.err.index("error: ") :]  # behind where it goes on, which may be said first
    commandline.mended(
        replace(ended, err=said),
        f"cannot write {out}/{file}",
        "No space left on device",
        "free some space there",
    )
    assert [path.name[-4:] for path in out.glob("*.pt")] == (["3.pt"] if done else [])
    assert cli(*command, out).code == 0
    assert outcome(out) == outcome(tmp_path / "undisturbed")
    assert len(list(out.glob("events.out.tfevents.*"))) == 1


def test_event_files_of_others_in_a_run_stay(recipe: Recipe, tmp_path: Path) -> None:
    out = run(recipe, tmp_path / "run", tensorboard=True, evaluator=by_weights, stop_after=2)
    (out / "events.out.tfevents.1.somebody").write_bytes(b"theirs")
    run(recipe, out, tensorboard=True, evaluator=by_weights, stop_after=3)
    assert (out / "events.out.tfevents.1.somebody").read_bytes() == b"theirs"
    assert len(list(out.glob("events.out.tfevents.*"))) == 2
