"""Files with a checksum, what killed writers leave behind, and the ledger."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipbench import cache
from clipbench.cache import open_checked, read_checked, verify_checked, write_atomic, write_checked
from clipbench.errors import Damaged

DATA = bytes(range(256)) * 3


@pytest.fixture
def checked(tmp_path: Path) -> Path:
    path = tmp_path / "index.bin"
    write_checked(path, DATA, "index 1")
    return path


@pytest.mark.parametrize("data", [DATA, b""])
def test_what_is_written_is_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a"
    write_checked(path, data, "index 1")
    assert open_checked(path, "index 1") == data == read_checked(path, "index 1")
    assert verify_checked(path, "index 1") == len(data)
    assert path.read_bytes().startswith(data)  # so that it can be memory-mapped


def test_every_flipped_bit_is_seen(checked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = checked.read_bytes()
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        checked.write_bytes(flipped)
        with pytest.raises(Damaged, match=r"index\.bin is damaged"):
            open_checked(checked, "index 1")
        with pytest.raises(Damaged):
            verify_checked(checked, "index 1")
    assert read_checked(checked, "index 1") is None
    assert f"clipbench: {checked} is damaged" in (said := capsys.readouterr().err)
    assert "it is made anew" in said


@pytest.mark.parametrize("size", [0, 1, 50, 700, len(DATA), len(DATA) + 60])
def test_a_file_cut_off_is_seen(checked: Path, size: int) -> None:
    checked.write_bytes(checked.read_bytes()[:size])
    for read in (open_checked, verify_checked):
        with pytest.raises(Damaged, match="does not end in a checksum"):
            read(checked, "index 1")


def test_a_file_of_another_kind_is_seen(checked: Path) -> None:
    with pytest.raises(Damaged):
        open_checked(checked, "index 2")
    with pytest.raises(Damaged):
        verify_checked(checked, "index 2")


def test_a_missing_file_needs_no_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_checked(tmp_path / "a", "index 1") is None
    assert not capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        open_checked(tmp_path / "a", "index 1")


def test_a_folder_in_its_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="cannot be read: Is a directory"):
        open_checked(tmp_path, "index 1")


# -------------------------------------------------------------- killed writers


@contextlib.contextmanager
def _writer(path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A process that is writing `path`, and its part."""
    code = (
        "import sys, time; from pathlib import Path; from clipbench.cache import part_of;"
        "p = part_of(Path(sys.argv[1])); p.write_bytes(b'half'); print(p, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            yield Path(process.stdout.readline().strip()), process
        finally:
            process.kill()


def test_what_a_killed_writer_left_goes_at_the_next_write(tmp_path: Path) -> None:
    with _writer(tmp_path / "a.json") as (part, process):
        write_atomic(tmp_path / "b.json", b"{}")
        assert part.read_bytes() == b"half"
        process.kill()
        process.wait()
        write_atomic(tmp_path / "b.json", b"{}")
        assert [path.name for path in tmp_path.iterdir()] == ["b.json"]


def test_parts_of_other_machines_go_after_an_hour(tmp_path: Path) -> None:
    names = [".a.json.0123abcd.4242.part", ".a.json.4242.part"]  # of another machine; of an earlier version
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    download = tmp_path / "weights.bin.part"  # which goes on where it stopped
    download.write_bytes(b"half")
    write_atomic(tmp_path / "b.json", b"{}")
    assert all((tmp_path / name).exists() for name in names)
    long_ago = time.time() - 3700
    for path in tmp_path.iterdir():
        os.utime(path, (long_ago, long_ago))
    write_atomic(tmp_path / "b.json", b"{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.json", "weights.bin.part"]


def test_a_part_of_ones_own_stays(tmp_path: Path) -> None:
    part = cache.part_of(tmp_path / "a")
    part.write_bytes(b"half")
    cache.part_of(tmp_path / "b")
    assert part.exists()
