"""The processes that `torchrun` started beside this one, for work that is shared without a word in between."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Final, NamedTuple

from clipbench.errors import ClipbenchError, first_line

_PATIENCE: Final = timedelta(hours=24)  # that one who is done waits for the others


class Rank(NamedTuple):
    """This process: its number from 0, how many there are, and its number on its own machine."""

    number: int
    world: int
    local: int


def rank() -> Rank | None:
    """Which of torchrun's processes this is; None: it was not started by it, or is alone."""
    told = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
    if "TORCHELASTIC_RUN_ID" not in os.environ or not all(map(str.isdecimal, told)) or int(told[1]) < 2:
        return None
    return Rank(*map(int, told))


def wait_for_all() -> None:
    """Return when all processes have come here.

    Raises:
        ClipbenchError: one of them died.
    """
    from torch import distributed

    try:
        distributed.init_process_group("gloo", timeout=_PATIENCE)
        distributed.barrier()
    except RuntimeError as error:
        raise ClipbenchError(
            f"not all processes encoded their share: {first_line(error)}",
            hint="the same command goes on: what was encoded is kept",
        ) from None
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
