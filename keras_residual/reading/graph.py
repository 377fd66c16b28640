"""Decode images upright inside a TensorFlow graph, reporting a bad image without failing the rest of its batch.

The pixels are the same as those of `keras_residual.reading.host`, used in training, and follow the same `Reading`:

* Transparent images are composited on the background of the `Reading`, or lose their alpha channel.
* 16-bit PNGs keep their precision if the `Reading` is float32, and their upper 8 bits otherwise. A range of the
  `Reading` maps the samples of every format to 0..255.
* The EXIF orientation of JPEG, PNG and WebP is applied. An image whose orientation is only in XMP or in a text is
  rejected, unless it is upright.
* Only the first frame of an animation is used. Color profiles are not applied.
* CMYK JPEGs and BMPs with a palette, which TensorFlow reads incorrectly, are rejected, as are formats that it cannot
  read.

A malicious header must not crash a TensorFlow decoder or make it use excessive memory or time:

* WebP animations are decoded with the alpha flag set. TensorFlow always writes four channels for them, but allocates
  only three if the flag is missing, which crashes the process.
* Of a GIF, TensorFlow gets only the first frame, because it decodes all frames and allocates the size that they
  declare, not the size in the header.
* JPEGs with more scans than any encoder writes, and PNGs with very many compressed texts, are rejected.
* Images with such a short side that resizing would make them huge are rejected.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from keras_residual.reading import host
from keras_residual.reading.rules import Reading, composite, scale

__all__ = ["FORMATS", "decode_batch", "supports"]

FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP")
READS_WEBP = hasattr(tf.io, "decode_webp")  # since TensorFlow 2.20; the graph keeps what it was exported with

# Limit of header segments to search, because a file with millions of empty ones would take minutes.
_MOST_PARTS = 1000
_MOST_BLOCKS = 10_000  # in the first frame of a GIF; up to 64 consecutive blocks of equal length count as one


def decode_batch(
    contents: Any, reading: Reading, prepare: Callable[[Any], Any], shape: tuple[int, ...], max_pixels: int
) -> tuple[Any, Any]:
    """Decode and prepare images independently of each other, several in parallel.

    Args:
        contents: `(N,)` strings: the encoded images.
        reading: Rules by which images are read; 1 or 3 channels.
        prepare: Function from decoded images `(1, H, W, channels)` to model inputs, float32 `(1, *shape)`.
        shape: `(height, width, channels)` of the model input.
        max_pixels: Images whose header declares more pixels are rejected before decoding.

    Returns:
        `(N, *shape)` images, zeros for those that cannot be read, and `(N,)` strings with the reason, "" for those that
        can.
    """
    decode = _decoder(reading)

    def read(content: Any) -> tuple[Any, Any]:
        header = _read_header(content)
        reason = _reason(content, header, shape, max_pixels)
        # A graph cannot catch exceptions, but a tf.data dataset can drop failing elements; then the blank is the first.
        given = tf.data.Dataset.from_tensors(content).filter(lambda _: reason == "")
        image = given.map(lambda c: (tf.ensure_shape(prepare(decode(c, header)[None])[0], shape), ""))
        blank = tf.data.Dataset.from_tensors((tf.zeros(shape), tf.where(reason == "", "a damaged image", reason)))
        return image.ignore_errors().concatenate(blank).take(1).get_single_element()

    spec = (tf.TensorSpec(shape, tf.float32), tf.TensorSpec((), tf.string))
    return tf.map_fn(read, contents, fn_output_signature=spec, parallel_iterations=16)


class _Header(NamedTuple):
    """Properties of an encoded image according to its header; scalar tensors.

    Attributes:
        kind: Number of the format, 0 if it is not supported.
        height: Height as stored, 0 if not found.
        width: Width as stored, 0 if not found.
        reason: Why TensorFlow would read other pixels than training, or "".
        orientation: EXIF orientation, 1 to 8.
        deep: True for a PNG with 16 bits per sample.
        transparent: True if the image has an alpha channel or a transparent color.
        places: Of a GIF, see `_parse_gif`; of a JPEG the start of the data of its first scan, and 1 if
            it is progressive.
    """

    kind: Any
    height: Any
    width: Any
    reason: Any
    orientation: Any
    deep: Any
    transparent: Any
    places: Any


@functools.cache
def _decoder(reading: Reading) -> Callable[[Any, _Header], Any]:
    """Return the function from content and header to an upright image `(H, W, channels)`, traced once per process."""
    decode_png = _decode_png if reading.dtype == "uint8" and reading.range is None else _decode_deep_png

    def decode(content: Any, header: _Header) -> Any:
        image = tf.switch_case(
            header.kind - _JPEG,
            [
                lambda: _scaled(_decode_jpeg(content, header.places), reading),
                lambda: decode_png(content, header, reading),
                lambda: _decode_gif(content, header.places, reading),
                lambda: _decode_any(content, header, reading),
                lambda: _decode_any(_with_alpha_if_animated(content), header, reading),
            ],
        )
        image = tf.ensure_shape(image, (None, None, 3))
        image = _grey(image) if reading.channels == 1 else image
        return _turned(image, header.orientation)

    return tf.function(decode, autograph=False)


# Two continuations of the data of a JPEG, each with all restart markers, of which the decoder waits for one.
_CONTINUATIONS = tuple(
    b"".join(data + bytes((0xFF, 0xD0 + i % 8)) for i in range(16))
    for data in (bytes(64), bytes((89 * i + 167) % 251 for i in range(64)))
)


def _decode_jpeg(content: Any, places: Any) -> Any:
    """Decode a JPEG, and fail if its data end early, about which libjpeg only prints a warning.

    libjpeg makes missing blocks gray. If the last pixel is of this gray, or if the end marker is missing, the data are
    continued in two ways: the images differ only if some of the data are missing. This is not done for every JPEG,
    because libjpeg prints a warning about the continuation. It does not find an early end marker in a progressive JPEG,
    or in the last block of any other.
    """
    image = host.decode_jpeg(content)
    start, progressive = places[0], places[1] > 0
    rest = tf.strings.substr(content, start, tf.cast(tf.strings.length(content), tf.int64))
    no_end = _count(rest, b"\xff\xd9") == 0

    def checked() -> Any:
        data = tf.io.decode_raw(rest, tf.uint8)
        # The last byte is only data if it is not the beginning of a marker.
        size = tf.size(data, tf.int64) - tf.cast(data[-1] == 0xFF, tf.int64)
        following = data[1:]
        restart = (following >= 0xD0) & (following <= 0xD7)
        last = tf.where(progressive, following == 0xD9, (following != 0) & ~restart)
        markers = tf.where((data[:-1] == 0xFF) & last)[:, 0]
        size = tf.concat([markers, size[None]], 0)[0]
        given = tf.strings.substr(content, tf.zeros_like(start), start + size)
        one, other = (host.decode_jpeg(tf.strings.join([given, more])) for more in _CONTINUATIONS)
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(one == other), ["pixels are missing"])]):
            return tf.identity(image)

    return tf.cond(no_end | tf.reduce_all(image[-1, -1] == 128), checked, lambda: image)


def _decode_png(content: Any, header: _Header, reading: Reading) -> Any:
    """Decode a PNG to 8 bits, the high byte of 16."""
    return _composited(lambda: tf.io.decode_png(content, 4), lambda: host.decode_png(content), header, reading)


def _decode_deep_png(content: Any, header: _Header, reading: Reading) -> Any:
    image = tf.cast(tf.io.decode_png(content, 4, tf.uint16), tf.int32)
    shallow = image // 257  # TensorFlow has multiplied 8-bit samples by 257
    color, alpha = image[..., :3], image[..., 3:]
    if reading.dtype == "uint8":
        alpha = tf.where(header.deep, alpha // 256, shallow[..., 3:])
        color = color // 256 if reading.range == (0, 65535) else _scaled(color, reading)
    else:
        full = dataclasses.replace(reading, range=(0, 65535))
        alpha = tf.where(header.deep, _scaled(alpha, full), tf.cast(shallow[..., 3:], tf.float32))
        color = _scaled(color, full if reading.range is None else reading)
    color = tf.where(header.deep, tf.cast(color, reading.dtype), _scaled(shallow[..., :3], reading))
    return tf.cond(header.transparent, lambda: _blended(color, alpha, reading), lambda: color)


def _decode_any(content: Any, header: _Header, reading: Reading) -> Any:
    """Decode a BMP or WebP. TensorFlow fails if asked for three channels of one that has four."""
    image = tf.ensure_shape(tf.io.decode_image(content, 0, expand_animations=False), (None, None, None))
    return _composited(lambda: image, lambda: image[..., :3], header, reading)


def _composited(with_alpha: Callable[[], Any], opaque: Callable[[], Any], header: _Header, reading: Reading) -> Any:
    """Return an 8-bit image scaled and composited on the background, decoding the alpha channel only if needed."""

    def blend() -> Any:
        image = with_alpha()
        return _blended(_scaled(image[..., :3], reading), image[..., 3:], reading)

    def scale_only() -> Any:
        return _scaled(opaque(), reading)

    return scale_only() if reading.background is None else tf.cond(header.transparent, blend, scale_only)


def _scaled(color: Any, reading: Reading) -> Any:
    """Map integer samples from the range, if there is one, to 0..255."""
    if reading.range is not None:
        color = tf.clip_by_value(scale(tf.cast(color, tf.float32), *reading.range), 0.0, 255.0)
        color = tf.round(color) if reading.dtype == "uint8" else color
    return tf.cast(color, reading.dtype)


def _blended(color: Any, alpha: Any, reading: Reading) -> Any:
    """Composite colors on the background; `alpha` has values of 0..255."""
    if reading.background is None:
        return color
    if reading.dtype == "uint8":
        color, alpha = tf.cast(color, tf.int32), tf.cast(alpha, tf.int32)
        return tf.cast(composite(color, alpha, tf.constant(reading.background)), tf.uint8)
    alpha = tf.cast(alpha, tf.float32) * (1 / 255)  # TensorFlow's optimizer would turn a division into this
    return color * alpha + tf.constant(reading.background, tf.float32) * (1 - alpha)


def _grey(image: Any) -> Any:
    """Convert RGB to grayscale; samples that are gray already keep their value to the bit."""
    if image.dtype == tf.uint8:
        return host.grey(image)
    first = image[..., :1]
    grey = tf.reduce_sum(image * (tf.constant([19595.0, 38470.0, 7471.0]) / 0x10000), -1, keepdims=True)
    return tf.where(tf.reduce_all(image == first, -1, keepdims=True), first, grey)


def _reason(content: Any, header: _Header, shape: tuple[int, ...], max_pixels: int) -> Any:
    """Return why an image cannot be read according to its header, or "" if it shows no fault."""
    kind, height, width = header[:3]
    pixels = tf.minimum(height, width) * tf.maximum(height, width)
    # Preprocessing may resize the shorter side and keep the aspect ratio: 1 x 65,000 becomes 224 x 14,560,000.
    resized = tf.maximum(height, width) // tf.maximum(tf.minimum(height, width), 1) * (shape[0] * shape[1])
    why = tf.where(resized > max_pixels, f"more than {max_pixels:,} pixels once resized: crop its longer side", "")
    why = tf.where(_costs_too_much(content, kind), "a damaged image", why)
    why = tf.where(header.reason == "", why, header.reason)
    if not READS_WEBP:
        why = tf.where(kind == _WEBP, "a WebP image, which exports of TensorFlow before 2.20 cannot read", why)
    why = tf.where(pixels > max_pixels, f"more than {max_pixels:,} pixels", why)
    why = tf.where(pixels == 0, "a damaged image", why)
    why = tf.where(kind > 0, why, f"not a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} image")
    return tf.where(tf.strings.length(content) > 0, why, "empty")


def _costs_too_much(content: Any, kind: Any) -> Any:
    """Return True if a small file would keep a decoder busy for minutes."""
    no = tf.constant(False)
    return tf.switch_case(
        kind,
        {
            0: lambda: no,
            _JPEG: lambda: _count(content, host.SCAN) > host.MOST_SCANS,
            _PNG: lambda: _count(content, *host.TEXTS) > host.MOST_TEXTS,
        },
        default=lambda: no,
    )


def _count(content: Any, *patterns: bytes) -> Any:
    """Return how often any of the patterns occurs."""
    return tf.add_n([tf.size(tf.strings.split(content, pattern)) - 1 for pattern in patterns])


def _with_alpha_if_animated(content: Any) -> Any:
    """Set the alpha flag of an animated WebP, without which TensorFlow overflows the image buffer."""
    flags = tf.io.decode_raw(tf.strings.substr(content, 20, 1), tf.uint8, fixed_length=1)[0]
    animated = (tf.strings.substr(content, 12, 4) == b"VP8X") & (flags & 2 > 0)
    flags = tf.gather([bytes([value]) for value in range(256)], tf.cast(flags | 16, tf.int32))
    length = tf.strings.length(content)
    pieces = [tf.strings.substr(content, 0, 20), flags, tf.strings.substr(content, 21, length)]
    return tf.cond(animated, lambda: tf.strings.join(pieces), lambda: content)


# A color table in which each index is its own color, so that TensorFlow, which makes transparent pixels black, decodes
# the indices themselves.
_INDICES = bytes(index for index in range(256) for _ in range(3))


def _decode_gif(content: Any, places: Any, reading: Reading) -> Any:
    """Decode the first frame of a GIF to `(H, W, 3)`, on its canvas."""
    data = tf.io.decode_raw(content, tf.uint8)
    start, pixels, end, color = tf.unstack(places)
    frame = tf.add(start, [5, 7])
    size = tf.strings.substr(content, start + 5, 4)
    interlaced = tf.where(_little(data, start + 9, 1) & 64 > 0, b"\x40", b"\0")
    screen = ["GIF89a", size, b"\xf7\0\0", _INDICES]
    image = ["\x2c\0\0\0\0", size, interlaced, tf.strings.substr(content, pixels, end - pixels), ";"]
    indices = tf.io.decode_image(tf.strings.join([*screen, *image]), 3, expand_animations=False)
    indices = tf.cast(tf.ensure_shape(indices, (None, None, 3))[..., 0], tf.int64)
    # Like Pillow, fill the rest of the canvas with the transparent color, or with color 0 if there is none.
    canvas, corner = (_little(data, place, 2) for place in ([8, 6], tf.add(start, [3, 1])))
    rest = tf.maximum(canvas - corner - _little(data, tf.reverse(frame, [0]), 2), 0)
    indices = tf.pad(indices, tf.stack([corner, rest], 1), constant_values=tf.maximum(color, 0))
    local = _little(data, start + 9, 1)
    table = tf.where(local >= 128, start + 10, 13)
    flags: Any = tf.where(local >= 128, local, _little(data, 10, 1))
    length = tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)
    table = tf.concat([data[table : table + length], tf.io.decode_raw(_INDICES, tf.uint8)[length:]], 0)
    table = _scaled(tf.reshape(table, (256, 3)), reading)
    if reading.background is not None:
        background = tf.constant(reading.background, reading.dtype)
        table = tf.where(tf.range(256, dtype=tf.int64)[:, None] == color, background, table)
    return tf.gather(table, indices)


# ------------------------------------------------------------------------------------------- headers, without decoding

_JPEG, _PNG, _GIF, _BMP, _WEBP = range(1, 6)
_STARTS = {_JPEG: b"\xff\xd8\xff", _PNG: b"\x89PNG\r\n\x1a\n", _GIF: b"GIF8", _BMP: b"BM", _WEBP: b"RIFF"}
_CMYK = "a CMYK JPEG: save it as RGB"
_OTHER_BMP = "a BMP with a palette or with unusual channels: save it as RGB"
_TURNED = "an image whose orientation is only in XMP or in a text: save it upright, or with an EXIF orientation"


def supports(data: bytes, cmyk: bool) -> bool:
    """Return True if exports read the format of a valid image; `cmyk` tells whether it is a CMYK image."""
    kind = next((number for number, magic in _STARTS.items() if data.startswith(magic)), 0)
    shallow_bmp = kind == _BMP and int.from_bytes(data[28:30], "little") < 24
    return kind > 0 and not cmyk and not shallow_bmp and (kind != _WEBP or READS_WEBP)


@functools.partial(tf.function, autograph=False, input_signature=[tf.TensorSpec((), tf.string)])
def _read_header(content: Any) -> _Header:
    start = tf.strings.substr(content, 0, 72)
    header = tf.io.decode_raw(start, tf.uint8, fixed_length=72)  # pads shorter files with zeros
    kind = tf.constant(0)
    for number, magic in _STARTS.items():
        kind = tf.where(tf.strings.substr(start, 0, len(magic)) == magic, number, kind)
    none = tf.constant(0, tf.int64)
    data = tf.io.decode_raw(content, tf.uint8)

    def found(
        height: Any, width: Any, reason: Any = "", exif: Any = (0, 0), transparent: Any = False, places: Any = (0,) * 4
    ) -> tuple[Any, ...]:
        kinds = (tf.int64, tf.int64, tf.string, tf.int64, tf.bool, tf.int64)
        values = (height, width, reason, exif, transparent, places)
        return tuple(tf.cast(tf.convert_to_tensor(v), t) for v, t in zip(values, kinds, strict=True))

    height, width, reason, exif, transparent, places = tf.switch_case(
        kind,
        {
            0: lambda: found(none, none),
            _JPEG: lambda: found(*_parse_jpeg(data)),
            _PNG: lambda: found(_big(header, 20, 4), _big(header, 16, 4), "", *_parse_png(content, data, header)),
            _GIF: lambda: found(*_parse_gif(data)),
            _BMP: lambda: found(*_parse_bmp(header)),
            _WEBP: lambda: found(*_parse_webp(data, header)),
        },
    )
    one = tf.ones_like(none)
    stated = tf.cond(exif[0] > 0, lambda: _orientation(data[exif[0] : exif[0] + tf.maximum(exif[1], 1)]), lambda: none)
    elsewhere = tf.cond(
        (stated == 0) & ((kind == _JPEG) | (kind == _PNG) | (kind == _WEBP)),
        lambda: _turned_elsewhere(content, exif[0] == 0),
        lambda: tf.constant(False),
    )
    reason = tf.where(elsewhere & (reason == ""), _TURNED, reason)
    orientation = tf.where((stated >= 1) & (stated <= 8), stated, one)
    deep = (kind == _PNG) & (header[24] == 16)
    return _Header(kind, height, width, reason, orientation, deep, transparent, places)


def _parse_jpeg(data: Any) -> tuple[Any, ...]:
    """Return the properties of a JPEG, in the order of `found` in `_read_header`."""
    none = tf.constant(0, tf.int64)

    def searching(place: Any, size: Any, exif: Any, scan: Any) -> Any:
        return (place + 10 < tf.size(data, tf.int64)) & (scan == 0)

    def step(place: Any, size: Any, exif: Any, scan: Any) -> tuple[Any, Any, Any, Any]:
        marker = _big(data, place + 1, 1)
        frame = (marker >= 0xC0) & (marker <= 0xCF) & (marker != 0xC4) & (marker != 0xC8) & (marker != 0xCC)
        here = tf.concat([_big(data, tf.add(place, [5, 7]), 2), _big(data, place + 9, 1)[None]], 0)
        length = _big(data, place + 2, 2)
        found = (marker == 0xE1) & (_big(data, place + 4, 4) == int.from_bytes(b"Exif", "big")) & (exif[0] == 0)
        exif = tf.where(found, tf.stack([place + 10, length - 8]), exif)
        # Like libjpeg, skip other bytes before a marker; a few markers have no length.
        filling = (marker == 0xFF) | (_big(data, place, 1) != 0xFF)
        without_length = (marker <= 1) | ((marker >= 0xD0) & (marker <= 0xD7))
        length = tf.where(without_length, tf.zeros_like(place), length)
        after = place + tf.where(filling, tf.ones_like(place), 2 + length)
        here = tf.concat([here, tf.cast(marker > 0xC1, tf.int64)[None]], 0)
        size = tf.where(frame & ~filling & (size[1] == 0), here, size)
        return after, size, exif, tf.where((marker == 0xDA) & ~filling, after, scan)

    state = (none + 2, tf.zeros(4, tf.int64), tf.zeros(2, tf.int64), none)
    _, size, exif, scan = tf.while_loop(searching, step, state, maximum_iterations=_MOST_PARTS)
    height, width, channels, progressive = tf.unstack(size)
    return height, width, tf.where(channels == 4, _CMYK, ""), exif, False, tf.stack([scan, progressive, none, none])


def _parse_gif(data: Any) -> tuple[Any, ...]:
    """Find the first frame of a GIF.

    Returns:
        Height and width of the canvas, 0 if the frame is incomplete; no reason and no EXIF data; True if a color is
        transparent; and four values: the start of the frame descriptor, the start and end of the frame data, and the
        index of the transparent color, -1 if there is none.
    """
    none = tf.constant(0, tf.int64)

    def table(flags: Any) -> Any:
        return tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)

    def searching(place: Any, start: Any, end: Any, color: Any, chained: Any) -> Any:
        return (place < tf.size(data, tf.int64)) & (end == 0)

    def step(place: Any, start: Any, end: Any, color: Any, chained: Any) -> tuple[Any, Any, Any, Any, Any]:
        return tf.cond(chained, lambda: follow(place, start, end, color), lambda: enter(place, start, end, color))

    def enter(place: Any, start: Any, end: Any, color: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Read the start of a chain of blocks, an extension or the frame; anything else ends the search."""
        kind = _little(data, place, 1)
        control = (_little(data, place, 3) == 0x04F921) & (_little(data, place + 3, 1) % 2 == 1)
        color = tf.where(control, _little(data, place + 6, 1), color)
        after = place + tf.where(kind == 0x2C, 11 + table(_little(data, place + 9, 1)), 2)
        known = (kind == 0x21) | (kind == 0x2C)
        after = tf.where(known, after, tf.size(data, tf.int64))
        return after, tf.where(kind == 0x2C, place, start), end, color, tf.constant(True)

    def follow(place: Any, start: Any, end: Any, color: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Skip blocks of equal length, or end the chain."""
        length = _little(data, place, 1)
        equal = tf.cast(_little(data, place + (length + 1) * tf.range(64, dtype=tf.int64), 1) == length, tf.int64)
        count = tf.where(length > 0, tf.reduce_sum(tf.math.cumprod(equal)), 1)
        place += count * (length + 1)
        return place, start, tf.where((length == 0) & (start > 0), place, end), color, length > 0

    state = (13 + table(_little(data, 10, 1)), none, none, none - 1, tf.constant(False))
    found = tf.while_loop(searching, step, state, maximum_iterations=_MOST_BLOCKS)
    _, start, end, color, _ = found
    offset, size, canvas = (_little(data, place, 2) for place in (tf.add(start, [3, 1]), tf.add(start, [7, 5]), [8, 6]))
    complete = (end > 0) & (end <= tf.size(data, tf.int64)) & tf.reduce_all(size > 0)
    height, width = tf.unstack(tf.where(complete, tf.maximum(canvas, offset + size), 0))
    pixels = start + 10 + table(_little(data, start + 9, 1))
    return height, width, "", (0, 0), color >= 0, tf.stack([start, pixels, end, color])


def _parse_png(content: Any, data: Any, header: Any) -> tuple[Any, Any]:
    """Return start and length of the EXIF data, and True if the PNG has an alpha channel or a transparent color."""
    size = tf.size(data, tf.int64)
    late = _count(content, b"eXIf") > 0  # EXIF data may follow the pixels, transparency may not

    def searching(place: Any, exif: Any, clear: Any, pixels: Any) -> Any:
        return (place + 8 < size) & (late | ~pixels)

    def step(place: Any, exif: Any, clear: Any, pixels: Any) -> tuple[Any, Any, Any, Any]:
        length, kind = tf.unstack(_big(data, tf.add(place, [0, 4]), 4))

        def named(name: bytes) -> Any:
            return kind == int.from_bytes(name, "big")

        exif = tf.where(named(b"eXIf"), tf.stack([place + 8, length]), exif)
        clear |= named(b"tRNS") & ~pixels
        place = tf.where(named(b"IEND"), size, place + 12 + length)
        return place, exif, clear, pixels | named(b"IDAT")

    clear = _big(header, 25, 1) & 4 > 0
    state = (tf.constant(8, tf.int64), tf.zeros(2, tf.int64), clear, tf.constant(False))
    return tf.while_loop(searching, step, state, maximum_iterations=_MOST_PARTS)[1:3]


def _parse_bmp(header: Any) -> tuple[Any, ...]:
    """Return height, width, the reason to reject the BMP or "", no EXIF data, and True if it has an alpha channel."""
    width, height, bits, compression = (_little(header, place, n) for place, n in ((18, 4), (22, 4), (28, 2), (30, 4)))
    height = tf.where(height >= 2**31, 2**32 - height, height)  # negative if rows are stored top to bottom
    masked, masks = compression == 3, _little(header, [54, 58, 62], 4)
    alpha = tf.where(_little(header, 14, 4) >= 56, _little(header, 66, 4), 0)  # shorter headers have three masks
    usual = tf.reduce_all(masks == [0xFF0000, 0xFF00, 0xFF]) & ((alpha == 0) | (alpha == 0xFF000000))
    known = ((bits == 24) | (bits == 32)) & ((compression == 0) | (masked & usual)) & (_little(header, 14, 4) >= 40)
    return height, width, tf.where(known, "", _OTHER_BMP), (0, 0), (bits == 32) & masked & (alpha > 0)


def _parse_webp(data: Any, header: Any) -> tuple[Any, ...]:
    """Return height, width, no reason, start and length of the EXIF data, and True if the WebP is transparent."""
    kind, bits, flags = _big(header, 12, 4), _little(header, 21, 4), _little(header, 20, 1)
    sizes = {
        b"VP8X": (1 + _little(header, 27, 3), 1 + _little(header, 24, 3), flags & 16 > 0),
        b"VP8L": (1 + ((bits // 2**14) % 2**14), 1 + bits % 2**14, bits & 2**28 > 0),
        b"VP8 ": (_little(header, 28, 2) % 2**14, _little(header, 26, 2) % 2**14, tf.constant(False)),
    }
    height = width = tf.constant(0, tf.int64)
    transparent = tf.constant(False)
    for name, (h, w, alpha) in sizes.items():
        here = kind == int.from_bytes(name, "big")
        height, width, transparent = (
            tf.where(here, h, height),
            tf.where(here, w, width),
            tf.where(here, alpha, transparent),
        )
    has_exif = (kind == int.from_bytes(b"VP8X", "big")) & (flags & 8 > 0)

    def searching(place: Any, exif: Any) -> Any:
        return has_exif & (place + 8 < tf.size(data, tf.int64)) & (exif[0] == 0)

    def step(place: Any, exif: Any) -> tuple[Any, Any]:
        length = _little(data, place + 4, 4)
        here = _big(data, place, 4) == int.from_bytes(b"EXIF", "big")
        prefix = tf.where(_big(data, place + 8, 4) == int.from_bytes(b"Exif", "big"), tf.constant(6, tf.int64), 0)
        exif = tf.where(here, tf.stack([place + 8 + prefix, length - prefix]), exif)
        return place + 8 + length + length % 2, exif

    state = (tf.constant(12, tf.int64), tf.zeros(2, tf.int64))
    exif = tf.while_loop(searching, step, state, maximum_iterations=_MOST_PARTS)[1]
    return height, width, "", exif, transparent


def _big(data: Any, place: Any, count: int) -> Any:
    """Return the big-endian number of `count` bytes at `place`; beyond the end, the last byte is repeated."""
    return _number(data, place, [256**i for i in reversed(range(count))])


def _little(data: Any, place: Any, count: int) -> Any:
    return _number(data, place, [256**i for i in range(count)])


def _number(data: Any, place: Any, weights: list[int]) -> Any:
    place = tf.cast(place, tf.int64)
    return tf.ensure_shape(_weighted(data, place, weights), place.shape)


_ANY_RANK: Any = None
_BYTES, _PLACES = tf.TensorSpec((None,), tf.uint8), tf.TensorSpec(_ANY_RANK, tf.int64)
_WEIGHTS = tf.TensorSpec((None,), tf.int64)


@functools.partial(tf.function, autograph=False, input_signature=[_BYTES, _PLACES, _WEIGHTS])
def _weighted(data: Any, place: Any, weights: Any) -> Any:
    """Traced once, because headers have dozens of numbers."""
    places = tf.expand_dims(place, -1) + tf.range(tf.size(weights, tf.int64))
    values = tf.cast(tf.gather(data, tf.clip_by_value(places, 0, tf.size(data, tf.int64) - 1)), tf.int64)
    return tf.reduce_sum(values * weights, -1)


# ----------------------------------------------------------------------------------------------------- orientation


def _orientation(data: Any) -> Any:
    """Return the orientation in EXIF data, or 0 if it has none."""
    small = _big(data, 0, 2) == int.from_bytes(b"II", "big")

    def number(place: Any, count: int) -> Any:
        return tf.where(small, _little(data, place, count), _big(data, place, count))

    directory = number(4, 4)
    entries = directory + 2 + 12 * tf.range(tf.minimum(number(directory, 2), 1000))
    found = (number(entries, 2) == 0x0112) & (entries + 12 <= tf.size(data, tf.int64))
    return tf.concat([tf.boolean_mask(number(entries + 8, 2), found), tf.zeros((1,), tf.int64)], 0)[0]


def _turned_elsewhere(content: Any, without_exif: Any) -> Any:
    """Return True if XMP, or EXIF data written as a text, states an orientation, or might in compressed form."""
    stated = tf.strings.split(content, b"tiff:Orientation")[1:]
    upright = (tf.strings.substr(stated, 0, 3) == b'="1') | (tf.strings.substr(stated, 0, 2) == b">1")
    hidden = _count(content, b"XML:com.adobe.xmp\0\1") > 0
    return hidden | (without_exif & (_count(content, b"Raw profile type exif") > 0)) | ~tf.reduce_all(upright)


def _turned(image: Any, orientation: Any) -> Any:
    """Turn a stored image `(H, W, C)` upright."""
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
    mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
    image = tf.cond(mirrored, lambda: tf.reverse(image, [1]), lambda: image)
    upside_down = tf.reduce_any(orientation == [3, 4, 7, 8])
    return tf.cond(upside_down, lambda: tf.reverse(image, [0]), lambda: image)
