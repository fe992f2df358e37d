"""The matrix of entry points and set-ups: the verdict of every cell is that of a test.

Each test of a cell ends with one of `exact`, `refused` or `not_applicable`. In an ordinary run the verdict is compared with
that of the committed page. ``python -m docs.generate.matrix`` names a folder in ``EQUIPOISE_MATRIX``, where the cells are
left, and writes the page from them.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

TOLERANCE = {"float64": 1e-10, "half": 2e-2}
"""The one tolerance of each precision: the largest deviation over the largest value."""

CELLS = Path(__file__).parents[2] / "docs" / "matrix.json"


def deviation(actual, expected):
    """The largest deviation, relative to the largest value expected."""
    actual, expected = actual.double(), expected.double()
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    assert expected.isfinite().all()
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def exact(entry_point, setup, found, precision="float64"):
    """The cell is exact, with ``found`` the largest deviation."""
    tolerance = TOLERANCE[precision]
    assert found <= tolerance, f"{entry_point} x {setup}: deviation {found}, tolerance {tolerance}"
    cell = {"verdict": "exact", "precision": precision, "tolerance": tolerance, "deviation": found}
    _record(entry_point, setup, cell)


def refused(entry_point, setup, error):
    """The cell is refused, with the message that the user sees."""
    _record(entry_point, setup, {"verdict": "refused", "reason": _message(str(error))})


def not_applicable(entry_point, setup, reason):
    """The cell has no meaning."""
    _record(entry_point, setup, {"verdict": "not applicable", "reason": reason})


def _message(text):
    """The library's message, also where a compiler quotes it within its own."""
    quoted = re.search(r"the last shared layer is measured.*?(?=['\"]\)|$)", text, re.MULTILINE)
    return quoted.group() if quoted else text.splitlines()[0]


def _record(entry_point, setup, cell):
    folder = os.environ.get("EQUIPOISE_MATRIX")
    if folder:
        name = f"{setup} {entry_point}".replace("/", "_")
        Path(folder, f"{name}.json").write_text(json.dumps({"entry_point": entry_point, "setup": setup, **cell}))
        return
    published = json.loads(CELLS.read_text(encoding="utf-8")).get(setup, {}).get(entry_point, {}).get("verdict")
    assert cell["verdict"] == published, f"{entry_point} x {setup}: found {cell['verdict']}, the page says {published}"
