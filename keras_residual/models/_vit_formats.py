"""Conversion of published Vision Transformer checkpoints to timm's names and layout."""

from __future__ import annotations

import re

import numpy as np

from keras_residual.weights.formats import State, renamed, stripped


def to_timm(state: State) -> State:
    """Detect the format of a state dict by its keys and convert it; return other state dicts unchanged."""
    if "visual.class_embedding" in state:
        state = _openai_clip(state)
    if "mask_token" in state:
        state = _dinov2(state)
    if any(re.search(r"\.gamma_[12]$", key) for key in state):
        state = _deit3(state)
    if any(key.endswith("Transformer/encoder_norm/scale") for key in state):
        state = _big_vision(state)
    return state


def _openai_clip(state: State) -> State:
    """Convert the image tower of OpenAI's CLIP, and of OpenCLIP checkpoints with the same names."""
    tower = renamed(
        stripped(state, "visual."),
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
    """Convert Meta's DINOv2.

    The mask token is dropped, and SwiGLU gets timm's names. In checkpoints with register tokens, the position embedding
    of the class token is added to the token, because timm's position embeddings cover only the patches.
    """
    state = {key: value for key, value in state.items() if key != "mask_token"}
    state = renamed(state, ((r"\.mlp\.w12\.", ".mlp.fc1."), (r"\.mlp\.w3\.", ".mlp.fc2.")))
    if "register_tokens" in state:
        position = state["pos_embed"]
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + position[:, 0]
        state["pos_embed"] = position[:, 1:]
    return state


def _deit3(state: State) -> State:
    return renamed(state, ((r"\.gamma_([12])$", r".ls\1.gamma"),))


def _big_vision(state: State) -> State:
    """Convert Google's `.npz` towers (the original ViT, AugReg, SigLIP): names are paths, kernels `(in, ..., out)`."""
    prefixes = ("params/img/", "img/", "params/", "opt/target/", "")
    prefix = next((p for p in prefixes if f"{p}embedding/kernel" in state), "")
    result: State = {}
    for key, value in _unrolled(stripped(state, prefix)).items():
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
        pooled = block == "attn_pool"  # the query of the pooling has a separate matrix
        joined = {"q": ["query"], "kv": ["key", "value"]} if pooled else {"attn.qkv": ["query", "key", "value"]}
        for name, parts in joined.items():
            for what in ("weight", "bias"):  # matrices (C, heads, D) -> one (parts * C, C)
                values = [result.pop(f"{block}.{part}.{what}") for part in parts]
                values = [v.reshape(v.shape[0], -1).T if what == "weight" else v.reshape(-1) for v in values]
                result[f"{block}.{name}.{what}"] = np.concatenate(values)
    return result


def _unrolled(state: State) -> State:
    """Split the weights of blocks that big_vision scans over, which have a leading axis of depth."""
    scanned = "Transformer/encoderblock/"
    result = {key: value for key, value in state.items() if not key.startswith(scanned)}
    for key, value in state.items():
        if key.startswith(scanned):
            inner = key.removeprefix(scanned)
            result |= {f"Transformer/encoderblock_{i}/{inner}": part for i, part in enumerate(value)}
    return result


_SCALE = {"kernel": "weight", "scale": "weight", "bias": "bias"}
