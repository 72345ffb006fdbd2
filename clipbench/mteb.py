"""A model as mteb takes it, the image tasks of MIEB among its tasks: `as_mteb`. mteb is installed by who wants it.

What it is handed is what mteb's own wrapper of open_clip hands it (mteb 2.26.24, `openclip_models.py`): rows as the
towers give them, not of unit length, and for a sample with an image and a text their sum.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipbench.api import Model, load_model
from clipbench.errors import ClipbenchError, DataError, NotApplicable
from clipbench.records.store import file_name

if TYPE_CHECKING:
    import torch

#: its versions whose interface this is, major and minor: from the first one on, and before the second
_FROM, _BEFORE = (2, 10), (3,)
_ALLOWED: Final = "mteb>=2.10,<3"
_INSTALL: Final = f"pip install '{_ALLOWED}'"
#: of mteb's options of an encoder: those that change no row
_WITHOUT_EFFECT: Final = ("batch_size", "show_progress_bar")


def as_mteb(model: Model | str | Path) -> Encoder:
    """`model` as `mteb.evaluate` takes it: an encoder of images, of texts, or of both.

        import clipbench, mteb
        mteb.evaluate(clipbench.as_mteb("digits-clip-lite"), mteb.get_tasks(tasks=["CIFAR10ZeroShot"]))

    Rows are those of the joint space; of a model without one, of an image tower alone, those of `backbone`.

    Args:
        model: what `load_model` gave, or a name that it takes.

    Raises:
        ClipbenchError: mteb is not installed, or is another version than 2.10 or a later 2.
        NotApplicable: the model compares images with texts token by token alone: it has no row a sample.
        (else as `load_model`)
    """
    try:
        from mteb.models.model_meta import ModelMeta
    except ImportError as error:
        raise ClipbenchError(f"as_mteb needs the package mteb ({error})", hint=_INSTALL) from None
    found = _installed()
    if not _FROM <= tuple(map(int, re.findall(r"\d+", found)[:2])) < _BEFORE:
        raise ClipbenchError(f"mteb {found} is installed; as_mteb is for {_ALLOWED}", hint=_INSTALL)
    return Encoder(model if isinstance(model, Model) else load_model(model), ModelMeta)


def _installed() -> str:
    """The version of mteb, under either of the names that it is installed by."""
    try:
        return version("mteb")
    except PackageNotFoundError:
        return version("mteb-core")


class Encoder:
    """mteb's `EncoderProtocol` over a model.

    Attributes:
        model: the model.
        space: the feature space of the rows.
        mteb_model_meta: what mteb writes of it. Its name is `clipbench/<name of its records>`, its revision the sha256
            of the weights. What else makes the rows other than the weights' own, the precision or, where our own
            evaluation compares tokens, the space, stands as `experiment_kwargs`, by which mteb keeps results apart.
    """

    def __init__(self, model: Model, meta: Callable[..., Any]) -> None:
        adapter = model.adapter
        self.model = model
        self.space = "joint" if "joint" in adapter.image_spaces else "backbone"
        if adapter.text_spaces and self.space not in adapter.text_spaces:
            raise NotApplicable(
                f"{model.card.title}: images and texts have no joint space, and mteb compares one row a sample",
                hint="token by token, clipbench eval compares them",
            )
        modalities = ["image", *(["text"] if adapter.text_spaces else [])]
        parameters = model.parameters(self.space)
        self.mteb_model_meta = meta(
            loader=None,
            name=f"clipbench/{file_name(model.id)}",
            revision=adapter.weights_sha256,
            release_date=None,
            languages=None,
            n_parameters=sum(one.numel() for one in parameters),
            memory_usage_mb=round(sum(one.numel() * one.element_size() for one in parameters) / 2**20, 1),
            max_tokens=adapter.context_length or None,
            embed_dim=self._width(),
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            modalities=modalities,
            experiment_kwargs=self._other_rows() or None,
        )

    def encode(
        self, inputs: Iterable[dict[str, Any]], *, show_progress_bar: bool = True, **given: Any
    ) -> torch.Tensor:
        """Rows of images, of texts, or their sums: float32 [n, D].

        Args:
            inputs: batches with `image` (PIL images), `text`, or both.
            show_progress_bar: whether progress is shown on stderr.
            given: what mteb says of the task, which changes nothing here, and its options.

        Raises:
            DataError: neither images nor texts are there, or something else under their names.
            ClipbenchError: an option that would change the rows.
            NotApplicable: texts, for a model without a text tower.
        """
        import torch
        from tqdm.auto import tqdm

        about = ("task_metadata", "hf_split", "hf_subset", "prompt_type", *_WITHOUT_EFFECT)
        for name in given.keys() - set(about):
            raise ClipbenchError(
                f"{name}={given[name]!r} has no effect on a model of clipbench",
                hint="leave it out; load_model(…, precision=…) says in what its towers compute",
            )
        rows = [self._rows(batch) for batch in tqdm(inputs, desc="Encoding", disable=not show_progress_bar)]
        if not rows:
            raise DataError("nothing to encode: there is no batch")
        return torch.cat(rows)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The cosine of every row with every row: mteb's own."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """The cosine of each row with the one at its place: mteb's own."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    def _rows(self, batch: dict[str, Any]) -> torch.Tensor:
        found = []
        if "text" in batch:
            found.append(self.model.encode_texts(batch["text"], self.space, normalised=False))
        if "image" in batch:
            found.append(self.model.encode_images(batch["image"], self.space, normalised=False))
        if not found:
            raise DataError(
                f"a batch with {', '.join(batch) or 'nothing'}: neither image nor text",
                hint="other modalities are not for models of clipbench",
            )
        if len({len(one) for one in found}) > 1:
            raise DataError(f"a batch of {len(found[0])} texts and {len(found[1])} images")
        return found[0] if len(found) == 1 else found[0] + found[1]

    def _width(self) -> int:
        """Length of a row."""
        from PIL import Image

        side = self.model.card.preprocess.side
        return self.model.encode_images(Image.new("RGB", (side, side)), self.space).shape[1]

    def _other_rows(self) -> dict[str, str]:
        precision = self.model.runtime.precision
        other: dict[str, str] = {} if precision == "fp32" else {"precision": precision}
        return other if self.model.compared == "joint" else other | {"space": self.space}
