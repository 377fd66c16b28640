"""The command line. Each command imports what it needs, so that help does not wait for TensorFlow."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from keras_residual import __version__
from keras_residual.io import expand, locked

Command = Callable[[argparse.Namespace], int | None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `keras-residual` and return its exit code: 0, 1 for a negative result, 2 for an error, 130 for Ctrl-C.

    Every error is one message. Set KERAS_RESIDUAL_TRACEBACK=1 to see where it was raised.
    """
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # what the terminal's encoding lacks is escaped: no error mid-run
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    code: int | None = 0
    try:
        _import_quietly()
        code = options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `keras-residual list | head`: the reader has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at exit
    except KeyboardInterrupt:
        print("keras-residual: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("KERAS_RESIDUAL_TRACEBACK", "0") not in ("", "0"):
            raise
        print(f"keras-residual: {_message(error)}", file=sys.stderr)
        return 2
    return code or 0


def _message(error: Exception) -> str:
    """Return the text of an error. One that this package did not foresee is introduced as such."""
    text = str(error) or type(error).__name__
    if isinstance(error, ValueError | TypeError | OSError | ImportError | ArithmeticError):
        return text
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return (
        f"unexpected {type(error).__name__}: {first[:500]}\nSet KERAS_RESIDUAL_TRACEBACK=1 and run the command again "
        "to see where it happened, and please report it."
    )


def _import_quietly() -> None:
    """Imports Keras without what TensorFlow's C++ libraries say whatever their log level is."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            import keras

            if keras.backend.backend() == "tensorflow":
                import tensorflow as tf

                tf.config.list_physical_devices()  # looks for GPUs, and calls it an error where there are none
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="keras-residual", description="Residual networks for Keras and TensorFlow, correct by construction."
    )
    parser.add_argument("--version", action="version", version=f"keras-residual {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        return sub

    sub = add("quickstart", _quickstart, "Train, compare and export a small residual network on handwritten digits.")
    sub.add_argument("--seeds", type=int, default=1, metavar="N", help="number of runs, each with a split of its own")
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the first run")
    sub.add_argument("--epochs", type=int, default=None, metavar="N", help="epochs of training")
    sub.add_argument("--width", type=int, default=32, metavar="N", help="channels of the first stage (%(default)s)")
    sub.add_argument("--output", default="runs/digits", metavar="DIR", help="where results go (%(default)s)")
    sub.add_argument(
        "--saved-model", default="saved_models/digits", metavar="DIR", help="where the export goes (%(default)s)"
    )

    sub = add("finetune", _finetune, "Train a classifier on your own images. Run the same command again to resume.")
    sub.add_argument("data", metavar="DATA", help="a folder per class, a .csv or .parquet manifest, or tfds:NAME")
    sub.add_argument("--model", default="ResNet18", metavar="NAME", help="a registered network (%(default)s)")
    sub.add_argument(
        "--weights",
        default="imagenet",
        metavar="SRC",
        help="imagenet, a repository such as timm/resnet18.a1_in1k, a file, a run, or none (%(default)s)",
    )
    sub.add_argument("--epochs", type=int, metavar="N", help="passes over the images (by the size of the data)")
    sub.add_argument("--output", metavar="RUN", help="the run's directory (runs/NAME)")
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="of split, order, new weights (%(default)s)")
    sub.add_argument(
        "--validation", type=_fraction_or_source, default=0.2, metavar="PART", help="a part, or a source (%(default)s)"
    )
    sub.add_argument("--recipe", metavar="NAME", help="a preset, for example finetune or resnet_strikes_back_a2")
    sub.add_argument("--size", type=int, metavar="PIXELS", help="height and width of the images (the checkpoint's)")
    sub.add_argument("--batch-size", type=int, metavar="N", help="images in a step")
    sub.add_argument("--learning-rate", type=float, metavar="RATE", help="the highest one, for this batch size")
    sub.add_argument("--head-epochs", type=int, metavar="N", help="epochs, out of all, that train the head alone")
    sub.add_argument("--batch-norm", choices=["frozen", "train"], help="freeze or update batch-norm statistics")
    sub.add_argument("--patience", type=int, metavar="N", help="epochs without improvement before it stops early")
    sub.add_argument("--precision", default="auto", metavar="POLICY", help="for example mixed_bfloat16 (%(default)s)")
    sub.add_argument("--deterministic", action="store_true", help="the same seed gives the same bits")
    sub.add_argument("--overwrite", action="store_true", help="replace a run with other settings")
    sub.add_argument(
        "--resume-anyway",
        action="store_const",
        const="anyway",
        dest="resume",
        help="resume an interrupted run even if settings or versions differ",
    )
    several = sub.add_argument_group("several machines", "Each runs the same command, with KERAS_BACKEND=jax.")
    several.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    several.add_argument("--processes", type=int, default=1, metavar="N", help="how many there are (%(default)s)")
    several.add_argument("--process-id", type=int, default=0, metavar="I", help="which one this is, 0 to N - 1")

    sub = add("evaluate", _evaluate, "Measure a run on labelled images.")
    sub.add_argument("run", metavar="RUN", help="the run's directory")
    sub.add_argument("data", metavar="DATA", help="as for finetune; the test part where it is split, else all")
    sub.add_argument("--output", metavar="DIR", help="write metrics, confusion matrix and worst mistakes there")

    sub = add("predict", _predict, "Classify images.")
    sub.epilog = (
        "Exit codes: 0 if every image was classified; 1 if an image could not be read, or there was none; 2 if the "
        "command could not be carried out (no such run or file, a URL)."
    )
    sub.add_argument("run", metavar="RUN", help="the run's directory")
    sub.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, or patterns such as 'photos/*.jpg'")
    sub.add_argument("--top", type=int, default=3, metavar="N", help="classes shown for each (%(default)s)")
    sub.add_argument("--json", action="store_true", help="one line of JSON for each image")

    sub = add("inspect", _inspect, "Look into a run: skip connections, gradients, blocks, and where it looks.")
    sub.add_argument("run", metavar="RUN", help="the run's directory")
    sub.add_argument("images", nargs="*", metavar="IMAGE", help="draw Grad-CAM or attention roll-out on these")
    sub.add_argument("--data", metavar="DATA", help="labelled images to measure on (the run's own)")
    sub.add_argument("--count", type=int, default=32, metavar="N", help="how many of them (%(default)s)")
    sub.add_argument("--output", metavar="DIR", help="where figures and tables go (RUN/inspect)")

    sub = add("export", _export, "Write a SavedModel that TensorFlow Serving runs as it is.")
    sub.add_argument("source", metavar="RUN", help="a run, or a checkpoint such as timm/resnet18.a1_in1k")
    sub.add_argument(
        "directory",
        metavar="DIR",
        help="the model's directory, saved_models/NAME; or a file with the network alone, of ONNX (.onnx), OpenVINO "
        "(.xml) or LiteRT (.tflite)",
    )
    sub.add_argument("--version", type=int, metavar="N", help="the version (one more than the largest there)")
    sub.add_argument("--top-k", type=int, metavar="K", help="classes named in answers (5)")
    sub.add_argument("--no-fold", action="store_true", help="keep batch normalisations as they are")
    sub.add_argument("--no-freeze", action="store_true", help="keep weights as variables")
    sub.add_argument(
        "--int8",
        metavar="IMAGES",
        help="for .tflite: weights and activations of 8 bits; a third of this folder's images is held out to measure",
    )

    sub = add("verify", _verify, "Check an export: its files, and the answers of its signatures.")
    sub.add_argument("directory", metavar="DIR", help="a model's directory, or one version's")

    sub = add("serve", _serve, "Try exports on this machine, by the protocol of TensorFlow Serving.")
    sub.add_argument("directory", metavar="DIR", help="saved_models/NAME, or saved_models for all in it")
    sub.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (%(default)s)")
    sub.add_argument("--rest-port", type=int, default=8501, metavar="PORT", help="port of REST (%(default)s)")
    sub.add_argument("--grpc-port", type=int, default=8500, metavar="PORT", help="port of gRPC (%(default)s)")
    sub.add_argument("--max-mb", type=int, default=64, metavar="MB", help="the largest request (%(default)s)")
    sub.add_argument("--timeout", type=float, default=30.0, metavar="S", help="the longest request (%(default)s)")

    sub = add("benchmark", _benchmark, "Measure how fast a network trains and answers here, with XLA and without.")
    sub.add_argument("name", metavar="NAME", help="a registered network")
    sub.add_argument("--batch-size", type=int, default=16, metavar="N", help="images in a step (%(default)s)")
    sub.add_argument("--size", type=int, metavar="PIXELS", help="height and width of the images (the network's)")
    sub.add_argument("--steps", type=int, default=10, metavar="N", help="steps that are timed (%(default)s)")
    sub.add_argument("--xla", choices=["both", "on", "off"], default="both", help="(%(default)s)")
    sub.add_argument("--precision", default="auto", metavar="POLICY", help="for example mixed_bfloat16 (%(default)s)")
    sub.add_argument("--hlo", metavar="FILE", help="write the compiled training step there: the proof that it compiles")
    sub.add_argument("--csv", metavar="FILE", help="write the table there too")

    sub = add("list", _list, "List the registered models.")
    sub.add_argument("pattern", nargs="?", default="*", metavar="PATTERN", help="wildcard, for example 'resnet*'")

    sub = add("info", _info, "Show what is known of a model.")
    sub.add_argument("name", metavar="NAME", help="a model's name, its timm name, or a checkpoint of timm's")

    sub = add("convert", _convert, "Turn any weights into safetensors in timm's names and layout.")
    sub.add_argument("source", metavar="SRC", help="a file, a directory or a repository such as timm/resnet18.a1_in1k")
    sub.add_argument("target", metavar="DST", help="a path that ends in .safetensors")
    sub.add_argument("--model", metavar="NAME", help="the weights' model, where the source has no config.json")
    sub.add_argument("--classes", type=int, metavar="N", help="the weights' number of classes, likewise")
    return parser


def _quickstart(options: argparse.Namespace) -> None:
    from keras_residual.quickstart import quickstart

    output, saved_model = expand(options.output), expand(options.saved_model)
    quickstart(output, saved_model, options.seeds, options.seed, options.epochs, options.width)


def _fraction_or_source(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _finetune(options: argparse.Namespace) -> None:
    from keras_residual.finetuning import finetune

    given = {key: value for key, value in vars(options).items() if key != "command" and value is not None}
    if given["weights"].lower() == "none":
        given["weights"] = None
    try:
        finetune(**given)
    except ConnectionError as error:
        if options.processes == 1:
            raise
        print(f"keras-residual: {error}", file=sys.stderr, flush=True)
        os._exit(2)  # at a usual exit JAX would wait for the process that has gone


def _evaluate(options: argparse.Namespace) -> None:
    import numpy as np

    from keras_residual.classifier import Classifier, labelled
    from keras_residual.reports import write_report

    classifier = Classifier.load(options.run)
    examples, words, skipped = labelled(options.data, classifier.labels)
    for line in words:
        print(f"warning: {line}", file=sys.stderr)
    if options.output is None:
        found = classifier.evaluate(examples) | {"skipped": float(skipped)}
    else:
        majority = int(np.bincount(examples.labels).argmax())
        folder = expand(options.output)
        with locked(folder):
            found = write_report(classifier, examples, folder, majority=majority, skipped=skipped)
    for name, value in found.items():
        print(f"{name:<20} {value:,.0f}" if name in ("images", "skipped") else f"{name:<20} {value:.4f}")


def _predict(options: argparse.Namespace) -> int:
    from keras_residual.classifier import Classifier
    from keras_residual.data.images import find
    from keras_residual.io import expand

    images, skipped = find(options.images)
    if skipped:
        names = ", ".join(path.name for path in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        print(f"skipped {len(skipped)} (hidden, or not an image): {names}", file=sys.stderr)
    if not images:
        print(f"keras-residual: There are no images in {', '.join(options.images)}.", file=sys.stderr)
        return 1
    classifier, failed = Classifier.load(expand(options.run)), False
    for first in range(0, len(images), 256):  # answers appear as they are known
        for found in classifier.predict(images[first : first + 256]):
            failed |= bool(found.error)
            if options.json:
                print(json.dumps({"image": found.name, "classes": dict(found.top(options.top)), "error": found.error}))
            elif found.error:
                print(f"{found.name}: {found.error}", file=sys.stderr)
            else:
                classes = ", ".join(f"{label} {p:.1%}" for label, p in found.top(options.top))
                print(f"{found.name}: {classes}")
    return 1 if failed else 0


def _inspect(options: argparse.Namespace) -> None:
    from keras_residual.diagnostics.command import inspect_run

    inspect_run(options.run, options.images, data=options.data, count=options.count, output=options.output)


def _export(options: argparse.Namespace) -> None:
    from keras_residual.exporting.command import export_source

    given = {
        "int8": options.int8,
        "version": options.version,
        "top_k": options.top_k,
        "fold": False if options.no_fold else None,
        "freeze": False if options.no_freeze else None,
    }
    export_source(
        options.source, options.directory, **{name: value for name, value in given.items() if value is not None}
    )


def _verify(options: argparse.Namespace) -> None:
    from keras_residual.exporting.command import verify_directory

    verify_directory(options.directory)


def _serve(options: argparse.Namespace) -> None:
    from keras_residual.io import expand
    from keras_residual.serving import serve

    serve(
        expand(options.directory),
        host=options.host,
        rest_port=options.rest_port,
        grpc_port=options.grpc_port,
        max_bytes=options.max_mb << 20,
        seconds=options.timeout,
    )


def _benchmark(options: argparse.Namespace) -> None:
    from keras_residual.benchmark import benchmark

    given = {key: value for key, value in vars(options).items() if key not in ("command", "name")}
    benchmark(options.name, **given)


def _list(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Table

    from keras_residual.models import find, list_models

    table = Table("name", "timm", "source", box=None, pad_edge=False)
    table.add_column("params", justify="right")
    table.add_column("GMACs", justify="right")
    names = list_models(options.pattern)
    for name in names:
        row = find(name).config
        params = f"{row.params / 1e6:,.1f} M" if row.params else ""
        table.add_row(name, row.timm or "", row.source, params, f"{row.gmacs:,.2f}" if row.gmacs else "")
    if not names:
        raise ValueError(f"No model matches {options.pattern!r}. `keras-residual list` shows all.")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print(f"{len(names)} models")


def _info(options: argparse.Namespace) -> None:
    from keras_residual.costs import costs
    from keras_residual.models import find
    from keras_residual.weights.published import published

    name, _, tag = options.name.removeprefix("timm/").partition(".")
    row = find(name).config
    count = costs(row.name)
    shape = " x ".join(map(str, row.input_shape))
    facts = {
        "parameters": f"{count.params:,}",
        "multiply-additions": f"{count.macs / 1e9:,.3f} G at {shape}",
        "activations": f"{count.activations / 1e6:,.2f} M",
        "input": shape,
        "outputs": str(row.classes),
        "timm": ", ".join(filter(None, (row.timm, *(alias for alias, _ in row.aliases)))),
        'weights="imagenet"': f"timm/{row.timm}.{row.tag}" if row.tag else "",
        "source": row.source,
    }
    print(row.name)
    for fact, value in facts.items():
        if value:
            print(f"  {fact:<20} {value}")
    names = {row.timm, *(alias for alias, _ in row.aliases)}
    known = [
        p for p in published().values() if p.tag.partition(".")[0] in names and p.tag.endswith(f".{tag}" * bool(tag))
    ]
    if tag and not known:
        raise ValueError(f"No checkpoint {tag!r} of {row.name} is known. `keras-residual info {row.name}` shows all.")
    if known:
        print(f"\n  {'checkpoint':<58} {'pixels':>6} {'classes':>7} {'top-1':>6} {'top-5':>6}    at  licence")
    for p in sorted(known, key=lambda p: -(p.top1 or 0)):
        accuracy = f"{p.top1:6.2f} {p.top5:6.2f} {p.measured_at:>5}" if p.top1 else f"{'':19}"
        print(f"  {f'timm/{p.tag}':<58} {p.size:>6} {p.classes or '':>7} {accuracy}  {p.licence or 'not stated'}")


def _convert(options: argparse.Namespace) -> None:
    from keras_residual.models import create
    from keras_residual.models.pretrained import from_pretrained
    from keras_residual.weights import load_weights, save_weights

    if options.model is None:
        model = from_pretrained(options.source)
    else:
        model = create(options.model, **({} if options.classes is None else {"classes": options.classes}))
        print(load_weights(model, options.source))
    save_weights(model, options.target)
    print(f"{model.name}: {options.target}")


if __name__ == "__main__":
    sys.exit(main())
