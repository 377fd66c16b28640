"""The contract of every builder, once: the `keras.applications` arguments, the input, the head, the finished model."""

from __future__ import annotations

import numbers
import sys
import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_residual import blocks
from keras_residual.blocks import rules
from keras_residual.models import _checkpoints
from keras_residual.registry import Config

Pool = Callable[[Any], Any]
_SMALL_STEM = "Resize the images, or use a small-image stem: stem=keras_residual.models.resnet.small_stem."


class Frame:
    """What all builders share. A family makes one, builds on `frame.x`, and returns `frame.model(...)`.

    Attributes:
        x: The network's input tensor, `(N, *spatial, C)` or `(N, C)`.
    """

    def __init__(
        self,
        config: Config,
        include_top: bool,
        source: str | None,
        input_tensor: Any,
        input_shape: tuple[int | None, ...] | None,
        pooling: str | None,
        classes: int,
        classifier_activation: blocks.Activation,
        name: str | None,
    ) -> None:
        if keras.backend.backend() == "torch":
            raise RuntimeError(
                "keras_residual runs on TensorFlow and JAX: layers are named as timm's modules, with dots, which "
                "Keras' torch backend refuses. Received: KERAS_BACKEND=torch. Set KERAS_BACKEND=tensorflow or jax."
            )
        if keras.config.image_data_format() != "channels_last":
            raise ValueError(
                "Images are channels last, (N, H, W, C). Received: keras.config.image_data_format() == "
                "'channels_first'. Call keras.config.set_image_data_format('channels_last')."
            )
        if pooling not in (None, "avg", "max"):
            raise ValueError(f"pooling is None, 'avg' or 'max'. Received: {pooling!r}.")
        if not isinstance(include_top, bool):
            raise ValueError(
                f"include_top is True or False. Received: {include_top!r}. Name the arguments: classes=10, "
                "input_shape=(224, 224, 3)."
            )
        if isinstance(classes, bool) or not isinstance(classes, numbers.Integral) or classes < 0:
            raise ValueError(f"classes is a number of classes, or 0 for no classifier. Received: {classes!r}.")
        classes = int(classes)
        self.config, self.include_top, self.weights = config, include_top, source
        self.pooling, self.classes, self.classifier_activation = pooling, classes, classifier_activation
        self.name = name or config.name
        self.resized = input_shape is not None or input_tensor is not None
        self.x = self._input(input_tensor, input_shape)

    def _input(self, tensor: Any, shape: tuple[int | None, ...] | None) -> Any:
        if tensor is not None:
            rules.require_tensor(tensor, "input_tensor", self.name)
            if not keras.backend.is_keras_tensor(tensor):
                raise TypeError(
                    f"{self.name}: input_tensor is a tensor of the Functional API, such as keras.Input(...). Received: "
                    f"numbers of shape {tuple(tensor.shape)}. Call the finished model on them."
                )
            if shape is not None and tuple(tensor.shape[1:]) != tuple(shape):
                raise ValueError(
                    f"{self.name}: input_tensor and input_shape must agree. Received: {tuple(tensor.shape[1:])} and "
                    f"{tuple(shape)}. Leave input_shape out."
                )
            self._check_shape(tuple(tensor.shape[1:]))
            return tensor
        shape = self.config.input_shape if shape is None else shape
        return keras.Input(self._check_shape(shape), name="input")

    def _check_shape(self, shape: Any) -> tuple[int | None, ...]:
        default = self.config.input_shape
        vector = len(default) == 1
        ranks = (1,) if vector else (2, 3, 4)
        # Whatever has sizes will do: a tuple, a list, an array's or TensorFlow's shape
        sized = hasattr(shape, "__iter__") and not isinstance(shape, (str, dict))
        shape = tuple(shape) if sized else shape
        if not sized or len(shape) not in ranks or shape[-1] is None:
            expected = "(features,)" if vector else "(steps, C), (H, W, C) or (D, H, W, C), with a known C"
            raise ValueError(
                f"{self.name}: input_shape is one sample's shape without the batch, {expected}, for example "
                f"{default}. Received: {shape!r}."
            )
        if any(size is not None and (not isinstance(size, numbers.Integral) or size < 1) for size in shape):
            raise ValueError(f"{self.name}: sizes in input_shape are positive integers or None. Received: {shape!r}.")
        if None in shape and not self.config.dynamic_size:
            raise ValueError(
                f"{self.name} has position embeddings of a fixed grid, so its input size must be known. Received: "
                f"input_shape={tuple(shape)}. Give the size, for example {default}; any multiple of the patch works."
            )
        if len(shape) == 2 and shape[0] == shape[1]:
            warnings.warn(
                f"{self.name}: input_shape={shape} is a signal of {shape[0]} steps with {shape[1]} channels. An image "
                f"has three numbers, for example {(*shape, default[-1])}.",
                stacklevel=6,
            )
        return tuple(None if size is None else int(size) for size in shape)

    def require_size(self, x: Any, stride: int, remedy: str = _SMALL_STEM) -> None:
        """Raises unless each spatial size of `x` survives a further subsampling by `stride`."""
        for axis in range(1, len(x.shape) - 1):
            if x.shape[axis] is not None and x.shape[axis] < stride:
                given = tuple(self.x.shape[1:])
                sizes = zip(given[:-1], x.shape[1:-1], strict=True)
                ratio = max(-(-before // after) for before, after in sizes if before and after)
                least = stride << (ratio - 1).bit_length()  # stems subsample by powers of two
                swapped = given[0] in (1, 3, 4) and given[-1] not in (1, 3, 4)
                advice = f"Channels come last: input_shape={(*given[1:], given[0])}." if swapped else remedy
                raise ValueError(
                    f"{self.name}: the input must not be smaller than the network's stride, {least}. Received: "
                    f"input_shape={given}. {advice}"
                )

    def model(
        self,
        x: Any,
        *,
        pool: Pool | None = None,
        finish: Pool | None = None,
        initializer: Any = None,
        dense: type[keras.layers.Dense] = keras.layers.Dense,
    ) -> keras.Model:
        """Adds the head to the last feature map or token sequence `x` and makes the model.

        Args:
            x: `(N, *spatial, C)`, `(N, L, C)` or `(N, C)`.
            pool: The classifier's pooling, features to `(N, C)` or to one of them per head; global average if
                `None`.
            finish: What the family does to pooled features before the classifier (a norm).
            initializer: The classifier's kernel initializer.
            dense: The classifier's layer: `layers.PointwiseDense` where timm stores a convolution.
        """
        if self.include_top:
            x = pool(x) if pool else self._average(x)
            x = finish(x) if finish else x
            x = self._classified(x, initializer, dense)
        if self.include_top and self.classes:
            # Probabilities and losses need float32; the layer stays for `None`, so that the graph is always the same.
            half = keras.config.dtype_policy().compute_dtype in ("float16", "bfloat16")
            activation = self.classifier_activation or "linear"
            dtype = "float32" if half else None
            x = keras.layers.Activation(_resolve(activation), dtype=dtype, name="predictions")(x)
        elif not self.include_top and self.pooling == "avg":
            x = self._average(x)
        elif not self.include_top and self.pooling == "max":
            x = ops.max(x, axis=tuple(range(1, len(x.shape) - 1)))
        model = self._close(x)
        if self.weights is not None:
            _checkpoints.load(
                model,
                self.config,
                self.weights,
                new_head=self.classes != self.config.classes,
                new_size=self.resized,
            )
        return model

    def _classified(self, x: Any, initializer: Any, dense: type[keras.layers.Dense]) -> Any:
        """Logits of pooled features; several are averaged, each the work of its own head."""
        several = x if isinstance(x, list) else [x]
        if self.classes:
            initializer = initializer or "glorot_uniform"
            several = [
                dense(self.classes, kernel_initializer=initializer, name=name)(x)
                for x, name in zip(several, self.config.head, strict=True)
            ]
        return several[0] if len(several) == 1 else keras.layers.Average(name="heads")(several)

    def _close(self, x: Any) -> keras.Model:
        # Keras walks the graph by recursion, a call per layer: ResNet-1202 needs more than Python's 1000.
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(max(limit, 20_000))
        try:
            inputs = keras.utils.get_source_inputs(self.x)
            return keras.Model(inputs[0] if len(inputs) == 1 else inputs, x, name=self.name)
        finally:
            sys.setrecursionlimit(limit)

    def _average(self, x: Any) -> Any:
        rank = len(x.shape) - 2
        if rank == 0:
            return x
        return rules.pooling("GlobalAverage", rank)(name="global_pool")(x)


def _resolve(activation: Any) -> Any:
    """The activation function itself, or the error that `blocks.activate` gives."""
    blocks.activate(keras.Input((1,)), activation, name="classifier_activation")
    return activation
