"""One process of a training on several: run by test_training_distributed.py with KERAS_BACKEND=jax."""

import json
import sys
import time
from pathlib import Path

import keras
import numpy as np

from keras_residual.training import Selection, fit, start
from tests.test_training_fit import RECIPE, data, network

TOGETHER = RECIPE.replace(epochs=2, ema=0.5, clip_norm=1.0, label_smoothing=0.1)


class Slowly(keras.callbacks.Callback):
    """Gives time to be killed in."""

    def on_train_batch_end(self, batch, logs=None):
        print("step", flush=True)
        time.sleep(0.05)


def main(folder: Path, coordinator: str, number: int, process_id: int, seed: int, slowly: bool) -> None:
    start(coordinator or None, number, process_id, patience=10)
    model = network(noise=0.0)
    with np.load(folder / "start.npz") as saved:
        model.set_weights([saved[name] for name in saved.files])
    history = fit(
        model,
        TOGETHER.replace(epochs=8 if slowly else TOGETHER.epochs),
        data(),
        data(24, 1),
        seed=seed,
        checkpoints=folder / "training",
        selection=Selection(keep="last"),
        progress=False,
        callbacks=[Slowly()] if slowly else [],
    )
    weights = [np.asarray(keras.ops.convert_to_numpy(v)) for v in model.weights]
    np.savez(folder / f"{process_id}.npz", *weights)
    (folder / f"{process_id}.json").write_text(json.dumps(history))


if __name__ == "__main__":
    place, address, *numbers = sys.argv[1:]
    main(Path(place), address, *map(int, numbers))  # pyright: ignore
