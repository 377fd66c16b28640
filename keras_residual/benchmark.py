"""Benchmarks of training and inference on this machine: throughput, peak memory and compilation time.

Each setting runs in a separate process, so that its peak memory is measured separately.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_residual.io import write_table, written_whole

__all__ = ["Measured", "benchmark", "measure"]


@dataclasses.dataclass(frozen=True)
class Measured:
    """Result of one measurement, a row of the table.

    Attributes:
        model: Name of the network.
        mode: `"training"` (the step of `keras_residual.fit`: forward, backward, SGD with momentum) or `"inference"`.
        xla: True if the step is compiled with XLA.
        backend: Keras backend.
        device: Name of the GPU, or `CPU`.
        precision: Keras dtype policy.
        batch_size: Images per step.
        size: Height and width of the images in pixels.
        images_per_second: Throughput of the timed steps.
        peak_mb: Peak memory in MB: of the device, as reported by the backend; on a CPU, of the whole process.
        compile_seconds: Extra time of the first step compared with later ones, for tracing and compilation.
    """

    model: str
    mode: str
    xla: bool
    backend: str
    device: str
    precision: str
    batch_size: int
    size: int
    images_per_second: float
    peak_mb: float
    compile_seconds: float


def benchmark(
    name: str,
    *,
    batch_size: int = 16,
    size: int | None = None,
    steps: int = 10,
    xla: str = "both",
    precision: str = "auto",
    hlo: str | os.PathLike[str] | None = None,
    csv: str | os.PathLike[str] | None = None,
    say: Callable[[str], None] = print,
) -> list[Measured]:
    """Benchmark a registered network with random weights on random images, and print the results.

    Args:
        name: Name of the network.
        batch_size: Images per step.
        size: Height and width of the images in pixels; `None` for the network's default.
        steps: Number of timed steps.
        xla: `"both"`, `"on"` or `"off"`. JAX always compiles, so with JAX only `"on"` is measured.
        precision: Keras dtype policy; `"auto"` uses bfloat16 on GPUs with fast bfloat16, and float32 elsewhere.
        hlo: File to write the optimised HLO of the training step to.
        csv: File to write the table to.
        say: Function called with each line of output.

    Returns:
        One row per mode and XLA setting.

    Raises:
        ValueError: If the network is not registered, a number is out of range, or HLO is requested without XLA.
        ChildProcessError: If a measurement fails; the message ends with the last lines of its standard error.
    """
    import keras

    from keras_residual.models import find

    row = find(name).config
    if steps < 1 or batch_size < 2 or (size is not None and size < 1):
        raise ValueError(
            "`steps` must be at least 1, `batch_size` at least 2 (batch normalisation needs two images) and `size` at "
            f"least 1; got steps={steps}, batch_size={batch_size}, size={size}."
        )
    if xla not in ("both", "on", "off"):
        raise ValueError(f"`xla` must be 'both', 'on' or 'off'; got {xla!r}.")
    if hlo is not None and xla == "off":
        raise ValueError("`xla` must be 'both' or 'on' to write HLO; got xla='off'. Leave out `hlo`, or enable XLA.")
    ways = {"both": (False, True), "on": (True,), "off": (False,)}[xla]
    if keras.backend.backend() == "jax":
        ways = (True,)
    found = []
    for mode in ("training", "inference"):
        for way in ways:
            order: dict[str, Any] = {"name": row.name, "mode": mode, "xla": way, "batch_size": batch_size}
            order |= {"size": size, "steps": steps, "precision": precision}
            if hlo is not None and mode == "training" and way:
                order["hlo"] = os.fspath(hlo)
            found.append(_measure_in_subprocess(order))
            say(_line(found[-1]))
    if hlo is not None:
        say(f"Wrote the compiled training step (HLO) to {os.fspath(hlo)}")
    if csv is not None:
        columns = [field.name for field in dataclasses.fields(Measured)]
        write_table(Path(csv), columns, (dataclasses.astuple(row) for row in found))
    return found


def measure(
    name: str,
    mode: str,
    xla: bool,
    batch_size: int,
    size: int | None = None,
    steps: int = 10,
    precision: str = "auto",
    hlo: str | None = None,
) -> Measured:
    """Run one measurement in this process; see `benchmark` for the arguments."""
    import keras
    import numpy as np

    from keras_residual.models import create, find
    from keras_residual.training import Execution, best_precision, compiled_hlo, prepare
    from keras_residual.training.devices import gpu_names

    row = find(name).config
    policy = best_precision() if precision == "auto" else precision
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    shape: Any = row.input_shape if size is None else (*[size] * (len(row.input_shape) - 1), row.input_shape[-1])
    try:
        model = create(name, classifier_activation=None, input_shape=shape)
    finally:
        keras.config.set_dtype_policy(before)
    generator = np.random.default_rng(0)
    classes = int(model.output_shape[-1])
    images = generator.integers(0, 256, (batch_size, *shape)).astype("uint8")
    labels = np.arange(batch_size) % classes
    normal = ((images / 255 - 0.45) / 0.225).astype("float32")
    step, batch = None, None
    if mode == "training":
        images = images if len(shape) == 3 else normal  # the step normalises pixels, but not signals
        execution = Execution(jit=xla)
        step, batches = prepare(model, _recipe(batch_size), (images, labels), classes=classes, execution=execution)
        batch = next(iter(batches))  # reuse one batch: the input pipeline is not measured
        run = functools.partial(_fit, step, batch)
    else:
        run = _inference(model, normal, xla)
    first = _timed(run, 1)
    run(1)
    seconds = _timed(run, steps)
    gpus = gpu_names()
    found = Measured(
        row.name,
        mode,
        xla,
        keras.backend.backend(),
        gpus[0] if gpus else "CPU",
        policy,
        batch_size,
        int(shape[0]),
        round(batch_size * steps / seconds, 2),
        round(_peak() / 1e6, 1),
        round(max(0.0, first - seconds / steps), 2),
    )
    if hlo is not None and step is not None:
        with written_whole(Path(hlo)) as part:
            part.write_text(compiled_hlo(step, batch), encoding="utf-8")
    return found


def _recipe(batch_size: int) -> Any:
    from keras_residual.training import Recipe

    # with a higher rate, random labels could make the weights overflow
    return Recipe(name="benchmark", learning_rate=0.01, batch_size=batch_size, schedule="constant", flip=False)


def _fit(step: Any, batch: Any, count: int) -> None:
    import tensorflow as tf

    data = tf.data.Dataset.from_tensors(batch).cache().repeat(count)
    step.fit(data, steps_per_epoch=count, epochs=1, shuffle=False, verbose=0)


def _inference(model: Any, images: Any, xla: bool) -> Callable[[int], None]:
    import keras
    import numpy as np

    if keras.backend.backend() == "jax":
        import jax

        state = [v.value for v in model.trainable_variables], [v.value for v in model.non_trainable_variables]
        answer = jax.jit(lambda x: model.stateless_call(*state, x, training=False)[0])
        batch = jax.device_put(images)
    else:
        import tensorflow as tf

        answer = tf.function(lambda x: model(x, training=False), jit_compile=xla, autograph=False)
        batch = tf.constant(images)

    def run(count: int) -> None:
        for _ in range(count - 1):
            answer(batch)
        np.asarray(answer(batch))  # wait for the device

    return run


def _timed(run: Callable[[int], None], count: int) -> float:
    start = time.perf_counter()
    run(count)
    return time.perf_counter() - start


def _peak() -> float:
    """Return the peak memory in bytes: of the accelerator, or of the process if there is none."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        counted = jax.local_devices()[0].memory_stats()  # None on CPUs
        if counted:
            return float(counted["peak_bytes_in_use"])
    else:
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return float(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def _measure_in_subprocess(order: dict[str, Any]) -> Measured:
    """Run `measure` in a separate process."""
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(order)], capture_output=True, text=True, check=False
    )
    result = done.stdout.strip().splitlines()[-1:]
    if done.returncode or not result:
        stderr = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise ChildProcessError(
            f"The {order['mode']} benchmark of {order['name']} with XLA {'on' if order['xla'] else 'off'} failed. Fix "
            f"the error, or try a smaller batch:\n{stderr}"
        )
    return Measured(**json.loads(result[0]))


def _line(row: Measured) -> str:
    return (
        f"{row.model} {row.mode:<9} XLA {'on ' if row.xla else 'off'}  {row.images_per_second:>9,.1f} images/s  peak "
        f"{row.peak_mb:>8,.0f} MB  compilation {row.compile_seconds:>6.1f} s  ({row.backend}, {row.device}, "
        f"{row.precision}, batches of {row.batch_size} at {row.size} px)"
    )


if __name__ == "__main__":
    print(json.dumps(dataclasses.asdict(measure(**json.loads(sys.argv[1])))))
