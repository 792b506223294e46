"""A report as one HTML file that needs nothing else."""

import base64
import importlib.resources
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
from matplotlib.figure import Figure

import tfstruct
from tfstruct.files import PathLike, write_text
from tfstruct.plotting import figures
from tfstruct.reporting.parts import Part

_TYPES = {"svg": "image/svg+xml", "png": "image/png"}


def _data_address(figure: Figure, kind: str) -> str:
    """The figure as an address that holds it."""
    with io.BytesIO() as file:
        figures.write(figure, file, kind)
        return f"data:{_TYPES[kind]};base64,{base64.b64encode(file.getvalue()).decode()}"


def render(title: str, sections: Mapping[str, Sequence[Part]]) -> str:
    """Returns the HTML of a page.

    Args:
        title: of the page.
        sections: parts of each run by its name; those of the name "" belong to all.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tfstruct.reporting", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["address"] = lambda drawn: _data_address(drawn.figure, drawn.kind)
    style = importlib.resources.files("tfstruct.reporting").joinpath("templates/report.css").read_text("utf-8")
    return environment.get_template("report.html.jinja").render(
        title=title, sections=sections, style=style, version=tfstruct.__version__
    )


def write(path: PathLike, title: str, sections: Mapping[str, Sequence[Part]]) -> Path:
    """Writes a page, whole or not at all; returns the file."""
    return write_text(path, render(title, sections))
