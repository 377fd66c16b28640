"""Encoded images inside a TensorFlow graph: decoded, turned as their EXIF says, and no bad one spoils its batch.

The pixels are those of `keras_residual.data`, which training sees:

* The EXIF orientation of JPEG and PNG is applied. (One that is in XMP only is not.)
* Of 16 bits the upper 8 are kept. Transparency is dropped, whatever colour lies under it.
* Of an animation the first frame counts. Colour profiles are not applied.
* CMYK JPEG and BMP with a palette, which TensorFlow reads wrongly, are refused; so is what it does not read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_residual.data import decoding

__all__ = ["decode_batch"]

# Parts before the pixels that are looked at: a file of millions of empty ones would take minutes.
_MOST_PARTS = 1000


def decode_batch(
    contents: Any, channels: int, prepare: Callable[[Any], Any], shape: tuple[int, ...], max_pixels: int
) -> tuple[Any, Any]:
    """Decodes and prepares images one by one, several at a time.

    Args:
        contents: `(N,)` strings.
        channels: 1 or 3.
        prepare: Makes of decoded images, uint8 `(1, H, W, channels)`, what the model takes, float32 `(1, *shape)`.
        shape: `(height, width, channels)`.
        max_pixels: Larger images are refused by what their header says, before they are decoded.

    Returns:
        `(N, *shape)`, zeros where an image could not be read, and `(N,)` strings that say why not, "" where it was.
    """

    def read(content: Any) -> tuple[Any, Any]:
        kind, pixels, exif = _look(content)
        sound = (kind > 0) & (pixels > 0) & (pixels <= max_pixels)
        # A graph has no exceptions to catch. A data set does: what fails is left out, and the blank is the first.
        given = tf.data.Dataset.from_tensors(content).filter(lambda _: sound)
        image = given.map(lambda c: (tf.ensure_shape(prepare(_decode(c, kind, exif, channels)[None])[0], shape), ""))
        blank = tf.data.Dataset.from_tensors((tf.zeros(shape), _reason(content, kind, pixels, max_pixels)))
        return image.ignore_errors().concatenate(blank).take(1).get_single_element()

    spec = (tf.TensorSpec(shape, tf.float32), tf.TensorSpec((), tf.string))
    return tf.map_fn(read, contents, fn_output_signature=spec, parallel_iterations=16)


def _decode(content: Any, kind: Any, exif: Any, channels: int) -> Any:
    """One encoded image -> uint8 `(H, W, channels)`, upright."""
    image = tf.switch_case(
        kind - _JPEG,
        [
            lambda: tf.io.decode_jpeg(content, 3, dct_method="INTEGER_ACCURATE"),  # as Pillow, to the bit
            lambda: tf.io.decode_png(content, 3),
            # Three channels asked of a WebP or BMP that has four are refused.
            lambda: tf.io.decode_image(content, 0, expand_animations=False)[..., :3],
        ],
    )
    image = tf.ensure_shape(image, (None, None, 3))
    image = decoding.grey(image) if channels == 1 else image
    return tf.cond(exif > 0, lambda: _turned(image, _orientation(content, kind, exif)), lambda: image)


def _reason(content: Any, kind: Any, pixels: Any, max_pixels: int) -> Any:
    """Why an image cannot be read."""
    why = tf.where(pixels > max_pixels, f"more than {max_pixels:,} pixels", "a damaged image")
    why = tf.where(pixels < 0, "a CMYK JPEG or a BMP with a palette: save it as RGB", why)
    why = tf.where(kind > 0, why, "not a JPEG, PNG, WebP, GIF or BMP image")
    return tf.where(tf.strings.length(content) > 0, why, "empty")


# ------------------------------------------------------------------------------------------- headers, without decoding

_JPEG, _PNG, _GIF, _BMP, _WEBP = range(1, 6)
_STARTS = {_JPEG: b"\xff\xd8\xff", _PNG: b"\x89PNG\r\n\x1a\n", _GIF: b"GIF8", _BMP: b"BM", _WEBP: b"RIFF"}


def _look(content: Any) -> tuple[Any, Any, Any]:
    """The kind of an encoded image, its number of pixels, and where its EXIF begins; 0 for what is not there.

    The number of pixels is -1 where TensorFlow would read wrong colours.
    """
    start = tf.strings.substr(content, 0, 32)
    header = tf.io.decode_raw(start, tf.uint8, fixed_length=32)  # shorter ones are filled up with zeros
    kind = tf.constant(0)
    for number, magic in _STARTS.items():
        kind = tf.where(tf.strings.substr(start, 0, len(magic)) == magic, number, kind)
    none = tf.constant(0, tf.int64)

    def fixed(height: Any, width: Any) -> tuple[Any, Any]:
        return tf.maximum(height * width, -1), none

    found = tf.switch_case(
        kind,
        {
            0: lambda: (none, none),
            _JPEG: lambda: _look_at_jpeg(content),
            _PNG: lambda: (_big(header, 16, 4) * _big(header, 20, 4), _find_in_png(content)),
            _GIF: lambda: fixed(_little(header, 8, 2), _little(header, 6, 2)),
            _BMP: lambda: fixed(*_size_of_bmp(header)),
            _WEBP: lambda: fixed(*_size_of_webp(header)),
        },
    )
    return kind, *found


def _look_at_jpeg(content: Any) -> tuple[Any, Any]:
    data = tf.io.decode_raw(content, tf.uint8)
    none = tf.constant(0, tf.int64)

    def searching(place: Any, pixels: Any, _: Any) -> Any:
        return (place + 10 < tf.size(data, tf.int64)) & (pixels == 0)

    def step(place: Any, pixels: Any, exif: Any) -> tuple[Any, Any, Any]:
        marker = _big(data, place + 1, 1)
        frame = (marker >= 0xC0) & (marker <= 0xCF) & (marker != 0xC4) & (marker != 0xC8) & (marker != 0xCC)
        area = tf.where(
            _big(data, place + 9, 1) == 4,
            tf.constant(-1, tf.int64),
            _big(data, place + 5, 2) * _big(data, place + 7, 2),
        )
        pixels = tf.where(frame, area, pixels)
        here = (marker == 0xE1) & (_big(data, place + 4, 4) == int.from_bytes(b"Exif", "big"))
        exif = tf.where(here & (exif == 0), place + 10, exif)
        filling = (marker == 0xFF) | (_big(data, place, 1) != 0xFF)
        return place + tf.where(filling, tf.ones_like(place), 2 + _big(data, place + 2, 2)), pixels, exif

    state = (none + 2, none, none)
    _, pixels, exif = tf.while_loop(searching, step, state, maximum_iterations=_MOST_PARTS)
    return pixels, exif


def _find_in_png(content: Any) -> Any:
    data = tf.io.decode_raw(content, tf.uint8)
    size = tf.size(data, tf.int64)

    def searching(place: Any, exif: Any) -> Any:
        return (place + 8 < size) & (exif == 0)

    def step(place: Any, exif: Any) -> tuple[Any, Any]:
        here = _big(data, place + 4, 4) == int.from_bytes(b"eXIf", "big")
        return place + 12 + _big(data, place, 4), tf.where(here, place + 8, exif)

    state = (tf.constant(8, tf.int64), tf.constant(0, tf.int64))
    return tf.while_loop(searching, step, state, maximum_iterations=_MOST_PARTS)[1]


def _size_of_bmp(header: Any) -> tuple[Any, Any]:
    height, width = _little(header, 22, 4), _little(header, 18, 4)
    height = tf.where(height >= 2**31, 2**32 - height, height)  # negative if the rows go from top to bottom
    return height, tf.where(_little(header, 28, 2) < 24, -tf.ones_like(width), width)


def _size_of_webp(header: Any) -> tuple[Any, Any]:
    kind, bits = _big(header, 12, 4), _little(header, 21, 4)
    sizes = {
        b"VP8X": (1 + _little(header, 27, 3), 1 + _little(header, 24, 3)),
        b"VP8L": (1 + ((bits // 2**14) % 2**14), 1 + bits % 2**14),
        b"VP8 ": (_little(header, 28, 2) % 2**14, _little(header, 26, 2) % 2**14),
    }
    height = width = tf.constant(0, tf.int64)
    for name, (h, w) in sizes.items():
        here = kind == int.from_bytes(name, "big")
        height, width = tf.where(here, h, height), tf.where(here, w, width)
    return height, width


def _big(data: Any, place: Any, count: int) -> Any:
    """The big-endian number of `count` bytes at `place`; what lies behind the end reads as the last byte."""
    return _number(data, place, [256**i for i in reversed(range(count))])


def _little(data: Any, place: Any, count: int) -> Any:
    return _number(data, place, [256**i for i in range(count)])


def _number(data: Any, place: Any, weights: list[int]) -> Any:
    places = tf.cast(place, tf.int64)[..., None] + tf.range(len(weights), dtype=tf.int64)
    values = tf.cast(tf.gather(data, tf.clip_by_value(places, 0, tf.size(data, tf.int64) - 1)), tf.int64)
    return tf.reduce_sum(values * weights, -1)


# ----------------------------------------------------------------------------------------------------- orientation


def _orientation(content: Any, kind: Any, exif: Any) -> Any:
    """The EXIF orientation, 1 to 8; `exif` is where the TIFF structure begins. 1 if there is none."""
    data = tf.io.decode_raw(content, tf.uint8)
    length = tf.where(kind == _JPEG, _big(data, exif - 8, 2) - 8, _big(data, exif - 8, 4))
    data = data[exif : exif + tf.maximum(length, 1)]
    small = _big(data, 0, 2) == int.from_bytes(b"II", "big")

    def number(place: Any, count: int) -> Any:
        return tf.where(small, _little(data, place, count), _big(data, place, count))

    directory = number(4, 4)
    entries = directory + 2 + 12 * tf.range(tf.minimum(number(directory, 2), 1000))
    found = (number(entries, 2) == 0x0112) & (entries + 12 <= tf.size(data, tf.int64))
    value = tf.concat([tf.boolean_mask(number(entries + 8, 2), found), tf.ones((1,), tf.int64)], 0)[0]
    return tf.where((value >= 1) & (value <= 8), value, tf.ones_like(value))


def _turned(image: Any, orientation: Any) -> Any:
    """The image `(H, W, C)` as it was seen, from how it lies in the file."""
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
    image = tf.cond(mirrored, lambda: tf.reverse(image, [1]), lambda: image)
    upset = tf.reduce_any(orientation == [3, 4, 7, 8])
    return tf.cond(upset, lambda: tf.reverse(image, [0]), lambda: image)
