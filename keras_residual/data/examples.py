"""One split of a data set, and the `tf.data` pipelines that training and evaluation read it by."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_residual.data import sampling
from keras_residual.data.sampling import Crop, Views
from keras_residual.data.stores import Store
from keras_residual.weights import Preprocess, Weights, preprocessing

Geometry = int | tuple[int, int] | Weights | Preprocess


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Images and the numbers of their classes.

    Attributes:
        store: Where the pixels are.
        rows: `(n,)`: which of the store's images these are.
        labels: `(n,)` int32.
        names: Name of each image: its path where it is a file.
    """

    store: Store
    rows: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], int]:
        """The image `(height, width, channels)`, uint8, upright and whole, and its label."""
        place = int(self.rows[index])
        with tf.device("CPU:0"):
            image = self._upright(tf.constant(place, tf.int32))
        return image.numpy(), int(self.labels[index])

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.store.channels

    def take(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> Examples:
        """Some of the examples, in the given order."""
        indices = np.asarray(indices, "int64")
        return Examples(self.store, self.rows[indices], self.labels[indices], tuple(self.names[i] for i in indices))

    def steps_per_epoch(self, batch_size: int) -> int:
        """Full batches in an epoch.

        Raises:
            ValueError: If there is not even one.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is a positive number. Received: {batch_size}.")
        if len(self) < batch_size:
            raise ValueError(
                f"Training takes full batches, so a batch has at most as many images as there are. Received: "
                f"batch_size={batch_size} for {len(self)} images. Take a smaller batch."
            )
        return len(self) // batch_size

    def training(
        self,
        batch_size: int,
        size: int | tuple[int, int],
        *,
        seed: int = 0,
        start: int = 0,
        crop: Crop = Views.crop,
        scale: tuple[float, float] = Views.scale,
        ratio: tuple[float, float] = Views.ratio,
        padding: int | None = None,
        flip: bool = Views.flip,
        deterministic: bool = True,
        part: tuple[int, int] = (0, 1),
    ) -> tf.data.Dataset:
        """Endless batches for training, all full: images `(B, height, width, C)` uint8, labels `(B,)` int32.

        Each epoch has an order of its own, from which the remainder that fills no batch is left out. Order, crop and
        flip are a function of the seed, the epoch and the position in it alone: what begins at `start=k` is exactly
        what follows the first k batches. Parts of JPEGs are decoded, not whole ones, scaled down by the decoder where
        they are much larger than `size`; then resized, as `_resized` says.

        Args:
            batch_size: Images in a batch.
            size: Height and width of the images, or one number for both.
            seed: 0 to 2**32 - 1.
            start: The step to begin at, counted from the beginning of training.
            crop: `"random"`, `"center"`, `"squash"` or `"pad"`, as in `sampling.Views`, and likewise the next three.
            scale: Part of the area that a random crop takes.
            ratio: Width / height of a random crop.
            padding: Pixels on each side for `"pad"`; by default an eighth of the size.
            flip: Whether half of the images are mirrored left to right.
            deterministic: Whether images come in order; if not, one that is slow to read does not hold up others.
            part: `(i, n)`: the i-th of n equal parts of each batch, for one of n processes.

        Raises:
            ValueError: If there are fewer images than a batch has, or an argument is out of its range.
        """
        steps = self.steps_per_epoch(batch_size)
        size = height_and_width(size)
        views = Views(size, crop, scale, ratio, min(size) // 8 if padding is None else padding, flip)
        if not 0 <= seed < 1 << 32:
            raise ValueError(f"seed is a number from 0 to 2**32 - 1. Received: {seed}.")
        if not 0 <= start < steps << 31:
            raise ValueError(f"start is the number of a step, from 0 on. Received: {start}.")
        if not 0 <= part[0] < part[1] or batch_size % part[1]:
            raise ValueError(
                f"part (i, n) is one of n equal parts of {batch_size} images, 0 <= i < n. Received: {part}."
            )
        each = batch_size // part[1]
        data: Any = sampling.positions(len(self), batch_size, seed, start)
        if part[1] > 1:
            data = data.filter(_plain(lambda place, position, noise: position % batch_size // each == part[0]))
        rows, labels = self._tensors()

        def planned(place: Any, position: Any, noise: Any) -> Any:
            return *self._planned(views, tf.gather(rows, place), noise), tf.gather(labels, place)

        def seen(row: Any, window: Any, way: Any, turns: Any, shift: Any, label: Any) -> Any:
            return self._seen(views, row, window, way, turns, shift), label

        # planned many at a time, before anything is read
        data = data.batch(sampling.CHUNK).map(_plain(planned)).unbatch()
        data = data.map(_plain(seen), tf.data.AUTOTUNE, deterministic)
        data = data.batch(each, drop_remainder=True)
        data = data.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return data.with_options(_options(deterministic)).prefetch(tf.data.AUTOTUNE)

    def evaluation(self, batch_size: int, size: Geometry) -> tf.data.Dataset:
        """All images once, in order: images `(B, height, width, C)` uint8, labels `(B,)` int32; the last batch may be
        smaller.

        The geometry is that of `keras_residual.preprocessing`; its mean and standard deviation are not applied.

        Args:
            batch_size: Images in a batch.
            size: A `Preprocess` layer or a checkpoint's record, for resizing and cropping as they say; or the height
                and width, for `Preprocess`' own defaults.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is a positive number. Received: {batch_size}.")
        layer = geometry(size, self.channels)
        shape = (*layer.size, self.channels)
        rows, labels = self._tensors()

        def seen(i: Any) -> Any:
            image = self._upright(tf.gather(rows, i))
            if keras.backend.backend() == "tensorflow":
                image = _cropped(layer, image)
            else:  # Keras' operations are not TensorFlow's then
                image = tf.numpy_function(lambda x: np.asarray(_cropped(layer, x)), [image], tf.uint8)
            return tf.ensure_shape(image, shape), tf.gather(labels, i)

        data = tf.data.Dataset.range(len(self)).map(_plain(seen), tf.data.AUTOTUNE, deterministic=True)
        return data.batch(batch_size).with_options(_options(True)).prefetch(tf.data.AUTOTUNE)

    def _tensors(self) -> tuple[Any, Any]:
        with tf.device("CPU:0"):
            return tf.constant(self.rows, tf.int32), tf.constant(self.labels, tf.int32)

    def _planned(self, views: Views, row: Any, noise: Any) -> tuple[Any, ...]:
        """For many images: the row, the part of the file, how to read it, how to turn it, the shift."""
        _, height, width, transpose, upside_down, mirrored = self.store.facts(row)
        upright = tf.where(transpose, width, height), tf.where(transpose, height, width)
        window = sampling.windows(views, *upright, noise)
        window = sampling.as_stored(window, height, width, transpose, upside_down, mirrored)
        window, way = self.store.ways(row, window, views.size)
        if views.flip:
            mirrored = tf.math.logical_xor(mirrored, noise[:, 2] < 0.5)
        turns = tf.stack([transpose, upside_down, mirrored], -1)
        shift = tf.cast(noise[:, :2] * float(2 * views.padding + 1), tf.int32)
        return row, window, way, turns, shift

    def _seen(self, views: Views, row: Any, window: Any, way: Any, turns: Any, shift: Any) -> Any:
        """One image as training sees it."""
        image = self.store.part(row, window, way)
        transposed = self.store.transposed
        image = _resized(image, tf.where(turns[0], views.size[::-1], views.size) if transposed else views.size)
        image = _turned(image, turns, transposed)
        if views.crop == "pad" and views.padding:
            p = views.padding
            image = tf.pad(image, [(p, p), (p, p), (0, 0)], "REFLECT")
            image = tf.slice(image, tf.pad(shift, [(0, 1)]), (*views.size, self.channels))
        return tf.ensure_shape(image, (*views.size, self.channels))

    def _upright(self, row: Any) -> Any:
        """One image, whole."""
        image = self.store.whole(row)
        if not self.store.turned:
            return image
        return _turned(image, tf.stack(self.store.facts(row)[3:]), self.store.transposed)


def _turned(image: Any, turns: Any, transposed: bool) -> Any:
    """Transposes, turns upside down and mirrors an image as three flags say; the first only if `transposed`."""
    if transposed:
        image = tf.cond(turns[0], lambda: tf.transpose(image, (1, 0, 2)), lambda: tf.identity(image))
    turn = tf.reduce_any(turns[1:])  # to turn costs as much as to copy three times
    return tf.cond(turn, lambda: tf.reverse(image, tf.boolean_mask([0, 1], turns[1:])), lambda: tf.identity(image))


def _plain(function: Any) -> Any:
    """Spares TensorFlow looking for Python's own control flow, of which there is none."""
    return tf.autograph.experimental.do_not_convert(function)


def geometry(size: Geometry, channels: int = 3) -> Preprocess:
    """The layer that resizes and crops as a checkpoint wants it, but does not normalise."""
    if isinstance(size, Weights):
        size = preprocessing(size)
    if not isinstance(size, Preprocess):
        size = Preprocess(height_and_width(size))
    mean = size.mean if len(size.mean) == channels else (sum(size.mean) / len(size.mean),) * channels
    return Preprocess(size.size, mean, (1.0,) * channels, size.crop, size.crop_mode, size.interpolation)


def height_and_width(size: Any) -> tuple[int, int]:
    """Return a size as height and width.

    Raises:
        ValueError: If it is neither one positive whole number nor two of them.
    """
    pair = (size, size) if isinstance(size, (int, np.integer)) else size
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in pair)
    ):
        raise ValueError(
            f"size must be one positive number of pixels, or (height, width), as arrays have them. Received: {size!r}. "
            "The size of a PIL image is (width, height): use image.size[::-1]."
        )
    return int(pair[0]), int(pair[1])


def _cropped(layer: Preprocess, image: Any) -> Any:
    mean = keras.ops.convert_to_tensor(layer.mean, "float32")
    return keras.ops.cast(keras.ops.round((layer.call(image) + mean) * 255.0), "uint8")


def _resized(image: Any, size: Any) -> Any:
    """`(height, width, C)` -> size, uint8: bilinear, where it shrinks by half as much again by area first.

    Up to that factor plain bilinear is as near to Pillow's bicubic as Pillow's bilinear is; beyond, it leaves out
    pixels. Either is several times faster than `tf.image.resize(antialias=True)`.
    """
    shape = tf.shape(image)[:2]
    image = tf.cast(image[None], tf.float32)  # the kernels for floats are the faster ones

    def bilinear(x: Any) -> Any:
        return tf.raw_ops.ResizeBilinear(images=x, size=size, half_pixel_centers=True)[0]

    x = tf.cond(
        tf.reduce_any(2 * shape > 3 * tf.convert_to_tensor(size)),
        lambda: bilinear(tf.raw_ops.ResizeArea(images=image, size=tf.minimum(shape, size))),
        lambda: bilinear(image),
    )
    return tf.cast(tf.round(x), tf.uint8)


def _options(deterministic: bool) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = deterministic
    # images are divided by `part` or by the strategy, not by rewriting the pipeline
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
