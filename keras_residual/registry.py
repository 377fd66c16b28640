"""Registry of all variants: configuration rows and the builders created from them.

This module imports neither Keras nor any family. Families register their variants here with `variant`.
`keras_residual.models` imports every family and offers functions to search the registry.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, Protocol, TypeVar

__all__ = ["Config", "Entry", "variant"]

P = ParamSpec("P")
R = TypeVar("R", covariant=True)
C = TypeVar("C", bound="Config", contravariant=True)
Row = TypeVar("Row", bound="Config")


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of one variant of a family, also called a row.

    Families subclass it with fields of their own, such as depths, widths and the block function.

    Attributes:
        name: Public name of the builder, for example `"ResNet50"`.
        timm: Name of the same network in timm, which `create` also accepts; `None` if timm does not have it.
        aliases: Other names of the same network in timm, each with its image size.
        params: Published number of parameters with the default head.
        gmacs: Published cost of one forward pass at `input_shape`, in 10^9 multiply-accumulate operations.
        source: Paper (and table) of the topology and the numbers.
        input_shape: Default shape of one sample, channels last.
        classes: Default number of outputs; 0 if the published network has no classifier.
        ranks: Supported numbers of spatial axes: 1 for signals, 2 for images, 3 for volumes.
        dynamic_size: True if spatial dimensions may be `None`.
        head: Names of the classifier's layers, whose shapes depend on the number of classes.
        top: Prefixes of the names of all layers that a network without top lacks.
        tag: timm's tag of the default checkpoint, `weights="imagenet"`.
        tags: Fields of the row that a checkpoint changes, such as a width, by the checkpoint's tag.
    """

    name: str
    timm: str | None = dataclasses.field(default=None, kw_only=True)
    aliases: tuple[tuple[str, int], ...] = dataclasses.field(default=(), kw_only=True)
    params: int | None = dataclasses.field(default=None, kw_only=True)
    gmacs: float | None = dataclasses.field(default=None, kw_only=True)
    source: str = dataclasses.field(default="", kw_only=True)
    input_shape: tuple[int | None, ...] = dataclasses.field(default=(224, 224, 3), kw_only=True)
    classes: int = dataclasses.field(default=1000, kw_only=True)
    ranks: tuple[int, ...] = dataclasses.field(default=(1, 2, 3), kw_only=True)
    dynamic_size: bool = dataclasses.field(default=True, kw_only=True)
    head: tuple[str, ...] = dataclasses.field(default=("fc",), kw_only=True)
    top: tuple[str, ...] = dataclasses.field(default=("fc.",), kw_only=True)
    tag: str | None = dataclasses.field(default=None, kw_only=True)
    tags: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict, kw_only=True, hash=False)

    @property
    def checkpoint(self) -> str | None:
        """Repository of the default checkpoint, `weights="imagenet"`; `None` if there is none."""
        return None if self.tag is None else f"timm/{self.timm}.{self.tag}"

    @property
    def global_pool(self) -> str:
        """timm's name for the pooling of this network, which a checkpoint's repository may state."""
        return "avg"

    def tagged(self: Row, tag: str | None) -> Row:
        """Return the row with the changes of a checkpoint's tag, or the row itself if the tag changes nothing."""
        changes = self.tags.get(tag or "")
        return dataclasses.replace(self, **changes) if changes else self

    def tiny(self) -> Config:
        """Return the row of a small network with the same topology, for tests and demos."""
        raise TypeError(
            f"{type(self).__name__} must define the method `tiny`, which returns the row of a small network."
        )


class Network(Protocol[C, R]):
    """Protocol of `keras_residual.models._network.Network`: the options of a network, which build it from a row."""

    def build(self, row: C) -> R: ...


@dataclasses.dataclass(frozen=True)
class Entry:
    """Registered variant: its row, its public builder, and its family, the class of the builder's options."""

    config: Config
    builder: Callable[..., Any]
    family: type[Any]

    def build(self, row: Config, **options: Any) -> Any:
        """Build any row of the family, such as `config.tiny()`, with the builder's options."""
        _require_known(row.name, inspect.signature(self.family).parameters, options)
        return self.family(**{"classes": row.classes, **options}).build(row)


_entries: dict[str, Entry] = {}
_names: dict[str, tuple[str, int | None]] = {}  # lower-case name or timm name -> name, image size of an alias


def variant(family: Callable[P, Network[C, R]], config: C) -> Callable[P, R]:
    """Create the public builder of a row and register it.

    Args:
        family: Dataclass of the builder's arguments, which builds the network of a row.
        config: The row.

    Returns:
        The builder. It takes the family's arguments, and is typed, documented and picklable. It must be assigned to a
        module-level variable named `config.name` in the module that defines `family`.

    Raises:
        TypeError: If `family` is not a class.
        ValueError: If the name or the timm name is already registered, or if a tag changes a field that the row does
            not have.
    """
    if not isinstance(family, type):
        raise TypeError(
            f"{config.name}: `family` must be a subclass of keras_residual.models._network.Network, a frozen "
            f"dataclass; got {family!r}."
        )
    _require_fields(config)
    signature = inspect.signature(family)
    known = {
        name: parameter.replace(default=config.classes) if name == "classes" else parameter
        for name, parameter in signature.parameters.items()
    }
    returned = inspect.signature(family.build).return_annotation
    signature = signature.replace(parameters=list(known.values()), return_annotation=returned)
    places = [parameter.name for parameter in known.values() if parameter.kind is not parameter.KEYWORD_ONLY]

    def builder(*args: P.args, **kwargs: P.kwargs) -> R:
        _require_known(config.name, known, kwargs)
        if len(args) > len(places):
            raise TypeError(
                f"{config.name}() takes at most {len(places)} arguments by position, {', '.join(places)}; got "
                f"{len(args)}. Pass the others by name, for example drop_path=0.1."
            )
        given = signature.bind(*args, **kwargs)
        if "classes" in known:  # the default of a row may differ from the default of its family
            given.arguments.setdefault("classes", config.classes)
        return family(*given.args, **given.kwargs).build(config)

    builder.__name__ = builder.__qualname__ = config.name
    builder.__module__ = family.__module__  # pickle looks for the builder there
    builder.__doc__ = _document(family, config, list(known))
    builder.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]

    names = [(config.name, None), (config.timm, None), *config.aliases]
    for name, size in names:
        if name is None:
            continue
        owner, _ = _names.setdefault(name.lower(), (config.name, size))
        if owner != config.name or config.name in _entries:
            raise ValueError(
                f"Names of variants must be unique; got {name!r} for {config.name!r}, but {owner!r} already uses it. "
                "Choose another `name`, `timm` or alias in the row."
            )
    _entries[config.name] = Entry(config, builder, family)
    return builder


def _require_known(name: str, known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    unknown = [argument for argument in given if argument not in known]
    if unknown:  # most often timm's num_classes or in_chans
        raise TypeError(f"{name}() has no argument {unknown[0]!r}. Its arguments: {', '.join(known)}.")


def _require_fields(config: Config) -> None:
    """Raise if a tag changes a field that the row does not have, at registration instead of at the first load."""
    fields = {field.name for field in dataclasses.fields(config)} - {"name", "timm", "tag", "tags"}
    for tag, changes in config.tags.items():
        if unknown := changes.keys() - fields:
            raise ValueError(
                f"{config.name}: a tag must change fields of {type(config).__name__}; got "
                f"{', '.join(sorted(unknown))} for {tag!r}."
            )


def entries() -> dict[str, Entry]:
    """Return a copy of the registry, in the order of registration."""
    return dict(_entries)


def family(name: str) -> type[Any] | None:
    """Return the family with the given class name, or `None`."""
    return next((entry.family for entry in _entries.values() if entry.family.__name__ == name), None)


def resolve(name: str) -> tuple[str, int | None] | None:
    """Return the registered spelling of a name or timm name and the image size of an alias, or `None` if unknown."""
    return _names.get(name.lower())


def nearest(name: str) -> list[str]:
    """Return registered names that are spelled similarly."""
    lower = {key.lower(): key for key in _entries}
    return [lower[key] for key in difflib.get_close_matches(name.lower(), lower, n=5)]


def _document(family: type[Any], config: Config, arguments: list[str]) -> str:
    """Compose a builder's docstring from the row and the docstrings of the family and its base class."""
    facts = [
        f"{config.params:,} parameters" if config.params else "",
        f"{config.gmacs:g} GMACs at {'x'.join(map(str, config.input_shape))}" if config.gmacs else "",
        f"timm: `{config.timm}`" if config.timm else "",
        f"classifier: {', '.join(f'`{name}`' for name in config.head)}" + ("" if config.classes else ", not published"),
    ]
    described: dict[str, str] = {}
    sections: dict[str, str] = {}
    own = ""
    for cls in reversed(family.__mro__):
        if dataclasses.is_dataclass(cls):
            own, found = _sections(cls)
            described |= _arguments(found.pop("Args", ""))
            sections |= found
    texts = [described[name] for name in arguments if name in described]
    sections = {"Args": "\n".join(texts), **sections}
    body = [f"{title}:\n{text}" for title, text in sections.items()]
    head = f"{config.name}. {config.source}".strip()
    return "\n\n".join(filter(None, (head, "; ".join(filter(None, facts)), own, *body)))


def _sections(cls: type[Any]) -> tuple[str, dict[str, str]]:
    """Split a class's docstring into the text after its first line and its sections by title."""
    text, *rest = re.split(r"^(Args|Returns|Raises):\n", inspect.cleandoc(cls.__doc__ or ""), flags=re.MULTILINE)
    bodies = (body.rstrip() for body in rest[1::2])
    return text.partition("\n")[2].strip(), dict(zip(rest[::2], bodies, strict=True))


def _arguments(text: str) -> dict[str, str]:
    """Split an `Args` section into its entries by argument."""
    entries = re.split(r"^(?=    \w)", text, flags=re.MULTILINE)
    return {entry.partition(":")[0].strip(): entry.rstrip() for entry in entries if entry.strip()}
