"""Image folders as people have them: every image is read, and what is not is counted and named, or an error."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from class_copies import message, opened
from PIL import Image
from small import CLASSES, picture, write_images

from clipbench.data.split import Note, Split


def stored(split: Split) -> dict[str, bytes]:
    return {sample.id: sample.image for sample in split.samples(np.arange(len(split)))}


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(0))).save(buffer, kind)
    return buffer.getvalue()


def ignored(*names: str) -> tuple[Note, ...]:
    text = "files or folders ignored: hidden, no image by name, or beside the class folders"
    return (Note("ignored-files", text, len(names), names[:3]),)


def test_images_of_all_kinds_and_in_folders_of_folders(tmp_path: Path) -> None:
    names = {
        "a.jfif": "JPEG", "b.JPE": "JPEG", "c.avif": "AVIF", "d.jp2": "JPEG2000", "e.tga": "TGA", "f.qoi": "QOI",
        "g": "PNG", "h.0": "PNG", "i/j.k/l.webp": "WEBP", "m/n": "JPEG",
    }  # fmt: skip
    for name, kind in names.items():
        path = tmp_path / "test" / "dog" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(kind))
    split = opened(tmp_path)
    assert stored(split) == {f"dog/{name}": encoded(kind) for name, kind in names.items() if name != "h.0"}
    assert split.labels.tolist() == [1] * 9
    assert split.notes == ignored("dog/h.0")


def test_what_is_ignored_is_counted_and_named(tmp_path: Path) -> None:
    root = write_images(tmp_path, 10)
    before = opened(root)
    assert before.notes == ()
    others = (
        ".DS_Store", ".ipynb_checkpoints/a.png", "__MACOSX/._a.png", "a.png", "labels.csv",
        "cat/.ipynb_checkpoints/a-checkpoint.png", "cat/._00001.png", "cat/README", "cat/Thumbs.db", "cat/a.txt",
        "cat/@eaDir/a.png",
    )  # fmt: skip
    for name in others:
        path = root / "test" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(picture(0) if name.endswith("png") else b"text")
    split = opened(root)
    assert stored(split) == stored(before)
    assert split.labels.tolist() == before.labels.tolist()
    assert split.fingerprint == before.fingerprint
    (note,) = split.notes
    assert (note.kind, note.count, note.examples) == (
        "ignored-files", len(others), (".DS_Store", ".ipynb_checkpoints", "__MACOSX")
    )  # fmt: skip


def test_links_are_followed_and_must_lead_somewhere_once(tmp_path: Path) -> None:
    real = write_images(tmp_path / "real", 10) / "test"
    root = tmp_path / "linked"
    (root / "test" / "cat").mkdir(parents=True)
    for name in CLASSES[1:]:
        (root / "test" / name).symlink_to(real / name)
    (root / "test" / "cat" / "part").symlink_to(real / "cat")
    split = opened(root)
    plain = opened(tmp_path / "real")
    assert split.ids == [name.replace("cat/", "cat/part/") for name in plain.ids]
    assert list(stored(split).values()) == list(stored(plain).values())
    assert split.labels.tolist() == plain.labels.tolist()

    again = root / "test" / "cat" / "again"
    again.symlink_to(real / "dog")
    assert "are one folder, so its images would count twice" in message(root)
    again.unlink()
    again.symlink_to(root / "test")
    assert "are one folder" in message(root)
    again.unlink()
    again.symlink_to(root / "gone")
    assert f"again is a link that leads nowhere ({root / 'gone'})" in message(root)
    again.unlink()
    assert len(opened(root)) == 10


def test_names_that_no_record_can_hold(tmp_path: Path) -> None:
    root = write_images(tmp_path, 10)
    Path(os.fsdecode(bytes(root / "test" / "cat") + b"/caf\xe9.png")).write_bytes(picture(0))
    assert "cat/caf\\xe9.png is no UTF-8" in message(root)
    Path(os.fsdecode(bytes(root / "test" / "cat") + b"/caf\xe9.png")).unlink()
    Path(os.fsdecode(bytes(root / "test" / "cat") + b"/caf\xe9.txt")).write_bytes(b"x")
    assert opened(root).notes == ignored("cat/caf\\xe9.txt")


@pytest.mark.parametrize("name", ["Test", "TEST"])
def test_folder_of_the_split_in_other_case(tmp_path: Path, name: str) -> None:
    root = write_images(tmp_path, 10)
    wanted, images = opened(root).labels.tolist(), stored(opened(root))
    (root / "test").rename(root / name)
    split = opened(root)
    assert stored(split) == images
    assert split.labels.tolist() == wanted
    (root / "test").mkdir()
    assert f"{root} holds {name} and test, which differ in case alone" in message(root)


def test_counts_of_the_card_hold_for_every_layout(tmp_path: Path) -> None:
    root = write_images(tmp_path, 10)
    whole, part, double = ({"test": {"name": "test", "rows": rows}} for rows in (10, 13, 9))
    assert opened(root, splits=whole).notes == ()
    text = "samples of the split are not in this copy: it has 10, the card says 13"
    assert opened(root, splits=part).notes == (Note("missing-samples", text, 3),)
    assert f"{root / 'test'} has 10 samples, the card says 9" in message(root, splits=double)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_that_must_not_be_read(tmp_path: Path) -> None:
    root = write_images(tmp_path, 10)
    (root / "test" / "cat").chmod(0)
    try:
        assert "cat cannot be read: Permission denied" in message(root)
    finally:
        (root / "test" / "cat").chmod(0o755)
