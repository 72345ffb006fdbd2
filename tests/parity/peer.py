"""The peer, LAION's CLIP_benchmark: its environment, and what every comparison with it shares."""

from __future__ import annotations

import io
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from clipbench.cards.base import Strict
from clipbench.data.decode import open_image
from clipbench.errors import ClipbenchError, DataError, unknown
from clipbench.records import store
from clipbench.records.record import environment
from clipbench.utils.cache import locked, make_folder, write_atomic
from clipbench.utils.version import __version__

PEER: Final = "clip-benchmark==1.6.2"
#: what the peer imports and clipbench does not; all else comes from clipbench's environment
LIBRARIES: Final = ("webdataset", "braceexpand", "pycocoevalcap", "pycocotools")
#: `requests` is imported without being declared; from NumPy 2.4 on scoring fails (LAION-AI/CLIP_benchmark#147)
MENDS: Final = ("requests", "numpy<2.4")
DATASET: Final = "cifar10"
BATCH_SIZE: Final = 64  # the peer's default
_PACKAGES: Final = ("clip-benchmark", "numpy", "open_clip_torch", "pillow", "scikit-learn", "torch", "torchvision",
                    "webdataset")  # fmt: skip
_VERSIONS = (
    "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
)
_CHECKPOINT = (
    "import sys, torch, open_clip; torch.manual_seed(0); "
    "torch.save(open_clip.create_model(sys.argv[1]).state_dict(), sys.argv[2])"
)
_HALF_STEP = 0.5e-4  # agreement to 4 decimals


class ParityError(ClipbenchError):
    """One of the two programs, or the making of its input, failed."""


class PeerUnavailable(ParityError):
    """The peer is not there and cannot be fetched: no package index can be reached."""


class Metric(Strict):
    """One metric (a fraction) from both programs; `equal`: to 4 decimals."""

    ours: float
    peer: float
    equal: bool


class Wall(Strict):
    """Wall time of whole processes in turns: the medians, in seconds. `ratios` are ours over the peer's, turn by turn.

    `ratio` is their median.
    """

    ours: float
    peer: float
    ratio: float
    ratios: tuple[float, ...] = ()

    def __str__(self) -> str:
        spread = f" ({min(self.ratios):.2f} to {max(self.ratios):.2f})" if len(self.ratios) > 1 else ""
        return f"{self.ratio:.2f}{spread}"


class Program(Strict):
    """One of the two programs, and the packages it ran on. Commit and dirty flag are of clipbench's checkout."""

    name: str
    version: str
    packages: dict[str, str]
    python: str
    commit: str | None = None
    dirty: bool | None = None


def metric(ours: float, peer: float) -> Metric:
    """One metric of both."""
    return Metric(ours=ours, peer=peer, equal=abs(ours - peer) < _HALF_STEP)


def wall(turns: Sequence[tuple[float, float]]) -> Wall:
    """Our and the peer's wall times (s), turn by turn.

    >>> print(wall([(1.0, 2.0), (3.0, 4.0), (1.0, 4.0)]))
    0.50 (0.25 to 0.75)
    """
    ratios = [round(ours / peer, 4) for ours, peer in turns]
    ours, peer = (round(median(side), 2) for side in zip(*turns, strict=True))
    return Wall(ours=ours, peer=peer, ratio=round(median(ratios), 4), ratios=tuple(ratios))


@dataclass(frozen=True)
class Peer:
    """CLIP_benchmark, installed in the environment at `folder`."""

    folder: Path
    versions: dict[str, str]

    def bundled(self, name: str) -> dict[str, list[str]]:
        """One of the peer's own JSON files: data set → list of strings."""
        path = _site_packages(self.folder) / "clip_benchmark" / "datasets" / name
        found: dict[str, list[str]] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def templates(self) -> tuple[str, ...]:
        """The peer's CIFAR-10 prompts, with `{c}` for the class name."""
        return tuple(self.bundled("en_zeroshot_classification_templates.json")[DATASET])


def prepare_peer(folder: Path) -> Peer:
    """The peer's environment at `folder`.

    Raises:
        PeerUnavailable: no package index can be reached.
        ParityError: the environment cannot be made, or the peer does not start in it.
    """
    python = prepare(folder, [("--no-deps", PEER, *LIBRARIES), MENDS])
    versions: dict[str, str] = json.loads(_python(python, "-c", _VERSIONS, *_PACKAGES))
    # Also brings what both programs import into the file cache, so that neither is timed with a cold disk.
    _python(python, "-c", "import clip_benchmark.cli")
    return Peer(folder, versions)


def prepare(folder: Path, installs: Sequence[Sequence[str]]) -> str:
    """The Python of an environment over this one at `folder`, made where it is missing or was made of something else.

    A `.pth` file adds clipbench's own site-packages behind the environment's, so torch, torchvision and open_clip
    are shared, not fetched again, and a NumPy of its own comes first.

    Args:
        installs: what pip is told, call by call; what comes first that is no option, gives errors their name.

    Raises:
        PeerUnavailable: no package index can be reached.
        ParityError: the environment cannot be made.
    """
    over = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    wanted = [one for call in installs for one in call if not one.startswith("-")]
    recipe = {"requirements": wanted, "over": over, "python": sys.version}
    made_of = folder / "made_of.json"
    with locked(folder.with_name(f"{folder.name}.lock")):
        if not made_of.is_file() or json.loads(made_of.read_text()) != recipe:
            say(f"installing {wanted[0]} …")
            _python(sys.executable, "-m", "venv", "--clear", str(folder))
            write_atomic(_site_packages(folder) / "zz_clipbench.pth", "\n".join([*over, ""]).encode())
            for call in installs:
                _pip_install(folder, *call, what=wanted[0])
            write_atomic(made_of, json.dumps(recipe, indent=1).encode())
    return str(folder / "bin" / "python")


def _site_packages(environment: Path) -> Path:
    base = {"base": str(environment), "platbase": str(environment)}
    return Path(sysconfig.get_path("purelib", "venv", base))


def _pip_install(environment: Path, *arguments: str, what: str) -> None:
    python = str(environment / "bin" / "python")
    try:
        _python(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments)
    except ParityError as error:
        if "from versions: none" not in error.message:
            raise
        raise PeerUnavailable(
            f"{what} cannot be installed: no package index answers",
            hint="run this where pip can reach one; what is installed once is used again",
        ) from None


def _python(*command: str) -> str:
    """What `command` prints. Paths of the caller's Python do not reach it."""
    return run(command, cwd=Path.cwd(), env={})[0]


def run(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> tuple[str, float]:
    """Standard output and wall time (s) of `command`.

    Raises:
        ParityError: it cannot be started or fails, with the last lines of what it said.
    """
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=cwd, env=kept | dict(env), capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except OSError as error:
        raise ParityError(f"{command[0]} cannot be started: {error.strerror}") from None
    seconds = time.perf_counter() - start
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-8:]
        raise ParityError("\n".join([f"exit status {done.returncode}: {' '.join(command)}", *said]))
    return done.stdout, seconds


def random_checkpoint(arch: str, folder: Path) -> Path:
    """A state dict of open_clip's `arch` as initialised from seed 0, made where it is missing.

    Raises:
        ParityError: open_clip has no such architecture.
    """
    path = folder / f"{store.file_name(arch)}.pt"
    if not path.is_file():
        say(f"making a random {arch} …")
        part = make_folder(folder) / f".{path.name}.{os.getpid()}.part"
        try:
            _python(sys.executable, "-c", _CHECKPOINT, arch, str(part))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def suffix(image: bytes, name: str) -> str:
    kinds = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
    with open_image(image) as opened:
        kind = opened.format or ""
    if kind not in kinds:
        raise DataError(unknown(f"image format of {name} for a WebDataset", kind, kinds))
    return kinds[kind]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def anonymous(command: Sequence[str], places: Mapping[Path, str]) -> str:
    """The command line with each path of `places` replaced by its name, the longest first.

    >>> anonymous(["/a/bin/python", "-m", "x", "--out=/a/b"], {Path("/a"): "A", Path("/a/b"): "B"})
    'A/bin/python -m x --out=B'
    """
    line = shlex.join(command)
    for place in sorted(places, key=lambda p: len(str(p)), reverse=True):
        line = re.sub(rf"{re.escape(str(place))}(?![\w.+-])", places[place], line)
    return line


def peer_program(peer: Peer) -> Program:
    name, _, _ = PEER.partition("==")
    return Program(
        name=name, version=peer.versions[name], packages=peer.versions, python=platform.python_version()
    )


def our_program() -> Program:
    env = environment()
    return Program(
        name="clipbench",
        version=__version__,
        packages=env.packages,
        python=env.python,
        commit=env.commit,
        dirty=env.dirty,
    )


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
