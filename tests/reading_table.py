"""The table of modes and formats in the manual: which images an export reads as training does.

`python -m tests.reading_table` rewrites it between the lines that mark it.
"""

import contextlib
import re
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_residual.data import validation
from keras_residual.reading import graph
from keras_residual.reading.rules import Reading

from .data_images import encoded, picture

PAGE = Path(__file__).parents[1] / "docs" / "pages" / "reference" / "signatures.md"
PLACE = re.compile(r"(<!-- written by `python -m tests\.reading_table` -->\n).*?(<!-- table end -->)", re.DOTALL)
FORMATS = {
    "JPEG": {"quality": 92},
    "PNG": {},
    "WebP": {"lossless": True, "exact": True},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "AVIF": {"quality": 95},
    "JPEG 2000": {},
}
NONE, SAME, TRAINING = "", "same", "training only"


def modes():
    """Sixteen kinds of pixels, by name."""
    color = Image.fromarray(picture())
    grey, alpha = color.convert("L"), Image.fromarray(picture(seed=5)[..., 0])

    def clear(image):
        image = image.copy()
        image.putalpha(alpha)
        return image

    deep = (np.asarray(grey).astype("uint16") << 8) | np.arange(53, dtype="uint16")
    return {
        "color": color,
        "gray": grey,
        "1 bit": color.convert("1"),
        "palette of 256": color.quantize(256),
        "palette of 16": color.quantize(16),
        "palette of 4": color.quantize(4),
        "palette of 2": color.quantize(2),
        "gray palette": grey.convert("P"),
        "color and alpha": clear(color),
        "gray and alpha": clear(grey),
        "transparent palette": clear(color).quantize(64),
        "opaque alpha": color.convert("RGBA"),
        "CMYK": color.convert("CMYK"),
        "YCbCr": color.convert("YCbCr"),
        "16-bit gray": Image.fromarray(deep),
        "one pixel": color.crop((3, 3, 4, 4)),
    }


def files():
    """Yield mode, format and bytes of everything that Pillow writes, except 16 bits where it clips them."""
    for mode, image in modes().items():
        for kind, options in FORMATS.items():
            if mode != "16-bit gray" or kind in ("PNG", "TIFF", "JPEG 2000"):
                with contextlib.suppress(OSError, ValueError, KeyError):
                    yield mode, kind, encoded(image, kind.replace(" ", "").upper(), **options)


def decoder(reading):
    """The decoder of an export without a network: bytes -> pixels, and the reason to reject them."""

    @tf.function(input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
    def decoded(content):
        header = graph._read_header(content)
        reason = graph._reason(content, header, (1, 1), 10**8)
        empty = tf.zeros((0, 0, reading.channels), reading.dtype)
        return tf.cond(reason == "", lambda: graph._decoder(reading)(content, header), lambda: empty), reason

    def call(data):
        pixels, reason = decoded(data)
        return pixels.numpy(), reason.numpy().decode()

    return call


def table():
    """Return the table in Markdown."""
    decoded, cells = decoder(Reading()), {}
    for mode, kind, data in files():
        accepted, refused = not validation.scan_bytes([data])[0].reason, bool(decoded(data)[1])
        cells[mode, kind] = (TRAINING if accepted else NONE) if refused else SAME
    lines = [["Pixels", *FORMATS], ["---"] * (1 + len(FORMATS))]
    lines += [[mode, *(cells.get((mode, kind), NONE) for kind in FORMATS)] for mode in modes()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_table(text):
    return PLACE.sub(lambda found: f"{found[1]}\n{table()}\n\n{found[2]}", text)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
