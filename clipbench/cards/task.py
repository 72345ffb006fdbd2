"""Task cards: one data set, where it comes from, its classes and prompts, and what is measured on it; suites."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from clipbench.cards.base import Misplaced, Strict, Tuple
from clipbench.cards.columns import Columns as Columns
from clipbench.cards.columns import Objective, check_label
from clipbench.cards.model import Images
from clipbench.errors import did_you_mean


class Archive(Strict):
    """The authors' own files of a data set: what is to be unpacked into one folder.

    `folder` is what they unpack to, by which a copy among others is found.
    """

    files: Tuple[str]
    folder: str | None = None


#: what a source may lack beside splits
DIFFICULT_MARKS = "difficult"


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


# The tags are written like types because messages leave such steps of a location out.
Templates = Annotated[
    Annotated[Tuple[str], Tag("tuple[str]")] | Annotated[dict[str, Tuple[str]], Tag("dict[str]")],
    Discriminator(lambda value: "dict[str]" if isinstance(value, dict) else "tuple[str]"),
]
Index = Annotated[
    Annotated[int, Field(ge=0), Tag("int")] | Annotated[Tuple[int], Tag("tuple[int]")],
    Discriminator(lambda value: "tuple[int]" if isinstance(value, list | tuple) else "int"),
]


class ClassSet(Strict):
    """A choice of a card's classes: those at `indices`, in this order; all of them where there is none.

    Several indices in one entry are folded into one class. `classes` are the names where they are other than the
    card's own, and needed where classes are folded. `templates` are the default ones of this choice, where they are
    other than the card's (names in another language); it has no other template sets then.
    """

    indices: Tuple[Index] | None = None
    classes: Tuple[str] | None = None
    templates: Tuple[str] | None = None

    @property
    def groups(self) -> list[tuple[int, ...]] | None:
        """The indices of each class, folded ones together; None: all classes, one by one."""
        if self.indices is None:
            return None
        return [one if isinstance(one, tuple) else (one,) for one in self.indices]

    @model_validator(mode="after")
    def _whole(self) -> ClassSet:
        groups = self.groups
        if groups is None:
            if self.classes is None and self.templates is None:
                raise ValueError("a class set needs indices, classes or templates")
            return self
        if len(groups) < 2:
            raise Misplaced(f"a class set needs at least 2 classes (found {len(groups)})", "indices")
        empty = next((place for place, group in enumerate(groups) if not group), None)
        if empty is not None:
            raise Misplaced(f"indices[{empty}] names no class", "indices", empty)
        seen: set[int] = set()
        for place, group in enumerate(groups):
            for index in group:
                if index in seen:
                    raise Misplaced(f"indices[{place}]: {index} is there twice", "indices", place)
                seen.add(index)
        if self.classes is not None and len(self.classes) != len(groups):
            text = f"classes has {len(self.classes)} entries, indices {len(groups)}"
            raise Misplaced(text, "classes")
        folded = next((place for place, group in enumerate(groups) if len(group) > 1), None)
        if folded is not None and self.classes is None:
            raise Misplaced(f"indices[{folded}] folds classes: give the names, as classes", "indices", folded)
        return self


#: the name of all classes of a card, as they stand there
ALL_CLASSES = "default"
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

    `boxes` says in which frame the boxes of expressions are, where images have an EXIF tag that turns them: the pixels
    `as-stored`, or those after the turn (`exif`), as viewers show them. Only sets with such images need it.

    `expressions: classes` makes the expressions of COCO's instances: the class name of each object that is the only one
    of its class in its image. Otherwise people's expressions come with the data.

    `class_sets` are choices of the classes, by name: a protocol that takes `classes: NAME` measures on the samples of
    those alone, and a card with `base: {card: …, classes: NAME}` has those. `classes`, `templates` and the names of a
    class set may name a file of shared prompts instead of listing them (see `clipbench.cards.prompts`); such names are
    replaced by the lists before a card is made.

    `licence` and `terms` say under what the data may be used, where that is known. They are no part of fingerprints.
    """

    later: ClassVar = (
        "other_labels",
        "boxes",
        "expressions",
        "also",
        "images_of",
        "class_sets",
        "objectives",
    )

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
    expressions: Literal["classes"] | None = None
    classes: Tuple[str] = ()
    label_names: Tuple[str] | None = None
    class_sets: dict[str, ClassSet] = Field({})
    other_labels: Literal["error", "ignore"] = "error"
    templates: dict[str, Templates] = Field({})
    prompts_source: str | None = None
    objectives: dict[str, Objective] = Field({})
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

    def of_classes(self, name: str) -> TaskCard:
        """The card as it would be with the classes of a class set only; itself for `default`.

        Names of labels stay where no classes are folded, templates of single classes where their names stay.
        """
        if name == ALL_CLASSES:
            return self
        chosen = self.class_sets[name]
        groups = chosen.groups or [(index,) for index in range(len(self.classes))]
        classes = chosen.classes or tuple(self.classes[index] for (index,) in groups)
        labels = None
        if self.label_names is not None and all(len(group) == 1 for group in groups):
            labels = tuple(self.label_names[index] for (index,) in groups)
        templates = {
            key: {c: found[c] for c in classes if c in found} if isinstance(found, dict) else found
            for key, found in self.templates.items()
        }
        whole = {k: v for k, v in templates.items() if not isinstance(v, dict) or len(v) == len(set(classes))}
        if chosen.templates is not None:
            whole = {"default": chosen.templates}
        changes = {"classes": classes, "label_names": labels, "templates": whole, "class_sets": {}}
        return self.model_copy(update=changes)

    def numbers_in(self, name: str) -> list[int]:
        """The number that each class of the card has in a class set; -1: it is not in it.

        >>> from types import SimpleNamespace
        >>> sets = {"odd": ClassSet(indices=(3, 1))}
        >>> TaskCard.numbers_in(SimpleNamespace(classes="abcd", class_sets=sets), "odd")
        [-1, 1, -1, 0]
        """
        groups = None if name == ALL_CLASSES else self.class_sets[name].groups
        if groups is None:
            return list(range(len(self.classes)))
        numbers = [-1] * len(self.classes)
        for number, group in enumerate(groups):
            for index in group:
                numbers[index] = number
        return numbers

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
        self._check_class_sets()
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
        for name, templates in self.templates.items():
            if isinstance(templates, dict):
                _check_class_prompts(name, templates, self.classes)
            else:
                _check_templates(f'templates "{name}"', templates, "templates", name)
        if self.columns.image_id is not None and self.kind != "captions":
            raise Misplaced("image_id goes with kind: captions", "columns", "image_id")
        if self.columns.group is not None and self.kind not in ("single-label", "attributes"):
            raise Misplaced("group goes with kind: single-label or attributes", "columns", "group")
        if not self.protocols:
            raise Misplaced("protocols is empty: name at least one, for example zs: {}", "protocols")
        return self

    def _check_class_sets(self) -> None:
        """Raise Misplaced for a class set that is none of this card's classes."""
        if self.class_sets and self.kind != "single-label":
            raise Misplaced("class_sets goes with kind: single-label", "class_sets")
        for name, chosen in self.class_sets.items():
            place = ("class_sets", name)
            if name == ALL_CLASSES:
                raise Misplaced(f'"{ALL_CLASSES}" is the name of all classes', *place)
            most = max((index for group in chosen.groups or () for index in group), default=0)
            if most >= len(self.classes):
                text = (
                    f"class set {name} names class {most}; the card has classes 0 to {len(self.classes) - 1}"
                )
                raise Misplaced(text, *place, "indices")
            if chosen.templates is not None:
                _check_templates(f"class set {name}: templates", chosen.templates, *place, "templates")
            if (
                chosen.indices is None
                and chosen.classes is not None
                and len(chosen.classes) != len(self.classes)
            ):
                text = (
                    f"class set {name} has {len(chosen.classes)} names, the card {len(self.classes)} classes"
                )
                raise Misplaced(text, *place, "classes")


def _check_templates(what: str, templates: tuple[str, ...], *place: str) -> None:
    if not templates:
        raise Misplaced(f"{what} is empty", *place)
    bare = next((i for i, template in enumerate(templates) if "{c}" not in template), None)
    if bare is not None:
        raise Misplaced(f'{what}: "{templates[bare]}" has no {{c}} for the class name', *place, bare)


def _check_class_prompts(name: str, prompts: dict[str, tuple[str, ...]], classes: tuple[str, ...]) -> None:
    lost = [c for c in classes if not prompts.get(c)]
    if lost:
        text = f'templates "{name}" has no prompt for class "{lost[0]}" ({len(lost)} missing)'
        raise Misplaced(text, "templates", name, lost[0])
    extra = [c for c in prompts if c not in set(classes)]
    if extra:
        text = f'templates "{name}" names the unknown class "{extra[0]}"{did_you_mean(extra[0], classes)}'
        raise Misplaced(text, "templates", name, extra[0])


class Suite(Strict):
    """A named list of tasks. A suite may name other suites."""

    title: str
    tasks: Tuple[str]


class Suites(Strict):
    """tasks/suites.yaml: suite id → suite."""

    suites: dict[str, Suite]
