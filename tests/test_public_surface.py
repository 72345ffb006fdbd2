"""What others may build on: names that stay, and modules that stay light."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import clipbench

HEAVY = (
    "torch",
    "torchvision",
    "open_clip",
    "timm",
    "datasets",
    "pandas",
    "matplotlib",
    "sklearn",
    "transformers",
)
#: module → the public names that it defines itself
SURFACE = {
    "clipbench.cards.entry": "Entry",
    "clipbench.errors": (
        "CardError ClipbenchError Damaged DataError NotApplicable Stopped StorageError WeightsError did_you_mean "
        "first_line nearest unknown"
    ),
    "clipbench.catalog": "Catalog Task",
    "clipbench.evaluation": "Kept Options Result Share encode_share evaluate evaluator keep limited refuse",
    "clipbench.api": "Model load_model",
    "clipbench.library": "EvaluationError Failure compare evaluate gate",
    "clipbench.mteb": "Encoder as_mteb",
    "clipbench.models.adapter": "Adapter Family Lengths ModelEntry",
    "clipbench.models.families": "Fetched config_model detected families family fetch load module naming",
    "clipbench.protocols.base": "CutInputs Elsewhere HeatInputs Inputs MetricSpec Needs Outcome Params Protocol",
    "clipbench.protocols.zero_shot": (
        "Params chance_by_frequency check classifier named_alike needs prompts run same_prompts scored texts"
    ),
    "clipbench.metrics.concepts": "concept_direction remove_concept",
    "clipbench.data.layouts.archives": "probe",
    "clipbench.data.layouts._cifar": "Batches Form",
    "clipbench.data.labels": (
        "Match difference fold is_it match match_card of other_labels refuse_doubt require_difficult without_samples"
    ),
    "clipbench.data.layouts._matlab": "read",
    "clipbench.data.layouts._caption_tables": "Table read tells_splits",
    "clipbench.data.text": "decoded json_of lines",
    "clipbench.data.split": "Captions Expressions Note Objects Sample Split Subset notes_of of_classes",
    "clipbench.records.record": (
        "Env Noted ProtocolUsed Record ResolvedCards Seen Skipped Timing by_class environment same seal_of sealed "
        "to_json utc_now"
    ),
    "clipbench.records.store": (
        "Stored file_name path_of paths read read_all refuse_foreign samples_intact samples_path write write_pictures"
    ),
    "clipbench.report.dataframe": "Row centre_baseline metrics_of of_tasks read results rows",
    "clipbench.metrics.paired_tests": (
        "Difference all_signs holm normal_tail of_average_precision of_clusters of_contributions of_draws of_means "
        "of_scores over_draws sign_flip"
    ),
    "clipbench.records.comparison": "Comparison adjusted compare matched means of p_value with_verdicts",
    "clipbench.report.leaderboard": "check leaderboard",
    "clipbench.report.mteb_results": "Found Same Tasks read rows",
    "clipbench.report.sections": "Mean Section ranks_of sections",
    "clipbench.report.site": "build page write",
    "clipbench.report.table": (
        "aligned as_printed csv_text folded json_text latex markdown markdown_table rank_notes record_table "
        "stages_table terminal"
    ),
    "clipbench.report.data_check": "Checked Survey survey text",
    "clipbench.records.eligibility": "Eligibility Gone Reason lacking",
    "clipbench.records.exposure": "Exposure exposure unknown_images",
}
LIGHT = (
    "clipbench",
    "clipbench.metrics.boxes",
    "clipbench.utils.cache",
    "clipbench.cards.strict_yaml",
    "clipbench.cards.recipe",
    "clipbench.cards.task",
    "clipbench.data.caption_cleaning",
    "clipbench.catalog",
    "clipbench.records.check",
    "clipbench.cli",
    "clipbench.records.comparison",
    "clipbench.metrics.concepts",
    "clipbench.data.layouts.coco_gender",
    "clipbench.data.layouts.captions",
    "clipbench.data.huggingface",
    "clipbench.data.open",
    "clipbench.data.paths",
    "clipbench.data.labels",
    "clipbench.data.layouts.base",
    "clipbench.data.layouts.parquet",
    "clipbench.data.repeats",
    "clipbench.data.layouts.refer",
    "clipbench.data.layouts._caption_tables",
    "clipbench.data.text",
    "clipbench.data.digests",
    "clipbench.errors",
    "clipbench.evaluation",
    "clipbench.encoding.runtime",
    "clipbench.report.export",
    "clipbench.report.mteb_results",
    "clipbench.encoding.encoder",
    "clipbench.records.gate",
    "clipbench.metrics.group_ranking",
    "clipbench.metrics.joint",
    "clipbench.report.trackers",
    "clipbench.api",
    "clipbench.mteb",
    "clipbench.metrics.arrays",
    "clipbench.metrics.average_precision",
    "clipbench.metrics.average_precision_intervals",
    "clipbench.metrics.classification",
    "clipbench.metrics.ranks",
    "clipbench.models.clip",
    "clipbench.models.clip_lite",
    "clipbench.models.declip",
    "clipbench.models.weights.convert",
    "clipbench.models.families",
    "clipbench.models.weights.fetch",
    "clipbench.models.weights.key_maps",
    "clipbench.models.towers.tokenizer",
    "clipbench.models.dual",
    "clipbench.models.embeddings",
    "clipbench.models.weights.open_clip",
    "clipbench.models.weights.pickles",
    "clipbench.models.weights.reading",
    "clipbench.models.weights.resolve",
    "clipbench.models.towers.configs",
    "clipbench.models.towers.open_clip",
    "clipbench.metrics.paired_tests",
    "clipbench.records.alignment",
    "clipbench.protocols.bias",
    "clipbench.protocols.retrieval",
    "clipbench.protocols.grounding",
    "clipbench.protocols.zero_shot",
    "clipbench.records.record",
    "clipbench.records.store",
    "clipbench.report.leaderboard",
    "clipbench.report.dataframe",
    "clipbench.report.listing",
    "clipbench.protocols._overlays",
    "clipbench.report.site",
    "clipbench.report.table",
    "clipbench.protocols._samples",
    "clipbench.metrics.similarity",
    "clipbench.solvers.ranking",
    "clipbench.records.eligibility",
    "clipbench.metrics.intervals",
    "clipbench.encoding.feature_store",
    "clipbench.encoding.image_digests",
)


@pytest.mark.parametrize("module", SURFACE)
def test_public_names_are_those_written_down(module: str) -> None:
    found = import_module(module)
    public = {
        name
        for name, value in vars(found).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module
    }
    assert public == set(SURFACE[module].split())


@pytest.mark.parametrize("module", SURFACE)
def test_public_names_say_what_they_are(module: str) -> None:
    for name in SURFACE[module].split():
        doc = inspect.getdoc(getattr(import_module(module), name))
        assert doc, f"{module}.{name}"


def test_importing_any_light_module_loads_nothing_heavy() -> None:
    program = (
        "import sys, json, importlib\n"
        "found = {}\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module(name)\n"
        f"    found[name] = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert loaded == {name: [] for name in LIGHT}


def test_importing_clipbench_alone_loads_next_to_nothing() -> None:
    program = "import sys; before = set(sys.modules); import clipbench; print(len(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 3


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert clipbench.__version__ == project["version"]


def test_the_package_says_that_it_is_typed() -> None:
    assert (Path(clipbench.__file__).parent / "py.typed").is_file()
