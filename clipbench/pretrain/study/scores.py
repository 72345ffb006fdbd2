"""What a study's cells are measured by, and the scores that their folders keep."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from clipbench.cards.base import fingerprint
from clipbench.cards.recipe import Recipe
from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.encoding.encoder import ModelEncoder
from clipbench.errors import CardError, unknown
from clipbench.evaluation import Options, evaluator
from clipbench.metrics.ranks import expected_hit
from clipbench.models import families
from clipbench.pretrain.data.source import captions
from clipbench.pretrain.run.directory import refuse_other
from clipbench.pretrain.study.plan import RETRIEVAL, Cell, ClassRetrieval, Measured, Study
from clipbench.records.record import Record, environment
from clipbench.solvers.ranking import rank
from clipbench.utils.cache import read_checked, write_checked

_SCORES = "scores of a study's cell 1"
DEPTHS = (1, 5)  # of recall@k, where images have labels


def finished(study: Study, catalog: Catalog, runs: Path) -> list[Measured]:
    """The cells that have been trained and measured below `runs`.

    Raises:
        StorageError: a run of another recipe.
    """
    found = []
    for cell in study.cells():
        folder = runs / cell.name
        measured = _held(study, cell, folder, catalog) if trained(folder, study.recipe_of(cell)) else None
        if measured:
            found.append(measured)
    return found


def trained(folder: Path, recipe: Recipe) -> bool:
    """Whether `folder` holds a whole run of `recipe`."""
    if not (folder / "card.yaml").is_file():
        return False
    refuse_other(folder / "recipe.yaml", recipe)
    return True


def _held(study: Study, cell: Cell, folder: Path, catalog: Catalog) -> Measured | None:
    """The cell's scores from its folder, where they are of this study's measures."""
    content = read_checked(folder / "scores.json", _SCORES)
    if content is None:
        return None
    held = json.loads(content)
    if held.pop("key") != _key(study, folder, catalog) or "made_by" not in held:
        return None
    return Measured(cell, **held)


def _key(study: Study, folder: Path, catalog: Catalog) -> str:
    """Of all that decides the scores of the model in `folder`."""
    tasks = {name: catalog.task(measure.task) for name, measure in study.measures.items()}
    return fingerprint(
        [
            {name: [task.id, task.params.canonical(), task.protocol.version] for name, task in tasks.items()},
            {name: measure.metric for name, measure in study.measures.items()},
            [study.retrieval.canonical(), DEPTHS],
            (folder / "card.yaml").read_text(encoding="utf-8"),
        ]
    )


def measured_of(study: Study, cell: Cell, folder: Path, catalog: Catalog, options: Options) -> Measured:
    """The cell's scores, from its folder or else measured."""
    if held := _held(study, cell, folder, catalog):
        return held
    found = _measure(study, folder, catalog, options)
    env = environment()
    measured = Measured(
        cell,
        scores={name: value for name, (value, _) in found.items()},
        chance={name: by_chance for name, (_, by_chance) in found.items()},
        made_by={
            "device": options.runtime.device_name,
            "torch": env.packages.get("torch"),
            "commit": env.commit,
            "dirty": env.dirty,
        },
    )
    kept = {name: getattr(measured, name) for name in ("scores", "chance", "made_by")}
    kept["key"] = _key(study, folder, catalog)
    write_checked(folder / "scores.json", json.dumps(kept, indent=1).encode(), _SCORES)
    return measured


def _measure(
    study: Study, folder: Path, catalog: Catalog, options: Options
) -> dict[str, tuple[float, float]]:
    """Measure → score and chance of the model in `folder`; features are not kept."""
    model = catalog.model(str(folder.resolve()))
    adapter = families.load(model)
    ids = {name: measure.task for name, measure in study.measures.items()}
    measured: dict[str, Record] = {
        record.task: record
        for record in evaluator(catalog, replace(options, progress=False))(adapter, list(ids.values()))
    }
    found = {}
    for name, measure in study.measures.items():
        scores = measured[measure.task].scores
        if measure.metric not in scores:
            raise CardError(f"{measure.task}: {unknown('metric', measure.metric, scores)}")
        score = scores[measure.metric]
        found[name] = (score.value, score.chance or 0.0)
    with tempfile.TemporaryDirectory(prefix="clipbench-") as temporary:
        encoder = ModelEncoder(model, options.runtime, progress=False, root=Path(temporary))
        encoder.adapter = adapter
        found[RETRIEVAL] = class_retrieval(study.retrieval, catalog, options, encoder)
    return found


def class_retrieval(
    wanted: ClassRetrieval, catalog: Catalog, options: Options, encoder: ModelEncoder
) -> tuple[float, float]:
    """Mean recall between one image of each class and the classes' captions, over disjoint draws; and chance.

    Raises:
        CardError: the set has no single labels, or no such templates.
    """
    entry = catalog.dataset(wanted.dataset)
    if entry.card.kind != "single-label":
        raise CardError(
            f"{wanted.dataset} is a set of kind {entry.card.kind}; retrieval by class needs single-label"
        )
    split = open_split(entry, wanted.split, options.data)
    texts = [own[0] for own in captions(entry.card, entry.card.classes, [wanted.templates])]
    images = encoder.images(split, encoder.compared)
    queries = encoder.texts(texts, encoder.compared)
    width = encoder.token_width if encoder.compared == "tokens" else None
    rng = np.random.default_rng(options.seed)
    of_class = [rng.permutation(np.flatnonzero(split.labels == c)) for c in range(len(texts))]
    own = np.arange(len(texts))
    recalls = []
    for draw in range(min(len(rows) for rows in of_class)):
        drawn = images[[rows[draw] for rows in of_class]]
        both = rank(drawn, queries, own, top=1, token_width=width, device=encoder.device)
        hits = [expected_hit(r.better, r.tied, r.best, k) for r in both for k in DEPTHS]
        recalls.append(np.mean(hits))
    return float(np.mean(recalls)), float(np.mean([min(k / len(texts), 1) for k in DEPTHS]))
