"""`backbone` of every kind of tower that open_clip has: its own head makes the joint feature of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import commandline
import open_clip
import pytest
import reduced_towers
import small
import torch
from commandline import Run
from reduced_towers import REDUCED
from torch import Tensor, nn

from clipbench.errors import NotApplicable
from clipbench.models.towers.open_clip import backbone, described_backbone, random_model
from clipbench.records import store

one_thread, run = small.one_thread, commandline.run
TIMM = [arch for arch in REDUCED if "timm_model_name" in open_clip.get_model_config(arch)["vision_cfg"]]


@pytest.fixture(autouse=True)
def architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    reduced_towers.know(monkeypatch)


def joint(visual: Any, images: Tensor) -> Tensor:
    found = visual(images)
    feature: Tensor = found[0] if isinstance(found, tuple) else found
    return feature


@torch.no_grad()
@pytest.mark.parametrize("arch", REDUCED)
def test_the_towers_own_head_makes_the_joint_feature_of_it(arch: str) -> None:
    visual, images = reduced_towers.visual(arch), reduced_towers.images(arch)
    found = backbone("tiny", visual).eval()(images)
    assert found.ndim == 2
    wanted = joint(visual, images)
    if hasattr(visual, "trunk"):
        made = visual.head(visual.trunk.get_classifier()(found))
    else:
        made = found if arch == "RN50" else found @ visual.proj
    assert torch.equal(made, wanted)
    said = described_backbone(open_clip.get_model_config(arch)["vision_cfg"])
    assert said.endswith("the joint feature itself") == (
        found.shape == wanted.shape and torch.equal(found, wanted)
    )
    assert not torch.allclose(found[0], found[1], rtol=1e-2)  # it tells images apart


@torch.no_grad()
@pytest.mark.parametrize("arch", TIMM)
def test_of_timms_towers_it_is_what_timm_calls_pre_logits(arch: str) -> None:
    visual, images = reduced_towers.visual(arch), reduced_towers.images(arch)
    trunk = visual.trunk
    wanted = trunk.forward_head(trunk.forward_features(images), pre_logits=True)
    found = backbone("tiny", visual).eval()(images)
    assert torch.equal(found, wanted)
    assert found.shape[1] == trunk.head_hidden_size


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "pooled"),
    [
        ("EVA02-B-16", lambda trunk, states: states[:, 0]),
        ("EVA02-E-14", lambda trunk, states: states[:, 0]),
        ("MobileCLIP-B", lambda trunk, states: states[:, 0]),
        ("MobileCLIP2-L-14", lambda trunk, states: states[:, 0]),
        ("vit_relpos_medium_patch16_cls_224", lambda trunk, states: states[:, 0]),
        ("MobileCLIP-S1", lambda trunk, maps: maps.mean((2, 3))),
        ("convnext_base", lambda trunk, maps: trunk.head.norm(maps.mean((2, 3), keepdim=True)).flatten(1)),
        ("ViTamin-S", lambda trunk, states: trunk.fc_norm(states.mean(1))),
        ("vit_medium_patch16_gap_256", lambda trunk, states: trunk.fc_norm(states.mean(1))),
        ("swin_base_patch4_window7_224", lambda trunk, maps: maps.mean((1, 2))),
    ],
)
def test_pools_written_out(arch: str, pooled: Any) -> None:
    visual, images = reduced_towers.visual(arch), reduced_towers.images(arch)
    wanted = pooled(visual.trunk, visual.trunk.forward_features(images))
    torch.testing.assert_close(backbone("tiny", visual).eval()(images), wanted, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("arch", ["ViT-B-16-SigLIP", "PE-Core-B-16"])
def test_the_attention_pool_written_out(arch: str) -> None:
    """One query for all images: softmax(q kᵀ / √d) v, the projection, and a residual MLP."""
    visual, images = reduced_towers.visual(arch), reduced_towers.images(arch)
    pool, states = visual.trunk.attn_pool, visual.trunk.forward_features(images)
    query = (pool.latent[0] @ pool.q.weight.T + pool.q.bias).view(2, 16)
    key, value = (states @ pool.kv.weight.T + pool.kv.bias).chunk(2, dim=2)
    heads = []
    for head in range(2):
        part = slice(16 * head, 16 * (head + 1))
        weights = (key[:, :, part] @ query[head] / 4).softmax(1)
        heads.append((weights[:, :, None] * value[:, :, part]).sum(1))
    mixed = pool.proj(torch.cat(heads, dim=1))
    wanted = visual.trunk.fc_norm(mixed + pool.mlp(pool.norm(mixed)))
    torch.testing.assert_close(backbone("tiny", visual).eval()(images), wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pool", ["abs_attn", "rot_attn"])
@pytest.mark.parametrize("proj", ["", "linear"])
def test_an_attention_pool_of_open_clips_timm_models_is_part_of_it(pool: str, proj: str) -> None:
    """No published architecture has one; it ends in a projection of its own."""
    more = {"timm_pool": pool, "timm_proj": proj}
    visual, images = (
        reduced_towers.visual("convnext_base", image_size=224, **more),
        torch.randn(2, 3, 224, 224),
    )
    found = backbone("tiny", visual).eval()(images)
    assert torch.equal(found, visual.head.pool(visual.trunk(images)))
    made = visual.head.proj(found) if proj else found
    assert torch.equal(made, visual(images))
    assert described_backbone(more | {"timm_model_name": "x"}).endswith("itself") == (not proj)


@torch.no_grad()
def test_the_words_for_an_attentional_pool_are_what_it_does() -> None:
    visual, images = reduced_towers.visual("coca_ViT-B-32"), reduced_towers.images("coca_ViT-B-32")
    queries = visual.ln_post(visual.attn_pool(visual.transformer(visual._embeds(images))))
    assert queries.shape == (3, 5, 24)
    torch.testing.assert_close(backbone("tiny", visual)(images), queries[:, 0])


def test_every_architecture_says_what_it_is() -> None:
    archs = [name for name in open_clip.list_models() if not name.startswith("tiny-")]
    said = {arch: described_backbone(open_clip.get_model_config(arch)["vision_cfg"]) for arch in archs}
    assert len(said) >= 144
    own = {arch for arch, told in said.items() if told.endswith("the joint feature itself")}
    assert own == {arch for arch in archs if "siglip" in arch.lower() or arch.startswith("RN")}
    assert "class token" in said["ViT-B-32"]
    assert (
        said["ViT-L-14-CLIPA"] == "mean of the patch tokens, then the last LayerNorm, before the projection"
    )


def test_towers_of_other_kinds_have_none() -> None:
    with pytest.raises(NotApplicable, match="tiny: features before the projection are not known for Linear"):
        backbone("tiny", nn.Linear(2, 2))


# ------------------------------------------------------------------- whole models


@pytest.mark.parametrize("arch", ["ViT-B-16-SigLIP", "EVA02-B-16", "convnext_base", "MobileCLIP-S1"])
def test_a_linear_probe_from_the_command_line(arch: str, run: Run, tmp_path: Path) -> None:
    side, tiny = REDUCED[arch][0], reduced_towers.tiny(arch)
    torch.manual_seed(0)
    model = reduced_towers.shaken(random_model(tiny), by=0.02)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    card = {
        "title": f"Tiny {arch}",
        "family": "clip",
        "config": {"arch": tiny, "quick_gelu": False},
        "preprocess": {"size": side, "resize": "squash", "mean": [0.5] * 3, "std": [0.25] * 3},
        "weights": {"file": "model.pt"},
    }
    (tmp_path / "tiny.yaml").write_text(json.dumps(card))
    how = ("--precision", "fp32", "--results", tmp_path / "results")
    done = run("eval", "--model", tmp_path / "tiny.yaml", "--task", "digits-lp", *how)
    assert done.code == 0, done
    (stored,) = store.read_all(tmp_path / "results")
    assert stored.record.scores["acc1"].value > 0.5  # of ten classes, from features of random weights
    told = described_backbone(open_clip.get_model_config(arch)["vision_cfg"])
    assert stored.record.encoder["backbone"] == told
    shown = run("show", tmp_path / "tiny.yaml")
    assert f"backbone features (probes): {told}" in shown.said
