"""Matlab's files: what scipy writes is read, and a damaged one is an error of ours and ends nothing."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path

import archived
import numpy as np
import pytest
from scipy.io import savemat

from clipbench.data.layouts import _matlab as matlab
from clipbench.errors import DataError


def header(order: bytes = b"IM") -> bytes:
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01" + order


def element(kind: int, data: bytes, order: str = "<") -> bytes:
    padding = bytes(-len(data) % 8) if kind != 15 else b""
    return struct.pack(order + "II", kind, len(data)) + data + padding


@pytest.mark.parametrize("packed", [True, False])
def test_what_scipy_writes_is_read(packed: bool, tmp_path: Path) -> None:
    names = np.empty((1, 3), object)
    names[0] = ["AM General Hummer SUV 2000", "Škoda", ""]
    held = {
        "bytes": np.arange(5, dtype=np.uint8)[None],
        "square": np.array([[1.5, 2], [3, 4]]),
        "empty": np.zeros((0, 0)),
        "names": names,
        "rows": archived._structs({"fname": ["1.jpg", "22.jpg"], "class": [np.uint8(7), 300.0]}),
    }
    savemat(tmp_path / "a.mat", held, do_compression=packed)
    found = matlab.read(tmp_path / "a.mat", list(held))
    assert found["bytes"].tolist() == [0, 1, 2, 3, 4]
    assert found["square"].tolist() == [1.5, 3, 2, 4]  # columns first
    assert found["empty"].tolist() == []
    assert found["names"] == ["AM General Hummer SUV 2000", "Škoda", ""]
    rows = [(row["fname"], row["class"].tolist()) for row in found["rows"]]
    assert rows == [("1.jpg", [7]), ("22.jpg", [300.0])]
    assert list(matlab.read(tmp_path / "a.mat", ["bytes"])) == ["bytes"]


@pytest.mark.parametrize(("order", "mark"), [("<", b"IM"), (">", b"MI")])
def test_both_orders_of_bytes_and_numbers_stored_in_a_smaller_type(
    order: str, mark: bytes, tmp_path: Path
) -> None:
    flags = struct.pack(order + "II", 6, 0)  # of class double
    parts = [
        element(6, flags, order),
        element(5, struct.pack(order + "ii", 1, 2), order),
        element(1, b"x", order),
    ]
    body = b"".join(parts) + element(4, struct.pack(order + "HH", 513, 7), order)
    (tmp_path / "a.mat").write_bytes(header(mark) + element(14, body, order))
    assert matlab.read(tmp_path / "a.mat", ["x"])["x"].tolist() == [513, 7]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not begin as a Matlab file"),
        (b"<html>" * 50, "does not begin as a Matlab file"),
        (b"MATLAB 7.3 MAT-file".ljust(126) + b"IM", "version 7.3"),
        (header(), "holds no variable x"),
        (header() + struct.pack("<II", 14, 1 << 30), "ends too early"),
        (header() + element(15, zlib.compress(bytes(1 << 20))[:-9]), "does not end, or is too large"),
        (header() + element(15, zlib.compress(element(15, zlib.compress(b"")))), "holds no variable x"),
    ],
)
def test_what_is_no_such_file_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.mat").write_bytes(data)
    with pytest.raises(DataError, match=message):
        matlab.read(tmp_path / "a.mat", ["x"])


@pytest.mark.parametrize("packed", [True, False])
def test_damage_anywhere_is_an_error_or_other_values(packed: bool, tmp_path: Path) -> None:
    # scipy's reader ends the process on some of these files.
    rows = archived._structs({"fname": ["1.jpg"] * 4, "class": [np.uint8(7)] * 4})
    savemat(tmp_path / "a.mat", {"rows": rows, "ids": np.arange(9)}, do_compression=packed)
    sound = (tmp_path / "a.mat").read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(sound)
        for _ in range(chance.choice([1, 3, 20])):
            damaged[chance.randrange(128, len(damaged))] ^= 1 << chance.randrange(8)
        (tmp_path / "b.mat").write_bytes(damaged[: chance.choice([None, chance.randrange(len(damaged))])])
        try:
            matlab.read(tmp_path / "b.mat", ["rows", "ids"])
        except DataError:
            refused += 1
    assert refused > 200
