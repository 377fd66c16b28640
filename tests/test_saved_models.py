"""The trained network that lies in the repository: whole, small, and as good as its card says."""

import base64
import json
import re
import shlex
import shutil
import subprocess
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from keras_residual.cli import parser
from keras_residual.exporting.bundle import verify
from keras_residual.quickstart import arrays, split

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "saved_models" / "digits" / "1"
CARD = (DIGITS / "README.md").read_text(encoding="utf-8")


def held_out():
    """Digits of the split that the card names as encoded images, and what they are."""
    images, classes = arrays(split(int(re.search(r"split of seed (\d+)", CARD)[1]))[1])
    return [tf.io.encode_png(image).numpy() for image in images], classes


def test_it_is_as_good_as_its_card_says():
    """On the digits that it was not trained on, as they would come in a request."""
    assert max(verify(DIGITS).values()) < 1e-4
    contents, classes = held_out()
    saved = tf.saved_model.load(str(DIGITS))
    answers = saved.signatures["serving_bytes"](inputs=tf.constant(contents))
    right = np.mean([int(row[0]) for row in answers["labels"].numpy()] == classes)
    assert f"accuracy is {right:.2%}" in CARD
    assert right > 0.985
    assert not any(answers["errors"].numpy())


def test_its_card_says_how_it_was_made():
    command = re.search(r"`keras-residual (quickstart .*)`", CARD)[1]
    options = parser().parse_args(shlex.split(command))
    assert (options.output, options.saved_model) == ("runs/digits", "saved_models/digits")
    assert "CC BY 4.0" in CARD
    size = sum(file.stat().st_size for file in DIGITS.rglob("*") if file.is_file())
    assert size < 1_000_000, "a repository is no store of weights"  # half of it is the graph that decodes images


def test_what_quickstart_adds_is_not_for_the_repository():
    """Run in a checkout it writes version 2: git looks at version 1 alone, and the files beside stay as they are."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")

    def ignored(path):
        return subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0

    assert all(map(ignored, ("saved_models/digits/2/README.md", "saved_models/pets/1/README.md", "runs/digits/a.png")))
    assert not ignored("saved_models/digits/1/README.md")
    assert not ignored("saved_models/digits/models.config")


@pytest.mark.long
def test_the_readme_asks_it(tmp_path):
    """The README's lines for a shell, but for the port."""
    pytest.importorskip("tensorflow_serving.apis")
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    from .test_serving import running

    (block,) = (b for b in re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL) if "curl" in b)
    start, _, rest = block.partition("\n")
    assert start == "keras-residual serve saved_models/digits &"
    with running(DIGITS.parent) as server:
        assert "127.0.0.1:8501" in rest
        script = rest.replace("127.0.0.1:8501", f"127.0.0.1:{server.rest_port}")
        done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        (row,) = json.loads(done.stdout)["predictions"]
        assert row["labels"][0] == "1"
        contents, classes = held_out()
        body = {"signature_name": "serving_bytes", "inputs": [{"b64": base64.b64encode(contents[0]).decode()}]}
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/digits:predict"
        with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=30) as response:
            assert json.load(response)["outputs"]["labels"][0][0] == str(classes[0])
