"""The tables of the README and of benchmarks/README.md, from the registry and the measurements.

`python -m tests.tables` writes them anew where they stand, between the lines that name them.
"""

import csv
import importlib
import re
from collections import Counter
from pathlib import Path

import keras_residual.models  # noqa: F401  (registers every family)
from keras_residual import registry
from keras_residual.weights.published import published

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
PLACE = re.compile(r"(<!-- table (\w+): written by `python -m tests\.tables` -->\n).*?(<!-- table end -->)", re.DOTALL)
SHOWN = 8  # names per family; `keras-residual list` has them all


def with_tables(text):
    """The page with every table in its place."""
    return PLACE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", text)


def families():
    modules = {}
    for entry in registry.entries().values():
        modules.setdefault(entry.builder.__module__, []).append(entry.config)
    tags = Counter(tag.partition(".")[0] for tag in published())

    def known(row):
        return sum(tags[name] for name in (row.timm, *(alias for alias, _ in row.aliases)))

    lines = []
    # What has most checkpoints is what most come for.
    for module, rows in sorted(modules.items(), key=lambda family: -sum(map(known, family[1]))):
        rows = sorted(rows, key=known, reverse=True)
        what = importlib.import_module(module).__doc__.strip().partition("\n")[0].rstrip(".")
        names = ", ".join(f"`{row.name}`" for row in rows[:SHOWN])
        more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        count = sum(map(known, rows))
        family = f"`{module.rpartition('.')[2]}` ({len(rows)})"
        lines.append([family, what, f"{names}{more}", _range(rows), count or "none"])
    head = ["family", "what it is", "networks", "parameters", "timm's checkpoints"]
    count = sum(tags[name] for name in tags if registry.resolve(name))
    return f"{_table(head, lines)}\n\nTogether {count:,} of the {len(published()):,} pretrained tags of timm 1.0.31."


def _range(rows):
    counts = sorted(row.params for row in rows if row.params)
    if not counts:
        return "as you choose"
    low, high = _short(counts[0]), _short(counts[-1])
    return low if low == high else f"{low} to {high}"


def _short(count):
    return f"{count / 1e6:.3g} M" if count < 1e9 else f"{count / 1e9:.3g} G"


def cpu():
    """Ours over each peer: training and inference."""
    ratios = _pivot(_measured("cpu"), ["model", "contender"], "mode")
    lines, last = [], None
    for (model, contender), of in ratios.items():
        if contender != "keras_residual":
            cells = [f"{float(of[mode]['ours_over_it']):.2f}" for mode in ("training", "inference")]
            lines.append([model if model != last else "", contender, *cells])
            last = model
    return _table(["network", "compared with", "training", "inference"], lines)


def gpu():
    """Images a second, and ours over each peer."""
    rows = _pivot(_measured("gpu"), ["model", "contender"], "mode")
    models = list(dict.fromkeys(model for model, _ in rows))
    lines, last = [], None
    # By model, ours first.
    for (model, contender), of in sorted(rows.items(), key=lambda r: (models.index(r[0][0]), r[0][1])):
        cells = []
        for mode in ("training", "inference"):
            row = of.get(mode)
            over = f" ({float(row['ours_over_it']):.2f})" if row and not contender.startswith("keras_residual") else ""
            cells.append(f"{float(row['images_per_second']):,.0f}{over}" if row else "")
        lines.append([model if model != last else "", contender, *cells])
        last = model
    return _table(["network", "", "training", "inference"], lines)


def data():
    of = _pivot(_measured("data"), ["images"], "contender")
    contenders = list(next(iter(of.values())))
    lines = [[images, *(row[name]["images_per_second"] for name in contenders)] for (images,), row in of.items()]
    return _table(["images a second of JPEGs of", *contenders], lines)


def exports():
    """By machine: milliseconds for one image; images a second at 16."""

    def cell(one, many):
        over = "" if one["contender"] == "model.export" else f" ({_over(one)}; {_over(many)})"
        return f"{float(one['p50_ms']):.0f}; {float(many['per_second']):.1f}{over}"

    of = _pivot(_of("network"), ["machine", "model", "contender"], "batch")
    machines, models, contenders = (list(dict.fromkeys(key[at] for key in of)) for at in (0, 1, 2))
    lines = [
        [m.split()[-1].upper(), model, *(cell(of[m, model, c]["1"], of[m, model, c]["16"]) for c in contenders)]
        for m in machines
        for model in models
    ]
    return _table(["CPU", "network", *contenders], lines)


def _over(row):
    return f"{float(row['over_model_export']):.2f}"


def sizes():
    of = _pivot([row for row in _of("network") if row["batch"] == "1"], ["model"], "contender")
    contenders = [name for name in next(iter(of.values())) if "oneDNN" not in name]
    lines = [[model, *(f"{float(row[c]['mb']):.0f}" for c in contenders)] for (model,), row in of.items()]
    return _table(["megabytes on disk", *contenders], lines)


def server():
    lines = []
    for row in _of("server"):
        over = "" if row["contender"] == "signature" else f"{float(row['overhead_ms']):.0f}"
        times = [f"{float(row['p50_ms']):.0f}", f"{float(row['p99_ms']):.0f}", f"{float(row['per_second']):.1f}", over]
        lines.append([row["request"], row["clients"], row["contender"], *times])
    head = ["request", "clients", "by", "p50, ms", "p99, ms", "answers a second", "over the bare call, ms"]
    return _table(head, lines)


TABLES = {table.__name__: table for table in (families, cpu, gpu, data, exports, sizes, server)}


def _measured(name):
    with (ROOT / "benchmarks" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _of(what):
    return [row for row in _measured("serving") if row["what"] == what]


def _pivot(rows, keys, column):
    """Values of `keys` -> value of `column` -> the row."""
    found = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), {})[row[column]] = row
    return found


def _table(head, lines):
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in [head, ["---"] * len(head), *lines])


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
