"""Files of weights cut, flipped and written at random: read exactly, or refused with the model as it was."""

import math
import os

import h5py
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import keras_residual as kr
from keras_residual.weights import WeightsError, files

from .test_weights import snapshot, state_of, tiny, unchanged

CASES = int(os.environ.get("KR_DAMAGE", "24"))  # of each kind and format


def of_us(path, model):
    kr.save_weights(model, path)


def of_numpy(path, model):
    np.savez(path, **state_of(model))


def of_keras(path, model):
    model.save(path)


def of_others(path, model):
    """As timm writes: nothing in the file tells a flipped bit of a weight."""
    save_file(state_of(model), path)


def of_keras_applications(path, model):
    """Only its form: the names are not looked at before the numbers are read."""
    with h5py.File(path, "w") as file:
        for key, value in state_of(model).items():
            file[key] = value


# Suffix, writer, whether a checksum covers the tensors
FORMATS = {
    "ours": (".safetensors", of_us, True),
    "npz": (".npz", of_numpy, True),
    "keras": (".keras", of_keras, True),
    "safetensors": (".safetensors", of_others, False),
    "h5": (".h5", of_keras_applications, False),
}


@pytest.fixture(scope="module", params=list(FORMATS))
def written(request, tmp_path_factory):
    """A file's bytes and path, whether it has a checksum, what is in it, and a model of other weights."""
    suffix, write, checked = FORMATS[request.param]
    source = tiny("ResNet20", seed=1)
    path = tmp_path_factory.mktemp("damage") / f"a{suffix}"
    write(path, source)
    return path.read_bytes(), path, checked, snapshot(source), tiny("ResNet20", seed=2)


def test_cut_files_are_refused(written):
    content, path, _, _, victim = written
    before = snapshot(victim)
    places = np.random.default_rng(0).integers(0, len(content), CASES)
    for place in [0, 1, 7, 8, 9, len(content) - 1, *places.tolist()]:
        path.write_bytes(content[:place])
        with pytest.raises(WeightsError):
            kr.load_weights(victim, path)
        assert unchanged(victim, before), place


def test_flipped_bits(written):
    """A file is refused, or, where a checksum covers its tensors, it is exactly what was saved."""
    content, path, checked, saved, victim = written
    before = snapshot(victim)
    generator, refused = np.random.default_rng(1), 0
    places = [*generator.integers(0, 64, CASES // 3), *generator.integers(0, len(content), CASES - CASES // 3)]
    for place in map(int, places):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            kr.load_weights(victim, path)
        except WeightsError:
            refused += 1
            assert unchanged(victim, before), place
        else:
            assert not checked or unchanged(victim, saved), place
            for variable, value in zip(victim.weights, before, strict=True):
                variable.assign(value)
    assert refused > (0.5 * CASES if checked else 0.1 * CASES)  # flips of dates and the like do no harm


DTYPES = ["float32", "float16", "float64", ml_dtypes.bfloat16]


@st.composite
def arrays(draw):
    """An array of any bits: all NaNs, infinities, zeros of both signs, subnormals."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    size = math.prod(shape) * dtype.itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), dtype).reshape(shape)


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0", exclude_categories=("Cs", "Cc")), min_size=1)
STATES = st.dictionaries(
    NAMES.filter(lambda name: name not in (".", "..", "file", "__metadata__")), arrays(), max_size=4
)
FORMS = {
    ".safetensors": lambda path, state: save_file(state, path),
    ".npz": lambda path, state: np.savez(path, **state),
}


@pytest.mark.parametrize("suffix", list(FORMS))
def test_any_numbers_come_back_bit_for_bit(suffix, tmp_path):
    path = tmp_path / f"a{suffix}"

    @settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)
    @given(STATES)
    def check(state):
        FORMS[suffix](path, state)
        found = files.read(path, limit=10**6)
        assert found.keys() == state.keys()
        for name, array in state.items():
            assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
            assert found[name].tobytes() == array.tobytes(), name

    check()
