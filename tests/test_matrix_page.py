"""The page of entry points and set-ups is generated from its cells, whose verdicts the tests in setups compare."""

import pytest
from generate import matrix
from helpers.matrix import CELLS, TOLERANCE

CELL = {"verdict": "exact", "precision": "float64", "tolerance": 1e-10, "deviation": 2.3e-16}


def test_the_page_is_generated():
    assert matrix.PAGE.read_text(encoding="utf-8") == matrix.page(matrix.load())


def test_the_tests_compare_with_these_cells():
    assert matrix.CELLS == CELLS
    exact = [cell for row in matrix.load().values() for cell in row.values() if cell["verdict"] == "exact"]
    assert exact
    assert all(cell["deviation"] <= cell["tolerance"] == TOLERANCE[cell["precision"]] for cell in exact)


def test_a_reason_is_given_once():
    cell = {"verdict": "refused", "reason": "it says why"}
    text = matrix.page({"one": {"attach": cell, "PerLoss": CELL}, "two": {"attach": cell}})
    assert "| one | not tested | not tested | not tested | refused [1] | exact (2e-16, float64) |" in text
    assert "| two | not tested | not tested | not tested | refused [1] | not tested |" in text
    assert text.count("it says why") == 1


def test_an_unknown_entry_point_is_refused():
    with pytest.raises(ValueError, match="one: unknown entry points a door; known: Fork, by rule"):
        matrix.page({"one": {"a door": CELL}})
