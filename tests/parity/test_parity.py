"""Parity with CLIP_benchmark: the real comparison on 200 images, and the pieces it is made of."""

from __future__ import annotations

import io
import json
import shutil
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipbench.cards.entry import Entry
from clipbench.cards.task import SplitSpec
from clipbench.catalog import Catalog
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split
from clipbench.errors import DataError
from clipbench.protocols.zero_shot import prompts
from parity import __main__ as program
from parity import peer, retrieval_and_map, zero_shot

CLASSES = ("airplane", "frog", "truck")
TEMPLATES = ("a photo of a {c}.", "a blurry photo of a {c}.")
SAME = {"acc1": 0.125, "acc5": 0.5, "mean_per_class_recall": 0.125}
# Three images and classes: the peer's logits (100 × cosine), and what clipbench finds for the same cosines.
LOGITS = zero_shot.Logits(
    np.array([[30.0, 20.0, 10.0], [10.0, 30.0, 29.0], [20.0, 10.0, 30.0]], np.float32),
    np.array([0, 2, 1]),
    logit_scale=10.0,
)


def outcomes(target: Sequence[int] = (0, 2, 1), shift: float = 0.0) -> zero_shot.Outcomes:
    """clipbench's outcomes for `LOGITS`: softmax of 3, 2, 1 and of 1, 3, 2.9, worked by hand."""
    far, near = 1 / (1 + np.exp(-1) + np.exp(-2)), 1 / (1 + np.exp(-0.1) + np.exp(-2))
    confidence = np.array([far, near + shift, far])
    return zero_shot.Outcomes(np.array(target), np.array([0, 1, 2]), np.array([0, 1, 2]), confidence)


@pytest.mark.shared
def test_both_programs_give_the_same_numbers(shared_data: Path, tmp_path: Path) -> None:
    """The comparison itself: random ViT-B/32 and RN50 on 100 images in fp32, to 4 decimals."""
    work, out = tmp_path / "work", tmp_path / "out"
    arguments = ["--images", "100", "--archs", "ViT-B-32,RN50", "--prompt-sets", "0"]
    arguments += ["--precision", "fp32", "--rounds", "1"]
    arguments += ["--data", str(shared_data / "cifar10"), "--work", str(work), "--out", str(out)]
    arguments += ["--captioned", "24"]
    try:
        code = program.main(arguments)
    except peer.PeerUnavailable as error:
        pytest.skip(error.message)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # more than a gigabyte
    for arch in ("ViT-B-32", "RN50"):
        text = (out / f"{arch}-fp32-100.json").read_text()
        report = zero_shot.Report.model_validate_json(text)
        assert str(tmp_path) not in text
        assert sys.prefix not in text
        assert (report.peer.version, report.data["n"]) == ("1.6.2", 100)
        assert report.peer.packages["torch"] == report.ours.packages["torch"]
        for name in zero_shot.METRICS:
            metric = report.metrics[name]
            assert metric.ours == pytest.approx(metric.peer, abs=0.5e-4), f"{arch} {name}"
        assert report.images.n == 100
        assert report.images.confidence_difference < 1e-5, arch
    retrieval, voc = (
        retrieval_and_map.SetReport.model_validate_json((out / f"ViT-B-32-fp32-{name}.json").read_text())
        for name in ("flickr8k-1000-24", "voc2012-100-100")
    )
    assert set(retrieval.metrics) == set(retrieval_and_map.RECALLS.values())
    assert set(voc.metrics) == {"map_area"}
    sugarcrepe, winoground = (
        retrieval_and_map.SetReport.model_validate_json((out / f"ViT-B-32-fp32-{name}.json").read_text())
        for name in ("sugarcrepe-840", "winoground-60")
    )
    assert set(sugarcrepe.metrics) == {"text_acc"}
    assert set(winoground.metrics) == {"text_acc", "image_acc", "group_acc"}
    for found in (retrieval, voc, sugarcrepe, winoground):
        for name, metric in found.metrics.items():
            assert metric.ours == pytest.approx(metric.peer, abs=0.5e-4), f"{found.task} {name}"
    assert retrieval.ranking is not None
    assert (retrieval.ranking.images, retrieval.ranking.captions) == (24, 120)
    assert retrieval.ranking.rank_difference <= 1
    assert code == 0


def test_copies_of_captions_and_labels_have_the_layout_of_the_peer(tmp_path: Path) -> None:
    folder = tmp_path / "shots"
    (folder / "images").mkdir(parents=True)
    for number in range(3):
        (folder / f"images/{number}.png").write_bytes(_encoded(number, "PNG"))
    (folder / "captions.txt").write_text("image,caption\n0.png,A cat\n0.png,Cats\n1.png,A dog\n2.png,A hen")
    paths = DataPaths({"coco-363-captions": folder}, ())
    entry = Catalog().dataset("coco-363-captions")
    card = entry.card.model_copy(update={"splits": {"test": SplitSpec(name="test")}})
    split = open_split(Entry(entry.id, card, entry.path), "test", paths)
    retrieval_and_map.write_captions(split, tmp_path / "copy")
    assert (tmp_path / "copy/dataset_type.txt").read_text() == "retrieval"
    with tarfile.open(tmp_path / "copy/test/0.tar") as tar:
        texts = {m.name: tar.extractfile(m) for m in tar.getmembers() if m.name.endswith(".txt")}
        assert [file.read() for file in texts.values() if file] == [b"A cat\nCats", b"A dog", b"A hen"]
    copy = open_split(Entry(entry.id, card, entry.path), "test", DataPaths({entry.id: tmp_path / "copy"}, ()))
    assert copy.captions is not None
    assert split.captions is not None
    assert copy.captions.texts == split.captions.texts


# ------------------------------------------------------------------ the input


def _encoded(seed: int, kind: str) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind)
    return buffer.getvalue()


def _images(folder: Path, kind: str = "PNG", each: int = 3) -> Path:
    """A local copy of `cifar10` as an image folder: `each` images of three of its classes."""
    for number, name in enumerate(CLASSES):
        (folder / "test" / name).mkdir(parents=True)
        for i in range(each):
            suffix = {"JPEG": "jpg"}.get(kind, kind.lower())
            (folder / "test" / name / f"{i}.{suffix}").write_bytes(_encoded(10 * number + i, kind))
    return folder


def _open(folder: Path) -> Split:
    return open_split(Catalog().dataset("cifar10"), "test", DataPaths({"cifar10": folder}, ()))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_webdataset_copy_holds_the_same_images_and_labels(tmp_path: Path, kind: str) -> None:
    split = _open(_images(tmp_path / "folder", kind))
    zero_shot.write_webdataset(split, 7, TEMPLATES, tmp_path / "wds")
    copy = _open(tmp_path / "wds")
    rows = np.arange(7)
    assert [s.image for s in copy.samples(rows)] == [s.image for s in split.samples(rows)]
    assert copy.labels.tolist() == split.labels[:7].tolist() == [0, 0, 0, 6, 6, 6, 9]


def test_webdataset_copy_has_the_layout_of_the_peer(tmp_path: Path) -> None:
    zero_shot.write_webdataset(_open(_images(tmp_path / "folder")), 4, TEMPLATES, tmp_path / "wds")
    assert (tmp_path / "wds/test/nshards.txt").read_text() == "1\n"
    assert (tmp_path / "wds/classnames.txt").read_text().splitlines()[::3] == [
        "airplane",
        "cat",
        "frog",
        "truck",
    ]
    prompts = (tmp_path / "wds/zeroshot_classification_templates.txt").read_text()
    assert tuple(prompts.splitlines()) == TEMPLATES


def test_webdataset_copy_is_the_same_every_time(tmp_path: Path) -> None:
    split = _open(_images(tmp_path / "folder"))
    for name in ("a", "b"):
        zero_shot.write_webdataset(split, 4, TEMPLATES, tmp_path / name)
    assert (tmp_path / "a/test/0.tar").read_bytes() == (tmp_path / "b/test/0.tar").read_bytes()


def test_more_images_than_there_are(tmp_path: Path) -> None:
    split = _open(_images(tmp_path / "folder"))
    with pytest.raises(DataError, match=r"has 9 images, 10 are wanted\n.*--images 9"):
        zero_shot.write_webdataset(split, 10, TEMPLATES, tmp_path / "wds")


def test_image_format_that_the_layout_does_not_name(tmp_path: Path) -> None:
    split = _open(_images(tmp_path / "folder", "BMP"))
    with pytest.raises(DataError, match=r'airplane/0\.bmp.*"BMP".*allowed: JPEG, PNG, WEBP'):
        zero_shot.write_webdataset(split, 4, TEMPLATES, tmp_path / "wds")


def test_card_with_prompt_sets_is_read_by_clipbench(tmp_path: Path) -> None:
    sets = {"default": TEMPLATES, "simple": ("a {c}.",)}
    catalog = Catalog([zero_shot.write_card(tmp_path, sets)])
    for task_id, templates in (("cifar10-zs", TEMPLATES), ("cifar10-zs@simple", ("a {c}.",))):
        task = catalog.task(task_id)
        found = prompts(task.dataset.card, task.params.canonical()["templates"])
        assert found[3] == [template.replace("{c}", "cat") for template in templates]


def test_prompt_sets_differ() -> None:
    sets = zero_shot.prompt_sets(TEMPLATES)
    assert list(sets) == ["default", "simple", "best7"]
    assert sets["default"] == TEMPLATES
    assert [len(templates) for templates in sets.values()] == [2, 1, 7]


def test_unfinished_checkpoint_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def half(*command: str) -> str:
        Path(command[-1]).write_bytes(b"half")
        raise peer.ParityError("killed")

    monkeypatch.setattr(peer, "_python", half)
    with pytest.raises(peer.ParityError, match="killed"):
        peer.random_checkpoint("RN50", tmp_path)
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------- the peer


def test_peer_without_a_package_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(peer.PeerUnavailable, match=r"no package index answers\n.*where pip can reach one"):
        peer.prepare_peer(tmp_path / "peer")
    assert not (tmp_path / "peer/made_of.json").exists(), "the next call must begin anew"


def test_failed_program_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; print('why', file=sys.stderr); sys.exit(3)"]
    with pytest.raises(peer.ParityError, match=r"^exit status 3: .*\nwhy$"):
        peer.run(command, cwd=tmp_path, env={})


def test_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(peer.ParityError, match="cannot be started: No such file"):
        peer.run([str(tmp_path / "gone")], cwd=tmp_path, env={})


# ------------------------------------------------------------- the comparison


@pytest.mark.parametrize(("difference", "equal"), [(0.0, True), (4e-5, True), (6e-5, False), (-6e-5, False)])
def test_agreement_is_to_four_decimals(difference: float, equal: bool) -> None:
    metrics = zero_shot.compare({name: value + difference for name, value in SAME.items()}, SAME)
    assert [m.equal for m in metrics.values()] == [equal] * 3


def test_images_that_agree() -> None:
    images = zero_shot.compare_images(outcomes(), LOGITS)
    assert (images.n, images.same_prediction, images.same_rank, images.predicted_classes) == (3, 3, 3, 3)
    assert images.confidence_difference == pytest.approx(0, abs=1e-7)
    assert images.nearest_tie == pytest.approx(0.01)


def test_images_that_differ() -> None:
    ours = outcomes(shift=-2e-5)
    other = zero_shot.Outcomes(ours.target, np.array([0, 2, 2]), np.array([0, 0, 2]), ours.confidence)
    images = zero_shot.compare_images(other, LOGITS)
    assert (images.same_prediction, images.same_rank) == (2, 2)
    assert images.confidence_difference == pytest.approx(2e-5, rel=0.01)


def test_images_in_another_order_are_refused() -> None:
    with pytest.raises(peer.ParityError, match="another order"):
        zero_shot.compare_images(outcomes(target=[2, 0, 1]), LOGITS)


def _fake_programs(
    monkeypatch: pytest.MonkeyPatch,
    ours: Mapping[str, float],
    simple: float = 0.125,
    shift: float = 0.0,
) -> None:
    """Both programs replaced by what they would have found.

    `simple` is clipbench's acc1 with the prompt set of that name, `shift` an error in one image's confidence.
    """

    def prepare(folder: Path) -> peer.Peer:
        versions = {"clip-benchmark": "1.6.2"}
        return peer.Peer(folder, versions)

    def run_peer(
        of: peer.Peer, setting: zero_shot.Setting, templates: Sequence[str] | None = None
    ) -> zero_shot.PeerRun:
        return zero_shot.PeerRun(dict(SAME), LOGITS, 20.0, "peer")

    def clipbench(
        setting: zero_shot.Setting, tasks: Sequence[str], cards: Path | None = None
    ) -> zero_shot.OurRun:
        found = {task: dict(ours) | ({"acc1": simple} if task.endswith("@simple") else {}) for task in tasks}
        by_task = dict.fromkeys(tasks, outcomes(shift=shift))
        return zero_shot.OurRun(found, by_task, 10.0, "a processor", "clipbench")

    def checkpoint(arch: str, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / arch).write_bytes(b"weights")
        return folder / arch

    monkeypatch.setattr(program, "prepare_peer", prepare)
    monkeypatch.setattr(peer.Peer, "templates", lambda self: TEMPLATES)
    monkeypatch.setattr(zero_shot, "run_peer", run_peer)
    monkeypatch.setattr(zero_shot, "run_ours", clipbench)
    monkeypatch.setattr(program, "random_checkpoint", checkpoint)


def _main(tmp_path: Path, *more: str) -> tuple[int, zero_shot.Report]:
    data = _images(tmp_path / "data")
    arguments = ["--images", "9", "--archs", "RN50", "--data", str(data), "--precision", "fp32"]
    arguments += ["--flickr8k", str(tmp_path / "none"), "--voc", str(tmp_path / "none")]
    arguments += ["--coco", str(tmp_path / "none")]
    code = program.main([*arguments, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), *more])
    (path,) = (tmp_path / "out").iterdir()
    return code, zero_shot.Report.model_validate_json(path.read_text())


def test_equal_numbers_exit_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_programs(monkeypatch, SAME)
    code, report = _main(tmp_path)
    assert (code, report.differing()) == (0, [])
    key = "RN50 fp32, 9 images"
    assert report.ratios() == {key: 0.5, f"{key}, 3 prompt sets": 0.1667}
    assert report.wall_s.ratios == (0.5,) * 5


def test_sizes_and_precisions_are_all_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns up to 1,000 images; several prompt sets once, at the largest size that takes turns."""
    _fake_programs(monkeypatch, SAME)
    monkeypatch.setattr(program, "_TURNS_UP_TO", 6)
    arguments = [
        "--archs",
        "RN50,RN101",
        "--images",
        "3,6,9",
        "--rounds",
        "2",
        "--data",
        str(_images(tmp_path / "data")),
    ]
    arguments += ["--flickr8k", str(tmp_path / "none"), "--voc", str(tmp_path / "none")]
    arguments += ["--coco", str(tmp_path / "none")]
    assert program.main([*arguments, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]) == 0
    reports = [
        zero_shot.Report.model_validate_json(path.read_text()) for path in (tmp_path / "out").iterdir()
    ]
    work = {
        (report.arch, report.precision, report.data["n"]): len(report.wall_s.ratios) for report in reports
    }
    assert work == {
        (arch, precision, n): 1 if n == 9 else 2
        for arch in ("RN50", "RN101") for precision in ("fp32", "bf16") for n in (3, 6, 9)
    }  # fmt: skip
    [several] = [report for report in reports if report.prompt_sets is not None]
    assert (several.arch, several.precision, several.data["n"]) == ("RN50", "fp32", 6)


def test_a_metric_that_differs_exits_1_and_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fake_programs(monkeypatch, SAME | {"acc5": 0.5005})
    code, report = _main(tmp_path, "--prompt-sets", "0")
    assert (code, report.differing()) == (1, ["acc5"])
    assert "differs: RN50: acc5" in capsys.readouterr().out


def test_confidence_that_differs_exits_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_programs(monkeypatch, SAME, shift=2e-5)
    code, report = _main(tmp_path)
    assert (code, report.differing()) == (1, ["confidence"])


def test_prompt_sets_count_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_programs(monkeypatch, SAME, simple=0.13)
    code, report = _main(tmp_path)
    assert (code, report.differing()) == (1, ["acc1 (simple)"])


def test_bf16_is_shown_and_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fake_programs(monkeypatch, SAME | {"acc5": 0.5005})
    code, report = _main(tmp_path, "--precision", "bf16")
    assert code == 0
    assert not report.metrics["acc5"].equal
    assert "≠" in capsys.readouterr().out


def test_json_is_one_object_with_ratios(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fake_programs(monkeypatch, SAME)
    _, report = _main(tmp_path, "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed["ratios"] == report.ratios()
    assert printed["reports"] == [report.canonical()]


def test_missing_data(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    with pytest.raises(DataError, match="no data folder"):
        program.main(["--data", gone, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("images", ["0", "-3", "many"])
def test_number_of_images(images: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        program.main(["--images", images])
    assert "a whole number above 0" in capsys.readouterr().err
