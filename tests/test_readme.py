"""What the README says is what the records and the code say."""

import re
import subprocess
import sys

import pytest
from generate import pages, readme
from generate.answers import when
from generate.answers.condensed import table
from generate.answers.contrasts import contrast
from generate.answers.measures import LOSS
from generate.answers.records import results

TEXT = readme.README.read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("name", readme.TABLES)
def test_its_tables_are_generated(name):
    assert pages.parts(readme.README, name)[1] == readme.TABLES[name]()


def test_the_diff_turns_one_loop_into_the_other():
    (diff,) = blocks("diff")
    lines = diff.splitlines()
    assert any(line.startswith("+") for line in lines)
    assert any(line.startswith("-") for line in lines)
    after = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    compile(after, "README.md", "exec")


def test_the_map_says_what_the_advice_says():
    """Either form of GradNorm is ahead of equal weights more often than behind at tenfold scales only; 1 / L(0) oftener."""
    cells = table()["cells"]
    advantage = {}
    for method in (*when.METHODS, "1 / L(0)"):
        for ratio in sorted({when._scale(cell) for cell in cells}):
            some = [cell for cell in cells if when._scale(cell) == ratio]
            advantage[method, ratio] = when._found(some, method, "equal")
    for (method, ratio), (ahead, behind) in advantage.items():
        assert method == "1 / L(0)" or (ahead > behind) == (ratio == 10), (method, ratio)
        assert ahead <= advantage["1 / L(0)", ratio][0]


def test_the_physics_informed_network_says_what_the_advice_says():
    comparison = results("pinn")[0].comparison
    means = {label: LOSS.mean(comparison, label) for label in comparison.runs}
    assert min(means, key=means.get) == "uncertainty"
    assert means["1 / L(0)"] > 0.98  # the error of a constant is 0.994
    outcomes = {label: contrast(comparison, "pinn", label, "equal").outcome for label in means if label != "equal"}
    assert outcomes["GradNorm"] == "worse"
    assert outcomes["closed form, alpha 0, balanced"] == "not told apart"


def test_its_two_commands_are_there():
    makefile = (pages.ROOT / "Makefile").read_text()
    for command in ("demo", "test"):
        assert f"make {command}" in TEXT
        assert f"\n{command}: " in makefile


def test_the_problem_in_the_contributing_guide_runs(tmp_path):
    text = (pages.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "waves.py").write_text(code)
    command = [sys.executable, "-c", "from equipoise.cli import main; main()", "compare", "waves.py", "--methods"]
    command += ["equal,gradnorm", "--seeds", "2", "--steps", "20", "--jobs", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "report.html").exists()
