"""Keras' optimisers with what recipes need of each variable: its own rate, and decay or none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_residual.layers import Parameter
from keras_residual.training.devices import sharing_gradients
from keras_residual.training.recipes import Recipe

__all__ = ["Schedule", "decays", "layer_rates", "optimizer"]


class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then cosine, steps or a constant: the learning rate of a step, counted from 0.

    Args:
        peak: The highest rate.
        steps: All steps.
        recipe: Gives the shape.
        steps_per_epoch: For a warm-up in epochs.
    """

    def __init__(self, peak: float, steps: int, recipe: Recipe, steps_per_epoch: int) -> None:
        self.peak, self.steps, self.recipe, self.steps_per_epoch = peak, steps, recipe, steps_per_epoch
        warmup = recipe.warmup_steps or round(recipe.warmup * steps_per_epoch)
        self.warmup = min(warmup, steps // 2)  # a short run must not be all warm-up

    def __call__(self, step: Any) -> Any:
        r, step = self.recipe, ops.cast(step, "float32")
        if r.schedule == "cosine":
            done = ops.clip((step - self.warmup) / max(1, self.steps - self.warmup), 0.0, 1.0)
            part = r.final + (1 - r.final) * 0.5 * (1 + ops.cos(math.pi * done))
        else:
            part = ops.ones_like(step)
            for milestone in r.milestones if r.schedule == "step" else ():
                part = ops.where(step >= round(milestone * self.steps), part * r.factor, part)
        if self.warmup:
            rise = r.warmup_start + (1 - r.warmup_start) * step / self.warmup
            part = ops.where(step < self.warmup, rise, part)
        return self.peak * part

    def get_config(self) -> dict[str, Any]:
        return {
            "peak": self.peak,
            "steps": self.steps,
            "recipe": self.recipe.to_dict(),
            "steps_per_epoch": self.steps_per_epoch,
        }


def decays(model: keras.Model) -> set[int]:
    """Return the `id`s of the variables that decay: kernels, which have two or more axes; not norms,
    biases, tokens, position embeddings or layer scales (timm's rule)."""
    kernels: set[int] = set()
    for layer in model._flatten_layers(include_self=False):
        own = layer._trainable_variables
        if not isinstance(layer, Parameter):
            kernels |= {id(v) for v in own if len(v.shape) >= 2}
    return kernels


class _PerVariable:
    """Mixed into an optimiser: rates and decays by variable; a factor of all rates that is saved with the state.

    Weight decay is applied by the optimisers below, each at the place that its paper defines.
    """

    _iterations: Any
    _rates: list[float]
    _decays: list[float]

    def configure(self, variables: Sequence[Any], rates: dict[int, float], decay: dict[int, float]) -> None:
        """Build the optimiser for these variables; `rates` and `decay` are keyed by `id`."""
        self._rates = [rates.get(id(v), 1.0) for v in variables]
        self._decays = [decay.get(id(v), 0.0) for v in variables]
        self.rate_factor = self.add_variable((), "ones", "float32", name="rate_factor")  # pyright: ignore
        self.build(list(variables))  # pyright: ignore

    def _get_current_learning_rate(self) -> Any:
        rate = super()._get_current_learning_rate()  # pyright: ignore
        return rate * self.rate_factor if hasattr(self, "rate_factor") else rate

    def _clip_gradients(self, grads: Any) -> Any:
        # Keras clips each replica's gradients, but the norm of their sum must be clipped.
        count = sharing_gradients()
        if count > 1 and self.global_clipnorm:  # pyright: ignore
            import tensorflow as tf

            context: Any = tf.distribute.get_replica_context()
            grads = context.all_reduce(tf.distribute.ReduceOp.SUM, grads)
            return [g / count for g in super()._clip_gradients(grads)]  # pyright: ignore
        return super()._clip_gradients(grads)  # pyright: ignore

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        index = self._get_variable_index(variable)  # pyright: ignore
        self.update(gradient, variable, learning_rate * self._rates[index], self._decays[index])  # pyright: ignore


class SGD(_PerVariable, keras.optimizers.SGD):
    """`keras.optimizers.SGD` with weight decay as an L2 term of the gradient, which goes through the momentum as in
    He et al. and in torch. Keras applies decay outside of the momentum: ten times weaker at a momentum of 0.9."""

    def update(self, gradient: Any, variable: Any, rate: Any, decay: float) -> None:
        if decay:
            gradient = gradient + decay * ops.cast(variable, gradient.dtype)
        keras.optimizers.SGD.update_step(self, gradient, variable, rate)


class AdamW(_PerVariable, keras.optimizers.Adam):
    """`keras.optimizers.AdamW`, except that each variable has its own rate."""

    def update(self, gradient: Any, variable: Any, rate: Any, decay: float) -> None:
        if decay:
            self.assign_sub(variable, ops.cast(rate * decay, variable.dtype) * variable)
        keras.optimizers.Adam.update_step(self, gradient, variable, rate)


class Lamb(_PerVariable, keras.optimizers.Lamb):
    """LAMB (You et al. 2020, algorithm 2). `keras.optimizers.Lamb` applies decay outside of the trust ratio; the
    paper and timm apply it inside, and timm scales only variables with decay."""

    def update(self, gradient: Any, variable: Any, rate: Any, decay: float) -> None:
        dtype = variable.dtype
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        gradient, step = ops.cast(gradient, dtype), ops.cast(self.iterations + 1, dtype)
        self.assign(m, self.beta_1 * m + (1 - self.beta_1) * gradient)
        self.assign(v, self.beta_2 * v + (1 - self.beta_2) * ops.square(gradient))
        corrected = ops.convert_to_tensor(m) / (1 - ops.power(ops.cast(self.beta_1, dtype), step))
        root = ops.sqrt(ops.convert_to_tensor(v) / (1 - ops.power(ops.cast(self.beta_2, dtype), step)))
        change = corrected / (root + self.epsilon)
        if decay:
            change = change + decay * variable
            ours, theirs = (ops.sqrt(ops.sum(ops.square(x))) for x in (variable, change))
            ratio = ops.where((ours > 0) & (theirs > 0), ours / ops.where(theirs > 0, theirs, 1.0), 1.0)
            change = ops.cast(ratio, dtype) * change
        self.assign_sub(variable, ops.cast(rate, dtype) * change)


def optimizer(recipe: Recipe, rate: Any, model: keras.Model, rates: dict[int, float] | None = None) -> Any:
    """Return the recipe's optimiser, built for the trainable variables of the model.

    Args:
        recipe: Settings of the optimiser and its weight decay.
        rate: Learning rate or schedule.
        model: Model whose trainable variables are optimised.
        rates: Factors of the rate by `id` of a variable; 1 for all others.
    """
    common: dict[str, Any] = {
        "learning_rate": rate,
        "global_clipnorm": recipe.clip_norm or None,
        "gradient_accumulation_steps": recipe.accumulate if recipe.accumulate > 1 else None,
    }
    if recipe.optimizer == "sgd":
        kind: Any = SGD
        made = kind(momentum=recipe.momentum, nesterov=recipe.nesterov, **common)
    else:
        kind = AdamW if recipe.optimizer == "adamw" else Lamb
        beta_1, beta_2 = recipe.betas
        made = kind(beta_1=beta_1, beta_2=beta_2, epsilon=recipe.epsilon, **common)
    variables = model.trainable_variables
    chosen = {id(v) for v in variables} if recipe.decay_all else decays(model)
    made.configure(variables, rates or {}, dict.fromkeys(chosen, recipe.weight_decay))
    return made


def layer_rates(model: keras.Model, decay: float) -> dict[int, float]:
    """Return factors of the learning rate: 1 for the classifier, below it `decay` to the power of the distance.

    A level is a residual block: the layers from one addition to the next, in the order of the network (Clark et al.
    2020, ELECTRA; Bao et al. 2022, BEiT). Every variable of the model gets a factor.
    """
    level, levels = 0, {}
    for layer in model.layers:
        for variable in layer.trainable_variables:
            levels[id(variable)] = level
        if isinstance(layer, keras.layers.Add):
            level += 1
    top = max(levels.values(), default=0)
    return {key: decay ** (top - level) for key, level in levels.items()}
