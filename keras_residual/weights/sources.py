"""Where weights come from: a file, a directory, a repository of the Hugging Face Hub; and what is known of them."""

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

# Best first. OpenCLIP publishes its towers under names of its own.
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
        tag: timm's tag of the checkpoint, if it says so: what follows the dot in its name.
    """

    source: str
    architecture: str
    classes: int = 1000
    input_size: tuple[int, int, int] = (224, 224, 3)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop: float = 0.875
    crop_mode: CropMode | str = "center"  # as a config.json says it: `Preprocess` refuses others
    interpolation: Interpolation | str = "bilinear"  # timm's where a config.json names none
    labels: tuple[str, ...] = ()
    licence: str | None = None
    top1: float | None = None
    arguments: tuple[tuple[str, Any], ...] = ()
    tag: str | None = None

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
            arguments = config.get("model_args") or {}
            if "img_size" in arguments:  # timm builds the network for it, whatever the rest says
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
    """Return the local file that holds a source's weights, fetched if it is on the Hub.

    Raises:
        FileNotFoundError: If there is none; the error says what to do.
    """
    path = expand(source)
    if path.is_file() or (path.suffix in files.SUFFIXES and not _is_repository(source)):
        return path
    return _member(source, _FILES, revision)


def input_size(source: str | os.PathLike[str], path: Path, revision: str | None = None) -> tuple[int, int] | None:
    """Return the height and width that a checkpoint's `config.json` states, next to its file or in its repository.

    Args:
        source: What `weights_file` was given.
        path: What it returned.
        revision: A branch, tag or commit of the repository.
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


# Where commands of this package write: no owner on the Hub, whether they exist yet or not
_OUR_FOLDERS = ("runs", "saved_models")
_HUB = re.compile(r"hf[-_]hub:")
_REPOSITORY = re.compile(r"(?!-)[\w.-]{1,96}/[\w.-]{1,96}(@[\w./-]+)?", re.ASCII)


def _is_repository(source: str | os.PathLike[str]) -> bool:
    """Return True if a source may be a repository of the Hub: by `hf-hub:`, or because no local path begins like it."""
    name = os.fspath(source)
    if _HUB.match(name):
        return True
    if not isinstance(source, str) or not _REPOSITORY.fullmatch(name) or name[0] == "." or Path(name).exists():
        return False
    owner = name.partition("/")[0]
    return owner == "timm" or (owner not in _OUR_FOLDERS and not Path(owner).exists())


def _member(source: str | os.PathLike[str], names: tuple[str, ...], revision: str | None) -> Path:
    """The first of these files that a directory or repository has."""
    place = expand(source)
    if place.is_dir():
        for name in names:
            if (place / name).is_file():
                return place / name
        raise FileNotFoundError(f"{str(source)!r} has none of the files {', '.join(names)}.{_holds(place)}")
    if place.is_file():
        raise WeightsError(
            f"A model is built from a repository, or from a directory with a config.json. Received: {str(source)!r}, "
            f"which is {identify(place).what}: it does not say its architecture and preprocessing. Build the network, "
            "and load the file into it: keras_residual.load_weights(model, file), or --model on the command line."
        )
    if _is_repository(source):
        return _fetched(source, names, revision)
    if place.exists():
        raise FileNotFoundError(f"{str(source)!r} is neither a file nor a directory.")
    raise FileNotFoundError(
        f"There is no run, directory or file {str(source)!r}. A repository of the Hugging Face Hub is named "
        "OWNER/NAME, such as 'timm/resnet18.a1_in1k'; write hf-hub:OWNER/NAME where OWNER is also a directory here."
    )


def _holds(directory: Path) -> str:
    """Describe what a directory without the usual files contains, and what to do."""
    if (directory / "saved_model.pb").is_file():
        return " It is a SavedModel: name the weights, run or checkpoint that it was exported from."
    found = sorted(path.name for path in directory.iterdir() if path.suffix in files.SUFFIXES)
    return f" Name one of its files instead: {', '.join(found[:5])}." if found else ""


def _fetched(source: str | os.PathLike[str], names: tuple[str, ...], revision: str | None) -> Path:
    """The first of these files that a repository has, from the cache or the Hub."""
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
    silence = _silence(repository, names[0], revision)
    missing: Exception | None = None
    for name in names:
        try:
            path = hf_hub_download(repository, name, revision=revision, local_files_only=bool(silence))
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
        except Exception as error:  # of the disk, of the network: each library of HTTP has its own
            advice = f"the download was interrupted ({_reason(error)}); run the same again, finished files are kept"
        else:
            return _verified(Path(path), str(source))
        raise FileNotFoundError(
            f"{str(source)!r} is no path on this machine, and cannot be fetched from the Hugging Face Hub: {advice}."
        )
    if isinstance(missing, LocalEntryNotFoundError):
        raise FileNotFoundError(
            f"{str(source)!r} is no path on this machine, is not in the local cache, and the Hugging Face Hub cannot "
            f"be reached ({silence}): connect, unset HF_HUB_OFFLINE, or fetch it where there is a network and copy "
            "its cache folder (HF_HOME)."
        )
    raise FileNotFoundError(f"The repository {repository!r} has none of the files {', '.join(names)}.")


PATIENCE = 5.0  # seconds, for the first answer of the Hub
_UNREACHABLE = {"ConnectError", "ConnectionError", "ProxyError", "TimeoutException", "Timeout"}  # of httpx and requests


def _silence(repository: str, name: str, revision: str | None) -> str:
    """Why the Hub does not answer, asked once and briefly; empty if it does, whatever it says.

    hf_hub_download itself asks seven times, over half a minute, for a file that is not in the cache.
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
    except Exception as error:  # of the network: each library of HTTP has its own
        # A connection that breaks is not one that cannot be made: hf_hub_download tries again then.
        kinds = {kind.__name__ for kind in type(error).__mro__}
        return _reason(error) if kinds & _UNREACHABLE else ""
    return ""


def _reason(error: Exception) -> str:
    """An error's type and first line, as a sentence has room for."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}".rstrip(" :.")


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
