"""Downloads that are not what was asked for, and addresses that lead where nobody meant: neither kept nor asked."""

from __future__ import annotations

import hashlib
import io
import socket
import threading
import urllib.error
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import servers
import torch
from safetensors.torch import save, save_file
from servers import DATA, Files, at, refused, resolved
from small import Caller

from clipbench.cards.model import Weights
from clipbench.cards.pairs import ShardPairs
from clipbench.data.pairs.shards import RemoteShards
from clipbench.errors import DataError, WeightsError
from clipbench.models.weights import fetch
from clipbench.models.weights.fetch import place
from clipbench.models.weights.reading import strange
from clipbench.utils.cache import cache_root, recall
from clipbench.utils.web import Refused, open_address, public

files = servers.files
PAGE = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"
WRONG = {
    "page": (PAGE, "a web page"),
    "page without a type": (b"<html><body>quota</body></html>", "a web page"),
    "xml": (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "XML or HTML"),
    "json": (b'{"error": "Unauthorized"}', "JSON"),
    "list": (b'["error"]', "JSON"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "a Git LFS pointer"),
    "gzip": (b"\x1f\x8b\x08\0\0\0", "a gzip archive"),
    "zip": (b"PK\x03\x04" + bytes(100), "a broken zip archive"),
    "safetensors": ((20).to_bytes(8, "little") + b"{" + b"x" * 40, "a broken safetensors file"),
    "text": (b"Not found", "something else (it begins with b'Not foun')"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_checkpoint_is_neither_kept_nor_pinned(files: Files, kind: str) -> None:
    files.data, words = WRONG[kind]
    with pytest.raises(WeightsError) as caught:
        resolved(at(files))
    assert words in caught.value.message
    assert "put it at" in str(caught.value.hint)
    assert [path.name for path in place(at(files)).parent.iterdir() if path.suffix != ".lock"] == []
    assert not (cache_root() / "ledger.json").exists()
    files.data = DATA
    files.etag = '"two"'
    assert resolved(at(files))[0].read_bytes() == DATA  # the right one comes the next time


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_put_there_by_hand_is_looked_at_too(files: Files, kind: str) -> None:
    place(at(files)).parent.mkdir(parents=True)
    place(at(files)).write_bytes(WRONG[kind][0])
    with pytest.raises(WeightsError) as caught:
        resolved(at(files))
    assert f"is no checkpoint but {WRONG[kind][1]}" in caught.value.message
    assert not (cache_root() / "ledger.json").exists()


def _saved(form: str) -> bytes:
    buffer = io.BytesIO()
    state = {"a": torch.arange(500.0), "b": torch.ones(7, dtype=torch.int64)}
    if form == "safetensors":
        return save(state)
    torch.save(state, buffer, _use_new_zipfile_serialization=form == "zip")
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["safetensors", "zip", "pickle"])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_is_cut_off_where_it_comes_from_is_neither_kept_nor_pinned(
    files: Files, form: str, share: float
) -> None:
    whole = _saved(form)
    files.data = whole[: max(2, int(share * len(whole)))]
    refused(at(files), "what came is ", "(it is deleted)")
    assert not (cache_root() / "ledger.json").exists()
    place(at(files)).write_bytes(files.data)  # by hand
    with pytest.raises(WeightsError, match=r"is no checkpoint but|is not a whole checkpoint"):
        resolved(at(files))
    assert not (cache_root() / "ledger.json").exists()
    place(at(files)).unlink()
    files.data, files.etag = whole, '"two"'
    assert resolved(at(files))[0].read_bytes() == whole
    assert recall("weights", fetch.source_name(at(files))) == hashlib.sha256(whole).hexdigest()


def test_a_checkpoint_that_holds_code_is_kept_to_be_converted_and_not_pinned(
    files: Files, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.ones(2)}, "args": Caller(tmp_path / "witness")}, buffer)
    files.data = buffer.getvalue()
    with pytest.raises(WeightsError, match=r"holds more than tensors(.|\n)*clipbench weights convert"):
        resolved(at(files))
    assert place(at(files)).read_bytes() == files.data
    assert not (cache_root() / "ledger.json").exists()
    assert not (tmp_path / "witness").exists()


def test_the_hash_on_a_card_rules(files: Files) -> None:
    files.data = b"anything"
    assert resolved(at(files, hashlib.sha256(b"anything").hexdigest()))[0].read_bytes() == b"anything"
    place(at(files)).unlink()
    files.data = PAGE
    with pytest.raises(WeightsError, match="another file than the card means, a web page, such as"):
        resolved(at(files, hashlib.sha256(DATA).hexdigest()))


def test_checkpoints_of_all_forms_are_no_strangers(tmp_path: Path) -> None:
    state = {"a": torch.zeros(2)}
    torch.save(state, tmp_path / "zip")
    torch.save(state, tmp_path / "pickle", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "safetensors")
    for name in ("zip", "pickle", "safetensors"):
        assert strange(tmp_path / name) is None
    with zipfile.ZipFile(tmp_path / "other", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert strange(tmp_path / "other") == "a zip archive without tensors"


def test_parts_that_nothing_holds_together_are_not_joined(files: Files) -> None:
    files.etag = None
    target = place(at(files))
    target.parent.mkdir(parents=True)
    target.with_name(f"{target.name}.part").write_bytes(b"\x80\x02 of another file")
    assert resolved(at(files))[0].read_bytes() == DATA


# --------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        *(("8.8.8.8", True), ("2606:4700::1111", True), ("::ffff:8.8.8.8", True), ("64:ff9b::808:808", True)),
        *((a, False) for a in ("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.0.1")),
        *((a, False) for a in ("169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1")),
        *(
            (a, False)
            for a in ("::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1")
        ),
        *((a, False) for a in ("::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "::ffff:169.254.1.1")),
    ],
)
def test_public_addresses(address: str, is_public: bool) -> None:
    assert public(address) is is_public


class Leading:
    """A server whose every path answers with a redirect to `to`; `/end` answers with data."""

    def __init__(self) -> None:
        self.to = "/end"
        self.asked: list[str] = []
        leading = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                leading.asked.append(self.path)
                end = self.path == "/end"
                self.send_response(200 if end else 302)
                self.send_header("Content-Length", "4" if end else "0")
                if not end:
                    self.send_header("Location", leading.to)
                self.end_headers()
                self.wfile.write(b"data" if end else b"")

            def log_message(self, *_: object) -> None:
                """Keep the tests' output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}).start()


@pytest.fixture
def leading(monkeypatch: pytest.MonkeyPatch) -> Iterator[Leading]:
    """The server; `public.test` is a public name of it, `inner.test` one that resolves to this machine."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    own, connect = socket.getaddrinfo, socket.create_connection
    names = {"public.test": "93.184.216.34", "inner.test": "127.0.0.1", "mapped.test": "::ffff:127.0.0.1"}

    def resolve(host: Any, *more: Any, **named: Any) -> Any:
        if host in names:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (names[host], more[0]))]
        return own(host, *more, **named)

    def to_the_server(address: Any, *more: Any, **named: Any) -> Any:
        return connect(
            ("127.0.0.1", address[1]) if address[0] == names["public.test"] else address, *more, **named
        )

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", to_the_server)
    made = Leading()
    yield made
    made.server.shutdown()
    made.server.server_close()


INWARD = [
    "127.0.0.1",
    "localhost",
    "LOCALHOST.",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "127.1",
    "[::1]",
    "[::ffff:127.0.0.1]",
]


@pytest.mark.parametrize("host", [*INWARD, "0.0.0.0", "[::]", "inner.test", "mapped.test", "169.254.169.254"])
def test_nobody_is_led_inwards(leading: Leading, host: str) -> None:
    leading.to = f"http://{host}:{leading.port}/end"
    with pytest.raises(
        (Refused, urllib.error.URLError), match=r"public\.test leads to .*on this machine or its own network"
    ):
        open_address(f"http://public.test:{leading.port}/start", timeout=5)
    assert leading.asked == ["/start"]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.org/a", "data:,a", "gopher://x/"])
@pytest.mark.parametrize("named", ["public.test", "127.0.0.1"])
def test_other_schemes_are_not_read(leading: Leading, target: str, named: str) -> None:
    leading.to = target
    with pytest.raises(Refused, match="only http and https are read"):
        open_address(f"http://{named}:{leading.port}/start", timeout=5)
    with pytest.raises(Refused, match="only http and https are read"):
        open_address(target, timeout=5)


@pytest.mark.parametrize("named", ["127.0.0.1", "localhost", "inner.test", "public.test"])
def test_redirects_otherwise_are_followed(leading: Leading, named: str) -> None:
    leading.to = "/end" if named == "public.test" else f"http://localhost:{leading.port}/end"
    with open_address(f"http://{named}:{leading.port}/start", timeout=5) as answer:
        assert answer.read() == b"data"


def test_weights_and_shards_are_not_led_inwards(leading: Leading, monkeypatch: pytest.MonkeyPatch) -> None:
    leading.to = f"http://127.0.0.1:{leading.port}/end"
    address = f"http://public.test:{leading.port}/a.pt"
    with pytest.raises(WeightsError, match=r"public\.test leads to 127\.0\.0\.1, which is on this machine"):
        resolved(Weights(url=address, link_source="x"))
    source = ShardPairs.model_validate(
        {
            "kind": "webdataset",
            "name": "far",
            "shards": [f"http://public.test:{leading.port}/a.tar"],
            "rows": 1,
        }
    )
    with pytest.raises(DataError, match=r"public\.test leads to 127\.0\.0\.1, which is on this machine"):
        next(iter(RemoteShards(source).windows([0])))
    assert leading.asked == ["/a.pt", "/a.tar"]  # once each, without trying again
