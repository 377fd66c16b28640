"""Build the `tf.data` pipelines for training and evaluation from one split of a dataset."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_residual.data import sampling
from keras_residual.data.sampling import Crop, Flip, Views
from keras_residual.data.stores import Store
from keras_residual.weights import Preprocess, Weights, preprocessing

Geometry = int | tuple[int, int] | Weights | Preprocess


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Images with their class indices.

    Attributes:
        store: Store that contains the images.
        rows: `(n,)`: indices of these images in the store.
        labels: `(n,)` int32: class indices.
        names: Name of each image; the path if it is a file.
    """

    store: Store
    rows: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray[Any, Any], int]:
        """Return the full image `(height, width, channels)`, uint8, upright, and its label."""
        place = int(self.rows[index])
        with tf.device("CPU:0"):
            image = self._upright(tf.constant(place, tf.int32))
        return image.numpy(), int(self.labels[index])

    @property
    def channels(self) -> int:
        """Return the number of channels of every image."""
        return self.store.channels

    def sizes(self) -> np.ndarray[Any, Any]:
        """Return the height and width of every image, upright: `(n, 2)`."""
        table = self.store.table.numpy()[self.rows]
        return np.where(table[:, 3:4] > 0, table[:, 2:0:-1], table[:, 1:3])

    def take(self, indices: Sequence[int] | np.ndarray[Any, Any]) -> Examples:
        """Select examples by index, in the given order."""
        indices = np.asarray(indices, "int64")
        return Examples(self.store, self.rows[indices], self.labels[indices], tuple(self.names[i] for i in indices))

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of full batches in an epoch.

        Raises:
            ValueError: If there are fewer images than one batch.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer; got {batch_size}.")
        if len(self) < batch_size:
            raise ValueError(
                "batch_size must be at most the number of training images, because training uses only full batches; "
                f"got batch_size={batch_size} for {len(self)} images. Use a smaller batch_size."
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
        flip: Flip = Views.flip,
        fill: Sequence[float] | None = None,
        deterministic: bool = True,
        part: tuple[int, int] = (0, 1),
    ) -> tf.data.Dataset:
        """Return an infinite dataset of full training batches.

        A batch consists of images `(B, height, width, C)` uint8 and labels `(B,)` int32. Each epoch has a different
        order, and its last `len(self) % batch_size` images are dropped. Order, crop and flip depend only on the seed,
        the epoch and the position in the epoch, so a dataset with `start=k` continues exactly after the first k
        batches. Only the cropped part of a JPEG is decoded, and the decoder scales it down if it is much larger than
        `size`; then it is resized as described in `_resized`.

        Args:
            batch_size: Number of images per batch.
            size: Height and width of the images, or one number for both.
            seed: Random seed, 0 to 2**32 - 1.
            start: First step, counted from the beginning of training.
            crop: `"random"`, `"center"`, `"squash"`, `"pad"` or `"letterbox"`. This and the next five are described
                in `sampling.Views`.
            scale: Smallest and largest fraction of the area of a random crop.
            ratio: Smallest and largest width / height of a random crop.
            padding: Pixels on each side for `"pad"`; by default an eighth of the size.
            flip: Whether half of the images are mirrored left to right; or `"horizontal"`, `"vertical"`, `"both"` or
                `"none"`.
            fill: For `"letterbox"`: color of each channel, 0 to 255; by default as in evaluation, the mean of
                ImageNet.
            deterministic: Whether to keep the order of the images. If not, a slow image does not delay others.
            part: `(i, n)`: return the i-th of n equal parts of each batch, for one of n processes.

        Raises:
            ValueError: If there are fewer images than one batch, or an argument is out of range.
        """
        steps = self.steps_per_epoch(batch_size)
        size = height_and_width(size)
        padding = min(size) // 8 if padding is None else padding
        views = Views(size, crop, scale, ratio, padding, flip, self._fill(size, fill))
        if not 0 <= seed < 1 << 32:
            raise ValueError(f"seed must be an integer from 0 to 2**32 - 1; got {seed}.")
        if not 0 <= start < steps << 31:
            raise ValueError(f"start must be the index of a step, from 0 to {(steps << 31) - 1:,}; got {start}.")
        if not 0 <= part[0] < part[1] or batch_size % part[1]:
            raise ValueError(
                f"part must be (i, n), with 0 <= i < n and n a divisor of the batch size {batch_size}; got {part}."
            )
        each = batch_size // part[1]
        data: Any = sampling.positions(len(self), batch_size, seed, start)
        if part[1] > 1:
            data = data.filter(_plain(lambda place, position, noise: position % batch_size // each == part[0]))
        rows, labels = self._tensors()

        def planned(place: Any, position: Any, noise: Any) -> Any:
            return *self._planned(views, tf.gather(rows, place), noise), tf.gather(labels, place)

        def rendered(*plan: Any) -> Any:
            return self._rendered(views, *plan[:-1]), plan[-1]

        # Planning a chunk of images at once is cheaper than one at a time.
        data = data.batch(sampling.CHUNK).map(_plain(planned)).unbatch()
        data = data.map(_plain(rendered), tf.data.AUTOTUNE, deterministic)
        data = data.batch(each, drop_remainder=True)
        data = data.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return data.with_options(_options(deterministic)).prefetch(tf.data.AUTOTUNE)

    def evaluation(self, batch_size: int, size: Geometry) -> tf.data.Dataset:
        """Return a dataset of all images, once and in order; the last batch may be smaller.

        A batch consists of images `(B, height, width, C)` uint8 and labels `(B,)` int32. Images are resized and cropped
        as in `keras_residual.preprocessing`, but not normalized by its mean and standard deviation.

        Args:
            batch_size: Number of images per batch.
            size: A `Preprocess` layer or the record of a checkpoint, to resize and crop accordingly; or the height and
                width, to use the defaults of `Preprocess`.

        Raises:
            ValueError: If `batch_size` is not positive or `size` is invalid.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size must be a positive integer; got {batch_size}.")
        layer = geometry(size, self.channels)
        shape = (*layer.size, self.channels)
        rows, labels = self._tensors()

        def rendered(i: Any) -> Any:
            image = self._upright(tf.gather(rows, i))
            if keras.backend.backend() == "tensorflow":
                image = _cropped(layer, image)
            else:  # with other backends, Keras operations cannot run in a tf.data graph
                image = tf.numpy_function(lambda x: np.asarray(_cropped(layer, x)), [image], tf.uint8)
            return tf.ensure_shape(image, shape), tf.gather(labels, i)

        data = tf.data.Dataset.range(len(self)).map(_plain(rendered), tf.data.AUTOTUNE, deterministic=True)
        return data.batch(batch_size).with_options(_options(True)).prefetch(tf.data.AUTOTUNE)

    def _tensors(self) -> tuple[Any, Any]:
        with tf.device("CPU:0"):
            return tf.constant(self.rows, tf.int32), tf.constant(self.labels, tf.int32)

    def _fill(self, size: tuple[int, int], given: Sequence[float] | None) -> tuple[float, ...]:
        """Return the color around letterboxed images."""
        fill = np.ravel(geometry(size, self.channels).fill if given is None else given)
        if len(fill) not in (1, self.channels) or not np.all((fill >= 0) & (fill <= 255)):
            raise ValueError(f"fill must have one number of 0..255 for each of {self.channels} channels; got {given}.")
        return tuple(map(float, fill))

    def _planned(self, views: Views, row: Any, noise: Any) -> tuple[Any, ...]:
        """Return, for many images, the row, the window, how to read it, its new size, the turns and the shift."""
        _, height, width, transpose, upside_down, mirrored = self.store.facts(row)
        upright = tf.where(transpose, width, height), tf.where(transpose, height, width)
        window = sampling.windows(views, *upright, noise)
        target = sampling.targets(views, *upright)
        window = sampling.as_stored(window, height, width, transpose, upside_down, mirrored)
        window, way = self.store.ways(row, window, views.size)
        vertical, horizontal = sampling.flips(views.flip)
        if horizontal:
            mirrored = tf.math.logical_xor(mirrored, noise[:, 2] < 0.5)
        if vertical:
            upside_down = tf.math.logical_xor(upside_down, noise[:, 3] < 0.5)
        turns = tf.stack([transpose, upside_down, mirrored], -1)
        shift = tf.cast(noise[:, :2] * float(2 * views.padding + 1), tf.int32)
        return row, window, way, target, turns, shift

    def _rendered(self, views: Views, row: Any, window: Any, way: Any, target: Any, turns: Any, shift: Any) -> Any:
        """Return one training image: read, resized, turned and shifted as planned."""
        image = self.store.part(row, window, way)
        transposed = self.store.transposed
        image = _resized(image, tf.where(turns[0], target[::-1], target) if transposed else target)
        image = _turned(image, turns, transposed)
        if views.crop == "letterbox":
            image = _filled(image, views)
        if views.crop == "pad" and views.padding:
            p = views.padding
            image = tf.pad(image, [(p, p), (p, p), (0, 0)], "REFLECT")
            image = tf.slice(image, tf.pad(shift, [(0, 1)]), (*views.size, self.channels))
        return tf.ensure_shape(image, (*views.size, self.channels))

    def _upright(self, row: Any) -> Any:
        """Return one full image, upright."""
        image = self.store.whole(row)
        if not self.store.turned:
            return image
        return _turned(image, tf.stack(self.store.facts(row)[3:]), self.store.transposed)


def _turned(image: Any, turns: Any, transposed: bool) -> Any:
    """Transpose (only if `transposed`), flip upside down and mirror an image, each if its flag in `turns` is set."""
    if transposed:
        image = tf.cond(turns[0], lambda: tf.transpose(image, (1, 0, 2)), lambda: tf.identity(image))
    turn = tf.reduce_any(turns[1:])  # flipping costs as much as three copies
    return tf.cond(turn, lambda: tf.reverse(image, tf.boolean_mask([0, 1], turns[1:])), lambda: tf.identity(image))


def _filled(image: Any, views: Views) -> Any:
    """Pad an image evenly to the size of the view; an odd pixel is placed as in `Preprocess`."""
    missing = tf.constant(views.size) - tf.shape(image)[:2]
    before = missing // 2
    fill = tf.cast(tf.constant(views.fill), image.dtype)
    padded = tf.pad(image, tf.pad(tf.stack([before, missing - before], -1), [(0, 1), (0, 0)]))
    inside = tf.pad(tf.ones(tf.shape(image)[:2], tf.bool), tf.stack([before, missing - before], -1))
    return tf.where(tf.expand_dims(inside, -1), padded, fill)


def _plain(function: Any) -> Any:
    """Exclude a function from AutoGraph conversion, which it does not need as it has no Python control flow."""
    return tf.autograph.experimental.do_not_convert(function)


def geometry(size: Geometry, channels: int = 3) -> Preprocess:
    """Return a `Preprocess` layer that resizes and crops as required, but with a standard deviation of 1."""
    if isinstance(size, Weights):
        size = preprocessing(size)
    if not isinstance(size, Preprocess):
        size = Preprocess(height_and_width(size))
    mean = size.mean if len(size.mean) == channels else (sum(size.mean) / len(size.mean),) * channels
    return Preprocess(size.size, mean, (1.0,) * channels, size.crop, size.crop_mode, size.interpolation)


def height_and_width(size: Any) -> tuple[int, int]:
    """Return a size as height and width.

    Raises:
        ValueError: If it is neither one positive integer nor two of them.
    """
    pair = (size, size) if isinstance(size, (int, np.integer)) else size
    if (
        not isinstance(pair, (tuple, list))
        or len(pair) != 2
        or not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n > 0 for n in pair)
    ):
        raise ValueError(
            f"size must be one positive integer, or (height, width) in pixels; got {size!r}. The size of a PIL image "
            "is (width, height): use image.size[::-1]."
        )
    return int(pair[0]), int(pair[1])


def _cropped(layer: Preprocess, image: Any) -> Any:
    mean = keras.ops.convert_to_tensor(layer.mean, "float32")
    return keras.ops.cast(keras.ops.round((layer.call(image) + mean) * 255.0), "uint8")


def _resized(image: Any, size: Any) -> Any:
    """Resize `(height, width, C)` to a size, as uint8: bilinear, after area resizing if it shrinks by more than 1.5.

    Up to that factor, plain bilinear resizing is as close to Pillow's bicubic as Pillow's bilinear is; beyond it, it
    ignores pixels. Both are several times faster than `tf.image.resize(antialias=True)`.
    """
    shape = tf.shape(image)[:2]
    image = tf.cast(image[None], tf.float32)  # the float kernels are faster

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
    # `part` or the distribution strategy divides the images; TensorFlow must not rewrite the pipeline for that.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options
