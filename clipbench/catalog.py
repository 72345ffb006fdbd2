"""The only module that knows where cards live: a checkout, an installed wheel, and the user's own folders.

The folder is the registry: a card's id is its file's name. User folders (`--cards DIR`, CLIPBENCH_CARDS, several
separated by the path separator) hold `tasks/`, `model_cards/` and `recipes/` like a checkout, or cards of any
kind side by side; they come first, so a user's card may replace a shipped one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipbench.cards.entry import Entry
from clipbench.cards.model import ModelCard
from clipbench.cards.overrides import changed, parse_assignments
from clipbench.cards.reader import KINDS, Classes, Reader, base_of, kind_by_keys
from clipbench.cards.strict_yaml import Document, Problems, parse
from clipbench.cards.task import ALL_CLASSES, CLASSES, DIFFICULT_MARKS, Suite, Suites, TaskCard
from clipbench.data.split import Split, of_classes
from clipbench.errors import CardError, unknown
from clipbench.models import factories, families, remembered
from clipbench.models.adapter import ModelEntry
from clipbench.protocols.base import Params, Protocol
from clipbench.protocols.registry import protocol as find
from clipbench.protocols.registry import protocol_ids
from clipbench.utils import plugins
from clipbench.utils.escape import hidden, visible
from clipbench.utils.package import PACKAGE, shipped
from clipbench.utils.parsing import exists, expanded
from clipbench.utils.plugins import Factory

if TYPE_CHECKING:
    from clipbench.cards.recipe import Recipe

#: how names of checkpoint files end
CHECKPOINTS = (".pt", ".pth", ".tar", ".bin", ".ckpt", ".safetensors")


@dataclass(frozen=True)
class Task:
    """One data set measured by one protocol: `<dataset>-<protocol>[@<variant>]`.

    Attributes:
        dataset: the card that is measured; where the task picks a class set, the one that the set makes.
        whole, members: where it does, the card whose splits are opened, and the places among its classes of those that
            are each class.
    """

    id: str
    dataset: Entry[TaskCard]
    protocol: Protocol[Any]
    params: Params
    whole: Entry[TaskCard] | None = None
    members: tuple[tuple[int, ...], ...] = ()

    @property
    def opened(self) -> Entry[TaskCard]:
        """The data set whose splits are opened, in those of its languages that are read; `of` has their samples."""
        whole = self.whole or self.dataset
        languages = self.protocol.languages(whole.card, self.params)
        if languages == whole.card.languages:
            return whole
        return replace(whole, card=whole.card.model_copy(update={"languages": languages}))

    def of(self, split: Split) -> Split:
        """The samples of an opened split that the task is about.

        Raises:
            DataError: there are none.
        """
        return split if self.whole is None else of_classes(split, self.members, self.dataset.card.classes)

    @property
    def roles(self) -> list[str]:
        """The splits that it reads, by role."""
        return self.protocol.needs(self.params, "joint").roles

    @property
    def marks(self) -> list[str]:
        """What else the labels must have: the marks of difficult objects, where they are not to count as present."""
        wanted = getattr(self.params, DIFFICULT_MARKS, None) in ("ignore", "negative")
        return [DIFFICULT_MARKS] if wanted else []


@dataclass
class Catalog:
    """All cards that can be seen. `extra` are the folders of `--cards`.

    `problems` are the files of cards that had to be passed over so far, with what is wrong with them: one bad file
    stops only the commands that need it.
    """

    extra: Sequence[Path] = ()
    problems: dict[Path, CardError] = field(default_factory=dict, init=False, repr=False)
    _datasets: dict[str, Entry[TaskCard]] = field(default_factory=dict, init=False, repr=False)

    # -- what there is

    @cached_property
    def dataset_files(self) -> dict[str, Path]:
        return {k: v for k, v in self._files("tasks").items() if k != "suites"}

    @cached_property
    def reader(self) -> Reader:
        """Reads the cards; shared prompts lie in `prompts/` beside task cards."""
        folders = [folder / "prompts" for folder in reversed(self._folders("tasks"))]
        return Reader(lambda: {p.stem: p for folder in folders for p in sorted(folder.glob("*.yaml"))})

    @cached_property
    def model_files(self) -> dict[str, Path]:
        return self._files("model_cards")

    @property
    def own_models(self) -> Mapping[str, Factory]:
        """Models of installed packages, which are code; none is imported."""
        return plugins.factories()

    def own_model(self, name: str) -> Factory:
        """What makes a model of an installed package.

        Raises:
            CardError: a card has the same name.
        """
        one = self.own_models[name]
        if name in self.model_files:
            raise CardError(
                f'two models are named "{name}": that of {one.where}, and that of {self.model_files[name]}',
                hint="rename the card, or leave the package out",
            )
        return one

    @cached_property
    def recipe_files(self) -> dict[str, Path]:
        return self._files("recipes")

    @cached_property
    def suites(self) -> dict[str, Suite]:
        """Every suite, by id; a user's `suites.yaml` adds to the shipped one."""
        found: dict[str, Suite] = {}
        for folder in reversed(self._folders("tasks")):
            path = folder / "suites.yaml"
            if os.path.lexists(path):
                try:
                    found |= parse(Suites, Document(path)).suites
                except CardError as error:
                    self.problems[path] = error
        return found

    def task_ids(self) -> list[str]:
        """Every task id, variants included; data sets whose cards are wrong stand in `problems`."""
        ids = []
        for dataset in self.readable(self.dataset_files, self.dataset):
            for protocol, settings in self.dataset(dataset).card.protocols.items():
                ids.append(f"{dataset}-{protocol}")
                ids += [f"{dataset}-{protocol}@{v}" for v in self._variants(dataset, protocol, settings)]
        return ids

    def readable(self, files: dict[str, Path], load: Callable[[str], object]) -> list[str]:
        """The ids of `files` whose cards `load` takes; the others stand in `problems`."""
        ids = []
        for name, path in sorted(files.items()):
            try:
                load(name)
            except CardError as error:
                self.problems[path] = error
            else:
                ids.append(name)
        return ids

    # -- one of them

    def dataset(self, dataset_id: str) -> Entry[TaskCard]:
        """The task card of a data set."""
        if dataset_id in self._datasets:
            return self._datasets[dataset_id]
        path = self._known("data set", dataset_id, self.dataset_files, "clipbench list tasks")
        problems = Problems()
        entry: Entry[TaskCard] | None = None
        with problems.noted():
            entry = Entry(dataset_id, self.reader.card(TaskCard, path, self.dataset_files), path)
        if entry is None:
            _check_protocols(self.reader.document(path), problems)
        for protocol, settings in entry.card.protocols.items() if entry else ():
            with problems.noted():
                _check_variants(path, protocol, settings)
                with problems.noted():
                    self._task("", entry, protocol, None)
                    for variant in settings.get("variants", {}):
                        with problems.noted():
                            self._task("", entry, protocol, variant)
                    continue
                _check_changes(self.reader.document(path), protocol, settings, problems)
        problems.tell()
        assert entry is not None
        self._datasets[dataset_id] = entry
        return entry

    def task(self, task_id: str) -> Task:
        """The task `<dataset>-<protocol>[@<variant>]`.

        Raises:
            CardError: unknown data set, protocol or variant, naming the nearest.
        """
        name, at, variant = task_id.partition("@")
        dataset_id, _, protocol = name.rpartition("-")
        files = self.dataset_files
        self._passed_over(dataset_id)
        if dataset_id not in files:
            raise self._unknown("task", task_id, self.task_ids(), "clipbench list tasks")
        entry = self.dataset(dataset_id)
        settings = entry.card.protocols.get(protocol)
        if settings is None or (at and variant not in self._variants(dataset_id, protocol, settings)):
            raise self._unknown("task", task_id, self.task_ids(), "clipbench list tasks")
        return self._task(task_id, entry, protocol, variant or None)

    def tasks(self, names: Sequence[str]) -> list[Task]:
        """The tasks of a list of task and suite ids, each once, in order."""
        ids: dict[str, None] = {}
        for name in names:
            ids |= dict.fromkeys(self._expand(name, ()))
        return [self.task(i) for i in ids]

    def model(self, name: str) -> ModelEntry:
        """The model card `name`: an id, a run folder, a card file, a checkpoint file (its family is detected), or
        `open_clip:<arch>@<tag-or-path>`, `hf-hub:<owner>/<repo>`, `local-dir:<folder>`, `hf:<owner>/<repo>[@revision]`,
        a folder that `save_pretrained` of transformers wrote, `embeddings:<folder>` of arrays,
        `python:<module>:<factory>`, or the name that an installed package gave to a model of its own.

        Raises:
            CardError: nothing has this name, or its card is wrong.
            WeightsError: a checkpoint file that no family, or more than one, can be told from.
            ClipbenchError: code of the user's own that is not there, or makes no model.
        """
        if (sign := hidden(name)) is not None:
            raise CardError(
                f"the model {visible(name)} has {sign} in its name, which no id may have",
                hint="rename the file, or give it by a link with a plain name",
            )
        if name.startswith(factories.PREFIX):
            return factories.entry(name, name.removeprefix(factories.PREFIX))
        if name in self.own_models:
            one = self.own_model(name)
            return factories.entry(name, one.value, one.where)
        if (entry := remembered.named(name)) is not None:
            return entry
        path = self.model_files.get(name)
        self._passed_over(name)
        file = name.endswith(CHECKPOINTS) or exists(expanded(name))
        if path is None and file and not name.endswith((".yaml", ".yml")):
            return remembered.detected(name)
        if path is None and _saved(expanded(name)):
            return remembered.saved(name)
        if path is None and ("/" in name or name.endswith(".yaml") or exists(Path(name), folder=True)):
            path = expanded(name)
            path = path / "card.yaml" if exists(path, folder=True) else path
            if not exists(path):
                raise CardError(
                    f"{name} is no model: there is no {path}",
                    hint="give a model id (clipbench list models), a run folder of clipbench pretrain, a "
                    "checkpoint file, open_clip:<arch>@<tag or path>, hf-hub:<owner>/<repo>, local-dir:<folder>, or "
                    "hf:<owner>/<repo>",
                )
            known = {path.stem: path, **self.model_files}
        else:
            known = self.model_files
            if name not in known:
                raise self._unknown("model", name, [*known, *self.own_models], "clipbench list models")
            path = known[name]
        return ModelEntry(name, self._model_card(path, known), path.parent)

    def _model_card(self, path: Path, known: Mapping[str, Path]) -> ModelCard:
        """The model card at `path`, its `config:` held against its family."""
        problems, document = Problems(), self.reader.document(path)
        card: ModelCard | None = None
        with problems.noted():
            card = self.reader.card(ModelCard, path, known)
        raw = document.value if isinstance(document.value, dict) else {}
        family = card.family if card else raw.get("family")
        if isinstance(family, str) and family not in families.families():
            with problems.noted():
                line = document.line(("family",))
                raise CardError(f"{path}:{line}: {unknown('model family', family, families.families())}")
        elif isinstance(family, str):
            config = card.config if card else raw.get("config")
            if isinstance(config, dict) and (card or "base" not in raw):
                with problems.noted():
                    parse(families.config_model(family), document, config, prefix=("config",))
            if card and card.text is not None and families.family(family).texts is None:
                with problems.noted():
                    raise CardError(
                        f"{path}:{document.line(('text',))}: the family {family} reads no text: on a card: its texts "
                        "are prepared as its config says"
                    )
        problems.tell()
        assert card is not None
        return card

    def recipe(self, name: str, *, quick: bool = False, assignments: Sequence[str] = ()) -> Entry[Recipe]:
        """The recipe `name`: an id, or the path of a YAML file.

        Args:
            quick: in its quick form, as its `quick:` says.
            assignments: fields with values that replace the recipe's, as `--set` takes them.

        Raises:
            CardError: no such recipe, or one that is wrong, as it stands or so changed.
        """
        if name.endswith((".yaml", ".yml")) and exists(Path(name)):
            path = Path(name)
        else:
            path = self._known("recipe", name, self.recipe_files, "clipbench list recipes")
        document = Document(path)
        card = self._checked_recipe(document, document.value)
        if quick and not card.quick:
            raise CardError(f"recipe {path.stem} has no quick form", hint="run it without --quick")
        value = changed(document.value, card.quick, f"{path}: quick") if quick else document.value
        if changes := parse_assignments(assignments):
            value = changed(value, changes, "--set")
        if value is not document.value:
            try:
                card = self._checked_recipe(document, value)
            except CardError as error:
                by = "--quick" if quick else ""
                by = " and ".join(part for part in (by, " ".join(f"--set {a}" for a in assignments)) if part)
                raise CardError(error.message, hint=f"the recipe was changed by {by}") from None
        return Entry(path.stem, card, path)

    def _checked_recipe(self, document: Document, value: Any) -> Recipe:
        """`value`, a recipe, perhaps with changes to what `document` holds."""
        from clipbench.cards.recipe import Recipe

        card = parse(Recipe, document, value)
        config = families.config_model(card.model.family)
        parse(config, document, card.model.config, prefix=("model", "config"))
        self._check_scores(card, document)
        return card

    def _check_scores(self, card: Recipe, document: Document) -> None:
        """Raise CardError where a recipe's scores are not evaluated, or weights would be chosen by a test split."""
        tasks = {task.id: task for task in self.tasks(card.evaluate)}
        for name, score in (("target", card.target), ("best", card.best)):
            if score and score.task not in tasks:
                raise CardError(
                    f"{document.path}:{document.line((name, 'task'))}: "
                    f"{name}.task: {unknown('task of evaluate', score.task, tasks)}"
                )
        if card.best is None:
            return
        task = tasks[card.best.task]
        roles = set(task.roles)
        if "test" in roles:
            raise CardError(
                f"{document.path}:{document.line(('best', 'task'))}: best.task {task.id} measures a test split, by "
                "which no weights may be chosen",
                hint=f"name a task of a validation split: a variant under protocols of {task.dataset.id}'s card, "
                "like {variants: {val: {split: val}}}, which is then …@val",
            )

    def suite(self, name: str) -> Suite:
        """The suite `name`."""
        known = self.suites
        self._passed_over("suites")
        if name not in known:
            raise self._unknown("suite", name, known, "clipbench list suites")
        return known[name]

    # -- how

    def _folders(self, kind: str) -> list[Path]:
        """Folders that may hold cards of `kind`, the user's first."""
        given = [Path(p) for p in os.environ.get("CLIPBENCH_CARDS", "").split(os.pathsep) if p]
        folders = []
        for base in (*self.extra, *given):
            base = expanded(base)
            if not base.is_dir():
                raise CardError(
                    f"no folder {base}", hint="--cards and CLIPBENCH_CARDS name folders of YAML cards"
                )
            folders.append(base / kind if (base / kind).is_dir() else base)
        if kind == "recipes":
            return [*folders, PACKAGE / "pretrain" / "recipes"]
        return [*folders, shipped(kind)]

    def _files(self, kind: str) -> dict[str, Path]:
        files: dict[str, Path] = {}
        for folder in reversed(self._folders(kind)):
            for path in sorted(folder.glob("*.y*ml")):
                try:
                    if sign := hidden(path.name):
                        raise CardError(
                            f"{visible(str(path))}: a card's file name, which is its id, has no {sign}",
                            hint="rename it",
                        )
                    if folder.name != kind and self._kind(path) != kind:
                        continue
                    if path.suffix != ".yaml":
                        raise CardError(f"{path}: a card's file name ends in .yaml", hint="rename it")
                except CardError as error:
                    self.problems[path] = error
                else:
                    files[path.stem] = path
        return dict(sorted(files.items()))

    def _kind(self, path: Path, below: tuple[Path, ...] = ()) -> str | None:
        """Which kind of card a file is that lies in a folder of mixed cards; None for other YAML files.

        Args:
            below: the cards of which it is the base, or the base of a base.
        """
        if path.stem == "suites":
            return "tasks"
        document = self.reader.document(path)
        kind, base = kind_by_keys(document), base_of(document)
        if kind or base is None:
            return kind
        if isinstance(base, Classes):
            return "tasks"
        for kind in KINDS:  # the base has what this card leaves out
            for folder in self._folders(kind):
                file = folder / f"{base}.yaml"
                if not file.is_file() or file in (*below, path):
                    continue
                if folder.name == kind or self._kind(file, (*below, path)) == kind:
                    return kind
        raise CardError(f'{path}:{document.line(("base",))}: unknown base card "{base}"')

    def _known(self, what: str, name: str, known: dict[str, Path], listing: str) -> Path:
        self._passed_over(name)
        if name not in known:
            raise self._unknown(what, name, known, listing)
        return known[name]

    def _passed_over(self, stem: str) -> None:
        """Raise the error of the file of this name if it cannot be read: no other card stands in for it."""
        bad = next((path for path in self.problems if path.stem == stem), None)
        if bad is not None:
            raise self.problems.pop(bad)

    def _unknown(self, what: str, name: str, known: Iterable[str], listing: str) -> CardError:
        """The error for a name that no card has."""
        also = f"; passed over, being wrong: {', '.join(visible(str(path)) for path in self.problems)}"
        return CardError(unknown(what, name, known, listing=listing) + (also if self.problems else ""))

    def _task(self, task_id: str, entry: Entry[TaskCard], protocol: str, variant: str | None) -> Task:
        """The task of a card's protocol and variant, checked."""
        document = self.reader.document(entry.path)
        where: tuple[str, ...] = ("protocols", protocol)
        if protocol not in protocol_ids():
            line = document.line(where)
            raise CardError(f"{entry.path}:{line}: {unknown('protocol', protocol, protocol_ids())}")
        settings, module = entry.card.protocols[protocol], find(protocol)
        merged = {k: v for k, v in settings.items() if k != "variants"}
        if variant in settings.get("variants", {}):
            merged |= settings["variants"][variant]
            where = (*where, "variants", str(variant))
        elif variant is not None:
            of_card = {**module.variants, **module.of_card(entry.card)}
            merged |= of_card.get(variant, {CLASSES: variant})
        params: Params = parse(module.params, document, merged, prefix=where)
        task, place = (
            Task(task_id, entry, module, params),
            f"{entry.path}:{document.line(where)}: {'.'.join(where)}",
        )
        name = getattr(params, CLASSES, ALL_CLASSES)
        if name != ALL_CLASSES:
            chosen = self.reader.class_set(entry, name, place)
            card = entry.card.of_classes(chosen)
            members = chosen.members(len(entry.card.classes))
            task = replace(task, dataset=replace(entry, card=card), whole=entry, members=members)
        problem = module.misfit(task.dataset.card, params)
        if problem:
            raise CardError(f"{place}: {problem}")
        return task

    def _variants(self, dataset: str, protocol: str, settings: dict[str, Any]) -> list[str]:
        """Names of a protocol's variants on a data set: the card's own, the protocol's that suit it, its class sets."""
        own = settings.get("variants", {})
        module, card = find(protocol), self.dataset(dataset).card
        base = {k: v for k, v in settings.items() if k != "variants"}
        standard = [
            name
            for name, changes in module.variants.items()
            if name not in own and module.misfit(card, module.params.model_validate(base | changes)) is None
        ]
        sets = card.class_sets if CLASSES in module.params.model_fields else ()
        of_card = [name for name in (*module.of_card(card), *sets) if name not in (*own, *standard)]
        return [*own, *standard, *of_card]

    def _expand(self, name: str, above: tuple[str, ...]) -> list[str]:
        suites = self.suites
        if name not in suites and (name.rpartition("-")[0] in self.dataset_files or "@" in name):
            return [name]
        self._passed_over("suites")
        if name not in suites:
            self._passed_over(name.rpartition("-")[0])
            known = [*self.task_ids(), *suites]
            raise self._unknown("task or suite", name, known, "clipbench list tasks")
        if name in above:
            raise CardError(f"suite {name} names itself: {' → '.join((*above, name))}")
        return [i for part in self.suites[name].tasks for i in self._expand(part, (*above, name))]


def _saved(folder: Path) -> bool:
    """Whether a folder holds a model as transformers saves it, and is no run folder."""
    return (
        exists(folder, folder=True)
        and exists(folder / "config.json")
        and not os.path.lexists(folder / "card.yaml")
    )


def _check_protocols(document: Document, problems: Problems) -> None:
    """Note what is wrong with the parameters of protocols on a task card that is itself wrong."""
    protocols = document.value.get("protocols") if isinstance(document.value, dict) else None
    for protocol, settings in protocols.items() if isinstance(protocols, dict) else ():
        where = ("protocols", str(protocol))
        with problems.noted():
            if protocol not in protocol_ids():
                line = document.line(where)
                raise CardError(
                    f"{document.path}:{line}: {unknown('protocol', str(protocol), protocol_ids())}"
                )
            if not isinstance(settings, dict):
                continue  # the card's own error says so
            _check_variants(document.path, protocol, settings)
            own = {k: v for k, v in settings.items() if k != "variants"}
            with problems.noted():
                parse(find(protocol).params, document, own, prefix=where)
            _check_changes(document, protocol, settings, problems)


def _check_changes(document: Document, protocol: str, settings: dict[str, Any], problems: Problems) -> None:
    """Note what is wrong with variants by themselves, where what they change is wrong already."""
    if protocol in protocol_ids():
        for name, changes in settings.get("variants", {}).items():
            with problems.noted():
                place = ("protocols", protocol, "variants", str(name))
                parse(find(protocol).params, document, changes, prefix=place)


def _check_variants(path: Path, protocol: str, settings: dict[str, Any]) -> None:
    """Raise CardError unless `variants` is a mapping of names to mappings."""
    where: tuple[str, ...] = ("protocols", protocol, "variants")
    variants = settings.get("variants", {})
    parts = {where: variants}
    if isinstance(variants, dict):
        parts |= {(*where, name): variant for name, variant in variants.items()}
    for place, value in parts.items():
        if not isinstance(value, dict):
            line = Document(path).line(place)
            raise CardError(f"{path}:{line}: {'.'.join(place)}: expected a mapping of keys to values")
