"""Rows and the builders made from them: the one table of what this package can build.

This module imports neither Keras nor any family. Families register themselves here with
`variant`; `keras_residual.models` imports every family and answers questions about the table.
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
        classes: Default number of outputs; 0 if the published network has no classifier.
        ranks: How many spatial axes inputs may have: 1 for signals, 2 for images, 3 for volumes.
        dynamic_size: Whether spatial dimensions may be `None`.
        head: The classifier's layers, which differ between checkpoints of other classes.
        top: Where the names begin of all layers that a network without top lacks.
        tag: timm's tag of the checkpoint that `weights="imagenet"` means.
        tags: What checkpoints change, by their tags: the row's fields and their values, such as a width.
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
        """The repository that `weights="imagenet"` means; `None` if there is none."""
        return None if self.tag is None else f"timm/{self.timm}.{self.tag}"

    @property
    def global_pool(self) -> str:
        """timm's word for how this network pools; a checkpoint's repository may say it."""
        return "avg"

    def tagged(self: Row, tag: str | None) -> Row:
        """Return the row of the network that a tag's checkpoint is of; the row itself where the tag changes nothing."""
        changes = self.tags.get(tag or "")
        return dataclasses.replace(self, **changes) if changes else self

    def tiny(self) -> Config:
        """Returns the row of a small network with the same topology, as tests and demos need it."""
        raise TypeError(f"{type(self).__name__} must say how its tiny twin is made (method `tiny`).")


class Network(Protocol[C, R]):
    """A network's options, to which a row is all that is missing: `keras_residual.models._network.Network`."""

    def build(self, row: C) -> R: ...


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered variant: its row, its public builder, and its family, the class of the builder's options."""

    config: Config
    builder: Callable[..., Any]
    family: type[Any]

    def build(self, row: Config, **options: Any) -> Any:
        """Build any row of the family, such as `config.tiny()`, with the builder's options."""
        _require_known(row.name, inspect.signature(self.family).parameters, options)
        return self.family(**{"classes": row.classes, **options}).build(row)


_entries: dict[str, Entry] = {}
_names: dict[str, tuple[str, int | None]] = {}  # lower-case name or timm name -> name, image size if not the row's


def variant(family: Callable[P, Network[C, R]], config: C) -> Callable[P, R]:
    """Turn a row into a public builder and register it.

    Args:
        family: The family: a dataclass of the builder's arguments that builds a row with them.
        config: The row.

    Returns:
        The builder: it takes the family's arguments, is typed, documented and picklable. It must be assigned to a
        module-level variable called `config.name` in the module that defines `family`.

    Raises:
        TypeError: If `family` is not a class.
        ValueError: If the name or the timm name is taken, or a tag changes a field that the row does not have.
    """
    if not isinstance(family, type):
        raise TypeError(
            f"{config.name}: `family` must be a subclass of keras_residual.models._network.Network, a frozen "
            f"dataclass. Received: {family!r}."
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
                f"{len(args)}. Name the others, for example drop_path=0.1."
            )
        given = signature.bind(*args, **kwargs)
        if "classes" in known:  # a row's default may differ from its family's
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
                f"Every variant needs a name of its own. Received: {name!r} for {config.name!r}, already taken by "
                f"{owner!r}. Choose another `name`, `timm` or alias in the row."
            )
    _entries[config.name] = Entry(config, builder, family)
    return builder


def _require_known(name: str, known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    unknown = [argument for argument in given if argument not in known]
    if unknown:  # timm's num_classes and in_chans, most of all
        raise TypeError(f"{name}() has no argument {unknown[0]!r}. Its arguments: {', '.join(known)}.")


def _require_fields(config: Config) -> None:
    """Raise if a tag changes what the row does not have, when it is registered instead of when it is first loaded."""
    fields = {field.name for field in dataclasses.fields(config)} - {"name", "timm", "tag", "tags"}
    for tag, changes in config.tags.items():
        if unknown := changes.keys() - fields:
            raise ValueError(
                f"{config.name}: a tag must change fields of {type(config).__name__}. Received: "
                f"{', '.join(sorted(unknown))} for {tag!r}."
            )


def entries() -> dict[str, Entry]:
    """Returns a copy of the table, in the order of registration."""
    return dict(_entries)


def family(name: str) -> type[Any] | None:
    """Return the family of that name, or `None`."""
    return next((entry.family for entry in _entries.values() if entry.family.__name__ == name), None)


def resolve(name: str) -> tuple[str, int | None] | None:
    """Returns the registered spelling of a name or timm name, and the image size of an alias; or `None`."""
    return _names.get(name.lower())


def nearest(name: str) -> list[str]:
    """Registered names that are spelt much like this one."""
    lower = {key.lower(): key for key in _entries}
    return [lower[key] for key in difflib.get_close_matches(name.lower(), lower, n=5)]


def _document(family: type[Any], config: Config, arguments: list[str]) -> str:
    """Compose a builder's docstring: facts of the row, then what the family and its base class say."""
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
            own, said = _sections(cls)
            described |= _arguments(said.pop("Args", ""))
            sections |= said
    texts = [described[name] for name in arguments if name in described]
    sections = {"Args": "\n".join(texts), **sections}
    body = [f"{title}:\n{text}" for title, text in sections.items()]
    head = f"{config.name}. {config.source}".strip()
    return "\n\n".join(filter(None, (head, "; ".join(filter(None, facts)), own, *body)))


def _sections(cls: type[Any]) -> tuple[str, dict[str, str]]:
    """Split a class's docstring into its text after the first line and its sections by title."""
    text, *rest = re.split(r"^(Args|Returns|Raises):\n", inspect.cleandoc(cls.__doc__ or ""), flags=re.MULTILINE)
    bodies = (body.rstrip() for body in rest[1::2])
    return text.partition("\n")[2].strip(), dict(zip(rest[::2], bodies, strict=True))


def _arguments(text: str) -> dict[str, str]:
    """Split an `Args` section into its entries by argument."""
    entries = re.split(r"^(?=    \w)", text, flags=re.MULTILINE)
    return {entry.partition(":")[0].strip(): entry.rstrip() for entry in entries if entry.strip()}
