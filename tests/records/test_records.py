"""Records: round trips, atomic storage, provenance, and errors that name the file."""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from recorded import SAMPLES, make_record

from clipbench.errors import DataError, StorageError
from clipbench.metrics.intervals import Score
from clipbench.records import store
from clipbench.records.record import (
    SCHEMA_VERSION,
    _git_state,
    by_class,
    environment,
    same,
    to_json,
    utc_now,
)
from clipbench.records.store import Column
from clipbench.utils.package import PACKAGE

# ----------------------------------------------------------------- round trips


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    record = make_record(skipped=({"id": "x", "reason": "truncated"},), limit=20)
    path = store.write(record, SAMPLES, tmp_path)
    assert path == tmp_path / "small" / "digits-zs.json"
    found = store.read(path)
    assert same(found.record, record)
    assert found.seal == "whole"
    assert store.samples_intact(found)
    table = pq.read_table(store.samples_path(path))
    assert table.to_pydict() == {"id": ["a", "b"], "correct": [True, False], "rank": [0, 3]}
    assert sorted(p.name for p in path.parent.iterdir()) == ["digits-zs.json", "digits-zs.samples.parquet"]


def test_the_file_holds_exactly_the_documented_keys(tmp_path: Path) -> None:
    value = json.loads(store.write(make_record(), SAMPLES, tmp_path).read_text())
    assert set(value) == {
        *("schema_version", "model", "task", "protocol", "primary", "scores", "per_class", "seed", "limit"),
        *(
            "skipped",
            "notes",
            "seen",
            "precision",
            "device",
            "env",
            "fingerprints",
            "timing",
            "encoder",
            "evidence",
            "cards",
            "created",
            "samples_sha256",
            "digest",
        ),
    }
    assert value["schema_version"] == 3
    assert value["scores"]["acc1"] == {"value": 0.75, "ci95": [0.7, 0.8], "n": 360, "chance": 0.1}
    assert sorted(value["protocol"]) == ["name", "params", "version"]
    assert sorted(value["env"]) == ["commit", "dirty", "packages", "platform", "python"]


def test_equal_records_give_equal_bytes_whatever_the_order_of_keys() -> None:
    record = make_record()
    turned = make_record(scores=dict(reversed(record.scores.items())))
    assert to_json(turned) == to_json(record)


def test_same_is_equality_timing_aside() -> None:
    record = make_record()
    slower = record.timing.model_dump() | {"total_s": 99.0}
    assert same(record, make_record(timing=slower, created="2026-02-03T04:05:06+00:00"))
    assert not same(record, make_record(seed=1))
    assert not same(record, make_record(scores={"acc1": Score(0.7501, (0.7, 0.8), 360, 0.1)}))


def test_read_all_takes_every_record_and_leaves_other_results_alone(tmp_path: Path) -> None:
    b = store.write(make_record(model="b"), SAMPLES, tmp_path)
    a = store.write(make_record(model="a"), SAMPLES, tmp_path)
    (tmp_path / "parity").mkdir()
    (tmp_path / "parity" / "comparison.json").write_text("{}")
    (tmp_path / "theirs.json").write_text("{}")
    assert [(stored.path, stored.record.model) for stored in store.read_all(tmp_path)] == [(a, "a"), (b, "b")]
    assert store.path_of("parity", "digits-zs", tmp_path).parent.name.startswith("parity-")


# ------------------------------------------------------------------ at its place


def _misplaced(kind: str, root: Path) -> tuple[Path, Path]:
    """A record of `small` on digits-zs below `root` at another place than its own; that, and its own."""
    own = store.write(make_record(), SAMPLES, root)
    places = {
        "copy": own.with_name("digits-zs (1).json"),
        "hidden": own.with_name(".digits-zs.json"),
        "other model's folder": root / "other" / own.name,
        "other task's name": own.with_name("animals-zs.json"),
        "letter case": root / "Small" / own.name,
        "checkpoint": root / ".ipynb_checkpoints" / "digits-zs-checkpoint.json",
        "top": root / own.name,
        "moved": root / "backup" / own.name,
        "link": own.with_name("latest.json"),
        "linked folder": root / "Small" / own.name,
    }
    place = places[kind]
    if kind == "linked folder":
        place.parent.symlink_to(own.parent, target_is_directory=True)
    elif kind == "link":
        place.symlink_to(own)
    else:
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(own.read_bytes())
        if kind == "moved":
            own.unlink()
    return place, own


@pytest.mark.parametrize(
    "kind",
    [
        *("copy", "hidden", "other model's folder", "other task's name", "letter case", "checkpoint", "top"),
        *("moved", "link", "linked folder"),
    ],
)
def test_a_record_at_a_place_that_is_not_its_own_is_an_error(kind: str, tmp_path: Path) -> None:
    place, own = _misplaced(kind, tmp_path)
    with pytest.raises(DataError) as caught:
        list(store.read_all(tmp_path))
    assert f"{place} is a record of small on digits-zs, whose own place is {own}" in str(caught.value)
    assert ("where there is one" in str(caught.value)) == (kind != "moved")
    assert ("move it there and digits-zs.samples.parquet" in str(caught.value.hint)) == (kind == "moved")


def test_links_to_a_folder_and_a_file_system_that_folds_case_are_no_other_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = store.write(make_record(), SAMPLES, tmp_path / "kept")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "small").symlink_to(own.parent, target_is_directory=True)
    assert [stored.record.model for stored in store.read_all(tmp_path / "results")] == ["small"]
    # Where case is folded, Small/… opens small/…, and a folder lists one of the two names.
    folded = tmp_path / "folded" / "Small" / own.name
    folded.parent.mkdir(parents=True)
    folded.write_bytes(own.read_bytes())
    with pytest.raises(DataError, match="whose own place"):
        store.read(folded, tmp_path / "results")
    monkeypatch.setattr(Path, "is_file", lambda path: path.parent.name == "small")
    monkeypatch.setattr(Path, "samefile", lambda path, other: True)
    assert store.read(folded, tmp_path / "results").record.model == "small"


def test_a_models_own_folder_is_not_a_folder_of_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = store.write(make_record(), SAMPLES, tmp_path)
    with pytest.raises(DataError) as caught:
        list(store.read_all(own.parent))
    assert f"{own.parent} is the folder of the model small, not a folder of such" in str(caught.value)
    assert caught.value.hint == f"name the folder above it: {tmp_path}"
    monkeypatch.chdir(own.parent)
    with pytest.raises(DataError) as caught:
        list(store.read_all(Path()))
    assert caught.value.hint == f"name the folder above it: {tmp_path}"


# --------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"primary": "acc5"}, 'primary metric "acc5" has no score'),
        ({"scores": {}}, "at least one score"),
        ({"created": "2025-01-01T00:00:00"}, "UTC"),
        ({"created": "2025-01-01T00:00:00+02:00"}, "UTC"),
        ({"per_class": {"recall": {"zero": float("nan")}}}, "finite"),
        ({"limit": 0}, "limit"),
        ({"seen": [{"data": "animals train", "images": 0, "of": 9}]}, r"seen.0.images\n.*greater than 0"),
        ({"surplus": 1}, "surplus"),
        ({"cards": {"model": {"reported": [{"task": "t"}]}, "task": {}}}, "cards.model"),
    ],
)
def test_a_record_that_contradicts_itself_is_not_made(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        make_record(**changes)


def test_a_single_image_may_have_been_seen() -> None:
    (seen,) = make_record(seen=[{"data": "animals train", "images": 1, "of": 1}]).seen
    assert seen.text == "animals train: 1 of 1 images"


NOTHING = dict.fromkeys(
    ("load_s", "encode_images_s", "encode_texts_s", "score_s", "total_s", "images_per_s"), 0.0
) | dict.fromkeys(("images_encoded", "texts_encoded"), 0)


@pytest.mark.parametrize("name", NOTHING)
def test_no_time_and_no_count_is_below_0(name: str) -> None:
    assert make_record(timing=NOTHING).timing.model_dump(exclude={"stages"}) == NOTHING
    with pytest.raises(ValidationError, match=rf"timing\.{name}\n.*greater than or equal to 0"):
        make_record(timing=NOTHING | {name: -1})


def test_json_never_holds_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finite"):
        store.write(make_record(encoder={"ratio": float("nan")}), SAMPLES, tmp_path)


def test_a_broken_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = store.write(make_record(), SAMPLES, tmp_path)
    whole = path.read_text()
    value = json.loads(whole)
    cases = {
        whole[: len(whole) // 2]: "not a whole record: line",
        "[]": "schema_version is null",
        json.dumps(value | {"schema_version": 4}): "schema_version is 4; this clipbench reads 1 to 3",
        json.dumps(value | {"schema_version": 1, "seed": "0"}): "seed: ",
        json.dumps(value | {"seed": "0"}): "seed: ",
        json.dumps({k: v for k, v in value.items() if k != "env"}): "env: ",
        whole.replace("0.75", "NaN"): "scores.acc1",
    }
    for text, problem in cases.items():
        path.write_text(text)
        with pytest.raises(DataError) as caught:
            store.read(path)
        assert str(path) in str(caught.value)
        assert problem in str(caught.value)
        assert caught.value.hint
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="UTF-8"):
        store.read(path)
    with pytest.raises(DataError, match="cannot be read"):
        store.read(tmp_path / "none.json")


def test_a_missing_results_folder_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"clipbench eval(.|\n)*--results"):
        store.read_all(tmp_path / "none")


def test_an_unwritable_results_folder_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file, not a folder")
    with pytest.raises(StorageError, match=r"results(.|\n)*--results DIR"):
        store.write(make_record(), SAMPLES, tmp_path / "results")


def test_a_full_disk_leaves_the_old_record_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = store.write(make_record(), SAMPLES, tmp_path)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"No space left(.|\n)*--results DIR"):
        store.write(make_record(seed=7), SAMPLES, tmp_path)
    assert store.read(path).record.seed == 0
    assert len(list(path.parent.iterdir())) == 2


# ----------------------------------------------------------------------- seal

FIXTURES = Path(__file__).parents[1] / "fixtures" / "records"


@pytest.mark.parametrize("change", ["value", "interval", "limit", "digest", "samples_sha256", "none"])
def test_an_edit_by_hand_breaks_the_seal(change: str, tmp_path: Path) -> None:
    path = store.write(make_record(limit=20), SAMPLES, tmp_path)
    edits = {
        "value": ('"value": 0.75', '"value": 0.76'),
        "interval": ("0.8\n", "0.81\n"),
        "limit": ('"limit": 20', '"limit": null'),
        "digest": ('"digest": "', '"digest": "0'),
        "samples_sha256": ('"samples_sha256": "', '"samples_sha256": "0'),
        "none": ("", ""),
    }
    old, new = edits[change]
    text = path.read_text()
    edited = text.replace(old, new, 1)
    if change in ("digest", "samples_sha256"):  # as long as before
        line = next(line for line in edited.splitlines() if f'"{change}"' in line)
        edited = edited.replace(line, line.rstrip('",')[:-1] + line[-2:].lstrip("0123456789abcdef"))
    path.write_text(edited)
    assert store.read(path).seal == ("whole" if change == "none" else "broken")


def test_spacing_and_the_order_of_keys_do_not_break_the_seal(tmp_path: Path) -> None:
    path = store.write(make_record(), SAMPLES, tmp_path)
    value = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(value.items()))))
    assert store.read(path).seal == "whole"


def test_writing_a_record_again_seals_it_anew(tmp_path: Path) -> None:
    path = store.write(make_record(), SAMPLES, tmp_path)
    first = store.read(path).record
    assert store.write(first, SAMPLES, tmp_path) == path
    assert store.read(path).record == first
    other: dict[str, Column] = {"id": ["a", "b"], "correct": np.array([True, True])}
    store.write(first, other, tmp_path)
    changed = store.read(path)
    assert changed.seal == "whole"
    assert changed.record.samples_sha256 != first.samples_sha256
    assert store.samples_intact(changed)
    store.samples_path(path).write_bytes(b"other")
    assert not store.samples_intact(changed)
    store.samples_path(path).unlink()
    assert not store.samples_intact(changed)


def test_records_of_every_schema_version_are_read() -> None:
    found = {int(path.stem[1:]): store.read(path) for path in sorted(FIXTURES.glob("v*.json"))}
    assert sorted(found) == list(range(1, SCHEMA_VERSION + 1))
    assert [found[version].seal for version in sorted(found)] == ["none", "whole", "whole"]
    for version, stored in found.items():
        value = json.loads(stored.path.read_text())
        assert value["schema_version"] == version
        assert stored.record.schema_version == SCHEMA_VERSION
        kept = json.loads(to_json(stored.record))
        assert {k: kept[k] for k in value if k != "schema_version"} == {
            k: v for k, v in value.items() if k != "schema_version"
        }


# --------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "identifier",
    ["open_clip:RN50@/path/to/a.pt", "../../etc", "runs/digits", ".", "a b", "ü", "x" * 300, "studies"],
)
def test_any_id_becomes_one_safe_folder_below_the_root(identifier: str, tmp_path: Path) -> None:
    name = store.file_name(identifier)
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert len(name) < 120
    assert not name.startswith((".", "-"))
    path = store.write(make_record(model=identifier), SAMPLES, tmp_path)
    (stored,) = store.read_all(tmp_path)
    assert stored.path == path
    assert same(stored.record, make_record(model=identifier))


def test_different_ids_never_share_a_folder() -> None:
    ids = ["a/b", "a:b", "a-b", "a//b", "a b", "-a-b"]
    assert len({store.file_name(i) for i in ids}) == len(ids)
    assert store.file_name("clip-vit-b32") == "clip-vit-b32"


@pytest.mark.parametrize(
    "classes", [["crane", "maillot", "crane", "maillot"], ["a", "a", "a (#0)", "b"], ["a", "b", "c", "d"]]
)
def test_per_class_values_keep_every_class(classes: list[str]) -> None:
    named = by_class(classes, np.array([0.0, 0.25, np.nan, 0.75]))
    assert list(named.values()) == [0.0, 0.25, None, 0.75]


# ---------------------------------------------------------------- environment


def _git(folder: Path, *arguments: str) -> None:
    author = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    subprocess.run(["git", "-C", str(folder), *author, *arguments], check=True, capture_output=True, env=env)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    _git(tmp_path, "init")
    (tmp_path / "results").mkdir()
    for name in ("code.py", "results/old.json"):
        (tmp_path / name).write_text("1")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-m", "first")
    return tmp_path


def test_dirty_means_changes_outside_results(checkout: Path) -> None:
    commit, dirty = _git_state(checkout)
    assert commit is not None
    assert len(commit) == 40
    assert dirty is False
    (checkout / "results" / "old.json").write_text("2")
    (checkout / "results" / "new.json").write_text("2")
    assert _git_state(checkout) == (commit, False)
    (checkout / "code.py").write_text("2")
    assert _git_state(checkout) == (commit, True)


def test_a_record_made_in_a_checkout_names_its_commit() -> None:
    if not (PACKAGE.parent / ".git").exists():
        pytest.skip("the package is not one of a checkout")
    assert len(environment().commit or "") == 40


def test_an_untracked_source_file_is_dirty_too(checkout: Path) -> None:
    (checkout / "new.py").write_text("1")
    assert _git_state(checkout)[1] is True


def test_a_repository_around_an_installed_wheel_is_not_ours(checkout: Path) -> None:
    site_packages = checkout / "venv" / "site-packages"
    site_packages.mkdir(parents=True)
    assert _git_state(site_packages) == (None, None)


def test_a_repository_without_a_commit_has_none(tmp_path: Path) -> None:
    _git(tmp_path, "init")
    assert _git_state(tmp_path) == (None, None)


def test_git_variables_of_a_hook_do_not_lead_astray(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _git_state(checkout)
    monkeypatch.setenv("GIT_DIR", str(checkout / "nowhere"))
    assert _git_state(checkout) == expected


def test_without_git_the_commit_is_unknown(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert _git_state(checkout) == (None, None)


def test_environment_names_the_packages_that_move_numbers() -> None:
    env = environment()
    assert env.packages["numpy"] == np.__version__
    assert {"torch", "open_clip_torch", "scikit-learn", "datasets", "pillow"} <= set(env.packages)


def test_now_is_a_time_that_records_take() -> None:
    assert make_record(created=utc_now())


@pytest.mark.parametrize(
    ("model", "task", "word"),
    [("Tiny", "digits-zs", "model"), ("tiny", "Digits-zs", "task"), ("TINY", "digits-zs", "model")],
)
def test_names_that_differ_in_case_alone_are_refused(
    model: str, task: str, word: str, tmp_path: Path
) -> None:
    first = make_record(model="tiny", task="digits-zs")
    path = store.write(first, SAMPLES, tmp_path)
    other = make_record(model=model, task=task)
    for force in (False, True):
        with pytest.raises(
            StorageError, match=rf"whose name differs from that of the {word} .* in upper and lower"
        ) as caught:
            store.write(other, SAMPLES, tmp_path, force=force)
        assert "--results DIR" in str(caught.value.hint)
    assert [stored.record.model for stored in store.read_all(tmp_path)] == ["tiny"]
    assert store.write(first, SAMPLES, tmp_path) == path  # its own place is its own
    assert store.write(other, SAMPLES, tmp_path / "elsewhere").is_file()


def test_names_that_differ_in_their_normal_form_have_files_of_their_own(tmp_path: Path) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"
    paths = {store.write(make_record(model=m), SAMPLES, tmp_path) for m in (composed, apart)}
    assert len({path.parent.name.casefold() for path in paths}) == 2
    assert all(path.parent.name.isascii() for path in paths)
    own = store.path_of(composed, "digits-zs", tmp_path).parent
    assert own.name.casefold() not in store.RESERVED
    assert {store.file_name(name).casefold() for name in ("Bench", "bench", "PARITY")}.isdisjoint(
        store.RESERVED
    )


def test_a_folder_of_another_program_with_a_like_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Tiny").mkdir()
    with pytest.raises(StorageError, match="Tiny is there, whose name differs"):
        store.write(make_record(model="tiny"), SAMPLES, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["Tiny"]


@pytest.mark.parametrize(
    "column",
    [
        np.arange(5), np.arange(10, dtype=np.uint8)[::2], np.array([1.5, np.nan]), np.array([1], np.float32),
        np.array(["a", "é", ""], dtype=object), np.array(["a", "bc"]), [1, 2], [1.5, math.nan], [1, 2.5], [None, 1.0],
        [None, "a"], [True, False], [], [np.arange(3), np.arange(0), np.arange(2)], [["a"], [], ["b", "c"]],
        [np.array(["a"], object), np.array(["b", "c"], object)], [[1.0], [None, 2.0]], [[], []], [[[1.0], []], [[2.0]]],
        list(np.eye(3, dtype=np.float32)), list(np.eye(2, dtype=np.uint8)), np.zeros(0), [(1, 2), (3,)],
    ],
    ids=repr,
)  # fmt: skip
def test_columns_are_what_pyarrow_makes_of_them(column: Any) -> None:
    found, expected = store._arrow(column), pa.array(column)
    found.validate(full=True)
    assert (found.type, str(found)) == (expected.type, str(expected))
