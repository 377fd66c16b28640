"""No image, however damaged, ends the process that serves it, takes its memory or changes another's answer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

import keras_residual as kr

from .decoder_child import BATCH

GROWTH = 500  # megabytes; 2,000 mutants take about 20


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    prepare = kr.weights.Preprocess((24, 32), (0.0,) * 3, (1.0,) * 3, interpolation="bilinear")
    inputs = keras.Input((24, 32, 3))
    network = keras.Model(inputs, keras.layers.Flatten()(inputs))
    return kr.export(network, tmp_path_factory.mktemp("model"), preprocess=prepare, max_pixels=1_000_000)


def run(model, first, last):
    """Decode mutants in a child process: its exit code, and what it said."""
    command = [sys.executable, "-m", "tests.decoder_child", str(model), str(first), str(last)]
    # glibc's own checks find writes beyond a block that do no harm yet
    checks = Path("/lib/x86_64-linux-gnu/libc_malloc_debug.so.0")
    environment = {**os.environ, **({"LD_PRELOAD": str(checks), "MALLOC_CHECK_": "3"} if checks.exists() else {})}
    options = {"cwd": Path(__file__).parents[1], "env": environment, "timeout": 120 + (last - first) // 5}
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, **options)
    except subprocess.TimeoutExpired as hung:
        return "a timeout", (hung.stdout or b"").decode(errors="replace")
    return done.returncode, done.stdout + done.stderr


def faults(model, first, last):
    """The mutants that end the process, with its last words, and how many were read; it is started again after each."""
    found, read = {}, 0
    while first < last:
        code, said = run(model, first, last)
        counts = re.search(r"read (\d+) of \d+, (\d+) MB", said)
        if counts:
            assert code == 0
            assert int(counts[2]) < GROWTH, said
            return found, read + int(counts[1])
        assert code != 1, said  # an exception, not a crash
        start = int(re.findall(r"^(\d+)$", said, re.MULTILINE)[-1])
        end = min(start + BATCH, last)
        while end - start > 1:  # halved until one is left
            middle = (start + end) // 2
            start, end = (start, middle) if run(model, start, middle)[0] else (middle, end)
        found[start] = code, said[-2000:]
        first = end
    return found, read


@pytest.mark.long
def test_damaged_images_end_no_process(model):
    found, read = faults(model, 0, 100)
    assert not found, "reproduce by: python -m tests.decoder_child MODEL NUMBER NUMBER+1"
    assert read > 10, "the others are refused by the first look at them"


@pytest.mark.slow
def test_damaged_images_end_no_process_twenty_thousand(model):
    found, read = faults(model, 200, 20_200)
    assert not found, "reproduce by: python -m tests.decoder_child MODEL NUMBER NUMBER+1"
    assert read > 2_000
