"""Which records may stand on the leaderboard, and why others may not. No torch here.

A record stands when it is of the whole split, from a clean tree, as it was measured (its seal is whole), of images that
the model was not trained on (`clipbench.records.exposure`), and current: the protocol's version and parameters, the
weights, and all of its cards that can move a number are those of today. Code of the user's own must have said what its
features follow from, which is then his word. Words on a card (titles, notes, reported
numbers) may change, and so may what it says of training data. A model or task without a card here, such as a
checkpoint that was given by its path, is held against nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Final, Literal, NamedTuple

from clipbench.cards.base import fingerprint
from clipbench.cards.model import UNSTATED
from clipbench.catalog import Catalog, Task
from clipbench.errors import CardError
from clipbench.models.adapter import ModelEntry
from clipbench.models.families import family
from clipbench.protocols import registry
from clipbench.records.exposure import exposure
from clipbench.records.record import Json, Record, Seen
from clipbench.records.store import Stored

Kind = Literal["edited", "unsealed", "limited", "partial", "dirty", "seen", "stale", "unstated"]
#: what of a card can move a number; a task's `protocols` count as the parameters that they resolve to
_OF_MODEL: Final = ("family", "config", "preprocess", "text", "weights")
_OF_TASK: Final = (
    *("source", "columns", "splits", "kind", "also", "boxes"),
    *("classes", "label_names", "other_labels", "templates", "objectives"),
)


class Gone(NamedTuple):
    """A task whose data set has a card that no longer offers it."""

    dataset: str


class Reason(NamedTuple):
    """Why a record is kept off the leaderboard: a word for programs, a clause for people."""

    kind: Kind
    text: str


class Eligibility:
    """Says how records stand against the cards and protocols of `catalog`; every card is looked at once."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._model, self._task = cache(self._model_of), cache(self._task_of)
        self._card, self._params = cache(self._card_of), cache(self._params_of)
        self._weights, self._exposure = cache(self._weights_of), cache(self._exposure_of)

    def reasons(self, stored: Stored) -> tuple[Reason, ...]:
        """Everything that keeps a record off the leaderboard; empty where it may stand there.

        Raises:
            CardError: a card of today is wrong.
        """
        record = stored.record
        reasons = []
        if stored.seal == "broken":
            what = "its content is not what its digest says (or the file is damaged)"
            reasons.append(Reason("edited", f"edited by hand: {what}"))
        elif stored.seal == "none":
            what = "it has no digest (records before schema version 2 have none)"
            reasons.append(Reason("unsealed", f"unsealed: {what}"))
        if record.limit is not None:
            reasons.append(Reason("limited", f"limited: --limit {record.limit:,}"))
        if (of := lacking(record)) is not None:
            n = _measured(record)
            reasons.append(Reason("partial", f"partial: {n:,} of the split's {of:,} samples"))
        if record.env.dirty:
            reasons.append(Reason("dirty", "dirty: made with uncommitted changes to clipbench"))
        if seen := self.seen(record):
            reasons.append(Reason("seen", f"trained on {'; '.join(one.text for one in seen)}"))
        if record.fingerprints.get("weights") == UNSTATED:
            what = "code of the user's own, of which nothing says what weights it had (no identity)"
            reasons.append(Reason("unstated", f"unstated: {what}"))
        changes = self.changes(record)
        if changes:
            reasons.append(Reason("stale", f"stale: {'; '.join(changes)}"))
        return tuple(reasons)

    def changes(self, record: Record) -> list[str]:
        """What has changed since the record was made that can move its numbers: card, weights, protocol."""
        return [*self._of_model(record), *self._of_task(record)]

    def seen(self, record: Record) -> tuple[Seen, ...]:
        """What of the measured split the model was trained on: what the cards of today say, and what the record does.

        Of what both say the record's count stands: it saw the ids.
        """
        model, task = self._model(record.model), self._task(record.task)
        by_cards: tuple[Seen, ...] = ()
        if model is not None and isinstance(task, Task):
            by_cards = self._exposure(record.model, task.dataset.id, record.protocol.split)
        return tuple({one.data: one for one in (*by_cards, *record.seen)}.values())

    def _of_model(self, record: Record) -> list[str]:
        model = self._model(record.model)
        if model is None:
            return []
        found = []
        if record.fingerprints.get("model_card") != self._card("model", record.model):
            found = _differing("model card", record.cards.model, model.card.canonical(), _OF_MODEL)
        measured, wanted = record.fingerprints.get("weights"), self._weights(record.model)
        if measured is not None and wanted is not None and not measured.startswith(wanted):
            found.append(f"the weights changed: sha256 {measured[:8]} → {wanted[:8]}")
        return found

    def _of_task(self, record: Record) -> list[str]:
        task = self._task(record.task)
        if task is None:
            return []
        if isinstance(task, Gone):
            return [f"the card of {task.dataset} no longer has this task"]
        used, found = record.protocol, []
        if (used.name, used.version) != (task.protocol.id, task.protocol.version):
            now = f"{task.protocol.id} version {task.protocol.version}"
            found.append(f"protocol {used.name} version {used.version} → {now}")
        if record.fingerprints.get("task_card") != self._card("task", record.task):
            found += _differing("task card", record.cards.task, task.dataset.card.canonical(), _OF_TASK)
        # A parameter that came later is no change: its default is what was done before.
        found += _differing("protocol parameters", used.params, self._params(record.task), tuple(used.params))
        return found

    # -- what is looked at once, by name

    def _model_of(self, name: str) -> ModelEntry | None:
        return self._catalog.model(name) if name in self._catalog.model_files else None

    def _task_of(self, name: str) -> Task | Gone | None:
        dataset = name.partition("@")[0].rpartition("-")[0]
        if dataset not in self._catalog.dataset_files:
            return None
        self._catalog.dataset(dataset)  # a card that is wrong is an error
        try:
            return self._catalog.task(name)
        except CardError:
            return Gone(dataset)

    def _card_of(self, kind: Literal["model", "task"], name: str) -> str:
        """The fingerprint of a model's card, or of that of a task's data set."""
        task = None if kind == "model" else self._task(name)
        entry = task.dataset if isinstance(task, Task) else self._model(name)
        assert entry is not None
        return fingerprint(entry.card.canonical())

    def _params_of(self, name: str) -> Json:
        task = self._task(name)
        assert isinstance(task, Task)
        return task.params.canonical()

    def _weights_of(self, name: str) -> str | None:
        """What the weights' sha256 starts with today, as far as it is known without fetching anything."""
        model = self._model(name)
        assert model is not None
        own, file = model.card.weights.sha256, model.card.weights.file
        if own is None and file is not None and (model.folder / file).is_file():
            from clipbench.data.digests import sha256_file

            own = sha256_file(model.folder / file)
        return None if own is None else family(model.card.family).stated_weights(model, own)

    def _exposure_of(self, model: str, dataset: str, role: str) -> tuple[Seen, ...]:
        entry = self._model(model)
        assert entry is not None
        trained_on = entry.card.trained_on
        return exposure(trained_on, self._catalog.dataset(dataset), role, self._catalog).seen


def _differing(what: str, then: Json, now: Json, keys: tuple[str, ...]) -> list[str]:
    """One clause that names the keys whose values differ."""
    if then == now:
        return []
    changed = [key for key in keys if then.get(key) != now.get(key)]
    if not changed:
        return []
    return [f"{what} changed: {', '.join(_described(key, then.get(key), now.get(key)) for key in changed)}"]


def _described(key: str, then: object, now: object) -> str:
    """A key, with its two values where they are short; deeper keys where both are mappings.

    >>> _described("size", 224, 336)
    'size 224 → 336'
    >>> _described("preprocess", {"size": 224, "crop": None}, {"size": 336, "crop": None})
    'preprocess.size 224 → 336'
    """
    if isinstance(then, dict) and isinstance(now, dict):
        keys = [k for k in {**then, **now} if then.get(k) != now.get(k)]
        return ", ".join(_described(f"{key}.{k}", then.get(k), now.get(k)) for k in keys)
    if isinstance(then, list | dict) or isinstance(now, list | dict):
        return key
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in (then, now)]
    return f"{key} {texts[0]} → {texts[1]}" if all(len(text) <= 24 for text in texts) else key


def lacking(record: Record) -> int | None:
    """How many samples the split has, where a copy was measured that lacks some of them; else None."""
    splits = record.cards.task.get("splits")
    spec = splits.get(record.protocol.split) if isinstance(splits, dict) else None
    rows = spec.get("rows") if isinstance(spec, dict) else None
    if record.limit is not None or not isinstance(rows, int):
        return None
    return rows if _measured(record) + len(record.skipped) < rows else None


def _measured(record: Record) -> int:
    """How many samples of the split were looked at, those of other groups than the worst too."""
    told = record.evidence.get("left_out")  # what the task's own parameters leave out
    left_out = told if isinstance(told, int) else 0
    if registry.metric(record.primary).lowest_of is not None:
        return max(score.n for score in record.scores.values()) + left_out
    return record.scores[record.primary].n + left_out
