"""Read the TIFF files that Pillow cannot read in full: more than 8 bits in color, signed or float samples, bands.

Every lossless compression of TIFF stores plain bytes. So each strip or tile is given to Pillow's libtiff as an 8-bit
grayscale image of the same bytes, and the samples are put together here.
"""

from __future__ import annotations

import dataclasses
import io
import struct
from typing import Any, Literal

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from keras_residual.reading.samples import Samples, UnreadableError, fixed_range

MAGIC = (b"II*\0", b"MM\0*", b"II+\0")
_UNCOMPRESSED = 1
_LOSSLESS = (_UNCOMPRESSED, 5, 8, 32773, 32946, 34925, 50000)  # LZW, Deflate, PackBits, Deflate, LZMA, Zstandard
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = range(3)
_MOST_BYTES = 1 << 30


@dataclasses.dataclass(frozen=True)
class Page:
    """Layout of the first page of a TIFF file.

    Attributes:
        width: In pixels, as stored.
        height: In pixels, as stored.
        bits: Bits per sample.
        dtype: Type of a sample: unsigned, signed or float; wider than `bits` for packed samples.
        count: Samples per pixel.
        alpha: Whether the last sample is the opacity.
        premultiplied: Whether the colors have been multiplied by it.
        inverted: Whether the smallest value means white.
        orientation: 1 to 8, as in EXIF.
        tags: All tags by number.
    """

    width: int
    height: int
    bits: int
    dtype: np.dtype[Any]
    count: int
    alpha: bool
    premultiplied: bool
    inverted: bool
    orientation: int
    tags: dict[int, Any]

    @property
    def range(self) -> tuple[float, float] | None:
        """Return the range of the samples, or `None` if their type has no fixed one."""
        return fixed_range(self.dtype, self.bits)

    @property
    def channels(self) -> int:
        """Return the number of channels without opacity."""
        return self.count - self.alpha


def page(data: bytes) -> Page | None:
    """Return the first page of a file if this module must read it, and `None` if Pillow can.

    Raises:
        UnreadableError: If neither can.
    """
    if data[:4] not in MAGIC:
        return None
    found = _tags(data)
    color, count = found.get(262, _BLACK_IS_ZERO), found.get(277, 1)
    bits, formats, extra = (_tuple(found.get(key, other)) for key, other in ((258, 1), (339, 1), (338, ())))
    base = 3 if color == _RGB else 1
    alpha = count == base + 1 and (extra in ((1,), (2,)) or (color == _RGB and not extra))
    if color > _RGB or (set(bits) <= set(range(9)) and set(formats) <= {1, 4} and (count == base or alpha)):
        return None
    if found.get(259, 1) not in _LOSSLESS or found.get(266, 1) != 1:
        raise UnreadableError(
            f"is a TIFF image of {count} x {bits[0]}-bit samples with compression {found.get(259)}, which is not "
            "supported; save it uncompressed, or with LZW or Deflate"
        )
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        raise UnreadableError("has samples of different types; save every channel with the same type")
    return Page(
        found.get(256, 0),
        found.get(257, 0),
        bits[0],
        _dtype(bits[0], formats[0]),
        count,
        alpha,
        alpha and extra == (1,),
        color == _WHITE_IS_ZERO,
        found.get(274, 1),
        found,
    )


def samples(data: bytes, page: Page) -> Samples:
    """Return the samples of a page, as stored (not turned upright).

    Raises:
        UnreadableError: If the file is damaged, or too large.
    """
    if page.width * page.height * page.count * page.dtype.itemsize > _MOST_BYTES:
        raise UnreadableError(f"has {page.count} channels of {page.width:,} x {page.height:,} pixels, too many to read")
    if page.tags.get(284, 1) == 2 and page.count > 1:
        planes = _chunks(data, page, 1)
        per_plane = len(planes) // page.count
        parts = [planes[i * per_plane : (i + 1) * per_plane] for i in range(page.count)]
        values = np.concatenate([_joined(part, page) for part in parts], -1)
    else:
        values = _joined(_chunks(data, page, page.count), page)
    if page.alpha:
        color, opacity = values[..., :-1], values[..., -1:]
        return Samples(color, page.range, opacity, page.inverted, page.premultiplied)
    return Samples(values, page.range, None, page.inverted)


def has_more_pages(data: bytes) -> bool:
    """Return True if the file has a page after the first."""
    return _directory(data).next > 0


def _tags(data: bytes) -> dict[int, Any]:
    return dict(_directory(data))


def _directory(data: bytes) -> Any:
    start = 16 if data[2:3] == b"+" else 8  # BigTIFF
    directory = ImageFileDirectory_v2(data[:start])
    file = io.BytesIO(data)
    file.seek(directory.next)
    directory.load(file)
    return directory


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _dtype(bits: int, kind: int) -> np.dtype[Any]:
    letter = {1: "u", 2: "i", 3: "f", 4: "u"}.get(kind)
    wide = next((size for size in (8, 16, 32, 64) if bits <= size), 0)
    if letter is None or not wide or (bits != wide and (letter != "u" or bits > 16)) or (letter == "f" and bits < 16):
        raise UnreadableError(f"has samples of {bits} bits in the TIFF format {kind}, which is not supported")
    return np.dtype(f"{letter}{wide // 8}")


def _chunks(data: bytes, page: Page, count: int) -> list[np.ndarray[Any, Any]]:
    """Return the strips or tiles as `(rows, width, count)`, in the order of the file."""
    tags = page.tags
    tiled = 324 in tags
    offsets, counts = _tuple(tags[324 if tiled else 273]), _tuple(tags.get(325 if tiled else 279, len(data)))
    if tiled:
        width, rows = tags[322], tags[323]
        sizes = [rows] * len(offsets)
    else:
        width, rows = page.width, min(tags.get(278, page.height), page.height)
        each = -(-page.height // rows)
        sizes = [min(rows, page.height - i % each * rows) for i in range(len(offsets))]
    row_bytes = -(-width * count * page.bits // 8)
    order = "<" if data[:1] == b"I" else ">"
    return [
        _samples(_bytes(data[start : start + length], page, row_bytes, size), page, order, (size, width, count))
        for start, length, size in zip(offsets, counts, sizes, strict=True)
    ]


def _bytes(chunk: bytes, page: Page, width: int, rows: int) -> np.ndarray[Any, Any]:
    """Decompress a strip or tile to `(rows, width)` bytes."""
    compression = page.tags.get(259, _UNCOMPRESSED)
    if compression == _UNCOMPRESSED:
        return np.frombuffer(chunk, "uint8", rows * width).reshape(rows, width)
    tags = {256: width, 257: rows, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: rows, 279: len(chunk)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    file = b"II*\0" + struct.pack("<I", 8 + len(chunk)) + chunk + directory
    with Image.open(io.BytesIO(file), formats=("TIFF",)) as image:
        return np.asarray(image)


def _samples(
    raw: np.ndarray[Any, Any], page: Page, order: Literal["<", ">"], shape: tuple[int, int, int]
) -> np.ndarray[Any, Any]:
    """Turn the bytes of a strip or tile into samples `shape`, undoing the predictor."""
    rows, width, count = shape
    predictor, size = page.tags.get(317, 1), page.dtype.itemsize
    if page.bits < 8 * size:  # packed, the first sample in the upper bits
        bits = np.unpackbits(raw, axis=1)[:, : width * count * page.bits].reshape(rows, width, count, page.bits)
        return (bits @ (1 << np.arange(page.bits)[::-1])).astype(page.dtype)
    if predictor == 3:  # floats: the bytes of a row by significance, each as its difference to the one before
        parts = np.cumsum(raw.reshape(rows, -1, count), axis=1, dtype="uint8").reshape(rows, size, width * count)
        values = np.ascontiguousarray(parts.transpose(0, 2, 1)).view(page.dtype.newbyteorder(">"))
        return values.reshape(shape).astype(page.dtype)
    values = np.ascontiguousarray(raw).view(page.dtype.newbyteorder(order)).reshape(shape).astype(page.dtype)
    if predictor == 2:
        unsigned = values.view(f"u{size}")
        values = np.cumsum(unsigned, axis=1, dtype=unsigned.dtype).view(page.dtype)
    return values


def _joined(chunks: list[np.ndarray[Any, Any]], page: Page) -> np.ndarray[Any, Any]:
    """Put strips or tiles together, and cut off what they have beyond the image."""
    across = -(-page.width // chunks[0].shape[1])
    rows = [np.concatenate(chunks[i : i + across], 1) for i in range(0, len(chunks), across)]
    image = np.concatenate(rows, 0)[: page.height, : page.width]
    if image.shape[:2] != (page.height, page.width):
        raise UnreadableError("is damaged: it has fewer strips or tiles than its size needs")
    return image
