"""The residual equation, `activation(shortcut + drop_path(scale(branch)))`, and its parts."""

from __future__ import annotations

from collections.abc import Callable

import keras

from keras_residual import layers
from keras_residual.blocks.rules import Activation, Tensor, explain_mismatch, fresh_name, require_rate, require_tensor


def residual(
    shortcut: Tensor,
    branch: Tensor,
    *,
    scale: float | Callable[[Tensor], Tensor] | None = None,
    drop_path: float = 0.0,
    activation: Activation = None,
    name: str | None = None,
) -> Tensor:
    """Return `activation(shortcut + drop_path(scale(branch)))`, with which every residual block ends.

    Source: He et al. 2016, equations 1 and 2.

    Args:
        shortcut: `h(x)`, of shape `(N, ..., C)`: the block's input or its projection.
        branch: `F(x)`, of the same shape.
        scale: Multiplier of the branch: a fixed number, or a layer such as `layers.LayerScale()` (CaiT) or
            `layers.SkipInit()` (SkipInit, ReZero).
        drop_path: Stochastic depth (Huang et al. 2016): the probability that a sample skips the branch in training.
        activation: `f`, applied to the sum. `None` keeps the residual stream linear, as in pre-activation networks.
        name: Prefix of the layers' names.

    Returns:
        A tensor of the same shape.

    Raises:
        TypeError: If `shortcut` or `branch` is a layer, a model or anything else than a tensor.
        ValueError: If the shapes differ, the rate is not in [0, 1), or the activation is unknown.
    """
    name = fresh_name(name, "residual")
    require_tensor(shortcut, "shortcut", name)
    require_tensor(branch, "branch", name)
    if len(shortcut.shape) != len(branch.shape) or any(
        a is not None and b is not None and a != b for a, b in zip(shortcut.shape, branch.shape, strict=True)
    ):
        raise ValueError(explain_mismatch(tuple(shortcut.shape), tuple(branch.shape), name))
    if isinstance(scale, (str, type)):
        raise TypeError(
            f"{name}: `scale` must be a number or a layer, such as keras_residual.layers.LayerScale(); got {scale!r}."
        )
    if callable(scale):
        branch = scale(branch)
    elif scale is not None:
        branch = keras.layers.Rescaling(scale, name=f"{name}.scale")(branch)
    branch = _drop_path(branch, drop_path, name)
    x = keras.layers.Add(name=f"{name}.add")([shortcut, branch])
    return activate(x, activation, name=f"{name}.act")


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Return the stochastic-depth rates of `depth` blocks, which grow linearly from 0 to `last`.

    Source: Huang et al. 2016, section 3.
    """
    require_rate(last, "drop_path")
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def _drop_path(x: Tensor, rate: float, name: str) -> Tensor:
    require_rate(rate, "drop_path")
    # Add the layer even if the rate is 0, so that the graph does not depend on the rate.
    noise_shape = (None,) + (1,) * (len(x.shape) - 1)
    return keras.layers.Dropout(rate, noise_shape=noise_shape, name=f"{name}.drop_path")(x)


def activate(x: Tensor, activation: Activation, *, name: str) -> Tensor:
    """Apply an activation given by name or as a function; `None` returns `x`.

    Raises:
        ValueError: If neither Keras nor this package has an activation with that name.
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
            f"{name}: the activation must be a function or one of {', '.join(sorted({*known, *own}))}; got "
            f"{activation!r}."
        )
    return keras.layers.Activation(function, name=name)(x)
