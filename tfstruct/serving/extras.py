"""Packages that only serving over a network needs: imported when they are used, and named when they are missing."""

import importlib
from typing import Any


def require(*names: str) -> Any:
    """Imports modules and returns the first.

    Raises:
        ImportError: a missing package; the message says what installs it.
    """
    try:
        return [importlib.import_module(name) for name in names][0]
    except ImportError as error:
        missing = f"{error.name or error} is not installed; pip install 'tfstruct[serving]' brings it"
        raise ImportError(missing, name=error.name) from error
