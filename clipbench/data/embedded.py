"""What `clipbench embed` writes, as rows that a model is scored by (see `data.embeddings`).

Also what its folder looks like, as far as both know it: the manifest, and the numbers of parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clipbench.data.digests import digests
from clipbench.data.named_rows import BLOCK, Kind, NamedRows
from clipbench.data.tars import stem
from clipbench.errors import DataError, first_line
from clipbench.utils.parsing import MOST_JSON, Unreadable, file_bytes, json_value

MANIFEST: Final = "manifest.json"
KIND: Final = "clipbench embeddings 1"
#: columns of rows in tables, and folders of arrays, of images and of texts
IMAGE_ROWS: Final = ("image_embedding", "img_emb")
TEXT_ROWS: Final = ("text_embedding", "text_emb")


def is_embedded(folder: Path) -> bool:
    """Whether there is a folder that `clipbench embed` writes, or something that is called so."""
    return (folder / MANIFEST).is_file()


def stated_scale(folder: Path) -> float | None:
    """The model's factor on cosines before a softmax, as the manifest says, where there is one.

    Raises:
        DataError: the manifest cannot be read.
    """
    settings = _json(folder / MANIFEST).get("settings") if is_embedded(folder) else None
    model = settings.get("model") if isinstance(settings, dict) else None
    scale = model.get("logit_scale") if isinstance(model, dict) else None
    return float(scale) if isinstance(scale, (int, float)) and scale > 0 else None


class EmbeddedRows(NamedRows):
    """The rows of a folder that `clipbench embed` wrote, all parts one behind the other.

    Attributes:
        path, names, width, dtype, described: as of `NamedRows`. Names of images are keys (of tar files `<tar>/<key>`,
            as evaluations name them), names of texts are the texts.
        made_by: what the manifest says of the model; rows of two models cannot be compared.
    """

    def __init__(self, folder: Path, kind: Kind, root: Path) -> None:
        """Look at the files; rows are read later.

        Raises:
            DataError: a file cannot be read, parts are missing, or as `NamedRows`.
        """
        found = _json(folder / MANIFEST)
        if found.get("format") != KIND:
            raise DataError(
                f"{folder / MANIFEST} is no manifest of {KIND}",
                hint="write rows with clipbench embed, or move that file away",
            )
        try:
            parts, settings = found["parts"], found["settings"]
            of_texts = settings["source"]["kind"] == "texts"
            complete, self.made_by = (
                found["complete"],
                {**settings["model"], "precision": settings["precision"]},
            )
            tables, tars = settings["format"] == "parquet", settings["source"]["kind"] == "tars"
        except (KeyError, TypeError):
            raise DataError(f"{folder / MANIFEST} is damaged", hint="embed the collection again") from None
        if not complete:
            raise DataError(
                f"{folder} is not complete: {parts['finished']:,} of {parts['all']:,} parts are finished",
                hint="run the same clipbench embed again: it goes on from there",
            )
        if of_texts != (kind.word == "text"):
            raise DataError(
                f"{folder} holds rows of {'texts' if of_texts else 'images'}, where those of {kind.word}s belong",
                hint="texts/ is of texts (clipbench embed --data texts:FILE), <data set>/<split>/ of images",
            )
        self.path, self._tables = folder, tables
        self._column, name = TEXT_ROWS if of_texts else IMAGE_ROWS
        where, front = ("embeddings", "part_") if tables else ("metadata", "metadata_")
        texts = sorted((folder / where).glob(f"{front}*.parquet"))
        numbers = [path.stem.removeprefix(front) for path in texts]
        self._files = texts if tables else [folder / name / f"{name}_{number}.npy" for number in numbers]
        self.names = []
        counts = []
        for path, number in zip(texts, numbers, strict=True):
            own = _column(path, "caption" if of_texts else "key")
            if tars and not of_texts:
                tar = stem(Path(str(_json(folder / "parts" / f"{number}.json").get("name"))))
                own = [f"{tar}/{key}" for key in own]
            self.names += own
            counts.append(len(own))
        self._count = len(self.names)
        if not self._count or self._count != found["rows"]:
            raise DataError(
                f"{folder} holds {self._count:,} rows, its manifest says {found['rows']:,}",
                hint="embed the collection again, into a new folder",
            )
        self._ends = np.cumsum(counts)
        self._open: dict[int, NDArray[Any]] = {}
        first = self._part(0)
        self.width, self.dtype = first.shape[1], first.dtype.name
        self._refuse_twice(folder, kind)
        told = [f"{file} (sha256 {digest})" for file, digest in digests(root, {*texts, *self._files}).files]
        self.described = f"{', '.join(sorted(told))}: {self.dtype} [{self._count}, {self.width}]"

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        found = np.empty((len(rows), self.width), np.float32)
        part = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(part).tolist():
            own = part == number
            start = int(self._ends[number - 1]) if number else 0
            found[own] = self._part(number)[rows[own] - start]
        return found

    def _part(self, number: int) -> NDArray[Any]:
        """The rows of one file; arrays are mapped into memory, and of tables one at a time is held."""
        if number not in self._open:
            path = self._files[number]
            if self._tables:
                self._open.clear()
            found = _rows_of_table(path, self._column) if self._tables else _mapped(path)
            count = int(self._ends[number]) - (int(self._ends[number - 1]) if number else 0)
            if found.ndim != 2 or len(found) != count or found.dtype.kind != "f":
                raise DataError(
                    f"{path} holds {found.dtype} {list(found.shape)}, expected {count:,} rows of floats",
                    hint=f"delete {path.parent.parent / 'parts'} and run the same clipbench embed again",
                )
            self._open[number] = found
        return self._open[number]


def _json(path: Path) -> Mapping[str, Any]:
    try:
        found = json_value(file_bytes(path, MOST_JSON))
    except (Unreadable, ValueError) as error:
        raise DataError(
            f"{path} cannot be read: {first_line(error)}", hint="embed the collection again"
        ) from None
    return found if isinstance(found, dict) else {}


def _column(path: Path, name: str) -> list[str]:
    import pyarrow.parquet as pq

    try:
        found: list[str] = pq.read_table(path, columns=[name])[name].to_pylist()
    except Exception as error:  # pyarrow raises what it likes for bytes that are no parquet
        raise DataError(
            f"{path} cannot be read: {first_line(error)}", hint="embed the collection again"
        ) from None
    return found


def _rows_of_table(path: Path, name: str) -> NDArray[Any]:
    import pyarrow.parquet as pq

    try:
        blocks = [
            batch.column(0).flatten().to_numpy(zero_copy_only=False).reshape(len(batch), -1)
            for batch in pq.ParquetFile(path).iter_batches(BLOCK, columns=[name])
        ]
    except Exception as error:  # as above
        raise DataError(
            f"{path} cannot be read: {first_line(error)}", hint="embed the collection again"
        ) from None
    return np.concatenate(blocks)


def _mapped(path: Path) -> NDArray[Any]:
    try:
        found: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read: {first_line(error)}", hint="embed the collection again"
        ) from None
    return found
