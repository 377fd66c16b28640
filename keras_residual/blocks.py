"""The blocks residual networks are made of: functions from Functional-API tensors to tensors.

Every block of every family, convolutional or Transformer, ends in :func:`residual`, the one equation of this
package: `activation(shortcut + drop_path(scale(branch)))`. Tensors are channels last, `(N, *spatial, C)`; the rank
of a convolution, pooling or normalisation is the tensor's. `name` prefixes the names of the layers that a block
creates; left out, a fresh one is made up.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import keras
from keras import ops

from keras_residual import layers

__all__ = [
    "activate",
    "attention",
    "attention_block",
    "average_pool",
    "basic",
    "batch_norm",
    "blur_pool",
    "bottleneck",
    "conv_norm",
    "convnext",
    "convolution",
    "dense",
    "depthwise",
    "drop_path_rates",
    "efficient_channel_attention",
    "group_norm",
    "identity",
    "layer_norm",
    "max_pool",
    "mlp",
    "mlp_block",
    "pad",
    "padded_identity",
    "patches",
    "plain_basic",
    "pointwise",
    "pooled_projection",
    "preact_basic",
    "preact_bottleneck",
    "projection",
    "residual",
    "rms_norm",
    "simple_norm",
    "split_swiglu",
    "squeeze_excite",
    "swiglu",
]

Tensor = Any  # a KerasTensor while a model is built; backends' tensors work too
Activation = str | Callable[[Any], Any] | None


class Norm(Protocol):
    """A normalisation: `norm(x, name=..., zero_init=False)`."""

    def __call__(self, x: Tensor, *, name: str, zero_init: bool = False) -> Tensor: ...


class Shortcut(Protocol):
    """A shortcut that may change shape: `shortcut(x, filters, stride=..., norm=..., name=...)`."""

    def __call__(self, x: Tensor, filters: int, *, stride: int, norm: Norm, name: str) -> Tensor: ...


class PreactShortcut(Protocol):
    """A projection of what the first norm and activation put out: `shortcut(y, filters, stride=..., conv=...)`."""

    def __call__(self, y: Tensor, filters: int, *, stride: int, conv: Callable[..., Tensor], name: str) -> Tensor: ...


class Attention(Protocol):
    """Channel attention at the end of a branch: `attention(x, name=...)`."""

    def __call__(self, x: Tensor, *, name: str) -> Tensor: ...


class Downsample(Protocol):
    """Anti-aliased subsampling in place of a stride: `downsample(x, stride, name=...)`."""

    def __call__(self, x: Tensor, stride: int, *, name: str) -> Tensor: ...


# ---------------------------------------------------------------------------------------------- the one equation


def residual(
    shortcut: Tensor,
    branch: Tensor,
    *,
    scale: float | Callable[[Tensor], Tensor] | None = None,
    drop_path: float = 0.0,
    activation: Activation = None,
    name: str | None = None,
) -> Tensor:
    """`activation(shortcut + drop_path(scale(branch)))`: the end of every residual block (He et al. 2016, eq. 1-2).

    Args:
        shortcut: `h(x)`, of shape `(N, ..., C)`: the input itself, or its projection.
        branch: `F(x)`, of exactly the same shape.
        scale: What multiplies the branch: a fixed number, or a layer such as `layers.LayerScale()` (CaiT) or
            `layers.SkipInit()` (SkipInit, ReZero).
        drop_path: Stochastic depth (Huang et al. 2016): the probability that a sample skips the branch in training.
        activation: `f`, applied to the sum. `None` keeps the stream linear, as in pre-activation networks.
        name: Prefix of the layers' names.

    Returns:
        A tensor of the common shape.

    Raises:
        TypeError: If a layer, a model or anything else that is no tensor comes where a tensor belongs.
        ValueError: If the shapes differ, the rate is not in [0, 1), or the activation is unknown.
    """
    name = _name(name, "residual")
    _require_tensor(shortcut, "shortcut", name)
    _require_tensor(branch, "branch", name)
    if len(shortcut.shape) != len(branch.shape) or any(
        a is not None and b is not None and a != b for a, b in zip(shortcut.shape, branch.shape, strict=True)
    ):
        raise ValueError(_explain_mismatch(tuple(shortcut.shape), tuple(branch.shape), name))
    if isinstance(scale, (str, type)):
        raise TypeError(
            f"{name}: `scale` is a number or a layer, such as keras_residual.layers.LayerScale(). Received: {scale!r}."
        )
    if callable(scale):
        branch = scale(branch)
    elif scale is not None:
        branch = keras.layers.Rescaling(scale, name=f"{name}.scale")(branch)
    branch = _drop_path(branch, drop_path, name)
    x = keras.layers.Add(name=f"{name}.add")([shortcut, branch])
    return activate(x, activation, name=f"{name}.act")


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Stochastic-depth rates of `depth` blocks, growing linearly from 0 to `last` (Huang et al. 2016, section 3)."""
    _require_rate(last, "drop_path")
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def _drop_path(x: Tensor, rate: float, name: str) -> Tensor:
    _require_rate(rate, "drop_path")
    # The layer stays at rate 0, so that the graph never depends on the rate.
    noise_shape = (None,) + (1,) * (len(x.shape) - 1)
    return keras.layers.Dropout(rate, noise_shape=noise_shape, name=f"{name}.drop_path")(x)


# ------------------------------------------------------------------------------------ convolutions, norms, pooling


def conv_norm(
    x: Tensor,
    filters: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    norm: Norm | None = None,
    activation: Activation = None,
    zero_init: bool = False,
    name: str | None = None,
    names: tuple[str, str, str] = ("conv", "bn", "act"),
) -> Tensor:
    """Convolution, normalisation, activation: `(N, *spatial, C)` -> `(N, *ceil(spatial / stride), filters)`.

    Padding is symmetric, as in torch (Keras' "same" shifts strided convolutions by a pixel). The convolution
    has a bias only where no normalisation follows.

    Args:
        x: A tensor of rank 3, 4 or 5: the convolution is 1-D, 2-D or 3-D.
        filters: Number of output channels.
        kernel: Odd kernel size, the same along each axis.
        stride: Step, the same along each axis.
        groups: Number of channel groups (ResNeXt's cardinality).
        dilation: Spacing of the kernel's taps.
        norm: `batch_norm`, `group_norm`, ... or `None`.
        activation: Applied last; `None` for linear.
        zero_init: Start the normalisation's scale at 0, so that the branch it ends starts as nothing
            (Goyal et al. 2017).
        name: Prefix of the layers' names.
        names: Names of convolution, normalisation and activation below the prefix.
    """
    name = _name(name, "conv_norm")
    conv_name, norm_name, act_name = (f"{name}.{n}" if name else n for n in names)
    x = convolution(
        x, filters, kernel, stride=stride, groups=groups, dilation=dilation, bias=norm is None, name=conv_name
    )
    if norm is not None:
        _require_function(norm, "norm", norm_name)
        x = norm(x, name=norm_name, zero_init=zero_init)
    return activate(x, activation, name=act_name)


def convolution(
    x: Tensor,
    filters: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    dilation: int = 1,
    bias: bool = True,
    standardize: float | None = None,
    initializer: Any = None,
    name: str,
) -> Tensor:
    """The bare convolution of `conv_norm`.

    `standardize` is the epsilon of weight standardisation (Qiao et al. 2019), `None` for none.
    """
    rank = _spatial_rank(x, name)
    _require_sizes(name, filters=filters, kernel=kernel, stride=stride, groups=groups, dilation=dilation)
    if kernel % 2 == 0:
        raise ValueError(
            f"{name}: a kernel has an odd size, so that it has a middle: an even one would shift the image against its "
            f"shortcut. Received: kernel={kernel}. To cut an image into patches use blocks.patches."
        )
    if x.shape[-1] % groups or filters % groups:
        raise ValueError(
            f"{name}: input and output channels must be multiples of the number of groups. Received: "
            f"{x.shape[-1]} input channels, {filters} output channels, groups={groups}."
        )
    if kernel > 1 and stride > 1:
        x = pad(x, dilation * (kernel - 1) // 2, name=f"{name}.pad")
    elif kernel == 1 and stride > 1 and x.shape[-1] < 16:
        # oneDNN crashes the process on strided 1x1 convolutions of few channels (oneDNN #6035): subsample first.
        x = _pooling("Max", rank)(1, stride, name=f"{name}.subsample")(x)
        stride = 1
    own: dict[str, Any] = {}
    if standardize is not None:
        conv: Any = getattr(layers, f"StandardizedConv{rank}D")
        own["epsilon"] = standardize
    else:
        conv = getattr(layers, f"Conv{rank}D") if groups > 1 else _keras("Conv{}D", rank)
    return conv(
        filters,
        kernel,
        strides=stride,
        padding="valid" if stride > 1 else "same",
        groups=groups,
        dilation_rate=dilation,
        use_bias=bias,
        kernel_initializer=initializer or keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        name=name,
        **own,
    )(x)


def depthwise(x: Tensor, kernel: int, *, name: str) -> Tensor:
    """A convolution of each channel by itself, of stride 1 and with a bias: `(N, *spatial, C)` -> the same."""
    rank, initializer = _spatial_rank(x, name), keras.initializers.TruncatedNormal(stddev=0.02)
    if rank == 3:  # Keras has no such layer
        return convolution(x, x.shape[-1], kernel, groups=x.shape[-1], initializer=initializer, name=name)
    return _keras("DepthwiseConv{}D", rank)(kernel, padding="same", depthwise_initializer=initializer, name=name)(x)


def patches(
    x: Tensor,
    filters: int,
    size: int,
    *,
    bias: bool = True,
    initializer: Any = None,
    name: str,
    layer: str = "proj",
) -> Tensor:
    """Cuts `(N, *spatial, C)` into patches of `size` along each axis and projects each to `filters` channels."""
    conv = _keras("Conv{}D", _spatial_rank(x, name))
    initializer = initializer or keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
    return conv(filters, size, size, use_bias=bias, kernel_initializer=initializer, name=f"{name}.{layer}")(x)


def batch_norm(x: Tensor, *, name: str, zero_init: bool = False) -> Tensor:
    """Batch normalisation with torch's momentum, epsilon and running variance; see `layers.BatchNorm`."""
    return layers.BatchNorm(gamma_initializer="zeros" if zero_init else "ones", name=name)(x)


def group_norm(x: Tensor, *, name: str, zero_init: bool = False, groups: int = 32) -> Tensor:
    """Group normalisation (Wu & He 2018): independent of the batch."""
    if x.shape[-1] % groups:
        raise ValueError(
            f"{name}: the channels must be a multiple of the number of groups. Received: {x.shape[-1]} channels, "
            f"groups={groups}. Use functools.partial(group_norm, groups=...)."
        )
    gamma = "zeros" if zero_init else "ones"
    return layers.GroupNorm(groups, gamma_initializer=gamma, name=name)(x)


def layer_norm(x: Tensor, *, name: str, zero_init: bool = False, epsilon: float = 1e-6) -> Tensor:
    """Layer normalisation over the channels."""
    gamma = "zeros" if zero_init else "ones"
    return layers.LayerNorm(epsilon=epsilon, gamma_initializer=gamma, name=name)(x)


def rms_norm(x: Tensor, *, name: str, zero_init: bool = False, epsilon: float = 1e-6) -> Tensor:
    """Root-mean-square normalisation over the channels (Zhang & Sennrich 2019)."""
    if zero_init:
        raise ValueError(f"{name}: Keras' RMSNormalization always starts at scale 1. Use layer_norm with zero_init.")
    return keras.layers.RMSNormalization(epsilon=epsilon, name=name)(x)


def simple_norm(x: Tensor, *, name: str, zero_init: bool = False, epsilon: float = 1e-6) -> Tensor:
    """Division by the standard deviation of the channels; see `layers.SimpleNorm`."""
    if zero_init:
        raise ValueError(f"{name}: SimpleNorm always starts at scale 1. Use layer_norm with zero_init.")
    return layers.SimpleNorm(epsilon, name=name)(x)


def pad(x: Tensor, width: int, *, name: str) -> Tensor:
    """Adds `width` zeros on both sides of each spatial axis."""
    return _keras("ZeroPadding{}D", _spatial_rank(x, name))(width, name=name)(x)


def max_pool(x: Tensor, size: int = 3, stride: int = 2, *, name: str) -> Tensor:
    """Max pooling with torch's symmetric padding; padding never wins, also where activations are negative."""
    rank, width = _spatial_rank(x, name), (size - 1) // 2
    x = ops.pad(x, [(0, 0), *[(width, width)] * rank, (0, 0)], constant_values=float("-inf"))
    return _pooling("Max", rank)(size, stride, name=name)(x)


def average_pool(x: Tensor, stride: int = 2, *, name: str) -> Tensor:
    """Average pooling of size `stride`: plain anti-aliased subsampling."""
    return _pooling("Average", _spatial_rank(x, name))(stride, stride, name=name)(x)


def blur_pool(x: Tensor, stride: int = 2, *, name: str) -> Tensor:
    """Binomial 3x3 blur, then subsampling (Zhang 2019); see `layers.BlurPool`."""
    return layers.BlurPool(stride, name=name)(x)


def activate(x: Tensor, activation: Activation, *, name: str) -> Tensor:
    """Applies an activation by name or function; `None` returns `x`.

    Raises:
        ValueError: If Keras and this package know no activation of that name.
    """
    if activation is None:
        return x
    own = {"gelu": layers.gelu, "quick_gelu": layers.quick_gelu, "gelu_tanh": layers.gelu_tanh}
    function = activation
    if isinstance(activation, str):
        try:
            function = own.get(activation) or keras.activations.get(activation)
        except ValueError:
            function = None
    if not callable(function) or isinstance(function, type):
        known = {n for n in dir(keras.activations) if n[0] != "_"} - {"get", "serialize", "deserialize"}
        raise ValueError(
            f"{name}: an activation is a function or one of the known names. Received: {activation!r}. "
            f"Known: {', '.join(sorted({*known, *own}))}."
        )
    return keras.layers.Activation(function, name=name)(x)


# ------------------------------------------------------------------------------------------------------- shortcuts


def identity(x: Tensor, filters: int, *, stride: int = 1, norm: Norm = batch_norm, name: str = "") -> Tensor:
    """`h(x) = x`: the shortcut of every block that keeps the shape."""
    return x


def projection(
    x: Tensor, filters: int, *, stride: int = 1, norm: Norm = batch_norm, name: str | None = None, kernel: int = 1
) -> Tensor:
    """`h(x) = W x`, a strided 1x1 convolution and a norm: the shortcut where the shape changes (He et al. 2016, B)."""
    kernel = kernel if stride > 1 else 1
    name = _name(name, "projection")
    return conv_norm(x, filters, kernel, stride=stride, norm=norm, name=name, names=("0", "1", "act"))


def pooled_projection(
    x: Tensor, filters: int, *, stride: int = 1, norm: Norm = batch_norm, name: str | None = None
) -> Tensor:
    """Average pooling, then a 1x1 convolution: no value of `x` is thrown away (He et al. 2019, ResNet-D)."""
    name = _name(name, "projection")
    if stride > 1:
        # "same" is torch's ceil mode: windows that hang over the edge average what they cover.
        x = _pooling("Average", _spatial_rank(x, name))(stride, stride, padding="same", name=f"{name}.0")(x)
    return conv_norm(x, filters, 1, norm=norm, name=name, names=("1", "2", "act"))


def padded_identity(
    x: Tensor, filters: int, *, stride: int = 1, norm: Norm = batch_norm, name: str | None = None
) -> Tensor:
    """Subsampling, then zeros for the new channels: a shortcut without parameters (He et al. 2016, option A)."""
    name, rank = _name(name, "shortcut"), _spatial_rank(x, "padded_identity")
    if stride > 1:
        x = _pooling("Max", rank)(1, stride, name=f"{name}.subsample")(x)
    missing = filters - x.shape[-1]
    if missing < 0:
        raise ValueError(
            f"{name}: zeros can only add channels. Received: {x.shape[-1]} channels, filters={filters}. Use projection."
        )
    return ops.pad(x, [(0, 0)] * (rank + 1) + [(missing // 2, missing - missing // 2)]) if missing else x


def _shortcut(x: Tensor, filters: int, stride: int, project: Shortcut, norm: Norm, name: str) -> Tensor:
    if stride == 1 and x.shape[-1] == filters:
        return x
    _require_function(project, "shortcut", name)
    return project(x, filters, stride=stride, norm=norm, name=f"{name}.downsample")


# ----------------------------------------------------------------------------------------------- channel attention


def squeeze_excite(x: Tensor, *, name: str | None = None, ratio: float = 1 / 16, bias: bool = True) -> Tensor:
    """Squeeze-and-excitation (Hu et al. 2018): each channel is scaled by a gate that sees all channels' means."""
    name = _name(name, "se")
    reduced = max(8, int(x.shape[-1] * ratio + 4) // 8 * 8)  # a multiple of 8, as timm rounds
    gate = _pooling("GlobalAverage", _spatial_rank(x, name))(keepdims=True, name=f"{name}.pool")(x)
    gate = activate(convolution(gate, reduced, 1, bias=bias, name=f"{name}.fc1"), "relu", name=f"{name}.act")
    gate = activate(convolution(gate, x.shape[-1], 1, bias=bias, name=f"{name}.fc2"), "sigmoid", name=f"{name}.gate")
    return keras.layers.Multiply(name=f"{name}.scale")([x, gate])


def efficient_channel_attention(x: Tensor, *, name: str | None = None) -> Tensor:
    """ECA (Wang et al. 2020): gates from a short 1-D convolution across the channels' means."""
    name, rank, channels = _name(name, "eca"), _spatial_rank(x, "eca"), x.shape[-1]
    size = int(abs(math.log2(channels) + 1) / 2)
    gate = _pooling("GlobalAverage", rank)(name=f"{name}.pool")(x)
    gate = keras.layers.Reshape((channels, 1), name=f"{name}.channels")(gate)
    gate = convolution(gate, 1, max(size if size % 2 else size + 1, 3), bias=False, name=f"{name}.conv")
    gate = activate(gate, "sigmoid", name=f"{name}.gate")
    gate = keras.layers.Reshape((1,) * rank + (channels,), name=f"{name}.broadcast")(gate)
    return keras.layers.Multiply(name=f"{name}.scale")([x, gate])


# --------------------------------------------------------------------------------------------- convolutional blocks


def basic(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    shortcut: Shortcut = projection,
    attention: Attention | None = None,
    downsample: Downsample | None = None,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    drop_path: float = 0.0,
    zero_init: bool = True,
    name: str | None = None,
) -> Tensor:
    """Two 3x3 convolutions and a shortcut (He et al. 2016, figure 5 left): `(N, *spatial, C)` ->
    `(N, *ceil(spatial / stride), filters)`."""
    name = _name(name, "basic")
    y = _basic_branch(x, filters, stride, downsample, norm, activation, zero_init, name)
    y = _attended(y, attention, name)
    h = _shortcut(x, filters, stride, shortcut, norm, name)
    return residual(h, y, drop_path=drop_path, activation=activation, name=name)


def plain_basic(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    name: str | None = None,
    **residual_only: Any,
) -> Tensor:
    """`basic` without its skip: the plain network that residual learning is compared with (He et al. 2016).

    Options that only a residual block has (`shortcut`, `drop_path`, `zero_init`) are accepted and mean nothing.
    """
    name = _name(name, "plain")
    y = _basic_branch(x, filters, stride, None, norm, activation, False, name)
    return activate(y, activation, name=f"{name}.act")


def _attended(y: Tensor, attention: Attention | None, name: str) -> Tensor:
    if attention is None:
        return y
    _require_function(attention, "attention", name)
    return attention(y, name=f"{name}.se")


def _basic_branch(
    x: Tensor,
    filters: int,
    stride: int,
    downsample: Downsample | None,
    norm: Norm,
    activation: Activation,
    zero_init: bool,
    name: str,
) -> Tensor:
    step = 1 if downsample else stride
    y = conv_norm(
        x, filters, 3, stride=step, norm=norm, activation=activation, name=name, names=("conv1", "bn1", "act1")
    )
    if downsample and stride > 1:
        y = downsample(y, stride, name=f"{name}.aa")
    return conv_norm(y, filters, 3, norm=norm, zero_init=zero_init, name=name, names=("conv2", "bn2", ""))


def bottleneck(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    width: int | None = None,
    groups: int = 1,
    reduce_first: int = 1,
    stride_in: str = "3x3",
    shortcut: Shortcut = projection,
    attention: Attention | None = None,
    downsample: Downsample | None = None,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    drop_path: float = 0.0,
    zero_init: bool = True,
    name: str | None = None,
) -> Tensor:
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al. 2016, figure 5 right): `(N, *spatial, C)` ->
    `(N, *ceil(spatial / stride), filters)`.

    Args:
        x: The block's input.
        filters: Output channels.
        stride: Step of the block.
        width: Channels inside; `filters // 4` if `None`.
        groups: Groups of the 3x3 convolution (ResNeXt).
        reduce_first: Divides the first convolution's channels (SENet-154).
        stride_in: Which convolution strides: `"3x3"` (v1.5) or `"1x1"` (the first, as in the paper).
        shortcut: Used where the shape changes.
        attention: Channel attention at the end of the branch.
        downsample: Anti-aliased subsampling in place of the 3x3 convolution's stride.
        norm: Normalisation after each convolution.
        activation: After each normalisation and after the addition.
        drop_path: Stochastic-depth rate.
        zero_init: Start the last normalisation's scale at 0.
        name: Prefix of the layers' names.
    """
    if stride_in not in ("3x3", "1x1"):
        raise ValueError(f"stride_in is '3x3' (v1.5) or '1x1' (the original v1). Received: {stride_in!r}.")
    name = _name(name, "bottleneck")
    _require_sizes(name, filters=filters, stride=stride)
    width = width or filters // 4
    use = partial(conv_norm, norm=norm, name=name)
    first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
    y = use(x, width // reduce_first, 1, stride=first, activation=activation, names=("conv1", "bn1", "act1"))
    y = use(
        y,
        width,
        3,
        stride=1 if downsample else second,
        groups=groups,
        activation=activation,
        names=("conv2", "bn2", "act2"),
    )
    if downsample and second > 1:
        y = downsample(y, second, name=f"{name}.aa")
    y = use(y, filters, 1, zero_init=zero_init, names=("conv3", "bn3", ""))
    y = _attended(y, attention, name)
    h = _shortcut(x, filters, stride, shortcut, norm, name)
    return residual(h, y, drop_path=drop_path, activation=activation, name=name)


def preact_basic(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    shortcut: PreactShortcut | None = None,
    conv: Callable[..., Tensor] = convolution,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    dropout: float = 0.0,
    drop_path: float = 0.0,
    name: str | None = None,
    norms: str = "bn",
) -> Tensor:
    """Norm, activation, 3x3 convolution, twice, and a shortcut that nothing touches (He et al. 2016b, figure 1b).

    Where the shape changes, the first norm and activation are shared by branch and projection, as in the paper.
    `dropout` between the convolutions is Wide ResNet's (Zagoruyko & Komodakis 2016). `conv` makes every convolution,
    as `convolution` does; `shortcut` projects, by default with one of 1x1; `norms` begins the norms' names.
    """
    name = _name(name, "preact")
    _require_rate(dropout, "dropout")
    y, h = _preact(x, filters, stride, shortcut, conv, norm, activation, name, norms)
    y = conv(y, filters, 3, stride=stride, bias=False, name=f"{name}.conv1")
    y = activate(norm(y, name=f"{name}.{norms}2"), activation, name=f"{name}.act2")
    y = keras.layers.Dropout(dropout, name=f"{name}.dropout")(y)
    y = conv(y, filters, 3, bias=False, name=f"{name}.conv2")
    return residual(h, y, drop_path=drop_path, name=name)


def preact_bottleneck(
    x: Tensor,
    filters: int,
    *,
    stride: int = 1,
    shortcut: PreactShortcut | None = None,
    conv: Callable[..., Tensor] = convolution,
    norm: Norm = batch_norm,
    activation: Activation = "relu",
    drop_path: float = 0.0,
    name: str | None = None,
    norms: str = "bn",
) -> Tensor:
    """Pre-activation bottleneck of 1x1, 3x3 and 1x1 convolutions (He et al. 2016b); see `preact_basic`."""
    name = _name(name, "preact")
    _require_sizes(name, filters=filters, stride=stride)
    width = filters // 4
    y, h = _preact(x, filters, stride, shortcut, conv, norm, activation, name, norms)
    y = conv(y, width, 1, bias=False, name=f"{name}.conv1")
    y = activate(norm(y, name=f"{name}.{norms}2"), activation, name=f"{name}.act2")
    y = conv(y, width, 3, stride=stride, bias=False, name=f"{name}.conv2")
    y = activate(norm(y, name=f"{name}.{norms}3"), activation, name=f"{name}.act3")
    y = conv(y, filters, 1, bias=False, name=f"{name}.conv3")
    return residual(h, y, drop_path=drop_path, name=name)


def _preact(
    x: Tensor,
    filters: int,
    stride: int,
    shortcut: PreactShortcut | None,
    conv: Callable[..., Tensor],
    norm: Norm,
    activation: Activation,
    name: str,
    norms: str,
) -> tuple[Tensor, Tensor]:
    _require_tensor(x, "x", name)
    _require_function(norm, "norm", name)
    y = activate(norm(x, name=f"{name}.{norms}1"), activation, name=f"{name}.act1")
    if stride == 1 and x.shape[-1] == filters:
        return y, x
    if shortcut is not None:
        _require_function(shortcut, "shortcut", name)
        return y, shortcut(y, filters, stride=stride, conv=conv, name=f"{name}.downsample")
    return y, conv(y, filters, 1, stride=stride, bias=False, name=f"{name}.downsample")


def convnext(
    x: Tensor,
    *,
    kernel: int = 7,
    hidden: int | None = None,
    feed_forward: Callable[..., Tensor] | None = None,
    norm: Norm = layer_norm,
    activation: Activation = "gelu",
    scale: float | None = 1e-6,
    drop_path: float = 0.0,
    name: str | None = None,
) -> Tensor:
    """`x + drop_path(scale * mlp(norm(depthwise(x))))` (Liu et al. 2022, figure 4): `(N, *spatial, C)` -> the same.

    Args:
        x: The block's input.
        kernel: Size of the depthwise convolution.
        hidden: Channels inside the MLP; four times C if `None`.
        feed_forward: `mlp`, also the default, or with options, such as `partial(mlp, response_norm=True)` of
            ConvNeXt V2.
        norm: Normalisation before the MLP.
        activation: Activation of the MLP.
        scale: LayerScale's initial value; `None` for no LayerScale.
        drop_path: Stochastic-depth rate.
        name: Prefix of the layers' names.
    """
    name = _name(name, "convnext")
    _require_function(norm, "norm", name)
    y = norm(depthwise(x, kernel, name=f"{name}.conv_dw"), name=f"{name}.norm")
    y = (feed_forward or mlp)(y, hidden or 4 * x.shape[-1], activation=activation, name=f"{name}.mlp")
    return residual(x, y, scale=_layer_scale(scale, name), drop_path=drop_path, name=name)


# ----------------------------------------------------------------------------------------------- Transformer blocks


def dense(x: Tensor, units: int, *, bias: bool = True, name: str) -> Tensor:
    """A dense layer on the last axis, initialised as Vision Transformers are."""
    initializer = keras.initializers.TruncatedNormal(stddev=0.02)
    return keras.layers.Dense(units, use_bias=bias, kernel_initializer=initializer, name=name)(x)


def pointwise(x: Tensor, units: int, *, bias: bool = True, name: str) -> Tensor:
    """`dense`, stored as the 1x1 convolution that timm makes of it; see `layers.PointwiseDense`."""
    initializer = keras.initializers.TruncatedNormal(stddev=0.02)
    return layers.PointwiseDense(units, use_bias=bias, kernel_initializer=initializer, name=name)(x)


def attention(
    x: Tensor,
    heads: int,
    *,
    qkv_bias: bool = True,
    proj_bias: bool = True,
    qk_norm: Norm | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    name: str | None = None,
) -> Tensor:
    """Multi-head self-attention (Vaswani et al. 2017) of `(N, L, C)`, with one matrix for query, key and value.

    Args:
        x: Tokens `(N, L, C)`.
        heads: Number of heads; divides C.
        qkv_bias: Whether the first projection has a bias.
        proj_bias: Whether the last projection has a bias.
        qk_norm: Normalisation of each head's query and key (Dehghani et al. 2023).
        causal: Whether a token sees only itself and the tokens before it.
        dropout: Rate of dropout after the last projection.
        name: Prefix of the layers' names.
    """
    name = _name(name, "attention")
    _require_tensor(x, "x", name)
    _require_rate(dropout, "dropout")
    _require_sizes(name, heads=heads)
    if len(x.shape) != 3:
        raise ValueError(
            f"{name}: attention takes a sequence, (N, L, C). Received: shape {tuple(x.shape)}. Of an image make one by "
            "keras.layers.Reshape((height * width, channels)), or blocks.patches and a Reshape."
        )
    if x.shape[-1] % heads:
        raise ValueError(
            f"{name}: the channels must be a multiple of the number of heads. Received: {x.shape[-1]} channels, "
            f"heads={heads}."
        )
    q, k, v = layers.SplitHeads(heads, name=f"{name}.heads")(
        dense(x, 3 * x.shape[-1], bias=qkv_bias, name=f"{name}.qkv")
    )
    if qk_norm is not None:
        q, k = qk_norm(q, name=f"{name}.q_norm"), qk_norm(k, name=f"{name}.k_norm")
    y = layers.Attend(causal, name=f"{name}.attend")([q, k, v])
    y = dense(y, x.shape[-1], bias=proj_bias, name=f"{name}.proj")
    return keras.layers.Dropout(dropout, name=f"{name}.proj_drop")(y)


def mlp(
    x: Tensor,
    hidden: int,
    *,
    activation: Activation = "gelu",
    linear: Callable[..., Tensor] = dense,
    response_norm: bool = False,
    dropout: float = 0.0,
    name: str | None = None,
) -> Tensor:
    """Two dense layers on the last axis: `(..., C)` -> `(..., hidden)` -> `(..., C)`.

    `linear` is `dense` or `pointwise`; `response_norm` puts a `layers.GlobalResponseNorm` before the second one.
    """
    name = _name(name, "mlp")
    _require_tensor(x, "x", name)
    _require_rate(dropout, "dropout")
    y = activate(linear(x, hidden, name=f"{name}.fc1"), activation, name=f"{name}.act")
    y = keras.layers.Dropout(dropout, name=f"{name}.drop1")(y)
    if response_norm:
        y = layers.GlobalResponseNorm(name=f"{name}.grn")(y)
    y = linear(y, x.shape[-1], name=f"{name}.fc2")
    return keras.layers.Dropout(dropout, name=f"{name}.drop2")(y)


def swiglu(
    x: Tensor, hidden: int, *, activation: Activation = "silu", dropout: float = 0.0, name: str | None = None
) -> Tensor:
    """Gated MLP (Shazeer 2020): `fc2(silu(a) * b)`, where `fc1` gives `a` and `b` of `hidden // 2` channels each."""
    name = _name(name, "mlp")
    _require_tensor(x, "x", name)
    _require_rate(dropout, "dropout")
    if hidden % 2:
        raise ValueError(f"{name}: hidden is even: one half gates the other. Received: hidden={hidden}.")
    a, b = ops.split(dense(x, hidden, name=f"{name}.fc1"), 2, axis=-1)
    y = keras.layers.Multiply(name=f"{name}.gate")([activate(a, activation, name=f"{name}.act"), b])
    y = keras.layers.Dropout(dropout, name=f"{name}.drop1")(y)
    y = dense(y, x.shape[-1], name=f"{name}.fc2")
    return keras.layers.Dropout(dropout, name=f"{name}.drop2")(y)


def split_swiglu(
    x: Tensor,
    hidden: int,
    *,
    activation: Activation = "silu",
    bias: bool = True,
    dropout: float = 0.0,
    name: str | None = None,
) -> Tensor:
    """Gated MLP with a matrix for each half: `fc2(silu(fc1_g(x)) * fc1_x(x))`, both of `hidden` channels."""
    name = _name(name, "mlp")
    _require_tensor(x, "x", name)
    _require_rate(dropout, "dropout")
    a = activate(dense(x, hidden, bias=bias, name=f"{name}.fc1_g"), activation, name=f"{name}.act")
    b = dense(x, hidden, bias=bias, name=f"{name}.fc1_x")
    y = keras.layers.Multiply(name=f"{name}.gate")([a, b])
    y = keras.layers.Dropout(dropout, name=f"{name}.drop1")(y)
    y = dense(y, x.shape[-1], bias=bias, name=f"{name}.fc2")
    return keras.layers.Dropout(dropout, name=f"{name}.drop2")(y)


def attention_block(
    x: Tensor,
    heads: int,
    *,
    norm: Norm = layer_norm,
    scale: float | None = None,
    drop_path: float = 0.0,
    name: str | None = None,
    names: tuple[str, str, str] = ("norm1", "attn", "ls1"),
    **options: Any,
) -> Tensor:
    """`x + drop_path(scale * attention(norm(x)))`: the first half of a pre-norm Transformer block.

    `scale` is LayerScale's initial value (`None`: no LayerScale); `options` go to `attention`.
    """
    name = _name(name, "block")
    _require_function(norm, "norm", name)
    norm_name, attention_name, scale_name = (f"{name}.{n}" for n in names)
    y = attention(norm(x, name=norm_name), heads, name=attention_name, **options)
    return residual(x, y, scale=_layer_scale(scale, scale_name), drop_path=drop_path, name=attention_name + ".residual")


def mlp_block(
    x: Tensor,
    hidden: int,
    *,
    feed_forward: Callable[..., Tensor] = mlp,
    norm: Norm = layer_norm,
    scale: float | None = None,
    drop_path: float = 0.0,
    name: str | None = None,
    names: tuple[str, str, str] = ("norm2", "mlp", "ls2"),
    **options: Any,
) -> Tensor:
    """`x + drop_path(scale * mlp(norm(x)))`: the second half of a pre-norm Transformer block.

    `feed_forward` is `mlp`, `swiglu` or `split_swiglu`; `scale` is LayerScale's initial value; `options` go to
    `feed_forward`.
    """
    name = _name(name, "block")
    _require_function(norm, "norm", name)
    norm_name, mlp_name, scale_name = (f"{name}.{n}" for n in names)
    y = feed_forward(norm(x, name=norm_name), hidden, name=mlp_name, **options)
    return residual(x, y, scale=_layer_scale(scale, scale_name), drop_path=drop_path, name=mlp_name + ".residual")


def _layer_scale(init: float | None, name: str) -> layers.LayerScale | None:
    return None if init is None else layers.LayerScale(init, name=f"{name}.gamma")


# ----------------------------------------------------------------------------------------------------------- rules


def _name(name: str | None, kind: str) -> str:
    return f"{kind}_{keras.backend.get_uid(kind)}" if name is None else name


def _keras(template: str, rank: int) -> Any:
    return getattr(keras.layers, template.format(rank))


def _pooling(kind: str, rank: int) -> Any:
    return _keras(f"{kind}Pooling{{}}D", rank)


def _spatial_rank(x: Tensor, name: str) -> int:
    _require_tensor(x, "x", name)
    rank = len(x.shape) - 2
    if rank not in (1, 2, 3):
        raise ValueError(
            f"{name}: convolutions take (N, steps, C), (N, H, W, C) or (N, D, H, W, C). Received: shape "
            f"{tuple(x.shape)}. Networks for vectors are built from dense layers: see ResidualMLP."
        )
    return rank


def _require_sizes(name: str, **sizes: Any) -> None:
    for what, size in sizes.items():
        if isinstance(size, bool) or not hasattr(size, "__index__") or size < 1:
            raise ValueError(f"{name}: {what} is one positive integer. Received: {what}={size!r}.")


def _require_function(value: Any, what: str, name: str) -> None:
    if not callable(value) or isinstance(value, (type, keras.layers.Layer)):
        raise TypeError(
            f"{name}: `{what}` is a function that makes a new layer each time it is called, such as "
            f"{_FUNCTIONS[what]}. Received: {value!r}."
        )


_FUNCTIONS = {
    "norm": "keras_residual.blocks.batch_norm, or lambda x, name, zero_init=False: MyLayer(name=name)(x)",
    "shortcut": "keras_residual.blocks.projection",
    "attention": "keras_residual.blocks.squeeze_excite",
    "stem": "keras_residual.models.resnet.small_stem",
}


def _require_rate(rate: float, what: str) -> None:
    if not isinstance(rate, numbers.Real) or not 0 <= rate < 1:
        raise ValueError(f"{what} is a probability, 0 <= {what} < 1. Received: {rate!r}.")


def _require_tensor(x: Any, what: str, name: str) -> None:
    if isinstance(x, (keras.layers.Layer, type)):
        kind = "Sequential model" if isinstance(x, keras.Sequential) else type(x).__name__
        raise TypeError(
            f"{name}: `{what}` must be a tensor. Received: a {kind}. A residual block is a function of its input, "
            "called on a tensor of the Functional API; a Sequential model has no place for a skip. Write:\n"
            "    inputs = keras.Input((224, 224, 3))\n"
            "    x = keras_residual.blocks.basic(inputs, 64)\n"
            "    model = keras.Model(inputs, x)"
        )
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(
            f"{name}: `{what}` must be a tensor, such as keras.Input(...) or a layer's output. Received: {x!r}."
        )


def _explain_mismatch(shortcut: tuple[Any, ...], branch: tuple[Any, ...], name: str) -> str:
    advice = []
    if len(shortcut) == len(branch):
        if shortcut[-1] != branch[-1]:
            advice.append(f"project the shortcut to {branch[-1]} channels: blocks.projection(x, {branch[-1]}, ...)")
        steps = {
            math.ceil(a / b) if a >= b else 0 for a, b in zip(shortcut[1:-1], branch[1:-1], strict=True) if a and b
        } - {1}
        if steps == {0}:
            advice.append(
                "the branch is larger than its input: give the shortcut an upsampling, or remove the branch's"
            )
        elif steps:
            stride = max(steps)
            advice.append(f"give the shortcut the branch's stride: blocks.projection(x, {branch[-1]}, stride={stride})")
            advice.append("pad the branch's convolutions if they shrink the image ('same', not 'valid')")
    else:
        advice.append("shortcut and branch differ in rank: flatten or pool after the addition, not before it")
    return (
        f"{name}: shortcut and branch must have the same shape to be added. Received: shortcut {shortcut}, branch "
        f"{branch}. To do: {'; '.join(advice)}."
    )
