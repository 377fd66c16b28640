"""Training step for `keras.Model.fit` that normalises and augments images and averages weights inside the graph."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_residual.graph import connected, rebuilt
from keras_residual.training import augment
from keras_residual.training.augment import Random
from keras_residual.training.devices import sharing
from keras_residual.training.recipes import Recipe

__all__ = ["MacroF1", "Normalize", "Step", "logits_of"]

Normalize = tuple[tuple[float, ...], tuple[float, ...]]


class MacroF1(keras.metrics.Metric):
    """Mean F1 score over the classes that occur, as scikit-learn computes it from all predictions of an epoch.

    Args:
        classes: Number of classes.
    """

    def __init__(self, classes: int, name: str = "macro_f1") -> None:
        super().__init__(name=name)
        self.hits, self.guessed, self.occurring = (
            self.add_variable((classes,), "zeros", name=what) for what in ("hits", "guessed", "occurring")
        )

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        classes = self.hits.shape[0]
        truth = ops.one_hot(ops.reshape(ops.cast(y_true, "int32"), (-1,)), classes, dtype="float32")
        guess = ops.one_hot(ops.argmax(y_pred, -1), classes, dtype="float32")
        for total, counted in ((self.hits, truth * guess), (self.guessed, guess), (self.occurring, truth)):
            total.assign_add(ops.sum(counted, 0))

    def result(self) -> Any:
        scores = 2 * self.hits / ops.maximum(self.guessed + self.occurring, 1.0)
        occurs = ops.cast(self.occurring > 0, "float32")
        return ops.sum(scores * occurs) / ops.maximum(ops.sum(occurs), 1.0)


class Step(keras.Model):
    """A network in training. Its inputs are `(images, index)` in training and images alone in evaluation.

    Random numbers are functions of the seed and the positions of the images, `index`. `call` (images) and
    `compute_loss` (targets) draw the same ones, so no random state has to be passed on or saved.

    Args:
        network: Network with logits `(N, classes)`.
        recipe: Settings of loss, mixing, augmentation and averages.
        seed: Seed of the augmentation.
        normalize: Mean and standard deviation of each channel, as fractions of 255; `None` for images that are
            already normalised.
        class_weight: Weight of each class in the loss.
    """

    def __init__(
        self,
        network: keras.Model,
        recipe: Recipe,
        seed: int,
        normalize: Normalize | None,
        class_weight: tuple[float, ...] | None = None,
    ) -> None:
        # half precision is too coarse for values of 0..255: normalise before any cast
        super().__init__(name="training", dtype="float32", autocast=False)
        self.network, self.recipe, self.seed = network, recipe, seed
        self.normalize, self.class_weight = normalize, class_weight
        self.classes = network.output_shape[-1]
        self.averaged = None
        if recipe.ema:
            self.averaged = rebuilt(network)
            self.averaged.trainable = False
            self.averages = self.add_weight(shape=(), initializer="zeros", trainable=False, name="averages")
        self.pairs = pairs(network, self.averaged) if self.averaged else []
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> Any:
        images = inputs
        if isinstance(inputs, (tuple, list)):
            images, index = inputs
            if training:
                # what the network sees as 0
                fill = 0.0 if self.normalize is None else [255.0 * m for m in self.normalize[0]]
                images = augment.augment(
                    self.recipe, images, Random(self.seed, index), ops.convert_to_tensor(fill, "float32")
                )
        x = ops.cast(images, "float32")
        if self.normalize is not None:
            mean, std = (ops.convert_to_tensor(values, "float32") for values in self.normalize)
            x = (x / 255.0 - mean) / std
        network = self.averaged if self.averaged is not None and not training else self.network
        if training or sharing() == 1:
            return ops.cast(network(x, training=training), "float32")
        # A device may get no image of the last validation batch, and oneDNN's convolution then has a wrong shape.
        count = ops.shape(x)[0]
        x = ops.concatenate([x, ops.zeros((ops.maximum(1 - count, 0), *x.shape[1:]), "float32")])
        return ops.cast(network(x, training=False)[:count], "float32")

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Return the mean cross entropy of a batch, with mixed labels in training and plain ones in evaluation."""
        targets = ops.one_hot(y, self.classes, dtype="float32")
        recipe = self.recipe
        if training:
            if isinstance(x, (tuple, list)):
                images, index = x
                targets = augment.mix_targets(recipe, targets, Random(self.seed, index), augment.plane(images))
            if recipe.loss == "binary" and recipe.binary_threshold is not None:
                targets = ops.cast(targets > recipe.binary_threshold, "float32")
            if recipe.label_smoothing:  # after the threshold, which would undo it
                targets = targets * (1 - recipe.label_smoothing) + recipe.label_smoothing / self.classes
        if recipe.loss == "binary":
            # max(z, 0) and |z| have wrong gradients at z = 0, the initial output of a zero-initialised head
            loss = ops.mean(ops.softplus(y_pred) - y_pred * targets, -1)
        else:
            loss = -ops.sum(targets * ops.log_softmax(y_pred, -1), -1)
        if self.class_weight is not None and training:
            weight = ops.sum(targets * ops.convert_to_tensor(self.class_weight, "float32"), -1)
            loss = loss * weight
        # A device may get no image of the last validation batch, and the mean of an empty batch is NaN.
        total = ops.sum(loss) / ops.maximum(ops.cast(ops.shape(loss)[0], loss.dtype), 1.0)
        for term in self.losses:
            total = total + ops.sum(term)
        return total / sharing()

    def compute_metrics(self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None) -> dict[str, Any]:
        if isinstance(x, (tuple, list)):
            images, index = x
            y = augment.main_labels(self.recipe, y, Random(self.seed, index), augment.plane(images))
        return super().compute_metrics(None, y, y_pred, sample_weight)

    def train_step(self, *arguments: Any) -> Any:
        result = super().train_step(*arguments)
        if self.averaged is None:
            return result
        if keras.backend.backend() == "jax":
            logs, (trainable, other, *rest) = result
            return logs, (trainable, self._averaged_state(trainable, other), *rest)
        self._average()
        return result

    def _average(self) -> None:
        decay = self._decay(self.averages)
        for source, target in self.pairs:
            value = ops.cast(source, target.dtype)
            target.assign(target + (1 - ops.cast(decay, target.dtype)) * (value - target))
        self.averages.assign_add(1.0)

    def _averaged_state(self, trainable: Any, other: Any) -> Any:
        mapping = [*zip(self.trainable_variables, trainable, strict=True)]
        mapping += [*zip(self.non_trainable_variables, other, strict=True)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self._average()
        new = [scope.get_current_value(v) for v in self.non_trainable_variables]
        return [value if value is not None else old for value, old in zip(new, other, strict=True)]

    def _decay(self, count: Any) -> Any:
        # Otherwise early averages would consist mostly of the initial weights, which are noise.
        return ops.minimum(self.recipe.ema, (1.0 + count) / (10.0 + count))

    def finish(self) -> None:
        """Assign the moving averages to the network."""
        if self.averaged is not None:
            copy(self.averaged, self.network)


def pairs(source: keras.Model, target: keras.Model) -> list[tuple[Any, Any]]:
    """Pair the variables of a network and its copy: weights and statistics, but no random generators."""
    ours, theirs = source.weights, target.weights
    assert [v.path.split("/")[-2:] for v in ours] == [v.path.split("/")[-2:] for v in theirs]
    return list(zip(ours, theirs, strict=True))


def copy(source: keras.Model, target: keras.Model) -> None:
    """Copy weights and statistics to a network's copy."""
    for ours, theirs in pairs(source, target):
        theirs.assign(ops.copy(ours))  # JAX' variables would share one buffer, which a step cannot take twice


def logits_of(model: keras.Model) -> keras.Model:
    """Return the network up to its logits, without the softmax at its end; the weights are shared.

    Raises:
        ValueError: If its outputs are not class scores `(N, classes)`.
    """
    outputs = model.outputs if isinstance(model.outputs, list) else []
    if len(outputs) != 1 or len(outputs[0].shape) != 2:
        shapes = [tuple(output.shape) for output in outputs]
        raise ValueError(
            f"The model must be a classifier, a Functional model with one output (N, classes); got {model.name!r} with "
            f"outputs {shapes}. Build it with include_top=True and classes=..."
        )
    last = model.layers[-1]
    activation = getattr(last, "activation", None)
    if activation is not None and activation is not keras.activations.linear:
        if not isinstance(last, keras.layers.Activation) or activation is not keras.activations.softmax:
            kind = getattr(activation, "__name__", activation)
            raise ValueError(
                "The model must return logits, or probabilities from a separate softmax layer at its end; got "
                f"{model.name!r}, whose last layer {last.name!r} ends with {kind!r}. Build it with "
                "classifier_activation=None."
            )
        return connected(model.inputs[0] if len(model.inputs) == 1 else model.inputs, last.input, model.name)
    return model
