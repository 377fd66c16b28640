"""Decode images inside a TensorFlow graph and turn them upright; a bad image fails alone, not with its batch.

The pixels are those of `keras_residual.data`, which training sees:

* The EXIF orientation of JPEG and PNG is applied. (One that is in XMP only is not.)
* Of 16 bits the upper 8 are kept. Transparency is dropped, whatever colour lies under it.
* Of an animation the first frame counts. Colour profiles are not applied.
* CMYK JPEG and BMP with a palette, which TensorFlow reads wrongly, are refused; so is what it does not read.

No header may lead a decoder of TensorFlow's into a crash, or into memory or time that the request does not pay for:

* WebP animations are decoded with the alpha flag set: TensorFlow writes four channels for them, always, but allocates
  three if the flag is missing, and the process dies.
* A GIF is cut after its first frame. TensorFlow allocates what the frames declare, not what the header does, and
  decodes all of them.
* JPEGs with more scans than any encoder writes, and PNGs with masses of compressed text, are refused.
* Images whose shorter side is so short that resizing it would make them huge are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_residual.reading import host

__all__ = ["decode_batch"]

READS_WEBP = hasattr(tf.io, "decode_webp")  # since TensorFlow 2.20; the graph keeps what it was exported with

# Parts before the pixels that are looked at: a file of millions of empty ones would take minutes.
_MOST_PARTS = 1000
_MOST_BLOCKS = 10_000  # of a GIF's first frame; equal ones, which encoders write, count as one for each 64


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
        kind, height, width, places = _look(content)
        reason = _reason(content, kind, height, width, shape, max_pixels)
        # A graph cannot catch exceptions, but a tf.data dataset can: what fails is left out, and the blank comes first.
        given = tf.data.Dataset.from_tensors(content).filter(lambda _: reason == "")
        image = given.map(lambda c: (tf.ensure_shape(prepare(_decode(c, kind, places, channels)[None])[0], shape), ""))
        blank = tf.data.Dataset.from_tensors((tf.zeros(shape), tf.where(reason == "", "a damaged image", reason)))
        return image.ignore_errors().concatenate(blank).take(1).get_single_element()

    spec = (tf.TensorSpec(shape, tf.float32), tf.TensorSpec((), tf.string))
    return tf.map_fn(read, contents, fn_output_signature=spec, parallel_iterations=16)


def _decode(content: Any, kind: Any, places: Any, channels: int) -> Any:
    """Decode one image to uint8 `(H, W, channels)`, upright."""
    image = tf.switch_case(
        kind - _JPEG,
        [
            lambda: tf.io.decode_jpeg(content, 3, dct_method="INTEGER_ACCURATE"),  # as Pillow, to the bit
            lambda: tf.io.decode_png(content, 3),
            lambda: _decode_gif(content, places),
            # Three channels asked of a WebP or BMP that has four are refused.
            lambda: tf.io.decode_image(content, 0, expand_animations=False)[..., :3],
            lambda: tf.io.decode_image(_with_alpha_if_animated(content), 0, expand_animations=False)[..., :3],
        ],
    )
    image = tf.ensure_shape(image, (None, None, 3))
    image = host.grey(image) if channels == 1 else image
    exif = tf.where((kind == _JPEG) | (kind == _PNG), places[0], 0)
    return tf.cond(exif > 0, lambda: _turned(image, _orientation(content, kind, exif)), lambda: image)


def _reason(content: Any, kind: Any, height: Any, width: Any, shape: tuple[int, ...], max_pixels: int) -> Any:
    """Return why an image cannot be read, as far as its headers show; "" if they show nothing."""
    pixels = tf.minimum(height, width) * tf.maximum(height, width)
    # Preprocessing may resize the shorter side to the model's and keep the ratio: 1 x 65,000 becomes 224 x 14,560,000.
    resized = tf.maximum(height, width) // tf.maximum(tf.minimum(height, width), 1) * (shape[0] * shape[1])
    why = tf.where(resized > max_pixels, f"more than {max_pixels:,} pixels once resized: crop its longer side", "")
    why = tf.where(_costs_too_much(content, kind), "a damaged image", why)
    if not READS_WEBP:
        why = tf.where(kind == _WEBP, "a WebP image, which exports of TensorFlow before 2.20 cannot read", why)
    why = tf.where(pixels > max_pixels, f"more than {max_pixels:,} pixels", why)
    why = tf.where(pixels == 0, "a damaged image", why)
    why = tf.where(pixels < 0, "a CMYK JPEG or a BMP with a palette: save it as RGB", why)
    why = tf.where(kind > 0, why, "not a JPEG, PNG, WebP, GIF or BMP image")
    return tf.where(tf.strings.length(content) > 0, why, "empty")


def _costs_too_much(content: Any, kind: Any) -> Any:
    """Return whether a small file would keep a decoder busy for minutes."""

    def count(*words: bytes) -> Any:
        return tf.add_n([tf.size(tf.strings.split(content, word)) - 1 for word in words])

    no = tf.constant(False)
    return tf.switch_case(
        kind,
        {
            0: lambda: no,
            _JPEG: lambda: count(host.SCAN) > host.MOST_SCANS,
            _PNG: lambda: count(*host.TEXTS) > host.MOST_TEXTS,
        },
        default=lambda: no,
    )


def _with_alpha_if_animated(content: Any) -> Any:
    """Set the alpha flag of an animated WebP, without which TensorFlow writes beyond the image's memory."""
    flags = tf.io.decode_raw(tf.strings.substr(content, 20, 1), tf.uint8, fixed_length=1)[0]
    animated = (tf.strings.substr(content, 12, 4) == b"VP8X") & (flags & 2 > 0)
    flags = tf.gather([bytes([value]) for value in range(256)], tf.cast(flags | 16, tf.int32))
    length = tf.strings.length(content)
    pieces = [tf.strings.substr(content, 0, 20), flags, tf.strings.substr(content, 21, length)]
    return tf.cond(animated, lambda: tf.strings.join(pieces), lambda: content)


def _decode_gif(content: Any, places: Any) -> Any:
    """Decode a GIF's first frame, on its canvas of the colour that Pillow gives it."""
    data = tf.io.decode_raw(content, tf.uint8)
    start, end, colour = tf.unstack(places)
    none = tf.zeros_like(start)
    # Where the frame begins is set to 0, 0: what lies right of or below its own size, TensorFlow would drop.
    before = tf.strings.substr(content, none, start + 1)
    after = tf.strings.substr(content, start + 5, end - start - 5)
    first = tf.strings.join([before, bytes(4), after, b";"])
    frame = tf.io.decode_image(first, 3, expand_animations=False)
    frame = tf.cast(tf.ensure_shape(frame, (None, None, 3)), tf.int32)
    canvas = _little(data, tf.constant([8, 6], tf.int64), 2)
    corner, size = _little(data, tf.add(start, [3, 1]), 2), tf.shape(frame, tf.int64)[:2]
    rest = tf.maximum(canvas - corner - size, 0)
    table = tf.where(_little(data, start + 9, 1) >= 128, start + 10, 13)
    fill = tf.cast(_little(data, table + 3 * colour + [0, 1, 2], 1), tf.int32)
    padding = tf.concat([tf.stack([corner, rest], 1), tf.zeros((1, 2), tf.int64)], 0)
    return tf.cast(tf.pad(frame - fill, padding) + fill, tf.uint8)


# ------------------------------------------------------------------------------------------- headers, without decoding

_JPEG, _PNG, _GIF, _BMP, _WEBP = range(1, 6)
_STARTS = {_JPEG: b"\xff\xd8\xff", _PNG: b"\x89PNG\r\n\x1a\n", _GIF: b"GIF8", _BMP: b"BM", _WEBP: b"RIFF"}


def _look(content: Any) -> tuple[Any, Any, Any, Any]:
    """Read the headers of an encoded image.

    Returns:
        Its kind, 0 if it is none that is read; its height and width, 0 if they are not found, of which the width is
        negative where TensorFlow would read wrong colours; and three places in the file: of JPEG and PNG where the
        EXIF begins, or 0, and two unused; of GIF see `_look_at_gif`.
    """
    start = tf.strings.substr(content, 0, 32)
    header = tf.io.decode_raw(start, tf.uint8, fixed_length=32)  # shorter ones are filled up with zeros
    kind = tf.constant(0)
    for number, magic in _STARTS.items():
        kind = tf.where(tf.strings.substr(start, 0, len(magic)) == magic, number, kind)
    none = tf.constant(0, tf.int64)

    def found(height: Any, width: Any, place: Any = none) -> tuple[Any, Any, Any]:
        return height, width, tf.stack([place, none, none])

    return kind, *tf.switch_case(
        kind,
        {
            0: lambda: found(none, none),
            _JPEG: lambda: found(*_look_at_jpeg(content)),
            _PNG: lambda: found(_big(header, 20, 4), _big(header, 16, 4), _find_in_png(content)),
            _GIF: lambda: _look_at_gif(content),
            _BMP: lambda: found(*_size_of_bmp(header)),
            _WEBP: lambda: found(*_size_of_webp(header)),
        },
    )


def _look_at_jpeg(content: Any) -> tuple[Any, Any, Any]:
    data = tf.io.decode_raw(content, tf.uint8)
    none = tf.constant(0, tf.int64)

    def searching(place: Any, height: Any, width: Any, _: Any) -> Any:
        return (place + 10 < tf.size(data, tf.int64)) & (width == 0)

    def step(place: Any, height: Any, width: Any, exif: Any) -> tuple[Any, Any, Any, Any]:
        marker = _big(data, place + 1, 1)
        frame = (marker >= 0xC0) & (marker <= 0xCF) & (marker != 0xC4) & (marker != 0xC8) & (marker != 0xCC)
        cmyk = _big(data, place + 9, 1) == 4
        width = tf.where(frame, tf.where(cmyk, -tf.ones_like(width), _big(data, place + 7, 2)), width)
        height = tf.where(frame, _big(data, place + 5, 2), height)
        here = (marker == 0xE1) & (_big(data, place + 4, 4) == int.from_bytes(b"Exif", "big"))
        exif = tf.where(here & (exif == 0), place + 10, exif)
        # As libjpeg: other bytes before a marker are skipped, and a few markers have no length.
        filling = (marker == 0xFF) | (_big(data, place, 1) != 0xFF)
        alone = (marker <= 1) | ((marker >= 0xD0) & (marker <= 0xD7))
        length = tf.where(alone, tf.zeros_like(place), _big(data, place + 2, 2))
        return place + tf.where(filling, tf.ones_like(place), 2 + length), height, width, exif

    state = (none + 2, none, none, none)
    return tf.while_loop(searching, step, state, maximum_iterations=_MOST_PARTS)[1:]


def _look_at_gif(content: Any) -> tuple[Any, Any, Any]:
    """Find a GIF's first frame.

    Returns:
        Height and width of the canvas, 0 if the frame is not whole; where the frame's descriptor begins, where its
        data ends, and the number of the colour that fills the rest of the canvas.
    """
    data = tf.io.decode_raw(content, tf.uint8)
    none = tf.constant(0, tf.int64)

    def table(flags: Any) -> Any:
        return tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)

    def searching(place: Any, start: Any, end: Any, colour: Any, chained: Any) -> Any:
        return (place < tf.size(data, tf.int64)) & (end == 0)

    def step(place: Any, start: Any, end: Any, colour: Any, chained: Any) -> tuple[Any, Any, Any, Any, Any]:
        return tf.cond(chained, lambda: follow(place, start, end, colour), lambda: enter(place, start, end, colour))

    def enter(place: Any, start: Any, end: Any, colour: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Read what begins a chain of blocks: an extension or the frame; anything else ends the search."""
        kind = _little(data, place, 1)
        control = (_little(data, place, 3) == 0x04F921) & (_little(data, place + 3, 1) % 2 == 1)
        colour = tf.where(control, _little(data, place + 6, 1), colour)
        after = place + tf.where(kind == 0x2C, 11 + table(_little(data, place + 9, 1)), 2)
        known = (kind == 0x21) | (kind == 0x2C)
        after = tf.where(known, after, tf.size(data, tf.int64))
        return after, tf.where(kind == 0x2C, place, start), end, colour, tf.constant(True)

    def follow(place: Any, start: Any, end: Any, colour: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Skip blocks of equal length, or end the chain."""
        length = _little(data, place, 1)
        equal = tf.cast(_little(data, place + (length + 1) * tf.range(64, dtype=tf.int64), 1) == length, tf.int64)
        count = tf.where(length > 0, tf.reduce_sum(tf.math.cumprod(equal)), 1)
        place += count * (length + 1)
        return place, start, tf.where((length == 0) & (start > 0), place, end), colour, length > 0

    state = (13 + table(_little(data, 10, 1)), none, none, none, tf.constant(False))
    found = tf.while_loop(searching, step, state, maximum_iterations=_MOST_BLOCKS)
    _, start, end, colour, _ = found
    offset, size, canvas = (_little(data, place, 2) for place in (tf.add(start, [3, 1]), tf.add(start, [7, 5]), [8, 6]))
    whole = (end > 0) & (end <= tf.size(data, tf.int64)) & tf.reduce_all(size > 0)
    height, width = tf.unstack(tf.where(whole, tf.maximum(canvas, offset + size), 0))
    return height, width, tf.stack([start, end, colour])


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
    """Return the big-endian number of `count` bytes at `place`; beyond the end, the last byte is repeated."""
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
