"""What an object of a user's own must be and give: each wrong use has a message of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from own_objects import Colours
from PIL import Image

from clipbench.cards.model import UNSTATED
from clipbench.errors import ClipbenchError, NotApplicable, WeightsError
from clipbench.models import families, own, remembered
from clipbench.models.own import OwnAdapter

GREY = [Image.new("RGB", (4, 4), (9, 9, 9))] * 3
NAMES = ["a", "b", "c"]


def changed(**members: Any) -> Colours:
    """`Colours` with other members."""
    return type("Mine", (Colours,), members)()  # type: ignore[no-any-return]


def giving(rows: Any, method: str = "encode_images") -> OwnAdapter:
    """What gives `rows`, whatever it is asked."""
    return OwnAdapter(changed(**{method: lambda self, items: rows}))


ROWS = [[1.0, 2.0, 3.0]] * 3


@pytest.mark.parametrize(
    "rows",
    [
        ROWS,
        tuple(map(tuple, ROWS)),
        np.array(ROWS),
        np.array(ROWS, dtype=np.float16),
        np.array(ROWS, dtype=np.int64),
        [np.array(row) for row in ROWS],
        np.asfortranarray(np.array(ROWS)),
        torch.tensor(ROWS),
        torch.tensor(ROWS).half(),
        torch.tensor(ROWS).bfloat16(),
        torch.tensor(ROWS).double().requires_grad_(),
        torch.tensor(ROWS).int(),
        [torch.tensor(row) for row in ROWS],
        torch.tensor(ROWS).T.contiguous().T,
    ],
)
def test_rows_of_many_types_become_float32(rows: Any) -> None:
    found = giving(rows).rows("joint", GREY, NAMES)
    assert found.dtype == np.float32
    assert found.tolist() == ROWS


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, "gives a NoneType, no array of real numbers"),
        ("abc", "gives a str, no array of real numbers"),
        ([["a"] * 3] * 3, r"gives an array of <U1, no array of real numbers"),
        (np.array(ROWS, dtype=object), "gives an array of object"),
        (np.array(ROWS) * 1j, "gives an array of complex128"),
        (np.array(ROWS) > 0, "gives an array of bool"),
        (torch.tensor(ROWS) > 0, "gives a tensor of torch.bool, no real numbers"),
        (torch.tensor(ROWS) * 1j, "gives a tensor of torch.complex64"),
        ([[1.0], [1.0, 2.0], [3.0]], "gives a list that makes no array"),
        ([torch.ones(3), torch.ones(2), torch.ones(3)], "gives tensors of different shapes"),
        ({"rows": ROWS}, "gives a dict, no array of real numbers"),
        (ROWS[:2], r"gives an array \[2, 3\] for 3 images, not \[3, D\]"),
        (ROWS * 2, r"gives an array \[6, 3\] for 3 images, not \[3, D\]"),
        (ROWS[0], r"gives an array \[3\] for 3 images, not \[3, D\]"),
        ([[row] for row in ROWS], r"gives an array \[3, 1, 3\] for 3 images"),
        (np.zeros((3, 0)), r"gives an array \[3, 0\] for 3 images"),
        (np.array([[1, 2, 3], [1, np.nan, 3], [np.inf, 2, 3]]), "not finite for 2 of 3 images, .* 'b'"),
        (np.full((3, 3), 1e300), "not finite for 3 of 3 images"),
    ],
)
def test_what_are_no_rows(rows: Any, words: str) -> None:
    with pytest.raises(ClipbenchError, match=rf"^Mine\.encode_images .*{words}"):
        giving(rows).rows("joint", GREY, NAMES)


def test_an_output_of_transformers_is_told_what_to_take() -> None:
    class Output:
        pooler_output = torch.ones(3, 3)

    with pytest.raises(ClipbenchError, match="take pooler_output"):
        giving(Output()).rows("joint", GREY, NAMES)


def test_rows_of_images_and_of_texts_are_equally_long_and_stay_so() -> None:
    adapter = giving(np.ones((3, 5)))
    adapter.try_out()
    with pytest.raises(ClipbenchError, match="encode_images gives rows of 5 numbers and encode_texts of 3"):
        adapter.rows("joint", GREY, NAMES)
    widths = iter((3, 4))
    adapter = OwnAdapter(changed(encode_images=lambda self, items: np.ones((len(items), next(widths)))))
    adapter.rows("joint", GREY, NAMES)
    with pytest.raises(ClipbenchError, match="gives rows of 4 numbers, and gave rows of 3 before"):
        adapter.rows("joint", GREY, NAMES)
    # what a probe reads may be of another length
    adapter = OwnAdapter(changed(backbone=lambda self, images: np.ones((len(images), 7))))
    adapter.try_out()
    assert adapter.rows("backbone", GREY, NAMES).shape == (3, 7)


class Classed(Colours):
    pass


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "a NoneType is no model: it has no encode_images"),
        (3, "a int is no model"),
        (b"digits-clip-lite", "a bytes is no model"),
        (np.ones(3), "a ndarray is no model"),
        (torch.nn.Linear(2, 2), "a Linear is no model: it has no encode_images"),
        (Classed, "Classed is a class, not an object of it"),
        (changed(encode_texts=None), "a Mine is no model: it has no encode_texts"),
        (changed(encode_images=np.ones(3)), "its encode_images is a ndarray, no method"),
        (changed(name=3), "Mine.name must be a text"),
        (changed(name="  "), "Mine.name must be a text"),
        (changed(name="a\nb"), r"Mine.name must be a text of visible characters"),
        (changed(identity=7), "Mine.identity must be a text"),
        (changed(identity=""), "Mine.identity must be a text"),
        (changed(logit_scale=0), "Mine.logit_scale must be a number above 0"),
        (changed(logit_scale=float("nan")), "Mine.logit_scale must be a number above 0"),
        (changed(logit_scale="100"), "Mine.logit_scale must be a number above 0"),
        (changed(logit_scale=True), "Mine.logit_scale must be a number above 0"),
        (changed(logit_scale=lambda self: 3.0), "Mine.logit_scale must be a number above 0"),
        (changed(logit_scale=torch.ones(2)), "Mine.logit_scale must be a number above 0"),
    ],
)
def test_what_is_no_model(given: object, words: str) -> None:
    with pytest.raises(ClipbenchError, match=words):
        own.entry(given)


def test_a_model_whose_methods_take_tensors_is_told_to_wrap_it() -> None:
    class OpenClip(torch.nn.Module):
        def encode_image(self, image: torch.Tensor) -> torch.Tensor:
            return image

        encode_text = encode_image

    with pytest.raises(ClipbenchError, match="its encode_image and encode_text take tensors"):
        own.entry(OpenClip())


def test_an_error_of_the_users_is_told_with_its_place_and_kept() -> None:
    def fails(self: object, texts: list[str]) -> None:
        raise KeyError("no such token")

    with pytest.raises(ClipbenchError) as caught:
        OwnAdapter(changed(encode_texts=fails)).try_out()
    assert "Mine.encode_texts raises KeyError: 'no such token'" in str(caught.value)
    assert f"{__file__}, line {fails.__code__.co_firstlineno + 1}, in fails" in str(caught.value)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize(
    ("scale", "value"), [(7, 7.0), (np.float32(8), 8.0), (torch.nn.Parameter(torch.tensor(9.0)), 9.0)]
)
def test_the_logit_scale_is_a_number_of_any_type(scale: Any, value: float) -> None:
    adapter = OwnAdapter(changed(logit_scale=scale))
    assert (adapter.logit_scale, adapter.scale_stated) == (value, True)
    adapter = OwnAdapter(changed(logit_scale=None))
    assert (adapter.logit_scale, adapter.scale_stated) == (100.0, False)


def test_what_it_says_of_itself_stands_on_its_card() -> None:
    entry = own.entry(changed(name="my model", identity="v1"))
    assert (entry.id, entry.card.title, entry.card.family) == ("my model", "my model", "python")
    assert entry.card.config == {"object": "test_own.Mine", "identity": "v1"}
    assert entry.adapter is not None
    assert entry.adapter.weights_sha256 == "v1"
    nameless = own.entry(changed(), "python:mine:make").adapter
    assert nameless is not None
    assert (nameless.card.title, nameless.weights_sha256) == ("Mine", UNSTATED)
    assert families.load(entry) is remembered.load(entry) is entry.adapter
    with pytest.raises(WeightsError, match="my model is code of your own"):
        families.fetch(entry)


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        (None, r"it has no backbone\(images\)"),
        (torch.nn.Linear(2, 2), "its backbone is a Linear, no method that takes a list of PIL images"),
        (3, "its backbone is a int"),
    ],
)
def test_without_a_backbone_there_is_nothing_to_probe(backbone: object, words: str) -> None:
    adapter = OwnAdapter(changed(backbone=backbone))
    adapter.require_space("joint")
    with pytest.raises(NotApplicable, match=words):
        adapter.require_space("backbone")
    OwnAdapter(changed(backbone=lambda self, images: ROWS)).require_space("backbone")


@pytest.mark.parametrize(
    "asked",
    [
        lambda a: a.image_tower("joint"),
        lambda a: a.text_tower(),
        lambda a: a.tokenize(["a"]),
        lambda a: a.saliency_method(),
    ],
)
def test_it_has_no_towers_to_hand_out(asked: Callable[[OwnAdapter], object]) -> None:
    with pytest.raises(NotApplicable, match="code of the user's own"):
        asked(OwnAdapter(changed()))


def test_no_gradients_are_kept() -> None:
    weight = torch.ones(3, 3, requires_grad=True)
    seen = []

    def encode(self: object, texts: list[str]) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return torch.ones(len(texts), 3) @ weight

    OwnAdapter(changed(encode_texts=encode)).try_out()
    assert seen == [False]
