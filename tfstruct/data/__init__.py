"""Data sets by name, their variants, and user files."""

from tfstruct.data.datasets import SOURCES, Dataset, Source, load, names, variants_of
from tfstruct.data.prepared import DatasetNotFoundError
from tfstruct.data.support import require_binary, require_support
from tfstruct.data.variants import training_rows

__all__ = [
    "SOURCES",
    "Dataset",
    "DatasetNotFoundError",
    "Source",
    "load",
    "names",
    "require_binary",
    "require_support",
    "training_rows",
    "variants_of",
]
