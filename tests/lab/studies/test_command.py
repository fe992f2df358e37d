"""``equipoise study`` and the workers of a cluster."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from equipoise.cli import app
from equipoise.lab import Store, compare, load_problem, parse_methods

TINY = Path(__file__).parents[1] / "tiny.py"
DECLARATION = """
from equipoise.lab import Candidate, Range, Study, load_problem

study = Study(
    title="A <b>study</b>", expectation="None & nothing.", problems=[load_problem({tiny!r})],
    methods=[Candidate("equal"), Candidate("gradnorm")], space={{"learning_rate": Range(1e-3, 1e-1, log=True)}},
    trials=2, tuning_seeds=[0], seeds=[1, 2], steps=4,
)
"""


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(DECLARATION.format(tiny=str(TINY)))

    def run(*words):
        return CliRunner(env={"TERM": "dumb"}).invoke(app, ["study", *words])

    return run


def test_the_command_prints_the_tables_and_writes_both_reports(invoke, tmp_path):
    result = invoke("mine.py", "--jobs", "1")
    assert result.exit_code == 0, result.output
    for text in (
        "A <b>study</b>",
        "Expected beforehand: None & nothing.",
        "learning_rate 0.0",
        "Task-normalised test loss",
    ):
        assert text in result.stdout
    page = (tmp_path / "runs" / "mine" / "report.html").read_text()
    assert "A &lt;b&gt;study&lt;/b&gt;" in page
    assert "equipoise study mine.py" in page
    assert "training steps of the search" in page
    assert "equipoise study mine.py" in (tmp_path / "runs" / "mine" / "report.md").read_text()
    again = invoke("mine.py", "--jobs", "1")
    assert "was there already" in again.stderr
    assert "finished" not in again.stderr
    assert again.stdout == result.stdout


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_run(invoke):
    result = invoke("mine.py", "--runs", "mine.py")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "equipoise: --runs: wanted a file that can be written, found 'mine.py/report.html': "
    )
    assert len(result.stderr.splitlines()) == 1


SETS = """
from equipoise.lab import Candidate, Range, Study, load_problem

study = Study(
    title="Sets", expectation="None.", methods=[Candidate("equal")], space={"learning_rate": Range(1e-3, 1e-1, log=True)},
    problems=[
        load_problem("unequal", {"width": width, "train_samples": 64, "validation_samples": 8, "test_samples": 8})
        for width in (3, 4)
    ],
    trials=1, tuning_seeds=[0], seeds=[1], steps=4, sampler="sobol", vectorized=True,
)
"""


def test_runs_of_one_name_in_several_sets_do_not_get_in_each_others_way(invoke, tmp_path):
    (tmp_path / "sets.py").write_text(SETS)
    result = invoke("sets.py", "--jobs", "1")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("unequal, equal, seed 0: finished") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "mine.py: wanted one Study, found none"),
        ("1 / 0", "cannot read the study file mine.py: ZeroDivisionError"),
    ],
)
def test_a_file_without_a_study_is_refused(text, message, invoke, tmp_path):
    (tmp_path / "mine.py").write_text(text)
    result = invoke("mine.py")
    assert result.exit_code == 2
    assert message in result.stderr
    assert "there is no study file" in invoke("other.py").stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Dask and of what it imports
def test_a_dask_cluster_does_the_runs(tmp_path):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        arguments = [load_problem(TINY)], parse_methods("equal,gradnorm"), range(2), 5
        there = compare(*arguments, store=Store(tmp_path / "there"), cluster=cluster.scheduler_address)
    here = compare(*arguments, store=Store(tmp_path / "here"), jobs=1)
    assert [record.test for record in there] == [record.test for record in here]
    assert len(Store(tmp_path / "there").load_all()) == 4


def test_any_backend_of_joblib_does_the_runs_and_names_what_fails(tmp_path):
    problems = [load_problem(TINY), load_problem(TINY, {"on_training": "1 / 0"})]
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="1 of 2 runs failed\ntiny.*ZeroDivisionError"):
        compare(problems, parse_methods("equal"), [0], 5, store=store, cluster="sequential")
    assert len(store.load_all()) == 1
