"""Diagnostics of residual networks: gradient flow, importance of blocks, broken skip connections, saliency maps.

Every function returns a result that prints as a table, has the table's `.rows`, and draws a figure with `.plot(path)`.
They work on any Functional Keras model, on TensorFlow and JAX.
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
