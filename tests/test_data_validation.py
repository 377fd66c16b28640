"""What the scan says of files is what training would find out; nothing hangs, crashes or eats memory."""

import csv
import ctypes
import json
import os
import socket
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from keras_residual import data
from keras_residual.data import validation
from keras_residual.data.stores import Encoded
from keras_residual.data.validation import check, check_file, default_cache, scan, scan_bytes
from keras_residual.reading import host
from tests.data_images import BOMBS, JPEG, PNG, bad_files, encoded, exif, picture, write_folder

BAD = bad_files()


@pytest.mark.parametrize("name", BAD)
def test_bad_file(name, tmp_path):
    content, word = BAD[name]
    (tmp_path / name).write_bytes(content)
    start = time.perf_counter()
    reason = scan([str(tmp_path / name)])[0].reason
    assert reason, f"{name} passed"
    assert word in reason
    assert reason.startswith(("is ", "has ", "holds ", "declares ")), reason
    assert len(reason) < 200
    assert "<_io" not in reason
    assert "0x" not in reason
    assert time.perf_counter() - start < 5


def test_there_are_enough_bad_files():
    assert len(BAD) >= 60


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """Good images of three classes, and all bad files among them."""
    root = write_folder(tmp_path_factory.mktemp("data") / "spoiled")
    for i, (name, (content, _)) in enumerate(BAD.items()):
        (root / ("ant", "bee", "cow")[i % 3] / name).write_bytes(content)
    (root / "ant" / "._000.jpg").write_bytes(b"\0\5\x16\7" + bytes(50))
    (root / "ant" / "gone.jpg").symlink_to("nowhere.jpg")
    (root / "bee" / "self.jpg").symlink_to("self.jpg")
    (root / "bee" / "notes.txt").write_text("labelled by Ann")
    (root / "bee" / ".DS_Store").write_bytes(b"Bud1")
    os.mkfifo(root / "cow" / "fifo.jpg")
    (root / "cow" / "device.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(root / "cow")  # the name of a socket is short
        server.bind("socket.jpg")
        os.chdir(here)
    return root


def test_exactly_the_bad_ones_are_skipped(spoiled, tmp_path):
    found = data.load(spoiled, cache=False)
    others = {"ant/._000.jpg", "ant/gone.jpg", "bee/self.jpg", "bee/notes.txt", "cow/fifo.jpg", "cow/device.jpg"}
    expected = {f"{('ant', 'bee', 'cow')[i % 3]}/{name}" for i, name in enumerate(BAD)} | others | {"cow/socket.jpg"}
    assert {name for name, _ in found.skipped} == expected
    assert len(found.train) + len(found.validation) == 30
    found.write_skipped(tmp_path / "skipped.csv")
    with open(tmp_path / "skipped.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == expected
    assert all(row["reason"] for row in rows)
    reasons = {row["path"]: row["reason"] for row in rows}
    assert "FIFO, not a file; it was not opened" in reasons["cow/fifo.jpg"]
    assert "device, not a file; it was not opened" in reasons["cow/device.jpg"]
    assert "broken link" in reasons["ant/gone.jpg"]
    assert "macOS" in reasons["ant/._000.jpg"]
    for batch, _ in found.train.training(8, 32).take(6):
        assert batch.shape == (8, 32, 32, 3)


def test_raise_lists_them(spoiled):
    with pytest.raises(data.DataError, match=r"images cannot be used") as error:
        data.load(spoiled, cache=False, on_error="raise")
    assert len(error.value.skipped) == len(BAD) + 7
    assert "ant/empty.jpg is empty" in str(error.value)
    lines = str(error.value).splitlines()
    assert len(lines) == 52  # not thousands
    assert lines[-1] == f"  and {len(BAD) + 7 - 50} more"


def test_odd_names_and_odd_suffixes(tmp_path):
    root = write_folder(tmp_path / "odd", count=3)
    names = [
        "\u96ea\u00e9\U0001f600.jpg",
        "with space, comma\n'quote\".jpg",
        os.fsdecode(b"\xff\xfe.jpg"),
        "JPEG",
        "x.JPG.png",
    ]
    for i, name in enumerate(names):
        (root / "ant" / name).write_bytes(encoded(picture(seed=50 + i), "JPEG"))
    (root / "ant" / os.fsdecode(b"\xe9mpty.jpg")).write_bytes(b"")
    found = data.load(root, cache=tmp_path / "cache.json", validation=0)
    assert {f"ant/{name}" for name in names} <= set(found.train.names)
    for batch, _ in found.train.training(len(found.train), 16).take(1):
        assert batch.shape[0] == 9 + len(names)
    found.write_skipped(tmp_path / "skipped.csv")
    assert "ant/\\xe9mpty.jpg,is empty" in (tmp_path / "skipped.csv").read_text("utf-8")
    again = data.load(root, cache=tmp_path / "cache.json", validation=0)
    assert again.fingerprint == found.fingerprint


# ------------------------------------------------------------------------------------------------------------- bombs


def peak():
    """Most megabytes of memory that this process had."""
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) / 1024


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="Linux tells the peak of memory")
def test_bombs_take_no_memory(tmp_path):
    for name, content in BOMBS.items():
        (tmp_path / name).write_bytes(content)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak counts from here
    before = peak()
    records = scan([str(path) for path in sorted(tmp_path.iterdir())])
    assert all("max_pixels" in record.reason for record in records), records
    assert peak() - before < 100  # the bar is 200
    assert len(records) == 8


def test_limit_of_pixels_is_the_users():
    small = encoded(picture(100, 100), "PNG")
    assert "max_pixels=9,999" in check(small, 9_999).reason
    assert not check(small, 10_000).reason


# ---------------------------------------------------------------------------------------------------------- the cache


def test_cache_is_used_and_renewed(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "images", count=4)
    paths = [str(path) for path in sorted(root.rglob("*.*"))]
    cache = tmp_path / "deep" / "cache.json"
    first = scan(paths, cache)
    looked = []
    monkeypatch.setattr(
        "keras_residual.data.validation.check_file", lambda path, *_: looked.append(path) or check_file(path)
    )
    assert scan(paths, cache) == first
    assert looked == []
    victim = paths[3]
    with open(victim, "r+b") as file:
        file.truncate(200)
    found = scan(paths, cache)
    assert looked == [victim]
    assert found[3].reason
    assert scan(paths, cache) == found
    assert looked == [victim]
    (tmp_path / "other.png").write_bytes(PNG)
    scan([str(tmp_path / "other.png")], cache)  # two sources may share a cache
    scan([*paths, str(tmp_path / "other.png")], cache)
    assert len(looked) == 2
    scan(paths, cache, max_pixels=1_000)  # another question
    assert len(looked) == 2 + len(paths)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rules": 1}', '{"rules": "R", "files": {"x": [1]}}', "\xff"])
def test_damaged_cache_is_no_trouble(tmp_path, content):
    (tmp_path / "a.png").write_bytes(PNG)
    cache = tmp_path / "cache.json"
    scan([str(tmp_path / "a.png")], cache)
    rules = json.loads(cache.read_text())["rules"]
    cache.write_text(content.replace('"R"', json.dumps(rules)), "latin-1")
    assert scan([str(tmp_path / "a.png")], cache)[0].height == 45


def test_cache_lies_outside_the_images(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    root = write_folder(tmp_path / "images", count=2)
    before = sorted(root.rglob("*"))
    data.load(root)
    assert sorted(root.rglob("*")) == before
    assert default_cache(str(root)).is_relative_to(tmp_path / "home")
    assert default_cache(str(root)).is_file()


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "a.png").write_bytes(PNG)
    assert not scan([str(tmp_path / "a.png")], tmp_path / "file" / "cache.json")[0].reason


def test_progress(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.jpg").write_bytes(JPEG)
    calls = []
    scan([str(tmp_path / "a.png"), str(tmp_path / "b.jpg")], progress=lambda *numbers: calls.append(numbers))
    assert calls == [(2, 2)]


# ------------------------------------------------------------------------------------------------------------ fuzzing

_SOURCES = {
    "jpeg": encoded(picture(60, 80), "JPEG", exif=exif(6)),
    "progressive": encoded(picture(60, 80), "JPEG", progressive=True),
    "png": encoded(picture(60, 80), "PNG"),
    "gif": encoded(picture(60, 80), "GIF"),
    "bmp": encoded(picture(60, 80), "BMP"),
    "webp": encoded(picture(60, 80), "WEBP"),
    "tiff": encoded(picture(60, 80), "TIFF", compression="tiff_lzw"),
}


def mutant(source, generator):
    """Cut, flipped bits, a wrong byte in the header, a hole of zeros, bytes in between, two files in one."""
    found = bytearray(source)
    place, length = int(generator.integers(len(found))), int(generator.integers(1, 64))
    kind = generator.integers(6)
    if kind == 0:
        del found[max(1, place) :]
    elif kind == 1:
        for _ in range(generator.integers(1, 4)):
            found[generator.integers(len(found))] ^= 1 << int(generator.integers(8))
    elif kind == 2:
        found[place % 200] = int(generator.integers(256))
    elif kind == 3:
        found[place : place + length] = bytes(len(found[place : place + length]))
    elif kind == 4:
        found[place:place] = generator.bytes(length % 16 + 1)
    else:
        found[place:] = source[-place:]
    return bytes(found)


def fuzz(kind, count):
    generator = np.random.default_rng(sum(kind.encode()))
    mutants = [mutant(_SOURCES[kind], generator) for _ in range(count)]
    records = scan_bytes(mutants)
    good = [i for i, record in enumerate(records) if not record.reason]
    if good:
        store = Encoded([mutants[i] for i in good], [records[i] for i in good], in_memory=True)
        whole, part = tf.function(store.whole), tf.function(store.part)
    for place, i in enumerate(good):
        shape = records[i].height, records[i].width
        assert whole(tf.constant(place)).shape == (*shape, 3)
        for size in ((1, 1), (9, 9), (40, 40)):
            height, width = (int(generator.integers(1, side + 1)) for side in shape)
            top, left = int(generator.integers(shape[0] - height + 1)), int(generator.integers(shape[1] - width + 1))
            window, way = store.ways(tf.constant([place]), tf.constant([[top, left, height, width]]), size)
            assert part(tf.constant(place), window[0], way[0]).shape == (*window[0, 2:].numpy(), 3)
    native = {"jpeg": host.decode_jpeg, "progressive": host.decode_jpeg, "png": host.decode_png}.get(kind)
    for record, content in zip(records, mutants, strict=True):
        if native and record.reason.endswith("its pixels are not"):
            with pytest.raises(tf.errors.InvalidArgumentError):
                native(tf.constant(content))
    return len(good)


@pytest.mark.parametrize("kind", _SOURCES)
def test_the_verdict_is_the_training_decoders(kind):
    """What passed is decoded by training, whole and in parts, at the size that was found; what did not is refused."""
    good = fuzz(kind, 60)
    assert good < 60
    assert good or kind == "png"  # its checksums find everything


@pytest.mark.slow
@pytest.mark.parametrize("kind", _SOURCES)
def test_the_verdict_is_the_training_decoders_thousandfold(kind):
    fuzz(kind, 1000)


# ------------------------------------------------------------------------------------------------- what decoders print

LOST = JPEG[: len(JPEG) // 2] + b"\xff\xd9"  # the end's marker too early: libjpeg fills up with grey and prints
LIBC = ctypes.CDLL(None)


def print_meanwhile(monkeypatch, writing):
    """Scan a damaged and a good image; `writing` runs in another thread while the first is decoded."""
    monkeypatch.setattr(validation, "check", lambda *arguments: [run_aside(writing), check(*arguments)][1])
    return [record.reason for record in scan_bytes([LOST, JPEG])]


def run_aside(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


@pytest.mark.skipif(sys.platform != "linux", reason="C's variable has another name elsewhere")
def test_others_print_while_images_are_decoded(monkeypatch, capfd):
    """Python's output appears at once, whatever it is about; that of C code without our decoders' names afterwards."""
    seen = []
    turn = threading.Lock()  # images are decoded in several threads

    def writing():
        with turn:
            os.write(2, b"saved plot.PNG: the marker is JPEG\n")
            seen.append(capfd.readouterr().err)
        LIBC.fprintf(ctypes.c_void_p.in_dll(LIBC, "stderr"), b"a library's warning\n")
        LIBC.fprintf(ctypes.c_void_p.in_dll(LIBC, "stderr"), b"W0000 00:00:1.0 1 hdf5.cc:7] no JPEG in it\n")

    reasons = print_meanwhile(monkeypatch, writing)
    assert "premature end" in reasons[0]
    assert not reasons[1]
    assert all("saved plot.PNG: the marker is JPEG\n" in text for text in seen)  # TensorFlow's threads may add lines
    left = "".join(seen) + capfd.readouterr().err
    assert "a library's warning\n" in left
    assert "no JPEG in it\n" in left
    assert "Corrupt JPEG data" not in left


def test_where_the_stream_cannot_be_exchanged(monkeypatch, capfd):
    """There the process's standard error is redirected, and what is not a decoder's passed on."""
    monkeypatch.setattr(validation, "_c_stderr", lambda: None)
    reasons = print_meanwhile(monkeypatch, lambda: os.write(2, b"another thread\n"))
    assert "premature end" in reasons[0]
    assert not reasons[1]
    left = capfd.readouterr().err
    assert "another thread\n" in left
    assert "Corrupt JPEG data" not in left
