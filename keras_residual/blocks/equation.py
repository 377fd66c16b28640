"""The one equation, `activation(shortcut + drop_path(scale(branch)))`, and what it is made of."""

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
    name = fresh_name(name, "residual")
    require_tensor(shortcut, "shortcut", name)
    require_tensor(branch, "branch", name)
    if len(shortcut.shape) != len(branch.shape) or any(
        a is not None and b is not None and a != b for a, b in zip(shortcut.shape, branch.shape, strict=True)
    ):
        raise ValueError(explain_mismatch(tuple(shortcut.shape), tuple(branch.shape), name))
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
    require_rate(last, "drop_path")
    return [last * i / max(depth - 1, 1) for i in range(depth)]


def _drop_path(x: Tensor, rate: float, name: str) -> Tensor:
    require_rate(rate, "drop_path")
    # The layer stays at rate 0, so that the graph never depends on the rate.
    noise_shape = (None,) + (1,) * (len(x.shape) - 1)
    return keras.layers.Dropout(rate, noise_shape=noise_shape, name=f"{name}.drop_path")(x)


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
