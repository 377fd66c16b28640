"""Decode images by one set of rules: in `host` for training and `predict`, in `graph` inside exported models."""

from keras_residual.reading.host import UnreadableError, decode

__all__ = ["UnreadableError", "decode"]
