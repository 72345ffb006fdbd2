"""The page as a file: complete, closed to the outside, safe against any text, and small."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from recorded import REPORTED, SAMPLES, make_record
from typer.testing import CliRunner

from clipbench.catalog import Catalog
from clipbench.cli import app
from clipbench.errors import DataError
from clipbench.metrics.intervals import Score
from clipbench.records import store
from clipbench.records.record import Record
from clipbench.records.store import Stored
from clipbench.report import dataframe, site
from clipbench.report.site import blocks, content, document

ROOT = Path(__file__).parents[3]
EVIL = "</script><img src=x onerror=alert(1)>&\"'\u2028{{ 7 * 7 }}"


@pytest.fixture(scope="module", autouse=True)
def charts() -> Any:
    """A stand-in for the charts' library, which takes seconds to bundle; the browser's tests have the real one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(document, "charts_library", lambda: ("var vegaEmbed;", {"vega": "6", "vega_lite": "6"}))
        yield


CATALOG = Catalog()
RESULTS = Path("results")


def _record(**changes: Any) -> Record:
    """A record of a task that has no card here, so that it is current whatever the cards say."""
    return make_record(**({"task": "animals-zs"} | changes))


def _page(*found: Record) -> str:
    stored = [Stored(store.path_of(one.model, one.task, RESULTS), one, "whole") for one in found]
    return site.page(stored, CATALOG, RESULTS)


class _Parsed(HTMLParser):
    """Tags with their attributes, the text outside scripts, and the scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words.append(data)

    @property
    def data(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.scripts[0])
        return found

    def block(self, name: str) -> Any:
        return blocks.unpacked(self.data["blocks"][name])


# --------------------------------------------------------------------- blocks


@pytest.mark.parametrize("value", [EVIL, {"a": [1, None, 0.5], "ü": "–"}, "<!-- <script>", []])
def test_data_comes_out_of_a_page_as_it_went_in(value: Any) -> None:
    text = str(blocks.in_script(value))
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)
    assert blocks.unpacked(blocks.packed(value)) == value


def test_extras_that_fit_are_kept_the_smallest_first() -> None:
    extras = {"c": "x" * 30, "a": "x" * 10, "b": "x" * 20}
    assert list(blocks.fitting(extras, 30)) == ["a", "b"]
    assert list(blocks.fitting(extras, 60)) == ["c", "a", "b"]
    assert blocks.fitting(extras, -1) == {}


# ----------------------------------------------------------- the page is closed


def test_nothing_on_the_page_lies_elsewhere() -> None:
    parsed = _Parsed(_page(_record()))
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in parsed.tags}
    assert all("src" not in attributes for _, attributes in parsed.tags)
    links = [attributes["href"] for _, attributes in parsed.tags if "href" in attributes]
    assert links
    assert all(link and link.startswith("#") for link in links)
    style = (Path(site.__file__).parent / "site.css").read_text()
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_lets_these_scripts_run_and_no_others() -> None:
    parsed = _Parsed(_page(_record()))
    policy = next(a["content"] for tag, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in parsed.scripts[1:]]
    assert rules["script-src"] == " ".join(f"'sha256-{value}'" for value in hashes)


def test_no_text_of_a_record_becomes_markup() -> None:
    plain = _Parsed(_page(_record()))
    card = {"title": EVIL, "family": EVIL, "notes": EVIL, "reported": []}
    evil = _record(
        model=EVIL,
        task=f"{EVIL}-zs",
        per_class={EVIL: {EVIL: 0.5}},
        device=EVIL,
        cards={"model": card, "task": {"title": EVIL, "templates": {"default": [EVIL]}}},
    )
    parsed = _Parsed(_page(evil))
    assert [tag for tag, _ in parsed.tags if tag != "option"] == [t for t, _ in plain.tags if t != "option"]
    assert EVIL in parsed.words
    assert parsed.data["index"]["models"][0]["id"] == EVIL
    assert parsed.block("model/0")["card"]["notes"] == EVIL
    assert parsed.block("classes/0")[EVIL]["classes"] == [EVIL]


def test_the_scripts_make_no_markup_of_text() -> None:
    for path in (Path(site.__file__).parent / "js").glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", path.read_text()
        )


# ----------------------------------------------------------- what stands on it


def test_the_shipped_records_stand_on_the_page_with_their_numbers() -> None:
    stored = list(store.read_all(ROOT / "results"))
    parsed = _Parsed(site.build(ROOT / "results", CATALOG))
    index = parsed.data["index"]
    every = [one.record for one in stored]
    models = [model["id"] for model in index["models"]]
    tasks = [task["id"] for task in index["tasks"]]
    assert models == sorted({record.model for record in every})
    assert tasks == sorted({record.task for record in every})
    blocks_of = [parsed.block(f"model/{number}")["records"] for number in range(len(models))]
    for record in every:
        number = tasks.index(record.task)
        (told,) = (one for one in blocks_of[models.index(record.model)] if one["task"] == number)
        assert [row[0] for row in told["scores"]] == dataframe.metrics_of(record)
        value = record.scores[record.primary].value
        assert told["scores"][0][1] == pytest.approx(100 * value, abs=0.005)
        assert told["commit"] == record.env.commit
    assert any(row[0] == "declip-yfcc15m-vit-b32" and row[3] == "imagenet-zs" for row in index["reported"])
    quickstart = next(suite for suite in index["suites"] if suite["id"] == "quickstart")
    assert all(task is not None for task in quickstart["tasks"])
    picture = next(told["picture"] for told in parsed.block("model/0")["records"] if told["picture"])
    assert parsed.block(picture)["src"].startswith("data:image/webp;base64,")
    curve = next(iter(parsed.block("curves/0").values()))
    assert len(curve[0]["points"]) == 96
    assert set(curve[0]["chosen"]) <= {point[0] for point in curve[0]["points"]}


def test_the_leaderboard_is_there_without_scripts() -> None:
    other = _record(model="other", task="animals-lp")
    text = _page(_record(), other)
    board = text[text.index('<table id="leaderboard">') : text.index("</table>")]
    cells = re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", board[board.index("<tbody>") :])
    plain = [re.sub(r"<[^>]*>", "", cell) for cell in cells]
    assert plain == [
        "other",
        "unknown",
        "–",
        "",
        "75.00±5.00",
        "–",
        "small",
        "unknown",
        "–",
        "",
        "–",
        "75.00±5.00",
    ]


def test_limited_and_dirty_records_are_named_and_kept_off() -> None:
    env = _record().env.model_dump() | {"dirty": True}
    limited = _record(model="limited", limit=20)
    parsed = _Parsed(_page(_record(), limited, _record(model="dirty", env=env)))
    assert len(parsed.data["index"]["scores"]) == 1
    assert [m["id"] for m in parsed.data["index"]["models"]] == ["dirty", "limited", "small"]
    assert parsed.block("classes/0")["recall"]["values"].keys() == {"2"}
    words = " ".join(parsed.words)
    assert "Kept off (2)" in words
    assert "limited: --limit 20" in words
    assert "uncommitted changes" in words
    assert "No record may stand on the leaderboard" in _page(limited)


def test_a_record_edited_by_hand_is_named_and_kept_off(tmp_path: Path) -> None:
    path = store.write(_record(), SAMPLES, tmp_path)
    assert "Kept off" not in site.build(tmp_path, CATALOG)
    path.write_text(path.read_text().replace('"value": 0.75', '"value": 0.79'))
    parsed = _Parsed(site.build(tmp_path, CATALOG))
    assert parsed.data["index"]["scores"] == []
    assert "edited by hand" in " ".join(parsed.words)
    assert "edited by hand" in parsed.block("model/0")["records"][0]["off"]


def test_less_is_better_where_it_is() -> None:
    less = _record(task="groups-bias", primary="ece")
    index = _Parsed(_page(_record(), less)).data["index"]
    assert [(task["id"], task["less"]) for task in index["tasks"]] == [
        ("animals-zs", False),
        ("groups-bias", True),
    ]


def test_scores_stand_beside_what_is_reported() -> None:
    near, within, off = (
        _record(
            model=name,
            cards={
                "model": {"reported": [REPORTED | {"task": "animals-zs", "percent": percent}]},
                "task": {},
            },
        )
        for name, percent in (("near", 75.08), ("within", 79.0), ("off", 90.0))
    )
    parsed = _Parsed(_page(near, within, off))
    found = {parsed.data["index"]["models"][i]["id"]: parsed.block(f"model/{i}") for i in range(3)}
    verdicts = {name: block["records"][0]["scores"][0][-1] for name, block in found.items()}
    assert verdicts == {"near": "reproduced", "off": "off by -15.00", "within": "within interval"}


def test_ranks_stay_ranks() -> None:
    score = Score(1.625, (1.5, 1.7), 500, 250.5)
    record = _record(scores={"acc1": Score(0.5, (0.4, 0.6), 10, 0.1), "text_retrieval_mean_rank": score})
    told = _Parsed(_page(record)).block("model/0")["records"][0]["scores"][1]
    assert told[:6] == ["text_retrieval_mean_rank", 1.6, 1.5, 1.7, 500, 250.5]


def test_what_papers_report_is_shown_once_and_only_where_nothing_was_measured() -> None:
    rows = content._reported(CATALOG, [])
    pairs = [(row[0], row[3]) for row in rows]
    assert len(set(pairs)) == len(pairs)
    assert ("declip-yfcc15m-vit-b32", "imagenet-zs") in pairs
    readme = next(row for row in rows if row[:1] + row[3:4] == ["declip-yfcc15m-vit-b32", "imagenet-zs"])
    assert readme[4:6] == ["acc1", 43.2]
    assert "README" in str(readme[6])  # the primary source, not the paper that quotes it


# -------------------------------------------------------------- size, pictures


def test_what_does_not_fit_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = _record()
    path = store.write(record, SAMPLES, tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (300, 1400, 3), dtype=np.uint8)
    sheet = path.with_name("animals-zs.heatmaps") / "contact-sheet.png"
    sheet.parent.mkdir()
    Image.fromarray(noise).save(sheet)
    whole = site.build(tmp_path, CATALOG)
    picture = _Parsed(whole).block("picture/0")
    assert (picture["width"], picture["height"]) == (1100, 236)
    limit = len(whole.encode()) - 1000
    monkeypatch.setattr(document, "LIMIT", limit)
    small = site.build(tmp_path, CATALOG)
    parsed = _Parsed(small)
    assert len(small.encode()) < limit
    assert parsed.data["left_out"] == ["picture/0"]
    assert {"model/0", "task/0", "classes/0"} <= parsed.data["blocks"].keys()
    assert "leaves out some pictures" in " ".join(parsed.words)


def test_a_run_folder_shows_its_training_curves(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20)).save(tmp_path / "loss.png")
    parsed = _Parsed(_page(_record(model=str(tmp_path))))
    assert parsed.block(parsed.block("model/0")["training"])["width"] == 40
    assert _Parsed(_page(_record())).block("model/0")["training"] is None


# -------------------------------------------------------------------- commands


def test_the_command_writes_the_page_and_says_where(tmp_path: Path) -> None:
    results = tmp_path / "results"
    store.write(_record(), SAMPLES, results)
    arguments = ["site", "--results", str(results), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    page = tmp_path / "out" / "index.html"
    assert done.output.startswith(str(page))
    first = page.read_bytes()
    CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert page.read_bytes() == first  # the same records, the same page


def test_a_folder_without_records_is_an_error_that_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no record in"):
        site.build(tmp_path, CATALOG)
    with pytest.raises(DataError, match="no results folder"):
        site.build(tmp_path / "none", CATALOG)


def test_the_demo_ends_with_the_page() -> None:
    lines = (ROOT / "Makefile").read_text().split("demo: setup\n")[1].split("\n\n")[0].splitlines()
    assert lines[-1].strip() == "$(BIN)/clipbench site --out site"


# ------------------------------------------------------------ published numbers


def _of(model: str, value: float, task: str, **card: Any) -> Record:
    """A record of a shipped task as its card is today."""
    (one,) = CATALOG.tasks([task])
    return make_record(
        model=model,
        task=task,
        scores={"acc1": Score(value, (value - 0.01, value + 0.01), 60_000, None)},
        protocol={
            "name": one.protocol.id,
            "version": one.protocol.version,
            "params": one.params.canonical(),
        },
        cards={"model": {"title": model, **card}, "task": one.dataset.card.canonical()},
    )


def test_published_numbers_are_a_block_of_their_own() -> None:
    laion: dict[str, Any] = {"config": {"arch": "ViT-B-32"}, "weights": {"open_clip": "laion2b_s34b_b79k"}}
    parsed = _Parsed(
        _page(
            _of("mine", 0.6, "imagenet-zs"),
            _of("theirs", 0.65, "imagenet-zs", **laion),
            _of("theirs", 0.4, "svhn-zs", **laion),
        )
    )
    told = parsed.block("published")
    tasks = [task["id"] for task in parsed.data["index"]["tasks"]]
    cells = {
        name: {tasks[one[k]]: (one[k + 1], told["sources"][one[k + 2]]) for k in range(0, len(one), 3)}
        for name, one in told["models"]
    }
    assert len(cells) > 110
    assert cells["ViT-H-14-378-quickgelu@dfn5b"]["imagenet-zs"][0] == 84.37
    assert cells["ViT-H-14-378-quickgelu@dfn5b"]["svhn-zs"][1][1] == "other prompts"
    assert "ViT-B-32@laion2b_s34b_b79k" not in cells  # it was measured: its numbers stand beside
    beside = {(m, tasks[t]): (percent, told["sources"][k]) for m, t, percent, k in told["beside"]}
    assert set(beside) == {(1, "imagenet-zs"), (1, "svhn-zs")}
    assert abs(beside[1, "imagenet-zs"][0] - 66.5) < 0.2
    whole = told["means"]["datacomp-38"]
    place = [name for name, _ in told["models"]].index("ViT-H-14-378-quickgelu@dfn5b")
    assert whole[str(place)][0] == pytest.approx(71.2, abs=0.5)
    assert whole[str(place)][1] == 2  # SVHN and CLEVR's distance
    assert "clip-benchmark-41" not in told["means"]  # no table has all of it
    ranked = [suite["ranks"] for suite in parsed.data["index"]["suites"]]
    assert not any(name in own for own in ranked for name in cells)
    assert ("input", "published") in {(tag, a.get("id")) for tag, a in parsed.tags}


def test_published_numbers_cost_little() -> None:
    tasks = [task.id for task in CATALOG.tasks(["datacomp-38"]) if task.protocol.id == "zs"]
    found = [_of("mine", 0.6, task) for task in tasks]
    assert len(_Parsed(_page(*found)).data["blocks"]["published"]) < 150_000


def test_a_page_without_published_tasks_has_no_switch_for_them() -> None:
    parsed = _Parsed(_page(_record()))
    assert "published" not in parsed.data["blocks"]
    (label,) = [i for i, (tag, a) in enumerate(parsed.tags) if a.get("id") == "published"]
    assert "hidden" in parsed.tags[label - 1][1]
