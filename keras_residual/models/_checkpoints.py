"""Checkpoints into models just built: the default tag of a row, and what the builder's arguments let differ."""

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

# A checkpoint of timm's on the Hub: its architecture, a dot, its tag. Other repositories may hold anything.
_TIMM = re.compile(r"(?:hf[-_]hub:)?timm/([a-z0-9_]+)\.(\w+)(?:@.+)?")


def require_architecture(source: str | os.PathLike[str]) -> None:
    """Raise if a source's name alone says that its network is not one of this package; nothing is fetched.

    Raises:
        WeightsError: For a checkpoint of timm's of another architecture, with the nearest names.
    """
    name = _TIMM.fullmatch(str(source))
    if name is None or resolve(name[1]) or Path(source).exists():
        return
    near = nearest(name[1])
    hint = f"Nearest: {', '.join(near)}." if near else "keras_residual.list_models() lists those that are."
    raise weights.WeightsError(
        f"The architecture must be one of this package. Received: {str(source)!r}, a checkpoint of {name[1]!r}, which "
        f"is not here. {hint}"
    )


def tag(config: Config, source: str | os.PathLike[str] | None) -> str | None:
    """Return timm's tag of a row's checkpoint, as far as the source's name or its own record tells."""
    if source == "imagenet":
        return config.tag
    if not isinstance(source, (str, os.PathLike)):
        return None
    if (expand(source) / "config.json").is_file():
        return weights.Weights.read(source).tag
    name = _TIMM.fullmatch(str(source))
    return name[2] if name and (resolve(name[1]) or ("",))[0] == config.name else None


def default_checkpoint(config: Config) -> str:
    """Return the repository that `weights="imagenet"` means for a row.

    Raises:
        ValueError: If the row has no default checkpoint.
    """
    if config.checkpoint is None:
        raise ValueError(
            f"weights must name a repository or a file for {config.name}, which has no default ImageNet checkpoint; "
            "got 'imagenet'. To train from scratch use weights=None (--weights none)."
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
    """Loads a checkpoint, adapted to what the caller asked for, and logs what was adapted.

    Args:
        model: A model built from `config`.
        config: Its row.
        source: What `load_weights` reads, or `"imagenet"` for the row's default checkpoint.
        new_head: Whether the caller asked for other classes, so that the classifier may stay new.
        new_size: Whether the caller asked for an input size, so that position embeddings may be resampled.
        to_timm: Converts the family's own checkpoint formats.
        revision: Of a repository.

    Raises:
        ValueError: If the row has no default checkpoint, or the weights do not fit.
        FileNotFoundError: If there is no such source.
        WeightsError: If the source is a checkpoint of an architecture that is not here.
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
