"""One image file, from bytes to pixels: which decoder reads it right, and what its pixels are.

JPEG (grey and colour) and PNG go through TensorFlow's own kernels, which agree with Pillow to the bit and can decode a
part of a JPEG; everything else (GIF, BMP, WebP, TIFF, AVIF, JPEG 2000, PPM, CMYK JPEG) goes through Pillow, because
TensorFlow reads it wrongly (palette BMP), not at all (TIFF, AVIF), or whole where a frame is asked for (GIF).

The result is always what one sees, as 8-bit RGB:

* the EXIF orientation is applied;
* 16-bit samples keep their high byte (Pillow's `convert` would clip them); 32-bit and float samples have no fixed
  range and are refused;
* transparency is dropped, as in torchvision, timm and `tf.io.decode_image`: a network that is trained here sees the
  pixels that it sees when it is served;
* of an animation the first frame counts;
* colour profiles are not applied.
"""

from __future__ import annotations

import dataclasses
import io
import re
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# How a file is decoded.
JPEG, PNG, PILLOW = 0, 1, 2

# Formats that are tried, and no others: Pillow also knows some that run programs (EPS).
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "WEBP", "TIFF", "AVIF", "JPEG2000", "PPM")
READ = "JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF, JPEG 2000 and PPM"
MAX_PIXELS = 64_000_000  # 192 MB as RGB

# Decoders work through each scan of a JPEG and each compressed text of a PNG, even of a small file: millions of them
# take hours. jpegtran writes 100 scans at most, and a thumbnail may have a few.
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
    """An image that cannot be used; the message is the reason, in the user's terms."""


@dataclasses.dataclass(frozen=True)
class Header:
    """What the first bytes of an image say.

    Attributes:
        how: `JPEG`, `PNG` or `PILLOW`.
        height: Rows as stored, before the orientation is applied.
        width: Columns likewise.
        orientation: EXIF's number, 1 to 8; 1 for `PILLOW`, which applies it itself.
        notes: What a user should know: `"animated"`, `"transparent"`, `"16-bit"`, `"CMYK"`.
    """

    how: int
    height: int
    width: int
    orientation: int = 1
    notes: tuple[str, ...] = ()


def header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Read the header of an image; no pixel is decoded.

    Raises:
        UnreadableError: If the bytes are no image, or declare more than `max_pixels`.
    """
    _refuse_endless_work(data)
    try:
        # Pillow reads the header only
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UnreadableError(
                    f"declares {width:,} x {height:,} pixels, more than max_pixels={max_pixels:,}; "
                    "make it smaller, or raise max_pixels if it is meant"
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
        raise UnreadableError(_what_it_is(data)) from None
    except Exception as error:  # parsers fail in ways of their own
        raise UnreadableError(f"is damaged: its header cannot be read ({_short(error)})") from None


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray[Any, Any]:
    """Decodes one image of any format that is read: what training and evaluation see of it.

    Args:
        data: The bytes of the file.
        max_pixels: Larger images are refused before they are decoded.

    Returns:
        `(height, width, 3)`, uint8, upright.

    Raises:
        UnreadableError: A `ValueError` whose message is the reason.
    """
    head = header(data, max_pixels)
    if head.how == PILLOW:
        return pillow_pixels(data)
    try:
        with tf.device("CPU:0"):
            image = (decode_jpeg if head.how == JPEG else decode_png)(tf.constant(data)).numpy()
    except tf.errors.OpError:
        raise UnreadableError("is damaged or cut off: its header is whole, its pixels are not") from None
    if image.shape[:2] != (head.height, head.width):
        raise UnreadableError("is damaged: its parts disagree about its size")
    transpose, upside_down, mirrored = ORIENTATIONS[head.orientation]
    image = image.transpose(1, 0, 2) if transpose else image
    return np.ascontiguousarray(image[:: -1 if upside_down else 1, :: -1 if mirrored else 1])


def decode_jpeg(data: Any, ratio: int = 1) -> Any:
    """JPEG bytes -> `(height, width, 3)`, as stored. This IDCT is Pillow's, to the bit; the default one is not."""
    return tf.io.decode_jpeg(data, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")


def decode_jpeg_window(data: Any, window: Any, ratio: int = 1) -> Any:
    """Part of a JPEG; `window` is `(top, left, height, width)` of the image scaled down by `ratio` (1, 2, 4 or 8).

    Scaling by the IDCT averages, and costs less than decoding all. At the window's edges colours may differ by a few
    levels from those of the whole image: chroma is interpolated without the neighbours outside.
    """
    return tf.io.decode_and_crop_jpeg(data, window, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")


def decode_png(data: Any) -> Any:
    """PNG bytes -> `(height, width, 3)`, as stored."""
    return tf.io.decode_png(data, channels=3)


def pillow_pixels(data: bytes) -> np.ndarray[Any, Any]:
    """The slower, careful path: `(height, width, 3)`, uint8, upright.

    Raises:
        UnreadableError: With the reason.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return rgb(image)
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError(f"is damaged or cut off ({_short(error)})") from None


def rgb(image: Image.Image) -> np.ndarray[Any, Any]:
    """Return the pixels of a Pillow image of any mode: `(height, width, 3)`, uint8, upright.

    Raises:
        UnreadableError: With the reason.
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
            raise UnreadableError(f"is in the {image.mode} colour space; save it as RGB")
        if image.mode in ("La", "RGBa"):  # colours that are already multiplied by their opacity
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        return np.array(image.convert("RGB"))
    except UnreadableError:
        raise
    except Exception as error:
        raise UnreadableError(f"is damaged or cut off ({_short(error)})") from None


def grey(image: Any) -> Any:
    """`(..., 3)` -> `(..., 1)`, uint8, by Pillow's rule for mode "L"; a tensor."""
    parts = tf.cast(image, tf.int32) * tf.constant([19595, 38470, 7471])
    return tf.cast((tf.reduce_sum(parts, -1, keepdims=True) + 0x8000) // 0x10000, tf.uint8)


# ------------------------------------------------------------------------------------------------------- the header


def _refuse_endless_work(data: bytes) -> None:
    if data.startswith(b"\xff\xd8") and data.count(SCAN) > MOST_SCANS:
        raise UnreadableError(f"is damaged: it has {data.count(SCAN):,} scans, far more than encoders write")
    if data.startswith(b"\x89PNG") and sum(map(data.count, TEXTS)) > MOST_TEXTS:
        raise UnreadableError("is damaged: it has far more compressed texts than encoders write")


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
        return 1  # to look for EXIF at a PNG's end, Pillow would decode all of it
    try:
        found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # EXIF that cannot be read turns nothing
        return 1
    return found if found in ORIENTATIONS else 1


_KINDS = (
    (rb"\x00\x05\x16[\x00\x07]", "is a file of macOS' own (its name starts with ._), not an image"),
    (rb"....ftyp(heic|heix|hevc|heim|heis|hevm|mif1|msf1)", "is a HEIC photo, which is not read; convert it to JPEG"),
    (rb"(?i)\s*(<!doctype html|<html|<head|<body)", "is a web page, not an image: a download that failed"),
    (rb"(?i)\s*(<\?xml.{0,400})?<svg", "is an SVG drawing, which is not read; save it as PNG"),
    (rb"%PDF|%!PS", "is a PDF or PostScript document; save its pages as PNG"),
    (rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "is an archive, not an image; unpack it"),
    (rb"version https://git-lfs", "is a pointer of Git LFS, not the image itself: run `git lfs pull`"),
    (rb"\xff\xd8\xff|\x89PNG|GIF8|RIFF....WEBP|II\*\x00|MM\x00\*|BM", "is damaged: its header cannot be read"),
)


def _what_it_is(data: bytes) -> str:
    if not data:
        return "is empty"
    for pattern, reason in _KINDS:
        if re.match(pattern, data[:1000], re.DOTALL):
            return reason
    if not any(data[:4096]):
        return "holds zero bytes only, as after a crash or a copy that failed"
    if not re.search(rb"[^\t\n\r\x20-\x7e\x80-\xff]", data[:1000]):
        return "is text, not an image"
    return f"is not an image that is read, which are {READ}"


def _short(error: Exception) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    words = re.sub(r"<_io\.BytesIO object at \w+>", "the file", words)
    return words if len(words) <= 90 else words[:87] + "..."
