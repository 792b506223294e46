"""Shows mkdocstrings the package as it is installed: `models` and `trainers` stand beside it in a checkout."""

import tempfile
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority

_folder = tempfile.TemporaryDirectory()


@event_priority(100)  # before mkdocstrings reads its own
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Lets mkdocstrings read a folder of links, in which all modules have the names that they are imported by."""
    root, package = Path(config.config_file_path).resolve().parent, Path(_folder.name) / "tfstruct"
    if not package.exists():  # `mkdocs serve` reads the config again
        package.mkdir()
        for path in (*(root / "tfstruct").iterdir(), root / "models", root / "trainers"):
            (package / path.name).symlink_to(path)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [_folder.name]
    return config
