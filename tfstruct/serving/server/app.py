"""Running a server: loading, listening, looking for new versions, and going down without losing a request."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable

from tfstruct.serving.server import grpc_api
from tfstruct.serving.server.rest_api import WebServer
from tfstruct.serving.server.service import Service
from tfstruct.serving.server.settings import Settings
from tfstruct.serving.server.versions import Models

_LOG = logging.getLogger("tfstruct.serve")
_LOCAL = ("127.0.0.1", "localhost", "::1")


def serve(settings: Settings, announce: Callable[[str], None] = print) -> None:
    """Serves until SIGTERM or SIGINT, then answers what is under way and returns.

    Args:
        settings: what to serve, where, and with which limits.
        announce: is told once where the server listens.

    Raises:
        FileNotFoundError: no such bundle.
        ValueError: a setting that cannot be, or a model of which no version can be served.
        OSError: a port that is taken.
    """
    models = Models(settings.models, settings.model_config_file)
    models.scan()
    for name in models.names():
        states = models.status(name)
        if not any(state == "AVAILABLE" for _, state, _ in states):
            reasons = "; ".join(f"version {number}: {text}" for number, _, text in states)
            raise ValueError(f"{name} has no version to serve. {reasons or f'There is none in {models.folder(name)}.'}")
    if settings.host not in _LOCAL:
        _LOG.warning("listening at %s: whoever reaches it may use it, there is no authentication", settings.host)
    asyncio.run(_serve(settings, models, announce))


async def _serve(settings: Settings, models: Models, announce: Callable[[str], None]) -> None:
    service = Service(settings, models)
    listener = _listener(settings.host, settings.rest_port)
    grpc_server, grpc_port = await grpc_api.start(service)
    web = WebServer(service)
    serving = asyncio.create_task(web.serve(sockets=[listener]))
    polling = asyncio.create_task(_poll(models, settings.poll_seconds))
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    while not web.started and not serving.done():
        await asyncio.sleep(0.01)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    announce(
        f"serving {', '.join(models.names())}: gRPC at {host}:{grpc_port}, REST at "
        f"http://{host}:{listener.getsockname()[1]}"
    )
    await asyncio.wait([serving, asyncio.create_task(ended.wait())], return_when=asyncio.FIRST_COMPLETED)
    service.is_ready = False
    polling.cancel()
    await asyncio.sleep(settings.shutdown_notice_seconds)
    web.should_exit = True
    await asyncio.gather(grpc_server.stop(settings.shutdown_seconds), serving)
    service.batcher.close()
    with contextlib.suppress(asyncio.CancelledError):
        await polling


def _listener(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound, so that a taken port is known before anything else starts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, or asyncio leaves Nagle's algorithm on, which costs each reply 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(f"cannot listen at {host}:{port} for REST: {error}") from None
    return listener


async def _poll(models: Models, seconds: float) -> None:
    while seconds > 0:
        await asyncio.sleep(seconds)
        try:
            await asyncio.to_thread(models.scan)
        except Exception:
            _LOG.exception("looking for new versions failed; the models stay as they were")
