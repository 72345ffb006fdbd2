"""Heat maps against hand-worked and independently computed ones, their symmetry, and that they leave no trace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import declip_files
import numpy as np
import pytest
import reduced_towers
import small
import timm
import torch
import torchvision
from numpy.typing import NDArray
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import VisionTransformer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from clipbench.cards.model import Preprocess
from clipbench.catalog import Catalog
from clipbench.data.builtin import ArraySplit
from clipbench.data.decode import normalise, pixels, seen
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.runtime import Runtime
from clipbench.errors import NotApplicable
from clipbench.metrics.similarity import similarity
from clipbench.models import families
from clipbench.models.saliency import Attention, GradCam, SaliencyMaps, SaliencyMethod, TokenCosine, of_tower
from clipbench.models.towers.configs import ConvNetConfig
from clipbench.models.towers.image import ConvNet

one_thread = small.one_thread


@pytest.fixture(autouse=True)
def architectures(monkeypatch: pytest.MonkeyPatch) -> None:
    declip_files.know_architectures(monkeypatch)


SQUARE = Preprocess(size=64, mean=(0.5,) * 3, std=(0.5,) * 3)


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def resnet() -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = ModifiedResNet([1, 1, 1, 1], output_dim=16, heads=4, image_size=64, width=8)
    for name, parameter in net.named_parameters():  # open_clip starts the last norm of each block at zero
        if name.endswith("bn3.weight"):
            nn.init.ones_(parameter)
    return net.eval()


def vit(layers: int = 4) -> VisionTransformer:
    torch.manual_seed(0)
    net = VisionTransformer(
        image_size=64, patch_size=16, width=32, layers=layers, heads=4, mlp_ratio=2.0, output_dim=16
    )
    with torch.no_grad():  # so that attention is far from uniform
        for parameter in net.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return net.eval()


def convnet(stages: int = 2) -> nn.Module:
    torch.manual_seed(0)
    tower = ConvNet(ConvNetConfig(kind="convnet", width=8, stages=stages, blocks=1), 3, 64)
    return nn.Sequential(tower, nn.Linear(tower.features, 16, bias=False)).eval()


# ------------------------------------------------------------ what a map is


def test_grad_cam_of_a_two_layer_network_is_that_worked_out_by_hand() -> None:
    # The convolution doubles; A = [[[8, 0], [0, 0]], [[0, 0], [0, 8]]], its means f = (2, 2).
    tower = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    convolution = tower[0]
    assert isinstance(convolution, nn.Conv2d)
    with torch.no_grad():
        convolution.weight.copy_(2 * torch.eye(2)[:, :, None, None])
    image = torch.tensor([[[[4.0, 0], [0, 0]], [[0, 0], [0, 4.0]]]])
    texts = torch.tensor([[1.0, 0], [0, 1.0], [-1.0, 0]])
    maps, scores = GradCam(tower, "0")(image, texts, torch.tensor([0, 0, 0]))
    # s = cos(f, t) = 1/√2; ds/df = (t − s f/|f|) / |f| = (1, −1) / (2 · 2√2); ds/dA_c is a quarter of that, at every
    # pixel, and so is its mean: (1, −1) / (16√2). The map is the positive part of 8 / (16√2) at the first pixel and
    # minus that at the last.
    half = 8 / (16 * 2**0.5)
    expected = [[[half, 0], [0, 0]], [[0, 0], [0, half]], [[0, 0], [0, half]]]
    torch.testing.assert_close(maps, torch.tensor(expected))
    torch.testing.assert_close(scores, torch.tensor([1.0, 1.0, -1.0]) / 2**0.5)


def reference_grad_cam(net: nn.Module, stage: str, image: Tensor, text: Tensor) -> Tensor:
    """One pair at a time, with the whole graph and the formula of the paper."""
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    hook = net.get_submodule(stage).register_forward_hook(keep)
    torch.autograd.backward(F.cosine_similarity(net(image[None]), text[None]))
    hook.remove()
    gradient = kept[0].grad
    assert gradient is not None
    return F.relu((gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1))[0].detach()


@pytest.mark.parametrize(
    ("make", "stage"), [(resnet, "layer4"), (convnet, "0.blocks")], ids=["clip-resnet", "convnet"]
)
def test_grad_cam_of_many_pairs_is_that_of_each(make: Callable[[], nn.Module], stage: str) -> None:
    net = make()
    images, texts, pairs = torch.randn(3, 3, 64, 64), unit(5, 16), torch.tensor([0, 0, 1, 2, 2])
    maps = of_tower(net, SQUARE, "small")
    assert isinstance(maps, GradCam)
    assert maps.stage == stage
    found, scores = maps(images, texts, pairs)
    assert (found.amax((1, 2)) > 0).sum() >= 2
    for p, b in enumerate(pairs.tolist()):
        expected = reference_grad_cam(net, stage, images[b], texts[p])
        torch.testing.assert_close(found[p], expected, rtol=1e-4, atol=1e-7)
    with torch.no_grad():
        torch.testing.assert_close(scores, F.cosine_similarity(net(images)[pairs], texts), rtol=0, atol=1e-5)


def reference_attention(net: VisionTransformer, block: int, image: Tensor, text: Tensor) -> Tensor:
    """The whole attention of a block written out, every weight of it differentiated."""
    x = net._embeds(image[None])
    for number, layer in enumerate(net.transformer.resblocks):
        if number != block:
            x = layer(x)
            continue
        attention = layer.attn
        normed = layer.ln_1(x)
        projected = normed @ attention.in_proj_weight.T + attention.in_proj_bias
        q, k, v = (
            part.reshape(1, -1, attention.num_heads, attention.head_dim).transpose(1, 2)
            for part in projected.chunk(3, dim=2)
        )
        weights = (q @ k.transpose(2, 3) / attention.head_dim**0.5).softmax(3)
        weights.retain_grad()
        mixed = (weights @ v).transpose(1, 2).reshape(x.shape)
        x = x + attention.out_proj(mixed)
        x = x + layer.mlp(layer.ln_2(x))
    feature = net._pool(x)[0] @ net.proj
    torch.autograd.backward(F.cosine_similarity(feature, text[None]))
    assert weights.grad is not None
    product = weights[0, :, 0, 1:] * weights.grad[0, :, 0, 1:].clamp_min(0)
    return torch.as_tensor(product).mean(0).reshape(4, 4).detach()


@pytest.mark.parametrize(("block", "place"), [(None, 2), (0, 0), (3, 3)])
def test_attention_times_gradient_is_albefs(block: int | None, place: int) -> None:
    net = vit()
    images, texts, pairs = torch.randn(2, 3, 64, 64), unit(3, 16), torch.tensor([0, 1, 1])
    maps = of_tower(net, SQUARE, "small", block)
    assert (
        maps.described == f"attention × gradient in transformer.resblocks.{place}"
    )  # two thirds: 4 · 8 // 12
    found, scores = maps(images, texts, pairs)
    for p, b in enumerate(pairs.tolist()):
        expected = reference_attention(net, place, images[b], texts[p])
        assert expected.max() > 0
        torch.testing.assert_close(found[p], expected, rtol=1e-4, atol=1e-8)
    with torch.no_grad():
        torch.testing.assert_close(scores, F.cosine_similarity(net(images)[pairs], texts), rtol=0, atol=1e-5)


def test_albefs_block_of_twelve() -> None:
    assert of_tower(vit(12), SQUARE, "small").described.endswith("resblocks.8")


def torchvisions_vit() -> nn.Module:
    net = torchvision.models.VisionTransformer(64, 16, 3, 2, 32, 64, num_classes=16)
    nn.init.normal_(net.heads[0].weight)
    made: nn.Module = net
    return made


def timms_vit(**more: Any) -> nn.Module:
    made: nn.Module = timm.models.VisionTransformer(
        img_size=64, patch_size=16, embed_dim=32, depth=3, num_heads=2, num_classes=0, **more
    )
    return nn.Sequential(made, nn.Linear(32, 16))


def timms_pit() -> nn.Module:
    """Its patches are pooled between its blocks."""
    made: nn.Module = timm.create_model(
        "pit_ti_224", img_size=64, base_dims=(8, 8, 8), depth=(1, 1, 1), heads=(2, 4, 8), num_classes=16
    )
    return made


def distilled() -> nn.Module:
    made: nn.Module = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=64, embed_dim=32, depth=2, num_heads=2, num_classes=16
    )
    return made


def open_clips(**more: Any) -> Any:
    return VisionTransformer(64, 16, 32, 2, 4, 2.0, **{"output_dim": 16} | more)


class Squeezed(nn.Module):
    """open_clip's contrastive pool keeps its one query as an axis."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor) -> Tensor:
        feature: Tensor = self.tower(images)
        return feature.flatten(1)


@pytest.mark.parametrize(
    ("make", "side"),
    [
        (torchvisions_vit, 4),
        (timms_vit, 4),
        (lambda: timms_vit(reg_tokens=4, qk_norm=True, scale_attn_norm=True), 4),
        (timms_pit, 2),
    ],
    ids=["torchvision", "timm", "timm-registers", "timm-pit"],
)
def test_attention_of_other_vits_has_the_score_of_their_features(
    make: Callable[[], nn.Module], side: int
) -> None:
    torch.manual_seed(0)
    net = make().eval()
    images, texts, pairs = torch.randn(2, 3, 64, 64), unit(3, 16), torch.tensor([0, 1, 1])
    maps = of_tower(net, SQUARE, "small")
    assert isinstance(maps, Attention)
    found, scores = maps(images, texts, pairs)
    assert found.shape == (3, side, side)
    assert found.amax() > 0
    with torch.no_grad():
        torch.testing.assert_close(scores, F.cosine_similarity(net(images)[pairs], texts), rtol=0, atol=1e-5)


# ---------------------------------------------------- towers of every kind


def score_of(tower: nn.Module, feature: Any, text: Tensor) -> Tensor:
    """The cosine with `text` of one image's joint feature."""
    pooled = feature[0] if isinstance(feature, tuple) else feature
    return F.cosine_similarity(pooled, text[None])


def backward(score: Tensor, state: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(score, state)
    return gradient


def timms_own(tower: Any, image: Tensor, text: Tensor, block: int) -> Tensor:
    """What timm's own slow path shows of a block, every weight of all queries differentiated."""
    layer, shown = tower.trunk.blocks[block].attn, []
    layer.fused_attn = False
    hook = layer.attn_drop.register_forward_hook(lambda module, inputs, output: shown.append(output))
    try:
        score = score_of(tower, tower(image[None]), text)
    finally:
        hook.remove()
        layer.fused_attn = True
    gradient = backward(score, shown[0])
    product = shown[0][0, :, 0, 1:] * gradient[0, :, 0, 1:].clamp_min(0)
    return torch.as_tensor(product).mean(0).detach()


def latent_pool(tower: Any, image: Tensor, text: Tensor) -> Tensor:
    """timm's attention pool with its weights as a leaf, head by head."""
    trunk = tower.trunk
    pool, tokens = trunk.attn_pool, trunk.forward_features(image[None])[0]
    query = pool.q(pool.latent[0, 0]).view(2, 16)
    keys, values = pool.kv(tokens).chunk(2, dim=1)
    logits = torch.stack([keys.view(-1, 2, 16)[:, h] @ query[h] / 4 for h in range(2)])
    weights = logits.softmax(1).detach().requires_grad_()
    mixed = torch.cat([weights[h] @ values.view(-1, 2, 16)[:, h] for h in range(2)])
    mixed = pool.proj(mixed)
    pooled = trunk.fc_norm(mixed + pool.mlp(pool.norm(mixed)))
    gradient = backward(score_of(tower, tower.head(trunk.head(pooled[None])), text), weights)
    return (weights * gradient.clamp_min(0)).mean(0)[trunk.num_prefix_tokens :].detach()


def open_clips_pool(tower: Any, image: Tensor, text: Tensor, pool: Any, before: nn.Module) -> Tensor:
    """open_clip's attentional pool: the weights that torch's layer shows, and values by hand."""
    tokens = pool.ln_k(before(tower.transformer(tower._embeds(image[None]))))
    query, attention = pool.ln_q(pool.query)[None], pool.attn
    _, shown = attention(query, tokens, tokens, need_weights=True, average_attn_weights=False)
    weights = shown[0, :, 0].detach().requires_grad_()
    matrices = (
        attention.v_proj_weight if attention.in_proj_weight is None else attention.in_proj_weight.chunk(3)[2]
    )
    values = (tokens[0] @ matrices.T + attention.in_proj_bias.chunk(3)[2]).unflatten(1, (2, -1))
    mixed = torch.cat([weights[h] @ values[:, h] for h in range(2)])
    pooled = attention.out_proj(mixed)[None]
    feature = (tower.ln_post(pooled) if pool is tower.attn_pool else pooled) @ tower.proj
    gradient = backward(score_of(tower, feature, text), weights)
    return torch.as_tensor(weights * gradient.clamp_min(0)).mean(0)[1:].detach()


def averaged(tower: Any, text: Tensor, states: Tensor, after: Callable[[Tensor], Tensor]) -> Tensor:
    """Grad-CAM of states [S, D] that are averaged, in loops."""
    leaf = states.detach().requires_grad_()
    gradient, states = backward(score_of(tower, after(leaf.mean(0)[None]), text), leaf), states.detach()
    found = [
        sum(float(gradient[:, c].mean()) * float(states[place, c]) for c in range(states.shape[1]))
        for place in range(len(states))
    ]
    return torch.tensor(found).clamp_min(0)


def reference(arch: str, tower: Any, image: Tensor, text: Tensor) -> Tensor:
    """One map by an independent way, [h × w]."""
    if arch == "ViT-L-14-CLIPA":
        states = tower.transformer(tower._embeds(image[None]))[0, 1:]
        return averaged(tower, text, states, lambda pooled: tower.ln_post(pooled) @ tower.proj)
    if arch == "coca_ViT-B-32":
        return open_clips_pool(tower, image, text, tower.attn_pool, nn.Identity())
    trunk = tower.trunk
    if trunk.__class__.__name__ in ("VisionTransformer", "Eva", "VisionTransformerRelPos"):
        if trunk.global_pool == "map":
            return latent_pool(tower, image, text)
        if trunk.global_pool == "token":
            return timms_own(tower, image, text, len(trunk.blocks) * 8 // 12)
        states = trunk.forward_features(image[None])[0, trunk.num_prefix_tokens :]
        return averaged(tower, text, states, lambda pooled: tower.head(trunk.fc_norm(pooled)))
    maps = trunk.forward_features(image[None])
    if arch.startswith("swin"):
        return averaged(tower, text, maps[0].flatten(0, 1), tower.head)
    states = maps[0].flatten(1).T
    if arch.startswith("convnext"):
        norm = trunk.head.norm
        return averaged(
            tower, text, states, lambda pooled: tower.head(norm(pooled[:, :, None, None]).flatten(1))
        )
    return averaged(tower, text, states, lambda pooled: tower.head(trunk.head.fc(pooled)))


ALREADY = ("RN50", "ViT-B-32", "ViT-M-16-alt", "coca_base")  # open_clip's plain towers, see above


@pytest.mark.parametrize("arch", [arch for arch in reduced_towers.REDUCED if arch not in ALREADY])
def test_maps_of_every_kind_of_open_clips_towers(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reduced_towers.know(monkeypatch)
    tower, batch = reduced_towers.visual(arch), reduced_towers.images(arch, 2)
    with torch.no_grad():
        features = tower(batch)
        features = features[0] if isinstance(features, tuple) else features
    texts, pairs = unit(3, features.shape[1]), torch.tensor([0, 1, 1])
    preprocess = SQUARE.model_copy(update={"size": batch.shape[3]})
    found, scores = of_tower(tower, preprocess, "small")(batch, texts, pairs)
    torch.testing.assert_close(scores, F.cosine_similarity(features[pairs], texts), rtol=1e-4, atol=1e-5)
    for p, b in enumerate(pairs.tolist()):
        wanted = reference(arch, tower, batch[b], texts[p]).reshape(found.shape[1:])
        assert found.shape[1] == found.shape[2] > 1
        torch.testing.assert_close(found[p], wanted, rtol=1e-3, atol=1e-4 * float(wanted.max()))
    assert found.amax() > 0


def test_the_mean_of_normed_tokens() -> None:
    torch.manual_seed(0)
    tower = reduced_towers.shaken(open_clips(pool_type="avg"))
    batch, texts = torch.randn(1, 3, 64, 64), unit(1, 16)
    maps = of_tower(tower, SQUARE, "small")
    assert maps.described == "Grad-CAM on the tokens of ln_post"
    found, _ = maps(batch, texts, torch.tensor([0]))
    states = tower.ln_post(tower.transformer(tower._embeds(batch)))[0, 1:]
    wanted = averaged(tower, texts[0], states, lambda pooled: pooled @ tower.proj)
    torch.testing.assert_close(found[0], wanted.reshape(4, 4), rtol=1e-3, atol=1e-7)


def test_the_map_of_a_contrastive_pool() -> None:
    torch.manual_seed(0)
    tower = reduced_towers.shaken(open_clips(attentional_pool="parallel", attn_pooler_heads=2, output_dim=32))
    batch, texts, pairs = torch.randn(2, 3, 64, 64), unit(2, 32), torch.tensor([1, 0])
    found, _ = of_tower(Squeezed(tower), SQUARE, "small")(batch, texts, pairs)
    for p, b in enumerate(pairs.tolist()):
        wanted = open_clips_pool(tower, batch[b], texts[p], tower.attn_pool_contrastive, tower.ln_post)
        torch.testing.assert_close(found[p], wanted.reshape(4, 4), rtol=1e-3, atol=1e-8)
    assert found.amax() > 0


@pytest.mark.parametrize("arch", ["small-vit", "small-rn"])
def test_filips_map_is_each_patchs_term_of_its_score(arch: str, tmp_path: Path) -> None:
    shapes = declip_files.official("filip", declip_files.ARCHS[arch], declip_files.TEXT, 32)
    path = declip_files.save(declip_files.random_state(shapes), tmp_path / "filip.pth.tar")
    adapter = families.load(declip_files.model_of(path, "filip", arch))
    maps = adapter.saliency_method()
    assert isinstance(maps, TokenCosine)
    assert maps.space == "tokens"
    images, pairs = torch.randn(2, 3, 224, 224), torch.tensor([1, 0, 1])
    ids, _ = adapter.tokenize(["a cat", "a dog on a chair", "snow"])
    with torch.no_grad():
        texts = F.normalize(adapter.text_tower("tokens")(ids).view(3, -1, 256), dim=2)
        patches = F.normalize(adapter.image_tower("tokens")(images).view(2, -1, 256), dim=2)
        found, scores = maps(images, texts.flatten(1), pairs)
    for p, b in enumerate(pairs.tolist()):
        best = (patches[b] @ texts[p].T).amax(1)
        torch.testing.assert_close(found[p], best.clamp_min(0).view(7, 7), rtol=0, atol=1e-5)
        assert scores[p].item() == pytest.approx(best.mean().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("variant", "arch", "described"),
    [
        ("declip", "small-rn", "Grad-CAM on layer4"),
        ("slip", "small-vit", "attention × gradient in transformer.resblocks.1"),
        ("defilip", "small-vit", "best cosine of each patch with the text's tokens"),
    ],
)
def test_families_name_what_they_do(variant: str, arch: str, described: str, tmp_path: Path) -> None:
    shapes = declip_files.official(variant, declip_files.ARCHS[arch], declip_files.TEXT, 32)
    path = declip_files.save(declip_files.random_state(shapes), tmp_path / "model.pth.tar")
    adapter = families.load(declip_files.model_of(path, variant, arch))
    assert adapter.saliency_method().described == described


def test_a_stream_of_filips_maps_has_its_scores(tmp_path: Path) -> None:
    shapes = declip_files.official("filip", declip_files.VIT, declip_files.TEXT, 32)
    path = declip_files.save(declip_files.random_state(shapes), tmp_path / "filip.pth.tar")
    model = declip_files.model_of(path, "filip", "small-vit")
    encoder = ModelEncoder(model, Runtime("cpu", "fp32"), progress=False)
    grey = np.random.default_rng(0).integers(0, 256, (3, 40, 60), dtype=np.uint8)
    split = ArraySplit("noise", "test", ["0", "1", "2"], grey, np.zeros(3, dtype=np.int64), ("a", "b"))
    texts, image = ["a cat", "snow", "a cat", "a dog on a chair"], np.array([0, 0, 1, 2])
    heats = list(encoder.saliency.heat(split, texts, image, whole=False))
    scores = np.concatenate([h.scores for h in heats])
    tokens = np.asarray(encoder.texts(texts, "tokens")).reshape(4, -1, 256)
    every = similarity(np.asarray(encoder.images(split, "tokens")), tokens)
    np.testing.assert_allclose(scores, every[image, np.arange(4)], atol=1e-5)
    assert [h.texts.tolist() for h in heats] == [[0, 1], [2], [3]]
    assert heats[0].large(1).shape == (40, 60)
    assert heats[0].seen == (12, 2, 48, 38)  # 256 px, of which the central 224


# ----------------------------------------------------------------- symmetry


def mirrored(net: nn.Module) -> nn.Module:
    """`net` with every convolution symmetric from left to right."""
    with torch.no_grad():
        for part in net.modules():
            if isinstance(part, nn.Conv2d):
                part.weight.copy_((part.weight + part.weight.flip(3)) / 2)
    return net


def mirrored_vit() -> nn.Module:
    net = vit()
    mirrored(net)
    with torch.no_grad():
        grid = net.positional_embedding[1:].view(4, 4, -1)
        net.positional_embedding[1:] = ((grid + grid.flip(1)) / 2).view(16, -1)
    made: nn.Module = net
    return made


@pytest.mark.parametrize("make", [lambda: mirrored(convnet(stages=1)), mirrored_vit], ids=["convnet", "vit"])
def test_mirroring_the_image_mirrors_the_map(make: Callable[[], nn.Module]) -> None:
    """For networks that are symmetric themselves: no stride, whose grid would not be, or one of whole patches."""
    maps = of_tower(make(), SQUARE, "small")
    images, texts, pairs = torch.randn(2, 3, 64, 64), unit(2, 16), torch.tensor([0, 1])
    found, scores = maps(images, texts, pairs)
    other, same = maps(images.flip(3), texts, pairs)
    assert not torch.allclose(found, found.flip(2), rtol=1e-2)
    torch.testing.assert_close(other, found.flip(2), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(same, scores, rtol=1e-4, atol=1e-6)
    large, mirror = (heat(m, (100, 75), (0, 0, 100, 75)).large(0) for m in (found[:1], other[:1]))
    np.testing.assert_allclose(mirror, large[:, ::-1], rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------ no trace, no map


@pytest.mark.parametrize("make", [resnet, vit, convnet])
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(make: Callable[[], nn.Module], fails: bool) -> None:
    net = make()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = net(images)
    maps = of_tower(net, SQUARE, "small")
    if fails:
        with pytest.raises(RuntimeError):
            maps(images, unit(1, 15), torch.tensor([0]))  # a text of another width
    else:
        maps(images, unit(1, 16), torch.tensor([0]))
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in net.parameters())
    for part in net.modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks
    with torch.no_grad():
        assert torch.equal(net(images), before)


def test_towers_of_libraries_end_in_a_map_or_have_none() -> None:
    towers: dict[str, nn.Module] = {
        "layer4": torchvision.models.resnet18(weights=None),
        "features": torchvision.models.mobilenet_v3_small(weights=None),
        "bn2": timm.create_model("tf_efficientnet_lite0", num_classes=0),
    }
    for stage, tower in towers.items():
        maps = of_tower(tower.eval(), SQUARE, "small")
        assert isinstance(maps, GradCam)
        assert maps.stage == stage
    pooler: dict[str, Any] = {"attn_pooler_heads": 4, "attn_pooler_queries": 3}
    for tower, reason in (
        (timms_vit(global_pool="max"), "pools tokens by 'max'"),
        (timms_vit(global_pool="prr"), "or is not known"),
        (distilled(), "averages its class token with a distillation token"),
        (timms_vit(attn_layer="diff"), "blocks have no attention that is known"),
        (open_clips(attentional_pool="cascade", **pooler), "looks at what another pool gives"),
        (open_clips(attentional_pool=True, pool_type="avg", **pooler), "several queries, which are averaged"),
        (open_clips(pool_type="none"), "pools tokens by 'none'"),
    ):
        with pytest.raises(NotApplicable, match=f"small: no heat maps, since its .*{reason}"):
            of_tower(tower.eval(), SQUARE, "small")
    with pytest.raises(NotApplicable, match=r"small: no map of a block, .* it pools by attention"):
        of_tower(open_clips(attentional_pool=True, **pooler).eval(), SQUARE, "small", 1)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))
    with pytest.raises(NotApplicable, match="no heat maps"):
        of_tower(flat, SQUARE, "small")
    with pytest.raises(NotApplicable, match=r"small: no block 4 \(the image tower has 4, from 0\)"):
        of_tower(vit(), SQUARE, "small", 4)


def test_image_towers_alone_have_no_maps() -> None:
    adapter = families.load(Catalog().model("efficientnet-lite0"))
    with pytest.raises(NotApplicable, match="images only, no text tower"):
        adapter.saliency_method()


# --------------------------------------------------------------- up-sampling


def heat(maps: Tensor, size: tuple[int, int], part: tuple[int, int, int, int]) -> SaliencyMaps:
    return SaliencyMaps(
        0, np.arange(len(maps)), maps, np.zeros(len(maps), dtype=np.float32), size, part, "by hand"
    )


@pytest.mark.parametrize("tag", range(1, 9))
def test_a_map_is_of_the_image_after_the_turn(tag: int) -> None:
    """Tags 5 to 8 swap width and height (EXIF 2.3, orientation)."""
    wide = (20, 10) if tag < 5 else (10, 20)
    one = replace(heat(torch.ones(1, 4, 4), (20, 10), (0, 0, *wide)), turned=tag)
    assert one.large(0).shape == wide[::-1]
    assert one.large(0) == pytest.approx(1)


class Brightness(SaliencyMethod):
    """The image's own brightness in 8 × 8 cells, as a map."""

    tower = nn.Identity()
    described = "brightness"

    def __call__(self, images: Tensor, texts: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
        cells = F.adaptive_avg_pool2d(images.mean(1, keepdim=True), 8)[:, 0]
        return (cells + 1)[pairs], torch.zeros(len(pairs))


def lit(size: tuple[int, int], spot: tuple[int, int]) -> NDArray[np.uint8]:
    """A dark picture with a bright square of 20 px around `spot` (x, y)."""
    picture = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    picture[spot[1] - 10 : spot[1] + 10, spot[0] - 10 : spot[0] + 10] = 255
    return picture


@pytest.mark.parametrize("resize", ["squash", "shortest"])
@pytest.mark.parametrize("size", [(160, 120), (120, 200), (64, 64), (97, 131)])
def test_maps_lie_on_the_image_where_the_model_saw_it(size: tuple[int, int], resize: str) -> None:
    preprocess = SQUARE.model_copy(update={"resize": resize, "size": 73, "crop": 64})
    middle = (size[0] // 2, size[1] // 2)
    for spot in ((middle[0] - 12, middle[1] + 9), (middle[0] + 15, middle[1] - 11)):
        seen_pixels = pixels(Image.fromarray(lit(size, spot)), preprocess)
        image = normalise(torch.from_numpy(seen_pixels[None].copy()), preprocess)
        maps, _ = Brightness()(image, torch.zeros(1, 1), torch.tensor([0]))
        found = heat(maps, size, seen(*size, preprocess)).large(0)
        assert found.shape == size[::-1]
        y, x = np.unravel_index(found.argmax(), found.shape)
        assert abs(x + 0.5 - spot[0]) < 10, (spot, x, y)
        assert abs(y + 0.5 - spot[1]) < 10, (spot, x, y)


def test_outside_the_crop_a_map_is_zero_and_never_points() -> None:
    part = seen(200, 100, SQUARE)
    assert part == (50, 0, 150, 100)
    large = heat(1 + 0.1 * torch.rand(1, 7, 7), (200, 100), part).large(0)
    assert not large[:, :50].any()
    assert not large[:, 150:].any()
    assert (large[:, 50:150] > 0).all()


def test_a_crop_larger_than_the_image_covers_all_of_it() -> None:
    preprocess = SQUARE.model_copy(update={"size": 32, "crop": 64})
    part = seen(20, 10, preprocess)
    assert part == (0, -5, 20, 15)
    maps = torch.zeros(1, 4, 4)
    maps[0, 1:3] = 1.0  # the two middle rows are the image
    large = heat(maps, (20, 10), part).large(0)
    assert large.shape == (10, 20)
    assert large.min() > 0.3


def test_up_sampling_is_bicubic_without_what_overshoots_below_zero() -> None:
    maps = torch.tensor([[[0.0, 4.0], [0.0, 0.0]]])
    large = heat(maps, (12, 8), (0, 0, 12, 8)).large(0)
    expected = F.interpolate(maps[None], size=(8, 12), mode="bicubic")[0, 0]
    assert expected.min() < 0
    np.testing.assert_allclose(large, expected.clamp_min(0), atol=1e-6)
    assert large.min() == 0
