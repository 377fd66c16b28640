"""One training: what it is of, and its parts. `fit` puts them together."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_residual.checking import require_one_label_each
from keras_residual.data.examples import height_and_width
from keras_residual.training import distributed
from keras_residual.training.arrays import Arrays, read, views
from keras_residual.training.checkpoint import Snapshot
from keras_residual.training.decide import Decision
from keras_residual.training.devices import jax_devices, replica_count, strategy_scope
from keras_residual.training.inputs import check_batch, check_images, check_labels, check_recipe, check_size, layers_of
from keras_residual.training.optimizers import Schedule, layer_rates, optimizer
from keras_residual.training.recipes import Recipe, recipe
from keras_residual.training.state import TrainingState
from keras_residual.training.step import MacroF1, Normalize, Step, logits_of
from keras_residual.weights import Preprocess, Weights

__all__ = ["Run"]

IMAGENET: Normalize = (Weights.mean, Weights.std)


@dataclasses.dataclass(frozen=True)
class Phase:
    """Epochs with the same trained layers, optimiser and image size."""

    first: int
    last: int
    size: int | None
    head: bool
    begun: int  # the first epoch of this optimiser
    ended: int


class Run:
    """One training: what it is of, and its parts."""

    def __init__(
        self,
        model: keras.Model,
        settings: Recipe | str,
        train: Any,
        validation: Any = None,
        epochs: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        preprocess: Any = "auto",
        classes: int | None = None,
        class_weight: Sequence[float] | None = None,
    ) -> None:
        if not isinstance(model, keras.Model):
            raise TypeError(f"model must be a keras.Model; got {type(model).__name__}.")
        if not 0 <= seed < 1 << 32:
            raise ValueError(f"seed must be from 0 to 2**32 - 1; got {seed}.")
        settings = recipe(settings) if isinstance(settings, str) else settings
        settings = settings if epochs is None else settings.with_epochs(epochs)
        self.recipe = settings if batch_size is None else settings.replace(batch_size=batch_size)
        self.model, self.seed = model, seed
        self.network = logits_of(model)
        outputs = int(self.network.output_shape[-1])
        self.train_data = read(train, "training images")
        self.validation = None if validation is None else read(validation, "validation images")
        self.batch = self.recipe.batch_size
        check_labels(self.train_data.labels, outputs, "training images", classes)
        if self.validation is not None:
            check_labels(self.validation.labels, outputs, "validation images", classes, whole=False)
        self.preprocess, self.normalize = _normalization(preprocess, self.train_data, model)
        shape = tuple(model.input_shape[1:])
        for data, what in ((self.train_data, "training images"), (self.validation, "validation images")):
            if isinstance(data, Arrays):
                require_one_label_each(len(data.images), len(data.labels), what)
                check_images(_sample(data.images), shape, self.normalize is not None, what)
        check_batch(model, self.recipe, self.batch, max(replica_count(model), jax_devices()))
        self.steps = self.train_data.steps_per_epoch(self.batch)
        check_recipe(self.recipe, shape, self.normalize is not None or not isinstance(self.train_data, Arrays))
        if not isinstance(self.train_data, Arrays):
            for phase in self.phases():
                check_size(self.recipe, self.cut_to(phase.size), shape)
        if class_weight is not None and len(class_weight) != outputs:
            raise ValueError(
                f"class_weight must have one number for each of {outputs} classes; got {len(class_weight)}."
            )
        self.class_weight = None if class_weight is None else tuple(map(float, class_weight))
        self._wanted = {id(layer): layer.trainable for layer in layers_of(self.network)}
        self._warn_of_rates()

    # ------------------------------------------------------------------------------------------------------ what

    def _warn_of_rates(self) -> None:
        """Warn if the network was built with other rates than the recipe has: they are the network's."""
        layers = [layer for layer in layers_of(self.model) if isinstance(layer, keras.layers.Dropout)]
        paths = [layer for layer in layers if layer.name.endswith(".drop_path")]
        for name, own in {"drop_path": paths, "dropout": [layer for layer in layers if layer not in paths]}.items():
            wanted, highest = getattr(self.recipe, name), max((layer.rate for layer in own), default=0.0)
            if wanted and not math.isclose(highest, wanted):  # the rates of a ramp are rounded
                warnings.warn(
                    f"Recipe {self.recipe.name!r} has {name}={wanted}, but {self.model.name!r} was built with "
                    f"{highest:g}, which is used. Build it with {name}={wanted}, or change the recipe.",
                    stacklevel=5,  # the caller of `fit`
                )

    def about(self, fingerprint: str | None) -> dict[str, Any]:
        """Return the settings that identify this training."""
        from keras_residual import __version__

        weights = [f"{layer.name}/{v.name}{tuple(v.shape)}" for layer in self.model.layers for v in layer.weights]
        return {
            "data": fingerprint or _fingerprint(self.train_data),
            "classes": int(self.network.output_shape[-1]),
            "images": len(self.train_data),
            "seed": self.seed,
            "architecture": f"{self.model.name} {hashlib.sha256(repr(weights).encode()).hexdigest()[:12]}",
            "recipe": self.recipe.to_dict(),
            "preprocess": None if self.normalize is None else [list(values) for values in self.normalize],
            "class_weight": None if self.class_weight is None else list(self.class_weight),
            "backend": keras.backend.backend(),
            "version": __version__,
        }

    def phases(self) -> list[Phase]:
        """Return the phases of the training, split where the optimiser or the image size changes."""
        epochs, head = self.recipe.epochs, self.recipe.head_epochs
        sizes = [self.recipe.image_size(epoch, epochs) for epoch in range(epochs)]
        cuts = sorted({0, head, epochs, *(e for e in range(1, epochs) if sizes[e] != sizes[e - 1])})
        return [
            Phase(a, b, sizes[a], a < head, 0 if a < head else head, head if a < head else epochs)
            for a, b in itertools.pairwise(cuts)
        ]

    def make_step(self) -> None:
        """Build the training network, with random generators that are functions of the seed."""
        with strategy_scope(self.model):
            self.step = Step(self.network, self.recipe, self.seed, self.normalize, self.class_weight)
        generators = [v for v in self.step.variables if v.path.endswith("seed_generator_state")]
        for number, variable in enumerate(generators):
            state = np.random.SeedSequence((self.seed, number)).generate_state(1)[0] >> 1
            variable.assign(np.array([state, 0]).astype(variable.dtype))

    def variables(self) -> dict[str, Any]:
        """Everything that changes in training, by a name that is the same in each run."""
        step = self.step
        kinds = {"metrics": step.metrics_variables, "optimizer": step.optimizer.variables}
        known = {id(v) for values in kinds.values() for v in values}
        kinds["model"] = [v for v in step.variables if id(v) not in known]
        return {f"{kind}/{i:05d}": v for kind, values in kinds.items() for i, v in enumerate(values)}

    def evaluated(self) -> dict[str, Any]:
        """Return the weights of the evaluated network: the moving averages, if there are any."""
        return {f"weight/{i:05d}": v for i, v in enumerate((self.step.averaged or self.network).weights)}

    def checkpoint_bytes(self) -> int:
        """Room that checkpoints need: two of the state and of the best weights are kept while a third is written."""

        def size(variables: Any) -> int:
            return sum(math.prod(v.shape) * (8 if str(v.dtype) == "float64" else 4) for v in variables)

        network = size(self.network.weights)
        slots = 1 if self.recipe.optimizer == "sgd" else 2
        state = size(self.step.variables) + slots * network
        return 3 * (state + network)

    # ------------------------------------------------------------------------------------------------------- how

    @contextlib.contextmanager
    def as_trained(self) -> Iterator[None]:
        """Which layers are trained is the recipe's business here, and the user's again afterwards."""
        layers = [*layers_of(self.model), self.model]
        before = [(layer, layer.trainable) for layer in layers]
        norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
        synchronized = [layer.synchronized for layer in norms]
        for layer in norms:
            layer.synchronized = replica_count(self.model) > 1 or layer.synchronized
        try:
            yield
        finally:
            for layer, value in zip(norms, synchronized, strict=True):
                layer.synchronized = value
            for layer, value in reversed(before):  # the model sets all of its layers, so that they come after it
                layer.trainable = value

    def compile(self, phase: Phase, decision: Decision) -> None:
        """Set the trainable layers of a phase and recompile, which Keras then requires."""
        frozen = self.recipe.batch_norm == "frozen"
        head = set(map(id, head_layers(self.network)))
        weighted = [layer for layer in layers_of(self.network) if layer.weights and not hasattr(layer, "layers")]
        trainable = {id(layer): layer.trainable for layer in weighted}
        for layer in weighted:
            if phase.head and id(layer) not in head:
                layer.trainable = False
            elif self._wanted.setdefault(id(layer), trainable[id(layer)]):
                layer.trainable = not (frozen and isinstance(layer, keras.layers.BatchNormalization))
        epochs = phase.ended - phase.begun
        peak = self.recipe.rate(self.batch)
        if phase.head and self.recipe.head_rate is not None:
            peak = self.recipe.head_rate
        schedule = Schedule(peak, epochs * self.steps, self.recipe, self.steps)
        rates = layer_rates(self.network, self.recipe.layer_decay) if self.recipe.layer_decay != 1 else None
        with strategy_scope(self.model):
            metrics: list[Any] = [keras.metrics.SparseCategoricalAccuracy(name="accuracy")]
            if self.class_weight is not None:
                metrics.append(MacroF1(self.step.classes))
            self.step.compile(
                optimizer(self.recipe, schedule, self.step, rates),
                metrics=metrics,
                jit_compile=decision.jit,
                steps_per_execution=decision.steps_per_execution,
            )
            # a loop of XLA's costs more than it saves, until some of its steps are one piece
            self.step.unrolled_steps_per_execution = min(4, decision.steps_per_execution)
            # so that all variables are there before the first step: a checkpoint is put into them
            self.step._compile_metrics.build(np.zeros((1,), "int32"), np.zeros((1, self.step.classes), "float32"))

    def train(self, state: TrainingState, decision: Decision, callbacks: list[Any], snapshot: Snapshot | None) -> None:
        """Train all phases that are left, from the checkpoint on."""
        compiled: tuple[int, bool] | None = None
        for phase in self.phases():
            if state.step >= phase.last * self.steps or state.stopped:
                if snapshot is not None and phase is self.phases()[-1] and compiled is None:
                    self.compile(self._phase_of(state.step), decision)  # finished: only its weights are wanted
                    state.put(snapshot)
                continue
            if compiled != (phase.begun, phase.head):
                self.compile(phase, decision)
                compiled = (phase.begun, phase.head)
                if snapshot is not None:
                    state.put(snapshot)
                    snapshot = None
            if state.good is None:
                state.good = Snapshot.take(self.variables(), state.record())
            first = state.step // self.steps
            if state.step % self.steps:
                # the rest of the epoch that was cut off: an epoch of fewer steps to Keras
                self._fit(phase, first, first + 1, (first + 1) * self.steps - state.step, state, callbacks)
                first += 1
            if first < phase.last and not state.stopped:
                self._fit(phase, first, phase.last, self.steps, state, callbacks)

    def _phase_of(self, step: int) -> Phase:
        return next(p for p in self.phases() if step <= p.last * self.steps)

    def _fit(self, phase: Phase, first: int, last: int, steps: int, state: TrainingState, callbacks: list[Any]) -> None:
        self.step.fit(
            self.batches(state.step, phase.size),
            initial_epoch=first,
            epochs=last,
            steps_per_epoch=steps,
            validation_data=self.validation_batches(),
            shuffle=False,  # the batches have an order of their own
            callbacks=callbacks,
            verbose=0,
        )

    def cut_to(self, size: int | None) -> Any:
        """Height and width of training images of a phase: the recipe's, else the checkpoint's, else the network's."""
        if size is not None:
            return size
        return tuple(self.model.input_shape[1:-1] if self.preprocess is None else self.preprocess.size)

    def batches(self, start: int, size: int | None) -> Any:
        """Yield `((images, index), labels)` endlessly from a step on; `index` counts images through all of training."""
        import tensorflow as tf

        part = distributed.part()
        each = self.batch // part[1]
        options: dict[str, Any] = {"seed": self.seed, "start": start, "part": part}
        fill = None if self.normalize is None else [round(255 * mean) for mean in self.normalize[0]]
        data = views(self.train_data, self.recipe, self.cut_to(size), self.batch, fill=fill, **options)

        def counted(step: Any, batch: Any) -> Any:
            images, labels = batch
            first = step * self.batch + part[0] * each
            return (images, tf.cast(first + tf.range(each, dtype=tf.int64), tf.uint32)), labels

        counter = tf.data.Dataset.range(start, np.iinfo(np.int64).max)
        return tf.data.Dataset.zip(counter, data).map(counted).with_options(data.options()).prefetch(2)

    def validation_batches(self) -> Any:
        """Yield all validation images once."""
        if self.validation is None:
            return None
        geometry = None if isinstance(self.validation, Arrays) else self.evaluation_geometry()
        return distributed.whole(self.validation.evaluation(self.batch, geometry))

    def evaluation_geometry(self) -> Preprocess:
        """Return how validation images are resized and cropped: as in the given layer, or else as in the recipe."""
        if self.preprocess is not None:
            return self.preprocess
        height, width = self.model.input_shape[1:-1]
        size = self.recipe.size if None in (height, width) else (height, width)
        mean = Weights.mean if self.normalize is None else self.normalize[0]
        return self.recipe.evaluated(Preprocess(height_and_width(size), mean))


def head_layers(network: keras.Model) -> list[Any]:
    """Return the dense layers that produce the outputs; several if a network has several heads."""
    classes = network.output_shape[-1]
    weighted = [layer for layer in network.layers if layer.weights]
    found: list[Any] = []
    for layer in reversed(weighted):
        if not isinstance(layer, keras.layers.Dense) or layer.units != classes:
            break
        found.append(layer)
    return found or weighted[-1:]


def _normalization(preprocess: Any, data: Any, model: keras.Model) -> tuple[Preprocess | None, Normalize | None]:
    """Return the evaluation crop and the normalisation of images."""
    channels = model.input_shape[-1]
    if isinstance(preprocess, Weights):
        from keras_residual.weights import preprocessing

        preprocess = preprocessing(preprocess)
    if isinstance(preprocess, Preprocess):
        given: Any = (preprocess.mean, preprocess.std)
    elif isinstance(preprocess, str) and preprocess == "auto":
        floats = isinstance(data, Arrays) and np.asarray(data.images).dtype.kind == "f"
        pixels = len(model.input_shape) == 4
        given = None if floats or not pixels else IMAGENET if channels == 3 else ((0.5,), (0.5,))
    elif preprocess is None or (isinstance(preprocess, tuple) and len(preprocess) == 2):
        given = preprocess
    else:
        raise TypeError(
            f"preprocess must be a Preprocess layer, the Weights of a checkpoint, (mean, std), None or 'auto'; got "
            f"{preprocess!r}."
        )
    if given is not None:
        given = tuple(tuple(map(float, np.atleast_1d(values))) for values in given)
        if any(len(values) not in (1, channels) for values in given):
            raise ValueError(
                f"Mean and standard deviation must be one number, or one for each of {channels} channels; got {given}."
            )
    return (preprocess if isinstance(preprocess, Preprocess) else None), given


def _sample(images: Any, count: int = 256) -> Any:
    """Return a sample of images, evenly spread."""
    return images[:: max(1, len(images) // count)][:count]


def _fingerprint(data: Any) -> str:
    total = hashlib.sha256(np.ascontiguousarray(data.labels).tobytes())
    if isinstance(data, Arrays):
        total.update(f"{data.images.shape} {data.images.dtype}".encode())
        total.update(np.ascontiguousarray(data.images).reshape(-1).view(np.uint8).data)
    else:
        total.update(repr(getattr(data, "names", ())).encode())
    return total.hexdigest()[:16]
