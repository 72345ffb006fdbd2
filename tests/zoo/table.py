"""The table of architectures in `docs/models.md`: what of it open_clip's settings tell, and what a comparison found."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from clipbench.cards.model import ModelCard, Preprocess, Weights
from clipbench.models import clip
from clipbench.models.weights.library import library
from clipbench.models.weights.open_clip import preprocess_of, published

PATH: Final = Path(__file__).parents[2] / "docs" / "models.md"
COLUMNS: Final = ("architecture", "works", "tokens", "images", "texts", "tokenizer", "backbone", "heat maps")
#: columns that are found without building anything
TOLD: Final = ("architecture", "tokens", "images", "texts", "tokenizer", "backbone")

_HEAD: Final = """# open_clip's architectures

Made by `make zoo`; a test holds it against open_clip's settings.

What `--model open_clip:<architecture>@<tag or file>` gives for each architecture of open_clip {version}. `works` says
that a small model of the architecture (random weights, one or two blocks a tower), saved by open_clip and read here by
its name and its file, has open_clip's own preprocessed images, tokens, and image and text features, to 1e-5.

- `tokens`: the context length. `images`: the size, how they are brought to it, and the interpolation, as open_clip's
  pretrained tags say; several where tags disagree, and without a tag open_clip's defaults.
- `texts`: what is done to them before they are cut into tokens (`text.clean` on a card). All mend Unicode and HTML
  entities; `canonicalize` also lowers case and deletes punctuation. `tokenizer`: open_clip's own, or a repository of
  the model hub, which is fetched once.
- `backbone`: the features that probes read. `heat maps`: their kind, or why there are none.

{works} of {all} work.

"""


def _way(preprocess: Preprocess) -> str:
    return f"{preprocess.size} {preprocess.resize} {preprocess.interpolation}"


def told(arch: str) -> dict[str, str]:
    """The columns `TOLD` of an architecture."""
    text: Mapping[str, Any] = library().get_model_config(arch)["text_cfg"]
    ways = published(arch) or [preprocess_of(arch, {})]
    config = {"arch": arch, "quick_gelu": False}
    card = ModelCard(
        title=arch, family="clip", config=config, preprocess=next(iter(ways)), weights=Weights(file="none")
    )
    assert clip.FAMILY.texts is not None
    texts = clip.FAMILY.texts(card)
    assert texts is not None
    clean = f"{texts.clean}, end token dropped" if texts.strip_sep_token else str(texts.clean)
    return {
        "architecture": arch,
        "tokens": str(texts.context_length),
        "images": "; ".join(dict.fromkeys(map(_way, ways))),
        "texts": clean,
        "tokenizer": text.get("hf_tokenizer_name") or "open_clip's BPE",
        "backbone": clip.FAMILY.backbone_is(card) or "",
    }


def heat(described: str) -> str:
    """Heat maps in few words: what they are, whichever block of a small model they are of."""
    return re.sub(r" (in|on) \S*$", "", described)


def written(rows: Sequence[Mapping[str, str]]) -> str:
    """The page of these rows."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' :-- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(row[name] for name in COLUMNS)} |" for row in rows]
    works = sum(row["works"] == "yes" for row in rows)
    head = _HEAD.format(version=library().__version__, works=works, all=len(rows))
    return head + "\n".join(lines) + "\n"


def read(text: str) -> list[dict[str, str]]:
    """The rows of a page that was `written`."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [dict(zip(COLUMNS, line, strict=True)) for line in lines[2:]]
