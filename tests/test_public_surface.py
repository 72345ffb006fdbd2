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
    "clipbench.errors": (
        "CardError ClipbenchError Damaged DataError NotApplicable Stopped StorageError WeightsError nearest unknown"
    ),
    "clipbench.catalog": "Catalog Entry Task protocol_ids protocol_module",
    "clipbench.evaluate": "Options Result evaluate evaluator limited",
    "clipbench.library": "Model load_model",
    "clipbench.models": "Adapter LoadedModel config_model families family load",
    "clipbench.protocols": "Encoder HeatEncoder Outcome",
    "clipbench.protocols.zero_shot": "Params check classifier needs prompts run same_prompts",
    "clipbench.concepts": "concept_direction remove_concept",
    "clipbench.data.archives": "layout refuse_unfinished",
    "clipbench.data.cifar": "Batches Form",
    "clipbench.data.fetched": "archive_of",
    "clipbench.data.labels": "Match difference fold match match_card of other_labels refuse_doubt without_samples",
    "clipbench.data.matlab": "read",
    "clipbench.data.tables": "Table read tells_splits",
    "clipbench.data.text": "decoded lines",
    "clipbench.data": "Captions Expressions Note Objects Sample Split",
    "clipbench.records": (
        "Env Noted ProtocolUsed Record ResolvedCards Seen Skipped Stored Timing by_class each environment file_name "
        "filed load load_all path_of paths read read_all refuse_foreign same samples_intact samples_path to_json "
        "utc_now write write_pictures"
    ),
    "clipbench.report.frame": "Row centre_baseline less_is_better metrics_of of_tasks read results rows",
    "clipbench.paired": (
        "Difference all_signs holm normal_tail of_average_precision of_contributions of_draws of_means of_scores "
        "over_draws sign_flip"
    ),
    "clipbench.compare": "Comparison adjusted compare judged matched means of",
    "clipbench.report.board": "Mean Section check leaderboard sections",
    "clipbench.report.site": "build page write",
    "clipbench.report.table": (
        "aligned as_printed csv_text json_text latex markdown markdown_table rank_notes record_table terminal"
    ),
    "clipbench.survey": "Checked Survey survey text",
    "clipbench.standing": "Gone Judge Reason lacking",
    "clipbench.exposure": "Exposure exposure unknown_images",
}
LIGHT = (
    "clipbench",
    "clipbench.boxes",
    "clipbench.cache",
    "clipbench.cards",
    "clipbench.captions",
    "clipbench.catalog",
    "clipbench.check",
    "clipbench.cli",
    "clipbench.compare",
    "clipbench.concepts",
    "clipbench.data.coco_gender",
    "clipbench.data.captions",
    "clipbench.data.hub",
    "clipbench.data.labels",
    "clipbench.data.layout",
    "clipbench.data.parquet",
    "clipbench.data.repeats",
    "clipbench.data.refer",
    "clipbench.data.tables",
    "clipbench.data.text",
    "clipbench.digests",
    "clipbench.errors",
    "clipbench.evaluate",
    "clipbench.execution",
    "clipbench.exchange",
    "clipbench.features",
    "clipbench.gate",
    "clipbench.groups",
    "clipbench.jointly",
    "clipbench.loggers",
    "clipbench.library",
    "clipbench.metrics",
    "clipbench.models.clip",
    "clipbench.models.clip_lite",
    "clipbench.models.declip",
    "clipbench.models.convert",
    "clipbench.models.detect",
    "clipbench.models.fetch",
    "clipbench.models.layouts",
    "clipbench.models.tokenizer",
    "clipbench.models.dual",
    "clipbench.models.weights",
    "clipbench.paired",
    "clipbench.pairing",
    "clipbench.protocols.bias",
    "clipbench.protocols.retrieval",
    "clipbench.protocols.grounding",
    "clipbench.protocols.zero_shot",
    "clipbench.records",
    "clipbench.report.board",
    "clipbench.report.frame",
    "clipbench.report.listing",
    "clipbench.report.overlays",
    "clipbench.report.site",
    "clipbench.report.table",
    "clipbench.samples",
    "clipbench.scoring",
    "clipbench.solvers.ranking",
    "clipbench.standing",
    "clipbench.stats",
    "clipbench.store",
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
