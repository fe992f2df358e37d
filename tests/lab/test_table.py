import math
import shlex

import pytest
from rich.console import Console

from equipoise.lab.results.statistics import Cell, Estimate, group
from equipoise.lab.results.table import command, format_cell, format_estimate, provenance, to_markdown, to_rich


@pytest.mark.parametrize(
    ("mean", "half_width", "n", "text"),
    [
        (0.53218, 0.01034, 5, "0.532 ± 0.010"),
        (12345.6, 210.0, 3, "12346 ± 210"),
        (-0.5, 0.3, 3, "-0.50 ± 0.30"),
        (-0.01, 13.0, 3, "0 ± 13"),
        (3.0, 10.0, 3, "3 ± 10"),
        (0.0, 0.0, 3, "0.000 ± 0.000"),
        (1.234e-7, 5.6e-9, 3, "(1.234 ± 0.056)e-7"),
        (1.2345e9, 3e7, 3, "(1.234 ± 0.030)e9"),
        (0.53218, math.nan, 1, "0.5322 (n = 1)"),
        (1e-7, math.nan, 1, "1.000e-7 (n = 1)"),
        (math.nan, math.nan, 3, "–"),
    ],
)
def test_numbers_are_rounded_to_their_uncertainty(mean, half_width, n, text):
    assert format_estimate(Estimate(mean, half_width, n)) == text


def test_a_cell_says_what_it_knows():
    value = Estimate(1.0, 0.1, 3)
    assert format_cell(Cell(value, value, "better")) == "1.00 ± 0.10 ✓"
    assert format_cell(Cell(value, value, "worse", note="depth")) == "1.00 ± 0.10 (depth) ✗"
    assert format_cell(Cell(value, value, None)) == "1.00 ± 0.10"
    assert format_cell(Cell(Estimate(math.nan, math.nan, 3), None, None, diverged=2)) == "2 runs diverged"


@pytest.fixture
def comparison(make_record):
    flat = {"alpha": [2.0, 1.0, 1.0, 1.0, 1.0], "beta": [4.0, 2.0, 2.0, 2.0, 2.0]}
    records = []
    for seed in range(3):
        better = {"alpha": [0.5 + 0.02 * seed] * 5, "beta": [2.0 + 0.1 * (seed - 1)] * 5}
        common = {"problem": "toy|s", "validation": flat, "test": flat}
        records.append(make_record("equal", seed, metrics=flat, **common))
        records.append(make_record("gradnorm", seed, metrics=better, method_settings={"alpha": 0.5}, **common))
    return group(records)[0]


def printed(comparison):
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(to_rich(comparison))
    return capture.get()


def test_the_terminal_table(comparison):
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed(comparison).splitlines()]
    rows = {line[0]: line[1:] for line in lines if line}
    assert rows["alpha"] == ["MeanSquaredError ↓", "1.000 ± 0.000", "0.520 ± 0.050 ✓"]
    assert rows["beta"] == ["MeanSquaredError ↓", "2.000 ± 0.000", "2.00 ± 0.25"]
    assert rows["mean of the tasks"][1:] == ["1.500 ± 0.000", "1.26 ± 0.15 ✓"]
    assert rows["task-normalised test loss"] == ["mean L/L(0) ↓", "0.5000 ± 0.0000", "0.5000 ± 0.0000"]
    assert rows["delta_m, mean change of the tasks"][:2] == ["% against equal ↓", "–"]
    assert rows["change of the worst task"][2] == "0 ± 12 (beta)"
    assert rows["time per training step"][0] == "ms ↓"
    assert "gradnorm(alpha=0.5)" in printed(comparison)
    assert "✗ worse than equal" in printed(comparison)


def test_names_are_never_read_as_markup(make_record):
    text = printed(group([make_record(tasks=("[red]a[/red]", "b"), problem="[bold]p")])[0])
    assert "[red]a[/red]" in text
    assert "[bold]p" in text


def test_markdown_has_the_same_cells_and_the_origin(comparison):
    lines = to_markdown(comparison).splitlines()
    assert lines[0] == "| task | metric | equal (n = 3) | gradnorm(alpha=0.5) (n = 3) |"
    assert lines[1] == "| :-- | :-- | --: | --: |"
    assert lines[2] == "| alpha | MeanSquaredError ↓ | 1.000 ± 0.000 | 0.520 ± 0.050 ✓ |"
    assert {line.count("|") for line in lines[:9]} == {5}
    assert command(comparison) in lines[-7]
    origin = lines[-3]
    for fact in ("n = 3 per method, seeds 0, 1, 2", "torch: 2.13.0", "machine: x86_64, 2 cores", "commit: 0123456"):
        assert fact in origin


def test_markdown_escapes_names(make_record):
    name = "<script>|*a*_b `c` x_y"
    text = to_markdown(group([make_record(tasks=(name, "b"))])[0])
    row = next(line for line in text.splitlines() if "script" in line)
    assert row.startswith(r"| \<script\>\|\*a\*\_b \`c\` x_y |")


def test_the_command_names_what_differs_from_the_defaults(make_record):
    settings = {"steps": 5000, "batch_size": 100, "sigmas": (1.0, 2.0)}
    record = make_record("gradnorm", 4, problem="toy", problem_settings=settings, method_settings={"alpha": 0.5})
    words = shlex.split(command(group([record])[0]))
    assert words[:9] == [
        "equipoise",
        "compare",
        "toy",
        "--methods",
        "gradnorm(alpha=0.5)",
        "--seeds",
        "5",
        "--steps",
        "40",
    ]
    assert words[9:11] == ["--set", "sigmas=(1.0, 2.0)"]
    assert "batch_size" not in " ".join(words)
    mine = make_record(problem="mine", problem_settings={"batch_size": 100})
    assert shlex.split(command(group([mine])[0]))[2] == "mine.py"


def test_every_machine_and_version_that_took_part_is_named(make_record):
    records = [make_record(seed=seed) for seed in range(3)]
    records[1].environment.update(torch="2.14.0", date="2026-01-02")
    records[0].environment.update(date="2026-01-03")
    facts = provenance(group(records)[0])
    assert facts["torch"] == "2.13.0; 2.14.0"
    assert facts["date"] == "2026-01-02 to 2026-01-03"
    assert facts["machine"] == "x86_64, 2 cores"
