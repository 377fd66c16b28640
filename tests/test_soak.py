"""Long runs: memory does not grow, ten thousand files are read at a rate that is told, eight fetch one file."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from keras_residual.data.validation import scan

from . import GIVEN
from .data_images import encoded, picture

pytestmark = pytest.mark.slow

CYCLES = """
import gc, json, sys
from pathlib import Path
import keras
from keras_residual.classifier import Classifier
from keras_residual.training import Checkpointing, fit
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
    checkpoints = Checkpointing(folder / "training", resume=False)
    fit(model, RECIPE.replace(epochs=1), data(), checkpoints=checkpoints, progress=False)
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


FETCH = """
import hashlib, sys
from keras_residual.weights.sources import weights_file
print(hashlib.sha256(weights_file("someone/net").read_bytes()).hexdigest())
"""


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as one file needs; it sends slowly, so that those who fetch meet."""

    protocol_version, log_message = "HTTP/1.1", lambda self, *words: None
    content, fetched = b"", []

    def _head(self) -> bool:
        there = self.path == "/someone/net/resolve/main/model.safetensors"
        self.send_response(200 if there else 404)
        self.send_header("Content-Length", str(len(self.content) if there else 0))
        self.send_header("X-Repo-Commit", "0123456789abcdef0123456789abcdef01234567")
        self.send_header("ETag", f'"{hashlib.sha256(self.content).hexdigest()}"')
        if not there:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        return there

    def do_HEAD(self):
        self._head()

    def do_GET(self):
        if self._head():
            self.fetched.append(self.path)
            for start in range(0, len(self.content), 1 << 20):
                self.wfile.write(self.content[start : start + (1 << 20)])
                time.sleep(0.2)


def test_eight_fetch_at_once(tmp_path):
    """One whole file in the cache, whoever came first."""
    _Hub.content = safetensors.numpy.save({"a": np.random.default_rng(0).normal(size=(1 << 20,))})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {**GIVEN, "HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        environment.pop("HF_HUB_OFFLINE", None)
        start = [sys.executable, "-c", FETCH]
        root = Path(__file__).parents[1]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes = [subprocess.Popen(start, cwd=root, env=environment, **pipes) for _ in range(8)]
        said = [process.communicate() for process in processes]
        server.shutdown()
    assert all(process.returncode == 0 for process in processes), [err[-500:] for _, err in said]
    assert {out.strip() for out, _ in said} == {hashlib.sha256(_Hub.content).hexdigest()}
    assert len([path for path in tmp_path.rglob("blobs/*") if path.is_file()]) == 1
    assert len(_Hub.fetched) == 1, "the others waited for the first"
