"""Every page of the manual: its commands parse, its code runs, and its tables list what a run and an export contain."""

import contextlib
import csv
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import pytest
from safetensors.numpy import load_file

import keras_residual as kr
from keras_residual import finetuning
from keras_residual.cli import main, parser
from keras_residual.finetuning import finetune

from . import manual, mistakes
from .manual import PAGES, ROOT

# Pages of which all is executed; those that are not here are executed if `-m long` is given. They train or export.
QUICK = {"index", "howto/weights", "howto/block", "explanation/trust", "explanation/residual"}
# What the pages train, made small: the network, the images and the epochs of their commands.
NETWORK, SIZE, BATCH, EPOCHS = "ResNet8", 32, 8, {None: 1, 10: 1, 20: 2, 100: 1}
# Commands that are parsed but not executed: they take minutes. So are those that would fetch something.
NOT_RUN = {"benchmark", "quickstart"}
# What a page imports of the extra `checks`, which the tests do without.
NEEDS = {"howto/export": ("onnxruntime", "openvino", "ai_edge_litert", "tf2onnx")}
# Other programs that the pages show, and those of them that are executed.
OTHERS, EXECUTED = {"pip", "docker", "kubectl", "mv", "python"}, {"mv", "python"}
SIGNATURES = ROOT / "docs" / "pages" / "reference" / "signatures.md"
RUN_FILES = ROOT / "docs" / "pages" / "reference" / "run_files.md"


def commands(page):
    return [line for kind, code in manual.blocks(page) if kind == "sh" for line in manual.lines(code)]


def test_there_are_pages_and_commands():
    assert len(PAGES) > 20
    assert sum(len(commands(page)) for page in PAGES) > 50


@pytest.mark.parametrize("page", PAGES, ids=manual.name)
def test_commands_parse(page, capsys):
    """By the parser of the command line, whether they are executed or not."""
    for line in commands(page):
        words = manual.arguments(line)
        if words is None:
            assert line.split()[0] in OTHERS, line
        else:
            parser().parse_args(words)


def test_a_command_that_does_not_parse_is_seen(capsys):
    assert manual.arguments("pip install . && keras-residual quickstart") == ["quickstart"]
    assert manual.arguments("A=b keras-residual serve x &") == ["serve", "x"]
    assert manual.arguments("docker run keras-residual") is None
    with pytest.raises(SystemExit):
        parser().parse_args(manual.arguments("keras-residual finetune photos --epoch 1 --outputs x"))


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=manual.name(page), marks=[] if manual.name(page) in QUICK else [pytest.mark.long])
        for page in PAGES
        if manual.blocks(page)
    ],
)
def test_page_runs(page, tmp_path, monkeypatch, shrunk, run, hub):
    """Its Python and shell blocks from top to bottom, in one directory with tiny data."""
    for module in NEEDS.get(manual.name(page), ()):
        pytest.importorskip(module)
    text = "".join(code for _, code in manual.blocks(page))
    place = tmp_path / "here"
    manual.world(place)
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if "tensorflow_datasets/" in text:
        manual.blossoms(place / "tensorflow_datasets")
    if "runs/flowers" in text and "--output runs/flowers\n" not in text:  # of another page
        shutil.copytree(run(), "runs/flowers")
    if '"timm/resnet18.a1_in1k"' in text:
        publish(hub)
    session = Session(manual.name(page))
    with session, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of tiny networks that learned nothing
        for kind, code in manual.blocks(page):
            if kind == "python":
                session.python(code)
            else:
                for line in manual.lines(code):
                    session.shell(line)


class Session:
    """Executes the blocks of a page, with a server in between."""

    def __init__(self, page):
        self.namespace = {"__name__": page}
        self.port = str(_free_port())
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stack.close()

    def python(self, code):
        exec(compile(code.replace("127.0.0.1:8501", f"127.0.0.1:{self.port}"), "page", "exec"), self.namespace)

    def shell(self, line):
        words = manual.arguments(line)
        program = line.split()[0]
        if words is None:
            if program == "python":
                line = f"{sys.executable} {line.partition(' ')[2]} --url http://127.0.0.1:{self.port}"
            if program in EXECUTED:
                subprocess.run(line, shell=True, check=True)
        elif words[0] == "serve":
            self._serve(words[1])
        elif words[0] not in NOT_RUN and program == manual.PROGRAM and not re.search("tfds:|timm/", line):
            assert main(words) == (2 if "# fails" in line else 0), line

    def _serve(self, directory):
        from keras_residual.serving import Server

        ready = threading.Event()
        server = Server(directory, rest_port=int(self.port), grpc_port=0)
        thread = threading.Thread(target=server.run, args=(ready.set,))
        thread.start()
        self.stack.callback(thread.join)
        self.stack.callback(server.stop)
        assert ready.wait(60)


@pytest.fixture
def shrunk(monkeypatch):
    """`finetune` with a small network and few epochs, from scratch unless the weights are a local run."""

    def tiny(data, model=NETWORK, weights=None, epochs=None, **settings):
        weights = weights if weights is not None and Path(weights).exists() else None
        settings = {**settings, "size": SIZE, "batch_size": BATCH}
        if "head_epochs" in settings:
            settings["head_epochs"] = EPOCHS[settings["head_epochs"]]
        return finetune(data, NETWORK, weights, EPOCHS[epochs], **settings)

    monkeypatch.setattr(finetuning, "finetune", tiny)
    monkeypatch.setattr(kr, "finetune", tiny)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that returns a finished run on the flowers, trained at its first call."""
    place = tmp_path_factory.mktemp("flowers")

    def trained():
        if not (place / "run").exists():
            manual.photos(place / "photos")
            (place / "photos" / "rose" / "broken.jpg").write_text("no image")
            settings = {"size": SIZE, "batch_size": BATCH, "output": place / "run", "say": lambda line: None}
            finetune(place / "photos", NETWORK, None, 1, **settings)
        return place / "run"

    return trained


def publish(hub):
    """`timm/resnet18.a1_in1k` with random weights, in the local cache of the Hub."""
    kr.save_weights(kr.ResNet18(), "resnet18.safetensors")
    record = {"architecture": "resnet18", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, 224, 224]}}
    hub("timm/resnet18.a1_in1k", {"config.json": record, "model.safetensors": load_file("resnet18.safetensors")})


def _free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def test_pictures_are_shown_and_small():
    """Nothing is fetched: SVG files that rich draws name a font's address unless it is taken out."""
    shown = {name for page in PAGES for name in re.findall(r"images/([\w.]+)\)", page.read_text(encoding="utf-8"))}
    pictures = list((ROOT / "docs" / "pages" / "images").iterdir())
    assert {path.name for path in pictures} == shown
    assert sum(path.stat().st_size for path in pictures) < 1.5e6
    for path in pictures:
        assert path.suffix == ".png" or "@font-face" not in path.read_text(encoding="utf-8"), path.name


# --------------------------------------------------------------------------------------------------- troubleshooting


@pytest.mark.skipif(sys.platform != "linux", reason="some messages quote the operating system")
def test_messages_are_current(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    manual.photos(tmp_path / "photos")
    text = mistakes.PAGE.read_text(encoding="utf-8")
    assert [found[2] for found in mistakes.PLACE.finditer(text)] != []
    assert {found[2] for found in mistakes.PLACE.finditer(text)} == set(mistakes.MISTAKES)
    current = mistakes.with_messages(text, mistakes.messages())
    assert current == text, "The page is not current. Run: python -m tests.mistakes"


# --------------------------------------------------------------------------------------------------------- reference


def section(page, title):
    """The text below a heading, up to the next heading of its level or a higher one."""
    text = page.read_text(encoding="utf-8")
    _, level, rest = re.split(rf"^(#+) {re.escape(title)}$", text, maxsplit=1, flags=re.MULTILINE)
    return re.split(rf"^#{{1,{len(level)}}} ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def first_column(text):
    """The names in backquotes in the first column of the tables of a text."""
    rows = [row for row in text.splitlines() if row.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_files_of_a_run(run, tmp_path):
    """Every file, column and key of a real run is on the page, and all that is on the page is in the run."""
    place = tmp_path / "run"
    shutil.copytree(run(), place)
    (rose, *_) = sorted((run().parent / "photos" / "rose").glob("0*.jpg"))
    assert main(["inspect", str(place), str(rose), "--count", "8"]) == 0
    found = {path.name + "/" * path.is_dir() for path in place.iterdir() if not path.name.startswith(".")}
    assert first_column(section(RUN_FILES, "Overview")) == found
    inspected = {path.name for path in (place / "inspect").iterdir() if not path.name.startswith(".")}
    assert inspected == first_column(section(RUN_FILES, "`inspect/`"))
    for table in place.glob("*.csv"):
        with table.open(encoding="utf-8", newline="") as file:
            columns = next(csv.reader(file))
        assert first_column(section(RUN_FILES, f"`{table.name}`")) == set(columns), table.name
    for name in ("metrics.json", "run.json"):
        keys = set(json.loads((place / name).read_text(encoding="utf-8")))
        assert first_column(section(RUN_FILES, f"`{name}`")) == keys, name
    config = json.loads((place / "config.json").read_text(encoding="utf-8"))
    keys = set(config) - {"pretrained_cfg", "keras_residual"}
    keys |= {f"pretrained_cfg.{key}" for key in config["pretrained_cfg"]}
    own = set(config["keras_residual"]) - first_column(section(RUN_FILES, "`run.json`"))
    keys |= {f"keras_residual.{key}" for key in own}
    # a tag is there in runs from a checkpoint of timm's only
    assert first_column(section(RUN_FILES, "`config.json`")) - {"keras_residual.tag"} == keys


def test_signatures_of_an_export():
    """Those of the digits' model, which an export has written; likewise its files and the keys of `metadata.json`."""
    model = ROOT / "saved_models" / "digits"
    version = model / "1"
    about = json.loads((version / "metadata.json").read_text(encoding="utf-8"))
    page = section(SIGNATURES, "Signatures")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in page.splitlines() if row.startswith("| `")]
    returned = {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[2])) for row in rows if len(row) == 4}
    assert returned == {name: set(parts["outputs"]) for name, parts in about["signatures"].items()}
    assert all(set(parts["inputs"]) == {"inputs"} for parts in about["signatures"].values())
    taken = {row[0].strip("`"): row[1].split()[0] for row in rows if len(row) == 4}
    for name, parts in about["signatures"].items():
        assert taken[name] in (parts["inputs"]["inputs"]["dtype"], "as")
    outputs = {row[0].strip("`"): row[1].split()[0] for row in rows if len(row) == 3}
    for name, parts in about["signatures"].items():
        for output, spec in parts["outputs"].items():
            assert outputs.pop(output, spec["dtype"]) == spec["dtype"] or name == "classify", (name, output)
    assert set(outputs) <= {"outputs"}, "of a network without probabilities"
    assert first_column(section(SIGNATURES, "`metadata.json`")) == set(about)
    files = {path.relative_to(version).as_posix() for path in version.rglob("*") if path.is_file()}
    files = {"variables/" if name.startswith("variables/") else name for name in files}
    assert first_column(section(SIGNATURES, "Files of a version")) == files
    neighbours = {path.name for path in model.iterdir() if path.is_file()}
    assert first_column(section(SIGNATURES, "Files next to the versions")) == neighbours


def test_manifests():
    """The manifests for Kubernetes are whole, and their names and ports agree with each other and with the image."""
    yaml = pytest.importorskip("yaml")
    text = (ROOT / "docs" / "pages" / "howto" / "serve.md").read_text(encoding="utf-8")
    (manifest,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    deployment, service = yaml.safe_load_all(manifest)
    pod = deployment["spec"]["template"]
    labels = deployment["spec"]["selector"]["matchLabels"]
    assert labels == pod["metadata"]["labels"] == service["spec"]["selector"]
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == set(ports)
    assert container["readinessProbe"]["httpGet"]["port"] in ports
    assert container["image"] in text.replace(manifest, "")
    assert "COPY saved_models/flowers /models/flowers" in text
    assert any(arg.endswith("/models/flowers/batching_parameters.txt") for arg in container["args"])
