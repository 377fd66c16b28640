# pyright: strict, reportUnnecessaryTypeIgnoreComment=true, reportUnknownMemberType=false
"""Read by pyright, never run: what an editor must see of the public API, and what it must refuse."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras_residual as kr
from keras_residual.models.resnet import ResNet, ResNetConfig, small_stem
from keras_residual.models.vit import ViT
from keras_residual.training import Checkpointing, Execution, Selection

# The eight arguments of `keras.applications`, by position or by name, and the rate that every family has.
kr.ResNet50(False, None, None, (64, 64, 3), "avg", 10, None, "mine", drop_path=0.1)
kr.ResNet50(include_top=False, pooling="avg", drop_path=0.1)
kr.ViTBase16(input_shape=(224, 224, 3), classes=10, classifier_activation=None)
kr.ResNet20(classes=10)
kr.ResNet50(clases=10)  # pyright: ignore[reportCallIssue]
kr.ResNet50(classes="ten")  # pyright: ignore[reportArgumentType]
kr.ResNet50(input_shape=224)  # pyright: ignore[reportArgumentType]
kr.ResNet50(include_top="avg")  # pyright: ignore[reportArgumentType]
kr.ResNet50(pooling=True)  # pyright: ignore[reportArgumentType]
kr.ResNet50(True, None, None, None, None, 10, None, "mine", 0.1)  # pyright: ignore[reportCallIssue]

# Each family's own options.
kr.ResNet50(stem=small_stem, stride_in="1x1", zero_init=False, norm=kr.blocks.group_norm, activation="silu")
kr.ResNet50(stem="small")  # pyright: ignore[reportArgumentType]
kr.ResNet50(dropout=0.1)  # pyright: ignore[reportCallIssue]
kr.ResNet50(norm="batch")  # pyright: ignore[reportArgumentType]
kr.WideResNet28_10(dropout=0.3, zero_init=True, norm=kr.blocks.batch_norm)
kr.ResNet20(stride_in="1x1")  # pyright: ignore[reportCallIssue]
kr.ResNet20(norm=None)  # pyright: ignore[reportArgumentType]
kr.BiT50x1(norm=kr.blocks.group_norm, activation="relu")
kr.BiT50x1(zero_init=True)  # pyright: ignore[reportCallIssue]
kr.BiT50x1(stem=small_stem)  # pyright: ignore[reportArgumentType]
kr.ConvNeXtTiny(dropout=0.1, norm=kr.blocks.rms_norm, activation=None)
kr.ConvNeXtTiny(stem=small_stem)  # pyright: ignore[reportCallIssue]
kr.ConvNeXtTiny(dropout="some")  # pyright: ignore[reportArgumentType]
kr.ViTBase16(dropout=0.1, norm=kr.blocks.rms_norm, activation="gelu")
kr.ViTBase16(patch=8)  # pyright: ignore[reportCallIssue]
kr.ViTBase16(drop_path=None)  # pyright: ignore[reportArgumentType]
kr.ResidualMLP(width=32, hidden=64, depth=2, dropout=0.1, residual_dropout=0.1, classes=3)
kr.TabularResNet(width="wide")  # pyright: ignore[reportArgumentType]
kr.TabularResNet(zero_init=True)  # pyright: ignore[reportCallIssue]

# A family's options with any row of it.
row = ResNetConfig("Mine", kr.blocks.basic, (1, 1, 1, 1))
ResNet(stem=small_stem, classes=10).build(row)
ViT(classes=10).build(row)  # pyright: ignore[reportArgumentType]
ViT(1 == 1).classes = 10  # pyright: ignore[reportAttributeAccessIssue]

# Builders are functions like others.
builders: list[Callable[..., object]] = [kr.ResNet18, kr.ViTBase16]
names: list[str] = kr.list_models("resnet*")

# The settings of `fit` come in groups.
network: Any = None
data = object()
kr.fit(network, "wrn", data, data, epochs=3, batch_size=8, seed=1, class_weight=[1.0, 2.0], logs="logs")
kr.fit(network, kr.Recipe(), data, checkpoints="runs/mine", selection=Selection("last"), progress=False)
kr.fit(network, "wrn", data, checkpoints=Checkpointing(Path("runs"), save_steps=100, resume="anyway"))
kr.fit(network, "wrn", data, execution=Execution(jit="auto", steps_per_execution=8, deterministic=True))
kr.training.prepare(network, "wrn", data, classes=10, execution=Execution(jit=True))
best: int | None = kr.fit(network, "wrn", data).best_epoch
kr.fit(network, "wrn", data, epoch=3)  # pyright: ignore[reportCallIssue]
kr.fit(network, "wrn", data, epochs="three")  # pyright: ignore[reportArgumentType]
kr.fit(network, "wrn", data, keep="last")  # pyright: ignore[reportCallIssue]
kr.fit(network, "wrn", data, selection="last")  # pyright: ignore[reportArgumentType]
kr.fit(network, "wrn", data, checkpoints=Selection())  # pyright: ignore[reportArgumentType]
kr.fit(network, "wrn", data, execution=Checkpointing("runs"))  # pyright: ignore[reportArgumentType]
Checkpointing()  # pyright: ignore[reportCallIssue]
Checkpointing("runs", save_steps="often")  # pyright: ignore[reportArgumentType]
Checkpointing("runs", resume="yes")  # pyright: ignore[reportArgumentType]
Selection(keep="first")  # pyright: ignore[reportArgumentType]
Selection(patience="long")  # pyright: ignore[reportArgumentType]
Execution(jit="on")  # pyright: ignore[reportArgumentType]
Execution(deterministic="auto")  # pyright: ignore[reportArgumentType]
Selection().keep = "last"  # pyright: ignore[reportAttributeAccessIssue]
kr.training.prepare(network, "wrn", data, jit=True)  # pyright: ignore[reportCallIssue]
