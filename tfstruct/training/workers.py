"""What the processes of a training on several machines say to each other, beside gradients."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

_GROUP = 7_301_001  # of the collective operations below; TensorFlow counts its own from 1
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)


class LostWorkerError(RuntimeError):
    """Another process of a training on several machines ended, or cannot be reached."""


class Task(NamedTuple):
    """Which of the processes this is, by the environment variable TF_CONFIG.

    Attributes:
        addresses: host:port of each process; the first is the chief.
        index: of this one.
    """

    addresses: tuple[str, ...]
    index: int

    @classmethod
    def from_environment(cls) -> "Task | None":
        """Reads TF_CONFIG; None where it is not set.

        Raises:
            ValueError: it names no workers, one twice, or not which of them this is.
        """
        text = os.environ.get("TF_CONFIG", "")
        if not text:
            return None
        expected = '{"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
        try:
            cluster, task = (json.loads(text)[name] for name in ("cluster", "task"))
            jobs = {job: cluster[job] for job in ("chief", "worker") if cluster.get(job)}
            if not all(isinstance(job, list) for job in jobs.values()):
                raise TypeError(jobs)
            index = int(task["index"])
            own = jobs[task["type"]]
            if not 0 <= index < len(own) or len(jobs.get("chief", ())) > 1:
                raise KeyError(index)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ValueError(f"TF_CONFIG must be {expected}, found {text[:300]}") from None
        addresses = tuple(str(address) for job in jobs.values() for address in job)
        if repeated := [address for address in addresses if addresses.count(address) > 1]:
            raise ValueError(f"TF_CONFIG must name each address once, found {repeated[0]} several times")
        return cls(addresses, index if task["type"] == "chief" else index + len(jobs.get("chief", ())))

    @property
    def is_chief(self) -> bool:
        """Whether this is the process that writes."""
        return self.index == 0


class Workers:
    """Messages between the processes of a multi-worker strategy, which must exist before.

    All calls are collective: every process makes the same ones in the same order.

    Args:
        task: which process this is.
    """

    def __init__(self, task: Task) -> None:
        self.task, self._instance = task, 0

    @property
    def _group(self) -> dict[str, Any]:
        self._instance += 1
        return {"group_size": len(self.task.addresses), "group_key": _GROUP, "instance_key": self._instance}

    def _broadcast(self, values: np.ndarray | None, shape: list[int]) -> np.ndarray:
        with tf.device("CPU:0"):
            if values is not None:
                return tf.raw_ops.CollectiveBcastSendV2(input=values, **self._group).numpy()
            return tf.raw_ops.CollectiveBcastRecvV2(shape=shape, T=tf.int32, **self._group).numpy()

    def broadcast(self, message: bytes | None = None) -> bytes:
        """Returns the message of the chief, which alone gives one.

        Raises:
            LostWorkerError: another process ended.
        """
        with self.reaching():
            if not self.task.is_chief:
                (size,) = self._broadcast(None, [1])
                return self._broadcast(None, [-(-size // 4)]).tobytes()[:size]
            message = message or b""
            self._broadcast(np.array([len(message)], np.int32), [1])
            self._broadcast(np.frombuffer(message.ljust(-(-len(message) // 4) * 4, b"\0"), np.int32), [])
            return message

    def largest(self, value: int) -> int:
        """Returns the largest number that a process gives.

        Raises:
            LostWorkerError: another process ended.
        """
        with self.reaching(), tf.device("CPU:0"):
            options = {"merge_op": "Max", "final_op": "Id", "communication_hint": "ring", "ordering_token": []}
            return int(tf.raw_ops.CollectiveReduceV2(input=tf.constant(int(value)), **options, **self._group))

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Inside, an error of the connection becomes a LostWorkerError that says what to do."""
        try:
            yield
        except _LOST as error:
            raise LostWorkerError(
                f"worker {self.task.index} of {len(self.task.addresses)} lost another worker; start all of them again "
                f"with the same command, and they go on from the last checkpoint ({type(error).__name__})"
            ) from error


def pack(arrays: dict[str, np.ndarray], **about: Any) -> bytes:
    """Returns arrays and what JSON can hold as bytes."""
    memory = io.BytesIO()
    np.savez(memory, allow_pickle=False, **arrays, about=np.array(json.dumps(about)))
    return memory.getvalue()


def unpack(message: bytes) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns what `pack` was given."""
    with np.load(io.BytesIO(message)) as archive:
        arrays = dict(archive)
    return arrays, json.loads(str(arrays.pop("about")))
