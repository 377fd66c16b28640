"""Where weights come from: a file, a directory, a repository of the Hugging Face Hub; and what is known of them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any

from keras_residual.io import sha256
from keras_residual.weights import files
from keras_residual.weights.files import WeightsError
from keras_residual.weights.published import published

# Best first. OpenCLIP publishes its towers under names of its own.
_FILES = (
    "model.safetensors",
    "weights.safetensors",
    "open_clip_model.safetensors",
    "model.keras",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


@dataclasses.dataclass(frozen=True)
class Weights:
    """What a checkpoint says of itself. Preprocessing belongs to the weights, never to the architecture.

    Attributes:
        source: The repository or directory.
        architecture: The registered model's name in timm, or its own.
        classes: Number of classes; 0 if the checkpoint has no classifier.
        input_size: Height, width and channels it was trained or is evaluated at.
        mean: Subtracted from each channel after scaling to [0, 1].
        std: Divides each channel then.
        crop: Part of the resized image that the centre crop keeps.
        crop_mode: `"center"`, `"squash"` or `"border"`, as in timm.
        interpolation: `"bicubic"`, `"bilinear"` or `"nearest"`.
        labels: Names of the classes, if it says so.
        licence: The licence, if it says so.
        top1: Published ImageNet-1k accuracy in per cent, where timm measured it.
        arguments: What the repository says differs from the architecture's defaults.
    """

    source: str
    architecture: str
    classes: int = 1000
    input_size: tuple[int, int, int] = (224, 224, 3)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop: float = 0.875
    crop_mode: str = "center"
    interpolation: str = "bilinear"
    labels: tuple[str, ...] = ()
    licence: str | None = None
    top1: float | None = None
    arguments: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def read(cls, source: str | os.PathLike[str], revision: str | None = None) -> Weights:
        """Reads the record of a directory or repository from its `config.json`.

        Raises:
            FileNotFoundError: If there is none.
            WeightsError: If it does not describe an image model in timm's form.
        """
        path = _member(source, ("config.json",), revision)
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            given = {**config, **config.get("pretrained_cfg", {})}
            channels, height, width = given.get("input_size", (3, 224, 224))
            known = published().get(f"{config['architecture']}.{given.get('tag')}")
            return cls(
                source=str(source),
                architecture=str(config["architecture"]),
                classes=int(config.get("num_classes", given.get("num_classes", 1000))),
                input_size=(int(height), int(width), int(channels)),
                mean=tuple(map(float, given.get("mean", cls.mean))),
                std=tuple(map(float, given.get("std", cls.std))),
                crop=float(given.get("crop_pct", cls.crop)),
                crop_mode=str(given.get("crop_mode") or "center"),
                interpolation=str(given.get("interpolation", cls.interpolation)),
                labels=_labels(given),
                licence=given.get("license") or (known.licence if known else None),
                top1=known.top1 if known else None,
                arguments=tuple((config.get("model_args") or {}).items()),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WeightsError(
                f"A checkpoint's config.json says its timm architecture and preprocessing. Received: that of "
                f"{str(source)!r}, where {type(error).__name__}: {error}."
            ) from error


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    """Names by class number; where timm gives identifiers (WordNet's) and their descriptions, the descriptions."""
    names = config.get("label_names") or config.get("labels") or ()
    if isinstance(names, dict):  # JSON has strings for keys
        if sorted(names, key=int) != [str(i) for i in range(len(names))]:
            return ()
        names = [names[str(i)] for i in range(len(names))]
    descriptions = config.get("label_descriptions") or {}
    return tuple(str(descriptions.get(name, name)) for name in names)


def weights_file(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The local file that holds a source's weights, fetched if it is on the Hub.

    Raises:
        FileNotFoundError: If there is none; the error says what to do.
    """
    path = Path(source)
    if path.is_file() or (path.suffix in files.SUFFIXES and not _is_repository(source)):
        return path
    return _member(source, _FILES, revision)


def _is_repository(source: str | os.PathLike[str]) -> bool:
    name = str(source)
    return name.startswith(("hf-hub:", "hf_hub:")) or (
        isinstance(source, str) and name.count("/") == 1 and name[0] not in "./~" and not Path(name).exists()
    )


def _member(source: str | os.PathLike[str], names: tuple[str, ...], revision: str | None) -> Path:
    """The first of these files that a directory or repository has."""
    directory = Path(source)
    if directory.is_dir():
        for name in names:
            if (directory / name).is_file():
                return directory / name
        raise FileNotFoundError(f"{str(source)!r} has none of the files {', '.join(names)}.")
    if not _is_repository(source):
        raise FileNotFoundError(
            f"Weights come from a file, a directory or a repository such as 'timm/resnet18.a1_in1k'. Received: "
            f"{str(source)!r}, which is none of them."
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository = str(source).removeprefix("hf-hub:").removeprefix("hf_hub:")
    repository, _, pinned = repository.partition("@")
    revision = revision or pinned or None
    missing: Exception | None = None
    for name in names:
        try:
            # Where the Hub did not answer for one name, it is not asked for the next: each time takes half a minute.
            offline = isinstance(missing, LocalEntryNotFoundError)
            path = hf_hub_download(repository, name, revision=revision, local_files_only=offline)
            return _verified(Path(path), str(source))
        except EntryNotFoundError as error:
            missing = error
            continue
        except GatedRepoError:
            advice = "accept its terms on its page, then log in with `hf auth login`, or set HF_TOKEN"
        except RepositoryNotFoundError:
            advice = "check the name; for a private one log in with `hf auth login`, or set HF_TOKEN"
        except RevisionNotFoundError:
            advice = f"it has no revision {revision!r}"
        except HFValidationError:
            advice = "a repository's name is OWNER/NAME"
        except (HfHubHTTPError, OSError) as error:
            advice = f"the Hub did not answer ({error}); try again, or set HF_HUB_OFFLINE=1 to use the cache"
        raise FileNotFoundError(f"{str(source)!r} cannot be fetched from the Hugging Face Hub: {advice}.")
    if isinstance(missing, LocalEntryNotFoundError):
        raise FileNotFoundError(
            f"{str(source)!r} is not in the local cache, and the Hugging Face Hub cannot be reached: connect, unset "
            "HF_HUB_OFFLINE, or fetch it where there is a network and copy its cache folder (HF_HOME)."
        )
    raise FileNotFoundError(f"The repository {repository!r} has none of the files {', '.join(names)}.")


def _verified(path: Path, source: str) -> Path:
    """The path, once the file's bytes are those that the Hub's cache names by their SHA-256 (small files have none)."""
    expected = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", expected):
        found = sha256(path)
        if found != expected:
            raise WeightsError(
                f"A file of the Hugging Face Hub has the SHA-256 that the Hub states, {expected}. Received: {found} in "
                f"the local cache, for {source!r}. Delete {path.resolve()} and fetch it again."
            )
    return path
