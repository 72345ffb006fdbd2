"""Task cards: one data set, where it comes from, its classes and prompts, and what is measured on it; suites."""

from __future__ import annotations

import hashlib
import re
from typing import Any, ClassVar, Final, Literal

from pydantic import Field, field_validator, model_validator

from clipbench.cards.base import Misplaced, Strict, Tuple
from clipbench.cards.columns import Columns as Columns
from clipbench.cards.columns import Objective, check_label
from clipbench.cards.model import Images
from clipbench.cards.prompts import ClassSet, Templates
from clipbench.errors import did_you_mean, unknown


class Archive(Strict):
    """The authors' own files of a data set: what is to be unpacked into one folder.

    `folder` is what they unpack to, by which a copy among others is found.
    """

    files: Tuple[str]
    folder: str | None = None


#: what a source may lack beside splits
DIFFICULT_MARKS = "difficult"
#: the parameter of a protocol that picks one of a card's class sets, and what it is where it picks none
CLASSES: Final = "classes"
ALL_CLASSES: Final = "default"


class Source(Strict):
    """Where a data set comes from: exactly one of `hub`, `torchvision`, `builtin`, `path`, `local`.

    `hub` is a Hugging Face data set id; `revision` only where a source gives it, otherwise the resolved
    commit is recorded at first use and checked afterwards. `path` is relative to the card's folder.
    `local: true` means that there is no public copy: the data is always given with `--data`. `torchvision` is the
    name of a class there that downloads the authors' archive and knows its md5 sum.

    `lacks` says what the hub copy does not have: a split's role, or `difficult` (the marks of objects that are
    difficult to see), and what it has instead. `archive` names the files that have it all. Both say where data can be
    had and not what is measured: they are no part of fingerprints.
    """

    later: ClassVar = ("torchvision",)

    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    builtin: str | None = None
    path: str | None = None
    local: Literal[True] | None = None
    torchvision: (
        Literal["CIFAR10", "CIFAR100", "Caltech101", "DTD", "Flowers102", "Food101", "OxfordIIITPet"] | None
    ) = None
    archive: Archive | None = Field(None, exclude=True)
    gigabytes: float | None = Field(None, gt=0, exclude=True)
    lacks: dict[str, str] = Field({}, exclude=True)

    @model_validator(mode="after")
    def _one_source(self) -> Source:
        kinds = ("hub", "torchvision", "builtin", "path", "local")
        given = [name for name in kinds if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(kinds)} (found {', '.join(given) or 'none'})")
        if self.lacks and self.hub is None:
            raise ValueError("lacks goes with hub: it says what the copy there does not have")
        return self


class Part(Strict):
    """The samples whose ids a hash puts in [`start`, `end`) of 0 … 1: the same ids whatever else the set holds.

    Hash: the first 8 bytes of sha256 of `<seed>/<id>`, big-endian, over 2^64. Where the card names clusters, their
    names stand for the ids, so that no part cuts one.
    """

    seed: int = Field(ge=0)
    start: float = Field(0.0, ge=0, lt=1)
    end: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _some(self) -> Part:
        if self.start >= self.end:
            raise ValueError(f"start ({self.start}) must be below end ({self.end})")
        return self

    def holds(self, sample_id: str) -> bool:
        """Whether the part holds the sample of this id.

        >>> [Part(seed=0, end=0.5).holds(name) for name in ("a.jpg", "b.jpg", "c.jpg")]
        [False, False, True]
        """
        digest = hashlib.sha256(f"{self.seed}/{sample_id}".encode()).digest()
        return self.start <= int.from_bytes(digest[:8], "big") / 2**64 < self.end


class SplitSpec(Strict):
    """One split: its name in the source, and how many samples it has, or items to choose among (checked when complete).

    With `part`, it is that part of the split that has the same name and no `part`.
    """

    later: ClassVar = ("part",)

    name: str
    rows: int | None = Field(None, gt=0)
    part: Part | None = None


#: kinds of sets whose samples have labels
LABELLED = ("single-label", "multi-label")


class TaskCard(Strict):
    """One data set with all its protocols. The id of a task is `<dataset>-<protocol>[@<variant>]`.

    `templates` maps a name to either a list of prompts with `{c}` for the class name, or, for
    class-specific prompts, a mapping of class name to list of finished prompts. `default` is required.
    `label_names` are the data's own label names in the order of `classes` (a wnid, a folder name), given
    where they differ from the class names; labels that carry names are then matched by name, never by
    position. `other_labels: ignore` leaves out what a multi-label set labels beside those (COCO's 80 categories
    for VOC's 20 classes), where a name that is not on the card is otherwise an error. `protocols` holds each
    protocol's parameters, validated by that protocol. `images_of` maps a split's role to other splits whose images it
    shows too, all or some of them: a model that was trained on those has seen them.

    `kind` is what goes with an image: one label, several, captions, referring expressions with boxes, texts of items
    to choose among (`choices`), or `attributes`; the last four have no classes and no templates. Attributes are the
    columns of groups, and `objectives` are what is asked of each image. `also` is what else goes with it, where a set
    has more than one; `objects` are what an image shows beside what its label says.

    `class_sets` are named choices of the classes, by which the same images may be measured (see `of_classes`). What a
    set does to a card is in the fingerprint of the card that it makes.

    `boxes` says in which frame the boxes of expressions are, where images have an EXIF tag that turns them: the pixels
    `as-stored`, or those after the turn (`exif`), as viewers show them. Only sets with such images need it.

    `expressions: classes` makes the expressions of COCO's instances: the class name of each object that is the only one
    of its class in its image. Otherwise people's expressions come with the data.

    `languages` are those that the captions of a set are in, as its source calls them, each image having some in most. A
    source with a split or a table a language has `{language}` in its split's name.

    `licence` and `terms` say under what the data may be used, where that is known. They are no part of fingerprints.
    """

    later: ClassVar = ("other_labels", "boxes", "expressions", "also", "images_of", "objectives", "languages")

    title: str
    description: str | None = None
    homepage: str | None = None
    licence: str | None = Field(None, exclude=True)
    terms: str | None = Field(None, exclude=True)
    source: Source
    columns: Columns = Columns()
    splits: dict[str, SplitSpec]
    images_of: dict[str, Tuple[Images]] = Field({})
    kind: Literal["single-label", "multi-label", "captions", "expressions", "choices", "attributes"] = (
        "single-label"
    )
    also: Tuple[Literal["captions", "expressions", "objects"]] = ()
    boxes: Literal["as-stored", "exif"] | None = None
    languages: Tuple[str] = ()
    expressions: Literal["classes"] | None = None
    classes: Tuple[str] = ()
    label_names: Tuple[str] | None = None
    other_labels: Literal["error", "ignore"] = "error"
    templates: dict[str, Templates] = Field({})
    prompts_source: str | None = None
    objectives: dict[str, Objective] = Field({})
    class_sets: dict[str, ClassSet] = Field({}, exclude=True)
    protocols: dict[str, dict[str, Any]]
    notes: str | None = None

    @property
    def alone(self) -> bool:
        """Whether the source holds but one split, which need not be named there."""
        return len({spec.name for spec in self.splits.values()}) == 1

    def whole(self, role: str) -> str:
        """The role of the split that `role` is a part of; `role` itself where it is no part."""
        named = self.splits[role].name
        whole = (other for other, spec in self.splits.items() if spec.name == named and spec.part is None)
        return next(whole) if self.splits[role].part else role

    def of_classes(self, chosen: ClassSet) -> TaskCard:
        """The card of those samples alone whose class is in a set of this card's classes, by that set's names.

        Prompts that were written for single classes stay where the classes keep their names.

        Args:
            chosen: one of `class_sets`, with lists in the place of names of shared prompts.
        """
        members = chosen.members(len(self.classes))
        first = [group[0] for group in members]
        names = tuple(self.classes[place] for place in first)
        known = self.label_names or (self.classes if chosen.classes else None)
        labels = (
            () if known is None or any(len(group) > 1 for group in members) else [known[p] for p in first]
        )
        templates = {
            key: {c: found[c] for c in names} if isinstance(found, dict) else found
            for key, found in self.templates.items()
            if chosen.classes is None or not isinstance(found, dict)
        }
        whole = True if chosen.indices is None else None
        splits = {
            role: spec.model_copy(update={"rows": chosen.rows.get(role, whole and spec.rows)})
            for role, spec in self.splits.items()
        }
        return self.model_copy(
            update={
                "classes": chosen.classes or names,
                "label_names": tuple(labels) if labels and len(set(labels)) == len(labels) else None,
                "templates": {"default": chosen.templates} if chosen.templates else templates,
                "prompts_source": chosen.prompts_source or self.prompts_source,
                "class_sets": {},
                "splits": splits,
            }
        )

    @model_validator(mode="after")
    def _known_splits(self) -> TaskCard:
        whole = {spec.name for spec in self.splits.values() if spec.part is None}
        for role, spec in self.splits.items():
            if spec.name not in whole:
                text = f'a part needs the split that it is a part of: one of name "{spec.name}" without part'
                raise Misplaced(text, "splits", role)
        known = f"is no split of this card (it has {', '.join(self.splits)})"
        for role in self.images_of:
            if role not in self.splits:
                raise Misplaced(f'images_of: "{role}" {known}', "images_of", role)
        for what in self.source.lacks:
            if what not in (*self.splits, DIFFICULT_MARKS):
                raise Misplaced(f'lacks: "{what}" {known}, nor "{DIFFICULT_MARKS}"', "source", "lacks", what)
        return self

    @property
    def terms_of_use(self) -> dict[str, str | None]:
        """Licence and terms; a licence that the card does not give is unknown."""
        return {"licence": self.licence or "unknown", "terms": self.terms}

    @field_validator("classes")
    @classmethod
    def _some_classes(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(classes) < 2:
            raise ValueError(f"a classification set needs at least 2 classes (found {len(classes)})")
        return classes

    @model_validator(mode="after")
    def _of_its_kind(self) -> TaskCard:
        """Classes and prompts where the kind has labels, and nowhere else."""
        asked = self.kind == "attributes"
        for key in ("classes", "templates", "prompts_source", "objectives"):
            wanted = asked if key == "objectives" else self.kind in LABELLED
            if wanted and not getattr(self, key):
                raise ValueError(f'missing key "{key}", which a {self.kind} set needs')
            if not wanted and key in self.model_fields_set and not (asked and key == "prompts_source"):
                raise Misplaced(f"a set of {self.kind} has no {key}", key)
        for name, objective in self.objectives.items():
            if objective.label is not None:
                check_label(name, objective, self.columns.groups)
        return self

    @model_validator(mode="after")
    def _consistent(self) -> TaskCard:
        if self.label_names is not None:
            if len(self.label_names) != len(self.classes):
                text = f"label_names has {len(self.label_names)} entries, classes {len(self.classes)}"
                raise Misplaced(text, "label_names")
            if len(set(self.label_names)) != len(self.label_names):
                raise Misplaced("label_names holds the same name twice", "label_names")
        if len({self.kind, *self.also}) <= len(self.also):
            raise Misplaced(f"also names {self.kind} or one kind twice", "also")
        if self.boxes is not None and "expressions" not in (self.kind, *self.also):
            raise Misplaced("boxes belongs to sets of expressions", "boxes")
        if self.expressions is not None and self.kind != "expressions":
            raise Misplaced("expressions: classes belongs to sets of kind expressions", "expressions")
        if self.expressions is not None and not (self.source.local or self.source.path):
            text = "expressions: classes reads COCO's instances_<split>.json: its source is local or a path"
            raise Misplaced(text, "expressions")
        if self.other_labels == "ignore" and self.kind != "multi-label":
            raise Misplaced("other_labels belongs to multi-label sets", "other_labels")
        if self.kind in LABELLED and "default" not in self.templates:
            text = f'templates needs a list named "default" (found {", ".join(self.templates) or "none"})'
            raise Misplaced(text, "templates")
        _check_templates(self.templates, self.classes)
        for name, chosen in self.class_sets.items():
            self.check_class_set(name, chosen)
        if self.languages and self.kind != "captions":
            raise Misplaced("languages goes with kind: captions", "languages")
        if len(set(self.languages)) < len(self.languages):
            twice = next(name for name in self.languages if self.languages.count(name) > 1)
            raise Misplaced(f'languages holds "{twice}" twice', "languages")
        odd = next((name for name in self.languages if not re.fullmatch(r"[A-Za-z0-9_]+", name)), None)
        if odd is not None:
            raise Misplaced(f'languages: "{odd}" is no code of letters, digits and _', "languages")
        if self.columns.image_id is not None and self.kind != "captions":
            raise Misplaced("image_id goes with kind: captions", "columns", "image_id")
        if self.columns.group is not None and self.kind not in ("single-label", "attributes"):
            raise Misplaced("group goes with kind: single-label or attributes", "columns", "group")
        if self.columns.items is not None and self.kind != "choices":
            raise Misplaced("items goes with kind: choices", "columns", "items")
        if not self.protocols:
            raise Misplaced("protocols is empty: name at least one, for example zs: {}", "protocols")
        return self

    def check_class_set(self, name: str, chosen: ClassSet) -> None:
        """Raise Misplaced where a class set is none of this card's classes; what it only names is not looked at."""
        where = ("class_sets", name)
        if self.kind != "single-label":
            raise Misplaced("class_sets go with kind: single-label", *where)
        if name == ALL_CLASSES:
            raise Misplaced(
                f'class_sets: "{name}" is the name of all classes of the card; take another', *where
            )
        if problem := chosen.problem(self.classes):
            raise Misplaced(f'class set "{name}": {problem[0]}', *where, *problem[1])
        if strange := next((role for role in chosen.rows if role not in self.splits), None):
            text = f'class set "{name}": {unknown("split", strange, self.splits)}'
            raise Misplaced(text, *where, "rows", strange)
        if isinstance(chosen.templates, tuple):
            _check_templates({"default": chosen.templates}, (), *where)
        if (
            chosen.classes is not None
            and chosen.templates is None
            and isinstance(self.templates["default"], dict)
        ):
            text = f'class set "{name}" renames classes, whose names are in the default templates: give it templates'
            raise Misplaced(text, *where, "classes")


def _check_templates(templates: dict[str, Templates], classes: tuple[str, ...], *where: str) -> None:
    """Raise Misplaced where a list of prompts is empty, or of no use for these classes.

    Args:
        where: the place of `templates`, below which messages point.
    """
    for name, found in templates.items():
        if isinstance(found, dict):
            _check_class_prompts(name, found, classes, *where)
        elif not found:
            raise Misplaced(f'templates "{name}" is empty', *where, "templates", name)
        else:
            bare = next((i for i, template in enumerate(found) if "{c}" not in template), None)
            if bare is not None:
                text = f'templates "{name}": "{found[bare]}" has no {{c}} for the class name'
                raise Misplaced(text, *where, "templates", name, bare)


def _check_class_prompts(
    name: str, prompts: dict[str, tuple[str, ...]], classes: tuple[str, ...], *where: str
) -> None:
    lost = [c for c in classes if not prompts.get(c)]
    if lost:
        text = f'templates "{name}" has no prompt for class "{lost[0]}" ({len(lost)} missing)'
        raise Misplaced(text, *where, "templates", name, lost[0])
    extra = [c for c in prompts if c not in set(classes)]
    if extra:
        text = f'templates "{name}" names the unknown class "{extra[0]}"{did_you_mean(extra[0], classes)}'
        raise Misplaced(text, *where, "templates", name, extra[0])


class Suite(Strict):
    """A named list of tasks. A suite may name other suites.

    `mean: whole` refuses a mean over some of the tasks: other people's tables give it over all of them alone.
    `mean: none` has no mean at all, where the tasks' numbers are of different kinds. `section: whole`: reports show it
    only where a model has all of its tasks, or it is asked for; otherwise wherever two of its tasks are scored.
    """

    title: str
    tasks: Tuple[str]
    mean: Literal["any", "whole", "none"] = "any"
    section: Literal["any", "whole"] = "any"


class Suites(Strict):
    """tasks/suites.yaml: suite id → suite."""

    suites: dict[str, Suite]
