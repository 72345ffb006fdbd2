"""A folder of embeddings that somebody has (docs/embeddings.md): rows of images and of texts, by their names.

    embeddings.yaml                      what the folder is; may be missing (`About`)
    <data set>/<split>.npy               rows of images, and <split>.ids.txt or .ids.json beside it; or .parquet
    backbone/<data set>/<split>.npy      features to probe, likewise
    texts.npy                            rows of texts, and texts.txt or texts.json beside it; or .parquet
    <data set>/<split>/, texts/          instead of these: folders that clipbench embed wrote (`data.embedded`)

Strict about what is there: no order is guessed, nothing that a task asks for may be missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from clipbench.cards.base import Strict, Tuple
from clipbench.cards.model import Images
from clipbench.cards.strict_yaml import Document, parse
from clipbench.data.embedded import MANIFEST, EmbeddedRows, is_embedded, stated_scale
from clipbench.data.named_rows import BLOCK, IMAGES, TEXTS, NamedRows, named_rows, quoted
from clipbench.data.split import Note, Split, Subset, notes_of
from clipbench.errors import DataError, did_you_mean

ABOUT: Final = "embeddings.yaml"
BACKBONE: Final = "backbone"
_ROWS: Final = (".npy", ".parquet")
_UNIT: Final = 1e-6  # a length that differs from 1 by no more is rounding of float32
_LIST: Final = "clipbench data inputs TASK --out DIR writes what a task asks for: ids of images, and texts"


class About(Strict):
    """What `embeddings.yaml` may say of a folder.

    Attributes:
        title: of the model, instead of the folder's name.
        logit_scale: factor on cosines before a softmax; without it, and where clipbench embed wrote the texts, that of
            its manifest; else 100 is assumed, which confidences hang on.
        order: `split`: arrays without ids have the rows of the split in its order.
        licence, training_data, trained_on, paper, links, notes: as on model cards.
    """

    title: str | None = Field(None, min_length=1)
    logit_scale: float | None = Field(None, gt=0)
    order: Literal["split"] | None = None
    licence: str | None = None
    training_data: str | None = None
    trained_on: Tuple[Images] = ()
    paper: str | None = None
    links: Tuple[str] = ()
    notes: str | None = None


@dataclass(frozen=True)
class Rows:
    """The rows that are asked for.

    Attributes:
        table: where they are.
        rows: int64 [n], their places there.
        notes: what a reader of numbers from them must know.
    """

    table: NamedRows
    rows: NDArray[np.int64]
    notes: tuple[Note, ...] = ()

    @property
    def described(self) -> str:
        """Where they come from."""
        return self.table.described

    def read(self, numbers: NDArray[np.int64], *, unit: bool) -> NDArray[np.float32]:
        """Those at `numbers`: float32 [n, D]; with `unit` of unit length, as which those that have it stay."""
        found = self.table.read(self.rows[numbers])
        if unit:
            length = np.linalg.norm(found.astype(np.float64), axis=1, keepdims=True)
            length[np.abs(length - 1) <= _UNIT] = 1
            found = (found / length).astype(np.float32)
        return found

    def check(self) -> None:
        """Raise DataError where one is not finite, or all 0."""
        odd: dict[str, list[str]] = {"NaN": [], "infinite in float32": [], "all 0": []}
        for own in self._blocks():
            found = self.table.read(own)
            with np.errstate(invalid="ignore"):  # of NaN that signal
                nan = np.isnan(found).any(axis=1)
                kinds = (nan, ~nan & np.isinf(found).any(axis=1), ~found.any(axis=1))
            for names, rows in zip(odd.values(), kinds, strict=True):
                names += map(self.table.name, own[rows].tolist())
        wrong = [
            f"{len(names):,} of {len(self.rows):,} rows are {kind} ({quoted(names)})"
            for kind, names in odd.items()
            if names
        ]
        if wrong:
            raise DataError(
                f"{self.table.path}: {'; '.join(wrong)}",
                hint="embed these again; none is left out, since scores without them are of another set",
            )

    def _blocks(self) -> Iterator[NDArray[np.int64]]:
        return (self.rows[start : start + BLOCK] for start in range(0, len(self.rows), BLOCK))


class Embeddings:
    """A folder of embeddings.

    Attributes:
        path: the folder.
        about: what it says of itself.
    """

    def __init__(self, path: Path) -> None:
        """Look at the folder; arrays are opened when they are asked for.

        Raises:
            DataError: there is no such folder, or no rows of images where they belong.
            CardError: its embeddings.yaml is wrong.
        """
        if not path.is_dir():
            raise DataError(
                f"there is no folder of embeddings {path}",
                hint="name the folder that holds <data set>/<split>.npy or .parquet: --model embeddings:<folder>",
            )
        self.path = path
        if not _splits_in(path) and not _splits_in(path / BACKBONE):
            raise _without_images(path)
        about = path / ABOUT
        other = next(filter(os.path.lexists, (about.with_suffix(end) for end in (".yml", ".json"))), None)
        if other is not None:
            raise DataError(f"{other} is not read", hint=f"call it {ABOUT}, or take it out of the folder")
        self.about = parse(About, Document(about)) if os.path.lexists(about) else About.model_validate({})
        if self.about.logit_scale is None:
            self.about = self.about.model_copy(update={"logit_scale": stated_scale(path / "texts")})
        self._tables: dict[tuple[str, str], NamedRows | None] = {}
        self._found: dict[tuple[str, str, str, str], Rows] = {}
        self._widths: dict[str, tuple[str, int]] = {}
        self._made: dict[str, tuple[str, Mapping[str, Any]]] = {}

    @property
    def has_texts(self) -> bool:
        """Whether there are rows of texts, or what looks as if there should be."""
        ends = (*_ROWS, *TEXTS.lists, f"/{MANIFEST}")
        return any(os.path.lexists(f"{self.path / 'texts'}{end}") for end in ends)

    @property
    def has_backbone(self) -> bool:
        """Whether there are rows for probes of their own."""
        return (self.path / BACKBONE).is_dir()

    def images(self, split: Split, space: str) -> Rows:
        """The rows of a split's images, in its order. `space`: joint, or backbone, which may name a size (`@256`).

        Raises:
            DataError: there are none, or not of all images, or what `named_rows` raises.
        """
        key = (split.dataset, split.role, split.fingerprint, space)
        if key not in self._found:
            self._found[key] = self._images(split, space)
        return self._found[key]

    def texts(self, texts: Sequence[str]) -> Rows:
        """The rows of texts, in the order given.

        Raises:
            DataError: some are missing, or what `named_rows` raises.
        """
        table = self._table(self.path, "texts")
        if table is None:
            raise DataError(
                f"no embeddings of texts: there is no {self.path / 'texts.npy'} or .parquet",
                hint=f"embed them, one row a text; {_LIST}",
            )
        if table.names is None:
            lists = " or ".join(f"texts{end}" for end in TEXTS.lists)
            raise DataError(
                f"{self.path}: there is no {lists} that says what the rows of texts.npy are of", hint=_LIST
            )
        place = {text: row for row, text in enumerate(table.names)}
        missing = [text for text in texts if text not in place]
        if missing:
            raise DataError(
                f"{table.path}: {len(missing):,} of the {len(texts):,} texts that are asked for are missing "
                f"({quoted(missing)})",
                hint=f"texts must be the same letter by letter; {_LIST}",
            )
        self._agree("joint", table)
        return Rows(table, np.array([place[text] for text in texts], dtype=np.int64))

    def _images(self, split: Split, space: str) -> Rows:
        base, _, size = space.partition("@")
        whole, rows = (
            (split.whole, split.rows) if isinstance(split, Subset) and split.limited else (split, None)
        )
        own = base == BACKBONE and self.has_backbone
        table = self._table((self.path / BACKBONE if own else self.path) / whole.dataset, whole.role)
        if table is None:
            raise self._lacking(whole, own)
        order, notes = self._order(table, whole)
        self._agree(base, table)
        if base == BACKBONE and not own:
            text = f"images are probed by their joint embeddings, as they are: there is no {BACKBONE}/"
            notes += (Note("joint-as-backbone", text, len(split)),)
        if size:
            text = (
                f"images are of a size that is not known here; the task asks for {size.partition(':')[0]} px"
            )
            notes += (Note("size-not-known", text, len(split)),)
        text = "images were not looked at: whether any is there twice, or also in training, is not known"
        notes += (Note("images-not-seen", text, len(split)),)
        return Rows(table, order if rows is None else order[rows], notes)

    def _order(self, table: NamedRows, split: Split) -> tuple[NDArray[np.int64], tuple[Note, ...]]:
        """The place of each image's row, and what must be said of it."""
        if table.names is None:
            if self.about.order != "split":
                raise DataError(
                    f"{table.path} has no list of ids beside it, so which row is whose is not known",
                    hint=f"write {split.role}{IMAGES.lists[0]} (one id a line), or order: split into {ABOUT} where "
                    f"rows have the split's own order; {_LIST}",
                )
            if len(table) != len(split):
                raise DataError(
                    f"{table.path} has {len(table):,} rows, {split.dataset} {split.role} has {len(split):,} images",
                    hint=_LIST,
                )
            text = f"rows of embeddings have no ids: {ABOUT} says that their order is the split's"
            return np.arange(len(split)), (Note("order-on-trust", text, len(split)),)
        place = {name: row for row, name in enumerate(table.names)}
        missing = [name for name in split.ids if name not in place]
        if missing:
            raise DataError(
                f"{table.path}: {len(missing):,} of the {len(split):,} images of {split.dataset} {split.role} have no "
                f"row ({quoted(missing)}); its own ids are like {quoted(table.names)}",
                hint=_LIST,
            )
        others = sorted(place.keys() - set(split.ids), key=place.__getitem__)
        text = "rows of embeddings are of no image of the split, and were not read"
        order = np.array([place[name] for name in split.ids], dtype=np.int64)
        return order, notes_of("other-rows", text, others)

    def _agree(self, space: str, table: NamedRows) -> None:
        """Raise DataError where rows that are compared with each other differ in width, or in their model."""
        if isinstance(table, EmbeddedRows):
            where, made_by = self._made.setdefault(space, (str(table.path), table.made_by))
            other = {
                k
                for k in {*made_by, *table.made_by} - {"tokenizer"}
                if made_by.get(k) != table.made_by.get(k)
            }
            if other:
                raise DataError(
                    f"{table.path} and {where} were not embedded alike: {', '.join(sorted(other))}",
                    hint="embed images and texts with one model, at one precision",
                )
        path, width = self._widths.setdefault(space, (str(table.path), table.width))
        if width != table.width:
            raise DataError(
                f"{table.path} has rows of {table.width:,} numbers, {path} of {width:,}: they cannot be compared",
                hint="write embeddings of one model, from the space in which it compares images with texts"
                if space == "joint"
                else "write features of one model",
            )

    def _table(self, folder: Path, name: str) -> NamedRows | None:
        key = (str(folder), name)
        if key not in self._tables:
            kind = TEXTS if folder == self.path else IMAGES
            files = named_rows(folder, name, kind, self.path)
            if is_embedded(folder / name):
                if files is not None:
                    raise DataError(
                        f"{files.path} and {folder / name} could both hold the rows",
                        hint="keep one of them, and move the other away",
                    )
                files = EmbeddedRows(folder / name, kind, self.path)
            self._tables[key] = files
        return self._tables[key]

    def _lacking(self, split: Split, backbone: bool) -> DataError:
        """That a split has no rows."""
        root = self.path / BACKBONE if backbone else self.path
        wanted = f"{split.dataset}/{split.role}"
        there = _splits_in(root)
        loose = next((one for one in _called(root, split.role) if one.suffix in _ROWS), None)
        other = next(iter(_called(root / split.dataset, split.role)), None)
        hint = f"embed its images; {_LIST}"
        if loose is not None:
            hint = f"if {loose.name} is of this split, move it and its ids into {root / split.dataset}"
        elif other is not None:
            hint = f"{other.name} is not read: write its rows as {split.role}.npy or .parquet"
        some = ", ".join(there[:8]) + (", …" if len(there) > 8 else "")
        return DataError(
            f"no embeddings of {split.dataset} {split.role}: there is no {root / wanted}.npy or .parquet"
            + (f" (there: {some}{did_you_mean(wanted, there)})" if there else ""),
            hint=hint,
        )


def _splits_in(folder: Path) -> list[str]:
    """`<data set>/<split>` of the rows of images in a folder, those for probes left out."""
    rows = [path for path in folder.glob("*/*") if path.suffix in _ROWS and path.parent.name != BACKBONE]
    found = [f"{path.parent.name}/{path.stem}" for path in rows]
    own = (path.parent for path in folder.glob(f"*/*/{MANIFEST}"))
    return sorted(
        [*found, *(f"{path.parent.name}/{path.name}" for path in own if path.parent.name != BACKBONE)]
    )


def _without_images(folder: Path) -> DataError:
    """That a folder has no rows of images where they belong."""
    loose = next(
        (one for one in sorted(folder.glob("*")) if one.suffix in _ROWS and one.stem != "texts"), None
    )
    hint = f"embed the images; {_LIST}"
    if loose is not None:
        above = folder.resolve().parent
        hint = (
            f"move {loose.name} and its ids into a folder that is called like its data set; or, if this one is, name "
            f"the one above: --model embeddings:{above}"
        )
    return DataError(
        f"{folder} holds no rows of images: there is no <data set>/<split>.npy or .parquet in it", hint=hint
    )


def _called(folder: Path, name: str) -> list[Path]:
    """The files in a folder that are called so, whatever their kind."""
    return sorted(path for path in folder.glob("*") if path.stem == name and path.is_file())
