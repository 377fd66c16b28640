"""Building blocks of residual networks: functions of Functional-API tensors.

Every block, convolutional or Transformer, ends in `residual`, which computes
`activation(shortcut + drop_path(scale(branch)))`. Tensors are channels last, `(N, *spatial, C)`. Convolutions, poolings
and normalisations are 1-D, 2-D or 3-D, depending on the rank of the tensor. `name` is the prefix of the names of the
layers that a block creates; without it, a unique prefix is generated.
"""

from keras_residual.blocks.channel_attention import efficient_channel_attention, squeeze_excite
from keras_residual.blocks.conv import (
    affine,
    batch_norm,
    conv_norm,
    convolution,
    depthwise,
    group_norm,
    layer_norm,
    patches,
    rms_norm,
    simple_norm,
)
from keras_residual.blocks.conv_blocks import basic, bottleneck, convnext, plain_basic, preact_basic, preact_bottleneck
from keras_residual.blocks.equation import activate, drop_path_rates, residual
from keras_residual.blocks.inverted import depthwise_separable, edge_residual, inverted_residual
from keras_residual.blocks.padding import Kernel as Kernel
from keras_residual.blocks.padding import Padding as Padding
from keras_residual.blocks.padding import pad
from keras_residual.blocks.pooling import average_pool, blur_pool, max_pool
from keras_residual.blocks.rules import Activation as Activation
from keras_residual.blocks.rules import Attention as Attention
from keras_residual.blocks.rules import Downsample as Downsample
from keras_residual.blocks.rules import Norm as Norm
from keras_residual.blocks.rules import PreactShortcut as PreactShortcut
from keras_residual.blocks.rules import Shortcut as Shortcut
from keras_residual.blocks.rules import SqueezeExcite as SqueezeExcite
from keras_residual.blocks.rules import Tensor as Tensor
from keras_residual.blocks.rules import make_divisible
from keras_residual.blocks.shortcuts import identity, padded_identity, pooled_projection, projection
from keras_residual.blocks.transformer_blocks import (
    attention,
    attention_block,
    dense,
    mlp,
    mlp_block,
    pointwise,
    split_swiglu,
    swiglu,
)

__all__ = [
    "activate",
    "affine",
    "attention",
    "attention_block",
    "average_pool",
    "basic",
    "batch_norm",
    "blur_pool",
    "bottleneck",
    "conv_norm",
    "convnext",
    "convolution",
    "dense",
    "depthwise",
    "depthwise_separable",
    "drop_path_rates",
    "edge_residual",
    "efficient_channel_attention",
    "group_norm",
    "identity",
    "inverted_residual",
    "layer_norm",
    "make_divisible",
    "max_pool",
    "mlp",
    "mlp_block",
    "pad",
    "padded_identity",
    "patches",
    "plain_basic",
    "pointwise",
    "pooled_projection",
    "preact_basic",
    "preact_bottleneck",
    "projection",
    "residual",
    "rms_norm",
    "simple_norm",
    "split_swiglu",
    "squeeze_excite",
    "swiglu",
]
