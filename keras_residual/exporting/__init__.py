"""SavedModels that TensorFlow Serving runs as they are: a directory per version, which appears whole or not at all."""

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
from keras_residual.weights import Weights, preprocessing

__all__ = ["export"]

# protobuf's 2 GiB less the graph itself, which takes some megabytes.
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
) -> Path:
    """Writes a model as a SavedModel into `path/VERSION/`, the layout that TensorFlow Serving watches.

    Signatures, each with one input called `inputs`, for any number N of samples:

    * `serving_default`: without `preprocess` the model's own input, float32 `(N, *input_shape)`; with it pixels of
      0..255, float32 `(N, height, width, C)`, of any one size. Of a model that ends in softmax or sigmoid, or has
      `labels`: `probabilities` `(N, classes)`, and of the `top_k` likeliest, in order, `scores` and `classes`
      (int32), both `(N, k)`. Of other models: `outputs`.
    * `features`: likewise to `features`, what the classifier sees. Not of models without one.
    * `serving_uint8`: as `serving_default`, from uint8 pixels. This and the rest only with `preprocess`.
    * `serving_bytes`: encoded images, strings `(N,)`. Beside the others `labels` `(N, k)`, strings, and `errors`
      `(N,)`, strings: "" or why this image could not be read; then its row is zeros, its classes -1, its labels "".
    * `classify`: for TensorFlow Serving's Classify, serialized `tf.Example`s with `image/encoded`.

    All floating outputs are float32. For alpha, EXIF and 16 bits see `keras_residual.reading.graph`.
    Every signature is run on the written model before the version appears; these requests are its warm-up.

    Args:
        model: A built model with one input and one output.
        path: The model's directory, `saved_models/NAME`; `~` and environment variables are expanded. Configuration
            and clients for serving go there, too.
        labels: The classes' names; those of `preprocess`, if it is a record that has them.
        preprocess: `keras_residual.preprocessing(...)`, or another layer from pixels of 0..255 `(N, H, W, C)` to the
            model's input; or a record of weights.
        version: The version's number; one more than the largest there if `None`.
        fold: Whether to fold batch normalisations into the layers beside them.
        freeze: Whether to store weights as constants, which is faster. Models over protobuf's 2 GB are not frozen.
        top_k: How many classes `classes`, `scores` and `labels` name.
        max_pixels: Larger encoded images are refused.
        notes: What else the model card shall say, in Markdown: data, accuracy, licence, the command that made it.

    Returns:
        The version's directory.

    Raises:
        RuntimeError: If Keras does not run on TensorFlow, or the written model does not answer as `model` does.
        ValueError: If the model has several inputs or outputs, or labels, preprocessing and model do not fit.
        FileExistsError: If the version is there.
        OSError: If it cannot be written, for example on a full disk. Nothing of it is left then.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"A SavedModel is written by Keras on TensorFlow. Received: KERAS_BACKEND={keras.backend.backend()}. Save "
            "the weights, and export them in a process with KERAS_BACKEND=tensorflow."
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
            f"{model.name} is not frozen: its weights are {size / 2**30:.1f} GiB, and a graph holds 2 GiB.",
            stacklevel=2,
        )
        freeze = False

    with _staged(path) as stage:
        names = None
        if labels is not None:
            names = stage / "labels.txt"
            names.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        served = graph.serve(served_model, names, preprocess, freeze, top_k, max_pixels)
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        with graph.quiet("tensorflow"):  # it would name the temporary directory, which is gone afterwards
            tf.saved_model.save(served.root, str(stage / "version"), signatures=served.signatures, options=options)
        bundle.complete(stage / "version", model, served, labels, preprocess, report, notes)
        bundle.write_beside(path, served)
        return _publish(stage / "version", path, version)


def _check(
    model: keras.Model, labels: Sequence[str] | None, preprocess: Any, top_k: int, path: Path, version: int | None
) -> None:
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"export takes models of one input and one output. Received: {len(model.inputs)} inputs and "
            f"{len(model.outputs)} outputs."
        )
    shape, outputs = tuple(model.inputs[0].shape[1:]), model.outputs[0].shape
    if labels is not None and (len(outputs) != 2 or len(labels) != outputs[-1]):
        raise ValueError(
            f"labels has a name for each output, of shape {tuple(outputs)}. Received: {len(labels)} names."
        )
    if labels is not None and any(not name or name.splitlines() != [name] for name in labels):
        raise ValueError("A label is text on one line. Received: an empty one, or one of several lines.")
    if preprocess is not None:
        if len(shape) != 3 or shape[-1] not in (1, 3):
            raise ValueError(f"preprocess is for images of 1 or 3 channels. Received: a model of inputs {shape}.")
        size = tuple(preprocess.compute_output_shape((None, None, shape[-1])))
        if None in size or any(have not in (None, want) for have, want in zip(shape, size, strict=True)):
            raise ValueError(f"preprocess must give what the model takes, {shape}. Received: one that gives {size}.")
    if top_k < 1:
        raise ValueError(f"top_k is a positive number. Received: {top_k}.")
    if version is not None and (isinstance(version, bool) or not isinstance(version, int) or version < 1):
        raise ValueError(f"version is a positive whole number. Received: {version!r}.")
    if version is not None and (path / str(version)).exists():
        raise FileExistsError(f"{path / str(version)} is there already. Leave version out for the next number.")


@contextlib.contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """A directory beside the versions that goes away, whatever happens. TensorFlow Serving looks at numbers only."""
    import tensorflow as tf

    path.mkdir(parents=True, exist_ok=True)
    for left in path.glob(".*.part"):  # by an export that was killed
        if left.name[1:-5].isdigit() and not _runs(int(left.name[1:-5])):
            shutil.rmtree(left, ignore_errors=True)
    stage = path / f".{os.getpid()}.part"
    try:
        stage.mkdir()
        yield stage
    except tf.errors.OpError as error:  # TensorFlow's own way to say that a disk is full
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
    """Renames a finished version to its number, once all of it is on the disk."""
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
