"""Image files for the tests of `keras_residual.data`, written by Pillow or by hand; nothing here is our own decoder."""

import io
import os
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps


def picture(height=45, width=53, seed=0):
    """Something like a photo, `(height, width, 3)`: smooth, so that JPEG does not matter, and different everywhere."""
    noise = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype("uint8")
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, kind, **options):
    """The bytes of an image `(H, W[, C])` or a Pillow image in one of Pillow's formats."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def seen(data, background=(255, 255, 255)):
    """Pillow's opinion of a file, composited in integers: `(H, W, 3)`, upright; of 16 bits the upper byte."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image) // 256).astype("uint8")[..., None], 3, -1)
    if background is None:
        return np.asarray(image.convert("RGB"))
    color, alpha = np.split(np.asarray(image.convert("RGBA")).astype(int), [3], -1)
    return ((color * alpha + np.array(background) * (255 - alpha) + 127) // 255).astype("uint8")


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def png(width, height, depth=8, colour=2, body=None, crc=None, extra=b""):
    """A PNG by hand, with a header that may lie: `body` is its uncompressed data."""

    def chunk(kind, data, crc=None):
        return (
            struct.pack(">I", len(data))
            + kind
            + data
            + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    body = b"\0" * 64 if body is None else body
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(body), crc) + chunk(b"IEND", b"")


def bmp_header(width, height):
    return (
        b"BM"
        + struct.pack("<IHHI", 54, 0, 0, 54)
        + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    )


def jpeg_that_declares(width, height):
    """A whole small JPEG whose header says another size."""
    data = bytearray(encoded(picture(16, 16), "JPEG"))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def gif_that_declares(width, height):
    data = bytearray(encoded(picture(8, 8), "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


JPEG = encoded(picture(), "JPEG", quality=90)
PNG = encoded(picture(), "PNG")
BOMBS = {
    "png.png": png(60_000, 60_000),
    "deflate.png": png(20_000, 20_000, body=bytes(40_000_000)),  # 40 kB that unpack to much more
    "grey.png": png(50_000, 50_000, 1, 0),
    "jpeg.jpg": jpeg_that_declares(65_000, 65_000),
    "bmp.bmp": bmp_header(40_000, 40_000) + bytes(100),
    "gif.gif": gif_that_declares(65_000, 65_000),
    "tiff.tif": None,  # filled in below
    "webp.webp": None,
}


def _tiff_that_declares(width, height):
    data = bytearray(encoded(picture(8, 8), "TIFF"))
    start = struct.unpack("<I", data[4:8])[0]
    for i in range(struct.unpack("<H", data[start : start + 2])[0]):
        place = start + 2 + 12 * i
        tag = struct.unpack("<H", data[place : place + 2])[0]
        if tag in (256, 257):
            data[place : place + 12] = struct.pack("<HHII", tag, 4, 1, width if tag == 256 else height)
    return bytes(data)


BOMBS["tiff.tif"] = _tiff_that_declares(50_000, 50_000)
_vp8x = b"VP8X" + struct.pack("<IB3x", 10, 0) + (16_000 - 1).to_bytes(3, "little") * 2
BOMBS["webp.webp"] = b"RIFF" + struct.pack("<I", 4 + len(_vp8x) + 8) + b"WEBP" + _vp8x + b"VP8 " + bytes(4)


def _flipped(data, part, bits=0xFF):
    data = bytearray(data)
    data[int(len(data) * part)] ^= bits
    return bytes(data)


def bad_files():
    """Name -> (bytes, a word of the reason) of files that no training can use."""
    files = {
        "empty.jpg": (b"", "is empty"),
        "zeros.jpg": (bytes(5000), "zero bytes"),
        "text.jpg": (b"This is no picture.\n" * 9, "is text"),
        "page.jpg": (b"<!DOCTYPE html><html><body>404</body></html>", "web page"),
        "page.png": (b"\n <html><head><title>Not found", "web page"),
        "drawing.png": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        "json.jpg": (b'{"error": "forbidden"}', "is text"),
        "heic.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "HEIC"),
        "heif.jpg": (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(200), ""),
        "doc.jpg": (b"%PDF-1.7\n" + bytes(100), "PDF"),
        "archive.jpg": (b"PK\x03\x04" + bytes(100), "archive"),
        "gz.png": (b"\x1f\x8b\x08" + bytes(100), "archive"),
        "lfs.jpg": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        "apple.jpg": (b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(60), "macOS"),
        "random.jpg": (np.random.default_rng(1).bytes(4000), "not an image"),
        "one_byte.jpg": (b"\xff", ""),
        "only_soi.jpg": (b"\xff\xd8", ""),
        "only_magic.png": (b"\x89PNG\r\n\x1a\n", "damaged"),
        "crc.png": (png(8, 8, body=bytes(8 * 25), crc=1), "damaged"),
        "flipped.png": (_flipped(PNG, 0.5), "damaged"),
        "short_body.png": (png(32, 32, body=bytes(32 * 40)), "damaged"),
        "zero_wide.png": (png(0, 8), ""),
        "bad_zlib.png": (PNG.replace(PNG[60:90], bytes(30)), "damaged"),
        "no_end.png": (PNG[:-20], ""),
        "half.bmp": (encoded(picture(), "BMP")[:4000], "damaged"),
        "half.tif": (encoded(picture(), "TIFF", compression="tiff_lzw")[:1500], "damaged"),
        "half.webp": (encoded(picture(), "WEBP")[:300], "damaged"),
        "half.gif": (encoded(picture(), "GIF")[:900], "damaged"),
        "half.avif": (encoded(picture(), "AVIF")[:500], ""),
        "no_scan.jpg": (JPEG[: JPEG.index(b"\xff\xda")] + b"\xff\xd9", ""),
        "no_tables.jpg": (JPEG[:2] + JPEG[JPEG.index(b"\xff\xc0") :], ""),
        "arithmetic.jpg": (JPEG.replace(b"\xff\xc0", b"\xff\xcb", 1), ""),
        "zero_high.jpg": (jpeg_that_declares(16, 0), ""),
        "taller.jpg": (jpeg_that_declares(16, 4000), "damaged"),
        "hole.jpg": (JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2), "damaged"),
        "hole_and_end.jpg": (JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2) + b"\xff\xd9", ""),
        "end_too_soon.jpg": (JPEG[: len(JPEG) * 3 // 4] + b"\xff\xd9", "damaged: some of its pixels are lost"),
    }
    for i, part in enumerate((0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.99)):
        files[f"cut{i}.jpg"] = (JPEG[: int(len(JPEG) * part)], "")
        files[f"cut{i}.png"] = (PNG[: int(len(PNG) * part)], "")
    progressive = encoded(picture(), "JPEG", progressive=True)
    for i, part in enumerate((0.3, 0.6, 0.9)):
        files[f"cut_progressive{i}.jpg"] = (progressive[: int(len(progressive) * part)], "")
    for name, data in BOMBS.items():
        files[f"bomb_{name}"] = (data, "max_pixels")
    return files


def write_folder(root, classes=("ant", "bee", "cow"), count=10, kinds=("JPEG", "PNG", "GIF", "WEBP"), size=(40, 48)):
    """A folder per class with different pictures in several formats."""
    for c, name in enumerate(classes):
        os.makedirs(os.path.join(root, name))
        for i in range(count):
            kind = kinds[i % len(kinds)]
            path = os.path.join(root, name, f"{i:03}.{kind.lower().replace('jpeg', 'jpg')}")
            with open(path, "wb") as file:
                file.write(encoded(picture(size[0] + i % 5, size[1] + i % 7, seed=100 * c + i), kind))
    return root
