"""Before anything else: quiet TensorFlow, the same numbers in every run."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "agg")

import keras
import pytest

import keras_residual.models  # noqa: F401  (registers every family)


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)
    policy = keras.config.dtype_policy()
    yield
    assert keras.config.dtype_policy() == policy, "a test left another dtype policy behind"
