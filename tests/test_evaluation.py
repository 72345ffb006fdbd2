"""The whole path: records that are complete, features that are reused, shared, resumed and never stale."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small
from measuring import measure, record_of
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, recall_score

from clipbench import evaluation
from clipbench.cards.base import fingerprint
from clipbench.cards.model import Preprocess
from clipbench.catalog import Catalog
from clipbench.data.decode import decode_and_remark
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Sample, Split, Subset
from clipbench.encoding import plans
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.feature_store import FOLDER, SHARD_ROWS
from clipbench.encoding.images import Encoded
from clipbench.encoding.images import encode as encode_images_of
from clipbench.encoding.model_features import ModelFeatures
from clipbench.encoding.runtime import Runtime
from clipbench.errors import DataError, NotApplicable
from clipbench.evaluation import limited
from clipbench.models import dual
from clipbench.models.adapter import Compared
from clipbench.models.towers.adapters import DualAdapter
from clipbench.protocols import registry
from clipbench.protocols.base import Needs, Params, Protocol
from clipbench.records import store
from clipbench.records.record import Record, same

one_thread = small.one_thread
MANY = 3_000  # six shards


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    return small.write_task(tmp_path / "cards")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """60 pictures of 5 classes."""
    return small.write_parquet(tmp_path / "data" / "test.parquet", 60).parent


# ------------------------------------------------------------------------ the record


def test_digits_end_to_end_gives_a_complete_record(tmp_path: Path) -> None:
    (result,) = measure(["digits-clip-lite"], ["digits-zs"])
    path = store.write(record_of(result), result.samples, tmp_path)
    record = store.read(path).record
    assert (record.schema_version, record.model, record.task) == (3, "digits-clip-lite", "digits-zs")
    assert record.protocol.name == "zs"
    assert record.protocol.params == {
        "primary": "acc1", "templates": "default", "split": "test", "difficult": None
    }  # fmt: skip
    assert record.primary == "acc1"
    assert set(record.scores) == {"acc1", "acc5", "mean_per_class_recall", "ece"}
    assert record.scores["acc1"].value >= 0.95
    for score in record.scores.values():
        assert score.ci95[0] <= score.value <= score.ci95[1]
        assert score.n == 360
    assert record.scores["acc1"].chance == 0.1
    assert list(record.per_class["recall"]) == [str(digit) for digit in range(10)]
    assert (record.seed, record.limit, record.skipped) == (0, None, ())
    assert record.precision == "fp32"
    assert record.device
    assert {"clipbench", "torch", "numpy"} <= set(record.env.packages)
    card = Catalog().model("digits-clip-lite").card
    split = open_split(Catalog().dataset("digits"), "test", DataPaths({}, ()))
    assert record.fingerprints == {
        "model_card": fingerprint(card.canonical()),
        "task_card": fingerprint(Catalog().dataset("digits").card.canonical()),
        "weights": card.weights.sha256,
        "split:test": split.fingerprint,
    }
    assert record.encoder == {
        "plans": {"test:joint": "plain", "text:joint": "plain"},
        "devices": [record.device],
        "texts": {"text:joint": {"texts": 10, "cut": 0, "tokens": 400, "tokens_lost": 0}},
    }
    assert record.cards.model == card.canonical()
    assert record.cards.task["classes"] == [str(digit) for digit in range(10)]


def test_timing_adds_up_and_counts_the_work() -> None:
    (result,) = measure(["digits-clip-lite"], ["digits-zs"])
    timing = record_of(result).timing
    assert timing.total_s == pytest.approx(sum(timing.stages.values()))
    assert {"load", "open", "encode images", "encode texts", "score"} <= timing.stages.keys()
    assert timing.stages["encode images"] == pytest.approx(timing.encode_images_s, rel=0.2, abs=0.1)
    assert min(timing.load_s, timing.encode_images_s, timing.encode_texts_s, timing.score_s) > 0
    assert (timing.images_encoded, timing.texts_encoded) == (360, 10)
    assert timing.images_per_s == pytest.approx(360 / timing.encode_images_s)


def test_scores_can_be_recomputed_from_the_samples_file(tmp_path: Path) -> None:
    (result,) = measure(["digits-clip-lite"], ["digits-zs"])
    record = record_of(result)
    path = store.write(record, result.samples, tmp_path)
    table = pq.read_table(store.samples_path(path)).to_pandas()
    assert table["id"].is_unique
    assert len(table) == 360
    target, prediction = table["target"], table["prediction"]
    scores = {name: score.value for name, score in record.scores.items()}
    assert scores["acc1"] == pytest.approx(accuracy_score(target, prediction))
    assert scores["acc5"] == pytest.approx((table["rank"] < 5).mean())
    assert scores["mean_per_class_recall"] == pytest.approx(recall_score(target, prediction, average="macro"))
    recalls = recall_score(target, prediction, average=None)
    assert list(record.per_class["recall"].values()) == pytest.approx(list(recalls))
    bins = np.minimum((table["confidence"] * 15).astype(int), 14)
    gaps = (table["confidence"] - (target == prediction)).groupby(bins).sum().abs()
    assert scores["ece"] == pytest.approx(gaps.sum() / len(table))


def test_the_same_run_gives_the_same_record_from_the_cache_and_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, again = (record_of(measure(["digits-clip-lite"], ["digits-zs"])[0]) for _ in range(2))
    monkeypatch.setenv("CLIPBENCH_CACHE", str(tmp_path / "other"))
    anew = record_of(measure(["digits-clip-lite"], ["digits-zs"])[0])
    assert same(first, again)
    assert same(first, anew)
    assert again.timing.images_encoded == again.timing.texts_encoded == 0


# ------------------------------------------------------------------- encode only once


def test_a_second_task_on_cached_features_encodes_nothing() -> None:
    first = record_of(measure(["digits-clip-lite"], ["digits-zs"])[0])
    second = record_of(measure(["digits-clip-lite"], ["digits-zs@simple"])[0])
    assert first.timing.images_encoded == 360
    assert second.timing.images_encoded == 0
    assert second.timing.encode_images_s == 0
    assert second.timing.images_per_s is None
    assert second.timing.texts_encoded == 10


def test_tasks_of_one_call_share_their_features() -> None:
    found = measure(["digits-clip-lite"], ["digits-zs", "digits-zs@simple"])
    assert [record_of(r).timing.images_encoded for r in found] == [360, 0]


def decode_calls(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What `decode` is given from now on."""
    seen: list[bytes] = []

    def counted(data: bytes, preprocess: Preprocess) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
        seen.append(data)
        return decode_and_remark(data, preprocess)

    monkeypatch.setattr("clipbench.data.decode_stream.decode_and_remark", counted)
    return seen


def feature_files(cache: Path) -> dict[str, str]:
    """Shard, or plan → sha256 of its file."""
    return {
        name: digest
        for name, digest in small.digest(cache / FOLDER).items()
        if name.endswith((".shard", "plan.json"))
    }


def test_what_a_task_needs_is_worked_out_and_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One plan a task and model: no second look, neither for the splits, nor for encoding, nor by the protocol."""
    asked: list[str] = []

    def counted(models: Sequence[ModelFeatures], split: Split, space: str) -> list[Encoded]:
        asked.append(f"{split.role}:{space}")
        return encode_images_of(models, split, space)

    found = registry.protocol("lp")

    def needs(params: Params, compared: Compared) -> Needs:
        asked.append("needs")
        return found.needs(params, compared)

    monkeypatch.setattr(evaluation, "encode", counted)
    monkeypatch.setattr(
        Protocol, "misfit", lambda *_: None
    )  # whether the card has the splits is asked before
    monkeypatch.setitem(registry._all().protocols, "lp", replace(found, needs=needs))
    (result,) = measure(["digits-clip-lite"], ["digits-lp"])
    assert record_of(result).protocol.name == "lp"
    assert asked == ["needs", "train:backbone", "test:backbone"]


def test_models_with_equal_preprocessing_share_one_decoding_pass(
    tmp_path: Path, cards: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [small.write_run(tmp_path / f"run{seed}", seed=seed) for seed in (0, 1)]
    runs.append(small.write_run(tmp_path / "larger", size=16))
    seen = decode_calls(monkeypatch)
    monkeypatch.setenv("CLIPBENCH_CACHE", str(tmp_path / "together"))
    together = measure(runs, ["animals-zs"], cards=cards, data=data)
    assert len(seen) == 2 * 60  # once for the two alike, once for the third
    assert len(set(seen)) == 60
    monkeypatch.setenv("CLIPBENCH_CACHE", str(tmp_path / "apart"))
    apart = [measure([run], ["animals-zs"], cards=cards, data=data)[0] for run in runs]
    assert len(seen) == (2 + 3) * 60
    for one, other in zip(together, apart, strict=True):
        assert same(record_of(one), record_of(other))
    assert feature_files(tmp_path / "together") == feature_files(tmp_path / "apart")
    # Two files each: images of three models, texts of two (the third has the weights of the first).
    assert len(feature_files(tmp_path / "together")) == 2 * (3 + 2)


def test_a_model_that_has_its_features_is_not_encoded_beside_one_that_lacks_them(
    tmp_path: Path, cards: Path, data: Path
) -> None:
    runs = [small.write_run(tmp_path / f"run{seed}", seed=seed) for seed in (0, 1)]
    measure(runs[:1], ["animals-zs"], cards=cards, data=data)
    found = measure(runs, ["animals-zs"], cards=cards, data=data)
    assert [record_of(r).timing.images_encoded for r in found] == [0, 60]


def test_two_names_of_one_checkpoint_encode_once(tmp_path: Path, cards: Path, data: Path) -> None:
    runs = [small.write_run(tmp_path / name, seed=0) for name in ("one", "copy")]
    found = [record_of(r) for r in measure(runs, ["animals-zs"], cards=cards, data=data)]
    assert [r.timing.images_encoded for r in found] == [60, 0]
    assert found[0].scores == found[1].scores


def test_whatever_can_change_a_feature_changes_its_key(
    tmp_path: Path, cards: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = small.write_run(tmp_path / "run")

    def key(space: str = "joint", precision: str = "fp32") -> str:
        runtime = Runtime.choose("cpu", precision)
        encoder = ModelEncoder(Catalog().model(str(run)), runtime, progress=False)
        entry = Catalog([cards]).dataset("animals")
        return encoder.file(open_split(entry, "test", DataPaths({"animals": data}, ())), space).folder.name

    keys = [key(), key(space="backbone"), key(precision="bf16")]
    small.write_run(run, seed=1)
    keys.append(key())
    card = (run / "card.yaml").read_text()
    (run / "card.yaml").write_text(card.replace('"size": 8', '"size": 9'))
    keys.append(key())
    (run / "card.yaml").write_text(card.replace("[0.5, 0.5, 0.5]", "[0.5, 0.5, 0.4]"))
    keys.append(key())
    with monkeypatch.context() as patch:
        patch.setattr(dual, "FAMILY", replace(dual.FAMILY, version=dual.FAMILY.version + 1))
        keys.append(key())
    small.write_parquet(data / "test.parquet", 61)
    keys.append(key())
    assert len(set(keys)) == len(keys)
    (run / "card.yaml").write_text(card.replace("Small 1", "Another title"))
    (run / "card.yaml").write_text(
        (run / "card.yaml").read_text().replace("[0.5, 0.5, 0.5]", "[0.5, 0.5, 0.4]")
    )
    assert key() == keys[-1]  # a title changes no feature


def test_a_new_checkpoint_in_the_same_place_gets_its_own_scores(
    tmp_path: Path, cards: Path, data: Path
) -> None:
    run = small.write_run(tmp_path / "run")
    first = record_of(measure([run], ["animals-zs"], cards=cards, data=data)[0])
    small.write_run(run, seed=1)
    second = record_of(measure([run], ["animals-zs"], cards=cards, data=data)[0])
    assert second.timing.images_encoded == 60
    assert first.fingerprints["weights"] != second.fingerprints["weights"]
    assert first.scores["ece"] != second.scores["ece"]


# ----------------------------------------------------------------------------- limit


def digits_split() -> Split:
    return open_split(Catalog().dataset("digits"), "test", DataPaths({}, ()))


def test_a_limited_sample_is_class_balanced_and_seeded() -> None:
    split = digits_split()
    sample = limited(split, 95, seed=0)
    assert len(sample) == 95
    counts = np.bincount(sample.labels, minlength=10)
    assert counts.max() - counts.min() <= 1
    assert isinstance(sample, Subset)
    assert (np.diff(sample.rows) > 0).all()
    assert sample.ids == [split.ids[row] for row in sample.rows]
    assert limited(split, 95, seed=0).fingerprint == sample.fingerprint
    assert limited(split, 95, seed=1).ids != sample.ids
    assert limited(split, len(split), seed=0) is split
    assert limited(split, None, seed=0) is split


class Labelled(Split):
    """Labels alone."""

    def __init__(self, labels: NDArray[np.int64] | NDArray[np.uint8]) -> None:
        self.dataset, self.role, self.fingerprint, self.classes = "d", "test", "0", ()
        self.labels, self.ids = labels, [str(i) for i in range(len(labels))]

    def samples(self, rows: NDArray[np.int64]) -> Iterator[Sample]:
        raise AssertionError("a sample is chosen by labels alone")


def test_rare_classes_give_all_they_have_and_the_others_fill_up() -> None:
    labels = np.repeat([0, 2, 3], [2, 50, 48])  # class 1 has no sample
    sample = limited(Labelled(labels), 22, seed=3)
    assert np.bincount(sample.labels).tolist() == [2, 0, 10, 10]


def test_a_multi_label_sample_is_a_plain_random_one() -> None:
    labels = (np.random.default_rng(0).random((50, 3)) < 0.5).astype(np.uint8)
    sample = limited(Labelled(labels), 10, seed=0)
    assert sample.labels.shape == (10, 3)
    assert len(set(sample.ids)) == 10


def test_a_limited_run_says_so_and_takes_rows_of_the_whole_split_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = record_of(measure(["digits-clip-lite"], ["digits-zs"], limit=50)[0])
    assert alone.limit == 50
    assert alone.scores["acc1"].n == 50
    assert alone.timing.images_encoded == 50
    monkeypatch.setenv("CLIPBENCH_CACHE", str(tmp_path / "other"))
    measure(["digits-clip-lite"], ["digits-zs"])
    reused = record_of(measure(["digits-clip-lite"], ["digits-zs"], limit=50)[0])
    assert reused.timing.images_encoded == 0
    assert reused.scores == alone.scores
    assert reused.per_class == alone.per_class
    whole = record_of(measure(["digits-clip-lite"], ["digits-zs"], limit=10_000)[0])
    assert whole.limit is None


# -------------------------------------------------------------- what a model cannot do


def test_what_a_model_cannot_do_is_no_record_and_no_zero(
    tmp_path: Path, cards: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_text(adapter: DualAdapter, space: str = "joint") -> None:
        raise NotApplicable(f"{adapter.card.title}: no text tower")

    monkeypatch.setattr(DualAdapter, "text_tower", no_text)
    run = small.write_run(tmp_path / "run")
    (result,) = measure([run], ["animals-zs"], cards=cards, data=data)
    assert result.record is None
    assert result.reason == "Small 0: no text tower"


# ---------------------------------------------------------- killed, and two at once


@pytest.fixture(scope="module", autouse=True)
def one_plan() -> Iterator[None]:
    """No trials of plans: on a busy machine another one may win, whose features differ in the last digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "SHARE", 0.0)
        yield


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 3,000 images, a model and a task card."""
    folder = tmp_path_factory.mktemp("many")
    small.write_parquet(folder / "data" / "test.parquet", MANY)
    small.write_run(folder / "run", size=32, width=16)
    small.write_task(folder / "cards")
    return folder


@pytest.fixture(scope="module")
def untouched(many: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, dict[str, str]]:
    """The record and the feature files of a run that nothing disturbs."""
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPBENCH_CACHE", str(cache))
        (result,) = measure([many / "run"], ["animals-zs"], cards=many / "cards", data=many / "data")
    return record_of(result), feature_files(cache)


PROGRAM = """
from clipbench import cli
from clipbench.encoding import plans
plans.SHARE = 0.0
cli.main()
"""


def start(many: Path, cache: Path, results: Path) -> subprocess.Popen[bytes]:
    """`clipbench eval` in a process of its own."""
    command = [
        *(sys.executable, "-c", PROGRAM, "eval", "--quiet", "--workers", "0", "--precision", "fp32"),
        *("--model", many / "run", "--task", "animals-zs", "--cards", many / "cards"),
        *("--data", f"animals={many / 'data'}", "--results", results),
    ]
    env = os.environ | {"CLIPBENCH_CACHE": str(cache), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen([str(part) for part in command], env=env)


def marks(cache: Path) -> int:
    """Finished shards of the one feature file that there is."""
    return len(list(cache.glob(f"{FOLDER}/*/*.shard")))


def test_a_killed_run_goes_on_and_ends_in_the_same_record(
    many: Path, untouched: tuple[Record, dict[str, str]], isolated_cache: Path, tmp_path: Path
) -> None:
    process = start(many, isolated_cache, tmp_path / "results")
    deadline = time.monotonic() + 120
    while marks(isolated_cache) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = marks(isolated_cache)
    assert 2 <= finished < MANY / SHARD_ROWS
    assert not (tmp_path / "results" / "run").exists()
    (result,) = measure([many / "run"], ["animals-zs"], cards=many / "cards", data=many / "data")
    record, files = untouched
    assert same(record_of(result), record)
    assert feature_files(isolated_cache) == files
    assert record_of(result).timing.images_encoded == MANY - finished * SHARD_ROWS


def test_two_runs_at_once_share_the_work_and_one_whole_file(
    many: Path, untouched: tuple[Record, dict[str, str]], isolated_cache: Path, tmp_path: Path
) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    processes = [start(many, isolated_cache, folder) for folder in folders]
    assert [process.wait(timeout=180) for process in processes] == [0, 0]
    found = [stored.record for folder in folders for stored in store.read_all(folder)]
    record, files = untouched
    assert len(found) == 2
    assert all(same(one, record) for one in found)
    assert sum(one.timing.images_encoded for one in found) == MANY
    assert feature_files(isolated_cache) == files


# --------------------------------------------------------------------------- memory

MEMORY = """
import re, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from measuring import measure, record_of
from clipbench.encoding.runtime import Runtime

def peak_mb():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

folder = Path(sys.argv[2])
for name in ("few", "many"):
    (result,) = measure([folder / "run"], ["animals-zs"], cards=folder / "cards", data=folder / name,
                        runtime=Runtime("cpu", "fp32", workers=int(sys.argv[3])))
    print(record_of(result).timing.images_encoded, peak_mb())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_peak_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    # 200 MB of files in all, 60 MB of pixels, 240 MB of normalised images: none may be held.
    small.write_parquet(tmp_path / "few" / "test.parquet", 2_000, padding=10_000)
    small.write_parquet(tmp_path / "many" / "test.parquet", 20_000, padding=10_000)
    small.write_run(tmp_path / "run", size=32, width=2, embed_dim=256)
    small.write_task(tmp_path / "cards")
    command = [sys.executable, "-c", MEMORY, str(Path(__file__).parent), str(tmp_path), "0"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    (few, before), (many, after) = (line.split() for line in done.stdout.splitlines())
    assert (few, many) == ("2000", "20000")
    assert float(after) - float(before) < 100


def test_a_task_without_its_data_says_so_and_the_next_one_follows(tmp_path: Path, cards: Path) -> None:
    run = small.write_run(tmp_path / "run")
    small.write_task(cards, "digits", source={"builtin": "digits"}, classes=[str(i) for i in range(10)])
    lost, found = measure([run], ["animals-zs", "digits-zs"], cards=cards)
    assert lost.record is None
    assert isinstance(lost.error, DataError)
    assert "--data animals=<folder>" in str(lost.error)
    assert record_of(found).task == "digits-zs"
