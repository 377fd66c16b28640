"""Fine-tune a network on your own images: plan, train, report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

from keras_residual import __version__, figures, reports
from keras_residual.baseline import Baseline, on_features, on_pixels
from keras_residual.classifier import Classifier
from keras_residual.graph import classifier_input, connected
from keras_residual.io import announce, expand, literal, sha256
from keras_residual.models import find
from keras_residual.models._checkpoints import default_checkpoint, require_architecture
from keras_residual.models.pretrained import from_pretrained
from keras_residual.run_directory import RunDirectory
from keras_residual.weights import Preprocess, Weights, preprocessing
from keras_residual.weights.sources import weights_file

__all__ = ["finetune"]

# Upper limit of a class weight relative to the most frequent class: two images that make up half of the loss would be
# memorised.
MOST_WEIGHT = 10.0
SHEET = "augmented.png"
MOST_LOST = 1 / 3  # part of the typical image outside the evaluation crop, above which a warning is printed
UNBALANCED = 3  # ratio of the largest to the smallest class, above which classes are weighted


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
    background: Any = "white",
    value_range: Any = None,
    channels: int | Literal["auto"] = "auto",
    learning_rate: float | None = None,
    head_epochs: int | None = None,
    batch_norm: str | None = None,
    resize: str | None = None,
    flip: str | bool | None = None,
    augment: str | None = None,
    crop_scale: tuple[float, float] | None = None,
    class_weights: bool | str = "auto",
    patience: int | None = None,
    precision: str = "auto",
    jit: bool | Literal["auto"] = "auto",
    deterministic: bool = False,
    overwrite: bool = False,
    resume: bool | Literal["anyway"] = True,
    devices: Sequence[str] | None = None,
    coordinator: str | None = None,
    processes: int = 1,
    process_id: int = 0,
    say: Callable[[str], None] = announce,
    **options: Any,
) -> Classifier:
    """Train a classifier on your own images and write it, with its report, to a run directory.

    The head is trained first, then all layers, lower ones more slowly. Settings that are not given are chosen by the
    size of the dataset, after BiT's HyperRule (Kolesnikov et al. 2020). The same call resumes an interrupted run;
    with more `epochs` it continues a finished one. The classifier is on disk before the report is attempted.

    Args:
        data: Any source that `keras_residual.data.load` reads: a directory with one folder per class, a table,
            `"tfds:NAME"`, arrays and more.
        model: Name of a network; ignored if `weights` is a repository or a run.
        weights: `"imagenet"` for the network's default checkpoint, a repository such as `"timm/resnet18.a1_in1k"`, a
            directory or file; `None` to train from scratch.
        epochs: Number of epochs; chosen by the size of the dataset if `None`.
        output: The run directory; `runs/MODEL` if `None`.
        seed: Seed of the split, new weights, shuffling and augmentation.
        validation: Fraction of the images for validation, or a separate source.
        recipe: Name of a preset of `keras_residual.training`, or a `Recipe`; `"finetune"` if `None`.
        size: Height and width of the images; by default the checkpoint's, and in training the recipe's if one is given.
        batch_size: Images per step.
        background: Color on which transparent images are composited: `"white"`, `"black"`, `"R,G,B"`, or `"drop"` to
            drop the transparency. This and the next two are those of `keras_residual.data.load`.
        value_range: Sample values that mean black and white: `"LOW,HIGH"`, `"auto"`, or `None` for the range of the
            sample type.
        channels: Number of channels of the images, or `"auto"`. With other than three channels, the first kernel of a
            checkpoint is adapted.
        learning_rate: Peak learning rate, for this batch size.
        head_epochs: How many of the epochs train only the head; all of them for a linear probe.
        batch_norm: `"frozen"` keeps the checkpoint's statistics, `"train"` updates them.
        resize: `"crop"` crops images to the network's aspect ratio, `"squash"` resizes the whole image, ignoring its
            aspect ratio, and `"letterbox"` resizes the whole image and pads it with the mean color, in training and
            evaluation alike; by default random crops in training and the checkpoint's crop in evaluation, or what
            corresponds to the crops of `recipe`.
        flip: `"none"`, `"horizontal"`, `"vertical"` or `"both"`: how images are mirrored at random; by default as in
            the recipe, horizontally.
        augment: `"none"` for no random changes, crops and flips included; `"light"` for colors, small rotations,
            shifts and zooms; `"strong"` for RandAugment, erasing and MixUp; by default as in the recipe.
        crop_scale: Smallest and largest area of random crops, as a fraction of the image's, for example `(0.5, 1)`; by
            default that of the recipe.
        class_weights: Whether rare classes get a higher weight in the loss, up to 10 times that of the most frequent
            class; `"auto"` applies weights if the largest class has more than 3 times the images of the smallest. With
            weights, the best epoch is chosen by macro F1 instead of accuracy.
        patience: Stop after this many epochs without improvement on the validation split; `None` never stops early.
        precision: `"auto"`, or a dtype policy of Keras such as `"mixed_bfloat16"`.
        jit: Whether XLA compiles the step; `"auto"` decides by the device.
        deterministic: Whether runs with the same seed are bit-identical; slightly slower on GPUs.
        overwrite: Whether to replace a run with different settings in `output`.
        resume: `"anyway"` resumes an interrupted run even if settings or versions differ.
        devices: Devices of this machine that share each batch; all GPUs if `None`.
        coordinator: `"HOST:PORT"` of process 0 if several machines train together (Keras on JAX). Each process calls
            `finetune` with the same arguments except `process_id`, before any other use of JAX, and reads its part of
            each batch from its own copy of the data. Process 0 writes the run; the others write checkpoints only.
        processes: Number of processes.
        process_id: Number of this process, from 0.
        say: Receives each line for the user, from process 0 only.
        **options: Further arguments of the network's builder, for example `drop_path=0.1`.

    Returns:
        The classifier, with the weights of the best epoch.

    Raises:
        ValueError: If the data cannot be trained on, `output` contains another run, or several processes are requested
            on TensorFlow.
        LockedError: If another process is writing to `output`.
        OSError: If `output` is not writable or lacks space, or images disappear during training.
        NonFiniteError: If the loss or a weight becomes NaN or infinite; the last good weights are saved.
        PeerError: A `ConnectionError`, if another process has ended.
        FileNotFoundError: If data or weights do not exist; the message says what to do.
    """
    from keras_residual.data.loading import existing
    from keras_residual.training import Execution, Recipe, Selection, distributed, start

    if (coordinator, processes, process_id) != (None, 1, 0):
        start(coordinator, processes, process_id)
        say = say if process_id == 0 else _silent
    scope, count = distributed.shared(devices)
    if not 0 <= seed < 1 << 32:
        raise ValueError(f"seed must be from 0 to 2**32 - 1; got {seed}.")
    if resume not in (True, "anyway"):
        raise ValueError(f"resume must be True or 'anyway'; got {resume!r}.")
    selection, execution = Selection(patience=patience), Execution(jit=jit, deterministic=deterministic)
    asked = {"recipe": recipe, "epochs": epochs, "size": size, "batch_size": batch_size}
    asked |= {"learning_rate": learning_rate, "head_epochs": head_epochs, "batch_norm": batch_norm}
    viewed = {"resize": resize, "flip": flip, "augment": augment, "crop_scale": crop_scale}
    asked |= {name: value for name, value in viewed.items() if value is not None}  # as version 0.1 without them
    _with_views(Recipe(), asked)  # refuses bad values before data is read and weights are downloaded
    for source in (data, validation):
        if isinstance(source, str | os.PathLike):
            existing(source)  # before weights are downloaded
    network = _Network.of(model, weights, options)
    run = RunDirectory(expand(output if output is not None else Path("runs") / network.name))
    with contextlib.ExitStack() as stack, distributed.explained():
        distributed.first(lambda: stack.enter_context(run.writing()) or "")
        reading = {"background": background, "value_range": value_range, "channels": channels}
        found = _read(data, validation, seed, say, reading)
        plan = _plan(found, network, asked, class_weights, count)
        about = {
            **plan.record(),
            "asked": asked | {"recipe": recipe if isinstance(recipe, str | None) else recipe.to_dict()},
            "data": str(data) if isinstance(data, str | os.PathLike) else type(data).__name__,
            "validation": validation if isinstance(validation, float) else None,
            "validation_source": None if isinstance(validation, float) else str(validation),
            "seed": seed,
            "reading": found.reading.to_dict(),
            "precision": precision,
            "deterministic": deterministic,
        }
        begun = json.loads(distributed.first(lambda: _begun(run, about, overwrite, resume == "anyway")))
        plan, about = plan.with_recipe(begun["recipe"]), {**about, "recipe": begun["recipe"]}
        if begun["finished"]:
            _prune(run.path)  # in case the process was killed before
            say(f"finished    {run.path} already contains this completed run. To train it further, give more --epochs.")
            distributed.alone()
            return Classifier.load(run.path)
        if process_id == 0:
            found.write_skipped(run.path / "skipped.csv")
        if found.skipped:
            say(f"skipped     {len(found.skipped):,} images, listed in {run.path / 'skipped.csv'}")
        if plan.class_weights:
            say(f"balance     {_weights_line(plan)}")
        for line in (*_lost(plan), *_mirrored(plan)):
            say(line)
        if process_id == 0 and not (run.path / SHEET).exists():
            _draw_first_batch(plan, seed, run.path / SHEET)
        keras.utils.set_random_seed(seed)
        trained, history = _train(
            plan,
            run,
            scope,
            seed=seed,
            precision=precision,
            resume=resume,
            selection=selection,
            execution=execution,
        )
        tag = network.record.tag if network.record else None
        classifier = Classifier(
            distributed.single(trained), plan.preprocess, found.labels, network.name, plan.options, tag, found.reading
        )
        if process_id == 0:
            classifier.save(run.path, about)  # first, so that no failure below can lose it
            run.discard_previous()
            measured = _report(classifier, plan, run.path, history, about["data"], say)
            classifier.save_config(run.path, {**about, "metrics": measured})  # with metrics the run is finished
        _prune(run.path)
    if process_id == 0:
        say(f"written to  {run.path}/: {', '.join(reports.shown(run.path))}")
        place = shlex.quote(str(run.path))
        say(f"next:\n  keras-residual predict {place} IMAGE...\n  keras-residual export {place} saved_models/NAME")
    return classifier


# -------------------------------------------------------------------------------------------------------------- plan


@dataclasses.dataclass(frozen=True)
class _Network:
    """The network to fine-tune and the source of its weights."""

    name: str
    source: str | os.PathLike[str] | None
    record: Weights | None
    options: dict[str, Any]

    @classmethod
    def of(cls, model: str, weights: Any, options: Mapping[str, Any]) -> _Network:
        try:
            json.dumps(options)
        except TypeError as error:
            raise ValueError(
                f"Options must be numbers, strings or booleans, because a run stores them as JSON; got {options!r} "
                f"({error}). For other options, build the network yourself and call keras_residual.fit."
            ) from None
        source = _source(model, weights)
        record = None
        if source is not None and not Path(source).is_file():
            require_architecture(source)  # before the network is contacted
            record = Weights.read(source)
        return cls(find(record.architecture if record else model).config.name, source, record, dict(options))

    def identity(self) -> str | None:
        """Identify the weights: a local file by its content, a repository by its name."""
        if self.source is None:
            return None
        local = Path(self.source).exists()
        return f"sha256:{sha256(weights_file(self.source))}" if local else str(self.source).removeprefix("hf-hub:")

    def build(self, classes: int, shape: tuple[int | None, ...], options: Mapping[str, Any]) -> keras.Model:
        if self.record is not None:
            assert self.source is not None
            return from_pretrained(self.source, classes=classes, input_shape=shape, **options)
        weights = None if self.source is None else str(self.source)
        builder = find(self.name).builder
        return builder(weights=weights, classes=classes, input_shape=shape, classifier_activation=None, **options)


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """All decisions made before the first training step.

    Attributes:
        data: The dataset, checked and split.
        network: The network to fine-tune.
        recipe: The training settings.
        preprocess: Layer from images of 0..255 to the network's input.
        shape: The network's input shape; spatial dimensions are `None` if training and evaluation differ in size.
        options: Arguments of the network's builder.
        counts: `(classes,)`, number of training images per class.
        class_weights: Weight of each class in the loss, or `None`.
    """

    data: Any
    network: _Network
    recipe: Any
    preprocess: Preprocess
    shape: tuple[int | None, ...]
    options: dict[str, Any]
    counts: np.ndarray[Any, Any]
    class_weights: tuple[float, ...] | None

    def record(self) -> dict[str, Any]:
        """Return the plan's part of `run.json`."""
        return {
            "version": __version__,
            "fingerprint": self.data.fingerprint,
            "labels": list(self.data.labels),
            "model": self.network.name,
            "options": self.options,
            "weights": None if self.network.source is None else str(self.network.source),
            "weights_id": self.network.identity(),
            "recipe": self.recipe.to_dict(),
            "size": list(self.preprocess.size),
            "evaluation_crop": [self.preprocess.crop_mode, self.preprocess.crop],
            "class_weights": self.class_weights,
        }

    def with_recipe(self, settings: Mapping[str, Any]) -> RunPlan:
        """Return this plan with the recorded recipe."""
        return dataclasses.replace(self, recipe=type(self.recipe).from_dict(dict(settings)))


def _read(data: Any, validation: Any, seed: int, say: Callable[[str], None], reading: Mapping[str, Any]) -> Any:
    from keras_residual.data import load

    found = load(data, validation=validation, seed=seed, progress=_Reading(say), **reading)
    say(f"data        {found}")
    for words in found.warnings:
        say(f"warning     {words}")
    if not len(found.validation):
        raise ValueError(
            "Fine-tuning requires validation images to choose the best epoch; got none. Use validation=0.2, or add "
            "images: a class with a single image is used for training only."
        )
    return found


def _plan(found: Any, network: _Network, asked: Mapping[str, Any], class_weights: bool | str, devices: int) -> RunPlan:
    row = find(network.name).config
    settings = _settings(asked, len(found.train), network.source is None)
    if asked["batch_size"] is None:  # must divide among all devices
        settings = settings.replace(batch_size=max(1, settings.batch_size // devices) * devices)
    options = {**_rates(settings, find(network.name).family), **network.options}
    prepare = settings.evaluated(_preprocess(network.record, row, asked, found.reading))
    if asked["size"] is not None or asked["recipe"] is None:
        settings = settings.replace(size=None, growth=())  # one image size, in training and evaluation
    sizes = {settings.image_size(epoch, settings.epochs) or prepare.size[0] for epoch in range(settings.epochs)}
    fixed = sizes == {prepare.size[0]} or not row.dynamic_size
    shape = (*(prepare.size if fixed else (None, None)), found.train.channels)
    counts = np.bincount(found.train.labels, minlength=len(found.labels))
    weighted = class_weights is True or (class_weights == "auto" and counts.max() > UNBALANCED * counts.min())
    return RunPlan(found, network, settings, prepare, shape, options, counts, _balance(counts) if weighted else None)


def _rates(settings: Any, family: type[Any]) -> dict[str, float]:
    """Return the recipe's rates of drop path and dropout that the network's family supports."""
    known = {field.name for field in dataclasses.fields(family)}
    rates = {"drop_path": settings.drop_path, "dropout": settings.dropout}
    return {name: rate for name, rate in rates.items() if rate and name in known}


def _settings(asked: Mapping[str, Any], images: int, from_scratch: bool) -> Any:
    """Return the recipe with the user's settings, and with a head phase that fits the number of epochs."""
    from keras_residual.training import recipe as preset

    given = asked["recipe"]
    settings = (
        _default_recipe(images, from_scratch) if given is None else preset(given) if isinstance(given, str) else given
    )
    epochs, head = asked["epochs"] or settings.epochs, asked["head_epochs"]
    if head is not None and head > epochs:
        raise ValueError(f"head_epochs must be at most the number of epochs, {epochs}; got {head}.")
    if head is None:  # with few epochs, most of them train all layers
        head = min(settings.head_epochs, epochs // 3 if given is None else epochs - 1)
    changes = {key: asked[key] for key in ("learning_rate", "batch_norm", "batch_size")}
    if asked["learning_rate"] is not None:
        changes["rate_batch"] = asked["batch_size"]
    changes = {key: value for key, value in changes.items() if value is not None}
    return _with_views(settings.replace(epochs=epochs, head_epochs=head, **changes), asked)


def _with_views(recipe: Any, asked: Mapping[str, Any]) -> Any:
    return recipe.with_views(**{name: asked.get(name) for name in ("resize", "flip", "augment", "crop_scale")})


def _default_recipe(images: int, from_scratch: bool) -> Any:
    """Return the default recipe, adapted to the size of the dataset like BiT's HyperRule, but limited in time."""
    from keras_residual.training import recipe as preset

    chosen = preset("finetune")
    # HyperRule: 500 steps of 512 images below 20,000 images, 10,000 below 500,000, 20,000 beyond; MixUp except for the
    # smallest. At most 30 epochs: the rule would show 300 images 850 times.
    steps = 500 if images < 20_000 else 10_000 if images < 500_000 else 20_000
    epochs = min(30, max(3, math.ceil(steps * 512 / images)))
    batch = chosen.batch_size
    while batch > 4 and batch * 8 > images:  # several steps per epoch, even with a hundred images
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
    # classes, 20 %; a linear classifier on its features reached 87 %, training from scratch 79 %. AdamW with rates by
    # layer and a third of the epochs for the head: 82 %. One seed each: benchmarks/rates.py compares more.
    return chosen.replace(head_epochs=epochs // 3)


def _source(model: str, weights: Any) -> str | os.PathLike[str] | None:
    """Return the source of the weights; "imagenet" becomes the name of the default checkpoint."""
    if weights is None:
        return None
    if weights != "imagenet":
        expanded = expand(weights)
        return expanded if expanded.exists() else weights
    return default_checkpoint(find(model).config)


def _preprocess(record: Weights | None, row: Any, asked: Mapping[str, Any], reading: Any) -> Preprocess:
    """Return the checkpoint's preprocessing at the requested size, or ImageNet's mean and standard deviation."""
    size = asked["size"]
    if record is not None:
        layer = preprocessing(record)
    else:
        layer = Preprocess(row.input_shape[:2], crop=0.875 if row.input_shape[0] > 64 else 1.0)
    given, channels = {**layer.get_config(), "rounded": reading.dtype == "uint8"}, reading.channels
    if channels != len(layer.mean):  # as timm, which sums the first kernel over its channels
        given["mean"], given["std"] = ((sum(given[key]) / len(given[key]),) * channels for key in ("mean", "std"))
    if size is not None:
        given["size"] = (size, size)
    if asked.get("resize") == "crop":  # even if the checkpoint was trained on squashed images
        given["crop_mode"] = "center"
    return Preprocess.from_config(given)


def _draw_first_batch(plan: RunPlan, seed: int, path: Path) -> None:
    """Draw what the network will see in its first training batch."""
    from keras_residual.training import first_images

    if plan.recipe.batch_size > len(plan.data.train):  # an error of training, whose message says what to do
        return
    with reports.attempt(path.name):
        images, shares = first_images(plan.recipe, plan.data.train, plan.preprocess, seed, len(plan.data.labels))
        reports.write_first_batch(images, shares, plan.data.labels, path, plan.recipe.batch_size)


def _lost(plan: RunPlan) -> list[str]:
    """Return a warning if evaluation crops much of the typical image away."""
    layer = plan.preprocess
    if layer.crop_mode != "center":
        return []
    sizes = plan.data.train.sizes()
    ratio = sizes[:, 0] / sizes[:, 1] * (layer.size[1] / layer.size[0])  # 1 for the network's aspect ratio
    lost = 1 - layer.crop**2 * np.minimum(ratio, 1 / ratio)
    typical = np.argsort(lost)[len(lost) // 2]
    if lost[typical] <= MOST_LOST:
        return []
    height, width = sizes[typical]
    return [
        f"warning     the crop to {layer.size[1]} x {layer.size[0]} pixels leaves out {lost[typical]:.0%} of the "
        f"typical image, which is {width:,} x {height:,}. To use the whole image: --resize squash or --resize letterbox"
    ]


def _mirrored(plan: RunPlan) -> list[str]:
    """Return a hint for each direction of random flips that turns one class into another."""
    from keras_residual.data.mirrors import mirror_pair
    from keras_residual.data.sampling import flips

    vertical, horizontal = flips(plan.recipe.flip)
    lines = []
    for direction, applied, other in (("horizontal", horizontal, vertical), ("vertical", vertical, horizontal)):
        pair = mirror_pair(plan.data.labels, vertical=direction == "vertical") if applied else None
        if pair is not None:
            left = ("vertical" if direction == "horizontal" else "horizontal") if other else "none"
            a, b = map(literal, pair)
            lines.append(f"hint        {direction} flips make the classes '{a}' and '{b}' alike. Off: --flip {left}")
    return lines


def _balance(counts: np.ndarray[Any, Any]) -> tuple[float, ...]:
    """Return class weights inverse to class sizes, capped, with a mean of 1 over the training images."""
    weights = np.minimum(counts.max() / np.maximum(counts, 1), MOST_WEIGHT)
    return tuple(float(weight) for weight in weights * counts.sum() / (weights * counts).sum())


def _weights_line(plan: RunPlan) -> str:
    """Describe the class weights, heaviest first."""
    assert plan.class_weights is not None
    order = sorted(range(len(plan.counts)), key=lambda i: -plan.class_weights[i])[:8]  # type: ignore[index]
    words = ", ".join(f"{literal(plan.data.labels[i])} {plan.class_weights[i]:.2g}" for i in order)
    more = f" and {len(plan.counts) - 8:,} more" if len(plan.counts) > 8 else ""
    ratio = plan.counts.max() / max(1, plan.counts.min())
    capped = f"; capped at {MOST_WEIGHT:g} times the most frequent class" if ratio > MOST_WEIGHT else ""
    spread = f"classes have {plan.counts.min():,} to {plan.counts.max():,} images"
    return f"{spread}; class weights: {words}{more}{capped}"


# ------------------------------------------------------------------------------------------------------------- train


def _begun(run: RunDirectory, about: Mapping[str, Any], overwrite: bool, anyway: bool) -> str:
    """Compare with the run in the directory; return as JSON what all processes need to know about it."""
    settings = run.begin(about, overwrite=overwrite, anyway=anyway)
    return json.dumps({"recipe": settings["recipe"], "finished": run.finished()})


def _train(
    plan: RunPlan,
    run: RunDirectory,
    scope: Any,
    *,
    seed: int,
    precision: str,
    resume: bool | Literal["anyway"],
    **options: Any,
) -> tuple[keras.Model, Any]:
    from keras_residual.training import Checkpointing, best_precision, fit

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(best_precision() if precision == "auto" else precision)
    try:
        with scope:
            network = plan.network.build(len(plan.data.labels), plan.shape, plan.options)
    finally:
        keras.config.set_dtype_policy(policy)
    history = fit(
        network,
        plan.recipe,
        plan.data.train,
        plan.data.validation,
        seed=seed,
        preprocess=plan.preprocess,
        class_weight=plan.class_weights,
        checkpoints=Checkpointing(run.path / "training", resume=resume, fingerprint=plan.data.fingerprint),
        logs=run.path / "tensorboard",
        **options,
    )
    return network, history


def _prune(folder: Path) -> None:
    """Delete all checkpoints but the one from which more epochs continue."""
    from keras_residual.training import distributed
    from keras_residual.training.checkpoint import Checkpoints

    with contextlib.suppress(OSError):  # for example on a read-only file system
        Checkpoints(distributed.own(folder / "training")).prune()


# ------------------------------------------------------------------------------------------------------------ report


def _report(
    classifier: Classifier, plan: RunPlan, folder: Path, history: Any, data: str, say: Callable[[str], None]
) -> dict[str, float]:
    """Write tables and figures. The classifier is already on disk, so that a failure loses only one of them."""
    found, majority = plan.data, int(plan.counts.argmax())
    with reports.attempt("history.csv"):
        reports.write_history(history, folder / "history.csv")
    compared = None
    with reports.attempt("the comparison with a baseline"):
        compared = _baseline(plan)
    with reports.attempt("curves.png"):
        figures.draw_curves(
            history,
            folder / "curves.png",
            f"{plan.network.name} on {literal(Path(data).name or data)}, "
            f"{'new' if plan.network.source is None else 'pretrained'} weights",
            best=history.best_epoch,
            head=plan.recipe.head_epochs,
            constant=float((found.validation.labels == majority).mean()),
            baseline=compared and (compared.name, compared.accuracy),
        )
    measured: dict[str, float] = {}
    with reports.attempt("the report on the validation split"):
        answers = classifier.answers(found.validation, plan.recipe.batch_size)
        measured = reports.write_report(
            classifier,
            found.validation,
            folder,
            majority=majority,
            answers=answers,
            baseline=compared and compared.accuracy,
        )
        if compared and measured["accuracy"] <= compared.accuracy < 1:
            say(_beaten(measured["accuracy"], compared, plan))
        say(
            f"validation  {measured['accuracy']:.2%} of {int(measured['images']):,} images correct (always "
            f"'{literal(found.labels[majority])}': {measured['majority_accuracy']:.2%}), macro F1 "
            f"{measured['macro_f1']:.3f}, calibration error {measured['calibration_error']:.3f}"
        )
        if compared:
            say(f"baseline    {compared.accuracy:.2%} by {compared.name} ({compared.trained:,} images)")
        if plan.counts.max() > UNBALANCED * plan.counts.min():
            say(f"recall      {reports.recall_line(answers, found.labels)}")
    return measured


def _baseline(plan: RunPlan) -> Baseline:
    """Return what logistic regression achieves: on the checkpoint's features, or on small pixels from scratch."""
    training, validation = plan.data.train, plan.data.validation
    if plan.network.source is None:
        return on_pixels(training, validation)
    network = plan.network.build(len(plan.data.labels), plan.shape, plan.options)
    features = connected(network.inputs[0], classifier_input(network))
    mean, std = (np.array(values, "float32") for values in (plan.preprocess.mean, plan.preprocess.std))

    def embed(images: np.ndarray[Any, Any]) -> Any:
        return keras.ops.convert_to_numpy(features((images / np.float32(255) - mean) / std, training=False))

    return on_features(embed, plan.preprocess, training, validation)


def _beaten(accuracy: float, baseline: Baseline, plan: RunPlan) -> str:
    """Return the warning that the network does not beat the baseline, and what to try."""
    advice = (
        "more --epochs, a pretrained checkpoint (--weights imagenet)"
        if plan.network.source is None
        else ("more --epochs, another --learning-rate")
    )
    return (
        f"warning     the network ({accuracy:.2%}) is not better than {baseline.name} ({baseline.accuracy:.2%}). Try "
        f"{advice}, or --flip none if orientation matters; and check the labels in mistakes.png"
    )


class _Reading:
    """Print the progress of the first scan of the images, after some seconds and then at intervals."""

    def __init__(self, say: Callable[[str], None], first: float = 5.0, then: float = 15.0) -> None:
        self.say, self.due, self.then = say, first, then
        self.begun, self.known = time.monotonic(), None

    def __call__(self, done: int, of: int) -> None:
        self.known = done if self.known is None else self.known  # images with a cached verdict
        seconds = time.monotonic() - self.begun
        if seconds > self.due:
            rate = (done - self.known) / seconds
            left = f", {(of - done) / rate:,.0f} s left" if rate and done < of else ""
            self.say(f"reading     {done:,} of {of:,} images, {rate:,.0f} images/s{left}")
            self.due = seconds + self.then


def _silent(line: str) -> None:
    """Print nothing: process 0 prints."""
