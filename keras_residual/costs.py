"""Parameters, multiply-adds and activations of one forward pass, counted layer by layer."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras

from keras_residual import models
from keras_residual.graph import functional, nodes

__all__ = ["Costs", "costs"]


@dataclasses.dataclass(frozen=True)
class Costs:
    """Costs of a forward pass on one sample.

    Attributes:
        params: Trainable parameters, without running statistics, as in timm and torchvision.
        macs: Multiply-adds of convolutions, dense layers and attention, which papers often call FLOPs.
        activations: Output elements of convolutions and dense layers (Dollar et al. 2021).
    """

    params: int
    macs: int
    activations: int


def costs(model: keras.Model | str, **arguments: Any) -> Costs:
    """Count the costs of a model, or of a registered architecture by name without allocating its weights.

    Args:
        model: A model with a known input size, or a registered name.
        **arguments: Builder arguments, only with a name; for example `input_shape=(32, 32, 3)`.

    Raises:
        ValueError: If an input size is unknown, the model is subclassed or not built, or `arguments` are given without
            a name.
    """
    if arguments and not isinstance(model, str):
        raise ValueError(
            f"Builder arguments must come with a model name, not with a model; got {sorted(arguments)}. Pass the name, "
            "or leave them out."
        )
    network: keras.Model = _build(model, arguments) if isinstance(model, str) else model
    if functional(network) is None:
        raise ValueError(
            f"The model must be Functional or a built Sequential model; got {network.name!r}, a "
            f"{type(network).__name__}. Build it with keras.Input and keras.Model(inputs, outputs)."
        )
    params = sum(math.prod(v.shape) for v in network.variables if v.trainable)
    return Costs(params, *_model_work(network))


def _build(name: str, arguments: dict[str, Any]) -> keras.Model:
    """Build a model whose variables have shapes but no values."""

    def build() -> keras.Model:
        with keras.StatelessScope(initialize_variables=False):
            return models.create(name, **arguments)

    # Use a separate thread: Keras allocates the variables when the next scope in the same thread ends.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(build).result()


# Number of kernel axes that index the outputs; each output element sums over the other axes.
_OUTPUT_AXES = {
    (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D): 1,
    (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D): 2,
}


def _model_work(model: Any) -> tuple[int, int]:
    """Count the multiply-adds and output elements of all calls in a model, including nested models."""
    shapes = [tensor.shape[1:] for tensor in model.inputs]
    if any(None in shape for shape in shapes):
        raise ValueError(
            f"The input size must be known to count the costs; got inputs {shapes}. Build the model with a complete "
            "input_shape."
        )
    macs = activations = 0
    for node in nodes(model):
        done, size = _model_work(node.operation) if functional(node.operation) is not None else _node_work(node)
        macs, activations = macs + done, activations + size
    return macs, activations


def _node_work(node: Any) -> tuple[int, int]:
    """Count the multiply-adds and output elements of one call; layers of this package have a method `macs`."""
    layer = node.operation
    own = getattr(layer, "macs", None)
    if own is not None:
        return own(*(tensor.shape for tensor in node.input_tensors)), 0
    size = math.prod(node.output_tensors[0].shape[1:])
    for kinds, axes in _OUTPUT_AXES.items():
        if isinstance(layer, kinds):
            return size * math.prod(layer.kernel.shape[:-axes]), size
    return 0, 0
