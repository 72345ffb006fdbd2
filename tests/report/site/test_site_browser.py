"""The page in a real browser, headless Chromium: it sorts, filters, follows its links, and asks nobody for anything.

The screenshots stay in build/site-screenshots/; README's picture of the page is leaderboard.png of them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from recorded import make_record

from clipbench.catalog import Catalog
from clipbench.metrics.intervals import Score
from clipbench.records import store
from clipbench.records.store import Stored
from clipbench.report import site
from clipbench.report.site import document

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[3]
SHOTS = ROOT / "build" / "site-screenshots"
MODELS, TASKS, CLASSES = 200, 60, 50
FAMILIES = ("clip", "clip_lite", "declip", "filip", "slip")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium of the system, or the one that `playwright install chromium` brings."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        path = found or started.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("no Chromium: install Debian's `chromium`, or run `playwright install chromium`")
        launched = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module", autouse=True)
def charts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The charts' library, bundled once for all these pages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        library = document.charts_library()
        patch.setattr(document, "charts_library", lambda: library)
        yield


class Visit:
    """A page in the browser, all that it asked for, and all that it complained of."""

    def __init__(self, browser: Browser, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.address = path.resolve().as_uri()
        self.page.goto(self.address)

    def go(self, fragment: str) -> None:
        """Open the page of a model or a task by its address, and wait until it is there."""
        self.page.evaluate("fragment => { location.hash = fragment; }", fragment)
        self.page.wait_for_function(
            "name => document.querySelector('#view h1')?.textContent.includes(name)",
            arg=fragment.rpartition("/")[2],
        )

    def charts(self, least: int = 1) -> None:
        """Wait until at least so many charts are drawn in what is shown."""
        self.page.wait_for_function(
            "least => [...document.querySelectorAll('.chart svg')].filter(s => s.checkVisibility()).length >= least",
            arg=least,
        )

    def column(self, number: int) -> list[str]:
        """The text of a column of the leaderboard, as shown, from the top."""
        script = """n => [...document.querySelectorAll('#leaderboard tbody tr')].filter(r => !r.hidden)
            .map(r => r.cells[n].firstChild.textContent)"""
        found: list[str] = self.page.evaluate(script, number)
        return found

    def close(self) -> None:
        """Leave, and check that the visit was quiet."""
        self.context.close()
        outside = [
            url for url in self.requests if url != self.address and not url.startswith(("data:", "blob:"))
        ]
        assert outside == []
        assert self.complaints == []


# ------------------------------------------------------------ the shipped records


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the project's own records."""
    text = site.page(list(store.read_all(ROOT / "results")), Catalog(), Path("results"))
    return site.write(text, tmp_path_factory.mktemp("shipped"))


def test_the_shipped_page_in_light_and_dark_on_a_phone_and_on_paper(browser: Browser, shipped: Path) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    for theme in ("light", "dark"):
        visit = Visit(browser, shipped, color_scheme=theme, viewport={"width": 1280, "height": 1000})
        visit.charts()
        assert visit.page.evaluate("document.documentElement.dataset.theme") == theme
        name = "leaderboard.png" if theme == "light" else "leaderboard-dark.png"
        visit.page.screenshot(path=SHOTS / name)
        for what, fragment, charts in (
            ("model", "#/model/digits-clip-lite", 1),
            ("task", "#/task/digits-scenes-zs", 2),
        ):
            visit.go(fragment)
            visit.charts(charts)
            visit.page.screenshot(path=SHOTS / f"{what}-{theme}.png", full_page=True)
        visit.close()

    phone = Visit(browser, shipped, viewport={"width": 390, "height": 844}, device_scale_factor=2)
    phone.charts()
    phone.page.screenshot(path=SHOTS / "phone.png", full_page=True)
    assert phone.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    phone.go("#/model/digits-clip-lite")
    phone.charts()
    phone.page.screenshot(path=SHOTS / "phone-model.png", full_page=True)
    assert phone.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    phone.close()

    paper = Visit(browser, shipped)
    paper.charts()
    assert paper.page.pdf(path=SHOTS / "print.pdf", prefer_css_page_size=True).startswith(b"%PDF")
    paper.close()


def test_links_lead_to_models_and_tasks_and_back(browser: Browser, shipped: Path) -> None:
    visit = Visit(browser, shipped)
    page = visit.page
    page.click("#leaderboard tbody a")
    page.wait_for_selector("#view h1")
    assert page.text_content("#view h1") == "digits-clip-lite"
    assert page.title() == "digits-clip-lite · clipbench"
    assert page.evaluate("document.activeElement.textContent") == "digits-clip-lite"
    assert not page.is_visible("#leaderboard")
    page.click("#view table a >> text=digits-scenes-ground")
    page.wait_for_function("() => document.querySelector('#view h1').textContent === 'digits-scenes-ground'")
    assert "Grounding without training" in (page.text_content("#view") or "")
    page.go_back()
    page.wait_for_function("() => document.querySelector('#view h1').textContent === 'digits-clip-lite'")
    page.click("text=‹ Leaderboard")
    page.wait_for_selector("#leaderboard", state="visible")
    visit.go("#/model/nobody")
    page.wait_for_selector("text=No model “nobody” on this page")
    visit.close()


def test_a_models_records_show_scores_probe_path_heat_maps_and_provenance(
    browser: Browser, shipped: Path
) -> None:
    visit = Visit(browser, shipped)
    page = visit.page
    visit.go("#/model/digits-clip-lite")
    visit.charts()
    page.click("summary:has-text('digits-lp') >> nth=0")
    visit.charts(2)
    assert page.locator("details[open] .chart svg path").count() > 96  # a mark each λ
    text = page.text_content("details[open]") or ""
    for word in (
        "mean_per_class_recall",
        "Commit",
        "torch 2",
        "split:test",
        "How the probe’s penalty was chosen",
    ):
        assert word in text
    page.click("summary:has-text('digits-scenes-ground')")
    page.wait_for_function("() => [...document.images].some(i => i.complete && i.naturalWidth > 300)")
    assert "expressions" in (page.locator("figure img").get_attribute("alt") or "")
    page.screenshot(path=SHOTS / "record.png", full_page=True)
    visit.close()


def test_it_is_used_with_the_keyboard_alone(browser: Browser, shipped: Path) -> None:
    visit = Visit(browser, shipped)
    page = visit.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0  # type: ignore[index]
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.focus("#leaderboard thead th:nth-child(5) button")
    page.keyboard.press("Enter")
    assert page.locator("[aria-sort]").count() == 1
    assert page.get_attribute("#leaderboard thead th:nth-child(5)", "aria-sort") == "descending"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    page.keyboard.press("Tab")
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Enter")  # the link of the same heading
    page.wait_for_selector("#view h1")
    # Charts say what they show, and every picture and field has a name.
    visit.charts()
    assert "95 % interval" in (page.get_attribute("#view .chart", "aria-label") or "")
    assert page.locator("#view .chart [role=graphics-symbol]").count() > 1
    unnamed = """[...document.querySelectorAll('input, select, button, img, a')].filter(e => !(
        e.labels?.length || e.textContent.trim() || e.alt || e.getAttribute('aria-label'))).length"""
    assert page.evaluate(unnamed) == 0
    visit.close()


def test_the_mean_of_a_suite_is_for_models_that_have_all_of_it(browser: Browser, tmp_path: Path) -> None:
    catalog = Catalog()
    suite = catalog.tasks(["quickstart"])
    found = []
    for model, level, lacks in (("all-low", 0.5, 0), ("all-high", 0.7, 0), ("some", 0.9, 1)):
        for i, task in enumerate(suite[lacks:]):
            value = level + i / 100
            params, card = task.params.canonical(), task.dataset.card.canonical()
            record = make_record(
                model=model,
                task=task.id,
                scores={"acc1": Score(value, (value, value), 10_000, None)},
                protocol={"name": task.protocol.id, "version": task.protocol.version, "params": params},
                cards={"model": {"title": model}, "task": card},
            )
            found.append(Stored(store.path_of(model, task.id, Path("results")), record, "whole"))
    visit = Visit(browser, site.write(site.page(found, catalog, Path("results")), tmp_path))
    page = visit.page
    assert not page.is_visible("#mean")
    page.select_option("#suite-filter", label="quickstart")
    assert page.is_visible("#mean")
    assert page.text_content("#mean-of") == f"of all {len(suite)} tasks"
    page.click("#mean button")
    assert visit.column(0) == ["all-high", "all-low", "some"]
    of = [level + sum(range(len(suite))) / len(suite) / 100 for level in (0.7, 0.5)]
    assert visit.column(3) == [f"{100 * mean:.2f}" for mean in of] + ["–"]
    page.fill("#task-filter", "digits-zs")  # a part of the suite has no mean
    assert not page.is_visible("#mean")
    assert page.get_attribute("#leaderboard thead th:first-child", "aria-sort") == "ascending"
    visit.close()


def test_published_models_are_hollow_rows_when_asked_for(browser: Browser, tmp_path: Path) -> None:
    catalog = Catalog()
    laion: dict[str, Any] = {"config": {"arch": "ViT-B-32"}, "weights": {"open_clip": "laion2b_s34b_b79k"}}
    found = []
    for model, value, card in (("mine", 0.6, {}), ("theirs", 0.65, laion)):
        for task in catalog.tasks(["imagenet-zs", "svhn-zs", "digits-zs"]):
            record = make_record(
                model=model,
                task=task.id,
                scores={"acc1": Score(value, (value - 0.01, value + 0.01), 60_000, None)},
                protocol={
                    "name": task.protocol.id,
                    "version": task.protocol.version,
                    "params": task.params.canonical(),
                },
                cards={"model": {"title": model, **card}, "task": task.dataset.card.canonical()},
            )
            found.append(Stored(store.path_of(model, task.id, Path("results")), record, "whole"))
    path = site.write(site.page(found, catalog, Path("results")), tmp_path)
    visit = Visit(browser, path, viewport={"width": 1400, "height": 900})
    page = visit.page
    assert visit.column(0) == ["mine", "theirs"]  # off at first
    page.focus("#published")
    page.keyboard.press("Space")
    page.wait_for_selector("tr.hollow")
    names = visit.column(0)
    assert names[:2] == ["mine", "theirs"]  # by name, ours come first
    assert len(names) > 110
    assert all(name.startswith("○ ") for name in names[2:])
    assert "○ ViT-B-32@laion2b_s34b_b79k" not in names
    column = next(
        n
        for n in range(4, 8)
        if "imagenet-zs" in (page.text_content(f"#leaderboard th:nth-child({n + 1})") or "")
    )
    beside = page.locator(f"#leaderboard tbody tr:nth-child(2) td:nth-child({column + 1}) .told")
    assert (beside.text_content() or "").startswith("○ 66.")
    assert "open_clip" in (beside.get_attribute("title") or "")
    # By the number of a task they stand among ours; they are never the best in bold, and have no rank or interval.
    page.click(f"#leaderboard thead th:nth-child({column + 1}) button")
    values = [float(value) for value in visit.column(column) if value != "–"]
    assert values == sorted(values, reverse=True)
    assert visit.column(0)[0].startswith("○ ")
    assert page.locator("tr.hollow .best, tr.hollow i").count() == 0
    assert page.locator("tr:not(.hollow) .best").count() > 0
    page.select_option("#suite-filter", label="datacomp-38")
    assert page.is_visible("#mean")
    page.click("#mean button")
    means = [float(value.rstrip("*")) for value in visit.column(3) if value != "–"]
    assert len(means) > 100
    assert means == sorted(means, reverse=True)
    assert visit.column(0)[-2:] == ["mine", "theirs"]  # a part of the suite has no mean
    # A name opens where its numbers are from, by keyboard too, and Escape closes it.
    page.locator(".source").first.focus()
    page.keyboard.press("Enter")
    assert page.is_visible("#source")
    assert "open_clip, docs/openclip_results.csv" in (page.text_content("#source") or "")
    assert "other prompts" in (page.text_content("#source") or "")
    page.keyboard.press("Escape")
    assert not page.is_visible("#source")
    # The name stays in sight when the table is scrolled sideways, its heading above the others.
    top = """() => { document.querySelector('.scroll').scrollLeft = 300;
        const { x, y, height } = document.querySelector('#leaderboard thead th').getBoundingClientRect();
        return document.elementFromPoint(x + 20, y + height - 14).textContent; }"""
    assert page.evaluate(top) == "Model"
    page.uncheck("#published")
    assert visit.column(0) == ["mine", "theirs"]
    assert not page.is_visible("#mean")
    visit.close()

    phone = Visit(browser, path, viewport={"width": 390, "height": 844}, has_touch=True)
    phone.page.check("#published")
    phone.page.wait_for_selector("tr.hollow")
    assert phone.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    phone.page.locator(".told").first.tap()
    assert "theirs: 6" in (phone.page.text_content("#source") or "")
    phone.close()


# ------------------------------------------------------- 200 models × 60 tasks


def synthetic() -> list[Stored]:
    """Records of 200 models on 60 tasks with 50 classes each; every 50th is missing."""
    rng = np.random.default_rng(0)
    one = make_record()
    classes = [f"class {k}" for k in range(CLASSES)]
    found = []
    for m in range(MODELS):
        model = f"model-{m:03d}"
        card = {
            "title": f"Model number {m}",
            "family": FAMILIES[m % len(FAMILIES)],
            "training_pairs_m": float(10 ** rng.uniform(0, 3)),
            "reported": [],
        }
        cards = one.cards.model_copy(update={"model": card})
        for t in range(TASKS):
            if (m * TASKS + t) % 50 == 49:
                continue
            task = f"set{t:02d}-{'zs' if t % 2 else 'lp'}"
            values = rng.uniform(0.05, 0.95, 3)
            scores = {
                name: Score(float(v), (float(v) - 0.01, float(v) + 0.01), 10_000, 0.01)
                for name, v in zip(("acc1", "acc5", "mean_per_class_recall"), values, strict=True)
            }
            recall = dict(zip(classes, rng.uniform(0, 1, CLASSES).tolist(), strict=True))
            prints = {
                name: rng.bytes(32).hex() for name in ("weights", "model_card", "task_card", "split:test")
            }
            changes = {
                "model": model, "task": task, "scores": scores, "per_class": {"recall": recall},
                "cards": cards, "fingerprints": prints,
            }  # fmt: skip
            path = store.path_of(model, task, Path("results"))
            found.append(Stored(path, one.model_copy(update=changes), "whole"))
    return found


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of `synthetic`, its size and time within their bounds."""
    found = synthetic()
    start = time.perf_counter()
    text = site.page(found, Catalog(), Path("results"))
    seconds = time.perf_counter() - start
    path = site.write(text, tmp_path_factory.mktemp("large"))
    print(f"{len(found)} records: {seconds:.1f} s, {path.stat().st_size / 1e6:.2f} MB")
    assert path.stat().st_size < 5_000_000
    assert seconds < 60  # 20 s on a machine that does nothing else
    return path


def test_a_large_leaderboard_sorts_and_filters(browser: Browser, large: Path) -> None:
    visit = Visit(browser, large, viewport={"width": 1400, "height": 900})
    page = visit.page
    visit.charts()
    assert visit.column(0)[:3] == ["model-000", "model-001", "model-002"]

    # Of the tasks, those whose number divides by 10 and leaves 9 lack models.
    page.click("#leaderboard thead th:nth-child(14) button")
    values = visit.column(13)
    numbers = [float(value) for value in values if value != "–"]
    assert numbers == sorted(numbers, reverse=True)
    assert values == [*values[: len(numbers)], *["–"] * (MODELS - len(numbers))]  # what is missing comes last
    assert len(numbers) < MODELS
    page.click("#leaderboard thead th:nth-child(14) button")
    upwards = visit.column(13)
    assert upwards == [*reversed(values[: len(numbers)]), *values[len(numbers) :]]
    assert page.get_attribute("#leaderboard thead th:nth-child(14)", "aria-sort") == "ascending"

    page.fill("#model-filter", "model-01")
    page.select_option("#group-filter", "declip")
    assert sorted(visit.column(0)) == ["model-012", "model-017"]
    page.fill("#task-filter", "set07")
    visible = "[...document.querySelectorAll('#leaderboard thead th')].filter(h => !h.hidden).length"
    assert page.evaluate(visible) == 4
    assert (page.text_content("#count") or "").startswith("Showing 2 of 200 models and 1 of 60 tasks.")
    half = "() => document.querySelectorAll('#leaderboard tbody i').length"
    assert page.evaluate(half) == 0  # a wide table starts without intervals
    page.check("#intervals")
    assert page.evaluate(half) == MODELS * TASKS * 49 // 50
    page.click("text=Reset")
    page.wait_for_function(
        "() => document.getElementById('count').textContent.startsWith('Showing 200 of 200')"
    )
    assert page.evaluate(visible) == 63
    assert page.evaluate(half) == 0
    visit.close()


def test_a_large_leaderboard_sorts_fast(browser: Browser, large: Path) -> None:
    visit = Visit(browser, large, viewport={"width": 1400, "height": 900})
    visit.charts()
    # From the click to the next frame, layout included. What the page's thread worked is told from what it waited for
    # other processes of a busy machine.
    session = visit.context.new_cdp_session(visit.page)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def worked() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return float(1000 * next(m["value"] for m in metrics if m["name"] == "TaskDuration"))

    script = """async (number) => {
        const start = performance.now();
        document.querySelectorAll('#leaderboard thead button')[number].click();
        await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
        return performance.now() - start;
    }"""
    waited, work = [], []
    for number in range(4, 13):
        before = worked()
        waited.append(visit.page.evaluate(script, number))
        work.append(worked() - before)
    waited.sort()
    work.sort()
    print(
        f"sorting {MODELS} × {TASKS}: median {waited[4]:.0f} ms, {work[4]:.0f} ms of work; worst {waited[-1]:.0f} ms"
    )
    assert work[4] < 1000  # 200 ms on a machine that does nothing else
    visit.close()


def test_a_large_page_has_its_models_and_tasks(browser: Browser, large: Path) -> None:
    visit = Visit(browser, large, viewport={"width": 1280, "height": 900})
    visit.charts()
    visit.page.screenshot(path=SHOTS / "large.png")
    visit.go("#/task/set01-zs")
    visit.charts()
    assert visit.page.locator("#view tbody tr").count() >= 190
    visit.go("#/model/model-123")
    visit.page.wait_for_selector("text=Model number 123")
    visit.charts()
    visit.page.screenshot(path=SHOTS / "large-model.png", full_page=True)
    visit.close()
