"""Prints how many lines of code there are, without docstrings, comments and blank lines; of tests, all lines."""

import ast
import pathlib
import tokenize

ROOT = pathlib.Path(__file__).resolve().parents[1]
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}


def code_lines(path: pathlib.Path) -> int:
    """Counts the lines of a file that hold code."""
    with tokenize.open(path) as file:
        tokens = list(tokenize.generate_tokens(file.readline))
    lines = {
        line
        for token in tokens
        if token.type not in NO_CODE and token.string
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


product = [path for folder in ("tfstruct", "models", "trainers") for path in (ROOT / folder).rglob("*.py")]
tests = [path for path in (ROOT / "tests").rglob("*.py")]
print(f"lines of code: {sum(map(code_lines, product)):,} in {len(product)} files")
print(f"lines of tests: {sum(len(path.read_text().splitlines()) for path in tests):,} in {len(tests)} files")
