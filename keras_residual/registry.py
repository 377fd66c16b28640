"""Rows and the builders made from them: the one table of what this package can build.

This module imports neither Keras nor any family. Families register themselves here with
`variant`; `keras_residual.models` imports every family and answers questions about the table.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

__all__ = ["Config", "Entry", "variant"]

P = ParamSpec("P")
C = TypeVar("C", bound="Config")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Config:
    """One row: everything that tells one variant of a family from its siblings.

    Families subclass it with their own fields (depths, widths, block function ...).

    Attributes:
        name: The builder's public name, for example `"ResNet50"`.
        timm: The same network's name in timm, also its alias in `create`; `None` if timm has none.
        aliases: More names in timm of the same network, each with the image size it stands for.
        params: Published number of parameters with the default head.
        gmacs: Published cost of one forward pass at `input_shape`, in 10^9 multiply-additions.
        source: Paper (and table) the numbers and the topology come from.
        input_shape: Default shape of one sample, channels last.
        classes: Default number of outputs.
        dynamic_size: Whether spatial dimensions may be `None`.
        head: The classifier's layers, which differ between checkpoints of other classes.
        top: Where the names begin of all layers that a network without top lacks.
        tag: timm's tag of the checkpoint that `weights="imagenet"` means.
    """

    name: str
    timm: str | None = dataclasses.field(default=None, kw_only=True)
    aliases: tuple[tuple[str, int], ...] = dataclasses.field(default=(), kw_only=True)
    params: int | None = dataclasses.field(default=None, kw_only=True)
    gmacs: float | None = dataclasses.field(default=None, kw_only=True)
    source: str = dataclasses.field(default="", kw_only=True)
    input_shape: tuple[int | None, ...] = dataclasses.field(default=(224, 224, 3), kw_only=True)
    classes: int = dataclasses.field(default=1000, kw_only=True)
    dynamic_size: bool = dataclasses.field(default=True, kw_only=True)
    head: tuple[str, ...] = dataclasses.field(default=("fc",), kw_only=True)
    top: tuple[str, ...] = dataclasses.field(default=("fc.",), kw_only=True)
    tag: str | None = dataclasses.field(default=None, kw_only=True)

    @property
    def global_pool(self) -> str:
        """timm's word for how this network pools; a checkpoint's repository may say it."""
        return "avg"

    def tiny(self) -> Config:
        """Returns the row of a small network with the same topology, as tests and demos need it."""
        raise TypeError(f"{type(self).__name__} must say how its tiny twin is made (method `tiny`).")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered variant: its row, its public builder, and its family's builder `(row, ...) -> Model`."""

    config: Config
    builder: Callable[..., Any]
    family: Callable[..., Any]


_entries: dict[str, Entry] = {}
_names: dict[str, tuple[str, int | None]] = {}  # lower-case name or timm name -> name, image size if not the row's


def variant(family: Callable[Concatenate[C, P], R], config: C) -> Callable[P, R]:
    """Turns a row into a public builder and registers it.

    Args:
        family: `family(config, ...)` builds any network of the family.
        config: The row.

    Returns:
        `family` with the row filled in: typed, documented, picklable. It must be assigned to a module-level
        variable called `config.name` in the module that defines `family`.

    Raises:
        ValueError: If the name or the timm name is taken.
    """

    known = list(inspect.signature(family).parameters)[1:]

    @functools.wraps(family)
    def builder(*args: P.args, **kwargs: P.kwargs) -> R:
        unknown = [name for name in kwargs if name not in known]
        if unknown:  # timm's num_classes and in_chans, most of all
            raise TypeError(f"{config.name}() has no argument {unknown[0]!r}. Its arguments: {', '.join(known)}.")
        return family(config, *args, **kwargs)

    builder.__name__ = builder.__qualname__ = config.name
    builder.__doc__ = _document(family, config)
    signature = inspect.signature(family)
    builder.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])  # pyright: ignore[reportAttributeAccessIssue]
    del builder.__wrapped__  # pickle and inspect must see the builder, not the family

    names = [(config.name, None), (config.timm, None), *config.aliases]
    for name, size in names:
        if name is None:
            continue
        owner, _ = _names.setdefault(name.lower(), (config.name, size))
        if owner != config.name or config.name in _entries:
            raise ValueError(
                f"Every variant needs a name of its own. Received: {name!r} for {config.name!r}, already taken by "
                f"{owner!r}. Choose another `name`, `timm` or alias in the row."
            )
    _entries[config.name] = Entry(config, builder, family)
    return builder


def entries() -> dict[str, Entry]:
    """Returns a copy of the table, in the order of registration."""
    return dict(_entries)


def resolve(name: str) -> tuple[str, int | None] | None:
    """Returns the registered spelling of a name or timm name, and the image size of an alias; or `None`."""
    return _names.get(name.lower())


def nearest(name: str) -> list[str]:
    """Registered names that are spelt much like this one."""
    lower = {key.lower(): key for key in _entries}
    return [lower[key] for key in difflib.get_close_matches(name.lower(), lower, n=5)]


def _document(family: Callable[..., Any], config: Config) -> str:
    facts = [
        f"{config.params:,} parameters" if config.params else "",
        f"{config.gmacs:g} GMACs at {'x'.join(map(str, config.input_shape))}" if config.gmacs else "",
        f"timm: `{config.timm}`" if config.timm else "",
    ]
    head = f"{config.name}. {config.source}".strip()
    body = inspect.cleandoc(family.__doc__ or "").partition("\n")[2].strip()
    body = body.replace("        config: The row.\n", "").replace("    config: The row.\n", "")
    return "\n\n".join(filter(None, (head, "; ".join(filter(None, facts)), body)))
