"""The first training batch as the network sees it, for a figure that is drawn before training."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_residual.training import augment
from keras_residual.training.arrays import views
from keras_residual.training.augment import Random
from keras_residual.training.recipes import Recipe
from keras_residual.weights import Preprocess

__all__ = ["first_images"]


def first_images(
    recipe: Recipe, train: Any, preprocess: Preprocess, seed: int, classes: int, most: int = 24
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the first images of the first batch with the crops, flips and augmentation of training.

    Args:
        recipe: The training settings.
        train: A `keras_residual.data.Examples`.
        preprocess: The layer that training is given.
        seed: The seed of the training.
        classes: Number of classes.
        most: Maximum number of images. Of a larger batch, they begin with the second image: MixUp and CutMix mix each
            with the previous one, and only the images that are needed are read.

    Returns:
        Images `(n, H, W, C)`, uint8, and the share of each class in them `(n, classes)`.
    """
    batch, first = recipe.batch_size, int(recipe.batch_size > most)
    parts = max(n for n in range(1, batch + 1) if batch % n == 0 and batch // n >= min(batch, most + first))
    size = recipe.image_size(0, recipe.epochs) or preprocess.size
    data = views(train, recipe, size, batch, fill=preprocess.fill, seed=seed, part=(0, parts))
    images, labels = next(data.take(1).as_numpy_iterator())
    count = min(batch, most + first)
    random = Random(seed, np.arange(count, dtype="uint32"))
    fill = ops.convert_to_tensor([255.0 * mean for mean in preprocess.mean], "float32")
    seen = augment.augment(recipe, images[:count], random, fill)
    shares = augment.mix_targets(recipe, ops.one_hot(labels[:count], classes), random, images.shape[1:3])
    pixels = np.clip(np.round(keras.ops.convert_to_numpy(seen)), 0, 255).astype("uint8")
    return pixels[first:], keras.ops.convert_to_numpy(shares)[first:]
