"""TensorFlow Serving's REST API as an ASGI application, with a web page to try images."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from concurrent.futures import Executor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from google.protobuf import json_format
from grpc import StatusCode
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from keras_residual.serving import messages, tensors
from keras_residual.serving.models import Models, ServingError, input_specs

__all__ = ["application"]

LOG = logging.getLogger(__name__)
PAGE = Path(__file__).with_name("page.html")
# HTTP status codes of TensorFlow Serving
STATUS = {
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.NOT_FOUND: 404,
    StatusCode.RESOURCE_EXHAUSTED: 413,  # the request body is too large
    StatusCode.INTERNAL: 500,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
MODEL = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
RUN_PATH = re.compile(MODEL + r":(?P<verb>predict|classify|regress)", re.IGNORECASE)
INFO_PATH = re.compile(MODEL + r"(?P<metadata>/metadata)?", re.IGNORECASE)


def application(models: Models, pool: Executor, max_bytes: int, seconds: float) -> Starlette:
    """Create the ASGI application.

    Args:
        models: The models to serve.
        pool: Threads that process the requests.
        max_bytes: Largest accepted request body in bytes.
        seconds: Time limit of a request, including the time to read it.
    """

    async def work(request: Request) -> Response:
        body = await _read(request, max_bytes)
        return await asyncio.get_running_loop().run_in_executor(
            pool, _respond, models, request.method, request.scope["path"], body
        )

    async def answer(request: Request) -> Response:
        try:
            return await asyncio.wait_for(work(request), seconds)
        except ServingError as error:
            return JSONResponse({"error": error.message}, STATUS[error.code])
        except asyncio.TimeoutError:
            return JSONResponse({"error": f"The request took longer than {seconds:g} s"}, 504)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:  # report the failure to the client and keep the server running
            LOG.exception("%s %s", request.method, request.scope["path"])
            return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 500)

    async def page(request: Request) -> Response:
        known = {}
        for name, model in sorted(models.models.items()):
            with contextlib.suppress(ServingError), model.hold() as version:
                known[name] = {"version": version.number, "images": "serving_bytes" in version.saved.signatures}
        text = PAGE.read_text(encoding="utf-8").replace("{{MODELS}}", json.dumps(known).replace("<", "\\u003c"))
        policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        return HTMLResponse(text, headers={"Content-Security-Policy": policy + "img-src blob:; connect-src 'self'"})

    async def ready(request: Request) -> Response:
        return Response(status_code=200 if models.ready() else 503)

    everything = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"]
    return Starlette(
        routes=[
            Route("/", page, methods=["GET"]),
            Route("/healthz", ready, methods=["GET"]),
            Route("/{path:path}", answer, methods=everything),
        ]
    )


async def _read(request: Request, max_bytes: int) -> bytes:
    """Return the body. Read a body that is too large to its end without storing it, so the client gets the error."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > max_bytes:
            parts.clear()
        else:
            parts.append(part)
    if size > max_bytes:
        raise ServingError(
            StatusCode.RESOURCE_EXHAUSTED,
            f"The request must have at most {max_bytes:,} bytes; got {size:,}",
        )
    return b"".join(parts)


def _respond(models: Models, method: str, path: str, body: bytes) -> Response:
    if method == "POST" and (found := RUN_PATH.fullmatch(path)):
        content = _run_model(models, found, body)
    elif method == "GET" and (found := INFO_PATH.fullmatch(path)):
        content = _describe_model(models, found)
    elif method == "GET" and path.lower() == "/v1/models":
        raise ServingError(StatusCode.INVALID_ARGUMENT, "Missing model name in request.")
    else:
        raise ServingError(StatusCode.INVALID_ARGUMENT, f"Malformed request: {method} {path}")
    return Response(content, media_type="application/json")


def _name_and_version(found: re.Match[str]) -> tuple[str, int | None]:
    if found["label"]:
        label = unquote(found["label"])
        raise ServingError(StatusCode.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}")
    if int(found["version"] or 0) >= 2**63:
        raise ServingError(StatusCode.INVALID_ARGUMENT, f"Failed to convert version: {found['version']} to numeric.")
    # OpenVINO's client writes version 0 for the newest version; exports are numbered from 1.
    return unquote(found["name"]), int(found["version"] or 0) or None


def _run_model(models: Models, found: re.Match[str], body: bytes) -> bytes:
    name, number = _name_and_version(found)
    verb = found["verb"].lower()
    if verb == "regress":
        raise ServingError(StatusCode.INVALID_ARGUMENT, "Expected a regression signature; there is none.")
    request = tensors.parse(body)
    signature = request.get("signature_name", "")
    if not isinstance(signature, str):
        raise ServingError(StatusCode.INVALID_ARGUMENT, "'signature_name' must be a string")
    with models[name].hold(number) as version:
        if verb == "classify":
            result = messages.classification(version, signature, tensors.examples(request))
            rows = [[[c.label, c.score] for c in row.classes] for row in result.classifications]
            # TensorFlow Serving's manual documents "result", but its server and the manual's example use "results".
            return json.dumps({"results": rows}, ensure_ascii=False).encode()
        inputs = tensors.arrays(request, input_specs(version.signature(signature)))
        return tensors.answer(version.run(signature, inputs), by_row="instances" in request)


def _describe_model(models: Models, found: re.Match[str]) -> bytes:
    name, number = _name_and_version(found)
    options: Any = {"always_print_fields_with_no_presence": True, "preserving_proto_field_name": True}
    if not found["metadata"]:
        return json_format.MessageToJson(messages.status(models, name, number), **options).encode()
    with models[name].hold(number) as version:
        spec, signatures = messages.metadata(models[name], version).model_spec, messages.signatures(version)
    parts = (json_format.MessageToJson(message, **options) for message in (spec, signatures))
    return '{{\n"model_spec": {},\n"metadata": {{"signature_def": {}}}\n}}\n'.format(*parts).encode()
