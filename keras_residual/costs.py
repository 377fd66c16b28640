"""What a network costs: parameters, multiply-additions and activations of one forward pass, counted layer by layer."""

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
    """Costs of one sample.

    Attributes:
        params: Trainable parameters, as timm and torchvision count them (without running statistics).
        macs: Multiply-additions of convolutions, dense layers and attention: what papers call FLOPs.
        activations: Output elements of convolutions and dense layers (Dollar et al. 2021).
    """

    params: int
    macs: int
    activations: int


def costs(model: keras.Model | str, **arguments: Any) -> Costs:
    """Counts the costs of a model, or of a registered model by its name, without allocating its weights.

    Args:
        model: A model with a known input size, or a name.
        **arguments: With a name: the builder's arguments, for example `input_shape=(32, 32, 3)`.

    Raises:
        ValueError: If a spatial size is unknown, or the model is a subclassed or unbuilt one.
    """
    if arguments and not isinstance(model, str):
        raise ValueError(
            f"Builder's arguments go with a model's name, not with a model. Received: {sorted(arguments)}."
        )
    whole: keras.Model = _build(model, arguments) if isinstance(model, str) else model
    if functional(whole) is None:
        raise ValueError(
            f"Costs are those of the calls in a Functional or built Sequential model. Received: {whole.name!r}, a "
            f"{type(whole).__name__}. Write it with keras.Input and keras.Model(inputs, outputs)."
        )
    params = sum(math.prod(v.shape) for v in whole.variables if v.trainable)
    return Costs(params, *_work_of(whole))


def _build(name: str, arguments: dict[str, Any]) -> keras.Model:
    """A model whose variables have shapes but no values."""

    def build() -> keras.Model:
        with keras.StatelessScope(initialize_variables=False):
            return models.create(name, **arguments)

    # Keras would allocate the variables when the next scope of this thread ends: so the thread is one of its own.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(build).result()


# How many axes of a kernel are those of the outputs; each output element sums over the others.
_OUTPUT_AXES = {
    (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D): 1,
    (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D): 2,
}


def _work_of(model: Any) -> tuple[int, int]:
    """Count the multiply-additions and output elements of all calls in a model, and of those in the models in it."""
    shapes = [tensor.shape[1:] for tensor in model.inputs]
    if any(None in shape for shape in shapes):
        raise ValueError(
            f"Costs depend on the input's size. Received: inputs {shapes}. Build with a known input_shape."
        )
    macs = activations = 0
    for node in nodes(model):
        done, size = _work_of(node.operation) if functional(node.operation) is not None else _work(node)
        macs, activations = macs + done, activations + size
    return macs, activations


def _work(node: Any) -> tuple[int, int]:
    """Count those of one call; our own layers count theirs in `macs`."""
    layer = node.operation
    own = getattr(layer, "macs", None)
    if own is not None:
        return own(*(tensor.shape for tensor in node.input_tensors)), 0
    size = math.prod(node.output_tensors[0].shape[1:])
    for kinds, axes in _OUTPUT_AXES.items():
        if isinstance(layer, kinds):
            return size * math.prod(layer.kernel.shape[:-axes]), size
    return 0, 0
