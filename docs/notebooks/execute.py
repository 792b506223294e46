"""Runs notebooks and writes them with their outputs: python docs/notebooks/execute.py [names].

A notebook is its .py file, in jupytext's percent format; the .ipynb beside it holds the outputs as well.
"""

import pathlib
import re
import sys

import jupytext
import nbclient
import nbformat

from tfstruct import quiet

_NOISE = ("failed call to cuInit", "TqdmWarning", "autonotebook", "INFO:tensorflow:Assets")
FOLDER = pathlib.Path(__file__).resolve().parent


def names() -> list[str]:
    """The notebooks of this folder."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path != pathlib.Path(__file__).resolve())


def execute(name: str) -> nbformat.NotebookNode:
    """Returns a notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    notebook = jupytext.read(FOLDER / f"{name}.py")
    nbclient.NotebookClient(notebook, timeout=1_200, kernel_name="python3").execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in map(_cleaned, cell.outputs) if output is not None]
    return notebook


def _cleaned(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """Without what TensorFlow says at its start, and without addresses in memory."""
    if output.output_type == "stream":
        lines = output.text.splitlines(keepends=True)
        output.text = "".join(line for line in lines if not _is_noise(line))
        return output if output.text else None
    for kind, text in output.get("data", {}).items():
        if kind == "text/plain":
            output.data[kind] = re.sub(r" at 0x[0-9a-f]+", "", text)
    return output


def _is_noise(line: str) -> bool:
    return quiet.is_noise(line.encode()) or any(text in line for text in _NOISE)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or names():
        path = FOLDER / f"{chosen}.ipynb"
        nbformat.write(execute(chosen), path)
        print(f"{path.name}: {path.stat().st_size:,} bytes", flush=True)
