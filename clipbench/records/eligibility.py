"""Which records may stand on the leaderboard, and why others may not. No torch here.

A record stands when it is of the whole split, from a clean tree, as it was measured (its seal is whole), of images that
the model was not trained on (`clipbench.records.exposure`), and current: the protocol's version and parameters, the
weights, and all of its cards that can move a number are those of today. Words on a card (titles, notes, reported
numbers) may change, and so may what it says of training data. A model or task without a card here, such as a
checkpoint that was given by its path, is held against nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from clipbench.cards.base import fingerprint
from clipbench.catalog import Catalog, Task
from clipbench.errors import CardError
from clipbench.models.adapter import ModelEntry
from clipbench.models.families import family
from clipbench.records.exposure import exposure
from clipbench.records.record import Json, Record, Seen
from clipbench.records.store import Stored

Kind = Literal["edited", "unsealed", "limited", "partial", "dirty", "seen", "stale"]
#: what of a card can move a number; a task's `protocols` count as the parameters that they resolve to
_OF_MODEL: Final = ("family", "config", "preprocess", "weights")
_OF_TASK: Final = (
    *("source", "columns", "splits", "kind", "also", "boxes"),
    *("classes", "label_names", "other_labels", "templates"),
)


class Gone(NamedTuple):
    """A task whose data set has a card that no longer offers it."""

    dataset: str


class Reason(NamedTuple):
    """Why a record is kept off the leaderboard: a word for programs, a clause for people."""

    kind: Kind
    text: str


@dataclass
class Judge:
    """Says how records stand against the cards and protocols of `catalog`; every card is looked at once."""

    catalog: Catalog
    _models: dict[str, ModelEntry | None] = field(default_factory=dict, init=False, repr=False)
    _tasks: dict[str, Task | Gone | None] = field(default_factory=dict, init=False, repr=False)
    _resolved_params: dict[str, Json] = field(default_factory=dict, init=False, repr=False)
    _exposures: dict[tuple[str, str, str], tuple[Seen, ...]] = field(
        default_factory=dict, init=False, repr=False
    )
    _fingerprints: dict[tuple[str, str], str] = field(default_factory=dict, init=False, repr=False)

    def reasons(self, stored: Stored) -> tuple[Reason, ...]:
        """Everything that keeps a record off the leaderboard; empty where it may stand there.

        Raises:
            CardError: a card of today is wrong.
        """
        record = stored.record
        found = []
        if stored.seal == "broken":
            found.append(
                Reason(
                    "edited",
                    "edited by hand: its content is not what its digest says (or the file is damaged)",
                )
            )
        elif stored.seal == "none":
            found.append(
                Reason("unsealed", "unsealed: it has no digest (records before schema version 2 have none)")
            )
        if record.limit is not None:
            found.append(Reason("limited", f"limited: --limit {record.limit:,}"))
        if (of := lacking(record)) is not None:
            n = record.scores[record.primary].n
            found.append(Reason("partial", f"partial: {n:,} of the split's {of:,} samples"))
        if record.env.dirty:
            found.append(Reason("dirty", "dirty: made with uncommitted changes to clipbench"))
        if seen := self.seen(record):
            found.append(Reason("seen", f"trained on {'; '.join(one.text for one in seen)}"))
        changes = self.changes(record)
        if changes:
            found.append(Reason("stale", f"stale: {'; '.join(changes)}"))
        return tuple(found)

    def changes(self, record: Record) -> list[str]:
        """What has changed since the record was made that can move its numbers: card, weights, protocol."""
        return [*self._of_model(record), *self._of_task(record)]

    def seen(self, record: Record) -> tuple[Seen, ...]:
        """What of the measured split the model was trained on: what the cards of today say, and what the record does.

        Of what both say the record's count stands: it saw the ids.
        """
        found = {one.data: one for one in self._by_cards(record)}
        return tuple((found | {one.data: one for one in record.seen}).values())

    def _by_cards(self, record: Record) -> tuple[Seen, ...]:
        model, task = self._model(record.model), self._task(record.task)
        if model is None or not isinstance(task, Task):
            return ()
        key = (record.model, task.dataset.id, record.protocol.split)
        if key not in self._exposures:
            found = exposure(model.card.trained_on, task.dataset, record.protocol.split, self.catalog)
            self._exposures[key] = found.seen
        return self._exposures[key]

    def _of_model(self, record: Record) -> list[str]:
        model = self._model(record.model)
        if model is None:
            return []
        found = []
        if record.fingerprints.get("model_card") != self._fingerprint("model", record.model, model.card):
            found = _differing("model card", record.cards.model, model.card.canonical(), _OF_MODEL)
        measured, wanted = record.fingerprints.get("weights"), self._weights(model)
        if measured is not None and wanted is not None and not measured.startswith(wanted):
            found.append(f"the weights changed: sha256 {measured[:8]} → {wanted[:8]}")
        return found

    def _weights(self, model: ModelEntry) -> str | None:
        """What the weights' sha256 starts with today, as far as it is known without fetching anything."""
        own = self._own_weights(model)
        return None if own is None else family(model.card.family).stated_weights(model, own)

    def _own_weights(self, model: ModelEntry) -> str | None:
        """As `_weights`, of the file that the card itself names."""
        weights = model.card.weights
        if weights.sha256 is not None or weights.file is None:
            return weights.sha256
        key = ("weights", model.id)
        if key not in self._fingerprints:
            from clipbench.data.digests import sha256_file

            path = model.folder / weights.file
            self._fingerprints[key] = sha256_file(path) if path.is_file() else ""
        return self._fingerprints[key] or None

    def _of_task(self, record: Record) -> list[str]:
        task = self._task(record.task)
        if task is None:
            return []
        if isinstance(task, Gone):
            return [f"the card of {task.dataset} no longer has this task"]
        used, found = record.protocol, []
        if (used.name, used.version) != (task.protocol.id, task.protocol.version):
            found.append(
                f"protocol {used.name} version {used.version} → {task.protocol.id} version {task.protocol.version}"
            )
        if record.fingerprints.get("task_card") != self._fingerprint("task", record.task, task.dataset.card):
            found += _differing("task card", record.cards.task, task.dataset.card.canonical(), _OF_TASK)
        # A parameter that came later is no change: its default is what was done before.
        found += _differing("protocol parameters", used.params, self._params(task), tuple(used.params))
        return found

    def _params(self, task: Task) -> Json:
        if task.id not in self._resolved_params:
            self._resolved_params[task.id] = task.params.canonical()
        return self._resolved_params[task.id]

    def _model(self, name: str) -> ModelEntry | None:
        if name not in self._models:
            known = name in self.catalog.model_files
            self._models[name] = self.catalog.model(name) if known else None
        return self._models[name]

    def _task(self, name: str) -> Task | Gone | None:
        if name not in self._tasks:
            dataset = name.partition("@")[0].rpartition("-")[0]
            self._tasks[name] = (
                self._offered(name, dataset) if dataset in self.catalog.dataset_files else None
            )
        return self._tasks[name]

    def _offered(self, name: str, dataset: str) -> Task | Gone:
        self.catalog.dataset(dataset)  # a card that is wrong is an error
        try:
            return self.catalog.task(name)
        except CardError:
            return Gone(dataset)

    def _fingerprint(self, kind: str, name: str, card: Any) -> str:
        if (kind, name) not in self._fingerprints:
            self._fingerprints[kind, name] = fingerprint(card.canonical())
        return self._fingerprints[kind, name]


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
    return rows if record.scores[record.primary].n + len(record.skipped) < rows else None
