"""Types of the functions that blocks take as arguments, and validation of blocks' inputs."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any, Protocol

import keras

from keras_residual import layers

Tensor = Any  # a KerasTensor while a model is built; backend tensors work too
Activation = str | Callable[[Any], Any] | None


class Norm(Protocol):
    """Normalisation: `norm(x, name=..., zero_init=False)`."""

    def __call__(self, x: Tensor, *, name: str, zero_init: bool = False) -> Tensor: ...


class Shortcut(Protocol):
    """Shortcut that may change the shape: `shortcut(x, filters, stride=..., norm=..., name=...)`."""

    def __call__(self, x: Tensor, filters: int, *, stride: int, norm: Norm, name: str) -> Tensor: ...


class PreactShortcut(Protocol):
    """Shortcut of a pre-activation block, applied after the first norm and activation.

    It is called as `shortcut(y, filters, stride=..., conv=..., name=...)`.
    """

    def __call__(self, y: Tensor, filters: int, *, stride: int, conv: Callable[..., Tensor], name: str) -> Tensor: ...


class Attention(Protocol):
    """Channel attention at the end of a branch: `attention(x, name=...)`."""

    def __call__(self, x: Tensor, *, name: str) -> Tensor: ...


class SqueezeExcite(Protocol):
    """Channel attention inside a block; `channels` are those of the block's input: `se(x, channels, name=...)`."""

    def __call__(self, x: Tensor, channels: int, *, name: str) -> Tensor: ...


class Downsample(Protocol):
    """Anti-aliased subsampling that replaces a stride: `downsample(x, stride, name=...)`."""

    def __call__(self, x: Tensor, stride: int, *, name: str) -> Tensor: ...


def make_divisible(channels: float, divisor: int = 8, *, limit: float = 0.9) -> int:
    """Round a number of channels to a multiple of `divisor`, as in MobileNets.

    Args:
        channels: Number to round, such as a width times a multiplier.
        divisor: Divisor of the result, and its smallest value.
        limit: Smallest accepted ratio of the result to `channels`; below it, round up to the next multiple.
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
            f"{name}: the shape must be (N, steps, C), (N, H, W, C) or (N, D, H, W, C) for a convolution; got "
            f"{tuple(x.shape)}. For vectors, use a network of dense layers, such as ResidualMLP."
        )
    return rank


def require_sizes(name: str, **sizes: Any) -> None:
    for argument, size in sizes.items():
        if isinstance(size, bool) or not hasattr(size, "__index__") or size < 1:
            raise ValueError(f"{name}: `{argument}` must be one positive integer; got {argument}={size!r}.")


def require_function(value: Any, argument: str, name: str) -> None:
    if not callable(value) or isinstance(value, (type, keras.layers.Layer)):
        raise TypeError(
            f"{name}: `{argument}` must be a function that creates a new layer each time it is called, such as "
            f"{_FUNCTIONS[argument]}; got {value!r}."
        )


_FUNCTIONS = {
    "norm": "keras_residual.blocks.batch_norm, or lambda x, name, zero_init=False: MyLayer(name=name)(x)",
    "shortcut": "keras_residual.blocks.projection",
    "attention": "keras_residual.blocks.squeeze_excite",
    "se": "lambda x, channels, *, name: keras_residual.blocks.squeeze_excite(x, reduced=channels // 4, name=name)",
    "stem": "keras_residual.models.resnet.small_stem",
}


def require_rate(rate: float, argument: str) -> None:
    if not isinstance(rate, numbers.Real) or not 0 <= rate < 1:
        raise ValueError(f"`{argument}` must be a probability, 0 <= {argument} < 1; got {rate!r}.")


def require_tensor(x: Any, argument: str, name: str) -> None:
    if isinstance(x, (keras.layers.Layer, type)):
        kind = "Sequential model" if isinstance(x, keras.Sequential) else type(x).__name__
        raise TypeError(
            f"{name}: `{argument}` must be a tensor; got a {kind}. Call residual blocks on tensors of the Functional "
            "API, because a Sequential model cannot contain skip connections:\n"
            "    inputs = keras.Input((224, 224, 3))\n"
            "    x = keras_residual.blocks.basic(inputs, 64)\n"
            "    model = keras.Model(inputs, x)"
        )
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(
            f"{name}: `{argument}` must be a tensor, such as keras.Input(...) or the output of a layer; got {x!r}."
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
                "upsample the shortcut like the branch, or remove the upsampling from the branch, which is larger than "
                "the block's input"
            )
        elif steps:
            stride = max(steps)
            advice.append(
                f"give the shortcut the same stride as the branch: blocks.projection(x, {branch[-1]}, stride={stride})"
            )
            advice.append("use padding='same' instead of 'valid' if the branch's convolutions shrink the image")
    else:
        advice.append("flatten or pool after the addition instead of before it, because the ranks differ")
    return (
        f"{name}: shortcut and branch must have the same shape to be added; got shortcut {shortcut} and branch "
        f"{branch}. To fix it: {'; '.join(advice)}."
    )


def layer_scale(init: float | None, name: str) -> layers.LayerScale | None:
    return None if init is None else layers.LayerScale(init, name=f"{name}.gamma")
