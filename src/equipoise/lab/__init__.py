"""The lab: problems, runs and comparisons of balancers. It needs the extra: ``pip install "equipoise[lab]"``.

A name is imported when it is first asked for, as in `equipoise`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from equipoise.lab.extra import require

if TYPE_CHECKING:
    from equipoise.lab.networks.network import Network as Network
    from equipoise.lab.problem import Problem as Problem
    from equipoise.lab.problem import Split as Split
    from equipoise.lab.problem import Splits as Splits
    from equipoise.lab.problem import Task as Task
    from equipoise.lab.problems import PROBLEMS as PROBLEMS
    from equipoise.lab.record import Curves as Curves
    from equipoise.lab.record import Evaluation as Evaluation
    from equipoise.lab.record import MetricInfo as MetricInfo
    from equipoise.lab.record import Record as Record
    from equipoise.lab.record import RunSpec as RunSpec
    from equipoise.lab.record import TaskInfo as TaskInfo
    from equipoise.lab.runs.methods import METHODS as METHODS
    from equipoise.lab.runs.methods import Method as Method
    from equipoise.lab.runs.methods import build as build
    from equipoise.lab.runs.methods import parse_methods as parse_methods
    from equipoise.lab.runs.source import load_problem as load_problem
    from equipoise.lab.runs.train import run as run
    from equipoise.lab.runs.train import specify as specify
    from equipoise.lab.store.compare import ComparisonError as ComparisonError
    from equipoise.lab.store.compare import Event as Event
    from equipoise.lab.store.compare import compare as compare
    from equipoise.lab.store.store import Store as Store
    from equipoise.lab.studies.run import Result as Result
    from equipoise.lab.studies.run import run_study as run_study
    from equipoise.lab.studies.study import Candidate as Candidate
    from equipoise.lab.studies.study import Range as Range
    from equipoise.lab.studies.study import Simplex as Simplex
    from equipoise.lab.studies.study import Study as Study

_NAMES = {
    "networks.network": "Network",
    "problem": "Problem Split Splits Task",
    "problems": "PROBLEMS",
    "record": "Curves Evaluation MetricInfo Record RunSpec TaskInfo",
    "runs.methods": "METHODS Method build parse_methods",
    "runs.source": "load_problem",
    "runs.train": "run specify",
    "store.compare": "ComparisonError Event compare",
    "store.store": "Store",
    "studies.run": "Result run_study",
    "studies.study": "Candidate Range Simplex Study",
}
"""The public names of every module."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name (PEP 562). It is then an ordinary attribute."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(require(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted({*globals(), *_MODULES})
