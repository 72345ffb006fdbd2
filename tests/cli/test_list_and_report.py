"""`clipbench list`, `show`, `report` and `check`: what they print of cards and records."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path

import commandline
import pytest
import small
from commandline import Place, Run
from recorded import make_record

from clipbench.records import store

one_thread = small.one_thread
run, place = commandline.run, commandline.place


TASK_IDS = ["animals-zs", "animals-zs@simple"]


@pytest.mark.parametrize("kind", ["models", "tasks", "suites", "recipes"])
def test_list_shows_every_id_whole_at_80_columns(
    run: Run, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = json.loads(run("list", kind, "--json").out)
    done = run("list", kind)
    assert done.code == 0
    assert rows
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 80
    first = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    assert [row["id"] for row in rows if "@" not in row["id"]] == first[2:]  # after the head and its rule
    count = Counter(row["id"].partition("@")[0] for row in rows)
    for row in rows:
        name, _, variant = row["id"].partition("@")
        assert (
            not variant
            or (count[name] > 24 and f"{count[name] - 1} in all" in done.out)
            or f"@{variant}" in done.out
            or (variant.endswith("-shot") and "@{1,2,4,8,16}-shot" in done.out)
        )


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("digits-clip-lite", "preprocess"),
        ("clip-rn50", "reported"),
        ("digits-zs", "protocol"),
        ("imagenet-zs@best7", "protocol"),
        ("digits", "classes"),
        ("declip-11-zs", "tasks"),
        ("clip-lite-digits", "objective"),
        ("open_clip:RN50@openai", "preprocess"),
    ],
)
def test_show_gives_any_card_as_text_and_as_json(run: Run, name: str, key: str) -> None:
    value = json.loads(run("show", name, "--json").out)
    assert value[key]
    done = run("show", name)
    assert done.code == 0
    assert done.out.startswith(name)


def test_show_gives_a_record_and_a_run_folder(run: Run, place: Place) -> None:
    run(*place.eval("--quiet"))
    (path,) = store.paths(place.results)
    assert json.loads(run("show", path, "--json").out) == json.loads(path.read_text())
    assert "acc1" in run("show", path).out
    assert json.loads(run("show", place.root / "run", "--json").out)["title"] == "Small 0"


def test_show_resolves_a_variants_params(run: Run) -> None:
    value = json.loads(run("show", "digits-zs@simple", "--json").out)
    assert value["protocol"] == {
        "name": "zs",
        "version": 2,
        "params": {"primary": "acc1", "templates": "simple", "split": "test", "difficult": None},
    }


def test_report_in_every_format(run: Run, place: Place) -> None:
    run(*place.eval("--quiet", "--task", "animals-zs@simple"))
    at = ("report", "--results", place.results)
    table = run(*at)
    assert table.code == 0
    assert all(name in table.out for name in TASK_IDS)
    markdown = run(*at, "--format", "markdown").out
    assert "\n| model | " in markdown
    assert run(*at, "--format", "latex").out.startswith("% needs")
    rows = list(csv.DictReader(io.StringIO(run(*at, "--format", "csv").out)))
    assert {row["task"] for row in rows} == set(TASK_IDS)
    found = json.loads(run(*at, "--format", "json").out)
    assert len(found) == len(rows) == 2 * 4
    assert json.loads(run(*at, "--json").out) == found


def test_report_writes_the_leaderboard_and_says_when_it_is_stale(run: Run, place: Place) -> None:
    run(*place.eval("--quiet"))
    at = ("report", "--results", place.results, "--cards", place.cards)
    missing = run(*at, "--check")
    assert missing.code == 2
    assert "--write" in missing.err
    assert run(*at, "--write").code == 0
    assert run(*at, "--check").code == 0
    run(*place.eval("--quiet", "--limit", "5"))
    stale = run(*at, "--check")
    assert stale.code == 2
    assert "is not what the records and cards say today" in stale.err


def test_report_of_a_suite_shows_what_is_missing(run: Run, place: Place) -> None:
    (place.cards / "suites.yaml").write_text("suites: {own: {title: Own, tasks: [animals-zs, digits-zs]}}")
    run(*place.eval("--quiet", "--task", "animals-zs@simple"))
    done = run("report", "--results", place.results, "--suite", "own", "--cards", place.cards, "--json")
    rows = json.loads(done.out)
    assert {row["task"] for row in rows} == {"animals-zs", "digits-zs"}
    assert [row["value"] for row in rows if row["task"] == "digits-zs"] == [None]


def test_check_of_what_ships_is_well(run: Run, place: Place) -> None:
    done = run("check", "--results", "nowhere")
    assert done.code == 0
    assert done.out.endswith("all well\n")
    counts = json.loads(run("check", "--results", "nowhere", "--json").out)
    assert counts["problems"] == []
    assert counts["tasks"] > 20


def test_check_names_every_problem(run: Run, place: Place) -> None:
    run(*place.eval("--quiet"))
    (path,) = store.paths(place.results)
    path.write_text(path.read_text()[:100])
    card = json.loads((place.root / "run" / "card.yaml").read_text())
    (place.cards / "lost.yaml").write_text(json.dumps(card | {"weights": {"file": "lost.safetensors"}}))
    (place.root / "cards" / "model.safetensors").write_bytes(b"other")
    (place.cards / "changed.yaml").write_text(json.dumps(card))
    done = run("check", "--results", place.results, "--cards", place.cards)
    assert done.code == 2
    assert "3 problems" in " ".join(done.out.split())
    assert done.err.count("✗") == 3
    for word in ("not a whole record", "no checkpoint at", "is not the file that the card means"):
        assert word in done.err


@pytest.mark.parametrize(
    "command",
    [
        *(
            "report --results R",
            "report --results R --json",
            "report --results R --check",
            "site --results R",
        ),
        *("export --format clip-benchmark-csv --results R", "log --to tensorboard --results R"),
        *(
            "gate --baseline R --candidate R",
            "compare small small --results R",
            "compare R R",
            "check --results R",
        ),
    ],
)
def test_every_command_refuses_a_stray_copy_of_a_record(command: str, run: Run, tmp_path: Path) -> None:
    root = tmp_path / "R"
    path = store.write(make_record(), {"id": ["a"]}, root)
    copy = root / "backup" / path.name
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    done = run(*(str(root) if word == "R" else word for word in command.split()))
    assert done.code == 2
    said = " ".join(done.err.split())
    assert f"{copy} is a record of small on digits-zs, whose own place is {path}, where there is one" in said
    assert f"delete it and digits-zs.samples.parquet, or move both out of {root}" in said


# ------------------------------------------------------------------ filters, and what suites take


def ids(done: commandline.Done) -> set[str]:
    return {row["id"] for row in json.loads(done.out)}


def test_tasks_by_kind_by_protocol_and_by_what_is_here(run: Run) -> None:
    every = ids(run("list", "tasks", "--json"))
    choices = ids(run("list", "tasks", "--kind", "choices", "--json"))
    assert choices
    assert all(name.partition("@")[0].endswith("-pick") for name in choices)
    probes = ids(run("list", "tasks", "--protocol", "lp", "--json"))
    assert probes == {name for name in every if name.partition("@")[0].endswith("-lp")}
    here = ids(run("list", "tasks", "--runnable", "--json"))
    assert "digits-zs" in here
    assert "pets-zs" not in here
    both = ids(run("list", "tasks", "--suite", "quickstart", "--protocol", "zs", "--json"))
    assert both == {"digits-zs", "digits-scenes-zs"}


def test_a_data_folder_makes_tasks_runnable(run: Run, tmp_path: Path) -> None:
    assert "pets-zs" in ids(run("list", "tasks", "--runnable", "--data", f"pets={tmp_path}", "--json"))


@pytest.mark.parametrize("flag", ["--kind", "--protocol", "--suite"])
def test_a_filter_that_names_nothing_is_an_error(run: Run, flag: str) -> None:
    commandline.mended(run("list", "tasks", flag, "choise"), "choise")
    commandline.mended(run("list", "models", flag, "zs"), f"{flag} goes with list tasks")


def test_suites_count_each_split_once(run: Run) -> None:
    rows = {row["id"]: row for row in json.loads(run("list", "suites", "--json").out)}
    quick = rows["quickstart"]
    assert (quick["tasks"], quick["here"]) == (6, 6)
    assert rows["imagenet-prompts"]["images"] == 50_000  # three tasks on one split
    assert rows["imagenet-prompts"]["gpu_minutes"] == pytest.approx(50_000 / 1_000 / 60)
    zero_shot, probe = rows["declip-11-zs"]["images"], rows["declip-11-lp"]["images"]
    assert rows["declip-11"]["images"] == probe > zero_shot
