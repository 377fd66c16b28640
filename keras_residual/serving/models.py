"""Models of a server: find versions in directories, load them, and drain old ones after a new one is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import logging
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf
from grpc import StatusCode
from tensorflow_serving.apis import prediction_log_pb2

__all__ = ["Model", "Models", "ServingError", "State"]

LOG = logging.getLogger(__name__)


class ServingError(Exception):
    """Raised if a request cannot be processed; the message is sent to the client."""

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class State(enum.IntEnum):
    """Lifecycle state of a version, numbered as in TensorFlow Serving's API."""

    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass(eq=False)
class Version:
    """One version of a model. `users` is the number of requests that are using it."""

    number: int
    path: Path
    state: State = State.LOADING
    error: str = ""
    files: Any = None  # names, sizes and times of its files when it was loaded
    saved: Any = None  # the SavedModel, which keeps the tables of the signatures alive
    users: int = 0

    def load(self) -> None:
        """Load the version and run its warm-up requests.

        Raises:
            Exception: Any error that TensorFlow raises.
        """
        self.saved = tf.saved_model.load(str(self.path))
        warm_up = self.path / "assets.extra" / "tf_serving_warmup_requests"
        for record in tf.data.TFRecordDataset([str(warm_up)]) if warm_up.is_file() else ():
            request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            self.run(request.model_spec.signature_name, inputs)

    def signature(self, name: str) -> Any:
        """Return the function of a signature; "" selects `serving_default`.

        Raises:
            ServingError: If there is no signature with that name.
        """
        function = self.saved.signatures.get(name or "serving_default")
        if function is None:
            known = ", ".join(sorted(self.saved.signatures))
            raise ServingError(
                StatusCode.FAILED_PRECONDITION,
                f'Serving signature key "{name}" not found. Available signatures: {known}.',
            )
        return function

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run a signature on named arrays and return its outputs by name.

        Raises:
            ServingError: If names, types or shapes do not match the signature, or if the graph fails.
        """
        function = self.signature(signature)
        specs = input_specs(function)
        if set(inputs) != set(specs):
            extra, missing = sorted(set(inputs) - set(specs)), sorted(set(specs) - set(inputs))
            raise ServingError(
                StatusCode.INVALID_ARGUMENT,
                f"input size does not match signature: {len(inputs)}!={len(specs)}. "
                f"Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}.",
            )
        for name, value in inputs.items():
            dtype = "string" if value.dtype == object else value.dtype.name
            if dtype != specs[name].dtype.name or not specs[name].shape.is_compatible_with(value.shape):
                raise ServingError(
                    StatusCode.INVALID_ARGUMENT,
                    f'input "{name}" must be {specs[name].dtype.name} {_shape(specs[name].shape.as_list())}; '
                    f"got {dtype} {_shape(value.shape)}",
                )
        try:
            tensors = {name: tf.constant(value, specs[name].dtype) for name, value in inputs.items()}
            return {name: value.numpy() for name, value in function(**tensors).items()}
        except tf.errors.OpError as error:
            bad = error.error_code == tf.errors.INVALID_ARGUMENT
            code = StatusCode.INVALID_ARGUMENT if bad else StatusCode.INTERNAL
            raise ServingError(code, error.message.partition("\n")[0]) from error


def input_specs(function: Any) -> dict[str, Any]:
    """Return the inputs of a signature by name."""
    return dict(function.structured_input_signature[1])


def _shape(sizes: Any) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in sizes)})"


class Model:
    """A model with its versions. A version is not unloaded while a request holds it."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.versions: dict[int, Version] = {}
        self._changed = threading.Condition()

    def update(self) -> None:
        """Load the newest version if necessary, then drain the others. Returns after both are done.

        A version that failed to load is retried after its files have changed, because they may still have been copied.
        """
        found = versions_in(self.path)
        if not found:
            return
        newest = max(found)
        version = self.versions.get(newest)
        files = _files(found[newest])
        if version is None or (version.state is State.END and (not version.error or version.files != files)):
            version = Version(newest, found[newest], files=files)
            with self._changed:
                self.versions[newest] = version
            try:
                version.load()
            except Exception as error:  # keep serving the current version
                version.state, version.error, version.saved = State.END, _first_line(error), None
                LOG.error("%s version %d cannot be served: %s", self.name, newest, version.error)
                return
            version.state = State.AVAILABLE
            LOG.info("%s version %d: %s", self.name, newest, ", ".join(version.saved.signatures))
        if version.state is State.AVAILABLE:
            for other in self.all():
                if other is not version and other.state is State.AVAILABLE:
                    self._drain(other)

    def all(self) -> list[Version]:
        """Return all known versions, newest first."""
        with self._changed:
            return sorted(self.versions.values(), key=lambda version: -version.number)

    def _drain(self, version: Version) -> None:
        with self._changed:
            version.state = State.UNLOADING
            self._changed.wait_for(lambda: version.users == 0)
            version.state, version.saved = State.END, None
        LOG.info("%s version %d: unloaded after its last request", self.name, version.number)

    @contextlib.contextmanager
    def hold(self, number: int | None = None) -> Iterator[Version]:
        """Hold a version during a request: the newest one, or the one with the given number.

        Raises:
            ServingError: If it is not available.
        """
        with self._changed:
            ready = [v for v in self.versions.values() if v.state is State.AVAILABLE]
            ready = [v for v in ready if number is None or v.number == number]
            if not ready:
                asked = f"Latest({self.name})" if number is None else f"Specific({self.name}, {number})"
                raise ServingError(StatusCode.NOT_FOUND, f"Servable not found for request: {asked}")
            version = max(ready, key=lambda v: v.number)
            version.users += 1
        try:
            yield version
        finally:
            with self._changed:
                version.users -= 1
                self._changed.notify_all()


class Models:
    """Models of a directory, which is checked for new versions periodically.

    Args:
        directory: Directory of one model (`VERSION/saved_model.pb`) or of several (`NAME/VERSION/saved_model.pb`).
        seconds: Time between checks for new versions.

    Raises:
        ValueError: If the directory contains no model, or none that can be loaded.
    """

    def __init__(self, directory: Path, seconds: float = 1.0) -> None:
        self.directory, self.seconds = directory.resolve(), seconds
        self.models: dict[str, Model] = {}
        self._stopped = threading.Event()
        self._update()
        if not self.models:
            raise ValueError(
                f"{directory} must contain VERSION/saved_model.pb or NAME/VERSION/saved_model.pb, as written by "
                "`keras-residual export`; it contains neither."
            )
        versions = [version for model in self.models.values() for version in model.all()]
        if not any(version.state is State.AVAILABLE for version in versions):
            raise ValueError(f"None of the models in {directory} can be served: {versions[0].error}")
        self._watch = threading.Thread(target=self._poll, name="versions", daemon=True)
        self._watch.start()

    def __getitem__(self, name: str) -> Model:
        if name not in self.models:
            raise ServingError(StatusCode.NOT_FOUND, f"Servable not found for request: Latest({name})")
        return self.models[name]

    def ready(self) -> bool:
        """Return True if each model has an available version."""
        return all(any(v.state is State.AVAILABLE for v in model.all()) for model in list(self.models.values()))

    def close(self) -> None:
        """Stop checking for new versions."""
        self._stopped.set()

    def _poll(self) -> None:
        while not self._stopped.wait(self.seconds):
            with contextlib.suppress(OSError):  # a directory that is being replaced
                self._update()

    def _update(self) -> None:
        alone = bool(versions_in(self.directory))
        places = [self.directory] if alone else [p for p in self.directory.iterdir() if versions_in(p)]
        for place in sorted(places):
            model = self.models.get(place.name) or Model(place.name, place)
            model.update()
            self.models.setdefault(place.name, model)


def versions_in(path: Path) -> dict[int, Path]:
    """Return the subdirectories that contain a SavedModel, by version number."""
    if not path.is_dir():
        return {}
    numbers = {int(p.name): p for p in path.iterdir() if p.name.isdecimal() and (p / "saved_model.pb").is_file()}
    return {number: p for number, p in numbers.items() if number < 2**63}  # int64 in the protobuf messages


def _files(path: Path) -> set[tuple[str, int, int]]:
    return {(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
