"""The guide for notebooks: what its cells show, as HTML. ``python -m docs.generate.notebook`` writes it anew."""

from __future__ import annotations

import ast
import io
import re
from contextlib import redirect_stdout
from html import escape
from pathlib import Path
from typing import Any

from .pages import ROOT

PAGE = ROOT / "docs" / "guides" / "notebook.md"
CELL = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:\n\n```\{raw\} html\n:file: (?P<file>\S+)\n```$)?", re.DOTALL | re.MULTILINE
)


def cells() -> list[tuple[str, Path | None]]:
    """The Python of every cell, and the file of what it shows; None where it shows nothing."""
    found = CELL.finditer(PAGE.read_text(encoding="utf-8"))
    return [(cell["code"], PAGE.parent / cell["file"] if cell["file"] else None) for cell in found]


def run(code: str, names: dict[str, Any], figure: str) -> str:
    """Run a cell; return what it prints, and its last expression as a notebook would show it.

    The page itself loads plotly, once, and ``figure`` is the name that a figure has in it.
    """
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else ast.parse("None").body[0]
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, str(PAGE), "exec"), names)
        value = eval(compile(ast.Expression(last.value), str(PAGE), "eval"), names)
    shown = f"<pre>{escape(printed.getvalue())}</pre>" if printed.getvalue() else ""
    if hasattr(value, "to_html"):
        config = {"displaylogo": False}
        shown += value.to_html(full_html=False, include_plotlyjs=False, div_id=figure, config=config)
    elif value is not None:
        shown += value._repr_html_()
    return f'<div class="shown">\n{shown}\n</div>\n'


def main() -> None:
    """Write what every cell shows."""
    names: dict[str, Any] = {}
    for code, file in cells():
        shown = run(code, names, file.stem if file else "")
        if file:
            file.write_text(shown, encoding="utf-8")


if __name__ == "__main__":
    main()
