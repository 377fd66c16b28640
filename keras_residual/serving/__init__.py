"""A local server that speaks TensorFlow Serving's protocol, REST and gRPC, to try an export without Docker.

Production is TensorFlow Serving's work: there is no batching here and there are no metrics.
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
    """REST and gRPC on the models of a directory. A SavedModel is a program: serve only what you trust.

    Args:
        directory: A model's directory, as `keras_residual.export` writes it, or one that holds several of them.
        host: The address to listen at. Anyone who reaches it may ask; 127.0.0.1 is this machine alone.
        rest_port: Port of REST; 0 for any free one.
        grpc_port: Port of gRPC; 0 for any free one.
        max_bytes: The largest request.
        seconds: The longest time that a REST request may take. Over gRPC the client's deadline counts.
        poll: Seconds between two looks for new versions.

    Attributes:
        models: What is served.
        rest_port: The port that REST listens at, once started.
        grpc_port: The port that gRPC listens at, once started.

    Raises:
        ValueError: If there is no model that can be served.
        OSError: If a port is taken.
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
            raise ImportError(f"{error}. The server needs: pip install keras-residual[serve]") from error
        self._socket = _listen(host, rest_port)  # before models are loaded, which may take long
        self.rest_port: int = self._socket.getsockname()[1]
        try:
            self.models = Models(Path(directory), poll)
        except BaseException:
            self._socket.close()
            raise
        # A request waits for TensorFlow, which uses all cores; more threads than that only let short ones pass.
        self._pool = ThreadPoolExecutor(4 * (os.cpu_count() or 1), "requests")
        self._grpc = rpc.server(self.models, self._pool, max_bytes)
        try:
            self.grpc_port = self._grpc.add_insecure_port(f"{host}:{grpc_port}")
        except RuntimeError as error:
            self._socket.close()
            self.models.close()
            raise OSError(f"gRPC cannot listen at {host}:{grpc_port}: {error}") from None
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
        """Serves until `stop` is called, or SIGINT or SIGTERM comes; requests under way are answered first."""
        # In a thread of its own uvicorn leaves signals alone: it would end the process before gRPC has answered.
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
                rest.join(0.2)  # signals are heard in between
        finally:
            self.stop()
            self.models.close()
            self._grpc.stop(self.seconds).wait()
            rest.join()
            self._pool.shutdown()
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self) -> None:
        """Lets `run` end."""
        self._rest.should_exit = True


def _listen(host: str, port: int) -> Any:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named asyncio turns Nagle's algorithm off: without it an answer waits 40 ms for an ACK.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(128)  # from here on a client may connect, and waits
    except OSError as error:
        listening.close()
        raise OSError(f"REST cannot listen at {host}:{port}: {error}") from None
    return listening


def serve(directory: str | os.PathLike[str], **options: Any) -> None:
    """Serves a directory's models until it is interrupted, and prints what and where; see `Server` for the options."""
    log, handler = logging.getLogger(__name__), logging.StreamHandler(sys.stdout)
    log.addHandler(handler)
    log.setLevel(logging.INFO)

    def say() -> None:
        print(f"REST  http://{server.host}:{server.rest_port}/v1/models/NAME:predict")
        print(f"gRPC  {server.host}:{server.grpc_port}")
        print(f"page  http://{server.host}:{server.rest_port}/   (Ctrl-C stops the server)", flush=True)

    try:
        server = Server(directory, **options)
        server.run(say)
        print("stopped")
    finally:
        log.removeHandler(handler)
