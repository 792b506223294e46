"""The REST interface of TensorFlow Serving, with a list of all models, the cards of bundles and a page beside it."""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import uvicorn
from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from tfstruct.files import to_json
from tfstruct.serving import tensors
from tfstruct.serving.errors import STATUS, RequestError
from tfstruct.serving.extras import require
from tfstruct.serving.server import web_page
from tfstruct.serving.server.service import Chosen, Service
from tfstruct.serving.server.versions import Version

get_model_metadata_pb2 = require("tensorflow_serving.apis.get_model_metadata_pb2")  # not seen by type checkers
_PATH = re.compile(
    r"/(?P<name>[^/:]+)(?:/versions/(?P<number>[0-9]{1,18})|/labels/(?P<label>[^/:]+))?(?::(?P<verb>[a-z]+)|/(?P<part>[a-z]+))?"
)
_LONG_BODY = 2**15  # bytes that are read in a thread, so that other requests need not wait


def application(service: Service) -> Starlette:
    """Returns the web application of a service."""
    api = _Api(service)
    return Starlette(
        routes=[
            *web_page.routes(),
            Route("/v1/models", _answered(api.names), methods=["GET"]),
            Route("/v1/models{path:path}", _answered(api.model), methods=["GET", "POST"]),
            Route("/metrics", _answered(api.metrics), methods=["GET"]),
            Route("/monitoring/prometheus/metrics", _answered(api.metrics), methods=["GET"]),
        ],
        exception_handlers={HTTPException: _refused, Exception: _broken},
    )


class _Api:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def names(self, request: Request) -> Response:
        models = [
            {"name": name, "status": _states(self._service.status(name))} for name in self._service.models.names()
        ]
        return _json({"models": models})

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.text(), media_type="text/plain; version=0.0.4")

    async def model(self, request: Request) -> Response:
        found = _PATH.fullmatch(request.path_params["path"])
        if not found:
            raise RequestError("NOT_FOUND", f"Malformed request: {request.method} {request.url.path}")
        number = None if found["number"] is None else int(found["number"])
        chosen = (found["name"], number, found["label"])
        if found["verb"] == "predict" and request.method == "POST":
            return await self._predict(request, chosen)
        if request.method == "GET" and found["verb"] is None:
            if found["part"] is None:
                return _json({"model_version_status": _states(self._service.status(*chosen))})
            if found["part"] == "metadata":
                return _json(_metadata(self._service.models.find(*chosen)))
            if found["part"] == "card":
                return _json(self._service.models.find(*chosen).card)
        raise RequestError("NOT_FOUND", f"Malformed request: {request.method} {request.url.path}")

    async def _predict(self, request: Request, chosen: Chosen) -> Response:
        body = await _body(request, self._service.settings.max_body_bytes)
        content = await _apart(body, lambda: _object(body))
        signature = content.get("signature_name", "serving_default")
        if not isinstance(signature, str):
            raise RequestError("INVALID_ARGUMENT", "signature_name must be a text")
        has_rows = "instances" in content
        if has_rows == ("inputs" in content):
            raise RequestError("INVALID_ARGUMENT", "a request has either instances (rows) or inputs (columns)")

        async def read(version: Version) -> dict[str, np.ndarray]:
            expected = version.signature(signature)["inputs"]
            return await _apart(body, lambda: _inputs(content, expected, signature))

        _, outputs = await self._service.predict("rest", chosen, signature, read, None)
        size = sum(values.nbytes for values in outputs.values())
        reply = await _apart(b" " * size, lambda: tensors.reply_body(outputs, rows=has_rows))
        return Response(reply, media_type="application/json")


def _answered(handler: Callable) -> Callable:
    """Turns the errors of a handler into replies."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except RequestError as error:
            status = STATUS.get(error.code, 413 if error.code == "TOO_LARGE" else 500)
            return _json({"error": error.message}, status)

    return answer


async def _refused(request: Request, error: Any) -> Response:
    """A path or a method that there is not."""
    return _json({"error": f"{error.detail}: {request.method} {request.url.path}"}, error.status_code)


async def _broken(request: Request, error: Exception) -> Response:
    return _json({"error": "the server failed; its log says more"}, 500)


def _json(data: Any, status: int = 200) -> Response:
    return Response(to_json(data), status, media_type="application/json")


def _states(versions: list[tuple[int, str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "version": str(number),
            "state": state,
            "status": {"error_code": "UNKNOWN" if text else "OK", "error_message": text},
        }
        for number, state, text in versions
    ]


def _metadata(version: Version) -> dict[str, Any]:
    definitions = get_model_metadata_pb2.SignatureDefMap(signature_def=version.definitions)
    return {
        "model_spec": {"name": version.name, "signature_name": "", "version": str(version.number)},
        "metadata": {
            "signature_def": json_format.MessageToDict(
                definitions, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
        },
    }


async def _body(request: Request, limit: int) -> bytes:
    """Reads a body; raises RequestError for one that is too large, of which no more than the limit is kept."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            # Most clients read no answer before they have sent all: what is too large is read, in bounds, and dropped.
            if size > 8 * limit:
                break
            if size <= limit:
                parts.append(part)
    except ClientDisconnect:
        raise RequestError("CANCELLED", "the client is gone") from None
    if size > limit:
        raise RequestError("TOO_LARGE", f"a request may have {limit} bytes; send several")
    return b"".join(parts)


async def _apart(body: bytes, function: Callable[[], Any]) -> Any:
    """Calls a function, in a thread where there is much to do."""
    return function() if len(body) < _LONG_BODY else await asyncio.to_thread(function)


def _object(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError("INVALID_ARGUMENT", f"the request is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise RequestError("INVALID_ARGUMENT", "a request is a JSON object")
    return content


def _inputs(content: dict[str, Any], expected: dict[str, dict[str, Any]], signature: str) -> dict[str, np.ndarray]:
    """Returns the inputs of a request in row or column form; raises RequestError."""
    columns = _columns(content["instances"], expected) if "instances" in content else content["inputs"]
    if len(expected) == 1 and not isinstance(columns, dict):
        columns = dict.fromkeys(expected, columns)
    if not isinstance(columns, dict) or columns.keys() != expected.keys():
        found = ", ".join(columns) if isinstance(columns, dict) else "values without a name"
        raise RequestError(
            "INVALID_ARGUMENT", f"{signature} takes the inputs {', '.join(expected)}, found {found or 'nothing'}"
        )
    try:
        return {name: tensors.from_lists(name, columns[name], expected[name]["dtype"]) for name in expected}
    except ValueError as error:
        raise RequestError("INVALID_ARGUMENT", str(error)) from None


def _columns(rows: Any, expected: dict[str, Any]) -> Any:
    """Returns rows as columns, or as they are where each is the value of the only input."""
    if not isinstance(rows, list) or not rows:
        raise RequestError("INVALID_ARGUMENT", "instances must be a list of at least one row")
    if not all(isinstance(row, dict) for row in rows) or (len(expected) == 1 and rows[0].keys() == {"b64"}):
        return rows
    if any(row.keys() != rows[0].keys() for row in rows):
        raise RequestError("INVALID_ARGUMENT", "all instances must have the same inputs")
    return {name: [row[name] for row in rows] for name in rows[0]}


class WebServer(uvicorn.Server):
    """A uvicorn server that leaves signals to whoever runs it."""

    def __init__(self, service: Service) -> None:
        settings = service.settings
        super().__init__(
            uvicorn.Config(
                application(service),
                host=settings.host,
                port=settings.rest_port,
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
            )
        )

    def capture_signals(self) -> contextlib.AbstractContextManager:
        """Captures none."""
        return contextlib.nullcontext()
