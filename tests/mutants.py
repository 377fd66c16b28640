"""Damaged images of every format that a SavedModel decodes: number -> bytes, the same in every process."""

import functools
import re
import struct
import zlib

import numpy as np
from PIL import Image

from .data_images import encoded, exif, picture


def _rle_bmp():
    """A BMP of 8 bits, run-length encoded: Pillow writes none."""
    rows = b"".join(bytes((16, value, 0, 0)) for value in range(12)) + b"\0\1"
    colours = bytes(range(256)) * 4
    head = struct.pack("<IiiHHIIiiII", 40, 16, 12, 1, 8, 1, len(rows), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(rows), 0, 0, 54 + 1024) + head + colours + rows


@functools.cache
def sources():
    """Name -> bytes of whole images: every mode and way of coding that the formats have."""
    colour, other = Image.fromarray(picture(29, 37)), Image.fromarray(picture(29, 37, seed=1))
    grey, alpha = colour.convert("L"), colour.copy()
    alpha.putalpha(other.convert("L"))
    deep = Image.fromarray(np.asarray(grey).astype("uint16") * 257)
    films = {"save_all": True, "append_images": [other, colour], "duration": 20}
    clear = {**films, "append_images": [alpha.rotate(90), alpha]}
    made = {
        "JPEG grey": (grey, {}),
        "JPEG colour": (colour, {"exif": exif(6)}),
        "JPEG progressive": (colour, {"progressive": True}),
        "JPEG restarts": (colour, {"restart_marker_blocks": 2, "subsampling": 0}),
        "JPEG CMYK": (colour.convert("CMYK"), {}),
        "PNG colour": (colour, {"exif": exif(5)}),
        "PNG grey": (grey, {}),
        "PNG 16 bits": (deep, {}),
        "PNG 1 bit": (grey.convert("1"), {}),
        "PNG palette": (colour.quantize(16), {}),
        "PNG clear palette": (alpha.quantize(64), {}),
        "PNG alpha": (alpha, {}),
        "PNG grey alpha": (alpha.convert("LA"), {}),
        "PNG film": (colour, films),
        "GIF single": (colour, {}),
        "GIF film": (colour, films),
        "GIF clear": (alpha, clear),
        "GIF interlaced": (grey, {"interlace": True}),
        "BMP 24": (colour, {}),
        "BMP 32": (alpha, {}),
        "BMP palette": (colour.quantize(16), {}),
        "BMP grey": (grey, {}),
        "WEBP lossy": (colour, {"quality": 60, "exif": exif(3)}),
        "WEBP lossless": (colour, {"lossless": True}),
        "WEBP alpha": (alpha, {"quality": 60}),
        "WEBP lossless alpha": (alpha, {"lossless": True}),
        "WEBP film": (colour, {**films, "lossless": True}),
        "WEBP lossy film": (colour, {**films, "quality": 60}),
        "WEBP clear film": (alpha, {**clear, "quality": 60}),
    }
    found = {name: encoded(image, name.split()[0], **options) for name, (image, options) in made.items()}
    found["PNG interlaced"] = _interlaced()
    found["BMP RLE"] = _rle_bmp()
    found["GIF on a canvas"] = on_a_canvas(found["GIF clear"], 50, 60, 7, 5)
    return found


def on_a_canvas(gif, height, width, top, left):
    """The GIF with its first frame somewhere on a larger canvas."""
    gif, frame = bytearray(gif), gif.index(b"\x2c" + bytes(4))
    gif[6:10] = struct.pack("<HH", width, height)
    gif[frame + 1 : frame + 5] = struct.pack("<HH", left, top)
    return bytes(gif)


def _interlaced():
    """A PNG of 8 x 8 grey pixels in seven passes (Adam7)."""
    passes = ((1, 1), (1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4))  # width and height of each
    rows = b"".join((b"\0" + bytes(range(width))) * height for width, height in passes)
    head = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


# ----------------------------------------------------------------------------------------------------- parts of a file


def _parts(data):
    """The pieces that a format's reader sees; joined they are the file."""
    if data.startswith(b"\x89PNG"):
        return _sized(data, 8, lambda at: 12 + int.from_bytes(data[at : at + 4], "big"))
    if data.startswith(b"RIFF"):
        return _sized(data, 12, lambda at: (9 + int.from_bytes(data[at + 4 : at + 8], "little")) // 2 * 2)
    if data.startswith(b"BM"):
        return [part for part in (data[:14], data[14:54], data[54:]) if part]
    starts = rb"(?=\xff[\xc0-\xcf\xd8-\xff])" if data.startswith(b"\xff\xd8") else rb"(?=\x21[\xf9\xff\xfe]|\x2c)"
    return [part for part in re.split(starts, data) if part]


def _sized(data, start, size):
    found = [data[:start]]
    while start < len(data):
        found.append(data[start : start + max(size(start), 1)])
        start += len(found[-1])
    return found


def _repaired(data):
    """The file with the check sums and the total that its parts now have, so that readers go on to what is in them."""
    if data.startswith(b"\x89PNG"):
        head, *chunks = _parts(data)
        chunks = [
            struct.pack(">I", max(len(chunk) - 12, 0)) + chunk[4:-4] + struct.pack(">I", zlib.crc32(chunk[4:-4]))
            for chunk in chunks
            if len(chunk) >= 12
        ]
        return head + b"".join(chunks)
    if data.startswith(b"RIFF") and len(data) >= 8:
        return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    return data


# ------------------------------------------------------------------------------------------------------------- damage

_NUMBERS = (
    b"\0",
    b"\1",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\0\0",
    b"\xff\xff",
    b"\x10\x27",
    b"\0\x80",
    bytes(4),
    b"\xff" * 4,
)


def _flip(data, draw):
    found = bytearray(data)
    for _ in range(draw(8) + 1):
        found[draw(len(found))] ^= 1 << draw(8)
    return bytes(found)


def _cut(data, draw):
    return data[: draw(len(data)) + 1]


def _insert(data, draw):
    place = draw(len(data))
    return data[:place] + bytes(draw(256) for _ in range(draw(32) + 1)) + data[place:]


def _remove(data, draw):
    place = draw(len(data))
    return data[:place] + data[place + draw(32) + 1 :]


def _overwrite(data, draw):
    place, value = draw(len(data)), _NUMBERS[draw(len(_NUMBERS))]
    return data[:place] + value + data[place + len(value) :]


def _splice(data, draw):
    other = list(sources().values())[draw(len(sources()))]
    return data[: draw(len(data)) + 1] + other[draw(len(other)) :]


def _header(data, draw):
    """Another number in the first bytes of a part, where sizes, kinds and flags are."""
    parts = _parts(data)
    number = draw(len(parts))
    part, value = parts[number], _NUMBERS[draw(len(_NUMBERS))]
    place = draw(min(len(part), 28))
    value = value if draw(2) else bytes([part[place] ^ (1 << draw(8))])
    parts[number] = part[:place] + value + part[place + len(value) :]
    return b"".join(parts)


def _repeat(data, draw):
    parts = _parts(data)
    parts.insert(draw(len(parts) + 1), parts[draw(len(parts))])
    return b"".join(parts)


def _swap(data, draw):
    parts = _parts(data)
    a, b = draw(len(parts)), draw(len(parts))
    parts[a], parts[b] = parts[b], parts[a]
    return b"".join(parts)


def _drop(data, draw):
    parts = _parts(data)
    del parts[draw(len(parts))]
    return b"".join(parts)


def _borrow(data, draw):
    """A part of another file of the same format."""
    others = [other for other in sources().values() if other[:2] == data[:2]] or [data]
    parts, others = _parts(data), _parts(others[draw(len(others))])
    parts.insert(draw(len(parts) + 1), others[draw(len(others))])
    return b"".join(parts)


_DAMAGE = (
    _flip,
    _cut,
    _insert,
    _remove,
    _overwrite,
    _splice,
    _header,
    _header,
    _header,
    _repeat,
    _swap,
    _drop,
    _borrow,
)


def mutant(number):
    """The damaged image of this number; its source goes round, its damage is drawn."""
    generator = np.random.default_rng(number)

    def draw(below):
        return int(generator.integers(below))

    data = list(sources().values())[number % len(sources())]
    for _ in range(draw(3) + 1):
        data = _DAMAGE[draw(len(_DAMAGE))](data, draw) or b"\0"
    return _repaired(data) if draw(4) else data
