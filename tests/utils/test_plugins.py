import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import plugged
import pytest

from clipbench.errors import ClipbenchError
from clipbench.utils import plugins

PLUGIN, THEIRS = "NAME = 'plugin'\n", "NAME = 'theirs'\n"


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


def test_modules_come_from_the_package_from_entry_points_and_from_plugin_folders(
    package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(
        str(plugged.installed(tmp_path / "site", "models", THEIRS, "gamma = their_parts"))
    )
    plugged.plugin(tmp_path / "mine", "models", "from own_parts._beta_helper import NAME\n", "beta")
    plugged.plugin(tmp_path / "mine", "models", PLUGIN, "_beta_helper")
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
    path = plugged.plugin(tmp_path / "mine", "models", PLUGIN, name)
    plugins.add(tmp_path / "mine")
    with pytest.raises(ClipbenchError) as error:
        plugins.modules("models", package)
    assert str(path) in str(error.value)
    assert str(Path(package.__path__[0]) / f"{name}.py") in str(error.value)


def test_a_name_of_two_plugins_is_refused(
    package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(
        str(plugged.installed(tmp_path / "site", "models", THEIRS, "beta = their_parts"))
    )
    path = plugged.plugin(tmp_path / "mine", "models", PLUGIN, "beta")
    plugins.add(tmp_path / "mine")
    with pytest.raises(ClipbenchError, match=r'two modules are named "beta".*the package theirs') as error:
        plugins.modules("models", package)
    assert str(path) in str(error.value)


def test_an_entry_point_must_name_a_module(
    package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(
        str(plugged.installed(tmp_path / "site", "layouts", THEIRS, "gamma = their_parts:NAME"))
    )
    with pytest.raises(ClipbenchError, match='a module is wanted: gamma = "their_parts"'):
        plugins.modules("layouts", package)


def test_a_folder_without_plugins_is_refused(package: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ClipbenchError, match="there is no plugin folder"):
        plugins.add(tmp_path / "none")
    with pytest.raises(
        ClipbenchError, match=r"holds no plugins\n  .*models/, protocols/, layouts/, objectives/"
    ):
        plugins.add(tmp_path)
    plugged.plugin(tmp_path, "models", PLUGIN, "beta")
    (tmp_path / "loose.py").touch()
    with pytest.raises(ClipbenchError, match=r"has loose\.py beside its subfolders"):
        plugins.add(tmp_path)
    assert list(plugins.modules("models", package)) == ["alpha"]
