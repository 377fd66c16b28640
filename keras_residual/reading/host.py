"""Decode an image file on the host, choosing the decoder that reads it correctly.

JPEG (grayscale and color) and opaque 8-bit PNG are decoded by TensorFlow kernels, which agree with Pillow to the bit
and can decode part of a JPEG. So are other PNGs, here but not inside a `tf.data` graph. TIFF that Pillow cannot read in
full is read by `tiff`, NumPy files and DICOM by `scientific`, and everything else (GIF, BMP, WebP, AVIF, JPEG 2000,
PPM, CMYK JPEG) by Pillow, because TensorFlow reads it incorrectly (palette BMP), not at all (AVIF), or decodes all
frames when only one is needed (GIF).

The result is upright, and obeys `rules.Reading`:

* transparent images are composited on the background;
* samples are mapped from their range to 0..255, as float32 if the dataset has more than 8 bits per sample, and as uint8
  otherwise;
* the orientation in EXIF, in XMP or in a TIFF tag is applied;
* only the first frame or page is used;
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

from keras_residual.reading import scientific, tiff
from keras_residual.reading.rules import Reading, scale
from keras_residual.reading.samples import LUMA, Samples, UnreadableError, array, fixed_range, kind_of

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


@dataclasses.dataclass(frozen=True)
class Header:
    """Properties of an image according to its header.

    Attributes:
        how: Decoder: `JPEG`, `PNG` or `PILLOW`.
        height: Height as stored, before the orientation is applied.
        width: Width as stored, before the orientation is applied.
        orientation: EXIF orientation, 1 to 8, still to be applied to the samples that `stored` returns.
        notes: Remarks for the user: `"animated"`, `"several pages"`, `"transparent"`, `"CMYK"`.
        kind: Sample type, such as `"uint8"`; see `samples.kind_of`.
        channels: Number of channels, not counting transparency.
    """

    how: int
    height: int
    width: int
    orientation: int = 1
    notes: tuple[str, ...] = ()
    kind: str = "uint8"
    channels: int = 3


def header(data: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Read the header of an image without decoding any pixels.

    Raises:
        UnreadableError: If the bytes are not an image, or its header declares more than `max_pixels`.
    """
    _check_decoding_cost(data)
    try:
        head = _other_header(data) or _pillow_header(data)
        if head.width * head.height > max_pixels:
            raise UnreadableError(
                f"declares {head.width:,} x {head.height:,} pixels, more than max_pixels={max_pixels:,}; "
                "resize it, or increase max_pixels if the size is intended"
            )
        return head
    except UnreadableError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableError(f"declares far more pixels than max_pixels={max_pixels:,}") from None
    except UnidentifiedImageError:
        raise UnreadableError(_describe_unknown(data)) from None
    except Exception as error:  # Pillow's parsers raise many kinds of exceptions
        raise UnreadableError(f"is damaged: its header cannot be read ({_short(error)})") from None


def decode(data: bytes, reading: Reading | None = None, max_pixels: int = MAX_PIXELS) -> np.ndarray[Any, Any]:
    """Decode one image of any supported format to the pixels used in training and evaluation.

    Args:
        data: Content of the file.
        reading: How the image is read; by default 8-bit RGB, composited on white.
        max_pixels: Larger images are rejected before decoding.

    Returns:
        `(height, width, reading.channels)`, upright, on a scale of 0..255: uint8 or float32, as `reading.dtype`.

    Raises:
        UnreadableError: If the image cannot be used; a `ValueError` with the reason as its message.
    """
    reading = Reading() if reading is None else reading
    head = header(data, max_pixels)
    samples = stored(data, head)
    return array(upright(samples, head.orientation), reading)


def stored(data: bytes, head: Header) -> Samples:
    """Return the samples of an image; upright, except if `head.orientation` is not 1.

    Raises:
        UnreadableError: If the image cannot be decoded.
    """
    try:
        if head.how in (JPEG, PNG):
            return Samples(_native_pixels(data, head))
        if data.startswith(b"\x89PNG"):
            return _png_samples(data, head)
        if scientific.is_ours(data):
            return scientific.samples(data)
        page = tiff.page(data)
        if page is not None:
            return upright(tiff.samples(data, page), page.orientation)
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return picture_samples(image)
    except (UnreadableError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableError(f"is damaged or truncated ({_short(error)})") from None


def _native_pixels(data: bytes, head: Header) -> np.ndarray[Any, Any]:
    return _decoded_by_tensorflow(decode_jpeg if head.how == JPEG else decode_png, data, head)


def _png_samples(data: bytes, head: Header) -> Samples:
    """Read a PNG with transparency or 16 bits; unlike Pillow, TensorFlow keeps both."""
    alpha = "transparent" in head.notes
    dtype = tf.uint16 if head.kind == "uint16" else tf.uint8
    values = _decoded_by_tensorflow(lambda d: tf.io.decode_png(d, 4 if alpha else 3, dtype), data, head)
    color = values[..., : head.channels]
    return Samples(color, fixed_range(color.dtype), values[..., 3:] if alpha else None)


def _decoded_by_tensorflow(decoder: Any, data: bytes, head: Header) -> np.ndarray[Any, Any]:
    try:
        with tf.device("CPU:0"):
            image = decoder(tf.constant(data)).numpy()
    except tf.errors.OpError:
        raise UnreadableError("is damaged or truncated: its header is complete, but its pixels are not") from None
    if image.shape[:2] != (head.height, head.width):
        raise UnreadableError("is damaged: its size differs from the size in its header")
    return image


def upright(samples: Samples, orientation: int) -> Samples:
    """Turn and mirror samples as an EXIF orientation requires."""
    transpose, upside_down, mirrored = ORIENTATIONS.get(orientation, ORIENTATIONS[1])

    def turned(image: Any) -> Any:
        if image is None:
            return None
        image = image.transpose(1, 0, 2) if transpose else image
        return image[:: -1 if upside_down else 1, :: -1 if mirrored else 1]

    return dataclasses.replace(samples, values=turned(samples.values), alpha=turned(samples.alpha))


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


def picture(image: Image.Image, reading: Reading | None = None) -> np.ndarray[Any, Any]:
    """Return the pixels of a PIL image of any mode, upright, as `decode` returns those of a file.

    Raises:
        UnreadableError: If the image cannot be decoded or converted.
    """
    try:
        samples = picture_samples(image)
    except (UnreadableError, MemoryError):
        raise
    except Exception as error:
        raise UnreadableError(f"is damaged or truncated ({_short(error)})") from None
    return array(samples, Reading() if reading is None else reading)


def picture_samples(image: Image.Image) -> Samples:
    """Return the samples of a PIL image, upright."""
    ppm = image.format == "PPM"
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        values = np.asarray(image)[..., None]
        return Samples(values.astype("uint16"), fixed_range("uint16"))
    if image.mode == "I" and ppm:  # Pillow scales more than 8 bits to 16
        return Samples(np.asarray(image)[..., None].astype("uint16"), fixed_range("uint16"))
    if image.mode in ("I", "F"):
        return Samples(np.asarray(image)[..., None], None)
    if image.mode in ("LAB", "HSV"):
        raise UnreadableError(f"is in the {image.mode} color space; save it as RGB")
    grey = image.mode in ("1", "L", "LA", "La")
    if not _transparent(image):
        values = np.array(image.convert("L" if grey else "RGB"))
        return Samples(values[..., None] if grey else values)
    if image.mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert("LA" if grey else "RGBA")
    values = np.array(image.convert("RGBA"))
    return Samples(values[..., : 1 if grey else 3], alpha=values[..., 3:])


def finished(image: Any, reading: Reading) -> Any:
    """Turn 8-bit opaque RGB `(..., 3)`, a tensor, into what `reading` describes, as `decode` does."""
    if reading.channels == 1 and reading.range is None:
        image = grey(image)
    if reading.range is not None:
        image = tf.clip_by_value(scale(tf.cast(image, tf.float32), *reading.range), 0.0, 255.0)
        if reading.channels == 1:
            image = tf.reduce_sum(image * (np.array(LUMA, "float32") / 0x10000), -1, keepdims=True)
        image = tf.round(image) if reading.dtype == "uint8" else image
    return tf.cast(image, reading.dtype)


def grey(image: Any) -> Any:
    """Convert RGB `(..., 3)` to grayscale `(..., 1)`, a uint8 tensor, with Pillow's formula for mode "L"."""
    parts = tf.cast(image, tf.int32) * tf.constant(LUMA)
    return tf.cast((tf.reduce_sum(parts, -1, keepdims=True) + 0x8000) // 0x10000, tf.uint8)


# ------------------------------------------------------------------------------------------------------- the header


def _check_decoding_cost(data: bytes) -> None:
    """Reject small files that would take a decoder hours."""
    if data.startswith(b"\xff\xd8") and data.count(SCAN) > MOST_SCANS:
        raise UnreadableError(f"is damaged: it has {data.count(SCAN):,} scans, far more than any encoder writes")
    if data.startswith(b"\x89PNG") and sum(map(data.count, TEXTS)) > MOST_TEXTS:
        raise UnreadableError("is damaged: it has far more compressed texts than any encoder writes")


def _other_header(data: bytes) -> Header | None:
    """Return the header of a file that Pillow does not read, or not in full; `None` for any other file."""
    if scientific.is_ours(data):
        height, width, channels, kind, notes = scientific.header(data)
        return Header(PILLOW, height, width, 1, notes, kind, channels)
    page = tiff.page(data)
    if page is None:
        return None
    height, width = (page.width, page.height) if page.orientation > 4 else (page.height, page.width)
    notes = {"several pages": tiff.has_more_pages(data), "transparent": page.alpha}
    kind = kind_of(page.dtype, page.range)
    return Header(PILLOW, height, width, 1, tuple(n for n, found in notes.items() if found), kind, page.channels)


def _pillow_header(data: bytes) -> Header:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:  # reads only the header
        width, height = image.size
        native = _native(image, data)
        notes = tuple(name for name, found in _notes(image).items() if found)
        turned_by_us = native != PILLOW or image.format == "PNG"
        orientation = _orientation(image, data) if turned_by_us else 1
        return Header(native, height, width, orientation, notes, _kind(image, data), _channels(image, data))


def _native(image: Image.Image, data: bytes) -> int:
    if image.format in ("JPEG", "MPO"):
        return JPEG if image.mode in ("L", "RGB") else PILLOW
    plain = image.format == "PNG" and data[24:25] != b"\x10" and not _transparent(image)
    return PNG if plain else PILLOW


def _kind(image: Image.Image, data: bytes) -> str:
    if image.format == "PNG":
        return "uint16" if data[24:25] == b"\x10" else "uint8"
    wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
    return "uint16" if wide else {"I": "int32", "F": "float32"}.get(image.mode, "uint8")


def _channels(image: Image.Image, data: bytes) -> int:
    if image.format == "PNG":
        return 1 if data[25:26] in (b"\0", b"\4") else 3
    return 1 if image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;16") else 3


def _transparent(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info


def _notes(image: Image.Image) -> dict[str, bool]:
    return {
        "animated": image.format not in ("MPO", "TIFF") and bool(getattr(image, "is_animated", False)),
        "several pages": image.format == "TIFF" and getattr(image, "n_frames", 1) > 1,
        "transparent": _transparent(image),
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
