"""Retrieval in several languages: the copies that authors give, from the command line; means over languages; errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import small
from caption_copies import write
from language_copies import (
    NAMES,
    SAID,
    write_card,
    write_lines,
    write_parquet,
    write_xm3600,
    write_xtd10,
)
from typer.testing import CliRunner

from clipbench.catalog import Catalog
from clipbench.cli import app
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.errors import CardError, DataError
from clipbench.metrics import clustered
from clipbench.records import alignment, store
from clipbench.records.record import Record
from clipbench.records.store import Stored
from clipbench.solvers import ranking

one_thread = small.one_thread

#: a hub's card differs in where its tables and columns are
HUB: dict[str, Any] = {
    "splits": {"test": {"name": "{language}"}},
    "columns": {"caption": "captions", "image_id": "image_id"},
}
COPIES: dict[str, tuple[Callable[[Path], None], dict[str, Any]]] = {
    "xm3600": (write_xm3600, {}),
    "hub": (write_parquet, HUB),
    "xtd10": (write_xtd10, {}),
    "flickr30k-200": (write_lines, {}),
    "xtd200": (lambda root: write_lines(root, "test_image_names.txt"), {}),
}
ONE_EACH = ("xtd10", "flickr30k-200", "xtd200")


def opened(folder: Path, data: Path, language: str | None = None) -> Split:
    task = Catalog([folder]).task("words-ret" + (f"@{language}" if language else ""))
    return open_split(task.opened, "test", DataPaths({"words": data}, ()))


def run(folder: Path, *options: str, task: str = "words-ret", code: int = 0) -> str:
    """What `clipbench eval` prints."""
    if not (folder / "run").is_dir():
        small.write_run(folder / "run", context=48)
    arguments = ["eval", "--model", str(folder / "run"), "--task", task, "--data", f"words={folder / 'data'}"]
    arguments += ["--cards", str(folder), "--results", str(folder / "results"), "--device", "cpu", *options]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def record(folder: Path, task: str = "words-ret") -> Stored:
    return store.read(next((folder / "results").rglob(f"{task}.json")))


def expected(one_each: bool) -> dict[str, list[tuple[str, str]]]:
    """Language → (image, caption)."""
    return {
        language: [
            (name, text)
            for name, of in zip(NAMES, said, strict=True)
            for text in (of[:1] if one_each else of)
        ]
        for language, said in SAID.items()
    }


@pytest.mark.parametrize("form", COPIES)
def test_every_copy_gives_the_captions_of_every_language(form: str, tmp_path: Path) -> None:
    make, changes = COPIES[form]
    make(tmp_path / "data")
    write_card(tmp_path, **changes)
    split = opened(tmp_path, tmp_path / "data")
    assert split.captions is not None
    assert split.captions.languages == tuple(SAID)
    names = [name.removesuffix(".jpg") for name in split.ids]
    assert sorted(names) == sorted(NAMES)
    for language, pairs in expected(form in ONE_EACH).items():
        own = split.captions.of(language)
        found = [(names[image], text) for image, text in zip(own.image, own.texts, strict=True)]
        assert sorted(found) == sorted(pairs), language
    rows = np.arange(len(NAMES))
    assert [s.image for s in split.samples(rows)] == [small.picture(NAMES.index(name)) for name in names]
    assert [s.image for s in split.samples(rows[2:3])] == [small.picture(NAMES.index(names[2]))]


@pytest.mark.parametrize("form", COPIES)
def test_the_task_runs_on_every_copy_from_the_command_line(form: str, tmp_path: Path) -> None:
    make, changes = COPIES[form]
    make(tmp_path / "data")
    write_card(tmp_path, **changes)
    printed = run(tmp_path)
    assert "mean_recall@1 by language: " in printed
    assert "images without a caption in a language do not count there: mi 1" in " ".join(printed.split())
    whole = record(tmp_path).record
    evidence: Any = whole.evidence
    assert evidence["languages"].keys() == SAID.keys()
    assert evidence["languages"]["mi"]["images_without_captions"] == 1
    assert evidence["languages"]["en"]["images_without_captions"] == 0
    for metric, score in whole.scores.items():
        means = [of[metric] for of in evidence["languages"].values()]
        assert score.value == pytest.approx(np.mean(means)), metric
    for language in ("de", "mi"):
        run(tmp_path, task=f"words-ret@{language}")
        alone = record(tmp_path, f"words-ret@{language}").record
        for metric, value in evidence["languages"][language].items():
            if metric in alone.scores:
                assert alone.scores[metric].value == pytest.approx(value), metric
        assert alone.scores["mean_recall@1"].n == 4 - (language == "mi")
        lacking = language == "mi" and form != "hub"  # whose tables have no row of them
        assert alone.evidence["images_without_captions"] == lacking
        assert alone.timing.images_encoded == (
            len(opened(tmp_path, tmp_path / "data", language)) if form == "hub" else 0
        )


def test_the_mean_over_languages_is_paired_and_recomputed_by_the_image(tmp_path: Path) -> None:
    write_xm3600(tmp_path / "data")
    write_card(tmp_path)
    run(tmp_path)
    stored = record(tmp_path)
    for metric in ("mean_recall@1", "mean_recall", "text_retrieval_recall@2", "image_retrieval_ndcg@10"):
        as_primary = replace(stored, record=stored.record.model_copy(update={"primary": metric}))
        assert alignment.recomputed(as_primary) == pytest.approx(stored.record.scores[metric].value), metric
    added = alignment.contributions(stored)
    assert added is not None
    assert sorted(map(str, added.ids)) == sorted(NAMES)
    assert np.sum(added.values) == pytest.approx(stored.record.scores["mean_recall@1"].value)
    same = alignment.pair(stored, stored)
    assert (same.difference.value, same.left_out, sorted(same.ids)) == (0, 0, sorted(NAMES))
    table = pq.read_table(store.samples_path(stored.path)).to_pylist()
    assert [row["id"] for row in table[:2]] == [f"en/{NAMES[0]}", f"en/{NAMES[1]}"]
    assert [len(row["image_rank"]) for row in table if row["language"] == "de"] == [1, 2, 1, 1]


def test_the_interval_is_that_of_strata_over_images(tmp_path: Path) -> None:
    """A brute-force mean over languages of the mean within each, and clusters of an image's captions in all of them."""
    from clipbench.protocols import _languages

    rng = np.random.default_rng(0)
    parts, values, clusters, strata = [], [], [], []
    for number in range(3):
        count = 40 - 5 * number
        owner = np.repeat(np.arange(count), rng.integers(1, 4, count))
        images = rng.standard_normal((count, 8)).astype(np.float32)
        texts = (images[owner] + rng.standard_normal((len(owner), 8)) * (1 + number)).astype(np.float32)
        codes = np.sort(rng.permutation(40)[:count])
        parts.append(_languages._part(*ranking.rank(images, texts, owner), owner, (1, 5), codes))
        rank = (images @ texts.T > (images @ texts.T)[owner, np.arange(len(owner))]).sum(axis=0)
        values.append((rank < 5).astype(float))
        clusters.append(codes[owner])
        strata.append(np.full(len(owner), number))
    found = _languages._scores(parts, (1, 5), 40)
    score = found["image_retrieval_recall@5"]
    assert score.value == pytest.approx(np.mean([part.mean() for part in values]))
    codes = np.unique(np.concatenate(clusters), return_inverse=True)[1]
    wanted = clustered.mean_score(np.concatenate(values), codes, score.chance, np.concatenate(strata))
    assert (score.ci95, score.n) == (wanted.ci95, wanted.n)
    assert score.chance == pytest.approx(np.mean([5 / (40 - 5 * number) for number in range(3)]))
    assert found["mean_recall"].value == pytest.approx(
        np.mean([found[f"{way}_retrieval_recall@{k}"].value for way in ("text", "image") for k in (1, 5)])
    )
    assert found["mean_recall"].n == 40


# ---------------------------------------------------------------------- errors


def test_languages_that_a_copy_lacks_are_one_error_that_lists_those_there(tmp_path: Path) -> None:
    write_xm3600(tmp_path / "data", ("de", "en", "mi"))
    write_card(tmp_path)
    printed = run(tmp_path, code=2)
    assert "has no captions in ja, fil, quz, he (4 of 7 languages); it has en, de, mi" in " ".join(
        printed.split()
    ) or ("it has de, en, mi" in " ".join(printed.split()))
    assert "--task words-ret@" in printed
    assert "Traceback" not in printed
    run(tmp_path, task="words-ret@de")
    assert record(tmp_path, "words-ret@de").record.evidence["captions"] == 5
    printed = " ".join(run(tmp_path, task="words-ret@ja", code=2).split())
    assert "has no captions in ja; it has de, en, mi" in printed


@pytest.mark.parametrize("form", ["hub", "xtd10"])
def test_other_copies_that_lack_a_language(form: str, tmp_path: Path) -> None:
    make, changes = COPIES[form]
    make(tmp_path / "data")
    write_card(tmp_path, **changes | {"languages": [*SAID, "te"]})
    with pytest.raises(
        DataError, match=r"has no captions in te \(1 of 8 languages\); it has de, en, fil, he, ja, mi, quz"
    ):
        opened(tmp_path, tmp_path / "data")
    with pytest.raises(DataError, match=r"has no captions in te; it has de, en, fil, he, ja, mi, quz"):
        opened(tmp_path, tmp_path / "data", "te")
    assert len(opened(tmp_path, tmp_path / "data", "quz")) == 4


def test_what_else_a_copy_holds_is_counted(tmp_path: Path) -> None:
    write_xm3600(tmp_path / "data")
    write(tmp_path / "data/images/other.jpg", small.picture(9))
    write_card(tmp_path, languages=["en", "de"])
    split = opened(tmp_path, tmp_path / "data")
    assert [(note.kind, note.count) for note in split.notes] == [
        ("unread-languages", 5),
        ("repeated-captions", 1),
    ]
    write_xtd10(tmp_path / "xtd")
    write(tmp_path / "xtd/XTD10/test_1kcaptions_de.txt", "a\nb\nc\nd\n")
    found = opened(tmp_path, tmp_path / "xtd")
    assert found.captions is not None
    assert found.captions.of("de").texts == ("a", "b", "c", "d")
    assert [(note.kind, note.examples) for note in found.notes] == [
        ("passed-over-files", ("MIC/test_1kcaptions_de.txt",))
    ]


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "too few lines": (
        lambda data: write(data / "XTD10/test_1kcaptions_fil.txt", "a\nb\n"),
        r"test_1kcaptions_fil\.txt has 2 lines, test_image_names\.txt lists 4 images",
    ),
    "an image twice": (
        lambda data: write(data / "XTD10/test_image_names.txt", "f3ab.jpg\nf3ab.jpg\nc77d.jpg\n9e01.jpg\n"),
        r"images: f3ab\.jpg is there twice",
    ),
    "no image": (
        lambda data: (data / "images/c77d.jpg").unlink(),
        r"c77d\.jpg is not there; 1 of the 4 images",
    ),
    "no UTF-8": (
        lambda data: write(data / "XTD10/test_1kcaptions_quz.txt", "caf\xe9\n\n\n\n".encode("latin-1")),
        r"test_1kcaptions_quz\.txt:1: not UTF-8",
    ),
    "two lists": (lambda data: write(data / "filenames.txt", "a\n"), r"may both list the images"),
}


@pytest.mark.parametrize("case", WRONG)
def test_copies_that_are_wrong(case: str, tmp_path: Path) -> None:
    write_xtd10(tmp_path / "data")
    write_card(tmp_path)
    change, message = WRONG[case]
    change(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        opened(tmp_path, tmp_path / "data")


LINES: dict[str, tuple[str, str]] = {
    "no JSON": ("{", r"captions\.jsonl:1: no JSON"),
    "no object": ("[1]", r"captions\.jsonl:1: expected an object, found '\[1\]'"),
    "no key": ('{"en": {"caption": ["a"]}}', r"captions\.jsonl:1: no 'image/key'"),
    "no caption": (
        '{"image/key": "a", "en": {"captions": ["a"]}}',
        r"captions\.jsonl:1: 'en' has no \"caption\"",
    ),
    "a text": (
        '{"image/key": "f3ab", "en": {"caption": "a"}}',
        r"'en' has no \"caption\" with a list of texts",
    ),
    "leads out": ('{"image/key": "../f3ab", "en": {"caption": ["a"]}}', r"leads out of the folder of images"),
}


@pytest.mark.parametrize("case", LINES)
def test_lines_that_are_wrong(case: str, tmp_path: Path) -> None:
    write_xm3600(tmp_path / "data")
    write_card(tmp_path, languages=["en"])
    line, message = LINES[case]
    (tmp_path / "data/captions.jsonl").write_text(line)
    with pytest.raises(DataError, match=message):
        opened(tmp_path, tmp_path / "data")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"languages": ["en", "de", "en"]}, 'languages holds "en" twice'),
        ({"languages": ["pt-BR"]}, '"pt-BR" is no code of letters, digits and _'),
        ({"protocols": {"ret": {"language": "fr"}}}, 'unknown language "fr"'),
    ],
)
def test_cards_that_are_wrong(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write_card(tmp_path, **changes)
    with pytest.raises(CardError, match=message):
        Catalog([tmp_path]).task("words-ret")


def test_every_language_of_a_card_is_a_variant(tmp_path: Path) -> None:
    write_card(tmp_path, protocols={"ret": {"variants": {"german": {"language": "de"}}}})
    catalog = Catalog([tmp_path])
    ids = [name for name in catalog.task_ids() if name.startswith("words-")]
    languages = [f"words-ret@{language}" for language in SAID]
    assert ids == ["words-ret", "words-ret@german", "words-ret@r1", *languages]
    assert catalog.task("words-ret@german").opened.card.languages == ("de",)
    with pytest.raises(CardError, match=r'unknown task "words-ret@frr"'):
        catalog.task("words-ret@frr")


def test_a_limited_run_is_of_the_same_images_in_every_language(tmp_path: Path) -> None:
    write_xm3600(tmp_path / "data")
    write_card(tmp_path)
    run(tmp_path, "--limit", "3")
    found: Record = record(tmp_path).record
    evidence: Any = found.evidence
    assert (found.limit, evidence["images"]) == (3, 3)
    assert {of["images"] for of in evidence["languages"].values()} <= {2, 3}


def test_a_card_of_one_language_keeps_its_fingerprint() -> None:
    card = Catalog().dataset("flickr30k").card
    assert "languages" not in card.canonical()
    assert "language" not in Catalog().task("flickr30k-ret").params.canonical()
