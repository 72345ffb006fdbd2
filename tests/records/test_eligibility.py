"""What keeps a record off the leaderboard, and that each reason says why."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from recorded import make_record

import clipbench
from clipbench.cards.base import fingerprint
from clipbench.catalog import Catalog
from clipbench.errors import CardError
from clipbench.metrics.intervals import Score
from clipbench.protocols import registry
from clipbench.protocols.registry import protocol_ids
from clipbench.records import eligibility, store
from clipbench.records.check import check
from clipbench.records.eligibility import Eligibility
from clipbench.records.record import ProtocolUsed, Record
from clipbench.records.store import Column
from clipbench.report import dataframe

MODEL: dict[str, Any] = {
    "title": "Own",
    "family": "dual",
    "config": {
        "image": {"kind": "convnet", "width": 8, "stages": 2, "blocks": 1},
        "text": {"kind": "bytes", "width": 16, "layers": 1, "heads": 2, "context_length": 24},
        "embed_dim": 16,
        "projection": "linear",
    },
    "preprocess": {"size": 8, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    "weights": {"file": "own.safetensors"},
}
#: which give the records' acc1 of 0.75
SAMPLES: dict[str, Column] = {"id": list("abcd"), "rank": [0, 0, 0, 3]}
TASK: dict[str, Any] = {
    "title": "Animals",
    "source": {"local": True},
    "splits": {"test": {"name": "test", "rows": 360}},
    "classes": ["cat", "dog"],
    "templates": {"default": ["a photo of a {c}."]},
    "prompts_source": "ours",
    "protocols": {"zs": {"variants": {"other": {"primary": "mean_per_class_recall"}}}},
}


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    folder = tmp_path / "cards"
    for kind, name, card in (("model_cards", "own", MODEL), ("tasks", "animals", TASK)):
        (folder / kind).mkdir(parents=True)
        (folder / kind / f"{name}.yaml").write_text(json.dumps(card))
    (folder / "model_cards" / "own.safetensors").write_bytes(b"weights")
    return folder


def _current(cards: Path, **changes: Any) -> Record:
    """A record of `own` on `animals-zs` that agrees with the cards."""
    catalog = Catalog([cards])
    model, task = catalog.model("own").card, catalog.task("animals-zs")
    card = task.dataset.card
    fields: dict[str, Any] = {
        "model": "own",
        "task": task.id,
        "protocol": {"name": "zs", "version": task.protocol.version, "params": task.params.canonical()},
        "fingerprints": {
            "model_card": fingerprint(model.canonical()),
            "task_card": fingerprint(card.canonical()),
            "weights": _sha(cards),
        },
        "cards": {"model": model.canonical(), "task": card.canonical()},
    }
    return make_record(**(fields | changes))


def _sha(cards: Path) -> str:
    from clipbench.data.digests import sha256_file

    return sha256_file(cards / "model_cards" / "own.safetensors")


def _reasons(record: Record, cards: Path, root: Path) -> dict[str, str]:
    stored = store.read(store.write(record, SAMPLES, root / "results"))
    return {reason.kind: reason.text for reason in Eligibility(Catalog([cards])).reasons(stored)}


def _change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_whole_current_record_stands(cards: Path, tmp_path: Path) -> None:
    assert _reasons(_current(cards), cards, tmp_path) == {}


def test_each_fault_is_a_reason_of_its_own(cards: Path, tmp_path: Path) -> None:
    env = make_record().env.model_dump()
    assert _reasons(_current(cards, limit=20), cards, tmp_path) == {"limited": "limited: --limit 20"}
    assert list(_reasons(_current(cards, env=env | {"dirty": True}), cards, tmp_path)) == ["dirty"]
    installed = _current(cards, env=env | {"dirty": None, "commit": None})
    assert _reasons(installed, cards, tmp_path) == {}
    fewer = make_record().scores["acc1"]
    short = _current(cards, scores={"acc1": type(fewer)(0.5, (0.4, 0.6), 100, 0.5)})
    assert _reasons(short, cards, tmp_path) == {"partial": "partial: 100 of the split's 360 samples"}


@pytest.mark.parametrize(("rows", "partial"), [(360, True), (359, False), (358, False)])
def test_samples_that_were_skipped_and_named_are_not_lacking(
    rows: int, partial: bool, cards: Path, tmp_path: Path
) -> None:
    _change(cards / "tasks/animals.yaml", splits={"test": {"name": "test", "rows": rows}})
    # 349 were scored and 10 could not be read: of 359
    scores = {"acc1": Score(0.75, (0.7, 0.8), 349, 0.5)}
    record = _current(cards, scores=scores, skipped=[{"id": "x", "reason": "truncated"}] * 10)
    assert eligibility.lacking(record) == (rows if partial else None)
    said = {"partial": f"partial: 349 of the split's {rows} samples"} if partial else {}
    assert _reasons(record, cards, tmp_path) == said


def test_a_score_changed_by_hand_and_a_record_without_a_seal_are_named(cards: Path, tmp_path: Path) -> None:
    path = store.write(_current(cards), SAMPLES, tmp_path)
    eligibility = Eligibility(Catalog([cards]))
    text = path.read_text()
    path.write_text(text.replace("0.75", "0.95"))
    assert [reason.kind for reason in eligibility.reasons(store.read(path))] == ["edited"]
    value = json.loads(text) | {"schema_version": 1}
    for key in ("digest", "samples_sha256"):
        del value[key]
    path.write_text(json.dumps(value))
    assert [reason.kind for reason in eligibility.reasons(store.read(path))] == ["unsealed"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda f: _change(
                f / "model_cards/own.yaml", preprocess=MODEL["preprocess"] | {"resize": "squash"}
            ),
            "model card changed: preprocess.resize shortest → squash",
        ),
        (
            lambda f: _change(
                f / "model_cards/own.yaml",
                family="clip",
                config={"arch": "RN50", "quick_gelu": False},
                text={"clean": "canonicalize"},
            ),
            ", text",
        ),
        (
            lambda f: (f / "model_cards/own.safetensors").write_bytes(b"new"),
            "the weights changed: sha256 "
            + " → ".join(sha256(data).hexdigest()[:8] for data in (b"weights", b"new")),
        ),
        (
            lambda f: _change(f / "tasks/animals.yaml", classes=["cat", "hound"]),
            "task card changed: classes",
        ),
        (
            lambda f: _change(f / "tasks/animals.yaml", templates={"default": ["{c}"], "more": ["a {c}"]}),
            "task card changed: templates.default, templates.more",
        ),
        (
            lambda f: _change(f / "tasks/animals.yaml", protocols={"zs": {"primary": "acc5"}}),
            "primary acc5 is no metric",
        ),
        (
            lambda f: _change(
                f / "tasks/animals.yaml", protocols={"zs": {"primary": "mean_per_class_recall"}}
            ),
            "protocol parameters changed: primary acc1 → mean_per_class_recall",
        ),
        (
            lambda f: _change(
                f / "tasks/animals.yaml",
                protocols={"lp": {}},
                splits={"train": {"name": "train"}, **TASK["splits"]},
            ),
            "the card of animals no longer has this task",
        ),
    ],
)
def test_what_moves_a_number_makes_a_record_stale_and_is_named(
    change: Callable[[Path], Any], said: str, cards: Path, tmp_path: Path
) -> None:
    record = _current(cards)
    change(cards)
    if said.startswith("primary"):  # a card that is wrong is an error, not a reason
        with pytest.raises(CardError):
            _reasons(record, cards, tmp_path)
        return
    found = _reasons(record, cards, tmp_path)
    assert list(found) == ["stale"]
    assert said in found["stale"]


@pytest.mark.parametrize(
    "weights",
    [
        {"file": "own.safetensors", "sha256": "ab" * 32},
        {"hf": "me/own/own.safetensors", "sha256": "abababab"},
    ],
)
def test_weights_are_those_whose_digest_the_card_states(
    weights: dict[str, str], cards: Path, tmp_path: Path
) -> None:
    """Whatever lies beside it; where it states none of weights that are elsewhere, nothing is known of them."""
    _change(cards / "model_cards/own.yaml", weights=weights)
    record = _current(cards)
    same = record.model_copy(update={"fingerprints": record.fingerprints | {"weights": "ab" * 32}})
    assert _reasons(same, cards, tmp_path) == {}
    assert f" → {'ab' * 4}" in _reasons(record, cards, tmp_path)["stale"]
    _change(cards / "model_cards/own.yaml", weights={"hf": "me/own/own.safetensors"})
    assert _reasons(_current(cards), cards, tmp_path) == {}


def test_values_of_up_to_24_characters_are_shown() -> None:
    assert eligibility._described("name", "a" * 24, "b") == f"name {'a' * 24} → b"
    assert eligibility._described("name", "a" * 25, "b") == "name"


def test_a_protocol_version_that_moved_on_is_named(cards: Path, tmp_path: Path) -> None:
    record = _current(cards)
    older = record.protocol.model_copy(update={"version": record.protocol.version + 7})
    found = _reasons(record.model_copy(update={"protocol": older}), cards, tmp_path)
    assert found == {
        "stale": f"stale: protocol zs version {older.version} → zs version {record.protocol.version}"
    }


def test_words_on_cards_and_what_has_no_card_make_nothing_stale(cards: Path, tmp_path: Path) -> None:
    record = _current(cards)
    _change(cards / "model_cards/own.yaml", title="Another title", notes="more is known", licence="MIT")
    variants = {"zs": {"variants": {"new": {"primary": "mean_per_class_recall"}}}}
    _change(cards / "tasks/animals.yaml", title="Beasts", notes="more is known", protocols=variants)
    assert _reasons(record, cards, tmp_path) == {}
    assert _reasons(make_record(model="runs/x", task="unheard-of-zs"), cards, tmp_path) == {}


# ---------------------------------------------------------------------- check


def test_check_names_what_is_stale_or_edited_and_the_way_out(cards: Path, tmp_path: Path) -> None:
    root = tmp_path / "results"
    path = store.write(_current(cards), SAMPLES, root)
    limited = _current(cards, task="animals-zs@other", limit=20)  # of its own accord, which is no fault
    store.write(limited.model_copy(update={"protocol": _other(cards)}), SAMPLES, root)
    found = check(Catalog([cards]), root)
    assert (found.problems, found.counts["records"]) == ([], 2)
    _change(cards / "tasks/animals.yaml", classes=["cat", "hound"])
    stale = check(Catalog([cards]), root).problems
    assert len(stale) == 2
    assert f"{path}: stale: task card changed: classes" in stale[0]
    assert f"clipbench eval --model own --task animals-zs --results {root}" in stale[0]
    _change(cards / "tasks/animals.yaml", classes=TASK["classes"])
    path.write_text(path.read_text().replace("0.75", "0.95"))
    (edited,) = check(Catalog([cards]), root).problems
    assert "edited by hand" in edited
    store.write(_current(cards), SAMPLES, root)
    store.samples_path(path).write_bytes(b"another")
    (swapped,) = check(Catalog([cards]), root).problems
    assert "animals-zs.samples.parquet is not the file that was written with its record" in swapped
    store.samples_path(path).unlink()
    (gone,) = check(Catalog([cards]), root).problems
    assert "there is no" in gone
    assert "animals-zs.samples.parquet" in gone


def test_records_are_held_against_no_card_that_is_wrong(cards: Path, tmp_path: Path) -> None:
    root = tmp_path / "results"
    store.write(_current(cards), SAMPLES, root)
    _change(cards / "tasks/animals.yaml", classes=["cat", "hound"])
    _change(cards / "model_cards/own.yaml", config={"image": 1})
    (problem,) = check(Catalog([cards]), root).problems
    assert "own.yaml" in problem


def test_check_computes_the_score_anew_from_the_samples(cards: Path, tmp_path: Path) -> None:
    root = tmp_path / "results"
    for ranks, told in (([0, 0, 3, 3], "0.5"), ([0, 0, 0], "1")):  # sealed anew, as a forger would
        path = store.write(_current(cards), {"id": list("abcd")[: len(ranks)], "rank": ranks}, root)
        (problem,) = check(Catalog([cards]), root).problems
        assert f"{path}: acc1 is 0.75, but animals-zs.samples.parquet gives {told}" in problem


def _other(cards: Path) -> ProtocolUsed:
    task = Catalog([cards]).task("animals-zs@other")
    return ProtocolUsed(name="zs", version=task.protocol.version, params=task.params.canonical())


@pytest.mark.parametrize("protocol", protocol_ids())
def test_every_bump_of_a_protocols_version_stands_in_the_changelog_with_the_numbers(protocol: str) -> None:
    """`<protocol>` version N → N + 1, and in the same entry at least one number, old → new."""
    entries = (Path(__file__).parents[2] / "CHANGELOG.md").read_text().split("\n- ")
    assert not any(f"`{protocol}` version {registry.protocol(protocol).version} →" in e for e in entries)
    for version in range(1, registry.protocol(protocol).version):
        bump = f"`{protocol}` version {version} → {version + 1}"
        entry = next((e for e in entries if bump in e), None)
        assert entry is not None, f"CHANGELOG.md: no entry has: {bump}"
        assert re.search(r"\d %? ?→ \d", entry.replace(bump, "")), f"no number, old → new, in: {entry}"


# ---------------------------------------------------------------------- frame


def test_results_is_a_row_a_score_with_where_it_came_from(cards: Path, tmp_path: Path) -> None:
    root = tmp_path / "results"
    store.write(_current(cards), SAMPLES, root)
    store.write(_current(cards, model="other", limit=20), SAMPLES, root)
    found = clipbench.results(root, cards=[cards])
    assert list(found.columns)[:4] == ["model", "task", "family", "training_pairs_m"]
    assert found.groupby("model").size().to_dict() == {"other": 2, "own": 2}
    own = found[(found.model == "own") & found.primary].iloc[0]
    assert (own.family, own.dataset, own.protocol, own.metric) == ("dual", "animals", "zs", "acc1")
    assert (own.value, own.low, own.high, own.n, own.chance) == (0.75, 0.7, 0.8, 360, 0.1)
    assert (own["commit"], own.dirty, own.kept_off, own.why) == ("abc", False, "", "")
    other = found[(found.model == "other") & found.primary].iloc[0]
    assert (other.limit, other.kept_off, other.why) == (20, "limited", "limited: --limit 20")
    assert Path(str(other.path)).is_file()


def test_results_of_an_empty_folder_has_every_column(tmp_path: Path) -> None:
    assert "kept_off" in clipbench.results(tmp_path).columns
    assert len(dataframe.read(tmp_path, Catalog())) == 0
