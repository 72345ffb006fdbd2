"""The training engine: chunks, optimisers, averages, checkpoints, signals and what is shown; all resume exactly."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from event_files import events
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from training import OBJECTIVES, ROOT, assert_alike, data_of, recipe_with, run

from clipbench import catalog
from clipbench.bench import pretrain as bench
from clipbench.cards.model import ModelCard
from clipbench.cards.recipe import AdamW, AdamWSgd, Engine, Peaks, Recipe, Schedule, Sgd
from clipbench.cards.strict_yaml import Document, parse
from clipbench.errors import CardError, Stopped
from clipbench.models.adapter import Adapter
from clipbench.models.towers.configs import parse_config
from clipbench.models.towers.dual import DualTowers
from clipbench.pretrain.data.pairs import DrawnPairs
from clipbench.pretrain.data.source import Source
from clipbench.pretrain.engine.distributed import Processes
from clipbench.pretrain.engine.gradient_caching import Gradient
from clipbench.pretrain.engine.optimisers import make_optimiser
from clipbench.pretrain.engine.tower_setup import blocks, set_up_towers
from clipbench.pretrain.objectives.base import make_learner
from clipbench.pretrain.run.progress import Live

CPU = torch.device("cpu")
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def metrics(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "data_wait")} for line in lines]


def same_weights(one: Path, other: Path) -> bool:
    return (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


@dataclass(frozen=True)
class Score:
    value: float


@dataclass(frozen=True)
class Measured:
    task: str
    scores: dict[str, Score]


@dataclass
class Falling:
    """An evaluation by a script of scores."""

    values: list[float]
    seen: list[str] = field(default_factory=list)

    def __call__(self, adapter: Adapter, task_ids: Sequence[str]) -> list[Measured]:
        self.seen.append(adapter.weights_sha256)
        return [Measured(task, {"acc1": Score(self.values[len(self.seen) - 1])}) for task in task_ids]


# ----------------------------------------------------------------- chunks


def without_batchnorm(module: nn.Module) -> None:
    """Take out what compares the pairs of a chunk with each other."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, nn.Identity())
        else:
            without_batchnorm(child)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_in_chunks_has_the_gradient_of_the_whole(name: str) -> None:
    """Every objective with its draws, in float64; BatchNorm, which sees a chunk, taken out."""
    found = {}
    for chunk in (None, 3):
        recipe = recipe_with(OBJECTIVES[name], engine={"chunk": chunk})
        torch.manual_seed(0)
        towers = DualTowers(parse_config(recipe.model.config, "test"), recipe.model.preprocess)
        learner = make_learner(recipe.objective, towers)
        both = nn.ModuleDict({"towers": towers, "learner": learner})
        without_batchnorm(both)
        both.double()
        data = [Source(*given, wanted) for given, wanted in zip(data_of(recipe), recipe.data, strict=True)]
        pairs = DrawnPairs(
            data,
            recipe.model.preprocess,
            towers.text.tokenize,
            batch_size=16,
            seed=0,
            device=CPU,
            wants=learner.wants,
        )
        gradient = Gradient(recipe, towers, learner, Processes(), CPU)
        batch = pairs.next_batch()
        wide = type(batch)(**{**vars(batch), "images": batch.images.double(),
                              "views": tuple(view.double() for view in batch.views)})  # fmt: skip
        features, loss = gradient(wide, 0, NO_SCALER)
        found[chunk] = (
            loss.total.item(),
            {key: p.grad for key, p in both.named_parameters() if p.grad is not None},
            pairs.state()["generator"],
            features,
        )
    whole, pieces = found.values()
    assert pieces[0] == pytest.approx(whole[0], rel=1e-9)
    assert pieces[1].keys() == whole[1].keys()
    for key, expected in whole[1].items():
        torch.testing.assert_close(pieces[1][key], expected, rtol=1e-7, atol=1e-9, msg=key)
    assert torch.equal(pieces[2], whole[2])  # later draws are the same too
    assert {key: len(rows) for key, rows in pieces[3].items()} == {k: len(v) for k, v in whole[3].items()}


# -------------------------------------------------------------- optimisers


def weights() -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    names = ("towers.image.a", "towers.text.a", "towers.image_projection.a", "learner.b")
    made = {name: nn.Parameter(torch.randn(2, 2)) for name in names}
    return made | {"towers.log_scale": nn.Parameter(torch.tensor(2.0))}


def test_parts_have_peaks_of_their_own() -> None:
    optim = Sgd(
        name="sgd", lr=0.1, momentum=0, weight_decay=0.5, peaks=Peaks(image=0.2, text=0.0, logit_scale=0.3)
    )
    named = weights()
    before = {name: p.detach().clone() for name, p in named.items()}
    optimiser = make_optimiser(optim, named)
    for parameter in named.values():
        parameter.grad = torch.ones_like(parameter)
    optimiser.set_rates(0, Schedule(steps=10, warmup=4, warmup_from=0.2, batch_size=2))
    optimiser.step(NO_SCALER)
    rate = 0.2 + 0.8 / 4
    peaks = {"towers.image.a": 0.2, "towers.text.a": 0.0, "towers.log_scale": 0.3}
    for name, parameter in named.items():
        decay = 0 if name == "towers.log_scale" else 0.5  # no matrix
        step = peaks.get(name, 0.1) * rate * (1 + decay * before[name])
        torch.testing.assert_close(parameter.detach(), before[name] - step)
    decaying = make_optimiser(optim.model_copy(update={"decays": "all"}), named).parts[0].param_groups
    assert all(group["weight_decay"] == 0.5 for group in decaying)


def test_lookahead_meets_its_slow_weights_every_k_steps() -> None:
    optim = Sgd.model_validate(
        {"name": "sgd", "lr": 1.0, "momentum": 0, "lookahead": {"k": 3, "alpha": 0.25}}
    )
    parameter = nn.Parameter(torch.zeros(1))
    optimiser = make_optimiser(optim, {"learner.a": parameter})
    seen = []
    for _ in range(7):
        parameter.grad = -torch.ones(1)
        optimiser.step(NO_SCALER)
        seen.append(parameter.item())
    # 3 becomes 0 + 0.25 · 3; then 0.75 + 3 becomes 0.75 + 0.25 · 3
    assert seen == pytest.approx([1, 2, 0.75, 1.75, 2.75, 1.5, 2.5])


def test_sgd_for_the_image_tower_and_adamw_for_all_else() -> None:
    optim = AdamWSgd.model_validate({"name": "adamw-sgd", "lr": 0.1, "image": {"lr": 0.5, "momentum": 0}})
    named = weights()
    before = {name: p.detach().clone() for name, p in named.items()}
    optimiser = make_optimiser(optim, named)
    assert [type(part) for part in optimiser.parts] == [torch.optim.SGD, torch.optim.AdamW]
    for parameter in named.values():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimiser.step(NO_SCALER)
    torch.testing.assert_close(named["towers.image.a"].detach(), before["towers.image.a"] - 1.5)
    for name in set(named) - {"towers.image.a"}:  # AdamW's first step has the size of its rate
        torch.testing.assert_close(named[name].detach(), before[name] - 0.1)
    assert isinstance(make_optimiser(AdamW(name="adamw", lr=1), named).parts[0], torch.optim.AdamW)


@pytest.mark.parametrize(
    ("optim", "message"),
    [
        ({"name": "sgd", "lr": 1, "momentum": 0, "nesterov": True}, "nesterov needs a momentum"),
        ({"name": "adamw-sgd", "lr": 1, "image": {"lr": 1}, "peaks": {"image": 1}}, "optim.image.lr"),
        ({"name": "sgd", "lr": 1, "lookahead": {"k": 1}}, "greater than 1"),
    ],
)
def test_optimisers_that_contradict_themselves(optim: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe_with({"kind": "clip"}, optim=optim)


# --------------------------------------------- everything resumes exactly

FORMS: dict[str, dict[str, Any]] = {
    "lookahead": {
        "optim": {
            "name": "sgd",
            "lr": 0.05,
            "nesterov": True,
            "lookahead": {"k": 4},
            "peaks": {"text": 0.01},
        },
        "ema": 0.9,
    },
    "adamw-sgd in chunks": {
        "optim": {"name": "adamw-sgd", "lr": 0.01, "image": {"lr": 0.05}},
        "engine": {"chunk": 5, "recompute": True},
    },
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_resumes_exactly(form: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipe_with(OBJECTIVES["declip"], **form)
    whole = run(recipe, tmp_path / "whole")
    out = run(recipe, tmp_path / "stopped", stop_after=3)
    torch.rand(5)  # whatever else the process drew in between
    run(recipe, out)
    assert same_weights(whole, out)
    assert metrics(whole) == metrics(out)


def test_the_average_is_what_is_evaluated_and_saved(tmp_path: Path) -> None:
    schedule = {"steps": 4, "batch_size": 16, "eval_every": 2, "checkpoint_every": 2}
    form: dict[str, Any] = {"schedule": schedule, "evaluate": ["digits-zs"]}
    plain, averaged = Falling([0.1, 0.2]), Falling([0.1, 0.2])
    run(recipe_with({"kind": "clip"}, **form), tmp_path / "plain", evaluator=plain)
    out = run(recipe_with({"kind": "clip"}, ema=0.9, **form), tmp_path / "average", evaluator=averaged)
    assert metrics(out) == metrics(tmp_path / "plain")  # training itself is the same
    assert not set(plain.seen) & set(averaged.seen)
    assert averaged.seen[-1] == parse(ModelCard, Document(out / "card.yaml")).weights.sha256

    final = load_file(tmp_path / "plain" / "model.safetensors")
    average = load_file(out / "model.safetensors")
    name = "image_projection.feature_shortcut.weight"
    assert not torch.equal(average[name], final[name])
    assert torch.equal(average["image.stem.1.running_mean"], final["image.stem.1.running_mean"])


def test_recomputed_blocks_give_the_same_gradients_and_running_averages(tmp_path: Path) -> None:
    plain = run(recipe_with({"kind": "clip"}), tmp_path / "plain")
    again = run(recipe_with({"kind": "clip"}, engine={"recompute": True}), tmp_path / "again")
    assert_alike(plain, again, 1e-6)


def test_blocks_are_the_repeated_parts() -> None:
    recipe = recipe_with({"kind": "clip"})
    towers = DualTowers(parse_config(recipe.model.config, "test"), recipe.model.preprocess)
    assert [type(block).__name__ for block in blocks(towers.image)] == ["_ResidualBlock"] * 2
    assert [type(block).__name__ for block in blocks(towers.text)] == ["_Layer"]
    towers.image.blocks, towers.text.layers = nn.Identity(), nn.Identity()
    with pytest.raises(CardError, match="neither tower has blocks"):
        set_up_towers(towers, Engine(recompute=True))


# -------------------------------------------------- checkpoints and weights


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    schedule = {"steps": 6, "batch_size": 16, "checkpoint_every": 1, "keep": 2}
    recipe = recipe_with({"kind": "clip"}, schedule=schedule)
    out = run(recipe, tmp_path / "run", stop_after=5)
    assert sorted(path.name for path in out.glob("*.pt")) == [
        "checkpoint-00000004.pt", "checkpoint-00000005.pt"
    ]  # fmt: skip
    (out / "checkpoint-00000005.pt").unlink()  # back to the one before
    run(recipe, out)
    assert not list(out.glob("*.pt"))
    assert metrics(out) == metrics(run(recipe, tmp_path / "whole"))


def best_recipe(**more: Any) -> Recipe:
    schedule = {"steps": 8, "batch_size": 16, "eval_every": 2, "checkpoint_every": 3}
    best = {"task": "digits-zs@val", "metric": "acc1"}
    return recipe_with({"kind": "clip"}, schedule=schedule, evaluate=["digits-zs@val"], best=best, **more)


def test_the_best_weights_become_the_model_even_after_a_stop(tmp_path: Path) -> None:
    evaluator = Falling([0.3, 0.9, 0.9, 0.5])
    out = run(best_recipe(), tmp_path / "run", evaluator=evaluator)
    card = parse(ModelCard, Document(out / "card.yaml"))
    assert card.weights.sha256 == evaluator.seen[1]
    assert card.notes is not None
    assert "Weights after step 4, the best by digits-zs@val acc1" in card.notes
    assert not list(out.glob("best-*"))

    stopped = run(best_recipe(), tmp_path / "stopped", evaluator=Falling([0.3, 0.9]), stop_after=5)
    assert [path.name for path in stopped.glob("best-*")] == ["best-00000004.safetensors"]
    run(best_recipe(), stopped, evaluator=Falling([0.9, 0.5]))
    assert same_weights(out, stopped)
    assert metrics(out) == metrics(stopped)


def test_a_score_that_no_evaluation_has(tmp_path: Path) -> None:
    recipe = best_recipe()
    other = recipe.model_copy(
        update={"best": recipe.best and recipe.best.model_copy(update={"metric": "acc"})}
    )
    with pytest.raises(CardError, match='unknown score of digits-zs@val "acc"; did you mean "acc1"'):
        run(other, tmp_path / "run", evaluator=Falling([0.3]))


def test_best_needs_evaluations() -> None:
    with pytest.raises(ValueError, match=r"best needs schedule\.eval_every"):
        best_recipe().model_validate(best_recipe().canonical() | {"schedule": {"steps": 8, "batch_size": 16}})


def test_no_weights_are_chosen_by_a_test_split_and_suites_may_be_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"

    def load(**more: Any) -> Recipe:
        value = best_recipe().canonical() | more
        path.write_text(json.dumps(value))
        return catalog.Catalog().recipe(str(path)).card

    with pytest.raises(CardError, match=r"mine\.yaml:1: best\.task digits-zs measures a test split"):
        load(evaluate=["digits-zs"], best={"task": "digits-zs", "metric": "acc1"})
    with pytest.raises(CardError, match=r'best\.task: unknown task of evaluate "digits-lp"'):
        load(evaluate=["digits-zs"], best={"task": "digits-lp", "metric": "acc1"})
    target = {"task": "digits-zs", "metric": "acc1", "at_least": 0.5}
    suite = next(name for name, s in catalog.Catalog().suites.items() if "digits-zs" in s.tasks)
    assert load(evaluate=[suite], best=None, target=target).evaluate == (suite,)


# ------------------------------------------------------------------ signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_after_the_step_and_the_run_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    form: dict[str, Any] = {
        "schedule": {"steps": 6, "batch_size": 16, "eval_every": 2, "checkpoint_every": 4},
        "evaluate": ["digits-zs"],
    }
    recipe = recipe_with({"kind": "clip"}, **form)
    whole = run(recipe, tmp_path / "whole", evaluator=Falling([0.1, 0.2, 0.3]))

    class Asking(Falling):
        def __call__(self, adapter: Adapter, task_ids: Sequence[str]) -> list[Measured]:
            os.kill(os.getpid(), number)
            return super().__call__(adapter, task_ids)

    out = tmp_path / "run"
    with pytest.raises(Stopped, match="stopped and saved after step 3") as stopped:
        run(recipe, out, evaluator=Asking([0.1]))
    assert stopped.value.exit_code == 128 + number
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    run(recipe, out, evaluator=Falling([0.2, 0.3]))
    assert same_weights(whole, out)
    assert metrics(whole) == metrics(out)


def test_a_run_that_is_killed_at_any_step_ends_in_the_same_weights(tmp_path: Path) -> None:
    """`kill -9` of a process of its own, at a random step; then the same again, to the end."""
    schedule = {"steps": 60, "batch_size": 16, "checkpoint_every": 7}
    recipe = recipe_with(OBJECTIVES["declip"], schedule=schedule, ema=0.9)
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps([{"killed": recipe.canonical()}, {}]))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "pretrain" / "test_distributed.py"), "train", str(jobs)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))},
        stderr=subprocess.DEVNULL,
    )
    wanted = random.randint(8, 45)
    log = tmp_path / "killed" / "metrics.jsonl"
    while not log.exists() or log.read_text().count("\n") < wanted:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "card.yaml").exists()
    out = run(recipe, tmp_path / "killed")
    whole = run(recipe, tmp_path / "whole")
    assert same_weights(whole, out), f"killed after step {wanted}"
    assert metrics(whole) == metrics(out)


# ----------------------------------------------------------------- progress


@pytest.mark.parametrize("name", ["clip", "a-recipe-of-a-very-long-name"])
def test_the_live_lines_fit_80_columns(name: str) -> None:
    console = Console(width=80, force_terminal=True, file=io.StringIO())
    terms = {"loss": 4.1234, **{f"loss_{term}": 7.5 for term in ("clip", "multi_view", "image_self")}}
    with Live(console, name, 128_000, 0, shown=True) as live:
        live.report(100_000, terms, 99.5, images=4096, seconds=0.25, waited=0.01)
    page = Console(width=80, file=io.StringIO())
    with page.capture() as capture:
        page.print(live.get_renderable())
    plain = capture.get().splitlines()
    assert len(plain) == 2
    assert re.search(r"[\d-]:[\d-]{2}$", plain[0].rstrip())
    assert all(len(line) <= 80 for line in plain)
    assert "100000/128000" in plain[0]
    assert "16.4k img/s, wait 4%" in plain[0]
    assert "GiB" in plain[0]
    assert "…" not in plain[0].removeprefix(name[:15] + "…")
    assert "loss 4.123  clip 7.500  multi_view 7.500  image_self 7.500  scale 99.5" in plain[1]


def test_tensorboards_files_say_what_the_metrics_say_after_a_stop_too(tmp_path: Path) -> None:
    form: dict[str, Any] = {"evaluate": ["digits-zs"]}
    recipe = recipe_with({"kind": "clip"}, **form)
    out = run(recipe, tmp_path / "run", tensorboard=True, stop_after=3)
    run(recipe, out, tensorboard=True, evaluator=Falling([0.5]))
    (path,) = out.glob("events.out.tfevents.*")
    found = events(path)
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [step for step, _ in found] == [line["step"] for line in logged]
    assert found[2][1]["train/loss"] == pytest.approx(logged[2]["loss"], rel=1e-6)
    assert found[-1][1] == {"digits-zs/acc1": 0.5}


# -------------------------------------------------------------------- bench


def test_the_bench_compares_the_same_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("_WIDTH", 16),
        ("_SIDE", 16),
        ("_HEADS", 2),
        ("_IMAGE_LAYERS", 1),
        ("_TEXT_LAYERS", 1),
    ):
        monkeypatch.setattr(bench, name, value)
    found = bench.measure(4, steps=1, rounds=1)
    assert found["parameters"] == found["peer_parameters"]
    assert set(found["ratios"]) == {"clip_over_open_clip", "declip_over_clip"}
    assert all(value > 0 for value in [*found["seconds"].values(), *found["ratios"].values()])
    assert all(0 < share < 1 for share in found["data_wait"].values())
    page = Console(width=100, file=io.StringIO())
    page.print(bench.view(found))
    assert "× open_clip_train" in page.file.getvalue()  # type: ignore[attr-defined]
