"""Residual networks for Keras and TensorFlow, correct by construction.

    import keras_residual as kr

    model = kr.ResNet18(classes=10)

Names load on first use, so `import keras_residual` (and `keras-residual --help`) do not wait for TensorFlow.
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

# TensorFlow turns oneDNN on by itself only where it finds AVX-512; on other x86 CPUs too it is up to twice as fast.
# Read when TensorFlow is imported, so it does nothing for those who imported it before, or set the variable.
if platform.machine().lower() in ("x86_64", "amd64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

# Where each public name lives. Builders are not listed: the registry knows them.
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
        if name == "load_weights":  # a model from a file may need its family's checkpoint formats
            importlib.import_module(f"{__name__}.models")
        module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
        value = module if _HOMES[name] == name else getattr(module, name)
    elif not name[0].isupper():  # builders are capitalised; the rest are submodules, found by the import system
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}. Builders are capitalised, as ResNet18: "
            f"{__name__}.list_models() lists them, {__name__}.create() knows timm's names."
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
    """Register every serializable class with Keras, so that `keras.saving.load_model` finds those of our models."""
    with contextlib.suppress(Exception):  # Keras must stay importable; whoever uses our layers sees the error
        importlib.import_module(f"{__name__}.weights")  # imports `layers`, too: no other module has such classes


class _AfterKeras:
    """A finder that registers our layers as soon as somebody imports Keras, since importing it here would take seconds.

    Keras looks classes up in its own table and never imports a module of ours for a name that is not there.
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
