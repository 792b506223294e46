"""Models on a server, TensorFlow Serving or `tfstruct-serve`, with the methods of one that `tfstruct.load` opens."""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple, Self, TypedDict, Unpack

import numpy as np

from tfstruct.files import read_json
from tfstruct.serving.errors import RemoteError, is_worth_retrying
from tfstruct.serving.scoring import Questions, Request, ServedModel, join
from tfstruct.serving.transports import (
    Arrays,
    AsyncGrpcTransport,
    AsyncRestTransport,
    GrpcTransport,
    RestTransport,
    Target,
)

Card = str | os.PathLike[str] | dict[str, Any]
Transport = Literal["grpc", "rest"]
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 3.0  # seconds


class Patience(NamedTuple):
    """How long an answer is waited for, and how often it is asked for.

    Attributes:
        timeout: seconds for one request with all that is tried again.
        retries: how often a request is sent again that found nobody, or a server with too much to do.
    """

    timeout: float = 60.0
    retries: int = 4


class _Attempts:
    """One request that may be sent several times."""

    def __init__(self, patience: Patience) -> None:
        self._end = time.monotonic() + patience.timeout
        self._left, self._pause = patience.retries, FIRST_PAUSE

    def remaining(self) -> float:
        """Seconds until the deadline, never less than a millisecond."""
        return max(self._end - time.monotonic(), 1e-3)

    def pause(self, error: RemoteError) -> float:
        """Returns how many seconds to wait before the next attempt, or raises the error where there is none."""
        # Drawn at random, so that clients that failed together do not come back together.
        pause = self._pause * random.uniform(0.5, 1.0)
        self._left, self._pause = self._left - 1, min(2 * self._pause, LONGEST_PAUSE)
        if self._left < 0 or not is_worth_retrying(error) or time.monotonic() + pause >= self._end:
            raise error
        return pause


def _attempt(patience: Patience, request: Callable[[float], Any]) -> Any:
    attempts = _Attempts(patience)
    while True:
        try:
            return request(attempts.remaining())
        except RemoteError as error:
            time.sleep(attempts.pause(error))


async def _attempt_async(patience: Patience, request: Callable[[float], Awaitable[Any]]) -> Any:
    attempts = _Attempts(patience)
    while True:
        try:
            return await request(attempts.remaining())
        except RemoteError as error:
            await asyncio.sleep(attempts.pause(error))


class Options(TypedDict, total=False):
    """What `connect` and `connect_async` take by name; see `connect`."""

    version: int | None
    label: str | None
    transport: Transport
    card: Card | None
    timeout: float
    retries: int


def connect(address: str, model_name: str, **options: Unpack[Options]) -> "RemoteModel":
    """Connects to a model on a server and asks what it is; the connection is neither encrypted nor authenticated.

    Args:
        address: `host:port`, of REST also `https://host/path`.
        model_name: of the model on the server.
        **options: `version`, the number of a version, default the server's choice, which may change from one request to
            the next; or `label`, of a version.

            `transport`: `grpc` (port 8500 of TensorFlow Serving), the default and faster, or `rest` (port 8501), which
            needs no TensorFlow.

            `card`: that of the bundle, its folder or its name as in `tfstruct.load`. Without it the server is asked:
            `tfstruct-serve` gives the card by REST, others the names, types and shapes of the signatures. Then the
            server finds values outside the support, and answers -inf.

            `timeout`: seconds for each request of `batch_size` rows, with all that is tried again; default 60.

            `retries`: how often a request is sent again, with growing pauses, if the server could not be reached or had
            too much to do; default 4. Questions change nothing, so that asking twice does no harm. Nothing else is
            tried again.

    Raises:
        ImportError: the packages of the extra `serving` are not installed.
        RemoteError: one of its subclasses: nobody answers (`ServerUnavailableError`, a ConnectionError) or not in time
            (`RemoteTimeoutError`, a TimeoutError), the server has no such model (`UnknownModelError`, a LookupError).
            The methods also raise `RemoteInputError`, a ValueError. Messages name address, model, signature and what
            the server said.
        ValueError: a transport, timeout or number of retries that is none, or a version and a label.
    """
    plan = _planned(address, model_name, **options)
    connection = GrpcTransport(plan.target) if plan.transport == "grpc" else RestTransport(plan.target)
    try:
        found = plan.card or _attempt(plan.patience, connection.card)
    except BaseException:
        connection.close()
        raise
    return RemoteModel(plan.target, connection, _completed(found, plan.target), plan.patience)


async def connect_async(
    address: str, model_name: str, *, concurrency: int = 4, **options: Unpack[Options]
) -> "AsyncRemoteModel":
    """As `connect`; the methods' results are awaited.

    Args:
        address: see `connect`.
        model_name: see there.
        concurrency: requests on their way at once, of all questions together.
        **options: see there.
    """
    plan = _planned(address, model_name, **options)
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, found {concurrency}")
    connection = AsyncGrpcTransport(plan.target) if plan.transport == "grpc" else AsyncRestTransport(plan.target)
    try:
        found = plan.card or await _attempt_async(plan.patience, connection.card)
    except BaseException:
        await connection.close()
        raise
    return AsyncRemoteModel(plan.target, connection, _completed(found, plan.target), plan.patience, concurrency)


class RemoteModel(ServedModel):
    """A model on a server; see `connect`. As a context manager it closes its connection.

    Attributes:
        target: address, model and version.
        card: what is known of the model; of a server without cards only its signatures.
    """

    def __init__(
        self, target: Target, connection: GrpcTransport | RestTransport, card: dict[str, Any], patience: Patience
    ) -> None:
        self.target, self.card = target, card
        self._connection, self._patience = connection, patience

    def __repr__(self) -> str:
        return f"RemoteModel({self.target})"

    def _run(self, signature: str, inputs: Arrays) -> Arrays:
        outputs = self.card["signatures"][signature]["outputs"]
        return _attempt(self._patience, lambda timeout: self._connection.predict(signature, inputs, outputs, timeout))

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncRemoteModel(Questions[Awaitable[Arrays], Awaitable[np.ndarray]]):
    """A model on a server whose answers are awaited: `await model.log_prob(x)`; see `connect_async`.

    A question is checked when it is asked, and its requests are sent when it is awaited.

    Attributes:
        target: address, model and version.
        card: what is known of the model; of a server without cards only its signatures.
    """

    def __init__(
        self,
        target: Target,
        connection: AsyncGrpcTransport | AsyncRestTransport,
        card: dict[str, Any],
        patience: Patience,
        concurrency: int,
    ) -> None:
        self.target, self.card = target, card
        self._connection, self._patience = connection, patience
        self._room = asyncio.Semaphore(concurrency)

    def __repr__(self) -> str:
        return f"AsyncRemoteModel({self.target})"

    async def _ask(self, request: Request) -> Arrays:
        outputs = self.card["signatures"][request.signature]["outputs"]

        async def answer(chunk: Arrays) -> Arrays:
            async with self._room:
                return await _attempt_async(
                    self._patience,
                    lambda timeout: self._connection.predict(request.signature, chunk, outputs, timeout),
                )

        tasks = [asyncio.ensure_future(answer(chunk)) for chunk in request.chunks]
        try:
            return join(await asyncio.gather(*tasks))
        finally:
            for task in tasks:  # the others, if one has failed
                task.cancel()

    async def _only(self, answers: Awaitable[Arrays], name: str) -> np.ndarray:
        return (await answers)[name]

    async def close(self) -> None:
        """Closes the connection."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class _Plan(NamedTuple):
    """Checked arguments of `connect`."""

    target: Target
    transport: Transport
    patience: Patience
    card: dict[str, Any] | None


def _planned(
    address: str,
    model_name: str,
    *,
    version: int | None = None,
    label: str | None = None,
    transport: Transport = "grpc",
    card: Card | None = None,
    timeout: float = Patience().timeout,
    retries: int = Patience().retries,
) -> _Plan:
    """Checks what `connect` is given, and reads the card if one is named."""
    if version is not None and label is not None:
        raise ValueError(f"a version or a label, not both: found {version} and {label!r}")
    if transport not in ("grpc", "rest"):
        raise ValueError(f"transport must be grpc or rest, found {transport!r}")
    if not timeout > 0 or retries < 0:
        raise ValueError(f"timeout must be positive and retries not negative, found {timeout} and {retries}")
    known = card if isinstance(card, dict) else None if card is None else _read_card(card)
    return _Plan(Target(address, model_name, version, label), transport, Patience(timeout, retries), known)


def _read_card(bundle: str | os.PathLike[str]) -> dict[str, Any]:
    from tfstruct.serving.client import find
    from tfstruct.serving.contents import CARD_NAME

    return read_json(find(bundle) / CARD_NAME)


def _completed(card: dict[str, Any], target: Target) -> dict[str, Any]:
    """Adds to signatures that a server tells of what the checks of questions need."""
    signatures = card["signatures"]

    def shape(name: str) -> list[int]:
        """Shape of one row of an input, whichever signature has it."""
        shapes = [part["inputs"][name]["shape"] for part in signatures.values() if name in part["inputs"]]
        return shapes[0][1:] if shapes else []

    parts = [shape(name) for name in ("x_given", "x_query")]
    known = {
        "preset": target.model,
        "target": "one part of an observation given the other",
        "event_shape": shape("x"),
        "part_shapes": parts if all(parts) else [],
        "support": None,  # the server's to check
    }
    return known | card
