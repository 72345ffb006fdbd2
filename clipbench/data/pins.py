"""Which copies on the hub cards mean, and whether these are still what the hub has: needs a network."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal

from clipbench.cards.entry import Entry
from clipbench.cards.task import TaskCard
from clipbench.errors import ClipbenchError
from clipbench.utils.cache import recall

#: pinned: the card names a commit that is there; unpinned: neither card nor this machine knows one; recorded: this
#: machine holds to the hub's newest; moved: it, or the card, holds to an older one; gone, gated, failed: as it says
State = Literal["pinned", "recorded", "unpinned", "moved", "gone", "gated", "failed"]
_TIMEOUT_S: Final = 10
_AT_ONCE: Final = 8


@dataclass(frozen=True)
class Pin:
    """A card's data set on the hub.

    Attributes:
        held: the commit that the card names, or that was recorded here at first use; None: neither.
        head: the hub's newest, None where it could not be asked.
        told: why it could not.
    """

    dataset: str
    hub: str
    state: State
    held: str | None = None
    head: str | None = None
    told: str = ""


def pins(datasets: Sequence[Entry[TaskCard]]) -> list[Pin]:
    """What the hub says of every data set that comes from it, by id.

    Raises:
        ClipbenchError: there is no network.
    """
    asked = [one for one in datasets if one.card.source.hub is not None]
    if not asked:
        return []
    first = _pin(asked[0])  # alone: without a network one question is enough
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [first, *pool.map(_pin, asked[1:])]


def _pin(dataset: Entry[TaskCard]) -> Pin:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    source = dataset.card.source
    hub, revision = source.hub or "", source.revision
    held = revision or recall("data", hub)
    api = HfApi()
    head: str | None = None
    try:
        head = str(api.dataset_info(hub, timeout=_TIMEOUT_S).sha)
        if held is not None and held != head:
            api.dataset_info(hub, revision=held, timeout=_TIMEOUT_S)
    except RevisionNotFoundError:
        return Pin(dataset.id, hub, "gone", held, head, "the commit is not there any more")
    except GatedRepoError:
        return Pin(dataset.id, hub, "gated", held, told="access must be asked for")
    except RepositoryNotFoundError:
        return Pin(dataset.id, hub, "gone", held, told="no such data set, or none that may be seen")
    except HfHubHTTPError as error:
        return Pin(dataset.id, hub, "failed", held, told=" ".join(str(error).split())[:120])
    except OfflineModeIsEnabled:
        raise ClipbenchError(
            "the hub cannot be asked: HF_HUB_OFFLINE is set", hint="unset it, and run this again"
        ) from None
    except Exception as error:  # the hub client's transport raises many kinds, all meaning: no answer
        raise ClipbenchError(
            f"the hub cannot be asked: {type(error).__name__} ({' '.join(str(error).split())[:120]})",
            hint="check --hub needs a network; clipbench check without --hub needs none",
        ) from None
    if held is None:
        return Pin(dataset.id, hub, "unpinned", None, head)
    if held == head:
        return Pin(dataset.id, hub, "pinned" if revision else "recorded", held, head)
    return Pin(dataset.id, hub, "moved", held, head)
