"""Turn folders of images, manifests, TFDS datasets and arrays into checked, fast, repeatable `tf.data` pipelines."""

from keras_residual.data.examples import Examples
from keras_residual.data.loading import Data, DataError, load
from keras_residual.reading import UnreadableError, decode

__all__ = ["Data", "DataError", "Examples", "UnreadableError", "decode", "load"]
