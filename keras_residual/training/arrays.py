"""Training data in NumPy arrays of any rank, with the methods of `keras_residual.data.Examples`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from keras_residual.checking import class_numbers
from keras_residual.data.objects import collect, kind_of
from keras_residual.data.sampling import Flip, flips
from keras_residual.training.recipes import Recipe

__all__ = ["Arrays", "read"]


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """Images (signals, vectors) `(N, ...)` and their classes `(N,)`."""

    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.images)

    def steps_per_epoch(self, batch_size: int) -> int:
        """Return the number of full batches in an epoch.

        Raises:
            ValueError: If there is not one full batch.
        """
        if len(self) < batch_size:
            raise ValueError(
                f"batch_size must be at most the number of images, because training uses full batches only; got "
                f"batch_size={batch_size} for {len(self)} images. Use a smaller batch."
            )
        return len(self) // batch_size

    def training(
        self,
        batch_size: int,
        size: Any = None,
        *,
        seed: int = 0,
        start: int = 0,
        part: tuple[int, int] = (0, 1),
        flip: Flip = False,
        padding: int = 0,
    ) -> tf.data.Dataset:
        """Yield full batches without end; the order of each epoch is a function of (seed, epoch) only.

        `start=k` skips the first k batches without reading them. `flip` and `padding`
        (shifts by up to so many pixels, edges reflected) are functions of (seed, position) too.
        """
        steps = self.steps_per_epoch(batch_size)
        each = batch_size // part[1]
        random: Any = tf.random
        # one copy on the host, not a constant of the graph
        with tf.device("CPU:0"):
            images, labels = tf.constant(self.images), tf.constant(self.labels, tf.int32)

        def batch(step: Any) -> Any:
            epoch, within = step // steps, step % steps
            key = tf.stack([tf.constant(seed, tf.int64), epoch])
            first = within * batch_size + part[0] * each
            wanted = first + tf.range(each, dtype=tf.int64)
            places = random.experimental.index_shuffle(wanted, key, len(self) - 1)
            x, y = tf.gather(images, places), tf.gather(labels, places)
            # drawn for the whole batch, so that a part of it looks the same in any number of processes
            mine = slice(part[0] * each, (part[0] + 1) * each)
            for axis, applied in enumerate(flips(flip), start=1):  # upside down, then left to right
                if applied:
                    key = (seed, step) if axis == 2 else (seed + 2, step)
                    turned = tf.random.stateless_uniform((batch_size,), key)[mine] < 0.5
                    x = tf.where(tf.reshape(turned, (-1,) + (1,) * (len(x.shape) - 1)), tf.reverse(x, [axis]), x)
            if padding:
                high = 2 * padding + 1
                shift = tf.random.stateless_uniform((batch_size, 2), (seed + 1, step), 0, high, tf.int32)[mine]
                x = _shifted(x, padding, shift)
            return x, y

        data = tf.data.Dataset.range(start, np.iinfo(np.int64).max).map(batch, tf.data.AUTOTUNE, deterministic=True)
        return data.prefetch(tf.data.AUTOTUNE).with_options(_unsharded())

    def evaluation(self, batch_size: int, size: Any = None) -> tf.data.Dataset:
        """Yield all images once, in order; the last batch may be smaller."""
        data = tf.data.Dataset.from_tensor_slices((self.images, self.labels.astype("int32")))
        return data.batch(batch_size).prefetch(tf.data.AUTOTUNE).with_options(_unsharded())


def _shifted(x: Any, padding: int, shift: Any) -> Any:
    """Crop each image at random after padding it."""
    height, width = x.shape[1:3]
    padded = tf.pad(x, [(0, 0), (padding, padding), (padding, padding), (0, 0)], "REFLECT")
    padded = tf.gather(padded, shift[:, :1] + tf.range(height)[None], axis=1, batch_dims=1)
    return tf.gather(padded, shift[:, 1:] + tf.range(width)[None], axis=2, batch_dims=1)


def _unsharded() -> tf.data.Options:
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return options


def read(data: Any, what: str) -> Any:
    """Return the data given to `fit` as an object with the methods of `Examples`.

    Args:
        data: `Examples`, `(x, y)`, or what yields examples or batches (a `tf.data.Dataset`, a `PyDataset`, a loader, a
            generator), which is read into memory, in an order that does not depend on how it shuffles.
        what: Its name in errors.

    Raises:
        TypeError: For anything else.
        ValueError: For an endless dataset, or one without labels.
    """
    if all(hasattr(data, name) for name in ("training", "evaluation", "labels", "steps_per_epoch")):
        return data
    advice = "Images in files, or of several sizes, are read by keras_residual.data.load(...).train."
    found = collect(data, what)
    if found is None:
        raise TypeError(
            f"{what} must be keras_residual.data.Examples, arrays (x, y), or a tf.data.Dataset, keras.utils.PyDataset, "
            f"data loader or generator of them; got {type(data).__name__}. {advice}"
        )
    kind = kind_of(found.images)
    if kind != "array":
        raise TypeError(f"{what} must be arrays of one shape; got {_KINDS[kind]}. {advice}")
    labels = class_numbers(found.labels, known=found.classes is not None)
    if labels.dtype.kind in "OU":
        raise TypeError(
            f"{what}: labels must be class numbers; got names, such as {labels.flat[0]!r}. Number them: "
            "names, y = numpy.unique(y, return_inverse=True)."
        )
    return Arrays(np.asarray(found.images), labels)


_KINDS = {
    "arrays": "arrays of different shapes",
    "encoded": "encoded images",
    "pictures": "PIL images",
    "paths": "paths of files",
}


def views(
    data: Any, recipe: Recipe, size: int | tuple[int, int] | None, batch: int, *, fill: Any = None, **options: Any
) -> tf.data.Dataset:
    """Return training batches with the recipe's crops and flips; `fill` is the color around letterboxed images."""
    if isinstance(data, Arrays):
        image = len(data.images.shape) == 4
        padding = (min(data.images.shape[1:3]) // 8 if recipe.padding is None else recipe.padding) if image else 0
        padding = padding if recipe.crop == "pad" else 0
        return data.training(batch, size, flip=recipe.flip if image else False, padding=padding, **options)
    options |= {"crop": recipe.crop, "scale": recipe.crop_scale, "padding": recipe.padding, "flip": recipe.flip}
    return data.training(batch, size, fill=fill, **options)
