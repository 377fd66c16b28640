"""Tests of the local server with independent clients: urllib, TensorFlow Serving's messages, Intel's client."""

import base64
import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_residual as kr

from .tools import distance, noise, randomise

grpc = pytest.importorskip("grpc")
pytest.importorskip("uvicorn")
apis = pytest.importorskip("tensorflow_serving.apis")
from tensorflow_serving.apis import (  # noqa: E402
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from keras_residual.serving import Server  # noqa: E402
from keras_residual.serving.models import State  # noqa: E402

LABELS = ["rot", "grün", "blau"]
SHAPE = (24, 32, 3)


def colours(gain=1.0):
    """A network whose logits are the mean colours."""
    inputs = keras.Input(SHAPE)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(gain)(inputs))
    return keras.Model(inputs, x, name="colours")


def prepare():
    return kr.weights.Preprocess(SHAPE[:2], (0.0,) * 3, (0.1,) * 3)


def tensors():
    inputs = keras.Input((12, 16))
    x = kr.blocks.conv_norm(inputs, 16, activation="relu", name="stem")
    return randomise(keras.Model(inputs, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling1D()(x)), name="net"))


@contextlib.contextmanager
def running(directory, **options):
    server = Server(directory, rest_port=0, grpc_port=0, poll=0.05, **options)
    ready = threading.Event()
    thread = threading.Thread(target=server.run, args=(ready.set,))
    thread.start()
    try:
        assert ready.wait(30)
        yield server
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def network():
    return tensors()


@pytest.fixture(scope="module")
def models(tmp_path_factory, network):
    folder = tmp_path_factory.mktemp("models")
    kr.export(colours(), folder / "colours", preprocess=prepare(), labels=LABELS, top_k=2)
    kr.export(network, folder / "net")
    (folder / "not a model").mkdir()
    return folder


@pytest.fixture(scope="module")
def server(models):
    with running(models, max_bytes=2_000_000) as server:
        yield server


def rest(server, path, body=None, method=None):
    """Send a REST request and return the status and the decoded response."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{server.rest_port}{path}", data, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def stub(server, service=prediction_service_pb2_grpc.PredictionServiceStub):
    return service(grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}"))


def predict_request(model, x, signature="", name="inputs", version=None):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    if version is not None:
        request.model_spec.version.value = version
    request.inputs[name].CopyFrom(tf.make_tensor_proto(x))
    return request


def png(colour):
    return tf.io.encode_png(np.full((30, 40, 3), colour, "uint8")).numpy()


def b64(content):
    return {"b64": base64.b64encode(content).decode()}


# ------------------------------------------------------------------------------------------------------------ REST


def test_row_and_column_format(server, network):
    x = noise((3, 12, 16))
    expected = network(x, training=False)
    for path in ("/v1/models/net:predict", "/v1/models/net/versions/1:predict", "/V1/Models/net:PREDICT"):
        status, answer = rest(server, path, {"instances": x.tolist()})
        assert (status, list(answer)) == (200, ["predictions"])
        assert distance(answer["predictions"], expected) < 1e-5
    for inputs in (x.tolist(), {"inputs": x.tolist()}, {"inputs": x.tolist(), "something": "else"}):
        _, answer = rest(server, "/v1/models/net:predict", {"inputs": inputs})
        assert distance(answer["outputs"], expected) < 1e-5, "a single output has no name"
    _, answer = rest(server, "/v1/models/net:predict", {"instances": [{"inputs": row} for row in x.tolist()]})
    assert distance(answer["predictions"], expected) < 1e-5
    _, answer = rest(server, "/v1/models/net:predict", {"signature_name": "features", "inputs": x.tolist()})
    assert np.shape(answer["outputs"]) == (3, 16)


def test_encoded_images(server):
    contents = [png((250, 100, 0)), b"no image", png((0, 50, 200))]
    body = {"signature_name": "serving_bytes", "instances": [b64(c) for c in contents]}
    status, answer = rest(server, "/v1/models/colours:predict", body)
    rows = answer["predictions"]
    assert status == 200
    assert [row["labels"] for row in rows] == [["rot", "grün"], ["", ""], ["blau", "grün"]]
    assert [row["classes"] for row in rows] == [[0, 1], [-1, -1], [2, 1]]
    assert [row["errors"] for row in rows] == ["", "not a JPEG, PNG, WebP, GIF or BMP image", ""]
    status, answer = rest(
        server, "/v1/models/colours:predict", {**body, "inputs": body["instances"], "instances": None}
    )
    assert status == 400
    del body["instances"]
    _, answer = rest(server, "/v1/models/colours:predict", {**body, "inputs": {"inputs": [b64(c) for c in contents]}})
    assert answer["outputs"]["labels"] == [row["labels"] for row in rows]
    loose = [{"b64": f" {b64(content)['b64'].rstrip('=')}\n"} for content in contents]  # which C++ takes, too
    _, answer = rest(server, "/v1/models/colours:predict", {"signature_name": "serving_bytes", "inputs": loose})
    assert answer["outputs"]["labels"] == [row["labels"] for row in rows]
    pixels = np.full((1, 30, 40, 3), (0, 200, 100)).tolist()
    for signature in ("serving_default", "serving_uint8"):
        _, answer = rest(server, "/v1/models/colours:predict", {"signature_name": signature, "instances": pixels})
        assert answer["predictions"][0]["classes"] == [1, 2]


def test_classify(server):
    body = {
        "signature_name": "classify",
        "context": {"image/encoded": b64(png((250, 100, 0))), "height": 30, "names": ["a", "b"], "upright": True},
        "examples": [{}, {"image/encoded": b64(png((0, 50, 200)))}],
    }
    status, answer = rest(server, "/v1/models/colours:classify", body)
    assert status == 200
    assert list(answer) == ["results"], "as the server says; the manual of TensorFlow Serving has it both ways"
    assert [[label for label, _ in row] for row in answer["results"]] == [["rot", "grün"], ["blau", "grün"]]
    assert sum(score for _, score in answer["results"][0]) == pytest.approx(1, abs=1e-3)
    status, answer = rest(server, "/v1/models/colours:classify", {"examples": [{}]})
    assert status == 400
    assert "classification signature" in answer["error"]


def test_status_and_metadata(server):
    for path in ("/v1/models/net", "/v1/models/net/versions/1"):
        assert rest(server, path) == (
            200,
            {
                "model_version_status": [
                    {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
                ]
            },
        )
    status, answer = rest(server, "/v1/models/colours/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "colours", "signature_name": "", "version": "1"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "serving_uint8", "serving_bytes", "classify"}
    given = signatures["serving_uint8"]["inputs"]["inputs"]
    assert given["dtype"] == "DT_UINT8"
    assert [size["size"] for size in given["tensor_shape"]["dim"]] == ["-1", "-1", "-1", "3"]
    assert signatures["serving_bytes"]["method_name"] == "tensorflow/serving/predict"


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/models/net:predict", b"{", 400, "JSON Parse error"),
        ("/v1/models/net:predict", b"", 400, "JSON Parse error"),
        ("/v1/models/net:predict", b"\xff", 400, "JSON Parse error"),
        ("/v1/models/net:predict", b"[" * 100_000, 400, "JSON Parse error"),
        ("/v1/models/net:predict", [], 400, "must be a JSON object"),
        ("/v1/models/net:predict", {}, 400, "'instances' and 'inputs'"),
        ("/v1/models/net:predict", {"instances": []}, 400, "at least one"),
        ("/v1/models/net:predict", {"instances": 5}, 400, "at least one"),
        ("/v1/models/net:predict", {"instances": [[1, 2], [3]]}, 400, "must be a float32 tensor"),
        ("/v1/models/net:predict", {"instances": [["a"]]}, 400, "must be a float32 tensor"),
        ("/v1/models/net:predict", {"instances": [None]}, 400, "must be a float32 tensor"),
        ("/v1/models/net:predict", {"instances": [True]}, 400, "must be a float32 tensor"),
        ("/v1/models/net:predict", {"instances": [[[1.0, 2.0]]]}, 400, "(?, 12, 16); got float32 (1, 1, 2)"),
        ("/v1/models/net:predict", {"inputs": {"x": [1]}}, 400, "Missing named input: inputs"),
        ("/v1/models/net:predict", {"instances": [{"x": [1]}]}, 400, "Missing but required: {inputs}"),
        ("/v1/models/net:predict", {"instances": [{"inputs": 1}, {"x": 1}]}, 400, "same inputs"),
        ("/v1/models/net:predict", {"signature_name": "no", "instances": [1]}, 400, 'Serving signature key "no" not'),
        ("/v1/models/net:predict", {"signature_name": 3, "instances": [1]}, 400, "string"),
        ("/v1/models/colours:predict", {"signature_name": "serving_uint8", "inputs": [256]}, 400, "0 and 255"),
        ("/v1/models/colours:predict", {"signature_name": "serving_uint8", "inputs": [0.5]}, 400, "not a uint8"),
        ("/v1/models/colours:predict", {"signature_name": "serving_bytes", "inputs": [{"b64": "?"}]}, 400, "string"),
        ("/v1/models/colours:predict", {"signature_name": "serving_bytes", "inputs": [1]}, 400, "must be text"),
        ("/v1/models/colours:classify", {"signature_name": "classify", "examples": []}, 400, "at least one"),
        ("/v1/models/colours:classify", {"signature_name": "classify", "examples": [{"a": {}}]}, 400, 'feature "a"'),
        ("/v1/models/colours:classify", {"signature_name": "classify", "examples": [{"a": [1, 0.5]}]}, 400, '"a"'),
        ("/v1/models/colours:classify", {"signature_name": "classify", "examples": [{"a": 2**64}]}, 400, '"a"'),
        ("/v1/models/net:regress", {"examples": [{}]}, 400, "regression"),
        ("/v1/models/none:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(none)"),
        ("/v1/models/net/versions/7:predict", {"instances": [1]}, 404, "Specific(net, 7)"),
        (
            "/v1/models/net/labels/canary:predict",
            {"instances": [1]},
            400,
            "Unrecognized servable version label: canary",
        ),
        ("/v1/models/net/labels/canary", None, 400, "Unrecognized servable version label: canary"),
        ("/v1/models/net/versions/18446744073709551615", None, 400, "Failed to convert version"),
        ("/v1/models/net:guess", {}, 400, "Malformed request: POST /v1/models/net:guess"),
        ("/v1/models/net/metadata", {}, 400, "Malformed request: POST /v1/models/net/metadata"),
        ("/v1/models/net/version/50", None, 400, "Malformed request"),
        ("/v1/models/net/versions/1/labels/a", None, 400, "Malformed request"),
        ("/v1/models/none", None, 404, "Could not find any versions of model none"),
        ("/v1/models/none/metadata", None, 404, "Servable not found for request: Latest(none)"),
        ("/v1/models/net/versions/7", None, 404, "version 7 of model net"),
        ("/v1/models", None, 400, "Missing model name"),
        ("/v1/models/../../etc/passwd", None, 400, "Malformed"),
    ],
)
def test_errors(server, path, body, status, words):
    found, answer = rest(server, path, body)
    assert (found, list(answer)) == (status, ["error"])
    assert words in answer["error"]
    assert "Traceback" not in answer["error"]
    assert rest(server, "/v1/models/net")[0] == 200


def test_a_body_that_is_too_large(server):
    """The client gets the error although it is still sending, and the server's memory does not grow."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=60)
    connection.request("POST", "/v1/models/net:predict", (bytes(1 << 20) for _ in range(100)), encode_chunked=True)
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"] == "The request must have at most 2,000,000 bytes; got 104,857,600"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kilobytes"
    assert rest(server, "/v1/models/net")[0] == 200


@pytest.mark.long
def test_a_sender_that_stops_is_not_waited_for(models):
    with running(models, seconds=0.5) as server, socket.create_connection(("127.0.0.1", server.rest_port)) as line:
        line.sendall(b"POST /v1/models/net:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        line.settimeout(10)
        assert b"504 Gateway" in line.recv(1000)
        assert rest(server, "/v1/models/net")[0] == 200


@pytest.mark.long
def test_requests_under_way_are_answered_before_it_ends_or_told_that_it_took_too_long(models, monkeypatch):
    """Over gRPC the client's deadline counts, over REST the server's."""
    from keras_residual.serving.models import Version

    run, x = Version.run, noise((1, 12, 16))
    with running(models, seconds=1.0) as server, ThreadPoolExecutor() as pool:

        def slow(*arguments):
            time.sleep(2)
            return run(*arguments)

        monkeypatch.setattr(Version, "run", slow)
        asked = stub(server).Predict.future(predict_request("net", x), timeout=30)
        late = stub(server).Predict.future(predict_request("net", x), timeout=0.5)
        told = pool.submit(rest, server, "/v1/models/net:predict", {"instances": x.tolist()})
        assert told.result() == (504, {"error": "The request took longer than 1 s"})
        assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        server.stop()
        assert asked.result().model_spec.name == "net"


def test_it_is_ready_when_every_model_is(models, tmp_path):
    (tmp_path / "net").symlink_to(models / "net")
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "saved_model.pb").write_bytes(b"junk")
    with running(tmp_path) as server:

        def ready():
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=30)) as line:
                line.request("GET", "/healthz")
                return line.getresponse().status

        assert ready() == 503
        assert rest(server, "/v1/models/broken:predict", {"instances": [1]})[0] == 404
        assert rest(server, "/v1/models/net:predict", {"instances": noise((1, 12, 16)).tolist()})[0] == 200
        (tmp_path / "broken" / "2").symlink_to(models / "net" / "1")
        wait(lambda: ready() == 200)


def test_a_fault_of_its_own_is_told_and_survived(server, monkeypatch, caplog):
    from keras_residual.serving import rest as module

    monkeypatch.setattr(module.tensors, "answer", lambda *_, **__: 1 / 0)
    answer = rest(server, "/v1/models/net:predict", {"instances": noise((1, 12, 16)).tolist()})
    assert answer == (500, {"error": "ZeroDivisionError: division by zero"})
    assert "Traceback" in caplog.text
    assert rest(server, "/v1/models/net")[0] == 200


def test_it_is_for_this_machine_alone(server):
    assert server.host == "127.0.0.1"
    assert server._socket.getsockname()[0] == "127.0.0.1"


def test_the_page(server):
    url = f"http://127.0.0.1:{server.rest_port}"
    with urllib.request.urlopen(url, timeout=30) as response:
        text, policy = response.read().decode(), response.headers["Content-Security-Policy"]
    assert '"colours": {"version": 1, "images": true}' in text
    assert '"net": {"version": 1, "images": false}' in text
    assert "default-src 'none'" in policy
    with urllib.request.urlopen(f"{url}/healthz", timeout=30) as response:
        assert response.status == 200


# ------------------------------------------------------------------------------------------------------------ gRPC


def test_grpc_predict(server, network):
    x = noise((3, 12, 16))
    for version in (None, 1):
        response = stub(server).Predict(predict_request("net", x, version=version), timeout=30)
        assert distance(tf.make_ndarray(response.outputs["outputs"]), network(x, training=False)) < 1e-5
        spec = response.model_spec
        assert (spec.name, spec.version.value, spec.signature_name) == ("net", 1, "serving_default")
    request = predict_request("colours", [png((250, 100, 0)), b"?"], "serving_bytes")
    request.output_filter.append("labels")
    response = stub(server).Predict(request, timeout=30)
    assert list(response.outputs) == ["labels"]
    assert tf.make_ndarray(response.outputs["labels"]).tolist() == [[b"rot", "grün".encode()], [b"", b""]]


def test_grpc_classify_status_and_metadata(server):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[png((0, 50, 200))]))
    example = tf.train.Example(features=tf.train.Features(feature={"image/encoded": feature}))
    for way in ("example_list", "example_list_with_context"):
        request = classification_pb2.ClassificationRequest()
        request.model_spec.name, request.model_spec.signature_name = "colours", "classify"
        if way == "example_list":
            request.input.example_list.examples.append(example)
        else:
            request.input.example_list_with_context.context.CopyFrom(example)
            request.input.example_list_with_context.examples.add()
        result = stub(server).Classify(request, timeout=30).result
        assert [c.label for c in result.classifications[0].classes] == ["blau", "grün"]

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "net"
    response = stub(server).GetModelMetadata(request, timeout=30)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert [d.size for d in signatures.signature_def["serving_default"].inputs["inputs"].tensor_shape.dim] == [
        -1,
        12,
        16,
    ]

    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "net"
    response = stub(server, model_service_pb2_grpc.ModelServiceStub).GetModelStatus(request, timeout=30)
    assert [(v.version, v.state) for v in response.model_version_status] == [(1, State.AVAILABLE)]


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (predict_request("none", noise((1, 12, 16))), "NOT_FOUND", "Servable not found for request: Latest(none)"),
        (predict_request("net", noise((1, 12, 16)), version=7), "NOT_FOUND", "Specific(net, 7)"),
        (predict_request("net", noise((1, 12, 16)), "no"), "FAILED_PRECONDITION", 'signature key "no" not found'),
        (predict_request("net", noise((1, 12, 16)), name="x"), "INVALID_ARGUMENT", "Sent extra: {x}"),
        (predict_request("net", noise((1, 12, 15))), "INVALID_ARGUMENT", "got float32 (1, 12, 15)"),
        (predict_request("net", noise((1, 12, 16)).astype("float64")), "INVALID_ARGUMENT", "got float64"),
        (predict_request("net", [b"a"]), "INVALID_ARGUMENT", "got string"),
        (predict_request("", noise((1, 12, 16))), "INVALID_ARGUMENT", "no name"),
    ],
)
def test_grpc_errors(server, request_, code, words):
    with pytest.raises(grpc.RpcError) as raised:
        stub(server).Predict(request_, timeout=30)
    assert raised.value.code().name == code
    assert words in raised.value.details()


def test_grpc_damaged_and_large_requests(server):
    request = predict_request("net", noise((1, 12, 16)))
    request.inputs["inputs"].tensor_content = b"123"
    with pytest.raises(grpc.RpcError) as raised:
        stub(server).Predict(request, timeout=30)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as raised:
        stub(server).Predict(predict_request("net", noise((4000, 12, 16))), timeout=30)
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    for kind, values in (("float_val", [0.0]), ("string_val", [b"x" * 1000])):  # a bomb: one value for all elements
        request = predict_request("net", np.array(values))
        getattr(request.inputs["inputs"], kind)[:] = values
        request.inputs["inputs"].dtype = 1 if kind == "float_val" else 7
        request.inputs["inputs"].ClearField("tensor_content")
        request.inputs["inputs"].tensor_shape.dim[0].size = 10**12
        with pytest.raises(grpc.RpcError, match=r"not a valid tensor: (4,000,000,000,000 bytes|1 strings)"):
            stub(server).Predict(request, timeout=30)
    request = predict_request("net", noise((1, 12, 16)))
    request.output_filter.append("no")
    with pytest.raises(grpc.RpcError, match="alias not found"):
        stub(server).Predict(request, timeout=30)


# --------------------------------------------------------------------------------------------------- other clients


def test_intels_client(server, network):
    """Over REST and gRPC."""
    ovmsclient = pytest.importorskip("ovmsclient")
    x = noise((2, 12, 16))
    expected = network(x, training=False)
    over_grpc = ovmsclient.make_grpc_client(f"127.0.0.1:{server.grpc_port}")
    over_rest = ovmsclient.make_http_client(f"127.0.0.1:{server.rest_port}")
    for client in (over_grpc, over_rest):
        for version in (0, 1):
            assert distance(client.predict({"inputs": x}, "net", version), expected) < 1e-5
        assert client.get_model_status("net", 1)[1]["state"] == "AVAILABLE"
        with pytest.raises(ovmsclient.tfs_compat.base.errors.ModelNotFoundError):
            client.predict({"inputs": x}, "none")
    about = over_grpc.get_model_metadata("net")
    assert about["inputs"] == {"inputs": {"shape": [-1, 12, 16], "dtype": "DT_FLOAT"}}
    assert about["model_version"] == 1


@pytest.mark.parametrize("kind", ["rest", pytest.param("grpc", marks=pytest.mark.slow)])
def test_the_clients_that_are_written_beside(server, models, tmp_path, network, kind):
    (tmp_path / "red.png").write_bytes(png((250, 100, 0)))
    (tmp_path / "bad.png").write_bytes(b"text")
    x = noise((2, 12, 16))
    np.save(tmp_path / "batch.npy", x)
    place = ["--url", f"http://127.0.0.1:{server.rest_port}"]
    if kind == "grpc":
        place = ["--address", f"127.0.0.1:{server.grpc_port}"]

    def ask(model, *arguments):
        command = [sys.executable, str(models / model / f"client_{kind}.py"), *place, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = ask("colours", tmp_path / "red.png", tmp_path / "bad.png")
    assert done.returncode == 0, done.stderr
    assert "red.png: rot 99.7%, grün 0.3%" in done.stdout
    assert "bad.png: not a JPEG" in done.stdout
    if kind == "grpc":  # which takes as long as TensorFlow takes to import
        return
    done = ask("net", tmp_path / "batch.npy")
    assert done.stdout.count("outputs") == 2, done.stderr
    assert str(np.asarray(network(x, training=False))[1, 0])[:6] in done.stdout
    assert "not found" in ask("net", "--model-version", 9, tmp_path / "batch.npy").stderr


# ---------------------------------------------------------------------------------------------------- new versions


def test_a_new_version_takes_over_without_a_lost_request(tmp_path, caplog):
    """Under load over both protocols. A version that cannot be loaded changes nothing. The log tells of each."""
    caplog.set_level("INFO", "keras_residual.serving")
    folder, x = tmp_path / "colours", np.full((1, 24, 32, 3), (1.0, 2.0, 3.0), "float32")
    kr.export(colours(1.0), folder)
    seen, failures, stop = {"rest": [], "grpc": []}, [], threading.Event()
    with running(folder) as server:
        client = stub(server)

        def load(kind):
            while not stop.is_set():
                try:
                    if kind == "rest":
                        _, answer = rest(server, "/v1/models/colours:predict", {"instances": x.tolist()})
                        seen[kind].append(round(answer["predictions"][0][0], 3))
                    else:
                        response = client.Predict(predict_request("colours", x), timeout=30)
                        seen[kind].append(round(float(tf.make_ndarray(response.outputs["outputs"])[0, 0]), 3))
                except Exception as error:
                    failures.append(error)

        threads = [threading.Thread(target=load, args=(kind,)) for kind in ("rest", "grpc") * 2]
        for thread in threads:
            thread.start()
        for gain in (2.0, 3.0):
            kr.export(colours(gain), folder)
            wait(lambda gain=gain: all(gain in values[-1:] for values in seen.values()))
        (folder / "4").mkdir()
        (folder / "4" / "saved_model.pb").write_bytes(b"junk")
        model = server.models["colours"]
        wait(lambda: 4 in model.versions and model.versions[4].error)
        stop.set()
        for thread in threads:
            thread.join(30)
        assert not failures, failures[:3]
        for values in seen.values():
            assert set(values) == {1.0, 2.0, 3.0}
        wait(lambda: [model.versions[n].state for n in (1, 2, 3)] == [State.END, State.END, State.AVAILABLE])
        assert model.versions[1].saved is None, "its memory is given back"
        _, answer = rest(server, "/v1/models/colours")
        newest, *_ = answer["model_version_status"]
        assert (newest["version"], newest["state"], newest["status"]["error_code"]) == ("4", "END", "INTERNAL")
        assert rest(server, "/v1/models/colours/versions/1:predict", {"instances": x.tolist()})[0] == 404

        os.rename(folder / "3", folder / "gone")  # the newest is taken back
        (folder / "4" / "saved_model.pb").unlink()
        wait(lambda: model.versions[2].state is State.AVAILABLE)
        assert rest(server, "/v1/models/colours:predict", {"instances": x.tolist()})[1]["predictions"][0][0] == 2.0
    said = [record.getMessage().partition(": ")[0] for record in caplog.records if "serving" in record.name]
    # Each version is logged as loaded, then the previous one as unloaded.
    taking_over = [f"colours version {number}" for number in (1, 2, 1, 3, 2)]
    assert said[:6] == [*taking_over, "colours version 4 cannot be served"]


def wait(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def test_a_version_in_use_is_not_unloaded(models):
    from keras_residual.serving.models import Model, Version

    model = Model("net", models / "net")
    model.update()
    with model.hold() as version:
        newer = Version(2, models / "net" / "1", State.AVAILABLE)
        model.versions[2] = newer
        draining = threading.Thread(target=model._drain, args=(version,))
        draining.start()
        time.sleep(0.1)
        assert (version.state, draining.is_alive()) == (State.UNLOADING, True)
        assert version.saved is not None
        with model.hold() as other:
            assert other is newer, "new requests go to the newer one"
    draining.join(10)
    assert (version.state, version.saved) == (State.END, None)


def test_a_version_that_was_still_being_copied(models, tmp_path):
    """A failed version is retried only after its files have changed."""
    from keras_residual.serving.models import Model

    folder = shutil.copytree(models / "net", tmp_path / "net")
    model = Model("net", folder)
    model.update()
    (folder / "2").mkdir()
    graph, copy = (folder / "1" / "saved_model.pb").read_bytes(), folder / "2" / "saved_model.pb"
    copy.write_bytes(graph[: len(graph) // 2])
    model.update()
    first = model.versions[2]
    assert first.error
    model.update()
    assert model.versions[2] is first, "nothing has changed"
    with model.hold() as version:
        assert version.number == 1
    copy.write_bytes(graph)  # but no variables yet, perhaps no assets
    model.update()
    shutil.copytree(folder / "1", folder / "2", dirs_exist_ok=True)
    model.update()
    with model.hold() as version:
        assert (version.number, version.error) == (2, "")
    assert model.versions[1].state is State.END


def test_nothing_to_serve(tmp_path):
    with pytest.raises(ValueError, match="must contain VERSION"):
        Server(tmp_path, rest_port=0, grpc_port=0)
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"junk")
    with pytest.raises(ValueError, match="can be served"):
        Server(tmp_path, rest_port=0, grpc_port=0)


def test_answers_do_not_wait_for_acknowledgements(server):
    """Of connections without a named protocol asyncio leaves Nagle's algorithm on: 40 ms for each answer."""
    assert server._socket.proto == socket.IPPROTO_TCP


def test_a_port_that_is_taken(server, models):
    for taken in ({"rest_port": server.rest_port, "grpc_port": 0}, {"rest_port": 0, "grpc_port": server.grpc_port}):
        with pytest.raises(OSError, match="cannot listen"):
            Server(models, **taken)


def test_the_command(models):
    """Its words are what it serves and where; on SIGTERM what is under way is answered, then it ends well."""
    command = [sys.executable, "-m", "keras_residual.cli", "serve", str(models), "--rest-port", "0", "--grpc-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines = [process.stdout.readline() for _ in range(5)]
        assert lines[0].startswith("colours version 1: serving_default")
        port = int(lines[2].split("http://127.0.0.1:")[1].split("/")[0])
        body = json.dumps({"instances": noise((1, 12, 16)).tolist()}).encode()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as line:
            head = f"POST /v1/models/net:predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            line.sendall(head.encode() + body[:-1])
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            line.sendall(body[-1:])
            answer = line.recv(10_000)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert process.wait(30) == 0, process.stderr.read()
        assert process.stdout.read() == "stopped\n"
