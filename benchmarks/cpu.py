"""Compare training and inference throughput on this machine's CPU with `keras.applications` and timm (torch).

    python benchmarks/cpu.py [--models ResNet18 ResNet50] [--rounds 5] [--output benchmarks/cpu.csv]

TensorFlow enables oneDNN by default only on CPUs with AVX-512, while keras_residual enables it on every x86 CPU.
Therefore `keras.applications` is measured twice, with its defaults and with oneDNN. Its ResNet-50 is v1, with the
stride in the 1x1 convolutions, so keras_residual's is built with `stride_in="1x1"` in that comparison. timm needs the
extra `parity`.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from pathlib import Path

from contest import Contender, keep, machine, play, register_torchvision, work

# contest: builder of keras_residual, its options, batch size in training and inference, steps per turn in training and
# inference, other contenders
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


# -------------------------------------------------------------------------------------------------------- contenders


def keras_turn(contender: str, name: str, mode: str, batch: int, steps: int):
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
    options.autotune.enabled = False  # its thread occasionally delays the end of `fit`
    data = tf.data.Dataset.from_tensors((images, labels)).repeat().with_options(options)
    model.fit(data, steps_per_epoch=1, verbose=0)  # creates `train_function`, the training step
    batches = iter(data)

    def train():
        for _ in range(steps):
            logs = model.train_function(batches)
        keras.ops.convert_to_numpy(logs["loss"])

    return train


def torch_turn(name: str, mode: str, batch: int, steps: int):
    import torch

    register_torchvision()
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
    def start():
        own = torch_turn if contender == "timm" else functools.partial(keras_turn, contender)
        turn = own(name, mode, batch, steps)
        turn()
        turn()

        def timed() -> float:
            begin = time.perf_counter()
            turn()
            return time.perf_counter() - begin

        return timed

    work(start)


# -------------------------------------------------------------------------------------------------------- comparison


def contest(name: str, mode: str, rounds: int) -> list[dict[str, object]]:
    *_, train_batch, infer_batch, train_steps, infer_steps, peers = CONTESTS[name]
    batch, steps = (train_batch, train_steps) if mode == "training" else (infer_batch, infer_steps)
    contenders = {}
    for contender in ("keras_residual", *peers):
        contenders[contender] = Contender(__file__, "--worker", contender, name, mode, str(batch), str(steps))
    turns = play(contenders, rounds)
    speeds = {contender: [batch * steps / seconds for seconds in own] for contender, own in turns.items()}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(CONTESTS), choices=list(CONTESTS))
    parser.add_argument("--modes", nargs="+", default=["training", "inference"], choices=["training", "inference"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default=Path(__file__).with_name("cpu.csv"))
    parser.add_argument("--worker", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        contender, name, mode, batch, steps = arguments.worker
        worker(contender, name, mode, int(batch), int(steps))
        return
    facts = machine("keras", "tensorflow", "torch", "timm")
    for name in arguments.models:
        for mode in arguments.modes:
            rows = contest(name, mode, arguments.rounds)
            print(*rows, sep="\n", flush=True)
            keep(arguments.output, [{**row, **facts} for row in rows], "model", "mode")


if __name__ == "__main__":
    main()
