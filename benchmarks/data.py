"""Images per second that reach a training step, beside Keras' own loader and torchvision's.

    python benchmarks/data.py [--rounds 5] [--seconds 4] [--output benchmarks/data.csv]

Folders of generated JPEGs, at the size of ImageNet's (500 x 375) and of a small camera (1600 x 1200), are read in
batches of 32 images of 224 x 224:

* keras_residual: random resized crop and flip, in a reproducible order;
* keras: `image_dataset_from_directory(image_size=...)`: the whole image, resized without antialiasing, no crop;
* keras + crop: the same with `keras.layers.RandomCrop` and flip instead of the resizing alone;
* torchvision: `ImageFolder` + `RandomResizedCrop` + flip + `DataLoader` with one worker process for each core.

Every contender runs in a process group of its own that is stopped while another one is measured (waiting is not enough:
they read ahead); they take turns in each round, and what counts is the ratio within a round. The files are in the page
cache. Needs the extra `parity` for torchvision.
"""

from __future__ import annotations

import argparse
import csv
import importlib.metadata
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time

BATCH, SIZE = 32, 224
FOLDERS = {"500x375": (375, 500, 400), "1600x1200": (1200, 1600, 100)}
CONTENDERS = ("keras_residual", "keras", "keras + crop", "torchvision")


def write_images(folder: str, height: int, width: int, count: int) -> None:
    """Something like photos: smooth shapes and some noise, quality 90, in four classes."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for i in range(count):
        place = os.path.join(folder, f"class{i % 4}")
        os.makedirs(place, exist_ok=True)
        shapes = generator.integers(0, 256, (height // 25, width // 25, 3)).astype("uint8")
        image = np.asarray(Image.fromarray(shapes).resize((width, height), Image.Resampling.BICUBIC)).astype("float32")
        image += generator.normal(0, 6, image.shape)
        Image.fromarray(image.clip(0, 255).astype("uint8")).save(os.path.join(place, f"{i:05}.jpg"), quality=90)


def ours(folder: str):
    from keras_residual import data

    found = data.load(folder, cache=False, validation=0)
    return iter(found.train.training(BATCH, SIZE))


def keras_loader(folder: str, crop: bool):
    import keras
    import tensorflow as tf

    size = (256, 256) if crop else (SIZE, SIZE)
    data = keras.utils.image_dataset_from_directory(folder, image_size=size, batch_size=BATCH, seed=0, verbose=False)
    data = data.repeat()
    if crop:
        layers = keras.Sequential([keras.layers.RandomCrop(SIZE, SIZE), keras.layers.RandomFlip("horizontal")])
        data = data.map(lambda x, y: (layers(x, training=True), y), tf.data.AUTOTUNE)
    return iter(data.prefetch(tf.data.AUTOTUNE))


def torchvision_loader(folder: str):
    import torch

    operators = torch.library.Library("torchvision", "DEF")  # its wheel has operators that a CPU build lacks
    for operator in ("nms", "qnms"):
        operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    images = datasets.ImageFolder(folder, transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(
        images, BATCH, shuffle=True, num_workers=os.cpu_count() or 1, drop_last=True, persistent_workers=True
    )

    def endless():
        while True:
            yield from loader

    return endless()


def worker(contender: str, folder: str, seconds: float) -> None:
    """Opens the folder, then reads for some seconds for each line on standard input and answers with images/s."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print must not look like an answer
    if contender == "keras_residual":
        batches = ours(folder)
    elif contender == "torchvision":
        batches = torchvision_loader(folder)
    else:
        batches = keras_loader(folder, contender.endswith("crop"))
    for _ in range(8):
        next(batches)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        for _ in range(12):  # what was read ahead while waiting does not count
            next(batches)
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            next(batches)
            count += BATCH
        print(count / (time.perf_counter() - start), file=answers, flush=True)


def contest(name: str, folder: str, rounds: int, seconds: float) -> list[dict[str, object]]:
    runners = {}
    for contender in CONTENDERS:
        command = [sys.executable, __file__, "--worker", contender, folder, "--seconds", str(seconds)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        runners[contender] = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,
        )
        if runners[contender].stdout.readline().strip() != "ready":
            raise RuntimeError(f"{contender} could not read {folder}: {' '.join(command)}")
        os.killpg(runners[contender].pid, signal.SIGSTOP)
    speeds: dict[str, list[float]] = {contender: [] for contender in runners}
    for _ in range(rounds):
        for contender, runner in runners.items():
            os.killpg(runner.pid, signal.SIGCONT)
            print("go", file=runner.stdin, flush=True)
            speeds[contender].append(float(runner.stdout.readline()))
            os.killpg(runner.pid, signal.SIGSTOP)
    for runner in runners.values():
        os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()
    first = speeds["keras_residual"]
    return [
        {
            "images": name,
            "contender": contender,
            "images_per_second": round(statistics.median(speed)),
            "slowest": round(min(speed)),
            "fastest": round(max(speed)),
            "ours_over_it": round(statistics.median(a / b for a, b in zip(first, speed, strict=True)), 2),
        }
        for contender, speed in speeds.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", default=list(FOLDERS), choices=list(FOLDERS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--output", default=os.path.join(os.path.dirname(__file__), "data.csv"))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker, arguments.seconds)
        return
    facts = {name: importlib.metadata.version(name) for name in ("keras", "tensorflow", "torchvision", "pillow")}
    facts["machine"] = f"{os.cpu_count()} cores {platform.machine()}"
    rows = []
    for name in arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            write_images(folder, *FOLDERS[name])
            for row in contest(name, folder, arguments.rounds, arguments.seconds):
                rows.append({**row, **facts})
                print(row, flush=True)
    temporary = arguments.output + ".part"
    with open(temporary, "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    os.replace(temporary, arguments.output)


if __name__ == "__main__":
    main()
