"""open_clip is imported without what most of its architectures do not need, and completed where one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest

from clipbench.models.weights.library import architecture

_HEAVY = ("transformers", "timm", "torch._dynamo")
_TEXT = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}


def ran(code: str) -> list[str]:
    """What a new process prints, line by line."""
    head = f"import sys\nheavy = lambda: [name for name in {_HEAVY} if name in sys.modules]\n"
    done = subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_towers_of_open_clip_alone_need_no_other_library() -> None:
    lines = ran(
        "from clipbench.models.towers.open_clip import build\n"
        "module = build('RN50', quick_gelu=False)\n"
        "print(heavy())\n"
        "import torch\n"
        "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item())\n"
    )
    assert lines[0] == "[]"
    assert lines[1] == "2.0"


def test_what_torchvision_asks_of_the_compiler_is_the_compilers() -> None:
    (line,) = ran(
        "from clipbench.models.weights.library import library\n"
        "library()\n"
        "ours = sys.modules['torchvision.ops.roi_align']\n"
        "before = heavy()\n"
        "answer = ours.is_compile_supported('cpu')\n"
        "from torch._dynamo.utils import is_compile_supported\n"
        "print(before, answer == is_compile_supported('cpu'), heavy())\n"
    )
    assert line == "[] True ['torch._dynamo']"


def test_towers_of_timm_and_transformers_are_built_after_all(tmp_path: Path) -> None:
    vision = {
        "timm_model_name": "resnet10t",
        "timm_model_pretrained": False,
        "image_size": 32,
        "timm_pool": "avg",
    }
    (tmp_path / "tiny.json").write_text(json.dumps({"embed_dim": 8, "vision_cfg": vision, "text_cfg": _TEXT}))
    lines = ran(
        "from clipbench.models.weights.library import library\n"
        "from clipbench.models.towers.open_clip import build\n"
        "from pathlib import Path\n"
        "library()\n"
        "print(heavy())\n"
        f"library().add_model_config(Path({str(tmp_path / 'tiny.json')!r}))\n"
        "import torch\n"
        "print(*build('tiny', quick_gelu=False).encode_image(torch.zeros(2, 3, 32, 32)).shape)\n"
        "import open_clip.hf_model\n"
        "print(open_clip.hf_model.transformers.__name__)\n"
    )
    assert lines == ["[]", "2 8", "transformers"]


def test_settings_of_architectures_are_read_without_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = (
        Path(open_clip.__file__).with_name("model_configs").glob("*.json")
    )  # not what other tests have added
    wanted = {arch: open_clip.get_model_config(arch) for arch in sorted(path.stem for path in shipped)}
    assert {arch: architecture(arch) for arch in wanted} == wanted
    monkeypatch.delitem(sys.modules, "open_clip")
    assert {arch: architecture(arch) for arch in wanted} == wanted
    assert architecture("none") is None
    assert "open_clip" not in sys.modules


@pytest.mark.parametrize("imported", [True, False])
@pytest.mark.parametrize(
    "written",
    [
        "",
        "[]",
        "{}",
        '{"model_cfg": {"embed_dim": 1}}',
        '{"model_cfg": {"embed_dim": 1, "vision_cfg": 3, "text_cfg": {}}}',
        '{"model_cfg": []}',
        None,
    ],
)
def test_settings_of_a_folder_that_are_in_no_form_of_open_clips(
    written: str | None, imported: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if written is not None:
        (tmp_path / "open_clip_config.json").write_text(written)
    if not imported:
        monkeypatch.delitem(sys.modules, "open_clip")
    assert architecture(f"local-dir:{tmp_path}") is None
