"""Before anything else: quiet TensorFlow, the same numbers in every run."""

import hashlib
import json
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "agg")

import keras_residual.models  # noqa: F401  (registers every family; before TensorFlow, so that oneDNN is on as users have it)

# isort: split
import keras
import pytest
from safetensors.numpy import save
from tensorflow.python.framework.config import disable_op_determinism


def pytest_configure(config):
    if keras.__version__.startswith("3.10."):  # it expects [x] of a model that was loaded, and warns
        config.addinivalue_line("filterwarnings", "ignore:The structure of .inputs. doesn't match:UserWarning")


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
    policy = keras.config.dtype_policy()
    yield
    # TensorFlow has no public way back from determinism, and Keras does not compile by XLA while it is on
    disable_op_determinism()
    assert keras.config.dtype_policy() == policy, "a test left another dtype policy behind"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache as huggingface_hub lays it out, and no network: returns a function that puts a repository into it."""
    return offline_hub(tmp_path, monkeypatch)


def offline_hub(tmp_path, monkeypatch):
    """The same for fixtures that live longer."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)

    def publish(name, files, commit="0123456789abcdef0123456789abcdef01234567"):
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(commit)
        snapshots = folder / "snapshots" / commit
        snapshots.mkdir(parents=True)
        for file, content in files.items():
            if isinstance(content, dict) and file.endswith(".json"):
                (snapshots / file).write_text(json.dumps(content))
            else:  # large files lie among the blobs, under their SHA-256
                (folder / "blobs").mkdir(exist_ok=True)
                blob = save(content)
                target = folder / "blobs" / hashlib.sha256(blob).hexdigest()
                target.write_bytes(blob)
                (snapshots / file).symlink_to(target)

    return publish
