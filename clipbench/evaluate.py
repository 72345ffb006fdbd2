"""The story: cards → splits and encoders → features → protocol → record."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from clipbench import models, records
from clipbench.cards import LABELLED, fingerprint
from clipbench.catalog import Catalog, Task
from clipbench.data import Note, Split
from clipbench.data.decode import MAX_PIXELS, REMARKS, OnBadImage, max_pixels
from clipbench.data.hub import DataPaths, open_split, refuse_lacking
from clipbench.data.labels import without_samples
from clipbench.errors import DataError, NotApplicable
from clipbench.execution import Runtime
from clipbench.exposure import Exposure, exposure
from clipbench.features import Counts, ModelEncoder, Subset, encode_images, same_preprocessing
from clipbench.store import among, repeated


@dataclass(frozen=True)
class Options:
    """What a run may choose besides models and tasks; all that can move a number stands in the record.

    `pictures`: of how many samples a protocol that has something to show (heat maps) draws pictures.
    """

    runtime: Runtime
    data: DataPaths = field(default_factory=lambda: DataPaths({}, ()))
    limit: int | None = None
    seed: int = 0
    on_bad_image: OnBadImage = "stop"
    progress: bool = True
    pictures: int = 0


@dataclass(frozen=True)
class Result:
    """A record and its per-sample outcomes; or `reason`, why the model cannot do the task; or the data's `error`.

    `pictures` maps a file name to a PNG.
    """

    model: str
    task: str
    record: records.Record | None
    samples: dict[str, records.Column]
    reason: str | None = None
    error: DataError | None = None
    pictures: dict[str, bytes] = field(default_factory=dict)


def evaluate(
    model_cards: Sequence[models.LoadedModel],
    tasks: Sequence[Task],
    options: Options,
    catalog: Catalog | None = None,
) -> Iterator[Result]:
    """Measure every model on every task, task by task, encoding each split once a model.

    Models whose preprocessing agrees share one decoding pass. Where a task's data is wrong or missing, its results
    carry the error and the next task follows.

    Args:
        catalog: has the cards of data sets that models were trained on; None: the one of a command without `--cards`.

    Raises:
        ClipbenchError: anything else that the user can mend; what was finished before stays.
    """
    with options.runtime.reproducible():
        yield from _evaluated(model_cards, tasks, options, catalog or Catalog())


def _evaluated(
    model_cards: Sequence[models.LoadedModel], tasks: Sequence[Task], options: Options, catalog: Catalog
) -> Iterator[Result]:
    encoders = []
    load_s = []
    for model in model_cards:
        start = time.perf_counter()
        encoder = ModelEncoder(model, options.runtime, options.on_bad_image, options.progress)
        encoder.adapter  # noqa: B018 - loads the weights
        encoders.append(encoder)
        load_s.append(time.perf_counter() - start)
    opened: dict[tuple[str, str], Split] = {}
    for task in tasks:
        before = [replace(e.counts) for e in encoders]
        try:
            splits = _splits(task, options, opened)
            _encode(encoders, task, splits)
        except DataError as error:
            yield from (Result(e.model.id, task.id, None, {}, error=error) for e in encoders)
            continue
        for encoder, counts, seconds in zip(encoders, before, load_s, strict=True):
            try:
                record, samples = _outcome(encoder, task, options, catalog, splits, counts, seconds)
                pictures = _pictures(encoder, task, options, splits)
            except NotApplicable as lack:
                yield Result(encoder.model.id, task.id, None, {}, lack.message)
            except DataError as error:
                yield Result(encoder.model.id, task.id, None, {}, error=error)
            else:
                yield Result(encoder.model.id, task.id, record, samples, pictures=pictures)


def evaluator(
    catalog: Catalog, options: Options
) -> Callable[[models.Adapter, Sequence[str]], list[records.Record]]:
    """A function that measures a model in training on tasks, by id; its features are not kept."""

    def measure(adapter: models.Adapter, task_ids: Sequence[str]) -> list[records.Record]:
        model = models.LoadedModel("in-training", adapter.card, Path.cwd())
        with tempfile.TemporaryDirectory(prefix="clipbench-") as folder:
            encoder = ModelEncoder(model, options.runtime, progress=False, root=Path(folder))
            encoder.adapter = adapter
            found = []
            for task in catalog.tasks(task_ids):
                splits = _splits(task, options, {})
                before = replace(encoder.counts)
                found.append(_outcome(encoder, task, options, catalog, splits, before, 0.0)[0])
            return found

    return measure


def limited(split: Split, limit: int | None, seed: int) -> Split:
    """`split`, or a seeded sample of `limit` of its samples: class-balanced where each has one class.

    Classes take turns, in a seeded order, each giving its samples in a seeded order: classes differ by at most
    one sample while they last.
    """
    if limit is None or limit >= len(split):
        return split
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(split))
    if split.labels.ndim == 1:
        labels = split.labels[order].astype(np.int64)
        by_class = np.argsort(labels, kind="stable")
        turn = np.empty(len(order), dtype=np.int64)  # how many of its class come before
        starts = np.searchsorted(labels[by_class], labels[by_class])
        turn[by_class] = np.arange(len(order)) - starts
        class_order = rng.permutation(int(labels.max()) + 1)
        order = order[np.lexsort((class_order[labels], turn))]
    return Subset(split, np.sort(order[:limit]))


# ---------------------------------------------------------------------- parts


def _splits(task: Task, options: Options, opened: dict[tuple[str, str], Split]) -> dict[str, Split]:
    """The splits that the task needs, by role; `opened` keeps them for the tasks that follow."""
    splits = {}
    for what in (*task.roles, *task.marks):  # before one of them is fetched
        refuse_lacking(task.dataset, what, options.data)
    for role in task.roles:
        name = (task.dataset.id, role)
        if name not in opened:
            opened[name] = limited(open_split(task.dataset, role, options.data), options.limit, options.seed)
        splits[role] = opened[name]
    return splits


def _encode(encoders: Sequence[ModelEncoder], task: Task, splits: dict[str, Split]) -> None:
    """Encode what the task needs for all models that can do it at once, where their preprocessing agrees."""
    todo: dict[tuple[str, str], list[ModelEncoder]] = {}
    for encoder in encoders:
        with contextlib.suppress(NotApplicable):
            for role, space in _able(encoder, task):
                if not encoder.has(splits[role], space):
                    todo.setdefault((role, space), []).append(encoder)
    for (role, space), lacking in todo.items():
        for group in same_preprocessing(lacking):
            encode_images(group, splits[role], space)


def _able(encoder: ModelEncoder, task: Task) -> list[tuple[str, str]]:
    """The image features that the task reads of this model: (split role, feature space).

    Raises:
        NotApplicable: the model lacks what the task needs; said before anything is encoded.
    """
    if task.protocol.TEXT:
        encoder.adapter.require_text(encoder.compared)
    needed: list[tuple[str, str]] = task.protocol.needs(task.params, encoder.compared)
    for _, space in needed:
        encoder.require(space)
    return needed


def _outcome(
    encoder: ModelEncoder,
    task: Task,
    options: Options,
    catalog: Catalog,
    splits: dict[str, Split],
    before: Counts,
    load_s: float,
) -> tuple[records.Record, dict[str, records.Column]]:
    """Run the protocol; the record and its per-sample outcomes."""
    needs = _able(encoder, task)
    _encode([encoder], task, splits)
    inside = replace(encoder.counts)
    encoder.text_plans.clear()
    start = time.perf_counter()
    outcome = task.protocol.run(task.dataset.card, splits, encoder, task.params, options.seed)
    encoding = encoder.counts.images_s - inside.images_s + encoder.counts.texts_s - inside.texts_s
    score_s = time.perf_counter() - start - encoding
    counts = encoder.counts
    images_s, texts_s = counts.images_s - before.images_s, counts.texts_s - before.texts_s
    encoded = counts.images_encoded - before.images_encoded
    card, runtime = task.dataset.card, options.runtime
    protocol = records.ProtocolUsed(
        name=task.protocol.ID, version=task.protocol.VERSION, params=task.params.canonical()
    )
    measured, trained_on = splits[protocol.split], encoder.model.card.trained_on
    known = exposure(trained_on, task.dataset, protocol.split, catalog, measured.ids)
    repeats = _repeats(encoder, splits, needs, protocol.split)
    skipped = {i: r for role, space in needs for i, r in encoder.bad_images(splits[role], space).items()}
    record = records.Record(
        model=encoder.model.id,
        task=task.id,
        protocol=protocol,
        primary=task.params.primary,  # type: ignore[attr-defined]
        scores=outcome.scores,
        per_class={m: records.by_class(card.classes, values) for m, values in outcome.per_class.items()},
        seed=options.seed,
        limit=options.limit if any(isinstance(s, Subset) and s.limited for s in splits.values()) else None,
        skipped=tuple(records.Skipped(id=i, reason=r) for i, r in skipped.items()),
        notes=tuple(
            records.Noted(split=role, **vars(note))
            for role, split in splits.items()
            for note in (
                *split.notes,
                *split.cluster_notes(),
                *(without_samples(split) if set(task.protocol.KINDS) & {*LABELLED} else ()),
                *(_unknown(known) if role == protocol.split else ()),
                *_remarks(encoder, splits, needs, role),
                *repeats.get(role, ()),
            )
        ),
        seen=known.seen,
        precision=runtime.precision,
        device=runtime.device_name,
        env=records.environment(),
        fingerprints={
            "model_card": fingerprint(encoder.model.card.canonical()),
            "task_card": fingerprint(card.canonical()),
            "weights": encoder.adapter.weights_sha256,
            **{f"split:{role}": split.fingerprint for role, split in splits.items()},
        },
        timing=records.Timing(
            load_s=load_s,
            encode_images_s=images_s,
            encode_texts_s=texts_s,
            score_s=score_s,
            total_s=load_s + images_s + texts_s + score_s,
            images_per_s=encoded / images_s if encoded and images_s else None,
            images_encoded=encoded,
            texts_encoded=counts.texts_encoded - before.texts_encoded,
        ),
        encoder=_encoded(encoder, splits, needs),
        evidence=outcome.evidence,
        cards=records.ResolvedCards(model=encoder.model.card.canonical(), task=card.canonical()),
        created=records.utc_now(),
    )
    return record, outcome.samples


def _unknown(known: Exposure) -> list[Note]:
    """That the model's card names training data of which there is no card, so that what they share is not known."""
    text = "sets of training data have no card here, so whether they hold images of this split is not known"
    return [Note.of("unknown-training-data", text, known.unknown)] if known.unknown else []


def _encoded(
    encoder: ModelEncoder, splits: dict[str, Split], needs: Sequence[tuple[str, str]]
) -> records.Json:
    """How the towers were run whose features were read, for the record."""
    images: dict[str, JsonValue] = {
        f"{role}:{space}": encoder.plan(splits[role], space) for role, space in needs
    }
    texts: dict[str, JsonValue] = {
        f"text:{space}": ", ".join(sorted(plans)) for space, plans in sorted(encoder.text_plans.items())
    }
    devices = {device for role, space in needs for device in encoder.devices(splits[role], space)}
    found: records.Json = {"plans": images | texts, "devices": list[JsonValue](sorted(devices))}
    if max_pixels() != MAX_PIXELS:
        found["max_pixels"] = max_pixels()
    if encoder.runtime.deterministic:
        found |= {"deterministic": True, "fixed": dict[str, JsonValue](encoder.runtime.fixed)}
    return found


def _remarks(
    encoder: ModelEncoder, splits: dict[str, Split], needs: Sequence[tuple[str, str]], role: str
) -> list[Note]:
    """What must be said of how images of a split were decoded."""
    of_kind: dict[str, dict[str, None]] = {}
    for own, space in needs:
        if own == role:
            for name, kind in encoder.remarks(splits[role], space):
                of_kind.setdefault(kind, {})[name] = None
    return [Note.of(kind, REMARKS.get(kind, kind), list(names)) for kind, names in of_kind.items()]


def _repeats(
    encoder: ModelEncoder, splits: dict[str, Split], needs: Sequence[tuple[str, str]], scored: str
) -> dict[str, list[Note]]:
    """Split → notes on images of the split `scored` that are there twice, byte for byte, or also in training."""
    seen = {}
    for role, space in needs:
        digests = encoder.digests(splits[role], space)
        if digests is not None:
            bad = encoder.bad_images(splits[role], space)
            rows = np.array([i for i, name in enumerate(splits[role].ids) if name not in bad], dtype=np.int64)
            seen[role] = rows, digests[rows]
    if scored not in seen:
        return {}
    rows, digests = seen.pop(scored)
    names = np.array(splits[scored].ids, dtype=object)[rows]
    notes = []
    if seen and (again := among(digests, np.concatenate([others for _, others in seen.values()]))).any():
        text = f"images are also in {', '.join(seen)}, byte for byte: the probe is scored on what it was fitted on"
        notes.append(Note.of("test-in-training", text, names[again].tolist()))
    if (again := repeated(digests)).any():
        text = "images are those of an earlier sample, byte for byte: they count more than once"
        notes.append(Note.of("repeated-images", text, names[again].tolist()))
    return {scored: notes}


def _pictures(
    encoder: ModelEncoder, task: Task, options: Options, splits: dict[str, Split]
) -> dict[str, bytes]:
    """File name → PNG, where they are asked for and the protocol draws any."""
    if not options.pictures or not hasattr(task.protocol, "pictures"):
        return {}
    card = task.dataset.card
    made: dict[str, bytes] = task.protocol.pictures(
        card, splits, encoder, task.params, options.seed, options.pictures
    )
    return made
