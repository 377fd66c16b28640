"""Decode an image file on the host, choosing the decoder that reads it correctly.

JPEG (grayscale and color) and PNG are decoded by TensorFlow kernels, which agree with Pillow to the bit and can decode
part of a JPEG. Everything else (GIF, BMP, WebP, TIFF, AVIF, JPEG 2000, PPM, CMYK JPEG) is decoded by Pillow, because
TensorFlow reads it incorrectly (palette BMP), not at all (TIFF, AVIF), or decodes all frames when only one is needed
(GIF).

The result is always upright 8-bit RGB:

* the EXIF orientation is applied;
* 16-bit samples keep their high byte (Pillow's `convert` would clip them); 32-bit and float samples have no fixed
  range and are rejected;
* transparency is dropped, as in torchvision, timm and `tf.io.decode_image`, so that a network receives the same pixels
  in training and in serving;
* only the first frame of an animation is used;
* color profiles are not applied.
"""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# Decoders of a file.
JPEG, PNG, PILLOW = 0, 1, 2

# Only these formats are tried, because Pillow runs external programs for some others (EPS).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "JPEG2000", "PPM")
READ = "JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF, JPEG 2000 and PPM"
MAX_PIXELS = 64_000_000  # 192 MB as RGB

# Decoders process every scan of a JPEG and every compressed text of a PNG, so that a small file with millions of them
# takes hours. jpegtran writes at most 100 scans, and an embedded thumbnail may add a few.
SCAN, MOST_SCANS = b"\xff\xda", 128
TEXTS, MOST_TEXTS = (b"zTXt", b"iTXt", b"iCCP"), 100

# The EXIF orientation as (transpose, flip upside down, flip left to right), applied in this order.
ORIENTATIONS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class UnreadableError(ValueError):
    """Error for an image that cannot be used, with the reason as its message."""


@dataclasses.dataclass(frozen=True)
class Header:
    """Properties of an image according to its header.

    Attributes:
        how: Decoder: `JPEG`, `PNG` or `PILLOW`.
        height: Height as stored, before the orientation is applied.
        width: Width as stored, before the orientation is applied.
        orientation: EXIF orientation, 1 to 8; always 1 for `PILLOW`, because that decoder applies it.
        notes: Remarks for the user: `"animated"`, `"several pages"`, `"transparent"`, `"16-bit"`, `"CMYK"`.
    """

    how: int
    height: int
    width: int
    orientation: int = 1
    notes: tuple[str, ...] = ()


def header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Read the header of an image without decoding any pixels.

    Raises:
        UnreadableError: If the bytes are not an image, or its header declares more than `max_pixels`.
    """
    _check_decoding_cost(data)
    try:
        # Image.open reads only the header.
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UnreadableError(
                    f"declares {width:,} x {height:,} pixels, more than max_pixels={max_pixels:,}; "
                    "resize it, or increase max_pixels if the size is intended"
                )
            native = _native(image)
            notes = tuple(name for name, found in _notes(image, data).items() if found)
            orientation = 1 if native == PILLOW else _orientation(image, data)
            return Header(native, height, width, orientation, notes)
    except UnreadableError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableError(f"declares far more pixels than max_pixels={max_pixels:,}") from None
    except UnidentifiedImageError:
        raise UnreadableError(_describe_unknown(data)) from None
    except Exception as error:  # Pillow's parsers raise many kinds of exceptions
        raise UnreadableError(f"is damaged: its header cannot be read ({_short(error)})") from None


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray[Any, Any]:
    """Decode one image of any supported format to the pixels used in training and evaluation.

    Args:
        data: Content of the file.
        max_pixels: Larger images are rejected before decoding.

    Returns:
        `(height, width, 3)`, uint8, upright.

    Raises:
        UnreadableError: If the image cannot be used; a `ValueError` with the reason as its message.
    """
    head = header(data, max_pixels)
    if head.how == PILLOW:
        return pillow_pixels(data)
    try:
        with tf.device("CPU:0"):
            image = (decode_jpeg if head.how == JPEG else decode_png)(tf.constant(data)).numpy()
    except tf.errors.OpError:
        raise UnreadableError("is damaged or truncated: its header is complete, but its pixels are not") from None
    if image.shape[:2] != (head.height, head.width):
        raise UnreadableError("is damaged: its size differs from the size in its header")
    transpose, upside_down, mirrored = ORIENTATIONS[head.orientation]
    image = image.transpose(1, 0, 2) if transpose else image
    return np.ascontiguousarray(image[:: -1 if upside_down else 1, :: -1 if mirrored else 1])


def decode_jpeg(data: Any, ratio: int = 1) -> Any:
    """Decode a JPEG to `(height, width, 3)`, as stored, with the IDCT that agrees with Pillow to the bit."""
    return tf.io.decode_jpeg(_ended(data), channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")


def decode_jpeg_window(data: Any, window: Any, ratio: int = 1) -> Any:
    """Decode part of a JPEG.

    Scaling in the IDCT averages pixels and is faster than decoding at full size. At the edges of the window, colors may
    differ by a few levels from those of the full image, because chroma is interpolated without the neighbors outside.

    Args:
        data: Content of the file.
        window: `(top, left, height, width)` in the image scaled down by `ratio`.
        ratio: 1, 2, 4 or 8.
    """
    return tf.io.decode_and_crop_jpeg(_ended(data), window, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")


def _ended(data: Any) -> Any:
    """Append an end marker: TensorFlow rejects a JPEG without one even if it has every pixel, and ignores a second."""
    return tf.strings.join([data, b"\xff\xd9"])


def decode_png(data: Any) -> Any:
    """Decode a PNG to `(height, width, 3)`, as stored."""
    return tf.io.decode_png(data, channels=3)


def pillow_pixels(data: bytes) -> np.ndarray[Any, Any]:
    """Decode an image with Pillow to `(height, width, 3)`, uint8, upright; slower, but for every supported format.

    Raises:
        UnreadableError: If the image cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return rgb(image)
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError(f"is damaged or truncated ({_short(error)})") from None


def rgb(image: Image.Image) -> np.ndarray[Any, Any]:
    """Return the pixels of a PIL image of any mode: `(height, width, 3)`, uint8, upright.

    Raises:
        UnreadableError: If the image cannot be decoded or converted.
    """
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            grey = (np.asarray(image) >> 8).astype("uint8")
            return np.repeat(grey[..., None], 3, axis=-1)
        if image.mode in ("I", "F"):
            raise UnreadableError("has 32-bit samples, which have no fixed range; save it with 8 or 16 bits")
        if image.mode in ("LAB", "HSV"):
            raise UnreadableError(f"is in the {image.mode} color space; save it as RGB")
        if image.mode in ("La", "RGBa"):  # premultiplied alpha
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        return np.array(image.convert("RGB"))
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError(f"is damaged or truncated ({_short(error)})") from None


def grey(image: Any) -> Any:
    """Convert RGB `(..., 3)` to grayscale `(..., 1)`, a uint8 tensor, with Pillow's formula for mode "L"."""
    parts = tf.cast(image, tf.int32) * tf.constant([19595, 38470, 7471])
    return tf.cast((tf.reduce_sum(parts, -1, keepdims=True) + 0x8000) // 0x10000, tf.uint8)


# ------------------------------------------------------------------------------------------------------- the header


def _check_decoding_cost(data: bytes) -> None:
    """Reject small files that would take a decoder hours."""
    if data.startswith(b"\xff\xd8") and data.count(SCAN) > MOST_SCANS:
        raise UnreadableError(f"is damaged: it has {data.count(SCAN):,} scans, far more than any encoder writes")
    if data.startswith(b"\x89PNG") and sum(map(data.count, TEXTS)) > MOST_TEXTS:
        raise UnreadableError("is damaged: it has far more compressed texts than any encoder writes")


def _native(image: Image.Image) -> int:
    if image.format in ("JPEG", "MPO"):
        return JPEG if image.mode in ("L", "RGB") else PILLOW
    return PNG if image.format == "PNG" else PILLOW


def _notes(image: Image.Image, data: bytes) -> dict[str, bool]:
    png = image.format == "PNG"
    return {
        "animated": image.format not in ("MPO", "TIFF") and bool(getattr(image, "is_animated", False)),
        "several pages": image.format == "TIFF" and getattr(image, "n_frames", 1) > 1,
        "transparent": image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info,
        "16-bit": image.mode.startswith("I;16") or (png and data[24:25] == b"\x10"),
        "CMYK": image.mode == "CMYK",
    }


def _orientation(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG" and not re.search(b"eXIf|Raw profile type|com.adobe.xmp", data):
        return 1  # Pillow would decode the complete PNG to look for EXIF at its end
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # ignore unreadable EXIF
        return 1
    return found if found in ORIENTATIONS else 1


_KINDS = (
    (rb"\x00\x05\x16[\x00\x07]", "is a macOS metadata file (its name starts with ._), not an image"),
    (
        rb"....ftyp(heic|heix|hevc|heim|heis|hevm|mif1|msf1)",
        "is a HEIC photo, which is not supported; convert it to JPEG",
    ),
    (rb"(?i)\s*(<!doctype html|<html|<head|<body)", "is a web page, not an image, probably from a failed download"),
    (rb"(?i)\s*(<\?xml.{0,400})?<svg", "is an SVG drawing, which is not supported; save it as PNG"),
    (rb"%PDF|%!PS", "is a PDF or PostScript document; save its pages as PNG"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "is an archive, not an image; unpack it"),
    (rb"version https://git-lfs", "is a Git LFS pointer, not the image; run `git lfs pull`"),
    (rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|II\*\x00|MM\x00\*|BM", "is damaged: its header cannot be read"),
)


def _describe_unknown(data: bytes) -> str:
    """Return why bytes that Pillow does not recognize cannot be used."""
    if not data:
        return "is empty"
    for pattern, reason in _KINDS:
        if re.match(pattern, data[:1000], re.DOTALL):
            return reason
    if not any(data[:4096]):
        return "has only zero bytes, probably from a crash or a failed copy"
    if not re.search(rb"[^\t\n\r\x20-\x7e\x80-\xff]", data[:1000]):
        return "is text, not an image"
    return f"is not an image in a supported format ({READ})"


def _short(error: Exception) -> str:
    message = " ".join(str(error).split()) or type(error).__name__
    message = re.sub(r"<_io\.BytesIO object at \w+>", "the file", message)
    return message if len(message) <= 90 else message[:87] + "..."
