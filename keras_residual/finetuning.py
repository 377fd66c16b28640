"""From one's own images to a classifier: data, network, recipe, training, report, each with its usual choices."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_residual import __version__, figures, reports
from keras_residual.classifier import Classifier
from keras_residual.io import expand, remove_parts, written_whole
from keras_residual.models import find
from keras_residual.models._checkpoints import require_architecture
from keras_residual.models.pretrained import from_pretrained
from keras_residual.weights import Preprocess, Weights, preprocessing

__all__ = ["finetune"]

_FINISHED, _TO_TRAIN = "finished", "to train"
_RUN = "run.json"
_FILES = ("config.json", "model.keras", "weights.safetensors", "labels.txt", "history.csv", "metrics.json")
_FILES += ("curves.png", "confusion.png", "mistakes.png", "predictions.csv")


def finetune(
    data: Any,
    model: str = "ResNet18",
    weights: str | os.PathLike[str] | None = "imagenet",
    epochs: int | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    seed: int = 0,
    validation: Any = 0.2,
    recipe: Any = None,
    size: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    head_epochs: int | None = None,
    batch_norm: str | None = None,
    class_weights: bool | str = "auto",
    patience: int | None = None,
    precision: str = "auto",
    jit: bool | str = "auto",
    deterministic: bool = False,
    overwrite: bool = False,
    devices: Sequence[str] | None = None,
    coordinator: str | None = None,
    processes: int = 1,
    process_id: int = 0,
    say: Callable[[str], None] = print,
    **options: Any,
) -> Classifier:
    """Trains a classifier on one's own images and writes all there is to know of it into a run directory.

    The classifier's head is trained first, then everything, lower layers more slowly; what is not given is chosen by
    the size of the data, after BiT's HyperRule (Kolesnikov et al. 2020). The same call, started again after an
    interruption, goes on where it was.

    Args:
        data: What `keras_residual.data.load` reads: a folder per class, a manifest, `"tfds:NAME"`, arrays ...
        model: Name of a registered network. Not needed where `weights` is a repository or a run.
        weights: `"imagenet"` for the network's default checkpoint, a repository such as `"timm/resnet18.a1_in1k"`, a
            directory or file; `None` to begin from scratch.
        epochs: Passes over the training images.
        output: The run directory; `runs/MODEL` if `None`.
        seed: Of the split, of new weights, of the order of images and of augmentation.
        validation: Part of the images that validates, or a source of its own.
        recipe: Name of a preset of `keras_residual.training`, or a `Recipe`; `"finetune"` if `None`.
        size: Height and width of the images; the checkpoint's if `None`, in training that of a recipe you name.
        batch_size: Images in a step.
        learning_rate: The highest one, for this batch size.
        head_epochs: Epochs, of all, in which only the head is trained.
        batch_norm: `"frozen"` keeps the checkpoint's statistics, `"train"` goes on with them.
        class_weights: Whether rare classes weigh more; `"auto"`: where the largest has more than 3 times the images
            of the smallest.
        patience: Epochs without a better validation accuracy (of equal ones: loss) after which training stops; `None`
            for never.
        precision: `"auto"`, or a dtype policy of Keras such as `"mixed_bfloat16"`.
        jit: Whether XLA compiles the step; `"auto"` decides by the device.
        deterministic: Whether the same seed gives the same bits; somewhat slower on GPUs.
        overwrite: Whether a run of other settings that lies there is replaced.
        devices: Devices of this machine that share each batch; all GPUs if `None`.
        coordinator: `"HOST:PORT"` of the process number 0, where several machines train together (Keras on JAX). Each
            calls this with the same arguments but `process_id`, before anything else of JAX, and reads its part of each
            batch from its own copy of the data. Number 0 writes the run; the others keep checkpoints only.
        processes: How many processes there are.
        process_id: Which one this is, from 0 on.
        say: Gets each line for the user; of process 0 alone.
        **options: The network builder's own options, for example `drop_path=0.1`.

    Returns:
        The classifier, with the weights of the best epoch.

    Raises:
        ValueError: If the data cannot be trained on, a run of other settings lies in `output`, or several processes are
            asked for on TensorFlow.
        PeerError: A `ConnectionError`, if another process has ended.
        FileNotFoundError: If data or weights are not there; the error says what to do.
    """
    from keras_residual.data import load
    from keras_residual.training import best_precision, distributed, fit, start
    from keras_residual.training import recipe as preset

    if (coordinator, processes, process_id) != (None, 1, 0):
        start(coordinator, processes, process_id)
        say = say if process_id == 0 else _nothing
    scope, count = distributed.shared(devices)
    try:
        json.dumps(options)
    except TypeError as error:
        raise ValueError(
            f"A run keeps its options as JSON, so they are numbers, strings and booleans. Received: {options!r} "
            f"({error}). For others build the network yourself and call keras_residual.fit."
        ) from None
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"seed is a number from 0 to 2**32 - 1. Received: {seed}.")
    if isinstance(recipe, str):  # what is wrong with names is said before the images are read, which may take minutes
        recipe = preset(recipe)
    source = _source(model, weights)
    record = None if source is None else _record(source)
    name = find(record.architecture if record else model).config.name
    row = find(name).config
    folder = Path(output if output is not None else Path("runs") / name)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"A run is written into a directory. Received: {str(folder)!r}, which is a file.")
    found = load(data, validation=validation, seed=seed, progress=_Reading(say))
    say(f"data        {found}")
    for words in found.warnings:
        say(f"warning     {words}")
    if not len(found.validation):
        raise ValueError(
            "Fine-tuning chooses its best epoch by validation images. Received: none. Say validation=0.2, or give more "
            "images: a class of one image has none to spare."
        )
    settings = _settings(recipe, len(found.train), row, source is None)
    changes = {"epochs": epochs, "learning_rate": learning_rate, "head_epochs": head_epochs, "batch_norm": batch_norm}
    if head_epochs is None:  # of few epochs most train everything, unless a recipe says otherwise
        total = epochs or settings.epochs
        changes["head_epochs"] = min(settings.head_epochs, total // 3 if recipe is None else total - 1)
    changes |= {"batch_size": batch_size, "rate_batch": None if learning_rate is None else batch_size}
    settings = settings.replace(**{key: value for key, value in changes.items() if value is not None})
    if batch_size is None:  # it divides among all devices
        settings = settings.replace(batch_size=max(1, settings.batch_size // count) * count)
    if settings.drop_path and "drop_path" not in options:
        options["drop_path"] = settings.drop_path
    prepare = _preprocess(record, row, size, found.train.channels)
    settings = settings.replace(head_epochs=min(settings.head_epochs, settings.epochs - 1))
    if size is not None or recipe is None:
        settings = settings.replace(size=None, growth=())  # images have one size, in training and evaluation
    sizes = {settings.image_size(epoch, settings.epochs) or prepare.size[0] for epoch in range(settings.epochs)}
    fixed = sizes == {prepare.size[0]} or not row.dynamic_size
    shape = (*(prepare.size if fixed else (None, None)), found.train.channels)
    counts = np.bincount(found.train.labels, minlength=len(found.labels))
    balance = _class_weights(counts, class_weights)

    about = {
        "version": __version__,
        "data": str(data) if isinstance(data, (str, os.PathLike)) else type(data).__name__,
        "fingerprint": found.fingerprint,
        "labels": list(found.labels),
        "model": name,
        "options": options,
        "weights": None if source is None else str(source),
        "recipe": settings.to_dict(),
        "size": list(prepare.size),
        "class_weights": balance,
        "seed": seed,
        "validation": validation if isinstance(validation, float) else str(validation),
        "precision": precision,
        "deterministic": deterministic,
    }
    with distributed.explained():
        finished = distributed.first(lambda: _begin(folder, about, overwrite)) == _FINISHED
    if finished:
        say(f"finished    {folder} holds this very run; overwrite=True (--overwrite) trains it again.")
        distributed.alone()
        return Classifier.load(folder)
    if process_id == 0:
        found.write_skipped(folder / "skipped.csv")
    if found.skipped:
        say(f"left out    {len(found.skipped)} images, listed in {folder / 'skipped.csv'}")

    keras.utils.set_random_seed(seed)
    with _forgotten_if_refused(folder) if process_id == 0 else contextlib.nullcontext():
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(best_precision() if precision == "auto" else precision)
        try:
            with scope:
                network = _network(name, source, record, len(found.labels), shape, options)
        finally:
            keras.config.set_dtype_policy(policy)
        history = fit(
            network,
            settings,
            found.train,
            found.validation,
            seed=seed,
            directory=folder / "training",
            preprocess=prepare,
            class_weight=balance,
            fingerprint=found.fingerprint,
            patience=patience,
            jit=jit,
            deterministic=deterministic,
            logs=folder / "tensorboard",
        )
    classifier = Classifier(distributed.single(network), prepare, found.labels, name, options)
    if process_id:
        return classifier
    reports.write_history(history, folder / "history.csv")
    figures.draw_curves(
        history,
        folder / "curves.png",
        f"{name} on {Path(about['data']).name or about['data']}, {'new' if source is None else 'pretrained'} weights",
        best=history.best_epoch,
        head=settings.head_epochs,
        constant=float((found.validation.labels == counts.argmax()).mean()),
    )
    measured = reports.write_report(
        classifier, found.validation, folder, majority=int(counts.argmax()), batch_size=settings.batch_size
    )
    classifier.save(folder, {**about, "metrics": measured})  # the config is written last: it says that all is there
    say(
        f"held out    {measured['accuracy']:.2%} of {int(measured['images']):,} images right (always "
        f"{found.labels[int(counts.argmax())]!r}: {measured['majority_accuracy']:.2%}), macro F1 "
        f"{measured['macro_f1']:.3f}, calibration error {measured['calibration_error']:.3f}"
    )
    say(f"written to  {folder}/: {', '.join(_FILES)}, tensorboard/")
    return classifier


class _Reading:
    """Says how far the first reading of images is: after some seconds, and now and then from there on."""

    def __init__(self, say: Callable[[str], None], first: float = 5.0, then: float = 15.0) -> None:
        self.say, self.due, self.then = say, first, then
        self.begun, self.known = time.monotonic(), None

    def __call__(self, done: int, of: int) -> None:
        self.known = done if self.known is None else self.known  # many of them from the cache
        seconds = time.monotonic() - self.begun
        if seconds > self.due:
            rate = (done - self.known) / seconds
            left = f", {(of - done) / rate:,.0f} s left" if rate and done < of else ""
            self.say(f"reading     {done:,} of {of:,} images, {rate:,.0f} images/s{left}")
            self.due = seconds + self.then


def _nothing(line: str) -> None:
    """Says nothing: what process 0 says is enough."""


def _source(model: str, weights: Any) -> str | os.PathLike[str] | None:
    """Where weights come from, with the default checkpoint's name in full."""
    if weights != "imagenet":
        return weights
    row = find(model).config
    if row.tag is None:
        raise ValueError(
            f"{row.name} has no default ImageNet checkpoint. Received: weights='imagenet'. Name a repository or a "
            "file, or begin from scratch with weights=None (--weights none)."
        )
    return f"timm/{row.timm}.{row.tag}"


def _record(source: Any) -> Weights | None:
    """What a checkpoint says of itself; a plain file says nothing."""
    if expand(source).is_file():
        return None
    require_architecture(source)
    return Weights.read(source)


def _network(
    name: str, source: Any, record: Any, classes: int, shape: tuple[int | None, ...], options: Any
) -> keras.Model:
    if record is not None:
        return from_pretrained(source, classes=classes, input_shape=shape, **options)
    builder = find(name).builder
    weights = None if source is None else str(source)
    return builder(weights=weights, classes=classes, input_shape=shape, classifier_activation=None, **options)


def _preprocess(record: Weights | None, row: Any, size: int | None, channels: int) -> Preprocess:
    """The checkpoint's preprocessing at the wanted size; ImageNet's mean and deviation where there is none."""
    if record is not None:
        layer = preprocessing(record)
    else:
        layer = Preprocess(row.input_shape[:2], crop=0.875 if row.input_shape[0] > 64 else 1.0)
    given = layer.get_config()
    if channels != len(layer.mean):  # as timm does where it sums the first kernel's channels
        given["mean"], given["std"] = ((sum(given[key]) / len(given[key]),) * channels for key in ("mean", "std"))
    if size is not None:
        given["size"] = (size, size)
    return Preprocess.from_config(given)


def _settings(recipe: Any, images: int, row: Any, from_scratch: bool) -> Any:
    """A recipe, fitted to the size of the data as BiT's HyperRule does, within what one waits for."""
    from keras_residual.training import recipe as preset

    if recipe is not None:
        return recipe
    chosen = preset("finetune")
    # HyperRule: 500 steps of 512 images below 20,000 images, 10,000 below 500,000, 20,000 beyond; MixUp but for the
    # smallest. 30 epochs at the most: the rule would see 300 images 850 times.
    steps = 500 if images < 20_000 else 10_000 if images < 500_000 else 20_000
    epochs = min(30, max(3, math.ceil(steps * 512 / images)))
    batch = chosen.batch_size
    while batch > 4 and batch * 8 > images:  # some steps an epoch, also of a hundred images
        batch //= 2
    chosen = chosen.replace(epochs=epochs, batch_size=batch, mixup=0.1 if images >= 20_000 else 0.0)
    if from_scratch:
        return chosen.replace(
            name="scratch",
            source="",
            learning_rate=2e-3,
            head_rate=None,
            layer_decay=1.0,
            label_smoothing=0.1,
            head_epochs=0,
            batch_norm="train",
        )
    # With BiT's SGD (rate 0.003, three epochs for the head) a small network stayed at chance on 60 digits of five new
    # classes, 20 %; a linear classifier on its features had 87 %, training from scratch 79 %. AdamW with rates by layer
    # and a third of the epochs for the head: 82 %. One seed each: benchmarks/rates.py compares more.
    return chosen.replace(head_epochs=epochs // 3)


def _class_weights(counts: np.ndarray[Any, Any], wanted: bool | str) -> tuple[float, ...] | None:
    """Weights that give each class the same part of the loss; their mean over the images is 1."""
    if wanted is False or (wanted == "auto" and counts.max() <= 3 * counts.min()):
        return None
    return tuple(float(counts.sum() / (len(counts) * count)) for count in counts)


def _begin(folder: Path, about: Mapping[str, Any], overwrite: bool) -> str:
    """Makes the run directory, or finds the same run in it; answers whether it is finished.

    Raises:
        ValueError: If another run lies there; the error names each difference.
    """
    path, finished = folder / _RUN, (folder / "config.json").is_file()
    wanted = json.loads(json.dumps(about))
    if folder.is_dir():
        remove_parts(folder)
    if path.is_file():
        different = _different(json.loads(path.read_text(encoding="utf-8")), wanted)
        if not different and not (finished and overwrite):
            return _FINISHED if finished else _TO_TRAIN
        if not overwrite:
            raise ValueError(
                f"A run directory holds one run. Received: {str(folder)!r}, which holds another one:\n  "
                + "\n  ".join(different)
                + "\nName another directory (output=, --output), or replace it (overwrite=True, --overwrite)."
            )
        _clear(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise ValueError(f"A run begins in an empty directory. Received: {str(folder)!r}, which has other files.")
    folder.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_text(json.dumps(wanted, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return _TO_TRAIN


@contextlib.contextmanager
def _forgotten_if_refused(folder: Path) -> Iterator[None]:
    """A run that fails before its first checkpoint leaves nothing that the mended command would have to overwrite."""
    try:
        yield
    except Exception:
        if not any(folder.glob("training/**/step-*.safetensors")):
            _clear(folder)
            (folder / _RUN).unlink()
            with contextlib.suppress(OSError):  # something of the user's is there
                folder.rmdir()
        raise


def _clear(folder: Path) -> None:
    """Removes what a run has written, and nothing else; `config.json` first, by which a run is finished."""
    import shutil

    for name in (*_FILES, "skipped.csv"):
        (folder / name).unlink(missing_ok=True)
    for name in ("training", "tensorboard", "inspect"):
        shutil.rmtree(folder / name, ignore_errors=True)


def _different(there: Any, wanted: Any) -> list[str]:
    """What differs, in words."""
    from keras_residual.training.checkpoint import differences

    found = [line for line in differences(there, wanted) if not line.startswith("fingerprint:")]
    if there.get("fingerprint") != wanted["fingerprint"]:
        found.append("images: some were added, removed or changed, or validate that did not")
    return found
