"""Profile a step on this machine's CPU by kind of operation, and compare it with the machine's peak rate.

    python benchmarks/cpu_profile.py ResNet18 [--mode training] [--steps 4]

Times are summed over threads (two cores have two seconds per second) and come from TensorFlow's profiler. The peak rate
is that of one large matrix product in the same process. The fraction of it that the step reaches is computed from two
operations per multiply-accumulate, and three times as many for training.
"""

from __future__ import annotations

import argparse
import collections
import glob
import os
import tempfile
import time

import cpu


def by_kind(folder: str) -> collections.Counter[str]:
    """Return the thread time of each kind of operation in nanoseconds, from a trace in `folder`."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    with open(glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)[0], "rb") as file:
        space.ParseFromString(file.read())
    found: collections.Counter[str] = collections.Counter()
    for plane in space.planes:
        if plane.name != "/host:CPU":
            continue
        names = {key: value.name for key, value in plane.event_metadata.items()}
        for line in plane.lines:
            for event in line.events:
                name = names[event.metadata_id]
                kind = name.rpartition(":")[2].lstrip("_")
                if kind != name and kind != "Run" and " " not in kind:  # other events contain these
                    found[kind.removeprefix("Mkl").removeprefix("Native")] += event.duration_ps // 1000
    return found


def limit(seconds: float = 2.0) -> float:
    """Return the rate of one large matrix product in GFLOP/s."""
    import tensorflow as tf

    n = 2048
    a = tf.random.normal((n, n))
    tf.matmul(a, a)
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        tf.matmul(a, a).numpy()
        calls += 1
    return 2 * n**3 * calls / (time.perf_counter() - start) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(cpu.CONTESTS))
    parser.add_argument("--mode", default="training", choices=["training", "inference"])
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    builder, _, train_batch, infer_batch, *_ = cpu.CONTESTS[options.model]
    batch = train_batch if options.mode == "training" else infer_batch
    turn = cpu.keras_turn("keras_residual", options.model, options.mode, batch, options.steps)
    import tensorflow as tf

    from keras_residual.costs import costs

    turn()
    before = limit()
    start = time.perf_counter()
    turn()
    step = (time.perf_counter() - start) / options.steps
    limits = (before + limit()) / 2
    with tempfile.TemporaryDirectory() as folder:
        tf.profiler.experimental.start(folder)
        turn()
        tf.profiler.experimental.stop()
        found = by_kind(folder)
    total = sum(found.values())
    work = costs(builder).macs * 2 * batch * (3 if options.mode == "training" else 1) / 1e9
    print(f"{options.model}, {options.mode}, batch {batch}, {os.cpu_count()} cores")
    print(
        f"{step * 1e3:.0f} ms per step: {work / step:.0f} GFLOP/s, {work / step / limits:.0%} of the {limits:.0f} "
        "GFLOP/s of one large matrix product"
    )
    print("| operation | thread time per step, ms | share |\n| --- | --- | --- |")
    for name, nanoseconds in found.most_common(12):
        print(f"| {name} | {nanoseconds / options.steps / 1e6:.1f} | {nanoseconds / total:.1%} |")


if __name__ == "__main__":
    main()
