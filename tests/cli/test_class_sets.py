"""Tasks on some of a data set's classes, from the command line to the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import commandline
import pyarrow.parquet as pq
import pytest
import small
from commandline import Place, Run, mended

from clipbench.records import store
from clipbench.records.record import Record

one_thread = small.one_thread
run, place = commandline.run, commandline.place
SETS = {
    "few": {"indices": [4, 0], "rows": {"test": 24}},
    "kinds": {"indices": [[3, 2], 1], "classes": ["farm", "dog"]},
    "named": {"classes": ["one", "two", "three", "two", "five"], "templates": ["{c}"]},
}


@pytest.fixture
def sets(place: Place) -> Place:
    """The small set, with class sets, and a card of its own for one of them."""
    small.write_task(place.cards, class_sets=SETS)
    base = {"card": "animals", "classes": "few"}
    own = {"title": "Few", "source": {"local": True}, "splits": {"test": {"name": "test"}}}
    (place.cards / "few.yaml").write_text(json.dumps(own | {"base": base, "protocols": {"zs": {}}}))
    for name in ("pig", "cat"):
        (place.root / "few" / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        (place.root / "few" / "test" / name).symlink_to(place.root / "data" / "test" / name)
    return place


def records(place: Place) -> dict[str, Record]:
    return {stored.record.task: stored.record for stored in store.read_all(place.results)}


def samples(place: Place, task: str) -> list[dict[str, Any]]:
    (stored,) = [one for one in store.read_all(place.results) if one.record.task == task]
    rows: list[dict[str, Any]] = pq.read_table(store.samples_path(stored.path)).to_pylist()
    return rows


def test_a_task_on_some_classes_equals_a_card_of_these_alone(run: Run, sets: Place) -> None:
    """Their images in folders of their own, the classes in the set's order: the same scores to the last bit."""
    few = ["--task", "few-zs", "--data", f"few={sets.root / 'few'}"]
    done = run(*sets.eval("--task", "animals-zs@few", *few))
    assert done.code == 0, done.err
    found = records(sets)
    own, part = found["few-zs"], found["animals-zs@few"]
    assert part.scores["acc1"].n == 24
    assert part.scores == own.scores
    assert part.per_class == own.per_class
    assert part.scores["acc1"].chance == 0.5
    (note,) = [note for note in part.notes if note.kind == "other-classes"]
    assert (note.count, note.examples) == (36, ("dog", "cow", "hen"))
    assert part.protocol.params["classes"] == "few"
    assert part.cards.task["classes"] == ["pig", "cat"]
    assert part.fingerprints["task_card"] != found["animals-zs"].fingerprints["task_card"]


def test_rows_of_the_whole_are_encoded_once(run: Run, sets: Place) -> None:
    assert run(*sets.eval()).code == 0
    assert run(*sets.eval("--task", "animals-zs@few", "--task", "animals-zs@named")).code == 0
    found = records(sets)
    assert found["animals-zs@few"].timing.images_encoded == 0
    assert found["animals-zs@named"].timing.images_encoded == 0
    assert run(*sets.eval("--task", "animals-zs@few", "--limit", "6")).code == 0
    limited = records(sets)["animals-zs@few"]
    assert (limited.scores["acc1"].n, limited.limit) == (6, 6)


def test_folded_classes_and_other_names(run: Run, sets: Place) -> None:
    assert run(*sets.eval("--task", "animals-zs@kinds", "--task", "animals-zs@named")).code == 0
    found = records(sets)
    assert found["animals-zs@kinds"].scores["acc1"].n == 36
    whole = {row["id"]: row["target"] for row in samples(sets, "animals-zs")}
    fold = {row["id"]: row["target"] for row in samples(sets, "animals-zs@kinds")}
    assert fold == {i: {2: 0, 3: 0, 1: 1}[c] for i, c in whole.items() if c in (1, 2, 3)}
    assert found["animals-zs@named"].evidence["same_prompts"] == [["two (1)", "two (3)"]]
    assert "other-classes" not in {note.kind for note in found["animals-zs@named"].notes}


def test_such_records_may_stand_on_the_leaderboard(run: Run, sets: Place) -> None:
    """24 samples are all that the set has, though the split has more."""
    assert run(*sets.eval("--task", "animals-zs@few")).code == 0
    done = run("check", "--cards", sets.cards, "--results", sets.results)
    assert done.code == 0, done.err
    assert records(sets)["animals-zs@few"].cards.task["splits"] == {"test": {"name": "test", "rows": 24}}


def test_list_and_show_have_the_sets(run: Run, sets: Place) -> None:
    rows = json.loads(run("list", "tasks", "--json", "--cards", sets.cards).out)
    classes = {row["id"]: row["classes"] for row in rows}
    assert classes["animals-zs@few"] == classes["animals-zs@kinds"] == 2
    assert "@few @kinds @named" in run("list", "tasks", "--cards", sets.cards).said
    assert "kinds: 2 classes" in run("show", "animals", "--cards", sets.cards).out
    assert json.loads(run("show", "animals-zs@few", "--json", "--cards", sets.cards).out)["dataset"][
        "classes"
    ] == ["pig", "cat"]


def test_data_inputs_asks_for_the_images_of_the_set_alone(run: Run, sets: Place, tmp_path: Path) -> None:
    def asked(*tasks: str) -> tuple[int, list[str]]:
        out = tmp_path / "-".join(tasks)
        data = ("--data", f"animals={sets.root / 'data'}")
        done = run("data", "inputs", *tasks, "--cards", sets.cards, *data, "--out", out)
        assert done.code == 0, done.err
        ids = json.loads(next(out.rglob("*.ids.json")).read_text())
        return len(ids), json.loads((out / "texts.json").read_text())

    assert asked("animals-zs@few") == (24, ["a photo of a pig.", "pig", "a photo of a cat.", "cat"])
    assert asked("animals-zs@few", "animals-zs@kinds")[0] == 60


def test_an_unknown_set_names_the_nearest(run: Run, sets: Place) -> None:
    mended(run(*sets.eval("--task", "animals-zs@fwe")), 'did you mean "animals-zs@few"?')
