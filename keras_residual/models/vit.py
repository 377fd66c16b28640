"""Vision Transformers: ViT, AugReg, DeiT, DINOv2, CLIP, SigLIP, EVA, AIMv2 and more.

All are variants of one pre-norm residual network on image patches. The topology and the names of networks and layers
follow timm.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Protocol

import keras

from keras_residual import blocks
from keras_residual.blocks import Activation, Norm, Tensor, layer_norm, mlp, rms_norm, split_swiglu, swiglu
from keras_residual.layers import Attend, PositionEmbedding, SplitHeads, StageOutput, Token
from keras_residual.models import _vit_formats
from keras_residual.models._network import Network
from keras_residual.registry import Config, variant
from keras_residual.weights.formats import State


class Pool(Protocol):
    """Protocol for pooling the tokens: `pool(x, config, activation)` returns `(N, C)`, or a list with one per head."""

    def __call__(self, x: Tensor, config: ViTConfig, activation: Activation) -> Any: ...


def class_token(x: Tensor, config: ViTConfig, activation: Activation) -> Tensor:
    """Return the class token, which is the first (Dosovitskiy et al. 2021)."""
    return x[:, 0]


def class_and_distillation_token(x: Tensor, config: ViTConfig, activation: Activation) -> list[Tensor]:
    """Return the class and distillation tokens, each of which has a separate head (Touvron et al. 2021, DeiT)."""
    return [x[:, 0], x[:, 1]]


def mean_of_patches(x: Tensor, config: ViTConfig, activation: Activation) -> Tensor:
    """Return the average over all patches, without class and register tokens."""
    return keras.layers.GlobalAveragePooling1D(name="global_pool")(x[:, config.prefix :])


def attention_pool(x: Tensor, config: ViTConfig, activation: Activation, *, prefix: bool = False) -> Tensor:
    """Pool by the attention of one trained query to all patches, then apply a residual MLP (Zhai et al. 2022; SigLIP).

    With `prefix`, the query also attends to class and register tokens.
    """
    x = x if prefix else x[:, config.prefix :]
    query = Token(stddev=config.width**-0.5, name="attn_pool.latent")(x)[:, :1]  # (N, 1, C)
    (q,) = SplitHeads(config.heads, 1, name="attn_pool.q_heads")(blocks.dense(query, config.width, name="attn_pool.q"))
    kv = blocks.dense(x, 2 * config.width, name="attn_pool.kv")
    k, v = SplitHeads(config.heads, 2, name="attn_pool.kv_heads")(kv)
    x = blocks.dense(Attend(name="attn_pool.attend")([q, k, v]), config.width, name="attn_pool.proj")
    y = mlp(config.norm(x, name="attn_pool.norm"), config.hidden, activation=activation, name="attn_pool.mlp")
    return blocks.residual(x, y, name="attn_pool")[:, 0]


@dataclasses.dataclass(frozen=True)
class ViTConfig(Config):
    """Configuration of a Vision Transformer.

    Attributes:
        patch: Side of a patch in pixels.
        width: Channels of a token.
        depth: Number of blocks, each with attention and MLP.
        heads: Number of attention heads.
        hidden: Hidden channels of the MLP; 0 for four times `width`.
        feed_forward: `blocks.mlp`, `blocks.swiglu` or `blocks.split_swiglu`.
        activation: Activation of the MLP.
        pool: Function that reduces the tokens to the input of the classifier.
        tokens: Names and numbers of the trained tokens before the patches.
        embed_tokens: If true, these tokens also have position embeddings.
        norm: Normalisation of all layers.
        norm_embed: If true, patches are normalised directly after their embedding (AIMv2).
        patch_bias: If true, the patch embedding has a bias.
        norm_first: If true, tokens are normalised before the first block (CLIP).
        final_norm: Position of the last norm: after the last block (`"tokens"`), after pooling (`"pooled"`), or
            `None` for no last norm.
        qkv_bias: If true, query, key and value have biases.
        proj_bias: If true, the output projection of attention has a bias.
        qk_norm: If true, the query and key of each head are normalised.
        scale: Initial value of LayerScale; `None` for no LayerScale.
    """

    patch: int
    width: int
    depth: int
    heads: int
    hidden: int = 0
    feed_forward: Callable[..., Tensor] = mlp
    activation: Activation = "gelu"
    pool: Pool = class_token
    tokens: tuple[tuple[str, int], ...] = (("cls_token", 1),)
    embed_tokens: bool = True
    norm: Norm = layer_norm
    norm_embed: bool = False
    patch_bias: bool = True
    norm_first: bool = False
    final_norm: Literal["tokens", "pooled"] | None = "tokens"
    qkv_bias: bool = True
    proj_bias: bool = True
    qk_norm: bool = False
    scale: float | None = None
    dynamic_size: bool = dataclasses.field(default=False, kw_only=True)
    head: tuple[str, ...] = dataclasses.field(default=("head",), kw_only=True)
    top: tuple[str, ...] = dataclasses.field(default=("head.", "head_dist.", "fc_norm.", "attn_pool."), kw_only=True)

    def __post_init__(self) -> None:
        if not self.hidden:
            object.__setattr__(self, "hidden", 4 * self.width)

    @property
    def global_pool(self) -> str:
        """timm's name of `pool`."""
        pool = self.pool.func if isinstance(self.pool, partial) else self.pool
        return {mean_of_patches: "avg", attention_pool: "map"}.get(pool, "token")

    @property
    def prefix(self) -> int:
        """Number of tokens before the patches."""
        return sum(count for _, count in self.tokens)

    def tiny(self) -> ViTConfig:
        """Return the same topology with 4 blocks, 64 channels and a grid of 4x4 patches."""
        size = 4 * self.patch
        return dataclasses.replace(self, width=64, depth=4, heads=4, hidden=96, input_shape=(size, size, 3), classes=10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViT(Network[ViTConfig]):
    """A Vision Transformer.

    The rank of the patches follows from `input_shape`: `(H, W, C)` for images, `(steps, C)` for signals,
    `(D, H, W, C)` for volumes or videos. Sizes must be multiples of the patch size and need not be square.

    Args:
        input_shape: Shape of one sample, channels last. All sizes must be known.
        pooling: Output if `include_top` is false: `None` for the tokens `(N, L, C)` after the last norm, starting with
            class and register tokens; `"avg"` or `"max"` for features `(N, C)` pooled over the patches. A norm that
            follows pooling belongs to the top, so that the tokens are the unnormalised output of the last block.
        dropout: Dropout rate after each projection of a block.
        norm: Normalisation; defaults to the variant's.
        activation: Activation of the MLPs; defaults to the variant's.

    Raises:
        ValueError: If an argument is invalid, or if a size is not a multiple of the patch size.
    """

    dropout: float = 0.0
    norm: Norm | None = None
    activation: Activation = None

    def forward(self, row: ViTConfig, x: Tensor) -> Tensor:
        norm = self.norm or row.norm
        self.require_multiple(row, x, row.patch)
        x = blocks.patches(x, row.width, row.patch, bias=row.patch_bias, name="patch_embed")
        grid = x.shape[1:-1]
        x = keras.layers.Reshape((math.prod(grid), row.width), name="patch_embed.flatten")(x)  # (N, L, C)
        if row.norm_embed:
            x = norm(x, name="patch_embed.norm")
        if not row.embed_tokens:
            x = PositionEmbedding(grid, name="pos_embed")(x)
        for token, count in reversed(row.tokens):
            x = Token(count, name=token)(x)
        if row.embed_tokens:
            x = PositionEmbedding(grid, row.prefix, name="pos_embed")(x)
        if row.norm_first:
            x = norm(x, name="norm_pre")

        rates = blocks.drop_path_rates(self.drop_path, row.depth)
        levels = {max(1, row.depth * level // 4) - 1: level for level in (1, 2, 3, 4)}
        for i, rate in enumerate(rates):
            options: dict[str, Any] = {"norm": norm, "scale": row.scale, "drop_path": rate, "name": f"blocks.{i}"}
            x = blocks.attention_block(
                x,
                row.heads,
                qkv_bias=row.qkv_bias,
                proj_bias=row.proj_bias,
                qk_norm=norm if row.qk_norm else None,
                dropout=self.dropout,
                **options,
            )
            x = blocks.mlp_block(
                x,
                row.hidden,
                feed_forward=row.feed_forward,
                activation=self.activation or row.activation,
                dropout=self.dropout,
                **options,
            )
            if i in levels:
                x = StageOutput(levels[i], grid=grid, name=f"blocks.{i}")(x)
        if row.final_norm == "tokens":
            x = norm(x, name="norm")
        return x[:, row.prefix :] if self.pooling and not self.include_top else x

    def pool(self, row: ViTConfig, x: Tensor) -> Any:
        row = dataclasses.replace(row, norm=self.norm or row.norm)
        return row.pool(x, row, self.activation or row.activation)

    def finish(self, row: ViTConfig, x: Any) -> Any:
        return (self.norm or row.norm)(x, name="fc_norm") if row.final_norm == "pooled" else x

    def classifier(self) -> Callable[..., keras.layers.Layer]:
        return partial(
            keras.layers.Dense, self.classes, kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02)
        )

    @staticmethod
    def to_timm(state: State) -> State:
        """Convert Google's `.npz` towers, OpenAI's CLIP, and Meta's DINOv2 and DeiT-III."""
        return _vit_formats.to_timm(state)


# Variants. Parameters and GMACs: timm at the variant's input size. Aliases are the same network at another size.

# Options shared by the variants of a paper.
_GAP: dict[str, Any] = {"pool": mean_of_patches, "tokens": ()}
_CLIP: dict[str, Any] = {"norm": partial(layer_norm, epsilon=1e-5), "patch_bias": False, "norm_first": True}
_OPENAI: dict[str, Any] = {**_CLIP, "activation": "quick_gelu"}
_SWIGLU: dict[str, Any] = {"feed_forward": swiglu, "activation": "silu"}
_DINOV2_REG: dict[str, Any] = {
    "tokens": (("cls_token", 1), ("reg_token", 4)),
    "embed_tokens": False,
    "scale": 1e-5,
}
_TIPS: dict[str, Any] = {"tokens": (("cls_token", 1), ("reg_token", 1)), "embed_tokens": False, "scale": 1}
_SIGLIP: dict[str, Any] = {"pool": attention_pool, "tokens": ()}
_SIGLIP2: dict[str, Any] = {**_SIGLIP, "activation": "gelu_tanh"}
_SIGLIP2_GAP: dict[str, Any] = {**_GAP, "activation": "gelu_tanh"}
_REG4: dict[str, Any] = {
    "pool": mean_of_patches,
    "tokens": (("reg_token", 4),),
    "embed_tokens": False,
    "final_norm": "pooled",
    "scale": 1e-5,
}
_REG1: dict[str, Any] = {**_REG4, "tokens": (("reg_token", 1),)}
_AIM: dict[str, Any] = {
    **_GAP,
    "feed_forward": partial(split_swiglu, bias=False),
    "activation": "silu",
    "norm": partial(rms_norm, epsilon=1e-5),
    "norm_embed": True,
    "qkv_bias": False,
    "proj_bias": False,
}
_RADIO4: dict[str, Any] = {
    "tokens": (("cls_token", 1), ("reg_token", 9)),
    "embed_tokens": False,
    "final_norm": None,
}
_RADIO3: dict[str, Any] = {**_RADIO4, "tokens": (("cls_token", 1), ("reg_token", 7))}
_DISTILLED: dict[str, Any] = {
    "pool": class_and_distillation_token,
    "tokens": (("cls_token", 1), ("dist_token", 1)),
    "head": ("head", "head_dist"),
}
_DEIT3: dict[str, Any] = {"embed_tokens": False, "scale": 1e-6}

# fmt: off
# Dosovitskiy et al. 2021; smaller ones and their training: Steiner et al. 2021; larger ones: Zhai et al. 2022
ViTTiny16 = variant(ViT, ViTConfig("ViTTiny16", 16, 192, 12, 3,
    timm="vit_tiny_patch16_224", tag="augreg_in21k_ft_in1k", aliases=(("vit_tiny_patch16_384", 384),), params=5_717_416,
    gmacs=1.254, source="Steiner et al. 2021"))
ViTSmall32 = variant(ViT, ViTConfig("ViTSmall32", 32, 384, 12, 6,
    timm="vit_small_patch32_224", tag="augreg_in21k_ft_in1k", aliases=(("vit_small_patch32_384", 384),),
    params=22_878_952, gmacs=1.143, source="Steiner et al. 2021"))
ViTSmall16 = variant(ViT, ViTConfig("ViTSmall16", 16, 384, 12, 6,
    timm="vit_small_patch16_224", tag="augreg_in21k_ft_in1k", aliases=(("vit_small_patch16_384", 384),),
    params=22_050_664, gmacs=4.599, source="Steiner et al. 2021"))
ViTSmall8 = variant(ViT, ViTConfig("ViTSmall8", 8, 384, 12, 6,
    timm="vit_small_patch8_224", params=22_055_272, gmacs=22.41, source="Caron et al. 2021"))
ViTBase32 = variant(ViT, ViTConfig("ViTBase32", 32, 768, 12, 12,
    timm="vit_base_patch32_224", tag="augreg_in21k_ft_in1k", aliases=(("vit_base_patch32_384", 384),),
    params=88_224_232, gmacs=4.409, source="Dosovitskiy et al. 2021, table 1"))
ViTBase16 = variant(ViT, ViTConfig("ViTBase16", 16, 768, 12, 12,
    timm="vit_base_patch16_224", tag="augreg2_in21k_ft_in1k", aliases=(("vit_base_patch16_384", 384),),
    params=86_567_656, gmacs=17.56, source="Dosovitskiy et al. 2021, table 1"))
ViTBase8 = variant(ViT, ViTConfig("ViTBase8", 8, 768, 12, 12,
    timm="vit_base_patch8_224", tag="augreg2_in21k_ft_in1k", params=86_576_872, gmacs=78.15,
    source="Steiner et al. 2021"))
ViTLarge32 = variant(ViT, ViTConfig("ViTLarge32", 32, 1024, 24, 16,
    timm="vit_large_patch32_224", aliases=(("vit_large_patch32_384", 384),), params=306_535_400, gmacs=15.38,
    source="Dosovitskiy et al. 2021, table 1"))
ViTLarge16 = variant(ViT, ViTConfig("ViTLarge16", 16, 1024, 24, 16,
    timm="vit_large_patch16_224", tag="augreg_in21k_ft_in1k", aliases=(("vit_large_patch16_384", 384),),
    params=304_326_632, gmacs=61.55, source="Dosovitskiy et al. 2021, table 1"))
ViTLarge14 = variant(ViT, ViTConfig("ViTLarge14", 14, 1024, 24, 16,
    timm="vit_large_patch14_224", params=304_203_752, gmacs=81.01, source="Dosovitskiy et al. 2021, table 1"))
ViTHuge14 = variant(ViT, ViTConfig("ViTHuge14", 14, 1280, 32, 16,
    timm="vit_huge_patch14_224", params=632_045_800, gmacs=167.30, source="Dosovitskiy et al. 2021, table 1"))
ViTGiant14 = variant(ViT, ViTConfig("ViTGiant14", 14, 1408, 40, 16, hidden=6144,
    timm="vit_giant_patch14_224", params=1_012_611_432, gmacs=267.03, source="Zhai et al. 2022, table 2"))
ViTGigantic14 = variant(ViT, ViTConfig("ViTGigantic14", 14, 1664, 48, 16, hidden=8192,
    timm="vit_gigantic_patch14_224", params=1_844_440_680, gmacs=483.75, source="Zhai et al. 2022, table 2"))

# Ridnik et al. 2021
ViTMIILBase16 = variant(ViT, ViTConfig("ViTMIILBase16", 16, 768, 12, 12, qkv_bias=False,
    timm="vit_base_patch16_224_miil", tag="in21k_ft_in1k", params=86_540_008, gmacs=17.56, source="Ridnik et al. 2021"))

# timm's variants without a class token
ViTGAPMedium16 = variant(ViT, ViTConfig("ViTGAPMedium16", 16, 512, 12, 8, **_GAP, qkv_bias=False, scale=1e-06,
    timm="vit_medium_patch16_gap_240", aliases=(("vit_medium_patch16_gap_256", 256),
    ("vit_medium_patch16_gap_384", 384)), input_shape=(240, 240, 3), params=38_845_416, gmacs=9.205,
    source="A form of timm, after Dosovitskiy et al. 2021"))
ViTGAPBetwixt16 = variant(ViT, ViTConfig("ViTGAPBetwixt16", 16, 640, 12, 10, **_GAP, qkv_bias=False, scale=1e-06,
    timm="vit_betwixt_patch16_gap_256", input_shape=(256, 256, 3), params=60_372_840, gmacs=16.23,
    source="A form of timm, after Dosovitskiy et al. 2021"))
ViTGAPBase16 = variant(ViT, ViTConfig("ViTGAPBase16", 16, 768, 12, 16, **_GAP,
    timm="vit_base_patch16_gap_224", params=86_566_120, gmacs=17.47,
    source="A form of timm, after Dosovitskiy et al. 2021"))

# Assran et al. 2023 (I-JEPA)
ViTGAPHuge14 = variant(ViT, ViTConfig("ViTGAPHuge14", 14, 1280, 32, 16, **_GAP,
    timm="vit_huge_patch14_gap_224", params=632_043_240, gmacs=166.62, source="Assran et al. 2023"))
ViTGAPHuge16 = variant(ViT, ViTConfig("ViTGAPHuge16", 16, 1280, 32, 16, **_GAP,
    timm="vit_huge_patch16_gap_448", input_shape=(448, 448, 3), params=632_949_480, gmacs=544.37,
    source="Assran et al. 2023"))
ViTGAPGiant16 = variant(ViT, ViTConfig("ViTGAPGiant16", 16, 1408, 40, 16, hidden=6144, **_GAP,
    timm="vit_giant_patch16_gap_224", params=1_012_777_576, gmacs=202.35, source="Assran et al. 2023"))

# Radford et al. 2021 (CLIP), as OpenCLIP and TinyCLIP (Wu et al. 2023) train it
CLIPXSmall16 = variant(ViT, ViTConfig("CLIPXSmall16", 16, 256, 10, 4, **_CLIP,
    timm="vit_xsmall_patch16_clip_224", params=8_402_920, gmacs=1.787, source="Wu et al. 2023 (TinyCLIP)"))
CLIPMedium32 = variant(ViT, ViTConfig("CLIPMedium32", 32, 512, 12, 8, **_CLIP,
    timm="vit_medium_patch32_clip_224", params=39_942_632, gmacs=1.996, source="Radford et al. 2021"))
CLIPMedium16 = variant(ViT, ViTConfig("CLIPMedium16", 16, 512, 12, 8, **_CLIP,
    timm="vit_medium_patch16_clip_224", params=38_838_248, gmacs=7.991, source="Radford et al. 2021"))
CLIPBetwixt32 = variant(ViT, ViTConfig("CLIPBetwixt32", 32, 640, 12, 10, **_CLIP,
    timm="vit_betwixt_patch32_clip_224", params=61_724_520, gmacs=3.084, source="Radford et al. 2021"))
CLIPBase32 = variant(ViT, ViTConfig("CLIPBase32", 32, 768, 12, 12, **_CLIP,
    timm="vit_base_patch32_clip_224", tag="laion2b_ft_in12k_in1k", aliases=(("vit_base_patch32_clip_256", 256),
    ("vit_base_patch32_clip_384", 384), ("vit_base_patch32_clip_448", 448)), params=88_225_000, gmacs=4.409,
    source="Radford et al. 2021"))
CLIPBase16 = variant(ViT, ViTConfig("CLIPBase16", 16, 768, 12, 12, **_CLIP,
    timm="vit_base_patch16_clip_224", tag="laion2b_ft_in12k_in1k", aliases=(("vit_base_patch16_clip_384", 384),),
    params=86_568_424, gmacs=17.56, source="Radford et al. 2021"))
CLIPBasePlus16 = variant(ViT, ViTConfig("CLIPBasePlus16", 16, 896, 12, 14, **_CLIP,
    timm="vit_base_patch16_plus_clip_240", input_shape=(240, 240, 3), params=117_537_384, gmacs=27.38,
    source="Radford et al. 2021"))
CLIPLarge14 = variant(ViT, ViTConfig("CLIPLarge14", 14, 1024, 24, 16, **_CLIP,
    timm="vit_large_patch14_clip_224", tag="laion2b_ft_in12k_in1k", aliases=(("vit_large_patch14_clip_336", 336),),
    params=304_204_776, gmacs=81.01, source="Radford et al. 2021"))
CLIPHuge14 = variant(ViT, ViTConfig("CLIPHuge14", 14, 1280, 32, 16, **_CLIP,
    timm="vit_huge_patch14_clip_224", tag="laion2b_ft_in12k_in1k", aliases=(("vit_huge_patch14_clip_336", 336),
    ("vit_huge_patch14_clip_378", 378)), params=632_047_080, gmacs=167.30, source="Radford et al. 2021"))
CLIPGiant14 = variant(ViT, ViTConfig("CLIPGiant14", 14, 1408, 40, 16, hidden=6144, **_CLIP,
    timm="vit_giant_patch14_clip_224", params=1_012_612_840, gmacs=267.03, source="Radford et al. 2021"))
CLIPGigantic14 = variant(ViT, ViTConfig("CLIPGigantic14", 14, 1664, 48, 16, hidden=8192, **_CLIP,
    timm="vit_gigantic_patch14_clip_224", aliases=(("vit_gigantic_patch14_clip_378", 378),), params=1_844_442_344,
    gmacs=483.75, source="Radford et al. 2021"))

# Radford et al. 2021 (CLIP), as OpenAI trained it
CLIPQuickGELUBase32 = variant(ViT, ViTConfig("CLIPQuickGELUBase32", 32, 768, 12, 12, **_OPENAI,
    timm="vit_base_patch32_clip_quickgelu_224", params=88_225_000, gmacs=4.409, source="Radford et al. 2021"))
CLIPQuickGELUBase16 = variant(ViT, ViTConfig("CLIPQuickGELUBase16", 16, 768, 12, 12, **_OPENAI,
    timm="vit_base_patch16_clip_quickgelu_224", params=86_568_424, gmacs=17.56, source="Radford et al. 2021"))
CLIPQuickGELULarge14 = variant(ViT, ViTConfig("CLIPQuickGELULarge14", 14, 1024, 24, 16, **_OPENAI,
    timm="vit_large_patch14_clip_quickgelu_224", aliases=(("vit_large_patch14_clip_quickgelu_336", 336),),
    params=304_204_776, gmacs=81.01, source="Radford et al. 2021"))
CLIPQuickGELUHuge14 = variant(ViT, ViTConfig("CLIPQuickGELUHuge14", 14, 1280, 32, 16, **_OPENAI,
    timm="vit_huge_patch14_clip_quickgelu_224", aliases=(("vit_huge_patch14_clip_quickgelu_378", 378),),
    params=632_047_080, gmacs=167.30, source="Radford et al. 2021"))
CLIPQuickGELUGigantic14 = variant(ViT, ViTConfig("CLIPQuickGELUGigantic14", 14, 1664, 48, 16, hidden=8192, **_OPENAI,
    timm="vit_gigantic_patch14_clip_quickgelu_224", params=1_844_442_344, gmacs=483.75, source="Radford et al. 2021"))

# timm's variants of intermediate sizes; the narrow, deep one: Touvron et al. 2022, "Three things"
ViTBasePlus32 = variant(ViT, ViTConfig("ViTBasePlus32", 32, 896, 12, 14, scale=1e-05,
    timm="vit_base_patch32_plus_256", input_shape=(256, 256, 3), params=119_478_120, gmacs=7.782,
    source="A form of timm, after Dosovitskiy et al. 2021"))
ViTBasePlus16 = variant(ViT, ViTConfig("ViTBasePlus16", 16, 896, 12, 14, scale=1e-05,
    timm="vit_base_patch16_plus_240", input_shape=(240, 240, 3), params=117_557_992, gmacs=27.38,
    source="A form of timm, after Dosovitskiy et al. 2021"))
ViTSmallDeep16 = variant(ViT, ViTConfig("ViTSmallDeep16", 16, 384, 36, 6, scale=1e-05,
    timm="vit_small_patch16_36x1_224", params=64_665_448, gmacs=13.68,
    source='Touvron et al. 2022, "Three things everyone should know about Vision Transformers"'))

# Fang et al. 2022 (EVA)
EVALarge14 = variant(ViT, ViTConfig("EVALarge14", 14, 1024, 24, 16, pool=mean_of_patches, final_norm="pooled",
    timm="eva_large_patch14_196", tag="in22k_ft_in22k_in1k", aliases=(("eva_large_patch14_336", 336),),
    input_shape=(196, 196, 3), params=304_142_312, gmacs=61.52, source="Fang et al. 2022"))

# Beyer et al. 2023 (FlexiViT)
FlexiViTSmall16 = variant(ViT, ViTConfig("FlexiViTSmall16", 16, 384, 12, 6, embed_tokens=False,
    timm="flexivit_small", tag="1200ep_in1k", input_shape=(240, 240, 3), params=22_061_416, gmacs=5.336,
    source="Beyer et al. 2023"))
FlexiViTBase16 = variant(ViT, ViTConfig("FlexiViTBase16", 16, 768, 12, 12, embed_tokens=False,
    timm="flexivit_base", tag="1200ep_in1k", input_shape=(240, 240, 3), params=86_589_160, gmacs=20.27,
    source="Beyer et al. 2023"))
FlexiViTLarge16 = variant(ViT, ViTConfig("FlexiViTLarge16", 16, 1024, 24, 16, embed_tokens=False,
    timm="flexivit_large", tag="1200ep_in1k", input_shape=(240, 240, 3), params=304_355_304, gmacs=70.94,
    source="Beyer et al. 2023"))

# Oquab et al. 2023 (DINOv2)
DINOv2Small14 = variant(ViT, ViTConfig("DINOv2Small14", 14, 384, 12, 6, scale=1e-05,
    timm="vit_small_patch14_dinov2", input_shape=(518, 518, 3), params=22_441_192, gmacs=46.70,
    source="Oquab et al. 2023"))
DINOv2Base14 = variant(ViT, ViTConfig("DINOv2Base14", 14, 768, 12, 12, scale=1e-05,
    timm="vit_base_patch14_dinov2", input_shape=(518, 518, 3), params=87_348_712, gmacs=151.57,
    source="Oquab et al. 2023"))
DINOv2Large14 = variant(ViT, ViTConfig("DINOv2Large14", 14, 1024, 24, 16, scale=1e-05,
    timm="vit_large_patch14_dinov2", input_shape=(518, 518, 3), params=305_392_616, gmacs=506.80,
    source="Oquab et al. 2023"))
DINOv2Giant14 = variant(ViT, ViTConfig("DINOv2Giant14", 14, 1536, 40, 24, hidden=8192, **_SWIGLU, scale=1e-05,
    timm="vit_giant_patch14_dinov2", input_shape=(518, 518, 3), params=1_138_016_232, gmacs=1783.34,
    source="Oquab et al. 2023"))

# Darcet et al. 2023 (DINOv2 with registers)
DINOv2RegSmall14 = variant(ViT, ViTConfig("DINOv2RegSmall14", 14, 384, 12, 6, **_DINOV2_REG,
    timm="vit_small_patch14_reg4_dinov2", input_shape=(518, 518, 3), params=22_442_344, gmacs=46.88,
    source="Darcet et al. 2023"))
DINOv2RegBase14 = variant(ViT, ViTConfig("DINOv2RegBase14", 14, 768, 12, 12, **_DINOV2_REG,
    timm="vit_base_patch14_reg4_dinov2", input_shape=(518, 518, 3), params=87_351_016, gmacs=152.12,
    source="Darcet et al. 2023"))
DINOv2RegLarge14 = variant(ViT, ViTConfig("DINOv2RegLarge14", 14, 1024, 24, 16, **_DINOV2_REG,
    timm="vit_large_patch14_reg4_dinov2", input_shape=(518, 518, 3), params=305_395_688, gmacs=508.55,
    source="Darcet et al. 2023"))
DINOv2RegGiant14 = variant(ViT, ViTConfig("DINOv2RegGiant14", 14, 1536, 40, 24, hidden=8192, **_SWIGLU, **_DINOV2_REG,
    timm="vit_giant_patch14_reg4_dinov2", input_shape=(518, 518, 3), params=1_138_020_840, gmacs=1789.22,
    source="Darcet et al. 2023"))

# TIPS v2, Google
TIPSv2Base14 = variant(ViT, ViTConfig("TIPSv2Base14", 14, 768, 12, 12, **_TIPS,
    timm="vit_base_patch14_reg1_tipsv2", input_shape=(448, 448, 3), params=87_083_752, gmacs=107.01,
    source="Google's TIPS v2"))
TIPSv2Large14 = variant(ViT, ViTConfig("TIPSv2Large14", 14, 1024, 24, 16, **_TIPS,
    timm="vit_large_patch14_reg1_tipsv2", input_shape=(448, 448, 3), params=305_039_336, gmacs=362.20,
    source="Google's TIPS v2"))
TIPSv2So400M14 = variant(ViT, ViTConfig("TIPSv2So400M14", 14, 1152, 27, 16, hidden=4304, **_TIPS,
    timm="vit_so400m_patch14_reg1_tipsv2", input_shape=(448, 448, 3), params=414_544_600, gmacs=487.94,
    source="Google's TIPS v2"))
TIPSv2Giant14 = variant(ViT, ViTConfig("TIPSv2Giant14", 14, 1536, 40, 24, hidden=8192, **_SWIGLU, **_TIPS,
    timm="vit_giant_patch14_reg1_tipsv2", input_shape=(448, 448, 3), params=1_137_486_312, gmacs=1292.19,
    source="Google's TIPS v2"))

# Zhai et al. 2023 (SigLIP) and Tschannen et al. 2025 (SigLIP 2)
SigLIPBase32 = variant(ViT, ViTConfig("SigLIPBase32", 32, 768, 12, 12, **_SIGLIP2,
    timm="vit_base_patch32_siglip_256", input_shape=(256, 256, 3), params=95_321_320, gmacs=5.745,
    source="Tschannen et al. 2025"))
SigLIPBase16 = variant(ViT, ViTConfig("SigLIPBase16", 16, 768, 12, 12, **_SIGLIP,
    timm="vit_base_patch16_siglip_224", aliases=(("vit_base_patch16_siglip_256", 256),
    ("vit_base_patch16_siglip_384", 384), ("vit_base_patch16_siglip_512", 512)), params=93_653_224, gmacs=17.71,
    source="Zhai et al. 2023"))
SigLIPLarge16 = variant(ViT, ViTConfig("SigLIPLarge16", 16, 1024, 24, 16, **_SIGLIP,
    timm="vit_large_patch16_siglip_256", aliases=(("vit_large_patch16_siglip_384", 384),), input_shape=(256, 256, 3),
    params=316_981_224, gmacs=81.28, source="Zhai et al. 2023"))
SigLIPTanhGELULarge16 = variant(ViT, ViTConfig("SigLIPTanhGELULarge16", 16, 1024, 24, 16, **_SIGLIP2,
    timm="vit_large_patch16_siglip_512", input_shape=(512, 512, 3), params=317_767_656, gmacs=363.74,
    source="Tschannen et al. 2025"))
SigLIPSo400M14 = variant(ViT, ViTConfig("SigLIPSo400M14", 14, 1152, 27, 16, hidden=4304, **_SIGLIP,
    timm="vit_so400m_patch14_siglip_224", aliases=(("vit_so400m_patch14_siglip_378", 378),
    ("vit_so400m_patch14_siglip_384", 384)), params=428_833_704, gmacs=110.18, source="Zhai et al. 2023"))
SigLIPSo400M16 = variant(ViT, ViTConfig("SigLIPSo400M16", 16, 1152, 27, 16, hidden=4304, **_SIGLIP2,
    timm="vit_so400m_patch16_siglip_256", aliases=(("vit_so400m_patch16_siglip_384", 384),
    ("vit_so400m_patch16_siglip_512", 512)), input_shape=(256, 256, 3), params=429_041_064, gmacs=110.23,
    source="Tschannen et al. 2025"))
SigLIPGiantOpt16 = variant(ViT, ViTConfig("SigLIPGiantOpt16", 16, 1536, 40, 16, **_SIGLIP2,
    timm="vit_giantopt_patch16_siglip_256", aliases=(("vit_giantopt_patch16_siglip_384", 384),),
    input_shape=(256, 256, 3), params=1_164_705_256, gmacs=299.50, source="Tschannen et al. 2025"))

# SigLIP without attention pooling
SigLIPGAPBase32 = variant(ViT, ViTConfig("SigLIPGAPBase32", 32, 768, 12, 12, **_SIGLIP2_GAP,
    timm="vit_base_patch32_siglip_gap_256", input_shape=(256, 256, 3), params=88_234_216, gmacs=5.663,
    source="Tschannen et al. 2025"))
SigLIPGAPBase16 = variant(ViT, ViTConfig("SigLIPGAPBase16", 16, 768, 12, 12, **_GAP,
    timm="vit_base_patch16_siglip_gap_224", aliases=(("vit_base_patch16_siglip_gap_256", 256),
    ("vit_base_patch16_siglip_gap_384", 384), ("vit_base_patch16_siglip_gap_512", 512)), params=86_566_120, gmacs=17.47,
    source="Zhai et al. 2023"))
SigLIPGAPLarge16 = variant(ViT, ViTConfig("SigLIPGAPLarge16", 16, 1024, 24, 16, **_GAP,
    timm="vit_large_patch16_siglip_gap_256", aliases=(("vit_large_patch16_siglip_gap_384", 384),),
    input_shape=(256, 256, 3), params=304_386_024, gmacs=80.73, source="Zhai et al. 2023"))
SigLIPTanhGELUGAPLarge16 = variant(ViT, ViTConfig("SigLIPTanhGELUGAPLarge16", 16, 1024, 24, 16, **_SIGLIP2_GAP,
    timm="vit_large_patch16_siglip_gap_512", input_shape=(512, 512, 3), params=305_172_456, gmacs=361.58,
    source="Tschannen et al. 2025"))
SigLIPGAPSo400M14 = variant(ViT, ViTConfig("SigLIPGAPSo400M14", 14, 1152, 27, 16, hidden=4304, **_GAP,
    timm="vit_so400m_patch14_siglip_gap_224", aliases=(("vit_so400m_patch14_siglip_gap_378", 378),
    ("vit_so400m_patch14_siglip_gap_384", 384), ("vit_so400m_patch14_siglip_gap_448", 448),
    ("vit_so400m_patch14_siglip_gap_896", 896)), params=413_595_352, gmacs=109.49, source="Zhai et al. 2023"))
SigLIPGAPSo400M16 = variant(ViT, ViTConfig("SigLIPGAPSo400M16", 16, 1152, 27, 16, hidden=4304, **_SIGLIP2_GAP,
    timm="vit_so400m_patch16_siglip_gap_256", aliases=(("vit_so400m_patch16_siglip_gap_384", 384),
    ("vit_so400m_patch16_siglip_gap_512", 512)), input_shape=(256, 256, 3), params=413_802_712, gmacs=109.54,
    source="Tschannen et al. 2025"))
SigLIPGAPGiantOpt16 = variant(ViT, ViTConfig("SigLIPGAPGiantOpt16", 16, 1536, 40, 16, **_SIGLIP2_GAP,
    timm="vit_giantopt_patch16_siglip_gap_256", aliases=(("vit_giantopt_patch16_siglip_gap_384", 384),),
    input_shape=(256, 256, 3), params=1_136_375_272, gmacs=298.27, source="Tschannen et al. 2025"))

# timm's variants with registers and without a class token
ViTGAPReg1Wee16 = variant(ViT, ViTConfig("ViTGAPReg1Wee16", 16, 256, 14, 4, hidden=1280, **_REG1,
    timm="vit_wee_patch16_reg1_gap_256", tag="sbb_in1k", input_shape=(256, 256, 3), params=13_422_568, gmacs=3.825,
    source="A form of timm, after Dosovitskiy et al. 2021"))
ViTGAPReg1Little16 = variant(ViT, ViTConfig("ViTGAPReg1Little16", 16, 320, 14, 5, hidden=1792, **_REG1,
    timm="vit_little_patch16_reg1_gap_256", tag="sbb_in12k_ft_in1k", input_shape=(256, 256, 3), params=22_515_048,
    gmacs=6.255, source="A form of timm, after Dosovitskiy et al. 2021"))
ViTGAPReg4Little16 = variant(ViT, ViTConfig("ViTGAPReg4Little16", 16, 320, 14, 5, hidden=1792, **_REG4,
    timm="vit_little_patch16_reg4_gap_256", tag="sbb_in1k", input_shape=(256, 256, 3), params=22_516_008, gmacs=6.335,
    source="A form of timm, after Dosovitskiy et al. 2021"))
ViTGAPReg1Medium16 = variant(ViT, ViTConfig("ViTGAPReg1Medium16", 16, 512, 12, 8, **_REG1,
    timm="vit_medium_patch16_reg1_gap_256", tag="sbb_in1k", input_shape=(256, 256, 3), params=38_880_232, gmacs=10.61,
    source="A form of timm, after Dosovitskiy et al. 2021"))
ViTGAPReg4Medium16 = variant(ViT, ViTConfig("ViTGAPReg4Medium16", 16, 512, 12, 8, **_REG4,
    timm="vit_medium_patch16_reg4_gap_256", tag="sbb_in12k_ft_in1k", input_shape=(256, 256, 3), params=38_881_768,
    gmacs=10.75, source="A form of timm, after Dosovitskiy et al. 2021"))
ViTGAPReg4MediumD16 = variant(ViT, ViTConfig("ViTGAPReg4MediumD16", 16, 512, 20, 8, **_REG4,
    timm="vit_mediumd_patch16_reg4_gap_256", tag="sbb2_e200_in12k_ft_in1k",
    aliases=(("vit_mediumd_patch16_reg4_gap_384", 384),), input_shape=(256, 256, 3), params=64_109_032, gmacs=17.84,
    source="A form of timm, after Dosovitskiy et al. 2021"))
ViTGAPReg1Betwixt16 = variant(ViT, ViTConfig("ViTGAPReg1Betwixt16", 16, 640, 12, 10, **_REG1,
    timm="vit_betwixt_patch16_reg1_gap_256", tag="sbb_in1k", input_shape=(256, 256, 3), params=60_396_520, gmacs=16.30,
    source="A form of timm, after Dosovitskiy et al. 2021"))
ViTGAPReg4Betwixt16 = variant(ViT, ViTConfig("ViTGAPReg4Betwixt16", 16, 640, 12, 10, **_REG4,
    timm="vit_betwixt_patch16_reg4_gap_256", tag="sbb2_e200_in12k_ft_in1k",
    aliases=(("vit_betwixt_patch16_reg4_gap_384", 384),), input_shape=(256, 256, 3), params=60_398_440, gmacs=16.50,
    source="A form of timm, after Dosovitskiy et al. 2021"))
ViTGAPReg4Base16 = variant(ViT, ViTConfig("ViTGAPReg4Base16", 16, 768, 12, 12, pool=mean_of_patches,
    tokens=(("reg_token", 4),), embed_tokens=False, final_norm="pooled",
    timm="vit_base_patch16_reg4_gap_256", input_shape=(256, 256, 3), params=86_615_272, gmacs=23.48,
    source="A form of timm, after Dosovitskiy et al. 2021"))

# After Alabdulmohsin et al. 2023 (SoViT)
ViTMAPReg4So150M16 = variant(ViT, ViTConfig("ViTMAPReg4So150M16", 16, 896, 18, 14, hidden=2304, pool=attention_pool,
    tokens=(("reg_token", 4),),
    timm="vit_so150m_patch16_reg4_map_256", input_shape=(256, 256, 3), params=141_481_064, gmacs=37.13,
    source="After Alabdulmohsin et al. 2023"))
ViTGAPReg4So150M16 = variant(ViT, ViTConfig("ViTGAPReg4So150M16", 16, 896, 18, 14, hidden=2304, pool=mean_of_patches,
    tokens=(("reg_token", 4),),
    timm="vit_so150m_patch16_reg4_gap_256", tag="sbb_e250_in12k_ft_in1k",
    aliases=(("vit_so150m_patch16_reg4_gap_384", 384),), input_shape=(256, 256, 3), params=134_131_560, gmacs=36.71,
    source="After Alabdulmohsin et al. 2023"))
ViTGAPReg1So150M2_16 = variant(ViT, ViTConfig("ViTGAPReg1So150M2_16", 16, 832, 21, 13, hidden=2176,
    pool=mean_of_patches, tokens=(("reg_token", 1),), final_norm="pooled", qkv_bias=False, scale=1e-05,
    timm="vit_so150m2_patch16_reg1_gap_256", tag="sbb_e200_in12k_ft_in1k",
    aliases=(("vit_so150m2_patch16_reg1_gap_384", 384), ("vit_so150m2_patch16_reg1_gap_448", 448)),
    input_shape=(256, 256, 3), params=136_059_560, gmacs=36.96, source="After Alabdulmohsin et al. 2023"))

# Chen et al. 2024 (InternVL)
InternViT300M14 = variant(ViT, ViTConfig("InternViT300M14", 14, 1024, 24, 16, final_norm=None, scale=0.1,
    timm="vit_intern300m_patch14_448", input_shape=(448, 448, 3), params=305_037_288, gmacs=361.80,
    source="Chen et al. 2024 (InternVL)"))

# Fini et al. 2024 (AIMv2)
AIMv2Large14 = variant(ViT, ViTConfig("AIMv2Large14", 14, 1024, 24, 8, hidden=2816, **_AIM,
    timm="aimv2_large_patch14_224", aliases=(("aimv2_large_patch14_336", 336), ("aimv2_large_patch14_448", 448)),
    params=310_222_824, gmacs=82.30, source="Fini et al. 2024"))
AIMv2Huge14 = variant(ViT, ViTConfig("AIMv2Huge14", 14, 1536, 24, 12, hidden=4096, **_AIM,
    timm="aimv2_huge_patch14_224", aliases=(("aimv2_huge_patch14_336", 336), ("aimv2_huge_patch14_448", 448)),
    params=682_388_968, gmacs=179.01, source="Fini et al. 2024"))
AIMv2_1B14 = variant(ViT, ViTConfig("AIMv2_1B14", 14, 2048, 24, 16, hidden=5632, **_AIM,
    timm="aimv2_1b_patch14_224", aliases=(("aimv2_1b_patch14_336", 336), ("aimv2_1b_patch14_448", 448)),
    params=1_237_007_336, gmacs=322.43, source="Fini et al. 2024"))
AIMv2_3B14 = variant(ViT, ViTConfig("AIMv2_3B14", 14, 3072, 24, 24, hidden=8192, **_AIM,
    timm="aimv2_3b_patch14_224", aliases=(("aimv2_3b_patch14_336", 336), ("aimv2_3b_patch14_448", 448)),
    params=2_723_731_432, gmacs=705.91, source="Fini et al. 2024"))

# timm's small networks for tests
TestViT = variant(ViT, ViTConfig("TestViT", 16, 64, 6, 2, hidden=192,
    timm="test_vit", tag="r160_in1k", input_shape=(160, 160, 3), params=371_240, gmacs=0.038,
    source="A small network of timm's, for tests"))
TestViT2 = variant(ViT, ViTConfig("TestViT2", 16, 64, 8, 2, hidden=192, pool=mean_of_patches,
    tokens=(("reg_token", 1),), final_norm="pooled", scale=1e-05,
    timm="test_vit2", tag="r160_in1k", input_shape=(160, 160, 3), params=455_720, gmacs=0.049,
    source="A small network of timm's, for tests"))
TestViT3 = variant(ViT, ViTConfig("TestViT3", 16, 96, 9, 3, hidden=192, pool=partial(attention_pool, prefix=True),
    tokens=(("reg_token", 1),), scale=1e-05,
    timm="test_vit3", tag="r160_in1k", input_shape=(160, 160, 3), params=930_280, gmacs=0.094,
    source="A small network of timm's, for tests"))
TestViT4 = variant(ViT, ViTConfig("TestViT4", 16, 96, 9, 3, hidden=288, pool=mean_of_patches,
    tokens=(("reg_token", 1),), norm=rms_norm, final_norm="pooled", scale=1e-05,
    timm="test_vit4", input_shape=(160, 160, 3), params=1_020_520, gmacs=0.109,
    source="A small network of timm's, for tests"))

# Ranzinger et al. 2024 (RADIO)
RADIOv3Base16 = variant(ViT, ViTConfig("RADIOv3Base16", 16, 768, 12, 12, **_RADIO3, scale=1e-05,
    timm="vit_base_patch16_radio_v3", input_shape=(512, 512, 3), params=87_225_064, gmacs=107.89,
    source="Ranzinger et al. 2024 (RADIO)"))
RADIOv3Large16 = variant(ViT, ViTConfig("RADIOv3Large16", 16, 1024, 24, 16, **_RADIO3, scale=1e-05,
    timm="vit_large_patch16_radio_v3", input_shape=(512, 512, 3), params=305_227_752, gmacs=364.81,
    source="Ranzinger et al. 2024 (RADIO)"))
RADIOv3Huge16 = variant(ViT, ViTConfig("RADIOv3Huge16", 16, 1280, 32, 16, **_RADIO3,
    timm="vit_huge_patch16_radio_v3", input_shape=(512, 512, 3), params=633_264_360, gmacs=737.53,
    source="Ranzinger et al. 2024 (RADIO)"))
RADIOv3Giant16 = variant(ViT, ViTConfig("RADIOv3Giant16", 16, 1536, 40, 24, **_RADIO3,
    timm="vit_giant_patch16_radio_v3", input_shape=(512, 512, 3), params=1_137_564_136, gmacs=1300.78,
    source="Ranzinger et al. 2024 (RADIO)"))
RADIOv4So400M16 = variant(ViT, ViTConfig("RADIOv4So400M16", 16, 1152, 27, 16, hidden=4304, **_RADIO4,
    timm="vit_so400m_patch16_radio_v4", input_shape=(512, 512, 3), params=414_696_664, gmacs=492.46,
    source="Ranzinger et al. 2024 (RADIO)"))
RADIOv4Huge16 = variant(ViT, ViTConfig("RADIOv4Huge16", 16, 1280, 32, 16, **_RADIO4,
    timm="vit_huge_patch16_radio_v4", input_shape=(512, 512, 3), params=633_266_920, gmacs=739.13,
    source="Ranzinger et al. 2024 (RADIO)"))

# Touvron et al. 2021 (DeiT)
DeiTTiny16 = variant(ViT, ViTConfig("DeiTTiny16", 16, 192, 12, 3,
    timm="deit_tiny_patch16_224", tag="fb_in1k", params=5_717_416, gmacs=1.254, source="Touvron et al. 2021"))
DeiTSmall16 = variant(ViT, ViTConfig("DeiTSmall16", 16, 384, 12, 6,
    timm="deit_small_patch16_224", tag="fb_in1k", params=22_050_664, gmacs=4.599, source="Touvron et al. 2021"))
DeiTBase16 = variant(ViT, ViTConfig("DeiTBase16", 16, 768, 12, 12,
    timm="deit_base_patch16_224", tag="fb_in1k", aliases=(("deit_base_patch16_384", 384),), params=86_567_656,
    gmacs=17.56, source="Touvron et al. 2021"))

# Touvron et al. 2021 (DeiT), with a distillation token
DeiTDistilledTiny16 = variant(ViT, ViTConfig("DeiTDistilledTiny16", 16, 192, 12, 3, **_DISTILLED,
    timm="deit_tiny_distilled_patch16_224", tag="fb_in1k", params=5_910_800, gmacs=1.261, source="Touvron et al. 2021"))
DeiTDistilledSmall16 = variant(ViT, ViTConfig("DeiTDistilledSmall16", 16, 384, 12, 6, **_DISTILLED,
    timm="deit_small_distilled_patch16_224", tag="fb_in1k", params=22_436_432, gmacs=4.624,
    source="Touvron et al. 2021"))
DeiTDistilledBase16 = variant(ViT, ViTConfig("DeiTDistilledBase16", 16, 768, 12, 12, **_DISTILLED,
    timm="deit_base_distilled_patch16_224", tag="fb_in1k", aliases=(("deit_base_distilled_patch16_384", 384),),
    params=87_338_192, gmacs=17.66, source="Touvron et al. 2021"))

# Touvron et al. 2022 (DeiT III)
DeiT3Small16 = variant(ViT, ViTConfig("DeiT3Small16", 16, 384, 12, 6, **_DEIT3,
    timm="deit3_small_patch16_224", tag="fb_in1k", aliases=(("deit3_small_patch16_384", 384),), params=22_059_496,
    gmacs=4.599, source="Touvron et al. 2022"))
DeiT3Medium16 = variant(ViT, ViTConfig("DeiT3Medium16", 16, 512, 12, 8, **_DEIT3,
    timm="deit3_medium_patch16_224", tag="fb_in1k", params=38_849_512, gmacs=7.991, source="Touvron et al. 2022"))
DeiT3Base16 = variant(ViT, ViTConfig("DeiT3Base16", 16, 768, 12, 12, **_DEIT3,
    timm="deit3_base_patch16_224", tag="fb_in1k", aliases=(("deit3_base_patch16_384", 384),), params=86_585_320,
    gmacs=17.56, source="Touvron et al. 2022"))
DeiT3Large16 = variant(ViT, ViTConfig("DeiT3Large16", 16, 1024, 24, 16, **_DEIT3,
    timm="deit3_large_patch16_224", tag="fb_in1k", aliases=(("deit3_large_patch16_384", 384),), params=304_374_760,
    gmacs=61.55, source="Touvron et al. 2022"))
DeiT3Huge14 = variant(ViT, ViTConfig("DeiT3Huge14", 14, 1280, 32, 16, **_DEIT3,
    timm="deit3_huge_patch14_224", tag="fb_in1k", params=632_126_440, gmacs=167.30, source="Touvron et al. 2022"))
