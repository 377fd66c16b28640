"""Serializable layers that Keras lacks, and faster versions of Keras layers with the same weights and configs."""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_residual import primitives

__all__ = [
    "Affine",
    "Attend",
    "BatchNorm",
    "BlurPool",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "GlobalResponseNorm",
    "GroupNorm",
    "LayerNorm",
    "LayerScale",
    "Parameter",
    "PointwiseDense",
    "PositionEmbedding",
    "SimpleNorm",
    "SkipInit",
    "SplitHeads",
    "StageOutput",
    "StandardizedConv1D",
    "StandardizedConv2D",
    "StandardizedConv3D",
    "Token",
    "gelu",
    "gelu_tanh",
    "quick_gelu",
]

register = keras.saving.register_keras_serializable(package="keras_residual")
Shape = tuple[int, ...]
Grid = tuple[int, ...]
Stored = tuple[str, Shape]
"""Entry of a variable in timm's state dict: the part of the key after the layer's name, and the array's shape."""


@register
def gelu(x: Any) -> Any:
    """Return the exact GELU (Hendrycks & Gimpel 2016). Its gradient reuses the CDF of the forward pass."""
    return primitives.gelu(x)


@register
def quick_gelu(x: Any) -> Any:
    """Return `x * sigmoid(1.702 x)`, the approximation of GELU in OpenAI's CLIP."""
    return x * ops.sigmoid(1.702 * x)


@register
def gelu_tanh(x: Any) -> Any:
    """Return the tanh approximation of GELU, as in SigLIP and big_vision."""
    return ops.gelu(x, approximate=True)


class _GroupedConv:
    """Mixin that computes grouped convolutions with native kernels, where Keras would compile them with XLA."""

    def convolution_op(self: Any, inputs: Any, kernel: Any) -> Any:
        padding = "valid" if self.padding == "causal" else self.padding  # `call` has already added the zeros
        if self.groups == 1:
            return ops.conv(inputs, kernel, self.strides, padding, self.data_format, self.dilation_rate)
        return primitives.grouped_conv(inputs, kernel, self.strides, padding, self.dilation_rate)


class _OneAxis:
    """Mixin that makes `Conv1D` call `convolution_op`, like the other ranks; Keras' `Conv1D.call` does not."""

    def call(self: Any, inputs: Any) -> Any:
        if self.padding == "causal":
            inputs = ops.pad(inputs, self._compute_causal_padding())
        return super(keras.layers.Conv1D, self).call(inputs)


@register
class Conv1D(_OneAxis, _GroupedConv, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with fast `groups`."""


@register
class Conv2D(_GroupedConv, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with fast `groups`."""


@register
class Conv3D(_GroupedConv, keras.layers.Conv3D):
    """`keras.layers.Conv3D` with fast `groups`."""


class _StandardizedConv(_GroupedConv):
    """Mixin for weight standardisation (Qiao et al. 2019).

    The kernel is normalised to mean 0 and variance 1 per output channel whenever it is used. `epsilon` is added to the
    variance.
    """

    def __init__(self, *args: Any, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epsilon = epsilon

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        axes = tuple(range(len(kernel.shape) - 1))
        wide = ops.cast(kernel, keras.backend.result_type(self.variable_dtype, "float32"))  # pyright: ignore
        wide = wide - ops.mean(wide, axes, keepdims=True)
        wide = wide * ops.rsqrt(ops.mean(ops.square(wide), axes, keepdims=True) + self.epsilon)
        return super().convolution_op(inputs, ops.cast(wide, self.compute_dtype))  # pyright: ignore

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}  # pyright: ignore


@register
class StandardizedConv1D(_OneAxis, _StandardizedConv, keras.layers.Conv1D):
    """`keras.layers.Conv1D` with weight standardisation."""


@register
class StandardizedConv2D(_StandardizedConv, keras.layers.Conv2D):
    """`keras.layers.Conv2D` with weight standardisation."""


@register
class StandardizedConv3D(_StandardizedConv, keras.layers.Conv3D):
    """`keras.layers.Conv3D` with weight standardisation."""


@register
class PointwiseDense(keras.layers.Dense):
    """A 1x1 convolution, computed as a dense layer on the channels.

    State dicts store its kernel like that of a convolution, `(out, in, 1, 1)`, as timm does.
    """


@register
class BatchNorm(keras.layers.BatchNormalization):
    """Batch normalisation over all axes but the last, with torch's defaults and statistics.

    It differs from `keras.layers.BatchNormalization` in its defaults (momentum 0.9, epsilon 1e-5), in its running
    variance, which averages the *unbiased* batch variance as in torch, and in its speed on TensorFlow. The weights,
    their names and the config are the same.

    Raises:
        ValueError: If `axis` is not the last one, or if `renorm` is true.
    """

    def __init__(self, axis: int = -1, momentum: float = 0.9, epsilon: float = 1e-5, **kwargs: Any) -> None:
        if axis != -1 or kwargs.get("renorm"):
            raise ValueError(
                f"`axis` must be the last axis, -1, and `renorm` must be False for BatchNorm; got axis={axis}, "
                f"renorm={kwargs.get('renorm', False)}. Otherwise use keras.layers.BatchNormalization."
            )
        super().__init__(axis=axis, momentum=momentum, epsilon=epsilon, **kwargs)

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        self._ones = self.gamma if self.scale else np.ones(input_shape[-1], "float32")
        self._zeros = self.beta if self.center else np.zeros(input_shape[-1], "float32")

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        training = bool(training) and self.trainable
        native = primitives.native_kernels(inputs) and mask is None and not (training and self.synchronized)
        if native and training:
            gamma, beta = (ops.convert_to_tensor(v, "float32") for v in (self._ones, self._zeros))
            outputs, mean, variance = primitives.batch_norm_train(inputs, gamma, beta, self.epsilon)
            self._update(mean, variance)
            return outputs
        if native:
            stats = (self._ones, self._zeros, self.moving_mean, self.moving_variance)
            stats = (ops.convert_to_tensor(v, "float32") for v in stats)
            return primitives.batch_norm_inference(inputs, *stats, self.epsilon)

        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))  # sums overflow in half precision
        if training:
            mean, variance = self._moments(x, mask)
            count = ops.prod(ops.shape(x)[:-1]) if mask is None else ops.sum(ops.cast(mask, x.dtype))
            count = ops.cast(count, x.dtype)
            self._update(mean, variance * (count / ops.maximum(count - 1, 1)))
        else:
            mean, variance = ops.cast(self.moving_mean, x.dtype), ops.cast(self.moving_variance, x.dtype)
        gamma, beta = (ops.cast(v, x.dtype) for v in (self._ones, self._zeros))
        outputs = ops.batch_normalization(x, mean, variance, -1, beta, gamma, self.epsilon)
        return ops.cast(outputs, self.compute_dtype)

    def _moments(self, inputs: Any, mask: Any) -> tuple[Any, Any]:
        if mask is not None or self.synchronized:
            return super()._moments(inputs, mask)
        axes = tuple(range(len(inputs.shape) - 1))
        if len(axes) > 1:
            return primitives.moments_about(ops.cast(self.moving_mean, inputs.dtype), inputs, axes)
        # Columns of a table may be many standard deviations from 0, where the one-pass formula loses precision before
        # the running mean has approached them.
        return tuple(ops.squeeze(moment, axes) for moment in primitives.moments(inputs, axes))

    def _update(self, mean: Any, variance: Any) -> None:
        for average, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            average.assign(average + (ops.cast(new, average.dtype) - average) * (1.0 - self.momentum))


@register
class LayerNorm(keras.layers.LayerNormalization):
    """Layer normalisation over the channels of `(N, ..., C)`.

    The weights, their names and the config are those of `keras.layers.LayerNormalization`. On TensorFlow, its gradient
    is faster and its second derivatives are correct.

    Raises:
        ValueError: If `axis` is not the last one.
    """

    def __init__(self, axis: int = -1, epsilon: float = 1e-6, **kwargs: Any) -> None:
        if axis not in (-1, [-1]):
            raise ValueError(
                f"`axis` must be the last axis, -1, for LayerNorm; got axis={axis}. Otherwise use "
                "keras.layers.LayerNormalization."
            )
        super().__init__(axis=-1, epsilon=epsilon, **kwargs)

    def call(self, inputs: Any) -> Any:
        size = inputs.shape[-1]
        gamma = self.gamma if self.scale else np.ones(size, "float32")
        beta = self.beta if self.center else np.zeros(size, "float32")
        return ops.cast(primitives.layer_norm(inputs, gamma, beta, self.epsilon), self.compute_dtype)


@register
class GroupNorm(keras.layers.GroupNormalization):
    """Group normalisation of `(N, ..., C)` with groups of channels.

    The weights, their names and the config are those of `keras.layers.GroupNormalization`. On TensorFlow, its second
    derivatives are correct.

    Raises:
        ValueError: If `axis` is not the last one.
    """

    def __init__(self, groups: int = 32, axis: int = -1, epsilon: float = 1e-5, **kwargs: Any) -> None:
        if axis != -1:
            raise ValueError(
                f"`axis` must be the last axis, -1, for GroupNorm; got axis={axis}. Otherwise use "
                "keras.layers.GroupNormalization."
            )
        super().__init__(groups=groups, axis=axis, epsilon=epsilon, **kwargs)

    def call(self, inputs: Any) -> Any:
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        shape = ops.shape(inputs)
        x = ops.reshape(ops.cast(inputs, dtype), (-1, *shape[1:-1], self.groups, inputs.shape[-1] // self.groups))
        rank = len(x.shape)
        mean, variance = primitives.moments(x, (*range(1, rank - 2), rank - 1))
        x = ops.reshape((x - mean) * ops.rsqrt(variance + self.epsilon), (-1, *shape[1:]))
        x = x * ops.cast(self.gamma, dtype) if self.scale else x
        x = x + ops.cast(self.beta, dtype) if self.center else x
        return ops.cast(x, self.compute_dtype)


class _ScaledByChannel(keras.layers.Layer):
    """Base class for norms with an epsilon and one weight per channel, with timm's names of a norm's weights."""

    def __init__(self, epsilon: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.epsilon = epsilon

    def stored(self, variable: str) -> Stored:
        return {"gamma": ".weight", "beta": ".bias"}[variable], tuple(getattr(self, variable).shape)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "epsilon": self.epsilon}


@register
class SimpleNorm(_ScaledByChannel):
    """Division of `(N, ..., C)` by the standard deviation over the channels, with a trained scale, without centring."""

    def build(self, input_shape: Any) -> None:
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gamma")

    def call(self, inputs: Any) -> Any:
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        squares = ops.sum(ops.square(x - ops.mean(x, -1, keepdims=True)), -1, keepdims=True)
        x = x * ops.rsqrt(squares / (x.shape[-1] - 1) + self.epsilon)  # the unbiased variance
        return ops.cast(x, self.compute_dtype) * self.gamma


@register
class Affine(keras.layers.Layer):
    """`gamma * x + beta` per channel of `(N, ..., C)`, which replaces norms in ResMLP (Touvron et al. 2021)."""

    def build(self, input_shape: Any) -> None:
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="beta")

    def call(self, inputs: Any) -> Any:
        return inputs * self.gamma + self.beta

    def stored(self, variable: str) -> Stored:
        return {"gamma": ".alpha", "beta": ".beta"}[variable], (1, 1, self.gamma.shape[0])

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@register
class GlobalResponseNorm(_ScaledByChannel):
    """Global response normalisation of `(N, *spatial, C)`: `x + gamma * x * response + beta`.

    The response of a channel is its norm over all positions, divided by the mean norm of all channels (Woo et al. 2023,
    ConvNeXt V2, algorithm 1).
    """

    def build(self, input_shape: Any) -> None:
        self.gamma = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="gamma")
        self.beta = self.add_weight(shape=(input_shape[-1],), initializer="zeros", name="beta")

    def call(self, inputs: Any) -> Any:
        dtype = keras.backend.result_type(inputs.dtype, "float32")  # sums overflow in half precision
        squares = ops.sum(ops.square(ops.cast(inputs, dtype)), range(1, len(inputs.shape) - 1), keepdims=True)
        norm = ops.sqrt(ops.maximum(squares, 1e-30))  # (N, 1, ..., C); clipped because the root has no gradient at 0
        response = norm / (ops.mean(norm, -1, keepdims=True) + self.epsilon)
        scale = 1 + ops.cast(self.gamma, dtype) * response
        return inputs * ops.cast(scale, inputs.dtype) + ops.cast(self.beta, inputs.dtype)


@register
class BlurPool(keras.layers.Layer):
    """Anti-aliased subsampling with a fixed binomial 3x3 filter and reflected edges.

    Maps `(N, *spatial, C)` to `(N, *ceil(spatial / strides), C)` (Zhang 2019, "Making Convolutional Networks
    Shift-Invariant Again").
    """

    def __init__(self, strides: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.strides = strides

    def call(self, inputs: Any) -> Any:
        rank = len(inputs.shape) - 2
        x = ops.pad(inputs, [(0, 0), *[(1, 1)] * rank, (0, 0)], mode="reflect")
        for axis in range(1, rank + 1):  # the filter is separable: 1/4, 1/2, 1/4 along each axis
            size = ops.shape(x)[axis] - 2
            parts = []
            for start in range(3):
                place = [slice(None)] * (rank + 2)
                place[axis] = slice(start, start + size, self.strides)
                parts.append(x[tuple(place)])
            x = 0.25 * (parts[0] + parts[2]) + 0.5 * parts[1]
        return x

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        spatial = (None if size is None else -(-size // self.strides) for size in input_shape[1:-1])
        return (input_shape[0], *spatial, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "strides": self.strides}


@register
class StageOutput(keras.layers.Identity):
    """Marker of the end of a stage, whose output `keras_residual.features` returns as this level.

    `grid` is the grid of the patches, if the stage outputs a token sequence. `family` is the name of the network's
    family, which selects the checkpoint formats in `load_weights`. It is also kept by clones and saved models.
    """

    def __init__(
        self, level: int, grid: tuple[int, ...] | None = None, family: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.level, self.grid, self.family = level, None if grid is None else tuple(grid), family

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "level": self.level, "grid": self.grid, "family": self.family}


class Parameter(keras.layers.Layer):
    """Base class for layers with one parameter, whose full name in timm is the name of the layer."""

    value: Any

    def stored(self, variable: str) -> Stored:
        return "", tuple(self.value.shape)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update({key: getattr(self, key) for key in self._arguments})
        return config

    _arguments: tuple[str, ...] = ()


@register
class LayerScale(Parameter):
    """Trained multiplier per channel of `(N, ..., C)` with a small initial value (Touvron et al. 2021, CaiT)."""

    _arguments = ("init",)

    def __init__(self, init: float = 1e-5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.init = init

    def build(self, input_shape: Any) -> None:
        self.value = self.add_weight(
            shape=(input_shape[-1],), initializer=keras.initializers.Constant(self.init), name="gamma"
        )

    def call(self, inputs: Any) -> Any:
        return inputs * self.value

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


@register
class SkipInit(LayerScale):
    """Trained scalar multiplier, initially 0: SkipInit (De & Smith 2020), ReZero (Bachlechner 2021)."""

    def __init__(self, init: float = 0.0, **kwargs: Any) -> None:
        super().__init__(init, **kwargs)

    def build(self, input_shape: Any) -> None:
        self.value = self.add_weight(shape=(), initializer=keras.initializers.Constant(self.init), name="gain")


@register
class Token(Parameter):
    """Trained tokens, prepended to a sequence: `(N, L, C)` -> `(N, count + L, C)`."""

    _arguments = ("count", "stddev")

    def __init__(self, count: int = 1, stddev: float = 1e-6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count, self.stddev = count, stddev

    def build(self, input_shape: Any) -> None:
        self.value = self.add_weight(
            shape=(1, self.count, input_shape[-1]),
            initializer=keras.initializers.RandomNormal(stddev=self.stddev),
            name="token",
        )

    def call(self, inputs: Any) -> Any:
        value = ops.cast(self.value, inputs.dtype)
        tokens = ops.broadcast_to(value, (ops.shape(inputs)[0], self.count, inputs.shape[-1]))
        return ops.concatenate([tokens, inputs], axis=1)

    def compute_output_shape(self, input_shape: Any) -> Any:
        length = input_shape[1] + self.count if input_shape[1] is not None else None
        return (input_shape[0], length, input_shape[2])


@register
class PositionEmbedding(Parameter):
    """Trained position embeddings, added to `(N, L, C)`. The first `prefix` positions are not on the grid.

    `grid` is stored so that weights trained at another image size can be resampled when they are loaded. A subclass
    with another order of axes overrides `grid_of` and `resampled`.
    """

    _arguments = ("grid", "prefix")

    def __init__(self, grid: tuple[int, ...], prefix: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grid, self.prefix = tuple(grid), prefix

    def build(self, input_shape: Any) -> None:
        self.value = self.add_weight(
            shape=(1, *input_shape[1:]), initializer=keras.initializers.TruncatedNormal(stddev=0.02), name="position"
        )

    def call(self, inputs: Any) -> Any:
        return inputs + self.value

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def grid_of(self, shape: Grid, stated: Grid | None = None, size: Grid | None = None) -> Grid | None:
        """Return the grid that an array for this layer was trained on, or `None` if it is unknown.

        192 patches may be 12 x 16 or 16 x 12. If the source states neither grid nor image size, a square number of
        patches is taken as a square grid, as in timm, unless the layer's grid has the same number in another shape.

        Args:
            shape: Shape of the array, `(1, prefix + patches, channels)`.
            stated: Grid stated by the source, if any.
            size: Image size stated by the source, if any.
        """
        count = shape[1] - self.prefix if len(shape) == 3 else 0
        if count < 1:
            return None
        if stated is not None and math.prod(stated) == count:
            return stated
        rank = len(self.grid)
        if rank == 1:
            return (count,)
        if size is not None and rank == len(size) and (found := patches_of(size, count)):
            return found
        square = (round(count ** (1 / rank)),) * rank
        if math.prod(square) != count or (math.prod(self.grid) == count and self.grid != square):
            return None
        return square

    def resampled(self, value: Any, grid: Grid) -> Any | None:
        """Resample an array from `grid` to the layer's grid, bicubic and antialiased as in timm.

        Returns `None` if either grid is not 2-D.
        """
        if len(grid) != 2 or len(self.grid) != 2:
            return None
        prefix, image = value[:, : self.prefix], value[:, self.prefix :].astype("float32")
        image = ops.image.resize(
            image.reshape(1, *grid, -1), self.grid, interpolation="bicubic", antialias=True, data_format="channels_last"
        )
        image = ops.convert_to_numpy(image).reshape(1, -1, value.shape[-1])
        return np.concatenate([prefix, image.astype(value.dtype)], axis=1)


def patches_of(size: Grid, count: int) -> Grid | None:
    """Return the number of whole patches along each axis of an image that has `count` square patches in total.

    Several patch sizes may result in this number, but all of them result in the same grid.
    """
    if min(size) < 1:
        return None
    side = int((math.prod(size) / count) ** (1 / len(size))) + 1
    while side > 0 and math.prod(length // side for length in size) < count:
        side -= 1
    grid = tuple(length // side for length in size) if side else ()
    return grid if math.prod(grid) == count else None


@register
class SplitHeads(keras.layers.Layer):
    """Split of one tensor `(N, L, parts * heads * D)` into `parts` tensors `(N, heads, L, D)`."""

    def __init__(self, heads: int, parts: int = 3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads, self.parts = heads, parts

    def call(self, inputs: Any) -> list[Any]:
        length, channels = ops.shape(inputs)[1], inputs.shape[2]
        x = ops.reshape(inputs, (-1, length, self.parts, self.heads, channels // (self.parts * self.heads)))
        return list(ops.unstack(ops.transpose(x, (2, 0, 3, 1, 4)), axis=0))

    def compute_output_shape(self, input_shape: Any) -> list[Any]:
        n, length, channels = input_shape
        return [(n, self.heads, length, channels // (self.parts * self.heads))] * self.parts

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "heads": self.heads, "parts": self.parts}


@register
class Attend(keras.layers.Layer):
    """Scaled dot-product attention of query, key and value `(N, heads, L, D)` -> `(N, L, heads * D)`."""

    def __init__(self, causal: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.causal = causal

    def call(self, inputs: list[Any]) -> Any:
        q, k, v = inputs
        x = ops.transpose(primitives.attention(q, k, v, self.causal), (0, 2, 1, 3))  # (N, L, heads, D)
        return ops.reshape(x, (-1, ops.shape(q)[2], q.shape[1] * v.shape[3]))

    def compute_output_shape(self, input_shape: Any) -> Any:
        (n, heads, length, _), (*_, depth) = input_shape[0], input_shape[2]
        return (n, length, heads * depth)

    def macs(self, query: Shape, key: Shape, value: Shape) -> int:
        """Count the multiply-accumulate operations per sample: of the scores and of the weighted sum of the values."""
        (_, heads, queries, depth), (_, _, keys, _), (*_, channels) = query, key, value
        return heads * queries * keys * (depth + channels)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "causal": self.causal}
