"""Residual networks for Keras and TensorFlow.

    import keras_residual as kr

    model = kr.ResNet18(classes=10)

Submodules are imported on first use, so `import keras_residual` and `keras-residual --help` do not load TensorFlow.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from keras_residual import blocks, data, diagnostics, layers, models, registry, training, weights
    from keras_residual.classifier import Classifier
    from keras_residual.exporting import export
    from keras_residual.finetuning import finetune
    from keras_residual.folding import fold_batch_norm
    from keras_residual.models import create, features, list_models
    from keras_residual.models._families import *
    from keras_residual.models.pretrained import from_pretrained
    from keras_residual.training import Recipe, fit
    from keras_residual.weights import load_weights, preprocessing, save_weights

# TensorFlow enables oneDNN by default only on CPUs with AVX-512, although it is up to twice as fast on other x86 CPUs.
# TensorFlow reads the variable when it is imported; a value set by the user is kept.
if platform.machine().lower() in ("x86_64", "amd64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# Submodule of each public name. Builders are looked up in the registry instead.
_HOMES = {
    "Classifier": "classifier",
    "Recipe": "training",
    "blocks": "blocks",
    "create": "models",
    "data": "data",
    "diagnostics": "diagnostics",
    "export": "exporting",
    "features": "models",
    "finetune": "finetuning",
    "fit": "training",
    "fold_batch_norm": "folding",
    "from_pretrained": "models.pretrained",
    "layers": "layers",
    "list_models": "models",
    "load_weights": "weights",
    "models": "models",
    "preprocessing": "weights.preprocessing",
    "registry": "registry",
    "save_weights": "weights",
    "training": "training",
    "weights": "weights",
}

__all__ = ["__version__", *_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        if name == "load_weights":  # registers the families, whose checkpoint formats a model from a file may need
            importlib.import_module(f"{__name__}.models")
        module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
        value = module if _HOMES[name] == name else getattr(module, name)
    elif not name[0].isupper():  # not a builder
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}. Names of builders are capitalised, such as ResNet18; "
            f"{__name__}.list_models() lists them, and {__name__}.create() also accepts timm's names."
        )
    else:
        importlib.import_module(f"{__name__}.models")
        from keras_residual.registry import entries, nearest

        if name not in entries():
            near = f" Nearest: {', '.join(nearest(name))}." if nearest(name) else ""
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}.{near}")
        value = entries()[name].builder
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    importlib.import_module(f"{__name__}.models")
    from keras_residual.registry import entries

    return sorted({*__all__, *entries()})


def _register_layers() -> None:
    """Register all serializable classes with Keras, so that `keras.saving.load_model` can load our models."""
    with contextlib.suppress(Exception):  # Keras must stay importable; using the layers raises the error again
        importlib.import_module(f"{__name__}.weights")  # also imports `layers`; no other module has such classes


class _AfterKeras:
    """Import hook that registers this package's layers after Keras is imported, since importing Keras takes seconds.

    Keras finds registered classes only, and does not import this package to look for a class.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "keras":
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, found), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _register_layers()

            spec.loader.exec_module = exec_module
        return spec


if "keras" in sys.modules:
    _register_layers()
else:
    sys.meta_path.insert(0, _AfterKeras())
