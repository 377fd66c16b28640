"""Tests of features of `Network` that no family needs yet: heads, ranks, networks without classifier, tags."""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest

import keras_residual as kr
from keras_residual import blocks, layers, registry
from keras_residual.models._network import Network
from keras_residual.registry import Config, variant

from . import checks, tools


@dataclasses.dataclass(frozen=True)
class TowerConfig(Config):
    """A strided convolution and a block; after pooling, as in mobilenetv3, a convolution and an activation."""

    width: int = 16
    hidden: int = 24
    epsilon: float = 1e-5
    head: tuple[str, ...] = dataclasses.field(default=("classifier",), kw_only=True)
    top: tuple[str, ...] = dataclasses.field(default=("conv_head.", "classifier"), kw_only=True)
    input_shape: tuple[int | None, ...] = dataclasses.field(default=(16, 16, 3), kw_only=True)
    classes: int = dataclasses.field(default=10, kw_only=True)

    def tiny(self):
        return self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tower(Network[TowerConfig]):
    """A network of one block."""

    def forward(self, row: TowerConfig, x: Any) -> Any:
        self.require_size(x, x, 2)
        norm = partial(blocks.batch_norm, epsilon=row.epsilon)
        x = blocks.conv_norm(x, row.width, 3, stride=2, norm=norm, activation="relu", name="stem")
        return layers.StageOutput(1, name="stage1")(blocks.basic(x, row.width, drop_path=self.drop_path, name="block"))

    def finish(self, row: TowerConfig, x: Any) -> Any:
        return blocks.activate(blocks.pointwise(x, row.hidden, name="conv_head"), "hard_silu", name="act2")

    def classifier(self) -> Callable[..., keras.layers.Layer]:
        return partial(layers.PointwiseDense, self.classes)  # dpn's is a convolution


@dataclasses.dataclass(frozen=True, kw_only=True)
class Voters(Tower):
    """A network with two heads, of which the larger output counts."""

    def finish(self, row: TowerConfig, x: Any) -> Any:
        return [x, -x]

    def combine(self, row: TowerConfig, outputs: list[Any]) -> Any:
        return keras.layers.Maximum(name="heads")(outputs)


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """Isolate the registry, so that rows of these tests are not visible to others."""
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.setattr(registry, "_names", dict(registry._names))


def register(row, family=Tower):
    builder = variant(family, row)
    return builder, registry.entries()[row.name]


def state_of(model):
    return {s.key: np.ascontiguousarray(s.to_torch(np.asarray(s.variable))) for s in kr.weights.slots(model)}


# --------------------------------------------------------------------------------------------------------------- heads


def test_a_convolution_and_an_activation_after_pooling():
    build, entry = register(TowerConfig("Tower"))
    model = tools.randomise(build(classifier_activation=None))
    state, x = state_of(model), tools.noise((2, 16, 16, 3))
    assert state["conv_head.weight"].shape == (24, 16, 1, 1)
    assert state["classifier.weight"].shape == (10, 24, 1, 1)
    pooled = np.asarray(keras.Model(model.input, model.get_layer("stage1").output)(x)).mean((1, 2))
    hidden = pooled @ state["conv_head.weight"][:, :, 0, 0].T + state["conv_head.bias"]
    hidden = hidden * np.clip(hidden / 6 + 0.5, 0, 1)
    expected = hidden @ state["classifier.weight"][:, :, 0, 0].T + state["classifier.bias"]
    assert tools.distance(model(x), expected) < 1e-5
    features = entry.build(entry.config, classes=0)
    assert features.output_shape == (None, 24), "timm's features before the classifier are those after the activation"
    bare = build(include_top=False)
    assert set(state) - set(state_of(bare)) == {
        "conv_head.weight",
        "conv_head.bias",
        "classifier.weight",
        "classifier.bias",
    }
    checks.check_safetensors(entry)
    checks.check_topology(entry)


def test_heads_are_combined_as_the_family_says():
    build, _ = register(TowerConfig("Voters", head=("head", "other")), Voters)
    model = tools.randomise(build(classifier_activation=None))
    x = tools.noise((2, 16, 16, 3))
    each = keras.Model(model.input, [model.get_layer(name).output for name in ("head", "other")])(x)
    np.testing.assert_array_equal(model(x), np.maximum(*map(np.asarray, each)))


# -------------------------------------------------------------------------------------------------- without classifier


def test_a_network_that_was_published_without_classifier(tmp_path):
    count = sum(int(np.prod(v.shape)) for v in Tower(classes=0).build(TowerConfig("Encoder")).trainable_variables)
    build, entry = register(TowerConfig("Encoder", classes=0, params=count))
    bare = tools.randomise(build())
    assert bare.output_shape == (None, 24)
    checks.check_full_size(entry)
    checks.check_signature(entry)
    assert "not published" in build.__doc__
    kr.save_weights(bare, tmp_path / "encoder.safetensors")
    assert entry.build(entry.config, weights=str(tmp_path / "encoder.safetensors")).output_shape == (None, 24)

    model = build(classes=3, weights=str(tmp_path / "encoder.safetensors"))
    assert model.output_shape == (None, 3)
    same = {key: value for key, value in state_of(model).items() if "classifier" not in key}
    assert all(np.array_equal(value, state_of(bare)[key]) for key, value in same.items())


def test_half_a_classifier_is_no_checkpoint_without_one(tmp_path):
    build, _ = register(TowerConfig("Tower"))
    state = state_of(build(classes=3))
    del state["classifier.bias"]
    with pytest.raises(kr.weights.WeightsError, match=r"missing \(1\): classifier.bias"):
        kr.load_weights(build(classes=3), state, adapt=kr.weights.Adapt(head=("classifier",)))


def test_the_default_number_of_classes_is_the_rows():
    build, _ = register(TowerConfig("Tower", classes=7))
    assert build().output_shape == (None, 7)
    assert build(True, None).output_shape == (None, 7)
    assert build(True, None, None, None, None, 4).output_shape == (None, 4)


# --------------------------------------------------------------------------------------------------------------- ranks


def test_a_row_of_images_alone():
    build, entry = register(TowerConfig("Images", ranks=(2,)))
    assert build(input_shape=(None, None, 3)).output_shape == (None, 10), "dynamic, and 2-D"
    for shape in ((16, 3), (16, 16, 16, 3)):
        with pytest.raises(ValueError, match="Images: `input_shape` must be") as caught:
            build(input_shape=shape)
        assert "batch, (H, W, C), with a known C" in str(caught.value)
        assert str(shape) in str(caught.value)
    checks.check_ranks(entry)


def test_checks_follow_the_ranks_of_a_row():
    _, entry = register(TowerConfig("Signals", ranks=(1, 2)))
    checks.check_ranks(entry)
    narrow = registry.Entry(dataclasses.replace(entry.config, ranks=(2,)), entry.builder, entry.family)
    assert tools.features(narrow) != tools.features(entry), "their twins are checked one by one"


# ---------------------------------------------------------------------------------------------------------------- tags

ROW = TowerConfig(
    "Tagged", timm="tagged_b0", tag="plain_in1k", tags={"tf_in1k": {"epsilon": 0.5}, "wide": {"width": 32}}
)


def epsilon(model):
    return model.get_layer("stem.bn").epsilon


def publish(hub, tag, model):
    described = {
        "architecture": "tagged_b0",
        "num_classes": 10,
        "pretrained_cfg": {"tag": tag, "input_size": [3, 16, 16]},
    }
    hub(f"timm/tagged_b0.{tag}", {"config.json": described, "model.safetensors": state_of(model)})


def test_a_tag_changes_the_row(hub):
    build, entry = register(ROW)
    for tag in ("tf_in1k", "wide", "plain_in1k"):
        row = ROW.tagged(tag)
        source = tools.randomise(entry.build(row, classifier_activation=None))
        publish(hub, tag, source)
        x = tools.noise((2, 16, 16, 3))
        for model in (
            kr.from_pretrained(f"timm/tagged_b0.{tag}"),
            build(weights=f"timm/tagged_b0.{tag}", classifier_activation=None),
        ):
            assert epsilon(model) == (0.5 if tag == "tf_in1k" else 1e-5)
            assert model.get_layer("stem.conv").filters == (32 if tag == "wide" else 16)
            np.testing.assert_array_equal(model(x), source(x))
    assert epsilon(build(weights="imagenet")) == 1e-5
    assert epsilon(build()) == 1e-5


def test_the_default_tag_changes_the_row(hub):
    build, entry = register(dataclasses.replace(ROW, tag="tf_in1k"))
    publish(hub, "tf_in1k", tools.randomise(entry.build(ROW.tagged("tf_in1k"))))
    assert epsilon(build(weights="imagenet")) == 0.5


def test_a_directory_says_its_tag(tmp_path):
    build, entry = register(ROW)
    model = entry.build(ROW.tagged("tf_in1k"))
    kr.save_weights(model, tmp_path / "model.safetensors")
    described = {"architecture": "tagged_b0", "num_classes": 10, "pretrained_cfg": {"tag": "tf_in1k"}}
    (tmp_path / "config.json").write_text(json.dumps(described))
    assert epsilon(build(weights=str(tmp_path))) == 0.5
    assert epsilon(kr.from_pretrained(tmp_path, input_shape=(16, 16, 3))) == 0.5


def test_a_run_keeps_its_tag(tmp_path):
    _, entry = register(ROW)
    model = tools.randomise(entry.build(ROW.tagged("tf_in1k"), classes=2, classifier_activation=None))
    prepare = kr.weights.Preprocess((16, 16))
    kr.Classifier(model, prepare, ("ant", "bee"), "Tagged", tag="tf_in1k").save(tmp_path / "run")
    again = kr.Classifier.load(tmp_path / "run")
    assert (again.tag, epsilon(again.model)) == ("tf_in1k", 0.5)
    x = tools.noise((2, 16, 16, 3))
    np.testing.assert_array_equal(again.model(x), model(x))


def test_a_tag_must_change_fields_of_the_row():
    with pytest.raises(ValueError, match=r"fields of TowerConfig; got epsilom for 'a'"):
        register(TowerConfig("Wrong", tags={"a": {"epsilom": 1e-3}}))
    assert "Wrong" not in registry.entries()


@pytest.mark.parametrize(("name", "widths"), [("ResNet8", (24, 48, 96)), ("PreActResNet164", (24, 48, 96))])
def test_width_scales_all_stages(name, widths):
    """He et al. 2016, table 6: each stage has twice the channels of the one before; the stem keeps its 16."""
    entry = kr.models.find(name)
    model = entry.build(dataclasses.replace(entry.config, depth=1), width=24)
    assert [model.get_layer(f"layer{stage}").output.shape[-1] for stage in (1, 2, 3)] == list(widths)
    assert model.get_layer("conv1").output.shape[-1] == 16


def test_width_is_at_least_16():
    with pytest.raises(ValueError, match="must be None or at least 16; got 8"):
        kr.ResNet8(width=8)
