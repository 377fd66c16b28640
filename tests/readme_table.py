"""The README's table of families, from the registry: `python -m tests.readme_table` writes it anew."""

import importlib
from collections import Counter
from pathlib import Path

import keras_residual.models  # noqa: F401  (registers every family)
from keras_residual import registry
from keras_residual.weights.published import published

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- families: written by `python -m tests.readme_table` -->", "<!-- families end -->"
SHOWN = 8  # names per family; `keras-residual list` has them all


def table():
    families = {}
    for entry in registry.entries().values():
        families.setdefault(entry.builder.__module__, []).append(entry.config)
    tags = Counter(tag.partition(".")[0] for tag in published())

    def known(row):
        return sum(tags[name] for name in (row.timm, *(alias for alias, _ in row.aliases)))

    head = ("family", "what it is", "networks", "parameters", "timm's checkpoints")
    lines = [_line(head), _line(["---"] * len(head))]
    # What has most checkpoints is what most come for.
    for module, rows in sorted(families.items(), key=lambda family: -sum(map(known, family[1]))):
        rows = sorted(rows, key=known, reverse=True)
        what = importlib.import_module(module).__doc__.strip().partition("\n")[0].rstrip(".")
        names = ", ".join(f"`{row.name}`" for row in rows[:SHOWN])
        more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        count = sum(map(known, rows))
        family = f"`{module.rpartition('.')[2]}` ({len(rows)})"
        lines.append(_line([family, what, f"{names}{more}", _range(rows), count or "none"]))
    lines += ["", f"Together {len(published())} of the 1,826 pretrained tags of timm 1.0.31."]
    return "\n".join(lines)


def _line(cells):
    return f"| {' | '.join(map(str, cells))} |"


def _range(rows):
    counts = sorted(row.params for row in rows if row.params)
    if not counts:
        return "as you choose"
    low, high = _short(counts[0]), _short(counts[-1])
    return low if low == high else f"{low} to {high}"


def _short(count):
    return f"{count / 1e6:.3g} M" if count < 1e9 else f"{count / 1e9:.3g} G"


def with_table(text):
    """The README's text with the table in its place."""
    head, _, rest = text.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise ValueError(f"The README must have the lines {BEGIN!r} and {END!r}.")
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
