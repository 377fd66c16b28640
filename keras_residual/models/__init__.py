"""Every family, and the questions one asks of all of them: which are there, build this one, show its stages."""

from __future__ import annotations

import fnmatch
import math
from typing import Any

import keras

from keras_residual import layers, registry
from keras_residual.models import _families as _families

__all__ = ["create", "features", "list_models"]


def list_models(pattern: str = "*") -> list[str]:
    """Names of the registered builders that match a wildcard pattern, without regard to case.

    Args:
        pattern: For example `"resnet*"` or `"*50*"`.
    """
    return [name for name in registry.entries() if fnmatch.fnmatchcase(name.lower(), pattern.lower())]


def find(name: str) -> registry.Entry:
    """Returns the entry of a builder's name or timm name.

    Raises:
        ValueError: If there is none, with the nearest names.
    """
    known = registry.entries()
    found = registry.resolve(name) if isinstance(name, str) else None
    if found is None:
        near = registry.nearest(str(name))
        hint = f"Nearest: {', '.join(near)}." if near else "keras_residual.list_models() lists them."
        if registry.resolve(str(name).removeprefix("timm/").partition(".")[0]):
            hint = "A checkpoint, such as 'timm/resnet18.a1_in1k', loads by keras_residual.from_pretrained."
        raise ValueError(f"The name must be that of a registered model, or its timm name. Received: {name!r}. {hint}")
    return known[found[0]]


def create(name: str, **arguments: Any) -> keras.Model:
    """Builds a model by name.

    Args:
        name: A builder's name, such as `"ResNet18"`, or timm's, such as `"resnet18"`, in any case. A timm name that
            says an image size, such as `"vit_base_patch16_384"`, gives the network at that size.
        **arguments: The builder's arguments, for example `classes=10`.

    Raises:
        ValueError: If no model has that name; the error lists the nearest.
    """
    entry = find(name)
    _, size = registry.resolve(name) or (name, None)
    if size is not None and arguments.get("input_tensor") is None and arguments.get("input_shape") is None:
        arguments["input_shape"] = (size, size, entry.config.input_shape[-1])
    return entry.builder(**arguments)


def features(model: keras.Model | str, levels: tuple[int, ...] = (1, 2, 3, 4), **arguments: Any) -> keras.Model:
    """A model that returns the stage outputs of another: the backbone for detection and segmentation.

    Args:
        model: A model of this package, or the name of one.
        levels: Which stages, counted from 1. A convolutional network has one per resolution; a Vision
            Transformer has four, at a quarter of its depth each.
        **arguments: With a name: the builder's arguments, for example `input_shape=(None, None, 3)`.

    Returns:
        A Functional model from the input to a list of feature maps `(N, *spatial, C)`, one per level. It shares
        its layers and weights with `model`.

    Raises:
        ValueError: If the model has no such level.
    """
    if arguments and not isinstance(model, str):
        raise ValueError(
            f"Builder's arguments go with a model's name, not with a model. Received: {sorted(arguments)}."
        )
    whole: keras.Model = create(model, **{"include_top": False, **arguments}) if isinstance(model, str) else model
    levels = (levels,) if isinstance(levels, int) else tuple(levels)
    stages = {layer.level: layer for layer in whole.layers if isinstance(layer, layers.StageOutput)}
    missing = [level for level in levels if level not in stages]
    if missing or not levels:
        raise ValueError(
            f"levels are stages of the model. Received: {levels}; {whole.name} has "
            f"{tuple(sorted(stages)) or 'none: it is no image network of this package'}."
        )
    outputs = [_feature_map(stages[level]) for level in levels]
    return keras.Model(whole.input, outputs, name=f"{whole.name}_features")


def _feature_map(stage: layers.StageOutput) -> Any:
    """The stage's output as a feature map: of a token sequence the patches, back on their grid."""
    if stage.grid is None:
        return stage.output
    patches = stage.output[:, -math.prod(stage.grid) :]
    return keras.layers.Reshape((*stage.grid, patches.shape[-1]))(patches)
