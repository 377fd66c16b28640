"""Files next to an exported SavedModel: model card, metadata, warm-up requests, serving configuration, clients."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_residual import __version__
from keras_residual.exporting.graph import EXAMPLE_KEY, Served
from keras_residual.folding import Folding
from keras_residual.io import sha256, written_whole
from keras_residual.reading.graph import FORMATS
from keras_residual.reading.rules import Reading

__all__ = ["complete", "describe", "verify", "write_serving_files"]

BATCHES = (1, 2, 4, 8, 16, 32)
WARM_UP = Path("assets.extra") / "tf_serving_warmup_requests"
METADATA = "metadata.json"
# Folding and freezing change the outputs by rounding errors, which are larger in half precision.
TOLERANCE = {"float32": 1e-4, "float64": 1e-4}
MODEL_INPUT = "float32 sin(k), k = 0, 1, 2, ... in C order"
PIXELS = "floor(127.5 * (1 + sin(k))), k = 0, 1, 2, ... in C order"


def complete(
    version: Path,
    model: keras.Model,
    served: Served,
    labels: Sequence[str] | None,
    preprocess: keras.layers.Layer | None,
    report: Folding,
    notes: str,
    reading: Reading,
) -> None:
    """Run every signature of a written SavedModel, compare its outputs with the model's, and write the other files.

    Raises:
        RuntimeError: If the outputs differ from the model's.
    """
    loaded = tf.saved_model.load(str(version)).signatures
    golden: dict[str, Any] = {}
    (version / WARM_UP).parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(version / WARM_UP)) as warm_up:
        for name, function in served.signatures.items():
            spec = function.input_signature[0]
            inputs, description = _example(name, spec, model, preprocess)
            outputs = {key: value.numpy() for key, value in loaded[name](inputs=tf.constant(inputs)).items()}
            golden[name] = {"inputs": description, "outputs": {key: _plain(value) for key, value in outputs.items()}}
            warm_up.write(_prediction_log(name, inputs))
            if name == "serving_default":
                _compare(model, preprocess, served, inputs, outputs)
    if labels is not None:
        shutil.copyfile(version / "assets" / "labels.txt", version / "labels.txt")
    about = {
        "name": model.name,
        "format": "TensorFlow SavedModel",
        "parameters": model.count_params(),
        "precision": {"compute": model.dtype_policy.name, "outputs": "float32"},
        "frozen": served.frozen,
        "batch_normalisations": {
            "folded": len(report.after) + len(report.before),
            "kept": report.kept,
        },
        "probabilities": served.activation or None,
        "classes": None if labels is None else len(labels),
        "preprocessing": None if preprocess is None else _config(preprocess),
        "reading": None
        if preprocess is None
        else dataclasses.replace(reading, channels=model.inputs[0].shape[-1]).to_dict() | {"formats": FORMATS},
        "signatures": {name: _signature(loaded[name]) for name in served.signatures},
        "versions": {
            "keras_residual": __version__,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "python": platform.python_version(),
        },
        "golden": golden,
        "sha256": {str(file.relative_to(version)): sha256(file) for file in _files(version)},
    }
    (version / "README.md").write_text(_card(about, notes), encoding="utf-8")
    about["sha256"]["README.md"] = sha256(version / "README.md")
    (version / METADATA).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def verify(version: str | os.PathLike[str]) -> dict[str, float]:
    """Verify an exported version: the SHA-256 of each file, and the outputs of each signature for its golden request.

    Args:
        version: A directory that `keras_residual.export` returned.

    Returns:
        Largest relative difference between the outputs and the recorded ones, for each signature.

    Raises:
        FileNotFoundError: If the directory is not an exported version.
        ValueError: If a file was changed, or if the outputs of a signature differ from the recorded ones.
    """
    version = Path(version)
    if not (version / METADATA).is_file():
        raise FileNotFoundError(
            f"{str(version)!r} must be the directory of an exported version, which contains {METADATA}."
        )
    about = json.loads((version / METADATA).read_text(encoding="utf-8"))
    for name, digest in about["sha256"].items():
        if not (version / name).is_file() or sha256(version / name) != digest:
            raise ValueError(f"{version / name} was changed or deleted after the export. Export the model again.")
    loaded, differences = tf.saved_model.load(str(version)).signatures, {}
    for name, pair in about["golden"].items():
        outputs = loaded[name](inputs=tf.constant(golden_inputs(pair["inputs"])))
        difference = 0.0
        for key, wanted in pair["outputs"].items():
            got = _plain(outputs[key].numpy())
            if outputs[key].dtype.is_floating:
                difference = max(difference, _distance(got, wanted))
            elif got != wanted and name in ("serving_default", "serving_bytes"):
                difference = max(difference, 0.0 if key in ("classes", "labels") else float("inf"))
        differences[name] = difference
        tolerance = TOLERANCE.get(about["precision"]["compute"], 0.05)
        if not difference <= tolerance:
            raise ValueError(
                f"{version}: the outputs of the signature {name} must equal those recorded at export; they differ by "
                f"{difference:.1e}."
            )
    return differences


# ------------------------------------------------------------------------------------------------ golden and warm-up


def golden_inputs(description: dict[str, Any]) -> Any:
    """Return the array that a golden request in `metadata.json` describes."""
    if "base64" in description:
        return np.array([base64.b64decode(item) for item in description["base64"]], object)
    k = np.arange(np.prod(description["shape"]), dtype="float64").reshape(description["shape"])
    values = np.sin(k) if description["values"] == MODEL_INPUT else np.floor(127.5 * (1 + np.sin(k)))
    return values.astype(description["dtype"])


def _example(name: str, spec: Any, model: keras.Model, preprocess: Any) -> tuple[Any, dict[str, Any]]:
    """Return one sample that is easy to compute in any language, and its description for `metadata.json`."""
    if spec.dtype == tf.string:
        shape = (32, 32, model.inputs[0].shape[-1])
        pixels = golden_inputs({"shape": shape, "dtype": "uint8", "values": PIXELS})
        content = tf.io.encode_png(pixels).numpy()
        if name == "classify":
            feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
            example = tf.train.Example(features=tf.train.Features(feature={EXAMPLE_KEY: feature}))
            content = example.SerializeToString(deterministic=True)
        description: dict[str, Any] = {"base64": [base64.b64encode(content).decode()]}
        return golden_inputs(description), description
    default = {3: 256, 4: 32 if preprocess is not None else 224, 5: 32}.get(len(spec.shape), 1)
    shape = [1, *(default if size is None else int(size) for size in spec.shape[1:])]
    values = MODEL_INPUT if preprocess is None else PIXELS
    description = {"shape": shape, "dtype": spec.dtype.name, "values": values}
    return golden_inputs(description), description


def _compare(model: keras.Model, preprocess: Any, served: Served, inputs: Any, outputs: dict[str, Any]) -> None:
    x = inputs if preprocess is None else preprocess(inputs)
    wanted: Any = keras.ops.cast(model(x, training=False), "float32")
    got = outputs["outputs"] if "outputs" in outputs else outputs["probabilities"]
    if served.activation == "softmax" and abs(float(keras.ops.sum(wanted[0])) - 1) > 1e-3:
        wanted = keras.ops.softmax(wanted)
    difference = _distance(got, np.asarray(wanted))
    policies = {layer.compute_dtype for layer in model.layers}
    if not difference <= (0.05 if policies & {"float16", "bfloat16"} else 1e-4):
        raise RuntimeError(
            f"The outputs of the exported {model.name} must equal the model's; they differ by {difference:.1e}. "
            "Nothing was exported."
        )


def _distance(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours, "float64"), np.asarray(theirs, "float64")
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.abs(ours - theirs).max(initial=0) / max(np.abs(theirs).max(initial=0), 1e-12))


def _plain(value: Any) -> Any:
    """Convert an array to values that JSON can represent."""
    if value.dtype == object:
        return np.vectorize(lambda item: item.decode("utf-8", "replace"), otypes=[object])(value).tolist()
    return value.tolist()


def _prediction_log(signature: str, inputs: Any) -> bytes:
    """Serialize a Predict request as TensorFlow Serving's PredictionLog.

    The messages are encoded by hand to avoid a dependency on tensorflow-serving-api. Field numbers:
    PredictionLog.predict_log = 6, PredictLog.request = 1, PredictRequest.model_spec = 1 and .inputs = 2 (a map),
    ModelSpec.signature_name = 3.
    """
    tensor = tf.make_tensor_proto(inputs).SerializeToString()
    entry = _field(1, b"inputs") + _field(2, tensor)
    request = _field(1, _field(3, signature.encode())) + _field(2, entry)
    return _field(6, _field(1, request))


def _field(number: int, content: bytes) -> bytes:
    """Serialize a length-delimited field of a protobuf message."""
    size, length = len(content), bytearray()
    while size > 127:
        length.append(size % 128 + 128)
        size //= 128
    return bytes([number * 8 + 2, *length, size]) + content


# ----------------------------------------------------------------------------------------- metadata and model card


def _signature(function: Any) -> dict[str, Any]:
    _, inputs = function.structured_input_signature
    described = {"inputs": inputs, "outputs": function.structured_outputs}
    return {
        kind: {name: {"dtype": spec.dtype.name, "shape": spec.shape.as_list()} for name, spec in sorted(specs.items())}
        for kind, specs in described.items()
    }


def _config(preprocess: keras.layers.Layer) -> dict[str, Any]:
    return {
        "class": type(preprocess).__name__,
        **{key: value for key, value in preprocess.get_config().items() if key not in ("name", "trainable", "dtype")},
    }


def _settings(config: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in config.items() if key != "class")


def describe(preprocess: keras.layers.Layer) -> str:
    """Describe the settings of a preprocessing layer in one line."""
    return _settings(_config(preprocess))


def _rules(reading: dict[str, Any]) -> str:
    """Describe how transparent and deep images are read."""
    color = reading["background"]
    alpha = "lose their alpha channel" if color is None else f"are composited on the color {tuple(color)}"
    low, high = reading["range"] or ("0", "the largest value of their type")
    deep = f"have their values {low} to {high} mapped to 0..255" if reading["dtype"] == "float32" else "keep 8 bits"
    return f"transparent images {alpha}, and 16-bit images {deep}"


def _files(version: Path) -> Iterator[Path]:
    return (file for file in sorted(version.rglob("*")) if file.is_file() and file.name != METADATA)


def _card(about: dict[str, Any], notes: str) -> str:
    def shape(spec: dict[str, Any]) -> str:
        return f"{spec['dtype']} ({', '.join('N' if i == 0 else str(s or '?') for i, s in enumerate(spec['shape']))})"

    rows = []
    for name, parts in about["signatures"].items():
        cells = ("<br>".join(f"`{key}` {shape(spec)}" for key, spec in parts[kind].items()) for kind in parts)
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    lines = [
        f"# {about['name']}",
        "",
        f"{about['parameters']:,} parameters, exported by keras_residual {about['versions']['keras_residual']} with "
        f"TensorFlow {about['versions']['tensorflow']}; {'frozen' if about['frozen'] else 'not frozen'}, "
        f"{about['batch_normalisations']['folded']} batch normalisations folded.",
        "",
        *([notes.strip(), ""] if notes.strip() else []),
        "| signature | inputs | outputs |",
        "| --- | --- | --- |",
        *rows,
        "",
    ]
    given = about["preprocessing"]
    if given is not None:
        lines += [
            "Pixel values are 0..255. The graph includes the preprocessing: "
            + _settings(given)
            + f". Encoded images may be {', '.join(FORMATS[:-1])} or {FORMATS[-1]}. They are rotated according to "
            f"their EXIF orientation, and {_rules(about['reading'])}. If an image "
            'cannot be read, `errors` states the reason and its other outputs are zeros, -1 and ""; the other images '
            "of the batch are not affected.",
            "",
        ]
    else:
        lines += ["`serving_default` takes the network's input; the client must preprocess the data.", ""]
    if about["classes"]:
        lines += [f"The names of the {about['classes']} classes are in `labels.txt`, one per line.", ""]
    lines += [
        "`metadata.json` contains the same information, the SHA-256 of each file, and a test request with its response "
        "for each signature.",
        "",
    ]
    return "\n".join(lines)


# ------------------------------------------------------------------------------------- files of the model's directory


def write_serving_files(path: Path, served: Served) -> None:
    """Write the configuration of TensorFlow Serving and two example clients into a model's directory."""
    name = path.resolve().name
    shape = served.signatures["serving_default"].input_signature[0].shape
    largest = max(BATCHES)
    batching = [
        f'      - "--{flag}"'
        for flag in ("enable_batching", f"batching_parameters_file=/models/{name}/batching_parameters.txt")
    ]
    if None in shape.as_list()[1:]:  # TensorFlow Serving cannot batch images of different sizes
        batching = [
            "      # Enable only if all requests have images of the same size or encoded images (serving_bytes):",
            *(line.replace("- ", "# - ", 1) for line in batching),
        ]
    texts = {
        "models.config": (
            "model_config_list {\n  config {\n"
            f'    name: "{name}"\n    base_path: "/models/{name}"\n    model_platform: "tensorflow"\n'
            "    model_version_policy { latest { num_versions: 1 } }\n  }\n}\n"
        ),
        "batching_parameters.txt": (
            f"max_batch_size {{ value: {largest} }}\nbatch_timeout_micros {{ value: 2000 }}\n"
            "max_enqueued_batches { value: 100 }\nnum_batch_threads { value: 4 }\n"
            + "".join(f"allowed_batch_sizes: {size}\n" for size in BATCHES)
        ),
        "docker-compose.yml": "\n".join(
            [
                "# docker compose up",
                "services:",
                "  serving:",
                "    image: ${TF_SERVING_IMAGE:-tensorflow/serving:latest}",
                "    ports:",
                '      - "127.0.0.1:8500:8500"  # gRPC',
                '      - "127.0.0.1:8501:8501"  # REST',
                "    environment:",
                "      TF_ENABLE_ONEDNN_OPTS: 1  # TensorFlow enables oneDNN by default only on CPUs with AVX-512",
                "    volumes:",
                f'      - ".:/models/{name}:ro"',
                "    command:",
                f'      - "--model_config_file=/models/{name}/models.config"',
                *batching,
                "",
            ]
        ),
    }
    clients = Path(__file__).parent / "templates"
    texts |= {file.name: file.read_text(encoding="utf-8") for file in sorted(clients.glob("client_*.py"))}
    for file, text in texts.items():
        with written_whole(path / file) as place:
            place.write_text(text, encoding="utf-8")
