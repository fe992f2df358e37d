import csv
import io
import math
import shlex
from dataclasses import replace

import pytest
from rich.console import Console
from scipy import stats

from equipoise.lab.results.cells import HIDES, TURNED, Cell
from equipoise.lab.results.comparison import group
from equipoise.lab.results.csv import to_csv
from equipoise.lab.results.format import format_cell, format_estimate
from equipoise.lab.results.markdown import to_document, to_markdown
from equipoise.lab.results.provenance import command, provenance
from equipoise.lab.results.statistics import Estimate
from equipoise.lab.results.table import to_rich
from equipoise.lab.runs.methods import Method, parse_methods


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
        (math.nan, math.nan, 3, "not defined"),
    ],
)
def test_numbers_are_rounded_to_their_uncertainty(mean, half_width, n, text):
    assert format_estimate(Estimate(mean, half_width, n)) == text


def test_a_cell_says_what_it_knows():
    value = Estimate(1.0, 0.1, 3)
    assert format_cell(Cell(value, value, verdict="better")) == "1.00 ± 0.10 (+1.00 ± 0.10) ✓"
    assert format_cell(Cell(value, value), compact=True) == "1.00(10) (+1.00(10))"
    assert format_cell(Cell(value, value, withheld=TURNED)) == "1.00 ± 0.10 (+1.00 ± 0.10) †"
    assert format_cell(Cell(value, value, withheld=HIDES)) == "1.00 ± 0.10 (+1.00 ± 0.10) ‡"
    assert format_cell(Cell(value, value, verdict="worse", note="depth"), relative=True) == "+1.00 ± 0.10 (depth) ✗"
    assert format_cell(Cell(value)) == "1.00 ± 0.10"
    assert format_cell(Cell(text="reference"), relative=True) == "reference"
    assert format_cell(Cell(Estimate(math.nan, math.nan, 3), diverged=2)) == "2 runs diverged"


@pytest.mark.parametrize(
    ("mean", "half_width", "text"),
    [
        (0.767, 0.032, "0.767(32)"),
        (-0.5, 0.3, "-0.50(30)"),
        (12345.6, 210.0, "12346(210)"),
        (3.4, 1.2, "3.4(1.2)"),
        (1.234e-7, 5.6e-9, "1.234(56)e-7"),
        (0.0, 0.0, "0.000(0)"),
        (0.53218, math.nan, "0.5322"),
    ],
)
def test_the_short_form_has_the_uncertainty_of_the_last_digits(mean, half_width, text):
    assert format_estimate(Estimate(mean, half_width, 5), compact=True) == text


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


def printed(comparison, width=200):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(to_rich(comparison, width))
    return capture.get()


def test_the_terminal_table(comparison):
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed(comparison).splitlines()]
    rows = {line[0]: line[1:] for line in lines if line}
    assert rows["alpha"] == ["MeanSquaredError ↓", "1.000 ± 0.000", "0.520 ± 0.050", "-0.480 ± 0.050 ✓"]
    assert rows["beta"] == ["MeanSquaredError ↓", "2.000 ± 0.000", "2.00 ± 0.25", "+0.00 ± 0.25"]
    # Only one of the two tasks is better: that is no difference of the mean.
    assert rows["mean of the tasks"][1:] == ["1.500 ± 0.000", "1.26 ± 0.15", "-0.24 ± 0.15 ‡"]
    assert rows["mean of the tasks, at the last step"][1:] == ["1.500 ± 0.000", "1.26 ± 0.15", "-0.24 ± 0.15"]
    assert rows["change against equal"] == ["% ↓", "reference", "-24.0 ± 8.7 ‡", ""]
    assert rows["change against equal, worst task"][2] == "+0 ± 12 (beta)"
    assert rows["read at step"][1:] == ["10", "10", ""]
    assert rows["converged"][1:] == ["3 of 3", "3 of 3", ""]
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
    assert lines[2] == "| alpha | MeanSquaredError ↓ | 1.000 ± 0.000 | 0.520 ± 0.050 (-0.480 ± 0.050) ✓ |"
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
    given = {"problem": "toy", "problem_settings": settings, "method_settings": {"alpha": 0.5}}
    records = [make_record("gradnorm", seed, **given) for seed in range(5)]
    words = shlex.split(command(group(records)[0]))
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


def study_of(make_record, *, learning_rates=(0.01, 0.01), seeds=range(2)):
    """Runs under the labels of a study, which need not be what the command line reads."""
    equal = {seed: make_record("equal", seed, problem_settings={"learning_rate": learning_rates[0]}) for seed in seeds}
    given = {"problem_settings": {"learning_rate": learning_rates[1]}, "method_settings": {"alpha": 0.5}}
    strong = {seed: make_record("gradnorm", seed, **given) for seed in seeds}
    common = group([*equal.values(), *strong.values()])[0]
    return replace(common, runs={"no weights": equal, "GradNorm, strong": strong}, reference="no weights")


def test_the_command_has_the_methods_with_their_settings_whatever_they_are_called(make_record):
    study = study_of(make_record)
    (line,) = (line for line in to_markdown(study).splitlines() if "equipoise" in line)
    words = shlex.split(line.strip("` "))
    asked = parse_methods(words[words.index("--methods") + 1])
    assert asked == [Method("equal"), Method("gradnorm", {"alpha": 0.5})]
    assert words[words.index("--seeds") + 1] == "2"
    assert "learning_rate=0.01" in words
    turned = replace(study, runs=dict(reversed(study.runs.items())), reference="GradNorm, strong")
    words = shlex.split(command(turned))
    assert words[words.index("--reference") + 1] == "gradnorm(alpha=0.5)"


def test_the_command_makes_the_runs_of_single_tasks_too(make_record):
    alone = [make_record("single_task", method_settings={"task": task}) for task in ("alpha", "beta")]
    words = shlex.split(command(group([make_record(), *alone])[0]))
    asked = parse_methods(words[words.index("--methods") + 1])
    assert asked == [Method("equal"), *(Method("single_task", {"task": task}) for task in ("alpha", "beta"))]


def test_there_is_no_command_where_none_makes_these_runs(make_record):
    searched = study_of(make_record, learning_rates=(0.01, 0.1))
    other_seeds = study_of(make_record, seeds=(100, 101))
    spec = replace(make_record().spec, vectorized=True)
    with_others = group([replace(make_record(), spec=spec)])[0]
    means = {seed: make_record("static", seed, method_settings={"weights": (1.0, 1.0 + seed)}) for seed in range(2)}
    averaged = replace(group([means[0]])[0], runs={"averaged": means}, reference="averaged")
    for comparison in (searched, other_seeds, with_others, averaged):
        assert command(comparison) == ""
        assert "command" not in provenance(comparison)
        assert "equipoise" not in to_markdown(comparison)
    assert command(replace(searched, command="equipoise study mine.py")) == "equipoise study mine.py"


@pytest.fixture
def unpaired(make_record):
    """Equal weights with seeds 0 to 2, GradNorm with seeds 1 to 5, and single tasks with seeds 0 to 5 and 0 to 4."""
    alone = {task: {"method_settings": {"task": task}} for task in ("alpha", "beta")}
    records = [make_record("equal", seed) for seed in range(3)]
    records += [make_record("gradnorm", seed) for seed in range(1, 6)]
    records += [make_record("single_task", seed, **alone["alpha"]) for seed in range(6)]
    records += [make_record("single_task", seed, **alone["beta"]) for seed in range(5)]
    return group(records)[0]


def test_seeds_that_methods_do_not_share_are_named(unpaired):
    said = "gradnorm: values are means over its own 5 seeds, differences from equal over the 2 that both have; equal has 3."
    alone = (
        "single_task(task='beta'): no run with seed 5; changes against single-task training are over the other seeds."
    )
    assert said in printed(unpaired)
    assert alone in printed(unpaired)
    assert f"- {said}" in to_markdown(unpaired)
    assert command(unpaired) == ""


def test_the_csv_counts_the_seeds_of_a_difference(unpaired):
    lines = list(csv.DictReader(io.StringIO(to_csv([unpaired]))))
    of = {line["row"]: (line["n"], line["difference_n"]) for line in lines if line["method"] == "gradnorm"}
    assert of["alpha"] == ("5", "2")
    assert of["change against equal"] == ("2", "2")
    assert of["delta_m, change against single-task training"][0] == "4"
    assert of["time per training step"] == ("5", "")


def test_the_csv_tells_older_code_apart(make_record):
    older, newer = make_record(), make_record()
    older = replace(older, spec=replace(older.spec, code="older code of this run"), environment={"date": "2026-01-01"})
    newer = replace(newer, environment={"date": "2026-01-02"})
    lines = csv.DictReader(io.StringIO(to_csv(group([older, newer]))))
    assert {(line["comparison"], line["code"], line["older_code"]) for line in lines} == {
        ("toy", "0123abcd", "False"),
        ("toy", "older code o", "True"),
    }


def test_single_tasks_that_lack_others_are_named(make_record):
    alone = make_record("single_task", method_settings={"task": "alpha"})
    text = printed(group([make_record(), alone])[0])
    said = "There are runs of single_task(task='alpha'), but none of beta alone: changes against single-task training are left"
    assert said in text


def test_a_run_of_a_single_task_that_diverged_is_named(make_record):
    broken = {"alpha": [1.0] * 5, "beta": [1.0, math.nan, 1.0, 1.0, 1.0]}
    given = {"alpha": {}, "beta": {"test": broken}}
    alone = [make_record("single_task", method_settings={"task": task}, **losses) for task, losses in given.items()]
    text = printed(group([make_record(), *alone])[0])
    assert "single_task(task='beta'), seed 0: diverged; a loss was not finite at step 10." in text


@pytest.mark.parametrize(("end", "said"), [(0.5, "made them no better"), (0.6, "made them worse")])
def test_what_followed_an_early_reading_is_told_as_it_is(end, said, make_record):
    validation = {"alpha": [1.0, 0.5, *[end] * 9], "beta": [1.0] * 11}
    early = make_record(steps=100, validation=validation)
    assert f"equal: 1 of 1 runs are read before a fifth of their steps; what followed {said}." in printed(
        group([early])[0]
    )


def test_a_run_that_diverged_is_read_at_no_step(make_record):
    broken = {"alpha": [1.0, math.nan, 1.0, 1.0, 1.0], "beta": [1.0] * 5}
    early = {"alpha": [1.0, 0.1, 0.9, 0.9, 0.9], "beta": [1.0] * 5}
    late = {"alpha": [1.0, 0.9, 0.9, 0.1, 0.9], "beta": [1.0] * 5}
    records = [make_record("equal", 0, validation=late), make_record("equal", 1, validation=early, test=broken)]
    records.append(make_record("gradnorm", 0, test=broken))
    lines = list(csv.DictReader(io.StringIO(to_csv(group(records)))))
    assert {line["method"]: line["note"] for line in lines if line["row"] == "read at step"} == {
        "equal": "30",
        "gradnorm": "none",
    }


def test_an_area_under_the_curve_that_no_labels_stand_behind_is_named(make_record):
    given = {"metric": "BinaryAUROC", "higher_is_better": True}
    metrics = {"alpha": [0.0] * 5, "beta": [0.0, 0.4, 0.5, 0.6, 0.7]}
    text = printed(group([make_record(metrics=metrics, **given)])[0])
    assert "alpha: BinaryAUROC is 0 throughout, as it is where all labels are of one kind; it says nothing." in text
    assert "beta: BinaryAUROC" not in text


def test_every_machine_and_version_that_took_part_is_named(make_record):
    records = [make_record(seed=seed) for seed in range(3)]
    records[1].environment.update(torch="2.14.0", date="2026-01-02")
    records[0].environment.update(date="2026-01-03")
    facts = provenance(group(records)[0])
    assert facts["torch"] == "2.13.0; 2.14.0"
    assert facts["date"] == "2026-01-02 to 2026-01-03"
    assert facts["machine"] == "x86_64, 2 cores"


def test_no_digit_is_cut_where_even_a_line_per_method_is_too_wide(comparison):
    assert "…" not in printed(comparison, 34)


@pytest.mark.parametrize(("width", "said"), [(130, "│ alpha"), (80, "│ alpha"), (62, "task, method")])
def test_a_narrow_terminal_has_the_fullest_table_that_fits(comparison, width, said):
    text = printed(comparison, width)
    assert said in text
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    (line,) = (line for line in text.splitlines() if "-0.480" in line)
    assert ("0.520 ± 0.050 │ -0.480 ± 0.050 ✓" in line) == (width == 130)
    assert ("-0.480(50) ✓" in line) == (width < 130)
    assert ("Tasks: MeanSquaredError ↓." in text) == (width < 130)


def test_what_a_terminal_or_markdown_would_obey_is_written_out(make_record):
    names = ("\x1b[31mred\x1b]0;title\x07", "a\nb\r\u202ec", "[x](http://example.org) @b http://example.org")
    records = [
        make_record(m, s, names, problem="p\x1b[2J", metric="\x1b[1m") for m in ("equal", "\x1bx") for s in (0, 1)
    ]
    records[0].environment["machine"] = "\x1b[31m"
    (found,) = group(records)
    for text in (printed(found), printed(found, 70), to_document([found]), to_csv([found])):
        assert all(c.isprintable() or c == "\n" for c in text)
        assert "x1b" in text
    assert r"\[x\](http\:" in to_document([found])
    assert "](http:" not in to_document([found])


def test_a_spreadsheet_reads_no_name_as_a_formula(make_record):
    text = to_csv(group([make_record(tasks=("=1+1", "@b"))]))
    assert "'=1+1" in text
    assert ",=1+1" not in text


def test_the_csv_has_every_number(comparison):
    lines = list(csv.DictReader(io.StringIO(to_csv([comparison]))))
    (line,) = (line for line in lines if line["row"] == "alpha" and line["method"] != "equal")
    assert float(line["value"]) == pytest.approx(0.52)
    assert float(line["difference"]) == pytest.approx(-0.48)
    assert float(line["p_holm"]) == pytest.approx(2 * stats.ttest_1samp([-0.5, -0.48, -0.46], 0).pvalue)
    assert (line["mark"], line["no_mark_because"], line["last_value"]) == ("better", "", line["value"])


def test_older_code_is_folded_away_and_titles_name_what_differs(make_record):
    new, old, other = make_record(), make_record(), make_record(problem_settings={"batch_size": 64})
    old = replace(old, spec=replace(old.spec, code="older"), environment={**old.environment, "date": "2026-01-01"})
    new = replace(new, environment={**new.environment, "date": "2026-01-02"})
    found = group([old, new, other])
    assert [(c.title, c.older) for c in found] == [
        ("toy: batch_size 128", False),
        ("toy: batch_size 64", False),
        ("toy: batch_size 128", True),
    ]
    text = to_document(found)
    assert text.count("### toy") == 2
    assert "<details><summary>Older code: toy: batch_size 128</summary>" in text
