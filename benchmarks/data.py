"""Compare the throughput of data loading with the loaders of Keras and torchvision.

    python benchmarks/data.py [--rounds 5] [--seconds 4] [--output benchmarks/data.csv]

Folders of generated JPEGs of the size of ImageNet's (500 x 375) and of a small camera (1600 x 1200) are read in batches
of 32 images of 224 x 224:

* keras_residual: random resized crop and flip, in a reproducible order;
* keras: `image_dataset_from_directory(image_size=...)`: the complete image, resized without antialiasing, no crop;
* keras + crop: the same, followed by `keras.layers.RandomCrop` and flip;
* torchvision: `ImageFolder` + `RandomResizedCrop` + flip + `DataLoader` with one worker process per core.

The files are in the page cache. torchvision needs the extra `parity`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from contest import Contender, keep, machine, play, register_torchvision, work

BATCH, SIZE = 32, 224
FOLDERS = {"500x375": (375, 500, 400), "1600x1200": (1200, 1600, 100)}
CONTENDERS = ("keras_residual", "keras", "keras + crop", "torchvision")


def write_images(folder: str, height: int, width: int, count: int) -> None:
    """Write photo-like JPEGs in four classes: smooth shapes with some noise, quality 90."""
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

    register_torchvision()
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
    """Run a worker whose turns read images for some seconds and return the images per second."""

    def start():
        if contender == "keras_residual":
            batches = ours(folder)
        elif contender == "torchvision":
            batches = torchvision_loader(folder)
        else:
            batches = keras_loader(folder, contender.endswith("crop"))
        for _ in range(8):
            next(batches)

        def turn() -> float:
            for _ in range(12):  # skip batches that were read ahead before this turn
                next(batches)
            begin, count = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds:
                next(batches)
                count += BATCH
            return count / (time.perf_counter() - begin)

        return turn

    work(start)


def contest(name: str, folder: str, rounds: int, seconds: float) -> list[dict[str, object]]:
    contenders = {}
    for contender in CONTENDERS:
        contenders[contender] = Contender(__file__, "--worker", contender, folder, "--seconds", str(seconds))
    speeds = play(contenders, rounds)
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
    parser.add_argument("--output", default=Path(__file__).with_name("data.csv"))
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker, arguments.seconds)
        return
    facts = machine("keras", "tensorflow", "torchvision", "pillow")
    for name in arguments.images:
        with tempfile.TemporaryDirectory() as folder:
            write_images(folder, *FOLDERS[name])
            rows = contest(name, folder, arguments.rounds, arguments.seconds)
            print(*rows, sep="\n", flush=True)
            keep(arguments.output, [{**row, **facts} for row in rows], "images")


if __name__ == "__main__":
    main()
