"""MLP-Mixer, ResMLP and gMLP: residual networks that mix patches with dense layers along the sequence.

The topology and the names of networks and layers follow timm.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from keras import ops

from keras_residual import blocks
from keras_residual.blocks import Activation, Norm, Tensor, affine, dense, layer_norm, mlp, residual, swiglu
from keras_residual.layers import LayerScale, StageOutput
from keras_residual.models._network import Network
from keras_residual.registry import Config, variant
from keras_residual.weights.formats import State, renamed


def along_tokens(x: Tensor, mix: Callable[[Tensor], Tensor], name: str) -> Tensor:
    """Apply `mix`, which acts on the last axis, to the tokens of each channel: `(N, L, C)` -> `(N, L, C)`."""
    x = keras.layers.Permute((2, 1), name=f"{name}.to_channels")(x)
    return keras.layers.Permute((2, 1), name=f"{name}.to_tokens")(mix(x))


def mixer(x: Tensor, row: MLPMixerConfig, *, norm: Norm, activation: Activation, drop_path: float, name: str) -> Tensor:
    """Apply an MLP along the tokens, then one along the channels (Tolstikhin et al. 2021, figure 1)."""
    use = partial(row.feed_forward, activation=activation)
    y = norm(x, name=f"{name}.norm1")
    y = along_tokens(y, partial(use, hidden=row.hidden[0], name=f"{name}.mlp_tokens"), f"{name}.mlp_tokens")
    x = residual(x, y, drop_path=drop_path, name=f"{name}.tokens")
    y = use(norm(x, name=f"{name}.norm2"), row.hidden[1], name=f"{name}.mlp_channels")
    return residual(x, y, drop_path=drop_path, name=f"{name}.channels")


def resmlp(
    x: Tensor, row: MLPMixerConfig, *, norm: Norm, activation: Activation, drop_path: float, name: str
) -> Tensor:
    """Apply a dense layer along the tokens, then an MLP along the channels, both scaled.

    Source: Touvron et al. 2021, ResMLP, equations 2 and 3.
    """
    y = norm(x, name=f"{name}.norm1")
    y = along_tokens(y, partial(dense, units=x.shape[1], name=f"{name}.linear_tokens"), f"{name}.linear_tokens")
    x = residual(x, y, scale=LayerScale(row.scale, name=f"{name}.ls1"), drop_path=drop_path, name=f"{name}.tokens")
    y = row.feed_forward(
        norm(x, name=f"{name}.norm2"), row.hidden[1], activation=activation, name=f"{name}.mlp_channels"
    )
    return residual(x, y, scale=LayerScale(row.scale, name=f"{name}.ls2"), drop_path=drop_path, name=f"{name}.channels")


def gmlp(x: Tensor, row: MLPMixerConfig, *, norm: Norm, activation: Activation, drop_path: float, name: str) -> Tensor:
    """Apply an MLP along the channels whose first half is gated by the tokens of its second half.

    Source: Liu et al. 2021, figure 1.
    """
    inside = f"{name}.mlp_channels"
    y = dense(norm(x, name=f"{name}.norm"), row.hidden[1], name=f"{inside}.fc1")
    y, gate = ops.split(blocks.activate(y, activation, name=f"{inside}.act"), 2, axis=-1)
    gate = layer_norm(gate, epsilon=1e-5, name=f"{inside}.gate.norm")
    # Initialize the gate to 1 for all tokens.
    open_gate = keras.layers.Dense(
        x.shape[1],
        kernel_initializer=keras.initializers.RandomNormal(stddev=1e-6),
        bias_initializer="ones",
        name=f"{inside}.gate.proj",
    )
    y = keras.layers.Multiply(name=f"{inside}.gate")([y, along_tokens(gate, open_gate, f"{inside}.gate")])
    return residual(x, dense(y, x.shape[-1], name=f"{inside}.fc2"), drop_path=drop_path, name=inside)


@dataclasses.dataclass(frozen=True)
class MLPMixerConfig(Config):
    """Configuration of a network of the MLP-Mixer family.

    Attributes:
        patch: Side of a patch in pixels.
        width: Channels of a token.
        depth: Number of blocks.
        ratios: Hidden widths of the MLPs along tokens and channels, as multiples of `width`.
        block: `mixer`, `resmlp` or `gmlp`.
        feed_forward: `blocks.mlp` or a gated MLP.
        norm: Normalisation at the start of each branch and after the last block.
        activation: Activation inside the MLPs.
        scale: Initial value of the scales of `resmlp`.
    """

    patch: int
    width: int
    depth: int
    ratios: tuple[float, float] = (0.5, 4.0)
    block: Callable[..., Tensor] = mixer
    feed_forward: Callable[..., Tensor] = mlp
    norm: Norm = layer_norm
    activation: Activation = "gelu"
    scale: float = 1e-4
    dynamic_size: bool = dataclasses.field(default=False, kw_only=True)
    head: tuple[str, ...] = dataclasses.field(default=("head",), kw_only=True)
    top: tuple[str, ...] = dataclasses.field(default=("head.",), kw_only=True)

    @property
    def hidden(self) -> tuple[int, int]:
        """Hidden widths of the MLPs along tokens and channels."""
        return int(self.ratios[0] * self.width), int(self.ratios[1] * self.width)

    def tiny(self) -> MLPMixerConfig:
        """Return the same topology with 4 blocks, 32 channels and a grid of 4x4 patches."""
        size = 4 * self.patch
        return dataclasses.replace(self, width=32, depth=4, input_shape=(size, size, 3), classes=10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPMixer(Network[MLPMixerConfig]):
    """A network of dense layers along patches and along channels.

    The rank of the patches follows from `input_shape`: `(H, W, C)` for images, `(steps, C)` for signals,
    `(D, H, W, C)` for volumes or videos. The shape of the weights depends on the number of patches, so a checkpoint
    loads only at the image size it was trained at.

    Args:
        input_shape: Shape of one sample, channels last. All sizes must be known.
        pooling: Output if `include_top` is false: `None` for the tokens `(N, L, C)` after the last norm, `"avg"` or
            `"max"` for features `(N, C)` pooled over the tokens.
        norm: Normalisation; defaults to the variant's.
        activation: Activation of the MLPs; defaults to the variant's.

    Raises:
        ValueError: If an argument is invalid, or if a size is not a multiple of the patch size.
    """

    norm: Norm | None = None
    activation: Activation = None

    def forward(self, row: MLPMixerConfig, x: Tensor) -> Tensor:
        norm, activation = self.norm or row.norm, self.activation or row.activation
        self.require_multiple(row, x, row.patch)
        x = blocks.patches(x, row.width, row.patch, name="stem")
        grid = x.shape[1:-1]
        x = keras.layers.Reshape((math.prod(grid), row.width), name="stem.flatten")(x)  # (N, L, C)
        levels = {max(1, row.depth * level // 4) - 1: level for level in (1, 2, 3, 4)}
        for i, rate in enumerate(blocks.drop_path_rates(self.drop_path, row.depth)):
            x = row.block(x, row, norm=norm, activation=activation, drop_path=rate, name=f"blocks.{i}")
            if i in levels:
                x = StageOutput(levels[i], grid=grid, name=f"blocks.{i}")(x)
        return norm(x, name="norm")

    def classifier(self) -> Callable[..., keras.layers.Layer]:
        return partial(keras.layers.Dense, self.classes, kernel_initializer="zeros")

    @staticmethod
    def to_timm(state: State) -> State:
        """Convert Meta's ResMLP checkpoints."""
        if "patch_embed.proj.weight" not in state:
            return state
        state = renamed(state, _RESMLP)
        return {k: v.reshape(1, 1, -1) if k.endswith((".alpha", ".beta")) else v for k, v in state.items()}


_RESMLP = (
    (r"^patch_embed\.", "stem."),
    (r"\.attn\.", ".linear_tokens."),
    (r"\.mlp\.", ".mlp_channels."),
    (r"\.gamma_([12])$", r".ls\1"),
)

# Variants. Parameters and GMACs: timm at 224x224.

_GATED: dict[str, Any] = {
    "ratios": (1.0, 4.0),
    "feed_forward": partial(swiglu, gate_last=True),
    "activation": "silu",
}
_RES: dict[str, Any] = {"block": resmlp, "norm": affine}
_GMLP: dict[str, Any] = {"ratios": (0.0, 6.0), "block": gmlp}

# fmt: off
MixerSmall16 = variant(MLPMixer, MLPMixerConfig("MixerSmall16", 16, 512, 8,
    timm="mixer_s16_224", params=18_528_264, gmacs=3.777, source="Tolstikhin et al. 2021"))
MixerSmall32 = variant(MLPMixer, MLPMixerConfig("MixerSmall32", 32, 512, 8,
    timm="mixer_s32_224", params=19_104_624, gmacs=1.002, source="Tolstikhin et al. 2021"))
MixerBase16 = variant(MLPMixer, MLPMixerConfig("MixerBase16", 16, 768, 12,
    timm="mixer_b16_224", tag="goog_in21k_ft_in1k", params=59_880_472, gmacs=12.60, source="Tolstikhin et al. 2021"))
MixerBase32 = variant(MLPMixer, MLPMixerConfig("MixerBase32", 32, 768, 12,
    timm="mixer_b32_224", params=60_293_428, gmacs=3.238, source="Tolstikhin et al. 2021"))
MixerLarge32 = variant(MLPMixer, MLPMixerConfig("MixerLarge32", 32, 1024, 24,
    timm="mixer_l32_224", params=206_939_264, gmacs=11.25, source="Tolstikhin et al. 2021"))
MixerLarge16 = variant(MLPMixer, MLPMixerConfig("MixerLarge16", 16, 1024, 24,
    timm="mixer_l16_224", tag="goog_in21k_ft_in1k", params=208_196_168, gmacs=44.55, source="Tolstikhin et al. 2021"))
GMixer12 = variant(MLPMixer, MLPMixerConfig("GMixer12", 16, 384, 12, **_GATED,
    timm="gmixer_12_224", params=12_701_080, gmacs=2.659, source="timm, after Tolstikhin et al. 2021"))
GMixer24 = variant(MLPMixer, MLPMixerConfig("GMixer24", 16, 384, 24, **_GATED,
    timm="gmixer_24_224", tag="ra3_in1k", params=24_721_096, gmacs=5.260, source="timm, after Tolstikhin et al. 2021"))
ResMLP12 = variant(MLPMixer, MLPMixerConfig("ResMLP12", 16, 384, 12, **_RES,
    timm="resmlp_12_224", tag="fb_in1k", params=15_350_872, gmacs=3.010, source="Touvron et al. 2021, ResMLP"))
ResMLP24 = variant(MLPMixer, MLPMixerConfig("ResMLP24", 16, 384, 24, **_RES, scale=1e-5,
    timm="resmlp_24_224", tag="fb_in1k", params=30_020_680, gmacs=5.961, source="Touvron et al. 2021, ResMLP"))
ResMLP36 = variant(MLPMixer, MLPMixerConfig("ResMLP36", 16, 384, 36, **_RES, scale=1e-6,
    timm="resmlp_36_224", tag="fb_in1k", params=44_690_488, gmacs=8.913, source="Touvron et al. 2021, ResMLP"))
ResMLPBig24 = variant(MLPMixer, MLPMixerConfig("ResMLPBig24", 8, 768, 24, **_RES, scale=1e-6,
    timm="resmlp_big_24_224", tag="fb_in1k", params=129_138_280, gmacs=100.2, source="Touvron et al. 2021, ResMLP"))
GMLPTiny16 = variant(MLPMixer, MLPMixerConfig("GMLPTiny16", 16, 128, 30, **_GMLP,
    timm="gmlp_ti16_224", params=5_867_328, gmacs=1.329, source="Liu et al. 2021, table 1"))
GMLPSmall16 = variant(MLPMixer, MLPMixerConfig("GMLPSmall16", 16, 256, 30, **_GMLP,
    timm="gmlp_s16_224", tag="ra3_in1k", params=19_422_656, gmacs=4.392, source="Liu et al. 2021, table 1"))
GMLPBase16 = variant(MLPMixer, MLPMixerConfig("GMLPBase16", 16, 512, 30, **_GMLP,
    timm="gmlp_b16_224", params=73_075_392, gmacs=15.72, source="Liu et al. 2021, table 1"))
# fmt: on
