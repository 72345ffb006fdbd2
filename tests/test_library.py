"""clipbench as a library: the features that evaluation makes, from images and texts in a program's hands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import declip_files
import numpy as np
import open_clip.factory
import pytest
import small
import torch
from PIL import Image
from small import picture, write_images, write_run, write_task

import clipbench
from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, ClipbenchError, DataError, NotApplicable

one_thread = small.one_thread
TEXTS = ["a cat", "a much longer text about a dog", ""]


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for i in range(5):
        paths.append(tmp_path / f"{i}.png")
        paths[-1].write_bytes(picture(i))
    return paths


def test_features_are_those_of_evaluation(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    data = write_images(tmp_path / "data", 70)
    split = open_split(
        Catalog([write_task(tmp_path / "tasks")]).dataset("animals"), "test", DataPaths({"animals": data}, ())
    )
    encoder = ModelEncoder(Catalog().model(str(run)), Runtime("cpu", "fp32"), progress=False)
    model = clipbench.load_model(str(run), device="cpu")
    paths = [data / "test" / name for name in split.ids]
    paths = [p if p.is_file() else next(data.rglob(Path(p).name)) for p in paths]
    images = model.encode_images(paths)
    assert images.dtype == torch.float32
    np.testing.assert_allclose(images, encoder.images(split), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        model.encode_images(paths, "backbone"), encoder.images(split, "backbone"), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(model.encode_texts(TEXTS), encoder.texts(TEXTS), rtol=1e-5, atol=1e-6)
    assert model.logit_scale == encoder.logit_scale
    assert model.card.title == "Small 0"
    similarity = model.similarity(images, model.encode_texts(TEXTS))
    np.testing.assert_allclose(
        similarity, np.asarray(encoder.images(split)) @ np.asarray(encoder.texts(TEXTS)).T, atol=1e-5
    )


def test_images_may_be_paths_opened_or_preprocessed(files: list[Path], tmp_path: Path) -> None:
    model = clipbench.load_model(str(write_run(tmp_path / "run")), device="cpu")
    expected = model.encode_images(files)
    assert expected.shape == (5, 16)
    torch.testing.assert_close(expected.norm(dim=1), torch.ones(5))
    assert torch.equal(model.encode_images([str(f) for f in files]), expected)
    assert torch.equal(model.encode_images([Image.open(f) for f in files]), expected)
    tensor = torch.stack([model.preprocess(f) for f in files])
    assert tensor.shape == (5, 3, 8, 8)
    assert torch.equal(model.encode_images(tensor), expected)


def test_tokens_are_compared_by_late_interaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vision, text = declip_files.VIT, declip_files.TEXT
    monkeypatch.setitem(
        open_clip.factory._MODEL_CONFIGS,
        "small-vit",
        {"embed_dim": 1, "vision_cfg": vision, "text_cfg": text},
    )
    state = declip_files.random_state(declip_files.official("filip", vision, text, 24))
    path = declip_files.save(state, tmp_path / "filip.pth.tar")
    model = clipbench.load_model(str(path), device="cpu")
    assert model.compared == "tokens"
    (tmp_path / "a.png").write_bytes(picture(1, 40))
    images, texts = model.encode_images([tmp_path / "a.png"]), model.encode_texts(TEXTS)
    assert images.shape == (1, 49, 256)
    assert texts.shape == (3, 77, 256)
    expected = torch.stack([(images[0] @ t.T).amax(1).mean() for t in texts])
    torch.testing.assert_close(model.similarity(images, texts)[0], expected)
    with pytest.raises(NotApplicable, match="joint"):
        model.encode_images([tmp_path / "a.png"], "joint")


def test_what_cannot_be_encoded_is_named(files: list[Path], tmp_path: Path) -> None:
    model = clipbench.load_model(str(write_run(tmp_path / "run")), device="cpu")
    files[1].write_bytes(b"no image")
    with pytest.raises(DataError, match=r"image .*1\.png cannot be decoded"):
        model.encode_images(files)
    with pytest.raises(DataError, match=r"image .*gone\.png cannot be decoded: .*No such file"):
        model.preprocess(tmp_path / "gone.png")
    with pytest.raises(DataError, match="nothing to encode"):
        model.encode_images([])
    with pytest.raises(NotApplicable, match='no image feature space "tokens"'):
        model.encode_images(files, "tokens")
    with pytest.raises(CardError, match='unknown model "declip-r5"; did you mean "declip-r50"'):
        clipbench.load_model("declip-r5")


def test_names_are_found_when_asked_for() -> None:
    assert "load_model" in clipbench.__all__
    with pytest.raises(AttributeError, match="load_models"):
        clipbench.load_models  # noqa: B018


def test_one_text_is_one_row(tmp_path: Path) -> None:
    model = clipbench.load_model(write_run(tmp_path / "run"), device="cpu")
    torch.testing.assert_close(model.encode_texts("a dog"), model.encode_texts(["a dog"]), rtol=0, atol=0)
    torch.testing.assert_close(
        model.encode_texts(t for t in TEXTS), model.encode_texts(TEXTS), rtol=0, atol=0
    )


def test_one_image_is_one_row_whatever_it_comes_as(files: list[Path], tmp_path: Path) -> None:
    model = clipbench.load_model(str(write_run(tmp_path / "run")), device="cpu")
    wanted = model.encode_images([files[0]])
    assert wanted.shape == (1, 16)
    with Image.open(files[0]) as image:
        array = np.asarray(image)
        for one in (files[0], str(files[0]), image, array, array[None], model.preprocess(array)):
            torch.testing.assert_close(model.encode_images(one), wanted)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "a NoneType is no image and no list of images"),
        (b"\x89PNG", "a bytes is no image and no list of images"),
        ([b"\x89PNG"], "a bytes is no image"),
        ([None], "a NoneType is no image"),
        (3, "a int is no image and no list of images"),
        (np.zeros((8, 8, 3)), r"an array of float64 \[8, 8, 3\] is no image"),
        (np.zeros((8, 8, 4), np.uint8), r"an array of uint8 \[8, 8, 4\] is no image"),
        (np.zeros((0, 8), np.uint8), r"an array of uint8 \[0, 8\] is no image"),
        (
            torch.zeros(2, 8, 8, 3),
            r"a tensor of torch.float32 \[2, 8, 8, 3\] is no batch of float \[n, 3, 8, 8\]",
        ),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "a tensor of torch.uint8"),
    ],
)
def test_what_is_no_image(tmp_path: Path, given: Any, words: str) -> None:
    model = clipbench.load_model(str(write_run(tmp_path / "run")), device="cpu")
    with pytest.raises(DataError, match=words):
        model.encode_images(given)


@pytest.mark.parametrize("given", [None, b"a dog", 3, [b"a dog"], [None], [["a dog"]]])
def test_what_is_no_text(tmp_path: Path, given: Any) -> None:
    model = clipbench.load_model(str(write_run(tmp_path / "run")), device="cpu")
    with pytest.raises(DataError, match=r"is no text"):
        model.encode_texts(given)


@pytest.mark.parametrize(
    "given", [None, np.zeros(3), torch.nn.Identity(), 3, b"a", small, ["digits-clip-lite"]]
)
def test_what_is_no_name_of_a_model(given: Any) -> None:
    with pytest.raises(CardError, match=r"a \w+ is no name of a model"):
        clipbench.load_model(given)


@pytest.mark.parametrize(
    "name", ["gone/model.pt", "gone.pt", "gone/", "", " ", "a\0b", "a\0b/c.pt", "x" * 5_000]
)
def test_a_model_that_is_not_there(name: str) -> None:
    with pytest.raises(ClipbenchError):
        clipbench.load_model(name)
