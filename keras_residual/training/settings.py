"""Three groups of settings of `fit`: saving, choosing the final weights, and execution."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import numbers
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar

__all__ = ["Checkpointing", "Execution", "Selection"]

P = ParamSpec("P")
T = TypeVar("T")
MONITORS = ("accuracy", "loss", "macro_f1")


@dataclasses.dataclass(frozen=True)
class Checkpointing:
    """Where a training is saved, how often, and what happens when it is started again.

    Attributes:
        directory: Directory for the checkpoints; created if missing.
        save_steps: Save a checkpoint every so many steps; `None` to save by time. One is always saved after each epoch.
        resume: `True` resumes the same training, also with more epochs than before; `"anyway"` resumes whatever
            differs; `False` starts over.
        fingerprint: Identifies the data, where an identity is known; otherwise `fit` computes one.

    Raises:
        TypeError: If `directory` is not a path.
        ValueError: If `save_steps` or `resume` is not one of the above.
    """

    directory: str | os.PathLike[str]
    save_steps: int | None = None
    resume: bool | Literal["anyway"] = True
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.directory, str | os.PathLike):
            raise TypeError(
                f"checkpoints must be Checkpointing(directory, ...) or a path; got {self.directory!r}. Use None to "
                "train without checkpoints."
            )
        _require_positive("save_steps", self.save_steps, None, "a number of steps")
        _require_one_of("resume", self.resume, (True, False, "anyway"))


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which epoch's weights a training ends with, and when it ends early.

    Attributes:
        keep: `"best"` for the weights of the best epoch by `monitor`, if there is a validation split, and of equally
            good epochs the one with the lowest validation loss; `"last"` for those of the last epoch.
        monitor: `"val_accuracy"`, `"val_loss"`, `"accuracy"` or `"loss"`; with class weights also `"val_macro_f1"` or
            `"macro_f1"`. `"auto"` is `"val_macro_f1"` with class weights, because a constant answer cannot win by it,
            and `"val_accuracy"` without.
        patience: Epochs without a better `monitor` after which training stops; `None` for never.

    Raises:
        ValueError: If a value is not one of the above.
    """

    keep: Literal["best", "last"] = "best"
    monitor: str = "auto"
    patience: int | None = None

    def __post_init__(self) -> None:
        _require_one_of("keep", self.keep, ("best", "last"))
        if self.monitor != "auto" and str(self.monitor).removeprefix("val_") not in MONITORS:
            raise ValueError(_monitor_rule(self.monitor))
        _require_positive("patience", self.patience, None, "a number of epochs")

    def resolved(self, *, weighted: bool, validated: bool) -> Selection:
        """Return the selection with `monitor` and `keep` as they are for a training.

        Args:
            weighted: Whether classes have weights, so that macro F1 is measured.
            validated: Whether there is a validation split.

        Raises:
            ValueError: If the training does not measure `monitor`.
        """
        monitor = self.monitor
        if monitor == "auto":
            monitor = "val_macro_f1" if weighted else "val_accuracy"
        if monitor.endswith("macro_f1") and not weighted:
            raise ValueError(_monitor_rule(monitor))
        keep = self.keep
        if monitor.startswith("val_") and not validated:
            if self.patience is not None:
                raise ValueError(
                    f"patience needs a monitor that is measured; got {monitor!r} without validation data. Pass "
                    "validation data, or monitor='loss'."
                )
            keep = "last"
        return dataclasses.replace(self, monitor=monitor, keep=keep)


@dataclasses.dataclass(frozen=True)
class Execution:
    """Settings for executing the training step.

    Attributes:
        jit: Whether XLA compiles the step; `"auto"` decides by the device.
        steps_per_execution: Steps per call of the backend at most; fewer where an epoch does not divide by it.
            `"auto"` for 1.
        deterministic: Whether operations are deterministic on TensorFlow. This stays on in the process, and Keras
            trains without XLA there.

    Raises:
        ValueError: If a value is not one of the above.
    """

    jit: bool | Literal["auto"] = "auto"
    steps_per_execution: int | Literal["auto"] = "auto"
    deterministic: bool = False

    def __post_init__(self) -> None:
        _require_one_of("jit", self.jit, (True, False, "auto"))
        _require_positive("steps_per_execution", self.steps_per_execution, "auto", "a number of steps")
        _require_one_of("deterministic", self.deterministic, (True, False))


def require_group(name: str, value: Any) -> None:
    """Raise a TypeError unless a group of settings is one."""
    kind = _GROUPS[name]
    if not isinstance(value, kind):
        fields = ", ".join(f"{field.name}=..." for field in dataclasses.fields(kind))
        raise TypeError(f"{name} must be {kind.__name__}({fields}), each of them optional; got {value!r}.")


def _require_one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    if value not in allowed:
        *most, last = map(repr, allowed)
        raise ValueError(f"{name} must be {', '.join(most)} or {last}; got {value!r}.")


def _require_positive(name: str, value: Any, default: str | None, what: str) -> None:
    if value != default and (not isinstance(value, numbers.Integral) or isinstance(value, bool) or int(value) < 1):
        raise ValueError(f"{name} must be {what}, 1 or more, or {default!r}; got {value!r}.")


def _monitor_rule(monitor: Any) -> str:
    return (
        "monitor must be 'auto', 'val_accuracy', 'val_loss', 'accuracy' or 'loss', or with class_weight "
        f"'val_macro_f1' or 'macro_f1'; got {monitor!r}."
    )


# ----------------------------------------------------------------------------------- until the release after 0.1.0

_GROUPS: dict[str, type[Any]] = {"checkpoints": Checkpointing, "selection": Selection, "execution": Execution}


def accepts_flat_settings(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function take the settings of its groups as keywords of their own, as in 0.1.0, with a warning.

    An editor sees the function's own signature only. Unknown keywords raise a TypeError that names the nearest.
    """
    known = inspect.signature(function).parameters
    name = getattr(function, "__name__", "fit")
    homes = {field.name: group for group in known if group in _GROUPS for field in dataclasses.fields(_GROUPS[group])}

    @functools.wraps(function)
    def accepting(*args: Any, **keywords: Any) -> Any:
        unknown = [key for key in keywords if key not in known and key not in homes]
        if unknown:
            raise TypeError(_unknown(name, unknown[0], [*known], homes))
        flat = {key: keywords.pop(key) for key in list(keywords) if key not in known}
        if flat:
            grouped = _grouped(name, flat, homes, keywords)
            spelling = ", ".join(f"{group}={value!r}" for group, value in grouped.items())
            warnings.warn(
                f"{name}({', '.join(f'{key}={value!r}' for key, value in flat.items())}) is deprecated and ends with "
                f"the next release. Write {name}(..., {spelling}).",
                DeprecationWarning,
                stacklevel=2,
            )
            keywords |= grouped
        return function(*args, **keywords)

    return accepting


def _grouped(name: str, flat: Mapping[str, Any], homes: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the groups that flat keywords make.

    Raises:
        TypeError: If the call has such a group already.
    """
    members: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        members.setdefault(homes[key], {})[key] = value
    for group, settings in members.items():
        if group in given:
            inside = ", ".join(f"{key}={value!r}" for key, value in settings.items())
            raise TypeError(
                f"{name}() must get {', '.join(settings)} within {group} or without it; got both. Write "
                f"{group}={_GROUPS[group].__name__}(..., {inside})."
            )
    return {
        # without a directory the others never had an effect
        group: None if group == "checkpoints" and settings.get("directory") is None else _GROUPS[group](**settings)
        for group, settings in members.items()
    }


def _unknown(name: str, key: str, known: list[str], homes: Mapping[str, str]) -> str:
    near = difflib.get_close_matches(key, [*known, *homes], n=1)
    if not near:
        hint = f"Its arguments: {', '.join(known)}."
    elif near[0] in homes:
        group = homes[near[0]]
        hint = f"Did you mean {group}={_GROUPS[group].__name__}({near[0]}=...)?"
    else:
        hint = f"Did you mean {near[0]!r}?"
    return f"{name}() has no argument {key!r}. {hint}"
