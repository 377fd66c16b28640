"""Measure the latency and throughput of exported networks on this machine's CPU, and the overhead of the local server.

    python benchmarks/serving.py [--models ResNet18 ResNet50] [--rounds 7] [--output benchmarks/serving.csv]
    python benchmarks/serving.py --server         # the local server compared with direct calls of a signature
    python benchmarks/serving.py --soak 600       # the server's memory after 600 seconds of load

The first command compares `keras_residual.export`, Keras' `model.export`, ONNX Runtime and OpenVINO on the same network
with the same weights, at batch sizes 1 and 16. TensorFlow enables oneDNN by default only on CPUs with AVX-512. The
exported docker-compose.yml enables it (`TF_ENABLE_ONEDNN_OPTS=1`), and so does this benchmark for `keras_residual`.
`model.export` is measured twice, with the default and with oneDNN. Needs the extras `export` and `serve`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from contest import Contender, keep, machine, play, work

MODELS = ("ResNet18", "ResNet50", "ConvNeXtTiny", "ViTSmall16")
CONTENDERS = ("keras_residual", "model.export", "model.export + oneDNN", "ONNX Runtime", "OpenVINO")
CALLS = {1: 10, 16: 1}  # batch size -> calls per turn
SIZE = 224
SERVED = "ResNet18"
REQUESTS = {"a JPEG of 640x480": "serving_bytes", "uint8 pixels of 224x224": "serving_uint8"}
CLIENTS = {1: 10, 8: 32}  # number of clients -> requests per turn
COLUMNS = ["what", "model", "request", "batch", "clients", "contender", "p50_ms", "p99_ms", "per_second"]
COLUMNS += ["over_model_export", "overhead_ms", "mb"]


# ----------------------------------------------------------------------------------------------- models and signatures


def prepare(name: str, folder: Path) -> None:
    """Write a network in each contender's format, with all variables filled with noise."""
    import numpy as np

    import keras_residual as kr
    from keras_residual.exporting.formats import convert

    model, generator = kr.create(name), np.random.default_rng(0)
    for variable in model.variables:
        fan_in = max(1, int(np.prod(variable.shape[:-1])))
        noise = generator.normal(size=variable.shape)
        positive = variable.name in ("gamma", "moving_variance")
        variable.assign(1 + 0.1 * np.abs(noise) if positive else noise * (1.0 / fan_in) ** 0.5)
    kr.export(model, folder / "keras_residual")
    model.export(folder / "model.export", verbose=False)
    convert(model, folder / "ONNX Runtime" / "model.onnx")
    convert(model, folder / "OpenVINO" / "model.xml")
    if name == SERVED:
        labels = [f"class {i}" for i in range(1000)]
        kr.export(model, folder / "served", labels=labels, preprocess=kr.weights.Preprocess((SIZE, SIZE)))


def place(contender: str, folder: Path) -> Path:
    return folder / "keras_residual" / "1" if contender == "keras_residual" else folder / contender.partition(" + ")[0]


def runner(contender: str, folder: Path, batch: int) -> Callable[[], Any]:
    """Return a function that calls a contender once on images in memory."""
    import numpy as np

    images = np.random.default_rng(0).normal(size=(batch, SIZE, SIZE, 3)).astype("float32")
    where, cores = place(contender, folder), os.cpu_count()
    if contender == "ONNX Runtime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores
        session = onnxruntime.InferenceSession(str(where / "model.onnx"), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"inputs": images})
    if contender == "OpenVINO":
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": cores, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(str(where / "model.xml"), "CPU", settings)
        return lambda: compiled([images])
    return signature(where, "serving_default", images)


def signature(version: Path, name: str, inputs: Any) -> Callable[[], Any]:
    """Return a function that calls a signature of a SavedModel once, with arrays as input and output."""
    import tensorflow as tf

    saved = tf.saved_model.load(str(version))
    function = saved.signatures[name]
    (given,) = function.structured_input_signature[1]
    return lambda: (saved, {key: y.numpy() for key, y in function(**{given: tf.constant(inputs)}).items()})


# ------------------------------------------------------------------------------------------------------- contenders


def timed(call: Callable[[], Any], count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def together(calls: list[Callable[[], Any]], count: int) -> tuple[list[float], float]:
    """Run the calls in separate threads, `count` times in total; return their latencies and the total time."""
    found: list[list[float]] = [[] for _ in calls]

    def run(i: int) -> None:
        found[i] = timed(calls[i], count // len(calls))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(calls))]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    total = time.perf_counter() - start
    return [second for seconds in found for second in seconds], total


def worker(contender: str, folder: Path, what: str) -> None:
    """Run a worker whose turns return the seconds of each call and of all calls together."""
    if contender != "model.export":
        os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    job = json.loads(what)

    def start() -> Callable[[], tuple[list[float], float]]:
        if "batch" in job:
            call = runner(contender, folder, job["batch"])
            calls, count = [call], CALLS[job["batch"]]
        else:
            calls, count = clients(contender, folder, **job), CLIENTS[job["clients"]]
        together(calls, 2 * len(calls))
        return lambda: together(calls, count)

    work(start)


def clients(contender: str, folder: Path, request: str, clients: int, ports: list[int]) -> list[Callable[[], Any]]:
    """Return functions that each send one request over a separate connection, or call the signature directly."""
    name, inputs = REQUESTS[request], sample(request)
    if contender == "signature":
        return [signature(folder / "served" / "1", name, inputs)] * clients
    if contender == "REST":
        return [over_rest(ports[0], name, inputs) for _ in range(clients)]
    return [over_grpc(ports[1], name, inputs) for _ in range(clients)]


def sample(request: str) -> Any:
    import io

    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype("uint8")
    if REQUESTS[request] == "serving_uint8":
        return np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE)))[None]
    file = io.BytesIO()
    Image.fromarray(pixels).resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return np.array([file.getvalue()], object)


def over_rest(port: int, name: str, inputs: Any) -> Callable[[], Any]:
    import base64
    import http.client

    plain = [{"b64": base64.b64encode(x).decode()} for x in inputs] if inputs.dtype == object else inputs.tolist()
    body = json.dumps({"signature_name": name, "inputs": plain}).encode()
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def answer() -> Any:
        line.request("POST", "/v1/models/served:predict", body, {"Content-Type": "application/json"})
        return line.getresponse()

    def ask() -> Any:
        try:
            response = answer()
        except (http.client.HTTPException, ConnectionError):  # the server closes idle connections between turns
            line.close()
            response = answer()
        with response:
            text = response.read()
        assert response.status == 200, text
        return json.loads(text)

    return ask


def over_grpc(port: int, name: str, inputs: Any) -> Callable[[], Any]:
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def ask() -> Any:
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "served", name
        request.inputs["inputs"].CopyFrom(tf.make_tensor_proto(inputs))
        outputs = stub.Predict(request, timeout=60).outputs
        return {key: tf.make_ndarray(value) for key, value in outputs.items()}

    return ask


# ---------------------------------------------------------------------------------------------------------- comparisons


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def figures(turns: list[tuple[list[float], float]], count: int = 1) -> dict[str, Any]:
    calls = [second for seconds, _ in turns for second in seconds]
    return {
        "p50_ms": round(1e3 * statistics.median(calls), 2),
        "p99_ms": round(1e3 * percentile(calls, 0.99), 2),
        "per_second": round(statistics.median(count * len(seconds) / total for seconds, total in turns), 2),
    }


def enter(name: str, folder: Path, companions: Iterable[subprocess.Popen[str]] = (), **job: Any) -> Contender:
    return Contender(__file__, "--worker", name, str(folder), json.dumps(job), companions=companions)


def exports(name: str, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Compare all contenders at batch sizes 1 and 16."""
    rows = []
    for batch in CALLS:
        turns = play({c: enter(c, folder, batch=batch) for c in CONTENDERS}, rounds)
        for contender, own in turns.items():
            ratios = [
                statistics.median(theirs) / statistics.median(ours)
                for (theirs, _), (ours, _) in zip(turns["model.export"], own, strict=True)
            ]
            files = [file for file in place(contender, folder).rglob("*") if file.is_file()]
            rows.append(
                {
                    "what": "network",
                    "model": name,
                    "request": "float32 in memory",
                    "batch": batch,
                    "contender": contender,
                    **figures(own, batch),
                    "over_model_export": round(statistics.median(ratios), 3),
                    "mb": round(sum(file.stat().st_size for file in files) / 1e6, 1),
                }
            )
    return rows


def start_server(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    command = [sys.executable, "-m", "keras_residual.cli", "serve", str(folder), "--rest-port", "0", "--grpc-port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    ports = []
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith(("REST", "gRPC")):
            ports.append(int(line.partition("127.0.0.1:")[2].partition("/")[0]))
        if line.startswith("page"):
            return server, ports
    raise RuntimeError("The server did not start.")


def server_contest(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Compare the server over REST and gRPC with direct calls of the signature, for 1 and 8 clients."""
    rows = []
    server, ports = start_server(folder / "served")
    try:
        for request in REQUESTS:
            for count in CLIENTS:
                job = {"request": request, "clients": count, "ports": ports}
                contenders = {}
                for name in ("signature", "gRPC", "REST"):
                    companions = () if name == "signature" else (server,)
                    contenders[name] = enter(name, folder, companions, **job)
                turns = play(contenders, rounds)
                for name, own in turns.items():
                    more = [
                        statistics.median(ours) - statistics.median(bare)
                        for (ours, _), (bare, _) in zip(own, turns["signature"], strict=True)
                    ]
                    rows.append(
                        {
                            "what": "server",
                            "model": SERVED,
                            "request": request,
                            "batch": 1,
                            "clients": count,
                            "contender": name,
                            **figures(own),
                            "overhead_ms": round(1e3 * statistics.median(more), 2),
                        }
                    )
    finally:
        server.send_signal(signal.SIGCONT)
        server.terminate()
        server.wait(60)
    return rows


def soak(seconds: float, model: Path) -> list[dict[str, Any]]:
    """Measure the server's resident memory under continuous requests by both protocols: good, bad and broken ones."""
    import numpy as np
    from PIL import Image

    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        Image.fromarray(np.arange(4800, dtype="uint8").reshape(60, 80)).save(file.name)
        good = Path(file.name).read_bytes()
    server, ports = start_server(model)
    count, memory, start = 0, [], time.monotonic()
    try:
        images = np.array([good, b"no image", good], object)
        name = model.name

        def rest(body: bytes) -> None:
            import urllib.error
            import urllib.request

            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/v1/models/{name}:predict", body) as response:
                    response.read()
            except urllib.error.HTTPError as error:
                error.read()

        import base64

        encoded = [{"b64": base64.b64encode(x).decode()} for x in images]
        bodies = [
            json.dumps({"signature_name": "serving_bytes", "inputs": encoded}).encode(),
            b"{",
            json.dumps({"inputs": [[1.0]]}).encode(),
        ]
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        stub = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(f"127.0.0.1:{ports[1]}"))
        message = predict_pb2.PredictRequest()
        message.model_spec.name, message.model_spec.signature_name = name, "serving_bytes"
        message.inputs["inputs"].CopyFrom(tf.make_tensor_proto(images))
        while (passed := time.monotonic() - start) < seconds:
            for body in bodies:
                rest(body)
            stub.Predict(message, timeout=60)
            count += 1 + len(bodies)
            if len(memory) < passed // 10:
                pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
                memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)
                print(f"{passed:5.0f} s  {count:7,} requests  {memory[-1]:.1f} MB", flush=True)
            time.sleep(0.02)
    finally:
        server.terminate()
        server.wait(60)
    common = {"what": "memory", "model": name, "request": "images, bad images, broken requests", "clients": 1}
    return [
        {
            **common,
            "contender": f"resident after {10 * (i + 1)} s",
            "per_second": round(count / seconds),
            "mb": round(m, 1),
        }
        for i, m in enumerate(memory)
        if i in (0, 5, len(memory) // 2, len(memory) - 1)
    ]


def record(path: Path, rows: list[dict[str, Any]]) -> None:
    facts = machine("keras", "tensorflow", "onnxruntime", "openvino")
    keep(path, [{**dict.fromkeys(COLUMNS, ""), **row, **facts} for row in rows], "what", "model", "machine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--server", action="store_true", help="measure the server")
    parser.add_argument("--soak", type=float, metavar="S", help="measure the server's memory for S seconds")
    parser.add_argument("--served", default="saved_models/digits", type=Path, help="model for --soak (%(default)s)")
    parser.add_argument("--prepared", type=Path, help="directory of the networks, written if it does not exist")
    parser.add_argument("--prepare", action="store_true", help="only write the networks")
    parser.add_argument("--output", default=Path(__file__).with_name("serving.csv"))
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--writer", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker[0], Path(arguments.worker[1]), arguments.worker[2])
    elif arguments.writer:
        prepare(arguments.writer[0], Path(arguments.writer[1]))
    elif arguments.soak:
        record(arguments.output, soak(arguments.soak, arguments.served))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            for name in [SERVED] if arguments.server else arguments.models:
                folder = (arguments.prepared or Path(temporary)) / name
                if not folder.exists():
                    subprocess.run([sys.executable, __file__, "--writer", name, str(folder)], check=True)
                if arguments.prepare:
                    continue
                contest = (
                    server_contest(folder, arguments.rounds)
                    if arguments.server
                    else exports(name, folder, arguments.rounds)
                )
                print(*contest, sep="\n", flush=True)
                record(arguments.output, contest)


if __name__ == "__main__":
    main()
