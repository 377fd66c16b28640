"""Weights by name: one rule per layer type ties every variable to its key in timm's state dict."""

from keras_residual.weights.files import Report, load_weights, save_weights
from keras_residual.weights.layout import Slot, slots

__all__ = ["Report", "Slot", "load_weights", "save_weights", "slots"]
