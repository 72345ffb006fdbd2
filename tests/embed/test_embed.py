"""`clipbench embed` from the command line: every form of source, what is written, and that it resumes."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import collected
import commandline
import faiss
import numpy as np
import pytest
import small
from collected import Picture, encoded, pictures, written
from numpy.typing import NDArray

from clipbench.utils import storage
from clipbench.utils.cache import write_atomic

run = commandline.run
Start = Callable[..., commandline.Done]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: commandline.Run) -> Start:
    """`clipbench embed` of `source` into `out`, with a small model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    small.write_run(tmp_path / "run")

    def start(source: str | Path, *more: str, out: str = "out", model: str = "run") -> commandline.Done:
        options = ["--precision", "fp32", "--workers", "0", "--dtype", "float32"]
        return run("embed", "--model", model, "--data", source, "--out", out, *options, *more)

    return start


def refused(done: commandline.Done, *words: str) -> None:
    """Assert that `done` ended with an error of the user's, behind what is said of the source."""
    assert done.code == 2, done
    assert "Traceback" not in done.err
    assert "error: " in done.err
    for word in words:
        assert word in done.err, done.err


def close(found: NDArray[Any] | None, expected: NDArray[Any]) -> None:
    assert found is not None
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-6


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file of a folder: inode and time."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


SAMPLES = pictures(11)
SOURCES: dict[str, Callable[[Path], str]] = {
    "tars": lambda at: str(collected.write_tars(at / "tars", SAMPLES, 4)),
    "gz": lambda at: str(collected.write_tars(at / "packed", SAMPLES, 4, ".tar.gz")),
    "pattern": lambda at: f"{collected.write_tars(at / 'tars', SAMPLES, 4)}/{{00000..00002}}.tar",
    "star": lambda at: f"{collected.write_tars(at / 'tars', SAMPLES, 4)}/*.tar",
    "parquet": lambda at: str(collected.write_table(at / "t" / "a.parquet", SAMPLES).parent),
    "bytes": lambda at: str(collected.write_table(at / "a.parquet", SAMPLES, struct=False)),
    "csv": lambda at: str(collected.write_list(at / "list.csv", SAMPLES)),
    "tsv": lambda at: str(collected.write_list(at / "list.tsv", SAMPLES)),
    "jsonl": lambda at: str(collected.write_list(at / "list.jsonl", SAMPLES)),
    "list of tars": lambda at: str(_list_of_tars(at)),
}


def _list_of_tars(at: Path) -> Path:
    collected.write_tars(at / "tars", SAMPLES, 4)
    path = at / "tars.txt"
    path.write_text("".join(f"tars/{number:05d}.tar\n" for number in range(3)))
    return path


@pytest.mark.parametrize("kind", SOURCES)
def test_rows_are_those_of_an_evaluation(start: Start, tmp_path: Path, kind: str) -> None:
    done = start(SOURCES[kind](tmp_path), "--texts", "--rows", "4")
    assert done.code == 0, done.err
    images, texts = encoded(tmp_path / "run", SAMPLES)
    found = written(tmp_path / "out")
    assert found.keys == [sample.key for sample in SAMPLES]
    assert found.metadata["caption"] == [sample.caption for sample in SAMPLES]
    assert found.images is not None
    assert found.texts is not None
    assert found.images.dtype == np.float32
    close(found.images, images)
    close(found.texts, texts)
    close(np.array(found.metadata["similarity"]), (images * texts).sum(axis=1))
    manifest = found.manifest
    assert manifest["complete"]
    assert manifest["parts"] == {"all": 3, "finished": 3, "failed": {}}
    assert (manifest["samples"], manifest["rows"], manifest["bad"]["count"]) == (11, 11, 0)
    if "tar" in kind:
        assert found.metadata["width"] == list(range(11))
        assert found.metadata["url"][1] == "https://example.org/00001"
        assert found.metadata["image_path"][4].endswith("/00004.png")
        assert "JSON" not in done.said


def test_images_of_a_folder_with_captions_beside_them(start: Start, tmp_path: Path) -> None:
    done = start(collected.write_folder(tmp_path / "data", SAMPLES), "--texts")
    assert done.code == 0, done.err
    found = written(tmp_path / "out")
    own = {sample.key: sample for sample in SAMPLES}
    assert len(found.keys) == 11
    assert found.keys[0] == "a/00000.png"
    assert found.metadata["caption"] == [own[key[2:7]].caption for key in found.keys]
    images, _ = encoded(tmp_path / "run", [own[key[2:7]] for key in found.keys])
    close(found.images, images)
    assert "1 files .md" in done.said


def test_types_of_a_table_stay_and_bytes_are_left_out(start: Start, tmp_path: Path) -> None:
    source = collected.write_table(tmp_path / "a.parquet", SAMPLES)
    done = start(source)
    assert "image from column 'image', caption from column 'TEXT', key from column 'id'" in done.said
    assert "not kept: thumbnail" in done.said
    import pyarrow.parquet as pq

    schema = pq.read_schema(tmp_path / "out" / "metadata" / "metadata_0.parquet")
    assert schema.names == ["key", "image_path", "caption", "url", "height"]
    assert str(schema.field("height").type) == "int16"


def test_texts_alone(start: Start, tmp_path: Path) -> None:
    texts = ["a  cat", "a dog", "line\nbreak"]
    (tmp_path / "texts.json").write_text(json.dumps(texts))
    done = start("texts:texts.json")
    assert done.code == 0, done.err
    found = written(tmp_path / "out")
    assert found.images is None
    assert found.metadata["caption"] == texts
    _, rows = encoded(tmp_path / "run", [Picture(str(i), collected.png(i), t) for i, t in enumerate(texts)])
    close(found.texts, rows)
    refused(start("texts:texts.json", "--texts", out="other"), "--texts")


def test_one_table_a_part(start: Start, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    source = collected.write_tars(tmp_path / "tars", SAMPLES, 4)
    assert start(source, "--texts", "--format", "parquet", out="tables").code == 0
    assert start(source, "--texts").code == 0
    found = pq.read_table(tmp_path / "tables" / "embeddings")
    rows = written(tmp_path / "out")
    assert found["key"].to_pylist() == rows.keys
    np.testing.assert_array_equal(np.stack(found["image_embedding"].to_numpy()), rows.images)
    np.testing.assert_array_equal(np.stack(found["text_embedding"].to_numpy()), rows.texts)


def test_float16_is_the_default_and_faiss_reads_it(tmp_path: Path, run: commandline.Run) -> None:
    small.write_run(tmp_path / "run")
    samples = pictures(40)
    source = collected.write_tars(tmp_path / "tars", samples, 15)
    assert run("embed", "-m", tmp_path / "run", "--data", source, "--out", tmp_path / "out").code == 0
    found = written(tmp_path / "out")
    assert found.images is not None
    assert found.images.dtype == np.float16
    rows, _ = encoded(tmp_path / "run", samples)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(found.images.astype(np.float32))
    _, nearest = index.search(rows, 1)
    assert [found.keys[row] for row in nearest[:, 0]] == [sample.key for sample in samples]


def test_a_second_run_does_nothing(start: Start, tmp_path: Path) -> None:
    source = collected.write_tars(tmp_path / "tars", SAMPLES, 4)
    start(source, "--texts")
    before = state(tmp_path / "out")
    done = start(source, "--texts")
    assert done.code == 0
    assert done.out.startswith("0 rows in 0 parts written now")
    after = state(tmp_path / "out")
    manifest = str(tmp_path / "out" / "manifest.json")
    assert {k: v for k, v in after.items() if k != manifest} == {
        k: v for k, v in before.items() if k != manifest
    }


class Killed(BaseException):
    """As if the process were gone."""


@pytest.mark.parametrize("writes", range(1, 13))
def test_killed_after_any_write_it_goes_on(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    source = collected.write_tars(tmp_path / "tars", SAMPLES, 4)
    left = [writes]

    def dying(path: Path, *data: bytes | memoryview) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        write_atomic(path, *data)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_atomic", dying)
        with pytest.raises(Killed):
            start(source, "--texts")
    finished = {path for path in state(tmp_path / "out") if "parts" in path}
    kept = {path: of for path, of in state(tmp_path / "out").items() if path in finished}
    assert start(source, "--texts").code == 0
    assert start(source, "--texts", out="whole").code == 0
    after = state(tmp_path / "out")
    assert {path: after[path] for path in kept} == kept  # what was finished is not made again
    for path in (tmp_path / "whole").rglob("*"):
        if path.suffix in (".npy", ".json", ".parquet"):
            assert (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "out").rglob("*.part*"))) == 0


def test_bad_samples_are_left_out_and_named(start: Start, tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    good = pictures(4)
    with tarfile.open(tars / "0.tar", "w") as tar:
        for sample in good:
            collected.add(tar, f"{sample.key}.png", sample.image)
            collected.add(tar, f"{sample.key}.txt", sample.caption.encode())
        collected.add(tar, "cut.png", good[0].image[:30])
        collected.add(tar, "cut.txt", b"a picture")
        collected.add(tar, "silent.png", good[0].image)
        collected.add(tar, "bare.txt", b"no image here")
        collected.add(tar, "twice.png", good[0].image)
        collected.add(tar, "twice.png", good[1].image)
    done = start(tars, "--texts")
    assert done.code == 0, done.err
    found = written(tmp_path / "out")
    assert found.keys == [sample.key for sample in good]
    told = json.loads((tmp_path / "out" / "parts" / "0.json").read_text())
    reasons = dict(told["bad"])
    assert set(reasons) == {"cut", "silent", "bare", "twice"}
    assert reasons["silent"] == "no caption"
    assert reasons["bare"] == "no image"
    assert "cannot be decoded" in reasons["cut"]
    assert "two images" in reasons["twice"]
    assert found.manifest["bad"]["count"] == 4
    assert "4 samples left out" in done.said
    refused(start(tars, "--on-bad-image", "stop", out="other"), "--on-bad-image skip")
    assert start(tars).code == 2  # another choice of captions than that of the folder


def test_keys_that_are_there_twice(start: Start, tmp_path: Path) -> None:
    collected.write_tars(tmp_path / "tars", pictures(4), 4)
    shutil.copy(tmp_path / "tars" / "00000.tar", tmp_path / "tars" / "00001.tar")
    done = start(tmp_path / "tars")
    assert done.code == 0
    assert "4 keys stand in more than one part: 00000, 00001, 00002" in done.said
    rows = [{"image": "a.png", "id": "k"}, {"image": "a.png", "id": "k"}]
    (tmp_path / "a.png").write_bytes(SAMPLES[0].image)
    (tmp_path / "list.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert start("list.jsonl", out="listed").code == 0
    found = written(tmp_path / "listed")
    assert found.keys == ["k"]
    assert found.manifest["bad"]["first"][0]["reason"] == "its key is there twice"


def test_a_part_that_is_damaged_is_told_of_and_tried_again(start: Start, tmp_path: Path) -> None:
    source = collected.write_tars(tmp_path / "tars", SAMPLES, 4)
    whole = (source / "00001.tar").read_bytes()
    (source / "00001.tar").write_bytes(whole[:3000] + bytes(len(whole) - 3000 - 7) + b"garbage")
    done = start(source)
    assert done.code == 2
    assert "00001.tar was not embedded" in done.err
    assert "the same command then embeds them" in done.err
    found = written(tmp_path / "out")
    assert found.keys == [s.key for i, s in enumerate(SAMPLES) if i // 4 != 1]
    assert not found.manifest["complete"]
    assert list(found.manifest["parts"]["failed"]) == ["00001.tar"]
    before = state(tmp_path / "out" / "img_emb")
    (source / "00001.tar").write_bytes(whole)
    assert start(source).code == 0
    after = written(tmp_path / "out")
    assert after.keys == [sample.key for sample in SAMPLES]
    assert after.manifest["complete"]
    assert {path: state(tmp_path / "out")[path] for path in before} == before


def test_other_settings_and_foreign_folders_are_refused(start: Start, tmp_path: Path) -> None:
    source = collected.write_tars(tmp_path / "tars", SAMPLES, 4)
    assert start(source).code == 0
    small.write_run(tmp_path / "other", seed=1)
    refused(start(source, model="other"), "model.weights_sha256 was", "another --out")
    refused(start(source, "--texts"), "texts was false, and is true now")
    refused(start(source, "--format", "parquet"), 'format was "npy"')
    shutil.copy(source / "00000.tar", source / "00009.tar")
    refused(start(source), "source.parts was 3, and is 4 now", "source.contents was")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    refused(start(source, out="mine"), "not a folder of embeddings", "notes.txt")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    (tmp_path / "out" / "manifest.json").write_text("{}")
    refused(start(source), "is no manifest")


def test_shares_make_the_whole(start: Start, tmp_path: Path) -> None:
    source = collected.write_tars(tmp_path / "tars", SAMPLES, 2)
    for share, parts in (("0/3", 2), ("2/3", 4), ("1/3", 6)):
        done = start(source, "--shard", share)
        assert f"has {min(parts * 2, 11)} rows" in done.said or parts < 6
        assert f"{parts} of 6 parts" in done.said
    assert written(tmp_path / "out").keys == [sample.key for sample in SAMPLES]
    for wrong in ("3/3", "x", "1", "1/0", "-1/2"):
        refused(start(source, f"--shard={wrong}", out="other"), "--shard", "0/8")


def test_scores_are_kept_above_a_threshold(start: Start, tmp_path: Path) -> None:
    source = collected.write_tars(tmp_path / "tars", SAMPLES, 4)
    start(source, "--texts")
    scores = written(tmp_path / "out").metadata["similarity"]
    least = float(np.sort(scores)[6])
    done = start(source, "--texts", "--min-score", repr(least), out="filtered")
    assert done.code == 0, done.err
    files = sorted((tmp_path / "filtered" / "kept").iterdir())
    kept = [line for file in files for line in file.read_text().split()]
    assert kept == [s.key for s, score in zip(SAMPLES, scores, strict=True) if score >= least]
    assert "5 have a cosine of at least" in done.said
    refused(start(source, "--min-score", "0.1", out="third"), "add --texts")


def test_other_stores(start: Start, tmp_path: Path) -> None:
    import fsspec

    source = collected.write_tars(tmp_path / "tars", SAMPLES, 4)
    store = fsspec.filesystem("memory")
    for path in source.glob("*.tar"):
        store.pipe_file(f"/bucket/tars/{path.name}", path.read_bytes())
    try:
        assert start(source).code == 0
        done = start("memory://bucket/tars", out="memory://bucket/rows")
        assert done.code == 0, done.err
        again = start("memory://bucket/tars", out="memory://bucket/rows")
        assert again.out.startswith("0 rows in 0 parts")
        for path in (tmp_path / "out").rglob("*.npy"):
            name = path.relative_to(tmp_path / "out").as_posix()
            assert store.cat_file(f"/bucket/rows/{name}") == path.read_bytes()
        refused(start("memory://bucket/nothing"), "there is no file or folder")
    finally:
        store.rm("/bucket", recursive=True)
    refused(start("https://example.org/0.tar"), "https:// is not read")
    refused(start("foo://bucket/0.tar"), "foo:// is not read")
    refused(start("s3://bucket/0.tar"), "pip install s3fs")


def test_it_is_scored_as_a_model(start: Start, tmp_path: Path, run: commandline.Run) -> None:
    small.write_task(tmp_path / "cards")
    data = small.write_images(tmp_path / "data", 60)
    task = ["--task", "animals-zs", "--cards", "cards", "--data", f"animals={data}"]
    assert run("data", "inputs", "animals-zs", *task[2:], "--out", "inputs").code == 0
    assert start("data/test", out="rows/animals/test").code == 0
    assert start("texts:inputs/texts.json", out="rows/texts").code == 0
    own = ["--results", "results", "--precision", "fp32", "--json"]
    done = run("eval", "--model", "embeddings:rows", "--model", "run", *task, *own)
    assert done.code == 0, done.err
    given, model = json.loads(done.out)
    assert given["scores"].keys() == model["scores"].keys()
    for name, score in given["scores"].items():
        assert score["value"] == pytest.approx(model["scores"][name]["value"], abs=1e-6)
        assert score["n"] == 60
    (tmp_path / "rows" / "animals" / "test" / "parts" / "0.json").unlink()
    small.write_run(tmp_path / "other", seed=1)
    shutil.rmtree(tmp_path / "rows" / "texts")
    assert start("texts:inputs/texts.json", out="rows/texts", model="other").code == 0
    done = run("eval", "--model", "embeddings:rows", *task, *own)
    assert done.code == 2
    assert "were not embedded alike" in done.err


def test_an_image_that_vanished_is_named(start: Start, tmp_path: Path) -> None:
    source = collected.write_list(tmp_path / "list.txt", SAMPLES)
    (tmp_path / "files" / "00003.png").unlink()
    done = start(source)
    assert done.code == 0
    found = written(tmp_path / "out")
    assert found.keys == [f"files/{s.key}.png" for s in SAMPLES if s.key != "00003"]
    assert found.manifest["bad"]["first"][0]["key"] == "files/00003.png"


def test_columns_that_are_called_as_ours(start: Start, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(SAMPLES[0].image)
    row = {"image": "a.png", "caption": "a", "similarity": 0.5, "mixed": [1, {"a": None}], "flag": True}
    (tmp_path / "list.jsonl").write_text(json.dumps(row))
    done = start("list.jsonl", "--texts")
    assert done.code == 0, done.err
    found = written(tmp_path / "out").metadata
    assert found["own_similarity"] == [0.5]
    assert found["similarity"] != [0.5]
    assert json.loads(found["mixed"][0]) == [1, {"a": None}]
    assert found["flag"] == [True]
    assert "the column similarity is called own_similarity" in done.said


def test_output_fits_80_columns(start: Start, tmp_path: Path) -> None:
    source = collected.write_tars(Path("tars"), SAMPLES, 4)
    with tarfile.open(source / "00003.tar", "w") as tar:
        collected.add(tar, "x.png", b"no image")
    done = start("tars", "--texts")
    assert all(len(line) <= 80 for line in done.out.splitlines()), done.out
