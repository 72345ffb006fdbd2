"""What every objective is: the seam between what is compared and the loop that trains.

An objective is one module here, in an installed package (entry point `clipbench.objectives`) or in the folder
`objectives` of a plugin folder. Its file's name is its `kind`, with `-` for `_`, and it has two names:

    class Settings(Objective)    what a recipe's `objective:` may hold
    class Learner(base.Learner)  what it learns beside the towers, and its loss; made of its settings and the towers

None imports torch before a learner is made: recipes are read without it.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from clipbench.cards.pairs import Augmentation
from clipbench.cards.recipe import Objective
from clipbench.errors import CardError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from clipbench.models.towers.dual import DualTowers
    from clipbench.pretrain.data.batch import Batch
else:
    Module = object

#: what `Learner.forward` makes and `Learner.loss` compares, by name
Features = dict[str, "Tensor"]


@dataclass(frozen=True)
class Wants:
    """What an objective needs of a batch beside the images and texts of its pairs.

    Attributes:
        views: further views of every image, and how each is made (None: as its source augments).
        altered: a changed text for every pair (see `text_augmentation`).
    """

    views: tuple[Augmentation | None, ...] = ()
    altered: bool = False


@dataclass(frozen=True)
class Loss:
    """A loss by its terms, each a scalar, as logged, and the weight of each in what is minimised."""

    terms: dict[str, Tensor]
    weights: dict[str, float]

    @classmethod
    def of(cls, weight: float, **terms: Tensor) -> Loss:
        """Terms of one weight."""
        return cls(terms, dict.fromkeys(terms, weight))

    @property
    def total(self) -> Tensor:
        """What is minimised: the sum of the terms, each times its weight."""
        import torch

        return torch.stack([self.weights[name] * term for name, term in self.terms.items()]).sum()


class Learner(ABC, Module):
    """One objective: `forward` runs the networks, in whatever precision, and `loss` compares in float32.

    Its weights are trained and kept in the checkpoint with the towers'; the model that a run becomes has the towers
    alone. It is a module of torch from the moment it is made, so that its class can be read without torch.

    Attributes:
        wants: what a batch must hold beside images and texts.
        max_logit_scale: bound on the towers' logit scale, or None.
    """

    wants = Wants()
    max_logit_scale: float | None = None

    def __new__(cls, *_: Any) -> Self:
        """A module of torch that is `cls` too."""
        made = object.__new__(_as_module(cls))
        assert isinstance(made, cls)
        return made

    def forward(self, towers: DualTowers, batch: Batch) -> Features:
        """The features of a batch: here `image` and `text`, each [B, embed_dim]."""
        image, text = towers(batch.images, batch.tokens, batch.rows)
        return {"image": image, "text": text}

    @abstractmethod
    def loss(self, features: Features, logit_scale: Tensor) -> Loss:
        """The loss of the features of one batch, `logit_scale` being the factor on cosines."""

    def remember(self, features: Features) -> None:
        """Keep what later steps need of this one's features; called once the step is taken. Here: nothing."""

    @abstractmethod
    def chance(self, batch_size: int) -> float:
        """The loss of features that say nothing: every cosine 0."""


@cache
def _as_module(learner: type[Learner]) -> type[Learner]:
    from torch import nn

    return type(learner.__name__, (learner, nn.Module), {"__doc__": learner.__doc__})


def make_learner(objective: Objective, towers: DualTowers) -> Learner:
    """The learner of a recipe's objective, with random weights, for `towers`, whose logit scale it may set.

    Raises:
        CardError: the objective cannot train these towers: it needs other heads, or does not train all that they have.
    """
    kind, compared, late = objective.kind, objective.tokens, objective.tokens is not None
    if late and (towers.tokens is None or towers.tokens.compared != compared):
        raise CardError(
            f"objective {kind} needs heads for single tokens, and a model that compares by {compared}",
            hint="give config.tokens, for example " + f"{{dim: 256, compared: {compared}}}",
        )
    if late:
        towers.patch_tower  # noqa: B018 - raises where there are no tokens, as of a wholly frozen tower
    if not late and towers.tokens is not None:
        raise CardError(
            f"objective {kind} does not train the heads of config.tokens",
            hint="leave out config.tokens, or choose the objective filip or defilip",
        )
    if objective.joint and not towers.joint:
        raise CardError(
            f"objective {kind} compares in a joint space, which the model has not",
            hint="give config.embed_dim and config.projection",
        )
    if towers.joint and not objective.joint:
        raise CardError(
            f"objective {kind}, as it is set, does not train the heads into a joint space",
            hint="leave out config.embed_dim and config.projection, or give that space a weight in the objective",
        )
    learner: Learner = sys.modules[type(objective).__module__].Learner(objective, towers)
    return learner
