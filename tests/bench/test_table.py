import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from rich.console import Console

from equipoise.bench._figure import to_svg
from equipoise.bench._methods import METHODS
from equipoise.bench._table import to_markdown, to_rich


def test_markdown_says_what_the_record_says(make_record):
    record = make_record(ratios={"gradnorm": 2.0, "paper": 30.0}, not_run={"libmtl": "no torchvision"})
    text = to_markdown([record])
    # The ratios are 2 (1 + r / 10) for r = 0..14; the median is r = 7's, the interval r = 3's to r = 11's.
    assert "| workload | T | plain | gradnorm |" in text
    assert "| mlp_3 | 3 | 200 ms | 3.40 (2.60 to 4.20) |" in text
    assert "| mlp_3 | 3 | 1 MiB | 1.25 |" in text
    assert "| workload | T | plain | paper | libmtl |" in text
    assert "| mlp_3 | 3 | 200 ms | 51.0 (39.0 to 63.0) | [1] |" in text
    assert "| mlp_3 | 3 | 1 MiB | 1.25 | [1] |" in text
    assert "\n1. no torchvision\n" in text
    assert "| mlp_3 | A network. | the sixth layer |" in text
    assert "rounds: 15 · torch: 2.13.0 · threads: 1 · date: 2026-01-02T03:04:05+00:00" in text


def test_markdown_of_several_workloads_shares_columns_and_notes(make_record):
    records = [
        make_record(not_run={"libmtl": "no torchvision", "paper": "61 s per step"}),
        make_record("segnet", device="cuda", ratios={"paper": 2.0}, not_run={"libmtl": "no torchvision"}, rounds=3),
    ]
    text = to_markdown(records)
    assert "| mlp_3 | 3 | 200 ms | 2.55 (1.95 to 3.15) |" in text
    assert "| mlp_3 | 3 | 200 ms | [2] | [1] |" in text
    assert "| segnet, cuda | 3 | 200 ms | 2.20 | [1] |" in text  # three rounds have no interval
    assert "\n1. no torchvision\n2. 61 s per step\n" in text
    assert "rounds: 3, 15" in text


def test_the_terminal_shows_every_method(make_record):
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(to_rich(make_record(ratios={"gradnorm": 2.0}, not_run={"libmtl": "no [torchvision]"})))
    shown = capture.get()
    for words in ("A network.", "plain", "200 ms", "3.40 (2.60 to 4.20)", "1.25", "no [torchvision]"):
        assert words in shown


def points(svg, color):
    circles = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}circle")
    return [(float(c.get("cx")), float(c.get("cy"))) for c in circles if c.get("fill") == color]


def test_the_figure_has_logarithmic_axes(make_record):
    records = [make_record(f"mlp_{T}", T, {"gradnorm": 1.0, "paper": ratio}) for T, ratio in ((4, 2), (16, 4), (64, 8))]
    svg = to_svg([*records, make_record("segnet"), make_record("mlp_3_ddp_2")])
    colors = re.findall(r'<circle [^>]*fill="(#\w+)"', svg)
    ours, paper = (points(svg, color) for color in dict.fromkeys(colors))
    assert len(ours) == len(paper) == 3
    xs, ys = zip(*paper, strict=True)
    assert math.isclose(xs[1] - xs[0], xs[2] - xs[1], abs_tol=0.2)
    assert math.isclose(ys[1] - ys[0], ys[2] - ys[1], abs_tol=0.2)
    assert xs[1] > xs[0]
    assert ys[1] < ys[0]
    assert len({y for _, y in ours}) == 1


def test_the_figures_labels_do_not_cover_each_other(make_record):
    records = [make_record(f"mlp_{T}", T, dict.fromkeys(list(METHODS)[1:], 1.0)) for T in (2, 3)]
    labels = [e for e in ElementTree.fromstring(to_svg(records)).iter() if e.text in METHODS]
    heights = sorted(float(label.get("y")) for label in labels)
    assert len(heights) == len(METHODS) - 1
    assert min(b - a for a, b in pairwise(heights)) >= 14
    assert heights[-1] < 430


def test_the_figure_needs_two_points(make_record):
    with pytest.raises(ValueError, match="at least two workloads called mlp_ and a number; found 1"):
        to_svg([make_record()])
