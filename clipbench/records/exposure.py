"""Which images of a split a model was trained on, by what cards say: a model's `trained_on`, a data set's `images_of`.

Images alone count: a model that was trained on a data set's training split has seen none of its test split, though it
knows the domain. Where nothing is said, nothing is known, and nothing is marked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from clipbench.cards.entry import Entry
from clipbench.cards.model import Images
from clipbench.cards.task import Part, SplitSpec, TaskCard
from clipbench.catalog import Catalog
from clipbench.records.record import Seen


@dataclass(frozen=True)
class Exposure:
    """What a model has seen of a split; `unknown` are data sets or splits of its card that no task card here has."""

    seen: tuple[Seen, ...] = ()
    unknown: tuple[str, ...] = ()


class _Where(NamedTuple):
    """Images as their source keeps them: `split` is the data's own name of it, None any; `id` that of a task card."""

    id: str | None
    name: str | None
    split: str | None


def exposure(
    trained_on: Iterable[Images],
    dataset: Entry[TaskCard],
    role: str,
    catalog: Catalog,
    ids: Sequence[str] | None = None,
) -> Exposure:
    """What of the split `role` of `dataset` is among the images of `trained_on`.

    Args:
        catalog: where the other data sets' cards are.
        ids: of the split's samples, by which parts of one split are counted; None: as far as the cards say.

    Raises:
        CardError: a card that is looked at is wrong.
    """
    return _Relations(dataset, catalog).exposure(trained_on, role, ids)


def unknown_images(given: Iterable[Images], catalog: Catalog) -> list[str]:
    """Those that name a data set, or a split of one, that no task card here has."""
    relations = _Relations(None, catalog)
    return [one.described for one in given if relations.places(one) is None]


class _Relations:
    """The images that splits have in common, as the cards say."""

    def __init__(self, dataset: Entry[TaskCard] | None, catalog: Catalog) -> None:
        self._dataset, self._catalog = dataset, catalog

    def exposure(self, trained_on: Iterable[Images], role: str, ids: Sequence[str] | None) -> Exposure:
        assert self._dataset is not None
        spec = self._dataset.card.splits.get(role)
        if spec is None:
            return Exposure()
        own = _Where(self._dataset.id, None, spec.name)
        around = self._shown_by(own)
        seen, unknown = [], []
        for one in trained_on:
            places = self.places(one)
            if places is None:
                unknown.append(one.described)
                continue
            same = [other for where, other in places if where == own]
            if same:
                found = _counted(one.described, spec, same[0], ids)
            elif any(self._meet(where, own, around) for where, _ in places):
                found = Seen(data=one.described, of=spec.rows if ids is None else len(ids))
            else:
                continue
            seen += [] if found is None else [found]
        return Exposure(tuple(dict.fromkeys(seen)), tuple(unknown))

    def places(self, images: Images) -> list[tuple[_Where, SplitSpec]] | None:
        """The splits that `images` are, with what their cards say of them; None where no card has them."""
        card = self._card(images.dataset or images.name)
        if card is not None:
            of_card = [
                (_Where(images.dataset or self._id(images.name), None, spec.name), spec)
                for spec in _chosen(card, images.split, by_role=images.dataset is not None)
            ]
        if images.name is not None:
            # A folder may call its only split anything: a split that the card does not have is all of them.
            outside = (_Where(None, images.name, images.split), SplitSpec(name=images.split or ""))
            return [outside, *(of_card if card else ())]
        return of_card if card and of_card else None

    def _card(self, name: str | None) -> TaskCard | None:
        """The task card of this id, or of this name on the hub if it is the measured one."""
        if self._dataset is not None and self._id(name) == self._dataset.id:
            return self._dataset.card
        return self._catalog.dataset(name).card if name in self._catalog.dataset_files else None

    def _id(self, name: str | None) -> str | None:
        measured = self._dataset
        return measured.id if measured and name is not None and name == measured.card.source.hub else name

    def _meet(self, where: _Where, own: _Where, around: set[_Where]) -> bool:
        """Whether one shows images of the other."""
        if any(_same(where, other) for other in around):
            return True
        return any(_same(own, other) for other in self._shown_by(where))

    def _shown_by(self, where: _Where) -> set[_Where]:
        """All whose images `where` shows, by `images_of` of its card, and theirs."""
        found: set[_Where] = set()
        todo = [where]
        while todo:
            at = todo.pop()
            card = self._card(at.id)
            for role, others in card.images_of.items() if card else ():
                if card and card.splits[role].name == at.split:
                    new = {place for one in others for place, _ in self.places(one) or ()} - found
                    found |= new
                    todo += new
        return found


def _chosen(card: TaskCard, split: str | None, *, by_role: bool) -> list[SplitSpec]:
    """The splits of a card that `split` means: a role, or what the data calls it; each whole one where it is None."""
    if by_role and split in card.splits:
        return [card.splits[split]]
    whole = [spec for spec in card.splits.values() if spec.part is None]
    named = [spec for spec in whole if split in (None, spec.name)]
    return named or ([] if by_role else whole)


def _same(a: _Where, b: _Where) -> bool:
    return (a.id, a.name) == (b.id, b.name) and (a.split == b.split or None in (a.split, b.split))


def _counted(data: str, measured: SplitSpec, trained: SplitSpec, ids: Sequence[str] | None) -> Seen | None:
    """Two splits of one list of ids: how many of the one are in the other; None where none is."""
    part = trained.part
    if ids is not None:
        count = len(ids) if part is None else sum(map(part.holds, ids))
        return Seen(data=data, images=count, of=len(ids)) if count else None
    if part is not None and measured.part is not None and not _overlap(part, measured.part):
        return None
    whole = part is None or part == measured.part
    count_by_cards = measured.rows if whole else trained.rows if measured.part is None else None
    return Seen(data=data, images=count_by_cards, of=measured.rows)


def _overlap(a: Part, b: Part) -> bool:
    return a.seed != b.seed or max(a.start, b.start) < min(a.end, b.end)
