"""What blocks have in common: the kinds of functions they take, and the rules they hold their inputs to."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, Protocol

import keras

from keras_residual import layers

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


class SqueezeExcite(Protocol):
    """Channel attention within a block whose input has that many channels: `se(x, channels, name=...)`."""

    def __call__(self, x: Tensor, channels: int, *, name: str) -> Tensor: ...


class Downsample(Protocol):
    """Anti-aliased subsampling in place of a stride: `downsample(x, stride, name=...)`."""

    def __call__(self, x: Tensor, stride: int, *, name: str) -> Tensor: ...


def make_divisible(channels: float, divisor: int = 8, *, limit: float = 0.9) -> int:
    """Round a number of channels to a multiple of `divisor`, as MobileNets do.

    Args:
        channels: The number to round, such as a width times a multiplier.
        divisor: What the result is a multiple of, and its least value.
        limit: The result is never below this share of `channels`: the next multiple is taken instead.
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < limit * channels else rounded


def fresh_name(name: str | None, kind: str) -> str:
    return f"{kind}_{keras.backend.get_uid(kind)}" if name is None else name


def of_rank(template: str, rank: int) -> Any:
    return getattr(keras.layers, template.format(rank))


def pooling(kind: str, rank: int) -> Any:
    return of_rank(f"{kind}Pooling{{}}D", rank)


def spatial_rank(x: Tensor, name: str) -> int:
    require_tensor(x, "x", name)
    rank = len(x.shape) - 2
    if rank not in (1, 2, 3):
        raise ValueError(
            f"{name}: convolutions take (N, steps, C), (N, H, W, C) or (N, D, H, W, C). Received: shape "
            f"{tuple(x.shape)}. Networks for vectors are built from dense layers: see ResidualMLP."
        )
    return rank


def require_sizes(name: str, **sizes: Any) -> None:
    for what, size in sizes.items():
        if isinstance(size, bool) or not hasattr(size, "__index__") or size < 1:
            raise ValueError(f"{name}: {what} is one positive integer. Received: {what}={size!r}.")


def require_function(value: Any, what: str, name: str) -> None:
    if not callable(value) or isinstance(value, (type, keras.layers.Layer)):
        raise TypeError(
            f"{name}: `{what}` is a function that makes a new layer each time it is called, such as "
            f"{_FUNCTIONS[what]}. Received: {value!r}."
        )


_FUNCTIONS = {
    "norm": "keras_residual.blocks.batch_norm, or lambda x, name, zero_init=False: MyLayer(name=name)(x)",
    "shortcut": "keras_residual.blocks.projection",
    "attention": "keras_residual.blocks.squeeze_excite",
    "se": "lambda x, channels, *, name: keras_residual.blocks.squeeze_excite(x, reduced=channels // 4, name=name)",
    "stem": "keras_residual.models.resnet.small_stem",
}


def require_rate(rate: float, what: str) -> None:
    if not isinstance(rate, numbers.Real) or not 0 <= rate < 1:
        raise ValueError(f"{what} is a probability, 0 <= {what} < 1. Received: {rate!r}.")


def require_tensor(x: Any, what: str, name: str) -> None:
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


def explain_mismatch(shortcut: tuple[Any, ...], branch: tuple[Any, ...], name: str) -> str:
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


def layer_scale(init: float | None, name: str) -> layers.LayerScale | None:
    return None if init is None else layers.LayerScale(init, name=f"{name}.gamma")
