"""`keras-residual serve`."""

from __future__ import annotations

import argparse

from keras_residual.io import expand

SUMMARY = "Try exports on this machine, by the protocol of TensorFlow Serving."


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="saved_models/NAME, or saved_models for all in it")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (%(default)s)")
    parser.add_argument("--rest-port", type=int, default=8501, metavar="PORT", help="port of REST (%(default)s)")
    parser.add_argument("--grpc-port", type=int, default=8500, metavar="PORT", help="port of gRPC (%(default)s)")
    parser.add_argument("--max-mb", type=int, default=64, metavar="MB", help="the largest request (%(default)s)")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="the longest request (%(default)s)")


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
