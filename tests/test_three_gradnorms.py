"""The page about what is called GradNorm: its figures, and what its text says of them."""

import re

import pytest
from generate import pages, three_gradnorms

NUMBER = re.compile(r"(?<= )\d[\d.]*(?:e[+-]\d+)?(?= )")


def test_its_figures_are_generated():
    """To within what another processor's rounding may do to a run of some hundred steps."""
    published, found = pages.parts(three_gradnorms.PAGE, three_gradnorms.TABLE)[1], three_gradnorms.figures()
    assert NUMBER.sub("", published) == NUMBER.sub("", found)
    numbers = [[float(number) for number in NUMBER.findall(text)] for text in (published, found)]
    assert len(numbers[0]) > 3 * len(three_gradnorms.RULES)
    assert numbers[0] == pytest.approx(numbers[1], rel=0.2)


def test_its_text_is_that_of_the_figures():
    rows = [
        line.strip("| ").split(" | ")
        for line in pages.parts(three_gradnorms.PAGE, three_gradnorms.TABLE)[1].splitlines()[4:]
    ]
    ratios = {label: float(ratio) for label, _, _, ratio in rows}
    balanced = ("`eq.GradNorm(alpha=0)`", "`eq.GradNormClosedForm(alpha=0)`", "`eq.InverseGradientNorm(every=1)`")
    assert all(0.7 < ratios[label] < 1.4 for label in balanced), "all three rest where the norms are equal"
    for label in (
        "weights of 1",
        "weights of 1, gradients clipped to norm 0.1",
        "`eq.InverseGradientNorm()`, as published",
    ):
        assert ratios[label] > 3, label
