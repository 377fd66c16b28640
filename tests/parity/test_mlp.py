"""The dense residual networks against torch, written from the papers' equations."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import keras_residual as kr

from . import reference


class Block(nn.Module):
    """`x + Linear(f(Linear(norm(x))))`: Gorishniy et al. 2021, section 3.2, in evaluation (no dropout)."""

    def __init__(self, width, hidden, norm, activation):
        super().__init__()
        self.norm, self.activation = norm(width), activation
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.fc2(self.activation(self.fc1(self.norm(x))))


class Network(nn.Module):
    def __init__(self, features, width, hidden, depth, classes, norm, activation, last):
        super().__init__()
        self.stem = nn.Linear(features, width)
        self.blocks = nn.Sequential(*[Block(width, hidden, norm, activation) for _ in range(depth)])
        self.norm, self.fc, self.last = norm(width), nn.Linear(width, classes), last

    def forward(self, x):
        return self.fc(self.last(self.norm(self.blocks(self.stem(x)))))


KINDS = {
    "ResidualMLP": (lambda width: nn.LayerNorm(width, eps=1e-6), functional.gelu, nn.Identity()),
    "TabularResNet": (nn.BatchNorm1d, functional.relu, nn.ReLU()),
}


@pytest.mark.parametrize("name", list(KINDS))
def test_equals_the_equations(name):
    row = kr.models.find(name).config
    twin = Network(*row.input_shape, row.width, row.hidden, row.depth, row.classes, *KINDS[name])
    model = kr.create(name, classes=row.classes, classifier_activation=None)
    assert row.params == sum(p.numel() for p in twin.parameters())
    kr.load_weights(model, {k: v.numpy() for k, v in reference.randomise(twin).state_dict().items()})
    x = np.random.default_rng(0).normal(size=(5, *row.input_shape)).astype("float32")
    with torch.no_grad():
        expected = twin(torch.from_numpy(x)).numpy()
    assert reference.distance(np.asarray(model(x, training=False)), expected) < 1e-5
