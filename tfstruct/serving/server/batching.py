"""Requests that are computed together: those to one signature of one version whose rows have the same shapes.

Everything here runs in one event loop; only `Version.run` runs in threads.
"""

import asyncio
import collections
import collections.abc
import concurrent.futures
import logging
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfstruct.serving import tensors
from tfstruct.serving.errors import RequestError
from tfstruct.serving.server.metrics import Metrics
from tfstruct.serving.server.settings import Settings
from tfstruct.serving.server.versions import Version

_LOG = logging.getLogger("tfstruct.serve")
Arrays = dict[str, np.ndarray]


class _Key(NamedTuple):
    version: Version
    signature: str
    shapes: tuple[tuple[int, ...], ...]  # of the rows of each input


class _Waiting(NamedTuple):
    inputs: Arrays
    rows: int
    deadline: float  # by the event loop's clock
    answer: "asyncio.Future[Arrays]"


class Batcher:
    """Computes requests, several at once where they come at once.

    Args:
        settings: limits of batches, queue and threads.
        metrics: counts them.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._threads = concurrent.futures.ThreadPoolExecutor(settings.threads, "compute")
        self._room = asyncio.Semaphore(settings.threads)
        self._queues: dict[_Key, collections.deque[_Waiting]] = {}
        self._is_full: dict[_Key, asyncio.Event] = {}
        self._tasks: set[asyncio.Task] = set()
        self._queued = 0

    async def answer(self, version: Version, signature: str, inputs: Arrays, timeout: float) -> Arrays:
        """Returns the outputs of a signature.

        Args:
            version: of the model.
            signature: one of its own.
            inputs: by name, each [N, ...].
            timeout: seconds.

        Raises:
            RequestError: inputs that the signature does not take, no room, no time, or a computation that failed.
        """
        rows = self._check(version, signature, inputs)
        if self._queued >= self._settings.max_queued_requests:
            raise RequestError("RESOURCE_EXHAUSTED", f"{self._queued} requests wait already; try again later")
        if timeout <= 0:
            raise RequestError("DEADLINE_EXCEEDED", "the deadline was over before the request was read")
        loop, started = asyncio.get_running_loop(), time.monotonic()
        waiting = _Waiting(inputs, rows, loop.time() + timeout, loop.create_future())
        key = _Key(version, signature, tuple((*values.shape[1:],) for _, values in sorted(inputs.items())))
        self._add(key, waiting)
        self._queued += 1
        self._metrics.queued.set(self._queued)
        try:
            return await asyncio.wait_for(waiting.answer, timeout)
        except TimeoutError:
            raise RequestError("DEADLINE_EXCEEDED", f"no result within {timeout:.3g} s") from None
        finally:
            self._queued -= 1
            self._metrics.queued.set(self._queued)
            self._metrics.seconds.labels(version.name, signature).observe(time.monotonic() - started)

    def close(self) -> None:
        """Lets go of the threads, whatever they are doing."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _check(self, version: Version, signature: str, inputs: Arrays) -> int:
        """Returns the number of rows; raises RequestError for inputs that are not the signature's.

        All that could fail is found here, before a request is joined with others.
        """
        expected = version.signature(signature)["inputs"]
        if inputs.keys() != expected.keys():
            wanted, found = ", ".join(expected), ", ".join(sorted(inputs)) or "nothing"
            raise RequestError("INVALID_ARGUMENT", f"{signature} takes the inputs {wanted}, found {found}")
        for name, values in inputs.items():
            if values.dtype != tensors.numpy_dtype(expected[name]["dtype"]):
                wanted = expected[name]["dtype"]
                raise RequestError("INVALID_ARGUMENT", f"{name} must be {wanted}, found {values.dtype}")
            try:
                tensors.check_shape(name, values.shape, expected[name]["shape"])
            except ValueError as error:
                raise RequestError("INVALID_ARGUMENT", str(error)) from None
        counts = {name: len(values) for name, values in inputs.items()}
        rows = max(counts.values())
        if len(set(counts.values())) > 1:
            raise RequestError("INVALID_ARGUMENT", f"all inputs must have the same number of rows, found {counts}")
        if rows > self._settings.max_rows:
            limit = self._settings.max_rows
            raise RequestError("INVALID_ARGUMENT", f"a request may have {limit} rows, found {rows}; send several")
        return rows

    def _add(self, key: _Key, waiting: _Waiting) -> None:
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = collections.deque()
            self._is_full[key] = asyncio.Event()
            self._start(self._empty(key, queue))
        queue.append(waiting)
        if sum(other.rows for other in queue) >= self._settings.max_batch_size:
            self._is_full[key].set()

    def _start(self, coroutine: collections.abc.Coroutine) -> asyncio.Task:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)  # the loop itself would forget it
        task.add_done_callback(self._tasks.discard)
        return task

    async def _empty(self, key: _Key, queue: collections.deque[_Waiting]) -> None:
        """Computes all of a queue, batch after batch, and removes it.

        One batch at a time, unless the next one is full: else a second thread would compute rows one by one that could
        have been joined while the first is busy, and take half of the cores for it.
        """
        while queue:
            if self._settings.batch_timeout_ms > 0:
                try:
                    await asyncio.wait_for(self._is_full[key].wait(), self._settings.batch_timeout_ms / 1000)
                except TimeoutError:
                    pass
            await self._room.acquire()  # meanwhile more may come
            batch = self._take(queue)
            if sum(other.rows for other in queue) < self._settings.max_batch_size:
                self._is_full[key].clear()
            if not batch:
                self._room.release()
                continue
            computed, full = self._start(self._compute(key, batch)), self._start(self._is_full[key].wait())
            await asyncio.wait([computed, full], return_when=asyncio.FIRST_COMPLETED)
            full.cancel()
        del self._queues[key], self._is_full[key]

    def _take(self, queue: collections.deque[_Waiting]) -> list[_Waiting]:
        """Takes as many requests as a batch may have, at least one, and drops those that nobody waits for."""
        batch: list[_Waiting] = []
        now, rows = asyncio.get_running_loop().time(), 0
        while queue and (not batch or rows + queue[0].rows <= self._settings.max_batch_size):
            waiting = queue.popleft()
            if not waiting.answer.done() and waiting.deadline > now:
                batch.append(waiting)
                rows += waiting.rows
        return batch

    async def _compute(self, key: _Key, batch: list[_Waiting]) -> None:
        try:
            outcomes = await asyncio.get_running_loop().run_in_executor(self._threads, self._outcomes, key, batch)
        except (RuntimeError, asyncio.CancelledError):  # no thread is left to compute with
            outcomes = [RequestError("UNAVAILABLE", "the server is shutting down")] * len(batch)
        finally:
            self._room.release()
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(outcome, RequestError):
                waiting.answer.set_exception(outcome)
            else:
                waiting.answer.set_result(outcome)

    def _outcomes(self, key: _Key, batch: list[_Waiting]) -> list[Arrays | RequestError]:
        """Returns the outputs, or the error, of each request of a batch. Runs in a thread."""
        labels = (key.version.name, key.signature)
        self._metrics.batch_requests.labels(*labels).observe(len(batch))
        self._metrics.batch_rows.labels(*labels).observe(sum(waiting.rows for waiting in batch))
        try:
            joined = {name: np.concatenate([waiting.inputs[name] for waiting in batch]) for name in batch[0].inputs}
            outputs = key.version.run(key.signature, joined)
            ends = np.cumsum([waiting.rows for waiting in batch])[:-1]
            parts = {name: np.split(values, ends) for name, values in outputs.items()}
            return [{name: values[place] for name, values in parts.items()} for place in range(len(batch))]
        except Exception as error:
            if len(batch) == 1:
                return [_failure(key, error)]
        # One of them may have spoilt it for the others.
        return [outcome for waiting in batch for outcome in self._outcomes(key, [waiting])]


def _failure(key: _Key, error: Exception) -> RequestError:
    """Returns what a client may know of an error; all else goes to the log."""
    if isinstance(error, tf.errors.InvalidArgumentError):
        text: str = getattr(error, "message", "")
        return RequestError("INVALID_ARGUMENT", text[:500])
    if isinstance(error, tf.errors.ResourceExhaustedError | MemoryError):
        return RequestError("RESOURCE_EXHAUSTED", "not enough memory for this request")
    _LOG.error("%s version %d, %s", key.version.name, key.version.number, key.signature, exc_info=error)
    return RequestError("INTERNAL", "the computation failed; the server's log says more")
