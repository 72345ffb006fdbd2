"""Servers on this machine: of one file with faults, and of a model hub; and a process of its own to ask them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from clipbench.cards.model import Weights
from clipbench.errors import WeightsError
from clipbench.models.weights import fetch
from clipbench.models.weights.fetch import place
from clipbench.models.weights.resolve import resolve_source


def checkpoint(size: int, seed: int = 0) -> bytes:
    """A safetensors file of `size` bytes, which holds noise."""
    count = size - 108
    about = json.dumps({"a": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}).ljust(100)
    return (100).to_bytes(8, "little") + about.encode() + random.Random(seed).randbytes(count)


DATA, TURNED = checkpoint(300_000), checkpoint(300_000, seed=1)
DIGEST = hashlib.sha256(DATA).hexdigest()


@dataclass
class Files:
    """A server of one file, at every path, with the faults that a test sets."""

    data: bytes = DATA
    ranges: bool = True
    etag: str | None = '"one"'
    heeds_if_range: bool = True
    drops: list[int] = field(
        default_factory=list
    )  # of answers in order: end the connection after so many bytes
    status: list[int] = field(default_factory=list)  # of answers in order
    kind: str = "application/octet-stream"
    size: str = "length"  # how the answer says its own: length, chunked, or not at all
    stall: threading.Event | None = None  # waits for it in the middle of the first answer
    asked: list[str] = field(default_factory=list)  # path and Range of every request
    sent: int = 0  # bytes of bodies

    def __post_init__(self) -> None:
        files = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                files.asked.append(f"{self.path} {self.headers.get('Range', '')}".strip())
                files.answer(self)

            def log_message(self, *_: object) -> None:
                """Keep the tests' output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        if self.thread.is_alive():
            if self.stall:
                self.stall.set()
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()

    def answer(self, to: BaseHTTPRequestHandler) -> None:
        to.protocol_version = "HTTP/1.1"
        to.close_connection = True
        span = re.fullmatch(r"bytes=(\d+)-", to.headers.get("Range", "")) if self.ranges else None
        current = to.headers.get("If-Range") in (None, self.etag) or not self.heeds_if_range
        start = int(span[1]) if span and current else 0
        status = self.status.pop(0) if self.status else 206 if start else 200
        if start >= len(self.data) > 0:
            to.send_response(416)
            to.send_header("Content-Range", f"bytes */{len(self.data)}")
            to.send_header("Content-Length", "0")
            to.end_headers()
            return
        body = self.data[start:]
        to.send_response(status)
        to.send_header("Content-Type", self.kind)
        to.send_header("Connection", "close")
        if self.etag:
            to.send_header("ETag", self.etag)
        if status == 206:
            to.send_header("Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}")
        if self.size == "length":
            to.send_header("Content-Length", str(len(body)))
        elif self.size == "chunked":
            to.send_header("Transfer-Encoding", "chunked")
        to.end_headers()
        self.write(to, body[: self.drops.pop(0)] if self.drops else body, whole=len(body))

    def write(self, to: BaseHTTPRequestHandler, body: bytes, whole: int) -> None:
        middle = len(body) // 2 if self.stall and len(self.asked) == 1 else len(body)
        for piece in (body[:middle], body[middle:]):
            if piece:
                self.sent += len(piece)
                chunked = self.size == "chunked"
                to.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            if self.stall and len(self.asked) == 1:
                self.stall.wait(20)
        if self.size == "chunked" and len(body) == whole:
            to.wfile.write(b"0\r\n\r\n")


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(fetch, "_PAUSES_S", (0, 0))
    served = Files()
    yield served
    served.stop()


def at(files: Files, sha256: str | None = None) -> Weights:
    return Weights(url=f"{files.url}/some/model.pt?v=1", link_source="the README", sha256=sha256)


def resolved(weights: Weights) -> tuple[Path, str]:
    return resolve_source(weights, owner="tiny", folder=Path("cards"))


def refused(weights: Weights, *words: str) -> str:
    """Assert that `weights` cannot be had, and that the error says where to put the file."""
    with pytest.raises(WeightsError) as caught:
        resolved(weights)
    text = str(caught.value)
    for word in ("tiny: ", str(place(weights)), *words):
        assert word in text, text
    assert not place(weights).exists()
    return text


# --------------------------------------------------------------------- the hub

FIRST, SECOND = "1" * 40, "2" * 40


@dataclass
class Hub:
    """A hub of data sets: what the real client asks for when it resolves, lists and downloads.

    `repos` maps a name to its commits, newest last, each a folder of files.
    """

    repos: dict[str, dict[str, Path]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hub.asked.append(f"{self.command} {self.path}")
                status, headers, data = hub.answer(urlsplit(self.path).path, body)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: object) -> None:
                """Keep the tests' output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def stop(self) -> None:
        if self.thread.is_alive():
            self.server.shutdown()
            self.server.server_close()
            self.thread.join()

    def downloads(self) -> set[str]:
        """Paths of the files that were sent."""
        return {
            a.partition("/resolve/")[2].partition("/")[2].partition("?")[0]
            for a in self.asked
            if a.startswith("GET") and "/resolve/" in a
        }

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        path = unquote(path)
        for name, commits in self.repos.items():
            if path.startswith(f"/api/datasets/{name}"):
                return self._api(name, commits, path.removeprefix(f"/api/datasets/{name}"), body)
            if path.startswith(f"/datasets/{name}/resolve/"):
                revision, _, file = path.partition("/resolve/")[2].partition("/")
                return self._file(commits, revision, file)
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def _api(
        self, name: str, commits: dict[str, Path], rest: str, body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        verb, _, tail = rest.removeprefix("/").partition("/")
        revision, _, below = tail.partition("/")
        commit = _resolve(commits, revision or "main")
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = _files(commits[commit])
        if verb in ("", "revision"):
            value: Any = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
        elif verb == "tree":
            value = _tree(commits[commit], below)
        elif verb == "paths-info":
            asked = json.loads(body)["paths"]
            value = [item for item in _tree(commits[commit], "") if item["path"] in asked]
        else:
            return 404, {}, b"{}"
        return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()

    def _file(self, commits: dict[str, Path], revision: str, file: str) -> tuple[int, dict[str, str], bytes]:
        commit = _resolve(commits, revision)
        if commit is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b""
        source = commits[commit] / file
        if not source.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        data = source.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}, data


def _resolve(commits: dict[str, Path], revision: str) -> str | None:
    return list(commits)[-1] if revision in ("main", "v1") else revision if revision in commits else None


def _files(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file())


def _tree(root: Path, below: str) -> list[dict[str, Any]]:
    return [
        {
            "type": "file" if path.is_file() else "directory",
            "path": path.relative_to(root).as_posix(),
            "oid": "0" * 40,
            "size": path.stat().st_size if path.is_file() else 0,
        }
        for path in sorted((root / below).rglob("*"))
    ]


class ModelHub(Hub):
    """The hub of data sets, with models at its root."""

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        return super().answer(path if path.startswith("/api") else f"/datasets{path}", body)


@pytest.fixture
def data_hub() -> Iterator[Hub]:
    served = Hub()
    yield served
    served.stop()


@pytest.fixture
def model_hub() -> Iterator[ModelHub]:
    served = ModelHub()
    yield served
    served.stop()


def loading(shown: str) -> str:
    """Code for `run_python` that loads models by the names that it is given.

    Of each it prints `shown`, expressions of `model` and `adapter`, and the norm of a text's feature; or its error.
    """
    return f"""
import sys
import torch
from clipbench.catalog import Catalog
from clipbench.errors import ClipbenchError
from clipbench.models import families
for name in sys.argv[1:]:
    try:
        model = Catalog().model(name)
        adapter = families.load(model)
        with torch.no_grad():
            feature = adapter.text_tower()(adapter.tokenize(["a cat"])[0])
        print({shown}, f"{{feature.norm().item():.4f}}")
    except ClipbenchError as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
"""


def run_python(code: str, *arguments: object, **environment: str) -> str:
    """What `code` prints, run in a process of its own.

    The hub client reads its settings when it is imported, and memory can only be measured from the start.
    """
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Opens every task card given; prints what each split holds, or its error.
_OPEN = """
import hashlib, json, sys, time
from pathlib import Path
import numpy as np
from clipbench.cards.task import TaskCard
from clipbench.cards.entry import Entry
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.errors import DataError
found = {}
for name, role, fields in json.loads(sys.argv[1]):
    start = time.monotonic()
    dataset = Entry("animals", TaskCard.model_validate(fields), Path("tasks/animals.yaml"))
    try:
        split = open_split(dataset, role, DataPaths({}, ()))
        images = [s.image for s in split.samples(np.arange(len(split)))]
        found[name] = {
            "labels": split.labels.tolist(),
            "images": [hashlib.sha256(i).hexdigest() for i in images],
            "fingerprint": split.fingerprint,
        }
    except DataError as error:
        found[name] = {"error": error.message, "hint": error.hint}
    found[name]["seconds"] = time.monotonic() - start
print(json.dumps(found))
"""


def open_from_hub(
    hub: Hub, home: Path, wanted: Sequence[tuple[str, str, dict[str, Any]]], *, offline: bool = False
) -> dict[str, dict[str, Any]]:
    """Open splits, each a name, its role and a task card, in a fresh process whose hub is `hub`: by name what each
    holds, or its error."""
    printed = run_python(
        _OPEN,
        json.dumps(wanted),
        HF_ENDPOINT=hub.url,
        HF_HOME=str(home),
        HF_HUB_OFFLINE="1" if offline else "0",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        NO_PROXY="127.0.0.1",
    )
    found: dict[str, dict[str, Any]] = json.loads(printed.splitlines()[-1])
    return found
