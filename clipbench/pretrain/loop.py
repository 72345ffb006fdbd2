"""The training loop. `pretrain` reads top to bottom; everything that decides a number is in the recipe."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from clipbench.cards.base import fingerprint, finite
from clipbench.cards.model import ModelCard, Weights
from clipbench.cards.recipe import Recipe, Target
from clipbench.cards.task import TaskCard
from clipbench.data.pairs.lazy import LazySplit
from clipbench.data.pairs.shards import RemoteShards
from clipbench.data.split import Split
from clipbench.encoding.runtime import Runtime
from clipbench.errors import ClipbenchError, Stopped, first_line
from clipbench.models.adapter import Adapter
from clipbench.models.towers.adapters import DualAdapter, identity, serialise
from clipbench.models.towers.configs import parse_config
from clipbench.models.towers.dual import DualTowers
from clipbench.pretrain.data.frozen_features import Start
from clipbench.pretrain.data.pairs import DrawnPairs
from clipbench.pretrain.data.source import Source
from clipbench.pretrain.engine import distributed
from clipbench.pretrain.engine.ema import MovingAverage
from clipbench.pretrain.engine.gradient_caching import Gradient, values
from clipbench.pretrain.engine.optimisers import learning_rate, make_optimiser
from clipbench.pretrain.engine.signals import Signals
from clipbench.pretrain.engine.tower_setup import set_up_towers
from clipbench.pretrain.objectives.base import make_learner
from clipbench.pretrain.run import curves
from clipbench.pretrain.run.directory import Checkpoint, RunDirectory
from clipbench.pretrain.run.events import number
from clipbench.pretrain.run.progress import Live
from clipbench.records.record import Record
from clipbench.utils.cpu import cores

#: measures an adapter on tasks, by id: the protocols that measure every other model
Evaluator = Callable[[Adapter, Sequence[str]], Sequence[Record]]


def pretrain(
    recipe: Recipe,
    recipe_id: str,
    out: Path,
    *,
    data: Sequence[tuple[Split | RemoteShards, TaskCard]],
    evaluator: Evaluator | None = None,
    device: str = "auto",
    progress: bool = True,
    workers: int | None = None,
    tensorboard: bool = False,
    stop_after: int | None = None,
) -> Path:
    """Run `recipe`, or go on with it where an earlier call in the same folder stopped.

    The same command again on a finished run does nothing and says so. On the CPU in fp32 a resumed run ends
    in the same weights, bit for bit, as one that was never stopped. Under `torchrun` all processes call this;
    the first one alone writes and evaluates.

    Args:
        recipe_id: the recipe's id, for titles.
        out: the run's folder (see `folder`); afterwards it is a model.
        data: for each of the recipe's sources its split or stream, and the task card that this belongs to.
        evaluator: measures the model on the recipe's `evaluate` tasks; None: no evaluation.
        device: "auto" (a GPU where there is one), or a torch device.
        progress: show live progress lines on stderr.
        workers: processes that decode images not held in memory; None: one a core beside a GPU, none on a CPU.
        tensorboard: write event files for TensorBoard too.
        stop_after: stop after this many steps, with a checkpoint.

    Returns:
        The run's folder.

    Raises:
        CardError: the recipe's model or templates do not fit together.
        DataError: the split cannot be trained on.
        StorageError: the folder is not this run's, or cannot be written.
        ClipbenchError: the loss is no longer finite; the last good checkpoint stays.
        Stopped: SIGTERM or SIGINT came; the run was saved after the step that was under way.
    """
    console = Console(stderr=True, highlight=False)
    config = parse_config(recipe.model.config, f"recipe {recipe_id}")
    images = sum({split.fingerprint: len(split) for split, _ in data}.values())
    sources = [
        Source(*given, wanted)
        for given, wanted in zip(data, recipe.data, strict=True)
        for _ in range(wanted.repeat)
    ]
    target_device = choose_device(device)
    schedule = recipe.schedule

    with (
        distributed.join(target_device, schedule.batch_size) as group,
        RunDirectory(out, recipe, writes=group.first, tensorboard=tensorboard) as run,
        Signals() as signals,
    ):
        console.quiet = not group.first
        if group.share(run.finished):
            console.print(f"{out}: this run of {recipe_id} has finished; nothing to do")
            return out

        torch.manual_seed(recipe.seed)
        start = Start(recipe.model, config, recipe_id, Runtime.choose(str(target_device), recipe.precision))
        towers = start.towers.to(target_device)
        learner = make_learner(recipe.objective, towers).to(target_device)
        start.refuse_changes(views=bool(learner.wants.views), altered=learner.wants.altered)
        seen = fingerprint([*(source.split.fingerprint for source in sources), *start.digests.values()])
        trained = nn.ModuleDict({"towers": towers, "learner": learner})
        if recipe.engine.sync_batchnorm:
            distributed.synchronise(trained, group, target_device)  # a container, so changed in place
        average = MovingAverage(towers, recipe.ema) if recipe.ema else None
        set_up_towers(towers, recipe.engine)
        optimiser = make_optimiser(recipe.optim, dict(trained.named_parameters()))
        scaler = torch.amp.GradScaler(target_device.type, enabled=recipe.precision == "fp16")
        gradient = Gradient(recipe, towers, learner, group, target_device)
        pairs = DrawnPairs(
            sources,
            recipe.model.preprocess,
            towers.text.tokenize,
            batch_size=schedule.batch_size,
            seed=recipe.seed,
            device=target_device,
            wants=learner.wants,
            workers=workers if workers is not None else decoders(target_device),
            rank=group.rank,
            world=group.world,
            features=start.image_features(sources),
        )
        for source in sources:
            if isinstance(source.split, LazySplit | RemoteShards):
                for part in source.split.left_out:
                    console.print(f"{source.wanted.name}: left out {part}")
        for (split, _), wanted in zip(data, recipe.data, strict=True):
            for note in split.notes if isinstance(split, Split) else ():
                console.print(f"{wanted.name}: {note}", markup=False)
        describe = functools.partial(model_card, recipe, recipe_id, images, start)
        max_norm = recipe.optim.clip_grad_norm or math.inf

        step, measured = 0, True
        if found := group.share(run.begin(seen)):
            step, measured = found["step"], found["measured"]
            towers.load_state_dict(found["towers"])
            if average:
                average.towers.load_state_dict(found["average"])
            learner.load_state_dict(found["learner"])
            optimiser.load_state_dict(found["optimiser"])
            scaler.load_state_dict(found["scaler"])
            pairs.restore(found["pairs"])
            console.print(f"{out}: going on after step {step}")

        def checkpoint() -> Checkpoint:
            return {
                "step": step,
                "measured": measured,
                "data": seen,
                "towers": towers.state_dict(),
                "average": average.towers.state_dict() if average else {},
                "learner": learner.state_dict(),
                "optimiser": optimiser.state_dict(),
                "scaler": scaler.state_dict(),
                "pairs": pairs.state(),
            }

        def measure() -> None:
            if not evaluator or not group.first or not recipe.evaluate:
                return
            for record in evaluator(freeze(start.whole(shown), describe), recipe.evaluate):
                scores = {name: finite(score.value) for name, score in record.scores.items()}
                run.log({"step": step, "task": record.task, **scores})
            if run.best_step() == step:
                run.save_best(step, serialise(start.whole(shown))[0])

        trained.train()
        shown = average.towers if average else towers
        until = min(schedule.steps, schedule.steps if stop_after is None else stop_after)
        with Live(console, recipe_id, schedule.steps, step, shown=progress and group.first) as live:
            while True:
                if not measured:  # what follows a step, before which a signal may have stopped the run
                    if _due(step, schedule.eval_every) and step < schedule.steps:
                        live.stop()  # the evaluator shows a progress line of its own
                        measure()
                        live.start()
                    measured = True
                    if _due(step, schedule.checkpoint_every) and step < until:
                        run.save(checkpoint())
                if step >= until:
                    break

                started = time.perf_counter()
                batch = pairs.next_batch()
                waited = time.perf_counter() - started  # only of the first step: the others find it made

                optimiser.set_rates(step, schedule)
                optimiser.zero_grad()
                features, loss = gradient(batch, step, scaler)
                optimiser.unscale(scaler)
                length = nn.utils.clip_grad_norm_(trained.parameters(), max_norm)
                if step + 1 < schedule.steps:
                    waited += _idle(target_device, pairs.prepare)
                norm = length.item()
                terms = values(loss)
                _require_finite(terms["loss"], norm, scaled=scaler.is_enabled(), step=step + 1, run=run)
                optimiser.step(scaler)
                learner.remember(features)
                if learner.max_logit_scale is not None:
                    towers.log_scale.data.clamp_(max=math.log(learner.max_logit_scale))
                step, measured = step + 1, False
                if average:
                    average.update(towers, step)

                spent = time.perf_counter() - started
                scale = towers.logit_scale().item()
                run.log(
                    {
                        "step": step,
                        **terms,
                        "logit_scale": scale,
                        "lr": learning_rate(step - 1, schedule, recipe.optim.lr),
                        "grad_norm": finite(norm),
                        "images_per_s": round(schedule.batch_size / spent, 3),
                        "data_wait": round(waited / spent, 4),
                    }
                )
                live.report(step, terms, scale, images=schedule.batch_size, seconds=spent, waited=waited)
                if group.any(bool(signals.asked)):
                    run.save(checkpoint())
                    raise Stopped(f"{out}: stopped and saved after step {step}", signal=signals.asked or 15)

        measured = step < schedule.steps
        run.save(checkpoint())
        if step < schedule.steps or not group.first:
            return out

        measure()
        best = run.best_step()
        chosen = step if best is None else best
        weights = serialise(start.whole(shown))[0] if chosen == step else run.read_best(chosen)
        metric = recipe.target.metric if recipe.target else "acc1"
        chance = learner.chance(schedule.batch_size)
        picture = curves.draw(run.lines(), title=recipe.title, chance=chance, metric=metric)
        card = model_card(recipe, recipe_id, images, start, hashlib.sha256(weights).hexdigest(), step=chosen)
        run.finish(weights, picture, card)
        if pairs.skipped[0]:
            run.write_skipped(*pairs.skipped)
            console.print(f"{out}: {pairs.skipped[0]:,} images could not be decoded: skipped.json")
        console.print(f"{out}: finished{_against_target(recipe.target, run, chosen)}")
        return out


def choose_device(name: str) -> torch.device:
    """The torch device `name`, or for "auto" the GPU where there is one: of several processes each its own.

    Raises:
        ClipbenchError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ClipbenchError(
            f'no device "{name}" here ({first_line(error)})', hint="use --device cpu, or auto"
        ) from None
    return device


def decoders(device: torch.device) -> int:
    """Processes that decode beside training: on a CPU none, since they would take the cores that train."""
    return 0 if device.type == "cpu" else max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def model_card(
    recipe: Recipe, recipe_id: str, images: int, start: Start, sha256: str, step: int | None = None
) -> ModelCard:
    """The card of the model that `recipe` trained on `images` images from `start`: its weights after `step`."""
    schedule = recipe.schedule
    chosen = ""
    if recipe.best and step is not None:
        chosen = f"Weights after step {step}, the best by {recipe.best.task} {recipe.best.metric}. "
    images_of = [*recipe.trained_on, *(data.trained_on for data in recipe.data)]  # a split may serve twice
    averaged = f"moving average of the weights ({recipe.ema}), " if recipe.ema else ""
    return ModelCard(
        title=f"{recipe.title} ({recipe_id})",
        family=recipe.model.family,
        config=start.config.canonical(),
        preprocess=recipe.model.preprocess,
        weights=Weights(file="model.safetensors", sha256=sha256),
        training_data="; ".join(dict.fromkeys(data.described for data in recipe.data)),
        training_pairs_m=images / 1e6,
        trained_on=tuple(one for i, one in enumerate(images_of) if one not in images_of[:i]),
        notes=f"Trained by the recipe {recipe_id}: {recipe.objective.kind} objective, "
        f"{schedule.steps} steps of {schedule.batch_size} pairs, {recipe.optim.name}, {recipe.precision}, "
        f"{averaged}seed {recipe.seed}. {start.described()}{chosen}"
        f"Again with: {recipe.command}",
    )


def freeze(towers: DualTowers, describe: Callable[[str], ModelCard]) -> DualAdapter:
    """`towers`, which from now on are only looked at, behind the Adapter interface, which may move or cast them.

    `describe` makes the model card from the weights' sha256.
    """
    _, sha256 = serialise(towers)
    towers.eval().requires_grad_(False)
    return DualAdapter(towers, describe(sha256), identity(towers, sha256))


def _idle(device: torch.device, work: Callable[[], None]) -> float:
    """Do `work`; the seconds, at most, that `device` waited: none where what it had been given outlasted it."""
    given = None
    if device.type == "cuda":
        given = torch.cuda.Event()  # type: ignore[no-untyped-call]
        given.record(torch.cuda.current_stream(device))
    started = time.perf_counter()
    work()
    if given is not None and not given.query():  # type: ignore[no-untyped-call]
        return 0.0
    return time.perf_counter() - started


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _require_finite(loss: float, norm: float, *, scaled: bool, step: int, run: RunDirectory) -> None:
    # With loss scaling, gradients that overflow are expected: the scaler leaves that step out.
    if math.isfinite(loss) and (scaled or math.isfinite(norm)):
        return
    kept = f"the last good checkpoint is {run.checkpoints[-1]}" if run.checkpoints else "no checkpoint yet"
    raise ClipbenchError(
        f"step {step}: loss {loss}, gradient norm {norm}: training has diverged; {kept}",
        hint="lower optim.lr, lengthen schedule.warmup or set optim.clip_grad_norm; start in a new --out",
    )


def _against_target(target: Target | None, run: RunDirectory, step: int) -> str:
    if target is None:
        return ""
    own = [line for line in run.lines() if line.get("task") == target.task and line["step"] == step]
    if not own:
        return f" (target not measured: {target.task} {target.metric} ≥ {target.at_least})"
    value = number(own[-1][target.metric])
    verdict = "reached" if value >= target.at_least else "MISSED"
    return f": {target.task} {target.metric} {value:.4f} (target ≥ {target.at_least}: {verdict})"
