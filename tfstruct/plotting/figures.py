"""Writing figures to files."""

import pathlib
from typing import BinaryIO

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from tfstruct.files import PathLike, replacing


def broken_line(steps: np.ndarray, values: np.ndarray, phase_start: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts a gap between two phases: steps [T] and values [T, ...] with a NaN where the second begins; 0: one phase."""
    place = int(np.searchsorted(steps, phase_start, side="right"))
    if not phase_start or not 0 < place < len(steps):
        return steps, values
    return np.insert(steps.astype(float), place, phase_start), np.insert(values.astype(float), place, np.nan, axis=0)


def write(figure: Figure, file: BinaryIO, kind: str, *, dpi: float | None = None) -> None:
    """Writes a figure to an open file; the same figure has the same bytes, without its date and names made by chance.

    Args:
        figure: the figure.
        file: of bytes.
        kind: `png`, `svg` or another that matplotlib knows.
        dpi: see `save`.
    """
    metadata = {"Date": None} if kind == "svg" else None
    with matplotlib.rc_context({"svg.hashsalt": "tfstruct"}):
        figure.savefig(file, format=kind, dpi=figure.dpi if dpi is None else dpi, metadata=metadata)


def save(figure: Figure, path: PathLike, *, dpi: float | None = None) -> pathlib.Path:
    """Writes a figure to a file, whole or not at all.

    Args:
        figure: a figure, drawn on matplotlib's Agg canvas: no display is needed.
        path: the file; its suffix gives the format (`.png`, `.pdf`, `.svg`). Missing folders are created.
        dpi: dots per inch, for formats made of pixels; by default the figure's own.

    Returns:
        The file.

    Raises:
        ValueError: a suffix matplotlib does not know.
        OSError: the file cannot be written.
    """
    path = pathlib.Path(path)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in figure.canvas.get_supported_filetypes():
        known = ", ".join(sorted(figure.canvas.get_supported_filetypes()))
        raise ValueError(f"{path.name}: unknown kind of picture {path.suffix!r}, expected one of {known}")
    with replacing(path) as file:
        write(figure, file, kind, dpi=dpi)
    return path
