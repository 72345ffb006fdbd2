"""The shipped cards against their sources: prompts, class order, counts, preprocessing."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from clipbench.cards import Document, ModelCard, Suites, TaskCard, parse

ROOT = Path(__file__).parents[1]
SHARED = ROOT / "../shared/data"
TASKS = sorted(p.stem for p in (ROOT / "tasks").glob("*.yaml") if p.stem != "suites")
CLIP = (
    "clip-rn50",
    "clip-rn101",
    "clip-rn50x4",
    "clip-rn50x16",
    "clip-vit-b32",
    "clip-vit-b16",
    "clip-vit-l14",
    "clip-vit-b32-laion2b",
)

# Card, name in openai.json, classes, rows of train and test, primary metric; counts as in the papers.
DECLIP_11: dict[str, tuple[str | None, int, int | None, int, str]] = {
    "pets": ("OxfordPets", 37, 3680, 3669, "mean_per_class_recall"),
    "cifar10": ("CIFAR10", 10, 50000, 10000, "acc1"),
    "cifar100": ("CIFAR100", 100, 50000, 10000, "acc1"),
    "sun397": ("SUN397", 397, 19850, 19850, "acc1"),
    "food101": ("Food101", 101, 75750, 25250, "acc1"),
    "flowers102": ("Flowers102", 102, 2040, 6149, "mean_per_class_recall"),
    "cars": ("StanfordCars", 196, 8144, 8041, "acc1"),
    "caltech101": ("Caltech101", 102, 3060, 6085, "mean_per_class_recall"),
    "aircraft": ("FGVCAircraft", 100, 6667, 3333, "mean_per_class_recall"),
    "dtd": ("DescribableTextures", 47, 3760, 1880, "acc1"),
    "imagenet": (None, 1000, 1281167, 50000, "acc1"),
}
OTHERS: dict[str, tuple[str | None, int, int | None, int, str]] = {
    "voc07": ("PascalVOC2007", 20, 5011, 4952, "map_area"),
    "digits": ("MNIST", 10, 1437, 360, "acc1"),
    "tiny-imagenet": (None, 200, 100000, 10000, "acc1"),
    "imagenet-1k-sample": (None, 1000, None, 1000, "acc1"),
}
EXPECTED = DECLIP_11 | OTHERS
SIMPLE = ("a photo of a {c}.",)


@functools.cache
def task_card(stem: str) -> TaskCard:
    """The task card `stem`, with the keys it leaves to its base."""
    document = Document(ROOT / "tasks" / f"{stem}.yaml")
    own: dict[str, Any] = dict(document.value)
    base = own.pop("base", None)
    inherited = Document(ROOT / "tasks" / f"{base}.yaml").value if base else {}
    return parse(TaskCard, document, inherited | own)


@functools.cache
def model_card(stem: str) -> ModelCard:
    return parse(ModelCard, Document(ROOT / "model_cards" / f"{stem}.yaml"))


def shared(relative: str) -> Path:
    """A path below ../shared/data; skips the test where it is missing."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"needs ../shared/data/{relative}")
    return path


def openai_prompts() -> dict[str, Any]:
    prompts: dict[str, Any] = json.loads(shared("prompts/openai.json").read_text(encoding="utf-8"))
    return prompts


def wnids() -> tuple[str, ...]:
    return tuple(sorted(p.name for p in shared("imagenet-1k-sample").iterdir()))


# -------------------------------------------------------------------- task cards


def test_every_data_set_has_its_card() -> None:
    assert set(EXPECTED) <= set(TASKS)


@pytest.mark.parametrize("stem", TASKS)
def test_every_task_card_parses(stem: str) -> None:
    assert task_card(stem).title


@pytest.mark.parametrize("stem", EXPECTED)
def test_counts_and_primary_metric(stem: str) -> None:
    _, classes, train, test, primary = EXPECTED[stem]
    card = task_card(stem)
    assert len(card.classes) == classes
    assert card.templates["simple"] == SIMPLE
    assert {role: spec.rows for role, spec in card.splits.items()} == (
        {"test": test} if train is None else {"train": train, "test": test}
    )
    assert card.protocols["zs"]["primary"] == primary
    assert card.kind == ("multi-label" if stem == "voc07" else "single-label")


@pytest.mark.parametrize("stem", EXPECTED)
def test_variants_name_templates_that_the_card_has(stem: str) -> None:
    card = task_card(stem)
    variants = card.protocols["zs"]["variants"]
    named = {v["templates"] for v in variants.values() if "templates" in v}
    assert named == set(card.templates) - {"default"}


@pytest.mark.shared
@pytest.mark.parametrize("stem", [s for s, row in EXPECTED.items() if row[0]])
def test_classes_and_templates_are_openais(stem: str) -> None:
    source = openai_prompts()[str(EXPECTED[stem][0])]
    card = task_card(stem)
    assert card.templates["default"] == tuple(t.replace("{}", "{c}") for t in source["templates"])
    if stem == "voc07":  # the data's own order, which OpenAI's list leaves
        assert card.classes == tuple(sorted(source["classes"]))
    else:
        assert card.classes == tuple(source["classes"])


def test_imagenet_names_and_templates_are_open_clips() -> None:
    import open_clip

    card = task_card("imagenet")
    assert card.classes == tuple(open_clip.IMAGENET_CLASSNAMES)
    assert card.templates["default"] == _rendered(open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert card.templates["best7"] == _rendered(open_clip.SIMPLE_IMAGENET_TEMPLATES)
    assert set(card.templates["best7"]) < set(card.templates["default"])


def _rendered(templates: Iterable[Any]) -> tuple[str, ...]:
    return tuple(template("{c}") for template in templates)


@pytest.mark.shared
@pytest.mark.parametrize("stem", ["imagenet", "imagenet-1k-sample"])
def test_imagenet_label_names_are_the_sorted_wnids(stem: str) -> None:
    assert task_card(stem).label_names == wnids()


def test_imagenet_sample_inherits_everything_but_its_data() -> None:
    sample, imagenet = task_card("imagenet-1k-sample"), task_card("imagenet")
    assert sample.classes == imagenet.classes
    assert sample.templates == imagenet.templates
    assert sample.protocols == imagenet.protocols
    assert sample.source.local is True
    assert "never" in (sample.notes or "")


def test_tiny_imagenet_takes_imagenets_name_for_each_wnid() -> None:
    card, imagenet = task_card("tiny-imagenet"), task_card("imagenet")
    assert imagenet.label_names is not None
    assert card.label_names is not None
    name = dict(zip(imagenet.label_names, imagenet.classes, strict=True))
    assert card.classes == tuple(name[wnid] for wnid in card.label_names)
    assert card.templates == imagenet.templates


@pytest.mark.shared
def test_tiny_imagenet_label_names_are_the_datas() -> None:
    words = json.loads(shared("tiny-imagenet/words.json").read_text(encoding="utf-8"))
    assert task_card("tiny-imagenet").label_names == tuple(sorted(words))


@pytest.mark.shared
def test_voc_classes_are_the_image_sets() -> None:
    files = shared("voc2007-imagesets/Main").glob("*_trainval.txt")
    assert task_card("voc07").classes == tuple(sorted(f.stem.removesuffix("_trainval") for f in files))


def test_clip_lite_prompts_use_its_own_class_names() -> None:
    prompts = task_card("cifar10").templates["clip-lite"]
    assert isinstance(prompts, dict)
    assert prompts["airplane"] == ("a picture of a plane.",)
    assert prompts["automobile"] == ("a picture of a car.",)
    assert prompts["ship"] == ("a picture of a ship.",)


@pytest.mark.parametrize("stem", EXPECTED)
def test_class_names_differ_by_more_than_case_and_punctuation(stem: str) -> None:
    """Labels are matched by name; the two pairs in ImageNet are why whole lists are compared first."""
    names = ["".join(filter(str.isalnum, c.casefold())) for c in task_card(stem).classes]
    twice = {n for n in names if names.count(n) > 1}
    assert twice == ({"missile", "sunglasses"} if stem in {"imagenet", "imagenet-1k-sample"} else set())


# ------------------------------------------------------------------------ suites


def test_suites_name_tasks_and_variants_that_exist() -> None:
    suites = parse(Suites, Document(ROOT / "tasks/suites.yaml")).suites
    assert set(suites["declip-11-zs"].tasks) == {f"{stem}-zs" for stem in DECLIP_11}
    assert suites["quickstart"].tasks == ("digits-zs",)
    for suite in suites.values():
        for task in suite.tasks:
            name, _, variant = task.partition("@")
            dataset, _, protocol = name.rpartition("-")
            settings = task_card(dataset).protocols[protocol]
            assert not variant or variant in settings["variants"]


# ------------------------------------------------------------------- model cards


@pytest.mark.parametrize("stem", sorted(p.stem for p in (ROOT / "model_cards").glob("*.yaml")))
def test_every_model_card_parses(stem: str) -> None:
    assert model_card(stem).title


@pytest.mark.parametrize("stem", CLIP)
def test_clip_card_agrees_with_open_clips_own_config(stem: str) -> None:
    import open_clip

    card = model_card(stem)
    arch, tag = card.config["arch"], card.weights.open_clip
    pretrained = open_clip.get_pretrained_cfg(arch, tag)
    assert pretrained, f"open_clip has no tag {tag} for {arch}"
    config = open_clip.get_model_config(arch)
    assert card.preprocess.size == card.preprocess.side == config["vision_cfg"]["image_size"]
    assert card.preprocess.mean == pretrained["mean"]
    assert card.preprocess.std == pretrained["std"]
    assert card.preprocess.interpolation == pretrained["interpolation"]
    assert card.preprocess.resize == pretrained["resize_mode"]
    assert card.config["quick_gelu"] is bool(pretrained.get("quick_gelu", config.get("quick_gelu", False)))


@pytest.mark.parametrize("stem", CLIP)
def test_sha256_of_openais_own_file_is_not_claimed_for_the_hub_copy(stem: str) -> None:
    """open_clip prefers the hub copy, another file than the one whose sha256 stands in OpenAI's address."""
    import open_clip

    card = model_card(stem)
    pretrained = open_clip.get_pretrained_cfg(card.config["arch"], card.weights.open_clip)
    assert pretrained["hf_hub"]
    assert card.weights.sha256 is None
    if pretrained["url"]:
        assert pretrained["url"].split("/")[-2] in (card.notes or "")


@pytest.mark.parametrize("stem", CLIP)
def test_reported_numbers_name_known_tasks_and_their_metrics(stem: str) -> None:
    card = model_card(stem)
    rows = [(r.task, r.metric, r.source) for r in card.reported]
    assert len(set(rows)) == len(rows)
    assert any(r.task == "imagenet-zs" and r.confidence == "primary" for r in card.reported)
    for row in card.reported:
        dataset, _, protocol = row.task.partition("@")[0].rpartition("-")
        primary = EXPECTED[dataset][4]
        assert protocol in {"zs", "lp"}
        assert 0 < row.percent < 100
        assert row.metric == primary or (row.metric == "acc5" and primary == "acc1")


@pytest.mark.parametrize(
    ("stem", "mean"), [("clip-rn50", 79.06), ("clip-vit-b32", 82.48)], ids=["rn50", "vit-b32"]
)
def test_linear_probe_rows_recompute_to_the_papers_mean(stem: str, mean: float) -> None:
    values = {r.task: r.percent for r in model_card(stem).reported if r.task.endswith("-lp")}
    assert set(values) == {f"{dataset}-lp" for dataset in DECLIP_11}
    assert sum(values.values()) / len(values) == pytest.approx(mean, abs=0.005)
