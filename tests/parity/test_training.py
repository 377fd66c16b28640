"""Training against torch: gradients and one SGD step in float64, batch statistics in float32."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import timm
import torch

import keras_residual as kr
from keras_residual.weights import slots

from . import reference, test_convnext, test_resnet_v2, test_vit

# Row, and how far float64 gradients may be apart: TensorFlow's erf is good to 5e-9 only.
ROWS = {"resnet50": 1e-9, "seresnet50": 1e-9, "resnext50_32x4d": 1e-9, "vit_tiny_patch16_224": 1e-7}
ROWS |= {"convnext_atto": 1e-7, "convnextv2_atto": 1e-7, "resnetv2_50": 1e-9, "resnetv2_50x1_bit": 1e-9}


def tiny_resnet(row):
    changed = {"layers": row.depths, "channels": row.widths}
    changed |= {"cardinality": row.groups, "base_width": row.base_width} if row.groups > 1 else {}
    return timm.create_model(row.timm, num_classes=10, **changed)


TINY = {"convnext": test_convnext.tiny, "resnet_v2": test_resnet_v2.tiny, "vit": test_vit.tiny, "resnet": tiny_resnet}


def pair(name, double):
    """Our tiny twin and timm's, with the same random weights."""
    entry = kr.models.find(name)
    row = entry.config.tiny()
    twin = reference.randomise(TINY[entry.builder.__module__.rpartition(".")[2]](row))
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64" if double else "float32")
    try:
        model = entry.build(row, classes=10, classifier_activation=None)
    finally:
        keras.config.set_dtype_policy(policy)
    twin = twin.double() if double else twin
    kr.load_weights(model, {key: value.numpy() for key, value in twin.state_dict().items()})
    return model, twin, row.input_shape[:2]


@pytest.mark.parametrize("name", list(ROWS))
def test_gradients_and_one_step(name):
    model, twin, size = pair(name, double=True)
    limit = ROWS[name]
    x, labels = reference.images(size, batch=4).astype("float64"), np.array([1, 5, 2, 9])

    twin.train()
    # Keras keeps rates in float32: 1/8 is exact there
    optimizer = torch.optim.SGD(twin.parameters(), 0.125, momentum=0.9)
    torch.nn.functional.cross_entropy(twin(reference.to_torch(x)), torch.from_numpy(labels)).backward()
    theirs = {key: p.grad.numpy() for key, p in twin.named_parameters()}

    with tf.GradientTape() as tape:
        logits = model(x, training=True)
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
    variables = model.trainable_variables
    gradients = tape.gradient(loss, [v.value for v in variables])
    place = {id(v): g for v, g in zip(variables, gradients, strict=True)}
    largest = max(np.abs(g).max() for g in theirs.values())
    for slot in slots(model):
        if slot.key in theirs:
            ours = slot.to_torch(place[id(slot.variable)].numpy())
            assert np.abs(ours - theirs[slot.key]).max() < limit * largest, slot.key

    keras.optimizers.SGD(0.125, momentum=0.9).apply(gradients, variables)
    optimizer.step()
    after = twin.state_dict()
    for slot in slots(model):
        expected = after[slot.key].numpy()
        ours = slot.to_torch(slot.variable.numpy())
        assert np.abs(ours - expected).max() < limit * max(1, np.abs(expected).max()), slot.key


@pytest.mark.parametrize("name", ["resnet50", "seresnet50"])
def test_batch_statistics(name):
    """Running averages after one training pass in float32, through the native kernel: torch's unbiased variance."""
    model, twin, size = pair(name, double=False)
    x = reference.images(size, batch=4)
    with torch.no_grad():
        twin.train()(reference.to_torch(x))
    model(x, training=True)
    after = twin.state_dict()
    for slot in slots(model):
        if slot.key.endswith(("running_mean", "running_var")):
            assert reference.distance(slot.variable.numpy(), after[slot.key].numpy()) < 2e-5, slot.key
