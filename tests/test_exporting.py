"""Tests of exported SavedModels: atomic, versioned, each weight stored once, and equal outputs in every reader."""

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import keras_residual as kr
from keras_residual import exporting, registry
from keras_residual.exporting.bundle import golden_inputs, verify
from keras_residual.exporting.readback import answers_without_keras
from keras_residual.weights import Weights

from .tools import distance, distinct, noise, randomise

LABELS = [f"Klasse {i} ä" for i in range(10)]
RECORD = Weights("nowhere", "resnet20", 10, (32, 32, 3), interpolation="bicubic", labels=tuple(LABELS))
ENTRIES = list(registry.entries().values())
SHOWN = [registry.entries()[name] for name in ("ResNet20", "ViTTiny16", "ResidualMLP")]


@pytest.fixture(scope="module")
def model():
    """Build a minimal model with padding, a foldable normalisation, pooling, and a classifier with logits."""
    inputs = keras.Input((32, 32, 3))
    x = kr.blocks.conv_norm(inputs, 16, stride=2, activation="relu", name="stem")
    x = keras.layers.GlobalAveragePooling2D(name="global_pool")(keras.layers.Dropout(0.5)(x))
    return randomise(keras.Model(inputs, keras.layers.Dense(10, name="fc")(x), name="small"))


@pytest.fixture(scope="module")
def images(tmp_path_factory, model):
    """An export of a model with preprocessing and labels."""
    return kr.export(model, tmp_path_factory.mktemp("models") / "pets", preprocess=RECORD, top_k=3)


def ask(version, x, signature="serving_default"):
    outputs = tf.saved_model.load(str(version)).signatures[signature](inputs=tf.constant(x))
    return {name: value.numpy() for name, value in outputs.items()}


def test_a_process_without_keras_gives_the_same_answers(images, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3)).astype("float32")
    answers = answers_without_keras(images, pixels)
    expected = ask(images, pixels)
    assert answers.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(answers[name], value, atol=1e-6)
    with pytest.raises(RuntimeError, match="must load without Keras"):
        answers_without_keras(tmp_path, pixels)


def png(pixels):
    return tf.io.encode_png(pixels).numpy()


def names_of_tensors(version):
    """Return the graph's names of each signature's input and outputs."""
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((version / "saved_model.pb").read_bytes())
    return {
        name: (signature.inputs["inputs"].name, {key: value.name for key, value in signature.outputs.items()})
        for name, signature in saved.meta_graphs[0].signature_def.items()
        if signature.inputs
    }


def ask_c_api(version, requests, folder):
    """Run `(signature, array)` with TensorFlow's C API in a process without Python's TensorFlow."""
    known, asked = names_of_tensors(version), []
    for signature, _ in requests:
        given, outputs = known[signature]
        asked.append({"input": given, "outputs": list(outputs.values())})
    (folder / "requests.json").write_text(json.dumps(asked))
    np.savez(folder / "in.npz", **{str(i): np.asarray(x) for i, (_, x) in enumerate(requests)})
    command = [Path(__file__).with_name("c_reader.py"), Path(tf.__file__).parent, version]
    command += [folder / "requests.json", folder / "in.npz", folder / "out.npz"]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answers = np.load(folder / "out.npz", allow_pickle=True)
    return [
        {name: answers[f"{i}.{j}"] for j, name in enumerate(known[signature][1])}
        for i, (signature, _) in enumerate(requests)
    ]


# --------------------------------------------------------------------------------------------------------- numbers


def test_numbers_and_versions(tmp_path, model):
    first, second, third = kr.export(model, tmp_path), kr.export(model, tmp_path, version=7), kr.export(model, tmp_path)
    assert [first.name, second.name, third.name] == ["1", "7", "8"]
    with pytest.raises(FileExistsError):
        kr.export(model, tmp_path, version=7)
    for batch in (1, 5):
        x = noise((batch, 32, 32, 3))
        outputs = ask(third, x)
        assert list(outputs) == ["outputs"], "logits without labels are no probabilities"
        assert distance(outputs["outputs"], model(x, training=False)) < 1e-5
    assert ask(third, noise((0, 32, 32, 3)))["outputs"].shape == (0, 10)
    x = noise((2, 32, 32, 3))
    pooled = keras.Model(model.input, model.get_layer("global_pool").output)
    assert distance(ask(third, x, "features")["features"], pooled(x, training=False)) < 1e-5


@pytest.mark.parametrize("entry", SHOWN, ids=lambda entry: entry.config.name)
def test_c_api_reads_a_network_a_transformer_and_a_vector(entry, tmp_path):
    """Probabilities and most likely classes from TensorFlow's C loader equal those of the Keras model."""
    check_c_api(entry, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("entry", distinct(ENTRIES), ids=lambda entry: entry.config.name)
def test_c_api_reads_every_model(entry, tmp_path):
    check_c_api(entry, tmp_path)


def check_c_api(entry, folder):
    model = randomise(entry.build(entry.config.tiny(), classes=10, classifier_activation="softmax"))
    version = kr.export(model, folder / "model")
    x = noise((3, *model.input_shape[1:]), 4)
    answers = ask_c_api(version, [("serving_default", x), ("features", x[:1])], folder)
    expected = np.asarray(model(x, training=False))
    assert distance(answers[0]["probabilities"], expected) < 1e-5
    best = np.argsort(-expected, -1, kind="stable")[:, :5]
    np.testing.assert_allclose(np.take_along_axis(expected, answers[0]["classes"], -1), answers[0]["scores"], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(expected, best, -1), answers[0]["scores"], atol=1e-5)
    bare = entry.build(entry.config.tiny(), classes=0)
    for ours, theirs in zip(bare.variables, model.variables, strict=False):  # the classifier's come last
        ours.assign(theirs)
    if len(bare.variables) < len(model.variables) and bare.variables:
        assert distance(answers[1]["features"], bare(x[:1], training=False)) < 1e-5


@pytest.mark.parametrize("shape", [(64, 2), (16, 32, 32, 2)])
def test_signals_and_volumes(tmp_path, shape):
    entry = registry.entries()["ResNet18"]
    model = randomise(entry.build(entry.config.tiny(), input_shape=(*[None] * (len(shape) - 1), 2), classes=4))
    version = kr.export(model, tmp_path)
    x = noise((2, *shape))
    assert set(names_of_tensors(version)) == {"serving_default", "features"}
    assert distance(ask(version, x)["probabilities"], model(x, training=False)) < 1e-5


@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)])
def test_half_precision_serves_float32(tmp_path, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        half = randomise(kr.ResNet20(input_shape=(16, 16, 3), classes=10, classifier_activation=None))
    finally:
        keras.config.set_dtype_policy(before)
    full = kr.ResNet20(input_shape=(16, 16, 3), classes=10, classifier_activation=None)
    for a, b in zip(full.variables, half.variables, strict=True):
        a.assign(b)
    version, x = kr.export(half, tmp_path), noise((2, 16, 16, 3))
    for signature in ("serving_default", "features"):
        assert all(value.dtype == np.float32 for value in ask(version, x, signature).values())
    assert distance(ask(version, x)["outputs"], full(x, training=False)) < 0.05


def test_what_is_a_probability(tmp_path, model):
    """Softmax and sigmoid outputs are probabilities, logits are converted if there are labels, others are unchanged."""
    x = noise((2, 32, 32, 3))
    logits = np.asarray(model(x, training=False), "float64")
    softmax = np.exp(logits - logits.max(-1, keepdims=True))
    softmax /= softmax.sum(-1, keepdims=True)
    ways = {
        "labelled": (model, LABELS, softmax),
        "softmax": (keras.Model(model.input, keras.layers.Softmax()(model.output)), None, softmax),
        "sigmoid": (keras.Model(model.input, keras.layers.Activation("sigmoid")(model.output)), LABELS, None),
        "nested": (keras.Sequential([keras.Input((32, 32, 3)), model, keras.layers.Softmax()]), None, softmax),
    }
    for name, (network, labels, expected) in ways.items():
        outputs = ask(kr.export(network, tmp_path / name, labels=labels), x)
        expected = 1 / (1 + np.exp(-logits)) if expected is None else expected
        assert distance(outputs["probabilities"], expected) < 1e-5, name


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_dense_layers_on_sequences_are_products_that_fuse(tmp_path, policy):
    """The graph adds a bias directly to a matrix product, without a reshape; the model is not changed."""
    inputs = keras.Input((None, 6, 16))
    inner = keras.Sequential([keras.Input((None, 6, 8)), keras.layers.Dense(4, dtype=policy)])
    x = keras.layers.Dense(8, "tanh", dtype=policy)(inputs)
    outputs = keras.layers.Dense(5, use_bias=False, dtype=policy)(inner(x))
    model = randomise(keras.Model(inputs, outputs))
    version, x = kr.export(model, tmp_path), noise((2, 7, 6, 16))
    got = ask(version, x)["outputs"]
    assert got.shape == (2, 7, 6, 5)
    assert distance(got, keras.ops.cast(model(x, training=False), "float32")) < (1e-5 if policy == "float32" else 0.02)
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((version / "saved_model.pb").read_bytes())
    (core,) = (f for f in saved.meta_graphs[0].graph_def.library.function if "pruned" in f.signature.name)
    made_by = {node.name: node.op for node in core.node_def}
    biases = [made_by[node.input[0].partition(":")[0]] for node in core.node_def if node.op == "BiasAdd"]
    assert biases == ["MatMul", "MatMul"]
    assert not any("call" in vars(layer) for layer in model._flatten_layers())


FUSED = """
    import sys
    import tensorflow as tf
    from tensorflow.core.protobuf import config_pb2
    from tensorflow.python.framework.function_def_to_graph import function_def_to_graph
    from tensorflow.python.grappler import tf_optimizer

    for version in sys.argv[1:]:
        serving = tf.saved_model.load(version).signatures["serving_default"]
        (core,) = (f for f in serving.graph.as_graph_def().library.function if "pruned" in f.signature.name)
        network = function_def_to_graph(core, [serving.inputs[0].shape])
        definition = network.as_graph_def()
        for node in definition.node:
            node.device = "/job:localhost/replica:0/task:0/device:CPU:0"
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(definition, name="")
            graph.add_to_collection("train_op", graph.get_tensor_by_name(network.outputs[0].name))
            meta = tf.compat.v1.train.export_meta_graph(graph=graph)
        config = config_pb2.ConfigProto()
        config.graph_options.rewrite_options.min_graph_nodes = -1
        nodes = tf_optimizer.OptimizeGraph(config, meta).node
        print(*sorted(f"{node.attr['epsilon'].f:.6f}" for node in nodes if node.op == "_MklLayerNorm"), end=" ")
        print(*sorted(node.attr["fused_ops"].list.s[-1].decode() for node in nodes if node.op == "_FusedMatMul"))
"""


@pytest.mark.long
def test_layer_normalisations_and_gelu_are_one_operation(tmp_path):
    """As TensorFlow rewrites the graph where oneDNN is on. It puts 0.001 in the place of the epsilon of other forms of
    the normalisation: values so small tell one from another."""
    versions = []
    between = keras.layers.ReLU, keras.layers.ReLU, lambda: keras.layers.DepthwiseConv2D(3, padding="same")
    for shape, kind in zip(((16,), (7, 16), (5, 6, 16)), between, strict=True):
        inputs = keras.Input(shape)
        x = keras.layers.LayerNormalization(epsilon=1e-6)(kind()(inputs))
        x = keras.layers.LayerNormalization(epsilon=0.5)(kind()(x))
        outputs = keras.layers.LayerNormalization(epsilon=1e-3)(kind()(x))
        outputs = kr.blocks.mlp(outputs, 8, name="mlp")
        model = randomise(keras.Model(inputs, outputs))
        versions.append(kr.export(model, tmp_path))
        x = 0.01 * noise((3, *shape))
        assert distance(ask(versions[-1], x)["outputs"], model(x, training=False)) < 1e-5
        assert ask(versions[-1], x[:0])["outputs"].shape == (0, *shape)
    command = [sys.executable, "-c", textwrap.dedent(FUSED), *map(str, versions)]
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.splitlines() == ["0.000001 0.001000 0.500000 BiasAdd GeluExact"] * 3, done.stderr[-2000:]


def test_gelu_that_others_use_too_stays(tmp_path):
    """A dense layer whose output is wanted, one used twice, one without a bias, and a GELU of two dense layers."""
    inputs, gelu = keras.Input((6, 16)), keras.layers.Activation(kr.layers.gelu)
    wanted, shared = keras.layers.Dense(16), keras.layers.Dense(16)
    x = wanted(inputs)
    x = x + keras.layers.Activation(kr.layers.gelu)(x)
    x = keras.layers.Activation(kr.layers.gelu)(shared(x)) + keras.layers.Activation(kr.layers.gelu)(shared(inputs))
    x = gelu(keras.layers.Dense(16)(x)) + gelu(keras.layers.Dense(16)(inputs))
    x = keras.layers.Activation(kr.layers.gelu)(keras.layers.Dense(16, use_bias=False)(x))
    model = randomise(keras.Model(inputs, keras.layers.Activation(kr.layers.gelu)(keras.layers.Dense(16, "relu")(x))))
    x = noise((3, 6, 16))
    assert distance(ask(kr.export(model, tmp_path), x)["outputs"], model(x, training=False)) < 1e-5
    assert not any("call" in vars(layer) for layer in model._flatten_layers())


def test_layer_normalisations_of_other_kinds_stay(tmp_path):
    inputs = keras.Input((6, 16))
    x = keras.layers.LayerNormalization(axis=1)(inputs)
    x = keras.layers.LayerNormalization(scale=False)(keras.layers.LayerNormalization(center=False)(x))
    x = keras.layers.LayerNormalization(dtype="mixed_bfloat16")(keras.layers.LayerNormalization(axis=(1, 2))(x))
    model = randomise(keras.Model(inputs, keras.layers.Activation("linear", dtype="float32")(x)))
    x = noise((3, 6, 16))
    assert distance(ask(kr.export(model, tmp_path), x)["outputs"], model(x, training=False)) < 1e-5


def test_several_outputs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="one input and one output"):
        kr.export(kr.features("ResNet20", levels=(1, 2)), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": ["a", "b"]}, "2 names"),
        ({"labels": ["a\nb"] * 10}, "line breaks"),
        ({"preprocess": kr.weights.Preprocess((64, 64))}, r"\(64, 64, 3\)"),
        ({"top_k": 0}, "top_k"),
        ({"version": 0}, "version"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, model, options, words):
    with pytest.raises(ValueError, match=words):
        kr.export(model, tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_preprocessing_of_signals_is_refused(tmp_path):
    with pytest.raises(ValueError, match="1 or 3 channels"):
        kr.export(kr.ResidualMLP(), tmp_path, preprocess=RECORD)


# --------------------------------------------------------------------------------------------------- what is written


def size(version):
    return sum(path.stat().st_size for path in version.rglob("*") if path.is_file() and "assets" not in str(path))


@pytest.mark.parametrize("freeze", [True, False])
def test_each_weight_once_without_optimizer(tmp_path, model, freeze):
    wide = keras.Model(model.input, keras.layers.Dense(1000)(keras.layers.Dense(500)(model.output)))
    wide.compile("adam", "sparse_categorical_crossentropy")
    wide.optimizer.build(wide.trainable_variables)
    version = kr.export(wide, tmp_path, freeze=freeze, fold=freeze)
    assert 4 * wide.count_params() < size(version) < 4 * wide.count_params() + 200_000
    x = noise((2, 32, 32, 3))
    assert distance(ask(version, x)["outputs"], wide(x, training=False)) < 1e-5


def test_too_large_for_a_graph(tmp_path, model, monkeypatch):
    monkeypatch.setattr(exporting, "LARGEST_GRAPH", 1000)
    with pytest.warns(UserWarning, match="without freezing"):
        version = kr.export(model, tmp_path)
    assert (version / "variables" / "variables.data-00000-of-00001").stat().st_size > 3 * model.count_params()
    assert not json.loads((version / "metadata.json").read_text())["frozen"]


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path):
    """A real model with 2.3 GB of weights, more than a graph can contain."""
    inputs = keras.Input((24_000,))
    model = keras.Model(inputs, keras.layers.Dense(24_000, kernel_initializer="ones", name="large")(inputs))
    with pytest.warns(UserWarning, match=r"without freezing: its weights are 2.1 GiB"):
        version = kr.export(model, tmp_path)
    assert 2**31 < size(version) < 2**31 + 2**28
    x = np.eye(24_000, dtype="float32")[:2]
    np.testing.assert_array_equal(ask(version, x)["outputs"], np.ones((2, 24_000)))


def test_the_card_says_what_it_is_told(tmp_path, model):
    version = kr.export(model, tmp_path, notes="Trained on nothing: *do not use*.")
    card = (version / "README.md").read_text(encoding="utf-8")
    assert card.index("small") < card.index("Trained on nothing: *do not use*.") < card.index("| `serving_default` |")


def test_the_bundle(images):
    names = {str(path.relative_to(images.parent)) for path in images.parent.rglob("*") if path.is_file()}
    beside = {"models.config", "batching_parameters.txt", "docker-compose.yml", "client_rest.py", "client_grpc.py"}
    inside = {"saved_model.pb", "metadata.json", "README.md", "labels.txt", "assets/labels.txt"}
    inside |= {"assets.extra/tf_serving_warmup_requests"}
    assert beside | {f"1/{name}" for name in inside} <= names
    assert (images / "labels.txt").read_text(encoding="utf-8").splitlines() == LABELS
    about = json.loads((images / "metadata.json").read_text(encoding="utf-8"))
    assert about["preprocessing"]["interpolation"] == "bicubic"
    for name, digest in about["sha256"].items():
        assert hashlib.sha256((images / name).read_bytes()).hexdigest() == digest
    batching = (images.parent / "batching_parameters.txt").read_text()
    assert (
        batching.split("allowed_batch_sizes: ")[-1].strip() == batching.split("max_batch_size { value: ")[1].split()[0]
    )
    assert 'name: "pets"' in (images.parent / "models.config").read_text()


def test_the_golden_pair_is_the_models(images, model):
    """The request described in metadata.json and the recorded response agree with the Keras model."""
    golden = json.loads((images / "metadata.json").read_text(encoding="utf-8"))["golden"]["serving_default"]
    assert golden["inputs"]["values"] == "floor(127.5 * (1 + sin(k))), k = 0, 1, 2, ... in C order"
    pixels = np.floor(127.5 * (1 + np.sin(np.arange(32 * 32 * 3)))).reshape(1, 32, 32, 3).astype("float32")
    assert np.array_equal(golden_inputs(golden["inputs"]), pixels)
    expected = keras.ops.softmax(model(kr.preprocessing(RECORD)(pixels), training=False))
    assert distance(golden["outputs"]["probabilities"], expected) < 1e-5


def test_verify(images, tmp_path, model):
    found = verify(images)
    assert set(found) == {"serving_default", "serving_uint8", "serving_bytes", "features", "classify"}
    assert max(found.values()) < 1e-6
    other = kr.export(model, tmp_path / "other")
    about = json.loads((other / "metadata.json").read_text())
    about["golden"]["serving_default"]["outputs"]["outputs"][0][3] += 0.1
    (other / "metadata.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="equal those recorded at export"):
        verify(other)
    (other / "saved_model.pb").write_bytes((other / "saved_model.pb").read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="was changed or deleted"):
        verify(other)
    with pytest.raises(FileNotFoundError, match="directory of an exported version"):
        verify(tmp_path)


def test_warm_up_requests_are_servings_own(images, tmp_path):
    """Warm-up requests are valid TensorFlow Serving messages and run in TensorFlow's loader."""
    prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    records = tf.data.TFRecordDataset(str(images / "assets.extra" / "tf_serving_warmup_requests"))
    requests = []
    for record in records.as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog()
        log.ParseFromString(record)
        request = log.predict_log.request
        assert list(request.inputs) == ["inputs"]
        requests.append((request.model_spec.signature_name, tf.make_ndarray(request.inputs["inputs"])))
    assert {name for name, _ in requests} == set(names_of_tensors(images))
    for (name, _), answer in zip(requests, ask_c_api(images, requests, tmp_path), strict=True):
        assert all(len(value) == 1 for value in answer.values()), name


# -------------------------------------------------------------------------------------------- nothing half-visible


def test_an_interrupted_export_leaves_nothing(tmp_path, model, monkeypatch):
    kr.export(model, tmp_path)
    before = {path.name for path in tmp_path.iterdir()}
    save = tf.saved_model.save

    def interrupted(*arguments, **options):
        save(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(tf.saved_model, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kr.export(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_a_model_that_answers_otherwise_is_not_written(tmp_path, model, monkeypatch):
    fold = exporting.fold_batch_norm
    monkeypatch.setattr(exporting, "fold_batch_norm", lambda model: randomise(fold(model), seed=9))
    with pytest.raises(RuntimeError, match="must equal the model's"):
        kr.export(model, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.isdigit() or path.name.endswith(".part")]


def test_two_exports_at_once_get_two_numbers(tmp_path, monkeypatch):
    models, rename = tmp_path / "models", os.rename
    for name in ("mine", "theirs", "models"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()

    def late(source, target):
        if not (models / "1").exists():  # the other one is faster
            rename(tmp_path / "theirs", models / "1")
        rename(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert exporting._publish(tmp_path / "mine", models, None).name == "2"
    assert (models / "1" / "theirs").exists()
    assert (models / "2" / "mine").exists()


FULL = """
    import resource, signal, sys
    import keras_residual as kr
    model = kr.ResNet20(input_shape=(32, 32, 3))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
    for freeze in (True, False):
        try:
            kr.export(model, sys.argv[1], freeze=freeze)
        except OSError as error:
            print("OSError", error)
"""


@pytest.mark.slow
def test_a_full_disk(tmp_path, model):
    version = kr.export(model, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    command = [sys.executable, "-c", textwrap.dedent(FULL), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.count(f"OSError No version was written to {tmp_path}") == 2, done.stderr[-2000:]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [version.name]


KILLED = """
    import os, signal, sys, threading, time
    import keras_residual as kr
    from keras_residual.exporting import bundle  # TensorFlow, too: imported once, and forked before it starts threads
    for moment in sys.stdin:
        child = os.fork()
        if not child:
            model = kr.ResNet20(input_shape=(32, 32, 3))
            print("ready", flush=True)
            if moment == "never\\n":
                start = time.monotonic()
                kr.export(model, sys.argv[1])
                print(time.monotonic() - start, flush=True)
                os._exit(0)
            threading.Timer(float(moment), os.kill, (os.getpid(), signal.SIGKILL)).start()
            while True:
                kr.export(model, sys.argv[1])
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_sigkill_never_leaves_half_a_version(tmp_path):
    """Kill exports fifty times at random moments while a reader polls like a server."""
    generator, whole, seen = np.random.default_rng(0), None, set()
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **pipes) as process:

        def ask(moment):
            print(moment, file=process.stdin, flush=True)
            assert process.stdout.readline() == "ready\n"

        ask("never")
        seconds = float(process.stdout.readline())
        assert process.stdout.readline() == "0\n"
        for _ in range(50):
            ask(generator.uniform(0, 2 * seconds))
            while not select.select([process.stdout], [], [], 0)[0]:
                for version in tmp_path.glob("[0-9]*"):
                    if version not in seen:
                        seen.add(version)
                        files = {str(path.relative_to(version)) for path in version.rglob("*")}
                        whole = whole or files
                        assert files == whole
            assert process.stdout.readline() == f"{-signal.SIGKILL}\n"
        process.stdin.close()
    assert len(seen) > 1, "some were killed after their first version"
    for version in seen:
        verify(version)
    kr.export(kr.ResNet20(input_shape=(32, 32, 3)), tmp_path)
    assert not list(tmp_path.glob(".*.part")), "what the killed ones left is cleared away"
