"""The lab: problems, runs and comparisons of balancers. It needs the extra: ``pip install "equipoise[lab]"``."""

try:
    from equipoise.lab._compare import ComparisonError as ComparisonError
    from equipoise.lab._compare import Event as Event
    from equipoise.lab._compare import compare as compare
    from equipoise.lab._methods import METHODS as METHODS
    from equipoise.lab._methods import Method as Method
    from equipoise.lab._methods import build as build
    from equipoise.lab._methods import parse_methods as parse_methods
    from equipoise.lab._network import Network as Network
    from equipoise.lab._problem import Problem as Problem
    from equipoise.lab._problem import Split as Split
    from equipoise.lab._problem import Splits as Splits
    from equipoise.lab._problem import Task as Task
    from equipoise.lab._record import Curves as Curves
    from equipoise.lab._record import Evaluation as Evaluation
    from equipoise.lab._record import Record as Record
    from equipoise.lab._record import RunSpec as RunSpec
    from equipoise.lab._record import TaskInfo as TaskInfo
    from equipoise.lab._source import load_problem as load_problem
    from equipoise.lab._store import Store as Store
    from equipoise.lab._train import run as run
    from equipoise.lab._train import specify as specify
    from equipoise.lab.problems import PROBLEMS as PROBLEMS
except ModuleNotFoundError as error:
    raise ImportError(f'the package {error.name!r} is missing: pip install "equipoise[lab]"') from error
