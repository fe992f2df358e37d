"""The Python of a page of the documentation, run as one program in a process of its own."""

from __future__ import annotations

import os
import re
import sys
import traceback
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from helpers.processes import CONTEXT

BLOCK = re.compile(r"(?P<mark><!-- not run: .* -->\n)?^```python\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
NEEDS = re.compile(r"<!-- needs: (.*?) -->")


def program(text):
    """All that its Python blocks hold, those in comments too, in the lines in which they stand; empty if there is none."""
    lines = [""] * text.count("\n")
    for block in BLOCK.finditer(text):
        if not block["mark"]:
            first = text.count("\n", 0, block.start("code"))
            for number, line in enumerate(block["code"].splitlines(), first):
                lines[number] = line
    return "\n".join(lines) if any(lines) else ""


def missing(text):
    """The packages that the page asks for in its first line and that are not installed."""
    needs = NEEDS.match(text)
    return [name for name in re.split(r"[\s,]+", needs[1]) if find_spec(name) is None] if needs else []


def run(path, folder):
    """The traceback of the page's program, run in ``folder``; empty if it ran through, without a warning."""
    worker = CONTEXT.Process(target=_work, args=(Path(path).resolve(), Path(folder)))
    worker.start()
    worker.join()
    error = Path(folder, "traceback.txt")
    if error.exists():
        return error.read_text(encoding="utf-8")
    return f"ended with exit code {worker.exitcode}" if worker.exitcode else ""


def _work(path, folder):
    os.chdir(folder)
    sys.stdout = open("printed.txt", "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stdout
    warnings.simplefilter("error")
    module = sys.modules["page"] = ModuleType("page")
    try:
        exec(compile(program(path.read_text(encoding="utf-8")), str(path), "exec"), vars(module))
    except BaseException:
        Path("traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        sys.exit(1)
