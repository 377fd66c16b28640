"""Files by somebody who means harm: no code runs, nothing else is opened, no memory to speak of is taken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import hostile_files

NAMES = list(hostile_files.CASES)


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What a process that loads each file says, by case; one that hangs or is killed has said less."""
    folder = tmp_path_factory.mktemp("hostile")
    os.mkfifo(folder / "SECRET")
    for name, (suffix, write) in hostile_files.CASES.items():
        write(folder / f"hostile-{name}{suffix}", folder)
    assert not (folder / "MARK").exists(), "writing a case ran it"
    command = [sys.executable, "-m", "tests.hostile_files", str(folder)]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=240, check=False
        )
        said, error = done.stdout, done.stderr
    except subprocess.TimeoutExpired as expired:
        said, error = (expired.stdout or b"").decode(), "it hung"
    found = [json.loads(line) for line in said.splitlines()]
    return {record["case"]: record for record in found}, error[-2000:], folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.long
def test_hostile_file(name, records):
    found, error, folder = records
    assert name in found, f"the process ended before: {error}"
    record = found[name]
    kind = record["error"].partition(":")[0]
    assert kind in ("WeightsError", "FileNotFoundError"), record["error"]
    assert record["unchanged"]
    assert not record["seen"], "it opened what is not its own"
    assert record["megabytes"] < 100, "it took memory that the model has no use for"
    assert not (folder / "MARK").exists(), "code of a file ran"


def test_enough_cases():
    assert len(NAMES) >= 30
