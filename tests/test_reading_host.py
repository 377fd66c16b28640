"""Pixels are what one sees: compared with Pillow, or with the numbers that were written, never with ourselves."""

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from PIL import Image, ImageOps

from keras_residual.data import UnreadableError, decode, load
from keras_residual.data.stores import Encoded
from keras_residual.data.validation import check
from keras_residual.reading import host
from keras_residual.reading.rules import Reading
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
    """Pillow's opinion: `(H, W, 3)`, upright, on white in exact arithmetic, 16 bits scaled."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):
        return np.repeat((np.asarray(image) // 256).astype("uint8")[..., None], 3, -1)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        pixels = np.asarray(image.convert("RGBA")).astype(int)
        return np.floor((pixels[..., :3] * pixels[..., 3:] + 255 * (255 - pixels[..., 3:])) / 255 + 0.5).astype("uint8")
    return np.asarray(image.convert("RGB"))


def in_graph(data, channels=3):
    """The training decoder's opinion, not turned."""
    store = Encoded([data], [check(data)], Reading(channels=channels), in_memory=True)
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
    dropped = Reading(background=None)
    if mode != "16 bits":
        np.testing.assert_array_equal(
            decode(data, dropped), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        )


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
def test_sixteen_bit_png_is_read_in_full(colour, channels):
    values = np.random.default_rng(0).integers(0, 65536, (7, 5, channels)).astype(">u2")
    data = png(5, 7, 16, colour, b"".join(b"\0" + row.tobytes() for row in values))
    high = (values >> 8).astype("uint8")
    dropped = Reading(background=None)
    np.testing.assert_array_equal(decode(data, dropped), high[..., :3] if channels > 2 else high[..., :1].repeat(3, -1))
    color, alpha = (values[..., :3], values[..., 3:]) if channels > 2 else (values[..., :1], values[..., 1:])
    opacity = alpha / 65535 if alpha.size else 1.0
    expected = np.broadcast_to(color / 257 * opacity + 40 * (1 - opacity), (7, 5, 3))
    found = decode(data, Reading(background=(40, 40, 40), dtype="float32"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
    assert check(data).kind == "uint16"


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
    with pytest.raises(UnreadableError, match="float32 samples, which have no fixed range"):
        decode(encoded(Image.fromarray(np.ones((4, 4), "float32")), "TIFF"))
    with pytest.raises(UnreadableError, match="LAB"):
        decode(encoded(Image.frombytes("LAB", (2, 2), bytes(12)), "TIFF"))
    with pytest.raises(ValueError, match="is empty"):
        decode(b"")


def test_other_formats_of_pillow_are_not_tried():
    """PostScript is a program; Pillow would start Ghostscript."""
    with pytest.raises(UnreadableError, match="PostScript"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")


def tiff_of(values, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize(
    "layout",
    [
        {"rowsperstrip": 10},
        {"tile": (16, 32)},
        {"compression": "zlib", "rowsperstrip": 7},
        {"compression": "zlib", "predictor": True, "tile": (16, 32)},
        {"planarconfig": "separate"},
    ],
    ids=lambda options: " ".join(options),
)
def test_bands_of_a_tiff_are_what_was_written(order, dtype, layout):
    if dtype.startswith("f") and "predictor" in layout:
        layout = {**layout, "predictor": False}  # tifffile does not write it without imagecodecs
    values = np.random.default_rng(0).normal(0, 40, (37, 41, 5)).astype(dtype)
    written = np.moveaxis(values, -1, 0) if "planarconfig" in layout else values
    color = "minisblack" if "planarconfig" in layout else "rgb"
    extra = ["unspecified"] * (4 if color == "minisblack" else 2)
    data = tiff_of(written, photometric=color, byteorder=order, extrasamples=extra, **layout)
    found = host.stored(data, host.header(data))
    assert found.values.dtype == values.dtype
    np.testing.assert_array_equal(found.values, values)
    image = decode(data, Reading(range=(-100, 100), channels=5, dtype="float32"))
    np.testing.assert_allclose(image, np.clip((values.astype("float64") + 100) * 1.275, 0, 255), atol=1e-3)
    with pytest.raises(UnreadableError, match="has 5 channels, but 3 are expected"):
        decode(data, Reading(range=(-100, 100)))


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "packbits"])
def test_compressed_bytes_are_libtiffs(compression):
    """LZW and PackBits by libtiff of a 16-bit grayscale image, compared with Pillow's own reading."""
    image = Image.fromarray(GREY16)
    data = encoded(image, "TIFF", **({"compression": compression} if compression else {}))
    found = host.stored(data, host.header(data)).values[..., 0]
    np.testing.assert_array_equal(found, np.asarray(Image.open(io.BytesIO(data))))


def test_white_is_zero_is_inverted_at_every_depth():
    for dtype, top in (("uint8", 255), ("uint16", 65535)):
        values = np.random.default_rng(1).integers(0, top + 1, (6, 7)).astype(dtype)
        found = decode(tiff_of(values, photometric="miniswhite"), Reading(channels=1, dtype="float32"))
        np.testing.assert_allclose(found[..., 0], (top - values.astype(float)) * 255 / top, rtol=1e-5)
    limited = decode(tiff_of(values, photometric="miniswhite"), Reading(range=(0, 4095), channels=1, dtype="float32"))
    np.testing.assert_allclose(limited[..., 0], np.clip(255 - values / 4095 * 255, 0, 255), atol=1e-3)


def test_images_of_numpy(tmp_path):
    values = np.random.default_rng(2).integers(0, 256, (6, 7, 5)).astype("uint8")
    for name, save in (("a.npy", np.save), ("a.npz", np.savez_compressed)):
        save(tmp_path / name, values)
        data = (tmp_path / name).read_bytes()
        assert check(data).channels == 5
        np.testing.assert_array_equal(decode(data, Reading(channels=5)), values)
    np.savez(tmp_path / "two.npz", values, values)
    np.save(tmp_path / "object.npy", np.array([[{}]]), allow_pickle=True)
    np.save(tmp_path / "list.npy", np.arange(5))
    for name, reason in (("two.npz", "exactly one"), ("object.npy", "integers or floats"), ("list.npy", "shape")):
        with pytest.raises(UnreadableError, match=reason):
            decode((tmp_path / name).read_bytes())


def test_opacity_can_be_a_channel():
    pixels = np.asarray(with_alpha(RGB))
    np.testing.assert_array_equal(decode(encoded(with_alpha(RGB), "PNG"), Reading(channels=4)), pixels)
