"""Architectures of open_clip, made small, give through clipbench what they give through open_clip: one of each kind.

`make zoo` tries all of them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import open_clip
import pytest

from zoo import compared, table

#: one of each kind of tower, tokenizer and preprocessing
KINDS = (
    "RN50x4-quickgelu",
    "ViT-M-16-alt",  # layer scale
    "ViT-H-14-CLIPA",  # no causal mask, no end token, the last token is read
    "ViT-L-14-worldwide",  # the end token is searched for
    "ViT-B-16-SigLIP2",
    "ViT-SO400M-16-SigLIP-i18n-256",  # texts are not projected
    "coca_ViT-B-32",
    "coca_roberta-ViT-B-32",
    "mt5-base-ViT-B-32",
    "nllb-clip-base-siglip",
    "xlm-roberta-base-ViT-B-32",
    "EVA02-B-16",
    "MobileCLIP-S1",  # texts are not causal, and their padding is attended to
    "PE-Core-T-16-384",
    "convnext_base",
    "swin_base_patch4_window7_224",
    "vit_relpos_medium_patch16_cls_224",
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arch", KINDS)
def test_features_tokens_and_images_are_open_clips(arch: str, tmp_path: Path) -> None:
    found = compared.compare(arch, tmp_path)
    assert found.problem() is None, found


def test_a_difference_is_a_problem() -> None:
    same = compared.Compared(0.1, 0.0, 1e-8, 0.0, 0.0, 0.0, True, (1.0, 1.0), (None, None), "")
    assert same.problem() is None
    for change in (
        {"pixels": 0.004},
        {"texts": 2e-5},
        {"images": float("nan")},
        {"alone": 1e-3},
        {"encoded": 1e-3},
        {"tokens_equal": False},
        {"bias": (None, -10.0)},
        {"scale": (1.0, 1.1)},
        {"apart": 0.0},
    ):
        assert dataclasses.replace(same, **change).problem() is not None, change


def test_the_table_is_of_every_architecture_as_open_clip_describes_it() -> None:
    rows = table.read(table.PATH.read_text(encoding="utf-8"))
    assert [row["architecture"] for row in rows] == open_clip.list_models()
    for row in rows:
        found = table.told(row["architecture"])
        assert {name: row[name] for name in table.TOLD} == found, "make zoo writes the table anew"
    works = {row["architecture"] for row in rows if row["works"] == "yes"}
    assert works >= set(KINDS)


def test_a_page_is_read_as_it_was_written() -> None:
    rows = [dict.fromkeys(table.COLUMNS, "a b") | {"works": "yes"}, dict.fromkeys(table.COLUMNS, "no: c")]
    text = table.written(rows)
    assert table.read(text) == rows
    assert "1 of 2 work." in text


@pytest.mark.parametrize(
    ("described", "told"),
    [
        ("attention × gradient in transformer.resblocks.1", "attention × gradient"),
        ("Grad-CAM on layer4", "Grad-CAM"),
        ("no: it has none", "no: it has none"),
    ],
)
def test_heat_maps_in_few_words(described: str, told: str) -> None:
    assert table.heat(described) == told
