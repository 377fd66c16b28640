"""The command line, one module per command. Commands import what they need when they run: help loads no TensorFlow."""

from keras_residual.cli._main import main, parser

__all__ = ["main", "parser"]
