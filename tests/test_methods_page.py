"""The page of all methods is what the code says, and says something of every method."""

import pytest
import torch
from generate import methods

import equipoise as eq

METHODS = methods.methods()


def test_the_page_is_generated():
    assert methods.PAGE.read_text(encoding="utf-8") == methods.page()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("title", ["When to use", "Args", "Example"])
def test_every_method_has_its_sections(name, title):
    assert methods.section(METHODS[name], title), f"eq.{name} has no section {title!r}"


@pytest.mark.parametrize("name", METHODS)
def test_a_reference_has_a_number_or_says_that_it_was_not_verified(name):
    """The number of an equation or algorithm, or a word about why there is none; and no paper without its differences."""
    reference = methods.section(METHODS[name], "References")
    numbered = (
        "equation",
        "Equation",
        "Eq.",
        "algorithm",
        "Algorithm",
        "each of whose classes",
        "for the running variance",
    )
    assert not reference or any(word in reference for word in numbered), reference
    assert not reference or methods.section(METHODS[name], "Differs from the paper")


def test_needs_are_told_apart():
    found = {name: methods.needs(cls) for name, cls in METHODS.items()}
    assert found["SI"] == "losses"
    assert found["GradNorm"] == found["InverseGradientNorm"] == "gradient norms at W"
    assert found["EnCodec"] == "task gradients inside the fork"


def test_a_method_keeps_the_fields_of_its_state():
    balancer = METHODS["GradNorm"](eq.Fork(torch.nn.Linear(2, 2), ("a", "b")))
    kept = balancer.state_dict().keys() - eq.Equal(("a", "b")).state_dict().keys()
    assert set(methods.state(METHODS["GradNorm"])) == kept
    assert methods.state(METHODS["SI"]) == ()
