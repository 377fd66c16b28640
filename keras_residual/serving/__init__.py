"""Local server with TensorFlow Serving's REST and gRPC APIs, for trying an export without Docker.

It has neither batching nor metrics. Use TensorFlow Serving in production.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

__all__ = ["Server", "serve"]


class Server:
    """Server for the models of a directory over REST and gRPC.

    A SavedModel is a program: serve only models that you trust.

    Args:
        directory: Directory of a model, as written by `keras_residual.export`, or a directory of several models.
        host: Address to listen on. Everyone who can reach it can send requests; 127.0.0.1 is reachable only from this
            machine.
        rest_port: Port for REST; 0 selects a free port.
        grpc_port: Port for gRPC; 0 selects a free port.
        max_bytes: Largest accepted request in bytes.
        seconds: Time limit of a REST request. Over gRPC, the client sets the deadline.
        poll: Seconds between checks for new versions.

    Attributes:
        models: The served models.
        rest_port: Port that REST listens on.
        grpc_port: Port that gRPC listens on.

    Raises:
        ValueError: If the directory contains no model that can be served.
        OSError: If a port is in use.
        ImportError: If the extra `serve` is not installed.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        host: str = "127.0.0.1",
        rest_port: int = 8501,
        grpc_port: int = 8500,
        max_bytes: int = 64 << 20,
        seconds: float = 30.0,
        poll: float = 1.0,
    ) -> None:
        try:
            import uvicorn

            from keras_residual.serving import rest, rpc
            from keras_residual.serving.models import Models
        except ImportError as error:
            raise ImportError(f"{error}. To use the server, run: pip install 'keras-residual[serve]'") from error
        self._socket = _listen(host, rest_port)  # fail early: loading the models may take long
        self.rest_port: int = self._socket.getsockname()[1]
        try:
            self.models = Models(Path(directory), poll)
        except BaseException:
            self._socket.close()
            raise
        # TensorFlow uses all cores for one request; more threads than cores let short requests overtake long ones.
        self._pool = ThreadPoolExecutor(4 * (os.cpu_count() or 1), "requests")
        self._grpc = rpc.server(self.models, self._pool, max_bytes)
        try:
            self.grpc_port = self._grpc.add_insecure_port(f"{host}:{grpc_port}")
        except RuntimeError as error:
            self._socket.close()
            self.models.close()
            raise OSError(
                f"gRPC cannot listen on {host}:{grpc_port}: {error}. Choose another port, or stop the process that "
                "uses it."
            ) from None
        app = rest.application(self.models, self._pool, max_bytes, seconds)
        config = uvicorn.Config(
            app,
            host,
            rest_port,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            timeout_graceful_shutdown=max(1, int(seconds)),
        )
        self._rest = uvicorn.Server(config)
        self.host, self.seconds = host, seconds

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop` is called or SIGINT or SIGTERM arrives, then finish the pending requests."""
        # Outside the main thread, uvicorn does not handle signals; it would exit before gRPC has finished.
        rest = threading.Thread(target=self._rest.run, args=([self._socket],), name="rest")
        before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, lambda *_: self.stop())
        try:
            rest.start()
            self._grpc.start()
            ready()
            while rest.is_alive():
                rest.join(0.2)  # signals are handled between the calls
        finally:
            self.stop()
            self.models.close()
            self._grpc.stop(self.seconds).wait()
            rest.join()
            self._pool.shutdown()
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Ask `run` to return."""
        self._rest.should_exit = True


def _listen(host: str, port: int) -> Any:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's algorithm off only if the protocol is given; otherwise responses wait 40 ms for an ACK.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)  # clients may connect from now on and wait
    except OSError as error:
        listening.close()
        raise OSError(
            f"REST cannot listen on {host}:{port}: {error}. Choose another port, or stop the process that uses it."
        ) from None
    return listening


def serve(directory: str | os.PathLike[str], **options: Any) -> None:
    """Serve the models of a directory until interrupted, and print the addresses. `Server` documents the options."""
    log, handler = logging.getLogger(__name__), logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    log.setLevel(logging.INFO)

    def print_addresses() -> None:
        print(f"REST  http://{server.host}:{server.rest_port}/v1/models/NAME:predict")
        print(f"gRPC  {server.host}:{server.grpc_port}")
        print(f"page  http://{server.host}:{server.rest_port}/   (press Ctrl-C to stop)", flush=True)

    try:
        server = Server(directory, **options)
        server.run(print_addresses)
        print("stopped")
    finally:
        log.removeHandler(handler)
