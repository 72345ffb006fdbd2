"""Where data can be had: said by `list` and `show`, and before anything is fetched; licences; `data check`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archived
import pytest
import small

from clipbench import cli
from clipbench.cards.base import fingerprint
from clipbench.cards.task import Source, TaskCard
from clipbench.catalog import Catalog
from clipbench.data import huggingface
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.errors import CardError, DataError
from clipbench.report import listing

one_thread = small.one_thread
Run = Callable[..., tuple[int, str, str]]
PROBES_FROM_ARCHIVES = {"flowers102-lp", "caltech101-lp", "aircraft-lp", "dtd-lp"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """`clipbench <arguments>` in this process: how it ended, and what it printed."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipbench", *map(str, arguments)])
        monkeypatch.setenv("COLUMNS", "80")
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert isinstance(end.value.code, int)
        return (end.value.code, *capsys.readouterr())

    return run


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(*_: Any) -> None:
        raise AssertionError("something is fetched")

    monkeypatch.setattr(huggingface, "fetch", fetched)


# ------------------------------------------------------------------- list and show


def test_the_suite_says_where_each_of_its_tasks_data_comes_from(run: Run) -> None:
    code, out, _ = run("list", "tasks", "--suite", "declip-11")
    assert code == 0
    assert all(len(line) <= 80 for line in out.splitlines())
    rows = {row["id"]: row for row in listing.tasks(Catalog(), "declip-11")}
    assert {name for name, row in rows.items() if row["data"].startswith("--data: ")} == PROBES_FROM_ARCHIVES
    assert rows["dtd-zs"]["data"] == "clip-benchmark/wds_vtab-dtd"
    assert rows["dtd-lp"]["data"] == "--data: dtd-r1.0.1.tar.gz"
    assert "dtd-r1.0.1.tar.gz" in out
    assert rows["dtd-zs"]["revision"] == "unknown"
    assert rows["imagenet-zs"]["revision"].startswith("b24c7a5a")


def test_voc_needs_its_devkit_where_difficult_objects_count(run: Run) -> None:
    rows = {row["id"]: row["data"] for row in listing.tasks(Catalog()) if row["id"].startswith("voc07-")}
    own = {name for name, data in rows.items() if data.startswith("--data: VOCtrainval")}
    assert {"voc07-zs", "voc07-lp", "voc07-svm", "voc07-lp@difficult-positive"} <= own
    assert rows["voc07-zs@difficult-positive"] == "clip-benchmark/wds_voc2007_multilabel"


def test_an_unknown_suite_and_a_suite_of_models_are_errors(run: Run) -> None:
    code, _, err = run("list", "tasks", "--suite", "declip-12")
    assert (code, "unknown suite" in err, "declip-11" in err) == (2, True, True)
    code, _, err = run("list", "models", "--suite", "declip-11")
    assert (code, "--suite goes with list tasks" in err) == (2, True)


def test_licence_and_terms_are_shown_and_unknown_ones_said_to_be(run: Run) -> None:
    code, out, _ = run("show", "imagenet")
    assert (code, "licence: unknown" in out, "click-through" in out) == (0, True, True)
    _, out, _ = run("show", "dtd-lp", "--json")
    found = json.loads(out)
    assert found["data"] == "--data: dtd-r1.0.1.tar.gz"
    assert found["dataset"]["licence"] == "unknown"
    assert found["dataset"]["source"]["archive"]["files"] == ["dtd-r1.0.1.tar.gz"]
    _, out, _ = run("list", "tasks", "--json")
    rows = {row["id"]: row for row in json.loads(out)}
    assert rows["imagenet-zs"]["terms"] == "gated: access is given for a click-through licence"


def test_where_data_can_be_had_is_no_part_of_the_fingerprint() -> None:
    fields = {
        "title": "T",
        "source": {"hub": "a/b"},
        "splits": {"train": {"name": "train"}, "test": {"name": "test"}},
        "classes": ["a", "b"],
        "templates": {"default": ["{c}"]},
        "prompts_source": "ours",
        "protocols": {"zs": {}},
    }
    more = {"lacks": {"train": "half of it"}, "archive": {"files": ["a.zip"], "folder": "a"}}
    full = fields | {"licence": "CC0", "terms": "none", "source": {"hub": "a/b"} | more}
    plain, said = TaskCard.model_validate(fields), TaskCard.model_validate(full)
    assert said.source.lacks == {"train": "half of it"}
    assert fingerprint(plain.canonical()) == fingerprint(said.canonical())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"hub": "a/b", "lacks": {"valid": "x"}}, 'lacks: "valid" is no split of this card (it has test)'),
        ({"local": True, "lacks": {"test": "x"}}, "lacks goes with hub"),
    ],
)
def test_a_card_that_lacks_what_it_cannot_have_is_wrong(
    source: dict[str, Any], message: str, tmp_path: Path
) -> None:
    small.write_task(tmp_path, source=source)
    with pytest.raises(CardError) as error:
        Catalog([tmp_path]).dataset("animals")
    assert message in str(error.value)


# ------------------------------------------------------------- before it is fetched


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("task", "says", "unpack"),
    [
        ("dtd-lp", "wds_vtab-dtd has no train split of this card: VTAB's", "unpack dtd-r1.0.1.tar.gz into"),
        (
            "voc07-zs",
            "has no marks of difficult objects of this card",
            "unpack VOCtrainval_06-Nov-2007.tar, ",
        ),
    ],
)
def test_what_the_hub_copy_lacks_is_said_before_anything_is_fetched(
    task: str, says: str, unpack: str, run: Run, tmp_path: Path
) -> None:
    model = small.write_run(tmp_path / "model")
    code, _, err = run("eval", "--model", model, "--task", task, "--results", tmp_path / "r")
    said = " ".join(err.split())
    assert code == 2
    assert says in said
    assert unpack in said
    assert f"--data {task.partition('-')[0]}=<folder>" in said


def test_a_folder_of_data_sets_is_searched_for_what_archives_unpack_to(tmp_path: Path) -> None:
    dataset = Catalog().dataset("food101")
    archived.food(tmp_path, [name.replace(" ", "_") for name in dataset.card.classes], 1, 1)
    with pytest.raises(DataError, match=r"food-101 has 101 samples, the card says 25,250"):
        open_split(dataset, "test", DataPaths({}, (tmp_path,)))


@pytest.fixture
def from_torchvision(
    tmp_path: Path, isolated_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], int]:
    """torchvision's DTD, whose download writes a small copy; how often it did. The first one fails at its end."""
    from torchvision import datasets

    names = Catalog().dataset("dtd").card.classes
    downloads = []

    def download(root: str, download: bool) -> None:
        downloads.append(root)
        assert download
        archived.dtd(Path(root) / "dtd", names, 1, 1)  # as torchvision: dtd/dtd
        if len(downloads) == 1:
            raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(datasets, "DTD", download)
    card = {"base": "dtd", "source": {"torchvision": "DTD"}}
    card["splits"] = {"train": {"name": "train", "rows": 94}, "test": {"name": "test", "rows": 47}}
    (tmp_path / "textures.yaml").write_text(json.dumps(card))
    return lambda: len(downloads)


def test_torchvision_downloads_once_and_anew_after_a_failure(
    from_torchvision: Callable[[], int], tmp_path: Path
) -> None:
    catalog = Catalog([tmp_path])
    dataset = catalog.dataset("textures")
    with pytest.raises(DataError, match=r"torchvision cannot download DTD: File not found or corrupted\."):
        open_split(dataset, "train", DataPaths({}, ()))
    splits = {role: open_split(dataset, role, DataPaths({}, ())) for role in ("train", "test")}
    assert from_torchvision() == 2
    assert splits["train"].ids[0].startswith("images/banded/")
    own = open_split(dataset, "test", DataPaths({"textures": archived_copy(tmp_path)}, ()))
    assert own.fingerprint == splits["test"].fingerprint
    rows = {row["id"]: row["data"] for row in listing.tasks(catalog) if row["id"].startswith("textures-")}
    assert set(rows.values()) == {"torchvision's DTD"}


def archived_copy(folder: Path) -> Path:
    archived.dtd(folder / "copy", Catalog().dataset("dtd").card.classes, 1, 1)
    return folder / "copy" / "dtd"


def test_torchvision_has_these_classes() -> None:
    from typing import get_args

    from torchvision import datasets

    field = Source.model_fields["torchvision"].annotation
    names = [name for part in get_args(field) for name in get_args(part)]
    assert "DTD" in names
    assert all(hasattr(datasets, name) for name in names)


def test_no_shipped_card_sends_a_probe_away() -> None:
    for file in (Path(__file__).parents[2] / "tasks").glob("*.yaml"):
        assert "not for a probe" not in " ".join(file.read_text(encoding="utf-8").split())


# ----------------------------------------------------------------------- data check


@pytest.fixture
def dtd(tmp_path: Path) -> tuple[Path, Path]:
    """A card of three of DTD's textures with counts, and a copy of the archive that fits it."""
    shipped = Catalog().dataset("dtd").card
    splits = {"train": {"name": "train", "rows": 9}, "test": {"name": "test", "rows": 6}}
    card = {"base": "dtd", "classes": shipped.classes[:3], "splits": splits}
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards" / "dtd-few.yaml").write_text(json.dumps(card))
    archived.dtd(tmp_path / "data", shipped.classes[:3], 2, 2)
    return tmp_path / "cards", tmp_path / "data"


def test_data_check_says_that_a_whole_copy_is_well(run: Run, dtd: tuple[Path, Path]) -> None:
    cards, data = dtd
    code, out, _ = run("data", "check", "dtd-few", "--cards", cards, "--data", f"dtd-few={data}")
    assert code == 0, out
    assert [line.split() for line in out.splitlines()[2:4]] == [
        ["dtd-few", "train", "9", "9", "3", "9", "well"],
        ["dtd-few", "test", "6", "6", "3", "6", "well"],
    ]
    assert "dtd-few train: 2 of the authors' lists make up the training split (train, val)" in out
    assert "can run: dtd-few-zs, dtd-few-zs@simple, dtd-few-lp" in out
    assert "cannot run" not in out


def test_data_check_names_images_that_cannot_be_decoded_and_missing_lists(
    run: Run, dtd: tuple[Path, Path]
) -> None:
    cards, data = dtd
    listed = (data / "dtd" / "labels" / "train1.txt").read_text().split()
    (data / "dtd" / "images" / listed[1]).write_bytes(b"<html>")
    (data / "dtd" / "labels" / "test1.txt").unlink()
    given = ("data", "check", "dtd-few", "--cards", cards, "--data", f"dtd-few={data}")
    code, out, _ = run(*given, "--all")
    assert code == 2
    assert "dtd-few train: 1 of 9 images cannot be decoded (images/blotchy/" in out
    assert "✗ dtd-few test: there is no " in out
    assert "unpack that again" in out
    assert "can run: nothing" in out
    assert "✗ cannot run: dtd-few-zs: test: there is no" in out
    code, out, _ = run(*given, "--json")
    found = json.loads(out)
    assert (code, found["splits"][0]["samples"], found["splits"][1]["samples"]) == (2, 9, None)


def test_data_check_holds_counts_and_classes_against_the_card(run: Run, tmp_path: Path) -> None:
    cards = small.write_task(tmp_path / "cards", splits={"test": {"name": "test", "rows": 9}})
    data = small.write_images(tmp_path / "data", 6, names=small.CLASSES[:4])
    code, out, _ = run("data", "check", "animals", "--cards", cards, "--data", f"animals={data}")
    assert code == 2
    assert "✗ animals test: 6 samples, the card says 9" in out
    assert "✗ animals test: 1 of the 5 classes without any sample (pig)" in out
    assert "can run: animals-zs, animals-zs@simple" in out


@pytest.mark.usefixtures("no_network")
def test_data_check_fetches_nothing(run: Run, tmp_path: Path) -> None:
    code, out, err = run("data", "check", "declip-11", "--data", tmp_path)
    assert code == 2
    assert "no copy of pets, cifar10, " in " ".join(err.split())
    code, out, _ = run("data", "check", "digits")
    assert code == 0
    assert ["digits", "train", "1,437", "1,437", "10", "32", "well"] in [
        line.split() for line in out.splitlines()
    ]


def test_data_check_says_which_tasks_a_copy_without_difficult_marks_can_run(run: Run, tmp_path: Path) -> None:
    marks = {
        "zs": {"primary": "map_area", "difficult": "ignore", "variants": {"all": {"difficult": "positive"}}}
    }
    cards = small.write_task(tmp_path / "cards", kind="multi-label", protocols=marks, classes=["cat", "dog"])
    lists = tmp_path / "VOC2007" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (tmp_path / "VOC2007" / "JPEGImages").mkdir()
    for name, values in (("cat", (1, -1)), ("dog", (-1, 1))):
        (lists / f"{name}_test.txt").write_text("".join(f"00000{i} {v}\n" for i, v in enumerate(values)))
    for number in (0, 1):
        (tmp_path / "VOC2007" / "JPEGImages" / f"00000{number}.jpg").write_bytes(small.picture(number))
    code, out, _ = run(
        "data", "check", "animals", "--cards", cards, "--data", f"animals={tmp_path / 'VOC2007'}"
    )
    assert code == 2
    assert "can run: animals-zs@all\n" in out
    assert "✗ cannot run: animals-zs: animals: this copy of the data does not mark difficult objects" in out
