"""Pixels are what one sees: compared with Pillow, or with the numbers that were written, never with ourselves."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from keras_residual.data import UnreadableError, decode, load
from keras_residual.data.stores import Encoded
from keras_residual.data.validation import check
from keras_residual.reading import host
from tests.data_images import encoded, exif, picture, png

RGB = Image.fromarray(picture())
GREY = RGB.convert("L")
ALPHA = Image.fromarray(picture(seed=5)[..., 0])


def with_alpha(image):
    image = image.copy()
    image.putalpha(ALPHA)
    return image


GREY16 = (np.asarray(GREY).astype("uint16") << 8) | np.arange(53, dtype="uint16")
MODES = {
    "RGB": RGB,
    "grey": GREY,
    "1 bit": RGB.convert("1"),
    "palette": RGB.convert("P"),
    "palette of 16": RGB.quantize(16),
    "palette of 4": RGB.quantize(4),
    "palette of 2": RGB.quantize(2),
    "grey palette": GREY.convert("P"),
    "RGBA": with_alpha(RGB),
    "grey and alpha": with_alpha(GREY),
    "transparent palette": with_alpha(RGB).quantize(64),
    "CMYK": RGB.convert("CMYK"),
    "YCbCr": RGB.convert("YCbCr"),
    "16 bits": Image.fromarray(GREY16),
    "opaque RGBA": RGB.convert("RGBA"),
    "one pixel": RGB.crop((3, 3, 4, 4)),
}
FORMATS = {
    "PNG": {},
    "JPEG": {"quality": 92},
    "WEBP": {"lossless": True},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "AVIF": {"quality": 95},
    "JPEG2000": {},
}


def seen(data):
    """Pillow's opinion: `(H, W, 3)`, upright, transparency dropped, 16 bits scaled."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image) // 256).astype("uint8")[..., None], 3, -1)
    return np.asarray(image.convert("RGB"))


def in_graph(data, channels=3):
    """The training decoder's opinion, not turned."""
    store = Encoded([data], [check(data)], channels, in_memory=True)
    return tf.function(store.whole)(tf.constant(0)).numpy()


def written():
    """Every mode in every format that Pillow writes it in; it clips 16 bits in most."""
    for kind, options in FORMATS.items():
        for mode, image in MODES.items():
            if mode != "16 bits" or kind in ("PNG", "TIFF", "JPEG2000"):
                with contextlib.suppress(OSError, ValueError, KeyError):
                    yield pytest.param(encoded(image, kind, **options), mode, id=f"{mode} {kind}")


@pytest.mark.parametrize(("data", "mode"), list(written()))
def test_pixels_are_pillows(data, mode):
    expected = seen(data)
    np.testing.assert_array_equal(decode(data), expected)
    np.testing.assert_array_equal(in_graph(data), expected)
    assert np.ptp(expected) > 30 or mode == "one pixel"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind, orientation):
    data = encoded(RGB, kind, exif=exif(orientation), **FORMATS[kind])
    expected = seen(data)
    assert expected.shape == ((53, 45, 3) if orientation > 4 else (45, 53, 3))
    np.testing.assert_array_equal(decode(data), expected)


def test_orientation_is_not_only_pillows():
    """One corner followed by hand: 6 means that the camera was turned, and the first row is the right side."""
    image = np.zeros((8, 16, 3), "uint8")
    image[:4, :8] = 255  # top left as stored
    assert decode(encoded(image, "PNG", exif=exif(6)))[:8, 4:].min() == 255  # top right as seen


def test_nonsense_in_exif_turns_nothing():
    for broken in (exif(0), exif(9), exif(77), b"Exif\0\0II*\0garbage"):
        assert decode(encoded(RGB, "JPEG", exif=broken)).shape == (45, 53, 3)


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bit_png_keeps_its_high_byte(colour, channels):
    values = np.random.default_rng(0).integers(0, 65536, (7, 5, channels)).astype(">u2")
    data = png(5, 7, 16, colour, b"".join(b"\0" + row.tobytes() for row in values))
    high = (values >> 8).astype("uint8")
    np.testing.assert_array_equal(decode(data), high[..., :3] if channels > 2 else high[..., :1].repeat(3, -1))
    assert "16-bit" in check(data).notes


def test_an_opaque_webp_animation_never_reaches_tensorflow(tmp_path):
    """Its decoder would end the process. Also as encoded bytes in a tf.data dataset, which `data.load` reads."""
    frames = [Image.fromarray(picture(seed=i)) for i in range(3)]
    film = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert film[20] & 0x12 == 0x02, "animated, and no alpha flag"
    assert check(film).how == host.PILLOW
    np.testing.assert_array_equal(in_graph(film), picture())
    pairs = tf.data.Dataset.from_tensor_slices(([film, encoded(RGB, "PNG")] * 3, [0, 1] * 3))
    found = load(pairs, validation=0.0)
    images = np.concatenate([np.asarray(batch) for batch, _ in found.train.evaluation(6, (45, 53))])
    assert len(images) == 6


def test_endless_work_is_refused():
    progressive = encoded(RGB, "JPEG", progressive=True)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    with pytest.raises(UnreadableError, match=r"has 209 scans"):
        decode(progressive[:-2] + 199 * last + b"\xff\xd9")
    text = b"iTXt" + b"a\0\0\0\0\0"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    good = encoded(RGB, "PNG")
    assert decode(good[:33] + 99 * chunk + good[33:]).shape == (45, 53, 3)
    with pytest.raises(UnreadableError, match="compressed texts"):
        decode(good[:33] + 101 * chunk + good[33:])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_first_frame_of_an_animation(kind):
    others = [Image.fromarray(picture(seed=i)) for i in (1, 2)]
    options = {} if kind in ("TIFF", "PNG") else {"duration": 50}
    data = encoded(RGB, kind, save_all=True, append_images=others, **FORMATS[kind], **options)
    first = Image.open(io.BytesIO(data))
    first.seek(0)
    np.testing.assert_array_equal(decode(data), np.asarray(first.convert("RGB")))
    assert {"animated", "several pages"} & set(check(data).notes)


def test_grey_is_pillows_grey():
    for kind, options in (("PNG", {}), ("JPEG", {"quality": 90}), ("GIF", {})):
        data = encoded(RGB, kind, **options)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").convert("L"))[..., None]
        np.testing.assert_array_equal(in_graph(data, channels=1), expected)


@pytest.mark.parametrize("ratio", [1, 2, 4, 8])
def test_window_of_a_jpeg_is_that_window(ratio):
    """Scaled down, it is what Pillow's `draft` makes of the whole; at the edges chroma may differ."""
    image = picture(240, 320)
    data = encoded(image, "JPEG", quality=90, subsampling=0)
    whole = Image.open(io.BytesIO(data))
    whole.draft("RGB", (320 // ratio, 240 // ratio))
    whole = np.asarray(whole)
    top, left, height, width = 9, 5, 18, 20
    found = host.decode_jpeg_window(tf.constant(data), [top, left, height, width], ratio).numpy()
    assert whole.shape == (240 // ratio, 320 // ratio, 3)
    np.testing.assert_array_equal(found, whole[top : top + height, left : left + width])


def test_window_with_subsampled_chroma_differs_at_its_edges_only():
    data = encoded(picture(240, 320), "JPEG", quality=90)
    whole = seen(data).astype(int)
    found = host.decode_jpeg_window(tf.constant(data), [33, 51, 100, 120]).numpy().astype(int)
    difference = np.abs(found - whole[33:133, 51:171])
    assert difference.max() <= 8
    assert difference[1:-1, 1:-1].max() == 0


def test_what_has_no_colours_of_its_own_is_refused():
    with pytest.raises(UnreadableError, match="32-bit"):
        decode(encoded(Image.fromarray(np.ones((4, 4), "float32")), "TIFF"))
    with pytest.raises(UnreadableError, match="LAB"):
        decode(encoded(Image.frombytes("LAB", (2, 2), bytes(12)), "TIFF"))
    with pytest.raises(ValueError, match="is empty"):
        decode(b"")


def test_other_formats_of_pillow_are_not_tried():
    """PostScript is a program; Pillow would start Ghostscript."""
    with pytest.raises(UnreadableError, match="PostScript"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
