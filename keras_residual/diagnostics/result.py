"""Base class for the results of diagnostics: a printable table, its rows, and a figure."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from pathlib import Path
from typing import Any

from keras_residual import figures
from keras_residual.io import literal, write_table

__all__ = ["Result"]


@dataclasses.dataclass(frozen=True)
class Result:
    """Result of a diagnosis. `print(result)` prints the table, `result.plot("a.png")` saves the figure.

    Attributes:
        title: One line with the model and the main findings.
        rows: One dict per row of the table, all with the same keys.
        notes: Lines printed below the table.
    """

    title: str
    rows: list[dict[str, Any]]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [self.title]
        if self.rows:
            cells = [[str(key) for key in self.rows[0]], *([_text(v) for v in row.values()] for row in self.rows)]
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            right = [all(isinstance(row[key], (int, float)) for row in self.rows) for key in self.rows[0]]
            for row in cells:
                padded = (
                    cell.rjust(width) if to_right else cell.ljust(width)
                    for cell, width, to_right in zip(row, widths, right, strict=True)
                )
                lines.append("  " + "  ".join(padded).rstrip())
        return "\n".join([*lines, *self.notes])

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Save the figure as a PNG and return its path."""
        figures.save(self.figure(), Path(path))
        return Path(path)

    def figure(self) -> Any:
        """Return the figure as a `matplotlib.figure.Figure`."""
        raise NotImplementedError

    def write_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write the rows to a CSV file and return its path."""
        header = list(self.rows[0]) if self.rows else []
        write_table(Path(path), header, ([row[key] for key in header] for row in self.rows))
        return Path(path)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    return figures.short(str(value), 60)


def headline(figure: Any, text: str) -> None:
    """Finish a figure: set its title, wrapped to the width of the figure, and disable math mode in its text."""
    figure.suptitle(textwrap.fill(literal(text), int(10 * figure.get_figwidth())), fontsize=11)
    figures.as_written(figure)


def name_places(axis: Any, names: list[str], most: int = 40) -> None:
    """Label the x-axis with names; of more than `most` names, show every second, third and so on."""
    every = -(-len(names) // most) if names else 1
    places = range(0, len(names), every)
    axis.set_xticks(places, [names[i] for i in places], rotation=90, fontsize=8)
    axis.set_xlim(-0.6, len(names) - 0.4)
