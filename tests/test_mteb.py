"""Models as mteb takes them, against a stand-in of it; tests/parity/test_with_mteb.py has the real one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import declip_files
import pytest
import small
import torch
from PIL import Image
from small import write_run

import clipbench
from clipbench import mteb
from clipbench.api import Model
from clipbench.errors import ClipbenchError, DataError, NotApplicable
from clipbench.mteb import Encoder

one_thread = small.one_thread
TEXTS = ["a cat", "a much longer text about a dog", ""]
#: what mteb says of a task with every call
ABOUT: dict[str, Any] = {
    "task_metadata": None,
    "hf_split": "test",
    "hf_subset": "default",
    "prompt_type": None,
}


def cosine(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(one, dim=1) @ torch.nn.functional.normalize(other, dim=1).T


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """mteb's modules, as far as they are used."""
    modules = {name: ModuleType(name) for name in ("mteb.models.model_meta", "mteb.similarity_functions")}
    vars(modules["mteb.models.model_meta"])["ModelMeta"] = SimpleNamespace
    vars(modules["mteb.similarity_functions"]).update(
        cos_sim=cosine, pairwise_cos_sim=lambda one, other: cosine(one, other).diag()
    )
    for name in ("mteb", "mteb.models", *modules):
        monkeypatch.setitem(sys.modules, name, modules.get(name, ModuleType(name)))
    monkeypatch.setattr(mteb, "version", lambda name: "2.26.24")


def model_of(folder: Path) -> Model:
    return clipbench.load_model(write_run(folder / "run"), device="cpu")


def encoded(encoder: Encoder, batches: Sequence[dict[str, Any]], **given: Any) -> torch.Tensor:
    return encoder.encode(batches, **ABOUT, show_progress_bar=False, **given)


def pictures(count: int = 3) -> list[Image.Image]:
    return [Image.new("RGB", (20, 12), (40 * i, 200 - 30 * i, 7)) for i in range(count)]


def test_rows_are_the_towers_own_and_of_both_their_sum(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    encoder = clipbench.as_mteb(model)
    images = model.encode_images(pictures(), normalised=False)
    texts = model.encode_texts(TEXTS, normalised=False)
    assert not torch.allclose(images.norm(dim=1), torch.ones(3), atol=1e-3)
    torch.testing.assert_close(
        torch.nn.functional.normalize(images, dim=1), model.encode_images(pictures()), rtol=1e-5, atol=1e-6
    )
    of_images = encoded(encoder, [{"image": pictures()[:2]}, {"image": pictures()[2:]}], batch_size=2)
    torch.testing.assert_close(of_images, images)
    torch.testing.assert_close(encoded(encoder, [{"text": TEXTS}]), texts)
    both = encoded(encoder, [{"image": pictures(), "text": TEXTS, "id": ["a", "b", "c"]}])
    torch.testing.assert_close(both, images + texts)
    torch.testing.assert_close(
        encoder.similarity(images, texts),
        model.similarity(model.encode_images(pictures()), model.encode_texts(TEXTS)),
    )
    assert encoder.similarity_pairwise(images, texts).shape == (3,)


def test_what_mteb_writes_of_a_model_is_its_own(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    meta = clipbench.as_mteb(model).mteb_model_meta
    assert meta.name.startswith("clipbench/")
    assert meta.name.count("/") == 1
    assert meta.revision == model.adapter.weights_sha256
    assert (meta.embed_dim, meta.max_tokens, meta.modalities) == (16, 24, ["image", "text"])
    towers = [model.adapter.image_tower("joint"), model.adapter.text_tower("joint")]
    assert meta.n_parameters == sum(one.numel() for tower in towers for one in tower.parameters())
    assert meta.experiment_kwargs is None
    named = clipbench.as_mteb("digits-clip-lite").mteb_model_meta
    assert (named.name, named.embed_dim) == ("clipbench/digits-clip-lite", 128)


def test_what_else_makes_the_rows_keeps_results_apart(tmp_path: Path) -> None:
    low = clipbench.load_model(write_run(tmp_path / "run"), device="cpu", precision="bf16")
    assert clipbench.as_mteb(low).mteb_model_meta.experiment_kwargs == {"precision": "bf16"}
    model = model_of(tmp_path)
    model.compared = "tokens"  # as of a card with tokens and a joint space, by which our evaluation compares
    assert clipbench.as_mteb(model).mteb_model_meta.experiment_kwargs == {"space": "joint"}


def test_a_model_of_images_alone_has_images_alone() -> None:
    encoder = clipbench.as_mteb("efficientnet-lite0")
    assert (encoder.mteb_model_meta.modalities, encoder.mteb_model_meta.embed_dim) == (["image"], 1280)
    assert encoder.mteb_model_meta.max_tokens is None
    assert encoded(encoder, [{"image": pictures()}]).shape == (3, 1280)
    with pytest.raises(NotApplicable, match="images only, no text tower"):
        encoded(encoder, [{"text": TEXTS}])


def test_a_model_that_compares_tokens_alone_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declip_files.know_architectures(monkeypatch)
    shapes = declip_files.official("filip", declip_files.VIT, declip_files.TEXT, 24)
    path = declip_files.save(declip_files.random_state(shapes), tmp_path / "filip.pth.tar")
    with pytest.raises(NotApplicable, match="have no joint space, and mteb compares one row a sample"):
        clipbench.as_mteb(path)


def test_what_cannot_be_encoded_or_has_no_effect_is_named(tmp_path: Path) -> None:
    encoder = clipbench.as_mteb(model_of(tmp_path))
    with pytest.raises(ClipbenchError, match="precision='int8' has no effect"):
        encoded(encoder, [{"text": TEXTS}], precision="int8")
    with pytest.raises(DataError, match="a batch with audio, id: neither image nor text"):
        encoded(encoder, [{"audio": [1], "id": ["a"]}])
    with pytest.raises(DataError, match="a batch of 3 texts and 2 images"):
        encoded(encoder, [{"text": TEXTS, "image": pictures(2)}])
    with pytest.raises(DataError, match="there is no batch"):
        encoded(encoder, [])
    with pytest.raises(DataError, match="a NoneType is no image"):
        encoded(encoder, [{"image": [None]}])


@pytest.mark.parametrize("found", ["1.39.7", "2.9.1", "3.0.0", "3"])
def test_another_version_of_mteb_is_refused(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mteb, "version", lambda name: found)
    with pytest.raises(ClipbenchError) as caught:
        clipbench.as_mteb("digits-clip-lite")
    assert caught.value.message == f"mteb {found} is installed; as_mteb is for mteb>=2.10,<3"
    assert caught.value.hint == "pip install 'mteb>=2.10,<3'"


def test_mteb_may_be_installed_as_mteb_core(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(name: str) -> str:
        if name == "mteb":
            raise PackageNotFoundError(name)
        return "2.10.0"

    monkeypatch.setattr(mteb, "version", installed)
    assert clipbench.as_mteb("digits-clip-lite").space == "joint"


def test_mteb_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.delitem(sys.modules, "mteb.models.model_meta")
    monkeypatch.delitem(sys.modules, "mteb.models")
    with pytest.raises(ClipbenchError, match="as_mteb needs the package mteb") as caught:
        clipbench.as_mteb("digits-clip-lite")
    assert caught.value.hint == "pip install 'mteb>=2.10,<3'"
