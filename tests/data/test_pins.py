"""Pins: what the hub is asked of cards, and what is said without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import servers
import yaml
from servers import Hub

data_hub = servers.data_hub
OLD, NEW = "a" * 40, "b" * 40


def check(cards: Path, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`clipbench check --hub` in a process of its own: the client reads its settings when it is imported."""
    return subprocess.run(
        [sys.executable, "-m", "clipbench", "check", "--hub", "--json", "--cards", str(cards)],
        env=os.environ
        | {
            "HF_HOME": str(home),
            "CLIPBENCH_CACHE": str(home / "cache"),
            "NO_PROXY": "127.0.0.1",
            "HF_HUB_OFFLINE": "0",
        }
        | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def write_cards(folder: Path, **sources: dict[str, str]) -> Path:
    for name, source in sources.items():
        fields = {
            "title": name,
            "source": source,
            "splits": {"test": {"name": "test"}},
            "prompts_source": "us",
            "classes": ["cat", "dog"],
            "templates": {"default": ["{c}"]},
            "protocols": {"zs": {}},
        }
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(fields))
    return folder


def test_cards_are_pinned_unpinned_moved_or_gone(data_hub: Hub, tmp_path: Path) -> None:
    for name in ("us/one", "us/two", "us/three", "us/five"):
        data_hub.repos[name] = dict.fromkeys((OLD, NEW), tmp_path / "files")
    cards = write_cards(
        tmp_path / "cards",
        newest={"hub": "us/one", "revision": NEW},
        older={"hub": "us/two", "revision": OLD},
        free={"hub": "us/three"},
        gone={"hub": "us/four"},
        lost={"hub": "us/five", "revision": "c" * 40},
    )
    done = check(cards, tmp_path / "home", HF_ENDPOINT=data_hub.url)
    found = {one["dataset"]: one for one in json.loads(done.stdout)}
    own = {name: found[name]["state"] for name in ("newest", "older", "free", "gone", "lost")}
    assert own == {"newest": "pinned", "older": "moved", "free": "unpinned", "gone": "gone", "lost": "gone"}
    assert (found["older"]["held"], found["older"]["head"]) == (OLD, NEW)
    assert found["lost"]["told"] == "the commit is not there any more"
    assert found["free"]["head"] == NEW
    assert "pets" in found
    assert done.returncode == 2  # some are gone


def test_without_a_network_one_line_says_so(tmp_path: Path) -> None:
    start = time.monotonic()
    done = check(tmp_path, tmp_path / "home", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the hub cannot be asked")
    assert "Traceback" not in done.stderr
    offline = check(tmp_path, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in offline.stderr
    assert time.monotonic() - start < 60
