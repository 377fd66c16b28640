"""What a network costs: parameters, multiply-additions and activations of one forward pass, counted layer by layer."""

from __future__ import annotations

import dataclasses
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras

from keras_residual import models

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
        ValueError: If a spatial size is unknown.
    """
    if arguments and not isinstance(model, str):
        raise ValueError(
            f"Builder's arguments go with a model's name, not with a model. Received: {sorted(arguments)}."
        )
    whole: keras.Model = _build(model, arguments) if isinstance(model, str) else model
    shapes = [tensor.shape[1:] for tensor in whole.inputs]
    if any(None in shape for shape in shapes):
        raise ValueError(
            f"Costs depend on the input's size. Received: inputs {shapes}. Build with a known input_shape."
        )
    params = macs = activations = 0
    for layer in whole.layers:
        if isinstance(layer, keras.Model):
            inner = costs(layer)
            params, macs, activations = params + inner.params, macs + inner.macs, activations + inner.activations
            continue
        params += sum(math.prod(v.shape) for v in layer.variables if v.trainable)
        for node in layer._inbound_nodes:
            done, size = _work(layer, node)
            macs, activations = macs + done, activations + size
    return Costs(params, macs, activations)


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


def _work(layer: keras.layers.Layer, node: Any) -> tuple[int, int]:
    """Multiply-additions and output elements of one call of a layer; our own layers count theirs in `macs`."""
    own = getattr(layer, "macs", None)
    if own is not None:
        return own(*(tensor.shape for tensor in node.input_tensors)), 0
    size = math.prod(node.output_tensors[0].shape[1:])
    for kinds, axes in _OUTPUT_AXES.items():
        if isinstance(layer, kinds):
            return size * math.prod(layer.kernel.shape[:-axes]), size
    return 0, 0
