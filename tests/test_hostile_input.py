"""Records and results of others that are broken on purpose, and places where nothing can be printed or written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import commandline
import pytest
import small
from commandline import Place, Run, mended

from clipbench import cli
from clipbench.cards.pairs import ShardPairs
from clipbench.data.pairs.shards import captions
from clipbench.errors import ClipbenchError, DataError, StorageError, WeightsError
from clipbench.metrics import classification
from clipbench.models.weights.reading import read_state_dict
from clipbench.records import store
from clipbench.report import export
from clipbench.utils import cache

run, place, one_thread = commandline.run, commandline.place, small.one_thread
DEEP = "[" * 100_000
FOREIGN = {
    "dataset": "wds/x",
    "model": "m",
    "pretrained": "p",
    "task": "zeroshot_classification",
    "metrics": {},
}


@pytest.fixture
def record(run: Run, place: Place) -> Path:
    assert run(*place.eval("--quiet")).code == 0
    (path,) = store.paths(place.results)
    return path


@pytest.mark.parametrize(
    "text",
    [
        *(
            DEEP,
            '{"a":' * 100_000,
            "[" * 150 + "]" * 150,
            "1" * 5_000,
            f'{{"schema_version": {"1" * 5_000}}}',
        ),
        *("NaN", '{"schema_version": NaN}', '{"schema_version": 1e400}', '{"schema_version": [1]}'),
        *(
            '{"schema_version": {"a": 1}}',
            '{"schema_version": true}',
            '{"schema_version": 1.0}',
            "",
            "\0",
            "null",
        ),
        *(f'{{"schema_version": {"[" * 150}{"]" * 150}}}', '{"schema_version": "' + "x" * 9_000 + '"}'),
    ],
)
def test_records_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        store.read(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert len(caught.value.message) < len(str(path)) + 400


@pytest.mark.parametrize("version", [[1], {"a": 1}, True, False, 1.0, "1", None])
def test_a_schema_version_is_a_whole_number(record: Path, version: Any) -> None:
    record.write_text(json.dumps(json.loads(record.read_text()) | {"schema_version": version}))
    with pytest.raises(DataError, match="schema_version is "):
        store.read(record)


@pytest.mark.parametrize("number", ["1e400", "-1e400"])
def test_a_number_beyond_all_floats_breaks_a_record(record: Path, number: str) -> None:
    value = json.loads(record.read_text())
    record.write_text(json.dumps(value | {"evidence": {"a": "HERE"}}).replace('"HERE"', number))
    try:
        assert store.read(record).seal == "broken"
    except DataError as error:
        assert "not a whole record" in error.message  # noqa: PT017 - either is right


def test_a_record_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(DataError, match=r"cannot be read \(it is a pipe\)"):
        store.read(tmp_path / "a.json")


@pytest.mark.parametrize("text", [DEEP, "1" * 5_000, "nul", "", "[]", "\0"])
def test_results_of_clip_benchmark_that_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json"):
        export.read(tmp_path / "a.json")


def test_numbers_of_clip_benchmark_that_are_none(tmp_path: Path) -> None:
    metrics = '{"acc1": 0.5, "a": NaN, "b": 1e400, "c": 1%s}' % ("0" * 400)
    (tmp_path / "a.json").write_text(json.dumps(FOREIGN).replace("{}", metrics))
    (found,) = export.read(tmp_path / "a.json")
    assert found.metrics == {"acc1": 0.5}
    (tmp_path / "a.csv").write_text("dataset,model\n" + '"' + "x" * 200_000 + '",m\n')
    with pytest.raises(DataError, match=r"a\.csv"):
        export.read(tmp_path / "a.csv")


def test_a_caption_that_is_nested_is_none() -> None:
    source = ShardPairs.model_validate({"kind": "webdataset", "name": "a", "shards": ["a.tar"]})
    assert captions(DEEP.encode(), ".json", source) == []
    assert captions(b'{"caption": "a dog"}', ".json", source) == ["a dog"]


# ----------------------------------------------------------------------- places


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("CLIPBENCH_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(StorageError, match="there is no home folder") as caught:
        cache.cache_root()
    assert "CLIPBENCH_CACHE" in str(caught.value.hint)
    monkeypatch.setenv("CLIPBENCH_CACHE", "~nobody-of-this-name/x")
    with pytest.raises(ClipbenchError, match="where the home folder is, is not known"):
        cache.cache_root()


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        f"report --results {LONG}",
        f"list tasks --cards {LONG}",
        f"gate --candidate {LONG} --baseline HERE/results",
        f"site --results {LONG} --out HERE/site",
        f"site --results HERE/results --out {LONG}",
        f"check --results {LONG}",
        f"report --results HERE/results --beside {LONG}",
        f"pretrain --recipe clip-lite-digits --out {LONG}",
        f"data check animals --cards HERE/cards --data animals={LONG}",
        f"eval --model HERE/run --task animals-zs --cards HERE/cards --data animals=HERE/{LONG}",
        f"gate --candidate HERE/results --baseline HERE/results --junit {LONG}",
    ],
)
@pytest.mark.usefixtures("record")
def test_a_name_that_no_file_system_takes(run: Run, place: Place, arguments: str) -> None:
    done = run(*arguments.replace("HERE", str(place.root)).split())
    assert done.code == 2
    assert "error: " in done.err
    assert "Traceback" not in done.err
    assert "too long" in done.err
    assert len(done.err) < 2_000


@pytest.mark.parametrize("kind", ["file", "loop", "lost"])
def test_check_does_not_pass_over_what_is_no_folder(run: Run, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "results"
    if kind == "file":
        path.write_text("x")
    else:
        path.symlink_to(path if kind == "loop" else tmp_path / "gone")
    mended(run("check", "--results", path), f"{path} is no folder of records", "--results DIR")


def test_other_errors_of_the_system_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise PermissionError(13, "Permission denied", "a")

    monkeypatch.setattr(cli, "app", broken)
    with pytest.raises(PermissionError):
        cli.main()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_terminal_and_any_name_can_be_printed(tmp_path: Path, encoding: str) -> None:
    cards = small.write_task(tmp_path / "cards", "animals", title="動物 – ♞")
    arguments: dict[str, list[Any]] = {
        "tables": ["list", "tasks", "--cards", cards],
        "json": ["list", "tasks", "--cards", cards, "--json"],
        "names": ["eval", "--model", b"m\xff.pt", "--task", "animals-zs", "--cards", cards],
        "data": [
            "eval",
            "--model",
            "gone",
            "--task",
            "animals-zs",
            "--cards",
            cards,
            "--data",
            b"animals=/d\xff",
        ],
        "results": ["report", "--results", b"/r\xff"],
        "cards": ["list", "tasks", "--cards", b"/c\xff"],
    }
    if encoding != "ascii":  # a second each
        arguments = {"json": arguments["json"], "names": arguments["names"]}
    for kind, words in arguments.items():
        done = subprocess.run(
            [sys.executable, "-m", "clipbench", *words],
            capture_output=True,
            env=os.environ | {"PYTHONIOENCODING": f"{encoding}:strict", "LC_ALL": "C"},
        )
        assert b"Traceback" not in done.stderr, (kind, done.stderr)
        assert done.returncode == (0 if kind in ("tables", "json") else 2), (kind, done.stderr)


def test_a_summary_that_cannot_be_written_changes_no_verdict(
    run: Run, place: Place, record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "/dev/full")
    done = run("gate", "--candidate", place.results, "--baseline", place.results, "--cards", place.cards)
    assert done.code in (0, 1)
    assert "the summary cannot be written to /dev/full" in done.err
    assert "Traceback" not in done.err
    assert done.out


@pytest.mark.parametrize("option", ["--candidate", "--baseline"])
def test_gate_names_an_option_that_it_has(run: Run, place: Place, record: Path, option: str) -> None:
    folders = {"--candidate": place.results, "--baseline": place.results} | {option: place.root / "gone"}
    done = run("gate", *(part for pair in folders.items() for part in pair))
    mended(done, "no results folder at", f"with {option}")


def test_compare_names_models_and_not_their_folders(run: Run, place: Place, record: Path) -> None:
    model = store.read(record).record.model
    assert record.parent.name != model
    done = run("compare", model.replace("run", "rum"), model, "--results", place.results)
    mended(done, f'did you mean "{model}"?')


def test_scores_that_are_not_finite_are_not_sent_to_fp32_in_fp32() -> None:
    import numpy as np

    with pytest.raises(DataError) as caught:
        classification.rank_of_target(np.full((2, 3), np.nan, np.float32), np.zeros(2, np.int64))
    assert "where the precision was bf16 or fp16" in str(caught.value.hint)


@pytest.mark.parametrize("as_zip", [True, False])
def test_a_malicious_checkpoint_is_called_what_it_is(tmp_path: Path, as_zip: bool) -> None:
    import torch

    witness = tmp_path / "witness"
    torch.save({"a": small.Caller(witness)}, tmp_path / "a.pt", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(WeightsError) as caught:
        read_state_dict(tmp_path / "a.pt")
    assert "holds more than tensors (posix.mkdir): reading it could run code" in caught.value.message
    assert "weights_only" not in str(caught.value)
    assert not witness.exists()
