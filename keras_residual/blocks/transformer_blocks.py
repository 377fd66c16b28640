"""Pre-norm Transformer blocks: attention and MLPs. ConvNeXt uses the MLPs too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_residual import layers
from keras_residual.blocks.conv import layer_norm
from keras_residual.blocks.equation import activate, residual
from keras_residual.blocks.rules import (
    Activation,
    Norm,
    Tensor,
    fresh_name,
    layer_scale,
    require_function,
    require_rate,
    require_sizes,
    require_tensor,
)


def dense(x: Tensor, units: int, *, bias: bool = True, name: str) -> Tensor:
    """Apply a dense layer to the last axis, initialized as in Vision Transformers."""
    initializer = keras.initializers.TruncatedNormal(stddev=0.02)
    return keras.layers.Dense(units, use_bias=bias, kernel_initializer=initializer, name=name)(x)


def pointwise(x: Tensor, units: int, *, bias: bool = True, name: str) -> Tensor:
    """Apply a dense layer that timm stores as a 1x1 convolution; see `layers.PointwiseDense`."""
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
    """Apply multi-head self-attention (Vaswani et al. 2017) with one matrix for query, key and value.

    Args:
        x: Tokens `(N, L, C)`.
        heads: Number of heads, a divisor of C.
        qkv_bias: If true, the projection to query, key and value has a bias.
        proj_bias: If true, the output projection has a bias.
        qk_norm: Normalisation of each head's query and key (Dehghani et al. 2023).
        causal: If true, a token attends only to itself and to earlier tokens.
        dropout: Dropout rate after the output projection.
        name: Prefix of the layers' names.
    """
    name = fresh_name(name, "attention")
    require_tensor(x, "x", name)
    require_rate(dropout, "dropout")
    require_sizes(name, heads=heads)
    if len(x.shape) != 3:
        raise ValueError(
            f"{name}: the input of attention must be a sequence, (N, L, C); got shape {tuple(x.shape)}. Convert an "
            "image with keras.layers.Reshape((height * width, channels)), or with blocks.patches and a Reshape."
        )
    if x.shape[-1] % heads:
        raise ValueError(
            f"{name}: the number of channels must be a multiple of the number of heads; got {x.shape[-1]} channels and "
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
    """Apply two dense layers to the last axis: `(..., C)` -> `(..., hidden)` -> `(..., C)`.

    `linear` is `dense` or `pointwise`. `response_norm` inserts a `layers.GlobalResponseNorm` before the second layer.
    """
    name = fresh_name(name, "mlp")
    require_tensor(x, "x", name)
    require_rate(dropout, "dropout")
    y = activate(linear(x, hidden, name=f"{name}.fc1"), activation, name=f"{name}.act")
    y = keras.layers.Dropout(dropout, name=f"{name}.drop1")(y)
    if response_norm:
        y = layers.GlobalResponseNorm(name=f"{name}.grn")(y)
    y = linear(y, x.shape[-1], name=f"{name}.fc2")
    return keras.layers.Dropout(dropout, name=f"{name}.drop2")(y)


def swiglu(
    x: Tensor,
    hidden: int,
    *,
    activation: Activation = "silu",
    gate_last: bool = False,
    dropout: float = 0.0,
    name: str | None = None,
) -> Tensor:
    """Apply a gated MLP (Shazeer 2020): `fc2(silu(a) * b)`, where `fc1` outputs `a` and `b`.

    `a` and `b` have `hidden // 2` channels each. With `gate_last`, `b` is the gate: `fc2(a * silu(b))`.
    """
    name = fresh_name(name, "mlp")
    require_tensor(x, "x", name)
    require_rate(dropout, "dropout")
    if hidden % 2:
        raise ValueError(f"{name}: `hidden` must be even: one half gates the other; got hidden={hidden}.")
    gate, y = ops.split(dense(x, hidden, name=f"{name}.fc1"), 2, axis=-1)
    if gate_last:
        gate, y = y, gate
    y = keras.layers.Multiply(name=f"{name}.gate")([activate(gate, activation, name=f"{name}.act"), y])
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
    """Apply a gated MLP with separate matrices of `hidden` channels: `fc2(silu(fc1_g(x)) * fc1_x(x))`."""
    name = fresh_name(name, "mlp")
    require_tensor(x, "x", name)
    require_rate(dropout, "dropout")
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
    """Apply the first half of a pre-norm Transformer block: `x + drop_path(scale * attention(norm(x)))`.

    `scale` is the initial value of LayerScale (`None` for no LayerScale). `options` are passed to `attention`.
    """
    name = fresh_name(name, "block")
    require_function(norm, "norm", name)
    norm_name, attention_name, scale_name = (f"{name}.{n}" for n in names)
    y = attention(norm(x, name=norm_name), heads, name=attention_name, **options)
    return residual(x, y, scale=layer_scale(scale, scale_name), drop_path=drop_path, name=attention_name + ".residual")


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
    """Apply the second half of a pre-norm Transformer block: `x + drop_path(scale * mlp(norm(x)))`.

    `feed_forward` is `mlp`, `swiglu` or `split_swiglu`. `scale` is the initial value of LayerScale (`None` for no
    LayerScale). `options` are passed to `feed_forward`.
    """
    name = fresh_name(name, "block")
    require_function(norm, "norm", name)
    norm_name, mlp_name, scale_name = (f"{name}.{n}" for n in names)
    y = feed_forward(norm(x, name=norm_name), hidden, name=mlp_name, **options)
    return residual(x, y, scale=layer_scale(scale, scale_name), drop_path=drop_path, name=mlp_name + ".residual")
