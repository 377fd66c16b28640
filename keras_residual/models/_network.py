"""The contract of every family, once: the `keras.applications` arguments, the input, the head, the finished model."""

from __future__ import annotations

import dataclasses
import numbers
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import keras
from keras import ops

from keras_residual import blocks, layers
from keras_residual.blocks import Activation, Tensor, rules
from keras_residual.graph import deep
from keras_residual.models import _checkpoints
from keras_residual.registry import Config
from keras_residual.weights.formats import State

C = TypeVar("C", bound=Config)


@dataclasses.dataclass(frozen=True)
class Network(Generic[C]):
    """The options of a network; with a row, it builds one.

    A family subclasses it with `@dataclass(frozen=True, kw_only=True)`, adds its own options and writes `forward`.
    `pool`, `finish`, `classifier`, `combine` and `to_timm` are there to be overridden where a family differs. Its
    docstring has an `Args` section for its own options and for arguments that mean something special there; the rest
    of a builder's documentation comes from here.

    Args:
        include_top: Whether to end in pooling and the classifier.
        weights: `None` for random initialisation, `"imagenet"` for the row's default checkpoint, or a source that
            `keras_residual.load_weights` reads.
        input_tensor: A Functional-API tensor to build on, instead of `input_shape`.
        input_shape: Shape of one sample, channels last; spatial sizes may be `None`.
        pooling: Without top: `None` for the feature map `(N, *spatial, C)`, `"avg"` or `"max"` for `(N, C)`.
        classes: Number of outputs of the classifier; 0 for the pooled features before it.
        classifier_activation: Activation of the outputs; `None` for logits.
        name: Name of the model.
        drop_path: Stochastic-depth rate of the last block, growing linearly from 0 at the first.

    Returns:
        A Functional `keras.Model` from `(N, *input_shape)` to `(N, classes)`, or to features without top.

    Raises:
        ValueError: For an argument out of its range, or an input smaller than the network's stride.
    """

    include_top: bool = True
    weights: str | None = None
    input_tensor: Any = None
    input_shape: tuple[int | None, ...] | None = None
    pooling: str | None = None
    classes: int = 1000
    classifier_activation: Activation = "softmax"
    name: str | None = None
    drop_path: float = dataclasses.field(default=0.0, kw_only=True)

    # ------------------------------------------------------------------------------------------ what a family writes

    def forward(self, row: C, x: Tensor) -> Tensor:
        """Build the network up to its head.

        Args:
            row: The variant.
            x: The input, `(N, *spatial, C)` or `(N, C)`.

        Returns:
            The last feature map `(N, *spatial, C)`, token sequence `(N, L, C)` or vector `(N, C)`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(row, x).")

    def pool(self, row: C, x: Tensor) -> Any:
        """Reduce what `forward` returned to `(N, C)` for the classifier, or to a list with one of them per head."""
        return _average(x)

    def finish(self, row: C, x: Any) -> Any:
        """Add what stands between pooling and classifier, such as a norm, or a convolution and an activation."""
        return x

    def classifier(self) -> Callable[..., keras.layers.Layer]:
        """Return a function of `name` that makes a classifier layer."""
        return partial(keras.layers.Dense, self.classes)

    def combine(self, row: C, outputs: list[Tensor]) -> Tensor:
        """Combine the outputs of several heads; as DeiT does, by their average."""
        return keras.layers.Average(name="heads")(outputs)

    @staticmethod
    def to_timm(state: State) -> State:
        """Convert a checkpoint in one of the family's own formats to timm's names and layout; others stay as they are.

        Formats that checkpoints of any family may have, such as the prefix `module.`, are undone before.
        """
        return state

    # ------------------------------------------------------------------------------------------ what all have in common

    def build(self, row: C) -> keras.Model:
        """Build the row's network with these options, and load its weights."""
        self._check_options()
        row = row.tagged(_checkpoints.tag(row, self.weights))
        network = dataclasses.replace(self, name=self.name or row.name, classes=int(self.classes))
        inputs = network._input(row)
        model = network._close(inputs, network._head(row, network.forward(row, inputs)))
        for layer in model.layers:  # clones and files keep a layer's configuration, not a model's attributes
            if isinstance(layer, layers.StageOutput) and layer.family is None:
                layer.family = type(self).__name__
        if self.weights is not None:
            _checkpoints.load(
                model,
                row,
                self.weights,
                new_head=network.classes != row.classes,
                new_size=self.input_shape is not None or self.input_tensor is not None,
                to_timm=self.to_timm,
            )
        return model

    def require_size(
        self, inputs: Tensor, x: Tensor, stride: int, small_stem: Callable[..., Tensor] | None = None
    ) -> None:
        """Raise unless each spatial size of `x`, made from `inputs`, survives a further subsampling by `stride`.

        `small_stem` is what the error recommends as the family's option `stem`, if the family has one.
        """
        for axis in range(1, len(x.shape) - 1):
            if x.shape[axis] is not None and x.shape[axis] < stride:
                given = tuple(inputs.shape[1:])
                sizes = zip(given[:-1], x.shape[1:-1], strict=True)
                ratio = max(-(-before // after) for before, after in sizes if before and after)
                least = stride << (ratio - 1).bit_length()  # stems subsample by powers of two
                swapped = given[0] in (1, 3, 4) and given[-1] not in (1, 3, 4)
                remedy = "Resize the images"
                if small_stem is not None:
                    place = f"{small_stem.__module__}.{small_stem.__name__}"
                    remedy += f", or use a small-image stem: stem={place}"
                advice = f"Channels come last: input_shape={(*given[1:], given[0])}." if swapped else f"{remedy}."
                raise ValueError(
                    f"{self.name}: the input must not be smaller than the network's stride, {least}. Received: "
                    f"input_shape={given}. {advice}"
                )

    def require_multiple(self, row: C, x: Tensor, patch: int) -> None:
        """Raise unless each spatial size of `x` is a multiple of the patch, or the size of one of the row's aliases."""
        sizes = tuple(x.shape[1:-1])
        # Beyond the last whole patch of a published size (SigLIP So400M/14 at 384) the image is cut off.
        published = any(set(sizes) == {size} for _, size in row.aliases)
        if any(size % patch for size in sizes) and not published:
            near = tuple(max(1, round(size / patch)) * patch for size in sizes)
            raise ValueError(
                f"{row.name}: sizes must be multiples of the patch, {patch}; got {sizes}. Resize the images to {near}."
            )

    def _check_options(self) -> None:
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
        if self.pooling not in (None, "avg", "max"):
            raise ValueError(f"pooling is None, 'avg' or 'max'. Received: {self.pooling!r}.")
        if not isinstance(self.include_top, bool):
            raise ValueError(
                f"include_top is True or False. Received: {self.include_top!r}. Name the arguments: classes=10, "
                "input_shape=(224, 224, 3)."
            )
        if isinstance(self.classes, bool) or not isinstance(self.classes, numbers.Integral) or self.classes < 0:
            raise ValueError(f"classes is a number of classes, or 0 for no classifier. Received: {self.classes!r}.")

    def _input(self, row: C) -> Tensor:
        tensor, shape = self.input_tensor, self.input_shape
        if tensor is not None:
            rules.require_tensor(tensor, "input_tensor", self.name or row.name)
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
            self._check_shape(row, tuple(tensor.shape[1:]))
            return tensor
        return keras.Input(self._check_shape(row, row.input_shape if shape is None else shape), name="input")

    def _check_shape(self, row: C, shape: Any) -> tuple[int | None, ...]:
        default = row.input_shape
        forms = {1: "(steps, C)", 2: "(H, W, C)", 3: "(D, H, W, C)"}
        vector = len(default) == 1
        allowed = {0: "(features,)"} if vector else {rank: forms[rank] for rank in row.ranks}
        # Whatever has sizes will do: a tuple, a list, an array's or TensorFlow's shape
        sized = hasattr(shape, "__iter__") and not isinstance(shape, (str, dict))
        shape = tuple(shape) if sized else shape
        if not sized or len(shape) - 1 not in allowed or None in shape[-1:]:
            expected = " or ".join(allowed.values()) + ("" if vector else ", with a known C")
            raise ValueError(
                f"{self.name}: input_shape must be one sample's shape without the batch, {expected}, for example "
                f"{default}. Received: {shape!r}."
            )
        if any(size is not None and (not isinstance(size, numbers.Integral) or size < 1) for size in shape):
            raise ValueError(f"{self.name}: sizes in input_shape are positive integers or None. Received: {shape!r}.")
        if None in shape and not row.dynamic_size:
            raise ValueError(
                f"{self.name} has position embeddings of a fixed grid, so its input size must be known. Received: "
                f"input_shape={tuple(shape)}. Give the size, for example {default}; any multiple of the patch works."
            )
        if len(shape) == 2 and shape[0] == shape[1]:
            warnings.warn(
                f"{self.name}: input_shape={shape} is a signal of {shape[0]} steps with {shape[1]} channels. An image "
                f"has three numbers, for example {(*shape, default[-1])}.",
                stacklevel=5,  # the builder's caller
            )
        return tuple(None if size is None else int(size) for size in shape)

    def _head(self, row: C, x: Tensor) -> Tensor:
        classifier = self.classifier()  # before other layers, with or without top: initializers draw seeds in turn
        if not self.include_top:
            if self.pooling == "avg":
                return _average(x)
            return ops.max(x, axis=tuple(range(1, len(x.shape) - 1))) if self.pooling == "max" else x
        x = self.finish(row, self.pool(row, x))
        several = x if isinstance(x, list) else [x]
        if self.classes:
            several = [classifier(name=name)(x) for x, name in zip(several, row.head, strict=True)]
        x = several[0] if len(several) == 1 else self.combine(row, several)
        if not self.classes:
            return x
        # Probabilities and losses need float32; the layer stays for `None`, so that the graph is always the same.
        half = keras.config.dtype_policy().compute_dtype in ("float16", "bfloat16")
        activation = _resolve(self.classifier_activation or "linear")
        return keras.layers.Activation(activation, dtype="float32" if half else None, name="predictions")(x)

    def _close(self, inputs: Tensor, x: Tensor) -> keras.Model:
        with deep():
            sources = keras.utils.get_source_inputs(inputs)
            return keras.Model(sources[0] if len(sources) == 1 else sources, x, name=self.name)


def _average(x: Tensor) -> Tensor:
    rank = len(x.shape) - 2
    return rules.pooling("GlobalAverage", rank)(name="global_pool")(x) if rank else x


def _resolve(activation: Any) -> Any:
    """Return the activation itself, or raise the error that `blocks.activate` gives."""
    blocks.activate(keras.Input((1,)), activation, name="classifier_activation")
    return activation
