"""Training on one's own data: recipes, the compiled step, averages, resume, many devices."""

from keras_residual.training.checkpoint import CheckpointError, ResumeError
from keras_residual.training.decide import Decision, best_precision, compiled_hlo, decide
from keras_residual.training.distributed import mirrored, start
from keras_residual.training.fit import History, fit, prepare
from keras_residual.training.preview import first_images
from keras_residual.training.recipes import RECIPES, Recipe, recipe
from keras_residual.training.settings import Checkpointing, Execution, Selection
from keras_residual.training.state import NonFiniteError

__all__ = [
    "RECIPES",
    "CheckpointError",
    "Checkpointing",
    "Decision",
    "Execution",
    "History",
    "NonFiniteError",
    "Recipe",
    "ResumeError",
    "Selection",
    "best_precision",
    "compiled_hlo",
    "decide",
    "first_images",
    "fit",
    "mirrored",
    "prepare",
    "recipe",
    "start",
]
