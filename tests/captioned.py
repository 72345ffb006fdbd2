"""Small sets of captioned images on disk and behind a server, as tests of training data need them."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from small import picture


def write_table(folder: Path, rows: list[list[str]], file: str = "pairs.csv", delimiter: str = ",") -> Path:
    """Pictures 0.png, 1.png, … of the rows in images/, and a table; returns `folder`."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for number in range(len(rows)):
        (images / f"{number}.png").write_bytes(picture(number))
    with (folder / file).open("w", newline="", encoding="utf-8") as out:
        csv.writer(out, delimiter=delimiter).writerows([["image", "id", "caption"], *rows])
    return folder


def rows_of(texts: list[str]) -> list[list[str]]:
    return [[f"{number}.png", f"i{number}", text] for number, text in enumerate(texts)]


def write_shard(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, files in samples:
            for ending, data in files.items():
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def sample_of(number: int) -> tuple[str, dict[str, bytes]]:
    """As img2dataset writes it."""
    text = f"caption {number}"
    story = json.dumps({"key": f"{number:09d}", "caption": text, "status": "success"}).encode()
    return f"{number:09d}", {"jpg": picture(number), "json": story, "txt": text.encode()}


def write_shards(folder: Path, count: int, each: int) -> Path:
    for shard in range(count):
        write_shard(folder / f"{shard:05d}.tar", [sample_of(shard * each + i) for i in range(each)])
    return folder


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """Serves tmp_path/served: the address, and the paths that were asked for. A `flaky` path breaks off at first."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            asked.append(self.path)
            if "flaky" in self.path and asked.count(self.path) == 1:
                data = (tmp_path / "served" / self.path.lstrip("/")).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: len(data) // 2])
                return
            super().do_GET()

    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}", asked
        httpd.shutdown()
        thread.join()
