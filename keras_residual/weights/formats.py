"""Conversion of state dicts to timm's names: wrappers common to all families, and helpers for each family's formats.

Each family converts its own formats in `Network.to_timm`, because the same key may mean something else in another
family.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

State = dict[str, Any]
Convert = Callable[[State], State]

# torch's counters and buffers that are computed from the configuration
_NO_WEIGHTS = re.compile(r"(^|\.)(num_batches_tracked|relative_position_index|attn_mask)$")


def to_timm(state: State, convert: Convert | None = None) -> State:
    """Return a state dict in timm's names and layout.

    Args:
        state: The state dict, which may be wrapped (`module.`, `visual.trunk.`).
        convert: The conversion of the family's own formats; `None` if the model belongs to no family.
    """
    for prefix, unwrap in _WRAPPERS:
        if any(key.startswith(prefix) for key in state):
            state = unwrap(state)
    state = convert(state) if convert else state
    return {key: value for key, value in state.items() if not _NO_WEIGHTS.search(key)}


def stripped(state: State, prefix: str) -> State:
    """Return the entries whose key starts with `prefix`, with the prefix removed."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def renamed(state: State, rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]) -> State:
    """Rename keys with `re.sub`, one rule after the other. A replacement may be a function of the match."""
    result = {}
    for key, value in state.items():
        for old, new in rules:
            key = re.sub(old, new, key)
        result[key] = value
    return result


def _open_clip_timm(state: State) -> State:
    """Convert an OpenCLIP checkpoint whose image tower is a timm model; its projection becomes the head."""
    trunk = stripped(state, "visual.trunk.")
    head = "head.fc" if "stem.0.weight" in trunk else "head"  # ConvNeXt, or Vision Transformer
    for place in ("proj", "mlp.fc2"):
        projection = state.get(f"visual.head.{place}.weight")
        if projection is not None:
            bias = state.get(f"visual.head.{place}.bias", np.zeros(projection.shape[0], projection.dtype))
            trunk[f"{head}.weight"], trunk[f"{head}.bias"] = projection, bias
    for variable in ("weight", "bias"):
        if f"visual.head.mlp.fc1.{variable}" in state:
            trunk[f"head.pre_logits.fc.{variable}"] = state[f"visual.head.mlp.fc1.{variable}"]
    return trunk


_WRAPPERS: tuple[tuple[str, Convert], ...] = (
    ("module.", lambda state: stripped(state, "module.")),  # torch's DistributedDataParallel
    ("visual.trunk.", _open_clip_timm),
)
