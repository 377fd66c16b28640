"""MkDocs hooks: generate pages from what the repository already contains, so that nothing is written twice."""

from __future__ import annotations

import argparse
import base64
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Module -> its page's title, in the order of the menu.
MODULES = {
    "models": "Building by name, features",
    "blocks": "Blocks",
    "layers": "Layers",
    "weights": "Weights",
    "models.pretrained": "Published checkpoints",
    "data": "Data",
    "training": "Training",
    "finetuning": "Fine-tuning",
    "classifier": "Classifier",
    "diagnostics": "Diagnostics",
    "exporting": "Export",
    "folding": "Folding",
    "serving": "Serving",
    "registry": "Registry",
}
# Module of a family -> its heading among the networks.
FAMILIES = {
    "convnext": "ConvNeXt",
    "mlp": "Residual MLPs",
    "mlp_mixer": "MLP-Mixer, ResMLP, gMLP",
    "regnet": "RegNet",
    "resnet": "ResNet",
    "resnet_cifar": "ResNets for small images",
    "resnet_v2": "ResNet V2, BiT",
    "vit": "Vision Transformers",
}
COMMON = """\
Exit codes: 0 for success; 1 if `predict` could not read an image; 2 for an error; 130 after Ctrl-C. An error is one
message; with `KERAS_RESIDUAL_TRACEBACK=1` the command shows where it was raised.

Shell completion: `keras-residual --print-completion bash` prints a script for bash, and likewise for zsh and tcsh. It
needs `pip install 'keras-residual[completion]'`."""
INCLUDE = re.compile(r"<!-- section: (?P<file>\S+), (?P<title>.+?) -->")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the menu with every notebook and every module."""
    menu: dict[str, Any] = {title: pages for entry in config.nav or [] for title, pages in entry.items()}
    menu["Tutorials"] = [f"notebooks/{path.stem}.md" for path in _notebooks()]
    modules = [{title: f"reference/{name}.md"} for name, title in _modules()]
    menu["Reference"] = [*menu["Reference"], {"Python API": modules}]
    config.nav = [{title: pages} for title, pages in menu.items()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    made: dict[str, str | bytes] = {
        "families.md": _families(),
        "reference/builders.md": _builders(),
        "reference/command_line.md": _command_line(),
        "reference/benchmarks.md": _without_local_links(
            (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
        ),
    }
    for name, title in _modules():
        made[f"reference/{name}.md"] = _module(name, title)
    for path in _notebooks():
        made |= _notebook(path)
    for uri, content in made.items():
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Include sections of CONTRIBUTING.md where a page asks for them."""
    return INCLUDE.sub(lambda found: section(ROOT / found["file"], found["title"]), markdown)


def on_post_build(config: MkDocsConfig) -> None:
    """Fail the build unless the reference describes every public name."""
    pages = (Path(config.site_dir) / "reference").rglob("*.html")
    described = {
        name for page in pages for name in re.findall(r'id="keras_residual\.([\w.]+)"', page.read_text("utf-8"))
    }
    ends = {name.rpartition(".")[2] for name in described}
    package = importlib.import_module("keras_residual")
    public = {name: f"keras_residual.{name}" for name in (*package._HOMES, *MODULES)}
    for name, _ in _modules():
        public |= {n: f"keras_residual.{name}.{n}" for n in importlib.import_module(f"keras_residual.{name}").__all__}
    missing = sorted(full for name, full in public.items() if name not in ends and name not in MODULES)
    if missing:
        raise PluginError(f"The reference lacks public names: {', '.join(missing)}.")


def section(path: Path, title: str) -> str:
    """Return the text below a heading of the second level, up to the next one."""
    text = path.read_text(encoding="utf-8")
    _, found, rest = text.partition(f"\n## {title}\n")
    if not found:
        raise ValueError(f"{path.name} has no section {title!r}.")
    body = re.split(r"^## ", rest, maxsplit=1, flags=re.MULTILINE)[0].strip()
    return _without_local_links(body)


def _without_local_links(text: str) -> str:
    """Replace links to files of the repository, which do not work in the site, by their text."""
    return re.sub(r"\[([^\]]+)\]\((?!https?://)[^)]*\)", r"\1", text)


def _modules() -> Iterator[tuple[str, str]]:
    for name, title in MODULES.items():
        place = ROOT / "keras_residual" / name.replace(".", "/")
        if place.with_suffix(".py").is_file() or (place / "__init__.py").is_file():
            yield name, title


def _module(name: str, title: str) -> str:
    """Return the page of a module. A function with the name of its file is requested by itself: the file hides it."""
    options = "    options:\n      show_root_heading: false\n      show_submodules: false\n"
    parts = [f"# {title}", f"::: keras_residual.{name}\n{options}"]
    module = importlib.import_module(f"keras_residual.{name}")
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if getattr(value, "__module__", "") == f"{module.__name__}.{public}":
            parts.append(f"::: {value.__module__}.{public}\n    options:\n      show_root_full_path: false\n")
    if name == "training":
        rows = [f"| `{r.name}` | {r.source} | {', '.join(r.omitted)} |" for r in module.RECIPES.values()]
        parts.append(
            "\n".join(["## Published recipes", "", "| name | source | left out |", "| --- | --- | --- |", *rows])
        )
    return "\n\n".join(parts) + "\n"


def _command_line() -> str:
    """Return the output of `keras-residual COMMAND --help` for every command."""
    from keras_residual.cli import parser

    made = parser()
    (commands,) = (a for a in made._actions if isinstance(a, argparse._SubParsersAction))
    parts = ["# Command line", made.description or "", COMMON]
    for name, sub in commands.choices.items():
        sub.formatter_class = lambda prog: argparse.HelpFormatter(prog, max_help_position=26, width=82)
        parts.append(f"## {name}\n\n```text\n{sub.format_help().strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _benchmarks() -> str:
    """Return the benchmarks' own README."""
    return _without_local_links((ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8"))


def _notebooks() -> list[Path]:
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


def _notebook(path: Path) -> dict[str, str | bytes]:
    """Convert an executed notebook to a page, with its figures as files."""
    made: dict[str, str | bytes] = {}
    parts: list[str] = []
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            # Formulas become MathML, which browsers draw without a script.
            formula = re.compile(r"\$\$(.+?)\$\$", re.DOTALL)
            parts.append(formula.sub(lambda found: convert(found[1], display="block"), source))
            continue
        parts.append(f"```python\n{source}\n```")
        for place, output in enumerate(cell["outputs"]):
            data = output.get("data", {})
            kind = next((k for k in ("png", "jpeg") if f"image/{k}" in data), None)
            if kind:
                name = f"{path.stem}_{number}_{place}.{kind}"
                made[f"notebooks/{name}"] = base64.b64decode("".join(data[f"image/{kind}"]))
                parts.append(f"![output of the cell above]({name})")
            elif text := "".join(output.get("text", data.get("text/plain", ""))).rstrip():
                parts.append(f"```text\n{text}\n```")
    made[f"notebooks/{path.stem}.md"] = "\n\n".join(parts) + "\n"
    return made


def _families() -> str:
    """List every row of the registry by family."""
    import keras_residual.models  # noqa: F401  (registers every family)
    from keras_residual.registry import entries

    rows: dict[str, list[Any]] = {}
    for entry in entries().values():
        rows.setdefault(entry.builder.__module__, []).append(entry.config)
    parts = ["# Networks", 'Each name is a builder: `kr.ResNet50(...)`, or `kr.create("resnet50")` by timm\'s name.']
    for module, configs in rows.items():
        what = (importlib.import_module(module).__doc__ or "").strip().partition("\n")[0]
        name = module.rpartition(".")[2]
        lines = [f"## {FAMILIES.get(name, name)}", "", what, ""]
        lines += ["| builder | parameters | GMACs | timm | source |", "| --- | ---: | ---: | --- | --- |"]
        for row in configs:
            params = f"{row.params / 1e6:,.2f} M" if row.params else ""
            timm = f"`{row.timm}`" if row.timm else ""
            cells = (f"`{row.name}`", params, f"{row.gmacs:g}" if row.gmacs else "", timm, row.source)
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _builders() -> str:
    """Document the arguments of all builders, then those of each family, from the classes that document them."""
    import keras_residual.models  # noqa: F401
    from keras_residual.registry import entries

    families = {entry.family.__name__: entry.family.__module__ for entry in entries().values()}
    parts = [
        "# Builders",
        "A builder such as `kr.ResNet50` takes the arguments of all networks, described first, and those of its "
        "family. [All networks](../families.md).",
    ]
    families = {"Network": "keras_residual.models._network", **families}
    return (
        "\n\n".join(
            [
                *parts,
                *(
                    f"::: {module}.{name}\n    options:\n      show_root_full_path: false\n      members: false"
                    for name, module in families.items()
                ),
            ]
        )
        + "\n"
    )
