"""Stopping a run by a signal without losing what it has done."""

import os
import signal
import types
from typing import Any


class StopSignal:
    """Turns SIGTERM, SIGHUP and SIGINT into a request to stop within seconds; a second SIGINT interrupts at once.

    SIGHUP and SIGINT stay ignored where they were, as under nohup.

    Attributes:
        requested: number of the first signal; 0 before.
    """

    def __init__(self) -> None:
        self.requested = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])):
            if number != signal.SIGTERM and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup, or a shell's background job: not to be stopped by it
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:  # not the main thread: signals are somebody else's business
                break
        return self

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested and number == signal.SIGINT:
            # Not print: a signal may come while something is printed.
            os.write(2, b"\nstopping after this call, and saving; Ctrl-C again ends at once, without saving\n")
        self.requested = self.requested or number

    def __exit__(self, *exception: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
