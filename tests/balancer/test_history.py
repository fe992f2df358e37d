"""The last steps of a balancer, kept where it is asked to, and the table that a notebook shows of it."""

import copy
import pickle
from html.parser import HTMLParser

import pytest
import torch
from helpers.balancers import BALANCERS, TASKS, build
from helpers.networks import MLP, mse
from helpers.training import batches, train

import equipoise as eq

pytestmark = pytest.mark.usefixtures("double")


def trained(name="GradNorm", steps=6, kept=100, tasks=TASKS, **settings):
    """A balancer after some steps, and what ``scalars`` gave after each."""
    network, balancer = build(name, tasks, **settings)
    balancer.keep_history(kept)
    seen = []
    for batch in batches(steps, tasks):
        train(network, balancer, [batch])
        seen.append(balancer.scalars())
    return network, balancer, seen


@pytest.mark.parametrize("name", BALANCERS)
def test_the_history_is_what_scalars_gave_after_each_step(name):
    _, balancer, seen = trained(name)
    assert balancer.history == seen
    assert len({tuple(scalars.items()) for scalars in seen}) > 1


@pytest.mark.parametrize("asked", [[], [10, 0]])
def test_nothing_is_kept_unless_asked_to(asked):
    network, balancer = build("GradNorm")
    for steps in asked:
        balancer.keep_history(steps)
    reads = []
    balancer.log = lambda: reads.append(1)
    for x, y in batches(3, TASKS):
        balancer(mse(network(x), y)).backward()
        balancer.step()
    assert balancer.history == []
    assert not reads


def test_the_last_steps_are_kept():
    network, balancer, seen = trained(kept=4)
    assert balancer.history == seen[2:]
    balancer.keep_history(2)
    assert balancer.history == seen[4:]
    balancer.keep_history()
    train(network, balancer, batches(2, TASKS))
    assert balancer.history[:2] == seen[4:]
    assert len(balancer.history) == 4
    balancer.keep_history(0)
    assert balancer.history == []
    train(network, balancer, batches(1, TASKS))
    assert balancer.history == []


@pytest.mark.parametrize("steps", [-1, 1.5, "10", None, True])
def test_a_wrong_number_of_steps_is_refused(steps):
    with pytest.raises((TypeError, ValueError), match="steps must be an integer.*; found"):
        eq.Equal(TASKS).keep_history(steps)


def test_steps_that_are_skipped_or_not_measured_are_kept_too():
    network, balancer = build("GradNorm", every=2)
    balancer.keep_history()
    train(network, balancer, batches(4, TASKS))
    ((x, y),) = batches(1, TASKS)
    balancer(mse(network(x), y)).backward()
    balancer.step(skip=True)
    norms = [scalars["gradient_norm/a"] for scalars in balancer.history]
    assert norms[0] == norms[1] != norms[2] == norms[3]
    assert [scalars["skipped_steps"] for scalars in balancer.history] == [0, 0, 0, 0, 1]


def test_a_count_that_is_kept_does_not_go_on_counting():
    network, balancer = build("GradNorm", floor=0.9)
    balancer.keep_history()
    seen = []
    for batch in batches(12, TASKS, units=[1.0, 10.0, 100.0]):
        train(network, balancer, [batch])
        seen.append(balancer.scalars()["floor_hit/c"])
    assert seen[0] == 0 < seen[-1]
    assert [scalars["floor_hit/c"] for scalars in balancer.history] == seen


def test_an_absent_task_has_no_entry_in_its_step():
    network, balancer, _ = trained(steps=1)
    ((x, y),) = batches(1, TASKS)
    balancer({**mse(network(x), y), "b": None}).backward()
    balancer.step()
    first, second = balancer.history
    assert "loss/b" in first
    assert "loss/b" not in second
    assert "loss/a" in second


def test_no_step_reads_a_number_on_the_host_for_it(monkeypatch):
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        original = getattr(torch.Tensor, name)

        def counted(tensor, *arguments, original=original):
            reads.append(1)
            return original(tensor, *arguments)

        monkeypatch.setattr(torch.Tensor, name, counted)
    assert build("GradNorm")[1].weights.tolist()
    assert reads
    found = []
    for keep in (0, 100):
        network, balancer = build("GradNorm")
        balancer.keep_history(keep)
        reads.clear()
        for x, y in batches(5, TASKS):
            balancer(mse(network(x), y)).backward()
            balancer.step()
        found.append(len(reads))
    assert found[0] == found[1]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_has_it_and_goes_on_by_itself(copied):
    network, balancer, seen = trained(steps=3, kept=4)
    other, twin = copied((network, balancer))
    assert twin.history == seen
    train(other, twin, batches(2, TASKS, seed=5))
    assert twin.history[:2] == seen[1:]
    assert len(twin.history) == 4
    assert balancer.history == seen


def test_it_stays_through_moves_and_out_of_the_state():
    _, balancer, seen = trained(steps=3)
    assert not any("kept" in name or "history" in name for name in balancer.state_dict())
    balancer.to(torch.float32)
    assert balancer.history == seen
    balancer.to("meta")
    assert balancer.history == seen
    saved = trained(steps=1)[1].state_dict()
    other = build("GradNorm")[1]
    other.load_state_dict(saved)
    assert other.history == []


def test_with_a_move_it_comes_to_the_host(monkeypatch):
    _, balancer, seen = trained("Equal", steps=2)
    moved = []
    original = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: moved.append(tensor) or original(tensor))
    balancer.to(torch.float32)
    assert len(moved) == sum(len(log) for log in [balancer.log()] * 2)
    assert balancer.history == seen


def test_it_begins_anew_with_the_balancer():
    network, balancer, _ = trained(steps=3)
    balancer.reset_parameters()
    assert balancer.history == []
    train(network, balancer, batches(2, TASKS))
    assert len(balancer.history) == 2


# The table of a notebook


class Rows(HTMLParser):
    """The caption of a table and the texts of its cells. Every tag must be closed, and none may ask for a file."""

    def __init__(self, html):
        super().__init__()
        self.open, self.rows, self.caption = [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert not attrs
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "caption" in self.open:
            self.caption += data
        elif self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


def test_a_notebook_shows_weights_norms_and_losses():
    network, balancer = build("GradNorm", alpha=0.5)
    train(network, balancer, batches(4, TASKS, units=[1.0, 5.0, 30.0]))
    html = Rows(balancer._repr_html_())
    head, *rows = html.rows
    assert head == ["task", "weight", "gradient norm", "loss"]
    assert "GradNorm(" in html.caption
    assert "alpha=0.5" in html.caption
    scalars, weights = balancer.scalars(), balancer.weights.tolist()
    assert len(set(weights)) == 3
    for task, weight, row in zip(TASKS, weights, rows, strict=True):
        numbers = [weight, scalars[f"gradient_norm/{task}"], scalars[f"loss/{task}"]]
        assert row == [task, *(f"{n:.4g}" for n in numbers)]


def test_the_table_of_a_balancer_that_knows_little():
    head, *rows = Rows(eq.Equal(TASKS)._repr_html_()).rows
    assert head == ["task", "weight"]
    assert rows[0] == ["a", "1"]
    with torch.device("meta"):
        balancer = eq.GradNorm(MLP().fork)
    assert Rows(balancer._repr_html_()).rows[1] == ["a", ""]
    network, balancer = build("GradNorm")
    ((x, y),) = batches(1, TASKS)
    balancer({**mse(network(x), y), "b": None}).backward()
    balancer.step()
    assert Rows(balancer._repr_html_()).rows[2][2:] == ["", ""]


def test_names_of_tasks_are_text():
    names = ("<script>alert(1)</script>", 'a "b" & <i>c</i>')
    _, balancer, _ = trained(tasks=names)
    html = balancer._repr_html_()
    assert [row[0] for row in Rows(html).rows[1:]] == [*names]
    assert "<script" not in html
