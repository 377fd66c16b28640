"""Wrappers that checkpoints of any family may have, and tools for the families' own formats.

A family converts its own formats itself (`Network.to_timm`): the same key may mean something else in another family.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

State = dict[str, Any]
Convert = Callable[[State], State]

# torch's bookkeeping and what is computed from the configuration: no weights
_NO_WEIGHTS = re.compile(r"(^|\.)(num_batches_tracked|relative_position_index|attn_mask)$")


def to_timm(state: State, convert: Convert | None = None) -> State:
    """Return a state dict in timm's names and layout.

    Args:
        state: The state dict, in any of these, wrapped or not.
        convert: The conversion of the family's own formats; `None` if there is no family.
    """
    for prefix, unwrap in _WRAPPERS:
        if any(key.startswith(prefix) for key in state):
            state = unwrap(state)
    state = convert(state) if convert else state
    return {key: value for key, value in state.items() if not _NO_WEIGHTS.search(key)}


def stripped(state: State, prefix: str) -> State:
    """Keep what lies below a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def renamed(state: State, rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]) -> State:
    """Rename keys by regular expressions, one rule after the other; a function makes a name of what was found."""
    result = {}
    for key, value in state.items():
        for old, new in rules:
            key = re.sub(old, new, key)
        result[key] = value
    return result


def _open_clip_timm(state: State) -> State:
    """An OpenCLIP checkpoint whose image tower is timm's own; the projection outside the tower is the head."""
    trunk = stripped(state, "visual.trunk.")
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


_WRAPPERS: tuple[tuple[str, Convert], ...] = (
    ("module.", lambda state: stripped(state, "module.")),  # torch's DistributedDataParallel
    ("visual.trunk.", _open_clip_timm),
)
