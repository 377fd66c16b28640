"""Compare training and inference throughput on one GPU: keras_residual on JAX, timm on PyTorch.

    python benchmarks/gpu.py [--models ResNet50 ViTSmall16] [--batch 128] [--output benchmarks/gpu.csv]

PyTorch runs channels-last, with autocast for bfloat16, in eager mode and with `torch.compile`. In float32 both sides
may use TF32. Keras on JAX is always compiled by XLA. "Folded" is the model returned by `fold_batch_norm`. If TensorFlow
supports the GPU, it is measured with and without XLA. Images and labels are in GPU memory, so that data loading is not
measured.

Needs the extras `jax` (with CUDA: `pip install 'jax[cuda12]'`) and `parity`. `--device cpu` is for testing the script
on small images; its results do not apply to GPUs.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contest import Contender, keep, machine, play, register_torchvision, work

MODELS = ("ResNet18", "ResNet50", "ConvNeXtTiny", "ViTSmall16", "ViTBase16")
TENSORFLOW = ("keras_residual, TensorFlow", "keras_residual, TensorFlow, XLA")
FOLDED = "keras_residual, folded"  # only for inference of networks with batch normalisations
CONTENDERS = ("keras_residual", FOLDED, *TENSORFLOW, "timm", "timm, compiled")
PRECISIONS = ("float32", "bfloat16")
RATE = 0.01


# -------------------------------------------------------------------------------------------------------- contenders
# Each contender is a function of the job. It returns a function that runs a number of steps and waits for the device,
# and a function that returns the device's peak memory in bytes.

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
    model = kr.create(job["model"], classifier_activation=None, input_shape=(job["size"], job["size"], 3))
    return kr.fold_batch_norm(model) if job["contender"] == FOLDED else model


def on_jax(job: dict[str, Any]) -> Runner:
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # other contenders need memory of the same GPU
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

    def loss(weights: Any, fixed: Any, x: Any, y: Any) -> Any:
        outputs, fixed = model.stateless_call(weights, fixed, x, training=True)
        return criterion(y, outputs), fixed

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: Any, x: Any, y: Any) -> Any:
        weights, fixed, slots = state
        (value, fixed), gradients = jax.value_and_grad(loss, has_aux=True)(weights, fixed, x, y)
        weights, slots = optimizer.stateless_apply(slots, gradients, weights)
        return (weights, fixed, slots), value

    state = [v.value for v in model.trainable_variables], fixed, [v.value for v in optimizer.variables]

    def train(steps: int) -> None:
        nonlocal state
        for _ in range(steps):
            state, value = step(state, images, labels)
        value.block_until_ready()

    return train, peak


def on_tensorflow(job: dict[str, Any]) -> Runner:
    os.environ["KERAS_BACKEND"] = "tensorflow"
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
    os.environ["KERAS_BACKEND"] = "jax"  # only names are looked up; TensorFlow may be missing
    import torch

    if importlib.util.find_spec("torchvision") and not torch.cuda.is_available():
        register_torchvision()
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


def give_back() -> None:
    """Release the GPU memory that PyTorch caches, since other contenders need it in their turns."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def worker(job: dict[str, Any]) -> None:
    """Run a worker whose turns return the seconds of the steps, the peak memory and the seconds of the first step."""

    def start() -> Callable[[], tuple[float, float, float]]:
        way = {"k": on_tensorflow if "TensorFlow" in job["contender"] else on_jax, "t": on_torch}[job["contender"][0]]
        run, peak = way(job)

        def timed(steps: int) -> float:
            begin = time.perf_counter()
            run(steps)
            return time.perf_counter() - begin

        first = timed(1)
        run(2)

        def turn() -> tuple[float, float, float]:
            run(1)  # allocate the released memory again
            measured = timed(job["steps"]), peak(), first
            give_back()
            return measured

        give_back()
        return turn

    work(start)


# -------------------------------------------------------------------------------------------------------- comparison


def contest(job: dict[str, Any], contenders: list[str], rounds: int) -> list[dict[str, Any]]:
    """Return one row per contender. A contender that fails is reported on standard error and skipped."""
    running = {}
    for contender in contenders:  # not in parallel, because XLA and cuDNN choose kernels by timing them
        try:
            running[contender] = Contender(__file__, "--worker", json.dumps({**job, "contender": contender}))
        except ChildProcessError as error:
            print(error, file=sys.stderr)
    turns = play(running, rounds) if running else {}
    rows = []
    for contender, own in turns.items():
        speeds = [job["batch"] * job["steps"] / seconds for seconds, *_ in own]
        row = {key: job[key] for key in ("model", "mode", "precision", "size", "batch")} | {
            "contender": contender,
            "images_per_second": round(statistics.median(speeds), 1),
            "slowest": round(min(speeds), 1),
            "fastest": round(max(speeds), 1),
            "peak_mb": round(own[-1][1] / 1e6) if own[-1][1] == own[-1][1] else "",
            "first_step_seconds": round(own[-1][2], 1),
            "ours_over_it": "",
        }
        if "keras_residual" in turns:
            ratios = [theirs / ours for (theirs, *_), (ours, *_) in zip(own, turns["keras_residual"], strict=True)]
            row["ours_over_it"] = round(statistics.median(ratios), 3)
        rows.append(row)
    return rows


def facts(device: str) -> dict[str, str]:
    """Return versions and GPU, which are written to each line of the table."""
    about = machine("keras", "jax", "torch", "timm")
    if device == "gpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        about["machine"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    return about


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--modes", nargs="+", default=["training", "inference"], choices=["training", "inference"])
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=10, help="steps per turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="gpu", choices=["gpu", "cpu"])
    parser.add_argument("--output", default=Path(__file__).with_name("gpu.csv"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(json.loads(arguments.worker))
        return
    contenders = [c for c in arguments.contenders if c not in TENSORFLOW or importlib.util.find_spec("tensorflow")]
    about = facts(arguments.device)
    for model in arguments.models:
        for precision in arguments.precisions:
            for mode in arguments.modes:
                taking = [c for c in contenders if c != FOLDED or (mode == "inference" and "Res" in model)]
                job = {"model": model, "mode": mode, "precision": precision, "device": arguments.device}
                job |= {"batch": arguments.batch, "size": arguments.size, "steps": arguments.steps}
                found = contest(job, taking, arguments.rounds)
                print(*found, sep="\n", flush=True)
                keep(
                    arguments.output, [{**row, **about} for row in found], "model", "mode", "precision", "size", "batch"
                )


if __name__ == "__main__":
    main()
