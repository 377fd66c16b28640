"""Loading, saving and converting weights by their names in timm's state dict."""

from keras_residual.weights.files import WeightsError
from keras_residual.weights.layout import Slot, slots
from keras_residual.weights.load import Adapt, Report, load_weights, save_weights
from keras_residual.weights.preprocessing import Preprocess, preprocessing
from keras_residual.weights.sources import Weights

__all__ = [
    "Adapt",
    "Preprocess",
    "Report",
    "Slot",
    "Weights",
    "WeightsError",
    "load_weights",
    "preprocessing",
    "save_weights",
    "slots",
]
