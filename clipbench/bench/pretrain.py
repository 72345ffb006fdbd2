"""`clipbench bench pretrain`: a step of CLIP beside open_clip_train's, and of DeCLIP beside CLIP's, in one run."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group

from clipbench.bench import view as views
from clipbench.bench.machine import all_threads
from clipbench.cards.recipe import Recipe
from clipbench.cards.task import TaskCard
from clipbench.data.builtin import ArraySplit
from clipbench.data.split import Captions

if TYPE_CHECKING:
    from clipbench.models.towers.dual import DualTowers

_SIDE, _PATCH, _WIDTH, _HEADS, _IMAGE_LAYERS, _TEXT_LAYERS = 64, 8, 128, 4, 6, 3
#: captions are some of these
_WORDS = """
    a the man woman dog cat child horse boat street table red small large old sitting standing riding holding
    with on near under in front of behind and two three people water grass building window plate food train
"""


def measure(batch_size: int, *, steps: int = 3, rounds: int = 3) -> dict[str, Any]:
    """Time training steps of the same small CLIP (a ViT and CLIP's text transformer) in fp32 on a CPU.

    Ours are those of `clipbench pretrain` as it runs, data and log included. The peer's are `train_one_epoch` of
    open_clip_train on open_clip's own model of that architecture, with its loss, its AdamW and its scheduler; its
    batches are made beforehand, its texts padded as its tokenizer pads them. All take turns; of each the fastest step
    counts, since other work on the machine only slows down.

    Ratios:

        clip_over_open_clip  our step of CLIP / the peer's
        declip_over_clip     our step of DeCLIP / our step of CLIP and one more pass of the image tower with its
                             gradient: DeCLIP sees two views

    Args:
        batch_size: pairs a step.
        steps: of each, a round; one more comes before them and does not count.
    """
    split, card = random_pairs(8 * batch_size, side=_SIDE, words=(8, 15))
    found: dict[str, list[float]] = {"clip": [], "declip": [], "open_clip": [], "image_pass": []}
    waits: dict[str, list[float]] = {"clip": [], "declip": []}
    with all_threads() as used, tempfile.TemporaryDirectory(prefix="clipbench-") as folder:
        peer, parameters = _peer(split, batch_size, steps)
        image_pass = _image_pass(batch_size)
        for number in range(rounds):
            for objective in ("clip", "declip"):
                recipe = _recipe(objective, batch_size, 1 + steps + 1)
                out = Path(folder) / f"{objective}-{number}"
                seconds, shares = steps_of(recipe, split, card, out, device="cpu")
                found[objective] += seconds[1:]
                waits[objective] += shares[1:]
                if objective == "clip":
                    found["open_clip"] += peer()
                else:
                    found["image_pass"] += image_pass(steps)
    best = {name: min(seconds) for name, seconds in found.items()}
    return {
        "batch_size": batch_size,
        "parameters": sum(parameter.numel() for parameter in _towers().parameters()),
        "peer_parameters": parameters,
        "threads": used,
        "steps": steps * rounds,
        "seconds": {name: round(value, 4) for name, value in best.items()},
        "data_wait": {name: round(float(np.median(shares)), 4) for name, shares in waits.items()},
        "ratios": {
            "clip_over_open_clip": round(best["clip"] / best["open_clip"], 4),
            "declip_over_clip": round(best["declip"] / (best["clip"] + best["image_pass"]), 4),
        },
    }


def view(found: dict[str, Any]) -> Group:
    seconds, ratios, waits = found["seconds"], found["ratios"], found["data_wait"]
    head = (
        f"{found['batch_size']} pairs a step, {found['parameters'] / 1e6:.1f} M parameters (open_clip: "
        f"{found['peer_parameters'] / 1e6:.1f} M), fp32, {found['threads']} threads, best of {found['steps']} steps"
    )
    rows = (
        ("open_clip_train, CLIP", "open_clip", ""),
        ("clipbench, CLIP", "clip", f"{ratios['clip_over_open_clip']:.3f} × open_clip_train"),
        ("one more pass of the image tower", "image_pass", ""),
        ("clipbench, DeCLIP", "declip", f"{ratios['declip_over_clip']:.3f} × CLIP and that pass"),
    )
    cells = (
        [what, f"{seconds[name]:.3f}", ratio, f"{100 * waits[name]:.1f} %" if name in waits else ""]
        for what, name, ratio in rows
    )
    return Group(head, "", views.table(("a step", "s", "ratio", "waiting for data"), cells))


# ------------------------------------------------------------------------ ours


_OBJECTIVES: dict[str, Any] = {"clip": {"kind": "clip"}, "declip": {"kind": "declip", "queue": 4096}}


def _recipe(objective: str, batch_size: int, steps: int) -> Recipe:
    sizes = {"width": _WIDTH, "heads": _HEADS}
    model = {
        "config": {
            "image": {"kind": "clip-vit", "patch": _PATCH, "layers": _IMAGE_LAYERS, **sizes},
            "text": {"kind": "clip-text", "layers": _TEXT_LAYERS, **sizes},
            "embed_dim": _WIDTH,
            "projection": "linear",
        },
        "preprocess": {"size": _SIDE, "resize": "none", "mean": [0.5] * 3, "std": [0.25] * 3},
    }
    return random_recipe(model, _OBJECTIVES[objective], batch_size, steps, weight_decay=0.2)


def random_recipe(
    model: dict[str, Any],
    objective: dict[str, Any],
    batch_size: int,
    steps: int,
    weight_decay: float,
    **more: Any,
) -> Recipe:
    """A recipe on `random_pairs`: crops alone, but for DeCLIP, which sees two views as MoCo v2 makes them."""
    augment: dict[str, Any] = {"kind": "moco-v2"}
    if objective["kind"] != "declip":
        augment |= {"scale": [0.5, 1.0], "jitter": 0, "grayscale": 0, "blur": 0}
    return Recipe.model_validate(
        {
            "title": "bench",
            "command": "clipbench bench pretrain",
            "cost": "seconds",
            "data": [{"dataset": "bench", "texts": ["captions"], "augment": augment}],
            "model": model,
            "objective": objective,
            "optim": {"name": "adamw", "lr": 5e-4, "weight_decay": weight_decay},
            "schedule": {"steps": steps, "warmup": 1, "batch_size": batch_size},
        }
        | more
    )


def steps_of(
    recipe: Recipe, split: ArraySplit, card: TaskCard, out: Path, *, device: str
) -> tuple[list[float], list[float]]:
    """Seconds of each step of `recipe` but the last, which is left out with the writing of a model that follows it,
    and the shares of them that waited for data."""
    from clipbench.pretrain.loop import pretrain

    with contextlib.redirect_stderr(io.StringIO()):  # without what a finished run says
        pretrain(
            recipe,
            "bench",
            out,
            data=[(split, card)],
            device=device,
            progress=False,
            workers=0,
            stop_after=recipe.schedule.steps - 1,
        )
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    batch_size = recipe.schedule.batch_size
    return [batch_size / line["images_per_s"] for line in lines], [line["data_wait"] for line in lines]


def _towers() -> DualTowers:
    from clipbench.models.towers.configs import parse_config
    from clipbench.models.towers.dual import DualTowers

    recipe = _recipe("clip", 2, 1)
    return DualTowers(parse_config(recipe.model.config, "bench"), recipe.model.preprocess)


def _image_pass(batch_size: int) -> Callable[[int], list[float]]:
    """Seconds of passes of the image tower and its projection, forward and backward."""
    import torch

    towers = _towers()
    images = torch.randn(batch_size, 3, _SIDE, _SIDE)

    def run(steps: int) -> list[float]:
        seconds = []
        for _ in range(steps + 1):
            towers.zero_grad()
            start = time.perf_counter()
            towers.image_projection(towers.image(images)).square().mean().backward()
            seconds.append(time.perf_counter() - start)
        return seconds[1:]

    return run


# ------------------------------------------------------------------------ peer


def _peer(split: ArraySplit, batch_size: int, steps: int) -> tuple[Callable[[], list[float]], int]:
    """A round of open_clip_train's steps, in seconds each but the first; and how many parameters its model has."""
    import open_clip
    import torch
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    model = open_clip.CLIP(
        embed_dim=_WIDTH,
        vision_cfg={
            "image_size": _SIDE,
            "patch_size": _PATCH,
            "width": _WIDTH,
            "layers": _IMAGE_LAYERS,
            "head_width": _WIDTH // _HEADS,
        },
        text_cfg={"width": _WIDTH, "layers": _TEXT_LAYERS, "heads": _HEADS},
        quick_gelu=True,
        output_dict=True,
    )
    # as open_clip_train's main does
    bare = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": bare, "weight_decay": 0.0}, {"params": matrices, "weight_decay": 0.2}]
    optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
    arguments = SimpleNamespace(
        device="cpu", precision="fp32", batch_size=batch_size, accum_freq=1, log_every_n_steps=1,
        distill=False, skip_scheduler=False, grad_clip_norm=None,
        world_size=1, rank=0, local_rank=0, distributed=False, horovod=False, wandb=False,
    )  # fmt: skip
    assert split.captions is not None
    tokens = open_clip.SimpleTokenizer()(list(split.captions.texts))
    loader = _Batches(tokens, batch_size, steps + 1)
    data = SimpleNamespace(set_epoch=lambda epoch: None, dataloader=loader)

    def run() -> list[float]:
        loader.seconds = []
        scheduler = cosine_lr(optimizer, 5e-4, 1, steps + 1)
        logging.disable(logging.INFO)
        try:
            train_one_epoch(
                model, {"train": data}, open_clip.ClipLoss(), 0, optimizer, None, scheduler, None, arguments
            )
        finally:
            logging.disable(logging.NOTSET)
        return loader.seconds[1:]

    return run, sum(parameter.numel() for parameter in model.parameters())


class _Batches:
    """A loader of batches made beforehand, which notes how long each was worked on."""

    def __init__(self, tokens: Any, batch_size: int, count: int) -> None:
        import torch

        self.num_batches = count
        self.num_samples = count * batch_size
        self.seconds: list[float] = []
        parts = torch.split(tokens, batch_size)
        self._made = [(torch.randn(batch_size, 3, _SIDE, _SIDE), parts[i % len(parts)]) for i in range(count)]

    def __iter__(self) -> Iterator[Any]:
        for batch in self._made:
            start = time.perf_counter()
            yield batch
            self.seconds.append(time.perf_counter() - start)


# ------------------------------------------------------------------------ data


def random_pairs(count: int, *, side: int, words: tuple[int, int]) -> tuple[ArraySplit, TaskCard]:
    """Random pictures of `side` px in memory, each with a caption of its own of that many words (fewest, most)."""
    rng = np.random.default_rng(0)
    fewest, most = words
    texts = [" ".join(rng.choice(_WORDS.split(), rng.integers(fewest, most + 1))) for _ in range(count)]
    split = ArraySplit(
        "bench",
        "train",
        [str(number) for number in range(count)],
        rng.integers(0, 256, (count, side, side), dtype=np.uint8),
        np.zeros(count, dtype=np.int64),
        (),
        Captions(tuple(texts), np.arange(count)),
    )
    card = TaskCard.model_validate(
        {
            "title": "Random pairs",
            "source": {"local": True},
            "splits": {"train": {"name": "train"}},
            "kind": "captions",
            "protocols": {"ret": {}},
        }
    )
    return split, card
