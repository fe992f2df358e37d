"""The lab: problems, runs and comparisons of balancers. It needs the extra: ``pip install "equipoise[lab]"``."""

try:
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
except ModuleNotFoundError as error:
    raise ImportError(f'the package {error.name!r} is missing: pip install "equipoise[lab]"') from error
