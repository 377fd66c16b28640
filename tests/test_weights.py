"""Weights from every kind of source, what is adapted, and thirty kinds of damage that must leave the model alone."""

import io
import json
import zipfile

import h5py
import keras
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import keras_residual as kr
from keras_residual.weights import Adapt, WeightsError, slots
from keras_residual.weights.formats import renamed

from .tools import distance, noise, randomise


def tiny(name="ResNet18", seed=None, **arguments):
    entry = kr.models.find(name)
    model = entry.build(entry.config.tiny(), **{"classes": 10, **arguments})
    return model if seed is None else randomise(model, seed)


def state_of(model):
    return {s.key: np.ascontiguousarray(s.to_torch(np.asarray(s.variable))) for s in slots(model)}


def snapshot(model):
    return [np.array(v) for v in model.weights]


def unchanged(model, before):
    return all(np.array_equal(np.asarray(v), old, equal_nan=True) for v, old in zip(model.weights, before, strict=True))


# ------------------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize(
    ("dtype", "suffix"),
    [("float32", "npz"), ("float16", "npz"), ("bfloat16", "safetensors"), ("float64", "safetensors")],
)
def test_files_of_any_precision(tmp_path, dtype, suffix):
    source = tiny(seed=1)
    state = {k: v.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype) for k, v in state_of(source).items()}
    path = tmp_path / f"a.{suffix}"
    np.savez(path, **state) if suffix == "npz" else save_file(state, path)
    model = tiny()
    report = kr.load_weights(model, path)
    assert len(report.loaded) == len(state)
    for slot in slots(model):
        expected = state[slot.key].astype("float32")
        np.testing.assert_array_equal(slot.to_torch(np.asarray(slot.variable)), expected)


def test_saved_file_is_timms(tmp_path):
    """The keys, shapes and order of axes of a torch state dict, written by hand here for one block."""
    model = tiny(seed=1)
    kr.save_weights(model, tmp_path / "a.safetensors")
    state = load_file(tmp_path / "a.safetensors")
    kernel = np.asarray(model.get_layer("layer2.0.conv1").kernel)  # (3, 3, in, out)
    np.testing.assert_array_equal(state["layer2.0.conv1.weight"], kernel.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(state["fc.weight"], np.asarray(model.get_layer("fc").kernel).T)
    norm = model.get_layer("layer2.0.bn1")
    np.testing.assert_array_equal(state["layer2.0.bn1.running_var"], np.asarray(norm.moving_variance))
    assert state["layer2.0.bn1.num_batches_tracked"].dtype == np.int64


@pytest.mark.parametrize(
    "name",
    ["ResNeXt50_32x4d", "ViTTiny16", *(pytest.param(n, marks=pytest.mark.slow) for n in ("ResNet18", "ECAResNet26T"))],
)
def test_keras_archive(tmp_path, name):
    source = tiny(name, seed=1, drop_path=0.1)  # seed generators lie in the file too
    source.save(tmp_path / "a.keras")
    model = tiny(name)
    kr.load_weights(model, tmp_path / "a.keras")
    x = noise((2, *model.input_shape[1:]))
    assert distance(model(x), source(x)) == 0


def test_keras_archive_of_keras_3_10(tmp_path):
    """It states the name of an operation next to its config, not in it."""
    source = tiny("ResNeXt50_32x4d", seed=1)
    source.save(tmp_path / "new.keras")
    moved = 0
    with zipfile.ZipFile(tmp_path / "new.keras") as new, zipfile.ZipFile(tmp_path / "old.keras", "w") as old:
        config = json.loads(new.read("config.json"))
        for layer in config["config"]["layers"]:
            if layer["module"].startswith("keras.src.ops"):
                layer["config"].pop("name", None)
                moved += 1
        old.writestr("config.json", json.dumps(config))
        for name in {*new.namelist()} - {"config.json"}:
            old.writestr(name, new.read(name))
    assert moved
    model = tiny("ResNeXt50_32x4d")
    kr.load_weights(model, tmp_path / "old.keras")
    x = noise((2, *model.input_shape[1:]))
    assert distance(model(x), source(x)) == 0


def test_keras_archive_of_another_network(tmp_path):
    tiny("ResNet18", seed=1).save(tmp_path / "a.keras")
    model = tiny("ResNet18D", seed=2)
    before = snapshot(model)
    with pytest.raises(WeightsError, match="nothing was loaded"):
        kr.load_weights(model, tmp_path / "a.keras")
    assert unchanged(model, before)


def test_keras_applications_file(tmp_path):
    theirs = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=10)
    randomise(theirs, 1)
    with h5py.File(tmp_path / "resnet50_weights_tf_dim_ordering_tf_kernels.h5", "w") as file:
        for layer in theirs.layers:  # as Keras 2 wrote them
            for variable in layer.weights:
                file[f"{layer.name}/{layer.name}/{variable.name}:0"] = np.asarray(variable)
    model = kr.ResNet50(
        stride_in="1x1", input_shape=(64, 64, 3), classes=10, weights=str(tmp_path / file_name(tmp_path, ".h5"))
    )
    x = noise((2, 64, 64, 3))
    assert distance(model(x), theirs(x)) < 1e-5


def file_name(folder, suffix):
    return next(path.name for path in folder.iterdir() if path.suffix == suffix)


def test_big_vision_npz(tmp_path):
    """AugReg's names and axes, written from the big_vision model's definition."""
    source = tiny("ViTTiny16", seed=1)
    state, heads = state_of(source), 4
    arrays = {
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(4):
        block, there = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        for part, w, b in zip(
            ("query", "key", "value"),
            np.split(state[f"{block}.attn.qkv.weight"], 3),
            np.split(state[f"{block}.attn.qkv.bias"], 3),
            strict=True,
        ):
            place = f"{there}/MultiHeadDotProductAttention_1/{part}"
            arrays[f"{place}/kernel"] = w.T.reshape(64, heads, 16)
            arrays[f"{place}/bias"] = b.reshape(heads, 16)
        out = f"{there}/MultiHeadDotProductAttention_1/out"
        arrays[f"{out}/kernel"] = state[f"{block}.attn.proj.weight"].T.reshape(heads, 16, 64)
        arrays[f"{out}/bias"] = state[f"{block}.attn.proj.bias"]
        for norm, place in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{there}/{place}/scale"] = state[f"{block}.{norm}.weight"]
            arrays[f"{there}/{place}/bias"] = state[f"{block}.{norm}.bias"]
        for layer, place in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            arrays[f"{there}/MlpBlock_3/{place}/kernel"] = state[f"{block}.mlp.{layer}.weight"].T
            arrays[f"{there}/MlpBlock_3/{place}/bias"] = state[f"{block}.mlp.{layer}.bias"]
    np.savez(tmp_path / "a.npz", **arrays)
    model = tiny("ViTTiny16")
    kr.load_weights(model, tmp_path / "a.npz")
    assert all(np.array_equal(a, b) for a, b in zip(snapshot(model), snapshot(source), strict=True))


def test_openai_clip_names():
    source = tiny("CLIPBase16", seed=1)
    state = state_of(source)
    names = (
        ("patch_embed.proj.", "conv1."),
        ("norm_pre.", "ln_pre."),
        ("blocks.", "transformer.resblocks."),
        (".norm1.", ".ln_1."),
        (".norm2.", ".ln_2."),
        (".attn.qkv.", ".attn.in_proj_"),
        (".attn.proj.", ".attn.out_proj."),
        (".mlp.fc1.", ".mlp.c_fc."),
        (".mlp.fc2.", ".mlp.c_proj."),
    )
    theirs = {"token_embedding.weight": noise((3, 4))}
    for key, value in state.items():
        if key == "norm.weight" or key == "norm.bias":
            key = key.replace("norm.", "ln_post.")
        for ours, other in names:
            key = key.replace(ours, other)
        theirs[f"visual.{key}"] = value
    theirs["visual.class_embedding"] = theirs.pop("visual.cls_token")[0, 0]
    theirs["visual.positional_embedding"] = theirs.pop("visual.pos_embed")[0]
    theirs["visual.proj"] = theirs.pop("visual.head.weight").T
    theirs.pop("visual.head.bias")
    model = tiny("CLIPBase16")
    kr.load_weights(model, theirs)
    for slot in slots(model):
        expected = np.zeros(10) if slot.key == "head.bias" else state[slot.key]
        np.testing.assert_array_equal(slot.to_torch(np.asarray(slot.variable)), expected)


def test_dinov2_with_registers():
    source = tiny("DINOv2RegSmall14", seed=1)
    state = state_of(source)
    theirs = dict(state)
    first = noise((1, 1, 64), 9)
    theirs["register_tokens"] = theirs.pop("reg_token")
    theirs["pos_embed"] = np.concatenate([first, theirs["pos_embed"]], 1)
    theirs["cls_token"] = theirs["cls_token"] - first
    theirs["mask_token"] = noise((1, 64))
    model = tiny("DINOv2RegSmall14")
    kr.load_weights(model, theirs)
    x = noise((2, *model.input_shape[1:]))
    assert distance(model(x), source(x)) < 1e-6


def test_facebooks_convnext_names():
    source = tiny("ConvNeXtV2Atto", seed=1)
    rules = (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"\.blocks\.", "."),
        (r"\.conv_dw\.", ".dwconv."),
        (r"\.mlp\.fc", ".pwconv"),
        (r"\.mlp\.grn\.weight$", ".grn.gamma"),
        (r"\.mlp\.grn\.bias$", ".grn.beta"),
        (r"^head\.fc\.", "head."),
        (r"^head\.norm\.", "norm."),
    )
    theirs = {key: v[None, None, None] if ".grn." in key else v for key, v in renamed(state_of(source), rules).items()}
    assert "stages.1.0.grn.gamma" in theirs
    model = tiny("ConvNeXtV2Atto")
    kr.load_weights(model, {**theirs, "norms.3.weight": noise((3,))})
    assert all(np.array_equal(a, b) for a, b in zip(snapshot(model), snapshot(source), strict=True))


def test_bit_npz(tmp_path):
    source = tiny("BiT50x1", seed=1)
    rules = (
        (r"^stem\.conv\.", "root_block/standardized_conv2d/"),
        (r"^norm\.", "group_norm/"),
        (r"^head\.fc\.", "head/conv2d/"),
        (r"\.downsample\.conv\.", "/a/proj/standardized_conv2d/"),
        *((rf"\.conv{i}\.", f"/{part}/standardized_conv2d/") for i, part in enumerate("abc", start=1)),
        *((rf"\.norm{i}\.", f"/{part}/group_norm/") for i, part in enumerate("abc", start=1)),
        (r"^stages\.(\d)\.blocks\.(\d)", lambda m: f"block{int(m[1]) + 1}/unit{int(m[2]) + 1:02d}"),
        (r"norm/weight$", "norm/gamma"),
        (r"norm/bias$", "norm/beta"),
        (r"/weight$", "/kernel"),
    )
    theirs = renamed(state_of(source), rules)
    theirs = {f"resnet/{key}": v.transpose(2, 3, 1, 0) if v.ndim == 4 else v for key, v in theirs.items()}
    assert "resnet/block2/unit01/a/proj/standardized_conv2d/kernel" in theirs
    np.savez(tmp_path / "a.npz", **theirs)
    model = tiny("BiT50x1")
    kr.load_weights(model, tmp_path / "a.npz")
    assert all(np.array_equal(a, b) for a, b in zip(snapshot(model), snapshot(source), strict=True))


def deit3(state):
    """The names of Meta's DeiT-III; BEiT, CaiT and EVA have the same for something else."""
    return renamed(state, ((r"\.ls([12])\.gamma$", r".gamma_\1"),))


FOREIGN = {
    "gamma_1 of a BEiT": {"blocks.0.gamma_1": (4,), "blocks.0.gamma_2": (4,)},
    "mask token of a BEiT": {"mask_token": (1, 1, 4)},
    "registers of a DINOv2": {"mask_token": (1, 4), "register_tokens": (1, 4, 4), "pos_embed": (1, 2, 4)},
    "blocks of a CLIP": {"visual.class_embedding": (4,), "visual.transformer.resblocks.0.ln_1.weight": (4,)},
    "stages of Meta's ConvNeXt": {
        "downsample_layers.0.0.weight": (4, 3, 4, 4),
        "stages.0.0.dwconv.weight": (4, 1, 7, 7),
    },
    "root of a BiT": {"resnet/root_block/standardized_conv2d/kernel": (7, 7, 3, 4), "resnet/group_norm/gamma": (4,)},
    "encoder of big_vision": {"Transformer/encoder_norm/scale": (4,), "Transformer/encoder_norm/bias": (4,)},
    "layers of keras.applications": {"conv1_conv/conv1_conv/kernel:0": (7, 7, 3, 4)},
}
OWN = {"CLIPBase16": "CLIP DINOv2 big_vision BEiT", "ConvNeXtTiny": "ConvNeXt", "BiT50x1": "BiT", "ResNet18": "keras"}


@pytest.mark.parametrize("name", [*OWN, "ResNet20", "ResidualMLP"])
def test_a_familys_formats_are_its_own(name):
    """Keys that another family's files have are reported as they are, not renamed to something that might fit."""
    model = tiny(name)
    for case, shapes in FOREIGN.items():
        if any(word in case for word in OWN.get(name, "").split()):
            continue
        with pytest.raises(WeightsError) as caught:
            kr.load_weights(model, {**state_of(model), **{key: noise(shape) for key, shape in shapes.items()}})
        assert set(caught.value.report.unexpected) == shapes.keys() - state_of(model).keys(), case


def through_a_file(model, folder):
    model.save(folder / "a.keras")
    return keras.models.load_model(folder / "a.keras")


def wrapped(model, folder):
    inputs = keras.Input(model.input_shape[1:])
    return keras.Model(inputs, keras.models.clone_model(model)(inputs), name="mine")


@pytest.mark.parametrize(
    "change",
    [
        lambda model, folder: keras.models.clone_model(model),
        lambda model, folder: keras.Model(model.input, model.output, name="mine"),
        through_a_file,
        wrapped,
    ],
    ids=["cloned", "renamed", "through a file", "part of a model"],
)
def test_a_model_keeps_the_formats_of_its_family(change, tmp_path):
    source = tiny("DeiT3Small16", seed=1)
    model = change(tiny("DeiT3Small16"), tmp_path)
    report = kr.load_weights(model, deit3(state_of(source)))
    assert len(report.loaded) == len(slots(source))
    assert all(np.array_equal(a, b) for a, b in zip(snapshot(model), snapshot(source), strict=True))


def test_a_network_of_no_family_takes_timms_names(tmp_path):
    """And a conversion of the caller's own."""
    source = tiny("DeiT3Small16", seed=1)
    state = deit3(state_of(source))
    model = keras.models.clone_model(
        tiny("DeiT3Small16"),
        clone_function=lambda layer: type(layer).from_config({**layer.get_config(), **strip_family(layer)}),
    )
    with pytest.raises(WeightsError, match=r"unexpected.*blocks\.0\.gamma_1"):
        kr.load_weights(model, state)
    kr.load_weights(model, {f"module.{key}": value for key, value in state_of(source).items()})
    kr.load_weights(model, state, to_timm=lambda state: renamed(state, ((r"\.gamma_([12])$", r".ls\1.gamma"),)))


def strip_family(layer):
    return {"family": None} if isinstance(layer, kr.layers.StageOutput) else {}


# ------------------------------------------------------------------------------------------------------- adaptation


def test_other_classes_channels_and_size():
    source = tiny("ViTTiny16", seed=1)
    adapt = Adapt(head=("head",), channels=True, size=True)
    model = tiny("ViTTiny16", classes=7, input_shape=(96, 32, 1))
    head = np.array(model.get_layer("head").kernel)
    report = kr.load_weights(model, state_of(source), adapt=adapt)
    assert len(report.adapted) == 4, report
    np.testing.assert_array_equal(np.asarray(model.get_layer("head").kernel), head)
    grey = np.asarray(source.get_layer("patch_embed.proj").kernel).sum(2, keepdims=True)
    np.testing.assert_allclose(np.asarray(model.get_layer("patch_embed.proj").kernel), grey, rtol=1e-6)
    four = tiny("ViTTiny16", input_shape=(64, 64, 4))
    kr.load_weights(four, state_of(source), adapt=adapt)
    kernel = np.asarray(source.get_layer("patch_embed.proj").kernel)
    expected = np.concatenate([kernel, kernel[:, :, :1]], 2) * 0.75
    np.testing.assert_allclose(np.asarray(four.get_layer("patch_embed.proj").kernel), expected, rtol=1e-6)


@pytest.mark.parametrize("arguments", [{"classes": 7}, {"input_shape": (96, 32, 3)}, {"input_shape": (64, 64, 1)}])
def test_nothing_is_adapted_unasked(arguments):
    model = tiny("ViTTiny16", **arguments)
    before = snapshot(model)
    with pytest.raises(WeightsError, match="misshapen"):
        kr.load_weights(model, state_of(tiny("ViTTiny16", seed=1)))
    assert unchanged(model, before)


STRANGERS = ["ResNet18", "ResNet50", "SEResNet50", "ResNet50D", "ResNet20", "ViTTiny16"]


@pytest.fixture(scope="module")
def strangers():
    return {name: tiny(name, seed=1) for name in STRANGERS}


@pytest.mark.parametrize("name", STRANGERS)
@pytest.mark.parametrize("other", STRANGERS)
def test_weights_of_another_network(name, other, strangers):
    """One error that accounts for every key, and nothing is loaded."""
    if name == other:
        pytest.skip("not another one")
    state, model = state_of(strangers[other]), strangers[name]
    before, shapes = snapshot(model), {slot.key: slot.shape for slot in slots(model)}
    with pytest.raises(WeightsError, match="nothing was loaded") as caught:
        kr.load_weights(model, state)
    assert unchanged(model, before)
    report, common = caught.value.report, shapes.keys() & state.keys()
    assert set(report.missing) == shapes.keys() - state.keys()
    assert set(report.unexpected) == state.keys() - shapes.keys()
    assert {line.split(" ")[0] for line in report.misshapen} == {k for k in common if state[k].shape != shapes[k]}
    assert f"missing ({len(report.missing)})" in str(caught.value) or not report.missing


def test_without_top(tmp_path):
    source = tiny("ResNet18", seed=1)
    kr.save_weights(source, tmp_path / "a.safetensors")
    row = kr.models.find("ResNet18").config.tiny()
    model = kr.models.find("ResNet18").build(
        row, include_top=False, pooling="avg", weights=str(tmp_path / "a.safetensors")
    )
    x = noise((2, 64, 64, 3))
    pooled = keras.Model(source.input, source.get_layer("global_pool").output)
    assert distance(model(x), pooled(x)) == 0


def test_equal_weights_are_equal_files(tmp_path):
    """safetensors itself writes the two entries of its metadata in an order of chance."""
    model = tiny("ResNet18", seed=1)
    for number in range(12):
        kr.save_weights(model, tmp_path / f"{number}.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert not kr.load_weights(model, tmp_path / "0.safetensors").missing


# ----------------------------------------------------------------------------------------------------------- the Hub


CONFIG = {
    "architecture": "resnet10t",
    "num_classes": 5,
    "pretrained_cfg": {"input_size": [3, 96, 128], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.95},
}


def test_from_pretrained_offline(hub):
    source = randomise(kr.ResNet10T(classes=5, classifier_activation=None, input_shape=(96, 128, 3)), 1)
    hub("someone/resnet10t.mine", {"config.json": CONFIG, "model.safetensors": state_of(source)})
    model = kr.from_pretrained("someone/resnet10t.mine")
    assert model.input_shape == (None, 96, 128, 3)
    x = noise((1, 96, 128, 3))
    assert distance(model(x), source(x)) == 0
    assert kr.from_pretrained("someone/resnet10t.mine", classes=3).output_shape == (None, 3)
    layer = kr.preprocessing("someone/resnet10t.mine")
    assert (layer.size, layer.mean, layer.crop) == ((96, 128), (0.5, 0.5, 0.5), 0.95)


def test_no_classifier_gives_pooled_features(hub):
    source = randomise(kr.ResNet10T(classes=0), 1)
    hub("someone/resnet10t.bare", {"config.json": {**CONFIG, "num_classes": 0}, "model.safetensors": state_of(source)})
    assert kr.from_pretrained("someone/resnet10t.bare").output_shape == (None, 512)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**CONFIG, "architecture": "swin_tiny_patch4_window7_224"}, "not here"),
        ({**CONFIG, "model_args": {"depth_multiplier": 2}}, "depth_multiplier"),
        ({"num_classes": 5}, "architecture"),
        ({**CONFIG, "pretrained_cfg": {"input_size": "large"}}, "config.json"),
    ],
)
def test_a_repository_of_something_else(hub, config, message):
    hub("someone/odd", {"config.json": config, "model.safetensors": {"a": noise((1,))}})
    with pytest.raises(WeightsError, match=message):
        kr.from_pretrained("someone/odd")


def test_a_repository_that_is_not_there(hub):
    with pytest.raises(FileNotFoundError, match="cannot be reached"):
        kr.from_pretrained("someone/nothing")


# ------------------------------------------------------------------------------------------------------------ damage


def damaged(change):
    """A case that writes a changed state dict."""

    def write(folder, state):
        state = {key: value.copy() for key, value in state.items()}
        change(state)
        save_file(state, folder / "a.safetensors")
        return folder / "a.safetensors"

    return write


def cut(suffix, part):
    """A case that writes a file of a kind and cuts it off."""

    def write(folder, state):
        path = WRITERS[suffix](folder, state)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * part)])
        return path

    return write


def raw(suffix, content):
    def write(folder, state):
        (folder / f"a{suffix}").write_bytes(content)
        return folder / f"a{suffix}"

    return write


def _write_safetensors(folder, state):
    save_file(state, folder / "a.safetensors")
    return folder / "a.safetensors"


def _write_npz(folder, state):
    np.savez(folder / "a.npz", **state)
    return folder / "a.npz"


def _write_keras(folder, state):
    tiny(seed=3).save(folder / "a.keras")
    return folder / "a.keras"


def _write_h5(folder, state):
    with h5py.File(folder / "a.h5", "w") as file:
        for key, value in state.items():
            file[f"{key}/{key}/kernel:0"] = value
    return folder / "a.h5"


WRITERS = {".safetensors": _write_safetensors, ".npz": _write_npz, ".keras": _write_keras, ".h5": _write_h5}


def header_of_gigabytes(folder, state):
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    (folder / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    return folder / "a.safetensors"


def endless_header(folder, state):
    (folder / "a.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    return folder / "a.safetensors"


def shape_bomb(folder, state):
    with h5py.File(folder / "a.h5", "w") as file:  # declares 4 TB and holds nothing
        file.create_dataset("conv1_conv/conv1_conv/kernel:0", (10**6, 10**6), "float32", chunks=(1000, 1000))
    return folder / "a.h5"


def external_data(folder, state):
    (folder / "secret").write_bytes(bytes(4000))
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("conv1_conv/a/kernel:0", (1000,), "float32", external=[(str(folder / "secret"), 0, 4000)])
    return folder / "a.h5"


def linked_data(folder, state):
    with h5py.File(folder / "a.h5", "w") as file:
        file["conv1_conv"] = h5py.ExternalLink("other.h5", "/")
    return folder / "a.h5"


def pickled_npz(folder, state):
    np.savez(folder / "a.npz", a=np.array([{"an": "object"}], dtype=object))
    return folder / "a.npz"


def zip_bomb(folder, state):
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "<f4", "fortran_order": False, "shape": (10**12,)})
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", data.getvalue() + bytes(10**6))
    return folder / "a.npz"


def many_empty_tensors(folder, state):
    save_file({f"t{i}": np.zeros(0, "float32") for i in range(100_001)}, folder / "a.safetensors")
    return folder / "a.safetensors"


def keras_config_of_code(folder, state):
    """A `.keras` file whose configuration would run code, if anyone built a model from it."""
    path = _write_keras(folder, state)
    with zipfile.ZipFile(path) as archive:
        weights = archive.read("model.weights.h5")
    with zipfile.ZipFile(path, "w") as archive:
        layer = {"class_name": "Lambda", "config": {"name": "x", "function": "__import__('os').abort()"}}
        archive.writestr("config.json", json.dumps({"config": {"layers": [layer]}}))
        archive.writestr("model.weights.h5", weights)
    return path


def _drop(key):
    return lambda state: state.pop(key)


def _set(key, value):
    return lambda state: state.update({key: value(state[key]) if callable(value) else value})


DAMAGE = {
    "missing": damaged(_drop("layer1.0.conv1.weight")),
    "missing statistic": damaged(_drop("bn1.running_var")),
    "unexpected": damaged(lambda state: state.update(extra=noise((2,)))),
    "renamed": damaged(lambda state: state.update({"layer1.0.conv9.weight": state.pop("layer1.0.conv1.weight")})),
    "misshapen": damaged(_set("bn1.weight", lambda v: v[:-1].copy())),
    "transposed": damaged(_set("fc.weight", lambda v: np.ascontiguousarray(v.T))),
    "nan": damaged(_set("conv1.weight", lambda v: v * np.float32("nan"))),
    "infinity": damaged(_set("fc.bias", lambda v: v + np.float32("inf"))),
    "negative variance": damaged(_set("bn1.running_var", lambda v: -v)),
    "int8": damaged(_set("conv1.weight", lambda v: v.astype("int8"))),
    "bool": damaged(_set("conv1.weight", lambda v: v > 0)),
    "other classes": damaged(_set("fc.weight", lambda v: np.concatenate([v, v]))),
    "grey": damaged(_set("conv1.weight", lambda v: v[:, :1].copy())),
    "empty": damaged(lambda state: state.clear()),
    "safetensors cut at half": cut(".safetensors", 0.5),
    "safetensors cut in the header": cut(".safetensors", 0.01),
    "safetensors cut at the end": cut(".safetensors", 0.999),
    "npz cut": cut(".npz", 0.5),
    "keras cut": cut(".keras", 0.5),
    "h5 cut": cut(".h5", 0.5),
    "no bytes": raw(".safetensors", b""),
    "text": raw(".safetensors", b"<html>Not found</html>" * 10),
    "no zip": raw(".npz", b"PK\x03\x04 and then nothing"),
    "no keras": raw(".keras", b"not an archive"),
    "no h5": raw(".h5", b"\x89HDF\r\n\x1a\n and then nothing"),
    "terabytes declared": header_of_gigabytes,
    "endless header": endless_header,
    "h5 shape bomb": shape_bomb,
    "h5 external data": external_data,
    "h5 link": linked_data,
    "npz pickle": pickled_npz,
    "npz bomb": zip_bomb,
    "100,001 empty tensors": many_empty_tensors,
    "keras config of code": keras_config_of_code,
    "unknown kind": raw(".onnx", b"abc"),
}


@pytest.fixture(scope="module")
def victim():
    return tiny(seed=2)


@pytest.mark.parametrize("case", list(DAMAGE))
def test_damage_is_named_and_changes_nothing(case, tmp_path, victim):
    path = DAMAGE[case](tmp_path, state_of(victim))
    before = snapshot(victim)
    with pytest.raises(WeightsError) as caught:
        kr.load_weights(victim, path)
    assert unchanged(victim, before)
    assert "othing was loaded" in str(caught.value) or "Received" in str(caught.value)


def test_a_file_that_is_not_there(victim):
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors"):
        kr.load_weights(victim, "a.safetensors")


def test_a_failed_save_keeps_the_old_file(tmp_path, victim, monkeypatch):
    path = tmp_path / "a.safetensors"
    kr.save_weights(victim, path)
    before = path.read_bytes()

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="No space"):
        kr.save_weights(victim, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
