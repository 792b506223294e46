"""tfstruct: structured latent-variable models in TensorFlow.

`tfstruct.load` opens an exported model, one of `tfstruct.list_models()` or a folder, and needs TensorFlow alone; the
models and trainers that made it live in `tfstruct.models` and `tfstruct.trainers` and are imported only when asked for.
`tfstruct.connect` and `tfstruct.connect_async` ask a model on a server, TensorFlow Serving or `tfstruct-serve`.
`tfstruct.load_keras` gives the Keras model behind an exported one, `tfstruct.load_run` that of a training run, and
`tfstruct.export` writes any trained model as a bundle.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tfstruct import quiet

if TYPE_CHECKING:  # for type checkers and editors; `__getattr__` imports them at their first use
    from tfstruct import data, models
    from tfstruct.evaluation.detector import DensityDetector
    from tfstruct.evaluation.report import load_run
    from tfstruct.serving.bundle import export_model as export
    from tfstruct.serving.client import LoadedModel, list_models, load
    from tfstruct.serving.remote import connect, connect_async
    from tfstruct.serving.restoring import load_keras

__all__ = [
    "DensityDetector",
    "LoadedModel",
    "__version__",
    "connect",
    "connect_async",
    "data",
    "export",
    "list_models",
    "load",
    "load_keras",
    "load_run",
    "models",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports TensorFlow at the first use of what needs it, not with the package, and without its messages."""
    if name in ("connect", "connect_async"):  # these need no TensorFlow
        from tfstruct.serving import remote

        return getattr(remote, name)
    if name in __all__:
        quiet.import_tensorflow()
    if name in ("LoadedModel", "list_models", "load"):
        from tfstruct.serving import client

        return getattr(client, name)
    if name == "DensityDetector":
        from tfstruct.evaluation import detector

        return detector.DensityDetector
    if name == "export":
        from tfstruct.serving import bundle

        return bundle.export_model
    if name == "load_keras":
        from tfstruct.serving import restoring

        return restoring.load_keras
    if name == "load_run":
        from tfstruct.evaluation import report

        return report.load_run
    if name in ("data", "models"):
        return importlib.import_module(f"tfstruct.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*(name for name in globals() if name.startswith("__")), *__all__})
