"""Image bytes to pixels, by one set of rules: `host` for training and `predict`, `graph` inside an exported model."""

from keras_residual.reading.host import UnreadableError, decode

__all__ = ["UnreadableError", "decode"]
