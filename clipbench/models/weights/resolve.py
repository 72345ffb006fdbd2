"""Where a card's weights are: the file on this machine, downloaded where it is missing, and its hash checked."""

from __future__ import annotations

from pathlib import Path

from clipbench.cards.model import Weights
from clipbench.data.digests import digests, sha256_file
from clipbench.errors import CardError, DataError, WeightsError
from clipbench.models.adapter import ModelEntry
from clipbench.models.weights.reading import read_state_dict, strange
from clipbench.utils.cache import recall, remember
from clipbench.utils.parsing import expanded


def resolve(model: ModelEntry) -> tuple[Path, str]:
    """The checkpoint file of a card, downloaded where it is missing, and its sha256; see `resolve_source`."""
    return resolve_source(model.card.weights, owner=model.id, folder=model.folder)


def resolve_source(weights: Weights, *, owner: str, folder: Path) -> tuple[Path, str]:
    """The file that `weights` means, downloaded where it is missing, and its sha256 (hex).

    `owner` is the model's id, for messages; relative paths start from `folder`. What comes from elsewhere is
    checked against the card's hash, and where it has none, against the one recorded at first use.

    Raises:
        WeightsError: the file is missing or cannot be fetched, or its hash is not the card's.
        ClipbenchError: its hash is not the one of its first use.
        StorageError: the cache has no room for it.
        CardError: a pretrained tag, which only the family clip knows.
    """
    if weights.file is not None:
        path = (folder / expanded(weights.file)).resolve()
        if not path.is_file():
            raise WeightsError(
                f"{owner}: no checkpoint at {path}",
                hint="put the file there, or correct weights.file on the card",
            )
        return path, verify(path, weights.sha256, kept=True)
    if weights.open_clip is not None:
        raise CardError(
            f"{owner}: weights.open_clip names a pretrained tag, which only cards of the family clip can",
            hint="set family: clip, or another source of weights",
        )
    from clipbench.models.weights import fetch  # with all that reads addresses

    path = fetch.find(weights, owner)
    digest = verify(path, weights.sha256, kept=True)
    if weights.sha256 is None:
        pin(fetch.source_name(weights), path, digest, owner)
    return path, digest


def pin(name: str, path: Path, digest: str, owner: str) -> None:
    """Record `digest` as the sha256 of the weights `name` at their first use, once all tensors have been read.

    A file that cannot be read, or that holds more than tensors, is not recorded: the right one may yet come.

    Raises:
        WeightsError: it is no checkpoint, broken, or holds more than tensors.
        ClipbenchError: another hash was recorded at first use.
    """
    if recall("weights", name) is None:
        if what := strange(path):
            raise WeightsError(
                f"{owner}: {path} is no checkpoint but {what}",
                hint=f"delete it and bring the right file, by hand or with clipbench weights fetch {owner}",
            )
        read_state_dict(path)
    remember("weights", name, digest, what="sha256 of the weights")


def verify(path: Path, expected: str | None, *, kept: bool = False) -> str:
    """sha256 (hex) of `path`; a shorter `expected` is compared as a prefix, as open_clip's file names hold it.

    With `kept`, a file that has not changed since it was hashed is not read again (see `clipbench.data.digests`).

    Raises:
        WeightsError: the file cannot be read, or the hash does not start with `expected`.
    """
    try:
        actual = digests(path.parent, [path]).files[0][1] if kept else sha256_file(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from None
    except DataError as error:
        raise WeightsError(error.message, hint=error.hint) from None
    if expected is not None and not actual.startswith(expected):
        raise WeightsError(
            f"{path} is not the file that the card means: sha256 is {actual}, the card says {expected}",
            hint="delete the file and fetch it again, or correct the card",
        )
    return actual
