"""Recipes: one pretraining run, with its data, model, objective, optimiser and schedule."""

from __future__ import annotations

import functools
import importlib
import operator
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Discriminator, Field, SerializeAsAny, Tag, TypeAdapter, model_validator

from clipbench.cards.base import Misplaced, Probability, Strict, Tuple
from clipbench.cards.model import Confidence, Images, Preprocess
from clipbench.cards.pairs import AnyPairs
from clipbench.errors import ClipbenchError
from clipbench.utils import plugins

# All of a tower, nothing of it, or its parts of these names. The tags are written like types, which messages leave out.
Frozenness = Annotated[
    Annotated[bool, Tag("tuple[bool]")] | Annotated[Tuple[str], Field(min_length=1), Tag("tuple[str]")],
    Discriminator(lambda value: "tuple[bool]" if isinstance(value, bool) else "tuple[str]"),
]


class Lookahead(Strict):
    """Lookahead (Zhang et al. 2019): every `k` steps the weights go the share `alpha` of the way that they came."""

    k: int = Field(5, gt=1)
    alpha: float = Field(0.5, gt=0, lt=1)


class Peaks(Strict):
    """Peak learning rates of parts that do not take the optimiser's own `lr`; 0: the part stays as it is.

    `image` and `text` are the towers without their projections.
    """

    image: float | None = Field(None, ge=0)
    text: float | None = Field(None, ge=0)
    logit_scale: float | None = Field(None, ge=0)


class Optim(Strict):
    """What every optimiser has.

    Weight decay leaves out biases, norms and the logit scale (all tensors of fewer than two axes), or with
    `decays: all` nothing.
    """

    lr: float = Field(gt=0, description="peak learning rate")
    peaks: Peaks = Peaks()
    weight_decay: float = Field(0.0, ge=0)
    decays: Literal["matrices", "all"] = "matrices"
    clip_grad_norm: float | None = Field(None, gt=0, description="largest global gradient norm")
    lookahead: Lookahead | None = None


class AdamW(Optim):
    """AdamW (decoupled weight decay)."""

    name: Literal["adamw"]
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.98)
    eps: float = Field(1e-8, gt=0)


class Sgd(Optim):
    """SGD with (heavy-ball, or Nesterov's) momentum; weight decay is added to the gradient."""

    name: Literal["sgd"]
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _accelerates(self) -> Sgd:
        if self.nesterov and not self.momentum:
            raise Misplaced("nesterov needs a momentum above 0", "nesterov")
        return self


class SgdOfImages(Strict):
    """SGD of the image tower, where all else has AdamW."""

    lr: float = Field(gt=0, description="peak learning rate")
    weight_decay: float = Field(0.0, ge=0)
    momentum: float = Field(0.9, ge=0, lt=1)


class AdamWSgd(Optim):
    """SGD for the image tower (`image`), AdamW for all else (DeCLIP's `AdamW_SGD`)."""

    name: Literal["adamw-sgd"]
    betas: Annotated[tuple[float, float], Field(strict=False)] = (0.9, 0.98)
    eps: float = Field(1e-8, gt=0)
    image: SgdOfImages

    @model_validator(mode="after")
    def _one_peak(self) -> AdamWSgd:
        if self.peaks.image is not None:
            raise Misplaced("the image tower's peak stands under optim.image.lr", "peaks", "image")
        return self


class Engine(Strict):
    """How a step is computed: what it costs in time and memory, and which pairs a BatchNorm sees together.

    Attributes:
        chunk: pairs that go through the networks at once in each process, at most, however large the batch
            (gradient caching).
            The loss sees the whole batch all the same; a BatchNorm sees the pairs of a chunk.
        sync_batchnorm: a BatchNorm sees the pairs of all processes.
        recompute: keep no activations inside the towers' blocks, but compute them again for the gradient.
        channels_last: the image tower's memory format on a GPU.
        compile: torch.compile for both towers.
    """

    chunk: int | None = Field(None, gt=1)
    sync_batchnorm: bool = False
    recompute: bool = False
    channels_last: bool = False
    compile: bool = False


class Schedule(Strict):
    """Linear warm-up from `warmup_from` (a fraction of the peak), then half a cosine to 0, over `steps` steps.

    `batch_size` is that of all processes together.
    """

    steps: int = Field(gt=0)
    warmup: int = Field(0, ge=0)
    warmup_from: Probability = 0.0
    batch_size: int = Field(gt=1)
    eval_every: int = Field(0, ge=0, description="steps; 0: at the end only")
    checkpoint_every: int = Field(0, ge=0, description="steps; 0: at the end only")
    keep: int = Field(1, gt=0, description="checkpoints, the newest ones")

    @model_validator(mode="after")
    def _warm_within(self) -> Schedule:
        if self.warmup > self.steps:
            raise ValueError(f"warmup ({self.warmup}) is longer than steps ({self.steps})")
        return self


class Objective(Strict):
    """What a recipe trains for: the `Settings` of a module of `clipbench.pretrain.objectives`, which `kind` names.

    Attributes:
        tokens: by what models compare whose heads for single tokens it trains; None: it trains no such heads.
    """

    tokens: ClassVar[str | None] = None

    kind: str

    @property
    def joint(self) -> bool:
        """Whether it compares in the joint space, and so trains the heads into it."""
        return True

    def check(self, recipe: Recipe) -> None:
        """Raise Misplaced where the rest of the recipe does not go with it."""

    @classmethod
    def alternatives(cls) -> list[type[Strict]]:
        return list(objectives().values()) if cls is Objective else [cls]


def objectives() -> dict[str, type[Objective]]:
    """The settings of every objective by `kind`: of the package's own, of installed packages and plugin folders.

    Raises:
        ClipbenchError: a module that is no objective, or two of one name.
    """
    package = importlib.import_module("clipbench.pretrain.objectives")  # by name: it lies above
    found: dict[str, type[Objective]] = {}
    for name, module in plugins.modules("objectives", package).items():
        kind = name.replace("_", "-")
        settings: Any = getattr(module.load(), "Settings", None)
        own = isinstance(settings, type) and issubclass(settings, Objective)
        if not own or get_args(settings.model_fields["kind"].annotation) != (kind,):
            raise ClipbenchError(
                f"{module.where} is no objective: it has no class Settings(Objective) of kind {kind}",
                hint="see clipbench.pretrain.objectives.base for what it needs",
            )
        found[kind] = settings
    return found


def _as_its_kind_says(value: Any) -> Any:
    if isinstance(value, Objective):
        return value
    found = _any_of(tuple(objectives().values())).validate_python(value)
    type(found).model_rebuild()  # the union built its validator alone; pydantic 2.8 adds no serializer later
    return found


@functools.cache
def _any_of(settings: tuple[type[Objective], ...]) -> TypeAdapter[Objective]:
    union: Any = functools.reduce(operator.or_, settings)
    return TypeAdapter(Annotated[union, Field(discriminator="kind")])


class Target(Strict):
    """What the recipe is expected to reach, and the task that says so.

    `source` is where the number was published, and `confidence` how sure it is; without them it is our own.
    """

    task: str
    metric: str
    at_least: float = Field(ge=0, le=1)
    source: str | None = None
    confidence: Confidence | None = None

    @model_validator(mode="after")
    def _vouched(self) -> Target:
        if (self.source is None) != (self.confidence is None):
            raise ValueError("source and confidence belong together: give both, or neither")
        return self


class Best(Strict):
    """The validation score whose best evaluation gives the run's weights, instead of the last step."""

    task: str
    metric: str


class Recipe(Strict):
    """One pretraining run. `model.config` and `model.preprocess` become the run's model card.

    `trained_on` are the images that weights which towers start from were trained on; on the run's card those of `data`
    stand beside them.

    With `ema` (a decay a step) what is evaluated and saved is the exponential moving average of the weights.
    """

    later: ClassVar = ("trained_on",)

    title: str
    command: str
    cost: str
    seed: int = Field(0, ge=0)
    data: Tuple[AnyPairs] = Field(min_length=1)
    trained_on: Tuple[Images] = ()
    model: RecipeModel
    objective: Annotated[SerializeAsAny[Objective], BeforeValidator(_as_its_kind_says)]
    optim: Annotated[AdamW | Sgd | AdamWSgd, Field(discriminator="name")]
    schedule: Schedule
    engine: Engine = Engine()
    ema: float | None = Field(None, gt=0, lt=1)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    evaluate: Tuple[str] = ()
    best: Best | None = None
    target: Target | None = None
    quick: dict[str, Any] = Field({}, description="key by key, what `--quick` changes: {schedule.steps: 20}")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        for i, data in enumerate(self.data):
            streamed = f"{data.name} is read as a stream, which"
            if data.remote and data.repeat > 1:
                raise Misplaced(f"{streamed} has no epochs to repeat in", "data", i, "repeat")
            if data.remote and len(self.data) > 1:
                instead = "fetch its shards and give them with --data"
                raise Misplaced(f"{streamed} no other source can be mixed with: {instead}", "data", i)
        self.objective.check(self)
        for side in ("image", "text"):
            if getattr(self.model.frozen, side) is True:
                self._unchanged(side)
        for name, score in (("target", self.target), ("best", self.best)):
            if score and not self.evaluate:
                raise Misplaced(f'{name}.task "{score.task}" is not in evaluate (empty)', name, "task")
        if self.best and not self.schedule.eval_every:
            raise Misplaced("best needs schedule.eval_every: evaluations to choose from", "best")
        return self

    def _unchanged(self, side: str) -> None:
        """Raise Misplaced where a wholly frozen tower would not see the same at every step."""
        once = f"the {side} tower is frozen, so that its features are computed once"
        parts = "or freeze only parts of the tower"
        for i, data in enumerate(self.data):
            if side == "image" and data.remote:
                what = f"{data.name} cannot be streamed; fetch its shards and give them with --data"
                raise Misplaced(f"{once}: {what}", "data", i)
            if side == "image" and data.on_bad_image == "skip":
                what = f"bad images of {data.name} cannot be skipped; take them out of the data, {parts}"
                raise Misplaced(f"{once}: {what}", "data", i, "on_bad_image")
            if side == "image" and data.augment is not None:
                what = f"{data.name} cannot be augmented; leave out augment, {parts} (model.frozen.image)"
                raise Misplaced(f"{once}: {what}", "data", i, "augment")
            if side == "text" and data.alter:
                what = f"texts of {data.name} cannot be altered; leave out alter, {parts} (model.frozen.text)"
                raise Misplaced(f"{once}: {what}", "data", i, "alter")


class Frozen(Strict):
    """What training leaves as it is, in towers that start from `weights`: a whole tower, or parts of it by name.

    A part is a module of the library that builds the tower (`blocks.0`, `embeddings`, `encoder.layer.0`); BatchNorm
    in it keeps its averages. A whole tower gives an image, or a text, the same feature at every step: it is computed
    once and kept in the feature store, and only the heads are trained.
    """

    image: Frozenness = False
    text: Frozenness = False


class RecipeModel(Strict):
    """The model that a recipe trains: what stands on its model card, apart from the weights.

    A tower whose config names `weights` starts from those, others from random ones.
    """

    family: Literal["dual"] = "dual"
    config: dict[str, Any]
    frozen: Frozen = Frozen()
    preprocess: Preprocess
