"""What training sees when: order, crop and flip of every image as a pure function of seed, epoch and position.

Nothing here has a state, so that a run that starts at step k sees exactly what an uninterrupted one would. Everything
is planned for many images at once, before anything is read.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args

import tensorflow as tf

Crop = Literal["random", "center", "squash", "pad"]
CHUNK = 256  # images planned at once; part of the definition of the random numbers, the batch is not
_ATTEMPTS = 10


@dataclasses.dataclass(frozen=True)
class Views:
    """How training looks at an image.

    Attributes:
        size: Height and width of the result.
        crop: `"random"` cuts out a part of random size and shape (Inception's, as in torchvision); `"center"` the
            largest middle part of the right shape; `"squash"` takes all, not keeping its shape; `"pad"` does so too,
            then reflects the edges outward and cuts out at a random place (as the CIFAR networks do).
        scale: For `"random"`: least and largest part of the image's area.
        ratio: For `"random"`: least and largest width / height of the part.
        padding: For `"pad"`: pixels on each side.
        flip: Whether half of the images are mirrored left to right.
    """

    size: tuple[int, int]
    crop: Crop = "random"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: int = 4
    flip: bool = True

    def __post_init__(self) -> None:
        check_crop(self.crop, self.scale)
        if min(self.size) < 1:
            raise ValueError(f"size is a height and a width of at least 1. Received: {self.size}.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is the least and largest width / height. Received: {self.ratio}.")
        if not 0 <= self.padding < min(self.size):
            raise ValueError(f"padding is less than the size, {min(self.size)} here. Received: {self.padding}.")


def check_crop(crop: str, scale: tuple[float, float], prefix: str = "") -> None:
    """Raise unless a crop is one that there is, and its scale is within the image.

    Args:
        crop: One of `Crop`.
        scale: Least and largest part of the image's area.
        prefix: Of the arguments' names, where they are a recipe's.

    Raises:
        ValueError: If not.
    """
    if crop not in get_args(Crop):
        raise ValueError(f"{prefix}crop must be one of {', '.join(map(repr, get_args(Crop)))}; got {crop!r}.")
    if not (len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1):
        name = f"{prefix}crop_scale" if prefix else "scale"
        raise ValueError(f"{name} must be the least and largest part of the area, in (0, 1]; got {scale}.")


def positions(count: int, batch_size: int, seed: int, start: int) -> tf.data.Dataset:
    """Endless `(place, position, noise)`: which image comes at which position of its epoch, and random numbers for it.

    Args:
        count: Number of images.
        batch_size: The last `count % batch_size` images of each epoch's order are left out.
        seed: The seed, 0 to 2**32 - 1.
        start: The step to begin at.
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
    uniform: Any = tf.random.stateless_uniform  # over all numbers, without bounds
    keys = uniform((count,), _seeds(seed, epoch, 0), minval=None, maxval=None, dtype=tf.int64, alg="philox")
    return tf.argsort(keys, stable=True)


def _uniform(shape: tuple[int, ...], seed: int, epoch: Any, stream: Any) -> Any:
    return tf.random.stateless_uniform(shape, _seeds(seed, epoch, stream), alg="philox")


def _seeds(seed: int, epoch: Any, stream: Any) -> Any:
    """Different for each epoch and stream (fewer than 2**32)."""
    return tf.stack([tf.constant(seed, tf.int64), tf.bitwise.left_shift(epoch, 32) + stream])


def windows(views: Views, height: Any, width: Any, noise: Any) -> Any:
    """`(N,)` heights and widths of upright images -> `(N, 4)` int32: top, left, height and width of what is seen."""
    if views.crop in ("squash", "pad"):
        return tf.stack([tf.zeros_like(height), tf.zeros_like(width), height, width], -1)
    tall, wide = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    if views.crop == "center":
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
    """The largest part in the middle whose width / height is within bounds."""
    h = tf.clip_by_value(tf.cast(tf.round(wide / lowest), tf.int32), 1, height)
    w = tf.clip_by_value(tf.cast(tf.round(tall * highest), tf.int32), 1, width)
    return tf.stack([(height - h) // 2, (width - w) // 2, h, w], -1)


def as_stored(window: Any, height: Any, width: Any, transpose: Any, upside_down: Any, mirrored: Any) -> Any:
    """`(N, 4)` windows of upright images -> where these pixels lie in the files; height and width are the files'."""
    top, left, h, w = tf.unstack(window, axis=-1)
    tall, wide = tf.where(transpose, width, height), tf.where(transpose, height, width)
    top = tf.where(upside_down, tall - top - h, top)
    left = tf.where(mirrored, wide - left - w, left)
    return tf.where(transpose[:, None], tf.stack([left, top, w, h], -1), tf.stack([top, left, h, w], -1))
