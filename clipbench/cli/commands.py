"""The table of commands, and groups that import a command's file only when that command is called."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple

import typer
from typer.core import TyperGroup


class Command(NamedTuple):
    """A command: its file in this folder, and the first line of its docstring. Its function is `<name>_command`."""

    module: str
    help: str


class Group(NamedTuple):
    """Commands under one name, and what they are for."""

    help: str
    commands: Mapping[str, Command | Group]


COMMANDS: Final[Mapping[str, Command | Group]] = {
    "eval": Command("eval", "Measure models on tasks, and write one record for each pair."),
    "embed": Command("embed", "Embed a collection of images and captions, of any size."),
    "pretrain": Command("pretrain", "Train a model by a recipe."),
    "study": Command("pretrain", "Test the papers' claims: the same towers, several objectives."),
    "init": Group(
        "Write a card that runs as it is.",
        {"task": Command("own_data", "Write the card of a folder of yours, with comments.")},
    ),
    "list": Command("listing", "List the models, tasks, suites or recipes."),
    "show": Command("listing", "Show one card with all its defaults, or one record."),
    "report": Command("report", "Show records as model × task tables beside the papers' numbers."),
    "robustness": Command("report", "Show how far models lie above the line on ImageNet's shifts."),
    "site": Command("report", "Write all records as one HTML page that opens from a file."),
    "export": Command("export", "Write records in another program's format."),
    "log": Command("export", "Log records to Weights & Biases, MLflow or TensorBoard."),
    "compare": Command("compare", "Compare two models on the same samples."),
    "gate": Command("compare", "Fail if a score dropped by more than is allowed: for CI."),
    "check": Command("check", "Check every card, shipped weights file and record."),
    "bench": Group(
        "Measure clipbench's own speed against a limit or a peer.",
        {
            "encode": Command("bench", "Encoding end to end, against the bare forward pass."),
            "embed": Command("bench", "Embedding a collection, against encoding its images."),
            "plans": Command("bench", "What execution plans cost on this machine."),
            "startup": Command("bench", "The fixed cost of a run by stage, cold and warm."),
            "cached": Command("bench", "Checking cached features, against reading them."),
            "probe": Command("bench", "The whole regularisation path, against scikit-learn's fits."),
            "svm": Command("bench", "One SVM per class, against scikit-learn's LinearSVC."),
            "pretrain": Command("bench", "Training steps, against a peer or the matmul peak."),
            "retrieval": Command("bench", "Best keys and ranks, against faiss's exact search."),
        },
    ),
    "weights": Group(
        "Fetch weights, and make checkpoints safe to read.",
        {
            "fetch": Command("weights", "Fetch the weights of models to this machine."),
            "convert": Command("weights", "Copy the tensors of a checkpoint to safetensors."),
        },
    ),
    "data": Group(
        "Check copies of data sets, list what tasks ask for, convert.",
        {
            "check": Command("data", "Check copies of data sets against their cards."),
            "inputs": Command("data", "Write the ids and texts that tasks ask a model for."),
            "convert-coco-gender": Command("data", "Copy COCO-gender's pickled annotations to JSON."),
            "babel-imagenet": Command("data", "Make a card of Babel-ImageNet from your copy."),
        },
    ),
}


def group(of: Group) -> typer.Typer:
    """The group `of` as an app whose help comes from the table alone."""

    class Lazy(TyperGroup):
        def __init__(self, **given: Any) -> None:
            # names to list and to suggest
            super().__init__(**given | {"commands": dict.fromkeys(of.commands)})

        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            found = of.commands.get(cmd_name)
            return found and made(cmd_name, found)

        def format_commands(self, ctx: Any, formatter: Any) -> None:
            with formatter.section("Commands"):
                formatter.write_dl([(name, found.help) for name, found in of.commands.items()])

    return _app(cls=Lazy, help=of.help, no_args_is_help=True)


def made(name: str, of: Command | Group) -> Any:
    """What click runs: a group, or a command, whose file is imported for that."""
    if isinstance(of, Group):
        return typer.main.get_group(group(of))
    app = _app()
    module = import_module(f"{__package__}.{of.module}")
    app.command(name)(getattr(module, f"{name.replace('-', '_')}_command"))
    return typer.main.get_command(app)


def _app(**more: Any) -> typer.Typer:
    # plain help: rich's boxes cost three times as much as all the rest of --help, and leave half of the columns
    return typer.Typer(pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None, **more)
