"""Find classes whose names say that one is the mirror image of the other, which random flips would make equal."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Words that trade places in the mirror. Single characters must be the whole name, in this case: B is not a mirrored D.
HORIZONTAL = (
    ("left", "right"),
    ("l", "r"),
    ("lt", "rt"),
    ("lhs", "rhs"),
    ("ltr", "rtl"),
    ("east", "west"),
    ("ne", "nw"),
    ("se", "sw"),
    ("clockwise", "counterclockwise"),
    ("clockwise", "counter-clockwise"),
    ("clockwise", "anticlockwise"),
    ("clockwise", "anti-clockwise"),
    ("cw", "ccw"),
    ("port", "starboard"),
    ("links", "rechts"),
    ("gauche", "droite"),
    ("izquierda", "derecha"),
    ("sinistra", "destra"),
    ("esquerda", "direita"),
    ("左", "右"),
)
HORIZONTAL_SIGNS = ("bd", "pq", "()", "[]", "{}", "<>", "/\\", "←→", "↖↗", "↙↘", "«»", "◀▶", "⬅➡")
VERTICAL = (
    ("up", "down"),
    ("upward", "downward"),
    ("top", "bottom"),
    ("upper", "lower"),
    ("above", "below"),
    ("north", "south"),
    ("ne", "se"),
    ("nw", "sw"),
    ("clockwise", "counterclockwise"),
    ("clockwise", "counter-clockwise"),
    ("clockwise", "anticlockwise"),
    ("clockwise", "anti-clockwise"),
    ("cw", "ccw"),
    ("ascending", "descending"),
    ("oben", "unten"),
    ("haut", "bas"),
    ("arriba", "abajo"),
    ("上", "下"),
)
VERTICAL_SIGNS = ("bp", "dq", "^v", "/\\", "↑↓", "↖↙", "↗↘", "▲▼", "⬆⬇", "MW", "un")


def mirror_pair(labels: Sequence[str], vertical: bool = False) -> tuple[str, str] | None:
    """Return the first two classes whose names differ in mirrored words only, for example `left` and `right`.

    Args:
        labels: Class names.
        vertical: Whether the mirror swaps top and bottom instead of left and right.
    """
    words, signs = (VERTICAL, VERTICAL_SIGNS) if vertical else (HORIZONTAL, HORIZONTAL_SIGNS)
    for a, b in signs:
        if a in labels and b in labels:
            return a, b
    known: dict[str, str] = {}
    for label in labels:
        known.setdefault(_normal(label), label)
    for a, b in words:
        for normal, label in known.items():
            other = known.get(_swapped(normal, a, b), label)
            if other != label:
                return label, other
    return None


def _normal(label: str) -> str:
    """Return a name in lower case, with `turnLeft` as `turn left`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", label).casefold()


def _swapped(label: str, a: str, b: str) -> str:
    """Swap two words; those of one to three ASCII letters only where they are not part of longer words."""
    either = "|".join(map(re.escape, sorted((a, b), key=len, reverse=True)))
    if len(a) < 4 and a.isascii():
        either = rf"(?<![^\W\d_])(?:{either})(?![^\W\d_])"
    return re.sub(either, lambda found: b if found[0] == a else a, label)
