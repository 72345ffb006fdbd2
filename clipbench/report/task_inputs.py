"""What tasks ask a model for: which images of which splits, and which texts (`clipbench data inputs`)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from clipbench.catalog import Task
from clipbench.data.open import open_split
from clipbench.data.paths import DataPaths
from clipbench.data.split import Split


@dataclass
class Asked:
    """What tasks ask for.

    Attributes:
        ids: `<data set>/<split>` → the ids of its images, in order.
        texts: each once.
        heat: tasks that ask for heat maps, which no list of ids and texts makes.
    """

    ids: dict[str, list[str]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    heat: list[str] = field(default_factory=list)

    def files(self) -> dict[str, bytes]:
        """File name → content: the lists of a folder of embeddings, without its rows."""
        lists = {f"{name}.ids.json": ids for name, ids in self.ids.items()}
        lists |= {"texts.json": self.texts} if self.texts else {}
        return {
            name: (json.dumps(one, ensure_ascii=False, indent=0) + "\n").encode()
            for name, one in lists.items()
        }


def asked(tasks: Sequence[Task], paths: DataPaths) -> Asked:
    """What all of `tasks` ask for together; their splits are opened, and fetched where that is needed.

    Raises:
        DataError: data that is missing or wrong.
    """
    found, texts, wanted = Asked(), dict[str, None](), dict[str, set[str]]()
    opened: dict[str, Split] = {}
    for task in tasks:
        needs = task.protocol.needs(task.params, "joint")
        if needs.heat is not None:
            found.heat.append(task.id)
            continue
        splits = {}
        for role in needs.roles:
            name = f"{task.dataset.id}/{role}"
            if name not in opened:
                opened[name] = open_split(task.opened, role, paths)
            splits[role] = task.of(opened[name])
            wanted.setdefault(name, set()).update(splits[role].ids)
        if task.protocol.texts is not None:
            texts |= dict.fromkeys(task.protocol.texts(task.dataset.card, splits, task.params))
    found.ids = {name: [i for i in opened[name].ids if i in ids] for name, ids in wanted.items()}
    found.texts = list(texts)
    return found
