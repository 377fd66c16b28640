"""Training and inference images per second on one GPU: these networks in Keras on JAX, timm's in PyTorch.

    python benchmarks/gpu.py [--models ResNet50 ViTSmall16] [--batch 128] [--output benchmarks/gpu.csv]

PyTorch runs channels-last, with autocast where the precision is bfloat16, as it comes and with `torch.compile`; float32
may use TF32 on both sides. Keras on JAX always compiles by XLA. Where TensorFlow sees the GPU, it competes with XLA off
and on. Images and labels lie on the GPU: what is compared are the networks, not the ways to read files.

Every contender runs in a process of its own that waits while another one is measured; they take turns in each round,
and what counts is the ratio within a round. Needs the extras `jax` (with CUDA: `pip install 'jax[cuda12]'`) and
`parity`. `--device cpu` tries the script itself on small images; such a table says nothing of GPUs.
"""

from __future__ import annotations

import argparse
import csv
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

MODELS = ("ResNet18", "ResNet50", "ConvNeXtTiny", "ViTSmall16", "ViTBase16")
TENSORFLOW = ("keras_residual, TensorFlow", "keras_residual, TensorFlow, XLA")
CONTENDERS = ("keras_residual", *TENSORFLOW, "timm", "timm, compiled")
PRECISIONS = ("float32", "bfloat16")
RATE = 0.01


# ------------------------------------------------------------------------------------- one contender, in its process
# Each is a function of the job that returns: a function that runs so many steps and waits for the device, and one that
# tells the peak of the device's memory in bytes.

Runner = tuple[Callable[[int], None], Callable[[], float]]


def batch_of(job: dict[str, Any]) -> tuple[Any, Any]:
    import numpy as np

    count, size = job["batch"], job["size"]
    images = np.random.default_rng(0).normal(size=(count, size, size, 3)).astype("float32")
    return images, np.arange(count) % 1000


def keras_model(job: dict[str, Any]) -> Any:
    import keras

    import keras_residual as kr

    if job["precision"] == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    return kr.create(job["model"], classifier_activation=None, input_shape=(job["size"], job["size"], 3))


def on_jax(job: dict[str, Any]) -> Runner:
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the others need room on the same card
    import jax
    import keras

    model = keras_model(job)
    images, labels = map(jax.device_put, batch_of(job))

    def peak() -> float:
        return float((jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use", float("nan")))

    fixed = [v.value for v in model.non_trainable_variables]
    if job["mode"] == "inference":
        weights = [v.value for v in model.trainable_variables]
        answer = jax.jit(lambda weights, fixed, x: model.stateless_call(weights, fixed, x, training=False)[0])

        def infer(steps: int) -> None:
            for _ in range(steps):
                found = answer(weights, fixed, images)
            found.block_until_ready()

        return infer, peak

    optimizer = keras.optimizers.SGD(RATE, momentum=0.9)
    optimizer.build(model.trainable_variables)
    criterion = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def loss(weights: Any, fixed: Any) -> Any:
        outputs, fixed = model.stateless_call(weights, fixed, images, training=True)
        return criterion(labels, outputs), fixed

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any) -> Any:
        weights, fixed, slots = state
        (value, fixed), gradients = jax.value_and_grad(loss, has_aux=True)(weights, fixed)
        weights, slots = optimizer.stateless_apply(slots, gradients, weights)
        return (weights, fixed, slots), value

    state = [v.value for v in model.trainable_variables], fixed, [v.value for v in optimizer.variables]

    def train(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, value = step(state)
        value.block_until_ready()

    return train, peak


def on_tensorflow(job: dict[str, Any]) -> Runner:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    import keras
    import tensorflow as tf

    xla = job["contender"].endswith("XLA")
    model = keras_model(job)
    images, labels = map(tf.constant, batch_of(job))

    def peak() -> float:
        gpus = tf.config.list_physical_devices("GPU")
        return float(tf.config.experimental.get_memory_info("GPU:0")["peak"]) if gpus else float("nan")

    if job["mode"] == "inference":
        answer = tf.function(lambda x: model(x, training=False), jit_compile=xla, autograph=False)

        def infer(steps: int) -> None:
            for _ in range(steps):
                found = answer(images)
            found.numpy()

        return infer, peak
    criterion = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(RATE, momentum=0.9), criterion, jit_compile=xla)
    batches = iter(tf.data.Dataset.from_tensors((images, labels)).cache().repeat())
    model.make_train_function()

    def train(steps: int) -> None:
        for _ in range(steps):
            logs = model.train_function(batches)
        keras.ops.convert_to_numpy(logs["loss"])

    return train, peak


def on_torch(job: dict[str, Any]) -> Runner:
    import torch

    if importlib.util.find_spec("torchvision") and not torch.cuda.is_available():
        operators = torch.library.Library("torchvision", "DEF")  # its wheel has operators that a CPU build lacks
        for operator in ("nms", "qnms"):
            operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        job["operators"] = operators  # they live as long as this does
    import timm

    from keras_residual.models import find

    device = "cuda" if job["device"] == "gpu" else "cpu"
    torch.set_float32_matmul_precision("high")  # TF32, as in JAX
    torch.backends.cudnn.benchmark = True
    fixed_size = {} if find(job["model"]).config.dynamic_size else {"img_size": job["size"]}
    model = timm.create_model(find(job["model"]).config.timm, **fixed_size)
    model = model.to(device, memory_format=torch.channels_last)
    images, labels = (torch.as_tensor(part, device=device) for part in batch_of(job))
    images = images.permute(0, 3, 1, 2)  # channels last in memory
    forward = torch.compile(model) if job["contender"].endswith("compiled") else model
    precision = torch.autocast(device, torch.bfloat16, enabled=job["precision"] == "bfloat16")

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def peak() -> float:
        return float(torch.cuda.max_memory_allocated()) if device == "cuda" else float("nan")

    if job["mode"] == "inference":
        model.eval()

        def infer(steps: int) -> None:
            with torch.inference_mode(), precision:
                for _ in range(steps):
                    forward(images)
            wait()

        return infer, peak
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            with precision:
                loss = torch.nn.functional.cross_entropy(forward(images), labels)
            loss.backward()
            optimizer.step()
        wait()

    return train, peak


def worker(job: dict[str, Any]) -> None:
    """Compiles and warms up, then runs one turn for each line on standard input and answers with its seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not look like an answer
    way = {"k": on_tensorflow if "TensorFlow" in job["contender"] else on_jax, "t": on_torch}[job["contender"][0]]
    run, peak = way(job)

    def timed(steps: int) -> float:
        start = time.perf_counter()
        run(steps)
        return time.perf_counter() - start

    first = timed(1)
    run(2)
    print(json.dumps(first), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps([timed(job["steps"]), peak()]), file=answers, flush=True)


# ------------------------------------------------------------------------------------------------------- the contest


def contest(job: dict[str, Any], contenders: list[str], rounds: int) -> list[dict[str, Any]]:
    """A row for each contender. One that cannot run is named on standard error, and the others go on."""
    runners, first = {}, {}
    for contender in contenders:
        command = [sys.executable, __file__, "--worker", json.dumps({**job, "contender": contender})]
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
            answer = process.stdout.readline()
            if not answer:
                process.wait()
                errors.seek(0)
                print(f"{contender} cannot run {job}: {errors.read().strip()[-300:]}", file=sys.stderr)
                continue
        runners[contender], first[contender] = process, json.loads(answer)
    turns: dict[str, list[tuple[float, float]]] = {contender: [] for contender in runners}
    for _ in range(rounds):
        for contender, process in runners.items():
            print("go", file=process.stdin, flush=True)
            turns[contender].append(json.loads(process.stdout.readline()))
    for process in runners.values():
        process.communicate()
    rows = []
    for contender, own in turns.items():
        speeds = [job["batch"] * job["steps"] / seconds for seconds, _ in own]
        row = {key: job[key] for key in ("model", "mode", "precision", "size", "batch")} | {
            "contender": contender,
            "images_per_second": round(statistics.median(speeds), 1),
            "slowest": round(min(speeds), 1),
            "fastest": round(max(speeds), 1),
            "peak_mb": round(own[-1][1] / 1e6) if own[-1][1] == own[-1][1] else "",
            "first_step_seconds": round(first[contender], 1),
            "ours_over_it": "",
        }
        if "keras_residual" in turns:
            ratios = [theirs / ours for (theirs, _), (ours, _) in zip(own, turns["keras_residual"], strict=True)]
            row["ours_over_it"] = round(statistics.median(ratios), 3)
        rows.append(row)
    return rows


def facts(device: str) -> dict[str, str]:
    """Versions and the card, written into each line."""
    names = ("keras", "jax", "torch", "timm")
    card = platform.machine()
    if device == "gpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        card = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()[0]
    return {**{name: importlib.metadata.version(name) for name in names}, "device": card}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--modes", nargs="+", default=["training", "inference"], choices=["training", "inference"])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=10, help="of a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="gpu", choices=["gpu", "cpu"])
    parser.add_argument("--output", default=os.path.join(os.path.dirname(__file__), "gpu.csv"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(json.loads(arguments.worker))
        return
    contenders = [c for c in arguments.contenders if c not in TENSORFLOW or importlib.util.find_spec("tensorflow")]
    rows, about = [], facts(arguments.device)
    for model in arguments.models:
        for precision in arguments.precisions:
            for mode in arguments.modes:
                job = {"model": model, "mode": mode, "precision": precision, "device": arguments.device}
                job |= {"batch": arguments.batch, "size": arguments.size, "steps": arguments.steps}
                found = contest(job, contenders, arguments.rounds)
                print(*found, sep="\n", flush=True)
                rows += [{**row, **about} for row in found]
                with open(f"{arguments.output}.part", "w", newline="") as file:
                    table = csv.DictWriter(file, rows[0], lineterminator="\n")
                    table.writeheader()
                    table.writerows(rows)
                os.replace(f"{arguments.output}.part", arguments.output)


if __name__ == "__main__":
    main()
