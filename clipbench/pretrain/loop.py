"""The training loop. `pretrain` reads top to bottom; everything that decides a number is in the recipe."""

from __future__ import annotations

import copy
import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from clipbench.cards import (
    AdamW,
    ModelCard,
    Recipe,
    Schedule,
    Sgd,
    Target,
    TaskCard,
    Weights,
    fingerprint,
    finite,
)
from clipbench.data import Split
from clipbench.data.decode import cores
from clipbench.data.lazy import LazySplit
from clipbench.errors import CardError, ClipbenchError
from clipbench.models import Adapter, dual
from clipbench.pretrain import curves, learners
from clipbench.pretrain.folder import Checkpoint, RunFolder, number
from clipbench.pretrain.pairs import DrawnPairs, Source
from clipbench.pretrain.towers import DualTowers

_AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Score(Protocol):
    """A score, of which the loop reads the value."""

    @property
    def value(self) -> float: ...


class Evaluated(Protocol):
    """The record of one model on one task, of which the loop reads names and scores."""

    @property
    def task(self) -> str: ...

    @property
    def scores(self) -> Mapping[str, Score]: ...


#: measures an adapter on tasks, by id: the protocols that measure every other model
Evaluator = Callable[[Adapter, Sequence[str]], Sequence[Evaluated]]


def pretrain(
    recipe: Recipe,
    recipe_id: str,
    out: Path,
    *,
    data: Sequence[tuple[Split, TaskCard]],
    evaluator: Evaluator | None = None,
    device: str = "auto",
    progress: bool = True,
    workers: int | None = None,
    stop_after: int | None = None,
) -> Path:
    """Run `recipe`, or go on with it where an earlier call in the same folder stopped.

    The same command again on a finished run does nothing and says so. On the CPU in fp32 a resumed run ends
    in the same weights, bit for bit, as one that was never stopped.

    Args:
        recipe_id: the recipe's id, for titles.
        out: the run's folder (see `folder`); afterwards it is a model.
        data: for each of the recipe's sources its split, and the task card that this belongs to.
        evaluator: measures the model on the recipe's `evaluate` tasks; None: no evaluation.
        device: "auto" (a GPU where there is one), or a torch device.
        progress: show a live progress line on stderr.
        workers: processes that decode images not held in memory; None: one a core beside a GPU, none on a CPU.
        stop_after: stop after this many steps, with a checkpoint.

    Returns:
        The run's folder.

    Raises:
        CardError: the recipe's model or templates do not fit together.
        DataError: the split cannot be trained on.
        StorageError: the folder is not this run's, or cannot be written.
        ClipbenchError: the loss is no longer finite; the last good checkpoint stays.
    """
    console = Console(stderr=True)
    config = dual.parse_config(recipe.model.config, f"recipe {recipe_id}")
    _refuse_pretrained(config, recipe_id)
    sources = [Source(*given, wanted) for given, wanted in zip(data, recipe.data, strict=True)]
    images = sum(len(source.split) for source in sources)
    seen = fingerprint([source.split.fingerprint for source in sources])
    target_device = choose_device(device)
    schedule = recipe.schedule

    with RunFolder(out, recipe) as run:
        if run.finished:
            console.print(f"{out}: this run of {recipe_id} has finished; nothing to do", highlight=False)
            return out

        torch.manual_seed(recipe.seed)
        towers = DualTowers(config, recipe.model.preprocess).to(target_device)
        learner = learners.make(recipe.objective, towers).to(target_device)
        trained = nn.ModuleList([towers, learner])
        optimiser = make_optimiser(recipe.optim, trained)
        scaler = torch.amp.GradScaler(target_device.type, enabled=recipe.precision == "fp16")
        pairs = DrawnPairs(
            sources,
            recipe.model.preprocess,
            towers.text.tokenize,
            batch_size=schedule.batch_size,
            seed=recipe.seed,
            device=target_device,
            wants=learner.wants,
            workers=workers if workers is not None else decoders(target_device),
        )
        for source in sources:
            if isinstance(source.split, LazySplit):
                for part in source.split.left_out:
                    console.print(f"{source.wanted.name}: left out {part}", highlight=False)
        describe = functools.partial(model_card, recipe, recipe_id, images)
        max_norm = recipe.optim.clip_grad_norm or math.inf

        step = 0
        if found := run.begin(seen):
            step = found["step"]
            towers.load_state_dict(found["towers"])
            learner.load_state_dict(found["learner"])
            optimiser.load_state_dict(found["optimiser"])
            scaler.load_state_dict(found["scaler"])
            pairs.restore(found["pairs"])
            torch.set_rng_state(found["rng"])
            console.print(f"{out}: going on after step {step}", highlight=False)

        def checkpoint() -> Checkpoint:
            return {
                "step": step,
                "data": seen,
                "towers": towers.state_dict(),
                "learner": learner.state_dict(),
                "optimiser": optimiser.state_dict(),
                "scaler": scaler.state_dict(),
                "pairs": pairs.state(),
                "rng": torch.get_rng_state(),
            }

        trained.train()
        until = min(schedule.steps, schedule.steps if stop_after is None else stop_after)
        with _progress(console, shown=progress) as bar:
            row = bar.add_task(recipe_id, total=schedule.steps, completed=step, loss=math.nan, rate=0.0)
            while step < until:
                started = time.perf_counter()
                batch = pairs.next_batch()
                waited = time.perf_counter() - started

                lr = learning_rate(step, schedule, recipe.optim.lr)
                for group in optimiser.param_groups:
                    group["lr"] = lr
                with torch.autocast(
                    target_device.type, _AUTOCAST[recipe.precision], enabled=recipe.precision != "fp32"
                ):
                    features = learner(towers, batch)
                loss = learner.loss(features, towers.logit_scale())

                optimiser.zero_grad(set_to_none=True)
                scaler.scale(loss.total).backward()  # type: ignore[no-untyped-call]
                scaler.unscale_(optimiser)
                norm = nn.utils.clip_grad_norm_(trained.parameters(), max_norm).item()
                total = loss.total.item()
                _require_finite(total, norm, scaled=scaler.is_enabled(), step=step + 1, run=run)
                scaler.step(optimiser)
                scaler.update()
                learner.remember(features)
                if learner.max_logit_scale is not None:
                    towers.log_scale.data.clamp_(max=math.log(learner.max_logit_scale))
                step += 1

                spent = time.perf_counter() - started
                rate = schedule.batch_size / spent
                run.log(
                    {
                        "step": step,
                        "loss": total,
                        **{f"loss_{name}": term.item() for name, term in loss.terms().items()},
                        "logit_scale": towers.logit_scale().item(),
                        "lr": lr,
                        "grad_norm": finite(norm),
                        "images_per_s": round(rate, 1),
                        "data_wait": round(waited / spent, 4),
                    }
                )
                bar.update(row, completed=step, loss=total, rate=rate)

                if evaluator and _due(step, schedule.eval_every) and step < schedule.steps:
                    bar.stop()  # the evaluator shows a progress line of its own
                    _evaluate(evaluator, freeze(towers, describe), recipe.evaluate, step, run)
                    bar.start()
                if _due(step, schedule.checkpoint_every) and step < until:
                    run.save(checkpoint())

        run.save(checkpoint())
        if step < schedule.steps:
            return out

        if evaluator:
            _evaluate(evaluator, freeze(towers, describe), recipe.evaluate, step, run)
        weights, sha256 = dual.serialise(towers)
        metric = recipe.target.metric if recipe.target else "acc1"
        chance = learner.chance(schedule.batch_size)
        picture = curves.draw(run.lines(), title=recipe.title, chance=chance, metric=metric)
        run.finish(weights, picture, describe(sha256))
        if pairs.skipped[0]:
            run.write_skipped(*pairs.skipped)
            console.print(
                f"{out}: {pairs.skipped[0]:,} images could not be decoded: skipped.json", highlight=False
            )
        console.print(f"{out}: finished{_against_target(recipe.target, run)}", highlight=False)
        return out


def learning_rate(step: int, schedule: Schedule, peak: float) -> float:
    """The rate of optimiser step `step` (0-based): linear warm-up to `peak`, then half a cosine to 0.

    >>> schedule = Schedule(steps=10, warmup=2, batch_size=8)
    >>> [round(learning_rate(step, schedule, 1.0), 3) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.038]
    """
    if step < schedule.warmup:
        return peak * (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / (schedule.steps - schedule.warmup)
    return peak * (1 + math.cos(math.pi * done)) / 2


def make_optimiser(optim: AdamW | Sgd, module: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of a recipe; tensors of fewer than two axes (biases, norms, logit scale) do not decay."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    if isinstance(optim, AdamW):
        return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum)


def choose_device(name: str) -> torch.device:
    """The torch device `name`, or for "auto" the GPU where there is one.

    Raises:
        ClipbenchError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ClipbenchError(
            f'no device "{name}" here ({reason})', hint="use --device cpu, or auto"
        ) from None
    return device


def decoders(device: torch.device) -> int:
    """Processes that decode beside training: on a CPU none, since they would take the cores that train."""
    return 0 if device.type == "cpu" else max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def model_card(recipe: Recipe, recipe_id: str, images: int, sha256: str) -> ModelCard:
    """The card of the model that `recipe` trained on `images` images."""
    schedule = recipe.schedule
    return ModelCard(
        title=f"{recipe.title} ({recipe_id})",
        family=recipe.model.family,
        config=dual.parse_config(recipe.model.config, f"recipe {recipe_id}").canonical(),
        preprocess=recipe.model.preprocess,
        weights=Weights(file="model.safetensors", sha256=sha256),
        training_data="; ".join(data.described for data in recipe.data),
        training_pairs_m=images / 1e6,
        notes=f"Trained by the recipe {recipe_id}: {recipe.objective.kind} objective, "
        f"{schedule.steps} steps of {schedule.batch_size} pairs, {recipe.optim.name}, {recipe.precision}, "
        f"seed {recipe.seed}. "
        f"Again with: {recipe.command}",
    )


def freeze(towers: DualTowers, describe: Callable[[str], ModelCard]) -> dual.DualAdapter:
    """The towers as they are now, behind the Adapter interface: a copy that may be moved, cast or compiled.

    `describe` makes the model card from the weights' sha256.
    """
    _, sha256 = dual.serialise(towers)
    frozen = copy.deepcopy(towers).eval().requires_grad_(False)
    return dual.DualAdapter(frozen, describe(sha256), sha256)


def _refuse_pretrained(config: dual.Config, recipe_id: str) -> None:
    """Raise CardError where a tower's weights come from elsewhere: training starts from random ones."""
    for side, tower in (("image", config.image), ("text", config.text)):
        if getattr(tower, "weights", None) is not None:
            raise CardError(
                f"recipe {recipe_id}: config.{side}.weights names trained weights, training starts from random ones",
                hint=f"leave out config.{side}.weights",
            )


def _progress(console: Console, *, shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:.0f} images/s"),
        TimeRemainingColumn(),
        console=console,
        disable=not shown,
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _require_finite(loss: float, norm: float, *, scaled: bool, step: int, run: RunFolder) -> None:
    # With loss scaling, gradients that overflow are expected: the scaler leaves that step out.
    if math.isfinite(loss) and (scaled or math.isfinite(norm)):
        return
    kept = f"the last good checkpoint is {run.checkpoint}" if run.checkpoint.exists() else "no checkpoint yet"
    raise ClipbenchError(
        f"step {step}: loss {loss}, gradient norm {norm}: training has diverged; {kept}",
        hint="lower optim.lr, lengthen schedule.warmup or set optim.clip_grad_norm; start in a new --out",
    )


def _evaluate(
    evaluator: Evaluator, adapter: Adapter, task_ids: Sequence[str], step: int, run: RunFolder
) -> None:
    for record in evaluator(adapter, task_ids) if task_ids else ():
        scores = {name: finite(score.value) for name, score in record.scores.items()}
        run.log({"step": step, "task": record.task, **scores})


def _against_target(target: Target | None, run: RunFolder) -> str:
    if target is None:
        return ""
    measured = [line[target.metric] for line in run.lines() if line.get("task") == target.task]
    if not measured:
        return f" (target not measured: {target.task} {target.metric} ≥ {target.at_least})"
    value = number(measured[-1])
    verdict = "reached" if value >= target.at_least else "MISSED"
    return f": {target.task} {target.metric} {value:.4f} (target ≥ {target.at_least}: {verdict})"
