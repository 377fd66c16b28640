"""Where the pixels of a data set lie, seen from inside a `tf.data` pipeline: encoded images, or an array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_residual.data import decoding
from keras_residual.data.decoding import JPEG, ORIENTATIONS, PILLOW, PNG
from keras_residual.data.scan import Record

# Ways to read a part of an image: a JPEG scaled down by 1, 2, 4 or 8, a PNG, whatever Pillow reads.
WAYS = 6


class Encoded:
    """Images as files, or as bytes in memory.

    Args:
        items: Paths, or contents.
        records: What the scan found out about each.
        channels: 3, or 1 for grey.
        in_memory: Whether `items` are contents.
    """

    def __init__(
        self, items: Sequence[bytes], records: Sequence[Record], channels: int = 3, in_memory: bool = False
    ) -> None:
        with tf.device("CPU:0"):
            self.items = tf.constant(list(items), tf.string, shape=(len(items),))
        self.channels, self.in_memory = channels, in_memory
        self.how = np.array([record.how for record in records], "int32")
        self.height = np.array([record.height for record in records], "int32")
        self.width = np.array([record.width for record in records], "int32")
        turns = [ORIENTATIONS[1 if record.how == PILLOW else record.orientation] for record in records]
        self.transpose, self.upside_down, self.mirrored = np.array(turns, bool).reshape(-1, 3).T

    def __len__(self) -> int:
        return len(self.how)

    def _bytes(self, place: Any) -> Any:
        item = self.items[place]
        return item if self.in_memory else tf.io.read_file(item)

    def whole(self, place: Any) -> Any:
        """The image at a place, `(height, width, channels)`, uint8, as stored: not yet turned."""
        data = self._bytes(place)
        readers = [lambda: decoding.decode_jpeg(data), lambda: decoding.decode_png(data), lambda: _pillow(data)]
        return self._grey(_switch(tf.constant(self.how)[place], readers, set(self.how.tolist())))

    def part(self, place: Any, window: Any, way: Any) -> Any:
        """Part of the image at a place, as stored; `window` and `way` as `ways` gives them."""
        data = self._bytes(place)
        top, left, height, width = tf.unstack(window)

        def cut(image: Any) -> Any:
            return image[top : top + height, left : left + width]

        readers: list[Any] = [
            lambda ratio=ratio: decoding.decode_jpeg_window(data, window, ratio) for ratio in (1, 2, 4, 8)
        ]
        readers += [lambda: cut(decoding.decode_png(data)), lambda: cut(_pillow(data))]
        kinds = set(self.how.tolist())
        used = {0, 1, 2, 3} if JPEG in kinds else set()
        used |= {4} if PNG in kinds else set()
        used |= {5} if PILLOW in kinds else set()
        return self._grey(_switch(way, readers, used))

    def ways(self, place: Any, window: Any, size: tuple[int, int]) -> tuple[Any, Any]:
        """`(N,)` places, `(N, 4)` windows as stored -> windows and how to read them, so that `size` is still met."""
        how = tf.gather(tf.constant(self.how), place)
        least = tf.where(tf.gather(tf.constant(self.transpose), place)[:, None], size[::-1], size)  # (N, 2)
        room = tf.reduce_min(window[:, 2:] // least, -1)
        halvings = sum(tf.cast(room >= ratio, tf.int32) for ratio in (2, 4, 8))
        halvings = tf.where(how == JPEG, halvings, 0)
        way = tf.where(how == JPEG, halvings, tf.where(how == PNG, 4, 5))
        return tf.bitwise.right_shift(window, halvings[:, None]), way

    def _grey(self, image: Any) -> Any:
        image.set_shape((None, None, 3))
        return decoding.grey(image) if self.channels == 1 else image


class Pixels:
    """Images as an array `(N, height, width, channels)`, uint8."""

    def __init__(self, images: np.ndarray[Any, Any]) -> None:
        with tf.device("CPU:0"):
            self.images = tf.convert_to_tensor(images)
        self.channels = images.shape[-1]
        self.height = np.full(len(images), images.shape[1], "int32")
        self.width = np.full(len(images), images.shape[2], "int32")
        self.transpose = self.upside_down = self.mirrored = np.zeros(len(images), bool)

    def __len__(self) -> int:
        return len(self.height)

    def whole(self, place: Any) -> Any:
        return self.images[place]

    def part(self, place: Any, window: Any, way: Any) -> Any:
        top, left, height, width = tf.unstack(window)
        return self.images[place, top : top + height, left : left + width]

    def ways(self, place: Any, window: Any, size: tuple[int, int]) -> tuple[Any, Any]:
        return window, tf.zeros_like(place)


Store = Encoded | Pixels


def _pillow(data: Any) -> Any:
    image = tf.numpy_function(lambda content: decoding.pillow_pixels(bytes(content)), [data], tf.uint8, stateful=False)
    image.set_shape((None, None, 3))
    return image


def _switch(number: Any, branches: Sequence[Any], used: set[int]) -> Any:
    """`tf.switch_case` over those branches that occur at all."""
    kept = sorted(used)
    if len(kept) == 1:
        return branches[kept[0]]()
    renumbered = np.zeros(len(branches), "int32")
    renumbered[kept] = np.arange(len(kept))
    return tf.switch_case(tf.constant(renumbered)[number], [branches[i] for i in kept])
