"""A model that is an object of the user's own: images and texts in, rows of numbers out, whatever lies between.

`OwnModel` is what it must have. Beside that it may have

    backbone(images)   what probes read, [n, D']; without it `lp` and its like are not applicable
    logit_scale        the factor on cosines before a softmax (exp of the learned temperature); without it 100
    name               what records call it; without it the name of its class
    identity           a text that changes whenever its features do, on the user's word; without it no features are kept

Images come in batches as PIL images, RGB, of the size and the turn in which they are stored, without metadata. Rows may
be numpy arrays, torch tensors on any device, or lists, of any type of real numbers; they become float32.
"""

from __future__ import annotations

import contextlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn
from typing import Protocol as Structure

import numpy as np
from numpy.typing import NDArray

from clipbench.cards.model import UNSTATED, OwnCard
from clipbench.errors import ClipbenchError, NotApplicable, first_line
from clipbench.models.adapter import ASSUMED_SCALE, Adapter, ModelEntry
from clipbench.utils.escape import hidden, visible

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import nn

    from clipbench.models.saliency import SaliencyMethod

#: how its "towers" run, as the feature store says it
PLAN: Final = "own"
#: images and texts that it is given at once, unless the user says otherwise
BATCH: Final = 64
_METHODS: Final = {"joint": "encode_images", "backbone": "backbone", "text:joint": "encode_texts"}
_CONTRACT: Final = (
    "it needs encode_images(list of PIL images) and encode_texts(list of str), which give one row each "
    "(docs/library.md)"
)


class OwnModel(Structure):
    """What an object needs to be measured as a model (what it may have beside that, see the module)."""

    def encode_images(self, images: list[Image.Image], /) -> Any:
        """Features of RGB images: numbers [n, D], one row an image, comparable with those of texts by their cosine."""

    def encode_texts(self, texts: list[str], /) -> Any:
        """Features of texts: numbers [n, D], one row a text."""


class OwnAdapter(Adapter):
    """An object of the user's, and what is known of it; everything that it gives is looked at.

    Attributes:
        name: what the user calls it.
        identity: what its features follow from, on the user's word; None: nobody says.
        place: the torch device on which it gave its first features; empty where it gives no tensors.
        width: columns of its features, by space, as far as they are known.
    """

    context_length = 0

    def __init__(self, given: object, named: str | None = None) -> None:
        """`given`: the object; `named`: where it comes from, for errors and notes.

        Raises:
            ClipbenchError: it is no such object.
        """
        refuse(given)
        self._given = given
        kind = type(given)
        self.code = f"{kind.__module__}.{kind.__qualname__}"
        self._called = named or kind.__qualname__
        self.name = self._text("name") or kind.__qualname__
        self.identity = self._text("identity")
        self.scale_stated = getattr(given, "logit_scale", None) is not None
        self.logit_scale = self._scale() if self.scale_stated else ASSUMED_SCALE
        self.lacks_backbone = self._no_backbone()
        self.image_spaces = ("joint",) if self.lacks_backbone else ("joint", "backbone")
        self.weights_sha256 = self.identity or UNSTATED
        self.place = ""
        self.width: dict[str, int] = {}
        kept = (
            "its features are kept for its identity"
            if self.identity
            else "no identity, so no features are kept"
        )
        self.card = OwnCard(
            title=self.name,
            config={"object": self.code, "identity": self.identity},
            notes=f"the user's own code ({self.code}), which prepares images itself; {kept}",
        )

    def try_out(self) -> None:
        """Have it encode a text, so that what is wrong shows before any data is read; and `width` is known.

        Not an image too: which it takes, of what size, is not known.

        Raises:
            ClipbenchError: it raises an error, or gives no row of numbers.
        """
        if "text:joint" not in self.width:
            self.rows("text:joint", ["a photo."], ["a photo."])

    def width_of(self, space: str) -> int:
        """Columns of its features of images in a space."""
        if space not in self.width:
            from PIL import Image

            self.rows(space, [Image.new("RGB", (224, 224), (127, 127, 127))], ["a grey image"])
        return self.width[space]

    def rows(self, space: str, items: Sequence[Any], names: Sequence[str]) -> NDArray[np.float32]:
        """What it gives for images or texts: [n, D].

        Args:
            space: `joint` or `backbone` of images, `text:joint` of texts.
            names: of the images or texts, for errors.

        Raises:
            ClipbenchError: it raises an error, or what it gives are no finite numbers, a row each.
        """
        method = _METHODS[space]
        what = f"{self._called}.{method}"
        found = called(getattr(self._given, method), what, list(items))
        if not self.width:
            self.place = str(found.device) if _is_tensor(found) else ""
        rows = _numbers(found, what)
        things = "texts" if space.startswith("text:") else "images"
        if rows.ndim != 2 or len(rows) != len(items) or not rows.shape[1]:
            raise ClipbenchError(
                f"{what} gives an array {list(rows.shape)} for {len(items):,} {things}, not [{len(items):,}, D]",
                hint=f"it is given a list of {things}, and gives one row for each, in their order",
            )
        if self.width.setdefault(space, rows.shape[1]) != rows.shape[1]:
            raise ClipbenchError(
                f"{what} gives rows of {rows.shape[1]:,} numbers, and gave rows of {self.width[space]:,} before"
            )
        images, texts = (self.width.get(of, rows.shape[1]) for of in ("joint", "text:joint"))
        if space != "backbone" and images != texts:
            raise ClipbenchError(
                f"{self._called}: encode_images gives rows of {images:,} numbers and encode_texts of {texts:,}",
                hint="both must give rows of the one space in which images are compared with texts",
            )
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            raise ClipbenchError(
                f"{what} gives numbers that are not finite for {len(bad):,} of {len(items):,} {things}, the first "
                f"of them {visible(names[int(bad[0])])[:60]!r}",
                hint="NaN or infinity; float16 overflows above 65,504",
            )
        return rows

    def require_space(self, space: str) -> None:
        """As of any model; without `backbone` it says what is missing."""
        if space == "backbone" and self.lacks_backbone:
            raise NotApplicable(f"{self.card.title}: {self.lacks_backbone}")
        super().require_space(space)

    def image_tower(self, space: str) -> nn.Module:
        """It has none that could be handed out."""
        self._no_tower()

    def text_tower(self, space: str = "joint") -> nn.Module:
        """It has none that could be handed out."""
        self._no_tower()

    def tokenize(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """It does that itself."""
        self._no_tower()

    def saliency_method(self, block: int | None = None) -> SaliencyMethod:
        """It has none: nobody sees into it."""
        raise NotApplicable(f"{self.card.title}: code of the user's own, into which no heat map can look")

    def _no_tower(self) -> NoReturn:
        raise NotApplicable(
            f"{self.card.title}: code of the user's own, which has no tower to run or to time"
        )

    def _text(self, attribute: str) -> str | None:
        value = getattr(self._given, attribute, None)
        if value is None:
            return None
        if not isinstance(value, str) or not value.strip() or hidden(value) is not None:
            shown = visible(repr(value))[:60]
            raise ClipbenchError(
                f"{self._called}.{attribute} must be a text of visible characters (found {shown})",
                hint="leave it out, or give it a text",
            )
        return value

    def _scale(self) -> float:
        value: Any = getattr(self._given, "logit_scale")  # noqa: B009 - of what class it is nobody knows
        array = np.asarray(value.detach().cpu() if _is_tensor(value) else value)
        scale = float(array.reshape(-1)[0]) if array.size == 1 and array.dtype.kind in "fiu" else float("nan")
        if not 0 < scale < float("inf"):
            raise ClipbenchError(
                f"{self._called}.logit_scale must be a number above 0 (found {visible(repr(value))[:60]})",
                hint="it is the factor on cosines: exp of the learned temperature, 100 for OpenAI's CLIP",
            )
        return scale

    def _no_backbone(self) -> str:
        """Why there are no features for probes; empty where there are."""
        value = getattr(self._given, "backbone", None)
        if value is None:
            return "it has no backbone(images), which gives what a probe reads"
        if _is_module(value) or not callable(value):
            return f"its backbone is a {type(value).__name__}, no method that takes a list of PIL images"
        return ""


def entry(given: object, name: str | None = None, where: str | None = None) -> ModelEntry:
    """An object of the user's as the model `name`; None: as the object calls itself.

    Raises:
        ClipbenchError: it is no such object.
    """
    adapter = OwnAdapter(given, where)
    return ModelEntry(name or adapter.name, adapter.card, Path.cwd(), detected=True, adapter=adapter)


def refuse(given: object) -> None:
    """Raise ClipbenchError unless `given` is an object with the methods of `OwnModel`."""
    kind = type(given).__qualname__
    if isinstance(given, type):
        raise ClipbenchError(
            f"{given.__qualname__} is a class, not an object of it", hint=f"make one: {given.__qualname__}(…)"
        )
    for method in ("encode_images", "encode_texts"):
        found = getattr(given, method, None)
        if found is None:
            singular = all(callable(getattr(given, name, None)) for name in ("encode_image", "encode_text"))
            hint = (
                "its encode_image and encode_text take tensors: put it into an object whose methods prepare a "
                "list of PIL images and a list of texts (docs/library.md)"
                if singular
                else _CONTRACT
            )
            raise ClipbenchError(f"a {kind} is no model: it has no {method}", hint=hint)
        if not callable(found):
            raise ClipbenchError(
                f"a {kind} is no model: its {method} is a {type(found).__name__}, no method", hint=_CONTRACT
            )
    if _is_module(given) and getattr(given, "training", False):
        raise ClipbenchError(
            f"the {kind} is in training mode, in which dropout and batch norm move its features",
            hint="call its eval() first",
        )


def called(function: Callable[..., Any], what: str, *arguments: Any) -> Any:
    """What code of the user's gives, without gradients.

    Raises:
        ClipbenchError: it raises an error, which is told with its place; the cause is the error itself.
    """
    grad: Any = contextlib.nullcontext()
    if "torch" in sys.modules:
        grad = sys.modules["torch"].no_grad()
    try:
        with grad:
            return function(*arguments)
    except (Exception, SystemExit) as error:
        raise raised(error, what) from error


def raised(error: BaseException, what: str) -> ClipbenchError:
    """What an error in code of the user's says, and where it came up."""
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
    return ClipbenchError(
        f"{what} raises {visible(said)} ({visible(_place(error))})",
        hint="mend it there; what raises it is your own code, not clipbench",
    )


def _place(error: BaseException) -> str:
    """File, line and function of the last line of the user's that an error came through."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    libraries = tuple({sysconfig.get_path(name) for name in ("stdlib", "platlib", "purelib")})
    ours = str(Path(__file__).parents[1])
    own = [
        frame
        for frame in frames
        if not frame.filename.startswith(("<frozen", ours, *libraries)) and frame.filename != "<string>"
    ]
    last = (own or frames)[-1]
    return f"{last.filename}, line {last.lineno}, in {last.name}"


def _is_module(value: object) -> bool:
    """Whether it is a torch module; without torch nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _is_tensor(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _numbers(found: Any, what: str) -> NDArray[np.float32]:
    """`found` as an array of float32.

    Raises:
        ClipbenchError: it is none, or of something else than real numbers.
    """
    if isinstance(found, list | tuple) and found and all(map(_is_tensor, found)):
        shapes = {tuple(one.shape) for one in found}
        if len(shapes) > 1:
            raise ClipbenchError(
                f"{what} gives tensors of different shapes: {', '.join(map(str, sorted(shapes)))}"
            )
        found = sys.modules["torch"].stack(list(found))
    if _is_tensor(found):
        if found.is_complex() or found.dtype == sys.modules["torch"].bool:
            raise ClipbenchError(f"{what} gives a tensor of {found.dtype}, no real numbers")
        return np.asarray(found.detach().to("cpu").float().numpy())
    try:
        array = np.asarray(found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ClipbenchError(
            f"{what} gives a {type(found).__name__} that makes no array: {first_line(error)}",
            hint="give a numpy array, a torch tensor, or lists of equally many numbers",
        ) from None
    if array.dtype.kind not in "fiu":
        plain = isinstance(found, np.ndarray | list | tuple)
        shown = f"an array of {array.dtype}" if plain else f"a {type(found).__name__}"
        raise ClipbenchError(
            f"{what} gives {shown}, no array of real numbers",
            hint="give a numpy array, a torch tensor, or lists of numbers, one row each"
            + ("; of transformers' outputs take pooler_output" if hasattr(found, "pooler_output") else ""),
        )
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is told with its name
        return array.astype(np.float32)
