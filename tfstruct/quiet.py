"""Importing TensorFlow without its start-up messages."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

_LEVEL = "TF_CPP_MIN_LOG_LEVEL"


@contextlib.contextmanager
def _held_standard_error() -> Iterator[None]:
    """Holds back what libraries write to file descriptor 2, and shows it only if the block fails."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def import_tensorflow() -> None:
    """Imports TensorFlow without its start-up messages, where a newcomer looks for errors.

    Among them is "failed call to cuInit" wherever there is no GPU. TensorFlow 2.21 writes most of them before it has
    read TF_CPP_MIN_LOG_LEVEL. Who has set that variable to 0 or 1 sees all of them, and nothing changes where
    TensorFlow is imported already.
    """
    if "tensorflow" in sys.modules:
        return
    # 3: what TensorFlow logs as an error and does not raise is of no use here ("DT_HALF ... falling back").
    is_wanted = os.environ.setdefault(_LEVEL, "3") in ("0", "1")
    with contextlib.nullcontext() if is_wanted or sys.stderr is None else _held_standard_error():
        import tensorflow as tf

        tf.config.list_physical_devices()
