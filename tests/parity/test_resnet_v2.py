"""Every ResNet V2 and BiT row against timm: its numbers, the same topology tiny, and one at full size."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import timm
import torch

import keras_residual as kr
from keras_residual import blocks, layers, models, registry
from keras_residual.blocks import conv_blocks
from keras_residual.models import resnet_v2

from . import reference

ROWS = [e for e in registry.entries().values() if e.builder.__module__ == "keras_residual.models.resnet_v2"]
STAGES = {level: f"stages.{level - 1}" for level in (1, 2, 3, 4)}
LIMIT = 1e-5


def tiny(row):
    """timm's network of the tiny row."""
    options = {"layers": row.depths, "channels": row.widths, "num_classes": 10}
    if "_bit" in row.timm:  # whose entry points take no depths
        return timm.models.resnetv2._create_resnetv2_bit("resnetv2_50x1_bit", width_factor=row.factor, **options)
    return timm.create_model(row.timm, **options)


def randomise(twin):
    """Random weights; those that are standardised are faint, or the epsilon would be nothing beside them."""
    reference.randomise(twin)
    with torch.no_grad():
        for module in twin.modules():
            if type(module).__name__ == "StdConv2d":
                module.weight.mul_(0.01)
    return twin


def compare(row, model, size=(64, 64)):
    return reference.compare(randomise(tiny(row)), model, STAGES, size)


def build(entry, row=None, **options):
    return entry.build(row or entry.config.tiny(), classifier_activation=None, classes=10, **options)


@pytest.mark.parametrize("entry", ROWS, ids=lambda e: e.config.timm)
def test_tiny_twin(entry, report):
    errors = compare(entry.config.tiny(), build(entry))
    report(entry.config.name, errors)
    assert max(errors.values()) < LIMIT, errors


@pytest.mark.parametrize("entry", ROWS, ids=lambda e: e.config.timm)
def test_numbers_of_the_row(entry):
    """What the tiny twin replaces, as the full network has it."""
    row = entry.config
    with torch.device("meta"):
        full = timm.create_model(row.timm, num_classes=row.classes)
    stem, *stages = (stage["num_chs"] for stage in full.feature_info)
    theirs = {
        "depths": tuple(len(stage.blocks) for stage in full.stages),
        "widths": tuple(stages),
        "stem": stem,
        "params": sum(value.numel() for value in full.parameters()),
    }
    widths = tuple(width * row.factor for width in row.widths)
    assert theirs == {"depths": row.depths, "widths": widths, "stem": 64 * row.factor, "params": row.params}
    name = f"{row.timm}.{row.tag}" if row.tag else row.timm
    assert timm.get_pretrained_cfg(name).input_size[1:] == row.input_shape[:2]


def test_full_size():
    twin = timm.create_model("resnetv2_50")
    model = models.create("resnetv2_50", classifier_activation=None)
    assert model.count_params() == sum(v.numel() for k, v in twin.state_dict().items() if "num_batches" not in k)
    errors = reference.compare(randomise(twin), model, STAGES, size=(224, 224))
    assert max(errors.values()) < LIMIT, errors


@pytest.fixture
def double():
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_dtype_policy("float32")


def test_full_size_of_bit(double):
    """In double precision: without statistics to fall back on, every norm hands the rounding errors of float32 on."""
    twin = timm.create_model("resnetv2_50x1_bit")
    model = models.create("resnetv2_50x1_bit", input_shape=(128, 128, 3), classifier_activation=None)
    randomise(twin)
    kr.load_weights(model, {key: value.numpy() for key, value in twin.state_dict().items()})
    x = reference.images((128, 128)).astype("float64")
    with torch.no_grad():
        logits = twin.double()(reference.to_torch(x)).numpy()
    assert reference.distance(np.asarray(model(x, training=False)), logits) < 1e-11


@pytest.mark.parametrize("name", ["resnetv2_18", "resnetv2_50d", "resnetv2_50x1_bit"])
def test_odd_size(name):
    entry = models.find(name)
    row = dataclasses.replace(entry.config.tiny(), input_shape=(75, 109, 3))
    errors = compare(row, build(entry, row), (75, 109))
    assert max(errors.values()) < LIMIT, errors


@pytest.mark.parametrize("prefix", ["resnet/", ""])
def test_bit_npz(tmp_path, prefix):
    """Google's names and axes; timm's own reader gives the expected weights."""
    entry = models.find("resnetv2_50x1_bit")
    twin = randomise(tiny(entry.config.tiny()))
    arrays = {}

    def put(place, module):
        kernel = np.transpose(module.weight.detach().numpy(), (2, 3, 1, 0))
        arrays[f"{prefix}{place}/standardized_conv2d/kernel"] = kernel

    def put_norm(place, module):
        arrays[f"{prefix}{place}group_norm/gamma"] = module.weight.detach().numpy()
        arrays[f"{prefix}{place}group_norm/beta"] = module.bias.detach().numpy()

    put("root_block", twin.stem.conv)
    put_norm("", twin.norm)
    arrays[f"{prefix}head/conv2d/kernel"] = np.transpose(twin.head.fc.weight.detach().numpy(), (2, 3, 1, 0))
    arrays[f"{prefix}head/conv2d/bias"] = twin.head.fc.bias.detach().numpy()
    for i, stage in enumerate(twin.stages, start=1):
        for j, block in enumerate(stage.blocks, start=1):
            for part, conv, norm in zip(
                "abc", (block.conv1, block.conv2, block.conv3), (block.norm1, block.norm2, block.norm3), strict=True
            ):
                put(f"block{i}/unit{j:02d}/{part}", conv)
                put_norm(f"block{i}/unit{j:02d}/{part}/", norm)
            if block.downsample is not None:
                put(f"block{i}/unit{j:02d}/a/proj", block.downsample.conv)
    np.savez(tmp_path / "a.npz", **arrays)
    again = tiny(entry.config.tiny())
    again.load_pretrained(tmp_path / "a.npz", prefix)
    model = build(entry)
    kr.load_weights(model, tmp_path / "a.npz")
    expected = {key: value.numpy() for key, value in again.state_dict().items()}
    for slot in kr.weights.slots(model):
        np.testing.assert_array_equal(slot.to_torch(np.asarray(slot.variable)), expected[slot.key])


# ------------------------------------------------------------------------------- the suite can fail: made on purpose


def keras_epsilon(monkeypatch):
    return {"norm": lambda x, *, name, zero_init=False: layers.BatchNorm(epsilon=1e-3, name=name)(x)}


def stride_on_the_first_convolution(monkeypatch):
    def conv(x, filters, kernel, *, stride=1, bias, name):
        if name.endswith(("blocks.0.conv1", "blocks.0.conv2")) and not name.startswith("stages.0"):
            stride = 2 if name.endswith("conv1") else 1
        return blocks.convolution(x, filters, kernel, stride=stride, bias=bias, name=name)

    return {"row": {"conv": conv}}


def projection_of_the_raw_input(monkeypatch):
    original = conv_blocks._preact

    def raw(x, filters, stride, shortcut, conv, norm, activation, name, norms):
        y, h = original(x, filters, stride, lambda y, filters, **options: y, conv, norm, activation, name, norms)
        same = stride == 1 and x.shape[-1] == filters
        return y, h if same else shortcut(x, filters, stride=stride, conv=conv, name=f"{name}.downsample")

    monkeypatch.setattr(conv_blocks, "_preact", raw)


def no_last_activation(monkeypatch):
    original = blocks.activate
    monkeypatch.setattr(
        blocks, "activate", lambda x, activation, *, name: x if name == "act" else original(x, activation, name=name)
    )


def padding_that_never_wins(monkeypatch):
    return {"row": {"pool": blocks.max_pool}}


def padding_of_zeros(monkeypatch):
    return {"row": {"pool": resnet_v2.zero_padded_max_pool}}


def other_standardisation_epsilon(monkeypatch):
    return {"row": {"conv": functools.partial(blocks.convolution, standardize=1e-6)}}


def standardised_over_everything(monkeypatch):
    def convolution_op(self, inputs, kernel):
        kernel = keras.ops.convert_to_tensor(kernel)
        kernel = kernel - keras.ops.mean(kernel)
        kernel = kernel / keras.ops.std(kernel)
        return keras.layers.Conv2D.convolution_op(self, inputs, kernel)

    monkeypatch.setattr(layers.StandardizedConv2D, "convolution_op", convolution_op)


def not_standardised(monkeypatch):
    return {"row": {"conv": blocks.convolution}}


MUTATIONS = [
    ("resnetv2_50", keras_epsilon),
    ("resnetv2_50", stride_on_the_first_convolution),
    ("resnetv2_50", projection_of_the_raw_input),
    ("resnetv2_50", no_last_activation),
    ("resnetv2_50", padding_of_zeros),
    ("resnetv2_50x1_bit", padding_that_never_wins),
    ("resnetv2_50x1_bit", other_standardisation_epsilon),
    ("resnetv2_50x1_bit", standardised_over_everything),
    ("resnetv2_50x1_bit", not_standardised),
]


@pytest.mark.parametrize(("name", "mutation"), MUTATIONS, ids=lambda m: m if isinstance(m, str) else m.__name__)
def test_mutation_is_seen(name, mutation, monkeypatch):
    entry = models.find(name)
    row = entry.config.tiny()
    options = mutation(monkeypatch) or {}
    model = build(entry, dataclasses.replace(row, **options.pop("row", {})), **options)
    error = max(compare(row, model).values())
    assert error > 10 * LIMIT
