"""Models from published checkpoints, by the checkpoint's name alone."""

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
    """Build the model that a checkpoint was made for, and load it. No code of the checkpoint runs.

    Args:
        source: A repository of the Hugging Face Hub such as `"timm/resnet18.a1_in1k"`, or a directory with a timm
            `config.json` and weights; `~` and environment variables in its path are expanded.
        classes: Number of classes; `None` for the checkpoint's. Another number gives a new classifier.
        classifier_activation: Activation of the outputs; `None` for logits, as checkpoints are trained.
        include_top: Whether to keep pooling and classifier.
        pooling: Without top: `None`, `"avg"` or `"max"`.
        input_shape: Shape of one sample; `None` for the checkpoint's. Other sizes and channels are adapted to.
        revision: A branch, tag or commit of the repository.
        **options: The builder's own options, for example `drop_path=0.1`.

    Returns:
        A Functional model; a checkpoint without classifier gives the pooled features that timm's model gives.

    Raises:
        FileNotFoundError: If the source cannot be found or fetched; the error says what to do.
        ValueError: If its architecture is not registered, or its weights do not fit.
    """
    _checkpoints.require_architecture(source)
    record = Weights.read(source, revision)
    try:
        entry = find(record.architecture)
    except ValueError as error:
        raise WeightsError(f"{str(source)!r} is a checkpoint of an architecture that is not here. {error}") from None
    same = ("global_pool", entry.config.global_pool)
    recorded = ("img_size", "num_classes", "in_chans")  # the record has them, from where every repository says them
    unknown = {key: value for key, value in record.arguments if key not in recorded and (key, value) != same}
    if unknown:
        raise WeightsError(f"{str(source)!r} changes its architecture in ways that are not known here: {unknown}.")
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
