"""Export of models as SavedModels for TensorFlow Serving, one directory per version, published atomically."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_residual.folding import Folding, fold_batch_norm, folding
from keras_residual.io import expand
from keras_residual.reading.rules import Reading
from keras_residual.weights import Weights, preprocessing

__all__ = ["export"]

# protobuf's limit of 2 GiB, minus room for the graph itself
LARGEST_GRAPH = 2**31 - 2**26


def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    labels: Sequence[str] | None = None,
    preprocess: keras.layers.Layer | Weights | None = None,
    version: int | None = None,
    fold: bool = True,
    freeze: bool = True,
    top_k: int = 5,
    max_pixels: int = 64_000_000,
    notes: str = "",
    reading: Reading | None = None,
) -> Path:
    """Export a model as a SavedModel into `path/VERSION/`, the layout that TensorFlow Serving watches.

    The SavedModel has the following signatures. Each takes one input named `inputs` with any number N of samples.

    * `serving_default`: takes the model's input, float32 `(N, *input_shape)`, or with `preprocess` pixels of 0..255,
      float32 `(N, height, width, C)`, of any size. If the model ends in softmax or sigmoid or has `labels`, returns
      `probabilities` `(N, classes)` and, for the `top_k` most likely classes in descending order, `scores` and
      `classes` (int32), both `(N, k)`. Otherwise returns `outputs`.
    * `features`: takes the same input and returns `features`, the input of the classifier. Missing if the model has
      no classifier.
    * `serving_uint8`: like `serving_default`, with uint8 pixels. This and the following signatures need `preprocess`.
    * `serving_bytes`: takes encoded images, strings `(N,)`. Also returns `labels` `(N, k)`, strings, and `errors`
      `(N,)`, strings. An error is "" or the reason why the image could not be read; its row is then filled with zeros,
      its classes with -1 and its labels with "".
    * `classify`: for TensorFlow Serving's Classify API; takes serialized `tf.Example`s with `image/encoded`.

    All floating-point outputs are float32. Encoded images are read by the rules of `reading`, as in training;
    `keras_residual.reading.graph` documents what it rejects. Every signature is run on the written model before the
    version is published, and these requests become its warm-up requests.

    Args:
        model: A built model with one input and one output.
        path: Directory of the model, such as `saved_models/NAME`; `~` and environment variables are expanded. The
            serving configuration and the example clients are also written there.
        labels: Names of the classes; defaults to those of `preprocess`, if it is a `Weights` record with labels.
        preprocess: `keras_residual.preprocessing(...)`, a `Weights` record, or any layer that converts pixels of 0..255
            `(N, H, W, C)` to the model's input.
        version: Version number; defaults to the largest existing number plus one.
        fold: If true, fold batch normalisations into the adjacent layers.
        freeze: If true, store the weights as constants, which is faster. Models larger than protobuf's limit of 2 GB
            are not frozen.
        top_k: Number of classes in `classes`, `scores` and `labels`.
        max_pixels: Largest accepted encoded image, in pixels.
        notes: Additional Markdown for the model card: data, accuracy, licence, the command that created the model.
        reading: Rules by which encoded images are read, stored in `metadata.json`. Defaults to compositing transparent
            images on white. `Classifier.export` passes the rules of its run.

    Returns:
        The directory of the version.

    Raises:
        RuntimeError: If Keras does not run on TensorFlow, or if the exported model's outputs differ from `model`'s.
        ValueError: If the model has several inputs or outputs, or if labels, preprocessing and model do not match.
        FileExistsError: If the version exists.
        OSError: If the version cannot be written, for example because the disk is full. Partial output is removed.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"The Keras backend must be TensorFlow to export a SavedModel; got {keras.backend.backend()!r}. Save the "
            "weights, and export them in a process with KERAS_BACKEND=tensorflow."
        )
    if isinstance(preprocess, Weights):
        labels = preprocess.labels or None if labels is None else labels
        preprocess = preprocessing(preprocess)
    path = expand(path)
    _check(model, labels, preprocess, top_k, path, version)

    import tensorflow as tf

    from keras_residual.exporting import bundle, graph

    report = folding(model) if fold else Folding({}, {}, {})
    served_model = fold_batch_norm(model) if fold else model
    size = sum(variable.value.shape.num_elements() * variable.value.dtype.size for variable in served_model.variables)
    if freeze and size > LARGEST_GRAPH:
        warnings.warn(
            f"Exporting {model.name} without freezing: its weights are {size / 2**30:.1f} GiB, but a graph is limited "
            "to 2 GiB.",
            stacklevel=2,
        )
        freeze = False

    with _staged(path) as stage:
        names = None
        if labels is not None:
            names = stage / "labels.txt"
            names.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        served = graph.serve(served_model, names, preprocess, freeze, top_k, max_pixels, reading)
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        with graph.quiet("tensorflow"):  # TensorFlow logs the temporary directory
            tf.saved_model.save(served.root, str(stage / "version"), signatures=served.signatures, options=options)
        bundle.complete(stage / "version", model, served, labels, preprocess, report, notes, reading or Reading())
        bundle.write_serving_files(path, served)
        return _publish(stage / "version", path, version)


def _check(
    model: keras.Model, labels: Sequence[str] | None, preprocess: Any, top_k: int, path: Path, version: int | None
) -> None:
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"The model must have one input and one output to be exported; got {len(model.inputs)} inputs and "
            f"{len(model.outputs)} outputs."
        )
    shape, outputs = tuple(model.inputs[0].shape[1:]), model.outputs[0].shape
    if labels is not None and (len(outputs) != 2 or len(labels) != outputs[-1]):
        raise ValueError(
            f"`labels` must have one name for each output of the model, whose shape is {tuple(outputs)}; got "
            f"{len(labels)} names."
        )
    if labels is not None and (bad := [name for name in labels if not name or name.splitlines() != [name]]):
        raise ValueError(f"Each label must be a non-empty text without line breaks; got {bad[0]!r}.")
    if preprocess is not None:
        if len(shape) != 3 or shape[-1] not in (1, 3):
            raise ValueError(
                f"`preprocess` requires a model for images with 1 or 3 channels; got a model with inputs {shape}."
            )
        size = tuple(preprocess.compute_output_shape((None, None, shape[-1])))
        if None in size or any(have not in (None, want) for have, want in zip(shape, size, strict=True)):
            raise ValueError(f"The output of `preprocess` must have the model's input shape {shape}; got {size}.")
    if top_k < 1:
        raise ValueError(f"`top_k` must be positive; got {top_k}.")
    if version is not None and (isinstance(version, bool) or not isinstance(version, int) or version < 1):
        raise ValueError(f"`version` must be a positive integer; got {version!r}.")
    if version is not None and (path / str(version)).exists():
        raise FileExistsError(f"{path / str(version)} already exists. Omit `version` to use the next number.")


@contextlib.contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """Create a temporary directory next to the versions. TensorFlow Serving ignores names that are not numbers."""
    import tensorflow as tf

    path.mkdir(parents=True, exist_ok=True)
    for left in path.glob(".*.part"):  # left by a killed export
        if left.name[1:-5].isdigit() and not _runs(int(left.name[1:-5])):
            shutil.rmtree(left, ignore_errors=True)
    stage = path / f".{os.getpid()}.part"
    try:
        stage.mkdir()
        yield stage
    except tf.errors.OpError as error:  # TensorFlow raises this when the disk is full
        raise OSError(f"No version was written to {path}: {error.message}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _publish(stage: Path, path: Path, version: int | None) -> Path:
    """Flush a finished version to disk and rename it to its number."""
    for place in (*stage.rglob("*"), stage):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    while True:
        number = version or 1 + max((int(p.name) for p in path.iterdir() if p.name.isdigit()), default=0)
        try:
            os.rename(stage, path / str(number))
            return path / str(number)
        except OSError as error:  # another export took the number
            if version is not None or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
