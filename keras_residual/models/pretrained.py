"""Build models from published checkpoints."""

from __future__ import annotations

import os
from typing import Any

import keras

from keras_residual.blocks import Activation
from keras_residual.models import _checkpoints, find
from keras_residual.weights import Weights, WeightsError

__all__ = ["from_pretrained"]


def from_pretrained(
    source: str | os.PathLike[str],
    classes: int | None = None,
    classifier_activation: Activation = None,
    include_top: bool = True,
    pooling: str | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    *,
    revision: str | None = None,
    **options: Any,
) -> keras.Model:
    """Build the model of a checkpoint and load its weights. No code of the checkpoint is executed.

    Args:
        source: A repository of the Hugging Face Hub such as `"timm/resnet18.a1_in1k"`, or a directory with a timm
            `config.json` and weights; `~` and environment variables in its path are expanded.
        classes: Number of classes; defaults to the checkpoint's. Another number creates a new classifier.
        classifier_activation: Activation of the outputs; `None` for logits, with which checkpoints are trained.
        include_top: If true, include pooling and the classifier.
        pooling: Output if `include_top` is false: `None`, `"avg"` or `"max"`.
        input_shape: Shape of one sample; defaults to the checkpoint's. The weights are adapted to other sizes and
            numbers of channels.
        revision: Branch, tag or commit of the repository.
        **options: Further options of the builder, for example `drop_path=0.1`.

    Returns:
        A Functional model. If the checkpoint has no classifier, it returns pooled features, like timm's model.

    Raises:
        FileNotFoundError: If the source does not exist or cannot be downloaded.
        ValueError: If the architecture is unknown, or if the weights do not match.
    """
    _checkpoints.require_architecture(source)
    record = Weights.read(source, revision)
    try:
        entry = find(record.architecture)
    except ValueError as error:
        raise WeightsError(f"{str(source)!r} is a checkpoint of an unknown architecture. {error}") from None
    same = ("global_pool", entry.config.global_pool)
    recorded = ("img_size", "num_classes", "in_chans")  # also fields of the record, which every repository states
    unknown = {key: value for key, value in record.arguments if key not in recorded and (key, value) != same}
    if unknown:
        raise WeightsError(
            f"{str(source)!r} must not change its architecture by other arguments than {', '.join(recorded)}; got "
            f"{unknown}."
        )
    wanted = record.classes if classes is None else classes
    row = entry.config.tagged(record.tag)
    model = entry.build(
        row,
        include_top=include_top,
        classes=wanted,
        classifier_activation=classifier_activation,
        pooling=pooling,
        input_shape=record.input_size if input_shape is None else input_shape,
        **options,
    )
    _checkpoints.load(
        model,
        row,
        str(source),
        new_head=wanted != record.classes,
        new_size=input_shape is not None,
        to_timm=entry.family.to_timm,
        revision=revision,
    )
    return model
