"""What a card says of the columns of its data, and what it asks of samples whose columns say what is right."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Discriminator, Field, Tag, model_validator

from clipbench.cards.base import Misplaced, Strict, Tuple
from clipbench.errors import did_you_mean, unknown

# The tags are written like types because messages leave such steps of a location out.
_Names = Annotated[
    Annotated[Tuple[str], Tag("tuple[str]")] | Annotated[dict[str, str], Tag("dict[str]")],
    Discriminator(lambda value: "dict[str]" if isinstance(value, dict) else "tuple[str]"),
]


class GroupColumn(Strict):
    """A column that says of which group each sample is.

    `column` is its name in the data, where that is not the group's. `names` are what its codes are called: a list for
    codes from 0 on, or a mapping of codes to names (`{"1": low, "nan": unknown}`). A code without a name is then an
    error; without `names`, groups are called as their codes.
    """

    column: str | None = None
    names: _Names | None = None

    @property
    def by_code(self) -> dict[str, str] | None:
        """Code, as text → name; None where groups are called as their codes."""
        if self.names is None or isinstance(self.names, dict):
            return self.names
        return {str(code): name for code, name in enumerate(self.names)}

    @model_validator(mode="after")
    def _some(self) -> GroupColumn:
        if self.names is not None and not self.names:
            raise Misplaced("names is empty: name the codes, or leave it out", "names")
        return self


_Group = Annotated[
    Annotated[str, Tag("function-str")] | Annotated[dict[str, GroupColumn], Tag("dict[str]")],
    Discriminator(lambda value: "dict[str]" if isinstance(value, dict) else "function-str"),
]


class ItemColumns(Strict):
    """Columns of a table of which each row is an item to choose among.

    `images` and `texts` name columns in the order of the item's images and texts; a cell may hold a list of them.
    `right` are the places of an image and of a text that belong together: `[[0, 0], [1, 1]]`. `part` names the column
    of the part that an item is of. `box` names that of the part of an image that is shown, {x, y, w, h} in pixels.
    """

    images: Tuple[str]
    texts: Tuple[str]
    right: Tuple[Tuple[int]]
    part: str | None = None
    box: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> ItemColumns:
        for key in ("images", "texts"):
            if not getattr(self, key) or len(set(getattr(self, key))) < len(getattr(self, key)):
                raise Misplaced(f"{key} needs the names of columns, each once", key)
        bad = next((n for n, pair in enumerate(self.right) if len(pair) != 2 or min(pair) < 0), None)
        if bad is not None or not self.right:
            text = "right needs pairs of the place of an image and that of a text, from 0 on: [[0, 0]]"
            raise Misplaced(text, "right", *(() if bad is None else (bad,)))
        if len(set(self.right)) < len(self.right):
            raise Misplaced("right holds a pair twice", "right")
        return self


class Columns(Strict):
    """Column names of a tabular source (parquet, hub). Image folders have none.

    `image_id` says which image a row of a set of captions shows, where an image has several rows. `cluster` says which
    samples belong together (the slide, the patient, the camera's sequence that each is from): intervals and tests are
    then over clusters, and no validation data cuts one. `group` says of which group each sample of a single-label set
    is (the region, the income): classification then also reports the accuracy on the worst one. It is the name of a
    column, or several by their names (see `GroupColumn`), of which the first is that of protocols that are not asked
    for another. In WebDataset tars both are fields of each sample's `.json`, or values of the vector in its `.npy`:
    `values` says what these are, in their order. A name there that ends in `?` may be lacking at the vector's end; the
    value `y` is held against the label. `items` are those of a set of items to choose among.
    """

    later: ClassVar = ("caption", "image_id", "cluster", "group", "values", "items")

    image: str = "image"
    label: str = "label"
    caption: str = "caption"
    image_id: str | None = None
    cluster: str | None = None
    group: _Group | None = None
    values: Tuple[str] = ()
    items: ItemColumns | None = None

    @property
    def groups(self) -> dict[str, GroupColumn]:
        """The columns of groups by their names."""
        if self.group is None:
            return {}
        return {self.group: GroupColumn()} if isinstance(self.group, str) else self.group

    @property
    def beside(self) -> dict[str, str]:
        """What is read of each sample beside its image and label: key → name of the column."""
        key = "group" if isinstance(self.group, str) else "group.{}"
        named = {key.format(name): spec.column or name for name, spec in self.groups.items()}
        return ({} if self.cluster is None else {"cluster": self.cluster}) | named

    @property
    def vector(self) -> tuple[str, ...]:
        """The names of the values in a sample's `.npy`, in order."""
        return tuple(name.removesuffix("?") for name in self.values)

    @model_validator(mode="after")
    def _whole(self) -> Columns:
        if self.group is not None and not self.group:
            raise Misplaced("group is empty: name a column, or leave it out", "group")
        if len(set(self.vector)) < len(self.vector):
            raise Misplaced("values holds the same name twice", "values")
        optional = [name.endswith("?") for name in self.values]
        if optional != sorted(optional):
            raise Misplaced("values: names that end in ? stand at the end", "values")
        return self


class Objective(Strict):
    """A question about each image of a set of kind attributes: which of `classes` it shows, by `templates`.

    The answer is right where it is what `label`, one of the columns of groups, says of the image; `means` says what a
    class is there, where it is called otherwise. Or no answer is right, and the share of images is measured of which
    the answer is one of those that `counts` names.
    """

    classes: Tuple[str]
    templates: Tuple[str]
    label: str | None = None
    means: dict[str, str] = Field({})
    counts: Tuple[str] = ()

    @property
    def meanings(self) -> tuple[str, ...]:
        """What each class is in the column of the label."""
        return tuple(self.means.get(name, name) for name in self.classes)

    @model_validator(mode="after")
    def _consistent(self) -> Objective:
        if len(set(self.classes)) < max(2, len(self.classes)):
            raise Misplaced("classes needs at least 2 names, each once", "classes")
        bare = next((i for i, template in enumerate(self.templates) if "{c}" not in template), None)
        if bare is not None or not self.templates:
            text = "templates needs a list of prompts with {c} for the class name"
            raise Misplaced(text, "templates", *(() if bare is None else (bare,)))
        if (self.label is None) == (not self.counts):
            raise ValueError("give exactly one of label, counts")
        for key in ("means", "counts"):
            extra = next((name for name in getattr(self, key) if name not in self.classes), None)
            if extra is not None:
                raise Misplaced(
                    f'{key} names the unknown class "{extra}"{did_you_mean(extra, self.classes)}', key
                )
        return self


def check_label(name: str, objective: Objective, groups: dict[str, GroupColumn]) -> None:
    """Raise Misplaced unless the column of the label of the objective `name` names what each class means."""
    where = ("objectives", name, "label")
    column = groups.get(str(objective.label))
    if column is None:
        raise Misplaced(unknown("column of columns.group", str(objective.label), groups), *where)
    known = set((column.by_code or {}).values())
    lost = next((meaning for meaning in objective.meanings if meaning not in known), None)
    if lost is not None:
        named = f"has the names {', '.join(sorted(known))}" if known else "has no names"
        raise Misplaced(f'columns.group.{objective.label} {named}, but no "{lost}"', *where)
