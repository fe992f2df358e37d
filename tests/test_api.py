"""The public interface: its names and signatures as they are written down, and every argument refused that is wrong."""

import inspect
import math

import pytest
import torch
from helpers.api import PAGE, signatures
from torch import nn

import equipoise as eq

TASKS = ("a", "b")


def test_the_public_interface_is_as_written_down():
    """A change of a public name or signature is one of tests/api.txt too: ``python tests/helpers/api.py`` writes it."""
    assert signatures() == PAGE.read_text()


def fork():
    return eq.Fork(nn.Linear(3, 3), TASKS)


GOOD = {
    "fork": fork,
    "tasks": fork,
    "shared_layer": lambda: nn.Linear(3, 3),
    "aggregator": lambda: lambda matrix: matrix.sum(0),
    "scalarizer": lambda: lambda losses: losses.norm(),
    "kinds": lambda: "regression",
    "weights": lambda: {"a": 1.0, "b": 2.0},
    "epoch_steps": lambda: 2,
    "parameters": lambda: nn.Linear(3, 3),
}
"""What a required argument is given, by its name."""

FREE = {"fork", "tasks", "shared_layer", "aggregator", "scalarizer", "parameters", "seed_of_draws"}
"""Arguments whose wrong values have tests of their own."""


class Strange:
    """Nothing that anybody would hand in."""

    def __repr__(self):
        return "strange"


NUMBERS = [True, "1", None, math.nan, math.inf, -math.inf, 1e39, -1.0, [1.0], Strange(), torch.ones(2)]
BY_TASK = [
    5,
    ["a", "b"],
    {"a": 1.0},
    {"a": 1.0, "b": 2.0, "c": 1.0},
    {"a": 1.0, "b": math.nan},
    {"a": 1.0, "b": math.inf},
    {"a": 1.0, "b": -1.0},
    {"a": 1.0, "b": 1e39},
    {"a": 1.0, "b": "2"},
    {"a": 1.0, "b": True},
    {},
]
COUNTS = [True, "1", 1.5, -1, math.nan, math.inf, [1], Strange()]
FLAGS = [0, 1, "yes", None, Strange()]
PAIRS = [0.9, (0.9,), (0.9, 1.0), (0.9, math.nan), ("a", "b"), None]
WORDS = ["", "nonsense", 3, Strange()]


def classes():
    return [
        c
        for c in (getattr(eq, name) for name in eq.__all__)
        if inspect.isclass(c) and issubclass(c, eq.Balancer) and c is not eq.Balancer
    ]


def wrong_values(parameter):
    """Values that the annotation of a parameter excludes, or that are out of any range."""
    text = str(parameter.annotation)
    if "bool" in text:
        return FLAGS
    if "tuple" in text:
        return PAIRS
    if "Mapping" in text or "ByTask" in text:
        return BY_TASK
    if "int" in text:
        return COUNTS
    if "float" in text:
        return [value for value in NUMBERS if value is not None or "None" not in text]
    return WORDS


def cases():
    for cls in classes():
        for name, parameter in inspect.signature(cls).parameters.items():
            if name in FREE:
                continue
            for value in wrong_values(parameter):
                if isinstance(value, float) and value in ACCEPTED.get((cls.__name__, name), ()):
                    continue
                yield pytest.param(cls, name, value, id=f"{cls.__name__}-{name}-{value!r:.30}")


def build(cls, **arguments):
    needed = {
        name: GOOD[name]()
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is parameter.empty and name not in arguments
    }
    return cls(**needed, **arguments)


@pytest.mark.parametrize("cls", classes())
def test_every_balancer_is_built_from_what_it_requires(cls):
    assert build(cls).tasks == TASKS


ACCEPTED = {
    ("SoftAdapt", "beta"): (-1.0,),  # favours the task that falls most
}
"""Values that a method has a meaning for, though they look wrong."""


@pytest.mark.parametrize(("cls", "name", "value"), list(cases()))
def test_a_wrong_argument_is_refused_by_name(cls, name, value):
    with pytest.raises((TypeError, ValueError)) as caught:
        build(cls, **{name: value})
    message = str(caught.value)
    assert name in message, message
    assert "found" in message or "missing" in message or "unknown" in message, message
