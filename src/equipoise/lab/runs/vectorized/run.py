"""Runs of one problem, trained together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from time import perf_counter

import torch
from torch import Tensor, nn

from equipoise.balancer import Balancer
from equipoise.lab.networks.network import Network
from equipoise.lab.problem import Problem, Split
from equipoise.lab.record import Record, RunSpec
from equipoise.lab.runs.batches import Batches
from equipoise.lab.runs.checks import check_data
from equipoise.lab.runs.environment import environment
from equipoise.lab.runs.methods import Method, build, source_for
from equipoise.lab.runs.perturbation import perturbed
from equipoise.lab.runs.source import title_of
from equipoise.lab.runs.train import groups_of, reproducible, specify, tasks_of
from equipoise.lab.runs.training import LOGS
from equipoise.lab.runs.vectorized.balancers import StackedBalancers
from equipoise.lab.runs.vectorized.evaluation import StackedEvaluations, stacked
from equipoise.lab.runs.vectorized.logs import StackedLogs, StackedWatch
from equipoise.lab.runs.vectorized.networks import StackedNetworks
from equipoise.lab.runs.vectorized.optimizer import StackedOptimizer

VECTORIZED = frozenset((
    "equal", "static", "single_task", "inverse_initial_loss", "uncertainty", "si", "dwa", "gls", "cov", "imtl_l", "uwso",
    "inverse_loss_variance", "famo", "softadapt", "gradnorm", "gradnorm_validation", "gradnorm_closed_form",
    "gradnorm_log_space",
))  # fmt: skip
"""The methods whose rules `torch.vmap` can follow: those that neither combine task gradients nor draw random numbers."""


def can_be_vectorized(problem: Problem, method: Method) -> bool:
    """Whether `run_together` can do a run: a plain network of linear layers, all labels there, and one of `VECTORIZED`."""
    if method.name not in VECTORIZED or method.settings.get("every", 1) != 1 or method.settings.get("start", 0) != 0:
        return False
    return _is_plain(replace(problem, learning_rate=1.0))


@cache
def _is_plain(problem: Problem) -> bool:
    changed = perturbed(problem)
    network = changed.network()
    if type(network) is not Network or not isinstance(network.fork.shared_layer, nn.Linear):
        return False
    layers = (nn.Linear, nn.ReLU, nn.Tanh, nn.ModuleList)
    plain = all(isinstance(module, layers) for module in network.modules() if not list(module.children()))
    return plain and not changed.splits().train.labelled


def together(problem: type[Problem], spec: RunSpec) -> str:
    """Runs of a class of problems for which this text is equal can be trained together."""
    differing = problem.data_settings | {"learning_rate"}
    settings = {name: value for name, value in spec.problem_settings.items() if name not in differing}
    return repr((spec.problem, sorted(settings.items()), spec.steps, spec.evaluate_every, spec.code))


def run_together(
    problems: Sequence[Problem],
    specs: Sequence[RunSpec],
    *,
    threads: int = 1,
    on_step: Callable[[int], None] | None = None,
) -> list[Record]:
    """Train and evaluate several runs at once.

    Seeds mean the same as in `run`: the same initial parameters, the same batches. The losses of the two agree up to rounding,
    which training makes larger. The records are the same to the last bit whenever the same runs are trained together on the
    same machine; beside others, sums can be rounded otherwise. No time per step is known of a single run; ``train_seconds``
    is its share.

    Args:
        problems: The problem of each run; they differ in the learning rate and in their `Problem.data_settings` alone.
        specs: The specification of each run, with ``vectorized=True``.
        threads: PyTorch's threads.
        on_step: Called now and then with the number of steps done.

    Raises:
        ValueError: A specification is not that of its problem and of this source, or the runs cannot be trained together.
    """
    for problem, spec in zip(problems, specs, strict=True):
        method = Method(spec.method, spec.method_settings)
        if specify(problem, method, spec.seed, steps=spec.steps, vectorized=True) != spec:
            raise ValueError(f"problem {spec.problem!r}: the problem or the source is not the one that was specified")
    if len({together(type(problem), spec) for problem, spec in zip(problems, specs, strict=True)}) != 1:
        raise ValueError("specs: wanted runs that differ in method, seed, learning rate and data alone")
    order = sorted(range(len(specs)), key=lambda i: _rule(specs[i]))
    with reproducible(specs[0], threads):
        records = _Together([problems[i] for i in order], [specs[i] for i in order], threads).finish(on_step)
    by_place = dict(zip(order, records, strict=True))
    return [by_place[i] for i in range(len(specs))]


def _rule(spec: RunSpec) -> str:
    """Runs for which this text is equal have weights by the same rule."""
    settings = {} if spec.method in ("static", "single_task") else spec.method_settings
    return repr((spec.method, sorted(settings.items())))


class _Together:
    """The training of runs that are sorted by their rules."""

    def __init__(self, problems: Sequence[Problem], specs: Sequence[RunSpec], threads: int) -> None:
        self._problems, self._specs, self._threads = problems, specs, threads
        self._spec, self._problem = specs[0], perturbed(problems[0])
        self._tasks = self._problem.tasks
        networks, balancers, self._observes = [], [], []
        for problem, spec in zip(problems, specs, strict=True):
            torch.manual_seed(spec.seed)
            network = self._problem.network()
            method = Method(spec.method, spec.method_settings)
            balancer = build(method, source_for(method, network), perturbed(problem), log_every=1, seed=spec.seed)
            assert isinstance(balancer, Balancer)
            networks.append(network)
            balancers.append(balancer)
            self._observes.append(method.observes)
        self._optimizer = StackedOptimizer(problems, networks, self._spec.steps)
        self._networks = StackedNetworks(networks)
        self._groups = list(_grouped(specs, balancers))
        same = [replace(problem, learning_rate=1.0) for problem in problems]
        different = list(dict.fromkeys(same))
        self._data_of = torch.tensor([different.index(problem) for problem in same])
        data = [check_data(changed.splits(), changed) for changed in map(perturbed, different)]
        self._train = stacked([splits.train for splits in data])
        self._evaluations = StackedEvaluations(self._networks, self._tasks, data, self._data_of)
        rows = Split(torch.arange(len(data[0].train)), {})
        seeds = sorted({spec.seed for spec in specs})
        self._batches = [Batches(rows, self._problem.batch_size, seed) for seed in seeds]
        self._batch_of = torch.tensor([seeds.index(spec.seed) for spec in specs])
        self._log_every = math.ceil(self._spec.steps / LOGS)
        self._logs = StackedLogs(self._tasks)
        self._watch = StackedWatch(self._tasks, len(specs))

    def finish(self, on_step: Callable[[int], None] | None) -> list[Record]:
        """Do all steps."""
        seconds = 0.0
        for step in range(self._spec.steps):
            if step % self._spec.evaluate_every == 0:
                self._evaluations.take(step, self._watch.running)
                self._observe(step)
                if on_step is not None:
                    on_step(step)
            began = perf_counter()
            self._step(step)
            if self._watch.is_due:
                self._evaluations.take(step + 1, self._watch.judge(step + 1))
            seconds += perf_counter() - began
        self._evaluations.take(self._spec.steps, self._watch.judge(self._spec.steps, last=True))
        self._evaluations.take(self._spec.steps, self._watch.running)
        return [self._record(i, seconds / len(self._specs)) for i in range(len(self._specs))]

    def _step(self, number: int) -> None:
        networks = self._networks
        rows = torch.stack([next(batches).inputs for batches in self._batches])[self._batch_of]
        taken = self._data_of.unsqueeze(1), rows
        targets = {task.name: self._train.targets[task.name][taken] for task in self._tasks}
        losses, before, features = networks.losses(self._train.inputs[taken], targets, self._tasks)
        known = losses.detach()
        if number == 0 and any(group.balances for _, group in self._groups):
            _, at_features = networks.gradients(losses, torch.ones_like(known), features, keep=True)
            norms = networks.norms(before.detach(), at_features)
            for runs, group in self._groups:
                if group.balances:
                    group.balance(norms[runs])
        weights = torch.cat([group.weigh(known[runs]) for runs, group in self._groups])
        gradient, at_features = networks.gradients(losses, weights, features)
        logs = number % self._log_every == 0
        norms = self._norms(before.detach(), at_features, everyone=logs)
        self._optimizer.step(networks.parameters, gradient)
        for runs, group in self._groups:
            group.step(known[runs], weights[runs], norms[runs] / weights[runs] if group.needs_norms else None)
        self._watch.see(known)
        if logs:
            self._log(number, known, weights, norms)

    def _norms(self, before: Tensor, at_features: Sequence[Tensor], *, everyone: bool) -> Tensor:
        """The norms of the weighted gradients ``(K, T)``; NaN for a rule that does not ask for them."""
        if everyone:
            return self._networks.norms(before, at_features)
        norms = torch.full((len(before), len(at_features)), math.nan)
        for runs, group in self._groups:
            if group.needs_norms:
                norms[runs] = self._networks.norms(before[runs], [gradient[runs] for gradient in at_features])
        return norms

    def _log(self, step: int, losses: Tensor, weights: Tensor, norms: Tensor) -> None:
        none = torch.full_like(losses[:1], math.nan)
        targets = [
            none.expand(len(losses[runs]), -1) if group.targets is None else group.targets
            for runs, group in self._groups
        ]
        rates = [group.rates for _, group in self._groups]
        self._logs.take(
            step,
            {
                "losses": losses,
                "weights": weights,
                "gradient_norms": norms,
                "targets": torch.cat(targets),
                "training_rates": torch.cat(rates),
            },
        )

    def _observe(self, step: int) -> None:
        """Tell the balancers that ask for it the validation losses."""
        for runs, group in self._groups:
            if self._observes[runs.start]:
                group.observe(self._evaluations.validation_losses(step, runs))

    def _record(self, i: int, seconds: float) -> Record:
        problem, ended = self._problems[i], self._watch.ended[i]
        runs, group = next((runs, group) for runs, group in self._groups if i < runs.stop)
        place = i - runs.start
        return Record(
            spec=self._specs[i],
            tasks=tasks_of(problem),
            curves=self._logs.curves(i, self._spec.steps if ended is None else ended[0]),
            evaluated_at=self._evaluations.steps(i),
            train=self._evaluations.of("train", i),
            validation=self._evaluations.of("validation", i),
            test=self._evaluations.of("test", i),
            train_seconds=seconds,
            skipped_steps=int(group.skipped[place]),
            floor_hits=self._hits(group, "floor_hits", place),
            cap_hits=self._hits(group, "cap_hits", place),
            environment=environment(torch.device("cpu"), self._threads),
            groups=groups_of(problem),
            title=title_of(problem),
            diverged=None if ended is None else ended[1],
            judged_by=problem.judged_by,
        )

    def _hits(self, group: StackedBalancers, name: str, place: int) -> dict[str, int]:
        hits = group.hits(name)
        values = [0] * len(self._tasks) if hits is None else hits[place].tolist()
        return {task.name: value for task, value in zip(self._tasks, values, strict=True)}


def _grouped(specs: Sequence[RunSpec], balancers: Sequence[Balancer]) -> Iterator[tuple[slice, StackedBalancers]]:
    """The runs of every rule, which lie side by side."""
    begin = 0
    while begin < len(specs):
        end = begin
        while end < len(specs) and _rule(specs[end]) == _rule(specs[begin]):
            end += 1
        yield slice(begin, end), StackedBalancers(balancers[begin:end])
        begin = end
