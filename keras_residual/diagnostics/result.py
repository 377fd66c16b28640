"""What every diagnosis returns: a table to print, its rows to go on with, a picture to write."""

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
    """A diagnosis. `print(result)` shows the table, `result.plot("a.png")` writes the picture.

    Attributes:
        title: What was looked at, and what was found, in a line.
        rows: One dict for each row of the table, all with the same keys.
        notes: What is said below the table.
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
        """Writes the picture, a PNG, and returns its path."""
        figures.save(self.figure(), Path(path))
        return Path(path)

    def figure(self) -> Any:
        """The picture as a `matplotlib.figure.Figure`."""
        raise NotImplementedError

    def write_csv(self, path: str | os.PathLike[str]) -> Path:
        """Writes the rows, one line each, and returns the path."""
        header = list(self.rows[0]) if self.rows else []
        write_table(Path(path), header, ([row[key] for key in header] for row in self.rows))
        return Path(path)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.3g}"
    return figures.short(str(value), 60)


def headline(figure: Any, text: str) -> None:
    """Finish a figure: set its title, broken into lines that fit, and draw all of its text as it is written."""
    figure.suptitle(textwrap.fill(literal(text), int(10 * figure.get_figwidth())), fontsize=11)
    figures.as_written(figure)


def name_places(axis: Any, names: list[str], most: int = 40) -> None:
    """Names along the x-axis; of many every second, third ..."""
    every = -(-len(names) // most) if names else 1
    places = range(0, len(names), every)
    axis.set_xticks(places, [names[i] for i in places], rotation=90, fontsize=8)
    axis.set_xlim(-0.6, len(names) - 0.4)
