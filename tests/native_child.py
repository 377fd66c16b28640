"""Run by test_primitives.py: every convolution of the networks that are named, forward and backward, on TensorFlow.

oneDNN has crashed whole processes on some shapes (oneDNN #6035). Each case is named before it runs, so that the last
line tells what it was. Sizes are cut to `SIDE`, batches are 1 and 2.
"""

import sys
from concurrent.futures import ThreadPoolExecutor

import keras
import tensorflow as tf

from keras_residual import layers, models
from tests import tools

SIDE = 28
TOLD = ("kernel_size", "strides", "padding", "groups", "dilation_rate", "filters", "depth_multiplier", "use_bias")


def built(name):
    """The network without memory for its weights; in a thread of its own, or Keras would allocate them later."""

    def build():
        with keras.StatelessScope(initialize_variables=False):
            return models.create(name)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(build).result()


def cases(names):
    """Distinct convolutions: class, arguments, and the shape of the input without the batch."""
    found = {}
    for name in names:
        for layer in built(name).layers:
            if not isinstance(layer, (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.DepthwiseConv2D)):
                continue
            standardized = isinstance(layer, layers.StandardizedConv2D)  # the kernel differs, the convolution does not
            kind = layers.Conv2D if standardized else type(layer)
            arguments = {key: layer.get_config()[key] for key in TOLD if key in layer.get_config()}
            sizes = zip(layer.input.shape[1:-1], layer.kernel_size, strict=True)
            shape = (*(min(size, max(SIDE, kernel)) for size, kernel in sizes), layer.input.shape[-1])
            found.setdefault(f"{kind.__name__} {arguments} of {shape}", (kind, arguments, shape))
    return found


def reference(layer, x, kernel):
    """The layer in float64: a plain convolution for each group."""
    rank = len(layer.kernel_size)
    padding, form = layer.padding.upper(), ("NWC", "NHWC")[rank - 1]
    if isinstance(layer, keras.layers.DepthwiseConv2D):
        y = tf.nn.depthwise_conv2d(x, kernel, (1, *layer.strides, 1), padding)
    else:
        parts = zip(tf.split(x, layer.groups, -1), tf.split(kernel, layer.groups, -1), strict=True)
        y = [tf.nn.convolution(a, k, layer.strides, padding, form, layer.dilation_rate) for a, k in parts]
        y = tf.concat(y, -1)
    return y + tf.cast(layer.bias, "float64") if layer.use_bias else y


def errors(kind, arguments, shape, batch):
    """Relative differences of output, input gradient and kernel gradient from float64's."""
    layer = kind(**arguments)
    layer.build((None, *shape))
    tools.randomise(layer)
    x, kernel = tf.constant(tools.noise((batch, *shape))), layer.kernel.value
    wide = [tf.cast(x, "float64"), tf.cast(kernel, "float64")]
    found = []
    for by, function in (([x, kernel], lambda x, k: layer(x)), (wide, lambda x, k: reference(layer, x, k))):
        with tf.GradientTape() as tape:
            tape.watch(by)
            y = function(*by)
            loss = tf.reduce_sum(y * tf.cast(tools.noise(y.shape, 1), y.dtype))
        found.append((y, *tape.gradient(loss, by)))
    return [tools.distance(a, b) for a, b in zip(*found, strict=True)]


if __name__ == "__main__":
    for name, case in cases(sys.argv[1:]).items():
        for batch in (1, 2):
            print(f"batch {batch}: {name}", flush=True)
            far = errors(*case, batch)
            if max(far) > 1e-4:
                sys.exit(f"output, input gradient, kernel gradient are off by {far}")
