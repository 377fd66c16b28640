"""Tests of convolutional blocks: widths, paddings and poolings of other libraries."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_residual as kr
from keras_residual import blocks

from . import tools


def build(function, shape, seed=0):
    """Build a Functional model of `function` for inputs of `shape`, with all variables filled with noise."""
    inputs = keras.Input(shape)
    return tools.randomise(keras.Model(inputs, function(inputs)), seed)


# ------------------------------------------------------------------------------------------------ channels and gates


@pytest.mark.parametrize(
    ("channels", "divisor", "limit", "expected"),
    [
        (3, 8, 0.9, 8),  # never below the divisor
        (11.9, 8, 0.0, 8),
        (11.9, 8, 0.9, 16),  # 8 would be less than nine tenths
        (12, 8, 0.0, 16),  # halves round up
        (35.2, 8, 0.9, 32),  # EfficientNet-B2: 32 * 1.1
        (22.4, 8, 0.9, 24),  # 16 * 1.4
        (5.0, 1, 0.0, 5),
        (5.5, 1, 0.0, 6),
    ],
)
def test_make_divisible(channels, divisor, limit, expected):
    assert blocks.make_divisible(channels, divisor, limit=limit) == expected


def test_squeeze_excite_is_as_wide_as_asked():
    names = ("conv_reduce", "conv_expand")
    for options, width in (
        ({"reduced": 5}, 5),
        ({}, 8),
        ({"ratio": 1 / 4}, 24),  # a quarter of 80 is 20, rounded up to a multiple of 8
        ({"ratio": 1 / 4, "divisor": 1}, 20),
        ({"ratio": 0.14}, 8),  # 11.2, rounded down however much that takes away
    ):
        model = build(functools.partial(blocks.squeeze_excite, name="se", names=names, **options), (4, 4, 80))
        assert model.get_layer("se.conv_reduce").filters == width
        assert model.get_layer("se.conv_expand").filters == 80


def test_squeeze_excite_gates():
    model = build(
        functools.partial(blocks.squeeze_excite, name="se", bias=False, activation="silu", gate="hard_sigmoid"),
        (3, 5, 16),
    )
    x = tools.noise((2, 3, 5, 16))
    first, second = (np.asarray(w)[0, 0] for w in model.get_weights())
    hidden = x.mean((1, 2)) @ first
    gate = np.clip((hidden / (1 + np.exp(-hidden))) @ second / 6 + 0.5, 0, 1)
    assert tools.distance(model(x), x * gate[:, None, None]) < 1e-5


def test_group_norm_takes_the_size_of_its_groups():
    model = build(functools.partial(blocks.group_norm, name="norm", group_size=4), (5, 5, 24))
    assert model.get_layer("norm").groups == 6
    with pytest.raises(ValueError, match=r"multiple.*24 channels and group_size=5"):
        build(functools.partial(blocks.group_norm, name="norm", group_size=5), (5, 5, 24))


def test_batch_norm_takes_an_epsilon():
    model = build(functools.partial(blocks.batch_norm, name="norm", epsilon=0.5), (4, 3))
    x = tools.noise((2, 4, 3))
    gamma, beta, mean, variance = model.get_weights()
    assert tools.distance(model(x), (x - mean) / np.sqrt(variance + 0.5) * gamma + beta) < 1e-5


def test_defaults_are_those_of_the_rows_that_exist():
    keys = {
        slot.key: slot.shape
        for slot in kr.weights.slots(build(functools.partial(blocks.squeeze_excite, name="se"), (4, 4, 256)))
    }
    assert keys == {
        "se.fc1.weight": (16, 256, 1, 1),
        "se.fc1.bias": (16,),
        "se.fc2.weight": (256, 16, 1, 1),
        "se.fc2.bias": (256,),
    }


# ------------------------------------------------------------------------------------------- convolutions and padding


def around(size, kernel, stride, dilation=1):
    """Return TensorFlow's padding before and after: what ceil(size / stride) windows need, with the odd zero last."""
    total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


CONVOLUTIONS = {
    "even": {"kernel": 2, "stride": 2},
    "odd": {"kernel": 3, "stride": 2},
    "no stride": {"kernel": 4},
    "dilation": {"kernel": 2, "dilation": 2},
    "groups": {"kernel": 3, "stride": 2, "groups": 4},
    "depthwise": {"kernel": 5, "stride": 2, "groups": 8},
    "depthwise without bias": {"kernel": 3, "stride": 2, "groups": 8, "bias": False},
    "standardised": {"kernel": 3, "stride": 2, "standardize": 1e-6},  # the dm_ rows of nfnet
}


def convolution(options):
    return functools.partial(blocks.convolution, filters=8, padding="same", name="conv", **options)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("size", [8, 9])
def test_same_is_padding_by_the_size(kind, rank, size):
    """With unknown sizes, TensorFlow's rule equals explicit padding with the same zeros."""
    options = CONVOLUTIONS[kind]
    widths = (around(size, options["kernel"], options.get("stride", 1), options.get("dilation", 1)),) * rank
    explicit = functools.partial(blocks.convolution, filters=8, padding=widths, name="conv", **options)
    same, given = build(convolution(options), (None,) * rank + (8,)), build(explicit, (size,) * rank + (8,))
    x = tools.noise((2, *(size,) * rank, 8))
    y = np.asarray(same(x))
    assert y.shape[1:-1] == (-(-size // options.get("stride", 1)),) * rank
    assert tools.distance(y, given(x)) < 1e-5


def test_same_is_not_symmetric():
    symmetric = build(functools.partial(blocks.convolution, filters=8, kernel=3, stride=2, name="conv"), (8, 8, 8))
    same = build(convolution(CONVOLUTIONS["odd"]), (8, 8, 8))
    x = tools.noise((1, 8, 8, 8))
    assert tools.distance(same(x), symmetric(x)) > 0.1


@pytest.mark.parametrize("kind", ["odd", "groups", "depthwise", "standardised"])
def test_same_under_xla(kind):
    model = build(convolution(CONVOLUTIONS[kind]), (None, None, 8))
    for size in ((9, 8), (7, 7)):
        x = tools.noise((1, *size, 8))
        compiled = tf.function(lambda x: model(x, training=False), jit_compile=True)
        assert tools.distance(compiled(x), model(x)) < 1e-4


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("kind", ["odd", "groups", "depthwise", "standardised"])
def test_half_precision(kind, dtype):
    model = build(convolution(CONVOLUTIONS[kind]), (9, 8, 8))
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        half = build(convolution(CONVOLUTIONS[kind]), (9, 8, 8))
        pools = [build(pool, (9, 8, 8)) for pool in (blocks_max, blocks_average)]
    finally:
        keras.config.set_dtype_policy(policy)
    x = tools.noise((2, 9, 8, 8))
    y = half(x)
    assert keras.backend.standardize_dtype(y.dtype) == dtype.removeprefix("mixed_")
    assert tools.distance(keras.ops.cast(y, "float32"), model(x)) < 0.03
    assert all(np.isfinite(keras.ops.cast(pool(x), "float32")).all() for pool in pools)


def blocks_max(x):
    return blocks.max_pool(x, padding="valid", ceil=True, name="pool")


def blocks_average(x):
    return blocks.average_pool(x, size=3, padding=1, name="pool")


def test_files_of_padded_layers(tmp_path):
    def network(x):
        x = blocks.conv_norm(x, 8, (1, 4), padding=((0, 0), (2, 1)), norm=blocks.batch_norm, name="a")
        x = blocks.conv_norm(x, 8, 2, stride=2, padding="same", groups=8, name="b")
        x = blocks_max(blocks.pad(x, ((0, 1), (2, 0)), name="pad"))
        return blocks.average_pool(x, size=3, padding=1, name="average")

    model = build(network, (None, None, 4))
    model.save(tmp_path / "model.keras")
    x = tools.noise((2, 13, 14, 4))
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))


@pytest.mark.parametrize("rank", [1, 2])
def test_depthwise_layers(rank):
    """With as many groups as channels, Keras' depthwise layer is used, initialized with the fan of one channel."""
    model = build(functools.partial(blocks.convolution, filters=8, kernel=3, groups=8, name="conv"), (9,) * rank + (8,))
    assert type(model.get_layer("conv")) is getattr(keras.layers, f"DepthwiseConv{rank}D")
    assert {slot.key: slot.shape for slot in kr.weights.slots(model)}["conv.weight"] == (8, 1) + (3,) * rank


def test_symmetric_padding_needs_no_layer():
    for padding in (None, 1, ((1, 1), (1, 1)), "same"):
        model = build(
            functools.partial(blocks.convolution, filters=4, kernel=3, padding=padding, name="conv"), (8, 8, 3)
        )
        assert [layer.name for layer in model.layers[1:]] == ["conv"]


def test_strided_pointwise_convolutions_of_few_channels():
    """They subsample first, whatever the padding, because oneDNN crashes on them."""
    x = tools.noise((2, 9, 8, 4))
    for padding in (None, "same", "valid", 0):
        function = functools.partial(blocks.convolution, filters=8, kernel=1, stride=2, padding=padding, name="conv")
        model = build(function, (None, None, 4))
        assert model.get_layer("conv").strides == (1, 1)
        kernel, bias = model.get_weights()
        assert tools.distance(model(x), x[:, ::2, ::2] @ kernel[0, 0] + bias) < 1e-5


# ------------------------------------------------------------------------------------------------------------ pooling


@pytest.mark.parametrize("size", [7, 8, 9, 10])
@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (3, 3), (4, 3)])
def test_ceil_mode_counts_windows_that_begin_in_the_image(size, window, stride):
    function = functools.partial(blocks.max_pool, size=window, stride=stride, padding="valid", ceil=True, name="pool")
    x = tools.noise((1, size, 1)) - 5  # all negative: padding must not win
    starts = range(0, max(size - window + stride, 1), stride)
    expected = np.stack([x[:, start : start + window].max(1) for start in starts], 1)
    for shape in ((size, 1), (None, 1)):
        np.testing.assert_array_equal(build(function, shape)(x), expected)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_average_pool_counts_padding_unless_same(rank):
    ones = np.ones((1, *(5,) * rank, 2), "float32")
    counted = build(functools.partial(blocks.average_pool, size=3, stride=1, padding=1, name="p"), ones.shape[1:])
    covered = build(functools.partial(blocks.average_pool, size=3, stride=1, padding="same", name="p"), ones.shape[1:])
    corner = (0,) * (rank + 2)
    np.testing.assert_allclose(np.asarray(counted(ones))[corner], (2 / 3) ** rank, rtol=1e-6)
    np.testing.assert_allclose(covered(ones), ones, rtol=1e-6)


# ----------------------------------------------------------------------------------------------------- mobile blocks


def reduced(x, channels, *, name):
    return blocks.squeeze_excite(x, reduced=channels // 4, names=("conv_reduce", "conv_expand"), name=name)


MOBILE = {
    "depthwise separable": (blocks.depthwise_separable, "conv_dw bn1 se conv_pw bn2"),
    "inverted": (blocks.inverted_residual, "conv_pw bn1 conv_dw bn2 se conv_pwl bn3"),
    "edge": (blocks.edge_residual, "conv_exp bn1 se conv_pwl bn2"),
}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("kind", MOBILE)
def test_mobile_blocks(kind, rank):
    """Mobile blocks have timm's names, any rank and unknown sizes, and agree under XLA and in half precision."""
    block, names = MOBILE[kind]
    function = functools.partial(block, filters=16, stride=2, se=reduced, padding="same", name="b")
    model = build(function, (9,) * rank + (8,))
    assert list(dict.fromkeys(slot.key.split(".")[1] for slot in kr.weights.slots(model))) == names.split()
    x = tools.noise((2, *(9,) * rank, 8))
    y = np.asarray(model(x, training=False))
    assert y.shape == (2, *(5,) * rank, 16)
    assert tools.distance(build(function, (None,) * rank + (8,))(x, training=False), y) < 1e-6
    if rank == 2:
        compiled = tf.function(lambda x: model(x, training=False), jit_compile=True)
        assert tools.distance(compiled(x), y) < 1e-4
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy("mixed_bfloat16")
        try:
            half = build(function, x.shape[1:])
        finally:
            keras.config.set_dtype_policy(policy)
        assert tools.distance(keras.ops.cast(half(x, training=False), "float32"), y) < 0.1


@pytest.mark.parametrize("kind", MOBILE)
def test_mobile_blocks_skip_where_the_shape_stays(kind):
    block, _ = MOBILE[kind]
    for options, skips in (
        ({"filters": 8}, True),
        ({"filters": 8, "skip": False}, False),
        ({"filters": 16}, False),
        ({"filters": 8, "stride": 2}, False),
    ):
        model = build(functools.partial(block, drop_path=0.5, name="b", **options), (8, 8, 8))
        assert ("b.add" in {layer.name for layer in model.layers}) is skips


def test_files_of_mobile_blocks(tmp_path):
    def network(x):
        for i, (block, _) in enumerate(MOBILE.values()):
            x = block(x, 8, se=reduced, padding="same", drop_path=0.1, name=f"blocks.{i}")
        return x

    model = build(network, (None, None, 8))
    model.save(tmp_path / "model.keras")
    x = tools.noise((2, 9, 8, 8))
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(x, training=False), model(x, training=False))


def test_mobile_blocks_count_channels():
    """Inner channels are rounded to multiples of 8, or given explicitly."""
    model = build(functools.partial(blocks.inverted_residual, filters=8, expansion=3.6, name="b"), (8, 8, 16))
    assert model.get_layer("b.conv_pw").filters == 56
    pruned = functools.partial(blocks.inverted_residual, filters=8, hidden=51, name="b")
    assert build(pruned, (8, 8, 16)).get_layer("b.conv_pw").filters == 51
    edge = functools.partial(blocks.edge_residual, filters=8, hidden=96, group_size=24, name="b")
    layer = build(edge, (8, 8, 32)).get_layer("b.conv_exp")
    assert (layer.filters, layer.groups) == (96, 4)


# ------------------------------------------------------------------------------------------------------------- errors


def image():
    return keras.Input((8, 8, 16))


MISTAKES = {
    "no size": (lambda: blocks.convolution(image(), 8, (3, 0), name="c"), ["positive integer", "kernel=0"]),
    "padding": (lambda: blocks.conv_norm(image(), 8, padding="SAME", name="c"), ["'same', 'valid'", "'SAME'"]),
    "negative": (lambda: blocks.conv_norm(image(), 8, padding=-1, name="c"), ["pair of integers", "-1"]),
    "one pair": (lambda: blocks.conv_norm(image(), 8, padding=((0, 1),), name="c"), ["pair", "((0, 1),)", "2 axes"]),
    "torch's form": (lambda: blocks.conv_norm(image(), 8, padding=(0, 3), name="c"), ["pair of integers", "(0, 3)"]),
    "pad by name": (lambda: blocks.pad(image(), "same", name="p"), ["pair of integers", "'same'"]),
    "ceil and same": (
        lambda: blocks.max_pool(image(), padding="same", ceil=True, name="p"),
        ["ceil=True", "padding='same'"],
    ),
    "gaps": (lambda: blocks.max_pool(image(), 1, padding="valid", ceil=True, name="p"), ["ceil=True", "size=1"]),
    "group size": (
        lambda: blocks.edge_residual(image(), 8, expansion=1, group_size=5, name="b"),
        ["b: the number of inner channels must be a multiple", "16 channels", "group_size=5"],
    ),
    "no filters": (lambda: blocks.edge_residual(image(), 0, name="b"), ["b: `filters`", "filters=0"]),
    "no divisor": (lambda: blocks.squeeze_excite(image(), divisor=0), ["positive integer", "divisor=0"]),
    "no width": (lambda: blocks.squeeze_excite(image(), reduced=0), ["positive integer", "filters=0"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_explained(mistake):
    function, words = MISTAKES[mistake]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        function()
    for word in words:
        assert word in str(caught.value)


def test_a_layer_is_no_squeeze_excite():
    with pytest.raises(TypeError, match=r"`se` must be a function.*squeeze_excite"):
        blocks.depthwise_separable(image(), 8, se=keras.layers.Dense(4), name="b")
