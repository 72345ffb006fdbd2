"""The story: cards → splits and encoders → features → protocol → record."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from clipbench.cards.base import fingerprint
from clipbench.cards.task import LABELLED
from clipbench.catalog import Catalog, Task
from clipbench.data.decode import MAX_PIXELS, REMARKS, max_pixels
from clipbench.data.decode_stream import OnBadImage
from clipbench.data.labels import without_samples
from clipbench.data.open import open_split, refuse_lacking
from clipbench.data.paths import DataPaths
from clipbench.data.split import Note, Split, Subset
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.feature_store import Features
from clipbench.encoding.image_digests import among, repeated
from clipbench.encoding.images import Encoded, encode
from clipbench.encoding.model_features import Counts
from clipbench.encoding.runtime import Runtime
from clipbench.errors import DataError, NotApplicable
from clipbench.models import families
from clipbench.models.adapter import Adapter, ModelEntry
from clipbench.protocols.base import Needs, Outcome
from clipbench.records.exposure import Exposure, exposure
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
    encoders = [
        ModelEncoder(model, options.runtime, options.on_bad_image, options.progress) for model in model_cards
    ]
    opened: dict[tuple[str, str], Split] = {}
    for task in tasks:
        try:
            plans = [_plan(encoder, task) for encoder in encoders]
            able = [plan for plan in plans if plan.reason is None]
            splits = _splits(able, task, options, opened)
            _encode(able, splits)
        except DataError as error:
            yield from (Result(e.model.id, task.id, None, {}, error=error) for e in encoders)
            continue
        for plan in plans:
            if plan.reason is not None:
                yield Result(plan.encoder.model.id, task.id, None, {}, plan.reason)
                continue
            try:
                record, samples = _outcome(plan, options, catalog, splits)
                pictures = _pictures(plan, options, splits)
            except NotApplicable as lack:
                yield Result(plan.encoder.model.id, task.id, None, {}, lack.message)
            except DataError as error:
                yield Result(plan.encoder.model.id, task.id, None, {}, error=error)
            else:
                yield Result(plan.encoder.model.id, task.id, record, samples, pictures=pictures)


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


def _splits(
    plans: Sequence[_Plan], task: Task, options: Options, opened: dict[tuple[str, str], Split]
) -> dict[str, Split]:
    """The splits that models which can do the task need, by role; `opened` keeps them for the tasks that follow."""
    splits = {}
    roles = sorted({role for plan in plans for role in plan.needs.roles})
    for what in (*roles, *task.marks) if roles else ():  # before one of them is fetched
        refuse_lacking(task.dataset, what, options.data)
    for role in roles:
        name = (task.dataset.id, role)
        if name not in opened:
            with stage("open"):
                whole = open_split(task.dataset, role, options.data)
            opened[name] = limited(whole, options.limit, options.seed)
        splits[role] = opened[name]
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
    with stage("score"):
        outcome = task.protocol.run(task.dataset.card, splits, _Inputs(plan), task.params, options.seed)
    before = plan.before
    if plan.needs.heat is not None:
        plan.encoded[plan.needs.heat, "heat"] = encoder.saliency.seen(splits[plan.needs.heat])
    counts = encoder.counts
    images_s, texts_s = counts.images_s - before.images_s, counts.texts_s - before.texts_s
    encoded = counts.images_encoded - before.images_encoded
    card, runtime = task.dataset.card, options.runtime
    protocol = ProtocolUsed(
        name=task.protocol.id, version=task.protocol.version, params=task.params.canonical()
    )
    measured, trained_on = splits[protocol.split], encoder.model.card.trained_on
    known = exposure(trained_on, task.dataset, protocol.split, catalog, measured.ids)
    repeats = _repeats(plan.encoded, splits, protocol.split)
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
                *(_unknown(known) if role == protocol.split else ()),
                *_remarks(plan.encoded, role),
                *dict.fromkeys(
                    n for (own, _), found in plan.encoded.items() if own == role for n in found.notes
                ),
                *(_assumed(plan, outcome) if role == protocol.split else ()),
                *repeats.get(role, ()),
            )
        ),
        seen=known.seen,
        precision=encoder.precision,
        device=runtime.device_name,
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


def _unknown(known: Exposure) -> list[Note]:
    """That the model's card names training data of which there is no card, so that what they share is not known."""
    text = "sets of training data have no card here, so whether they hold images of this split is not known"
    return [Note.of("unknown-training-data", text, known.unknown)] if known.unknown else []


def _assumed(plan: _Plan, outcome: Outcome) -> list[Note]:
    """That the factor on cosines was not given, where a number hangs on it."""
    given, texts = plan.encoder.adapter.given, plan.task.protocol.texts
    if given is None or given.about.logit_scale or texts is None or "ece" not in outcome.scores:
        return []
    text = f"logit scale is not given: {plan.encoder.logit_scale:g} was assumed, on which ece and confidences hang"
    return [Note("logit-scale-assumed", text, 1)]


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
    told = families.family(encoder.model.card.family).backbone_is(encoder.model.card)
    if told is not None and any(space.partition("@")[0] == "backbone" for _, space in plan.encoded):
        found["backbone"] = told
    if encoder.adapter.left_out:
        found["left_out"] = list[JsonValue](encoder.adapter.left_out)
    if max_pixels() != MAX_PIXELS:
        found["max_pixels"] = max_pixels()
    if encoder.runtime.deterministic:
        found |= {"deterministic": True, "fixed": dict[str, JsonValue](encoder.runtime.fixed)}
    return found


def _remarks(encoded: dict[tuple[str, str], Encoded], role: str) -> list[Note]:
    """What must be said of how images of a split were decoded."""
    of_kind: dict[str, dict[str, None]] = {}
    for (own, _), found in encoded.items():
        if own == role:
            for name, kind in found.remarks:
                of_kind.setdefault(kind, {})[name] = None
    return [Note.of(kind, REMARKS.get(kind, kind), list(names)) for kind, names in of_kind.items()]


def _repeats(
    encoded: dict[tuple[str, str], Encoded], splits: dict[str, Split], scored: str
) -> dict[str, list[Note]]:
    """Split → notes on images of the split `scored` that are there twice, byte for byte, or also in training."""
    seen = {}
    for (role, _), found in encoded.items():
        if found.digests is not None:
            good = [i for i, name in enumerate(splits[role].ids) if name not in found.bad]
            seen[role] = np.array(good, dtype=np.int64), found.digests[good]
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


def _pictures(plan: _Plan, options: Options, splits: dict[str, Split]) -> dict[str, bytes]:
    """File name → PNG, where they are asked for and the protocol draws any."""
    task = plan.task
    if not options.pictures or task.protocol.pictures is None:
        return {}
    return task.protocol.pictures(
        task.dataset.card, splits, _Inputs(plan), task.params, options.seed, options.pictures
    )
