"""The gate: how often it cries wolf, what it finds, and that whatever cannot be judged fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from recorded import make_record, write_model

from clipbench.catalog import Catalog
from clipbench.errors import DataError
from clipbench.metrics import paired_tests
from clipbench.metrics.joint import Contributions
from clipbench.records import gate
from clipbench.records.comparison import Comparison
from clipbench.records.eligibility import Eligibility
from clipbench.records.gate import Check
from clipbench.records.store import Stored, samples_path
from clipbench.report import gate_report

ROOT = Path(__file__).parents[2]


# ------------------------------------------------------------------ error rates


def _check(first: np.ndarray, second: np.ndarray, task: str = "a-zs", images: str = "") -> Check:
    """A comparison of one task; `images` names the set that it shares with others (of its own where empty)."""
    d = second.astype(float) - first.astype(float)
    worse, _, _ = paired_tests.sign_flip(d, 0)  # of_means without its interval
    compared = Comparison(
        task, "m", "m", "acc1", "not distinguishable", first=float(first.mean()), second=float(second.mean()),
        difference=float(d.mean()), ci95=(-1, 1), p_worse=worse,
        contributions=Contributions(images or task, [str(k) for k in range(len(d))], d / len(d)),
    )  # fmt: skip
    return Check("m", task, "pass", comparison=compared)


def _simulated(
    rng: np.random.Generator, n: int, share: float, lost: float, gained: float, task: str = "a-zs"
) -> Check:
    """A model that is right with probability `share`, and another that loses and gains these shares of samples."""
    first = rng.random(n) < share
    draws = rng.random(n)
    second = np.where(first, draws >= lost / share, draws < gained / (1 - share))
    return _check(first, second, task)


def _decided(checks: list[Check], drop: float = 0.0, mean_drop: float = 0.0) -> list[Check]:
    return gate.decided(checks, max_drop=drop, max_mean_drop=mean_drop, alpha=0.05)


@pytest.mark.parametrize("tasks", [1, 4])
@pytest.mark.parametrize("n", [200, 2_000])
def test_equal_models_fail_at_most_alpha_of_the_time(n: int, tasks: int) -> None:
    rng = np.random.default_rng(7)
    alarms = 0
    for _ in range(1_000):
        checks = [_simulated(rng, n, 0.7, 0.06, 0.06, f"{task}-zs") for task in range(tasks)]
        decided = _decided(checks)
        assert len(decided) == tasks + (tasks > 1)  # the mean beside them
        alarms += any(c.outcome == "fail" for c in decided)
    assert 0.005 <= alarms / 1_000 <= 0.05  # at most alpha, and not for want of ever failing


def test_equal_models_with_graded_outcomes_fail_at_most_alpha_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paired_tests, "FLIPS", 499)  # p stays valid with fewer
    rng = np.random.default_rng(11)
    alarms = 0
    for _ in range(1_000):
        both = rng.integers(0, 3, size=(3, 300)) / 2  # as of recalls over several k
        same = rng.random((2, 300)) < 0.8
        check = _check(np.where(same[0], both[0], both[1]), np.where(same[1], both[0], both[2]))
        alarms += _decided([check])[0].outcome == "fail"
    assert 0.02 <= alarms / 1_000 <= 0.06  # of random signs: alpha, give or take what 1,000 rounds show


def test_a_true_drop_of_two_points_is_found() -> None:
    rng = np.random.default_rng(8)
    found = 0
    for _ in range(200):
        checks = [_simulated(rng, 10_000, 0.7, 0.06, 0.04)]  # one sample in ten differs, two points net
        found += _decided(checks, 0.5)[0].outcome == "fail"
    assert found / 200 >= 0.95


def test_a_real_drop_within_what_is_allowed_passes() -> None:
    rng = np.random.default_rng(9)
    checks = [_simulated(rng, 50_000, 0.7, 0.02, 0.016)]
    (strict,) = _decided(checks)
    (found,) = _decided(checks, 1.0)
    assert (strict.outcome, found.outcome) == ("fail", "pass")


def test_a_large_drop_that_noise_may_explain_passes_and_says_so() -> None:
    first, second = np.ones(20), np.ones(20)
    second[:3] = 0
    (found,) = _decided([_check(first, second)], 0.5)
    assert found.outcome == "pass"
    assert found.why == "dropped by 15.00, which noise may explain (p = 0.125)"


@pytest.mark.parametrize("shared", [True, False], ids=["the same images", "other images"])
def test_the_mean_of_equal_models_fails_at_most_alpha_of_the_time_whether_tasks_share_images(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five tasks of one set of images, such as prompt variants, are no five independent sets."""
    monkeypatch.setattr(paired_tests, "FLIPS", 999)
    rng = np.random.default_rng(3)
    alarms = wrong = 0
    for _ in range(1_000):
        both = rng.random((2, 400)) < 0.7
        keep = rng.random(400) < 0.9
        first, second = both[0], np.where(keep, both[0], both[1])
        checks = []
        for task in range(5):
            noise = rng.random((2, 400)) < 0.02  # the variants agree but for a few
            checks.append(_check(first ^ noise[0], second ^ noise[1], f"{task}-zs", "one" if shared else ""))
        found = _decided(checks)[-1]
        assert found.task == "mean"
        alarms += found.outcome == "fail"
        wrong += found.comparison is not None and (found.comparison.p_worse or 0) < 0.05
    if shared:
        assert 0.005 <= alarms / 1_000 <= 0.05
        assert 0.03 <= wrong / 1_000 <= 0.07
    else:
        assert wrong / 1_000 > 0.1


def test_half_a_point_on_every_task_is_found_which_no_task_shows() -> None:
    rng = np.random.default_rng(5)
    means = singles = 0
    for _ in range(50):
        checks = [_simulated(rng, 2_000, 0.7, 0.03, 0.025, f"{task}-zs") for task in range(20)]
        *tasks, mean = _decided(checks, gate.MAX_DROP, gate.MAX_MEAN_DROP)
        singles += any(c.outcome == "fail" for c in tasks)
        means += mean.outcome == "fail"
    assert means >= 45
    assert singles <= 25  # in a round of 20
    assert mean.why.startswith("dropped by 0.")
    assert "more than 0.1 allowed" in mean.why


def _dropped(by: float, p: float, metric: str = "acc1") -> Check:
    compared = Comparison("a-zs", "m", "m", metric, "worse", difference=-by, p_worse=p)
    return Check("m", "a-zs", "pass", comparison=compared)


def test_a_drop_of_just_what_is_allowed_passes_and_one_of_more_fails() -> None:
    outcomes = [gate.decided([_dropped(by, 0.001)], 25, 25, 0.05)[0].outcome for by in (0.25, 0.2578125)]
    assert outcomes == ["pass", "fail"]


def test_a_p_of_just_alpha_passes_and_one_below_it_fails() -> None:
    found = [gate.decided([_dropped(0.5, p)], 25, 25, 0.125)[0] for p in (0.125, 0.124)]
    assert [(one.outcome, one.why) for one in found] == [
        ("pass", "dropped by 50.00, which noise may explain (p = 0.125)"),
        ("fail", "dropped by 50.00, more than 25 allowed and more than noise (p = 0.124)"),
    ]


@pytest.mark.parametrize(
    ("metric", "better"),
    [("acc1", 25), ("ece", -25), ("text_retrieval_mean_rank", -0.25), ("gap_change", 25)],
)
def test_a_change_is_of_percentage_points_or_places_and_up_where_it_is_better(
    metric: str, better: float
) -> None:
    compared = Comparison("a", "m", "m", metric, "better", difference=0.25)
    assert gate.change(compared) == better


# --------------------------------------------------------------------- records


def _records(tmp_path: Path, share: float = 1.0, **changes: Any) -> tuple[Path, Path, Stored]:
    """A baseline, and a candidate that is right on this share of the samples."""
    right = np.ones(400, dtype=bool)
    write_model(tmp_path / "old", "m", right)
    right[int(share * 400) :] = False
    return tmp_path / "old", tmp_path / "new", write_model(tmp_path / "new", "m", right, **changes)


def _gate(old: Path, new: Path, **options: Any) -> list[Check]:
    return gate.gate(old, new, Eligibility(Catalog()), **options)


def test_the_same_records_pass_and_a_real_drop_fails(tmp_path: Path) -> None:
    old, new, _ = _records(tmp_path, 0.96)
    assert [c.outcome for c in _gate(old, old)] == ["pass"]
    (found,) = _gate(old, new)
    assert found.outcome == "fail"
    assert found.why == "dropped by 4.00, more than 0.5 allowed and more than noise (p <0.001)"
    assert found.comparison is not None
    assert (len(found.comparison.only_first), len(found.comparison.classes)) == (3, 3)
    (allowed,) = _gate(old, new, max_drop=5)
    assert allowed.outcome == "pass"
    assert [c.outcome for c in _gate(new, old)] == ["pass"]  # a gain


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"limit": 400}, "limited: --limit 400"),
        (
            {"protocol": {"name": "zs", "version": 9, "params": {"templates": "default"}}},
            "zs version 1 and zs version 9",
        ),
        ({"fingerprints": {"split:test": "01"}}, "not comparable: measured on other data: split:test"),
    ],
)
def test_a_record_that_cannot_be_judged_fails(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    old, new, _ = _records(tmp_path, **changes)
    (found,) = _gate(old, new)
    assert found.outcome == "fail"
    assert why in found.why


def test_an_edited_record_fails_on_either_side(tmp_path: Path) -> None:
    old, new, stored = _records(tmp_path, 0.9)
    stored.path.write_text(stored.path.read_text().replace('"value": 0.9', '"value": 1.0', 1))
    assert "edited by hand" in _gate(old, new)[0].why
    assert "edited by hand" in _gate(new, old)[0].why


def test_samples_that_are_missing_or_another_fail(tmp_path: Path) -> None:
    old, new, stored = _records(tmp_path)
    samples_path(stored.path).write_bytes(b"another")
    assert "is not the file that was written with its record" in _gate(old, new)[0].why
    samples_path(stored.path).unlink()
    (found,) = _gate(old, new)
    assert (found.outcome, found.why[:27]) == ("fail", "not comparable: there is no")


def test_a_dirty_tree_is_no_failure(tmp_path: Path) -> None:
    env = make_record().env.model_dump() | {"dirty": True}
    old, new, _ = _records(tmp_path, env=env)
    assert [c.outcome for c in _gate(old, new)] == ["pass"]


def test_a_stale_candidate_fails_and_a_stale_baseline_does_not(tmp_path: Path) -> None:
    for folder in ("old", "new"):
        write_model(
            tmp_path / folder, "digits-clip-lite", np.ones(9, dtype=bool)
        )  # of a card that is another
    (found,) = _gate(tmp_path / "old", tmp_path / "new")
    assert found.outcome == "fail"
    assert "new: stale: model card changed" in found.why
    assert "old" not in found.why


def test_what_is_missing_fails_and_what_is_new_does_not(tmp_path: Path) -> None:
    old, new, _ = _records(tmp_path)
    write_model(old, "m", np.ones(9, dtype=bool), task="b-zs")
    write_model(new, "m", np.ones(9, dtype=bool), task="c-zs")
    write_model(old, "gone", np.ones(9, dtype=bool))
    found = {(c.model, c.task): (c.outcome, c.why) for c in _gate(old, new)}
    assert found == {
        ("m", "animals-zs"): ("pass", ""),
        ("m", "b-zs"): ("fail", f"missing: {new} has no record"),
        ("m", "c-zs"): ("new", "not in the baseline"),
        ("gone", "animals-zs"): ("fail", f"missing: {new} has no record"),
    }


def test_small_drops_on_every_task_fail_by_their_mean(tmp_path: Path) -> None:
    right = np.ones(2_000, dtype=bool)
    for task in range(6):
        own: dict[str, Any] = {"task": f"{task}-zs", "fingerprints": {"split:test": f"{task}"}}
        write_model(tmp_path / "old", "m", right, **own)
        less = right.copy()
        less[:8] = False  # 0.4 points
        write_model(tmp_path / "new", "m", less, **own)
    found = _gate(tmp_path / "old", tmp_path / "new")
    assert [c.task for c in found if c.outcome == "fail"] == ["mean"]
    assert found[-1].why == "dropped by 0.40, more than 0.1 allowed and more than noise (p <0.001)"
    assert "| ❌ | m | mean | mean of 6 tasks | 100.00 | 99.60 | -0.40 (" in gate_report.summary(
        found, 0.5, 0.1, 0.05
    )
    assert all(c.outcome == "pass" for c in _gate(tmp_path / "old", tmp_path / "new", max_mean_drop=0.5))


def test_the_named_tasks_alone_are_required(tmp_path: Path) -> None:
    old, new, _ = _records(tmp_path)
    write_model(old, "m", np.ones(9, dtype=bool), task="b-zs")
    write_model(new, "m", np.ones(9, dtype=bool), task="c-zs")
    only = _gate(old, new, models=["m"], require=["animals-zs", "c-zs"])
    assert [(c.task, c.outcome, c.why) for c in only] == [
        ("animals-zs", "pass", ""),
        ("c-zs", "fail", f"missing: {old} has no record"),
    ]


def test_what_the_user_can_mend(tmp_path: Path) -> None:
    old, new, _ = _records(tmp_path)
    with pytest.raises(DataError, match='unknown model "n"'):
        _gate(old, new, models=["n"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no records"):
        _gate(tmp_path / "empty", new)
    with pytest.raises(DataError, match="no results folder"):
        _gate(old, tmp_path / "none")


SEEN = [{"data": "animals train", "images": 300, "of": 400}]


def test_a_gain_on_images_that_only_the_candidate_was_trained_on_fails(tmp_path: Path) -> None:
    old, new, _ = _records(tmp_path, seen=SEEN, fingerprints={"split:test": "00", "weights": "new"})
    (found,) = _gate(old, new)
    assert found.outcome == "fail"
    assert found.why == f"{new}: trained on animals train: 300 of 400 images, of which {old} says nothing"


def test_images_that_both_were_trained_on_are_named_and_fail_nothing(tmp_path: Path) -> None:
    right = np.ones(400, dtype=bool)
    for folder, model, weights in (("old", "m", "a"), ("new", "m", "b")):
        of = {"split:test": "00", "weights": weights}
        write_model(tmp_path / folder, model, right, seen=SEEN, fingerprints=of)
    old, new = tmp_path / "old", tmp_path / "new"
    (found,) = _gate(old, new)
    assert (found.outcome, found.why) == ("pass", "trained on animals train: 300 of 400 images")
    assert "| ✅ | m | animals-zs |" in gate_report.summary([found], 0.5, 0.1, 0.05)
    assert found.why in gate_report.summary([found], 0.5, 0.1, 0.05)
    right[:20] = False
    write_model(new, "m", right, seen=SEEN, fingerprints={"split:test": "00", "weights": "b"})
    (found,) = _gate(old, new)
    assert found.outcome == "fail"
    assert found.why.startswith("dropped by 5.00")
    assert found.why.endswith("; trained on animals train: 300 of 400 images")


def test_the_same_model_whose_card_tells_more_now_passes(tmp_path: Path) -> None:
    same = {"split:test": "00", "weights": "a"}
    write_model(tmp_path / "old", "m", np.ones(40, dtype=bool), fingerprints=same)
    write_model(tmp_path / "new", "m", np.ones(40, dtype=bool), fingerprints=same, seen=SEEN)
    assert [c.outcome for c in _gate(tmp_path / "old", tmp_path / "new")] == ["pass"]


def test_a_stray_copy_of_a_record_decides_nothing(tmp_path: Path) -> None:
    old, new, stored = _records(tmp_path, 0.9)
    better = old / "m" / stored.path.name
    (new / "m" / "animals-zs (1).json").write_bytes(better.read_bytes())
    for sides in ((old, new), (new, old)):
        with pytest.raises(DataError, match="is a record of m on animals-zs, whose own place is"):
            _gate(*sides)
    with pytest.raises(DataError, match="is the folder of the model m"):
        _gate(old / "m", new)


# --------------------------------------------------------------------- command


def _run(*arguments: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clipbench", "gate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | env, check=False)


def test_the_command_for_ci(tmp_path: Path) -> None:
    old, new, _ = _records(tmp_path, 0.96)
    write_model(new, "m", np.ones(9, dtype=bool), task="c-zs")
    step, junit = tmp_path / "step.md", tmp_path / "out" / "gate.xml"
    step.write_text("before\n")
    at = ("--baseline", old, "--candidate", new, "--junit", junit)
    done = _run(*at, GITHUB_STEP_SUMMARY=str(step))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("### clipbench gate: 1 of 2 checks failed")
    assert "| ❌ | m | animals-zs | acc1 | 100.00 | 96.00 | -4.00 (" in done.stdout
    assert step.read_text() == "before\n" + done.stdout
    tree = ElementTree.parse(junit).getroot()
    assert (tree.get("tests"), tree.get("failures"), tree.get("skipped")) == ("2", "1", "1")
    (failure,) = tree.iter("failure")
    assert "dropped by 4.00" in str(failure.get("message"))
    assert [case.get("name") for case in tree.iter("testcase")] == ["animals-zs", "c-zs"]
    passed = _run(*at, "--max-drop", "9", "--json")
    assert passed.returncode == 0
    assert [check["outcome"] for check in json.loads(passed.stdout)] == ["pass", "new"]
    assert _run("--baseline", tmp_path / "none", "--candidate", new).returncode == 2


def test_the_action_and_the_readmes_workflow_say_what_the_command_takes() -> None:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    readme = (ROOT / "README.md").read_text()
    workflow = yaml.safe_load(readme.split("```yaml\nname: clipbench\n")[1].split("```")[0])
    (step,) = [
        s for job in workflow["jobs"].values() for s in job["steps"] if "with" in s and "tasks" in s["with"]
    ]
    assert set(step["with"]) <= set(action["inputs"])
    needed = {name for name, given in action["inputs"].items() if given.get("required")}
    assert needed <= set(step["with"])
    run = " ".join(s["run"] for s in action["runs"]["steps"] if "run" in s)
    assert "${{" not in run  # inputs are no part of a script
    used = {word for word in run.split() if word.startswith("--")}
    help_text = (
        _run("--help").stdout
        + subprocess.run(
            [sys.executable, "-m", "clipbench", "eval", "--help"], capture_output=True, text=True, check=True
        ).stdout
    )
    assert all(option in help_text for option in used)
