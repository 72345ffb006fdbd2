"""`clipbench export` and `clipbench log`: records for other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from clipbench.catalog import Catalog
from clipbench.cli.inputs import names, open_catalog
from clipbench.cli.options import Cards, Force, Models, Plugins, Results, option
from clipbench.cli.output import note
from clipbench.errors import ClipbenchError, unknown
from clipbench.records import store
from clipbench.records.eligibility import Eligibility
from clipbench.records.record import Record
from clipbench.report import export, trackers
from clipbench.utils.outputs import write_own

FORMATS = ("model-index", "clip-benchmark-json", "clip-benchmark-csv")


def export_command(
    format_: Annotated[str, option("--format -f", "model-index is Hugging Face's.", "|".join(FORMATS))],
    model: Models = None,
    out: Annotated[
        Path | None,
        option(
            "--out -o", "File to write, or folder for clip-benchmark-json; otherwise all is printed.", "PATH"
        ),
    ] = None,
    results: Results = Path("results"),
    force: Force = False,
    cards: Cards = None,
    plugins: Plugins = None,
) -> None:
    """Write records in another program's format.

    Only records that may stand on the leaderboard are written. A model-index is of one model.
    """
    if format_ not in FORMATS:
        raise ClipbenchError(unknown("format", format_, FORMATS))
    records = _eligible(results, open_catalog(cards, plugins), model)
    if format_ == "model-index":
        if len({record.model for record in records}) > 1:
            raise ClipbenchError("model-index is of one model", hint="choose it: --model …")
        text = export.model_index(records, records[0].model)
    else:
        theirs = [one for record in records if (one := export.foreign(record)) is not None]
        if format_ == "clip-benchmark-json" and out is not None:
            for name, content in export.write_json(theirs).items():
                write_own(out / name, content.encode(), None, force=force)
            return
        json_lines = "".join(export.write_json(theirs).values())
        text = json_lines if format_ == "clip-benchmark-json" else export.write_csv(theirs)
    if out is None:
        sys.stdout.write(text)
    else:
        write_own(out, text.encode(), None, force=force)


def log_command(
    to: Annotated[
        str, option("--to", "Where to log; wandb and mlflow must be installed.", "wandb|mlflow|tensorboard")
    ],
    model: Models = None,
    project: Annotated[
        str, option("--project", "Project of Weights & Biases, or experiment of MLflow.", "NAME")
    ] = "clipbench",
    out: Annotated[Path, option("--out -o", "Folder of TensorBoard's files.", "DIR")] = Path(
        "runs/tensorboard"
    ),
    results: Results = Path("results"),
    cards: Cards = None,
    plugins: Plugins = None,
) -> None:
    """Log records to Weights & Biases, MLflow or TensorBoard.

    Each model is one run. Only records that may stand on the leaderboard are logged, and only by this command.
    """
    runs = trackers.log(_eligible(results, open_catalog(cards, plugins), model), to, project, out)
    note(f"logged {runs} {'run' if runs == 1 else 'runs'} to {to}")


def _eligible(results: Path, catalog: Catalog, models: list[str] | None) -> list[Record]:
    """Records of these models (None: of all) that may stand on the leaderboard; the others are named."""
    stored = list(store.read_all(results))
    known = {one.record.model for one in stored}
    chosen = set(names("--model", models)) if models else known
    for name in sorted(chosen - known):
        raise ClipbenchError(f"{unknown('model', name, known)} (records of {results})")
    eligibility = Eligibility(catalog)
    records = []
    for one in stored:
        if one.record.model in chosen:
            reasons = eligibility.reasons(one)
            if reasons:
                note(f"left out: {one.path}: {'; '.join(reason.text for reason in reasons)}")
            else:
                records.append(one.record)
    if not records:
        raise ClipbenchError(f"no record of {results} may be given on", hint="see clipbench report")
    return records
