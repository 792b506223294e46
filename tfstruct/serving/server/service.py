"""What both interfaces of a server ask: models, their status, and predictions."""

from collections.abc import Awaitable, Callable

import numpy as np

from tfstruct.serving.errors import RequestError
from tfstruct.serving.server.batching import Batcher
from tfstruct.serving.server.metrics import Metrics
from tfstruct.serving.server.settings import Settings
from tfstruct.serving.server.versions import Models, Version

Chosen = tuple[str, int | None, str | None]  # name, version, label


class Service:
    """The models of a server and the way to their answers.

    Attributes:
        settings: what the server was started with.
        models: what it serves.
        metrics: what it has done.
        is_ready: whether new requests are welcome.
    """

    def __init__(self, settings: Settings, models: Models) -> None:
        self.settings, self.models, self.metrics = settings, models, Metrics()
        self.batcher = Batcher(settings, self.metrics)
        self.is_ready = True

    def status(self, name: str, number: int | None = None, label: str | None = None) -> list[tuple[int, str, str]]:
        """See `Models.status`; while the server is going down it raises RequestError, so that nobody sends more."""
        if not self.is_ready:
            raise RequestError("UNAVAILABLE", "the server is shutting down")
        return self.models.status(name, number, label)

    async def predict(
        self,
        interface: str,
        chosen: Chosen,
        signature: str,
        read: Callable[[Version], Awaitable[dict[str, np.ndarray]]],
        timeout: float | None,
    ) -> tuple[Version, dict[str, np.ndarray]]:
        """Answers a request and counts it.

        Args:
            interface: `grpc` or `rest`.
            chosen: name, version and label.
            signature: its name.
            read: returns the inputs for a version; raises RequestError.
            timeout: seconds, None for the server's.

        Raises:
            RequestError: it cannot be answered.
        """
        code, labels = "INTERNAL", ["", ""]  # unknown names would make as many counters as a client can think of
        try:
            version = self.models.find(*chosen)
            labels[0] = version.name
            version.signature(signature)
            labels[1] = signature
            limit = self.settings.timeout_seconds if timeout is None else timeout
            outputs = await self.batcher.answer(version, signature, await read(version), limit)
            code = "OK"
            return version, outputs
        except RequestError as error:
            code = error.code
            raise
        finally:
            self.metrics.requests.labels(*labels, interface, code).inc()
