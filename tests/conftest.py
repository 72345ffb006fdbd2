"""What all tests share: a cache of their own, no network by accident, and the path of the real data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Read when the hub client is first imported, so before any test: a test that forgets its local data fails at once
# instead of fetching. Tests of the hub talk to a server of their own, from a process of their own.
os.environ["HF_HUB_OFFLINE"] = "1"

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def isolated_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test alone (made at first use); no user's cards or data come in."""
    cache = tmp_path_factory.mktemp("cache") / "clipbench"
    monkeypatch.setenv("CLIPBENCH_CACHE", str(cache))
    for name in ("CLIPBENCH_CARDS", "CLIPBENCH_DATA", "CLIPBENCH_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    return cache


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets (`../shared/data` beside the project); skips where it is missing."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no ../shared/data beside the project")
    return SHARED_DATA
