"""The small-image networks against a second implementation, written in torch from the papers' equations."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from keras_residual import blocks, registry

from . import reference

ROWS = [e for e in registry.entries().values() if e.builder.__module__ == "keras_residual.models.resnet_cifar"]


class Block(nn.Module):
    """One block of any of the four kinds; `kind` decides."""

    def __init__(self, kind, inputs, outputs, stride):
        super().__init__()
        self.kind, self.stride, self.extra = kind, stride, outputs - inputs
        wide = outputs // 4 if kind is blocks.preact_bottleneck else outputs
        sizes = [(inputs, wide, 1), (wide, wide, 3), (wide, outputs, 1)]
        if kind is not blocks.preact_bottleneck:
            sizes = [(inputs, wide, 3), (wide, outputs, 3)]
        strided = 1 if kind is blocks.preact_bottleneck else 0
        preactivated = kind in (blocks.preact_basic, blocks.preact_bottleneck)
        self.count = len(sizes)
        for i, (a, b, k) in enumerate(sizes):
            step = stride if i == strided else 1
            self.add_module(f"conv{i + 1}", nn.Conv2d(a, b, k, step, k // 2, bias=False))
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(a if preactivated else b))
        self.preactivated = preactivated
        if preactivated and (stride > 1 or self.extra):
            self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x):
        convs = [getattr(self, f"conv{i + 1}") for i in range(self.count)]
        norms = [getattr(self, f"bn{i + 1}") for i in range(self.count)]
        if self.preactivated:  # He et al. 2016b, equation 5
            y = functional.relu(norms[0](x))
            h = self.downsample(y) if hasattr(self, "downsample") else x
            y = convs[0](y)
            for norm, conv in zip(norms[1:], convs[1:], strict=True):
                y = conv(functional.relu(norm(y)))
            return h + y
        y = norms[1](convs[1](functional.relu(norms[0](convs[0](x)))))
        if self.kind is blocks.plain_basic:
            return functional.relu(y)
        h = x[:, :, :: self.stride, :: self.stride]  # option A: nothing to learn
        h = functional.pad(h, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))
        return functional.relu(h + y)


class Network(nn.Module):
    def __init__(self, row):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.last_norm = row.block in (blocks.preact_basic, blocks.preact_bottleneck)
        if self.last_norm:
            self.bn = nn.BatchNorm2d(row.widths[-1])
        else:
            self.bn1 = nn.BatchNorm2d(16)
        inputs = 16
        for stage, width in enumerate(row.widths, start=1):
            layer = nn.Sequential()
            for i in range(row.depth):
                layer.append(Block(row.block, inputs, width, 2 if stage > 1 and i == 0 else 1))
                inputs = width
            self.add_module(f"layer{stage}", layer)
        self.fc = nn.Linear(inputs, row.classes)

    def forward(self, x):
        x = self.conv1(x)
        x = x if self.last_norm else functional.relu(self.bn1(x))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = functional.relu(self.bn(x)) if self.last_norm else x
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("entry", ROWS, ids=lambda e: e.config.name)
def test_equals_the_papers_equations(entry, report):
    row = entry.config.tiny()
    torch.manual_seed(0)
    twin = reference.randomise(Network(row))
    model = entry.build(row, classifier_activation=None)
    errors = reference.compare(twin, model, {level: f"layer{level}" for level in (1, 2, 3)}, size=(32, 32))
    report(entry.config.name, errors)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("entry", ROWS, ids=lambda e: e.config.name)
def test_parameter_count(entry):
    with torch.device("meta"):
        expected = sum(p.numel() for p in Network(entry.config).parameters())
    assert entry.config.params in (None, expected)
