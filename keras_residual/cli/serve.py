"""The command `keras-residual serve`."""

from __future__ import annotations

import argparse

from keras_residual.io import expand

SUMMARY = "Serve exports locally over TensorFlow Serving's REST and gRPC APIs."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="directory of a model, or a directory of such directories")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (%(default)s)")
    parser.add_argument("--rest-port", type=int, default=8501, metavar="PORT", help="REST port (%(default)s)")
    parser.add_argument("--grpc-port", type=int, default=8500, metavar="PORT", help="gRPC port (%(default)s)")
    parser.add_argument(
        "--max-mb", type=int, default=64, metavar="MB", help="maximum size of a request in MB (%(default)s)"
    )
    parser.add_argument(
        "--timeout", type=float, default=30.0, metavar="S", help="time limit of a request in seconds (%(default)s)"
    )


def run(options: argparse.Namespace) -> None:
    from keras_residual.serving import serve

    serve(
        expand(options.directory),
        host=options.host,
        rest_port=options.rest_port,
        grpc_port=options.grpc_port,
        max_bytes=options.max_mb << 20,
        seconds=options.timeout,
    )
