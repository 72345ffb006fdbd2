"""The picture of how a penalty was chosen, and what the table says of it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import Run, run
from PIL import Image
from recorded import make_record
from rich.console import Console

from clipbench.errors import ClipbenchError
from clipbench.records import store
from clipbench.report.plots import validation_curve
from clipbench.report.table import record_table

__all__ = ["run"]


def points(count: int = 5, unsolved: int | None = None) -> list[dict[str, Any]]:
    return [
        {"lambda": 10.0**i, "score": 0.5 + 0.1 * i - 0.03 * i * i, "converged": i != unsolved}
        for i in range(count)
    ]


def chosen(value: float = 100.0, edge: str | None = None) -> dict[str, Any]:
    return {"lambda": value, "C": 1 / value, "edge": edge}


VALIDATION = {"metric": "acc1", "n": 50, "source": "0.2 of train, held out"}
EVIDENCE: dict[str, dict[str, Any]] = {
    "one": {"curve": points(), "chosen": chosen(), "validation": VALIDATION, "not_converged": []},
    "unsolved": {
        "curve": points(unsolved=0),
        "chosen": chosen(1.0, "the best λ is the lowest of the range"),
        "validation": VALIDATION,
        "not_converged": [1.0],
    },
    "svm": {
        "chosen": {"cat": {"C": 0.1}},
        "not_converged": [{"class": "cat", "C": 10.0, "fold": 1}, {"class": "cat", "C": 0.1, "fold": None}],
    },
    "draws": {
        "draws": [{"curve": points(), "chosen": chosen()}, {"curve": points(4), "chosen": chosen(10.0)}],
        "std": {"acc1": 0.0123},
        "per_draw": {"acc1": [0.7, 0.8]},
    },
    "classes": {"curve": points(), "chosen": {"cat": chosen(), "dog": chosen(), "cow": chosen(10.0)}},
}


@pytest.mark.parametrize("kind", [kind for kind in EVIDENCE if kind != "svm"])
def test_every_kind_of_choice_is_drawn(kind: str) -> None:
    picture = Image.open(io.BytesIO(validation_curve(make_record(evidence=EVIDENCE[kind]))))
    assert picture.size[0] > 600
    colours = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    red = (colours == (214, 39, 40)).all(axis=1)  # C3, of the marks
    assert red.sum() > 50


def test_record_without_a_choice_is_no_picture() -> None:
    with pytest.raises(ClipbenchError, match="this record has no validation curve"):
        validation_curve(make_record())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "one",
            ["λ = 100 (C = 0.01), the best of 5 by acc1 on 50 validation samples (0.2 of train, held out)"],
        ),
        ("unsolved", ["careful: the best λ is the lowest of the range", "not converged: λ = 1"]),
        ("svm", ["not converged: cat at C = 10, fold 1; cat at C = 0.1, all folds"]),
        ("draws", ["mean of 2 draws, standard deviation 1.23"]),
    ],
)
def test_table_says_what_a_reader_must_know(kind: str, words: list[str]) -> None:
    console = Console(width=160, file=io.StringIO(), highlight=False)
    console.print(record_table(make_record(evidence=EVIDENCE[kind])))
    assert isinstance(console.file, io.StringIO)
    for word in words:
        assert word in console.file.getvalue()


def test_show_draws_from_the_command_line(run: Run, tmp_path: Path) -> None:
    record = make_record(evidence=EVIDENCE["one"])
    path = store.write(record, {"id": ["a"]}, tmp_path)
    done = run("show", path, "--plot", tmp_path / "curve.png")
    assert done.code == 0
    assert "wrote" in done.err
    assert (tmp_path / "curve.png").read_bytes()[1:4] == b"PNG"
    done = run("show", "digits-zs", "--plot", tmp_path / "none.png")
    assert done.code == 2
    assert not (tmp_path / "none.png").exists()
