from pathlib import Path

import pytest
from typer.testing import CliRunner

from equipoise import cli
from equipoise.bench import methods
from equipoise.bench import run as run_module


@pytest.fixture
def invoke(tmp_path, monkeypatch, make_record):
    """Runs the command, in an empty folder; what would be measured is in ``asked``, and comes back at once."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def measure(name, workload, methods, **how):
        asked.append((name, methods, how["rounds"], how["device"], how["threads"], how["limit"]))
        if name == "mlp_2":
            raise RuntimeError("workload 'mlp_2': the plain step could not be run")
        how["say"](f"{name}: busy")
        return make_record(name)

    monkeypatch.setattr(run_module, "measure", measure)

    def run(*words):
        return CliRunner(env={"TERM": "dumb", "FORCE_COLOR": None}).invoke(cli.app, ["bench", *map(str, words)])

    run.asked = asked
    return run


def test_it_prints_a_table_and_keeps_the_record(invoke):
    found = invoke(
        "--workloads", "mlp_3,segnet", "--methods", "plain, gradnorm", "--rounds", 3, "--threads", 1, "-o", "kept"
    )
    assert found.exit_code == 0, found.output
    assert [call[:2] for call in invoke.asked] == [(n, ["plain", "plain", "gradnorm"]) for n in ("mlp_3", "segnet")]
    assert invoke.asked[0][2:] == (3, "cpu", 1, 5.0)
    assert "2.55 (1.95 to 3.15)" in found.stdout
    assert found.stdout.splitlines()[-1] == "record: kept/segnet-cpu.json"
    assert found.stderr.splitlines() == ["mlp_3: busy", "segnet: busy"]
    assert sorted(path.name for path in Path("kept").iterdir()) == ["mlp_3-cpu.json", "segnet-cpu.json"]


def test_everything_is_the_default(invoke):
    invoke()
    assert len(invoke.asked) == 16
    assert set(invoke.asked[0][1]) == set(methods.METHODS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workloads", "nothing"], "unknown workload 'nothing'; wanted some of segnet, resnet_fcn, mlp_2"),
        (["--methods", "plain,nothing"], "unknown method 'nothing'; wanted some of plain, gradnorm"),
        (["--device", "tpu"], "--device: wanted cpu or cuda, found 'tpu'"),
        (
            ["-o", __file__],
            f"--output: wanted a file that can be written, found '{__file__}/record.json': Not a directory",
        ),
        (["--device", "cuda", "--workloads", "mlp_3_ddp_2"], "unknown workload 'mlp_3_ddp_2'"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(invoke, words, said):
    found = invoke(*words)
    assert found.exit_code == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith(f"equipoise: {said}")
    assert invoke.asked == []


def test_it_says_what_is_not_installed(invoke, monkeypatch):
    monkeypatch.setattr(methods, "find_spec", lambda name: None)
    found = invoke("--workloads", "mlp_3")
    assert found.exit_code == 0
    assert found.stderr.splitlines() == [
        'equipoise: gradnorm_pytorch is not installed: pip install "equipoise[lab,bench]"; methods that need it are left out',
        'equipoise: torchjd is not installed: pip install "equipoise[lab,bench]"; methods that need it are left out',
        "mlp_3: busy",
    ]


def test_a_workload_that_fails_does_not_stop_the_others(invoke):
    found = invoke("--workloads", "mlp_2,mlp_3", "--methods", "plain")
    assert found.exit_code == 1
    assert "equipoise: workload 'mlp_2': the plain step could not be run" in found.stderr
    assert found.stdout.splitlines()[-1] == "record: runs/cost/mlp_3-cpu.json"
