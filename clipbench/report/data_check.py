"""What `clipbench data check` looks at: every split of a data set that is at hand, its counts, classes and images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import TextWrapper

import numpy as np

from clipbench.cards.entry import Entry
from clipbench.cards.task import DIFFICULT_MARKS, LABELLED, TaskCard
from clipbench.catalog import Task
from clipbench.data.decode import problem
from clipbench.data.labels import require_difficult, without_samples
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Note, Split
from clipbench.errors import ClipbenchError, DataError
from clipbench.report.table import aligned

#: images of a split that are decoded, evenly spread, unless all are
SAMPLE = 32
_NAMED = 3


@dataclass(frozen=True)
class Checked:
    """One split as it was found.

    Attributes:
        data, role: for example "dtd", "train".
        samples: how many there are, or items of sets of choices; None where the split could not be opened.
        due: how many the card says.
        classes: how many of the card's classes have a sample; None of sets without classes.
        decoded: images that were tried.
        problems: what is wrong.
        notes: what a reader of its numbers must know.
    """

    data: str
    role: str
    samples: int | None
    due: int | None
    classes: int | None = None
    decoded: int = 0
    problems: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()


@dataclass
class Survey:
    """What was found.

    Attributes:
        splits: those that are at hand.
        elsewhere: data sets of which no copy is at hand, and where `eval` would fetch them.
        tasks: task → why it cannot run; "" where it can.
    """

    splits: list[Checked] = field(default_factory=list)
    elsewhere: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)

    @property
    def well(self) -> bool:
        """Whether nothing is wrong with what is at hand, and each of its tasks can run."""
        return not any(self.tasks.values()) and not any(split.problems for split in self.splits)


def survey(tasks: Sequence[Task], paths: DataPaths, *, every: bool = False) -> Survey:
    """Open every split of the data sets of `tasks`, count, and decode `SAMPLE` images of each, or all with `every`.

    Nothing is fetched: a data set of which no copy is given is named.

    Raises:
        DataError: no copy of any of them is at hand.
    """
    found = Survey()
    for dataset in {task.dataset.id: task.dataset for task in tasks}.values():
        source = dataset.card.source
        public = source.hub or (source.torchvision and f"torchvision's {source.torchvision}")
        if public and paths.find(dataset.id, dataset.card) is None:
            found.elsewhere[dataset.id] = public
            continue
        opened: dict[str, Split] = {}
        failed: dict[str, str] = {}
        for role in dataset.card.splits:
            try:
                opened[role] = open_split(dataset, role, paths)
            except ClipbenchError as error:
                failed[role] = error.message
                due = dataset.card.splits[role].rows
                said = f"{error.message} ({error.hint})" if error.hint else error.message
                found.splits.append(Checked(dataset.id, role, None, due, problems=(said,)))
            else:
                found.splits.append(_checked(dataset, opened[role], every))
        for task in tasks:
            if task.dataset.id == dataset.id:
                found.tasks[task.id] = _obstacle(task, opened, failed)
    if not found.splits:
        names = ", ".join(found.elsewhere)
        raise DataError(
            f"no copy of {names} is at hand, and nothing is fetched to be checked{paths.without(names)}",
            hint=f"give yours: --data {next(iter(found.elsewhere))}=<folder>",
        )
    return found


def _checked(dataset: Entry[TaskCard], split: Split, every: bool) -> Checked:
    due = dataset.card.splits[split.role].rows
    count, what = split.counted
    problems = []
    if due is not None and count != due:
        problems.append(f"{count:,} {what}, the card says {due:,}")
    classes = None
    if dataset.card.kind in LABELLED:
        lost = sum(note.count for note in without_samples(split))
        classes = len(split.classes) - lost
        problems += [str(note) for note in without_samples(split)]
    last = len(split) - 1
    rows = np.arange(last + 1) if every else np.unique(np.linspace(0, last, SAMPLE).astype(np.int64))
    bad = [(sample.id, why) for sample in split.samples(rows) if (why := problem(sample.image)) is not None]
    if bad:
        named = "; ".join(f"{name}: {why}" for name, why in bad[:_NAMED])
        problems.append(f"{len(bad):,} of {len(rows):,} images cannot be decoded ({named})")
    noted = (*split.notes, *split.beside_notes())
    notes = tuple(note for note in noted if note.kind != "missing-samples")  # which is a problem here
    return Checked(dataset.id, split.role, count, due, classes, len(rows), tuple(problems), notes)


def _obstacle(task: Task, opened: dict[str, Split], failed: dict[str, str]) -> str:
    """Why a task cannot run on these splits; "" where it can."""
    for role in task.roles:
        if role in failed:
            return f"{role}: {failed[role]}"
    if task.marks:
        test = getattr(task.params, "test", None) or getattr(task.params, "split", None)
        try:
            require_difficult(opened[str(test)], getattr(task.params, DIFFICULT_MARKS))
        except DataError as error:
            return error.message
    return ""


def text(found: Survey) -> str:
    """A table of at most 80 columns where ids are short, and below it what is wrong and what runs."""
    lines = []
    for one in found.splits:
        counts = (one.samples, one.due, one.classes, one.decoded)
        cells = ("–" if count is None else f"{count:,}" for count in counts)
        lines.append([one.data, one.role, *cells, "wrong" if one.problems else "well"])
    headings = ["data set", "split", "samples", "card", "classes", "decoded", ""]
    parts = [aligned(headings, lines, left={0, 1, 6})]
    for one in found.splits:
        parts += [f"✗ {one.data} {one.role}: {problem}\n" for problem in one.problems]
        parts += [f"  {one.data} {one.role}: {note}\n" for note in one.notes]
    for name, public in found.elsewhere.items():
        parts.append(f"  {name}: no copy at hand; eval fetches {public}\n")
    runs = [name for name, why in found.tasks.items() if not why]
    wrapped = TextWrapper(80, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
    parts.append(wrapped.fill(f"can run: {', '.join(runs) or 'nothing'}") + "\n")
    parts += [f"✗ cannot run: {name}: {why}\n" for name, why in found.tasks.items() if why]
    return "".join(parts)
