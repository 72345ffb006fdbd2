"""Random crops for probes: drawn by the image, the seed and the epoch alone, as torchvision draws them."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import small
from PIL import Image

from clipbench.catalog import Catalog
from clipbench.data.decode import Crops, decode
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime
from clipbench.utils.cache import folder_for_now

one_thread = small.one_thread
CROPS = Crops(size=16, mean=(0.5,) * 3, std=(0.5,) * 3, seed=0, epoch=0)


def ramp(width: int, height: int) -> bytes:
    """Red grows to the right, green downwards: a pixel tells where it comes from."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    buffer = io.BytesIO()
    Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_draw_depends_on_image_seed_and_epoch_alone() -> None:
    data = ramp(60, 40)
    first = decode(data, CROPS)
    assert first.shape == (3, 16, 16)
    np.testing.assert_array_equal(first, decode(data, CROPS))
    for change in ({"epoch": 1}, {"seed": 1}):
        assert not np.array_equal(first, decode(data, CROPS.model_copy(update=change)))
    assert not np.array_equal(first, decode(ramp(60, 41), CROPS))


def test_areas_ratios_and_mirrors_are_those_that_were_asked_for() -> None:
    data, areas, ratios, mirrored = ramp(200, 200), [], [], 0
    for epoch in range(400):
        red, green, _ = decode(data, CROPS.model_copy(update={"epoch": epoch})).astype(float)
        across, down = red.mean(axis=0), green.mean(axis=1)
        mirrored += across[0] > across[-1]
        # the first and last pixel are half a pixel inside: 15 of 16 steps
        w, h = (abs(line[-1] - line[0]) / 255 * 16 / 15 for line in (across, down))
        areas.append(w * h)
        ratios.append(w / h)
    assert min(areas) > 0.06
    assert max(areas) < 1.05
    assert np.mean(areas) == pytest.approx(0.5, abs=0.06)  # some large ones do not fit at the drawn ratio
    assert 0.7 < min(ratios) < 0.85
    assert 1.2 < max(ratios) < 1.45
    assert 150 < mirrored < 250


@pytest.mark.parametrize(("width", "height", "colour"), [(400, 20, 0), (20, 400, 1)])
def test_long_narrow_image_gives_its_middle(width: int, height: int, colour: int) -> None:
    crops = CROPS.model_copy(update={"area": (0.9, 1.0)})
    seen = decode(ramp(width, height), crops).astype(float)[colour].mean(axis=colour)
    assert np.sort(seen)[[0, -1]] == pytest.approx([255 * 186 / 399, 255 * 213 / 399], abs=6)


def test_features_of_every_epoch_are_new_and_not_kept(tmp_path: Path) -> None:
    catalog = Catalog([small.write_task(tmp_path / "cards")])
    data = small.write_images(tmp_path / "data", 30, side=24)
    split = open_split(catalog.dataset("animals"), "test", DataPaths({"animals": data}, ()))
    encoder = ModelEncoder(
        catalog.model(str(small.write_run(tmp_path / "run"))), Runtime("cpu", "fp32"), progress=False
    )
    central = np.array(encoder.images(split, "backbone"))
    first = np.array(encoder.crops(split, "backbone", 0, 0))
    second = np.array(encoder.crops(split, "backbone", 0, 1))
    again = np.array(encoder.crops(split, "backbone", 0, 0))
    assert first.shape == central.shape
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second)
    assert not np.allclose(first, central)
    assert len(list(encoder.root.glob("crops-*"))) == 1


def test_crops_of_killed_runs_are_cleared_away(tmp_path: Path) -> None:
    killed = """
import os, sys
from pathlib import Path
from clipbench.utils.cache import folder_for_now
folder = folder_for_now(Path(sys.argv[1]), "crops")
(folder / "below").mkdir()
(folder / "below" / "00000.shard").write_bytes(b"x")
print(folder, flush=True)
os.kill(os.getpid(), 9)
"""
    done = subprocess.run([sys.executable, "-c", killed, tmp_path], capture_output=True, text=True)
    left = Path(done.stdout.strip())
    assert left.is_dir()
    assert left.parent == tmp_path
    hours = {"young": 23, "old": 25, "read": 25}  # since something came, from another machine
    for name in hours:
        folder = tmp_path / f"crops-{name}.0badcafe.1.part" / "below"
        folder.mkdir(parents=True)
        (folder / "00000.shard").write_bytes(b"x")
    (tmp_path / "crops-earlier").mkdir()  # of a version whose names told nothing
    (tmp_path / "crops-file").write_bytes(b"x")
    (tmp_path / "crops-link").symlink_to(tmp_path / "theirs")
    (tmp_path / "theirs").mkdir()
    for name, age in hours.items():
        top = tmp_path / f"crops-{name}.0badcafe.1.part"
        for path in (top / "below" / "00000.shard", top / "below", top):
            os.utime(path, (0, time.time() - 3600 * age))
    os.utime(tmp_path / "crops-read.0badcafe.1.part" / "below" / "00000.shard")  # still being written
    os.utime(tmp_path / "crops-earlier", (0, 0))
    mine = folder_for_now(tmp_path, "crops")
    other = folder_for_now(tmp_path, "crops")
    assert {path.name for path in tmp_path.iterdir()} == {
        *(mine.name, other.name, "crops-file", "crops-link", "theirs"),
        *("crops-young.0badcafe.1.part", "crops-read.0badcafe.1.part"),
    }
