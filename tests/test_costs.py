"""Multiply-additions beside the papers' own tables, and counted by hand where no paper has them."""

import keras
import pytest

import keras_residual as kr
from keras_residual.costs import costs

V1 = {"stride_in": "1x1"}  # the papers before torchvision's stride at the 3x3 convolution
# Paper and table; name, options, 10^9 multiply-additions as printed.
TABLES = {
    "He et al. 2016, table 1": [
        ("ResNet18", {}, "1.8"),
        ("ResNet34", {}, "3.6"),
        ("ResNet50", V1, "3.8"),
        ("ResNet101", V1, "7.6"),
        ("ResNet152", V1, "11.3"),
    ],
    "Xie et al. 2017, table 1": [("ResNet50", {}, "4.1"), ("ResNeXt50_32x4d", {}, "4.2")],
    "Hu et al. 2018, table 2": [
        ("ResNet50", V1, "3.86"),
        ("SEResNet50", V1, "3.87"),
        ("ResNet101", V1, "7.58"),
        ("SEResNet101", V1, "7.60"),
        ("ResNet152", V1, "11.30"),
        ("SEResNet152", V1, "11.32"),
        ("ResNeXt50_32x4d", {}, "4.24"),
        ("SEResNeXt50_32x4d", {}, "4.25"),
        ("ResNeXt101_32x4d", {}, "7.99"),
        ("SEResNeXt101_32x4d", {}, "8.00"),
    ],
    "He et al. 2019, table 5": [("ResNet50", V1, "3.8"), ("ResNet50C", {}, "4.3"), ("ResNet50D", {}, "4.3")],
    "Touvron et al. 2022 (DeiT III), table 1": [
        ("DeiT3Small16", {}, "4.6"),
        ("DeiT3Medium16", {}, "8.0"),
        ("DeiT3Base16", {}, "17.5"),
        ("DeiT3Large16", {}, "61.6"),
        ("DeiT3Huge14", {}, "167.4"),
    ],
    "Liu et al. 2022 (ConvNeXt), table 1": [
        ("ConvNeXtTiny", {}, "4.5"),
        ("ConvNeXtSmall", {}, "8.7"),
        ("ConvNeXtBase", {}, "15.4"),
        ("ConvNeXtLarge", {}, "34.4"),
        ("ConvNeXtXLarge", {"input_shape": (224, 224, 3)}, "60.9"),
    ],
    "Woo et al. 2023 (ConvNeXt V2), table 9": [
        ("ConvNeXtV2Atto", {}, "0.55"),
        ("ConvNeXtV2Femto", {}, "0.78"),
        ("ConvNeXtV2Pico", {}, "1.37"),
        ("ConvNeXtV2Nano", {}, "2.45"),
        ("ConvNeXtV2Tiny", {}, "4.47"),
        ("ConvNeXtV2Base", {}, "15.4"),
        ("ConvNeXtV2Large", {}, "34.4"),
        ("ConvNeXtV2Huge", {"input_shape": (224, 224, 3)}, "115"),
    ],
}
QUICK = ("18", "50", "Small16", "Atto")  # the others take seconds to build
CASES = [
    pytest.param(
        *case,
        id=f"{paper.partition(' et')[0]}-{case[0]}",
        marks=[] if any(q in case[0] for q in QUICK) else [pytest.mark.slow],
    )
    for paper, cases in TABLES.items()
    for case in cases
]


@pytest.mark.parametrize(("name", "options", "printed"), CASES)
def test_the_papers_tables(name, options, printed):
    """Within 1 %, or all digits that the paper prints: some round, some cut off."""
    ours, theirs = costs(name, **options).macs / 1e9, float(printed)
    digit = 10.0 ** -len(printed.partition(".")[2])
    assert abs(ours - theirs) <= 0.01 * theirs or theirs <= ours < theirs + digit, ours


def test_by_hand():
    """Each kind of layer that is counted, and what is not: norms, activations, additions."""
    x = inputs = keras.Input((8, 8, 6))
    x = keras.layers.Conv2D(12, 3, strides=2, padding="same", groups=3)(x)  # 4x4x12, each of 3x3x2
    x = keras.layers.DepthwiseConv2D(5, padding="same")(x)  # 4x4x12, each of 5x5
    x = kr.blocks.batch_norm(x, name="bn")
    x = keras.layers.Reshape((16, 12))(x)
    x = kr.blocks.attention(x, 3, name="a")  # 16x36 and 16x12 of 12; scores and values 3 heads of 16x16x4
    model = keras.Model(inputs, keras.layers.Dense(7)(x))  # 16x7 of 12
    found = costs(model)
    assert found.macs == 4 * 4 * 12 * (18 + 25) + 16 * (36 + 12) * 12 + 2 * 3 * 16 * 16 * 4 + 16 * 7 * 12
    assert found.activations == 2 * 4 * 4 * 12 + 16 * (36 + 12) + 16 * 7
    assert found.params == 12 * 18 + 12 + 12 * 25 + 12 + 2 * 12 + 12 * 36 + 36 + 12 * 12 + 12 + 12 * 7 + 7


class Gate(keras.layers.Layer):
    """A layer from elsewhere that counts its own operations."""

    def call(self, inputs):
        return inputs[0] * inputs[1]

    def macs(self, values, gates):
        assert tuple(gates[1:]) == (5,)
        return values[1] * values[2]


def test_a_layer_counts_its_own_operations():
    q, k, v = (keras.Input(shape) for shape in ((3, 8, 4), (3, 10, 4), (3, 10, 5)))
    attended = kr.layers.Attend()([q, k, v])  # three heads: 8x10 scores of 4 numbers, 8x5 values of 10
    assert costs(keras.Model([q, k, v], attended)).macs == 3 * (8 * 10 * 4 + 8 * 5 * 10)
    values, gates = keras.Input((7, 5)), keras.Input((5,))
    assert costs(keras.Model([values, gates], Gate()([values, gates]))).macs == 7 * 5


def test_costs_at_another_size():
    half, whole = (costs("ResNet18", input_shape=(size, size, 3), include_top=False) for size in (64, 128))
    assert whole.macs == 4 * half.macs
    assert whole.params == half.params


def test_only_the_models_own_calls_count():
    """A layer that another model calls too; a model that is called twice, whose weights are there once."""
    layer = keras.layers.Dense(4)
    inputs = keras.Input((3,))
    inner = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, use_bias=False)])
    model = keras.Model(inputs, inner(inner(layer(inputs))))
    layer(keras.Input((3,)))
    found = costs(model)
    assert (found.params, found.macs, found.activations) == (3 * 4 + 4 + 4 * 4, 3 * 4 + 2 * 4 * 4, 3 * 4)


def test_costs_need_a_size():
    with pytest.raises(ValueError, match=r"must be known.*input_shape"):
        costs("ResNet18", input_shape=(None, None, 3))
    with pytest.raises(ValueError, match="Functional or a built Sequential"):
        costs(keras.Sequential([keras.layers.Dense(4)]))
    with pytest.raises(ValueError, match=r"not with a model; got \['input_shape'\]"):
        costs(kr.ResNet20(), input_shape=(8, 8, 3))
