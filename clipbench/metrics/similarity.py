"""How images are compared with text: by the cosine of two vectors, or token by token (late interaction)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_BLOCK_BYTES = 32 << 20  # of token products held at once
_BLOCK_ROWS = 512  # query tokens in one product


def similarity(images: NDArray[np.float32], texts: NDArray[np.float32]) -> NDArray[np.float32]:
    """Similarity of every image with every text: float32 [n, C].

    Args:
        images: float32 [n, D], unit rows; or rows of unit tokens, [n, S × d].
        texts: float32 [C, D], unit rows; or [C, T, d], tokens; zeros are padding.

    With tokens it is FILIP's image-to-text score (Yao et al. 2021, arXiv 2111.07783, section 3.1).
    """
    if texts.ndim == 2:
        product: NDArray[np.float32] = images @ texts.T
        return product
    return late_interaction(images.reshape(len(images), -1, texts.shape[2]), texts)


def late_interaction(queries: NDArray[np.float32], keys: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over a query's tokens of the best product with any of a key's tokens: float32 [n, C].

    Args:
        queries: float32 [n, S, d].
        keys: float32 [C, T, d]; tokens of zeros are padding, which no query finds.

    Both are taken in blocks: no array of n × S × C × T products is made.

    >>> images = np.array([[[1, 0], [0, 1]]], dtype=np.float32)
    >>> texts = np.array([[[1, 0], [0, 0.5]], [[-1, 0], [0, 0]]], dtype=np.float32)
    >>> late_interaction(images, texts).tolist()
    [[0.75, -0.5]]
    """
    import torch

    keyed = torch.from_numpy(np.ascontiguousarray(keys))
    padding = _padding(keyed)
    scores = torch.empty((len(queries), len(keys)), dtype=torch.float32)
    for rows, columns, products in _token_products(queries, keyed):
        scores[rows, columns] = _best(products, padding, columns).mean(dim=1)
    return scores.numpy()


def late_interactions(images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Late interaction as the images' score of the texts, and as the texts' of the images: float32 [n, C] both.

    The mean is over the tokens of the one that asks.

    Args:
        images: float32 [n, S, d].
        texts: float32 [C, T, d], on the same device; tokens of zeros are padding, which does not count.
    """
    import torch

    padding = _padding(texts)
    own = texts.shape[1] - (0 if padding is None else padding.sum(dim=1))
    of_images, of_texts = (torch.empty((len(images), len(texts)), device=images.device) for _ in range(2))
    for rows, columns, products in _token_products(images, texts):
        of_texts[rows, columns] = products.amax(dim=1).sum(dim=2)
        of_images[rows, columns] = _best(products, padding, columns).mean(dim=1)
    return of_images, of_texts / own


def _padding(texts: torch.Tensor) -> torch.Tensor | None:
    """Which tokens of texts [C, T, d] are padding: bool [C, T]; None: none is."""
    padding = (texts == 0).all(dim=2)
    return padding if bool(padding.any()) else None


def _best(products: torch.Tensor, padding: torch.Tensor | None, columns: slice) -> torch.Tensor:
    """The best of products [rows, S, columns, T], which it changes, over tokens that are no padding."""
    if padding is not None:
        products.masked_fill_(padding[columns], -math.inf)
    return products.amax(dim=3)


def _token_products(
    queries: NDArray[np.float32] | torch.Tensor, keys: torch.Tensor
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Blocks of rows, of columns, and all products of their tokens: float32 [rows, S, columns, T]."""
    import torch

    n, s, d = queries.shape
    count, t, _ = keys.shape
    rows = max(1, min(n, _BLOCK_BYTES // (4 * s * t), _BLOCK_ROWS // s))
    step = max(1, min(count, _BLOCK_BYTES // (4 * s * t * rows)))
    columns = keys.reshape(count * t, d).T
    for start in range(0, n, rows):
        part = queries[start : start + rows]
        block = torch.from_numpy(np.array(part)) if isinstance(part, np.ndarray) else part
        for column in range(0, count, step):
            here = slice(column, min(column + step, count))
            products = block.reshape(-1, d) @ columns[:, here.start * t : here.stop * t]
            yield slice(start, start + len(block)), here, products.view(len(block), s, -1, t)
