"""Parse the arguments, run the command, and turn its outcome into an exit code."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from keras_residual import __version__

__all__ = ["main", "parser"]

# In the order of the help. Each is a module of this package with SUMMARY, arguments(parser) and run(options), which
# returns the exit code, None for 0.
COMMANDS = (
    "quickstart",
    "finetune",
    "evaluate",
    "predict",
    "inspect",
    "export",
    "verify",
    "serve",
    "benchmark",
    "list",
    "info",
    "convert",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `keras-residual` and return its exit code: 0, 1 for a negative result, 2 for an error, 130 for Ctrl-C.

    Every error is one message. Set KERAS_RESIDUAL_TRACEBACK=1 to see where it was raised.
    """
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape what the terminal cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    code: int | None = 0
    try:
        _import_quietly()
        code = options.command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # as in `keras-residual list | head`
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # otherwise Python reports an error when it flushes at exit
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
    """Return the text of an error; an unexpected one is marked as such."""
    text = str(error) or type(error).__name__
    if isinstance(error, ValueError | TypeError | OSError | ImportError | ArithmeticError):
        return text
    first = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return (
        f"unexpected {type(error).__name__}: {first[:500]}\nTo see where it happened, set KERAS_RESIDUAL_TRACEBACK=1 "
        "and run the command again. Please report it."
    )


def _import_quietly() -> None:
    """Import Keras without the lines that TensorFlow's C++ libraries print at every log level."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            import keras

            if keras.backend.backend() == "tensorflow":
                import tensorflow as tf

                tf.config.list_physical_devices()  # logs an error if there is no GPU
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


class _PrintCompletion(argparse.Action):
    """Print a completion script and exit; without the extra, explain how to install it."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        try:
            from shtab import complete
        except ImportError:
            parser.error("shell completion requires shtab: pip install 'keras-residual[completion]'")
        print(complete(parser, shell=values))
        parser.exit()


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands. Parsed options have the command's function as `command`."""
    made = argparse.ArgumentParser(
        prog="keras-residual", description="Residual networks for Keras and TensorFlow, correct by construction."
    )
    made.add_argument("--version", action="version", version=f"keras-residual {__version__}")
    made.add_argument(
        "--print-completion",
        choices=("bash", "zsh", "tcsh"),
        action=_PrintCompletion,
        default=argparse.SUPPRESS,
        help="print a completion script for this shell",
    )
    commands = made.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name in COMMANDS:
        command = importlib.import_module(f"keras_residual.cli.{name}")
        sub = commands.add_parser(name, help=command.SUMMARY, description=command.SUMMARY)
        command.arguments(sub)
        sub.set_defaults(command=command.run)
    return made
