"""Long runs: memory does not grow, ten thousand files are read at a rate that is told."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_residual.data.scan import scan

from . import GIVEN
from .data_images import encoded, picture

pytestmark = pytest.mark.slow

CYCLES = """
import gc, json, sys
from pathlib import Path
import keras
from keras_residual.classifier import Classifier
from keras_residual.training import fit
from keras_residual.weights import Preprocess
from tests.test_training_fit import RECIPE, data
import keras_residual as kr

folder, count, seen = Path(sys.argv[1]), int(sys.argv[2]), []

def resident():
    gc.collect()
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("VmRSS")).split()[1]) / 1024

for i in range(count):
    keras.utils.clear_session()  # what Keras asks of whoever builds models in a loop
    model = kr.ResNet20(classes=3, input_shape=(8, 8, 3), classifier_activation=None)
    fit(model, RECIPE.replace(epochs=1), data(), directory=folder / "training", resume=False, progress=False)
    Classifier(model, Preprocess((8, 8)), ("a", "b", "c"), "ResNet20").save(folder / "run")
    Classifier.load(folder / "run")
    seen.append(resident())
print(json.dumps(seen))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells the memory of a process")
def test_memory_of_a_hundred_trainings(tmp_path):
    count = int(os.environ.get("KR_CYCLES", "100"))
    command = [sys.executable, "-c", CYCLES, str(tmp_path), str(count)]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=GIVEN, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    print(f"MB after 1, a quarter, a half, all: {[round(seen[i]) for i in (0, count // 4, count // 2, -1)]}")
    growth = (seen[-1] - seen[count // 2]) / (count - count // 2)
    assert growth < 1.0, f"{growth:.2f} MB a cycle"


def test_ten_thousand_files(tmp_path):
    """Their verdicts, the rate, and the memory they take."""
    contents = [encoded(picture(200, 300, seed=i), "JPEG", quality=85) for i in range(50)]
    bad = set()
    for i in range(10_000):
        spoiled = i % 500 == 7
        (tmp_path / f"{i:05}.jpg").write_bytes(contents[i % 50][: 900 if spoiled else None])
        bad |= {i} if spoiled else set()
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    told = []
    start = time.perf_counter()
    records = scan(paths, tmp_path / "cache.json", progress=lambda *numbers: told.append(numbers))
    first = time.perf_counter() - start
    assert {i for i, record in enumerate(records) if record.reason} == bad
    assert told[-1] == (10_000, 10_000)
    start = time.perf_counter()
    assert scan(paths, tmp_path / "cache.json") == records
    again = time.perf_counter() - start
    print(f"{10_000 / first:,.0f} files/s; from the cache {10_000 / again:,.0f}")
    assert again < first / 5
