"""Parity with mteb: what its image tasks give of `clipbench.as_mteb`, beside what clipbench gives of the same model.

    make mteb        (or: PYTHONPATH=tests python -m parity.with_mteb)

gives mteb an environment of its own over this one (same torch) and runs there, without a hub: zero-shot on digits and
retrieval on scenes of digits with the model that ships, and where `../shared/data` lies beside the project, mteb's own
CIFAR10ZeroShot and retrieval of Flickr8k's captions with a DeCLIP of random weights. Accuracy and recall must be the
same numbers, but for the five decimals that mteb keeps of recalls. mteb's own wrapper of open_clip, around a small
model, must give the rows that ours gives.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import wrap
from typing import Any, Final, NamedTuple

import declip_files
import numpy as np
import open_clip
import pytest
import torch

import clipbench
from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.encoding.runtime import Runtime
from clipbench.errors import ClipbenchError
from clipbench.evaluation import Options, evaluate, limited
from clipbench.protocols.zero_shot import prompts
from clipbench.report.table import aligned
from clipbench.utils.cache import cache_root, make_folder
from parity.peer import prepare, run, say

MTEB: Final = "mteb==2.26.24"
_ROOT: Final = Path(__file__).resolve().parents[2]
_ROUNDED: Final = 0.5001e-5  # mteb keeps five decimals of what it measures of retrieval
_SHIPPED: Final = "digits-clip-lite"
_ZERO_SHOT: Final = {"accuracy": "acc1", "recall": "mean_per_class_recall"}
_OF_IMAGES: Final = {f"hit_rate_at_{k}": f"image_retrieval_recall@{k}" for k in (1, 5, 10)}
_OF_TEXTS: Final = {f"hit_rate_at_{k}": f"text_retrieval_recall@{k}" for k in (1, 5, 10)}
#: with open_clip's own preprocessing
_CARD: Final = """title: small
family: clip
config: {arch: small-vit, quick_gelu: false}
preprocess: {mean: [0.48145466, 0.4578275, 0.40821073], std: [0.26862954, 0.26130258, 0.27577711]}
weights: {file: small.pt}
"""


class Compared(NamedTuple):
    """One metric from both."""

    model: str
    task: str
    metric: str
    ours: float
    theirs: float

    @property
    def equal(self) -> bool:
        rounded = "recall@" in self.metric
        return abs(self.ours - self.theirs) <= (_ROUNDED if rounded else 1e-12)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare and print a table. 1 when a number differs, else 0.

    Raises:
        ClipbenchError: mteb, the data or a run is not to be had.
    """
    parser = argparse.ArgumentParser(prog="python -m parity.with_mteb", description=f"Compare with {MTEB}.")
    parser.add_argument(
        "--shared", type=Path, default=_ROOT / "../shared/data", help="cifar10, flickr8k-1000"
    )
    parser.add_argument("--images", type=int, default=1000, help="of each set from there (1000)")
    parser.add_argument("--out", type=Path, help="where mteb writes its results (nowhere that stays)")
    parser.add_argument("--work", type=Path, help="folder of mteb's environment")
    given = parser.parse_args(arguments)
    if find_spec("mteb") is None:
        work = make_folder((given.work or cache_root() / "parity").expanduser().resolve())
        python = prepare(work / MTEB.replace("==", "-"), [(MTEB,)])
        own = ["--shared", given.shared.resolve(), "--images", given.images]
        own += ["--out", given.out.resolve()] if given.out else []
        paths = os.pathsep.join(map(str, (_ROOT / "tests", _ROOT)))
        say("running mteb’s tasks …")
        command = [python, "-W", "ignore", "-m", "parity.with_mteb", *map(str, own)]
        print(run(command, cwd=_ROOT, env={"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"})[0], end="")
        return 0
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        found = compare(given.shared, given.images, given.out or folder / "mteb", folder)
        furthest, kinds = wrapper_difference(folder), kinds_that_run(folder)
    print(shown(found))
    print(f"rows of mteb’s own wrapper of open_clip and of ours differ by {furthest:.1e} at most")
    named = f"{len(kinds)} kinds of mteb’s tasks with images run: {', '.join(sorted(kinds))}"
    print("\n".join(wrap(named, 80, break_on_hyphens=False)))
    return 0 if all(one.equal for one in found) and furthest < 1e-6 else 1


def compare(shared: Path, images: int, out: Path, work: Path) -> list[Compared]:
    """Every metric that both measure, of the model that ships and, where there are photos, a small DeCLIP."""
    pairs = [
        (_SHIPPED, "digits-zs", "", _ZERO_SHOT),
        (_SHIPPED, "digits-scenes-ret", "t2i", _OF_IMAGES),
        (_SHIPPED, "digits-scenes-ret", "i2t", _OF_TEXTS),
    ]
    data = {}
    with small_architectures():
        if shared.is_dir():
            declip = str(declip_checkpoint(work))
            data = {name: shared / name for name in ("cifar10", "flickr8k-1000")}
            pairs += [
                (declip, "cifar10-zs@simple", "", _ZERO_SHOT),
                (declip, "flickr8k-1000-ret", "t2i", _OF_IMAGES),
                (declip, "flickr8k-1000-ret", "i2t", _OF_TEXTS),
            ]
        paths = DataPaths(data, ())
        return [
            one
            for model, task, category, metrics in pairs
            for one in _compared(model, task, category, metrics, paths, images, out)
        ]


@contextmanager
def small_architectures() -> Iterator[None]:
    """open_clip knows the small architectures of `declip_files` meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        declip_files.know_architectures(patch)
        yield


def declip_checkpoint(folder: Path) -> Path:
    """A checkpoint as DeCLIP's repository has them, of a small ViT with random weights."""
    shapes = declip_files.official("declip", declip_files.VIT, declip_files.TEXT, 24)
    return declip_files.save(declip_files.random_state(shapes), folder / "declip-small.pth.tar")


def _compared(
    model: str, name: str, category: str, metrics: Mapping[str, str], paths: DataPaths, images: int, out: Path
) -> list[Compared]:
    catalog, runtime = Catalog(), Runtime("cpu", "fp32", workers=0)
    (task,) = catalog.tasks([name])
    options = Options(runtime=runtime, data=paths, limit=images, progress=False)
    (result,) = evaluate([catalog.model(model)], [task], options, catalog)
    if result.record is None:
        raise result.error or ClipbenchError(f"{name}: {result.reason}")
    split = limited(open_split(task.dataset, "test", paths), images, options.seed)
    if category:
        theirs = _retrieval(split, category)
    else:
        templates: str = getattr(task.params, "templates")  # noqa: B009 - of zero-shot alone
        texts = prompts(task.dataset.card, templates)
        theirs = _zero_shot(split, [one for (one,) in texts])
    scores = mteb_scores(clipbench.load_model(model, device="cpu"), theirs, out)
    label = Path(model).name.partition(".")[0]
    return [
        Compared(label, name, ours, result.record.scores[ours].value, scores[metric])
        for metric, ours in metrics.items()
    ]


def mteb_scores(model: clipbench.Model, task: Any, out: Path) -> dict[str, float]:
    """What mteb says of a model on a task whose data is there, from the file that it writes below `out`."""
    import mteb
    from mteb.cache import ResultCache

    cache = ResultCache(cache_path=out)
    given: dict[str, Any] = {"cache": cache, "overwrite_strategy": "always", "show_progress_bar": False}
    found = mteb.evaluate(clipbench.as_mteb(model), task, **given)
    (result,) = found.task_results
    scores: dict[str, float] = result.scores["test"][0]
    return scores


# ------------------------------------------------------------------------ tasks of mteb on data that is here


def _about(name: str, kind: str, category: str) -> Any:
    from mteb.abstasks.task_metadata import TaskMetadata

    return TaskMetadata(
        name=name,
        description="Images of clipbench.",
        dataset={"path": "clipbench/local", "revision": "1"},
        type=kind,
        category=category,
        modalities=["text", "image"],
        eval_langs=["eng-Latn"],
        main_score="accuracy" if kind == "ZeroShotClassification" else "ndcg_at_10",
    )


def _images(split: Split) -> list[dict[str, Any]]:
    return [{"bytes": one.image, "path": None} for one in split.samples(np.arange(len(split)))]


def _zero_shot(split: Split, candidates: list[str]) -> Any:
    """mteb's task on a split: for CIFAR-10 its own, with the prompts that it makes itself."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
    from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
    from mteb.tasks.zeroshot_classification.eng.cifar import CIFAR10ZeroShotClassification

    if split.dataset == "cifar10":
        task: Any = CIFAR10ZeroShotClassification()
    else:
        fields = {
            "metadata": _about("ClipbenchDigitsZeroShot", "ZeroShotClassification", "i2t"),
            "get_candidate_labels": lambda self: candidates,
        }
        task = type("Local", (AbsTaskZeroShotClassification,), fields)()
    columns = {task.input_column_name: _images(split), task.label_column_name: split.labels.tolist()}
    kinds = (Image(), ClassLabel(names=list(split.classes)))
    made = Dataset.from_dict(columns, features=Features(dict(zip(columns, kinds, strict=True))))
    task.dataset, task.data_loaded = DatasetDict({"test": made}), True
    assert task.get_candidate_labels() == candidates  # the same prompts on both sides
    return task


def _retrieval(split: Split, category: str) -> Any:
    """mteb's retrieval on a split with captions, `t2i` or `i2t`."""
    from datasets import Dataset, Features, Image, Value
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    assert split.captions is not None
    owner = split.captions.image.tolist()
    texts = Dataset.from_dict(
        {"id": [f"t{i}" for i in range(len(owner))], "text": list(split.captions.texts)}
    )
    pictures = Dataset.from_dict(
        {"id": [f"i{i}" for i in range(len(split))], "image": _images(split)},
        features=Features({"id": Value("string"), "image": Image()}),
    )
    right: dict[str, dict[str, int]] = {}
    for text, image in enumerate(owner):
        query, key = (f"t{text}", f"i{image}") if category == "t2i" else (f"i{image}", f"t{text}")
        right.setdefault(query, {})[key] = 1
    name = "Clipbench" + split.dataset.title().replace("-", "") + category.upper() + "Retrieval"
    task: Any = type("Local", (AbsTaskRetrieval,), {"metadata": _about(name, "Any2AnyRetrieval", category)})()
    queries, corpus = (texts, pictures) if category == "t2i" else (pictures, texts)
    held = {"queries": queries, "corpus": corpus, "relevant_docs": right, "top_ranked": None}
    task.dataset, task.data_loaded = {"default": {"test": held}}, True
    return task


# ------------------------------------------------------------------------------------------ mteb's own wrapper


def wrapper_difference(folder: Path) -> float:
    """The largest difference between rows of mteb's wrapper of open_clip and of ours, for the same small model.

    Of images, of texts, and of samples that have both.
    """
    from datasets import Dataset, Features, Image, Value
    from mteb._create_dataloaders import _custom_collate_fn
    from mteb.models.model_implementations.openclip_models import openclip_loader
    from torch.utils.data import DataLoader

    split = limited(open_split(Catalog().dataset("digits-scenes"), "test", DataPaths({}, ())), 24, 0)
    assert split.captions is not None
    columns = {"image": _images(split), "text": list(split.captions.texts)}
    both = Dataset.from_dict(columns, features=Features({"image": Image(), "text": Value("string")}))
    with small_architectures(), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        path, card = folder / "small.pt", folder / "small.yaml"
        torch.save(open_clip.create_model("small-vit").state_dict(), path)
        card.write_text(_CARD)
        made = open_clip.create_model_and_transforms

        def local(name: str, **given: Any) -> Any:
            return made("small-vit", pretrained=str(path), **given)

        tokenizer = open_clip.get_tokenizer("small-vit")
        patch.setattr(open_clip, "create_model_and_transforms", local)
        patch.setattr(open_clip, "get_tokenizer", lambda name: tokenizer)
        theirs = openclip_loader("small", revision="1", device="cpu")
        patch.undo()
        declip_files.know_architectures(patch)
        ours = clipbench.as_mteb(clipbench.load_model(card, device="cpu"))
        furthest = 0.0
        for part in (both, both.remove_columns("text"), both.remove_columns("image")):
            batches = DataLoader(part, batch_size=7, collate_fn=_custom_collate_fn)
            about: dict[str, Any] = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
            rows = [one.encode(batches, show_progress_bar=False, **about) for one in (theirs, ours)]
            furthest = max(furthest, float((rows[0].float() - rows[1]).abs().max()))
    return furthest


def kinds_that_run(folder: Path) -> set[str]:
    """Kinds of tasks with images, which all run with a small DeCLIP on the few images that mteb tests itself with."""
    import mteb
    from mteb.mocks import mock_tasks

    with small_architectures():
        encoder = clipbench.as_mteb(declip_checkpoint(folder))
    made = [getattr(mock_tasks, name)() for name in dir(mock_tasks) if name.startswith("Mock")]
    tasks = [one for one in made if {"image"} <= set(one.metadata.modalities) <= {"image", "text"}]
    given: dict[str, Any] = {"cache": None, "show_progress_bar": False, "co2_tracker": False}
    for one in tasks:
        mteb.evaluate(encoder, one, **given)
    return {one.metadata.type for one in tasks}


def shown(found: Sequence[Compared]) -> str:
    """A table for 80 columns."""
    lines = [
        [
            one.model,
            one.task,
            one.metric,
            f"{one.ours:.5f}",
            f"{one.theirs:.5f}" + ("" if one.equal else " ≠"),
        ]
        for one in found
    ]
    return aligned(["model", "task", "metric", "ours", "mteb"], lines, left={0, 1, 2})


if __name__ == "__main__":
    try:
        code = main()
    except ClipbenchError as error:
        say(f"error: {error}")
        code = 2
    raise SystemExit(code)
