"""What a program imports: models to encode with, and what the commands eval, compare and gate do, as functions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

from clipbench.cards.model import ModelCard
from clipbench.catalog import Catalog
from clipbench.data import decode_stream
from clipbench.data.decode import (
    BAD_IMAGE,
    IMAGE_FORMATS,
    cannot,
    normalise,
    open_image,
    pixels,
    pixels_allowed,
)
from clipbench.data.paths import DataPaths
from clipbench.encoding.batches import unit
from clipbench.encoding.runtime import Runtime, Tower
from clipbench.errors import CardError, ClipbenchError, DataError, NotApplicable, unknown
from clipbench.evaluation import Options, keep, refuse
from clipbench.evaluation import evaluate as measured
from clipbench.metrics.similarity import similarity
from clipbench.models import families, own
from clipbench.models.adapter import Adapter, ModelEntry
from clipbench.models.own import OwnAdapter, OwnModel
from clipbench.records import store
from clipbench.records.record import Record
from clipbench.utils.parsing import expanded
from clipbench.utils.plugins import add_all
from clipbench.utils.stages import taken

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image

#: an image as `Model.preprocess` takes it: opened, the path of a file, or uint8 [height, width] or [height, width, 3]
ImageLike: TypeAlias = "Image.Image | str | Path | NDArray[np.uint8]"

Item = TypeVar("Item")
_BATCH = 64


def load_model(
    name: str | Path, *, cards: Sequence[Path] = (), device: str = "auto", precision: str = "auto"
) -> Model:
    """The model `name`, ready to encode: any name that `clipbench eval --model` takes.

    Args:
        name: a model id, run folder, checkpoint file, `open_clip:<arch>@<tag or path>`,
            `hf-hub:<owner>/<repo>`, or `hf:<owner>/<repo>` or a folder of transformers' form.
        cards: folders of your own cards.
        device: auto, cpu, cuda or cuda:N.
        precision: of encoding: auto, fp32, bf16 or fp16. Features are float32 all the same.

    Raises:
        ClipbenchError: unknown name, or weights that are missing, corrupt, or do not fit.
    """
    if not isinstance(name, str | Path):
        raise CardError(
            f"a {type(name).__name__} is no name of a model",
            hint="give a model id, the path of a run folder or checkpoint, open_clip:<arch>@<tag or path>, or "
            "hf:<owner>/<repo>",
        )
    entry = Catalog(cards).model(str(name))
    adapter = families.load(entry)
    if adapter.given is not None:
        raise CardError(
            f"{name} is a folder of embeddings, which encodes nothing",
            hint="name the model that they come from; clipbench eval scores the folder",
        )
    if isinstance(adapter, OwnAdapter):
        raise CardError(f"{name} is code of your own: call it yourself; clipbench.evaluate takes it")
    return Model(adapter, Runtime.choose(device, precision), entry.id)


class Model:
    """A CLIP-like model: images and texts in, comparable features out (float32, on the CPU).

    Attributes:
        id: what records call it.
        card: its model card.
        logit_scale: factor on similarities before a softmax.
        compared: `joint` (one unit row a sample), or `tokens` (FILIP: unit tokens, compared by late interaction).
    """

    def __init__(self, adapter: Adapter, runtime: Runtime, id_: str) -> None:
        self.adapter, self.runtime, self.id = adapter, runtime, id_
        self.card: ModelCard = adapter.card
        self.logit_scale = adapter.logit_scale
        self.compared = adapter.compared
        self._towers: dict[tuple[str, str], Tower] = {}

    def preprocess(self, image: ImageLike) -> torch.Tensor:
        """One image as the tower sees it: float32 [channels, side, side], normalised.

        Raises:
            DataError: a file that is missing or no whole image, or something else than an image.
        """
        import torch

        try:
            found = pixels(_opened(image), self.card.preprocess)
        except BAD_IMAGE as error:
            named = str(image) if isinstance(image, str | Path) else type(image).__name__
            raise DataError(f"image {named} {cannot(str(error))}: {error}") from None
        return normalise(torch.from_numpy(found.copy())[None], self.card.preprocess)[0]

    def encode_images(
        self,
        images: ImageLike | Iterable[ImageLike] | torch.Tensor,
        space: str | None = None,
        *,
        normalised: bool = True,
    ) -> torch.Tensor:
        """Features of images: float32 [n, D], unit rows; in `tokens` [n, T, d], unit tokens; in `backbone` as they are.

        Args:
            images: opened images, paths or arrays, or one of them; or a batch that `preprocess` made: float [n,
                channels, side, side].
            space: `joint`, `tokens` or `backbone`; None: the one in which this model compares images with texts.
            normalised: whether rows (or tokens) have unit length; else they are as the tower gives them.

        Raises:
            DataError: an image that cannot be decoded, or something else than images.
            NotApplicable: the model has no such space.
        """
        import torch

        several = _several(images)
        space = space or self.compared
        self.adapter.require_space(space)
        tower = self._tower("image", space)
        if isinstance(several, torch.Tensor):
            own = self.card.preprocess
            shape = (own.channels, own.side, own.side)
            if several.shape[1:] != shape or not several.is_floating_point():
                wanted = ", ".join(map(str, shape))
                raise DataError(
                    f"a tensor of {several.dtype} {list(several.shape)} is no batch of float [n, {wanted}]",
                    hint="preprocess makes the rows of such a batch; images can also be paths, or PIL images",
                )
            batches: Iterable[torch.Tensor] = (
                several[i : i + _BATCH] for i in range(0, len(several), _BATCH)
            )
        else:
            batches = (torch.stack([self.preprocess(image) for image in part]) for part in _parts(several))
        features = [tower(batch.to(self.runtime.device)).cpu() for batch in batches]
        return self._shaped(features, space, normalised)

    def encode_texts(
        self, texts: str | Iterable[str], space: str | None = None, *, normalised: bool = True
    ) -> torch.Tensor:
        """Features of texts, comparable with those of images: float32 [n, D], unit rows; in `tokens` [n, T, d].

        One text gives one row. `space` and `normalised` are as for images.

        Raises:
            DataError: something else than texts.
            NotApplicable: the model has no text tower, or no such space.
        """
        space = space or self.compared
        self.adapter.require_text(space)
        tower = self._tower("text", space)
        features = []
        for part in _parts([texts] if isinstance(texts, str) else _texts(texts)):
            ids, lengths = self.adapter.tokenize(part)
            features.append(tower(ids[:, : int(lengths.max())].to(self.runtime.device)).cpu())
        return self._shaped(features, space, normalised)

    def similarity(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Similarity of every image with every text, without the logit scale: float32 [n, m].

        The cosine of what `encode_images` and `encode_texts` give; late interaction where they give tokens.
        """
        import torch

        return torch.from_numpy(similarity(images.numpy(), texts.numpy()))

    def parameters(self, space: str) -> list[torch.Tensor]:
        """The parameters of the towers that give features in `space`, each once.

        Raises:
            NotApplicable: images have no such space.
        """
        adapter = self.adapter
        adapter.require_space(space)
        towers = [adapter.image_tower(space)]
        towers += [adapter.text_tower(space)] if space in adapter.text_spaces else []
        return list({id(one): one for tower in towers for one in tower.parameters()}.values())

    def _tower(self, kind: str, space: str) -> Tower:
        if (kind, space) not in self._towers:
            make = self.adapter.image_tower if kind == "image" else self.adapter.text_tower
            self._towers[kind, space] = Tower(make(space).to(self.runtime.device), self.runtime)
        return self._towers[kind, space]

    def _shaped(self, features: list[torch.Tensor], space: str, normalised: bool) -> torch.Tensor:
        import torch

        if not features:
            raise DataError("nothing to encode: the list is empty")
        rows = torch.cat(features)
        if space == "backbone":
            return rows
        width = self.adapter.token_width if space == "tokens" else 0
        if normalised:
            rows = unit(rows, width)
        return rows.view(len(rows), -1, width) if width else rows


#: what `evaluate` takes for a model: what `--model` takes, what `load_model` gives, or an object of the caller's own
AnyModel: TypeAlias = "str | Path | Model | OwnModel"


class Failure(NamedTuple):
    """A task that a model has no record of, and why; `model` and `task` are empty where all stopped."""

    model: str
    task: str
    error: ClipbenchError


class EvaluationError(ClipbenchError):
    """Some tasks could not be measured.

    Attributes:
        failures: which, and why.
        records: those of the others, as `evaluate` would have returned them.
    """

    def __init__(self, failures: Sequence[Failure], records: Sequence[Record]) -> None:
        self.failures, self.records = tuple(failures), list(records)
        told: dict[str, str | None] = {}
        for model, task, error in failures:
            data = isinstance(error, DataError)  # which is the task's, whatever the model
            where = " × ".join(part for part in ("" if data else model, task) if part)
            told[f"{where}: {error.message}" if where else error.message] = error.hint
        if len(told) == 1:
            super().__init__(*told, hint=next(iter(told.values())))
            return
        lines = (f"  {what}" + (f"\n    {hint}" if hint else "") for what, hint in told.items())
        super().__init__(
            f"{len(failures)} tasks were not measured, {len(self.records)} were:\n" + "\n".join(lines)
        )


def evaluate(
    model: AnyModel | Sequence[AnyModel],
    tasks: str | Sequence[str],
    *,
    data: str | Path | Sequence[str | Path] | Mapping[str, str | Path] = (),
    results: str | Path | None = None,
    cards: Sequence[str | Path] = (),
    plugins: Sequence[str | Path] = (),
    device: str = "auto",
    precision: str = "auto",
    limit: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    workers: int | None = None,
    deterministic: bool = False,
    on_bad_image: Literal["stop", "skip"] = "stop",
    not_applicable: Literal["error", "skip"] = "error",
    max_pixels: int | None = None,
    save_heatmaps: int = 0,
    force: bool = False,
    verify_data: bool = False,
    progress: bool = False,
) -> list[Record]:
    """Measure models on tasks, as `clipbench eval` does: the same checks, features, numbers and records.

    Args:
        model: any name that `--model` takes, what `load_model` gives, or an object of your own with the methods of
            `clipbench.OwnModel`; or several. Your own object runs where and in what precision it likes; of a loaded
            model `auto` keeps the device and the precision that it was loaded with.
        tasks: a task or suite id, or several.
        data: your copies of data sets: {dataset: folder}, "<dataset>=<folder>", a folder of folders, or several.
        results: folder to write records and per-sample outcomes into, as the command does; None: nothing is written.
        cards: folders of your own cards.
        plugins: folders of your own code, which is run.
        device: auto, cpu, cuda or cuda:N.
        precision: of encoding: auto, fp32, bf16 or fp16.
        limit: measure on a seeded, class-balanced sample of so many images.
        seed: of samples and of bootstrap intervals.
        batch_size: images a batch; None: as the machine likes it, of your own object 64.
        workers: processes that decode images; None: as many as there are cores.
        deterministic: the same options on the same machine give the same record.
        on_bad_image: stop at an image that cannot be decoded, or skip, count and name it.
        not_applicable: what a model cannot do is an error, or is left out.
        max_pixels: most pixels that an image may have.
        save_heatmaps: of how many expressions heat maps are saved beside the records.
        force: overwrite what clipbench did not write itself.
        verify_data: hash every data file again.
        progress: show progress bars on stderr.

    Returns:
        One record for each task and model, task by task; with `results` as they were written, sealed.

    Raises:
        EvaluationError: once all that could be measured was: names what could not, and has the records of the rest.
        ClipbenchError: what is wrong before anything is measured, such as an unknown name.
    """
    add_all(plugins)
    taken()  # what went before is no part of the first record's time
    catalog = Catalog([Path(folder) for folder in cards])
    wanted = catalog.tasks([tasks] if isinstance(tasks, str) else _names(tasks))
    paths = DataPaths.parse(_data(data), known=catalog.dataset_files, verify=verify_data)
    given: list[AnyModel] = list(model) if isinstance(model, list | tuple) else [model]  # type: ignore[list-item]
    entries = _entries(given, catalog)
    for name, value, least in (("limit", limit, 1), ("seed", seed, 0), ("save_heatmaps", save_heatmaps, 0)):
        if value is not None and (type(value) is not int or value < least):
            raise ClipbenchError(f"{name} must be a whole number from {least} on (found {value!r})")
    if not_applicable not in ("error", "skip"):
        raise ClipbenchError(unknown("choice for not_applicable", str(not_applicable), ("error", "skip")))
    options = Options(
        runtime=_runtime(given, device, precision, batch_size, workers, deterministic),
        data=paths,
        limit=limit,
        seed=seed,
        on_bad_image=decode_stream.on_bad_image(on_bad_image),
        progress=progress,
        pictures=save_heatmaps,
    )
    folder = None if results is None else expanded(str(results))
    refuse(entries, wanted, options, folder, force=force)
    records: list[Record] = []
    failures: list[Failure] = []
    with pixels_allowed(max_pixels):
        try:
            for result in measured(entries, wanted, options, catalog):
                if result.record is not None:
                    records.append(
                        result.record
                        if folder is None
                        else store.read(keep(result, folder, force=force).record).record
                    )
                elif result.error is not None:
                    failures.append(Failure(result.model, result.task, result.error))
                elif not_applicable == "error":
                    lack = NotApplicable(f"not applicable: {result.reason}")
                    failures.append(Failure(result.model, result.task, lack))
        except ClipbenchError as error:
            if not records and not failures:
                raise
            raise EvaluationError([*failures, Failure("", "", error)], records) from error
    if failures:
        raise EvaluationError(failures, records) from failures[0].error
    return records


def _entries(given: Sequence[AnyModel], catalog: Catalog) -> list[ModelEntry]:
    """The models, each name once."""
    found, names = [], set()
    for one in given:
        if isinstance(one, str | Path):
            if str(one) not in names:
                found.append(catalog.model(str(one)))
            names.add(str(one))
        elif isinstance(one, Model):
            found.append(ModelEntry(one.id, one.card, Path.cwd(), adapter=one.adapter))
        else:
            made = own.entry(one)
            if made.id in catalog.model_files:
                raise CardError(
                    f'your own object is called "{made.id}" as the model of {catalog.model_files[made.id]} is',
                    hint="give it another name: its attribute name",
                )
            found.append(made)
    if not found:
        raise CardError("no model is given", hint="see clipbench list models")
    return found


def _runtime(
    given: Sequence[AnyModel],
    device: str,
    precision: str,
    batch_size: int | None,
    workers: int | None,
    deterministic: bool,
) -> Runtime:
    """Where and how models run; `auto` is what loaded models were loaded with.

    Raises:
        ClipbenchError: they were loaded otherwise than each other.
    """
    loaded = {(one.runtime.device, one.runtime.precision) for one in given if isinstance(one, Model)}
    if loaded and "auto" in (device, precision):
        if len(loaded) > 1:
            told = " and ".join(" in ".join(each) for each in sorted(loaded))
            raise ClipbenchError(f"models were loaded on {told}", hint="say which: device=…, precision=…")
        [(own_device, own_precision)] = loaded
        device = own_device if device == "auto" else device
        precision = own_precision if precision == "auto" else precision
    return Runtime.choose(device, precision, batch_size, workers, deterministic)


def _names(tasks: Sequence[str]) -> list[str]:
    """Ids of tasks, looked at."""
    found = list(tasks) if isinstance(tasks, Iterable) else [tasks]
    for name in found:
        if not isinstance(name, str):
            raise CardError(f"a {type(name).__name__} is no id of a task", hint="see clipbench list tasks")
    if not found:
        raise CardError("no task is named", hint="see clipbench list tasks")
    return found


def _data(given: str | Path | Sequence[str | Path] | Mapping[str, str | Path]) -> list[str]:
    """As the values of --data."""
    if isinstance(given, Mapping):
        return [f"{name}={path}" for name, path in given.items()]
    return [str(one) for one in ([given] if isinstance(given, str | Path) else given)]


def _opened(image: object) -> Image.Image:
    """`image` (see `ImageLike`) as Pillow has it.

    Raises:
        DataError: it is something else.
    """
    import numpy as np
    from PIL import Image

    if isinstance(image, str | Path):
        return open_image(image)
    if isinstance(image, Image.Image):
        if image.format not in (None, *IMAGE_FORMATS):
            raise DataError(
                f"an image of the format {image.format}, which is not read", hint="save it as PNG or JPEG"
            )
        return image
    if isinstance(image, np.ndarray):
        if (
            image.dtype == np.uint8
            and (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3))
            and image.size
        ):
            return Image.fromarray(image)
        raise DataError(
            f"an array of {image.dtype} {list(image.shape)} is no image",
            hint="arrays are uint8 [height, width] or [height, width, 3] (red, green, blue)",
        )
    raise DataError(
        f"a {type(image).__name__} is no image", hint="give a path, a PIL image, or an array of uint8"
    )


def _several(images: object) -> Any:
    """One image as a list of one; a batch of preprocessed ones, or several, as they are."""
    import numpy as np
    import torch
    from PIL import Image

    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, torch.Tensor):
        return images[None] if images.ndim == 3 else images
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if isinstance(images, bytes | bytearray) or not isinstance(images, Iterable):
        raise DataError(
            f"a {type(images).__name__} is no image and no list of images",
            hint="give paths, PIL images, arrays of uint8, or a tensor of rows that preprocess made",
        )
    return images


def _texts(texts: object) -> Iterable[str]:
    """`texts`, each looked at."""
    if isinstance(texts, bytes | bytearray) or not isinstance(texts, Iterable):
        raise DataError(
            f"a {type(texts).__name__} is no text and no list of texts", hint="give a str, or several"
        )
    for text in texts:
        if not isinstance(text, str):
            raise DataError(
                f"a {type(text).__name__} among the texts is no text", hint="give a str, or several"
            )
        yield text


def _parts(items: Iterable[Item]) -> Iterable[list[Item]]:
    """`items` in lists of a batch."""
    each = iter(items)
    while part := list(islice(each, _BATCH)):
        yield part
