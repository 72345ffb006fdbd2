"""The protocol `ret`: metrics against a sorted score matrix, chance, limits, bad images, and from card to record."""

from __future__ import annotations

import json
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import small
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from clipbench.bench import retrieval as bench
from clipbench.catalog import Catalog
from clipbench.cli import app
from clipbench.data.paths import DataPaths
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, ClipbenchError, DataError
from clipbench.evaluation import Options, Result, evaluate
from clipbench.metrics import intervals
from clipbench.protocols import retrieval
from clipbench.records import store
from clipbench.solvers import ranking

one_thread = small.one_thread

Floats = NDArray[np.float32]


def write_set(folder: Path, images: int = 24, **card: Any) -> Path:
    """A set of captions and its card; returns the folder of the data. Image number n has n % 3 + 1 captions."""
    data = folder / "data"
    (data / "images").mkdir(parents=True)
    lines = ["image,caption"]
    for number in range(images):
        (data / f"images/{number:03d}.png").write_bytes(small.picture(number))
        lines += [f"{number:03d}.png,picture {number} seen {n} times" for n in range(number % 3 + 1)]
    (data / "captions.txt").write_text("\n".join(lines))
    fields = {
        "title": "Shots",
        "source": {"local": True},
        "splits": {"test": {"name": "test"}},
        "kind": "captions",
        "protocols": {"ret": {}},
    }
    (folder / "shots.yaml").write_text(json.dumps(fields | card))
    return data


def run(folder: Path, data: Path, **options: Any) -> Result:
    """The small model on the set in `folder`."""
    catalog = Catalog([folder])
    model = catalog.model(str(small.write_run(folder / "run", context=48)))
    given = Options(Runtime("cpu", "fp32"), DataPaths({"shots": data}, ()), progress=False, **options)
    (result,) = evaluate([model], [catalog.task("shots-ret")], given)
    if result.error:
        raise result.error
    return result


def brute(scores: Floats, owner: NDArray[np.int64], ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, float]:
    """Metrics of scores [N, M] without ties, by sorting."""
    order = np.argsort(-scores, axis=1)
    mine = owner[order] == np.arange(len(scores))[:, None]
    of_images = mine.argmax(axis=1)
    of_texts = (np.argsort(-scores, axis=0) == owner).argmax(axis=0)
    found: dict[str, float] = {}
    for name, rank in (("text_retrieval", of_images), ("image_retrieval", of_texts)):
        found |= {f"{name}_recall@{k}": float((rank < k).mean()) for k in ks}
        found |= {f"{name}_mean_rank": rank.mean() + 1, f"{name}_median_rank": float(np.median(rank)) + 1}
    found["mean_recall"] = float(np.mean([v for k, v in found.items() if "recall" in k]))
    for k in ks:
        found[f"mean_recall@{k}"] = (
            found[f"text_retrieval_recall@{k}"] + found[f"image_retrieval_recall@{k}"]
        ) / 2
    discount = 1 / np.log2(np.arange(len(owner)) + 2)
    found["image_retrieval_ndcg@10"] = float(((of_texts < 10) * discount[of_texts]).mean())
    best = np.cumsum(discount)[np.minimum(np.bincount(owner), 10) - 1]
    found["text_retrieval_ndcg@10"] = float(((mine * discount)[:, :10].sum(axis=1) / best).mean())
    wanted = np.bincount(owner)
    precision = np.cumsum(mine, axis=1) / np.arange(1, len(owner) + 1)
    inside = mine & (np.arange(len(owner)) < wanted[:, None])
    found["text_retrieval_map@R"] = float(((precision * inside).sum(axis=1) / wanted).mean())
    return found


def test_scores_are_those_of_a_sorted_matrix() -> None:
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(60), rng.integers(1, 14, 60))  # some have more captions than there are places
    images = rng.standard_normal((60, 16)).astype(np.float32)
    texts = (images[owner] + rng.standard_normal((len(owner), 16))).astype(np.float32)
    sides = ranking.rank(images, texts, owner, top=13)
    found = retrieval.scores(*sides, owner, (1, 5, 10), seed=0)
    expected = brute(images @ texts.T, owner)
    assert {name: score.value for name, score in found.items()} == pytest.approx(expected, abs=1e-12)
    for name, score in found.items():
        assert score.n == (len(owner) if name.startswith("image") else 60)
        assert score.ci95[0] <= score.value <= score.ci95[1]
        assert score.chance is not None
        better = score.value < score.chance if "rank" in name else score.value > score.chance
        assert better, name


@pytest.mark.parametrize("alike", ["none", "some", "all"])
def test_what_images_add_to_a_recall_is_its_mean(alike: str) -> None:
    """Also where the place of a target among equal scores is open, so that its mean rank does not say its hits."""
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(30), rng.integers(1, 6, 30))
    images, texts = (rng.standard_normal((n, 16)).astype(np.float32) for n in (30, len(owner)))
    if alike == "some":
        images, texts = np.sign(images[:, :4]), np.sign(texts[:, :4])
    elif alike == "all":
        images, texts = np.ones_like(images), np.ones_like(texts)
    sides = ranking.rank(images, texts, owner, top=10)
    table = retrieval._samples(np.arange(30).astype(object), *sides, owner, (1, 5, 10))
    assert any("_hit@" in name for name in table) == (alike != "none")
    for name, score in retrieval.scores(*sides, owner, (1, 5, 10), seed=0).items():
        if "recall" in name or "ndcg" in name:
            shares = retrieval._recalls(name, table, {"ks": [1, 5, 10]})
            assert shares is not None
            assert (shares.size, shares.mean()) == (30, pytest.approx(score.value)), name


@pytest.mark.parametrize(
    "step", [None, 0.5]
)  # scores of few values have many ties, some of them at the tenth place
def test_ndcg_is_scikit_learns(step: float | None) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(25), rng.integers(1, 14, 25))
    images, texts = (rng.standard_normal((n, 4)).astype(np.float32) for n in (25, len(owner)))
    if step:
        images, texts = (
            np.round(rows / step).astype(np.float32) * np.float32(step) for rows in (images, texts)
        )
    scores, mine = images @ texts.T, owner == np.arange(25)[:, None]
    sides = ranking.rank(images, texts, owner, top=13)
    found = retrieval.scores(*sides, owner, (1, 5, 10), seed=0)
    for way, relevant, by in (("text", mine, scores), ("image", mine.T, scores.T)):
        theirs = metrics.ndcg_score(relevant, by, k=10)  # ties count as their mean
        assert found[f"{way}_retrieval_ndcg@10"].value == pytest.approx(theirs, rel=1e-12)


def test_fewer_keys_than_the_depth_of_ndcg() -> None:
    owner = np.arange(4)
    found = retrieval.scores(
        *ranking.rank(np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32), owner), owner, (1,), 0
    )
    assert found["text_retrieval_ndcg@10"].value == 1
    assert found["text_retrieval_ndcg@10"].chance == pytest.approx(np.mean(1 / np.log2(np.arange(4) + 2)))


def test_a_constant_model_scores_chance_in_every_metric() -> None:
    owner = np.repeat(np.arange(40), (np.arange(40) % 4) + 1)
    images, texts = np.ones((40, 8), np.float32), np.full((len(owner), 8), 0.5, np.float32)
    found = retrieval.scores(*ranking.rank(images, texts, owner), owner, (1, 5, 10), seed=0)
    for name, score in found.items():
        assert score.value == pytest.approx(score.chance, rel=1e-14), name
    keys, counts = len(owner), np.bincount(owner)
    for k in (1, 5, 10):
        assert found[f"image_retrieval_recall@{k}"].value == pytest.approx(k / 40)
        guess = np.mean([1 - comb(keys - int(c), k) / comb(keys, k) for c in counts])
        assert found[f"text_retrieval_recall@{k}"].value == pytest.approx(guess)
    assert found["image_retrieval_mean_rank"].value == 20.5
    assert found["text_retrieval_mean_rank"].value == pytest.approx(((keys + 1) / (counts + 1)).mean())


def test_a_perfect_model_has_intervals_that_are_not_empty() -> None:
    owner = np.repeat(np.arange(30), 2)
    images = np.eye(30, dtype=np.float32)
    found = retrieval.scores(*ranking.rank(images, images[owner], owner), owner, (1,), seed=0)
    for name in ("mean_recall", "text_retrieval_recall@1", "image_retrieval_recall@1"):
        assert found[name].value == 1
        assert found[name].ci95 == pytest.approx(intervals.wilson(30, 30)), name
    assert found["text_retrieval_map@R"].value == 1


def test_captions_of_one_image_are_one_piece_of_evidence() -> None:
    rng = np.random.default_rng(1)
    hits = (rng.random(200) < 0.5).astype(np.float64)
    alone = intervals.grouped_share_score(hits, np.arange(200), None)
    together = intervals.grouped_share_score(np.repeat(hits, 5), np.repeat(np.arange(200), 5), None)
    assert (together.value, together.n) == (alone.value, 1000)
    assert together.ci95 == pytest.approx(alone.ci95)
    assert alone.ci95 == pytest.approx(intervals.wilson(hits.mean() * 199, 199))
    apart = intervals.grouped_share_score(np.repeat(hits, 5), np.tile(np.arange(200), 5), None)
    assert np.diff(apart.ci95) < np.diff(together.ci95)


# ------------------------------------------------------------------ end to end


def test_from_card_to_record(tmp_path: Path) -> None:
    data = write_set(tmp_path)
    result = run(tmp_path, data)
    record = result.record
    assert record is not None
    assert (record.primary, record.protocol.version) == ("mean_recall", 1)
    assert record.evidence == {"images": 24, "captions": 48, "captions_left_out": 0}
    columns = {"id", "text_rank", "top_texts_of", "image_rank", "top_image", "text_ndcg", "image_ndcg"}
    assert set(result.samples) == columns
    path = store.write(record, result.samples, tmp_path / "results")
    rows: list[dict[str, Any]] = pq.read_table(store.samples_path(path)).to_pylist()
    assert [len(row["image_rank"]) for row in rows[:3]] == [1, 2, 3]
    found = np.concatenate([row["image_rank"] for row in rows])
    assert record.scores["image_retrieval_mean_rank"].value == pytest.approx(found.mean())
    first = [row["top_texts_of"][0] == row["id"] for row in rows]
    assert record.scores["text_retrieval_recall@1"].value == np.mean(first)


def test_the_same_numbers_from_the_models_own_features(tmp_path: Path) -> None:
    from clipbench import api

    data = write_set(tmp_path)
    result = run(tmp_path, data)
    model = api.load_model(str(tmp_path / "run"), device="cpu", precision="fp32")
    lines = (data / "captions.txt").read_text().splitlines()[1:]
    names, texts = zip(*(line.split(",", 1) for line in lines), strict=True)
    images = model.encode_images([data / "images" / name for name in dict.fromkeys(names)])
    owner = np.array([int(name[:3]) for name in names])
    scores = (images @ model.encode_texts(list(texts)).T).numpy()
    assert result.record is not None
    values = {name: score.value for name, score in result.record.scores.items()}
    assert values == pytest.approx(brute(scores, owner), abs=1e-6)


def test_images_that_cannot_be_read_are_left_out_with_their_captions(tmp_path: Path) -> None:
    data = write_set(tmp_path)
    (data / "images/002.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"002\.png cannot be decoded"):
        run(tmp_path, data)
    result = run(tmp_path, data, on_bad_image="skip")
    assert result.record is not None
    assert result.record.evidence == {"images": 23, "captions": 45, "captions_left_out": 3}
    assert [s.id for s in result.record.skipped] == ["002.png"]
    assert "002.png" not in set(result.samples["id"])
    assert result.record.scores["mean_recall"].n == 23


def test_a_limited_run_counts_its_own_captions(tmp_path: Path) -> None:
    data = write_set(tmp_path)
    result = run(tmp_path, data, limit=12)
    assert result.record is not None
    assert (result.record.limit, result.record.evidence["images"]) == (12, 12)
    counts = [int(str(name)[:3]) % 3 + 1 for name in result.samples["id"]]
    assert result.record.evidence["captions"] == sum(counts)
    with pytest.raises(
        DataError, match=r"recall@10 needs as many \(there are 9 images and .*\n.*raise --limit"
    ):
        run(tmp_path, data, limit=9)


def test_other_depths_of_recall(tmp_path: Path) -> None:
    data = write_set(tmp_path, protocols={"ret": {"ks": [2, 3], "primary": "image_retrieval_recall@3"}})
    result = run(tmp_path, data, limit=4)
    assert result.record is not None
    recalls = {name for name in result.record.scores if "recall@" in name}
    ways = ("text_retrieval", "image_retrieval", "mean")
    assert recalls == {f"{way}_recall@{k}" for way in ways for k in (2, 3)}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"ks": []}, "ks must ascend from 1 or more, and there must be one at least"),
        ({"ks": [5, 1]}, "ks must ascend"),
        ({"ks": [5, 5]}, "ks must ascend"),
        ({"ks": [0, 1]}, "ks must ascend"),
        (
            {"ks": [1, 5], "primary": "text_retrieval_recall@10"},
            r'unknown primary metric "text_retrieval_recall@10"',
        ),
        ({"primary": "image_retrieval_median_rank"}, "unknown primary metric"),
        ({"split": "tset"}, 'unknown split "tset"; did you mean "test"'),
    ],
)
def test_parameters_that_are_wrong(params: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_set(tmp_path, 1, protocols={"ret": params})
    with pytest.raises(CardError, match=message):
        Catalog([tmp_path]).task("shots-ret")


def test_tokens_are_compared_by_late_interaction(tmp_path: Path) -> None:
    """A model that compares tokens: each direction by its own mean."""
    data = write_set(tmp_path)
    catalog = Catalog([tmp_path])
    from clipbench.data.open import open_split

    split = open_split(catalog.dataset("shots"), "test", DataPaths({"shots": data}, ()))
    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal(s).astype(np.float32) for s in ((24, 3 * 4), (48, 5 * 4)))

    class Tokens:
        compared, token_width, device, logit_scale = "tokens", 4, "cpu", 1.0

        def images(self, _: object, space: str) -> Floats:
            assert space == "tokens"
            return images

        def texts(self, given: list[str], space: str) -> Floats:
            assert (len(given), space) == (48, "tokens")
            return texts

        tracked = staticmethod(lambda *_: Silent())

    task = catalog.task("shots-ret")
    outcome = retrieval.run(task.dataset.card, {"test": split}, Tokens(), task.params, 0)  # type: ignore[arg-type]
    products = np.einsum("isd,jtd->ijst", images.reshape(24, 3, 4), texts.reshape(48, 5, 4))
    assert split.captions is not None
    owner = split.captions.image
    by_image = brute(products.max(axis=3).mean(axis=2), owner)
    by_text = brute(products.max(axis=2).mean(axis=2), owner)
    for name, score in outcome.scores.items():
        if not name.startswith("mean_recall"):
            assert score.value == pytest.approx((by_image if name.startswith("text") else by_text)[name]), (
                name
            )


class Silent:
    """A progress bar that shows nothing."""

    def __enter__(self) -> Any:
        return lambda steps: None

    def __exit__(self, *_: object) -> None: ...


def test_ranks_are_printed_as_ranks(tmp_path: Path) -> None:
    data = write_set(tmp_path)
    small.write_run(tmp_path / "run", context=48)
    arguments = ["eval", "--model", str(tmp_path / "run"), "--task", "shots-ret", "--data", f"shots={data}"]
    arguments += ["--cards", str(tmp_path), "--results", str(tmp_path / "results"), "--device", "cpu"]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if "retrieval" in line}
    assert rows["image_retrieval_mean_rank"][-2:] == ["12.5", "48"]
    assert rows["image_retrieval_recall@1"][-2:] == ["4.17", "48"]


# --------------------------------------------------------------------- the bench


def test_bench_finds_what_faiss_finds() -> None:
    pytest.importorskip("faiss")
    found = bench.measure(200, 3, 32, top=7, rounds=1)
    assert (found["images"], found["texts"]) == (200, 600)
    for part in found["agreement"].values():
        assert part["same_keys"] > 0.999
        assert part["score_difference"] < 1e-6
    assert found["ratios"]["ours_over_faiss"] > 0
    with pytest.raises(ClipbenchError, match=r"--images must be at least --top \(7\), found 3"):
        bench.measure(3, 3, 32, top=7)


# ------------------------------------------------------------------ real data


@pytest.mark.shared
def test_real_captions_end_to_end(shared_data: Path, tmp_path: Path) -> None:
    catalog = Catalog()
    model = catalog.model(str(small.write_run(tmp_path / "run", context=48)))
    paths = DataPaths({"flickr8k-1000": shared_data / "flickr8k-1000"}, ())
    given = Options(Runtime("cpu", "fp32"), paths, limit=300, progress=False)
    (result,) = evaluate([model], [catalog.task("flickr8k-1000-ret")], given)
    assert result.record is not None
    scores = result.record.scores
    assert scores["image_retrieval_recall@1"].n == 1500
    for name, score in scores.items():
        assert score.chance is not None
        if "recall" in name:  # random weights know nothing
            assert score.ci95[0] <= 2 * score.chance + 0.01, name
    assert torch.get_num_threads() == 1
