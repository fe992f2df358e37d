"""The methods that a comparison knows, and how they are written on the command line."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from equipoise.balancer import Balancer
from equipoise.combine import EnCodec, GradDrop
from equipoise.engine import Fork, PerLoss
from equipoise.hierarchy import Hierarchy
from equipoise.lab.networks.network import ForkTree, Network
from equipoise.lab.problem import Problem
from equipoise.lab.runs.aggregators import aligned_mtl, cagrad, imtl_g, mgda, nash_mtl, pcgrad, upgrad
from equipoise.lab.runs.nested import leaves, nested
from equipoise.lab.runs.single_task import SingleTask
from equipoise.lab.settings import read_settings, unknown, written
from equipoise.methods import (
    DWA,
    FAMO,
    GLS,
    IMTLL,
    RLW,
    SI,
    STCH,
    UWSO,
    CoV,
    Equal,
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


def static(tasks: Fork, weights: Mapping[str, float] | tuple[float, ...], *, every: int | None = None) -> Static:
    """`Static`, with its weights by task name or in task order.

    Raises:
        ValueError: There is not one weight per task, or `Static` refuses them.
    """
    if not isinstance(weights, Mapping):
        if len(weights) != len(tasks.tasks):
            raise ValueError(f"weights: wanted one for each of the tasks {', '.join(tasks.tasks)}; found {weights}")
        weights = dict(zip(tasks.tasks, weights, strict=True))
    return Static(tasks, weights, every=every)


def gradnorm_validation(fork: Fork, alpha: float = 1.5, *, lr: float = 0.025) -> GradNorm:
    """`GradNorm` whose training rates are those of the validation losses, which a run hands in whenever it evaluates."""
    return GradNorm(fork, alpha, lr=lr)


METHODS: dict[str, tuple[Callable[..., Balancer | Hierarchy], str]] = {
    "equal": (Equal, "every weight is 1"),
    "static": (static, "given weights, for instance static(weights=(1, 2))"),
    "single_task": (SingleTask, "one task alone, for instance single_task(task='a'), the base of delta_m"),
    "inverse_initial_loss": (InverseInitialLoss, "constant weights proportional to 1 / L(0)"),
    "uncertainty": (Uncertainty, "homoscedastic uncertainty weighting (Kendall et al. 2018)"),
    "si": (SI, "weights 1 / L, the gradient of the sum of log losses (Navon et al. 2022)"),
    "dwa": (DWA, "dynamic weight average over epochs, dwa(epoch_steps=100) (Liu et al. 2019)"),
    "rlw": (RLW, "random weights at every step (Lin et al. 2022)"),
    "gls": (GLS, "the geometric mean of the losses (Chennupati et al. 2019)"),
    "inverse_loss_variance": (InverseLossVariance, "weights proportional to 1 / the running variance of the loss"),
    "cov": (CoV, "coefficient of variation of the losses (Groenendijk et al. 2021)"),
    "imtl_l": (IMTLL, "IMTL-L: learned scales that bring every loss to 1 (Liu et al. 2021)"),
    "uwso": (UWSO, "UW-SO: softmax of the inverse losses (Kirchdorfer et al. 2024)"),
    "stch": (STCH, "smooth Tchebycheff: a smooth maximum of the relative losses (Lin et al. 2024)"),
    "famo": (FAMO, "equal relative fall of all losses, without task gradients (Liu et al. 2023)"),
    "softadapt": (SoftAdapt, "softmax of the slopes of the losses (Heydari et al. 2019)"),
    "relobralo": (ReLoBRaLo, "relative loss balancing with random lookback (Bischof and Kraus 2021)"),
    "gradnorm": (GradNorm, "gradient normalization (Chen et al. 2018)"),
    "gradnorm_validation": (gradnorm_validation, "GradNorm with training rates from the validation losses"),
    "gradnorm_closed_form": (GradNormClosedForm, "GradNorm's steady state, taken at once: no learning rate"),
    "gradnorm_log_space": (GradNormLogSpace, "GradNorm that moves the weights by factors"),
    "upgrad": (upgrad, "task gradients projected so that none conflicts, by TorchJD (Quinton and Rey 2024)"),
    "mgda": (mgda, "the smallest convex combination of the task gradients, by TorchJD (Désidéri 2012)"),
    "pcgrad": (pcgrad, "gradient surgery, by TorchJD (Yu et al. 2020)"),
    "cagrad": (cagrad, "conflict-averse gradient descent, by TorchJD (Liu et al. 2021)"),
    "nash_mtl": (nash_mtl, "the Nash bargaining solution, by TorchJD (Navon et al. 2022)"),
    "imtl_g": (imtl_g, "IMTL-G: equal projections on all task gradients, by TorchJD (Liu et al. 2021)"),
    "aligned_mtl": (aligned_mtl, "aligned principal components, by TorchJD (Senushkin et al. 2023)"),
    "graddrop": (GradDrop, "gradient sign dropout at the features (Chen et al. 2020)"),
    "encodec": (EnCodec, "given shares of the gradient at the features (Défossez et al. 2022)"),
    "inverse_gradient_norm": (
        InverseGradientNorm,
        'the "grad norm" of physics-informed networks (Wang et al. 2023)',
    ),
    "nested": (
        nested,
        "a balancer per group of tasks below one for the groups, nested(root='gradnorm', groups='equal')",
    ),
}
"""The builder of each method's balancer, and a line about it."""


@dataclass(frozen=True)
class Method:
    """A method and those of its settings that differ from the defaults. ``str(method)`` is its label.

    Attributes:
        name: A key of ``METHODS``.
        settings: Keyword arguments of the method's balancer. Those equal to the default are dropped, so that equal methods
            are equal.

    Raises:
        ValueError: The method or a setting is unknown, a value does not fit, or a setting without default is missing.

    Example:
        >>> str(Method("gradnorm", {"lr": 0.01, "alpha": 1.5}))
        'gradnorm(lr=0.01)'
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise ValueError(unknown("method", self.name, METHODS))
        known = parameters_of(self.name)
        owner = f"method {self.name!r}"
        read = read_settings(owner, self.settings, hints_of(self.name))
        for name, parameter in known.items():
            if parameter.default is parameter.empty and name not in read:
                raise ValueError(f"{owner} needs the setting {name!r}")
        if self.name == "nested":
            read = {name: _balancer_of_a_fork(name, text) for name, text in read.items()}
        differing = {name: read[name] for name in sorted(read) if read[name] != known[name].default}
        object.__setattr__(self, "settings", differing)

    @property
    def observes(self) -> bool:
        """Whether its balancer is to be told the validation losses."""
        return self.name == "gradnorm_validation"

    def __str__(self) -> str:
        return written(self.name, self.settings)


def parse_methods(text: str) -> list[Method]:
    """Read a list of methods as it is written on the command line.

    Args:
        text: Names, each with its settings in brackets if it has any, such as ``equal,gradnorm(alpha=0.5, lr=0.01)``.

    Raises:
        ValueError: The text cannot be read, names a method twice, or a method or a setting is not known.

    Example:
        >>> [str(method) for method in parse_methods("equal,gradnorm(alpha=0.5)")]
        ['equal', 'gradnorm(alpha=0.5)']
    """
    try:
        tree = ast.parse(f"[{text}]", mode="eval").body
    except SyntaxError:
        tree = None
    if not isinstance(tree, ast.List) or not tree.elts:
        raise ValueError(f"methods: wanted a list such as 'equal,gradnorm(alpha=0.5)', found {text!r}")
    methods = [_read_method(node) for node in tree.elts]
    for method in methods:
        if methods.count(method) > 1:
            raise ValueError(f"methods: {str(method)!r} is given twice")
    return methods


def source_for(method: Method, network: Network) -> Fork | PerLoss | ForkTree:
    """Where the method measures gradient norms in the network.

    Raises:
        ValueError: The method is nested, and the network has no groups.
    """
    if method.name != "nested":
        return network.source
    try:
        return network.nest()
    except ValueError as error:
        raise ValueError(f"method {str(method)!r}: {error}") from error


def build(
    method: Method, source: Fork | PerLoss | ForkTree, problem: Problem, *, log_every: int, seed: int = 0
) -> Balancer | Hierarchy:
    """Build the method's balancer.

    Args:
        method: The method.
        source: Where it measures gradient norms, as `source_for` tells.
        problem: Tells the kinds of the tasks to a method that asks for them.
        log_every: A method that needs no gradient norms measures them at each ``log_every``-th step, for the log.
        seed: That of the run, for a method that draws random numbers.

    Raises:
        ValueError: The balancer refuses a setting; the message names the method.
    """
    kinds = {task.name: task.kind for task in problem.tasks}
    try:
        return _build(method, source, kinds, log_every, seed)
    except ValueError as error:
        raise ValueError(f"method {str(method)!r}: {error}") from error


def _build(
    method: Method, source: Fork | PerLoss | ForkTree, kinds: Mapping[str, str], log_every: int, seed: int
) -> Balancer | Hierarchy:
    factory, _ = METHODS[method.name]
    parameters = inspect.signature(factory).parameters
    given: dict[str, Any] = {}
    if "kinds" in parameters:
        given["kinds"] = kinds
    if "seed" in parameters:
        given["seed"] = seed
    if "every" in parameters and parameters["every"].default is None:
        given["every"] = log_every
    if "build_at" in parameters:

        def build_at(text: str, tree: ForkTree) -> Any:
            (one,) = parse_methods(text)
            return _build(one, tree.fork, _kinds_at(tree, kinds), log_every, seed)

        given["build_at"] = build_at
    return factory(source, **given, **method.settings)


def _kinds_at(tree: ForkTree, kinds: Mapping[str, str]) -> dict[str, str]:
    """The kind of every task of a fork; that of a group is the kind of all its tasks, or one that methods refuse."""
    found = {task: {kinds[leaf] for leaf in leaves(tree.groups[task])} for task in tree.groups}
    found |= {task: {kinds[task]} for task in tree.fork.tasks if task not in tree.groups}
    return {task: found[task].pop() if len(found[task]) == 1 else "mixed" for task in tree.fork.tasks}


def parameters_of(name: str) -> dict[str, inspect.Parameter]:
    """The settings of a method: all parameters of its balancer but those that `build` supplies.

    A step of a run has one backward pass, so that nothing is accumulated.
    """
    factory, _ = METHODS[name]
    _, *rest = inspect.signature(factory).parameters.values()
    supplied = ("kinds", "seed", "accumulate", "build_at")
    return {p.name: p for p in rest if p.name not in supplied and (p.name != "every" or p.default is not None)}


def _balancer_of_a_fork(setting: str, text: str) -> str:
    """The method that a nested one has at a fork, as `Method` writes it."""
    methods = parse_methods(text)
    if len(methods) != 1 or methods[0].name == "nested":
        raise ValueError(f"setting {setting!r} of method 'nested': wanted one method for each fork, found {text!r}")
    return str(methods[0])


def hints_of(name: str) -> dict[str, Any]:
    """The annotation of every setting of a method.

    Raises:
        ValueError: A setting has none.
    """
    factory, _ = METHODS[name]
    hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    known = parameters_of(name)
    for setting in known:
        if setting not in hints:
            raise ValueError(f"method {name!r}: wanted an annotation of its setting {setting!r}, found none")
    return {setting: hints[setting] for setting in known}


def _read_method(node: ast.expr) -> Method:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise ValueError(unknown("method", ast.unparse(node), METHODS))
    name = call.func.id
    if call.args or any(keyword.arg is None for keyword in call.keywords):
        raise ValueError(f"method {name!r}: wanted settings by name such as alpha=0.5, found {ast.unparse(node)!r}")
    given = [keyword.arg for keyword in call.keywords]
    for setting in given:
        if given.count(setting) > 1:
            raise ValueError(f"method {name!r}: setting {setting!r} is given twice")
    return Method(name, {keyword.arg: _read_value(name, keyword) for keyword in call.keywords if keyword.arg})


def _read_value(method: str, setting: ast.keyword) -> Any:
    try:
        return ast.literal_eval(setting.value)
    except ValueError:
        raise ValueError(
            f"setting {setting.arg!r} of method {method!r}: wanted a number, a string or another literal, "
            f"found {ast.unparse(setting.value)!r}"
        ) from None
