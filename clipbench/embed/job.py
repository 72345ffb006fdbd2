"""A whole collection to a folder of embeddings: settings, what is left to do, and what became of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from clipbench.cards.base import fingerprint
from clipbench.embed.collection import Collection
from clipbench.embed.distributed import Work, distributed
from clipbench.embed.output import Finished, Output
from clipbench.embed.run import Embedder, Failed, Wanted
from clipbench.encoding.encoder import ModelEncoder
from clipbench.errors import ClipbenchError, NotApplicable
from clipbench.utils.progress import progress_bar
from clipbench.utils.storage import Place

#: rows of a collection up to which its keys are compared with each other
_KEYS_COMPARED: Final = 20_000_000


@dataclass(frozen=True)
class Embedded:
    """What a run did.

    Attributes:
        manifest: of the folder, as it is now.
        new: parts that this run finished.
        rows: that it wrote.
        failed: parts that could not be read → why.
        keys_twice: keys that more than one part has; None where they were not compared.
    """

    manifest: Mapping[str, Any]
    new: int
    rows: int
    failed: Mapping[str, str]
    keys_twice: list[str] | None = None


def settings(encoder: ModelEncoder, collection: Collection, wanted: Wanted) -> dict[str, Any]:
    """All that decides the rows and files of a collection that is embedded."""
    adapter = encoder.adapter
    of_model: dict[str, Any] = {"title": adapter.card.title, "logit_scale": adapter.logit_scale}
    if encoder.own is not None:
        of_model |= {"identity": encoder.own.identity, "stated_by": "user"}
    else:
        of_model |= {
            "family": adapter.card.family,
            "weights_sha256": adapter.weights_sha256,
            "config": fingerprint(adapter.card.config),
            "preprocess": encoder.preprocess("joint").canonical(),
            "tokenizer": adapter.text_fingerprint if wanted.texts or collection.kind == "texts" else None,
        }
    return {
        "model": of_model,
        "space": "joint",
        "precision": encoder.precision,
        "dtype": wanted.dtype,
        "format": wanted.form,
        "texts": wanted.texts,
        "min_score": wanted.min_score,
        "on_bad_image": wanted.on_bad_image,
        "source": collection.described,
    }


def require(encoder: ModelEncoder, collection: Collection, wanted: Wanted) -> None:
    """Raise an error unless this model can embed this collection as it is wanted.

    Raises:
        NotApplicable: it has no rows of images, or of texts.
        ClipbenchError: what is wanted does not fit.
    """
    if encoder.adapter.given is not None:
        raise NotApplicable(
            f"{encoder.model.id} holds embeddings that were made already: there is no model to run"
        )
    if collection.kind == "texts":
        encoder.adapter.require_text("joint")
        if wanted.texts:
            raise ClipbenchError("--texts embeds captions beside images; a list of texts has no images")
    else:
        encoder.require("joint")
        if wanted.texts:
            encoder.adapter.require_text("joint")
    if wanted.min_score is not None and not wanted.texts:
        raise ClipbenchError("--min-score needs the cosine of image and caption", hint="add --texts")


def left(output: Output, collection: Collection, share: tuple[int, int] = (0, 1)) -> list[int]:
    """The numbers of the parts of a share (k, n) that are not finished: those ≡ k mod n."""
    done = output.finished()
    return [i for i in range(len(collection.parts)) if i % share[1] == share[0] and i not in done]


def embed(
    encoder: ModelEncoder,
    collection: Collection,
    output: Output,
    wanted: Wanted,
    *,
    share: tuple[int, int] = (0, 1),
    ray: Any = None,
) -> Embedded:
    """Embed what is left of a share of a collection, in this process, or over the cluster that `ray` is connected to.

    Raises:
        NotApplicable, ClipbenchError: see `require`, `Output.begin`.
        DataError: a sample cannot be embedded, and `on_bad_image` is "stop".
        StorageError: the output cannot be written. What was finished is kept, as it is when the process is killed.
    """
    require(encoder, collection, wanted)
    output.begin()
    numbers = left(output, collection, share)
    with encoder.runtime.reproducible(), progress_bar("parts", len(numbers), encoder.progress) as (bar, task):

        def advance(parts: float) -> None:
            bar.advance(task, parts)

        if ray is None:
            told = Embedder(encoder, collection, output, wanted).run(numbers, advance)
        else:
            work = Work(encoder.model, encoder.runtime, collection, output, wanted)
            told = distributed(ray, work, numbers, advance)
        return ended(output, told)


def ended(output: Output, told: Iterable[tuple[int, Finished | Failed]]) -> Embedded:
    """What became of parts, once all have been told of; the manifest is written anew, also where one raises."""
    failed: dict[str, str] = {}
    new = rows = 0
    try:
        for _, of in told:
            if isinstance(of, Failed):
                failed[of.name] = of.why
            else:
                new, rows = new + 1, rows + of.rows
    finally:
        manifest = output.close(failed)
    twice = None
    if manifest["complete"] and manifest["rows"] <= _KEYS_COMPARED:
        twice = output.keys_twice()
    return Embedded(manifest, new, rows, failed, twice)


def opened(encoder: ModelEncoder, collection: Collection, folder: Place, wanted: Wanted) -> Output:
    """The output of a collection that is embedded, whose settings are worked out."""
    require(encoder, collection, wanted)
    asked = {"model": encoder.model.id, "data": collection.source}
    return Output(folder, settings(encoder, collection, wanted), asked)
