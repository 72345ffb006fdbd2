"""The campaigns of `make torture`, in small."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_flipped_bits_and_kills_change_no_number_without_a_word() -> None:
    """A process of its own, since it forks: no threads may have been started before."""
    done = subprocess.run(
        [sys.executable, "-W", "error", Path(__file__).parent / "torture.py",
         "--flips", "20", "--kills", "3", "--limit", "60"],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "20 flips" in done.stdout
    assert "3 the same record" in done.stdout
