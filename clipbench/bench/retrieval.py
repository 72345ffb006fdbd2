"""`clipbench bench retrieval`: best keys in both directions and all ranks, beside faiss's exact search, in one run."""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group

from clipbench.bench import view as views
from clipbench.bench.inputs import random_rows
from clipbench.bench.machine import all_threads, peak_mib
from clipbench.errors import ClipbenchError
from clipbench.solvers import ranking

if TYPE_CHECKING:
    Floats = NDArray[np.float32]
    Ints = NDArray[np.int64]

_SEED = 0


def measure(images: int, captions: int, width: int, top: int = 10, *, rounds: int = 2) -> dict[str, Any]:
    """Time `clipbench.solvers.ranking.rank` and faiss's `IndexFlatIP` on the same random unit rows.

    The former finds the `top` best keys in both directions and every target's rank; the latter the best keys alone,
    in a search a direction. They alternate, and the best of each counts, since other work on the machine only slows
    down. The rows are memory-mapped, as the feature store has them. Memory is the process's peak after our first
    round, before faiss is loaded.

    Args:
        images: N.
        captions: of each image.
        width: of the rows.

    Raises:
        ClipbenchError: faiss is not installed, or there are fewer images than `top`.
    """
    if images < top:
        raise ClipbenchError(f"--images must be at least --top ({top}), found {images}")
    owner = np.repeat(np.arange(images), captions)
    ours_s, peer_s = [], []
    peak = 0.0
    found: tuple[ranking.Ranks, ranking.Ranks] | None = None
    peers: list[tuple[Floats, Ints]] = []
    with all_threads() as used, tempfile.TemporaryDirectory(prefix="clipbench-") as folder:
        rows = (
            _unit_rows(Path(folder) / "images.npy", images, width, _SEED),
            _unit_rows(Path(folder) / "texts.npy", images * captions, width, _SEED + 1),
        )
        for _ in range(rounds):
            found, peers = None, []
            start = time.perf_counter()
            found = ranking.rank(*rows, owner, top=top)
            ours_s.append(time.perf_counter() - start)
            peak = peak or peak_mib()
            index = _peer()
            start = time.perf_counter()
            peers = [_search(index, queries, keys, top) for queries, keys in (rows, rows[::-1])]
            peer_s.append(time.perf_counter() - start)
    assert found is not None
    return {
        "images": images,
        "texts": images * captions,
        "width": width,
        "top": top,
        "threads": used,
        "rounds": rounds,
        "ours_s": round(min(ours_s), 2),
        "faiss_s": round(min(peer_s), 2),
        "features_mib": round(sum(part.nbytes for part in rows) / 2**20),
        "peak_mib": round(peak),
        "agreement": {
            name: _agreement(ranks, peer)
            for name, ranks, peer in zip(("image_to_text", "text_to_image"), found, peers, strict=True)
        },
        "ratios": {"ours_over_faiss": round(min(ours_s) / min(peer_s), 4)},
    }


def view(found: dict[str, Any]) -> Group:
    head = (
        f"{found['images']:,} images × {found['texts']:,} texts, {found['width']}-d, the {found['top']} best in both "
        f"directions, {found['threads']} threads, best of {found['rounds']}"
    )
    ratio = f"{found['ratios']['ours_over_faiss']:.3f}"
    rows = (
        ["clipbench, ranks included", f"{found['ours_s']:.2f}", ratio],
        ["faiss IndexFlatIP, two searches", f"{found['faiss_s']:.2f}", ""],
    )
    memory = f"peak memory {found['peak_mib']:,} MiB; the features, memory-mapped, are {found['features_mib']:,} MiB"
    agreement = [
        f"{name.replace('_', ' ')}: {100 * part['same_keys']:.4f} % of the keys alike, scores within "
        f"{part['score_difference']:.1e}"
        for name, part in found["agreement"].items()
    ]
    return Group(head, "", views.table(("", "s", "ratio"), rows), "", memory, *agreement)


def _unit_rows(path: Path, count: int, width: int, seed: int) -> Floats:
    """Random unit rows in a file, memory-mapped."""

    def unit(_: slice, rows: Floats) -> Floats:
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    return random_rows(path, (count, width), np.random.default_rng(seed), unit)


def _peer() -> Any:
    """faiss's class of exact search.

    Raises:
        ClipbenchError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of its generated bindings
            import faiss
    except ImportError:
        raise ClipbenchError(
            "faiss is not installed, and this command compares with it", hint="pip install 'clipbench[dev]'"
        ) from None
    return faiss.IndexFlatIP


def _search(index: Any, queries: Floats, keys: Floats, top: int) -> tuple[Floats, Ints]:
    built = index(keys.shape[1])
    built.add(keys)
    scores, found = built.search(queries, top)
    return scores, found


def _agreement(ranks: Any, peer: tuple[Floats, Ints]) -> dict[str, float]:
    """Share of places with the same key, and the largest difference of the scores there."""
    scores, keys = peer
    return {
        "same_keys": round(float((keys == ranks.top).mean()), 6),
        "score_difference": float(np.abs(scores - ranks.scores).max()),
    }
