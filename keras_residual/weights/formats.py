"""Checkpoints in other names than timm's: each format is known by its keys and turned into timm's names and layout."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

State = dict[str, Any]

# torch's bookkeeping and what is computed from the configuration: no weights
_NO_WEIGHTS = re.compile(r"(^|\.)(num_batches_tracked|relative_position_index|attn_mask)$")


def to_timm(state: State) -> State:
    """Returns the state dict in timm's names and layout; one that has them already comes back as it is."""
    for known, convert in _FORMATS:
        if known(state):
            state = convert(state)
    return {key: value for key, value in state.items() if not _NO_WEIGHTS.search(key)}


def _starts(prefix: str) -> Callable[[State], bool]:
    return lambda state: any(key.startswith(prefix) for key in state)


def _has(key: str) -> Callable[[State], bool]:
    return lambda state: key in state


def _strip(prefix: str) -> Callable[[State], State]:
    return lambda state: {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _rename(state: State, rules: tuple[tuple[str, str], ...]) -> State:
    renamed = {}
    for key, value in state.items():
        for old, new in rules:
            key = re.sub(old, new, key)
        renamed[key] = value
    return renamed


def _open_clip_timm(state: State) -> State:
    """An OpenCLIP checkpoint whose image tower is timm's own; the projection outside the tower is the head."""
    trunk = _strip("visual.trunk.")(state)
    head = "head.fc" if "stem.0.weight" in trunk else "head"  # a ConvNeXt's, or a Vision Transformer's
    for place in ("proj", "mlp.fc2"):
        projection = state.get(f"visual.head.{place}.weight")
        if projection is not None:
            bias = state.get(f"visual.head.{place}.bias", np.zeros(projection.shape[0], projection.dtype))
            trunk[f"{head}.weight"], trunk[f"{head}.bias"] = projection, bias
    for what in ("weight", "bias"):
        if f"visual.head.mlp.fc1.{what}" in state:
            trunk[f"head.pre_logits.fc.{what}"] = state[f"visual.head.mlp.fc1.{what}"]
    return trunk


def _facebook_convnext(state: State) -> State:
    """Meta's ConvNeXt, ConvNeXt V2 and DINOv3 ConvNeXts; the norms of inner stages, which DINOv3 has, are not here."""
    state = {key: value for key, value in state.items() if not key.startswith("norms.")}
    state = _rename(
        state,
        (
            (r"^downsample_layers\.0\.", "stem."),
            (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
            (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.pwconv([12])\.", r".mlp.fc\1."),
            (r"\.grn\.gamma$", ".mlp.grn.weight"),
            (r"\.grn\.beta$", ".mlp.grn.bias"),
            (r"^head\.", "head.fc."),
            (r"^norm\.", "head.norm."),
        ),
    )
    return {key: value.reshape(-1) if ".grn." in key else value for key, value in state.items()}


def _bit(state: State) -> State:
    """Google's `.npz` of Big Transfer: names by path, kernels `(*size, in, out)`."""
    result = {}
    for key, value in state.items():
        for old, new in _BIT_NAMES:
            key = re.sub(old, new, key)
        key = re.sub(r"^block(\d+)/unit(\d+)/", lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 1}.", key)
        result[key] = np.transpose(value, (3, 2, 0, 1)) if value.ndim == 4 else value
    return result


_BIT_NAMES = (
    (r"^resnet/", ""),
    (r"^root_block/standardized_conv2d/kernel$", "stem.conv.weight"),
    (r"^group_norm/", "norm/"),
    (r"^head/conv2d/", "head.fc/"),
    (r"/a/proj/standardized_conv2d/", "/downsample.conv/"),
    *((f"/{part}/standardized_conv2d/", f"/conv{number}/") for number, part in enumerate("abc", start=1)),
    *((f"/{part}/group_norm/", f"/norm{number}/") for number, part in enumerate("abc", start=1)),
    (r"/(kernel|gamma)$", ".weight"),
    (r"/(bias|beta)$", ".bias"),
)


def _openai_clip(state: State) -> State:
    """The image tower of OpenAI's CLIP and of OpenCLIP checkpoints in its names."""
    tower = _rename(
        _strip("visual.")(state),
        (
            (r"^conv1\.", "patch_embed.proj."),
            (r"^positional_embedding$", "pos_embed"),
            (r"^class_embedding$", "cls_token"),
            (r"^ln_pre\.", "norm_pre."),
            (r"^ln_post\.", "norm."),
            (r"^transformer\.resblocks\.", "blocks."),
            (r"\.ln_([12])\.", r".norm\1."),
            (r"\.attn\.in_proj_", ".attn.qkv."),
            (r"\.attn\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.c_fc\.", ".mlp.fc1."),
            (r"\.mlp\.c_proj\.", ".mlp.fc2."),
        ),
    )
    tower["cls_token"] = tower["cls_token"][None, None]
    tower["pos_embed"] = tower["pos_embed"][None]
    if "proj" in tower:
        projection = np.ascontiguousarray(np.transpose(tower.pop("proj")))
        tower["head.weight"] = projection
        tower["head.bias"] = np.zeros(projection.shape[0], projection.dtype)
    return tower


def _dinov2(state: State) -> State:
    """Meta's DINOv2: no mask token here, SwiGLU under timm's names, and the class token's position folded into it
    where register tokens leave the grid to the patches."""
    state = {key: value for key, value in state.items() if key != "mask_token"}
    state = _rename(state, ((r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")))
    if "register_tokens" in state:
        position = state["pos_embed"]
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + position[:, 0]
        state["pos_embed"] = position[:, 1:]
    return state


def _deit3(state: State) -> State:
    return _rename(state, ((r"\.gamma_([12])$", r".ls\1.gamma"),))


def _big_vision(state: State) -> State:
    """Google's `.npz` towers (the original ViT, AugReg, SigLIP): names by path, kernels `(in, ..., out)`."""
    prefixes = ("params/img/", "img/", "params/", "opt/target/", "")
    prefix = next((p for p in prefixes if f"{p}embedding/kernel" in state), "")
    result: State = {}
    for key, value in _unrolled(_strip(prefix)(state)).items():
        place, _, what = key.rpartition("/")
        if key == "cls":
            result["cls_token"] = value
        elif key in ("pos_embedding", "Transformer/posembed_input/pos_embedding"):
            result["pos_embed"] = value
        elif place == "embedding":
            result[f"patch_embed.proj.{_SCALE[what]}"] = np.transpose(value, (3, 2, 0, 1)) if value.ndim == 4 else value
        elif place == "Transformer/encoder_norm":
            result[f"norm.{_SCALE[what]}"] = value
        elif place == "head":
            result[f"head.{_SCALE[what]}"] = np.transpose(value) if what == "kernel" else value
        elif key == "MAPHead_0/probe":
            result["attn_pool.latent"] = value
        elif match := re.fullmatch(r"(?:Transformer/encoderblock_(\d+)|MAPHead_0)/(.+)", place):
            number, inner = match.groups()
            block = "attn_pool" if number is None else f"blocks.{number}"
            if inner.startswith("LayerNorm_"):
                norm = "norm" if number is None else "norm1" if inner.endswith("0") else "norm2"
                result[f"{block}.{norm}.{_SCALE[what]}"] = value
            elif inner.startswith("MlpBlock"):
                layer = "fc1" if inner.endswith("Dense_0") else "fc2"
                result[f"{block}.mlp.{layer}.{_SCALE[what]}"] = np.transpose(value) if what == "kernel" else value
            elif inner.endswith("/out"):  # (heads, D, C) -> (C, heads * D)
                value = value.reshape(-1, value.shape[-1]).T if what == "kernel" else value
                result[f"{block}{'' if number is None else '.attn'}.proj.{_SCALE[what]}"] = value
            else:
                result[f"{block}.{inner.rpartition('/')[2]}.{_SCALE[what]}"] = value
        elif not key.startswith("pre_logits"):
            result[key] = value
    for block in sorted({key.rpartition(".query.")[0] for key in result if ".query." in key}):
        pooled = block == "attn_pool"  # its one query has a matrix of its own
        joined = {"q": ["query"], "kv": ["key", "value"]} if pooled else {"attn.qkv": ["query", "key", "value"]}
        for name, parts in joined.items():
            for what in ("weight", "bias"):  # matrices (C, heads, D) -> one (parts * C, C)
                values = [result.pop(f"{block}.{part}.{what}") for part in parts]
                values = [v.reshape(v.shape[0], -1).T if what == "weight" else v.reshape(-1) for v in values]
                result[f"{block}.{name}.{what}"] = np.concatenate(values)
    return result


def _unrolled(state: State) -> State:
    """Blocks that big_vision scanned over, with a leading axis of depth, one by one."""
    scanned = "Transformer/encoderblock/"
    result = {key: value for key, value in state.items() if not key.startswith(scanned)}
    for key, value in state.items():
        if key.startswith(scanned):
            inner = key.removeprefix(scanned)
            result |= {f"Transformer/encoderblock_{i}/{inner}": part for i, part in enumerate(value)}
    return result


_SCALE = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def _keras_applications(state: State) -> State:
    """ResNet 50, 101, 152 of `keras.applications`: convolutions with biases, which move into the norms that follow."""
    result: State = {}
    biases: State = {}
    for key, value in state.items():
        layer, variable = key.split("/")[-2], key.split("/")[-1].partition(":")[0]
        name = _keras_name(layer)
        if name is None:
            raise ValueError(f"layer {layer!r} is not one of a keras.applications ResNet")
        if variable == "kernel":
            axes = (1, 0) if value.ndim == 2 else (3, 2, 0, 1)
            result[f"{name}.weight"] = np.transpose(value, axes)
        elif layer.endswith("_conv") and variable == "bias":
            norm = _keras_name(layer.removesuffix("_conv") + "_bn")
            if norm is None:
                raise ValueError(f"layer {layer!r} has a bias but no batch normalisation to fold it into")
            biases[norm] = value
        else:
            result[f"{name}.{_KERAS_NORM[variable]}"] = value
    for norm, bias in biases.items():
        result[f"{norm}.running_mean"] = result[f"{norm}.running_mean"] - bias
    for key in [key for key in result if key.endswith(".running_var")]:
        result[key] = result[key] + np.float32(1.001e-5 - 1e-5)  # Keras' epsilon against torch's
    return result


_KERAS_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "bias": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _keras_name(layer: str) -> str | None:
    if layer in ("conv1_conv", "conv1_bn"):
        return "conv1" if layer == "conv1_conv" else "bn1"
    if layer in ("probs", "predictions"):
        return "fc"
    match = re.fullmatch(r"conv([2-5])_block(\d+)_([0-3])_(conv|bn)", layer)
    if not match:
        return None
    stage, block, place, kind = match.groups()
    base = f"layer{int(stage) - 1}.{int(block) - 1}"
    if place == "0":
        return f"{base}.downsample.{0 if kind == 'conv' else 1}"
    return f"{base}.{kind}{place}"


_FORMATS: tuple[tuple[Callable[[State], bool], Callable[[State], State]], ...] = (
    (_starts("module."), _strip("module.")),
    (_starts("visual.trunk."), _open_clip_timm),
    (_has("visual.class_embedding"), _openai_clip),
    (_has("downsample_layers.0.0.weight"), _facebook_convnext),
    (lambda state: any(key.endswith("root_block/standardized_conv2d/kernel") for key in state), _bit),
    (_has("mask_token"), _dinov2),
    (lambda state: any(re.search(r"\.gamma_[12]$", key) for key in state), _deit3),
    (lambda state: any(key.endswith("Transformer/encoder_norm/scale") for key in state), _big_vision),
    (lambda state: any("conv1_conv/" in key for key in state), _keras_applications),
)
