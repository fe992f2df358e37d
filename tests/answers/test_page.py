"""The frame of the answers: prose, the folded expectations, curves with intervals, and whether a gap closes."""

import math
from types import SimpleNamespace

import pytest
from answers.test_contrasts import comparison
from generate.answers.gaps import closed
from generate.answers.page import Page, Prediction, prose, written
from generate.answers.series import curves


def test_prose_is_escaped_except_for_code():
    assert prose("p < 0.05 on `groups` [1, 2]") == r"p \< 0.05 on `groups` \[1, 2\]"
    assert prose("a ` alone") == r"a \` alone"


def test_what_was_expected_is_folded_below_picture_and_table(monkeypatch):
    monkeypatch.setattr("generate.answers.page.study", lambda name: SimpleNamespace(expectation="this and that"))
    predictions = [Prediction("plateau", "this", True, "One."), Prediction("plateau", "that", None, "Two."), None]
    text = written(
        "a", Page("A", "us", "Why?", "So.", ["Once."], predictions, "", "a picture", "|t|", "u", "l", ["plateau"])
    )
    parts = [
        text.index(part) for part in ("a.svg", "|t|", "## Expected beforehand", "<details>", "“this”", "</details>")
    ]
    assert parts == sorted(parts)
    assert "agree with 1 of the 2 parts, disagree with 0 and leave 1 open" in text
    assert "Budget" not in text
    assert "[`plateau`](studies.md#plateau)" in text


def test_a_curve_is_the_mean_with_intervals_at_some_steps():
    found = comparison(ours=(0.2, 0.4), theirs=(0.5, 0.5))
    line, bars, *_ = curves(found, ["ours", "theirs"])
    assert list(line.y) == pytest.approx([1.0, 0.65, 0.3])
    assert bars.x == [20]
    ((low, high),) = bars.ends
    assert (low + high) / 2 == pytest.approx(0.3)
    assert all(map(math.isnan, bars.y))


@pytest.mark.parametrize(
    ("after", "agrees"),
    [((0.52, 0.53, 0.51), True), ((0.58, 0.59, 0.57), False), ((0.50, 0.60, 0.55), None)],
)
def test_a_gap_has_closed_only_if_the_paired_interval_says_so(after, agrees):
    before = comparison(ours=(0.60, 0.61, 0.59), theirs=(0.5, 0.5, 0.5))
    later = comparison(ours=after, theirs=(0.5, 0.5, 0.5))
    assert closed(("ours", "theirs"), before, later, 1 / 2)[0] is agrees
