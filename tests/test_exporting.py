"""The SavedModel: whole, versioned, each weight once, and the numbers of the Keras model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_residual as kr

from .tools import distance, noise, randomise


@pytest.fixture(scope="module")
def model():
    return randomise(kr.ResNet20(input_shape=(16, 16, 3), drop_path=0.5))


def serve(version, x):
    return tf.saved_model.load(str(version)).signatures["serving_default"](inputs=tf.constant(x))["outputs"].numpy()


def test_numbers_and_versions(tmp_path, model):
    first, second = kr.export(model, tmp_path), kr.export(model, tmp_path)
    assert [first.name, second.name] == ["1", "2"]
    for batch in (1, 5):
        x = noise((batch, 16, 16, 3))
        assert distance(serve(second, x), model(x, training=False)) < 1e-6


def test_each_weight_once_without_optimizer(tmp_path, model):
    compiled = keras.models.clone_model(model)
    compiled.compile("adam", "sparse_categorical_crossentropy")
    compiled.fit(noise((4, 16, 16, 3)), np.zeros(4), verbose=0)
    version = kr.export(compiled, tmp_path)
    size = sum(path.stat().st_size for path in (version / "variables").iterdir())
    assert size < 4 * compiled.count_params() * 1.2


def test_half_precision_serves_float32(tmp_path):
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = kr.ResNet20(input_shape=(16, 16, 3), include_top=False, pooling="avg")
    finally:
        keras.config.set_dtype_policy(policy)
    assert serve(kr.export(half, tmp_path), noise((2, 16, 16, 3))).dtype == np.float32


def test_an_interrupted_export_leaves_nothing(tmp_path, model, monkeypatch):
    kr.export(model, tmp_path)
    save = tf.saved_model.save

    def interrupted(*arguments, **options):
        save(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(tf.saved_model, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kr.export(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_several_outputs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one input and one output"):
        kr.export(kr.features("ResNet20", levels=(1, 2)), tmp_path)
    assert list(tmp_path.iterdir()) == []
