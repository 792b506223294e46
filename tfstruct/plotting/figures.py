"""Writing figures to files."""

import pathlib

import numpy as np
from matplotlib.figure import Figure

from tfstruct.files import PathLike, replacing


def broken_line(steps: np.ndarray, values: np.ndarray, phase_start: int) -> tuple[np.ndarray, np.ndarray]:
    """Puts a gap between two phases: steps [T] and values [T, ...] with a NaN where the second begins; 0: one phase."""
    place = int(np.searchsorted(steps, phase_start, side="right"))
    if not phase_start or not 0 < place < len(steps):
        return steps, values
    return np.insert(steps.astype(float), place, phase_start), np.insert(values.astype(float), place, np.nan, axis=0)


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
        figure.savefig(file, format=kind, dpi=figure.dpi if dpi is None else dpi)
    return path
