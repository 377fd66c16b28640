"""Plan the order, crop and flip of every training image as a pure function of seed, epoch and position.

The functions are stateless, so that a run resumed at step k uses exactly the same images as an uninterrupted one.
Everything is planned for many images at once, before any file is read.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import tensorflow as tf

Crop = Literal["random", "center", "squash", "pad", "letterbox"]
Flip = bool | Literal["none", "horizontal", "vertical", "both"]
FLIPS = ("none", "horizontal", "vertical", "both")
CHUNK = 256  # images planned at once; changing it changes the random numbers, unlike changing the batch size
_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Views:
    """Settings for cropping, resizing and flipping training images.

    Attributes:
        size: Height and width of the result.
        crop: `"random"` crops a random area and aspect ratio (as in Inception and torchvision); `"center"` crops the
            largest central part with the aspect ratio of `size`; `"squash"` resizes the full image, ignoring its
            aspect ratio; `"pad"` does the same, then pads by reflection and crops at a random position (as for CIFAR);
            `"letterbox"` resizes the full image, keeping its aspect ratio, and fills the rest with `fill`.
        scale: For `"random"`: smallest and largest fraction of the image area; with (1, 1) nothing is random, and the
            crop is that of `"center"`.
        ratio: For `"random"`: smallest and largest width / height of the crop.
        padding: For `"pad"`: pixels on each side.
        flip: Whether half of the images are mirrored left to right; or `"horizontal"`, `"vertical"`, `"both"` or
            `"none"`.
        fill: For `"letterbox"`: color of each channel, 0 to 255.
    """

    size: tuple[int, int]
    crop: Crop = "random"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: int = 4
    flip: Flip = True
    fill: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        check_crop(self.crop, self.scale)
        check_flip(self.flip)
        if min(self.size) < 1:
            raise ValueError(f"size must be a height and a width of at least 1; got {self.size}.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio must be the smallest and largest width / height; got {self.ratio}.")
        if not 0 <= self.padding < min(self.size):
            raise ValueError(
                f"padding must be at least 0 and less than the size, {min(self.size)}; got {self.padding}."
            )


def check_crop(crop: str, scale: tuple[float, float], prefix: str = "") -> None:
    """Check that a crop mode exists and its scale is valid.

    Args:
        crop: One of `Crop`.
        scale: Smallest and largest fraction of the image area.
        prefix: Prefix of the argument names in error messages, for the arguments of a recipe.

    Raises:
        ValueError: If the crop mode is unknown or the scale is not within (0, 1].
    """
    if crop not in get_args(Crop):
        raise ValueError(f"{prefix}crop must be one of {', '.join(map(repr, get_args(Crop)))}; got {crop!r}.")
    pair = isinstance(scale, tuple | list) and len(scale) == 2 and all(isinstance(part, int | float) for part in scale)
    if not (pair and 0 < scale[0] <= scale[1] <= 1):
        name = f"{prefix}crop_scale" if prefix else "scale"
        raise ValueError(f"{name} must be the smallest and largest fraction of the area, in (0, 1]; got {scale}.")


def check_flip(flip: Any, prefix: str = "") -> None:
    """Check that a way to flip exists.

    Raises:
        ValueError: If it is not one of `Flip`.
    """
    if not isinstance(flip, bool) and flip not in FLIPS:
        raise ValueError(f"{prefix}flip must be one of {', '.join(map(repr, FLIPS))}, or a boolean; got {flip!r}.")


def flips(flip: Flip) -> tuple[bool, bool]:
    """Return whether images are flipped upside down, and whether they are mirrored left to right."""
    return flip in ("vertical", "both"), flip in (True, "horizontal", "both")


def positions(count: int, batch_size: int, seed: int, start: int) -> tf.data.Dataset:
    """Return an infinite dataset of `(place, position, noise)`.

    Each element consists of the index of an image, its position in the epoch, and random numbers for it.

    Args:
        count: Number of images.
        batch_size: Batch size; the last `count % batch_size` images of each epoch are dropped.
        seed: Random seed, 0 to 2**32 - 1.
        start: First step.
    """
    each = count // batch_size * batch_size
    first, skipped = divmod(start * batch_size, each)

    def chunks(epoch: Any) -> tf.data.Dataset:
        order = _order(count, seed, epoch)

        def chunk(number: Any) -> Any:
            position = tf.range(number * CHUNK, tf.minimum((number + 1) * CHUNK, each))
            noise = _uniform((CHUNK, 4 + 3 * _ATTEMPTS), seed, epoch, 1 + number)[: tf.size(position)]
            return tf.gather(order, position), position, noise

        begin = tf.where(epoch == first, tf.constant(skipped // CHUNK, tf.int64), 0)
        return tf.data.Dataset.range(begin, -(-each // CHUNK)).map(plain(chunk))

    plain = tf.autograph.experimental.do_not_convert
    return tf.data.Dataset.range(first, 1 << 31).flat_map(plain(chunks)).unbatch().skip(skipped % CHUNK)


def _order(count: int, seed: int, epoch: Any) -> Any:
    uniform: Any = tf.random.stateless_uniform  # without bounds: over the full int64 range
    keys = uniform((count,), _seeds(seed, epoch, 0), minval=None, maxval=None, dtype=tf.int64, alg="philox")
    return tf.argsort(keys, stable=True)


def _uniform(shape: tuple[int, ...], seed: int, epoch: Any, stream: Any) -> Any:
    return tf.random.stateless_uniform(shape, _seeds(seed, epoch, stream), alg="philox")


def _seeds(seed: int, epoch: Any, stream: Any) -> Any:
    """Return a seed pair that is unique for each epoch and stream (fewer than 2**32)."""
    return tf.stack([tf.constant(seed, tf.int64), tf.bitwise.left_shift(epoch, 32) + stream])


def windows(views: Views, height: Any, width: Any, noise: Any) -> Any:
    """Return the crop windows of upright images with `(N,)` heights and widths.

    Returns:
        `(N, 4)` int32: top, left, height and width of each window.
    """
    if views.crop in ("squash", "pad", "letterbox"):
        return tf.stack([tf.zeros_like(height), tf.zeros_like(width), height, width], -1)
    tall, wide = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    if views.crop == "center" or views.scale[0] == 1:
        return _middle(height, width, tall, wide, *(2 * (views.size[1] / views.size[0],)))
    lowest, highest = views.ratio
    area_noise, ratio_noise, _ = tf.unstack(tf.reshape(noise[:, 4:], (-1, 3, _ATTEMPTS)), axis=1)
    area = (tall * wide)[:, None] * (views.scale[0] + (views.scale[1] - views.scale[0]) * area_noise)
    ratio = tf.exp(tf.math.log(lowest) + (tf.math.log(highest) - tf.math.log(lowest)) * ratio_noise)
    w = tf.cast(tf.round(tf.sqrt(area * ratio)), tf.int32)
    h = tf.cast(tf.round(tf.sqrt(area / ratio)), tf.int32)
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    chosen = tf.argmax(fits, -1)  # the first that fits
    w, h = tf.gather(w, chosen, batch_dims=1), tf.gather(h, chosen, batch_dims=1)
    top = tf.cast(noise[:, 0] * tf.cast(height - h + 1, tf.float32), tf.int32)
    left = tf.cast(noise[:, 1] * tf.cast(width - w + 1, tf.float32), tf.int32)
    found = tf.stack([tf.minimum(top, height - h), tf.minimum(left, width - w), h, w], -1)
    return tf.where(tf.reduce_any(fits, -1)[:, None], found, _middle(height, width, tall, wide, lowest, highest))


def _middle(height: Any, width: Any, tall: Any, wide: Any, lowest: float, highest: float) -> Any:
    """Return the largest central window whose width / height is within bounds."""
    h = tf.clip_by_value(tf.cast(tf.round(wide / lowest), tf.int32), 1, height)
    w = tf.clip_by_value(tf.cast(tf.round(tall * highest), tf.int32), 1, width)
    return tf.stack([(height - h) // 2, (width - w) // 2, h, w], -1)


def targets(views: Views, height: Any, width: Any) -> Any:
    """Return the sizes to which the windows of upright images with `(N,)` heights and widths are resized: `(N, 2)`."""
    if views.crop != "letterbox":
        return tf.broadcast_to(tf.constant(views.size), (tf.size(height), 2))
    sides = tf.cast(tf.stack([height, width], -1), tf.float64)  # the same operations as in `Preprocess`
    ratio = tf.reduce_max(sides / tf.constant(views.size, tf.float64), -1, keepdims=True)
    return tf.maximum(tf.cast(tf.round(sides / ratio), tf.int32), 1)


def as_stored(window: Any, height: Any, width: Any, transpose: Any, upside_down: Any, mirrored: Any) -> Any:
    """Convert `(N, 4)` windows of upright images to windows of the stored images, with the stored height and width."""
    top, left, h, w = tf.unstack(window, axis=-1)
    tall, wide = tf.where(transpose, width, height), tf.where(transpose, height, width)
    top = tf.where(upside_down, tall - top - h, top)
    left = tf.where(mirrored, wide - left - w, left)
    return tf.where(transpose[:, None], tf.stack([left, top, w, h], -1), tf.stack([top, left, h, w], -1))
