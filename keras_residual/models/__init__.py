"""All families of networks, and functions to list, build and use them as backbones."""

from __future__ import annotations

import fnmatch
import math
from typing import Any

import keras

from keras_residual import layers, registry
from keras_residual.models import _families as _families

__all__ = ["create", "features", "list_models"]


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the registered builders that match a wildcard pattern. Case is ignored.

    Args:
        pattern: Pattern such as `"resnet*"` or `"*50*"`.
    """
    return [name for name in registry.entries() if fnmatch.fnmatchcase(name.lower(), pattern.lower())]


def find(name: str) -> registry.Entry:
    """Return the registry entry of a builder's name or timm name.

    Raises:
        ValueError: If the name is unknown; the message lists similar names.
    """
    known = registry.entries()
    found = registry.resolve(name) if isinstance(name, str) else None
    if found is None:
        near = registry.nearest(str(name))
        hint = f"Nearest: {', '.join(near)}." if near else "keras_residual.list_models() lists them."
        if registry.resolve(str(name).removeprefix("timm/").partition(".")[0]):
            hint = "To load a checkpoint such as 'timm/resnet18.a1_in1k', use keras_residual.from_pretrained."
        raise ValueError(f"The name must be that of a registered model, or its timm name; got {name!r}. {hint}")
    return known[found[0]]


def create(name: str, **arguments: Any) -> keras.Model:
    """Build a model by name.

    Args:
        name: Name of the builder, such as `"ResNet18"`, or its timm name, such as `"resnet18"`. Case is ignored. A timm
            name that contains an image size, such as `"vit_base_patch16_384"`, selects that size.
        **arguments: Arguments of the builder, for example `classes=10`.

    Raises:
        ValueError: If no model has that name; the message lists similar names.
    """
    entry = find(name)
    _, size = registry.resolve(name) or (name, None)
    if size is not None and arguments.get("input_tensor") is None and arguments.get("input_shape") is None:
        arguments["input_shape"] = (size, size, entry.config.input_shape[-1])
    return entry.builder(**arguments)


def features(model: keras.Model | str, levels: tuple[int, ...] = (1, 2, 3, 4), **arguments: Any) -> keras.Model:
    """Return a backbone for detection or segmentation: a model whose outputs are the stages of another model.

    Args:
        model: A model of this package, or the name of one.
        levels: Stages to return, counted from 1. A convolutional network has one stage per resolution. A Vision
            Transformer has four, one after each quarter of its blocks.
        **arguments: If `model` is a name: arguments of the builder, for example `input_shape=(None, None, 3)`.

    Returns:
        A Functional model that maps the input to a list of feature maps `(N, *spatial, C)`, one per level. It shares
        its layers and weights with `model`.

    Raises:
        ValueError: If the model does not have one of the levels, or if arguments are given together with a model.
    """
    if arguments and not isinstance(model, str):
        raise ValueError(
            f"Arguments of the builder must be given with the name of a model, not with a model; got "
            f"{sorted(arguments)}."
        )
    backbone: keras.Model = create(model, **{"include_top": False, **arguments}) if isinstance(model, str) else model
    levels = (levels,) if isinstance(levels, int) else tuple(levels)
    stages = {layer.level: layer for layer in backbone.layers if isinstance(layer, layers.StageOutput)}
    missing = [level for level in levels if level not in stages]
    if missing or not levels:
        known = tuple(sorted(stages)) or "no stages, because it is not an image network of this package"
        raise ValueError(f"`levels` must be stages of the model; got {levels}. {backbone.name} has {known}.")
    outputs = [_feature_map(stages[level]) for level in levels]
    return keras.Model(backbone.input, outputs, name=f"{backbone.name}_features")


def _feature_map(stage: layers.StageOutput) -> Any:
    """Return the stage's output as a feature map. The patches of a token sequence are reshaped to their grid."""
    if stage.grid is None:
        return stage.output
    patches = stage.output[:, -math.prod(stage.grid) :]
    return keras.layers.Reshape((*stage.grid, patches.shape[-1]))(patches)
