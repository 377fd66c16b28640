"""Run directories: locking, comparing settings with an earlier run, resuming and replacing."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_residual.classifier import SECTION
from keras_residual.io import LOCK, locked, remove_parts, require_space, write_json
from keras_residual.training.checkpoint import differences

__all__ = ["RunDirectory"]

RUN, CONFIG = "run.json", "config.json"
_FILES = (CONFIG, RUN, "model.keras", "weights.safetensors", "labels.txt", "skipped.csv")
_FILES += ("history.csv", "metrics.json", "predictions.csv", "classes.csv", "confusions.csv")
_FILES += ("augmented.png", "curves.png", "confusion.png", "mistakes.png")
_FOLDERS = ("training", "tensorboard", "inspect")
_PREVIOUS = ".previous"  # holds the run that --overwrite replaces until the new classifier is saved

# Settings that identify a run. The location of the data, the spelling of its path and the package version are left out
# so that a moved or copied run can be resumed.
_IDENTITY = ("model", "options", "weights_id", "seed", "validation", "precision", "deterministic")
_DERIVED = ("recipe", "size", "class_weights")  # computed from the user's arguments and the data


class RunDirectory:
    """Directory of one training run.

    `run.json` contains the settings and is written first; `config.json` is written with the trained classifier. The run
    is finished when the `keras_residual` section of `config.json` has `metrics`, which are added after the report.

    Args:
        path: Path of the directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the directory, and create it if missing. A run that fails before its first checkpoint is removed.

        Raises:
            NotADirectoryError: If the path is a file.
            ValueError: If the directory contains files that do not belong to a run.
            LockedError: If another process is writing to it.
            OSError: If it is not writable.
        """
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(
                f"The output path must be a directory; got {str(self.path)!r}, a file. Choose another path."
            )
        if self._record() is None and not (self.path / _PREVIOUS).exists() and self._foreign():
            raise ValueError(
                f"A new run must start in an empty directory; got {str(self.path)!r}, which contains other files "
                f"({', '.join(self._foreign()[:3])}). Choose another output directory."
            )
        if self.finished() and not os.access(self.path, os.W_OK):  # allow using a finished run on a read-only medium
            yield
            return
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path))
                require_space(self.path, 0)
                remove_parts(self.path)
            except PermissionError as error:
                raise PermissionError(
                    f"The output directory {str(self.path)!r} must be writable: {error}. Choose another directory."
                ) from error
            if self._record() is None:  # an earlier process was killed while it set the old run aside
                self._restore()
            try:
                yield
            except BaseException:
                if not self._trained():
                    self._forget(made)
                raise

    def begin(self, about: Mapping[str, Any], *, overwrite: bool = False, anyway: bool = False) -> dict[str, Any]:
        """Compare the settings with the run in the directory, record them, and return the settings to train with.

        Args:
            about: The settings; JSON types only.
            overwrite: Replace the run in the directory if it is finished or its settings differ.
            anyway: Resume an unfinished run even if its settings differ.

        Returns:
            The settings; if an earlier run continues with more epochs, its settings with the new number of epochs.

        Raises:
            ValueError: If the directory contains a run with other settings; the message lists the differences.
        """
        wanted = json.loads(json.dumps(about))
        there = self._record()
        if there is not None:
            different = _different(there, wanted)
            if self.finished() and not different and not overwrite:
                return there  # write nothing: the medium may be read-only
            if overwrite and (different or self.finished()):
                self._set_aside()
            elif different and self._trained() and (self.finished() or not anyway):
                more = _more_epochs(there, wanted)
                if more is None:
                    raise ValueError(
                        f"{str(self.path)!r} already contains another run with different settings:\n  "
                        + "\n  ".join(different)
                        + "\nChoose another output directory (output=, --output) to keep both."
                    )
                wanted = more
        self._write(wanted)
        return wanted

    def finished(self) -> bool:
        """Return True if the classifier and its report exist for the requested number of epochs."""
        section, record = self._section(), self._record()
        if record is None or "metrics" not in section:
            return False
        return section.get("recipe", {}).get("epochs") == record.get("recipe", {}).get("epochs")

    def _trained(self) -> bool:
        """Return True if the directory contains a classifier or a checkpoint."""
        return (self.path / CONFIG).is_file() or any(self.path.glob("training/**/step-*.safetensors"))

    def discard_previous(self) -> None:
        """Remove the run that this one replaces; call it once the new classifier is saved."""
        shutil.rmtree(self.path / _PREVIOUS, ignore_errors=True)

    # ------------------------------------------------------------------------------------------------------- on disk

    def _record(self) -> dict[str, Any] | None:
        found = _json(self.path / RUN)
        return found if isinstance(found, dict) else None

    def _section(self) -> dict[str, Any]:
        found = _json(self.path / CONFIG)
        section = found.get(SECTION) if isinstance(found, dict) else None
        return section if isinstance(section, dict) else {}

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._record() != record:
            write_json(self.path / RUN, record)

    def _foreign(self) -> list[str]:
        if not self.path.is_dir():
            return []
        return sorted(path.name for path in self.path.iterdir() if path.name not in (LOCK, _PREVIOUS))

    def _set_aside(self) -> None:
        """Move the old run to `.previous`; `_restore` undoes this if the new run fails before its first checkpoint."""
        kept = self.path / _PREVIOUS
        if kept.exists() and not (self.path / CONFIG).is_file():  # only the run in `.previous` has a classifier
            self._remove()
            return
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        for name in (*_FILES, *_FOLDERS):
            if (self.path / name).exists():
                (self.path / name).rename(kept / name)

    def _restore(self) -> bool:
        """Move the run in `.previous` back; return False if there is none."""
        kept = self.path / _PREVIOUS
        if not kept.exists():
            return False
        for path in kept.iterdir():
            path.rename(self.path / path.name)
        kept.rmdir()
        return True

    def _remove(self) -> None:
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        for name in _FOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def _forget(self, made: list[Path]) -> None:
        self._remove()
        if self._restore():
            return
        (self.path / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: it contains files of the user
            for folder in made:
                folder.rmdir()


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _different(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the differences between two runs, in the user's terms and without their consequences."""
    if there.get("labels") != wanted["labels"]:
        return differences({"classes": there.get("labels")}, {"classes": wanted["labels"]})
    keys = [key for key in _IDENTITY if key in there]  # an older version recorded fewer
    if "weights_id" not in there:
        keys.append("weights")
    before, now = ({key.removesuffix("_id"): record[key] for key in keys} for record in (there, wanted))
    found = differences(before, now)
    if found:  # the seed and the validation fraction also change the fingerprint of the split
        return found
    if there.get("fingerprint") != wanted["fingerprint"]:
        return ["images: some were added, removed, changed or moved between training and validation"]
    derived = differences({key: there.get(key) for key in _DERIVED}, {key: wanted[key] for key in _DERIVED})
    asked = differences(there.get("asked", {}), wanted["asked"]) if "asked" in there else []
    return asked if derived and asked else derived


def _more_epochs(there: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any] | None:
    """Return the earlier recipe with more epochs, or None if anything else differs."""
    epochs, before = wanted["recipe"]["epochs"], there["recipe"]["epochs"]
    changed = {"epochs"} if wanted["asked"].get("head_epochs") is not None else {"epochs", "head_epochs"}

    def rest(record: dict[str, Any]) -> dict[str, Any]:
        recipe = {key: value for key, value in record["recipe"].items() if key not in changed}
        return {**{key: value for key, value in record.items() if key != "asked"}, "recipe": recipe}

    if epochs <= before or _different(rest(there), {**rest(wanted), "asked": {}}):
        return None
    return {**wanted, "recipe": {**there["recipe"], "epochs": epochs}}
