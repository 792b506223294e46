"""Equations of the documentation as MathML, which browsers show without scripts or fonts from a network."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

_EQUATION = re.compile(r'<(?P<tag>span|div) class="arithmatex">(?P<text>.*?)</(?P=tag)>', re.DOTALL)


def on_page_content(html: str, **_: Any) -> str:
    """Returns a page with the TeX that pymdownx.arithmatex marks as MathML: the hook of mkdocs."""
    return _EQUATION.sub(_as_mathml, html)


def _as_mathml(match: re.Match[str]) -> str:
    # Arithmatex writes \( \) around what stands in a line, \[ \] around what stands alone.
    text = unescape(match["text"]).strip()
    return convert(text[2:-2].strip(), display="block" if match["tag"] == "div" else "inline")
