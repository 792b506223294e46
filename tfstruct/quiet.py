"""Importing TensorFlow without its start-up messages."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

#: what TensorFlow's C++ code logs: 0 everything, 1 no information, 2 errors only, 3 nothing that does not end it
LOG_LEVEL = "TF_CPP_MIN_LOG_LEVEL"
#: what TensorFlow 2.21 writes at every start, most of it before it reads the level of its log
_NOISE = re.compile(
    rb"WARNING: All log messages before absl|To enable the following instructions: |[IW]\d{4} \d\d:\d\d:\d\d"
)
_NO_GPU = re.compile(rb"E\d{4} \d\d:\d\d:\d\d.* failed call to cuInit")  # on every machine without one

_standard_error = 2  # file descriptor, another one while it is held back


def write_error(text: str) -> None:
    """Writes to standard error, also while it is held back."""
    os.write(_standard_error, text.encode())


def is_noise(line: bytes) -> bool:
    """Whether a line of standard error says nothing that a user of this machine could act upon."""
    return bool(_NOISE.match(line) or (_NO_GPU.match(line) and not os.path.exists("/dev/nvidia0")))


@contextlib.contextmanager
def without_noise() -> Iterator[None]:
    """Holds back what is written to file descriptor 2, and then shows it without TensorFlow's noise.

    If the block fails, all of it is shown.
    """
    global _standard_error
    try:
        saved = os.dup(2)
    except OSError:  # a process without standard error
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        _standard_error, has_failed = saved, True
        try:
            yield
            has_failed = False
        finally:
            if sys.stderr is not None:
                sys.stderr.flush()
            os.dup2(saved, 2)
            _standard_error = 2
            os.close(saved)
            held.seek(0)
            for line in held:
                if has_failed or not is_noise(line):
                    os.write(2, line)


def import_tensorflow(log_level: str = "2") -> None:
    """Imports TensorFlow without noise.

    Who has set the level of TensorFlow's log to 0 or 1 sees everything.

    Args:
        log_level: of TensorFlow's log from then on, where the environment does not say.
    """
    if "tensorflow" in sys.modules:
        return
    is_asked_for = os.environ.setdefault(LOG_LEVEL, log_level) in ("0", "1")
    with contextlib.nullcontext() if is_asked_for else without_noise():
        import tensorflow as tf

        tf.config.list_physical_devices()
