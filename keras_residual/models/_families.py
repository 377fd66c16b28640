"""Imports of all families, which register their variants and make the builders visible to type checkers."""

from keras_residual.models.convnext import *
from keras_residual.models.mlp import *
from keras_residual.models.mlp_mixer import *
from keras_residual.models.regnet import *
from keras_residual.models.resnet import *
from keras_residual.models.resnet_cifar import *
from keras_residual.models.resnet_v2 import *
from keras_residual.models.vit import *
