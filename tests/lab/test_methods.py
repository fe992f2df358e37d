"""Methods as they are written on the command line."""

import inspect
import re
import sys
from pathlib import Path

import pytest

from equipoise import (
    DWA,
    FAMO,
    GLS,
    IMTLL,
    RLW,
    SI,
    STCH,
    UWSO,
    Aggregated,
    CoV,
    EnCodec,
    Equal,
    GradDrop,
    GradNorm,
    GradNormClosedForm,
    GradNormLogSpace,
    InverseGradientNorm,
    InverseInitialLoss,
    InverseLossVariance,
    ReLoBRaLo,
    SoftAdapt,
    Static,
    Uncertainty,
)
from equipoise.lab import METHODS, Method, build, load_problem, parse_methods

TINY = Path(__file__).with_name("tiny.py")


def test_a_list_with_settings_is_read():
    methods = parse_methods("equal, gradnorm(alpha=0.5, lr=0.01),static(weights=(1,2)),")
    assert [str(method) for method in methods] == [
        "equal",
        "gradnorm(alpha=0.5, lr=0.01)",
        "static(weights=(1.0, 2.0))",
    ]
    assert parse_methods(",".join(map(str, methods))) == methods


class WithoutAnnotation(Equal):
    def __init__(self, tasks, *, decay=0.9):
        super().__init__(tasks)


def test_a_setting_without_annotation_is_named(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", (WithoutAnnotation, "a method of one's own"))
    with pytest.raises(ValueError, match="method 'mine': wanted an annotation of its setting 'decay', found none"):
        Method("mine", {"decay": 0.5})


def test_settings_equal_to_the_default_are_no_settings():
    assert parse_methods("gradnorm(alpha=1.5, every=1)") == parse_methods("gradnorm")
    assert str(Method("gradnorm", {"lr": 1, "alpha": 2})) == "gradnorm(alpha=2.0, lr=1.0)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "methods: wanted a list such as .*, found ''"),
        ("equal gradnorm", "methods: wanted a list such as .*, found 'equal gradnorm'"),
        ("gradnrom", "unknown method 'gradnrom': did you mean 'gradnorm'.*Known: equal, static"),
        ("inverse-initial-loss", "unknown method .*did you mean 'inverse_initial_loss'"),
        ("x", "unknown method 'x': Known: equal"),
        ("gradnorm(alpa=1)", "unknown setting of method 'gradnorm' 'alpa': did you mean 'alpha'.*Known: alpha, every"),
        ("equal(every=2)", "unknown setting of method 'equal' 'every': Known: none"),
        ("uncertainty(kinds='regression')", "unknown setting of method 'uncertainty' 'kinds'"),
        ("gradnorm(accumulate=True)", "unknown setting of method 'gradnorm' 'accumulate'"),
        ("dwa", "method 'dwa' needs the setting 'epoch_steps'"),
        ("gradnorm(alpha='big')", "setting 'alpha' of method 'gradnorm': wanted float, found 'big'"),
        ("gradnorm(every=1.5)", "setting 'every' of method 'gradnorm': wanted int, found 1.5"),
        ("gradnorm(alpha=x)", "setting 'alpha' of method 'gradnorm': wanted a number.*found 'x'"),
        ("gradnorm(0.5)", "method 'gradnorm': wanted settings by name"),
        ("gradnorm(**{})", "method 'gradnorm': wanted settings by name"),
        ("static", "method 'static' needs the setting 'weights'"),
        ("equal,gradnorm,equal", "methods: 'equal' is given twice"),
        ("gradnorm,gradnorm(alpha=1.5)", "methods: 'gradnorm' is given twice"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(text, message):
    with pytest.raises(ValueError, match=message):
        parse_methods(text)


def built(text):
    problem = load_problem(TINY)
    (method,) = parse_methods(text)
    return build(method, problem.network().source, problem, log_every=7)


@pytest.mark.parametrize(
    ("text", "cls", "every"),
    [
        ("equal", Equal, 7),
        ("static(weights=(1, 3))", Static, 7),
        ("inverse_initial_loss(initial_steps=2)", InverseInitialLoss, 7),
        ("uncertainty(lr=0.1)", Uncertainty, 7),
        ("si", SI, 7),
        ("dwa(epoch_steps=5)", DWA, 7),
        ("rlw", RLW, 7),
        ("gls", GLS, 7),
        ("inverse_loss_variance(decay=0.9)", InverseLossVariance, 7),
        ("cov", CoV, 7),
        ("imtl_l(lr=0.1)", IMTLL, 7),
        ("uwso(temperature=2.0)", UWSO, 7),
        ("stch(mu=0.5)", STCH, 7),
        ("famo(gamma=0.001)", FAMO, 7),
        ("softadapt(beta=1.0)", SoftAdapt, 7),
        ("relobralo(alpha=0.99)", ReLoBRaLo, 7),
        ("gradnorm", GradNorm, 1),
        ("gradnorm(every=4)", GradNorm, 4),
        ("gradnorm(initial_weights='balanced')", GradNorm, 1),
        ("gradnorm(initial_weights={'scale_1': 1, 'scale_10': 3})", GradNorm, 1),
        ("gradnorm_closed_form(compare_absent=True, decay=0.5)", GradNormClosedForm, 1),
        ("gradnorm_validation(lr=0.1)", GradNorm, 1),
        ("gradnorm_log_space(lr=0.1)", GradNormLogSpace, 1),
        ("upgrad", Aggregated, None),
        ("mgda(at='features')", Aggregated, None),
        ("pcgrad", Aggregated, None),
        ("cagrad(c=0.4)", Aggregated, None),
        ("nash_mtl(max_norm=0.0)", Aggregated, None),
        ("imtl_g", Aggregated, None),
        ("aligned_mtl", Aggregated, None),
        ("graddrop", GradDrop, None),
        ("encodec(lambdas={'scale_1': 1, 'scale_10': 2}, decay=0.9)", EnCodec, None),
        ("inverse_gradient_norm(momentum=0.5)", InverseGradientNorm, 1000),
    ],
)
def test_every_method_is_built_with_its_settings(text, cls, every):
    balancer = built(text)
    assert type(balancer) is cls
    assert balancer.tasks == ("scale_1", "scale_10")
    assert re.findall(r"\bevery=(\d+)", repr(balancer)) == ([] if every is None else [str(every)])


def test_every_known_method_is_tested():
    assert list(METHODS) == [
        "equal",
        "static",
        "single_task",
        "inverse_initial_loss",
        "uncertainty",
        "si",
        "dwa",
        "rlw",
        "gls",
        "inverse_loss_variance",
        "cov",
        "imtl_l",
        "uwso",
        "stch",
        "famo",
        "softadapt",
        "relobralo",
        "gradnorm",
        "gradnorm_validation",
        "gradnorm_closed_form",
        "gradnorm_log_space",
        "upgrad",
        "mgda",
        "pcgrad",
        "cagrad",
        "nash_mtl",
        "imtl_g",
        "aligned_mtl",
        "graddrop",
        "encodec",
        "inverse_gradient_norm",
        "nested",
    ]
    for factory, description in METHODS.values():
        assert callable(factory)
        assert inspect.cleandoc(description)


def test_random_numbers_are_those_of_the_run():
    """Runs with different seeds differ in them too, and no setting can say otherwise."""
    problem = load_problem(TINY)
    for name in ("rlw", "relobralo", "graddrop", "pcgrad"):
        assert "seed=5" in repr(build(Method(name), problem.network().source, problem, log_every=7, seed=5))
        with pytest.raises(ValueError, match=f"unknown setting of method {name!r} 'seed'"):
            Method(name, {"seed": 3})


@pytest.mark.parametrize("weights", ["(1, 3)", "{'scale_10': 3, 'scale_1': 1}"])
def test_static_weights_come_in_task_order_or_by_name(weights):
    assert built(f"static(weights={weights})").weights.tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("static(weights=(1, 2, 3))", "method 'static.*': weights: wanted one for each of the tasks scale_1, scale_10"),
        ("static(weights={'scale_1': 1})", "method .static.*: weights: task 'scale_10' is missing"),
        ("gradnorm(alpha=-1)", r"method 'gradnorm\(alpha=-1.0\)': alpha must be at least 0"),
    ],
)
def test_what_the_balancer_refuses_names_the_method(text, message):
    with pytest.raises(ValueError, match=message):
        built(text)


@pytest.mark.parametrize(("text", "name"), [("upgrad", "UPGrad"), ("nash_mtl", "NashMTL"), ("pcgrad", "PCGrad")])
def test_an_aggregator_works_at_the_shared_layer_unless_told_otherwise(text, name):
    balancer = built(text)
    assert type(balancer.aggregator).__name__ == name
    assert "at='shared_layer'" in repr(balancer)
    assert "at='features'" in repr(built(f"{text}(at='features')"))


def test_without_torchjd_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchjd", None)
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    with pytest.raises(ImportError, match=r"the package 'torchjd.*' is missing: pip install \"equipoise\[torchjd\]\""):
        built("upgrad")
