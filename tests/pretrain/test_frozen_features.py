"""Training that starts from towers of others: frozen, partly frozen or trained on, and what is then saved."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from captioned import rows_of, write_table
from safetensors.torch import load_file, save_file
from small import one_thread, write_tokenizer  # noqa: F401 - one_thread is a fixture
from torch import nn
from torch.nn import functional as F
from training import decode_all

from clipbench.cards.model import ModelCard
from clipbench.cards.pairs import Pairs
from clipbench.cards.recipe import Recipe
from clipbench.cards.strict_yaml import Document, parse
from clipbench.catalog import Catalog
from clipbench.data.builtin import digits
from clipbench.data.decode import normalise
from clipbench.data.digests import sha256_file
from clipbench.data.pairs.sources import open_pairs
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split, Subset
from clipbench.encoding import images as image_encoding
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, WeightsError
from clipbench.evaluation import Options, evaluate
from clipbench.models import families
from clipbench.models.adapter import Adapter, ModelEntry
from clipbench.models.towers.adapters import DualAdapter
from clipbench.models.towers.configs import parse_config, sources, stated
from clipbench.pretrain.data import frozen_features as frozen
from clipbench.pretrain.loop import pretrain
from clipbench.utils.cpu import cores

PREPROCESS = {"size": 32, "resize": "squash", "channels": 1, "mean": [0.3], "std": [0.4]}


def shaken(net: nn.Module) -> dict[str, torch.Tensor]:
    """The net's tensors, none as it was made."""
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_(
                0.05 * torch.rand_like(tensor) if "running_var" in name else 0.05 * torch.randn_like(tensor)
            )
    return {name: tensor.contiguous() for name, tensor in net.state_dict().items()}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with the weights of an image and a text tower; returns its folder."""
    torch.manual_seed(3)
    site = tmp_path / "site"
    about, folder = site / "small_towers-1.dist-info", site / "small_towers"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: small-towers\nVersion: 1\n")
    (about / "RECORD").write_text("small_towers/image.safetensors,,\nsmall_towers/text.safetensors,,\n")
    vocabulary = write_tokenizer(folder, "a photo of the number " + " ".join("0123456789"))
    save_file(shaken(timm.create_model("test_efficientnet", in_chans=1)), folder / "image.safetensors")
    settings = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, vocab_size=vocabulary,
        max_position_embeddings=40,
    )  # fmt: skip
    bert = transformers.BertModel(settings, add_pooling_layer=False)
    save_file(shaken(bert), folder / "text.safetensors")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    return folder


def recipe(package: Path, frozen: dict[str, Any], source: str = "package", **parts: Any) -> Recipe:
    """Six steps of eight digits from the towers of the package, or of its files."""

    def weights(name: str) -> dict[str, str]:
        file = f"{name}.safetensors"
        return (
            {"package": f"small-towers/small_towers/{file}"}
            if source == "package"
            else {"file": str(package / file)}
        )

    vocabulary = load_file(package / "text.safetensors")["embeddings.word_embeddings.weight"].shape[0]
    text = {
        "kind": "bert", "layers": 2, "width": 16, "heads": 2, "feedforward": 24, "vocabulary": vocabulary,
        "positions": 40, "pool": "mean", "tokenizer": str(package), "context_length": 20, "weights": weights("text"),
    }  # fmt: skip
    image = {"kind": "timm", "arch": "test_efficientnet", "weights": weights("image")}
    value = {
        "title": "small", "command": "none", "cost": "none",
        "data": [{"dataset": "digits"}, {"dataset": "digits", "templates": ["simple"]}],
        "model": {
            "config": {"image": image, "text": text, "embed_dim": 12, "projection": "linear"},
            "frozen": frozen,
            "preprocess": PREPROCESS,
        },
        "objective": {"kind": "clip-lite", "negatives": 3, "prior_weight": 0.1},
        "optim": {"name": "adamw", "lr": 0.01},
        "schedule": {"steps": 6, "batch_size": 8},
    }  # fmt: skip
    return Recipe.model_validate(value | parts)


@functools.cache
def images() -> Split:
    return Subset(digits("train", tuple("0123456789")), np.arange(40))


def train(recipe: Recipe, out: Path, **more: Any) -> Path:
    task = Catalog().dataset("digits").card
    data = [(images(), task)] * len(recipe.data)
    return pretrain(recipe, "small", out, data=data, device="cpu", progress=False, **more)


def loaded(out: Path) -> tuple[ModelCard, DualAdapter]:
    card = parse(ModelCard, Document(out / "card.yaml"))
    adapter = families.load(ModelEntry("run", card, out))
    assert isinstance(adapter, DualAdapter)
    return card, adapter


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


WHOLE = {"image": True, "text": True}


def test_only_heads_are_saved_and_the_card_names_the_rest(package: Path, tmp_path: Path) -> None:
    out = train(recipe(package, WHOLE), tmp_path / "run")
    held = load_file(out / "model.safetensors")
    assert set(held) == {"image_projection.weight", "text_projection.weight", "log_scale"}
    card, adapter = loaded(out)
    for side in ("image", "text"):
        digest = sha256_file(package / f"{side}.safetensors")
        assert card.config[side]["weights"]["sha256"] == digest
        assert digest in str(card.notes)
    published = load_file(package / "image.safetensors")
    net: Any = timm.create_model("test_efficientnet", in_chans=1).eval()
    net.load_state_dict(published)
    pixels = normalise(decode_all(images(), adapter.preprocess)[:4], adapter.preprocess)
    with torch.no_grad():
        expected = net.forward_head(net.forward_features(pixels), pre_logits=True)
        torch.testing.assert_close(adapter.image_tower("backbone")(pixels), expected)
        joint = adapter.image_tower("joint")(pixels)
    torch.testing.assert_close(joint, expected @ held["image_projection.weight"].T)


def test_cached_features_train_the_same_heads_as_the_towers_would(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a loop in which frozen towers see the images themselves, at every step."""
    kept = train(recipe(package, WHOLE), tmp_path / "kept")

    def resting(self: frozen.Start, side: str, *_: Any) -> None:
        tower = getattr(self.towers, side).requires_grad_(False)
        self.towers.resting += (tower,)

    monkeypatch.setattr(frozen.Start, "_stand_in", resting)
    seen = train(recipe(package, WHOLE), tmp_path / "seen")
    np.testing.assert_allclose(losses(kept), losses(seen), rtol=1e-5)
    for name, tensor in load_file(kept / "model.safetensors").items():
        torch.testing.assert_close(tensor, load_file(seen / "model.safetensors")[name], rtol=1e-3, atol=1e-5)


def test_features_are_computed_once(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(recipe(package, WHOLE), tmp_path / "first")

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a tower was run again")

    monkeypatch.setattr("clipbench.encoding.images.encode_shards", fail)
    monkeypatch.setattr("clipbench.encoding.encoder.ModelEncoder._encode_texts", fail)
    train(recipe(package, WHOLE, seed=1), tmp_path / "second")
    model = recipe(package, WHOLE).model.canonical() | {"preprocess": PREPROCESS | {"mean": [0.2]}}
    with pytest.raises(AssertionError, match="a tower was run again"):
        train(recipe(package, WHOLE, model=model), tmp_path / "third")


def test_features_of_a_table_are_computed_again_for_other_images(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_table(tmp_path, rows_of([f"a photo of {number}" for number in range(8)]), "t.csv")
    wanted = {"name": "mine", "kind": "csv", "file": "t.csv", "images": "images"}
    encoded: list[int] = []
    encode = image_encoding.encode_shards

    def counting(*arguments: Any) -> None:
        encoded.append(len(arguments[4]))
        encode(*arguments)

    monkeypatch.setattr(image_encoding, "encode_shards", counting)

    def run(name: str) -> None:
        one = recipe(package, WHOLE, data=[wanted])
        data = [open_pairs(one.data[0], Catalog().dataset, DataPaths({"mine": folder}, ()), Path("r.yaml"))]
        pretrain(one, "small", tmp_path / name, data=data, device="cpu", progress=False)

    run("first")
    run("second")
    assert len(encoded) == 1
    image = folder / "images" / "3.png"
    before, data = image.stat(), image.read_bytes()
    image.write_bytes(data + b"\0")  # behind the end of the picture
    run("third")
    assert len(encoded) == 2
    image.write_bytes(data + b"\1")
    os.utime(image, ns=(before.st_mtime_ns, before.st_mtime_ns))
    run("fourth")
    assert len(encoded) == 3


@pytest.mark.parametrize("space", ["joint", "backbone"])
def test_models_with_heads_on_one_tower_share_its_features(
    space: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = Runtime("cpu", "fp32")
    outs = [train(recipe(package, WHOLE, seed=seed), tmp_path / str(seed)) for seed in (0, 1)]

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("the tower was run again")

    monkeypatch.setattr("clipbench.encoding.images.encode_shards", fail)
    found = []
    for out in outs:
        card, adapter = loaded(out)
        encoder = ModelEncoder(ModelEntry("run", card, out), runtime, progress=False)
        pixels = normalise(decode_all(images(), adapter.preprocess), adapter.preprocess)
        with torch.no_grad():
            expected = adapter.image_tower(space)(pixels)
        expected = F.normalize(expected, dim=1) if space == "joint" else expected
        found.append(np.array(encoder.images(images(), space)))
        np.testing.assert_allclose(found[-1], expected.numpy(), rtol=1e-4, atol=1e-5)
        assert encoder.counts.images_encoded == 0
    assert np.array_equal(found[0], found[1]) == (space == "backbone")


@pytest.mark.parametrize("part", [WHOLE, {"image": True}, {"image": ["conv_stem", "bn1", "blocks.0"]}, {}])
def test_resumes_exactly(part: dict[str, Any], package: Path, tmp_path: Path) -> None:
    whole = train(recipe(package, part), tmp_path / "whole")
    out = train(recipe(package, part), tmp_path / "parts", stop_after=3)
    torch.rand(5)
    train(recipe(package, part), out)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert losses(out) == losses(whole)


def test_frozen_parts_stay_as_they_were_and_the_rest_is_saved(package: Path, tmp_path: Path) -> None:
    parts = {"image": ["conv_stem", "bn1", "blocks.0"], "text": ["embeddings", "encoder.layer.0"]}
    out = train(recipe(package, parts), tmp_path / "run")
    card, adapter = loaded(out)
    assert card.config["image"]["weights"] is None
    assert "conv_stem bn1 blocks.0 frozen" in str(card.notes)
    held = load_file(out / "model.safetensors")
    for side, names in parts.items():
        before = load_file(package / f"{side}.safetensors")
        moved = {
            n
            for n, t in before.items()
            if f"{side}.net.{n}" in held and not torch.equal(held[f"{side}.net.{n}"], t)
        }
        assert moved
        assert not {name for name in moved if name.startswith(tuple(f"{part}." for part in names))}
        averages = {name for name in moved if "running_mean" in name}
        assert averages or side == "text"  # BatchNorm of what is trained goes on
    assert adapter.weights_sha256 == card.weights.sha256


def test_a_frozen_tower_of_a_file_is_saved_too(package: Path, tmp_path: Path) -> None:
    out = train(recipe(package, WHOLE, source="file"), tmp_path / "run")
    (package / "image.safetensors").unlink()
    (package / "text.safetensors").unlink()
    card, adapter = loaded(out)
    assert card.config["image"]["weights"] is None
    assert adapter.text_tower()(adapter.tokenize(["a photo of 3"])[0]).shape == (1, 12)


def test_evaluated_in_training_as_after_it(package: Path, tmp_path: Path) -> None:
    hashes = []

    def evaluator(adapter: Adapter, task_ids: object) -> Iterator[Any]:
        hashes.append(adapter.weights_sha256)
        assert adapter.image_tower("joint")(torch.zeros(2, 1, 32, 32)).shape == (2, 12)
        return iter(())

    out = train(recipe(package, WHOLE, evaluate=["digits-zs"]), tmp_path / "run", evaluator=evaluator)
    assert hashes == [loaded(out)[1].weights_sha256]


def test_loading_is_strict_about_the_tower(package: Path, tmp_path: Path) -> None:
    out = train(recipe(package, WHOLE), tmp_path / "run")
    tensors = load_file(package / "image.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, package / "image.safetensors")
    with pytest.raises(WeightsError, match="is not the file that the card means"):
        loaded(out)


@pytest.mark.parametrize(
    ("frozen", "changes", "message"),
    [
        (
            {"image": ["block.0"]},
            {},
            r'frozen\.image: the tower has no part "block\.0"; did you mean "blocks\.0"',
        ),
        ({"image": []}, {}, "at least 1 item"),
        ({"image": "yes"}, {}, "image"),
        ({"text": ["embeddings", "encoder"]}, {}, "nothing is left to be trained"),
        (WHOLE, {"data": [{"dataset": "digits", "alter": 0.5}]}, "texts of digits cannot be altered"),
        (
            WHOLE,
            {"data": [{"dataset": "digits", "on_bad_image": "skip"}]},
            "bad images of digits cannot be skipped",
        ),
        (
            WHOLE,
            {"objective": {"kind": "slip"}},
            "wants further views of every image, but the image tower is frozen",
        ),
        (
            WHOLE,
            {"data": [{"dataset": "digits", "augment": {"kind": "moco-v2"}}]},
            "the image tower is frozen, so that",
        ),
    ],
)
def test_what_cannot_be_frozen(
    frozen: dict[str, Any], changes: dict[str, Any], message: str, package: Path, tmp_path: Path
) -> None:
    def attempt() -> None:
        train(recipe(package, frozen, **changes), tmp_path / "run")

    with pytest.raises((CardError, ValueError), match=message):
        attempt()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_repeated_source_is_as_several_of_it(package: Path, tmp_path: Path) -> None:
    source = {"dataset": "digits"}
    twice = train(recipe(package, WHOLE, data=[source, source]), tmp_path / "twice")
    out = train(recipe(package, WHOLE, data=[source | {"repeat": 2}]), tmp_path / "repeated")
    assert (out / "model.safetensors").read_bytes() == (twice / "model.safetensors").read_bytes()
    assert loaded(out)[0].training_pairs_m == pytest.approx(40e-6)  # no more images than there are


def test_features_of_single_tokens_are_not_kept(package: Path, tmp_path: Path) -> None:
    model = recipe(package, WHOLE).model.canonical()
    model["config"]["tokens"] = {"dim": 4, "compared": "joint"}
    with pytest.raises(CardError, match="the pooled features are kept, not those of single tokens"):
        train(recipe(package, WHOLE, model=model), tmp_path / "run")


def test_random_weights_are_not_frozen(package: Path, tmp_path: Path) -> None:
    model = recipe(package, WHOLE).model.canonical()
    del model["config"]["image"]["weights"]
    with pytest.raises(CardError, match=r"model\.frozen\.image: the image tower starts from random weights"):
        train(recipe(package, WHOLE, model=model), tmp_path / "run")


# ------------------------------------------------------------------- lite-minilm


def test_the_shipped_heads_are_the_recipes() -> None:
    catalog = Catalog()
    model, recipe = catalog.model("lite-minilm"), catalog.recipe("lite-minilm").card
    config = parse_config(model.card.config, "card")
    wanted = parse_config(recipe.model.config, "recipe")
    assert all(len(source.sha256 or "") == 64 for source in sources(config).values())
    for side in ("image", "text"):
        made, asked = getattr(config, side), getattr(wanted, side)
        assert made.weights.source == asked.weights.source
        assert made.model_copy(update={"weights": asked.weights}) == asked
    assert (config.embed_dim, config.projection) == (wanted.embed_dim, wanted.projection)
    assert model.card.preprocess == recipe.model.preprocess
    # The tower's own way, but for the margin that it cuts off.
    own = catalog.model("efficientnet-lite0").card.preprocess
    assert own.model_copy(update={"size": own.crop}) == recipe.model.preprocess
    path = model.folder / str(model.card.weights.file)
    assert path.stat().st_size <= 8e6
    adapter = families.load(model)
    assert stated(config, str(model.card.weights.sha256)) == adapter.weights_sha256
    assert stated(wanted, str(model.card.weights.sha256)) is None  # hashes that the recipe leaves open
    assert adapter.image_tower("joint")(torch.zeros(1, 3, 224, 224)).shape == (1, wanted.embed_dim)
    held_out = {source.dataset: source.split for source in recipe.data if isinstance(source, Pairs)}
    assert held_out == dict.fromkeys(("tiny-imagenet", "flickr8k-1000", "coco-363-captions"), "train")


@pytest.mark.shared
def test_the_shipped_heads_find_photos_by_captions_that_they_never_saw(shared_data: Path) -> None:
    catalog = Catalog()
    paths = DataPaths({"coco-363-captions": shared_data / "coco-363"}, ())
    options = Options(Runtime("cpu", "fp32", workers=0), paths, progress=False, limit=40)
    torch.set_num_threads(cores())  # no small towers
    task = catalog.task("coco-363-captions-ret@held-out")
    (result,) = evaluate([catalog.model("lite-minilm")], [task], options)
    assert result.record is not None
    scores = result.record.scores
    assert scores["image_retrieval_recall@1"].n == 200
    assert scores["image_retrieval_recall@1"].value >= 0.35
    assert scores["image_retrieval_recall@5"].value >= 0.75
