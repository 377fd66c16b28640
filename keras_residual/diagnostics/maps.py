"""Saliency maps: Grad-CAM for convolutional networks, attention rollout for Vision Transformers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_residual import figures, layers
from keras_residual.diagnostics.flow import logits_of
from keras_residual.diagnostics.graph import Call, Graph, gradients
from keras_residual.diagnostics.result import Result, headline
from keras_residual.diagnostics.structure import Structure
from keras_residual.io import literal

__all__ = ["ImageMaps", "attention_rollout", "grad_cam"]

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class ImageMaps(Result):
    """Result of `grad_cam` and `attention_rollout`.

    Attributes:
        maps: Maps `(N, H, W)` of the inputs' size with values of 0 to 1; all 0 if nothing supports the class.
        images: Images to draw the maps on, `(N, H, W, C)` with values of 0 to 1.
    """

    maps: Any = None
    images: Any = None

    def figure(self) -> Any:
        count = len(self.maps)
        columns = min(4, count)
        lines = -(-count // columns)
        figure, axes = figures.canvas(lines, 2 * columns, (3.6 * columns, 2.15 * lines + 0.5))
        for axis in axes.flat:
            axis.set_axis_off()
        for i, (image, heat, row) in enumerate(zip(self.images, self.maps, self.rows, strict=True)):
            left, right = axes[i // columns, 2 * (i % columns) : 2 * (i % columns) + 2]
            gray = image[..., 0] if image.shape[-1] == 1 else image[..., :3]
            for axis in (left, right):
                axis.imshow(gray, cmap="gray", vmin=0, vmax=1)
            right.imshow(
                heat,
                cmap="inferno",
                alpha=0.25 + 0.5 * heat,
                vmin=0,
                vmax=1,
                extent=_extent(gray),
                interpolation="bilinear",
            )
            left.set_title(literal(row["image"])[-22:], fontsize=8)
            right.set_title(f"{figures.short(row['class'], 22)} {row['probability']:.0%}", fontsize=8)
        headline(figure, self.title)
        return figure


def grad_cam(
    model: keras.Model,
    images: Any,
    classes: Sequence[int] | None = None,
    *,
    layer: str | None = None,
    shown: Any = None,
    labels: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> ImageMaps:
    """Compute Grad-CAM maps of the image regions that support a class (Selvaraju et al. 2017, eq. 1 and 2).

    A map is the positive part of the sum of the last feature maps, weighted by the mean gradient of the class's logit,
    and resized to the image.

    Args:
        model: A Functional image classifier with convolutional feature maps.
        images: Inputs of the model `(N, H, W, C)`, preprocessed as for training.
        classes: A class for each image; defaults to the predicted classes.
        layer: Name of the layer whose output is analysed; defaults to the last feature map that the entire network
            passes through.
        shown: Images to draw the maps on, `(N, H, W, C)` of any size and range; defaults to the inputs.
        labels: Names of the classes.
        names: Names of the images.

    Returns:
        A result with `.maps`, and one row per image with the class, its probability and the position of the maximum.

    Raises:
        ValueError: If the network has no feature maps. For Vision Transformers, use `attention_rollout`.
    """
    graph = Graph(model)
    place = _feature_map(graph, layer)
    images = np.asarray(images, "float32")
    start = graph.run(images, [place])[place]
    logits = _classifier(graph, images)
    chosen = logits.argmax(-1) if classes is None else np.asarray(classes)
    if chosen.shape != (len(images),) or not 0 <= chosen.min() <= chosen.max() < logits.shape[-1]:
        raise ValueError(
            f"`classes` must have a number of 0 to {logits.shape[-1] - 1} for each of the {len(images)} images; got "
            f"{classes!r}."
        )

    def score(given: list[Any]) -> Any:
        return _of_classes(_logits(graph, images, {place: given[0]}), chosen)

    _, (slope,) = gradients(score, [start])
    weights = _numpy(slope).mean((1, 2), keepdims=True)
    heat = np.maximum((weights * _numpy(start)).sum(-1), 0)
    title = f"Grad-CAM of {model.name} at {graph.name(place)}"
    return _drawn(title, heat, images, logits, chosen, shown, labels, names)


def attention_rollout(
    model: keras.Model,
    images: Any,
    *,
    shown: Any = None,
    labels: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> ImageMaps:
    """Compute the attention of a Vision Transformer's output to the patches by attention rollout.

    The rollout is the product over all layers of the attention, averaged over the heads and averaged with the identity
    for the shortcut (Abnar & Zuidema 2020, eq. 1). It is evaluated at the tokens that the classifier uses: at the
    class token, or at all pooled tokens, weighted by their gradients, or through the attention of a pooling head.

    Args:
        model: A Functional Vision Transformer of this package, or one with `keras.layers.MultiHeadAttention`.
        images: Inputs of the model `(N, H, W, C)`, preprocessed as for training.
        shown: Images to draw the maps on, `(N, H, W, C)` of any size and range; defaults to the inputs.
        labels: Names of the classes.
        names: Names of the images.

    Returns:
        A result with `.maps`, and one row per image with the predicted class, its probability and the position of the
        maximum.

    Raises:
        ValueError: If the network has no self-attention over one sequence of patches. For convolutional networks, use
            `grad_cam`.
    """
    graph = Graph(model)
    images = np.asarray(images, "float32")
    calls = [c for c in graph.calls if isinstance(c.operation, (layers.Attend, keras.layers.MultiHeadAttention))]
    values = graph.run(images, sorted({number for call in calls for number in call.inputs})) if calls else {}
    attention = [_attention(call, [values[number] for number in call.inputs]) for call in calls]
    square = [a for a in attention if a.shape[1] == a.shape[2]]
    lengths = {a.shape[1] for a in square}
    if len(lengths) != 1:
        raise ValueError(
            f"The model must have layers of self-attention over sequences of the same length; got {model.name!r} with "
            f"{len(square)} such layers, of lengths {sorted(lengths)}. For convolutional networks, use grad_cam."
        )
    (length,) = lengths
    rolled = np.eye(length)[None]
    for a in square:
        rolled = (0.5 * a + 0.5 * np.eye(length)) @ rolled
    logits = _classifier(graph, images)
    chosen = logits.argmax(-1)
    if attention[-1].shape[1] != attention[-1].shape[2]:  # a pooling head: its query attends to the tokens
        read = attention[-1].mean(1)
        rows = np.einsum("nk,nkl->nl", read, rolled[:, -read.shape[-1] :])
    else:
        rows = np.einsum("nk,nkl->nl", _read(graph, images, chosen, length), rolled)
    grid = _grid(graph, length)
    heat = rows[:, -math.prod(grid) :].reshape(-1, *grid)
    title = f"Attention rollout of {model.name} over {len(square)} layers"
    return _drawn(title, heat, images, logits, chosen, shown, labels, names)


# ------------------------------------------------------------------------------------------------------------ parts


def _feature_map(graph: Graph, layer: str | None) -> int:
    """Return the number of the feature map to analyse."""
    maps = [
        call.outputs[0]
        for call in graph.calls
        if len(graph.tensors[call.outputs[0]].shape) == 4
        and all(size is None or size > 1 for size in graph.tensors[call.outputs[0]].shape[1:3])
    ]
    if layer is not None:
        maps = [number for number in maps if graph.name(number) == layer]
    else:
        maps = [number for number in maps if graph.passes(graph.inputs[0], number)]
    if not maps:
        which = f"layer {layer!r}" if layer else "layer that the entire network passes through"
        raise ValueError(
            f"Grad-CAM needs a feature map (N, H, W, C) with more than one position; {graph.model.name!r} has no "
            f"{which} that outputs one. For Vision Transformers, use attention_rollout; otherwise pass layer=NAME."
        )
    return maps[-1]


def _logits(graph: Graph, images: Any, known: dict[int, Any]) -> Any:
    """Return the classifier's outputs before the softmax, if it has one (Selvaraju et al. 2017, section 3)."""
    number, dense = logits_of(graph)
    if dense is None or not isinstance(dense.operation, keras.layers.Dense):
        return graph.run(images, [number], known=known)[number]
    layer, given = dense.operation, dense.inputs[0]
    logits = ops.matmul(graph.run(images, [given], known=known)[given], ops.convert_to_tensor(layer.kernel))
    return logits + layer.bias if layer.use_bias else logits


def _classifier(graph: Graph, images: Array) -> Array:
    """Return the logits `(N, classes)`."""
    logits = _numpy(_logits(graph, images, {}))
    if logits.ndim != 2:
        raise ValueError(
            f"The model must be a classifier with outputs (N, classes); got {graph.model.name!r} with outputs of shape "
            f"{logits.shape}. Pass the part of the model that classifies: keras.Model(inputs, outputs)."
        )
    return logits


def _of_classes(logits: Any, chosen: Array) -> Any:
    mask = np.eye(logits.shape[-1], dtype="float32")[chosen]
    return ops.sum(ops.cast(logits, "float32") * mask)


def _attention(call: Call, values: list[Any]) -> Array:
    """Compute the attention `(N, queries, keys)` of a layer, averaged over its heads."""
    if isinstance(call.operation, layers.Attend):
        q, k, _ = (_numpy(value) for value in values)
        scores = q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1])
        if call.operation.causal:
            scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return (weights / weights.sum(-1, keepdims=True)).mean(1)
    args, kwargs = call.arguments(values)
    _, scores = call.operation(*args, **{**kwargs, "return_attention_scores": True, "training": False})
    return _numpy(scores).mean(1)


def _read(graph: Graph, images: Any, chosen: Array, length: int) -> Array:
    """Return the weight of each token for the classifier, `(N, L)`, from the gradient after the last block."""
    ends = [block.end for block in Structure(graph).residual if graph.tensors[block.end].shape[1:2] == (length,)]
    start = graph.run(images, [ends[-1]])[ends[-1]]

    def score(given: list[Any]) -> Any:
        return _of_classes(_logits(graph, images, {ends[-1]: given[0]}), chosen)

    _, (slope,) = gradients(score, [start])
    norms = np.linalg.norm(_numpy(slope), axis=-1)
    return norms / np.maximum(norms.sum(-1, keepdims=True), 1e-30)


def _grid(graph: Graph, length: int) -> tuple[int, int]:
    for call in graph.calls:
        grid = getattr(call.operation, "grid", None)
        if grid is not None and len(grid) == 2:
            return grid[0], grid[1]
    side = math.isqrt(length)  # other tokens followed by a square of patches
    return side, side


def _numpy(value: Any) -> Array:
    return np.asarray(ops.convert_to_numpy(ops.cast(value, "float32")))


def _extent(image: Array) -> tuple[float, float, float, float]:
    return -0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5


def _drawn(
    title: str, heat: Array, images: Array, logits: Array, chosen: Array, shown: Any, labels: Any, names: Any
) -> ImageMaps:
    heat = heat / np.maximum(heat.max((1, 2), keepdims=True), 1e-12)
    size = images.shape[1:3]
    large = np.clip(_numpy(ops.image.resize(heat[..., None].astype("float32"), size, "bilinear"))[..., 0], 0, 1)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities = weights / weights.sum(-1, keepdims=True)
    rows = []
    for i, number in enumerate(chosen):
        y, x = np.unravel_index(large[i].argmax(), size)
        rows.append(
            {
                "image": str(i) if names is None else str(names[i]),
                "class": str(number) if labels is None else str(labels[number]),
                "probability": float(probabilities[i, number]),
                "highest at": f"({y}, {x})",
                "above half": float((large[i] > 0.5).mean()),
            }
        )
    pictures = [_picture(image) for image in (images if shown is None else shown)]
    return ImageMaps(title, rows, ("`above half`: fraction of the image where the map is above 0.5.",), large, pictures)


def _picture(image: Any) -> Array:
    image = np.asarray(image, "float32")
    low, high = (0, 255) if image.max() > 20 and image.min() >= 0 else (image.min(), image.max())
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)
