"""The Python and the commands of the documents, for tests that run them."""

import re
import shlex
from collections import defaultdict
from typing import NamedTuple

from tests.trainers import tiny

_FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```)?", re.S | re.M)


class Block(NamedTuple):
    """A fenced block of a document, with the output that stands below it."""

    page: str
    language: str
    text: str
    output: str | None


def pages():
    """Text by path of all documents that people read, without what is included from elsewhere."""
    paths = [tiny.CHECKOUT / "README.md", tiny.CHECKOUT / "CONTRIBUTING.md", *(tiny.CHECKOUT / "docs").rglob("*.md")]
    return {str(path.relative_to(tiny.CHECKOUT)): path.read_text(encoding="utf-8") for path in sorted(paths)}


def blocks(page, language):
    """The fenced blocks of a document in a language."""
    found = (Block(page, match["language"], match["text"], match["output"]) for match in _FENCE.finditer(pages()[page]))
    return [block for block in found if block.language == language]


def commands(page):
    """The commands of a document as lists of words: those in `bash` blocks and in indented ones."""
    text = pages()[page]
    indented = re.findall(r"^    (.*)$", _FENCE.sub("", text), re.M)
    lines = "\n".join([*(block.text for block in blocks(page, "bash")), *indented]).replace("\\\n", " ")
    found = []
    for line in lines.splitlines():
        try:
            words = _words(line)
        except ValueError:  # a quote that does not end: no command
            continue
        found += [command for command in words if command]
    return found


def _words(line):
    """Splits a line of shell into commands, each without assignments before it."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;")
    lexer.whitespace_split = True
    found = [[]]
    for word in lexer:
        if set(word) <= {"&", ";"}:
            found.append([])
        elif found[-1] or not re.match(r"[A-Z_]+=", word):
            found[-1].append(word)
    return found


def programs():
    """The calls of this package's programs in all documents: name of the program to (page, arguments)."""
    found = defaultdict(list)
    for page in pages():
        for word, *arguments in commands(page):
            name = re.fullmatch(r"(?:\.venv/bin/)?tfstruct-([a-z-]+)", word)
            if name:
                found[name[1]].append((page, arguments))
    return dict(found)
