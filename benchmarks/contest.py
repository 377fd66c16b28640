"""Helpers of the benchmarks: contenders that take turns in separate processes, and the table of results.

A script starts itself once per contender as a worker. Between its turns, a worker and its child processes are stopped
by a signal, because loaders would otherwise read ahead. Compare ratios within a round, since the speed of a shared
machine drifts.
"""

from __future__ import annotations

import csv
import functools
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any


def work(start: Callable[[], Callable[[], Any]]) -> None:
    """Run a worker: `start` builds and warms up a contender, and returns a function that measures one turn."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep the output of libraries out of the results
    turn = start()
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(turn()), file=answers, flush=True)


class Contender:
    """Process group of a worker, stopped between its turns. `companions` are processes that run with it."""

    def __init__(self, *command: str, companions: Iterable[subprocess.Popen[str]] = ()) -> None:
        self.companions = list(companions)
        for process in self.companions:
            process.send_signal(signal.SIGCONT)
        with tempfile.TemporaryFile("w+") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ},
                start_new_session=True,
            )
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.asks, self.answers = self.process.stdin, self.process.stdout
            if self.answers.readline().strip() != "ready":
                self.process.wait()
                errors.seek(0)
                raise ChildProcessError(f"{' '.join(command)} failed:\n{errors.read().strip()[-1000:]}")
        self._signal(signal.SIGSTOP)

    def turn(self) -> Any:
        self._signal(signal.SIGCONT)
        print("go", file=self.asks, flush=True)
        measured = json.loads(self.answers.readline())
        self._signal(signal.SIGSTOP)
        return measured

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def _signal(self, number: signal.Signals) -> None:
        for process in self.companions:
            process.send_signal(number)
        os.killpg(self.process.pid, number)


def play(contenders: dict[str, Contender], rounds: int) -> dict[str, list[Any]]:
    """Run all rounds, each starting with another contender, and return the measurements of each contender."""
    turns: dict[str, list[Any]] = {name: [] for name in contenders}
    names = list(contenders)
    try:
        for number in range(rounds):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                turns[name].append(contenders[name].turn())
    finally:
        for contender in contenders.values():
            contender.close()
    return turns


@functools.cache  # the operators exist as long as the library object
def register_torchvision() -> Any:
    """Register operators that torchvision's wheel needs but a CPU build of torch lacks. Call it before the import."""
    import torch

    operators = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return operators


def machine(*packages: str) -> dict[str, str]:
    """Return versions and processor, which are written to each line of a table."""
    features = ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            flags = next((line for line in file if line.startswith("flags")), "").split()
        features = "avx512" if "avx512f" in flags else "avx2" if "avx2" in flags else ""
    return {
        **{name: importlib.metadata.version(name) for name in packages},
        "python": platform.python_version(),
        "machine": f"{os.cpu_count()} cores {platform.machine()} {features}".strip(),
    }


def keep(path: str | Path, rows: Sequence[dict[str, Any]], *key: str) -> None:
    """Write `rows` to the table, replacing rows with equal values in the columns of `key`."""

    def place(row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[column]) for column in key)

    kept: list[dict[str, Any]] = []
    if os.path.exists(path):
        with open(path, newline="") as file:
            kept = list(csv.DictReader(file))
    new = {place(row) for row in rows}
    at = next((i for i, row in enumerate(kept) if place(row) in new), len(kept))
    before, after = ([row for row in part if place(row) not in new] for part in (kept[:at], kept[at:]))
    rows = [*before, *rows, *after]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with open(f"{path}.part", "w", newline="") as file:
        table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    os.replace(f"{path}.part", path)
