"""The complete state of a training in one file, written atomically; the last two files are kept.

A file is a safetensors file whose metadata hold the rest of the state as JSON and a hash over all of it.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_residual.io import locked, remove_parts, require_space, written_whole

__all__ = ["CheckpointError", "Checkpoints", "ResumeError", "Snapshot"]

_FORM = "keras_residual checkpoint 1"
_NAME = re.compile(r"(step|best)-(\d+)\.safetensors")


class CheckpointError(OSError):
    """A checkpoint could not be written."""


class ResumeError(ValueError):
    """A checkpoint belongs to another training; the message names each difference."""


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """The complete state of a training between two steps.

    Attributes:
        arrays: Copies of all variables, by `kind/number/path`.
        state: The rest: step, history, early stopping. JSON keeps floats exactly.
        best: The weights of the best epoch so far, which are stored in a separate file.
    """

    arrays: dict[str, np.ndarray[Any, Any]]
    state: dict[str, Any]
    best: Snapshot | None = None

    @classmethod
    def take(cls, variables: dict[str, Any], state: dict[str, Any]) -> Snapshot:
        """Copy variables to the host, because backends update them in place."""
        arrays = {name: np.array(keras.ops.convert_to_numpy(v)) for name, v in variables.items()}
        return cls(arrays, json.loads(json.dumps(state)))

    def put(self, variables: dict[str, Any]) -> None:
        """Assign the values of the snapshot to variables.

        Raises:
            ResumeError: If there are others, or of other shapes; nothing is assigned then.
        """
        shapes = {name: tuple(v.shape) for name, v in variables.items()}
        saved = {name: array.shape for name, array in self.arrays.items()}
        if shapes != saved:
            wrong = [n for n in sorted({*shapes, *saved}) if shapes.get(n) != saved.get(n)]
            lines = [f"{n}: {saved.get(n, 'missing')} saved, {shapes.get(n, 'missing')} here" for n in wrong[:10]]
            raise ResumeError("The checkpoint belongs to another network or optimiser:\n  " + "\n  ".join(lines))
        for name, variable in variables.items():
            variable.assign(self.arrays[name])

    def finite(self) -> bool:
        """Return True if all weights are finite."""
        return all(np.isfinite(a).all() for a in self.arrays.values() if a.dtype.kind == "f")

    def digest(self) -> str:
        """SHA-256 of everything in it."""
        total = hashlib.sha256(json.dumps(self.state, sort_keys=True).encode())
        for name, array in sorted(self.arrays.items()):
            total.update(f"{name} {array.dtype} {array.shape}\n".encode())
            total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return total.hexdigest()

    def write(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            CheckpointError: If the disk is full or cannot be written to; what was there stays.
        """
        from safetensors.numpy import save_file

        metadata = {"form": _FORM, "state": json.dumps(self.state), "sha256": self.digest()}
        try:
            with written_whole(path) as part:
                save_file(self.arrays, part, metadata)
        except OSError as error:
            raise CheckpointError(
                f"{error} Make room and start the same training again: it resumes from the last checkpoint."
            ) from error

    @classmethod
    def read(cls, path: Path) -> Snapshot:
        """Read a file.

        Raises:
            ValueError: If it is not exactly what was written.
        """
        from safetensors import safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # a damaged header fails in ways of the library's own
            raise ValueError(f"{str(path)!r} is damaged: {error}") from error
        try:
            snapshot = cls(arrays, json.loads(metadata["state"]))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{str(path)!r} is not a training checkpoint.") from error
        if metadata.get("form") != _FORM or snapshot.digest() != metadata.get("sha256"):
            raise ValueError(f"{str(path)!r} is damaged: its content does not match its hash.")
        return snapshot


class Checkpoints:
    """The checkpoints of one training in a directory, written in the background.

    Args:
        folder: The directory; made where missing.

    Raises:
        CheckpointError: If it cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"The directory {str(folder)!r} is not writable: {error}.") from error
        self._worker = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._pending: list[concurrent.futures.Future[None]] = []

    def steps(self, kind: str = "step") -> list[int]:
        """Return the steps that have files, newest first; with kind `"best"`, those of the best epochs' weights."""
        found = [_NAME.fullmatch(path.name) for path in self.folder.iterdir()]
        return sorted((int(match[2]) for match in found if match and match[1] == kind), reverse=True)

    def load(self, among: set[int] | None = None) -> Snapshot | None:
        """Return the newest intact checkpoint, or `None`; warn of each damaged one."""
        for step in self.steps():
            if among is not None and step not in among:
                continue
            try:
                return self._with_best(Snapshot.read(self._path(step)))
            except ValueError as error:
                warnings.warn(f"{error} The one before it is used instead.", RuntimeWarning, stacklevel=3)
        return None

    def _with_best(self, snapshot: Snapshot) -> Snapshot:
        best = snapshot.state.get("best", {})
        if best.get("step") is None:
            return snapshot
        try:
            return dataclasses.replace(snapshot, best=Snapshot.read(self._path(best["step"], "best")))
        except ValueError as error:
            words = (
                f"{error} The best weights until step {snapshot.state['step']:,} are lost: later ones are chosen from."
            )
            warnings.warn(words, RuntimeWarning, stacklevel=4)
            lost = {**best, "value": None, "epoch": None, "step": None}
            return dataclasses.replace(snapshot, state={**snapshot.state, "best": lost})

    def save(self, snapshot: Snapshot, kind: str = "step") -> None:
        """Write a snapshot in the background; the best epoch's weights before the checkpoint that refers to them.

        Raises:
            CheckpointError: If an earlier one could not be written.
        """
        self.raise_errors()
        self._pending.append(self._worker.submit(self._write, snapshot, kind))

    def _write(self, snapshot: Snapshot, kind: str) -> None:
        snapshot.write(self._path(snapshot.state["step"], kind))
        if kind == "step":  # by now the last two of each are what the last two checkpoints need
            for each in ("step", "best"):
                for step in self.steps(each)[2:]:
                    self._path(step, each).unlink(missing_ok=True)

    def raise_errors(self, wait: bool = False) -> None:
        """Raise errors of the background thread; with `wait`, after everything is written."""
        pending, self._pending = self._pending, []
        for future in pending:
            if wait or future.done():
                future.result()
            else:
                self._pending.append(future)

    def busy(self) -> bool:
        """Return True while a checkpoint is being written."""
        return any(not future.done() for future in self._pending)

    def clear(self, after: int = -1) -> None:
        """Delete all checkpoints, or those of later steps."""
        for kind in ("step", "best"):
            for step in self.steps(kind):
                if step > after:
                    self._path(step, kind).unlink(missing_ok=True)

    def close(self) -> None:
        """Wait until the current checkpoint is written."""
        try:
            self.raise_errors(wait=True)
        finally:
            self._worker.shutdown()

    @contextlib.contextmanager
    def open(self) -> Iterator[Checkpoints]:
        """Hold the directory, and close it at the end; an error of the training precedes one of the writing.

        Raises:
            LockedError: If another process is training there.
        """
        with locked(self.folder):
            remove_parts(self.folder)
            try:
                yield self
            except BaseException:
                with contextlib.suppress(CheckpointError):
                    self.close()
                raise
            self.close()

    def reserve(self, size: int) -> None:
        """Check that there is room for `size` bytes of checkpoints, those that are there already included.

        Raises:
            CheckpointError: If not.
        """
        there = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        try:
            require_space(self.folder, max(0, size - there))
        except OSError as error:
            raise CheckpointError(error.strerror or str(error)) from error

    def prune(self) -> None:
        """Keep the last checkpoint and the best weights that it refers to: what a finished training resumes from."""
        for step in self.steps()[1:]:
            self._path(step).unlink(missing_ok=True)
        for step in self.steps("best")[1:]:
            self._path(step, "best").unlink(missing_ok=True)

    def _path(self, step: int, kind: str = "step") -> Path:
        return self.folder / f"{kind}-{step:010d}.safetensors"


def differences(saved: dict[str, Any], wanted: dict[str, Any], where: str = "") -> list[str]:
    """Describe the differences between two records, one line each."""
    found = []
    for key in sorted({*saved, *wanted}):
        a, b = saved.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{where}{key}.")
        elif a != b:
            found.append(f"{where}{key}: {_short(a)} before, {_short(b)} now")
    return found


def _short(value: Any, most: int = 80) -> str:
    """Return the `repr` of a value, shortened for long lists."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
