"""The fast primitives against float64 references: values, gradients, and second derivatives of custom gradients."""

import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_residual as kr
from keras_residual import layers, primitives

from . import tools


def eager(function):
    return function


def graph(function):
    return tf.function(function)


def xla(function):
    return tf.function(function, jit_compile=True)


MODES = [eager, graph, xla]


def derivatives(function, inputs, order, dtype="float32", mode=eager):
    """Value, gradients of a weighted sum, and (order 2) gradients of a weighted sum of those; as float64 arrays."""

    def run(*values):
        with tf.GradientTape() as outer:
            outer.watch(values)
            with tf.GradientTape() as inner:
                inner.watch(values)
                y = function(*values)
                loss = tf.reduce_sum(y * weights(y.shape, 10, y.dtype))
            first = inner.gradient(loss, values)
            again = tf.add_n([tf.reduce_sum(g * weights(g.shape, 20 + i, g.dtype)) for i, g in enumerate(first)])
        second = outer.gradient(again, values, unconnected_gradients="zero") if order == 2 else ()
        return y, first, second

    def weights(shape, seed, dtype):
        return tf.constant(np.random.default_rng(seed).normal(size=shape), dtype)

    y, first, second = mode(run)(*[tf.constant(v, dtype) for v in inputs])
    return [np.asarray(tf.cast(v, "float64")) for v in (y, *first, *second)]


def compare(function, reference, inputs, order=1, limit=1e-5, dtype="float32", mode=eager):
    ours = derivatives(function, inputs, order, dtype, mode)
    theirs = derivatives(reference, inputs, order, "float64")
    names = ["value", *(f"{n} derivative by input {i}" for n in ("first", "second") for i in range(len(inputs)))]
    for name, a, b in zip(names, ours, theirs, strict=False):
        assert tools.distance(a, b) < limit, name


def exact_gelu(x):
    """By its definition: Keras' own has 9 digits in float64, of a square root in float32."""
    return x * (1 + tf.math.erf(x / np.sqrt(2))) / 2


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


# ---------------------------------------------------------------------------------------------- grouped convolution

CONVS = {
    "1-D": ((2, 9, 8), (3, 4, 6), (1,), "same", (1,)),
    "1-D strided": ((2, 9, 8), (3, 4, 6), (2,), "valid", (1,)),
    "1-D dilated": ((2, 9, 8), (3, 2, 8), (1,), "same", (2,)),
    "2-D": ((2, 7, 6, 8), (3, 3, 2, 12), (1, 1), "same", (1, 1)),
    "2-D strided": ((2, 7, 6, 8), (3, 3, 4, 8), (2, 2), "valid", (1, 1)),
    "2-D dilated": ((2, 9, 9, 8), (3, 3, 4, 8), (1, 1), "same", (2, 2)),
    "2-D one by one": ((2, 4, 4, 32), (1, 1, 4, 32), (1, 1), "same", (1, 1)),
    "2-D batch of one": ((1, 4, 4, 32), (3, 3, 4, 32), (1, 1), "same", (1, 1)),
    "2-D depthwise": ((2, 6, 6, 8), (3, 3, 1, 16), (1, 1), "same", (1, 1)),
    "3-D": ((2, 4, 5, 6, 8), (3, 3, 3, 4, 4), (1, 1, 1), "same", (1, 1, 1)),
    "3-D strided": ((2, 5, 5, 5, 8), (3, 3, 3, 2, 8), (2, 2, 2), "valid", (1, 1, 1)),
}


def by_groups(strides, padding, dilation):
    """A grouped convolution by its definition: one plain convolution for each group of channels."""

    def conv(x, kernel):
        groups = x.shape[-1] // kernel.shape[-2]
        width, filters = kernel.shape[-2], kernel.shape[-1] // groups
        parts = [
            tf.nn.convolution(
                x[..., g * width : (g + 1) * width],
                kernel[..., g * filters : (g + 1) * filters],
                strides,
                padding.upper(),
                ("NWC", "NHWC", "NDHWC")[len(strides) - 1],
                dilation,
            )
            for g in range(groups)
        ]
        return tf.concat(parts, -1)

    return conv


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.__name__)
@pytest.mark.parametrize("case", CONVS)
def test_grouped_conv(case, mode):
    shape, kernel, *how = CONVS[case]
    inputs = [normal(*shape), normal(*kernel, seed=1)]
    compare(lambda x, k: primitives.grouped_conv(x, k, *how), by_groups(*how), inputs, mode=mode)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_grouped_conv_dtypes(dtype):
    """Which of them oneDNN has a kernel for depends on the processor; for float16 few have."""
    shape, kernel, *how = CONVS["2-D"]

    def results(conv, dtype):
        inputs = [tf.constant(normal(*shape), dtype), tf.constant(normal(*kernel, seed=1), dtype)]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            y = conv(*inputs)
            loss = tf.reduce_sum(tf.square(tf.cast(y, "float64")))
        return y, *tape.gradient(loss, inputs)

    reference = results(by_groups(*how), "float64")
    for got, expected in zip(results(lambda x, k: primitives.grouped_conv(x, k, *how), dtype), reference, strict=True):
        assert got.dtype == dtype
        assert tools.distance(tf.cast(got, "float64"), expected) < (1e-12 if dtype == "float64" else 3e-2)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_grouped_layer_is_keras_own(rank):
    """Same weights, same config, same numbers as the layer it stands for; unknown sizes too."""
    options = {"filters": 8, "kernel_size": 3, "groups": 4, "padding": "same", "name": "c"}
    ours = getattr(layers, f"Conv{rank}D")(**options)
    theirs = getattr(keras.layers, f"Conv{rank}D")(**options)
    inputs = keras.Input((*(None,) * rank, 8))
    a, b = keras.Model(inputs, ours(inputs)), keras.Model(inputs, theirs(inputs))
    assert a.output_shape == b.output_shape
    assert {k: v for k, v in ours.get_config().items() if k != "dtype"} == {
        k: v for k, v in theirs.get_config().items() if k != "dtype"
    }
    tools.randomise(a)
    b.set_weights(a.get_weights())
    x = normal(2, *(5,) * rank, 8)
    assert tools.distance(a(x), b(x)) < 1e-5
    assert tools.distance(a.predict(x, verbose=0), b(x)) < 1e-5
    graph = tf.function(ours).get_concrete_function(tf.TensorSpec((None, *(None,) * rank, 8))).graph
    assert not [op.name for op in graph.get_operations() if "PartitionedCall" in op.type], "Keras compiles it by XLA"


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_every_convolution_is_safe_and_right(part):
    """In a process of its own, which a native crash would end; `part` is one of six shares of the networks."""
    command = [sys.executable, "-m", "tests.native_child", *kr.list_models()[part::6]]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout.splitlines()[-1:]} {done.stderr[-1000:]}"
    assert len(done.stdout.splitlines()) > 20


# ---------------------------------------------------------------------------------------------- batch normalisation


def direct_batch_norm(x, gamma, beta, epsilon=1e-5):
    axes = tuple(range(len(x.shape) - 1))
    mean = tf.reduce_mean(x, axes)
    variance = tf.reduce_mean((x - mean) ** 2, axes)
    return (x - mean) / tf.sqrt(variance + epsilon) * gamma + beta


def bn_layer(rank, dtype=None, **options):
    layer = layers.BatchNorm(dtype=dtype, **options)
    layer.build((None,) * (rank - 1) + (4,))
    for i, variable in enumerate(layer.weights):
        value = normal(*variable.shape, seed=5 + i)
        variable.assign(1 + np.abs(value) if "variance" in variable.name else value)
    return layer


@pytest.fixture(params=["native", "composed", "float64"])
def path(request, monkeypatch):
    """Each way in which a primitive may be computed; gives the dtype."""
    if request.param == "composed":
        monkeypatch.setattr(primitives, "native_kernels", lambda x: False)
    elif request.param == "native":
        assert primitives.native_kernels(tf.zeros((1,)))
    else:
        assert not primitives.native_kernels(tf.zeros((1,), "float64"))
    return "float64" if request.param == "float64" else "float32"


SHAPES = [(16, 4), (8, 5, 4), (4, 5, 6, 4), (2, 3, 4, 5, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=len)
def test_batch_norm_training(shape, path):
    layer, x = bn_layer(len(shape), path), 2 + 3 * normal(*shape)
    gamma, beta, mean, variance = (np.asarray(v, "float64") for v in layer.weights)
    upstream = np.random.default_rng(9).normal(size=shape)
    results = []
    for function, dtype in ((None, path), (direct_batch_norm, "float64")):
        t = tf.constant(x, dtype)
        scale, offset = tf.constant(gamma), tf.constant(beta)
        with tf.GradientTape() as tape:
            tape.watch([t, scale, offset])
            y = layer(t, training=True) if function is None else function(t, scale, offset)
            loss = tf.reduce_sum(y * tf.constant(upstream, dtype))
        by = [t, layer.gamma.value, layer.beta.value] if function is None else [t, scale, offset]
        results.append((y, *tape.gradient(loss, by)))
    for name, ours, theirs in zip(("output", "dx", "dgamma", "dbeta"), *results, strict=True):
        assert tools.distance(ours, theirs) < (1e-10 if path == "float64" else 2e-5), name

    flat = x.reshape(-1, 4).astype("float64")  # running statistics: torch's momentum 0.1 and unbiased variance
    assert tools.distance(layer.moving_mean, 0.9 * mean + 0.1 * flat.mean(0)) < 1e-5
    assert tools.distance(layer.moving_variance, 0.9 * variance + 0.1 * flat.var(0, ddof=1)) < 1e-5
    biased = 0.9 * variance + 0.1 * flat.var(0)
    assert tools.distance(layer.moving_variance, biased) > 1e-4, "the case must tell the two variances apart"


@pytest.mark.parametrize("shape", SHAPES, ids=len)
@pytest.mark.parametrize("frozen", [False, True], ids=["inference", "frozen"])
def test_batch_norm_inference(shape, frozen, path):
    """`trainable = False` means the running statistics, also in training, and no update of them."""
    layer, x = bn_layer(len(shape), path), normal(*shape)
    layer.trainable = not frozen
    gamma, beta, mean, variance = (np.asarray(v, "float64") for v in layer.weights)
    before = [np.asarray(v).copy() for v in layer.weights]
    y = layer(tf.constant(x, path), training=frozen)
    expected = (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    assert tools.distance(y, expected) < 1e-5
    for value, variable in zip(before, layer.weights, strict=True):
        np.testing.assert_array_equal(value, np.asarray(variable))
    t = tf.constant(x, path)
    with tf.GradientTape() as tape:
        tape.watch(t)
        y = layer(t, training=frozen)
    assert tools.distance(tape.gradient(y, t), np.broadcast_to(gamma / np.sqrt(variance + 1e-5), shape)) < 1e-5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"scale": False, "center": False}])
def test_batch_norm_options_and_xla(training, options):
    x = tf.constant(normal(4, 5, 6, 4))
    values, stats = [], []
    for mode in MODES:
        layer = bn_layer(4, **options)
        values.append(mode(lambda x, layer=layer: layer(x, training=training))(x))
        stats.append([np.asarray(v) for v in layer.weights])
    for value, stat in zip(values[1:], stats[1:], strict=True):
        assert tools.distance(value, values[0]) < 1e-5
        for a, b in zip(stat, stats[0], strict=True):
            assert tools.distance(a, b) < 1e-5


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_bfloat16(training):
    """Half precision in and out, statistics and sums in float32."""
    layer, full = bn_layer(4, "mixed_bfloat16"), bn_layer(4)
    x = tf.cast(100 + normal(64, 8, 8, 4), "bfloat16")
    y = layer(x, training=training)
    assert y.dtype == "bfloat16"
    assert tools.distance(tf.cast(y, "float32"), full(tf.cast(x, "float32"), training=training)) < 2e-2
    assert layer.moving_variance.dtype == "float32"
    for a, b in zip(layer.weights, full.weights, strict=True):
        assert tools.distance(a, b) < 1e-3


def test_batch_norm_mask():
    """Masked steps count neither for the batch's statistics nor for the running ones."""
    layer, x = bn_layer(3), normal(6, 5, 4)
    mask = np.random.default_rng(3).random((6, 5)) < 0.6
    _, _, mean, variance = (np.asarray(v, "float64") for v in layer.weights)
    y = np.asarray(layer(tf.constant(x), training=True, mask=tf.constant(mask)))
    kept = x[mask].astype("float64")
    gamma, beta = (np.asarray(v, "float64") for v in layer.trainable_variables)
    expected = (kept - kept.mean(0)) / np.sqrt(kept.var(0) + 1e-5) * gamma + beta
    assert tools.distance(y[mask], expected) < 1e-4
    assert tools.distance(layer.moving_mean, 0.9 * mean + 0.1 * kept.mean(0)) < 1e-4
    assert tools.distance(layer.moving_variance, 0.9 * variance + 0.1 * kept.var(0, ddof=1)) < 1e-4


@pytest.mark.parametrize(
    ("shape", "known", "limit"), [((64, 4), 0, 2e-4), ((4, 8, 8, 4), 0, 2e-3), ((4, 8, 8, 4), 999, 2e-4)]
)
def test_batch_norm_far_from_zero(shape, known, limit, monkeypatch):
    """A hundred, and in a table or beside a running mean that knows it a thousand, standard deviations from 0."""
    monkeypatch.setattr(primitives, "native_kernels", lambda x: False)
    x = (1000 if known or len(shape) == 2 else 100) + normal(*shape)
    layer = layers.BatchNorm()
    layer.build(shape)
    layer.moving_mean.assign(np.full(4, known, "float32"))
    wide = x.astype("float64").reshape(-1, 4)
    expected = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
    assert tools.distance(layer(tf.constant(x), training=True), expected.reshape(shape)) < limit


def test_batch_norm_of_one_value_stays_finite():
    layer = bn_layer(4)
    y = layer(tf.ones((1, 1, 1, 4)), training=True)
    assert np.isfinite(np.asarray(y)).all()
    assert all(np.isfinite(np.asarray(v)).all() for v in layer.weights)


def test_batch_norm_config_and_refusals():
    layer = layers.BatchNorm(momentum=0.8, name="bn")
    again = layers.BatchNorm.from_config(layer.get_config())
    assert (again.momentum, again.epsilon, again.name) == (0.8, 1e-5, "bn")
    with pytest.raises(ValueError, match=r"last axis.*axis=1"):
        layers.BatchNorm(axis=1)


# --------------------------------------------------------------------------------------------- GELU and attention


@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.__name__)
def test_gelu(mode):
    x = np.concatenate([normal(100), np.float32([-30, -6, -1e-3, 0, 1e-3, 6, 30])])
    compare(primitives.gelu, exact_gelu, [x], order=2, mode=mode)


def test_gelu_float64_and_bfloat16():
    x = normal(200)
    compare(primitives.gelu, exact_gelu, [x], order=2, dtype="float64", limit=1e-12)
    compare(primitives.gelu, exact_gelu, [x], dtype="bfloat16", limit=3e-2)


def test_gelu_is_exact_not_tanh():
    """The tanh approximation differs by up to 5e-4: enough to break parity, too little to see."""
    from scipy.special import erf

    x = np.linspace(-5, 5, 1001, dtype="float32")
    exact = x * 0.5 * (1 + erf(x.astype("float64") / np.sqrt(2)))
    assert np.abs(np.asarray(layers.gelu(tf.constant(x))) - exact).max() < 1e-6


def composed_attention(causal):
    def attention(q, k, v):
        scores = tf.matmul(q, k, transpose_b=True) / np.sqrt(q.shape[-1])
        if causal:
            scores = tf.where(np.tri(q.shape[2], dtype=bool), scores, tf.constant(-np.inf, scores.dtype))
        return tf.matmul(tf.nn.softmax(scores), v)

    return attention


QKV = [normal(2, 3, 5, 4, seed=s) for s in range(3)]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("mode", MODES, ids=lambda m: m.__name__)
def test_attention(mode, causal):
    def ours(q, k, v):
        return primitives.attention(q, k, v, causal)

    compare(ours, composed_attention(causal), QKV, order=2, limit=2e-5, mode=mode)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_attention_float64_and_bfloat16(causal):
    def ours(q, k, v):
        return primitives.attention(q, k, v, causal)

    compare(ours, composed_attention(causal), QKV, order=2, dtype="float64", limit=1e-12)
    compare(ours, composed_attention(causal), QKV, dtype="bfloat16", limit=5e-2)


# ------------------------------------------------------------------------------------ layer norm, second derivatives


def direct_norm(x, axes, epsilon):
    mean = tf.reduce_mean(x, axes, keepdims=True)
    return (x - mean) / tf.sqrt(tf.reduce_mean((x - mean) ** 2, axes, keepdims=True) + epsilon)


def direct_layer_norm(x, gamma, beta):
    return direct_norm(x, -1, 1e-6) * gamma + beta


def our_layer_norm(x, gamma, beta):
    return primitives.layer_norm(x, gamma, beta, 1e-6)


LAYER_NORM = [1 + 3 * normal(2, 4, 5), 1 + 0.2 * normal(5, seed=1), normal(5, seed=2)]


def in_groups(x):
    """Group normalisation of 8 channels in 2 groups by its definition."""
    return tf.reshape(direct_norm(tf.reshape(x, (2, 3, 3, 2, 4)), (1, 2, 4), 1e-5), x.shape)


def made(kind, **options):
    """A layer for each dtype, called in training."""
    found = {dtype: kind(dtype=dtype, **options) for dtype in ("float32", "float64")}
    for layer in found.values():
        layer.build((None, 3, 3, 8))
    return lambda x: found[x.dtype.name](x, training=True)


# Ours, its definition, inputs
TWICE = {
    "gelu": (primitives.gelu, exact_gelu, [normal(20)]),
    "attention": (lambda q, k, v: primitives.attention(q, k, v), composed_attention(False), QKV),
    "layer norm": (our_layer_norm, direct_layer_norm, LAYER_NORM),
    "layer norm of one axis less": (our_layer_norm, direct_layer_norm, [LAYER_NORM[0][0], *LAYER_NORM[1:]]),
    "group norm": (made(layers.GroupNorm, groups=2), in_groups, [normal(2, 3, 3, 8)]),
    "batch norm": (made(layers.BatchNorm), lambda x: direct_norm(x, (0, 1, 2), 1e-5), [normal(2, 3, 3, 8)]),
}


PLACES = [(a, b) for a in MODES for b in MODES]
QUICK = [(eager, eager), (eager, graph), (xla, eager)]


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        pytest.param(*p, id="-".join(m.__name__ for m in p), marks=[] if p in QUICK else pytest.mark.slow)
        for p in PLACES
    ],
)
@pytest.mark.parametrize("case", TWICE)
def test_second_derivatives(case, outer, inner):
    """Both tapes outside of a function that is compiled by itself, too, as of a model that is called compiled."""
    function, definition, inputs = TWICE[case]
    compare(inner(function), definition, inputs, order=2, limit=2e-5, mode=outer)


@pytest.mark.parametrize("case", TWICE)
def test_second_derivatives_in_float64(case):
    function, definition, inputs = TWICE[case]
    compare(function, definition, inputs, order=2, limit=1e-10, dtype="float64")


def test_layer_norm_bfloat16():
    x, gamma, beta = LAYER_NORM
    y = our_layer_norm(tf.cast(x, "bfloat16"), tf.constant(gamma), tf.constant(beta))
    assert y.dtype == "bfloat16"
    assert tools.distance(tf.cast(y, "float32"), direct_layer_norm(x, gamma, beta)) < 3e-2


def test_attention_of_large_scores_stays_finite():
    q, k, v = (tf.constant(100 * t) for t in QKV)
    assert np.isfinite(np.asarray(primitives.attention(q, k, v))).all()


def test_causal_attention_does_not_look_ahead():
    q, k, v = (tf.constant(t) for t in QKV)
    with tf.GradientTape() as tape:
        tape.watch([k, v])
        y = primitives.attention(q, k, v, causal=True)[:, :, 1]
    for gradient in tape.gradient(y, [k, v]):
        assert not np.asarray(gradient)[:, :, 2:].any()
