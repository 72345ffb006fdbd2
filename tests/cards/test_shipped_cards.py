"""The shipped cards against their sources: prompts, class order, counts, preprocessing."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from clipbench.cards.model import ModelCard, Preprocess
from clipbench.cards.strict_yaml import Document, parse
from clipbench.cards.task import Suites, TaskCard
from clipbench.catalog import Catalog

ROOT = Path(__file__).parents[2]
SHARED = ROOT / "../shared/data"
TASKS = sorted(p.stem for p in (ROOT / "tasks").glob("*.yaml") if p.stem != "suites")
MODELS = sorted(p.stem for p in (ROOT / "model_cards").glob("*.yaml"))
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
    "voc2012-100": (None, 20, None, 100, "map_area"),
    "coco-363": (None, 80, None, 159, "map_area"),
    "coco-363-voc": (None, 20, None, 159, "map_area"),
}
EXPECTED = DECLIP_11 | OTHERS
RETRIEVAL = ("flickr30k", "coco-karpathy")
# Millions of pairs in DeCLIP's own YFCC15M (V2).
YFCC15M = 15.388848
SIMPLE = ("a photo of a {c}.",)


@functools.cache
def task_card(stem: str) -> TaskCard:
    """The task card `stem`, with the keys it leaves to its base and to shared prompts."""
    return Catalog().dataset(stem).card


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
    assert card.kind == ("multi-label" if stem.startswith(("voc", "coco")) else "single-label")


@pytest.mark.parametrize("stem", [*DECLIP_11, "digits", "tiny-imagenet", "voc07"])
def test_sets_with_a_training_split_have_a_probe(stem: str) -> None:
    primary = "map_11pt" if stem == "voc07" else EXPECTED[stem][4]
    assert task_card(stem).protocols["lp"]["primary"] == primary


@pytest.mark.parametrize("stem", EXPECTED)
def test_variants_name_templates_that_the_card_has(stem: str) -> None:
    card = task_card(stem)
    variants = card.protocols["zs"]["variants"]
    named = {v["templates"] for v in variants.values() if "templates" in v}
    for_training = {"kinds"} if stem == "tiny-imagenet" else set()
    assert named | for_training == set(card.templates) - {"default"}


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
    assert sample.protocols == {"zs": imagenet.protocols["zs"]}  # it has no training split to probe with
    assert sample.source.local is True
    assert "never" in (sample.notes or "")


def test_tiny_imagenet_takes_imagenets_name_for_each_wnid() -> None:
    card, imagenet = task_card("tiny-imagenet"), task_card("imagenet")
    assert imagenet.label_names is not None
    assert card.label_names is not None
    name = dict(zip(imagenet.label_names, imagenet.classes, strict=True))
    assert card.classes == tuple(name[wnid] for wnid in card.label_names)
    assert {name: own for name, own in card.templates.items() if name != "kinds"} == imagenet.templates
    kinds = card.templates["kinds"]
    assert isinstance(kinds, dict)
    assert kinds["tabby cat"] == ("a photo of a cat.",)
    assert not [
        c for c, own in kinds.items() if any(f" {c}." in text for text in own)
    ]  # broader, never the name itself


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
    for protocol in ("zs", "lp"):
        assert set(suites[f"declip-11-{protocol}"].tasks) == {f"{stem}-{protocol}" for stem in DECLIP_11}
    assert suites["declip-11"].tasks == ("declip-11-zs", "declip-11-lp")
    protocols = {task.protocol.id for task in Catalog().tasks(["quickstart"])}
    assert protocols == {"zs", "lp", "svm", "ret", "ground"}  # all but the one that needs a download
    catalog = Catalog()
    for suite in suites.values():
        for task in suite.tasks:
            if task in suites:
                continue
            assert catalog.task(task).id == task


# ------------------------------------------------------------------- model cards


@pytest.mark.parametrize("stem", MODELS)
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
def test_openais_and_laions_zero_shot_numbers_come_from_a_primary_source(stem: str) -> None:
    reported = model_card(stem).reported
    assert any(r.task == "imagenet-zs" and r.confidence == "primary" for r in reported)


@pytest.mark.parametrize("stem", MODELS)
def test_reported_numbers_name_known_tasks_and_their_metrics(stem: str) -> None:
    card = model_card(stem)
    rows = [(r.task, r.metric, r.source) for r in card.reported]
    assert len(set(rows)) == len(rows)
    for row in card.reported:
        assert 0 < row.percent < 100
        assert row.metric in reported_metrics(row.task)


def reported_metrics(task: str) -> set[str]:
    """The metrics that a number reported for `task` may have; fails for an unknown data set or protocol."""
    dataset, _, protocol = task.partition("@")[0].rpartition("-")
    match protocol:
        case "zs":
            primary = EXPECTED[dataset][4]
            return {primary, "acc5"} if primary == "acc1" else {primary}
        case "lp":
            return {DECLIP_11[dataset][4]}
        case "svm" if dataset == "voc07":
            return {"map_area"}
        case "ret" if dataset in RETRIEVAL:
            return {f"{side}_retrieval_recall@{k}" for side in ("text", "image") for k in (1, 5, 10)}
    raise AssertionError(f"{task}: no such task")


@pytest.mark.parametrize(
    ("stem", "mean"),
    [("clip-rn50", 79.06), ("clip-vit-b32", 82.48), ("declip-r50", 79.93), ("declip-r50-visual", 79.93)],
)
def test_linear_probe_rows_recompute_to_the_papers_mean(stem: str, mean: float) -> None:
    rows = [r for r in model_card(stem).reported if r.task.endswith("-lp") and "paper" in r.source]
    values = {r.task: r.percent for r in rows if r.confidence == "from-memory-high"}
    assert set(values) == {f"{dataset}-lp" for dataset in DECLIP_11}
    assert sum(values.values()) / len(values) == pytest.approx(mean, abs=0.005)


def test_numbers_of_clip_that_declips_paper_compares_with() -> None:
    for stem, percent in {"clip-rn50": 59.6, "clip-rn101": 62.2, "clip-vit-b32": 63.2}.items():
        rows = [r for r in model_card(stem).reported if (r.task, r.percent) == ("imagenet-zs", percent)]
        assert [r.confidence for r in rows] == ["from-memory-medium" if stem == "clip-rn101" else "secondary"]


# ------------------------------------------------------- model cards: DeCLIP's family

# Variant, architecture, width of the joint space, image tower only, training pairs (millions), Drive id, and
# the README's ImageNet zero-shot accuracy (none where there is no text tower).
DECLIP: dict[str, tuple[str, str, int, bool, float, str, float | None]] = {
    "declip-r50": ("declip", "RN50", 1024, False, 88, "1YS6xRdF5bY4rvgyCFQVIyPMr7evfZi3D", 62.5),
    "declip-vit-b32": ("declip", "ViT-B-32", 3072, False, 88, "135v0R8zTiAppr-BejtoXRHeGeMTlDf2x", 66.2),
    "declip-r50-visual": ("declip", "RN50", 1024, True, 88, "1SZJ8CU5dDIwuvZWxb4xdld7qv7aw6wKm", None),
    "declip-vit-b32-visual": ("declip", "ViT-B-32", 3072, True, 88, "1W2cCxsr3EjvOOWzVXZukLk38c8LC6UUm", None),
    "clip-yfcc15m-vit-b32": ("clip", "ViT-B-32", 512, False, YFCC15M, "1Xr6fP6DlVzh4SMXXhtcOlh6hFWPaUgs2", 32.8),
    "declip-yfcc15m-vit-b32": ("declip", "ViT-B-32", 512, False, YFCC15M, "1YOAjiSgOBV4gjPpMyo8UDRSZMFxkP3Dz", 43.2),
    "slip-yfcc15m-vit-b32": ("slip", "ViT-B-32", 512, False, YFCC15M, "1PhjUgjLHymTW42_6TaY21P685-lSjbTj", 34.3),
    "filip-yfcc15m-vit-b32": ("filip", "ViT-B-32", 768, False, YFCC15M, "1qqsCMgOqOaQkmgkG205qoKxcOsr3QacO", 39.5),
    "defilip-yfcc15m-vit-b32": ("defilip", "ViT-B-32", 512, False, YFCC15M, "1FYId-kfhwneDGZO6R8nxAS7ti4_V4xwG", 45.0),
    "clip-yfcc15m-r50": ("clip", "RN50", 1024, False, YFCC15M, "1ln2doFyO3Jhld1GJUedHozvA6cdoE6jp", 37.2),
    "declip-yfcc15m-r50": ("declip", "RN50", 1024, False, YFCC15M, "1ZjgJkA-50p0U16kJS-oEKHRUWD2nAjJb", 44.4),
}  # fmt: skip
# The ALIP paper's tables, as printed there: columns, then a row a model with its mean last.
ALIP_SETS = (
    "cifar10",
    "cifar100",
    "food101",
    "pets",
    "flowers102",
    "sun397",
    "cars",
    "dtd",
    "caltech101",
    "aircraft",
    "imagenet",
)
ALIP_ZERO_SHOT = {
    "clip": (63.7, 33.2, 34.6, 20.1, 50.1, 35.7, 2.6, 15.5, 59.9, 1.2, 32.8, 31.8),
    "slip": (50.7, 25.5, 33.3, 23.5, 49.0, 34.7, 2.8, 14.4, 59.9, 1.7, 34.3, 30.0),
    "filip": (65.5, 33.5, 43.1, 24.1, 52.7, 50.7, 3.3, 24.3, 68.8, 3.2, 39.5, 37.2),
    "declip": (66.7, 38.7, 52.5, 33.8, 60.8, 50.3, 3.8, 27.7, 74.7, 2.1, 43.2, 41.3),
    "defilip": (70.1, 46.8, 54.5, 40.3, 63.7, 52.4, 4.6, 30.2, 75.0, 3.3, 45.0, 44.2),
}
ALIP_PROBE = {  # without ImageNet
    "clip": (86.5, 64.7, 69.2, 64.6, 90.6, 66.0, 24.9, 61.3, 79.1, 23.1, 63.0),
    "declip": (89.2, 69.0, 75.4, 72.2, 94.4, 71.6, 31.0, 68.8, 87.9, 27.6, 68.7),
}
ALIP_RETRIEVAL = {  # image to text on Flickr30k and COCO, then text to image; recall at 1, 5, 10
    "clip": (34.9, 63.9, 75.9, 20.8, 43.9, 55.7, 23.4, 47.2, 58.9, 13.0, 31.7, 42.7),
    "slip": (47.8, 76.5, 85.9, 27.7, 52.6, 63.9, 32.3, 58.7, 68.8, 18.2, 39.2, 51.0),
    "declip": (51.4, 80.2, 88.9, 28.3, 53.2, 64.5, 34.3, 60.3, 70.7, 18.4, 39.6, 51.4),
}


def quoted(stem: str, protocol: str) -> dict[tuple[str, str], float]:
    """Task and metric → percent, of the rows that a card has from the ALIP paper."""
    rows = [r for r in model_card(stem).reported if r.source.startswith("ALIP paper")]
    assert {r.confidence for r in rows} <= {"secondary"}
    return {(r.task, r.metric): r.percent for r in rows if r.task.endswith(f"-{protocol}")}


def test_every_released_checkpoint_of_the_family_has_its_card() -> None:
    assert {stem for stem in MODELS if model_card(stem).family == "declip"} == set(DECLIP)


@pytest.mark.parametrize("stem", DECLIP)
def test_declip_card_is_the_released_checkpoints(stem: str) -> None:
    variant, arch, embed_dim, image_only, pairs, drive, zero_shot = DECLIP[stem]
    card = model_card(stem)
    config: dict[str, Any] = {"variant": variant, "arch": arch, "embed_dim": embed_dim, "proj_bias": True}
    assert card.config == (config | {"image_only": True} if image_only else config)
    assert card.weights.gdrive == drive
    assert card.weights.sha256 is None
    assert card.training_pairs_m == pairs
    assert "BSD" in (card.licence or "")
    assert "https://github.com/Sense-GVT/DeCLIP" in card.links
    readme = {(r.task, r.metric): r.percent for r in card.reported if r.confidence == "primary"}
    assert readme == ({} if zero_shot is None else {("imagenet-zs", "acc1"): zero_shot})


@pytest.mark.parametrize("stem", DECLIP)
def test_declip_preprocessing_is_imagenets(stem: str) -> None:
    assert model_card(stem).preprocess == Preprocess(
        size=256,
        crop=224,
        resize="shortest",
        interpolation="bilinear",
        order="convert-first",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


def test_drive_ids_are_used_once() -> None:
    ids = [card.weights.gdrive for stem in MODELS if (card := model_card(stem)).weights.gdrive]
    assert len(ids) == len(set(ids)) == len(DECLIP)


@pytest.mark.parametrize("stem", MODELS)
def test_weights_on_the_web_say_where_the_link_stands(stem: str) -> None:
    weights = model_card(stem).weights
    assert weights.link_source or not (weights.gdrive or weights.url)


@pytest.mark.parametrize("stem", DECLIP)
def test_rows_quoted_by_alip_are_its_tables(stem: str) -> None:
    variant = DECLIP[stem][0] if stem.endswith("-yfcc15m-vit-b32") else ""
    for protocol, table in (("zs", ALIP_ZERO_SHOT), ("lp", ALIP_PROBE)):
        *cells, mean = table.get(variant, (0.0,))
        sets = ALIP_SETS[: len(cells)]
        assert quoted(stem, protocol) == {
            (f"{name}-{protocol}", DECLIP_11[name][4]): cell for name, cell in zip(sets, cells, strict=True)
        }
        assert not cells or sum(cells) / len(cells) == pytest.approx(mean, abs=0.05)
    recalls = [
        (f"{name}-ret", f"{side}_retrieval_recall@{k}")
        for side in ("text", "image")
        for name in RETRIEVAL
        for k in (1, 5, 10)
    ]
    printed = ALIP_RETRIEVAL.get(variant, ())
    assert quoted(stem, "ret") == dict(zip(recalls[: len(printed)], printed, strict=True))


@pytest.mark.parametrize(("stem", "percent"), [("clip-yfcc15m-r50", 31.3), ("declip-yfcc15m-r50", 41.9)])
def test_the_iclr_papers_lower_numbers_stand_beside_the_readmes(stem: str, percent: float) -> None:
    rows = [r for r in model_card(stem).reported if r.confidence != "primary"]
    assert [(r.task, r.metric, r.percent, r.confidence) for r in rows] == [
        ("imagenet-zs", "acc1", percent, "secondary")
    ]
    assert "issue #22" in rows[0].source


def test_probe_numbers_seen_twice_agree() -> None:
    card = model_card("declip-r50")
    assert card.reported[1:] == model_card("declip-r50-visual").reported  # the same image tower
    probe = [r for r in card.reported if r.task.endswith("-lp")]
    paper = {r.task: r.percent for r in probe if r.confidence == "from-memory-high"}
    again = {r.task: r.percent for r in probe if r.confidence == "secondary"}
    assert set(again) == {
        f"{name}-lp" for name in ("cifar10", "cifar100", "sun397", "food101", "cars", "dtd")
    }
    assert again == {task: paper[task] for task in again}


def test_numbers_too_uncertain_to_quote_stand_on_no_card() -> None:
    for stem in ("declip-vit-b32", "declip-vit-b32-visual"):
        assert not [r for r in model_card(stem).reported if r.task != "imagenet-zs"]
    for stem in DECLIP:
        assert {60.4, 46.3}.isdisjoint(r.percent for r in model_card(stem).reported if "-ret" in r.task)


def test_notes_tell_what_scores_would_not() -> None:
    for stem, (variant, arch, *_) in DECLIP.items():
        notes = model_card(stem).notes or ""
        assert "No sha256 was published" in notes
        assert "ImageNet's mean and std" in notes
        assert ("token by token" in notes) is (variant == "filip")
        assert ("224 px only" in notes) is (arch == "RN50")
        assert ("V2" in notes) is ("yfcc15m" in stem)


# --------------------------------------------------------------- model cards: CLIP-Lite


def test_clip_lite_card() -> None:
    card = model_card("clip-lite-r50")
    assert card.family == "clip_lite"
    assert card.config == {
        "image": "resnet50",
        "text": "bert",
        "layers": 12,
        "tokenizer": "bert-base-uncased",
        "max_tokens": 30,
        "clean_captions": True,
    }
    assert card.preprocess == Preprocess(
        size=224,
        resize="shortest",
        interpolation="bilinear-no-antialias",
        order="convert-first",
        orientation="exif",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )
    assert card.training_pairs_m == pytest.approx(118_287 * 5 / 1e6)
    assert "never released" in (card.notes or "")
    assert [(r.task, r.metric, r.percent, r.confidence) for r in card.reported] == [
        ("voc07-svm@clip-lite", "map_area", 88.2, "from-memory-medium"),
        ("imagenet-lp@sgd-virtex", "acc1", 55.3, "from-memory-medium"),
    ]
    assert all("not verified" in r.source for r in card.reported)
