import os

# What TensorFlow sees here. keras_residual adds to it (oneDNN), too late for this process, but not for its children.
GIVEN = dict(os.environ)
