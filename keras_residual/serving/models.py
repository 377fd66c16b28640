"""The models a server has: versions found in directories, loaded, used, and drained when a newer one is there."""

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
    """A request that cannot be answered: why, in words for its sender."""

    def __init__(self, code: StatusCode, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


class State(enum.IntEnum):
    """What becomes of a version, numbered as in TensorFlow Serving's API."""

    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


@dataclasses.dataclass(eq=False)
class Version:
    """One version of a model. `users` is the number of requests that it is answering."""

    number: int
    path: Path
    state: State = State.LOADING
    error: str = ""
    files: Any = None  # what there was to load
    saved: Any = None  # keeps the signatures' tables alive
    users: int = 0

    def load(self) -> None:
        """Reads the version and answers its warm-up requests.

        Raises:
            Exception: Whatever TensorFlow finds wrong with it.
        """
        self.saved = tf.saved_model.load(str(self.path))
        warm_up = self.path / "assets.extra" / "tf_serving_warmup_requests"
        for record in tf.data.TFRecordDataset([str(warm_up)]) if warm_up.is_file() else ():
            request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            self.run(request.model_spec.signature_name, inputs)

    def signature(self, name: str) -> Any:
        """A signature's function; "" stands for `serving_default`.

        Raises:
            ServingError: If there is none of that name.
        """
        function = self.saved.signatures.get(name or "serving_default")
        if function is None:
            known = ", ".join(sorted(self.saved.signatures))
            raise ServingError(
                StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found. There are: {known}.'
            )
        return function

    def run(self, signature: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """A signature's answer to arrays, by name.

        Raises:
            ServingError: If names, types or shapes are not the signature's, or the graph fails.
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
                    f'input "{name}" is {specs[name].dtype.name} {_shape(specs[name].shape.as_list())}; '
                    f"received {dtype} {_shape(value.shape)}",
                )
        try:
            tensors = {name: tf.constant(value, specs[name].dtype) for name, value in inputs.items()}
            return {name: value.numpy() for name, value in function(**tensors).items()}
        except tf.errors.OpError as error:
            bad = error.error_code == tf.errors.INVALID_ARGUMENT
            code = StatusCode.INVALID_ARGUMENT if bad else StatusCode.INTERNAL
            raise ServingError(code, error.message.partition("\n")[0]) from error


def input_specs(function: Any) -> dict[str, Any]:
    """The inputs of a signature by name."""
    return dict(function.structured_input_signature[1])


def _shape(sizes: Any) -> str:
    return f"({', '.join('?' if size is None else str(size) for size in sizes)})"


class Model:
    """A model's versions. Requests hold a version while they use it, so that it is not unloaded under them."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.versions: dict[int, Version] = {}
        self._changed = threading.Condition()

    def update(self) -> None:
        """Loads the largest version if it is not there yet, then drains the others. Takes as long as that takes.

        One that could not be loaded is tried again when its files have changed: it may have been still being copied.
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
            except Exception as error:  # whatever is wrong with a file: the server goes on with the version it has
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
        """Every version that was found, the newest first."""
        with self._changed:
            return sorted(self.versions.values(), key=lambda version: -version.number)

    def _drain(self, version: Version) -> None:
        with self._changed:
            version.state = State.UNLOADING
            self._changed.wait_for(lambda: version.users == 0)
            version.state, version.saved = State.END, None
        LOG.info("%s version %d: ended, it has answered what it was asked", self.name, version.number)

    @contextlib.contextmanager
    def hold(self, number: int | None = None) -> Iterator[Version]:
        """A version to use: the newest one, or the one of a number.

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
    """All models of a directory, which is one model's or holds those of several. Newer versions are looked for.

    Args:
        directory: `NAME/VERSION/saved_model.pb` is in it, or it is such a `NAME`.
        seconds: Time between two looks.

    Raises:
        ValueError: If there is no model in it, or none that can be loaded.
    """

    def __init__(self, directory: Path, seconds: float = 1.0) -> None:
        self.directory, self.seconds = directory.resolve(), seconds
        self.models: dict[str, Model] = {}
        self._stopped = threading.Event()
        self._update()
        if not self.models:
            raise ValueError(f"{directory} holds no SavedModel: neither VERSION/saved_model.pb nor NAME/VERSION/...")
        versions = [version for model in self.models.values() for version in model.all()]
        if not any(version.state is State.AVAILABLE for version in versions):
            raise ValueError(f"No model in {directory} can be served: {versions[0].error}")
        self._watch = threading.Thread(target=self._poll, name="versions", daemon=True)
        self._watch.start()

    def __getitem__(self, name: str) -> Model:
        if name not in self.models:
            raise ServingError(StatusCode.NOT_FOUND, f"Servable not found for request: Latest({name})")
        return self.models[name]

    def ready(self) -> bool:
        """Whether a version of each model can be used."""
        return all(any(v.state is State.AVAILABLE for v in model.all()) for model in list(self.models.values()))

    def close(self) -> None:
        """Looks for versions no longer."""
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
    """Version number -> directory, of those that hold a SavedModel."""
    if not path.is_dir():
        return {}
    numbers = {int(p.name): p for p in path.iterdir() if p.name.isdecimal() and (p / "saved_model.pb").is_file()}
    return {number: p for number, p in numbers.items() if number < 2**63}  # an int64 in the messages


def _files(path: Path) -> set[tuple[str, int, int]]:
    return {(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in path.rglob("*") if file.is_file()}


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
