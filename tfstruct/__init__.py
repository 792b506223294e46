"""tfstruct: structured latent-variable models in TensorFlow.

`tfstruct.load` opens an exported model and needs TensorFlow alone; the models and trainers that made it live
in `tfstruct.models` and `tfstruct.trainers` and are imported only when asked for.
"""

from tfstruct.serving.client import LoadedModel, load

__all__ = ["LoadedModel", "__version__", "load"]
__version__ = "0.1.0"
