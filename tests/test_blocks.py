"""The blocks against NumPy: the equation, its gradient, padding, pooling, shortcuts, and what errors say."""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_residual as kr
from keras_residual import blocks, layers

from . import tools

RANKS = (1, 2, 3)


def run(function, x, training=False, seed=None):
    """`function` on the array `x`, through a Functional model; with `seed`, every variable is filled."""
    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, function(inputs))
    if seed is not None:
        tools.randomise(model, seed)
    return np.asarray(model(x, training=training)), model


def windows(x, size, stride, dilation=1, fill=0.0):
    """`(N, *out, C, size ** rank)`: every window of `x`, padded symmetrically as torch pads, by plain slicing."""
    rank, width = x.ndim - 2, dilation * (size - 1) // 2
    padded = np.pad(x, [(0, 0), *[(width, width)] * rank, (0, 0)], constant_values=fill)
    out = [(s + 2 * width - dilation * (size - 1) - 1) // stride + 1 for s in x.shape[1:-1]]
    taps = []
    for offset in itertools.product(range(size), repeat=rank):
        place = [
            slice(o * dilation, o * dilation + (n - 1) * stride + 1, stride) for o, n in zip(offset, out, strict=True)
        ]
        taps.append(padded[(slice(None), *place, slice(None))])
    return np.stack(taps, -1)


def direct_conv(x, kernel, stride=1, dilation=1, groups=1):
    """Convolution by definition, in float64."""
    size, rank = kernel.shape[0], x.ndim - 2
    taps = windows(x.astype("float64"), size, stride, dilation)  # (N, *out, C, K)
    flat = kernel.astype("float64").reshape(size**rank, *kernel.shape[-2:])  # (K, C / groups, F)
    width, filters = kernel.shape[-2], kernel.shape[-1] // groups
    parts = [
        np.einsum(
            "...ck,kcf->...f", taps[..., g * width : (g + 1) * width, :], flat[..., g * filters : (g + 1) * filters]
        )
        for g in range(groups)
    ]
    return np.concatenate(parts, -1)


def cube(rank, size, channels, seed=0, batch=2):
    return tools.noise((batch, *(size,) * rank, channels), seed)


# ---------------------------------------------------------------------------------------------------- the equation


def test_residual_is_the_equation():
    x, y = tools.noise((4, 5, 5, 8)), tools.noise((4, 5, 5, 8), seed=1)
    scale = layers.LayerScale(0.3)
    cases = [
        ({}, x + y),
        ({"activation": "relu"}, np.maximum(x + y, 0)),
        ({"scale": 0.1}, x + 0.1 * y),
        ({"scale": scale}, x + 0.3 * y),
        ({"scale": layers.SkipInit()}, x),
        ({"drop_path": 0.9}, x + y),  # inference
        ({"scale": -2.0, "activation": keras.ops.tanh}, np.tanh(x - 2 * y)),
    ]
    for options, expected in cases:
        a, b = keras.Input(x.shape[1:]), keras.Input(x.shape[1:])
        model = keras.Model([a, b], blocks.residual(a, b, **options))
        np.testing.assert_allclose(np.asarray(model([x, y], training=False)), expected, rtol=1e-6, atol=1e-6)


def test_layer_scale_is_per_channel():
    scale = layers.LayerScale(1.0)
    x = tools.noise((2, 3, 8))
    _, model = run(lambda t: blocks.residual(t, t, scale=scale), x)
    gamma = np.arange(8, dtype="float32")
    scale.value.assign(gamma)
    np.testing.assert_allclose(np.asarray(model(x)), x + gamma * x, rtol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.6])
@pytest.mark.parametrize("shape", [(8,), (6, 8), (3, 3, 8), (2, 3, 3, 8)], ids=len)
def test_drop_path(shape, rate):
    """In training a sample skips the branch with probability `rate`, else takes it times 1 / (1 - rate)."""
    x = np.ones((2000, *shape), "float32")
    y, model = run(lambda t: blocks.residual(t, 2.0 * t, drop_path=rate), x, training=True)
    branch = (y - x).reshape(len(x), -1)
    assert (branch == branch[:, :1]).all(), "a sample is dropped whole or not at all"
    dropped = branch[:, 0] == 0
    np.testing.assert_allclose(branch[~dropped, 0], 2 / (1 - rate), rtol=1e-6)
    assert abs(dropped.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / len(x)) + 1e-9
    np.testing.assert_array_equal(np.asarray(model(x, training=False)), x + 2 * x)


def test_drop_path_rates():
    assert blocks.drop_path_rates(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert blocks.drop_path_rates(0.3, 1) == [0]
    entry = kr.registry.entries()["ResNet50"]
    model = entry.build(entry.config.tiny(), drop_path=0.4, input_shape=(64, 64, 3))
    rates = [layer.rate for layer in model.layers if layer.name.endswith("drop_path")]
    assert rates == pytest.approx(blocks.drop_path_rates(0.4, 5)), "rates grow block by block over the whole network"


# ------------------------------------------------------------------------------------------------ gradient identity


def branch_of(x, name):
    """F(x) of an identity block: two convolutions with batch statistics frozen, a smooth activation between."""
    y = blocks.conv_norm(x, 2, 3, norm=blocks.batch_norm, activation="tanh", name=f"{name}.1")
    return blocks.conv_norm(y, 2, 3, norm=blocks.batch_norm, name=f"{name}.2")


def test_gradient_identity():
    """dL/dx = dL/dy (1 + dF/dx), with dF/dx the Jacobian of the branch alone, column by column."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        inputs = keras.Input((3, 3, 2), dtype="float64")
        branch = branch_of(inputs, "b")
        block = keras.Model(inputs, blocks.residual(inputs, branch))
        alone = keras.Model(inputs, branch)  # shares its layers with the block
        tools.randomise(block)
    finally:
        keras.config.set_dtype_policy(policy)
    x = tf.constant(np.random.default_rng(0).normal(size=(1, 3, 3, 2)))
    upstream = np.random.default_rng(1).normal(size=(1, 18))

    # The Jacobian by central differences: no automatic differentiation in the expected value.
    step, jacobian = 1e-5, np.zeros((18, 18))
    for i in range(18):
        bump = np.zeros(18)
        bump[i] = step
        bump = bump.reshape(x.shape)
        jacobian[:, i] = np.ravel(alone(x + bump, training=False) - alone(x - bump, training=False)) / (2 * step)
    expected = upstream @ (np.eye(18) + jacobian)

    with tf.GradientTape() as tape:
        tape.watch(x)
        y = block(x, training=False)
    got = np.reshape(tape.gradient(y, x, tf.reshape(tf.constant(upstream), y.shape)), (1, 18))
    assert tools.distance(got, expected) < 1e-6
    assert tools.distance(upstream, expected) > 0.1, "the branch must matter, or this shows nothing"


@pytest.mark.parametrize(
    ("block", "activation"),
    [
        (blocks.basic, None),
        (functools.partial(blocks.bottleneck, width=16), None),
        (blocks.preact_basic, "relu"),
        (blocks.preact_bottleneck, "relu"),
    ],
    ids=["basic", "bottleneck", "preact_basic", "preact_bottleneck"],
)
def test_zeroed_branch_passes_the_gradient_unchanged(block, activation):
    x = tools.noise((2, 6, 6, 32))
    y, model = run(lambda t: block(t, 32, activation=activation, name="b"), x, seed=0)
    assert tools.distance(y, x) > 0.1
    for layer in model.layers:  # the branch's last layer
        if layer.name in ("b.bn2", "b.bn3", "b.conv2", "b.conv3"):
            for variable in layer.trainable_variables:
                variable.assign(keras.ops.zeros_like(variable))
    upstream = tools.noise(x.shape, seed=2)
    t = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(t)
        y = model(t, training=True)
    np.testing.assert_array_equal(np.asarray(y), x)
    np.testing.assert_array_equal(np.asarray(tape.gradient(y, t, upstream)), upstream)


@pytest.mark.parametrize("block", [blocks.basic, blocks.bottleneck], ids=["basic", "bottleneck"])
def test_zero_init_starts_as_the_identity(block):
    x = tools.noise((2, 6, 6, 64))
    y, _ = run(lambda t: block(t, 64), x, training=True)
    np.testing.assert_allclose(y, np.maximum(x, 0))
    y, _ = run(lambda t: block(t, 64, zero_init=False), x, training=True)
    assert tools.distance(y, np.maximum(x, 0)) > 0.1


# -------------------------------------------------------------------------------------- convolutions, pooling, norms


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "groups", "channels"),
    [
        (3, 1, 1, 1, 4),
        (3, 2, 1, 1, 4),
        (5, 2, 1, 1, 4),
        (7, 2, 1, 1, 3),
        (1, 1, 1, 1, 4),
        (1, 2, 1, 1, 4),
        (1, 2, 1, 1, 16),
        (3, 1, 2, 1, 4),
        (3, 1, 1, 2, 4),
        (3, 2, 1, 4, 8),
        (3, 1, 2, 2, 4),
    ],
)
@pytest.mark.parametrize("size", [8, 9])
def test_conv_is_the_definition(rank, kernel, stride, dilation, groups, channels, size):
    if rank == 3 and kernel == 7:
        pytest.skip("covered by the other ranks")
    x = cube(rank, size, channels)
    options = {"stride": stride, "dilation": dilation, "groups": groups, "name": "c"}
    y, model = run(lambda t: blocks.conv_norm(t, 8, kernel, **options), x, seed=1)
    weight, bias = (np.asarray(v) for v in model.get_layer("c.conv").weights)
    assert y.shape == (2, *(-(-size // stride),) * rank, 8)
    assert tools.distance(y, direct_conv(x, weight, stride, dilation, groups) + bias) < 1e-5


def test_conv_norm_order_and_bias():
    x = cube(2, 6, 16)
    y, model = run(lambda t: blocks.conv_norm(t, 8, norm=blocks.batch_norm, activation="relu", name="c"), x, seed=3)
    (kernel,) = (np.asarray(v) for v in model.get_layer("c.conv").weights)  # no bias before a norm
    gamma, beta, mean, variance = (np.asarray(v, "float64") for v in model.get_layer("c.bn").weights)
    expected = (direct_conv(x, kernel) - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    assert tools.distance(y, np.maximum(expected, 0)) < 1e-5


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("size", [7, 8])
def test_max_pool_padding_never_wins(rank, size):
    x = -1 - np.abs(cube(rank, size, 4))  # all negative: a padding of zeros would be the maximum
    y, _ = run(lambda t: blocks.max_pool(t, name="p"), x)
    np.testing.assert_array_equal(y, windows(x, 3, 2, fill=-np.inf).max(-1))
    assert y.max() <= -1


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("size", [8, 9])
def test_blur_pool(rank, size):
    x = cube(rank, size, 4)
    y, _ = run(lambda t: blocks.blur_pool(t, name="p"), x)
    padded = np.pad(x.astype("float64"), [(0, 0), *[(1, 1)] * rank, (0, 0)], mode="reflect")
    expected = 0
    out = -(-size // 2)
    for offset in itertools.product(range(3), repeat=rank):
        weight = np.prod([(0.25, 0.5, 0.25)[o] for o in offset])
        place = (slice(None), *[slice(o, o + 2 * out - 1, 2) for o in offset], slice(None))
        expected = expected + weight * padded[place]
    assert y.shape[1:-1] == (out,) * rank
    assert tools.distance(y, expected) < 1e-6


@pytest.mark.parametrize(
    "norm",
    [blocks.batch_norm, functools.partial(blocks.group_norm, groups=4), blocks.layer_norm],
    ids=["batch", "group", "layer"],
)
@pytest.mark.parametrize("rank", RANKS)
def test_norms_normalise(norm, rank):
    x = 3 + 5 * cube(rank, 6, 16, batch=4)
    y, _ = run(lambda t: norm(t, name="n"), x, training=True)
    kept = {"batch_norm": (-1,), "layer_norm": tuple(range(x.ndim - 1))}.get(getattr(norm, "__name__", ""))
    if kept is None:
        y = y.reshape(4, -1, 4, 4)
        axes = (1, 3)
    else:
        axes = tuple(a for a in range(x.ndim) if a not in {k % x.ndim for k in kept})
    np.testing.assert_allclose(y.mean(axes), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(axes), 1, atol=1e-3)
    zero, _ = run(lambda t: norm(t, name="n", zero_init=True), x, training=True)
    assert not zero.any()


# ---------------------------------------------------------------------------------------------------- shortcuts


def test_identity_is_its_input():
    x = keras.Input((4, 4, 8))
    assert blocks.identity(x, 8) is x


@pytest.mark.parametrize("rank", RANKS)
def test_projection(rank):
    x = cube(rank, 7, 16)
    y, model = run(lambda t: blocks.projection(t, 32, stride=2, norm=None, name="p"), x, seed=0)
    kernel, bias = (np.asarray(v) for v in model.get_layer("p.0").weights)
    assert tools.distance(y, direct_conv(x, kernel, stride=2) + bias) < 1e-5


@pytest.mark.parametrize(("stride", "size"), [(2, 3), (1, 1)])
def test_a_projection_is_wider_only_where_it_subsamples(stride, size):
    """timm's `downsample_conv`: SENet-154 has kernel 3 in strided shortcuts, 1 in the first stage."""
    model = run(lambda t: blocks.projection(t, 32, stride=stride, kernel=3, name="p"), cube(2, 7, 16), seed=0)[1]
    assert model.get_layer("p.0").kernel.shape[:2] == (size, size)


@pytest.mark.parametrize("rank", RANKS)
def test_pooled_projection(rank):
    """Windows over the edge average what they cover: with an odd size, the last value stands alone."""
    x = cube(rank, 5, 16)
    y, model = run(lambda t: blocks.pooled_projection(t, 32, stride=2, norm=None, name="p"), x, seed=0)
    kernel, bias = (np.asarray(v, "float64") for v in model.get_layer("p.1").weights)
    pooled = x.astype("float64")
    for axis in range(1, rank + 1):
        parts = [pooled.take(range(i, min(i + 2, 5)), axis).mean(axis, keepdims=True) for i in (0, 2, 4)]
        pooled = np.concatenate(parts, axis)
    assert tools.distance(y, pooled @ kernel.reshape(16, 32) + bias) < 1e-5


@pytest.mark.parametrize("rank", RANKS)
def test_padded_identity(rank):
    x = cube(rank, 7, 16)
    y, model = run(lambda t: blocks.padded_identity(t, 21, stride=2, name="p"), x)
    assert not model.weights
    expected = x[(slice(None), *[slice(None, None, 2)] * rank)]
    np.testing.assert_array_equal(y, np.pad(expected, [(0, 0)] * (rank + 1) + [(2, 3)]))


def test_preact_shares_its_first_activation_with_the_projection():
    x = cube(2, 6, 16)
    inputs = keras.Input(x.shape[1:])
    out = blocks.preact_basic(inputs, 32, stride=2, name="b")
    model = tools.randomise(keras.Model(inputs, out))
    act, add = model.get_layer("b.act1").output, model.get_layer("b.add").input
    shared, (h, _) = keras.Model(inputs, [act, add])(x, training=False)
    kernel = np.asarray(model.get_layer("b.downsample").kernel)
    assert tools.distance(h, direct_conv(np.asarray(shared), kernel, stride=2)) < 1e-5


def test_bottleneck_strides():
    """v1.5 strides in the 3x3 convolution, v1 in the first 1x1."""
    for where, name in (("3x3", "b.conv2"), ("1x1", "b.conv1")):
        inputs = keras.Input((8, 8, 64))
        model = keras.Model(inputs, blocks.bottleneck(inputs, 128, stride=2, stride_in=where, name="b"))
        strides = {n: model.get_layer(n).strides for n in ("b.conv1", "b.conv2", "b.conv3")}
        assert {n for n, s in strides.items() if s == (2, 2)} == {name}


@pytest.mark.parametrize("rank", RANKS)
def test_squeeze_excite(rank):
    x = cube(rank, 4, 32)
    y, model = run(lambda t: blocks.squeeze_excite(t, name="se"), x, seed=0)
    w1, b1, w2, b2 = (np.asarray(v, "float64") for n in ("se.fc1", "se.fc2") for v in model.get_layer(n).weights)
    mean = x.astype("float64").mean(tuple(range(1, rank + 1)))
    hidden = np.maximum(mean @ w1.reshape(32, -1) + b1, 0)
    gate = 1 / (1 + np.exp(-(hidden @ w2.reshape(-1, 32) + b2)))
    assert tools.distance(y, x * gate.reshape(2, *(1,) * rank, 32)) < 1e-5


@pytest.mark.parametrize("rank", RANKS)
def test_efficient_channel_attention(rank):
    x = cube(rank, 4, 32)
    y, model = run(lambda t: blocks.efficient_channel_attention(t, name="eca"), x, seed=0)
    kernel = np.asarray(model.get_layer("eca.conv").kernel)
    mean = x.astype("float64").mean(tuple(range(1, rank + 1)))[..., None]
    gate = 1 / (1 + np.exp(-direct_conv(mean, kernel)))
    assert tools.distance(y, x * gate.reshape(2, *(1,) * rank, 32)) < 1e-5


# ------------------------------------------------------------------------------------------------ Transformer blocks


def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_the_definition(causal):
    x = tools.noise((2, 7, 12))
    y, model = run(lambda t: blocks.attention(t, 3, causal=causal, name="a"), x, seed=0)
    wq, bq, wo, bo = (np.asarray(v, "float64") for n in ("a.qkv", "a.proj") for v in model.get_layer(n).weights)
    q, k, v = np.split(x @ wq + bq, 3, -1)
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        scores = q[..., part] @ k[..., part].transpose(0, 2, 1) / 2  # sqrt(4)
        if causal:
            scores = np.where(np.tri(7, dtype=bool), scores, -np.inf)
        heads.append(softmax(scores) @ v[..., part])
    assert tools.distance(y, np.concatenate(heads, -1) @ wo + bo) < 1e-5


def test_qk_norm_is_per_head():
    x = tools.noise((2, 7, 12))
    _, model = run(lambda t: blocks.attention(t, 3, qk_norm=blocks.layer_norm, name="a"), x)
    assert model.get_layer("a.q_norm").gamma.shape == (4,)
    assert model.get_layer("a.k_norm").gamma.shape == (4,)


@pytest.mark.parametrize("gated", [False, True], ids=["mlp", "swiglu"])
def test_mlp_is_the_definition(gated):
    x = tools.noise((2, 7, 12))
    block = blocks.swiglu if gated else functools.partial(blocks.mlp, activation="relu")
    y, model = run(lambda t: block(t, 32, name="m"), x, seed=0)
    w1, b1, w2, b2 = (np.asarray(v, "float64") for n in ("m.fc1", "m.fc2") for v in model.get_layer(n).weights)
    hidden = x @ w1 + b1
    if gated:
        a, b = np.split(hidden, 2, -1)
        hidden = a / (1 + np.exp(-a)) * b
    else:
        hidden = np.maximum(hidden, 0)
    assert tools.distance(y, hidden @ w2 + b2) < 1e-5


def test_transformer_blocks_are_pre_norm():
    """With the branch's last matrix at zero the stream passes untouched: no norm stands on it."""
    x = 10 * tools.noise((2, 7, 12))
    for block, last in (
        (functools.partial(blocks.attention_block, heads=3, name="b"), "b.attn.proj"),
        (functools.partial(blocks.mlp_block, hidden=24, name="b"), "b.mlp.fc2"),
    ):
        y, model = run(block, x, seed=0)
        assert tools.distance(y, x) > 0.01
        for variable in model.get_layer(last).weights:
            variable.assign(keras.ops.zeros_like(variable))
        np.testing.assert_array_equal(np.asarray(model(x)), x)


# --------------------------------------------------------------------------------------------------------- errors

IMAGE = (8, 8, 16)


def image(shape=IMAGE):
    return keras.Input(shape)


# What is done; the error's type; parts of its text: the rule, what came, what to do.
MISTAKES = {
    "channels differ": (
        lambda: blocks.residual(image(), image((8, 8, 32)), name="stage1"),
        ValueError,
        ["stage1", "same shape", "(None, 8, 8, 16)", "(None, 8, 8, 32)", "blocks.projection(x, 32"],
    ),
    "branch is smaller": (
        lambda: blocks.residual(image(), image((4, 4, 16))),
        ValueError,
        ["same shape", "(None, 4, 4, 16)", "stride=2"],
    ),
    "branch shrinks by its padding": (
        lambda: blocks.residual(image(), image((6, 6, 16))),
        ValueError,
        ["same shape", "(None, 6, 6, 16)", "'same', not 'valid'"],
    ),
    "branch is larger": (
        lambda: blocks.residual(image(), image((16, 16, 16))),
        ValueError,
        ["same shape", "(None, 16, 16, 16)", "upsampling"],
    ),
    "ranks differ": (
        lambda: blocks.residual(image(), image((16,))),
        ValueError,
        ["same shape", "(None, 16)", "rank", "flatten or pool after"],
    ),
    "would broadcast": (
        lambda: blocks.residual(image(), image((1, 1, 16))),
        ValueError,
        ["same shape", "(None, 1, 1, 16)", "To do"],
    ),
    "Sequential": (
        lambda: blocks.residual(keras.Sequential([keras.layers.Dense(4)]), image()),
        TypeError,
        ["`shortcut` must be a tensor", "Sequential model", "no place for a skip", "keras.Input", "keras.Model(inputs"],
    ),
    "Sequential as a block's input": (
        lambda: blocks.basic(keras.Sequential(), 64),
        TypeError,
        ["must be a tensor", "Sequential model", "keras.Input"],
    ),
    "layer": (
        lambda: blocks.residual(image(), keras.layers.Dense(4)),
        TypeError,
        ["`branch` must be a tensor", "a Dense", "function of its input", "keras.Input"],
    ),
    "model": (
        lambda: blocks.conv_norm(keras.Model(x := image(), keras.layers.ReLU()(x)), 8),
        TypeError,
        ["must be a tensor", "Functional", "keras.Input"],
    ),
    "class": (lambda: blocks.residual(image(), keras.layers.Dense), TypeError, ["must be a tensor", "keras.Input"]),
    "number": (lambda: blocks.residual(image(), 3), TypeError, ["must be a tensor", "3", "keras.Input"]),
    "layer as input_tensor": (
        lambda: kr.ResNet18(input_tensor=keras.layers.Dense(4)),
        TypeError,
        ["ResNet18", "`input_tensor` must be a tensor", "Dense"],
    ),
    "negative rate": (
        lambda: blocks.residual(image(), image(), drop_path=-0.1),
        ValueError,
        ["0 <= drop_path < 1", "-0.1"],
    ),
    "rate of one": (lambda: blocks.residual(image(), image(), drop_path=1.0), ValueError, ["drop_path < 1", "1.0"]),
    "rate of a network": (lambda: kr.ResNet18(drop_path=1.5), ValueError, ["0 <= drop_path < 1", "1.5"]),
    "dropout": (lambda: blocks.attention(image((4, 8)), 2, dropout=1), ValueError, ["0 <= dropout < 1", "1"]),
    "NaN rate": (lambda: blocks.residual(image(), image(), drop_path=float("nan")), ValueError, ["drop_path", "nan"]),
    "unknown activation": (
        lambda: blocks.residual(image(), image(), activation="rellu"),
        ValueError,
        ["known names", "'rellu'", "relu", "quick_gelu"],
    ),
    "unknown classifier activation": (
        lambda: kr.ResNet18(classifier_activation="sofmax"),
        ValueError,
        ["known names", "'sofmax'", "softmax"],
    ),
    "too small": (
        lambda: kr.ResNet18(input_shape=(16, 16, 3)),
        ValueError,
        ["ResNet18", "must not be smaller", "32", "(16, 16, 3)", "stem="],
    ),
    "groups": (
        lambda: blocks.conv_norm(image(), 24, groups=7),
        ValueError,
        ["multiples of the number of groups", "16 input", "24 output", "groups=7"],
    ),
    "group norm": (
        lambda: blocks.group_norm(image(), name="n"),
        ValueError,
        ["multiple of the number of groups", "16 channels", "groups=32", "functools.partial"],
    ),
    "heads": (
        lambda: blocks.attention(image((4, 8)), 3),
        ValueError,
        ["multiple of the number of heads", "8 channels", "heads=3"],
    ),
    "vector into a convolution": (
        lambda: blocks.conv_norm(image((16,)), 8),
        ValueError,
        ["(N, H, W, C)", "(None, 16)", "ResidualMLP"],
    ),
    "stride_in": (lambda: blocks.bottleneck(image(), 64, stride_in="2x2"), ValueError, ["'3x3'", "'1x1'", "'2x2'"]),
    "stride_in of basic blocks": (
        lambda: kr.ResNet18(stride_in="1x1"),
        ValueError,
        ["bottleneck", "ResNet18", "leave"],
    ),
    "pooling": (lambda: kr.ResNet18(pooling="mean"), ValueError, ["None, 'avg' or 'max'", "'mean'"]),
    "classes": (lambda: kr.ResNet18(classes=-1), ValueError, ["number of classes", "-1"]),
    "classes is no number": (lambda: kr.ResNet18(classes=True), ValueError, ["number of classes", "True"]),
    "input_shape without channels": (
        lambda: kr.ResNet18(input_shape=(224, 224, None)),
        ValueError,
        ["known C", "None"],
    ),
    "input_shape is a number": (lambda: kr.ResNet18(input_shape=224), ValueError, ["(H, W, C)", "224"]),
    "input_shape and input_tensor": (
        lambda: kr.ResNet18(input_tensor=image((64, 64, 3)), input_shape=(32, 32, 3)),
        ValueError,
        ["must agree", "(64, 64, 3)", "(32, 32, 3)", "Leave input_shape out"],
    ),
    "stride of each axis": (lambda: blocks.basic(image(), 16, stride=(2, 2)), ValueError, ["one positive", "(2, 2)"]),
    "stride of zero": (lambda: blocks.basic(image(), 16, stride=0), ValueError, ["positive integer", "stride=0"]),
    "kernel of each axis": (
        lambda: blocks.conv_norm(image(), 8, (3, 3, 3)),
        ValueError,
        ["one per spatial axis", "(3, 3, 3)", "2 axes"],
    ),
    "even kernel": (
        lambda: blocks.conv_norm(image(), 8, 4),
        ValueError,
        ["even kernel", "kernel=(4, 4)", "blocks.patches"],
    ),
    "filters of a bottleneck": (lambda: blocks.bottleneck(image(), "64"), ValueError, ["filters", "'64'"]),
    "filters are no integer": (lambda: blocks.preact_bottleneck(image(), 64.0), ValueError, ["filters", "64.0"]),
    "norm by name": (
        lambda: blocks.basic(image(), 16, norm="batch"),
        TypeError,
        ["`norm`", "blocks.batch_norm", "'batch'"],
    ),
    "norm is one layer": (
        lambda: blocks.preact_basic(image(), 16, norm=keras.layers.BatchNormalization()),
        TypeError,
        ["`norm` is a function", "each time", "BatchNormalization"],
    ),
    "norm is a class": (
        lambda: kr.ViTTiny16(norm=keras.layers.LayerNormalization),
        TypeError,
        ["`norm` is a function", "lambda x, name", "LayerNormalization"],
    ),
    "shortcut by name": (
        lambda: blocks.basic(image(), 32, shortcut="projection"),
        TypeError,
        ["`shortcut` is a function", "blocks.projection", "'projection'"],
    ),
    "identity where the shape changes": (
        lambda: blocks.basic(image(), 32, stride=2, shortcut=blocks.identity),
        ValueError,
        ["same shape", "blocks.projection(x, 32, stride=2)"],
    ),
    "attention by name": (
        lambda: blocks.basic(image(), 16, attention="se"),
        TypeError,
        ["`attention` is a function", "blocks.squeeze_excite", "'se'"],
    ),
    "stem by name": (lambda: kr.ResNet18(stem="small"), TypeError, ["ResNet18", "`stem`", "small_stem", "'small'"]),
    "scale by name": (
        lambda: blocks.residual(image(), image(), scale="0.1"),
        TypeError,
        ["a number or a layer", "LayerScale()", "'0.1'"],
    ),
    "scale is a class": (
        lambda: blocks.residual(image(), image(), scale=layers.LayerScale),
        TypeError,
        ["a number or a layer", "LayerScale"],
    ),
    "activation is a class": (
        lambda: blocks.basic(image(), 16, activation=keras.layers.ReLU),
        ValueError,
        ["a function or one of the known names", "ReLU"],
    ),
    "activation is a number": (
        lambda: blocks.basic(image(), 16, activation=3),
        ValueError,
        ["a function or one of the known names", "3"],
    ),
    "attention of an image": (
        lambda: blocks.attention_block(image(), 4),
        ValueError,
        ["(N, L, C)", "(None, 8, 8, 16)", "Reshape"],
    ),
    "no heads": (lambda: blocks.attention(image((4, 8)), 0), ValueError, ["positive integer", "heads=0"]),
    "halves of an odd number": (lambda: blocks.swiglu(image((4, 8)), 33), ValueError, ["even", "hidden=33"]),
    "classes first": (lambda: kr.ResNet18(10), ValueError, ["include_top", "10", "classes=10"]),
    "shape first": (lambda: kr.ResNet18((64, 64, 3)), ValueError, ["include_top", "(64, 64, 3)", "input_shape="]),
    "classes are a fraction": (lambda: kr.ResNet18(classes=10.0), ValueError, ["number of classes", "10.0"]),
    "channels first": (
        lambda: kr.ResNet18(input_shape=(3, 224, 224)),
        ValueError,
        ["(3, 224, 224)", "Channels come last", "(224, 224, 3)"],
    ),
    "patches do not fit": (
        lambda: kr.ViTTiny16(input_shape=(100, 100, 3)),
        ValueError,
        ["patch, 16", "(100, 100)", "(96, 96)"],
    ),
    "timm's argument": (
        lambda: kr.ResNet18(num_classes=10),
        TypeError,
        ["ResNet18() has no argument 'num_classes'", "weights, input_tensor, input_shape, pooling, classes,", "stem"],
    ),
    "options by position": (
        lambda: kr.ResNet18(True, None, None, None, None, 10, None, "mine", 0.1),
        TypeError,
        ["ResNet18() takes at most 8", "classifier_activation, name; got 9", "drop_path=0.1"],
    ),
    "numbers as input_tensor": (
        lambda: kr.ResNet18(input_tensor=np.zeros((1, 64, 64, 3))),
        TypeError,
        ["ResNet18", "Functional API", "(1, 64, 64, 3)", "Call the finished model"],
    ),
    "weights are no source": (lambda: kr.ResNet20(weights=True), TypeError, ["a file, a directory", "True"]),
    "smaller than anything": (lambda: kr.ResNet18(input_shape=(3, 40, 3)), ValueError, ["stride, 32", "(3, 40, 3)"]),
    "zeros for fewer channels": (
        lambda: blocks.padded_identity(image(), 8),
        ValueError,
        ["only add channels", "16 channels", "filters=8", "projection"],
    ),
    "stages of another network": (
        lambda: kr.features(keras.Sequential([image(), keras.layers.ReLU()], name="theirs")),
        ValueError,
        ["theirs has none", "no image network of this package"],
    ),
    "no such builder": (lambda: kr.Resnet50, AttributeError, ["'Resnet50'", "ResNet50"]),
    "builder in lower case": (lambda: kr.resnet50, AttributeError, ["'resnet50'", "capitalised", "create()"]),
    "unknown model": (lambda: kr.create("ResNet5"), ValueError, ["'ResNet5'", "Nearest", "ResNet50"]),
    "a checkpoint's name": (
        lambda: kr.create("resnet18.a1_in1k"),
        ValueError,
        ["'resnet18.a1_in1k'", "from_pretrained"],
    ),
    "unknown level": (lambda: kr.features("ResNet18", levels=(1, 9)), ValueError, ["levels", "(1, 9)", "(1, 2, 3, 4)"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_explained(mistake):
    action, kind, said = MISTAKES[mistake]
    with pytest.raises(kind) as caught:
        action()
    assert type(caught.value) is kind, "the type itself, not one below it"
    text = str(caught.value)
    missing = [part for part in said if part not in text]
    assert not missing, f"the error lacks {missing}:\n{text}"


def test_numbers_of_numpy_will_do():
    """What people have: the largest label plus one, the shape of their array, a rate in float32."""
    labels, x = np.array([0, 4, 2]), np.zeros((2, 64, 48, 3))
    model = kr.ResNet18(classes=labels.max() + 1, input_shape=np.array(x.shape)[1:], drop_path=np.float32(0.1))
    assert model.input_shape == (None, 64, 48, 3)
    assert model.output_shape == (None, 5)
    assert type(model.output_shape[1]) is int
    assert kr.ResNet18(input_shape=tf.TensorShape([64, 48, 3])).input_shape == (None, 64, 48, 3)
    assert kr.features("ResNet18", levels=2).output_shape == (None, 28, 28, 128)


def test_unknown_sizes_may_be_added():
    a, b = keras.Input((None, None, 8)), keras.Input((4, None, 8))
    assert blocks.residual(a, b).shape[-1] == 8


def test_an_image_without_channels_is_questioned():
    with pytest.warns(UserWarning, match=r"224 steps with 224 channels.*\(224, 224, 3\)") as found:
        kr.ResNet10T(input_shape=(224, 224))
    assert found[0].filename == __file__


@pytest.mark.parametrize(
    ("build", "module"),
    [
        (lambda size: kr.ResNet18(input_shape=size), "resnet"),
        (lambda size: kr.BiT50x1(input_shape=size), "resnet_v2"),
        (lambda size: kr.ResNet18(input_shape=size, stem=kr.models.resnet.small_stem), None),
        (lambda size: kr.BiT50x1(input_shape=size, stem=kr.models.resnet_v2.small_stem), None),
        (lambda size: kr.ResNet20(input_shape=size), None),
        (lambda size: kr.ConvNeXtTiny(input_shape=size), None),
    ],
)
def test_a_small_stem_is_recommended_where_the_network_takes_one(build, module):
    with pytest.raises(ValueError, match="must not be smaller than the network's stride") as caught:
        build((2, 2, 3))
    advice = f", or use a small-image stem: stem=keras_residual.models.{module}.small_stem" if module else ""
    assert str(caught.value).endswith(f"Resize the images{advice}.")
