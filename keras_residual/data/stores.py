"""Read the pixels of a dataset inside a `tf.data` pipeline, from encoded images or an array."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_residual.data.validation import Record
from keras_residual.reading import host
from keras_residual.reading.host import JPEG, ORIENTATIONS, PILLOW, PNG
from keras_residual.reading.rules import Reading


class _Table:
    """Table of what a pipeline needs to know about each image before reading it.

    Attributes:
        table: `(N, 6)` int32: decoder, stored height and width, and three flags that turn the image upright.
        kinds: Decoders that occur.
        transposed: Whether any image must be transposed.
        turned: Whether any image is not stored upright.
    """

    def __init__(self, columns: Sequence[Any]) -> None:
        rows = np.stack([np.asarray(column, "int32") for column in columns], -1)
        self.kinds = set(rows[:, 0].tolist())
        self.transposed, self.turned = bool(rows[:, 3].any()), bool(rows[:, 3:].any())
        with tf.device("CPU:0"):
            self.table = tf.constant(rows)

    def __len__(self) -> int:
        return len(self.table)

    def facts(self, place: Any) -> list[Any]:
        """Look up images at places `(...)`.

        Returns:
            how, height, width (int32), transpose, upside_down, mirrored (bool), each `(...)`.
        """
        facts = tf.unstack(tf.gather(self.table, place), axis=-1)
        return facts[:3] + [flag > 0 for flag in facts[3:]]


class Encoded(_Table):
    """Encoded images in files or in memory.

    Args:
        items: Paths, or the encoded images.
        records: Scan result of each image.
        reading: How the images are read.
        in_memory: Whether `items` are encoded images rather than paths.
    """

    def __init__(
        self,
        items: Sequence[bytes],
        records: Sequence[Record],
        reading: Reading | None = None,
        in_memory: bool = False,
    ) -> None:
        with tf.device("CPU:0"):
            self.items = tf.constant(list(items), tf.string, shape=(len(items),))
        self.reading, self.in_memory, self._checked = reading or Reading(), in_memory, time.time()
        columns = [(r.how, r.height, r.width, *ORIENTATIONS[r.orientation]) for r in records]
        super().__init__(np.array(columns, "int32").reshape(-1, 6).T)

    @property
    def channels(self) -> int:
        return self.reading.channels

    def read_as(self, reading: Reading) -> None:
        """Read the images by other rules."""
        self.reading = reading

    def _bytes(self, place: Any) -> Any:
        item = tf.gather(self.items, place)
        return item if self.in_memory else tf.io.read_file(item)

    def changed(self) -> list[str]:
        """Return the files that have been removed or modified since the check."""
        found = []
        for item in () if self.in_memory else self.items.numpy():
            try:
                if os.stat(item).st_mtime <= self._checked:
                    continue
            except OSError:
                pass
            found.append(os.fsdecode(item))
        return found

    def whole(self, place: Any) -> Any:
        """Return the full image at a place, `(height, width, channels)`, as stored (not turned upright)."""
        data = self._bytes(place)
        readers = [
            lambda: self._finished(host.decode_jpeg(data)),
            lambda: self._finished(host.decode_png(data)),
            lambda: self._on_host(data),
        ]
        return _switch(self.facts(place)[0], readers, self.kinds)

    def part(self, place: Any, window: Any, way: Any) -> Any:
        """Return part of the image at a place, as stored, with `window` and `way` from `ways`."""
        data = self._bytes(place)

        def cut(image: Any) -> Any:
            return tf.slice(image, tf.pad(window[:2], [(0, 1)]), tf.concat([window[2:], [-1]], 0))

        readers: list[Any] = [
            lambda ratio=ratio: self._finished(host.decode_jpeg_window(data, window, ratio)) for ratio in (1, 2, 4, 8)
        ]
        readers += [lambda: self._finished(cut(host.decode_png(data))), lambda: cut(self._on_host(data))]
        used = {
            way
            for kind, ways in ((JPEG, (0, 1, 2, 3)), (PNG, (4,)), (PILLOW, (5,)))
            for way in ways
            if kind in self.kinds
        }
        return _switch(way, readers, used)

    def ways(self, place: Any, window: Any, size: tuple[int, int]) -> tuple[Any, Any]:
        """Choose how to read `(N, 4)` windows of the images at `(N,)` places so that they are at least `size`.

        Returns:
            The windows, scaled down if the decoder does so, and the ways for `part`: 0 to 3 for a JPEG scaled down by
            1, 2, 4 or 8, 4 for an opaque 8-bit PNG, 5 for any other image.
        """
        how, _, _, transpose, _, _ = self.facts(place)
        least = tf.where(transpose[:, None], size[::-1], size)  # (N, 2)
        room = tf.reduce_min(window[:, 2:] // least, -1)
        halvings = sum(tf.cast(room >= ratio, tf.int32) for ratio in (2, 4, 8))
        halvings = tf.where(how == JPEG, halvings, 0)
        way = tf.where(how == JPEG, halvings, tf.where(how == PNG, 4, 5))
        return tf.bitwise.right_shift(window, halvings[:, None]), way

    def _finished(self, image: Any) -> Any:
        image.set_shape((None, None, 3))
        return host.finished(image, self.reading)

    def _on_host(self, data: Any) -> Any:
        def decode(content: bytes) -> Any:
            return host.decode(bytes(content), self.reading, sys.maxsize)  # the scan has applied the user's limit

        if tf.executing_eagerly():  # tf.numpy_function would strip trailing zero bytes
            return tf.constant(decode(data.numpy()))
        image = tf.numpy_function(decode, [data], self.reading.dtype, stateful=False)
        image.set_shape((None, None, self.channels))
        return image


class Pixels(_Table):
    """Images as an array `(N, height, width, channels)`, as uint8 or float32 on a scale of 0..255."""

    def read_as(self, reading: Reading) -> None:
        """Keep the pixels, which have been read."""

    def changed(self) -> list[str]:
        """Return an empty list, because an array in memory does not change."""
        return []

    def __init__(self, images: np.ndarray[Any, Any]) -> None:
        with tf.device("CPU:0"):
            self.images = tf.convert_to_tensor(images)
        self.channels = images.shape[-1]
        self.reading = Reading(channels=self.channels, dtype=images.dtype.name)  # type: ignore[arg-type]
        rows = np.tile([0, images.shape[1], images.shape[2], 0, 0, 0], (len(images), 1))
        super().__init__(rows.T)

    def whole(self, place: Any) -> Any:
        return tf.gather(self.images, place)

    def part(self, place: Any, window: Any, way: Any) -> Any:
        begin = tf.concat([[place], window[:2], [0]], 0)
        return tf.slice(self.images, begin, tf.concat([[1], window[2:], [self.channels]], 0))[0]

    def ways(self, place: Any, window: Any, size: tuple[int, int]) -> tuple[Any, Any]:
        return window, tf.zeros_like(place)


Store = Encoded | Pixels


def _switch(number: Any, branches: Sequence[Any], used: set[int]) -> Any:
    """Call `tf.switch_case` with only the branches that are used."""
    kept = sorted(used)
    if len(kept) == 1:
        return branches[kept[0]]()
    renumbered = np.zeros(len(branches), "int32")
    renumbered[kept] = np.arange(len(kept))
    return tf.switch_case(tf.gather(renumbered, number), [branches[i] for i in kept])
