import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from clipbench.errors import ClipbenchError
from clipbench.utils import plugins


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package `own_parts` with the modules alpha, base and _helper, and the folder deeper."""
    folder = tmp_path / "own" / "own_parts"
    (folder / "deeper").mkdir(parents=True)
    for name in ("__init__", "alpha", "base", "_helper", "deeper/__init__"):
        (folder / f"{name}.py").write_text(f"NAME = {name!r}\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setattr(plugins, "_folders", [])
    yield importlib.import_module("own_parts")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("own_parts", "their_parts")]:
        del sys.modules[name]


def _installed(folder: Path, monkeypatch: pytest.MonkeyPatch, points: str) -> None:
    """A package `theirs` that is installed in `folder`, with the module their_parts and these entry points."""
    about = folder / "theirs-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[clipbench.models]\n{points}\n")
    (folder / "their_parts.py").write_text("NAME = 'theirs'\n")
    monkeypatch.syspath_prepend(str(folder))


def _plugin(folder: Path, name: str, text: str = "NAME = 'plugin'\n") -> Path:
    path = folder / "models" / f"{name}.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_modules_come_from_the_package_from_entry_points_and_from_plugin_folders(
    package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(tmp_path / "site", monkeypatch, "gamma = their_parts")
    _plugin(tmp_path / "mine", "beta", "from own_parts._beta_helper import NAME\n")
    _plugin(tmp_path / "mine", "_beta_helper")
    assert list(plugins.modules("models", package)) == ["alpha", "gamma"]
    plugins.add(tmp_path / "mine")
    found = plugins.modules("models", package)
    assert list(found) == ["alpha", "beta", "gamma"]
    assert not {"own_parts.alpha", "own_parts.beta", "their_parts"} & sys.modules.keys()  # only names so far
    assert [one.load().NAME for one in found.values()] == ["alpha", "plugin", "theirs"]
    assert found["gamma"].where == "the package theirs"
    assert list(plugins.modules("models", package, besides=())) == ["alpha", "base", "beta", "gamma"]


@pytest.mark.parametrize("name", ["alpha", "base", "_helper"])
def test_a_name_that_a_plugin_takes_from_the_package_is_refused(
    package: ModuleType, tmp_path: Path, name: str
) -> None:
    path = _plugin(tmp_path / "mine", name)
    plugins.add(tmp_path / "mine")
    with pytest.raises(ClipbenchError) as error:
        plugins.modules("models", package)
    assert str(path) in str(error.value)
    assert str(Path(package.__path__[0]) / f"{name}.py") in str(error.value)


def test_a_name_of_two_plugins_is_refused(
    package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(tmp_path / "site", monkeypatch, "beta = their_parts")
    path = _plugin(tmp_path / "mine", "beta")
    plugins.add(tmp_path / "mine")
    with pytest.raises(ClipbenchError, match=r'two modules are named "beta".*the package theirs') as error:
        plugins.modules("models", package)
    assert str(path) in str(error.value)


def test_an_entry_point_must_name_a_module(
    package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _installed(tmp_path / "site", monkeypatch, "gamma = their_parts:NAME")
    with pytest.raises(ClipbenchError, match='a module is wanted: gamma = "their_parts"'):
        plugins.modules("models", package)


def test_a_folder_without_plugins_is_refused(package: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ClipbenchError, match="there is no plugin folder"):
        plugins.add(tmp_path / "none")
    with pytest.raises(
        ClipbenchError, match=r"holds no plugins\n  .*models/, protocols/, layouts/, objectives/"
    ):
        plugins.add(tmp_path)
    _plugin(tmp_path, "beta")
    (tmp_path / "loose.py").touch()
    with pytest.raises(ClipbenchError, match=r"has loose\.py beside its subfolders"):
        plugins.add(tmp_path)
    assert list(plugins.modules("models", package)) == ["alpha"]
