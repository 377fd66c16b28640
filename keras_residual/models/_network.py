"""Base class of all families: the `keras.applications` arguments, the input, the head and the assembly of the model."""

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
    """Options of a network, which build it from a row.

    A family subclasses this class with `@dataclass(frozen=True, kw_only=True)`, adds its options and implements
    `forward`. It may override `pool`, `finish`, `classifier`, `combine` and `to_timm`. The `Args` section of its
    docstring documents its own options and the arguments that have a special meaning in the family. The rest of a
    builder's documentation comes from this docstring.

    Args:
        include_top: If true, include the classification head: pooling and the classifier.
        weights: `None` for random initialization, `"imagenet"` for the default checkpoint of the variant, or a source
            that `keras_residual.load_weights` accepts.
        input_tensor: Functional-API tensor to use as the input, instead of `input_shape`.
        input_shape: Shape of one sample, channels last; spatial dimensions may be `None`.
        pooling: Output if `include_top` is false: `None` for the feature map `(N, *spatial, C)`, `"avg"` or `"max"`
            for pooled features `(N, C)`.
        classes: Number of outputs of the classifier; 0 for the pooled features without a classifier.
        classifier_activation: Activation of the outputs; `None` for logits.
        name: Name of the model.
        drop_path: Stochastic-depth rate of the last block; the rates grow linearly from 0 at the first block.

    Returns:
        A Functional `keras.Model` that maps `(N, *input_shape)` to `(N, classes)`, or to features without top.

    Raises:
        ValueError: If an argument is invalid, or if the input is smaller than the network's stride.
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

    # ------------------------------------------------------------------------------------- implemented by each family

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
        """Reduce the output of `forward` to `(N, C)` for the classifier, or to a list with one tensor per head."""
        return _average(x)

    def finish(self, row: C, x: Any) -> Any:
        """Apply the layers between pooling and classifier, such as a norm, or a convolution and an activation."""
        return x

    def classifier(self) -> Callable[..., keras.layers.Layer]:
        """Return a function that creates a classifier layer with the given `name`."""
        return partial(keras.layers.Dense, self.classes)

    def combine(self, row: C, outputs: list[Tensor]) -> Tensor:
        """Combine the outputs of several heads. The default averages them, as in DeiT."""
        return keras.layers.Average(name="heads")(outputs)

    @staticmethod
    def to_timm(state: State) -> State:
        """Convert a checkpoint in one of the family's own formats to timm's names and layout; return others unchanged.

        Wrappers common to all families, such as the prefix `module.`, have already been removed.
        """
        return state

    # ------------------------------------------------------------------------------------------ common to all families

    def build(self, row: C) -> keras.Model:
        """Build the row's network with these options and load its weights."""
        self._check_options()
        row = row.tagged(_checkpoints.tag(row, self.weights))
        network = dataclasses.replace(self, name=self.name or row.name, classes=int(self.classes))
        inputs = network._input(row)
        model = network._close(inputs, network._head(row, network.forward(row, inputs)))
        for layer in model.layers:  # cloning and saving keep the configuration of layers, not attributes of models
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
        """Raise if a spatial size of `x`, computed from `inputs`, is smaller than the remaining `stride`.

        The error recommends `small_stem` as the family's option `stem`, if the family has one.
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
                advice = f"Put the channels last: input_shape={(*given[1:], given[0])}." if swapped else f"{remedy}."
                raise ValueError(
                    f"{self.name}: the input must not be smaller than the network's stride, {least}; got "
                    f"input_shape={given}. {advice}"
                )

    def require_multiple(self, row: C, x: Tensor, patch: int) -> None:
        """Raise unless each spatial size of `x` is a multiple of the patch or the size of one of the row's aliases."""
        sizes = tuple(x.shape[1:-1])
        # Some published sizes are not multiples (SigLIP So400M/14 at 384); the rest of the image is cropped.
        published = any(set(sizes) == {size} for _, size in row.aliases)
        if any(size % patch for size in sizes) and not published:
            near = tuple(max(1, round(size / patch)) * patch for size in sizes)
            raise ValueError(
                f"{row.name}: sizes must be multiples of the patch size, {patch}; got {sizes}. Resize the images to "
                f"{near}."
            )

    def _check_options(self) -> None:
        if keras.backend.backend() == "torch":
            raise RuntimeError(
                "The Keras backend must be TensorFlow or JAX; got KERAS_BACKEND=torch. Keras' torch backend does not "
                "support layer names with dots, which the networks have. Set KERAS_BACKEND=tensorflow or jax."
            )
        if keras.config.image_data_format() != "channels_last":
            raise ValueError(
                "The image data format must be channels last, (N, H, W, C); got keras.config.image_data_format() == "
                "'channels_first'. Call keras.config.set_image_data_format('channels_last')."
            )
        if self.pooling not in (None, "avg", "max"):
            raise ValueError(f"`pooling` must be None, 'avg' or 'max'; got {self.pooling!r}.")
        if not isinstance(self.include_top, bool):
            raise ValueError(
                f"`include_top`, the first argument, must be True or False; got {self.include_top!r}. Pass other "
                "arguments by name: classes=10, input_shape=(224, 224, 3)."
            )
        if isinstance(self.classes, bool) or not isinstance(self.classes, numbers.Integral) or self.classes < 0:
            raise ValueError(f"`classes` must be a number of classes, or 0 for no classifier; got {self.classes!r}.")

    def _input(self, row: C) -> Tensor:
        tensor, shape = self.input_tensor, self.input_shape
        if tensor is not None:
            rules.require_tensor(tensor, "input_tensor", self.name or row.name)
            if not keras.backend.is_keras_tensor(tensor):
                raise TypeError(
                    f"{self.name}: `input_tensor` must be a tensor of the Functional API, such as keras.Input(...); "
                    f"got an array of shape {tuple(tensor.shape)}. Build the model first, then call it on the array."
                )
            if shape is not None and tuple(tensor.shape[1:]) != tuple(shape):
                raise ValueError(
                    f"{self.name}: `input_tensor` and `input_shape` must agree; got {tuple(tensor.shape[1:])} and "
                    f"{tuple(shape)}. Omit `input_shape`."
                )
            self._check_shape(row, tuple(tensor.shape[1:]))
            return tensor
        return keras.Input(self._check_shape(row, row.input_shape if shape is None else shape), name="input")

    def _check_shape(self, row: C, shape: Any) -> tuple[int | None, ...]:
        default = row.input_shape
        forms = {1: "(steps, C)", 2: "(H, W, C)", 3: "(D, H, W, C)"}
        vector = len(default) == 1
        allowed = {0: "(features,)"} if vector else {rank: forms[rank] for rank in row.ranks}
        # Accept any sequence of sizes: a tuple, a list, a TensorShape
        sized = hasattr(shape, "__iter__") and not isinstance(shape, (str, dict))
        shape = tuple(shape) if sized else shape
        if not sized or len(shape) - 1 not in allowed or None in shape[-1:]:
            expected = " or ".join(allowed.values()) + ("" if vector else ", with a known C")
            raise ValueError(
                f"{self.name}: `input_shape` must be the shape of one sample without the batch, {expected}, for "
                f"example {default}; got {shape!r}."
            )
        if any(size is not None and (not isinstance(size, numbers.Integral) or size < 1) for size in shape):
            raise ValueError(f"{self.name}: sizes in `input_shape` must be positive integers or None; got {shape!r}.")
        if None in shape and not row.dynamic_size:
            raise ValueError(
                f"{self.name}: sizes in `input_shape` must not be None, because the network has position embeddings of "
                f"a fixed grid; got {tuple(shape)}. Use for example {default}, or any multiple of the patch size."
            )
        if len(shape) == 2 and shape[0] == shape[1]:
            warnings.warn(
                f"{self.name}: input_shape={shape} means a signal of {shape[0]} steps with {shape[1]} channels. For "
                f"images, use three numbers, for example {(*shape, default[-1])}.",
                stacklevel=5,  # the builder's caller
            )
        return tuple(None if size is None else int(size) for size in shape)

    def _head(self, row: C, x: Tensor) -> Tensor:
        classifier = (
            self.classifier()
        )  # always created at this point, so that initializers draw the same seeds with or without top
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
        # Probabilities and losses need float32. The layer exists for `None` too, so that the graph is always the same.
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
    """Return the activation, or raise the error of `blocks.activate` if it is invalid."""
    blocks.activate(keras.Input((1,)), activation, name="classifier_activation")
    return activation
