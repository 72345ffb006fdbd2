"""`clipbench init task`, and data without a card that `clipbench eval` is given."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

from clipbench.catalog import Catalog
from clipbench.cli.inputs import open_catalog
from clipbench.cli.options import Cards, Plugins, argument, option
from clipbench.cli.output import catalogs, note
from clipbench.data.drafts import Prompts, draft
from clipbench.errors import ClipbenchError
from clipbench.utils.cache import write_atomic
from clipbench.utils.parsing import expanded

Classes = Annotated[
    Path | None,
    option(
        "--classes",
        "Names of the classes of data without a card: one a line in the order of the sorted folders or numbers, or "
        "folder<TAB>name.",
        "FILE",
    ),
]
Templates = Annotated[
    list[str] | None,
    option(
        "--templates",
        "Template for data without a card, with {c} for the class name, or a file of them; repeatable. "
        '[default: "a photo of a {c}."]',
        "TEXT",
    ),
]
#: protocols that a card made from a folder can have, and the kind of the card
_KINDS = {"zs": "single-label", "lp": "single-label", "ret": "captions"}


def with_own_data(
    catalog: Catalog,
    cards: list[Path] | None,
    data: list[str] | None,
    tasks: list[str],
    prompts: Prompts,
) -> Catalog:
    """The catalog with a card for each data set that `--data` names, a task asks for, and no card describes.

    Raises:
        ClipbenchError: prompts for data that has a card, or for several data sets.
        DataError: no card can be made of what lies there.
    """
    asked: dict[str, set[str]] = {}
    for task in tasks:
        dataset, _, protocol = task.partition("@")[0].rpartition("-")
        asked.setdefault(dataset, set()).add(protocol)
    own = {}
    for text in data or ():
        name, separator, path = text.partition("=")
        if separator and name not in catalog.dataset_files and name in asked:
            own[name] = expanded(path)
    if prompts != Prompts() and len(own) != 1:
        flag = "--classes" if prompts.classes else "--templates"
        found = f"{len(own)} such data sets ({', '.join(own)})" if own else "no such data set"
        raise ClipbenchError(
            f"{flag} is for one data set that has no card: {found}",
            hint="for example --data my=<folder> --task my-zs; a card has prompts of its own",
        )
    if not own:
        return catalog
    folder = Path(tempfile.mkdtemp(prefix="clipbench-own-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, root in own.items():
        kinds = {_KINDS.get(protocol) for protocol in asked[name]}
        if None in kinds or len(kinds) > 1:
            raise ClipbenchError(
                f"{name}: without a card there are {', '.join(f'{name}-{p}' for p in _KINDS)}, of labels or captions",
                hint=f"asked for {', '.join(sorted(f'{name}-{p}' for p in asked[name]))}; write a card for others",
            )
        text = draft(name, root, prompts, kinds.pop())
        if "lp" in asked[name] and "\n  lp:" not in text:
            raise ClipbenchError(
                f"{name}-lp needs images to fit a probe on: there is no train folder in {root}",
                hint="make folders train and test, each with a folder for each class",
            )
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        for line in text.splitlines()[1:]:
            if not line.startswith("#   "):
                break
            note(f"{name}: {line.removeprefix('#   ')}", "[dim]assumed[/]")
    made = Catalog((*(cards or ()), folder))
    catalogs[-1:] = [made]
    return made


def task_command(
    name: Annotated[str, argument("What to call the data set: the first part of its tasks' ids.", "NAME")],
    data: Annotated[Path, option("--data", "The folder that it lies in.", "DIR")],
    out: Annotated[Path, option("--out", "Folder of the card.", "DIR")] = Path("cards"),
    classes: Classes = None,
    templates: Templates = None,
    cards: Cards = None,
    plugins: Plugins = None,
) -> None:
    """Write the card of a folder of yours, with comments.

    The card says what was assumed, and runs as it is.
    """
    catalog = open_catalog(cards, plugins)
    if name in catalog.dataset_files:
        raise ClipbenchError(
            f"there is a card {name} already: {catalog.dataset_files[name]}", hint="take another name"
        )
    path = out / f"{name}.yaml"
    if path.exists() or path.is_symlink():
        raise ClipbenchError(
            f"{path} is there already, and is not replaced", hint="move it away, or give another --out"
        )
    text = draft(name, expanded(data), Prompts(classes, tuple(templates or ())))
    write_atomic(path, text.encode())
    Catalog((*(cards or ()), out)).dataset(name)
    protocol = "ret" if "\nkind: captions\n" in text else "zs"
    note(f"wrote {path}")
    note(f"clipbench eval --model MODEL --task {name}-{protocol} --cards {out} --data {name}={data}")
