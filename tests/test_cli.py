import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import equipoise
from equipoise import cli
from equipoise.cli.progress import Progress
from equipoise.lab import METHODS, PROBLEMS, Store

TINY = str(Path(__file__).parent / "lab" / "tiny.py")
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]")


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*words, **environment):
        return CliRunner(env={"TERM": "dumb", "FORCE_COLOR": None, **environment}).invoke(
            cli.app, list(map(str, words))
        )

    return run


@pytest.fixture
def compare(invoke):
    def run(*words, problem=TINY, **environment):
        return invoke("compare", problem, "--seeds", 2, "--steps", 6, "--jobs", 1, *words, **environment)

    return run


def test_compare_prints_a_table_writes_the_report_and_goes_on_where_it_was(compare):
    first = compare("--methods", "equal,gradnorm(alpha=0.5)")
    assert first.exit_code == 0, first.output
    for word in (
        "tiny",
        "scale_1 ",
        "scale_10",
        "MeanSquaredError ↓",
        "gradnorm(alpha=0.5)",
        "n = 2",
        "change against equal",
        "±",
    ):
        assert word in first.stdout
    assert first.stdout.splitlines()[-1] == "report: runs/report.html"
    assert "gradnorm(alpha=0.5)" in Path("runs/report.html").read_text(encoding="utf-8")
    assert first.stderr.splitlines()[-1] == "[4/4] tiny, gradnorm(alpha=0.5), seed 1: finished"
    assert not CONTROL.search(first.output)

    again = compare("--methods", "equal,gradnorm(alpha=0.5)", "--report", "elsewhere/page.html")
    assert [line.split(": ")[1] for line in again.stderr.splitlines()] == ["was there already"] * 4
    assert again.stdout == first.stdout.replace("runs/report.html", "elsewhere/page.html")
    assert Path("elsewhere/page.html").is_file()


def test_settings_reach_the_problem(compare):
    assert compare("--methods", "equal", "--set", "scales=(1.0, 2.0, 3.0)", "--set", "batch_size=4").exit_code == 0
    (spec, _) = (record.spec for record in Store("runs").load_all())
    assert spec.problem_settings["scales"] == (1.0, 2.0, 3.0)
    assert spec.problem_settings["batch_size"] == 4
    assert (spec.steps, spec.device, spec.precision) == (6, "cpu", "32-true")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--methods", "nothing"], "unknown method 'nothing'"),
        (["--methods", "gradnorm(beta=1)"], "beta"),
        (["--methods", "gradnorm(alpha='x')"], "setting 'alpha' of method 'gradnorm': wanted float, found 'x'"),
        (["--methods", "gradnorm(alpha=1, alpha=2)"], "method 'gradnorm': setting 'alpha' is given twice"),
        (["--methods", "equal,equal"], "'equal' is given twice"),
        (["--set", "nothing=1"], "'nothing'"),
        (["--set", "batch_size"], "--set: wanted KEY=VALUE, found 'batch_size'"),
        (
            ["--set", "batch_size=4", "--set", "batch_size=8"],
            "--set: wanted one value of 'batch_size', found '4' and '8'",
        ),
        (["--set", "steps=7"], "--set: wanted --steps for the number of steps, found 'steps=7'"),
        (
            ["--set", "scaled_heads=true"],
            "setting 'scaled_heads' of problem 'tiny': wanted True or False, found 'true'",
        ),
        (["--runs", TINY], f"--runs: wanted a file that can be written, found '{TINY}/report.html': Not a directory"),
        (["--report", "."], "--report: wanted a file, found the folder '.'"),
        (["--csv", f"{TINY}/x.csv"], "/tiny.py/x.csv': Not a directory"),
        (["--report", "a", "--csv", "./a"], "--csv: wanted another file than that of --report, found 'a' for both"),
        (["--precision", "3"], "Precision '3' is invalid"),
        (["--device", "nothing"], "nothing"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(compare, words, said):
    result = compare(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("equipoise: ")
    assert said in line
    assert not Path("runs").exists()


@pytest.mark.parametrize("problem", ["nothing", "nothing.py"])
def test_an_unknown_problem_is_one_line_and_exit_code_2(compare, problem):
    result = compare(problem=problem)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "nothing" in result.stderr


def test_an_interrupt_keeps_what_is_finished(compare, monkeypatch):
    show = Progress.show

    def interrupt(progress, event):
        if event.kind == "progressed" and event.spec.seed == 1:
            raise KeyboardInterrupt
        show(progress, event)

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "show", interrupt)
        stopped = compare()
    assert stopped.exit_code == 130
    assert stopped.stdout == ""
    assert "Finished runs are kept in runs; the same command goes on from there." in stopped.stderr
    assert len(Store("runs").load_all()) == 2
    went_on = compare()
    assert went_on.exit_code == 0
    assert went_on.stderr.count("was there already") == 2
    assert went_on.stderr.count("finished") == 2


def test_a_run_that_fails_is_named_and_the_others_are_kept(compare):
    result = compare("--set", "on_training=raise ValueError('no data here')")
    assert result.exit_code == 1
    assert "tiny, equal, seed 0: ValueError: no data here" in result.stderr
    assert "Traceback" not in result.output


def test_a_corrupt_record_is_named_and_run_again(compare, invoke):
    assert compare("--methods", "equal").exit_code == 0
    damaged = sorted(Path("runs").glob("*.json"))[0]
    damaged.write_text(damaged.read_text()[:-20])
    result = compare("--methods", "equal")
    assert result.exit_code == 0
    assert f"corrupt record, left as it is and run again: {damaged}" in result.stderr
    reported = invoke("report", "runs")
    assert reported.exit_code == 0
    assert f"left out a corrupt record: {damaged}" in reported.stderr


def test_report_writes_html_or_markdown(compare, invoke):
    assert compare().exit_code == 0
    page = invoke("report", "runs", "-o", "new/page.html")
    assert page.stdout == "report: new/page.html\n"
    assert Path("new/page.html").is_file()
    tables = invoke("report", "runs", "--markdown")
    assert tables.stdout.startswith("### tiny\n\n| task | metric | equal (n = 2) | gradnorm (n = 2) |")
    written = invoke("report", "runs", "--markdown", "-o", "tables.md")
    assert written.stdout == "tables: tables.md\n"
    assert Path("tables.md").read_text(encoding="utf-8") == tables.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--summary"], "--summary: wanted --markdown beside it, found none"),
        (["--markdown", "--figure", "forest"], "--figure, --markdown: wanted one of them, found both"),
        (["-o", "x.md"], "--output: wanted --markdown for a file that ends in .md, found 'x.md'"),
        (["-o", "x.svg"], "--output: wanted --figure for a file that ends in .svg, found 'x.svg'"),
        (["-o", "x.csv", "--markdown"], "--output: wanted --csv for a file that ends in .csv, found 'x.csv'"),
        (["a file"], "there is no folder 'a file'"),
        (["-o", "runs"], "--output: wanted a file, found the folder 'runs'"),
        (
            ["--csv", "runs/report.html"],
            "--csv: wanted another file than that of --output, found 'runs/report.html' for both",
        ),
    ],
)
def test_words_of_a_report_that_cannot_be_obeyed_are_refused(invoke, words, said):
    Path("runs").mkdir()
    result = invoke("report", "runs", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"equipoise: {said}\n"
    assert not list(Path("runs").iterdir())


def test_report_without_records_is_an_error(invoke):
    Path("empty").mkdir()
    for folder, said in (("nowhere", "there is no folder 'nowhere'"), ("empty", "there is no record in 'empty'")):
        result = invoke("report", folder)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr == f"equipoise: {said}\n"


def test_list_names_everything(invoke):
    result = invoke("list")
    assert result.exit_code == 0
    for name in [*PROBLEMS, *METHODS, "14 tasks", "alpha=1.5", "batch_size=", "weights"]:
        assert name in result.stdout
    assert not CONTROL.search(result.stdout)


def test_a_terminal_shows_bars(compare):
    result = compare("--methods", "equal", FORCE_COLOR="1", COLUMNS="120", TERM="xterm")
    assert result.exit_code == 0
    assert "\x1b[" in result.stderr
    assert "all runs" in result.stderr
    assert "finished" not in result.stderr


@pytest.mark.parametrize("missing", ["typer", "rich.progress"])
def test_without_the_lab_it_says_what_to_install(monkeypatch, missing):
    monkeypatch.delitem(sys.modules, "equipoise.cli")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=re.escape('pip install "equipoise[lab]"')):
        importlib.import_module("equipoise.cli")


def test_help_waits_for_nothing():
    """No time is asserted: what takes the time is not imported."""
    script = (
        "import sys\nfrom equipoise.cli import main\ntry:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'numpy', 'scipy', 'plotly', 'lightning_fabric', 'torchmetrics'} & {*sys.modules}\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    for words in (["--help"], ["--version"], ["compare", "--help"]):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "[]"
        assert done.stdout.strip() == f"equipoise {equipoise.__version__}" or "Usage: equipoise" in done.stdout


def test_an_error_in_a_problem_file_names_its_line_and_the_traceback_is_there_on_request(invoke):
    Path("broken.py").write_text("import math\n\ndef half(x):\n    return x / 0\n\nhalf(1)\n")
    short = invoke("compare", "broken.py")
    assert short.exit_code == 2
    (line,) = short.stderr.splitlines()
    assert line.endswith("ZeroDivisionError: division by zero (broken.py, line 4)")
    long = invoke("compare", "broken.py", "--traceback")
    assert "in half" in long.stderr
    assert long.stderr.splitlines()[-1] == line


def test_an_error_that_no_line_of_a_problem_raises_is_one_line_too(invoke):
    text = Path(TINY).read_text().replace('    """Two linear', '    groups = "no groups"\n    """Two linear')
    Path("mine.py").write_text(text)
    result = invoke("compare", "mine.py")
    assert (result.exit_code, result.stdout) == (2, "")
    said = "AttributeError: 'str' object has no attribute 'values'; --traceback shows where"
    assert result.stderr == f"equipoise: {said}\n"
    assert "in tasks_by_group" in invoke("compare", "mine.py", "--traceback").stderr


def test_an_error_of_any_kind_in_a_part_of_a_problem_is_one_line(invoke):
    text = (
        Path(TINY)
        .read_text()
        .replace('    """Two linear', '    groups = property(lambda self: {}["no such key"])\n    """Two linear')
    )
    Path("mine.py").write_text(text)
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "no such key" in line)
    result = invoke("compare", "mine.py")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"equipoise: KeyError: 'no such key' (mine.py, line {line})\n"


def test_an_error_in_a_run_names_the_line_too(compare):
    text = Path(TINY).read_text().replace("exec(self.code, {})", "raise KeyError('no such column')")
    Path("mine.py").write_text(text)
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "no such column" in line)
    result = compare(problem="mine.py")
    assert result.exit_code == 1
    assert f"KeyError: 'no such column' (mine.py, line {line})" in result.stderr
    assert "Traceback" not in result.stderr
    assert "in forward" in compare("--traceback", problem="mine.py").stderr


def test_several_folders_are_one_report(compare, invoke):
    assert compare("--methods", "equal", "--runs", "one").exit_code == 0
    assert compare("--methods", "gradnorm", "--runs", "two").exit_code == 0
    found = invoke("report", "one", "two", "--markdown", "--reference", "gradnorm")
    assert found.stdout.startswith("### tiny\n\n| task | metric | gradnorm (n = 2) | equal (n = 2) |")
    assert invoke("report", "one", "two").stdout == "report: one/report.html\n"


def test_an_unknown_reference_is_refused(compare):
    result = compare("--reference", "nothing")
    assert result.exit_code == 2
    assert result.stderr == "equipoise: --reference: wanted one of equal, gradnorm; found 'nothing'\n"


def test_a_single_task_is_no_reference_of_other_methods(compare):
    result = compare("--methods", "rlw,single_task(task='scale_1')", "--reference", "single_task(task='scale_1')")
    assert result.exit_code == 2
    said = "--reference: wanted one of rlw; found \"single_task(task='scale_1')\""
    assert result.stderr == f"equipoise: {said}\n"


def test_equal_is_no_reference_where_it_is_not_run(compare):
    result = compare("--methods", "rlw,si", "--reference", "equal")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "equipoise: --reference: wanted one of rlw, si; found 'equal'\n"


def test_a_report_refuses_a_reference_that_no_run_has_and_names_the_tables_that_lack_it(compare, invoke):
    assert compare().exit_code == 0
    refused = invoke("report", "runs", "--reference", "nothing", "--csv", "numbers.csv")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr == "equipoise: reference: wanted one of equal, gradnorm; found 'nothing'\n"
    assert not Path("numbers.csv").exists()
    assert compare("--methods", "equal", "--set", "batch_size=4").exit_code == 0
    found = invoke("report", "runs", "--reference", "gradnorm")
    assert found.exit_code == 0
    assert found.stderr == "equipoise: tiny(batch_size=4): no run of gradnorm; compared with equal\n"


def test_a_figure_alone_is_an_svg(compare, invoke):
    assert compare().exit_code == 0
    shown = invoke("report", "runs", "--figure", "forest")
    assert shown.stdout.startswith("<svg ")
    assert invoke("report", "runs", "--figure", "forest", "-o", "new/forest.svg").stdout == "forest: new/forest.svg\n"
    assert Path("new/forest.svg").read_text(encoding="utf-8") == shown.stdout
    assert compare("--set", "batch_size=4").exit_code == 0
    several = invoke("report", "runs", "--figure", "forest")
    assert several.exit_code == 2
    assert "wanted records of one comparison, found 2: " in several.stderr
    assert all(title in several.stderr for title in ("tiny(batch_size=4)", "tiny: batch_size 8"))


def test_a_run_that_diverges_is_named_and_the_exit_status_is_1(compare):
    result = compare("--set", "learning_rate=1e30", "--csv", "numbers.csv", "--methods", "equal")
    assert result.exit_code == 1, result.output
    assert "equipoise: tiny, equal, seed 0: diverged; " in result.stderr
    assert "run" in result.stdout
    assert "diverged_runs" in Path("numbers.csv").read_text(encoding="utf-8")


def test_a_message_with_escape_sequences_is_written_out(compare):
    for result in (compare("--set", "on_training=raise ValueError('\x1b[31mred')"), compare("--methods", "\x1b[2Jx")):
        assert result.exit_code in (1, 2)
        assert not CONTROL.search(result.output)
        assert "x1b[" in result.stderr


def test_a_reader_that_has_seen_enough_and_an_encoding_without_our_signs_cost_no_report(compare):
    assert compare().exit_code == 0
    words = ["compare", TINY, "--seeds", "2", "--steps", "6", "--jobs", "1"]
    script = "from equipoise.cli import main; main()"
    for given, name in (({"PYTHONIOENCODING": "ascii"}, "signs.html"), ({}, "pipe.html")):
        done = subprocess.Popen(
            [sys.executable, "-c", script, *words, "--report", name],
            env={**os.environ, **given},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        if not given:
            done.stdout.close()
            done.stdout = None
        text, errors = done.communicate()
        assert b"equipoise:" not in errors
        assert text is None or b"\\u2193" in text
        assert Path(name).is_file()
