"""Networks with one planted fault each, and similar healthy networks, for the tests of check_residual."""

import keras
from keras import ops

import keras_residual as kr
from keras_residual import blocks

L = keras.layers


def conv_norm(x, filters, stride=1, activation="relu"):
    x = L.Conv2D(filters, 3, stride, padding="same", use_bias=False)(x)
    x = L.BatchNormalization()(x)
    return L.Activation(activation)(x) if activation else x


def branch(x, filters=16, stride=1):
    return conv_norm(conv_norm(x, filters, stride), filters, activation=None)


def block(x):
    return L.ReLU()(L.Add()([x, branch(x)]))


def stem(size=16, filters=16):
    inputs = keras.Input((size, size, 3))
    return inputs, conv_norm(inputs, filters)


def head(inputs, x):
    return keras.Model(inputs, L.Dense(10)(L.GlobalAveragePooling2D()(x)))


def altered(model, change):
    """Copy a network of another library, with calls replaced by `change(layer, arguments)`."""

    def call(layer, *args, **kwargs):
        changed = change(layer, *args)
        return layer(*args, **kwargs) if changed is None else changed

    return keras.models.clone_model(model, call_function=call)


# ------------------------------------------------------------------------------------------------------------- faults


def cropped_shortcut():
    """A stride without a projection, "fixed" by cropping the shortcut."""
    inputs, x = stem()
    x = block(x)
    x = L.Add()([L.Cropping2D(4, name="here")(x), branch(x, stride=2)])
    return head(inputs, x), "misaligned shortcut"


def sliced_shortcut():
    inputs, x = stem()
    x = L.Add(name="sum")([x[:, :8, :8], branch(x, stride=2)])
    return head(inputs, x), "misaligned shortcut"


def activated_shortcut():
    """keras.applications' ResNet50 with a ReLU after each projection."""

    def change(layer, *args):
        if layer.name == "conv3_block1_0_bn":
            return L.ReLU(name="here")(layer(*args))

    return altered(keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), include_top=False), change), (
        "activation on the shortcut"
    )


def activated_identity():
    inputs, x = stem()
    x = block(x)
    x = L.BatchNormalization()(x)
    x = L.Add()([L.Activation("relu", name="here")(x), branch(x)])
    return head(inputs, x), "activation on the shortcut"


def added_to_itself():
    """MobileNetV2 with an addition of a tensor to itself."""

    def change(layer, *args):
        if layer.name == "block_4_add":
            return L.Add(name="here")([args[0][0], args[0][0]])

    return altered(keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), alpha=0.35), change), (
        "tensor added to itself"
    )


def operator_added_to_itself():
    inputs, x = stem()
    x = block(x)
    return head(inputs, block(x + x)), "tensor added to itself"


def skip_past_nothing():
    inputs, x = stem()
    x = block(x)
    x = L.Add(name="here")([x, L.Dropout(0.1)(L.Activation("linear")(x))])
    return head(inputs, x), "missing branch"


def linear_branch():
    """The single-convolution block of many tutorials, which is one linear layer."""
    inputs, x = stem()
    for i in range(2):
        y = L.BatchNormalization()(L.Conv2D(16, 3, padding="same", name="here" if not i else None)(x))
        x = L.ReLU()(L.Add()([x, y]))
    return head(inputs, x), "linear branch"


def dead_branch():
    inputs, x = stem()
    x = L.Add()([x, L.Rescaling(0.0, name="here")(branch(x))])
    return head(inputs, x), "dead branch"


def detached_branch():
    inputs, x = stem()
    x = L.Add()([x, ops.stop_gradient(branch(x))])
    return head(inputs, x), "detached branch"


def hidden_detached_branch():
    inputs, x = stem()
    x = L.Add()([x, L.Lambda(lambda t: ops.stop_gradient(t), name="here")(branch(x))])
    return head(inputs, x), "detached branch"


def frozen_branch():
    """A network of this package with a frozen block in its middle."""
    model = kr.ResNet20(input_shape=(16, 16, 3))
    for layer in model.layers:
        if layer.name.startswith("layer2.1."):
            layer.trainable = False
    return model, "frozen branch"


def halved_shortcut():
    """EfficientNetB0 with one shortcut multiplied by 0.5."""

    def change(layer, *args):
        if layer.name == "block4b_add":
            y, x = args[0]
            return layer([y, L.Rescaling(0.5, name="here")(x)])

    return altered(keras.applications.EfficientNetB0(weights=None, input_shape=(32, 32, 3)), change), (
        "scaled shortcut"
    )


def averaged():
    inputs, x = stem()
    x = L.Average(name="here")([x, branch(x)])
    return head(inputs, block(x)), "scaled shortcut"


def subtracted():
    inputs, x = stem()
    return head(inputs, block(branch(x) - x)), "scaled shortcut"


def two_branches():
    inputs, x = stem()
    x = L.Add(name="here")([branch(block(x)), branch(x)])
    return head(inputs, x), "no shortcut"


def growing_stream():
    """ResNet50 without batch normalisations, with the usual initialization of ResNets."""
    inputs, x = stem()
    for i in range(9):
        y = x
        for j in range(2):
            y = L.Conv2D(16, 3, padding="same", kernel_initializer="he_normal", name="here" if i == 0 and j else None)(
                y
            )
            y = y if j else L.ReLU()(y)
        x = L.Add()([x, y])
    return head(inputs, x), "growing stream"


def concatenated():
    inputs, x = stem()
    x = block(block(x))
    x = L.Concatenate(name="here")([x, branch(x)])
    return head(inputs, L.ReLU()(x)), "concatenation instead of addition"


def activated_stream():
    """A pre-activation network that activates its sums as well."""
    inputs, x = stem()
    for _ in range(3):
        x = L.ReLU()(L.Add()([x, L.Conv2D(16, 3, padding="same")(L.ReLU()(L.BatchNormalization()(x)))]))
    return head(inputs, x), "activation on the stream"


def activated_resnet_v2():
    """A pre-activation ResNet of this package with one activated sum."""

    def change(layer, *args):
        if layer.name == "stages.1.blocks.0.add":
            return L.ReLU(name="here")(layer(*args))

    entry = kr.models.find("ResNetV2_18")
    return altered(entry.build(entry.config.tiny()), change), "activation on the stream"


def dropped_shortcut():
    def change(layer, *args):
        if layer.name == "layer1.1.add":
            return layer([L.Dropout(0.2, name="here")(args[0][0]), args[0][1]])

    return altered(kr.ResNet20(input_shape=(16, 16, 3)), change), "dropout on the shortcut"


def projected_everywhere():
    inputs, x = stem()
    for _ in range(3):
        shortcut = L.BatchNormalization()(L.Conv2D(16, 1, use_bias=False)(x))
        x = L.ReLU()(L.Add()([shortcut, branch(x)]))
    return head(inputs, x), "unnecessary projection"


def positive_branch():
    """A Transformer block of the tutorials whose MLP ends in a ReLU."""
    inputs = keras.Input((12, 16))
    x = inputs
    for i in range(2):
        y = L.LayerNormalization()(x)
        x = x + L.MultiHeadAttention(2, 8)(y, y)
        y = L.Dense(32, "gelu")(L.LayerNormalization()(x))
        x = x + L.Dense(16, "relu", name="here" if not i else None)(y)
    return keras.Model(inputs, L.Dense(3)(x[:, 0])), "non-negative branch"


def normalised_shortcut():
    inputs, x = stem()
    x = L.Add()([L.BatchNormalization(name="here")(x), branch(x)])
    return head(inputs, x), "normalisation on the shortcut"


def broadcast_channels():
    inputs, x = stem()
    x = L.Add(name="here")([x, branch(x, filters=1)])
    return head(inputs, x), "broadcast channels"


def nested_fault():
    """A fault in a doubly nested model."""
    inner = keras.Input((16, 16, 16))
    backbone = keras.Model(inner, L.Add()([L.Rescaling(0.5, name="here")(inner), branch(inner)]), name="inner")
    middle = keras.Input((16, 16, 16))
    outer = keras.Sequential([keras.Input((16, 16, 16)), backbone, L.ReLU()], name="outer")
    wrapped = keras.Model(middle, outer(middle), name="wrapped")
    inputs, x = stem()
    return head(inputs, wrapped(x)), "scaled shortcut"


def added_within():
    """x + (x + F(x))."""
    inputs, x = stem()
    y = L.Add()([x, branch(x)])
    return head(inputs, block(L.ReLU()(L.Add(name="here")([x, y])))), "shortcut added twice"


def added_beside():
    inputs, x = stem()
    return head(inputs, block(L.Add(name="here")([x, branch(x), x]))), "shortcut added twice"


def reshaped_shortcut():
    """A stride whose shapes are "fixed" by a reshape."""
    inputs, x = stem()
    x = L.Add()([L.Reshape((8, 8, 64), name="here")(x), branch(x, 64, stride=2)])
    return head(inputs, x), "misaligned shortcut"


def centre_of_the_shortcut():
    inputs, x = stem()
    x = L.Add()([L.CenterCrop(8, 8, name="here")(x), branch(x, stride=2)])
    return head(inputs, x), "misaligned shortcut"


def one_axis_cropped():
    """A shortcut pooled along the height and cropped along the width."""
    inputs, x = stem()
    x = L.Add()([L.MaxPooling2D((2, 1), (2, 1))(x)[:, :, :8], branch(x, stride=2)])
    return head(inputs, x), "misaligned shortcut"


def pooled_to_a_point():
    inputs, x = stem()
    x = L.Add(name="here")([L.GlobalAveragePooling2D(keepdims=True)(x), branch(x)])
    return head(inputs, x), "broadcast positions"


def dropped_stream():
    """A Transformer with dropout on the sums instead of the branches."""
    inputs = keras.Input((12, 16))
    x = inputs
    for i in range(3):
        y = L.Dense(16)(L.Dense(32, "gelu")(L.LayerNormalization()(x)))
        x = L.Dropout(0.1, name=None if i else "here")(x + y)
    return keras.Model(inputs, L.Dense(3)(x[:, 0])), "dropout on the stream"


def activated_beside_two_branches():
    """Parallel attention and MLP, and a ReLU on the stream, whose input is also used elsewhere."""
    inputs = keras.Input((12, 16))
    x = block_input = L.Dense(16)(inputs)
    y = L.LayerNormalization()(x)
    x = L.Add()([L.ReLU(name="here")(x), L.MultiHeadAttention(2, 8)(y, y), L.Dense(16)(L.Dense(32, "gelu")(y))])
    return keras.Model(inputs, L.Dense(3)(L.Concatenate()([x, block_input]))), "activation on the shortcut"


FAULTS = [
    cropped_shortcut,
    sliced_shortcut,
    activated_shortcut,
    activated_identity,
    added_to_itself,
    operator_added_to_itself,
    skip_past_nothing,
    linear_branch,
    dead_branch,
    detached_branch,
    hidden_detached_branch,
    frozen_branch,
    halved_shortcut,
    averaged,
    subtracted,
    two_branches,
    growing_stream,
    concatenated,
    activated_stream,
    activated_resnet_v2,
    dropped_shortcut,
    projected_everywhere,
    positive_branch,
    normalised_shortcut,
    broadcast_channels,
    nested_fault,
    added_within,
    added_beside,
    reshaped_shortcut,
    centre_of_the_shortcut,
    one_axis_cropped,
    pooled_to_a_point,
    dropped_stream,
    activated_beside_two_branches,
]


# ------------------------------------------------------------------------------------------------------------ healthy


def frozen_backbone():
    """A fine-tuned network, intentionally frozen up to a block."""
    model = kr.ResNet20(input_shape=(16, 16, 3))
    for layer in model.layers:
        layer.trainable = not layer.name.startswith(("conv1", "bn1", "layer1", "layer2"))
    return model


def densely_connected():
    """Intended concatenations (Huang et al. 2017)."""
    inputs, x = stem()
    for _ in range(3):
        x = L.Concatenate()([x, branch(x)])
    return head(inputs, x)


def u_net():
    """Long skips by concatenation, short ones by addition (Ronneberger et al. 2015; He et al. 2016)."""
    inputs, x = stem()
    high = block(x)
    low = block(conv_norm(high, 16, stride=2))
    x = L.Concatenate()([high, L.UpSampling2D()(low)])
    return keras.Model(inputs, L.Conv2D(2, 1)(conv_norm(x, 16)))


def linknet():
    """A long additive skip across encoder and decoder (Chaurasia & Culurciello 2017)."""
    inputs, x = stem()
    low = block(conv_norm(x, 16, stride=2))
    up = L.BatchNormalization()(L.Conv2DTranspose(16, 3, 2, padding="same")(low))
    return keras.Model(inputs, L.Conv2D(2, 1)(L.ReLU()(L.Add()([x, up]))))


def squeeze_excite():
    inputs, x = stem()
    return head(inputs, L.ReLU()(L.Add()([x, blocks.squeeze_excite(branch(x))])))


def magnitude_preserving():
    """(x + F(x)) / sqrt(2) keeps the variance (Karras et al. 2020, 2024)."""
    inputs, x = stem()
    return head(inputs, L.Rescaling(0.5**0.5)(x) + L.Rescaling(0.5**0.5)(branch(x)))


def small_branch():
    """Scaled branches instead of norms (Lim et al. 2017, EDSR)."""
    inputs, x = stem()
    for _ in range(12):
        y = L.Conv2D(16, 3, padding="same")(L.ReLU()(L.Conv2D(16, 3, padding="same")(x)))
        x = L.Add()([x, L.Rescaling(0.1)(y)])
    return head(inputs, x)


def feature_pyramid():
    """Additions across resolutions (Lin et al. 2017)."""
    inputs, c2 = stem()
    c3 = conv_norm(conv_norm(c2, 32, stride=2), 32)
    p3 = L.Conv2D(16, 1)(c3)
    p2 = L.Add()([L.UpSampling2D()(p3), L.Conv2D(16, 1)(c2)])
    return keras.Model(inputs, [L.Conv2D(16, 3)(p2), L.Conv2D(16, 3)(p3)])


def post_norm_transformer():
    """Tokens and positions added, then post-norm blocks (Vaswani et al. 2017)."""
    tokens = keras.Input((12,), dtype="int32")
    x = L.Embedding(20, 16)(tokens) + L.Embedding(12, 16)(ops.cumsum(ops.ones_like(tokens), 1) - 1)
    for _ in range(2):
        x = L.LayerNormalization()(x + L.Dropout(0.1)(L.MultiHeadAttention(2, 8)(x, x)))
        x = L.LayerNormalization()(x + L.Dense(16)(L.Dense(32, "relu")(x)))
    return keras.Model(tokens, L.Dense(2)(x[:, 0]))


def unbatched():
    """Option A of He et al. 2016: a slice that subsamples, and zeros for the new channels."""
    inputs, x = stem()
    y = branch(x, 32, stride=2)
    return head(inputs, L.Add()([ops.pad(x[:, ::2, ::2], [(0, 0), (0, 0), (0, 0), (8, 8)]), y]))


def mixed_precision():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return kr.ResNet20(input_shape=(16, 16, 3))
    finally:
        keras.config.set_dtype_policy(policy)


class Branch(L.Layer):
    """A branch without a graph."""

    def build(self, shape):
        self.convolutions = [L.Conv2D(shape[-1], 3, padding="same") for _ in range(2)]
        self.norms = [L.BatchNormalization() for _ in range(2)]
        for layer in (*self.convolutions, *self.norms):
            layer.build(shape)

    def call(self, x, training=False):
        x = ops.relu(self.norms[0](self.convolutions[0](x), training=training))
        return self.norms[1](self.convolutions[1](x), training=training)


def branch_in_one_layer():
    inputs, x = stem()
    return head(inputs, L.ReLU()(x + Branch()(x)))


class Positions(L.Layer):
    """Position embeddings like KerasHub's, which use only the shape of the input."""

    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="zeros")

    def call(self, x):
        return ops.broadcast_to(self.table, ops.shape(x))


def positions_added():
    inputs = keras.Input((12, 16))
    x = L.Dense(16)(inputs)
    x = x + Positions()(x)
    y = L.LayerNormalization()(x)
    return keras.Model(inputs, L.Dense(3)((x + L.MultiHeadAttention(2, 8)(y, y))[:, 0]))


def two_views():
    """One network applied to an image and to its mirror image."""
    inputs = keras.Input((16, 16, 3))
    middle, x = stem()
    encoder = keras.Model(middle, L.GlobalAveragePooling2D()(block(x)))
    return keras.Model(inputs, L.Dense(3)(L.Add()([encoder(inputs), encoder(inputs[:, :, ::-1])])))


def two_streams():
    """The sum of two encoders of one image."""
    inputs = keras.Input((16, 16, 3))
    return head(inputs, L.Add()([branch(L.Rescaling(2.0)(inputs)), branch(inputs)]))


def hourglass():
    """Blocks on both paths of an hourglass (Newell et al. 2016)."""
    inputs, x = stem()
    low = block(L.MaxPooling2D()(x))
    return keras.Model(inputs, L.Conv2D(2, 1)(L.Add()([block(x), L.UpSampling2D()(low)])))


def global_context():
    """A branch with one position, broadcast to all (Cao et al. 2019)."""
    inputs, x = stem()
    y = L.LayerNormalization()(L.Conv2D(4, 1)(L.GlobalAveragePooling2D(keepdims=True)(x)))
    return head(inputs, block(x + L.Conv2D(16, 1)(L.ReLU()(y))))


def residual_in_residual():
    """Nested blocks, each scaled by 0.2 (Wang et al. 2018, ESRGAN): the sum contains the input 1.2 times."""
    inputs, x = stem()
    for _ in range(2):
        y = x
        for _ in range(3):
            y = y + 0.2 * L.Conv2D(16, 3, padding="same")(L.Conv2D(16, 3, padding="same", activation="relu")(y))
        x = x + 0.2 * y
    return head(inputs, x)


def features_of_the_stream():
    """A U-Net on the inputs of residual blocks, which therefore also bypass the blocks."""
    model = kr.ResNet20(input_shape=(16, 16, 3), include_top=False)
    low, high = model.get_layer("layer2").output, model.get_layer("layer1").output
    x = L.Concatenate()([L.UpSampling2D()(low), high])
    x = L.Concatenate()([x, L.UpSampling2D(4)(model.output)])
    return keras.Model(model.input, L.Conv2D(2, 1)(x))


def dropout_between_stages():
    inputs, x = stem()
    x = L.SpatialDropout2D(0.1)(block(block(x)))
    return head(inputs, L.Dropout(0.3)(block(block(x))))


HEALTHY = [
    frozen_backbone,
    densely_connected,
    u_net,
    linknet,
    squeeze_excite,
    magnitude_preserving,
    small_branch,
    feature_pyramid,
    post_norm_transformer,
    unbatched,
    mixed_precision,
    branch_in_one_layer,
    positions_added,
    two_views,
    two_streams,
    hourglass,
    global_context,
    residual_in_residual,
    features_of_the_stream,
    dropout_between_stages,
]
