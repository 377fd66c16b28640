"""Training and inference images per second on this machine's CPU, beside `keras.applications` and timm (torch).

    python benchmarks/cpu.py [--models ResNet18 ResNet50] [--rounds 5] [--output benchmarks/cpu.csv]

Every contender runs in a process of its own that waits while another one is measured; they take turns in each
round, and what counts is the ratio within a round, so that a machine whose speed drifts does not decide.

TensorFlow uses oneDNN by itself only on CPUs with AVX-512; keras_residual asks for it on every x86 CPU. So
`keras.applications` competes twice: as it comes, and with oneDNN. Its ResNet-50 has the strides of 2015 (v1), so ours
has them too in that contest (`stride_in="1x1"`). Needs the extra `parity` for timm.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time

# contest: our builder, its options, training and inference batch, steps of one turn in training, in inference, peers
_PEERS = ("keras.applications", "keras.applications + oneDNN", "timm")
CONTESTS = {
    "ResNet18": ("ResNet18", {}, 16, 16, 2, 4, ("timm",)),
    "ResNet50": ("ResNet50", {}, 16, 16, 1, 3, ("timm",)),
    "ResNet50 v1": ("ResNet50", {"stride_in": "1x1"}, 16, 16, 1, 3, _PEERS[:2]),
    "ResNeXt50_32x4d": ("ResNeXt50_32x4d", {}, 16, 16, 1, 3, ("timm",)),
    "ViTSmall16": ("ViTSmall16", {}, 16, 16, 1, 3, ("timm",)),
    "ConvNeXtTiny": ("ConvNeXtTiny", {}, 8, 8, 1, 3, _PEERS),
}
SIZE = 224


# ------------------------------------------------------------------------------------- one contender, in its process


def keras_turn(contender: str, name: str, mode: str, batch: int, steps: int):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if contender.endswith("oneDNN"):
        os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    builder, options = CONTESTS[name][:2]
    if contender == "keras_residual":
        import keras_residual

        model = keras_residual.create(builder, classifier_activation=None, **options)
        import keras
    else:
        import keras

        model = getattr(keras.applications, builder)(weights=None, classifier_activation=None)
    import numpy as np
    import tensorflow as tf

    images = np.random.default_rng(0).normal(size=(batch, SIZE, SIZE, 3)).astype("float32")
    labels = np.arange(batch) % 1000
    if mode == "inference":
        images = tf.constant(images)
        call = tf.function(lambda x: model(x, training=False), autograph=False)

        def turn():
            for _ in range(steps):
                call(images).numpy()

        return turn
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    options = tf.data.Options()
    options.autotune.enabled = False  # its thread holds up the end of `fit`, now and then, until its next round
    data = tf.data.Dataset.from_tensors((images, labels)).repeat().with_options(options)
    model.fit(data, steps_per_epoch=1, verbose=0)  # makes `train_function`, the step that `fit` repeats
    batches = iter(data)

    def train():
        for _ in range(steps):
            logs = model.train_function(batches)
        keras.ops.convert_to_numpy(logs["loss"])

    return train


def torch_turn(name: str, mode: str, batch: int, steps: int):
    import torch

    operators = torch.library.Library("torchvision", "DEF")  # its wheel has operators that a CPU build lacks
    for operator in ("nms", "qnms"):
        operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    from keras_residual.models import find

    model = timm.create_model(find(CONTESTS[name][0]).config.timm).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    labels = torch.arange(batch) % 1000
    if mode == "inference":
        model.eval()

        def infer():
            with torch.inference_mode():
                for _ in range(steps):
                    model(images)

        return infer
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

    def train():
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

    return train


def worker(contender: str, name: str, mode: str, batch: int, steps: int) -> None:
    """Builds, warms up, then runs one turn for each line on standard input and answers with its seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not look like an answer
    turn = (
        torch_turn(name, mode, batch, steps) if contender == "timm" else keras_turn(contender, name, mode, batch, steps)
    )
    turn()
    turn()
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        turn()
        print(time.perf_counter() - start, file=answers, flush=True)


# ------------------------------------------------------------------------------------------------------- the contest


def contest(name: str, mode: str, rounds: int) -> list[dict[str, object]]:
    *_, train_batch, infer_batch, train_steps, infer_steps, peers = CONTESTS[name]
    batch, steps = (train_batch, train_steps) if mode == "training" else (infer_batch, infer_steps)
    runners = {}
    for contender in ("keras_residual", *peers):
        command = [sys.executable, __file__, "--worker", contender, name, mode, str(batch), str(steps)]
        runners[contender] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if runners[contender].stdout.readline().strip() != "ready":
            raise RuntimeError(f"{contender} could not run {name}: {' '.join(command)}")
    speeds: dict[str, list[float]] = {contender: [] for contender in runners}
    for _ in range(rounds):
        for contender, runner in runners.items():
            print("go", file=runner.stdin, flush=True)
            speeds[contender].append(batch * steps / float(runner.stdout.readline()))
    for runner in runners.values():
        runner.stdin.close()
        runner.wait()
    ours = speeds["keras_residual"]
    return [
        {
            "model": name,
            "mode": mode,
            "batch": batch,
            "contender": contender,
            "images_per_second": round(statistics.median(speed), 2),
            "slowest": round(min(speed), 2),
            "fastest": round(max(speed), 2),
            "ours_over_it": round(statistics.median(a / b for a, b in zip(ours, speed, strict=True)), 3),
        }
        for contender, speed in speeds.items()
    ]


def machine() -> dict[str, str]:
    """Versions and processor, written into each line."""
    facts = {name: importlib.metadata.version(name) for name in ("keras", "tensorflow", "torch", "timm")}
    features = ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
        features = "avx512" if "avx512f" in flags else "avx2" if "avx2" in flags else ""
    return {
        **facts,
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores {platform.machine()} {features}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CONTESTS), choices=list(CONTESTS))
    parser.add_argument("--modes", nargs="+", default=["training", "inference"], choices=["training", "inference"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default=os.path.join(os.path.dirname(__file__), "cpu.csv"))
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        contender, name, mode, batch, steps = arguments.worker
        worker(contender, name, mode, int(batch), int(steps))
        return
    facts = machine()
    for name in arguments.models:
        for mode in arguments.modes:
            rows = contest(name, mode, arguments.rounds)
            print(*rows, sep="\n", flush=True)
            keep(arguments.output, [{**row, **facts} for row in rows])


def keep(path: str, rows: list[dict[str, object]]) -> None:
    """Puts a contest into the table, in the place of an earlier one."""
    kept = []
    if os.path.exists(path):
        with open(path, newline="") as file:
            kept = [r for r in csv.DictReader(file) if (r["model"], r["mode"]) != (rows[0]["model"], rows[0]["mode"])]
    order = list(CONTESTS)
    rows = sorted([*kept, *rows], key=lambda r: (order.index(str(r["model"])), r["mode"] != "training"))
    with open(f"{path}.part", "w", newline="") as file:
        table = csv.DictWriter(file, rows[0], lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    os.replace(f"{path}.part", path)


if __name__ == "__main__":
    main()
