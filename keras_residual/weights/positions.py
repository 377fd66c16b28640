"""Position embeddings of Vision Transformers: on which grid of patches they were trained, and another grid."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np

from keras_residual import layers

__all__ = ["Grid", "grid_of", "patches_of", "resampled", "shown"]

Array = np.ndarray[Any, Any]
Grid = tuple[int, ...]


def grid_of(shape: Grid, layer: layers.PositionEmbedding, stated: Grid | None, size: Grid | None) -> Grid | None:
    """Return the grid that an array of position embeddings was trained on, or `None` if nothing tells.

    A count of patches alone does not tell 12 x 16 from 16 x 12. Without a statement, a square count is a square grid,
    as timm has it, except where the model's own grid has the same count in another shape.

    Args:
        shape: The array's shape, `(1, prefix + patches, channels)`.
        layer: The model's layer that it is for.
        stated: The grid that the source states, if it does.
        size: The image size that the source states, if it does.
    """
    count = shape[1] - layer.prefix if len(shape) == 3 else 0
    if count < 1:
        return None
    if stated is not None and math.prod(stated) == count:
        return stated
    rank = len(layer.grid)
    if rank == 1:
        return (count,)
    if size is not None and rank == len(size) and (found := patches_of(size, count)):
        return found
    square = (round(count ** (1 / rank)),) * rank
    if math.prod(square) != count or (math.prod(layer.grid) == count and layer.grid != square):
        return None
    return square


def patches_of(size: Grid, count: int) -> Grid | None:
    """Return how many whole patches lie along each axis of an image if there are `count` square ones in all.

    More than one patch size may give this count, but all of them give the same grid.
    """
    if min(size) < 1:
        return None
    side = int((math.prod(size) / count) ** (1 / len(size))) + 1
    while side > 0 and math.prod(length // side for length in size) < count:
        side -= 1
    grid = tuple(length // side for length in size) if side else ()
    return grid if math.prod(grid) == count else None


def resampled(value: Array, layer: layers.PositionEmbedding, grid: Grid) -> Array | None:
    """Return position embeddings of `grid` on the layer's grid, bicubic and antialiased as timm's; 2-D grids only."""
    if len(grid) != 2 or len(layer.grid) != 2:
        return None
    prefix, image = value[:, : layer.prefix], value[:, layer.prefix :].astype("float32")
    image = keras.ops.image.resize(
        image.reshape(1, *grid, -1), layer.grid, interpolation="bicubic", antialias=True, data_format="channels_last"
    )
    image = keras.ops.convert_to_numpy(image).reshape(1, -1, value.shape[-1])
    return np.concatenate([prefix, image.astype(value.dtype)], axis=1)


def shown(shape: Grid, grid: Grid | None) -> str:
    """Return a shape with its grid, for messages."""
    known = "an unknown grid" if grid is None else f"a grid of {' x '.join(map(str, grid))}"
    return f"{tuple(shape)} on {known}"
