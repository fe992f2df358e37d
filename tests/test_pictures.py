"""The pictures of the documentation show the numbers that they are given."""

import math
import re
from xml.etree import ElementTree

import pytest
from generate.pictures import Axis, Panel, Series, plot

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*series, x=None, y=None):
    """The picture's root, for series in one panel."""
    axes = x or Axis("steps"), y or Axis("loss")
    return ElementTree.fromstring(plot([Panel("a panel", series, *axes)], "losses"))


def dots(root):
    return [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{SVG}circle") if c.get("r") == "3"]


def test_equal_ratios_are_equal_distances_on_logarithmic_axes():
    root = drawn(Series("a", (4, 16, 64), (2, 4, 8), "points"), x=Axis("T", log=True), y=Axis("time", log=True))
    (x1, y1), (x2, y2), (x3, y3) = dots(root)
    assert math.isclose(x2 - x1, x3 - x2, abs_tol=0.2)
    assert math.isclose(y2 - y1, y3 - y2, abs_tol=0.2)
    assert x2 > x1
    assert y2 < y1


def test_numbers_that_are_not_finite_are_left_out():
    assert len(dots(drawn(Series("a", (1, 2, 3), (1.0, math.nan, 2.0), "points")))) == 2


def test_an_interval_reaches_from_its_low_to_its_high_end():
    root = drawn(Series("a", (1, 2), (1.0, 2.0), ends=((0.5, 1.5), (math.nan, math.nan))))
    lines = [re.fullmatch(r"M([\d.]+) ([\d.]+)V([\d.]+)", path.get("d")) for path in root.iter(f"{SVG}path")]
    ((x, low, high),) = (map(float, line.groups()) for line in lines if line)
    ((at, middle), _) = dots(root)
    assert x == at
    assert math.isclose((low + high) / 2, middle, abs_tol=0.2)
    assert low > middle


@pytest.mark.parametrize("kind", ["line", "dashed", "points"])
def test_a_label_stands_in_the_legend_once(kind):
    root = drawn(Series("one & <two>", (1, 2), (1, 2), kind), Series("one & <two>", (1, 2), (2, 3), kind))
    assert [text.text for text in root.iter(f"{SVG}text")].count("one & <two>") == 1
