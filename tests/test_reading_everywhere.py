"""One image, one array: in the scan, in training, and in an export however it is asked."""

import base64
import contextlib
import json
import threading
import urllib.request

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_residual as kr
from keras_residual.data import validation
from keras_residual.reading.rules import Reading
from keras_residual.serving import Server

from .data_images import encoded, exif, picture, seen
from .reading_table import PAGE, decoder, files, with_table
from .test_exporting import ask_c_api

SIZE = (45, 53)
GREEN = (10, 200, 30)


@contextlib.contextmanager
def served(directory):
    server, ready = Server(directory, rest_port=0, grpc_port=0), threading.Event()
    thread = threading.Thread(target=server.run, args=(ready.set,))
    thread.start()
    try:
        assert ready.wait(60)
        yield f"http://127.0.0.1:{server.rest_port}"
    finally:
        server.stop()
        thread.join(30)


def asked_by_the_page(address, name, data):
    """The request that the page at `/` sends."""
    body = json.dumps({"signature_name": "serving_bytes", "instances": [{"b64": base64.b64encode(data).decode()}]})
    request = urllib.request.Request(f"{address}/v1/models/{name}:predict", body.encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"][0]


def test_an_export_gives_the_same_pixels_however_it_is_asked(tmp_path):
    """A network that returns its input, asked in TensorFlow, through its C API, and as the page asks.

    The pixels are those that Pillow and the integer formula give, and the scan accepts what the export accepts.
    """
    given = [
        data for mode, kind, data in files() if mode not in ("one pixel", "YCbCr") and kind not in ("AVIF", "JPEG 2000")
    ]
    given += [
        encoded(picture(53, 45), kind, exif=exif(6), **o) for kind, o in (("PNG", {}), ("WEBP", {"lossless": True}))
    ]
    given.append(encoded(picture(), "JPEG")[:-2])
    prepare = kr.weights.Preprocess(SIZE, (0.0,) * 3, (1 / 255,) * 3, crop=1.0, interpolation="nearest")
    inputs = keras.Input((*SIZE, 3))
    network = keras.Model(inputs, keras.layers.Flatten()(inputs))
    version = kr.export(network, tmp_path / "same", preprocess=prepare, reading=Reading(background=GREEN))
    saved = json.loads((version / "metadata.json").read_text())["reading"]
    assert Reading.from_dict({k: v for k, v in saved.items() if k != "formats"}) == Reading(background=GREEN)
    assert str(GREEN) in (version / "README.md").read_text()

    answers = tf.saved_model.load(str(version)).signatures["serving_bytes"](inputs=tf.constant(given))
    (c_api,) = ask_c_api(version, [("serving_bytes", np.array(given, object))], tmp_path)
    errors = [error.decode() for error in answers["errors"].numpy()]
    assert list(c_api["errors"]) == [error.encode() for error in errors]
    np.testing.assert_array_equal(c_api["outputs"], answers["outputs"])
    assert errors.count("") > 30
    accepted = [not record.reason for record in validation.scan_bytes(given)]
    with served(tmp_path) as address:
        for data, pixels, error, used in zip(given, answers["outputs"].numpy(), errors, accepted, strict=True):
            page = asked_by_the_page(address, "same", data)
            assert page["errors"] == error
            np.testing.assert_array_equal(np.float32(page["outputs"]), pixels)
            if error:
                assert not pixels.any()
            else:
                assert used
                data += b"\xff\xd9" if data.startswith(b"\xff\xd8") else b""  # Pillow needs an end marker
                np.testing.assert_array_equal(np.rint(pixels).reshape(*SIZE, 3), seen(data, GREEN))


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("background", [(255, 255, 255), None], ids=["white", "dropped"])
def test_every_mode_in_every_format(background):
    """To the bit, or refused: the decoder of an export against Pillow, and the table of the manual from the same."""
    decoded = decoder(Reading(background=background))
    for mode, kind, data in files():
        pixels, reason = decoded(data)
        if not reason:
            np.testing.assert_array_equal(pixels, seen(data, background), f"{mode} {kind}")


def test_the_scan_counts_what_an_export_refuses(tmp_path):
    """With one warning for all of them; it agrees with the decoder about every mode and format."""
    decoded, count = decoder(Reading()), 0
    for number, (mode, kind, data) in enumerate(files()):
        refused = bool(decoded(data)[1])
        assert ("not in exports" in validation.check(data).notes) == refused, (mode, kind)
        folder = tmp_path / "ab"[number % 2]
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.bin").write_bytes(data)
        count += refused
    warnings = kr.data.load(tmp_path, cache=False, value_range=(0, 65535)).warnings
    assert sum(warning.startswith(f"{count} images are in a format that exported") for warning in warnings) == 1


def test_the_table_of_the_manual():
    text = PAGE.read_text(encoding="utf-8")
    assert with_table(text) == text, "python -m tests.reading_table"
    assert text.count("| same |") > 10
