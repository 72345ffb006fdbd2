"""`clipbench.evaluate`: the command's records in a program, of models by name, loaded ones, and one's own objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import commandline
import numpy as np
import pyarrow.parquet as pq
import pytest
import small
import torch
from commandline import Run
from own_objects import Colours, Wrapped
from PIL import Image

import clipbench
from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.encoding import plans
from clipbench.encoding.encoder import ModelEncoder
from clipbench.encoding.feature_store import FOLDER
from clipbench.encoding.runtime import Runtime
from clipbench.errors import CardError, ClipbenchError, DataError, NotApplicable
from clipbench.models import own
from clipbench.records import store
from clipbench.records.record import same

one_thread, run = small.one_thread, commandline.run


@pytest.fixture(scope="module", autouse=True)
def one_plan() -> Iterator[None]:
    """No trials of plans, whose features differ in the last digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "SHARE", 0.0)
        yield


@dataclass(frozen=True)
class Animals:
    """A small model and two copies of a small data set."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "run"

    @property
    def given(self) -> dict[str, Any]:
        return {"cards": [self.root / "cards"], "data": {"animals": self.root / "data"}, "device": "cpu"}

    def evaluate(self, model: Any, tasks: Any = "animals-zs", **more: Any) -> list[clipbench.Record]:
        return clipbench.evaluate(model, tasks, **self.given | more)


@pytest.fixture
def animals(tmp_path: Path) -> Animals:
    small.write_run(tmp_path / "run")
    small.write_task(tmp_path / "cards")
    small.write_images(tmp_path / "data", 60)
    return Animals(tmp_path)


# ---------------------------------------------------------------------- the same record


def test_an_object_of_ones_own_gets_the_record_of_the_adapter_of_the_same_weights(tmp_path: Path) -> None:
    tasks = ["digits-zs", "digits-scenes-ret", "digits-lp", "digits-lp@knn"]
    records = clipbench.evaluate(
        ["digits-clip-lite", Wrapped("digits-clip-lite")], tasks, results=tmp_path, device="cpu"
    )
    assert [(record.model, record.task) for record in records] == [
        (model, task) for task in tasks for model in ("digits-clip-lite", "Wrapped")
    ]
    for theirs, mine in zip(records[::2], records[1::2], strict=True):
        assert mine.scores.keys() == theirs.scores.keys()
        for metric, score in theirs.scores.items():
            assert mine.scores[metric].value == pytest.approx(score.value, abs=1e-6)
            assert mine.scores[metric].ci95 == pytest.approx(score.ci95, abs=1e-6)
            assert (mine.scores[metric].n, mine.scores[metric].chance) == (score.n, score.chance)
        assert (mine.per_class, mine.notes, mine.seen) == (theirs.per_class, theirs.notes, theirs.seen)
        files = [store.samples_path(store.path_of(one.model, one.task, tmp_path)) for one in (theirs, mine)]
        a, b = (pq.read_table(file).to_pydict() for file in files)
        assert a.keys() == b.keys()
        for column, values in a.items():
            if column == "confidence":
                assert b[column] == pytest.approx(values, abs=1e-5)
            else:
                assert b[column] == values, column


def test_a_name_a_path_and_a_loaded_model_get_the_commands_record(animals: Animals, run: Run) -> None:
    (by_name,) = animals.evaluate(str(animals.model), results=animals.root / "results")
    (by_path,) = animals.evaluate(animals.model)
    (loaded,) = animals.evaluate(clipbench.load_model(animals.model, device="cpu"), device="auto")
    done = run(
        *("eval", "--model", animals.model, "--task", "animals-zs", "--cards", animals.root / "cards"),
        *("--data", f"animals={animals.root / 'data'}", "--results", animals.root / "by-command", "--json"),
        *("--device", "cpu"),
    )
    assert done.code == 0, done
    (told,) = json.loads(done.out)
    by_command = clipbench.Record.model_validate_json(json.dumps(told))
    assert all(same(one, by_command) for one in (by_name, by_path, loaded))
    assert by_path.digest is None
    written, commands = (small.digest(animals.root / name) for name in ("results", "by-command"))
    assert written.keys() == commands.keys()
    assert store.read(store.path_of(by_name.model, by_name.task, animals.root / "results")).record == by_name


def test_suites_and_several_models_come_task_by_task_each_once(animals: Animals) -> None:
    more = small.write_run(animals.root / "more", seed=1)
    records = animals.evaluate(
        [animals.model, more, str(more)], ["animals-zs@simple", "animals-zs"], limit=20
    )
    told = [(Path(record.model).name, record.task, record.limit) for record in records]
    assert told == [(m, t, 20) for t in ("animals-zs@simple", "animals-zs") for m in ("run", "more")]


# ------------------------------------------------------------------------ what is given


def test_images_come_as_they_are_stored_in_batches_and_in_order(animals: Animals, tmp_path: Path) -> None:
    mine = Colours()
    folder = tmp_path / "odd"
    images: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("cat/0.png", Image.new("L", (5, 7), 9), {}),
        ("cat/1.png", Image.new("RGBA", (9, 4), (1, 2, 3, 0)), {}),
        ("dog/2.jpg", Image.new("RGB", (12, 6), (200, 10, 10)), {"exif": _turned()}),
        ("dog/3.png", Image.new("P", (3, 3)), {}),
    ]
    for name, image, how in images:
        path = folder / "test" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **how)
    (record,) = animals.evaluate(mine, data={"animals": folder}, batch_size=3)
    assert [len(batch) for batch in mine.images] == [3, 1]
    flat = [image for batch in mine.images for image in batch]
    assert [image.size for image in flat] == [(5, 7), (9, 4), (12, 6), (3, 3)]
    assert {image.mode for image in flat} == {"RGB"}
    assert not any(image.info or image.getexif() for image in flat)
    assert {note.kind for note in record.notes} >= {"alpha-dropped", "exif-turn-ignored"}
    assert record.encoder["own"] == {
        "code": "own_objects.Colours",
        "identity": None,
        "images": "RGB, as stored",
        "batch": 3,
        "kept": False,
    }
    assert (record.precision, record.device, record.fingerprints["weights"]) == (
        "own",
        "not stated",
        "none stated",
    )
    assert (record.model, record.cards.model["family"], record.cards.model["weights"]) == (
        "Colours",
        "python",
        None,
    )


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_rows_are_made_unit_vectors_here_and_scores_are_those_of_brute_force(animals: Animals) -> None:
    mine = Colours()
    (record,) = animals.evaluate(mine, "animals-zs@simple", results=animals.root / "results")
    table = pq.read_table(
        store.samples_path(store.path_of("Colours", "animals-zs@simple", animals.root / "results"))
    ).to_pydict()
    images = np.concatenate([Colours().encode_images(batch) for batch in mine.images])
    texts = Colours().encode_texts([f"a {name}" for name in small.CLASSES])
    images, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts))
    assert table["prediction"] == (images @ texts.T).argmax(axis=1).tolist()
    assert record.scores["acc1"].value == np.mean(np.array(table["prediction"]) == table["target"])


# ------------------------------------------------------------------- what is kept of it


def test_without_an_identity_no_features_are_kept_with_one_they_are(
    animals: Animals, isolated_cache: Path
) -> None:
    (first,) = animals.evaluate(Colours())
    assert not list(isolated_cache.rglob("*.shard"))
    assert not list(isolated_cache.glob("own-*"))
    named = Colours()
    named.identity = "colours 1"  # type: ignore[attr-defined]
    (second,) = animals.evaluate(named)
    assert list((isolated_cache / FOLDER).rglob("*.shard"))
    again = Colours()
    again.identity = "colours 1"  # type: ignore[attr-defined]
    (third,) = animals.evaluate(again)
    assert again.images == []
    assert again.texts == ["a photo."]  # which is tried always, so that it is known how wide its rows are
    assert third.timing.images_encoded == third.timing.texts_encoded == 0
    assert same(second, third)
    assert second.scores == first.scores
    assert second.fingerprints["weights"] == "colours 1"
    other = Colours()
    other.identity = "colours 2"  # type: ignore[attr-defined]
    animals.evaluate(other)
    assert other.images != []


class Flipped(Colours):
    """Other features of texts, and no identity either."""

    def encode_texts(self, texts: list[str]) -> Any:
        return super().encode_texts(texts)[:, ::-1]


def test_objects_without_an_identity_have_no_features_of_each_other(
    animals: Animals, isolated_cache: Path
) -> None:
    kept = Colours()
    kept.identity = "colours 1"  # type: ignore[attr-defined]
    animals.evaluate(kept)
    before = small.digest(isolated_cache / FOLDER)
    together = animals.evaluate([Colours(), Flipped()])
    alone = [animals.evaluate(one)[0] for one in (Colours(), Flipped())]
    assert all(same(one, other) for one, other in zip(together, alone, strict=True))
    assert together[0].scores["acc1"].value != together[1].scores["acc1"].value
    assert small.digest(isolated_cache / FOLDER) == before


class Wider(Colours):
    """The same identity, of which other features follow."""

    identity = "colours 1"

    def encode_images(self, images: list[Image.Image]) -> Any:
        return np.pad(super().encode_images(images), ((0, 0), (0, 2)))

    def encode_texts(self, texts: list[str]) -> Any:
        return np.pad(super().encode_texts(texts), ((0, 0), (0, 2)))


def test_an_identity_does_not_bring_back_features_of_another_width(animals: Animals) -> None:
    named = Colours()
    named.identity = "colours 1"  # type: ignore[attr-defined]
    animals.evaluate(named)
    wider = Wider()
    animals.evaluate(wider)
    assert wider.images != []


# --------------------------------------------------------------------- what goes wrong


def test_all_that_can_be_measured_is_and_the_error_has_it(animals: Animals) -> None:
    small.write_task(animals.root / "cards", "plants")
    with pytest.raises(clipbench.EvaluationError) as caught:
        animals.evaluate(
            Colours(), ["plants-zs", "digits-lp", "animals-zs"], results=animals.root / "results"
        )
    error = caught.value
    assert [(record.model, record.task) for record in error.records] == [("Colours", "animals-zs")]
    assert error.records == [store.read(animals.root / "results" / "Colours" / "animals-zs.json").record]
    assert [(f.model, f.task, type(f.error)) for f in error.failures] == [
        ("Colours", "plants-zs", DataError),
        ("Colours", "digits-lp", NotApplicable),
    ]
    assert "2 tasks were not measured, 1 were" in str(error)
    assert "plants-zs: plants has no public copy" in str(error)
    assert "Colours × digits-lp: not applicable: Colours: it has no backbone(images)" in str(error)


def test_what_is_not_applicable_may_be_left_out(animals: Animals) -> None:
    records = animals.evaluate(Colours(), ["digits-lp", "animals-zs"], not_applicable="skip")
    assert [record.task for record in records] == ["animals-zs"]


def test_tasks_that_look_into_a_model_or_prepare_its_images_are_not_applicable(animals: Animals) -> None:
    with pytest.raises(clipbench.EvaluationError, match="into which no heat map can look") as caught:
        clipbench.evaluate(Wrapped("digits-clip-lite"), "digits-scenes-ground")
    assert [type(failure.error) for failure in caught.value.failures] == [NotApplicable]
    encoder = ModelEncoder(own.entry(Wrapped("digits-clip-lite")), Runtime("cpu", "fp32"), progress=False)
    encoder.require("backbone")
    with pytest.raises(
        NotApplicable, match="prepares images itself, so that they cannot be scaled otherwise"
    ):
        encoder.require("backbone@256")
    with pytest.raises(NotApplicable, match="without new crops"):
        encoder.crops(open_split(Catalog().dataset("digits"), "test", DataPaths({}, ())), "backbone", 0, 0)


def test_images_that_cannot_be_decoded_stop_it_or_are_named(animals: Animals) -> None:
    bad = sorted((animals.root / "data").rglob("*.png"))[7]
    bad.write_bytes(b"no image")
    with pytest.raises(clipbench.EvaluationError, match=rf"image .*{bad.name} cannot be decoded"):
        animals.evaluate(Colours())
    mine, ours = animals.evaluate([Colours(), str(animals.model)], on_bad_image="skip")
    assert mine.skipped == ours.skipped
    assert len(mine.skipped) == 1
    assert mine.scores["acc1"].n == ours.scores["acc1"].n == 59


def test_names_of_objects_are_not_those_of_others(animals: Animals) -> None:
    with pytest.raises(ClipbenchError, match='2 of the models are called "Colours"'):
        animals.evaluate([Colours(), Colours()])
    mine = Colours()
    mine.name = "digits-clip-lite"  # type: ignore[attr-defined]
    with pytest.raises(CardError, match='called "digits-clip-lite" as a model of'):
        animals.evaluate(mine)


def test_models_that_were_loaded_otherwise_than_each_other_need_a_word(animals: Animals) -> None:
    more = small.write_run(animals.root / "more", seed=1)
    both = [
        clipbench.load_model(animals.model, device="cpu", precision="bf16"),
        clipbench.load_model(more, device="cpu", precision="fp32"),
    ]
    with pytest.raises(ClipbenchError, match="models were loaded on cpu in bf16 and cpu in fp32"):
        animals.evaluate(both, device="auto")
    assert {record.precision for record in animals.evaluate(both[:1], device="auto")} == {"bf16"}
    assert {record.precision for record in animals.evaluate(both, precision="fp32")} == {"fp32"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tasks": "animals-sz"}, 'unknown task "animals-sz"'),
        ({"tasks": []}, "no task is named"),
        ({"tasks": [3]}, "a int is no id of a task"),
        ({"tasks": 3}, "a int is no id of a task"),
        ({"model": []}, "no model is given"),
        ({"model": "digits-clip"}, "unknown model"),
        ({"data": {"anmals": "."}}, 'unknown data set "anmals"'),
        ({"data": "gone"}, "no data folder gone"),
        ({"limit": 0}, "limit must be a whole number from 1 on"),
        ({"limit": "50"}, "limit must be a whole number"),
        ({"seed": -1}, "seed must be a whole number from 0 on"),
        ({"device": "gpu"}, 'unknown device "gpu"'),
        ({"precision": "fp8"}, 'unknown precision "fp8"'),
        ({"on_bad_image": "ignore"}, "unknown choice for --on-bad-image"),
        ({"not_applicable": "no"}, "unknown choice for not_applicable"),
        ({"tasks": "digits-scenes-ground", "save_heatmaps": 2}, "heat maps are written beside records"),
        ({"save_heatmaps": 2}, "none of the tasks has heat maps"),
    ],
)
def test_what_is_wrong_before_anything_is_measured(
    animals: Animals, given: dict[str, Any], words: str
) -> None:
    mine = Colours()
    what = {"model": mine, "tasks": "animals-zs"} | given
    with pytest.raises(ClipbenchError, match=words) as caught:
        animals.evaluate(what.pop("model"), what.pop("tasks"), **what)
    assert not isinstance(caught.value, clipbench.EvaluationError)
    assert mine.images == []


def test_a_limit_of_pixels_holds_as_long_as_the_call(animals: Animals) -> None:
    with pytest.raises(clipbench.EvaluationError, match="8 × 8 pixels, of which 10 are allowed"):
        animals.evaluate(Colours(), max_pixels=10)
    animals.evaluate(Colours())


def test_torch_modules_are_objects_too(animals: Animals) -> None:
    class Module(torch.nn.Module):
        def encode_images(self, images: list[Image.Image]) -> torch.Tensor:
            return torch.nn.functional.linear(
                torch.from_numpy(Colours().encode_images(images)).float(), self.w
            )

        def encode_texts(self, texts: list[str]) -> torch.Tensor:
            return torch.from_numpy(Colours().encode_texts(texts)).half()

        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.eye(3))
            self.logit_scale = torch.nn.Parameter(torch.tensor(10.0))

    with pytest.raises(ClipbenchError, match=r"the .*Module is in training mode"):
        animals.evaluate(Module())
    (record,) = animals.evaluate(Module().eval())
    (plain,) = animals.evaluate(Colours())
    assert record.scores["acc1"].value == plain.scores["acc1"].value
    assert record.device != "not stated"
