"""What the README says is what the records and the code say."""

import re
import subprocess
import sys

import pytest
from generate import pages, readme

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
