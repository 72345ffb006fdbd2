"""A card of Babel-ImageNet (arXiv 2306.08658) from the files of one's own: its labels may not be shipped.

The labels, `{language: [[classes of ImageNet], [their names]]}`, are under BabelNet's non-commercial licence. The
prompts, `{language: [templates]}`, are machine-translated, with `{}` or `{c}` for the name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from clipbench.errors import DataError
from clipbench.utils.parsing import Unreadable, file_bytes, json_value

ID: Final = "babel-imagenet"
_CLASSES: Final = 1000
_IMAGES_A_CLASS: Final = 50  # in ImageNet's validation set
_LARGEST: Final = 1 << 27
_LANGUAGE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,30}")


@dataclass
class Made:
    """What became of the files.

    Attributes:
        files: path in a folder of cards → content.
        languages: language → how many classes it has.
        left_out: why a language, or a template, is not there.
    """

    files: dict[str, str] = field(default_factory=dict)
    languages: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def card_of(labels: Path, prompts: Path) -> Made:
    """A task card with a class set for each language that has labels and prompts.

    Raises:
        DataError: a file that cannot be read, or is of another form.
    """
    names, templates = _languages(labels), _languages(prompts)
    made, sets = Made(), dict[str, Any]()
    for language, value in names.items():
        indices, classes = _labels(labels, language, value)
        if language not in templates:
            made.left_out.append(f"{language}: {prompts.name} has no prompts of it")
            continue
        wanted, lost = _templates(prompts, language, templates[language])
        if lost:
            made.left_out.append(f"{language}: {lost} of its templates, which have no place for the name")
        name = f"{ID}-{language}"
        source = f"{labels.name} and {prompts.name}, given by the user"
        made.files[f"prompts/{name}.yaml"] = _yaml(
            {"source": source, "classes": classes, "templates": wanted}
        )
        sets[language] = {
            "indices": indices,
            "classes": name,
            "templates": name,
            "rows": {"test": _IMAGES_A_CLASS * len(indices)},
        }
        made.languages[language] = len(indices)
    if not sets:
        raise DataError(
            f"no language of {labels} has prompts in {prompts}", hint="give the two files of one release"
        )
    made.files[f"{ID}.yaml"] = _yaml(
        {
            "base": "imagenet",
            "title": "Babel-ImageNet",
            "description": "ImageNet's validation images, the names of their classes in many languages.",
            "homepage": "https://github.com/gregor-ge/Babel-ImageNet",
            "licence": "BabelNet Non-Commercial License (labels)",
            "images_of": {"test": [{"dataset": "imagenet", "split": "test"}]},
            "protocols": {"zs": {}},
            "class_sets": sets,
            "notes": "Each language is a variant. It has the classes for which it has a name, and their images alone. "
            "The task without a variant is ImageNet's own, in English.",
        }
    )
    return made


def _languages(file: Path) -> Mapping[str, Any]:
    try:
        found = json_value(file_bytes(file, _LARGEST))
    except (Unreadable, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error})", hint="give Babel-ImageNet's own JSON") from None
    if not isinstance(found, dict) or not found:
        raise DataError(f"{file} is no mapping of languages", hint="give Babel-ImageNet's own JSON")
    odd = next((name for name in found if not _LANGUAGE.fullmatch(name)), None)
    if odd is not None:
        raise DataError(f"{file}: {odd[:40]!r} is no code of a language, such as DE or zh-hant")
    return found


def _labels(file: Path, language: str, value: Any) -> tuple[list[int], list[str]]:
    """The places among ImageNet's classes and the names of one language."""
    where = f"{file}: {language}"
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(one, list) for one in value)):
        raise DataError(
            f"{where}: expected a list of class numbers and a list of names, found {str(value)[:40]}"
        )
    indices, names = value
    if len(indices) != len(names) or len(names) < 2:
        raise DataError(
            f"{where} has {len(indices)} class numbers and {len(names)} names, expected as many, 2 or more"
        )
    odd = next((i for i in indices if type(i) is not int or not 0 <= i < _CLASSES), None)
    if odd is not None:
        raise DataError(f"{where}: {str(odd)[:40]} is no class of ImageNet, 0 to {_CLASSES - 1}")
    if len(set(indices)) < len(indices):
        twice = next(i for i in indices if indices.count(i) > 1)
        raise DataError(f"{where} has the class {twice} twice")
    bad = next((name for name in names if not isinstance(name, str) or not name.strip()), None)
    if bad is not None or None in names:
        raise DataError(f"{where}: {bad!r} is no name of a class")
    return indices, names


def _templates(file: Path, language: str, value: Any) -> tuple[list[str], int]:
    """The templates of one language with `{c}`, and how many have no place for the name."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise DataError(f"{file}: {language}: expected a list of templates, found {str(value)[:40]}")
    found = [one if "{c}" in one else one.replace("{}", "{c}") for one in value]
    kept = [one for one in found if "{c}" in one]
    if not kept:
        raise DataError(f"{file}: {language} has no template with {{}} for the name of the class")
    return kept, len(found) - len(kept)


def _yaml(value: dict[str, Any]) -> str:
    text: str = yaml.safe_dump(value, allow_unicode=True, sort_keys=False, width=110)
    return text
