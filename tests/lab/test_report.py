import base64
import json
import math
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from equipoise.lab.record import Curves, Divergence
from equipoise.lab.results.comparison import group
from equipoise.lab.results.forest import to_svg
from equipoise.lab.results.format import format_estimate, format_sign
from equipoise.lab.results.report import write_report
from equipoise.lab.results.rows import summarise
from equipoise.lab.results.selection import read_at

HOSTILE = ("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a & b &lt; </script>")


class Page(HTMLParser):
    """What the page holds: its tags, its text, and the figures' JSON."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text, self.figures, self._data = [], [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._data = dict(attrs).get("type") == "application/json"

    def handle_data(self, data):
        if self._data:
            self.figures.append(json.loads(data))
            self._data = False
        elif self.tags and self.tags[-1][0] not in ("script", "style"):
            self.text.append(data)


@pytest.fixture
def page(tmp_path):
    def write(records):
        path = tmp_path / "new" / "report.html"
        write_report(records, path)
        return Page(path.read_text(encoding="utf-8"))

    return write


def names(figure):
    return [trace["name"] for trace in figure["data"] if "name" in trace]


def test_every_curve_is_there(page, make_record):
    tasks = ("a", "b", "c")
    figures = page([make_record(m, s, tasks) for m in ("equal", "gradnorm") for s in range(2)]).figures
    # The opening ones, two methods with four panels, then a panel per task for the losses and one for the metric.
    assert len(figures) == 2 + 2 * 4 + 3 + 3
    assert [names(figure) for figure in figures[2:6]] == [["a", "b", "c"]] * 4
    # GradNorm's norms come with their targets, dashed.
    dashes = [trace["line"].get("dash") for trace in figures[8]["data"] if "name" in trace]
    assert dashes == ["solid"] * 3 + ["dash"] * 3
    # Training solid, test dashed, one line per method.
    dashes = [(trace["name"], trace["line"]["dash"]) for trace in figures[10]["data"] if "name" in trace]
    assert dashes == [("equal", "solid"), ("gradnorm", "solid"), ("equal", "dash"), ("gradnorm", "dash")]
    assert [names(figure) for figure in figures[-3:]] == [["equal", "gradnorm"]] * 3
    for figure in figures[2:]:
        assert figure["layout"]["yaxis"]["title"]["text"]
        assert figure["layout"]["template"]["layout"]["xaxis"]["title"]["text"] == "training step"


def test_a_task_has_one_colour_everywhere_and_methods_share_their_axes(page, make_record):
    tasks = tuple("abcdefgh")
    figures = page([make_record(m, 0, tasks) for m in ("equal", "gradnorm")]).figures
    colors = {}
    for figure in figures[2:10]:
        for trace in figure["data"]:
            colors.setdefault(trace["name"], set()).add(trace["line"]["color"])
    assert all(len(found) == 1 for found in colors.values())
    assert len(set.union(*colors.values())) == len(tasks)
    for first, second in zip(figures[2:6], figures[6:10], strict=True):
        assert first["layout"]["yaxis"]["range"] == second["layout"]["yaxis"]["range"]


def decoded(values):
    return np.frombuffer(base64.b64decode(values["bdata"]), dtype=values["dtype"])


def test_a_line_is_the_mean_over_seeds_and_its_band_reaches_from_seed_to_seed(page, make_record):
    runs = [make_record(seed=seed) for seed in range(3)]
    losses = [np.array(run.curves.losses["alpha"]) for run in runs]
    low, high, *_, line, _other = page(runs).figures[2]["data"]
    np.testing.assert_allclose(decoded(line["y"]), np.mean(losses, axis=0), rtol=1e-5)
    np.testing.assert_allclose(decoded(low["y"]), np.min(losses, axis=0), rtol=1e-5)
    np.testing.assert_allclose(decoded(high["y"]), np.max(losses, axis=0), rtol=1e-5)


def test_the_common_axis_holds_every_method(page, make_record):
    runs = [make_record("equal"), make_record("gradnorm")]
    weights = np.array(list(runs[1].curves.weights.values()))
    low, high = page(runs).figures[3]["layout"]["yaxis"]["range"]
    assert low < np.log10(weights.min()) < np.log10(weights.max()) < high


def test_a_line_ends_where_the_first_of_its_seeds_is_not_finite(page, make_record):
    above = {"alpha": [1.0, 0.5, math.inf, math.inf, math.nan], "beta": [1.0] * 5}
    below = {"alpha": [1.0, 0.5, 0.2, -math.inf, 0.1], "beta": [1.0] * 5}
    figure = page([make_record(seed=0, test=above), make_record(seed=1, test=below)]).figures[6]
    (test,) = (trace for trace in figure["data"] if trace["line"].get("dash") == "dash")
    assert list(np.isfinite(decoded(test["y"]))) == [True, True, False, False]  # at step 30 neither is finite


def test_wide_positive_quantities_are_on_a_logarithmic_axis_and_others_are_not(page, make_record):
    wide = {"alpha": [1000.0, 100.0, 10.0, 1.0, 0.1], "beta": [-1.0, 0.5, 10.0, 1.0, 0.1]}
    figures = page([make_record(train=wide, validation=wide, test=wide)]).figures
    assert [figure["layout"]["yaxis"]["type"] for figure in figures[6:8]] == ["log", "linear"]


def test_steps_without_a_measured_norm_are_left_out(page, make_record):
    record = make_record()
    norms = {task: [math.nan if i % 4 else 1.0 for i in range(40)] for task in ("alpha", "beta")}
    curves = Curves(**{**record.curves.__dict__, "gradient_norms": norms})
    report = page([type(record)(**{**record.__dict__, "curves": curves})])
    assert list(decoded(report.figures[4]["data"][0]["x"])) == list(range(1, 41, 4))


def test_what_was_never_measured_is_said(page, make_record):
    record = make_record()
    curves = Curves(**{**record.curves.__dict__, "gradient_norms": {}})
    report = page([type(record)(**{**record.__dict__, "curves": curves})])
    assert len(report.figures) == 2 + 3 + 2 + 2
    assert "not measured" in "".join(report.text)


def test_what_a_reader_must_know_is_said(page, make_record):
    broken = {"alpha": [1.0, 1.0, math.nan, math.nan, math.nan], "beta": [1.0] * 5}
    records = [
        make_record(),
        make_record("gradnorm", 0, floor_hits={"alpha": 10, "beta": 0}, cap_hits={"alpha": 0, "beta": 3}),
        make_record("gradnorm", 1, skipped_steps=4, test=broken),
    ]
    text = " ".join("".join(page(records).text).split())
    assert "gradnorm, seed 1: diverged; a loss was not finite at step 20." in text
    assert "gradnorm: 4 of 80 steps were skipped" in text
    assert "gradnorm: steps of 80 at which a weight was held at the floor: alpha 10 (12 %)." in text
    assert "gradnorm: steps of 80 at which a weight was held at the cap: beta 3 (3.8 %)." in text
    assert text.count("1 run diverged") == 6  # two tasks, their mean, the normalised loss and the two changes
    assert "No run diverged" not in text
    assert "diverged" not in "".join(page(records[:1]).text)


def test_the_table_and_the_origin_are_in_the_page(page, make_record):
    text = " ".join("".join(page([make_record(m, s) for m in ("equal", "gradnorm") for s in (0, 1)]).text).split())
    for fact in ("task-normalised test loss", "± ", "x86_64, 2 cores", "2.13.0", "0123abcd", "seeds 0, 1"):
        assert fact in text
    assert "equipoise compare toy --methods equal,gradnorm --seeds 2 --steps 40" in text


def test_comparisons_are_apart(page, make_record):
    report = page([make_record(steps=20), make_record(steps=40), make_record(problem="other")])
    assert sum(tag == "section" for tag, _ in report.tags) == 3


def test_names_are_text_and_nothing_else(page, make_record):
    records = [make_record(m, 0, HOSTILE, problem=HOSTILE[0], metric=HOSTILE[1]) for m in ("equal", HOSTILE[1])]
    records[0].environment["machine"] = HOSTILE[0]
    report = page(records)
    assert not any(tag == "img" for tag, _ in report.tags)
    assert not any(name.startswith("on") for _, attributes in report.tags for name in attributes)
    # Two scripts of ours, and one block of data per figure.
    assert sum(tag == "script" for tag, _ in report.tags) == 2 + len(report.figures)
    text = "".join(report.text)
    assert all(name in text for name in HOSTILE)
    assert [unescape(name) for name in names(report.figures[2])] == list(HOSTILE)


def test_no_records_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="wanted at least one record"):
        write_report([], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_it_opens_with_the_changes_and_where_runs_are_read(page, make_record):
    runs = [make_record(m, s) for m in ("equal", "gradnorm") for s in range(3)]
    report = page(runs)
    text = " ".join("".join(report.text).split())
    assert "all tasks" in text
    assert "change against equal in %, 95 % intervals" in text
    dots = [trace for trace in report.figures[0]["data"] if trace["mode"] == "markers"]
    assert [list(trace["x"]) for trace in dots] == [
        [read_at(run) for run in runs[:3]],
        [read_at(run) for run in runs[3:]],
    ]
    two, many = report.figures[1], page([make_record(tasks=tuple("abc"))]).figures[1]
    assert two["layout"]["xaxis"]["title"]["text"].startswith("alpha: MeanSquaredError")
    assert many["layout"]["yaxis"]["title"]["text"] == "change of the mean L/L(0), %"
    assert list(many["data"][0]["y"]) == [0.0, 0.0, 0.0]


def test_the_figure_of_the_changes_is_that_of_the_table(make_record):
    records = [make_record(m, s) for m in ("equal", "gradnorm") for s in range(3)]
    (comparison,) = group(records)
    root = ElementTree.fromstring(to_svg(comparison))
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    (row,) = (row for row in summarise(comparison) if row.label == "change against equal")
    shown = f"{format_estimate(row.cells[1].value, compact=True, signed=True)} % {format_sign(row.cells[1])}".rstrip()
    assert texts[texts.index("all tasks") + 1 :][:2] == ["gradnorm", shown]
    assert [text for text in texts if text in ("alpha", "beta")] == ["alpha", "beta"]
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 3
    with pytest.raises(ValueError, match="wanted a method beside equal, found none"):
        to_svg(group(records[:3])[0])


def test_a_figure_shows_hostile_names_as_text(make_record):
    records = [make_record(m, s, HOSTILE[:2]) for m in ("equal", HOSTILE[1]) for s in range(2)]
    root = ElementTree.fromstring(to_svg(group(records)[0]))
    assert not any(element.tag.endswith(("script", "img")) for element in root.iter())
    assert any(element.text == HOSTILE[0] for element in root.iter())


def test_a_run_that_was_stopped_is_drawn_beside_those_that_went_on(page, make_record):
    stopped = make_record("gradnorm", 1, steps=20)
    whole = [make_record("gradnorm", 0), make_record("equal", 0), make_record("equal", 1)]
    cause = Divergence(17, "the loss of 'alpha' was not finite")
    stopped = replace(stopped, spec=replace(whole[0].spec, seed=1), diverged=cause)
    report = page([*whole, stopped])
    assert "gradnorm, seed 1: diverged; the loss of 'alpha' was not finite at step 17." in "".join(report.text)
