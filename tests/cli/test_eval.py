"""`clipbench eval`: what it prints and where, and every mistake in data, images, weights and folders."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import commandline
import numpy as np
import pytest
import small
import torch
from commandline import Place, Run, mended

from clipbench.data import digests
from clipbench.encoding import model_features
from clipbench.errors import NotApplicable
from clipbench.models.towers.adapters import DualAdapter
from clipbench.records import store

one_thread = small.one_thread
run, place = commandline.run, commandline.place


TASK_IDS = ["animals-zs", "animals-zs@simple"]


# --------------------------------------------------------------------- what it prints


def test_eval_prints_the_scores_and_writes_the_record(run: Run, place: Place) -> None:
    done = run(*place.eval())
    assert done.code == 0, done.err
    assert "acc1" in done.out
    assert "animals-zs" in done.out
    assert done.err == ""
    record = place.record()
    assert record.task == "animals-zs"
    assert f"{100 * record.scores['acc1'].value:.2f}" in done.out


def test_eval_json_is_json_and_nothing_else(run: Run, place: Place) -> None:
    done = run(*place.eval("--json", "--task", "animals-zs@simple"))
    assert done.code == 0
    found = json.loads(done.out)
    assert [r["task"] for r in found] == TASK_IDS
    assert found == [json.loads(path.read_text()) for path in store.paths(place.results)]


def test_quiet_prints_nothing(run: Run, place: Place) -> None:
    done = run(*place.eval("--quiet"))
    assert (done.code, done.out, done.err) == (0, "", "")
    assert place.record()


def test_models_and_tasks_may_be_repeated_or_separated_by_commas(run: Run, place: Place) -> None:
    small.write_run(place.root / "other", seed=1)
    done = run(
        *place.eval("--model", f"{place.root / 'other'},{place.root / 'run'}", "--task", "animals-zs@simple")
    )
    assert done.code == 0
    assert len(store.paths(place.results)) == 4


def test_limit_and_seed_stand_in_the_record(run: Run, place: Place) -> None:
    assert run(*place.eval("--limit", "10", "--seed", "3")).code == 0
    assert (place.record().limit, place.record().seed) == (10, 3)


def test_what_a_model_cannot_do_is_a_dash_and_no_failure(
    run: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_text(adapter: DualAdapter, space: str = "joint") -> None:
        raise NotApplicable("Small 0: no text tower")

    monkeypatch.setattr(DualAdapter, "text_tower", no_text)
    done = run(*place.eval())
    assert done.code == 0
    assert done.err.startswith("–")
    assert "× animals-zs: not applicable: Small 0: no text tower" in done.err
    assert store.paths(place.results) == []
    assert json.loads(run(*place.eval("--json")).out) == []


# -------------------------------------------------------------------------------- cards


def test_data_is_verified_when_that_is_asked_for(
    run: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    original = digests.sha256_file

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return original(path)

    monkeypatch.setattr(digests, "sha256_file", counting)
    monkeypatch.setattr(digests, "RACY_NS", 0)
    assert run(*place.eval()).code == 0
    hashed.clear()
    assert run(*place.eval()).code == 0
    assert hashed == []
    assert run(*place.eval("--verify-data")).code == 0
    assert len(hashed) == 60
    assert "--verify-data" in run("pretrain", "--help").out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title: [\n", ["mine.yaml:2:"]),
        ("title: a\ntitle: b\n", ['mine.yaml:2: duplicate key "title" (first at line 1)']),
        (
            "title: a\nclasses:\n  - yes\n  - b\n",
            ["mine.yaml:3: classes[0]: expected text, found the boolean true", "put it in quotes"],
        ),
        ("title: a\nclases: [a]\n", ['unknown key "clases"; did you mean "classes"?', "mine.yaml:2"]),
    ],
)
@pytest.mark.parametrize("command", ["eval", "list", "check"])
def test_a_card_that_is_wrong(run: Run, place: Place, command: str, text: str, words: list[str]) -> None:
    (place.root / "own" / "tasks").mkdir(parents=True)
    (place.root / "own" / "tasks" / "mine.yaml").write_text(text)
    arguments: dict[str, list[str | Path]] = {
        "eval": [*place.eval("--cards", place.root / "own"), "--task", "mine-zs"],
        "list": ["list", "tasks", "--cards", place.root / "own"],
        "check": ["check", "--cards", place.root / "own", "--json"],
    }
    done = run(*arguments[command])
    if command == "check":
        assert done.code == 2
        (problem,) = json.loads(done.out)["problems"]
        assert all(word in problem for word in words)
    elif command == "list":
        assert done.code == 0
        assert "digits-zs" in done.out
        assert all(word in done.err for word in ("left out: ", *words))
    else:
        mended(done, *words)


# --------------------------------------------------------------------------------- data


def test_a_data_folder_that_is_missing(run: Run, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    mended(
        run(*place.eval("--data", "digits=nowhere")), "no data folder nowhere (for digits)", "--data takes"
    )
    mended(run(*place.eval("--data", "nowhere")), "no data folder nowhere")
    monkeypatch.setenv("CLIPBENCH_DATA", "elsewhere")
    mended(run(*place.eval()), "no data folder elsewhere")
    monkeypatch.delenv("CLIPBENCH_DATA")
    without = [a for a in place.eval() if not str(a).startswith("animals=") and a != "--data"]
    mended(run(*without), "animals has no public copy to fetch", "--data animals=<folder>")


def test_a_data_folder_without_the_split(run: Run, place: Place) -> None:
    (place.root / "data" / "test").rename(place.root / "data" / "val")
    for path in (place.root / "data" / "val").rglob("*.png"):
        path.unlink()
    mended(run(*place.eval()), "animals: no test data in", "expected the authors", "test*.parquet")


def test_one_data_sets_error_does_not_end_the_others(run: Run, place: Place) -> None:
    small.write_task(place.cards, "lost")
    done = run(*place.eval("--task", "lost-zs"))
    assert done.code == 2
    assert "error: lost-zs: lost has no public copy to fetch" in done.err
    assert place.record().task == "animals-zs"


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["cat", "dog", "cow", "hen"], ["the data has 5 classes, the card 4", "first 'pig'", "label_names"]),
        (["cat", "dog", "cow", "hen", "pigs"], ["1 names are not on it, first 'pig'", 'is it "pigs"?']),
    ],
)
@pytest.mark.parametrize("layout", ["folder", "parquet"])
def test_class_counts_that_disagree_with_the_labels(
    run: Run, place: Place, classes: list[str], words: list[str], layout: str
) -> None:
    small.write_task(place.cards, classes=classes)
    small.write_parquet(place.root / "table" / "test.parquet", 20)
    mended(run(*place.eval(data="data" if layout == "folder" else "table")), "the labels of", *words)


def test_a_class_without_a_sample_is_no_disagreement(run: Run, place: Place) -> None:
    small.write_task(place.cards, classes=[*small.CLASSES, "fox"])
    assert run(*place.eval("--quiet")).code == 0
    assert place.record().per_class["recall"]["fox"] is None


def test_label_numbers_beyond_the_classes(run: Run, place: Place) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": small.picture(i), "path": None} for i in range(4)]
    (place.root / "numbers").mkdir()
    pq.write_table(
        pa.table({"image": images, "label": [0, 4, 5, 1]}), place.root / "numbers" / "test.parquet"
    )
    small.write_task(place.cards, "numbers")
    done = run(*place.eval("--task", "numbers-zs", "--data", f"numbers={place.root / 'numbers'}"))
    assert done.code == 2
    assert "has the label 5, but there are 5 classes (0 to 4); 1 such samples" in done.err
    assert "the class list of" in done.err


# ------------------------------------------------------------------------ corrupt images


def damage(place: Place) -> dict[str, Path]:
    """Damage three of the pictures, each in its own way; their ids."""
    paths = sorted((place.root / "data" / "test").rglob("*.png"))
    chosen = [paths[3], paths[20], paths[41]]
    whole = chosen[0].read_bytes()
    chosen[0].write_bytes(whole[: len(whole) // 2])
    chosen[1].write_bytes(b"")
    chosen[2].write_text("<html>not found</html>")
    return {path.relative_to(place.root / "data" / "test").as_posix(): path for path in chosen}


def test_a_corrupt_image_stops_the_run(run: Run, place: Place) -> None:
    ids = damage(place)
    done = run(*place.eval())
    mended(
        done, "cannot be decoded", "--on-bad-image skip", next(iter(ids)), "(and 2 more in the same batch)"
    )
    assert store.paths(place.results) == []


def test_skipped_images_are_counted_and_named_and_never_replaced(
    run: Run, place: Place, isolated_cache: Path
) -> None:
    run(*place.eval("--quiet"))
    whole = place.record()
    before = feature_rows(isolated_cache)
    ids = damage(place)
    assert run(*place.eval("--on-bad-image", "skip")).code == 0
    record = place.record()
    assert {skipped.id for skipped in record.skipped} == set(ids)
    assert all(skipped.reason for skipped in record.skipped)
    assert {score.n for score in whole.scores.values()} == {60}
    assert {score.n for score in record.scores.values()} == {57}
    after = [
        rows for rows in feature_rows(isolated_cache) if not any(np.array_equal(rows, b) for b in before)
    ]
    assert len(after) == 1
    gone = np.isnan(after[0]).all(axis=1)
    assert np.flatnonzero(gone).tolist() == [3, 20, 41]
    (images,) = [rows for rows in before if len(rows) == 60]
    np.testing.assert_allclose(after[0][~gone], images[~gone], atol=1e-6)
    samples = store.samples_path(store.paths(place.results)[0])
    assert not set(ids) & set(samples_ids(samples))
    # What was skipped once is still an error for who did not ask to skip.
    mended(run(*place.eval()), "cannot be decoded", "skipped when its features were cached")
    assert {row["skipped"] for row in json.loads(run("report", "--json").out)} == {3}


def feature_rows(cache: Path) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Every feature file's rows."""
    found = []
    for shard in sorted(cache.glob("features-2/*/00000.shard")):
        content = shard.read_bytes()
        header = json.loads(content[16 : 16 + int.from_bytes(content[8:12], "little")])
        shape = header["rows"], header["dim"]
        found.append(np.frombuffer(content[-shape[0] * shape[1] * 4 :], np.float32).reshape(shape))
    return found


def samples_ids(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    ids: list[str] = pq.read_table(path)["id"].to_pylist()
    return ids


# ----------------------------------------------------------------------------- weights


def test_a_checkpoint_that_does_not_fit(run: Run, place: Place) -> None:
    card = (place.root / "run" / "card.yaml").read_text()
    (place.root / "run" / "card.yaml").write_text(card.replace('"width": 8', '"width": 4'))
    mended(run(*place.eval()), "does not fit the architecture", "wrong shape", "check the card's config")


def test_a_checkpoint_of_another_architecture(run: Run, place: Place) -> None:
    path = place.root / "weights.pt"
    torch.save({"visual.conv1.weight": torch.zeros(3)}, path)
    done = run(*place.eval("--model", f"open_clip:RN50@{path}"))
    said, _, error = done.err.partition("\n")
    assert (
        "as of all published tags of RN50 (openai, yfcc15m, cc12m); GELU, as open_clip's RN50 has it" in said
    )
    assert (
        "if it was trained with QuickGELU, as its tags openai, yfcc15m, cc12m were, name RN50-quickgelu"
        in said
    )
    mended(
        replace(done, err=error), f"{path} does not fit the architecture: missing", "name the architecture"
    )


def test_a_file_with_another_hash_than_the_cards(run: Run, place: Place) -> None:
    small.write_run(place.root / "other", seed=1)
    (place.root / "other" / "model.safetensors").replace(place.root / "run" / "model.safetensors")
    mended(run(*place.eval()), "is not the file that the card means: sha256 is", "fetch it again")


def test_a_checkpoint_that_is_missing_or_broken(run: Run, place: Place) -> None:
    path = place.root / "run" / "model.safetensors"
    card = place.root / "run" / "card.yaml"
    card.write_text(re.sub(r', "sha256": "\w+"', "", card.read_text()))
    path.write_bytes(path.read_bytes()[:200])
    mended(run(*place.eval()), "is not a whole checkpoint", "write the file again")
    path.unlink()
    mended(run(*place.eval()), f"no checkpoint at {path}", "weights.file")


# ----------------------------------------------------------------------------- network


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and nothing fetched before."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.usefixtures("empty_hub")
def test_without_a_network_data_of_the_hub_is_asked_for_as_a_folder(run: Run, place: Place) -> None:
    done = run(*place.eval("--task", "cifar100-zs", "--quiet"))
    assert done.code == 2
    assert "the data set uoft-cs/cifar100 is not in the local cache and cannot be fetched" in done.err
    assert "with a local copy: --data cifar100=<folder>" in done.err
    assert place.record().task == "animals-zs"


@pytest.mark.usefixtures("empty_hub")
def test_without_a_network_weights_of_the_hub_are_asked_for_as_a_file(run: Run, place: Place) -> None:
    done = run(*place.eval("--model", "clip-rn50"))
    mended(
        done,
        "clip-rn50: the weights RN50@openai are not in the local cache and cannot be fetched",
        "--model open_clip:RN50-quickgelu@PATH",
    )


# ----------------------------------------------------------------------------- storage


def test_a_results_folder_that_cannot_be_made(run: Run, place: Place) -> None:
    place.results.write_text("a file")
    mended(run(*place.eval()), f"cannot create the folder {place.results}: File exists", "--results")
    mended(run(*place.eval("--results", place.results / "below")), "Not a directory")


def test_a_results_folder_that_cannot_be_written(
    run: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.results.mkdir()
    allowed = os.access
    # Simulated: whoever owns the machine may write anywhere.
    monkeypatch.setattr(
        os, "access", lambda path, mode: (path, mode) != (place.results, os.W_OK) and allowed(path, mode)
    )
    mended(run(*place.eval()), f"the folder {place.results} cannot be written", "choose another")


def test_a_disk_that_fills_up_while_features_are_written(
    run: Run, place: Place, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(place.root / "data")
    small.write_images(place.root / "data", 1100)
    monkeypatch.setattr(model_features, "_PROCESSES_WORTH", 10_000)
    synced = os.fsync
    room = 50_000  # one shard, and a little more

    def limited(handle: int) -> None:
        nonlocal room
        room -= os.fstat(handle).st_size
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        synced(handle)

    monkeypatch.setattr(os, "fsync", limited)
    mended(
        run(*place.eval()),
        "00001.shard: No space left on device (all features of this split need 0.1 MiB)",
        "set CLIPBENCH_CACHE",
        "finished shards are kept",
    )
    assert store.paths(place.results) == []
    monkeypatch.setattr(os, "fsync", synced)
    assert run(*place.eval("--quiet")).code == 0
    assert place.record().timing.images_encoded == 1100 - 512


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Any:
    """A real file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_is_really_full(
    run: Run, place: Place, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPBENCH_CACHE", str(tiny_disk))
    digits = ("eval", "--model", "digits-clip-lite", "--task", "digits-zs")
    mended(run(*digits), ".shard: No space left on device (all features of this split need 0.")
    (tiny_disk / "files.sqlite").unlink()
    with pytest.raises(OSError, match="No space left"), (tiny_disk / "rest").open("wb") as file:
        file.write(bytes(100_000))
    mended(run(*place.eval()), "cannot be kept in", "files.sqlite", "free some space")
    monkeypatch.delenv("CLIPBENCH_CACHE")
    monkeypatch.setenv("CLIPBENCH_CACHE", str(place.root / "cache"))
    mended(run(*digits, "--results", tiny_disk / "results"), "cannot", "No space left on device", "--results")


def test_a_damaged_cache_says_which_file(run: Run, place: Place, isolated_cache: Path) -> None:
    isolated_cache.mkdir(exist_ok=True)
    (isolated_cache / "files.sqlite").write_text("not a data base" * 100)
    done = run(*place.eval())
    assert done.code == 0
    assert f"{isolated_cache}/files.sqlite is damaged" in done.err
    assert "it is started anew" in done.err
