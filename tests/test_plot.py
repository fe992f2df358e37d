"""Figures of a history: what is drawn, on which axes, and what is refused."""

import ast
import sys
from collections import deque

import pytest
import torch
from generate import notebook
from helpers.balancers import TASKS, build
from helpers.training import batches, train

import equipoise as eq

QUANTITIES = ("weight", "gradient_norm", "loss")


def scalars(**values):
    """The scalars of one step: ``weight__a=1.0``."""
    return {name.replace("__", "/"): value for name, value in values.items()}


def axis_of(figure, line):
    """The vertical axis that a line is drawn on."""
    return figure.layout["yaxis" + line.yaxis.removeprefix("y")]


def panels(figure):
    """The lines of every panel by task, in the order of the panels, with the axis of each."""
    found = {}
    for line in figure.data:
        found.setdefault(line.yaxis, (axis_of(figure, line), {}))[1][line.name] = line
    return sorted(found.values(), key=lambda panel: -panel[0].domain[0])


def test_a_panel_for_weights_gradient_norms_and_losses():
    network, balancer = build("GradNorm")
    balancer.keep_history()
    train(network, balancer, batches(7, TASKS))
    found = panels(eq.plot(balancer.history))
    assert [axis.title.text for axis, _ in found] == ["weight", "gradient norm", "loss"]
    for quantity, (_, lines) in zip(QUANTITIES, found, strict=True):
        assert tuple(lines) == TASKS
        for task, line in lines.items():
            assert list(line.y) == [scalars[f"{quantity}/{task}"] for scalars in balancer.history]
            assert list(line.x) == [1, 2, 3, 4, 5, 6, 7]


def test_a_task_has_one_colour_and_one_entry_in_the_legend():
    history = [scalars(weight__b=1.0, loss__a=1.0, loss__b=2.0, gradient_norm__a=1.0), scalars(loss__c=3.0)]
    figure = eq.plot(history)
    looks = {}
    for line in figure.data:
        looks.setdefault(line.name, set()).add((line.line.color, line.line.dash, line.legendgroup))
    assert sorted(looks) == ["a", "b", "c"]
    assert all(len(look) == 1 for look in looks.values())
    assert len(set.union(*looks.values())) == 3
    assert sorted(line.name for line in figure.data if line.showlegend) == ["a", "b", "c"]


def test_forty_tasks_can_be_told_apart():
    figure = eq.plot([{f"weight/{i}": 1.0 for i in range(40)}])
    assert len({(line.line.color, line.line.dash) for line in figure.data}) == 40
    assert figure.layout.showlegend
    assert not eq.plot([{f"weight/{i}": 1.0 for i in range(41)}]).layout.showlegend


def test_what_no_step_has_gets_no_panel():
    assert [axis.title.text for axis, _ in panels(eq.plot([scalars(loss__a=1.0, skipped_steps=0)]))] == ["loss"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1.0, 100.0], "linear"),
        ([1.0, 100.1], "log"),
        ([0.0, 1e6], "linear"),
        ([-1.0, 1e6], "linear"),
        ([1.0, float("inf")], "linear"),
        ([float("nan")], "linear"),
    ],
)
def test_an_axis_is_logarithmic_from_a_hundredfold_on(values, kind):
    figure = eq.plot([scalars(loss__a=value, weight__a=1.0) for value in values])
    weight, loss = (axis.type for axis, _ in panels(figure))
    assert (weight, loss) == ("linear", kind)


@pytest.mark.parametrize(("largest", "decades"), [(101, 1), (1e5, 1), (1e6, 2), (1e30, 6)])
def test_the_ticks_of_a_logarithmic_axis_leave_room(largest, decades):
    figure = eq.plot([scalars(loss__a=1.0), scalars(loss__a=float(largest))])
    assert figure.layout.yaxis.dtick == decades


def test_an_absent_task_has_no_point():
    history = deque([scalars(loss__a=1.0, loss__b=1.0), scalars(loss__a=2.0), scalars(loss__a=3.0, loss__b=3.0)])
    ((_, lines),) = panels(eq.plot(history))
    assert (list(lines["b"].x), list(lines["b"].y)) == ([1, 3], [1.0, 3.0])
    ((_, lines),) = panels(eq.plot([scalars(loss__a=1.0), scalars(loss__b=1.0)]))
    assert lines["a"].mode == "markers"  # a line of one point is not seen


def test_steps_have_the_numbers_that_they_are_given():
    figure = eq.plot([scalars(loss__a=1.0)] * 3, steps=range(0, 150, 50))
    assert list(figure.data[0].x) == [0, 50, 100]
    assert figure.layout.xaxis.title.text == "step"
    assert eq.plot([scalars(loss__a=1.0)]).layout.xaxis.title.text == "step in the history"


def test_names_of_tasks_are_text():
    (line,) = eq.plot([{"loss/<b>a/b</b>": 1.0}]).data
    assert line.name == "&lt;b&gt;a/b&lt;/b&gt;"


@pytest.mark.parametrize(
    ("history", "error", "message"),
    [
        (None, TypeError, r"history must be a sequence of dicts, such as balancer\.history; found None"),
        (scalars(loss__a=1.0), TypeError, "history must be a sequence of dicts.*; found dict"),
        ("loss/a", TypeError, "history must be a sequence of dicts.*; found 'loss/a'"),
        (eq.Equal(("a",)), TypeError, "history must be a sequence of dicts.*; found Equal"),
        ([], ValueError, r"history must hold a step; found none.*keep_history\(\)"),
        ([scalars(loss__a=1.0), 3.0], TypeError, r"history\[1\] must be a dict by name; found 3.0"),
        ([scalars(loss__a="x")], TypeError, r"history\[0\]\['loss/a'\] must be a number; found 'x'"),
        ([scalars(loss__a=torch.ones(2))], TypeError, r"must be a number; found a tensor of shape \(2,\)"),
        ([scalars(loss__a=True)], TypeError, "must be a number; found True"),
        ([{"loss/": 1.0}], ValueError, "history must hold names such as 'weight/task'.*; found 'loss/'"),
        ([{}], ValueError, "history must hold names such as 'weight/task'.*; found none"),
        ([{"losses": torch.ones(2)}], ValueError, "history must hold names such as 'weight/task'.*; found 'losses'"),
    ],
)
def test_a_wrong_history_is_refused(history, error, message):
    with pytest.raises(error, match=message):
        eq.plot(history)


@pytest.mark.parametrize(
    ("steps", "error", "message"),
    [
        ([1], ValueError, "steps must be as many as there are in history, 2; found 1"),
        (2, TypeError, "steps must be a sequence of numbers; found 2"),
        ("12", TypeError, "steps must be a sequence of numbers; found '12'"),
        ([1, None], TypeError, r"steps\[1\] must be a number; found None"),
    ],
)
def test_wrong_steps_are_refused(steps, error, message):
    with pytest.raises(error, match=message):
        eq.plot([scalars(loss__a=1.0)] * 2, steps)


def test_without_plotly_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.subplots", None)
    with pytest.raises(ImportError, match=r'equipoise\.plot needs plotly: pip install "equipoise\[plot\]"'):
        eq.plot([scalars(loss__a=1.0)])


def test_the_guide_shows_what_every_cell_ends_with():
    for code, file in notebook.cells():
        assert isinstance(ast.parse(code).body[-1], ast.Expr)
        shown = file.read_text(encoding="utf-8")
        assert ("<table" in shown, 'class="plotly-graph-div"' in shown) == ("plot" not in code, "plot" in code)
    files = {file for _, file in notebook.cells()}
    assert files == {*(notebook.PAGE.parent / "notebook").iterdir()}
    assert sum(file.stat().st_size for file in files) < 300_000  # plotly itself is not in them


def test_a_cell_shows_what_it_prints_and_its_last_expression():
    names = {"eq": eq}
    assert notebook.run("print('1 < 2')\nx = 1\n", names, "") == '<div class="shown">\n<pre>1 &lt; 2\n</pre>\n</div>\n'
    assert names["x"] == 1
    assert eq.Equal(("a",))._repr_html_() in notebook.run("eq.Equal(('a',))", names, "")
    assert 'id="figure"' in notebook.run("eq.plot([{'loss/a': float(x)}])", names, "figure")
