"""Operations that Keras computes slowly or does not support, implemented with native kernels of the backend.

This is the only core module that uses TensorFlow or JAX directly. Where no native kernel applies (under XLA, in
float64), a function is the plain composition of `keras.ops`, so that weights, configs and results do not depend on the
implementation.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

_TENSORFLOW, _JAX = (keras.backend.backend() == name for name in ("tensorflow", "jax"))
if TYPE_CHECKING or _TENSORFLOW:
    import tensorflow as tf
    from tensorflow.python.ops.control_flow_util import GraphOrParentsInXlaContext
if TYPE_CHECKING or _JAX:
    import jax


def native_kernels(x: Any) -> bool:
    """Return True if TensorFlow's native kernels compute `x`: no tracing for XLA, and a supported dtype."""
    if not _TENSORFLOW or keras.backend.standardize_dtype(x.dtype) not in ("float32", "bfloat16", "float16"):
        return False
    # No public function detects that a `tf.function(jit_compile=True)` is being traced.
    return tf.executing_eagerly() or not GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


@functools.cache
def _has_native_grouped_conv(dtype: str) -> bool:
    """Return True if TensorFlow can compute gradients of grouped convolutions of this type, on CPUs only with oneDNN.

    Without oneDNN (`TF_ENABLE_ONEDNN_OPTS=0`; bfloat16 without AVX-512, float16 on most processors), only the forward
    pass is implemented.
    """
    if tf.config.list_logical_devices("GPU"):
        return True
    try:
        with tf.init_scope(), tf.device("CPU:0"):
            ones = tf.ones((1, 1, 1, 2), dtype)
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=(1, 1, 1, 2), filter=ones, out_backprop=ones, strides=[1, 1, 1, 1], padding="VALID"
            )
    except (tf.errors.OpError, ValueError):
        return False
    return True


def grouped_conv(x: Any, kernel: Any, strides: tuple[int, ...], padding: str, dilation: tuple[int, ...]) -> Any:
    """Compute a grouped convolution of `(N, *spatial, C)` with a kernel `(*size, C / groups, filters)`.

    Keras compiles every grouped convolution on a CPU with XLA, which makes its gradient two orders of magnitude slower.
    """
    groups = x.shape[-1] // kernel.shape[-2]
    if not _TENSORFLOW or (tf.config.list_logical_devices("GPU") and not native_kernels(x)):
        return ops.conv(x, kernel, strides, padding, "channels_last", dilation)
    if native_kernels(x) and len(strides) <= 2 and _has_native_grouped_conv(x.dtype.name):
        if len(strides) == 1:  # the native kernel is 2-D
            y = grouped_conv(x[:, :, None], kernel[:, None], (strides[0], 1), padding, (dilation[0], 1))
            return tf.squeeze(y, 2)
        return tf.nn.conv2d(x, kernel, strides, padding.upper(), dilations=dilation)  # pyright: ignore[reportArgumentType]
    parts = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
    layout = ("NWC", "NHWC", "NDHWC")[len(strides) - 1]  # without it the gradient of the 3-D kernel fails
    options = {"strides": strides, "padding": padding.upper(), "data_format": layout, "dilations": dilation}
    return tf.concat([tf.nn.convolution(a, k, **options) for a, k in parts], -1)


def batch_norm_train(x: Any, gamma: Any, beta: Any, epsilon: float) -> tuple[Any, Any, Any]:
    """Normalise `x` `(N, ..., C)` over all axes but the last with its batch statistics, by the native kernel.

    Returns:
        The result, the batch mean and the *unbiased* batch variance, which running averages use.
    """
    images, restore = _as_images(x)
    y, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=images, scale=gamma, offset=beta, mean=[], variance=[], epsilon=epsilon, is_training=True
    )
    return restore(y), mean, variance


def batch_norm_inference(x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float) -> Any:
    """Normalise `x` `(N, ..., C)` with the given statistics, by native kernels."""
    images, restore = _as_images(x)
    if x.dtype == tf.float32 and not tf.config.list_logical_devices("GPU"):
        # In a graph on a CPU, TensorFlow would fuse the kernel below with the convolution into an oneDNN kernel that is
        # 10 to 15 times slower for one image. Product and bias are as fast for larger batches.
        scale = gamma * tf.math.rsqrt(variance + epsilon)
        return restore(tf.nn.bias_add(images * scale, beta - mean * scale))
    return restore(
        tf.raw_ops.FusedBatchNormV3(
            x=images, scale=gamma, offset=beta, mean=mean, variance=variance, epsilon=epsilon, is_training=False
        )[0]
    )


def _as_images(x: Any) -> tuple[Any, Any]:
    """Return a 4-D view of `x` for the fused kernel, and a function that restores the shape."""
    if len(x.shape) == 4:
        return x, lambda y: y
    shape, static = tf.shape(x), x.shape

    def restore(y: Any) -> Any:
        return tf.ensure_shape(tf.reshape(y, shape), static)

    return tf.reshape(x, (-1, 1, 1, x.shape[-1])), restore


def moments(x: Any, axes: Any) -> tuple[Any, Any]:
    """Return the mean and the biased variance over `axes`, which are kept with size 1.

    On TensorFlow, Keras' moments stop the gradient of the mean inside the variance, which makes second derivatives
    (gradient penalties, Hessians) silently wrong.
    """
    mean = ops.mean(x, axes, keepdims=True)
    return mean, ops.mean(ops.square(x - mean), axes, keepdims=True)


def moments_about(center: Any, x: Any, axes: Any) -> tuple[Any, Any]:
    """Return the mean and the biased variance of `x` `(N, ..., C)` over `axes`, in one pass over `x`.

    The variance is a difference of sums about `center` `(C,)`. It loses digits if the center is many standard
    deviations from the mean: at a hundred, about 3 of float32's 7 digits remain.
    """
    center = ops.stop_gradient(center)  # the result does not depend on it
    centred = x - center
    mean = ops.mean(centred, axes)
    variance = ops.mean(ops.square(centred), axes) - ops.square(mean)
    return mean + center, ops.maximum(variance, 0)


def layer_norm(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """Normalise the last axis of `x` `(N, ..., C)` in at least float32 precision; `gamma` and `beta` are `(C,)`."""
    dtype = keras.backend.result_type(x.dtype, "float32")
    wide, gamma, beta = ops.cast(x, dtype), ops.cast(gamma, dtype), ops.cast(beta, dtype)
    if native_kernels(x):
        return ops.cast(_layer_norm_native(wide, gamma, beta, epsilon), x.dtype)
    mean, variance = moments(wide, -1)
    return ops.cast((wide - mean) * ops.rsqrt(variance + epsilon) * gamma + beta, x.dtype)


if TYPE_CHECKING or _TENSORFLOW:

    def _layer_norm_native(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
        @tf.custom_gradient
        def normalise(x: Any, gamma: Any, beta: Any) -> Any:
            centred = x - tf.reduce_mean(x, -1, keepdims=True)
            inverse = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
            normal = centred * inverse

            def gradient(upstream: Any) -> Any:
                # Needs half as many passes over x as TensorFlow's gradient of the lines above
                product, axes = upstream * normal, list(range(len(x.shape) - 1))
                along, across = (tf.matmul(t, gamma[:, None]) / x.shape[-1] for t in (upstream, product))
                slope = (upstream * gamma - along - normal * across) * inverse
                return slope, tf.reduce_sum(product, axes), tf.reduce_sum(upstream, axes)

            return normal * gamma + beta, gradient

        return normalise(x, gamma, beta)


def gelu(x: Any) -> Any:
    """Return the exact GELU, `x * Phi(x)`. The native gradient reuses the CDF of the forward pass."""
    if native_kernels(x):
        return x * _normal_cdf(x)
    wide = ops.cast(x, keras.backend.result_type(x.dtype, "float32"))
    # Keras on JAX uses erfc, which takes a GPU three times as long as reading and writing the tensor.
    return ops.cast(wide * (0.5 + 0.5 * ops.erf(wide * math.sqrt(0.5))), x.dtype)


if TYPE_CHECKING or _TENSORFLOW:

    @tf.custom_gradient
    def _normal_cdf(x: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            return upstream * (tf.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi)))

        return 0.5 + 0.5 * tf.math.erf(x * math.sqrt(0.5)), gradient


def attention(q: Any, k: Any, v: Any, causal: bool = False) -> Any:
    """Compute scaled dot-product attention of `(N, heads, L, D)`; if `causal`, position i does not attend to j > i.

    Scores and their softmax are computed in at least float32. On JAX with NVIDIA GPUs, half precision uses cuDNN's
    flash attention, unless `keras.config.disable_flash_attention()` was called.
    """
    if native_kernels(q) and not causal:
        return _attention_native(q, k, v)
    if _JAX and _cudnn_takes(q.shape[1:], k.shape[1:], v.shape[1:], keras.backend.standardize_dtype(q.dtype)):
        return _flash_attention(q, k, v, causal)
    dtype = keras.backend.result_type(q.dtype, "float32")
    scores = ops.cast(ops.matmul(q * q.shape[-1] ** -0.5, ops.transpose(k, (0, 1, 3, 2))), dtype)
    if causal:
        place = ops.arange(q.shape[2])
        scores = ops.where(place[:, None] >= place[None, :], scores, -1e9)
    return ops.matmul(ops.cast(ops.softmax(scores), v.dtype), v)


if TYPE_CHECKING or _TENSORFLOW:

    @tf.custom_gradient
    def _attention_native(q: Any, k: Any, v: Any) -> Any:
        scale = q.shape[-1] ** -0.5
        scores = tf.matmul(q * scale, k, transpose_b=True)
        weights = tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32)), v.dtype)  # (N, heads, L, L)
        out = tf.matmul(weights, v)

        def gradient(upstream: Any) -> Any:
            # The gradient of the softmax needs sum(weights * d_weights), which equals sum(out * upstream). Summing over
            # D instead of L saves one of two passes over (L, L).
            d_weights = tf.matmul(upstream, v, transpose_b=True)
            inner = tf.reduce_sum(upstream * out, -1, keepdims=True)
            d_scores = weights * (d_weights - inner) * scale
            return (
                tf.matmul(d_scores, k),
                tf.matmul(d_scores, q, transpose_a=True),
                tf.matmul(weights, upstream, transpose_a=True),
            )

        return out, gradient


def _flash_attention(q: Any, k: Any, v: Any, causal: bool, implementation: Any = "cudnn") -> Any:
    """Compute flash attention. Odd lengths, such as ViT's 197, are padded; Keras' function cannot train them."""
    lengths, options = (q.shape[2], k.shape[2]), {}
    q, k, v = (ops.transpose(t, (0, 2, 1, 3)) for t in (q, k, v))  # (N, L, heads, D)
    if any(length % 2 for length in lengths):
        q, k, v = (ops.pad(t, ((0, 0), (0, t.shape[1] % 2), (0, 0), (0, 0))) for t in (q, k, v))
        names = ("query_seq_lengths", "key_value_seq_lengths")
        options = {name: ops.full(q.shape[:1], length, "int32") for name, length in zip(names, lengths, strict=True)}
    out = jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=implementation, **options)
    return ops.transpose(out[:, : lengths[0]], (0, 2, 1, 3))


def _cudnn_takes(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], dtype: str) -> bool:
    """Return True if cuDNN can train attention with query, key and value of these shapes `(heads, L, D)`."""
    enabled = keras.config.is_flash_attention_enabled() is not False
    return enabled and dtype in ("bfloat16", "float16") and jax.default_backend() == "gpu" and _tried(q, k, v, dtype)


@functools.cache
def _tried(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], dtype: str) -> bool:
    def total(*inputs: Any) -> Any:
        return _flash_attention(*inputs, causal=False).sum()

    try:  # JAX checks device, version and shapes when it differentiates; nothing is computed
        jax.eval_shape(jax.grad(total, (0, 1, 2)), *(jax.ShapeDtypeStruct((1, *t), dtype) for t in (q, k, v)))
    except (NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def resize(x: Any, size: tuple[Any, Any], interpolation: str) -> Any:
    """Resize `(N, H, W, C)` with antialiasing. In a TensorFlow graph the size may be a tensor, unlike in Keras."""
    antialias = interpolation != "nearest"
    if _TENSORFLOW:
        return tf.image.resize(
            x, tf.stack([tf.cast(side, tf.int32) for side in size]), method=interpolation, antialias=antialias
        )
    return ops.image.resize(x, size, interpolation=interpolation, antialias=antialias, data_format="channels_last")
