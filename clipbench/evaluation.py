"""The story: cards → splits and encoders → features → protocol → record."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import JsonValue

from clipbench.cards.base import fingerprint
from clipbench.cards.task import LABELLED
from clipbench.catalog import Catalog, Task
from clipbench.data.choices import rows_of_some
from clipbench.data.decode import MAX_PIXELS, max_pixels
from clipbench.data.decode_stream import OnBadImage
from clipbench.data.labels import without_samples
from clipbench.data.open import open_split, refuse_lacking
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split, Subset
from clipbench.encoding import images
from clipbench.encoding.cuts import added
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.feature_store import Features
from clipbench.encoding.images import Encoded, encode
from clipbench.encoding.model_features import Counts
from clipbench.encoding.runtime import Runtime
from clipbench.errors import ClipbenchError, DataError, NotApplicable
from clipbench.models import families
from clipbench.models.adapter import Adapter, ModelEntry
from clipbench.models.own import OwnAdapter
from clipbench.protocols.base import Needs
from clipbench.records import notes, store
from clipbench.records.exposure import exposure
from clipbench.records.record import (
    Json,
    Noted,
    ProtocolUsed,
    Record,
    ResolvedCards,
    Skipped,
    Timing,
    by_class,
    environment,
    utc_now,
)
from clipbench.records.store import Column
from clipbench.utils.cache import cache_root, folder_for_now, make_folder
from clipbench.utils.stages import rest, stage, taken


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
    record: Record | None
    samples: dict[str, Column]
    reason: str | None = None
    error: DataError | None = None
    pictures: dict[str, bytes] = field(default_factory=dict)


def evaluate(
    model_cards: Sequence[ModelEntry], tasks: Sequence[Task], options: Options, catalog: Catalog | None = None
) -> Iterator[Result]:
    """Measure every model on every task, task by task, encoding each split once a model.

    Models whose preprocessing agrees share one decoding pass. Where a task's data is wrong or missing, its results
    carry the error and the next task follows.

    Args:
        catalog: has the cards of data sets that models were trained on; None: the one of a command without `--cards`.

    Raises:
        ClipbenchError: anything else that the user can mend; what was finished before stays.
    """
    rest()
    with options.runtime.reproducible():
        yield from _evaluated(model_cards, tasks, options, catalog or Catalog())


def _evaluated(
    model_cards: Sequence[ModelEntry], tasks: Sequence[Task], options: Options, catalog: Catalog
) -> Iterator[Result]:
    with contextlib.ExitStack() as until_the_end:
        encoders = [_encoder(model, options, until_the_end) for model in model_cards]
        yield from _by_task(encoders, tasks, options, catalog)


@dataclass(frozen=True)
class Share:
    """What a share of a task's images came to: images that were encoded for a model, or why there are none."""

    model: str
    task: str
    images: int
    reason: str | None = None
    error: DataError | None = None


def encode_share(
    model_cards: Sequence[ModelEntry], tasks: Sequence[Task], options: Options, share: tuple[int, int]
) -> Iterator[Share]:
    """Encode a share (k, n) of the images that tasks need, of every model, into the cache, and score nothing.

    Once all shares are there, `evaluate` encodes no image. Texts, heat maps and new crops of images are left to it.

    Raises:
        ClipbenchError: a limited sample is asked for, whose rows are not those of shares; or nothing is kept of a
            model, because nobody says what its features follow from.
    """
    if options.limit is not None:
        raise ClipbenchError("--shard encodes whole splits", hint="leave --limit out")
    rest()
    with options.runtime.reproducible():
        encoders = [
            ModelEncoder(model, options.runtime, options.on_bad_image, options.progress)
            for model in model_cards
        ]
        for encoder in encoders:
            if encoder.own is not None and encoder.own.identity is None:
                raise ClipbenchError(
                    f"{encoder.model.id} does not say what its features follow from, so that none are kept for others",
                    hint="give the object an `identity` (docs/library.md)",
                )
        opened: dict[tuple[str, ...], Split] = {}
        for task in tasks:
            yield from _share_of(encoders, task, options, share, opened)


def _share_of(
    encoders: Sequence[ModelEncoder],
    task: Task,
    options: Options,
    share: tuple[int, int],
    opened: dict[tuple[str, ...], Split],
) -> Iterator[Share]:
    try:
        plans = [_plan(encoder, task) for encoder in encoders]
        able = [plan for plan in plans if plan.reason is None and plan.encoder.adapter.given is None]
        splits = _splits(able, task, options, opened)
        for key in dict.fromkeys(key for plan in able for key in plan.needs.images):
            role, space = key
            images.encode_share(
                [plan.encoder for plan in able if key in plan.needs.images], splits[role], space, share
            )
    except DataError as error:
        yield from (Share(e.model.id, task.id, 0, error=error) for e in encoders)
        return
    for plan in plans:
        count = plan.encoder.counts.images_encoded - plan.before.images_encoded
        reason = plan.reason or (
            "its features were given" if plan.encoder.adapter.given is not None else None
        )
        yield Share(plan.encoder.model.id, task.id, count, reason)


def _encoder(model: ModelEntry, options: Options, until_the_end: contextlib.ExitStack) -> ModelEncoder:
    """The model's encoder; nothing is kept of one that nobody says what its features follow from."""
    encoder = ModelEncoder(model, options.runtime, options.on_bad_image, options.progress)
    if isinstance(model.adapter, OwnAdapter) and model.adapter.identity is None:
        encoder.root = folder_for_now(cache_root(), "own")
        until_the_end.callback(shutil.rmtree, encoder.root, ignore_errors=True)
    return encoder


def _by_task(
    encoders: Sequence[ModelEncoder], tasks: Sequence[Task], options: Options, catalog: Catalog
) -> Iterator[Result]:
    opened: dict[tuple[str, ...], Split] = {}
    for task in tasks:
        try:
            plans = [_plan(encoder, task) for encoder in encoders]
            able = [plan for plan in plans if plan.reason is None]
            splits = _splits(able, task, options, opened)
            _encode([plan for plan in able if plan.encoder.adapter.given is None], splits)
        except DataError as error:
            yield from (Result(e.model.id, task.id, None, {}, error=error) for e in encoders)
            continue
        for plan in plans:
            if plan.reason is not None:
                yield Result(plan.encoder.model.id, task.id, None, {}, plan.reason)
                continue
            try:
                if plan.encoder.adapter.given is not None:  # what is wrong there is nobody else's
                    _encode([plan], splits)
                record, samples = _outcome(plan, options, catalog, splits)
                pictures = _pictures(plan, options, splits)
            except NotApplicable as lack:
                yield Result(plan.encoder.model.id, task.id, None, {}, lack.message)
            except DataError as error:
                yield Result(plan.encoder.model.id, task.id, None, {}, error=error)
            else:
                yield Result(plan.encoder.model.id, task.id, record, samples, pictures=pictures)


def refuse(
    models: Sequence[ModelEntry],
    tasks: Sequence[Task],
    options: Options,
    results: Path | None,
    *,
    force: bool = False,
) -> None:
    """Raise ClipbenchError for what could not be kept, or would not be there, before any work is done for it.

    Args:
        results: where records are to be written; it is made.
        force: what is none of clipbench's may be replaced there.
    """
    count = Counter(model.id for model in models)
    if twice := [name for name, times in count.items() if times > 1]:
        raise ClipbenchError(
            f'{count[twice[0]]} of the models are called "{twice[0]}"',
            hint="give each object a name of its own",
        )
    if options.pictures and not any(task.protocol.pictures for task in tasks):
        raise ClipbenchError(
            f"--save-heatmaps: none of the tasks has heat maps ({', '.join(task.id for task in tasks)})",
            hint="tasks that end in -ground have some; leave the option out for others",
        )
    if results is None:
        if options.pictures:
            raise ClipbenchError(
                "save_heatmaps: heat maps are written beside records", hint="say where: results=…"
            )
        return
    make_folder(results)
    for model in models:
        for task in tasks:
            store.refuse_foreign(model.id, task.id, results, force=force)


class Kept(NamedTuple):
    """Where a result lies: its record, and the folder of its pictures, if there are any."""

    record: Path
    pictures: Path | None


def keep(result: Result, results: Path, *, force: bool = False) -> Kept:
    """Write the record, the per-sample outcomes and the pictures of a result that has a record.

    Raises:
        StorageError: as `records.store.write`.
    """
    assert result.record is not None
    with stage("write"):
        path = store.write(result.record, result.samples, results, force=force, last=_timed)
    pictures = store.write_pictures(result.pictures, path, force=force) if result.pictures else None
    return Kept(path, pictures)


def _timed(record: Record) -> Record:
    """The record, with the time that went by until its samples were written."""
    return record.model_copy(update={"timing": record.timing.and_since(taken())})


def evaluator(catalog: Catalog, options: Options) -> Callable[[Adapter, Sequence[str]], list[Record]]:
    """A function that measures a model in training on tasks, by id; its features are not kept."""

    def measure(adapter: Adapter, task_ids: Sequence[str]) -> list[Record]:
        model = ModelEntry("in-training", adapter.card, Path.cwd())
        with tempfile.TemporaryDirectory(prefix="clipbench-") as folder:
            encoder = ModelEncoder(model, options.runtime, progress=False, root=Path(folder))
            encoder.adapter = adapter
            found = []
            for task in catalog.tasks(task_ids):
                plan = _plan(encoder, task)
                if plan.reason is not None:
                    raise NotApplicable(plan.reason)
                splits = _splits([plan], task, options, {})
                _encode([plan], splits)
                found.append(_outcome(plan, options, catalog, splits)[0])
            return found

    return measure


def limited(split: Split, limit: int | None, seed: int) -> Split:
    """`split`, or a seeded sample of `limit` of its samples: class-balanced where each has one class.

    Classes take turns, in a seeded order, each giving its samples in a seeded order: classes differ by at most
    one sample while they last. Of items to choose among, all images of as many as fit, parts taking turns.

    Raises:
        DataError: no item has so few images.
    """
    if limit is None or limit >= len(split):
        return split
    rng = np.random.default_rng(seed)
    if split.choices is not None:
        rows = rows_of_some(split.choices, limit, rng)
        if not rows.size:
            raise DataError(
                f"{split.dataset}: every item has more than {limit:,} images",
                hint="raise --limit, or leave it out: an item is measured where all of its images are there",
            )
        return Subset(split, rows)
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


def _splits(
    plans: Sequence[_Plan], task: Task, options: Options, opened: dict[tuple[str, ...], Split]
) -> dict[str, Split]:
    """The splits that models which can do the task need, by role; `opened` keeps them for the tasks that follow."""
    splits = {}
    dataset = task.opened
    roles = sorted({role for plan in plans for role in plan.needs.roles})
    for what in (*roles, *task.marks) if roles else ():  # before one of them is fetched
        refuse_lacking(task.dataset, what, options.data)
    for role in roles:
        name = (task.dataset.id, role, *dataset.card.languages)
        if name not in opened:
            with stage("open"):
                opened[name] = open_split(dataset, role, options.data)
        splits[role] = limited(task.of(opened[name]), options.limit, options.seed)
    return splits


@dataclass
class _Plan:
    """What a task needs of a model, worked out once; then what it got.

    Attributes:
        reason: why the model cannot do the task; None: it can.
        before: what encoding had cost before.
        encoded: (split role, feature space) → features.
    """

    encoder: ModelEncoder
    task: Task
    needs: Needs
    reason: str | None
    before: Counts
    encoded: dict[tuple[str, str], Encoded] = field(default_factory=dict)


class _Inputs:
    """A model as the protocol of one task sees it: its images' features are there already (`protocols.base.Inputs`)."""

    def __init__(self, plan: _Plan) -> None:
        encoder = plan.encoder
        self._features = {key: found.features for key, found in plan.encoded.items()}
        self.logit_scale, self.device = encoder.logit_scale, encoder.device
        self.compared, self.token_width = encoder.compared, encoder.token_width
        self.texts, self.crops, self.tracked = encoder.texts, encoder.crops, encoder.tracked
        self.cuts = encoder.cuts
        if plan.needs.heat is not None:
            self.heat = encoder.saliency.heat

    def images(self, split: Split, space: str = "joint") -> Features:
        return self._features[split.role, space]


def _plan(encoder: ModelEncoder, task: Task) -> _Plan:
    """What the task reads of this model, or why it cannot; said before anything is encoded."""
    before, protocol = replace(encoder.counts), task.protocol
    needs, reason = protocol.needs(task.params, encoder.compared), None
    try:
        if protocol.texts is not None:
            encoder.adapter.require_text(encoder.compared)
        for _, space in needs.images:
            encoder.require(space)
        if needs.heat is not None:
            encoder.saliency  # noqa: B018 - asks whether there is one
    except NotApplicable as lack:
        reason = lack.message
    return _Plan(encoder, task, needs, reason, before)


def _encode(plans: Sequence[_Plan], splits: dict[str, Split]) -> None:
    """Encode what the task needs for all models that can do it at once, where their preprocessing agrees."""
    for key in dict.fromkeys(key for plan in plans for key in plan.needs.images):
        role, space = key
        wanting = [plan for plan in plans if key in plan.needs.images]
        for plan, found in zip(
            wanting, encode([plan.encoder for plan in wanting], splits[role], space), strict=True
        ):
            plan.encoded[key] = found


def _outcome(
    plan: _Plan, options: Options, catalog: Catalog, splits: dict[str, Split]
) -> tuple[Record, dict[str, Column]]:
    """Run the protocol; the record and its per-sample outcomes."""
    encoder, task = plan.encoder, plan.task
    encoder.text_plans.clear()
    encoder.cuts.clear()
    with stage("score"):
        outcome = task.protocol.run(task.dataset.card, splits, _Inputs(plan), task.params, options.seed)
    before = plan.before
    if plan.needs.heat is not None:
        plan.encoded[plan.needs.heat, "heat"] = encoder.saliency.seen(splits[plan.needs.heat])
    counts = encoder.counts
    images_s, texts_s = counts.images_s - before.images_s, counts.texts_s - before.texts_s
    encoded = counts.images_encoded - before.images_encoded
    card = task.dataset.card
    protocol = ProtocolUsed(
        name=task.protocol.id, version=task.protocol.version, params=task.params.canonical()
    )
    measured, trained_on = splits[protocol.split], encoder.model.card.trained_on
    known = exposure(trained_on, task.dataset, protocol.split, catalog, measured.ids)
    repeats = notes.repeats(plan.encoded, splits, protocol.split)
    skipped = {i: reason for found in plan.encoded.values() for i, reason in found.bad.items()}
    how, env, spent = _how(plan), environment(), taken()
    record = Record(
        model=encoder.model.id,
        task=task.id,
        protocol=protocol,
        primary=task.params.primary,
        scores=outcome.scores,
        per_class={m: by_class(card.classes, values) for m, values in outcome.per_class.items()},
        seed=options.seed,
        limit=options.limit if any(isinstance(s, Subset) and s.limited for s in splits.values()) else None,
        skipped=tuple(Skipped(id=i, reason=r) for i, r in skipped.items()),
        notes=tuple(
            Noted(split=role, **vars(note))
            for role, split in splits.items()
            for note in (
                *split.notes,
                *split.beside_notes(),
                *(without_samples(split) if set(task.protocol.kinds) & {*LABELLED} else ()),
                *(notes.unknown_data(known) if role == protocol.split else ()),
                *notes.remarks(plan.encoded, role),
                *dict.fromkeys(
                    n for (own, _), found in plan.encoded.items() if own == role for n in found.notes
                ),
                *(notes.assumed(encoder, outcome.scores) if role == protocol.split else ()),
                *(notes.cut_texts(encoder) if role == protocol.split else ()),
                *repeats.get(role, ()),
            )
        ),
        seen=known.seen,
        precision=encoder.precision,
        device=encoder.device_name,
        env=env,
        fingerprints={
            "model_card": fingerprint(encoder.model.card.canonical()),
            "task_card": fingerprint(card.canonical()),
            # of arrays that were given, plans have the sha256
            "weights": encoder.adapter.weights_sha256 or fingerprint(how["plans"]),
            **{f"split:{role}": split.fingerprint for role, split in splits.items()},
        },
        timing=Timing(
            load_s=spent.get("load", 0.0),
            encode_images_s=images_s,
            encode_texts_s=texts_s,
            score_s=spent.get("score", 0.0),
            total_s=sum(spent.values()),
            images_per_s=encoded / images_s if encoded and images_s else None,
            images_encoded=encoded,
            texts_encoded=counts.texts_encoded - before.texts_encoded,
            stages=spent,
        ),
        encoder=how,
        evidence=outcome.evidence,
        cards=ResolvedCards(model=encoder.model.card.canonical(), task=card.canonical()),
        created=utc_now(),
    )
    return record, outcome.samples


def _how(plan: _Plan) -> Json:
    """How the towers were run whose features were read, for the record."""
    encoder = plan.encoder
    images: dict[str, JsonValue] = {
        f"{role}:{space}": found.plan for (role, space), found in plan.encoded.items()
    }
    texts: dict[str, JsonValue] = {
        f"text:{space}": ", ".join(sorted(plans)) for space, plans in sorted(encoder.text_plans.items())
    }
    devices = {device for found in plan.encoded.values() for device in found.devices}
    found: Json = {"plans": images | texts, "devices": list[JsonValue](sorted(devices))}
    if encoder.cuts:
        found["texts"] = {f"text:{space}": added(cuts).told for space, cuts in sorted(encoder.cuts.items())}
    if encoder.own is not None:
        found["own"] = {
            "code": encoder.own.code,
            "identity": encoder.own.identity,
            "images": "RGB, as stored",
            "batch": encoder.batch_rows,
            "kept": encoder.own.identity is not None,
        }
    told = families.family(encoder.model.card.family).backbone_is(encoder.model.card)
    if told is not None and any(space.partition("@")[0] == "backbone" for _, space in plan.encoded):
        found["backbone"] = told
    if encoder.adapter.logit_bias is not None:
        found["logit_bias"] = encoder.adapter.logit_bias
    if encoder.adapter.left_out:
        found["left_out"] = list[JsonValue](encoder.adapter.left_out)
    if max_pixels() != MAX_PIXELS:
        found["max_pixels"] = max_pixels()
    if encoder.runtime.deterministic:
        found |= {"deterministic": True, "fixed": dict[str, JsonValue](encoder.runtime.fixed)}
    return found


def _pictures(plan: _Plan, options: Options, splits: dict[str, Split]) -> dict[str, bytes]:
    """File name → PNG, where they are asked for and the protocol draws any."""
    task = plan.task
    if not options.pictures or task.protocol.pictures is None:
        return {}
    return task.protocol.pictures(
        task.dataset.card, splits, _Inputs(plan), task.params, options.seed, options.pictures
    )
