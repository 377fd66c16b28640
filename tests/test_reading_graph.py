"""Encoded images in a served graph: the pixels of the training decoder, and one bad image harms no other."""

import functools
import io
import struct
import time
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, PngImagePlugin

import keras_residual as kr
from keras_residual.data import decode, validation
from keras_residual.reading import graph, host
from keras_residual.reading.rules import Reading

from .data_images import exif, png, seen
from .mutants import on_a_canvas
from .reading_table import decoder
from .tools import noise

SIZE = (24, 32, 3)


def served(channels, folder, **options):
    """A network that puts out what it is given, and its `serving_bytes`: the pixels as the network sees them."""
    prepare = kr.weights.Preprocess(SIZE[:2], (0.0,) * channels, (1.0,) * channels, crop=0.9, interpolation="bilinear")
    inputs = keras.Input((*SIZE[:2], channels))
    version = kr.export(keras.Model(inputs, keras.layers.Flatten()(inputs)), folder, preprocess=prepare, **options)
    saved = tf.saved_model.load(str(version))

    def ask(contents):
        outputs = saved.signatures["serving_bytes"](inputs=tf.constant(np.array(contents, object)))
        assert set(outputs) == {"outputs", "errors"}
        pixels = outputs["outputs"].numpy().reshape(-1, *SIZE[:2], channels)
        return pixels, [error.decode() for error in outputs["errors"].numpy()]

    ask.saved = saved
    return prepare, ask


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    return served(3, tmp_path_factory.mktemp("colour"))


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(height=45, width=53, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (5, 6, 3)).astype("uint8")
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def modes():
    grey, alpha = picture().convert("L"), picture(seed=5).convert("L")
    found = {mode: picture().convert(mode) for mode in ("RGB", "L", "1", "P", "CMYK")}
    found["16 bits"] = Image.fromarray((np.asarray(grey).astype("uint16") << 8) | np.arange(53, dtype="uint16"))
    for name, image in {"RGBA": picture(), "LA": grey.copy()}.items():
        image.putalpha(alpha)
        found[name] = image
    found["transparent palette"] = found["RGBA"].quantize(64)
    found["one pixel"] = picture().crop((3, 3, 4, 4))
    return found


def files():
    """Name -> bytes: each mode in each format that has it; each orientation."""
    kinds = {"JPEG": {"quality": 92}, "PNG": {}, "WEBP": {"lossless": True}, "GIF": {}, "BMP": {}}
    for kind, options in kinds.items():
        for name, image in modes().items():
            try:
                yield f"{kind} {name}", encoded(image, kind, **options)
            except (OSError, ValueError):
                continue  # the format has no such mode
    yield "JPEG progressive", encoded(picture(), "JPEG", progressive=True, subsampling=0)
    yield "WEBP lossy", encoded(picture(), "WEBP", quality=80)
    yield "GIF animated", encoded(picture(), "GIF", save_all=True, append_images=[picture(seed=1)])
    for kind in ("JPEG", "PNG", "WEBP"):
        for orientation in (*range(1, 9), 0, 9, 77):
            tags = exif(orientation)
            tags[0x010F] = "maker"
            yield f"{kind} turned {orientation}", encoded(picture(), kind, exif=tags, **kinds[kind])
    big = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    yield "JPEG big-endian EXIF", encoded(picture(), "JPEG", exif=big)
    yield "JPEG cut EXIF", encoded(picture(), "JPEG", exif=big[:20])


REFUSED = "save it as RGB"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_pixels_are_those_of_training(colour):
    """To the bit, but for what the two resizes round differently: one is traced with known sizes."""
    prepare, ask = colour
    found = dict(files())
    assert len(found) > 50
    pixels, errors = ask(list(found.values()))
    for (name, data), ours, error in zip(found.items(), pixels, errors, strict=True):
        if name == "JPEG CMYK" or name in [f"BMP {mode}" for mode in ("L", "1", "P", "transparent palette")]:
            assert error.endswith(REFUSED), name
        else:
            assert error == "", name
            theirs = np.asarray(prepare(seen(data)))
            assert np.abs(ours - theirs).max() <= 1 / 255 + 1e-6, name
            assert (np.abs(ours - theirs) > 1e-6).mean() < 1e-3, name


@pytest.mark.long
def test_grey_networks(tmp_path):
    prepare, ask = served(1, tmp_path)
    for kind in ("JPEG", "PNG", "WEBP"):
        data = encoded(picture(), kind, quality=95)
        grey = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").convert("L"))[..., None]
        (pixels,), errors = ask([data])
        assert errors == [""]
        assert np.abs(pixels - np.asarray(prepare(grey))).max() <= 1 / 255 + 1e-6


def test_bad_images_say_why_and_harm_no_other(colour):
    _, ask = colour
    good = encoded(picture(), "JPEG")
    bad = {
        b"": "empty",
        b"text": "not a JPEG, PNG, WebP, GIF or BMP image",
        b"\xff\xd8\xff": "a damaged image",
        b"\x89PNG\r\n\x1a\n": "a damaged image",
        good[:-200]: "a damaged image",
        encoded(picture(), "PNG")[:-40]: "a damaged image",
        encoded(picture(), "WEBP")[:100]: "a damaged image",
        encoded(picture(), "TIFF"): "not a JPEG, PNG, WebP, GIF or BMP image",
        b"RIFF0000WAVE": "a damaged image",
        b"BM" + bytes(60): "a damaged image",
        b"BM": "a damaged image",
        b"GIF89a": "a damaged image",
    }
    contents = [good]
    for data in bad:
        contents += [data, good]
    pixels, errors = ask(contents)
    assert errors == ["", *(error for words in bad.values() for error in (words, ""))]
    assert not pixels[1::2].any(), "rows of bad images are zeros"
    for row in pixels[::2]:
        np.testing.assert_array_equal(row, pixels[0])
    assert ask([])[0].shape == (0, *SIZE)
    assert ask([b""] * 3)[1] == ["empty"] * 3


def test_bombs_are_refused_by_their_header(colour):
    resource = pytest.importorskip("resource")
    _, ask = colour
    bombs = {}
    png = bytearray(encoded(picture(), "PNG"))
    png[16:24] = (60_000).to_bytes(4, "big") * 2
    bombs["png"] = bytes(png)
    jpeg = bytearray(encoded(picture(), "JPEG"))
    place = jpeg.index(b"\xff\xc0") + 5
    jpeg[place : place + 4] = b"\xff\xff\xff\xff"
    bombs["jpeg"] = bytes(jpeg)
    gif = bytearray(encoded(picture(), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    bombs["gif"] = bytes(gif)
    bmp = bytearray(encoded(picture(), "BMP"))
    bmp[18:26] = (100_000).to_bytes(4, "little") + (-100_000).to_bytes(4, "little", signed=True)
    bombs["bmp"] = bytes(bmp)
    ask([encoded(picture(), "PNG")])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert ask(list(bombs.values()))[1] == ["more than 64,000,000 pixels"] * 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


def film(kind, **options):
    return encoded(picture(), kind, save_all=True, append_images=[picture(seed=i) for i in (1, 2)], **options)


def mixed(kind, **options):
    """A picture of which a part is transparent, with other colours under it."""
    image = picture()
    image.putalpha(picture(seed=5).convert("L"))
    return encoded(image, kind, **options)


def keyed(image, color):
    """A PNG without an alpha channel, in which one colour or index is transparent."""
    return encoded(image, "PNG", transparency=color)


def transparent_files():
    yield "PNG", mixed("PNG")
    image = picture().convert("L")
    yield "PNG grey, key", keyed(image, int(np.asarray(image)[3, 4]))
    yield "PNG colour, key", keyed(picture(), tuple(np.asarray(picture())[3, 4].tolist()))
    image.putalpha(picture(seed=5).convert("L"))
    yield "PNG grey, alpha", encoded(image, "PNG")
    for colors in (2, 4, 16, 250):
        yield f"PNG palette of {colors}", encoded(picture().quantize(colors), "PNG")
        yield f"PNG palette of {colors}, key", keyed(picture().quantize(colors), 1)
        yield f"GIF of {colors}", encoded(picture().quantize(colors), "GIF")
        yield f"GIF of {colors}, key", encoded(picture().quantize(colors), "GIF", transparency=1)
        yield f"GIF of {colors}, canvas", on_a_canvas(encoded(picture().quantize(colors), "GIF"), 60, 70, 8, 5)
    yield "GIF, key, canvas", on_a_canvas(encoded(picture().quantize(16), "GIF", transparency=3), 60, 70, 8, 5)
    yield "GIF, interlaced", encoded(picture().quantize(16), "GIF", transparency=3, interlace=True)
    yield "GIF, no key, film", film("GIF")
    yield "WebP", mixed("WEBP", quality=70)
    yield "WebP, lossless", mixed("WEBP", lossless=True, exact=True)
    yield "WebP, film", mixed("WEBP", lossless=True, save_all=True, append_images=[picture(seed=1)])
    yield "BMP, alpha by masks", masked_bmp((0xFF0000, 0xFF00, 0xFF, 0xFF000000))
    yield "BMP, no mask for alpha", masked_bmp((0xFF0000, 0xFF00, 0xFF, 0))
    yield "BMP, 32 bits without masks", mixed("BMP")


def masked_bmp(masks):
    """A BMP of 8 x 4 pixels whose channels are where the masks say."""
    pixels = np.random.default_rng(3).integers(0, 256, (4, 8, 4)).astype("uint8").tobytes()
    sizes = struct.pack("<IiiHHIIiiII", 108, 8, 4, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    body = sizes + struct.pack("<4I", *masks) + bytes(52)
    return b"BM" + struct.pack("<IHHI", 14 + len(body) + len(pixels), 0, 0, 14 + len(body)) + body + pixels


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("background", [(255, 255, 255), (10, 200, 30), None], ids=["white", "green", "dropped"])
def test_transparent_images_are_composited(background):
    """To the bit, in every format with transparency; a shallow palette without it used to look nearly transparent."""
    decoded = decoder(Reading(background=background))
    for name, data in transparent_files():
        pixels, reason = decoded(data)
        assert reason == "", name
        np.testing.assert_array_equal(pixels, seen(data, background), name)


def test_gray_networks_see_the_composited_image():
    pixels, _ = decoder(Reading(background=(10, 200, 30), channels=1))(mixed("PNG"))
    wanted = Image.fromarray(seen(mixed("PNG"), (10, 200, 30))).convert("L")
    np.testing.assert_array_equal(pixels[..., 0], np.asarray(wanted))


def test_other_channels_of_a_bmp_are_refused():
    _, reason = decoder(Reading())(masked_bmp((0xFF, 0xFF00, 0xFF0000, 0xFF000000)))
    assert "unusual channels" in reason


def jpegs():
    """Name -> bytes of whole JPEGs, some of which end in the gray of missing blocks."""
    gray = Image.new("RGB", (53, 45), (128, 128, 128))
    for name, image in {"photo": picture(), "grey": picture().convert("L"), "flat": gray}.items():
        yield name, encoded(image, "JPEG")
        yield f"{name}, no subsampling", encoded(image, "JPEG", subsampling=0)
        yield f"{name}, restarts", encoded(image, "JPEG", restart_marker_blocks=3)
        yield f"{name}, progressive", encoded(image, "JPEG", progressive=True)


def verdicts(data):
    """Return whether the scan, the training decoder and the graph each accept a JPEG."""
    (decoded,) = validation.decoded(host.decode, [data])
    _, (error,) = verdict_of_graph(data)
    return not validation.scan_bytes([data])[0].reason, isinstance(decoded, np.ndarray), not error


@functools.cache
def _batch_decoder():
    def prepare(pixels):
        return tf.zeros((1, 1, 1, 1)) + tf.reduce_mean(tf.cast(pixels, tf.float32))

    function = functools.partial(
        graph.decode_batch, reading=Reading(), prepare=prepare, shape=(1, 1, 1), max_pixels=10**7
    )
    return tf.function(function, input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)


def verdict_of_graph(*contents):
    rows, errors = _batch_decoder()(tf.constant(contents))
    return rows, [error.decode() for error in errors.numpy()]


def test_a_jpeg_with_all_its_pixels_is_accepted_everywhere():
    """Whole, without its end marker or half of it, with bytes behind it."""
    for name, data in jpegs():
        for ending in (data, data[:-2], data[:-1], data + b"trailer"):
            assert verdicts(ending) == (True, True, True), name
            np.testing.assert_array_equal(host.decode(ending), seen(data), name)


def test_a_jpeg_that_ends_early_is_refused_everywhere():
    """Also where an end marker hides it; without one in progressive files too."""
    for name, data in jpegs():
        if "flat" not in name:
            start = data.rindex(b"\xff\xda") + 14
            for part in (0.3, 0.5, 0.8):
                cut = data[: start + int(part * (len(data) - start))]
                assert verdicts(cut) == (False, False, False), name
                if "progressive" not in name:
                    assert verdicts(cut + b"\xff\xd9") == (False, False, False), name


def deep_png(values, alpha=None):
    """A PNG of 16 bits, grey `(H, W)` or in colour `(H, W, 3)`; Pillow writes none in colour."""
    parts = values[..., None] if values.ndim == 2 else values
    parts = parts if alpha is None else np.concatenate([parts, alpha], -1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in parts)
    return png(values.shape[1], values.shape[0], 16, {1: 0, 2: 4, 3: 2, 4: 6}[parts.shape[-1]], rows)


@pytest.mark.parametrize("limits", [None, (0, 4095), (100, 60_000), (0, 65535)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_sixteen_bits_keep_their_precision(dtype, limits):
    """Scaled in NumPy from the numbers that were written; of uint8 without a range the upper byte is used."""
    decoded = decoder(Reading((10, 200, 30), limits, 3, dtype))
    draw = np.random.default_rng(4)
    color, alpha = draw.integers(0, 65536, (9, 11, 3)), draw.integers(0, 65536, (9, 11, 1))
    low, high = limits or (0, 65535)
    scaled = np.clip((color.astype("float32") - np.float32(low)) * np.float32(255 / (high - low)), 0, 255)
    if dtype == "uint8":
        scaled = color >> 8 if (low, high) == (0, 65535) else np.rint(scaled)
        a = alpha >> 8
        blended = (scaled.astype(int) * a + np.array([10, 200, 30]) * (255 - a) + 127) // 255
    else:
        a = alpha.astype("float32") * np.float32(255 / 65535) * np.float32(1 / 255)
        blended = scaled * a + np.array([10, 200, 30], "float32") * (1 - a)
    pixels, reason = decoded(deep_png(color))
    assert pixels.dtype == dtype
    assert reason == ""
    np.testing.assert_array_equal(pixels, scaled)
    np.testing.assert_array_equal(decoded(deep_png(color[..., 0]))[0], scaled[..., :1].repeat(3, -1))
    np.testing.assert_array_equal(decoded(deep_png(color, alpha))[0], blended)
    if limits is None:  # 8-bit images of the same dataset
        np.testing.assert_array_equal(decoded(encoded(picture(), "PNG"))[0], np.asarray(picture()))


def xmp(orientation):
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def png_text(keyword, text, compressed):
    info = PngImagePlugin.PngInfo()
    info.add_itxt(keyword, text, zip=compressed)
    return {"pnginfo": info}


def turned_files():
    """Name -> bytes of an image whose orientation is not in its EXIF data, and the orientation."""
    for orientation in (1, 6):
        text = xmp(orientation)
        yield f"JPEG {orientation}", encoded(picture(), "JPEG", xmp=text), orientation
        yield f"WebP {orientation}", encoded(picture(), "WEBP", lossless=True, xmp=text), orientation
        options = png_text("XML:com.adobe.xmp", text.decode(), False)
        yield f"PNG {orientation}", encoded(picture(), "PNG", **options), orientation
    options = png_text("XML:com.adobe.xmp", xmp(8).decode(), True)
    yield "PNG, compressed", encoded(picture(), "PNG", **options), 8
    info = PngImagePlugin.PngInfo()
    data = exif(6).tobytes()
    info.add_text("Raw profile type exif", f"\nexif\n{len(data)}\n{data.hex()}\n", zip=True)
    yield "PNG, hexadecimal text", encoded(picture(), "PNG", pnginfo=info), 6


def test_an_orientation_outside_exif_is_refused():
    decoded = decoder(Reading())
    for name, data, orientation in turned_files():
        pixels, reason = decoded(data)
        if orientation == 1:
            assert reason == "", name
            np.testing.assert_array_equal(pixels, seen(data), name)
        else:
            assert "orientation" in reason, name
            assert seen(data).shape == (53, 45, 3), "Pillow turns it"


def test_exif_comes_first_and_is_found_behind_the_pixels():
    decoded = decoder(Reading())
    both = encoded(picture(), "JPEG", exif=exif(8), xmp=xmp(6))
    png = encoded(picture(), "PNG", exif=exif(6))
    start = png.index(b"eXIf") - 4
    end = start + 12 + int.from_bytes(png[start : start + 4], "big")
    late = png[:start] + png[end:-12] + png[start:end] + png[-12:]
    with_prefix = bytearray(encoded(picture(), "WEBP", lossless=True, exif=exif(6)))
    place = with_prefix.index(b"EXIF")
    length = int.from_bytes(with_prefix[place + 4 : place + 8], "little")
    with_prefix[place + 4 : place + 8] = (length + 6).to_bytes(4, "little") + b"Exif\0\0"
    with_prefix[4:8] = (len(with_prefix) - 8).to_bytes(4, "little")
    for data in (both, late, bytes(with_prefix)):
        pixels, reason = decoded(data)
        assert reason == ""
        assert pixels.shape == (53, 45, 3)
        np.testing.assert_array_equal(pixels, seen(data))


@pytest.mark.parametrize(
    "data",
    [
        film("WEBP", lossless=True),
        film("WEBP", quality=70),
        film("PNG"),
        film("GIF"),
        on_a_canvas(film("GIF"), 80, 90, 11, 22),
        on_a_canvas(film("GIF"), 20, 30, 0, 0),
    ],
    ids=["WebP", "lossy WebP", "PNG", "GIF", "GIF on a canvas", "GIF beyond its canvas"],
)
def test_the_first_frame_of_an_animation(colour, data):
    """An opaque WebP animation used to end the process: TensorFlow wrote four channels where three fit."""
    prepare, ask = colour
    good = encoded(picture(seed=9), "PNG")
    for _ in range(10):
        (pixels, other), errors = ask([data, good])
        assert errors == ["", ""]
    assert np.abs(pixels - np.asarray(prepare(seen(data)))).max() <= 1 / 255 + 1e-6
    np.testing.assert_array_equal(other, ask([good])[0][0])


def test_a_gif_is_cut_after_its_first_frame(colour):
    """Frames that follow are not decoded: whole and large ones, damaged ones, and such as would take 1.2 GB."""
    prepare, ask = colour
    start = b"\x2c" + bytes(4)
    first, large = encoded(picture(), "GIF"), encoded(Image.new("P", (3000, 3000)), "GIF")
    second = large[large.index(start) :]
    cut, huge = second[:400], start + (20_000).to_bytes(2, "little") * 2 + second[9:]
    for row in ask([first[:-1] + frame for frame in (second, cut, huge)])[0]:
        assert np.abs(row - np.asarray(prepare(decode(first)))).max() <= 1 / 255 + 1e-6
    assert ask([first[:-40]])[1] == ["a damaged image"], "the first frame is not whole"


def bombs_inside():
    """Small headers, and something behind them that takes memory or hours."""
    gif = bytearray(encoded(picture(), "GIF"))
    frame = gif.index(b"\x2c" + bytes(4))
    gif[frame + 5 : frame + 9] = (20_000).to_bytes(2, "little") * 2
    yield bytes(gif), "more than 10,000,000 pixels"
    progressive = encoded(Image.new("L", (3000, 3000)), "JPEG", progressive=True)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    yield progressive[:-2] + 5000 * (last[:12] + b"\0") + b"\xff\xd9", "a damaged image"
    for kind, name in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")):
        text = name + zlib.compress(bytes(7_000_000))
        chunk = struct.pack(">I", len(text)) + kind + text + struct.pack(">I", zlib.crc32(kind + text))
        yield png(8, 8, body=bytes(8 * 25), extra=500 * chunk), "a damaged image"
    for size in ((1, 65_000), (65_000, 1)):
        yield encoded(Image.new("RGB", size), "JPEG"), "more than 10,000,000 pixels once resized: crop its longer side"
    jpeg = encoded(picture(), "JPEG")
    header = jpeg.index(b"\xff\xc0")
    big = bytearray(jpeg[header:])
    big[5:9] = (20_000).to_bytes(2, "big") * 2
    # Read as lengths, which these markers do not have, the next two bytes would hide the header behind them.
    yield jpeg[:header] + b"\xff\xd0" + bytes(big), "more than 10,000,000 pixels"


@pytest.mark.slow
def test_bombs_behind_a_small_header(tmp_path):
    resource = pytest.importorskip("resource")
    _, ask = served(3, tmp_path, max_pixels=10_000_000)
    bombs, reasons = zip(*bombs_inside(), strict=True)
    ask([encoded(picture(), "PNG")])
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    assert ask(bombs)[1] == list(reasons)
    assert time.perf_counter() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"


@pytest.mark.long
def test_webp_where_tensorflow_does_not_read_it(tmp_path, monkeypatch):
    """As with TensorFlow 2.18 and 2.19: the reason is not that the image is damaged."""
    monkeypatch.setattr(graph, "READS_WEBP", False)
    _, ask = served(3, tmp_path)
    answers = ask([encoded(picture(), "WEBP", quality=80), encoded(picture(), "PNG")])[1]
    assert answers == ["a WebP image, which exports of TensorFlow before 2.20 cannot read", ""]


def test_a_limit_of_the_callers(tmp_path):
    """By the header's word, which in WebP stands in three places."""
    _, ask = served(3, tmp_path, max_pixels=45 * 53 - 1)
    ways = [{"lossless": True}, {"quality": 80}, {"quality": 80, "exif": b"Exif\0\0"}]
    contents = [encoded(picture(), "WEBP", **options) for options in ways]
    contents += [encoded(picture(45, 52), "WEBP", **options) for options in ways]
    contents += [encoded(picture(), "PNG"), encoded(picture(20, 30), "PNG")]
    assert ask(contents)[1] == [*["more than 2,384 pixels"] * 3, *[""] * 3, "more than 2,384 pixels", ""]


@pytest.mark.parametrize(("kind", "count"), [("JPEG", 60), ("PNG", 60), ("WEBP", 20), ("GIF", 20), ("BMP", 20)])
def test_mutants_harm_no_other_and_get_trainings_verdict(colour, kind, count):
    """Bytes changed, cut or doubled at random: the batch is answered, each row as the training decoder would."""
    prepare, ask = colour
    generator, original = np.random.default_rng(1), encoded(picture(), kind)
    mutants = []
    for _ in range(count):
        data = bytearray(original)
        for _ in range(generator.integers(1, 6)):
            data[generator.integers(len(data))] = generator.integers(256)
        mutants.append(bytes(data[: generator.integers(8, len(data))] if generator.random() < 0.3 else data))
    pixels, errors = ask([original, *mutants])
    assert errors[0] == ""
    for data, row, error in zip(mutants, pixels[1:], errors[1:], strict=True):
        try:
            theirs = np.asarray(prepare(decode(data)))
        except ValueError:
            theirs = None
        if kind in ("JPEG", "PNG"):  # by the same decoder; the others go through Pillow in training
            if theirs is None:
                assert error, "what training refuses is refused"
            elif not error:
                assert np.abs(row - theirs).max() <= 1 / 255 + 1e-6


def test_tensors_of_pixels(colour):
    """Float and uint8, of any size, agree with the encoded image."""
    _, ask = colour
    data = encoded(picture(), "PNG")
    wanted, _ = ask([data])
    pixels = np.asarray(picture())[None]
    for signature, dtype in (("serving_default", "float32"), ("serving_uint8", "uint8")):
        outputs = ask.saved.signatures[signature](inputs=tf.constant(pixels.astype(dtype)))["outputs"]
        assert np.abs(outputs.numpy().reshape(wanted.shape) - wanted).max() <= 1 / 255 + 1e-6


def test_answers_of_a_classifier(tmp_path):
    labels = ["rot", "grün", "blau"]
    inputs = keras.Input((24, 32, 3))
    network = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))  # the logits are the colours
    prepare = kr.weights.Preprocess((24, 32), (0.0,) * 3, (0.1,) * 3)
    version = kr.export(network, tmp_path, labels=labels, preprocess=prepare, top_k=9)
    signatures = tf.saved_model.load(str(version)).signatures
    colours = [(250, 100, 0), (0, 200, 100), (50, 0, 250)]
    contents = [encoded(Image.new("RGB", (50, 40), c), "PNG") for c in colours]
    contents.insert(1, b"nothing")
    answers = signatures["serving_bytes"](inputs=tf.constant(contents))
    assert answers["classes"].numpy().tolist() == [[0, 1, 2], [-1, -1, -1], [1, 2, 0], [2, 0, 1]]
    decoded = [[label.decode() for label in row] for row in answers["labels"].numpy()]
    assert decoded == [["rot", "grün", "blau"], [""] * 3, ["grün", "blau", "rot"], ["blau", "rot", "grün"]]
    logits = np.array(colours) / 25.5
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(answers["probabilities"].numpy()[[0, 2, 3]], softmax, rtol=1e-4)
    assert not answers["probabilities"].numpy()[1].any()
    np.testing.assert_allclose(answers["scores"].numpy()[[0, 2, 3]], -np.sort(-softmax, -1), rtol=1e-4)

    def example(content):
        feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
        return tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature})).SerializeToString()

    classified = signatures["classify"](inputs=tf.constant([example(c) for c in contents]))
    assert set(classified) == {"classes", "scores"}, "what TensorFlow Serving's Classify takes"
    assert (classified["classes"].numpy() == answers["labels"].numpy()).all()
    np.testing.assert_array_equal(classified["scores"], answers["scores"])


@pytest.mark.slow
def test_any_layer_prepares(tmp_path):
    """Also one with weights of its own, which are stored."""
    rescale = keras.Sequential([keras.layers.Resizing(24, 32), keras.layers.Rescaling(1 / 255), keras.layers.Dense(3)])
    rescale.build((None, None, None, 3))
    inputs = keras.Input(SIZE)
    version = kr.export(keras.Model(inputs, keras.layers.Flatten()(inputs)), tmp_path, preprocess=rescale)
    signature = tf.saved_model.load(str(version)).signatures["serving_default"]
    x = 255 * np.abs(noise((2, 40, 50, 3)))
    outputs = signature(inputs=tf.constant(x))["outputs"]
    np.testing.assert_allclose(outputs, np.asarray(rescale(x)).reshape(2, -1), atol=1e-4)
