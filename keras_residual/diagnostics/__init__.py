"""Looking into residual networks: how gradients flow, what each block does, and whether its skip is one.

Every function returns a result that prints as a table, keeps its `.rows`, and draws itself with `.plot(path)`. They
work on the graph of any Functional Keras model, on TensorFlow and on JAX.
"""

from keras_residual.diagnostics.check import Check, Fault, check_residual
from keras_residual.diagnostics.flow import GradientFlow, gradient_flow
from keras_residual.diagnostics.maps import ImageMaps, attention_rollout, grad_cam
from keras_residual.diagnostics.prune import Pruned, prune_blocks
from keras_residual.diagnostics.report import ResidualReport, residual_report
from keras_residual.diagnostics.result import Result

__all__ = [
    "Check",
    "Fault",
    "GradientFlow",
    "ImageMaps",
    "Pruned",
    "ResidualReport",
    "Result",
    "attention_rollout",
    "check_residual",
    "grad_cam",
    "gradient_flow",
    "prune_blocks",
    "residual_report",
]
