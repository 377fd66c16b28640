"""Loading of checkpoints into new models: default tags, and the differences that a builder's arguments allow."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import keras

from keras_residual import weights
from keras_residual.io import expand
from keras_residual.registry import Config, nearest, resolve
from keras_residual.weights.formats import Convert

# A timm checkpoint on the Hub, ARCHITECTURE.TAG. Names of other repositories have no fixed form.
_TIMM = re.compile(r"(?:hf[-_]hub:)?timm/([a-z0-9_]+)\.(\w+)(?:@.+)?")


def require_architecture(source: str | os.PathLike[str]) -> None:
    """Raise if the name of a source shows that its architecture is unknown, before anything is downloaded.

    Raises:
        WeightsError: If the source is a timm checkpoint of an unknown architecture; the message lists similar names.
    """
    name = _TIMM.fullmatch(str(source))
    if name is None or resolve(name[1]) or Path(source).exists():
        return
    near = nearest(name[1])
    hint = f"Nearest: {', '.join(near)}." if near else "keras_residual.list_models() lists all architectures."
    raise weights.WeightsError(
        f"The architecture must be one of this package; got {str(source)!r}, a checkpoint of {name[1]!r}. {hint}"
    )


def tag(config: Config, source: str | os.PathLike[str] | None) -> str | None:
    """Return timm's tag of a row's checkpoint, from the source's name or its `config.json`; `None` if unknown."""
    if source == "imagenet":
        return config.tag
    if not isinstance(source, (str, os.PathLike)):
        return None
    if (expand(source) / "config.json").is_file():
        return weights.Weights.read(source).tag
    name = _TIMM.fullmatch(str(source))
    return name[2] if name and (resolve(name[1]) or ("",))[0] == config.name else None


def default_checkpoint(config: Config) -> str:
    """Return the repository of a row's default checkpoint, `weights="imagenet"`.

    Raises:
        ValueError: If the row has no default checkpoint.
    """
    if config.checkpoint is None:
        raise ValueError(
            f"`weights` must be a repository or a file for {config.name}, which has no default ImageNet checkpoint; "
            "got 'imagenet'. To train from scratch, use weights=None (--weights none)."
        )
    return config.checkpoint


def load(
    model: keras.Model,
    config: Config,
    source: str,
    *,
    new_head: bool,
    new_size: bool,
    to_timm: Convert,
    revision: str | None = None,
) -> weights.Report:
    """Load a checkpoint, adapt it to the caller's arguments, and log the adaptations.

    Args:
        model: A model built from `config`.
        config: The row of the model.
        source: A source that `load_weights` accepts, or `"imagenet"` for the row's default checkpoint.
        new_head: True if the caller chose another number of classes, so that the classifier keeps its initial values.
        new_size: True if the caller chose an input size, so that position embeddings may be resampled.
        to_timm: Conversion of the family's own checkpoint formats.
        revision: Branch, tag or commit of a repository.

    Raises:
        ValueError: If the row has no default checkpoint, or if the weights do not match.
        FileNotFoundError: If there is no such source.
        WeightsError: If the source is a checkpoint of an unknown architecture.
    """
    source = default_checkpoint(config) if source == "imagenet" else source
    require_architecture(source)
    headed = any(layer.name in config.head for layer in model.layers)
    adapt = weights.Adapt(
        head=config.head if new_head else (), top=() if headed else config.top, channels=True, size=new_size
    )
    report = weights.load_weights(model, source, adapt=adapt, revision=revision, to_timm=to_timm)
    if report.adapted:
        logging.getLogger("keras_residual").warning("%s: %s", model.name, report)
    return report
