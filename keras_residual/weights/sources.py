"""Locate weights in files, directories and repositories of the Hugging Face Hub, and read their metadata."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any, Literal

from keras_residual.io import expand, sha256
from keras_residual.weights import files
from keras_residual.weights.files import WeightsError
from keras_residual.weights.identify import identify
from keras_residual.weights.published import published

# In order of preference. OpenCLIP's towers have their own file names.
_FILES = (
    "model.safetensors",
    "weights.safetensors",
    "open_clip_model.safetensors",
    "model.keras",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


CropMode = Literal["center", "squash", "border"]
Interpolation = Literal["bicubic", "bilinear", "nearest"]


@dataclasses.dataclass(frozen=True)
class Weights:
    """Metadata of a pretrained checkpoint, including the preprocessing that it was trained with.

    Attributes:
        source: The repository or directory.
        architecture: Name of the registered model, in timm or in this package.
        classes: Number of classes; 0 if the checkpoint has no classifier.
        input_size: Height, width and channels of the images that it was trained or is evaluated on.
        mean: Mean of each channel, subtracted after scaling to [0, 1].
        std: Standard deviation of each channel, by which the result is divided.
        crop: Fraction of the resized image's side that the centre crop keeps.
        crop_mode: `"center"`, `"squash"` or `"border"`, as in timm.
        interpolation: `"bicubic"`, `"bilinear"` or `"nearest"`.
        labels: Names of the classes; empty if the checkpoint does not state them.
        licence: The licence, if stated.
        top1: ImageNet-1k accuracy in per cent, if timm has published one.
        arguments: Arguments of the architecture that differ from its defaults (`model_args`).
        tag: timm's tag of the checkpoint, the part of its name after the dot, if stated.
    """

    source: str
    architecture: str
    classes: int = 1000
    input_size: tuple[int, int, int] = (224, 224, 3)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop: float = 0.875
    crop_mode: CropMode | str = "center"  # any string of a config.json; `Preprocess` rejects others
    interpolation: Interpolation | str = "bilinear"  # timm's default for a config.json that names none
    labels: tuple[str, ...] = ()
    licence: str | None = None
    top1: float | None = None
    arguments: tuple[tuple[str, Any], ...] = ()
    tag: str | None = None

    @classmethod
    def read(cls, source: str | os.PathLike[str], revision: str | None = None) -> Weights:
        """Read the metadata of a directory or repository from its `config.json`.

        Raises:
            FileNotFoundError: If there is no `config.json`.
            WeightsError: If it does not describe an image model in timm's format.
        """
        path = _member(source, ("config.json",), revision)
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
            given = {**config, **config.get("pretrained_cfg", {})}
            channels, height, width = given.get("input_size", (3, 224, 224))
            arguments = config.get("model_args") or {}
            if "img_size" in arguments:  # timm builds the network for this size, whatever `input_size` states
                size = arguments["img_size"]
                height, width = (size, size) if isinstance(size, int) else size
            known = published().get(f"{config['architecture']}.{given.get('tag')}")
            return cls(
                source=str(source),
                architecture=str(config["architecture"]),
                classes=int(config.get("num_classes", given.get("num_classes", 1000))),
                input_size=(int(height), int(width), int(channels)),
                mean=tuple(map(float, given.get("mean", cls.mean))),
                std=tuple(map(float, given.get("std", cls.std))),
                crop=float(given.get("crop_pct", cls.crop)),
                crop_mode=str(given.get("crop_mode") or cls.crop_mode),
                interpolation=str(given.get("interpolation", cls.interpolation)),
                labels=_labels(given),
                licence=given.get("license") or (known.licence if known else None),
                top1=known.top1 if known else None,
                arguments=tuple(arguments.items()),
                tag=str(given["tag"]) if given.get("tag") else None,
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WeightsError(
                "A checkpoint's config.json must state its architecture and preprocessing in timm's format; reading "
                f"that of {str(source)!r} failed with {type(error).__name__}: {error}. Build the network yourself and "
                "load the weights file: keras_residual.load_weights(model, file)."
            ) from error


def _labels(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the class names in order. Where timm has WordNet identifiers with descriptions, use the descriptions."""
    names = config.get("label_names") or config.get("labels") or ()
    if isinstance(names, dict):  # JSON has strings for keys
        if sorted(names, key=int) != [str(i) for i in range(len(names))]:
            return ()
        names = [names[str(i)] for i in range(len(names))]
    descriptions = config.get("label_descriptions") or {}
    return tuple(str(descriptions.get(name, name)) for name in names)


def weights_file(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Return the local weights file of a source, after downloading it from the Hub if necessary.

    Raises:
        FileNotFoundError: If there is no such file or repository, or if it cannot be downloaded.
    """
    path = expand(source)
    if path.is_file() or (path.suffix in files.SUFFIXES and not _is_repository(source)):
        return path
    return _member(source, _FILES, revision)


def input_size(source: str | os.PathLike[str], path: Path, revision: str | None = None) -> tuple[int, int] | None:
    """Return the height and width stated in a checkpoint's `config.json`, next to its file or in its repository.

    Args:
        source: The argument of `weights_file`.
        path: The file that `weights_file` returned.
        revision: Branch, tag or commit of the repository.
    """
    config = path.with_name("config.json")
    place = path.parent if path.name in _FILES and config.is_file() else source
    if place is source and not _is_repository(source):
        return None
    try:
        height, width, _ = Weights.read(place, revision).input_size
    except (FileNotFoundError, WeightsError):
        return None
    return height, width


# Directories that this package writes to: never owners on the Hub, even before they exist
_OUR_FOLDERS = ("runs", "saved_models")
_HUB = re.compile(r"hf[-_]hub:")
_REPOSITORY = re.compile(r"(?!-)[\w.-]{1,96}/[\w.-]{1,96}(@[\w./-]+)?", re.ASCII)


def _is_repository(source: str | os.PathLike[str]) -> bool:
    """Return True if a source may be a Hub repository: it starts with `hf-hub:`, or no local path matches it."""
    name = os.fspath(source)
    if _HUB.match(name):
        return True
    if not isinstance(source, str) or not _REPOSITORY.fullmatch(name) or name[0] == "." or Path(name).exists():
        return False
    owner = name.partition("/")[0]
    return owner == "timm" or (owner not in _OUR_FOLDERS and not Path(owner).exists())


def _member(source: str | os.PathLike[str], names: tuple[str, ...], revision: str | None) -> Path:
    """Return the first of the named files that a directory or repository contains."""
    place = expand(source)
    if place.is_dir():
        for name in names:
            if (place / name).is_file():
                return place / name
        raise FileNotFoundError(f"{str(source)!r} must contain one of {', '.join(names)}.{_advice(place)}")
    if place.is_file():
        raise WeightsError(
            "The source of a model must be a repository, or a directory with a config.json; got "
            f"{str(source)!r}, {identify(place).what}, which does not state its architecture and preprocessing. Build "
            "the network and load the file into it with keras_residual.load_weights(model, file), or pass --model on "
            "the command line."
        )
    if _is_repository(source):
        return _fetched(source, names, revision)
    if place.exists():
        raise FileNotFoundError(f"{str(source)!r} must be a file or a directory.")
    raise FileNotFoundError(
        f"There is no run, directory or file {str(source)!r}. To load from the Hugging Face Hub, write OWNER/NAME, "
        "such as 'timm/resnet18.a1_in1k', or hf-hub:OWNER/NAME if OWNER is also the name of a directory here."
    )


def _advice(directory: Path) -> str:
    """Return advice for a directory that has none of the expected files."""
    if (directory / "saved_model.pb").is_file():
        return " It is a SavedModel: pass the weights, run or checkpoint that it was exported from."
    found = sorted(path.name for path in directory.iterdir() if path.suffix in files.SUFFIXES)
    return f" Pass one of its files instead: {', '.join(found[:5])}." if found else ""


def _fetched(source: str | os.PathLike[str], names: tuple[str, ...], revision: str | None) -> Path:
    """Return the first of the named files that a repository contains, from the local cache or the Hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository, _, pinned = _HUB.sub("", str(source)).partition("@")
    revision = revision or pinned or None
    unreachable = _why_unreachable(repository, names[0], revision)
    missing: Exception | None = None
    for name in names:
        try:
            path = hf_hub_download(repository, name, revision=revision, local_files_only=bool(unreachable))
        except EntryNotFoundError as error:
            missing = error
            continue
        except GatedRepoError:
            advice = "accept the terms on its web page, then log in with `hf auth login` or set HF_TOKEN"
        except RepositoryNotFoundError:
            advice = "check the name; for a private repository, log in with `hf auth login` or set HF_TOKEN"
        except RevisionNotFoundError:
            advice = f"the repository has no revision {revision!r}"
        except HFValidationError:
            advice = "the name of a repository must have the form OWNER/NAME"
        except Exception as error:  # disk and network errors; each HTTP library has its own types
            advice = f"the download was interrupted ({_reason(error)}); run it again, finished files are kept"
        else:
            return _verified(Path(path), str(source))
        raise FileNotFoundError(
            f"{str(source)!r} is not a local path and could not be downloaded from the Hugging Face Hub: {advice}."
        )
    if isinstance(missing, LocalEntryNotFoundError):
        raise FileNotFoundError(
            f"{str(source)!r} is not a local path and not in the local cache, and the Hugging Face Hub cannot be "
            f"reached ({unreachable}). Connect to the network, unset HF_HUB_OFFLINE, or download it on another machine "
            "and copy the cache directory (HF_HOME)."
        )
    raise FileNotFoundError(f"The repository {repository!r} must contain one of {', '.join(names)}.")


PATIENCE = 5.0  # timeout in seconds for the first response of the Hub
_UNREACHABLE = {"ConnectError", "ConnectionError", "ProxyError", "TimeoutException", "Timeout"}  # of httpx and requests


def _why_unreachable(repository: str, name: str, revision: str | None) -> str:
    """Return why the Hub cannot be reached, after one short request; an empty string if it responds at all.

    Without this check, hf_hub_download retries seven times, over half a minute, for a file that is not in the cache.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    chosen = "HF_HUB_ETAG_TIMEOUT" in os.environ
    try:
        url = hf_hub_url(repository, name, revision=revision)
        get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT if chosen else PATIENCE)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set"
    except HFValidationError:
        return ""
    except HfHubHTTPError as error:
        return _reason(error) if error.response is not None and error.response.status_code >= 500 else ""
    except Exception as error:  # network errors; each HTTP library has its own types
        # Only a failed connection counts: hf_hub_download retries one that breaks.
        kinds = {kind.__name__ for kind in type(error).__mro__}
        return _reason(error) if kinds & _UNREACHABLE else ""
    return ""


def _reason(error: Exception) -> str:
    """Format an error's type and first line for use inside a sentence."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(" :.")


def _verified(path: Path, source: str) -> Path:
    """Return the path after comparing the file's SHA-256 with its name in the Hub's cache (small files have none)."""
    expected = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", expected):
        found = sha256(path)
        if found != expected:
            raise WeightsError(
                f"The cached file of {source!r} must have the SHA-256 that the Hugging Face Hub states, {expected}; "
                f"got {found}. Delete {path.resolve()} and download it again."
            )
    return path
