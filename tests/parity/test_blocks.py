"""Building blocks against timm's and torch's modules: weights go over by name, sizes are odd, even and unknown."""

import functools

import keras
import numpy as np
import pytest
import torch
from timm import layers as timm_layers
from timm.models import _efficientnet_blocks
from torch import nn

import keras_residual as kr
from keras_residual import blocks

from . import reference

SIZES = ((12, 12), (13, 11), (7, 10))


def distance(module, function, sizes=SIZES, channels=16):
    """The largest distance of `function(x)` from a torch module, at sizes known and unknown beforehand."""
    reference.randomise(module)
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    found = []
    for shape in ((None, None), *sizes):
        inputs = keras.Input((*shape, channels))
        model = keras.Model(inputs, function(inputs))
        if state:
            kr.load_weights(model, state)
        for size in sizes if shape[0] is None else (shape,):
            x = reference.images(size, channels)
            with torch.no_grad():
                expected = np.moveaxis(module(reference.to_torch(x)).numpy(), 1, -1)
            ours = np.asarray(model(x, training=False))
            assert ours.shape == expected.shape
            assert all(a in (None, b) for a, b in zip(model.output_shape, ours.shape, strict=True))
            found.append(reference.distance(ours, expected))
    return max(found)


class Named(nn.Sequential):
    """Modules one after the other, by name."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


# ------------------------------------------------------------------------------------------------------ convolutions


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 5, (1, 7), (7, 1)], ids=str)
@pytest.mark.parametrize(("filters", "groups"), [(24, 1), (16, 16), (32, 4)], ids=["full", "depthwise", "grouped"])
def test_same_padding(kernel, stride, filters, groups):
    """`Conv2dSame`: the `tf_` rows of efficientnet and mobilenetv3, xception, mixnet."""
    theirs = timm_layers.create_conv2d(
        16, filters, kernel, stride=stride, groups=groups, padding="same", bias=groups > 1
    )
    options = {"stride": stride, "groups": groups, "padding": "same", "bias": groups > 1}
    ours = functools.partial(blocks.convolution, filters=filters, kernel=kernel, name="conv", **options)
    assert distance(Named(conv=theirs), ours) < 1e-5


@pytest.mark.parametrize("kernel", [2, 3, 5])
@pytest.mark.parametrize("groups", [1, 16])
def test_same_padding_of_dilated_kernels(kernel, groups):
    theirs = timm_layers.create_conv2d(16, 16, kernel, dilation=2, groups=groups, padding="same", bias=True)
    ours = functools.partial(
        blocks.convolution, filters=16, kernel=kernel, dilation=2, groups=groups, padding="same", name="conv"
    )
    assert distance(Named(conv=theirs), ours) < 1e-5


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "padding", "theirs"),
    [
        (3, 1, 1, None, 1),
        (3, 2, 1, None, 1),
        (5, 2, 1, None, 2),
        (3, 1, 2, None, 2),
        ((1, 7), 1, 1, None, (0, 3)),  # inception_resnet_v2
        ((7, 1), 2, 1, None, (3, 0)),
        ((1, 5), 1, 1, None, (0, 2)),  # ghostnetv2
        (6, 2, 1, 2, 2),  # cspnet's focus stem
        (2, 1, 1, "valid", 0),
        (3, 2, 1, "valid", 0),  # inception_resnet_v2, xception
        (3, 1, 1, 0, 0),
    ],
)
@pytest.mark.parametrize("groups", [1, 16])
def test_torch_padding(kernel, stride, dilation, padding, theirs, groups):
    conv = nn.Conv2d(16, 16, kernel, stride, theirs, dilation, groups)
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    ours = functools.partial(blocks.convolution, filters=16, kernel=kernel, name="conv", **options)
    assert distance(Named(conv=conv), ours) < 1e-5


def test_padding_right_and_bottom():
    """hgnet's stem: zeros after the last row and column, before convolutions of 2x2."""
    theirs = Named(pad=nn.ZeroPad2d((0, 1, 0, 1)), conv=nn.Conv2d(16, 8, 2))
    ours = functools.partial(blocks.convolution, filters=8, kernel=2, padding=((0, 1), (0, 1)), name="conv")
    assert distance(theirs, ours) < 1e-5
    theirs = Named(pad=nn.ZeroPad2d((3, 0, 1, 2)), conv=nn.Conv2d(16, 16, 3, 2, groups=16, bias=False))
    ours = functools.partial(blocks.depthwise, kernel=3, stride=2, bias=False, padding=((1, 2), (3, 0)), name="conv")
    assert distance(theirs, ours) < 1e-5


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_depthwise(stride, bias):
    theirs = nn.Conv2d(16, 16, 3, stride, 1, groups=16, bias=bias)
    ours = functools.partial(blocks.depthwise, kernel=3, stride=stride, bias=bias, name="conv")
    assert distance(Named(conv=theirs), ours) < 1e-5


# ----------------------------------------------------------------------------------------------------------- pooling


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        # senet, vovnet
        (nn.MaxPool2d(3, 2, ceil_mode=True), functools.partial(blocks.max_pool, padding="valid", ceil=True)),
        (nn.MaxPool2d(2, 2, ceil_mode=True), functools.partial(blocks.max_pool, size=2, padding="valid", ceil=True)),
        (nn.MaxPool2d(3, 2), functools.partial(blocks.max_pool, padding="valid")),  # inception_resnet_v2
        (nn.MaxPool2d(3, 2, 1), blocks.max_pool),
        (nn.MaxPool2d(3, 1, 1), functools.partial(blocks.max_pool, stride=1)),  # cspnet, densenet
        (nn.MaxPool2d(2), functools.partial(blocks.max_pool, size=2)),  # byobnet, dla
        # hgnet: zeros compete
        (
            Named(pad=nn.ZeroPad2d((0, 1, 0, 1)), pool=nn.MaxPool2d(2, 1, ceil_mode=True)),
            lambda x, name: blocks.max_pool(
                blocks.pad(x, ((0, 1), (0, 1)), name="pad"), 2, 1, padding="valid", name=name
            ),
        ),
        # resnetv2 with stem_type "same"
        (timm_layers.create_pool2d("max", 3, 2, padding="same"), functools.partial(blocks.max_pool, padding="same")),
        (
            timm_layers.create_pool2d("max", 2, 2, padding="same"),
            functools.partial(blocks.max_pool, size=2, padding="same"),
        ),
        # ResNet-D and its kin: regnet, byobnet, nfnet, tresnet
        (
            nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
            functools.partial(blocks.average_pool, padding="same"),
        ),
        (nn.AvgPool2d(2), blocks.average_pool),  # densenet, ghostnetv2
        # dla, res2net, resnest: padding counts
        (nn.AvgPool2d(3, 2, 1), functools.partial(blocks.average_pool, size=3, padding=1)),
        (nn.AvgPool2d(3, 1, 1), functools.partial(blocks.average_pool, size=3, stride=1, padding=1)),
        # inception_resnet_v2: padding does not count
        (
            nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            functools.partial(blocks.average_pool, size=3, stride=1, padding="same"),
        ),
    ],
    ids=map(str, range(14)),  # the functions' names have addresses in them, which differ between workers
)
def test_pooling(theirs, ours):
    assert distance(theirs, functools.partial(ours, name="pool")) < 1e-6


# ------------------------------------------------------------------------------------------------------------- blocks


def efficientnet_se(x, channels, *, name, share=0.25, activation="silu", gate="sigmoid"):
    """EfficientNet's: a share of the block's input channels, plainly rounded."""
    names = ("conv_reduce", "conv_expand")
    reduced = round(channels * share)
    return blocks.squeeze_excite(x, reduced=reduced, activation=activation, gate=gate, names=names, name=name)


def se_layer(expansion, gate=nn.Sigmoid):
    return functools.partial(_efficientnet_blocks.SqueezeExcite, rd_ratio=0.25 / expansion, gate_layer=gate)


tf_norm = functools.partial(nn.BatchNorm2d, eps=1e-3)
TF = {"norm": functools.partial(blocks.batch_norm, epsilon=1e-3), "padding": "same"}

SHAPES = [
    {"stride": 1, "out_chs": 16, "dw_kernel_size": 3},
    {"stride": 1, "out_chs": 24, "dw_kernel_size": 5},
    {"stride": 2, "out_chs": 16, "dw_kernel_size": 3},
    {"stride": 2, "out_chs": 24, "dw_kernel_size": 5},
]


MOBILE = [(kind, shape, tensorflow) for kind in ("ds", "ir", "er") for shape in SHAPES for tensorflow in (False, True)]
MOBILE += [(k, SHAPES[0], False) for k in ("dsa", "ir without se", "ir noskip", "er by groups", "er noskip")]


@pytest.mark.parametrize(("kind", "shape", "tensorflow"), MOBILE, ids=str)
def test_mobile_blocks(kind, shape, tensorflow):
    """efficientnet, mobilenetv3: torch's and TensorFlow's padding and epsilon, each rule of the skip."""
    given = {"act_layer": nn.SiLU, "in_chs": 16, **shape}
    ours = {"activation": "silu", "filters": shape["out_chs"], "stride": shape["stride"]}
    ours["kernel"] = shape["dw_kernel_size"]
    if tensorflow:
        given |= {"pad_type": "same", "norm_layer": tf_norm}
        ours |= TF
    if "noskip" in kind or kind == "dsa":
        given["noskip"], ours["skip"] = True, False
    if kind.startswith("ds"):
        given |= {"se_layer": se_layer(1), "pw_act": kind == "dsa"}
        ours |= {"se": efficientnet_se, "pointwise_activation": kind == "dsa"}
        theirs, block = _efficientnet_blocks.DepthwiseSeparableConv, blocks.depthwise_separable
    elif kind.startswith("ir"):
        given["exp_ratio"] = ours["expansion"] = 3.6  # 57.6 channels, rounded to 56
        if kind != "ir without se":
            given["se_layer"], ours["se"] = se_layer(3.6), efficientnet_se
        theirs, block = _efficientnet_blocks.InvertedResidual, blocks.inverted_residual
    else:
        given["exp_ratio"] = ours["expansion"] = 4
        given |= {"exp_kernel_size": given.pop("dw_kernel_size"), "se_layer": se_layer(4)}
        ours["se"] = efficientnet_se
        if kind == "er by groups":
            given["group_size"] = ours["group_size"] = 16
        theirs, block = _efficientnet_blocks.EdgeResidual, blocks.edge_residual
    twin = Named(block=theirs(**given))
    assert twin.block.has_skip == (shape["stride"] == 1 and shape["out_chs"] == 16 and not given.get("noskip", False))
    assert distance(twin, functools.partial(block, name="block", **ours), sizes=((12, 12), (13, 11))) < 1e-5


def test_hard_gates():
    """mobilenetv3: ReLU within a gate of hard sigmoid, whose width is a quarter of the expanded channels, by eights."""

    def se(x, channels, *, name):
        names = ("conv_reduce", "conv_expand")
        return blocks.squeeze_excite(x, ratio=0.25, gate="hard_sigmoid", names=names, name=name)

    module = functools.partial(
        _efficientnet_blocks.SqueezeExcite,
        rd_ratio=0.25,
        rd_round_fn=functools.partial(timm_layers.make_divisible, divisor=8, round_limit=0),
        force_act_layer=nn.ReLU,
        gate_layer=timm_layers.get_act_layer("hard_sigmoid"),
    )
    twin = _efficientnet_blocks.InvertedResidual(16, 16, exp_ratio=4.5, se_layer=module, act_layer=nn.Hardswish)
    ours = functools.partial(
        blocks.inverted_residual, filters=16, expansion=4.5, se=se, activation="hard_silu", name="block"
    )
    assert distance(Named(block=twin), ours) < 1e-5


def test_downsampling_beside_the_stride():
    """The aa and blur rows of mobilenetv4."""
    for aa, ours in (("avg", blocks.average_pool), ("blur", blocks.blur_pool)):
        twin = _efficientnet_blocks.EdgeResidual(16, 24, stride=2, exp_ratio=4, aa_layer=aa)
        block = functools.partial(
            blocks.edge_residual, filters=24, stride=2, expansion=4, downsample=ours, name="block"
        )
        assert distance(Named(block=twin), block) < 1e-5
