import os

import keras_residual  # noqa: F401  (turns oneDNN on, here and in child processes, before TensorFlow is imported)

# What TensorFlow sees here, and must see in child processes whose numbers are compared with ours.
GIVEN = dict(os.environ)
