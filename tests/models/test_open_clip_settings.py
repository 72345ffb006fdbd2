"""What open_clip's models say of themselves: images, texts, a folder's settings; and what of it is refused by name."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from zoo import reduced, standins

import clipbench
from clipbench.cards.model import ModelCard, Preprocess, Texts, Weights
from clipbench.catalog import Catalog
from clipbench.data.decode import decode
from clipbench.errors import CardError, WeightsError
from clipbench.models import families, remembered
from clipbench.models.adapter import ModelEntry
from clipbench.models.towers.open_clip import build
from clipbench.models.weights.open_clip import preprocess_of, texts_of
from clipbench.models.weights.open_clip_settings import in_folder
from clipbench.report import listing

TEXTS = ["A Photo, of_the DOG!", "a cat"]


def picture() -> bytes:
    rng = np.random.default_rng(0)
    rough = Image.fromarray(rng.integers(0, 256, (40, 23, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    rough.resize((231, 401), Image.Resampling.BICUBIC).save(buffer, format="PNG")
    return buffer.getvalue()


# ---------------------------------------------------------------- preprocessing


def test_images_of_every_pretrained_tag_are_prepared_as_by_open_clip() -> None:
    data = picture()
    transform = open_clip.transform
    tried: set[tuple[Any, ...]] = set()
    for arch, tag in open_clip.list_pretrained():
        described = open_clip.get_pretrained_cfg(arch, tag)
        cfg = transform.merge_preprocess_dict(transform.PreprocessCfg(), described)
        cfg["size"] = open_clip.get_model_config(arch)["vision_cfg"].get("image_size", 224)
        ours = preprocess_of(arch, described)
        assert (ours.mean, ours.std) == (tuple(cfg["mean"]), tuple(cfg["std"])), (arch, tag)
        key = (
            ours.size,
            ours.resize,
            ours.interpolation,
            cfg["size"],
            cfg["resize_mode"],
            cfg["interpolation"],
        )
        if key in tried:
            continue
        tried.add(key)
        plain = transform.PreprocessCfg(**cfg | {"mean": (0.0,) * 3, "std": (1.0,) * 3})
        theirs = transform.image_transform_v2(plain, is_train=False)(Image.open(io.BytesIO(data)))
        assert torch.equal(torch.from_numpy(decode(data, ours)), (theirs * 255).round().byte()), (arch, tag)
    assert len(tried) > 15


@pytest.mark.parametrize(
    ("described", "wanted"),
    [
        ({"interpolation": "random"}, {"interpolation": "bicubic"}),
        ({"resize_mode": "longest", "fill_color": 114}, {"resize": "longest", "fill": 114}),
        ({"resize_mode": "squash", "fill_color": 114}, {"resize": "squash", "fill": 0}),
        ({"mean": None, "size": 999}, {"mean": open_clip.OPENAI_DATASET_MEAN, "size": 224}),
        ({"mean": [0, 0, 0], "std": [1, 1, 1]}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
    ],
)
def test_settings_that_are_read(described: dict[str, Any], wanted: dict[str, Any]) -> None:
    found = dict(preprocess_of("ViT-B-32", described))
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("described", "message"),
    [
        (
            {"resize_mode": "stretch"},
            r"resize 'stretch' of ViT-B-32 is not supported; allowed: shortest, longest",
        ),
        (
            {"interpolation": "nearest"},
            "interpolation 'nearest' of ViT-B-32 is not supported; allowed: bicubic",
        ),
        ({"mean": 0.5}, r"the mean of ViT-B-32 is 0\.5, not three numbers"),
        ({"std": [1, 1]}, r"the std of ViT-B-32 is \[1, 1\], not three numbers"),
        ({"std": [0, 0, 0]}, "images of ViT-B-32 cannot be prepared: .*std values must be above 0"),
        ({"mode": "L"}, "ViT-B-32 takes images in mode 'L'; only RGB"),
        ({"resize_mode": "longest", "fill_color": [1, 2, 3]}, "cannot be prepared: fill"),
    ],
)
def test_settings_that_are_refused(described: dict[str, Any], message: str) -> None:
    with pytest.raises(CardError, match=message):
        preprocess_of("ViT-B-32", described)


# ------------------------------------------------------------------------ texts


@pytest.fixture
def small(tmp_path: Path) -> Callable[[str], tuple[Any, Path]]:
    """Makes the file of a small model of an architecture, of open_clip's own making; returns both."""

    def make(arch: str) -> tuple[Any, Path]:
        model = reduced.random(arch)
        torch.save(model.state_dict(), tmp_path / "weights.pt")
        return model, tmp_path / "weights.pt"

    return make


def entry(arch: str, path: Path, text: Texts | None = None) -> ModelEntry:
    mean = (0.5, 0.5, 0.5)
    preprocess = Preprocess(mean=mean, std=mean)
    config = {"arch": arch, "quick_gelu": False}
    card = ModelCard(
        title="small",
        family="clip",
        config=config,
        preprocess=preprocess,
        text=text,
        weights=Weights(file=str(path)),
    )
    return ModelEntry("small", card, path.parent)


def test_what_architectures_do_to_texts() -> None:
    assert texts_of("ViT-B-32") == Texts(clean="lower", context_length=77)
    assert texts_of("coca_ViT-B-32").context_length == 76
    assert texts_of("ViT-SO400M-14-SigLIP") == Texts(
        clean="canonicalize", context_length=16, strip_sep_token=False
    )
    assert texts_of("ViT-H-14-CLIPA") == Texts(clean="whitespace", context_length=32, strip_sep_token=True)
    shown = listing.show("clip-vit-b32", Catalog())[1]
    assert "clean: lower" in str(getattr(shown, "renderables")[0].renderables[1].code)  # noqa: B009


@pytest.mark.filterwarnings("ignore")
def test_a_card_that_says_otherwise_is_obeyed(small: Any, tmp_path: Path) -> None:
    arch = "ViT-S-32-alt"
    with reduced.shrunk(arch, tmp_path), torch.no_grad():
        model, path = small(arch)
        plain = families.load(entry(arch, path))
        assert plain.text_fingerprint == ""
        same = families.load(entry(arch, path, Texts(clean="lower", context_length=77)))
        assert same.text_fingerprint == ""
        other = families.load(entry(arch, path, Texts(clean="canonicalize", context_length=5)))
        assert other.text_fingerprint not in ("", plain.text_fingerprint)
        theirs = open_clip.get_tokenizer(arch, context_length=5, clean="canonicalize")(TEXTS)
        ids, lengths = other.tokenize(TEXTS)
        assert torch.equal(ids, F.pad(theirs, (0, 72)))
        assert lengths.tolist() == [5, 4]
        assert not torch.equal(ids, plain.tokenize(TEXTS)[0])
        torch.testing.assert_close(
            other.text_tower()(ids[:, :5]), model.encode_text(ids), rtol=1e-5, atol=1e-6
        )
        for asked, message in (
            (Texts(context_length=78), "78 tokens are more than the 77 of ViT-S-32-alt"),
            (
                Texts(strip_sep_token=True),
                "text.strip_sep_token: the tokenizer of ViT-S-32-alt has no such token",
            ),
        ):
            with pytest.raises(CardError, match=message):
                families.load(entry(arch, path, asked))


@pytest.mark.filterwarnings("ignore")
def test_a_tokenizer_of_the_hub_obeys_too(small: Any, tmp_path: Path) -> None:
    arch = "ViT-B-16-SigLIP"
    with reduced.shrunk(arch, tmp_path):
        _, path = small(arch)
        own = families.load(entry(arch, path))
        assert torch.equal(own.tokenize(["A Photo, of_the DOG!"])[0], own.tokenize(["a photo of the dog"])[0])
        other = families.load(entry(arch, path, Texts(clean="whitespace", context_length=6)))
        ids, lengths = other.tokenize(TEXTS)
        theirs = open_clip.get_tokenizer(arch, context_length=6, clean="whitespace")(TEXTS)
        assert torch.equal(ids, F.pad(theirs, (0, 58), value=1))
        assert lengths.tolist() == [64, 64]  # padding is attended to, so nothing is cut
        assert own.logit_bias == -10


def test_a_family_that_reads_no_rules_for_texts_refuses_them(tmp_path: Path) -> None:
    card = Path("model_cards/digits-clip-lite.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(card + "\ntext: {clean: lower}\n")
    with pytest.raises(CardError, match=r"mine\.yaml:\d+: the family dual reads no text: on a card"):
        Catalog().model(str(tmp_path / "mine.yaml"))


def test_what_the_hub_has_and_this_machine_lacks_is_named(small: Any, tmp_path: Path) -> None:
    with reduced.shrunk("ViT-B-16-SigLIP", tmp_path):
        _, path = small("ViT-B-16-SigLIP")
        (tmp_path / "models--timm--ViT-B-16-SigLIP").rename(tmp_path / "gone")
        with pytest.raises(
            WeightsError, match="tokenizer of ViT-B-16-SigLIP, timm/ViT-B-16-SigLIP, cannot"
        ) as caught:
            families.load(entry("ViT-B-16-SigLIP", path))
        assert "hf download timm/ViT-B-16-SigLIP" in str(caught.value)
    with pytest.raises(
        WeightsError, match="settings of its text tower, roberta-base, cannot be had"
    ) as caught:
        build("roberta-ViT-B-32", quick_gelu=True)
    assert "hf download roberta-base --include '*.json'" in str(caught.value)


# -------------------------------------------------------------------- checkpoints


@pytest.mark.filterwarnings("ignore")
def test_a_coca_checkpoint_is_told_from_clips(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arch = "coca_ViT-B-32"
    with reduced.shrunk(arch, tmp_path):
        model, path = small(arch)
        plain = {"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}
        torch.save(plain, path)
        found = families.detected(str(path))
        assert found.card.config["arch"] == arch
        assert families.load(found).context_length == 76


@pytest.mark.filterwarnings("ignore")
def test_numbers_of_positions_of_old_language_models_are_left_out(small: Any, tmp_path: Path) -> None:
    arch = "xlm-roberta-base-ViT-B-32"
    with reduced.shrunk(arch, tmp_path):
        model, path = small(arch)
        key = "text.transformer.embeddings.position_ids"
        torch.save(model.state_dict() | {key: torch.arange(90)[None]}, path)
        assert families.load(entry(arch, path)).left_out == (f"{key} (1)",)


@pytest.mark.filterwarnings("ignore")
def test_a_logit_bias_is_remembered(small: Any, tmp_path: Path) -> None:
    arch = "ViT-B-16-SigLIP"
    with reduced.shrunk(arch, tmp_path):
        _, path = small(arch)
        assert remembered.load(entry(arch, path)).logit_bias == -10
        again = remembered.load(entry(arch, path))
        assert again.logit_bias == -10
        assert "_loaded" not in vars(again)
        assert clipbench.load_model(_written(entry(arch, path), tmp_path), device="cpu").logit_bias == -10


def _written(model: ModelEntry, folder: Path) -> str:
    (folder / "mine.yaml").write_text(json.dumps(model.card.canonical()))
    return str(folder / "mine.yaml")


@pytest.mark.filterwarnings("ignore")
def test_towers_that_give_tokens_too_give_features_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of architectures that are no CoCa, of which open_clip itself makes nothing of the pair."""
    arch = "ViT-S-32-alt"
    with reduced.shrunk(arch, tmp_path), torch.no_grad():
        settings = open_clip.get_model_config(arch)
        for part in ("vision_cfg", "text_cfg"):
            settings[part]["output_tokens"] = True
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tokens-too", settings)
        image, ids = torch.randn(2, 3, 224, 224), torch.randint(1, 99, (2, 77))
        for custom in (False, True):
            settings["custom_text"] = custom
            model = reduced.random("tokens-too")
            torch.save(model.state_dict(), tmp_path / "weights.pt")
            ours = families.load(entry("tokens-too", tmp_path / "weights.pt"))
            torch.testing.assert_close(ours.image_tower("joint")(image), model.visual(image)[0])
            if custom:
                torch.testing.assert_close(ours.text_tower()(ids), model.text(ids)[0])


# ------------------------------------------------------------------------- folders


def folder_of(arch: str, folder: Path, **preprocess: Any) -> Any:
    """A folder in open_clip's form of a small model; returns open_clip's own."""
    folder.mkdir(exist_ok=True)
    model = reduced.random(arch)
    settings = {"model_cfg": reduced.config(arch), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arch", ["ViT-S-32-alt", "ViT-B-16-SigLIP", "ViT-H-14-CLIPA"])
def test_a_folder_is_loaded_as_by_open_clip(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "my model"
    with reduced.shrunk(arch, tmp_path), torch.no_grad():
        folder_of(
            arch, folder, mean=[0.1, 0.2, 0.3], std=[0.5] * 3, interpolation="bilinear", resize_mode="longest"
        )
        if named := open_clip.get_model_config(arch)["text_cfg"].get("hf_tokenizer_name"):
            snapshot = standins.write(named, tmp_path)
            for path in snapshot.iterdir():
                path.rename(folder / path.name)
        theirs, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        theirs.eval()
        image = Image.open(io.BytesIO(picture()))
        ids = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
        monkeypatch.chdir(tmp_path)
        ours = clipbench.load_model("local-dir:my model", device="cpu", precision="fp32")
        assert ours.card.preprocess.resize == "longest"
        assert ours.card.notes is None
        assert torch.equal(ours.preprocess(image), prepare(image))
        features = F.normalize(theirs.encode_image(prepare(image)[None]), dim=-1)
        torch.testing.assert_close(ours.encode_images(image), features, rtol=1e-5, atol=1e-6)
        assert torch.equal(ours.adapter.tokenize(TEXTS)[0], ids)
        features = F.normalize(theirs.encode_text(ids), dim=-1)
        torch.testing.assert_close(ours.encode_texts(TEXTS), features, rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_what_a_folder_says_is_part_of_its_features(tmp_path: Path) -> None:
    arch, folder = "ViT-S-32-alt", tmp_path / "mine"
    with reduced.shrunk(arch, tmp_path):
        folder_of(arch, folder, size=64)
        before = Catalog().model(f"local-dir:{folder}")
        assert "its settings say images of size 64: as open_clip, its tower's 224 was taken" in (
            before.card.notes or ""
        )
        assert "do not say mean, std, interpolation, resize_mode" in (before.card.notes or "")
        settings = json.loads((folder / "open_clip_config.json").read_text())
        settings["model_cfg"]["text_cfg"]["heads"] = 4
        (folder / "open_clip_config.json").write_text(json.dumps(settings))
        assert Catalog().model(f"local-dir:{folder}").card.config != before.card.config
        with pytest.raises(CardError, match="is not the file that the card means"):
            families.load(before)


def test_folders_that_are_none(tmp_path: Path) -> None:
    def refused(change: Callable[[dict[str, Any]], object] | str | None, message: str, *files: str) -> None:
        folder = tmp_path / "folder"
        for path in folder.iterdir() if folder.is_dir() else ():
            path.unlink()
        folder.mkdir(exist_ok=True)
        settings: dict[str, Any] = {"model_cfg": open_clip.get_model_config("ViT-B-32"), "preprocess_cfg": {}}
        if callable(change):
            change(settings)
        if change is not None:
            text = change if isinstance(change, str) else json.dumps(settings)
            (folder / "open_clip_config.json").write_text(text)
        for name in files:
            (folder / name).write_bytes(b"x")
        with pytest.raises((CardError, WeightsError), match=message):
            in_folder(f"local-dir:{folder}")

    def same(settings: dict[str, Any]) -> None:
        """As it is."""

    refused(None, "has no open_clip_config.json")
    refused("{", "is no JSON")
    refused("[]", "not in open_clip's form")
    refused(lambda s: s.pop("model_cfg"), "not in open_clip's form: 'model_cfg'")
    refused(lambda s: s["model_cfg"].pop("embed_dim"), "not in open_clip's form: 'embed_dim'")
    refused(lambda s: s["model_cfg"].update(embed_dim="x"), "embed_dim is no number")
    refused(lambda s: s.update(preprocess_cfg=[1]), "not in open_clip's form: preprocess_cfg")
    refused(
        lambda s: s["model_cfg"]["text_cfg"].update(hd=1),
        r"unknown to this open_clip: text_cfg\.hd\n.*newer open_clip",
    )
    refused(
        lambda s: s["model_cfg"]["text_cfg"].update(tokenizer_kwargs={"reduction_mask": "random"}),
        "chooses tokens of long texts",
        "model.pth",
    )
    refused(same, "has no weights")
    refused(same, r"has several weights files: a\.bin, b\.pth", "a.bin", "b.pth")
    for name, message in (("", "names no folder"), (str(tmp_path / "gone"), "there is no folder")):
        with pytest.raises(CardError, match=message):
            in_folder(f"local-dir:{name}")


@pytest.mark.filterwarnings("ignore")
def test_a_folder_with_one_weights_file_of_any_name(tmp_path: Path) -> None:
    with reduced.shrunk("ViT-S-32-alt", tmp_path):
        folder_of("ViT-S-32-alt", tmp_path / "mine")
        path = tmp_path / "mine" / "open_clip_pytorch_model.bin"
        path.rename(path.with_name("epoch_7.pth"))
        assert Path(in_folder(f"local-dir:{tmp_path / 'mine'}").weights.file or "").name == "epoch_7.pth"
