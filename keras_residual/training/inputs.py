"""Check labels, images and their number before the first step, with errors in the user's terms.

Without these checks XLA turns a label out of range into NaN in every weight, and most of the rest passes silently.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_residual.checking import (
    channels_first,
    require_class_numbers,
    require_finite_numbers,
    require_pixels,
)
from keras_residual.training.recipes import Recipe

__all__ = ["check_batch", "check_images", "check_labels", "check_recipe", "check_size", "readable"]

WIDTH_FIRST = "Is the width first? PIL's sizes are (width, height), those of arrays and networks (height, width)."


def check_labels(labels: Any, outputs: int, what: str, classes: int | None = None, whole: bool = True) -> np.ndarray:
    """Return class numbers `(N,)`, checked against the number of outputs.

    Args:
        labels: As they came.
        outputs: Of the network.
        what: Name of the data in errors.
        classes: How many there are, where that is known.
        whole: Whether every class must occur; a validation set may lack some.

    Raises:
        ValueError: For floats, one-hot rows, numbers out of range, or a head of another size.
    """
    labels = np.asarray(labels)
    require_class_numbers(labels, outputs, what)
    if not len(labels):
        raise ValueError(f"{what}: there must be at least one image; got no images.")
    if classes is None and whole and int(labels.max()) + 1 < outputs:
        raise ValueError(
            f"{what}: the network must have as many outputs as there are classes; got {outputs} outputs, labels up to "
            f"{int(labels.max())}. Build it with classes={int(labels.max()) + 1}, or call fit(..., classes={outputs}) "
            "if the other classes have no images."
        )
    if classes is not None and classes != outputs:
        raise ValueError(
            f"{what}: the network must have as many outputs as there are classes; got {outputs} outputs, {classes} "
            f"classes. Build it with classes={classes}."
        )
    return labels


def check_images(images: Any, shape: tuple[int | None, ...], normalized_here: bool, what: str) -> None:
    """Check the shape and the range of a sample of images.

    Args:
        images: `(N, ...)`, some of them.
        shape: The network's input shape, without the batch.
        normalized_here: Whether images are 0..255 and `fit` normalises them; otherwise they are the network's input.
        what: Name of the data in errors.

    Raises:
        ValueError: For another shape, order of axes, dtype or range, or values that are not finite.
    """
    images = np.asarray(images)
    given = images.shape[1:]
    if len(given) != len(shape) or any(b is not None and a != b for a, b in zip(given, shape, strict=True)):
        hint = ""
        if len(given) == 3 and len(shape) == 3 and given[0] == shape[-1] and given[-1] != shape[-1]:
            hint = channels_first()
        elif len(given) == len(shape) == 3 and given[0] != given[1] and given == (shape[1], shape[0], shape[2]):
            hint = f" {WIDTH_FIRST} Use np.swapaxes(images, 1, 2), or input_shape={given}."
        elif len(given) == len(shape) - 1 and shape[-1] == 1:
            hint = " The channel is missing: images[..., None]."
        elif len(given) == len(shape) and given[-1] != shape[-1]:
            hint = f" Build the network with input_shape=(..., {given[-1]}), or convert the images."
        raise ValueError(f"{what} must have the network's input shape, {shape}; got {given}.{hint}")
    if normalized_here:
        require_pixels(images, what, " If the network takes the values as they are, use preprocess=None.")
        return
    _, high = require_finite_numbers(images, what)
    if images.dtype.kind in "ui" and high > 1:
        raise ValueError(
            f"{what}: with preprocess=None, images must be the network's input, floats around 0 to 1; got "
            f"{images.dtype} up to {high:.0f}. Pass preprocess=(mean, std), or scale the images."
        )
    elif len(shape) == 3 and high > 100:
        raise ValueError(
            f"{what}: with preprocess=None, images must be the network's input, floats around 0 to 1; got values "
            f"up to {high:.6g}. Pass preprocess=(mean, std), or divide the images by 255."
        )


def check_batch(model: keras.Model, recipe: Recipe, batch_size: int, replicas: int = 1) -> None:
    """Check that a batch size can be used for training.

    Raises:
        ValueError: For a batch that does not divide among the devices, or of one image under batch normalisation.
    """
    if batch_size < 1 or batch_size % replicas:
        raise ValueError(
            f"batch_size must be positive and a multiple of the number of devices; got batch_size={batch_size} for "
            f"{replicas} devices."
        )
    norms = [layer for layer in layers_of(model) if isinstance(layer, keras.layers.BatchNormalization)]
    if batch_size == 1 and norms and recipe.batch_norm == "train" and any(layer.trainable for layer in norms):
        raise ValueError(
            f"batch_size must be at least 2 for networks with batch normalisation, which uses the variance over the "
            f"batch; got batch_size=1 for {model.name!r}, which has {len(norms)} such layers. Use a larger batch, "
            "freeze the statistics (batch_norm='frozen'), or build the network with norm=blocks.group_norm."
        )


def check_recipe(recipe: Recipe, shape: tuple[int | None, ...], normalized_here: bool) -> None:
    """Check that a recipe's augmentation can be applied to the images.

    Args:
        recipe: The recipe.
        shape: The network's input shape, without the batch.
        normalized_here: Whether images are 0..255 and `fit` normalises them; otherwise they are the network's input.

    Raises:
        ValueError: For CutMix, policies or erasing of inputs that are not images, or changes of colour of images whose
            range is not 0..255: solarising 0..1 at 128 would be silently wrong.
    """
    colours = {key: value for key, value in (("policy", recipe.policy), ("color_jitter", recipe.color_jitter)) if value}
    if len(shape) != 3 and (recipe.cutmix or recipe.erasing or any(recipe.affine) or colours):
        raise ValueError(
            "CutMix, policies, affine maps, colour jitter and erasing require images; got inputs of shape "
            f"{shape} for recipe {recipe.name!r}. Switch them off: recipe.replace(cutmix=0.0, policy=None, "
            "affine=(0, 0, 0), color_jitter=0.0, erasing=0.0)."
        )
    if colours and not normalized_here:
        given = ", ".join(f"{key}={value!r}" for key, value in colours.items())
        raise ValueError(
            f"Policies and colour jitter require images of 0..255; got recipe {recipe.name!r} with {given}, and images "
            "that are normalised already. Pass images of 0..255 with preprocess=(mean, std), or switch these off: "
            "recipe.replace(policy=None, color_jitter=0.0)."
        )


def check_size(recipe: Recipe, size: int | tuple[int | None, ...], shape: tuple[int | None, ...]) -> None:
    """Check that the recipe's image size is an input size of the network.

    Args:
        recipe: The recipe.
        size: Height and width, or one number for both.
        shape: The network's input shape, without the batch.

    Raises:
        ValueError: If neither recipe nor network has a size, or they differ.
    """
    size = (size, size) if isinstance(size, int) else size
    if None in size:
        raise ValueError(
            "The recipe must have an image size, because the network accepts any; use recipe.replace(size=224)."
        )
    if any(b is not None and a != b for a, b in zip(size, shape[:-1], strict=True)):
        if tuple(size) == shape[1::-1]:
            raise ValueError(
                f"The image size must be that of the network, {shape[:2]}; got {tuple(size)}. {WIDTH_FIRST}"
            )
        raise ValueError(
            f"The network must accept the recipe's image size; got recipe {recipe.name!r} with {size[0]} x {size[1]} "
            f"and a network for {shape}. Build it with input_shape=(None, None, 3) if it supports any size, or use "
            f"recipe.replace(size={shape[0]}, growth=())."
        )


def layers_of(model: keras.Model) -> list[Any]:
    """Return all layers, including nested ones."""
    return list(model._flatten_layers(include_self=False, recursive=True))


@contextlib.contextmanager
def readable(sources: list[Any], kept: Any) -> Iterator[None]:
    """Explain a failure of reading images as what it is: a file that was removed or changed after it was checked.

    Args:
        sources: What is read, training and validation.
        kept: Returns a sentence that says which weights are kept.

    Raises:
        OSError: With the names of those files.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        if "IteratorGetNext" not in str(error):
            raise
        stores = {id(store): store for data in sources if (store := getattr(data, "store", None)) is not None}
        changed = [name for store in stores.values() for name in store.changed()]
        which = ": " + ", ".join(map(repr, changed[:5])) + (", ..." if len(changed) > 5 else "") if changed else ""
        raise OSError(
            f"Images must stay as they are during training, but some could no longer be read{which}. {kept()} Restore "
            "them and start the same training again to resume, or start another one without them."
        ) from error
