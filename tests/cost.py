"""The page on what balancing costs: its tables and its figure, generated from the committed records, never typed.

``python tests/cost.py`` writes them; a test compares. ``python tests/cost.py phases`` first measures where the time goes, for
some minutes, on a machine with nothing else to do.
"""

from __future__ import annotations

import sys
from pathlib import Path

from equipoise.bench._figure import to_svg
from equipoise.bench._model import fitted, measured_extra
from equipoise.bench._phases import PHASES, Phases, load, phases, save
from equipoise.bench._record import Record, load_all
from equipoise.bench._table import to_markdown
from equipoise.bench.workloads import workloads

ROOT = Path(__file__).parents[1]
PAGE, FIGURE, RECORDS = ROOT / "docs" / "cost.md", ROOT / "docs" / "cost.svg", ROOT / "results" / "cost"
MEASURED = ROOT / "results" / "cost_phases.json"
END = "<!-- end of table -->"
TIMED = (
    *(f"mlp_{number}" for number in (2, 3, 12, 40, 128, 512, 1024)),
    *("columns_617", "transformer", "segnet", "resnet_fcn"),
)
"""What is looked at phase by phase."""


def records() -> list[Record]:
    """Those committed, in the order of the workloads; those of a GPU at the end."""
    order = list(workloads("cpu"))
    return sorted(load_all(RECORDS), key=lambda record: (record.device, order.index(record.workload)))


def table() -> str:
    """What the records say."""
    return to_markdown(records())


def figure() -> str:
    """What they say of the number of tasks."""
    return to_svg([record for record in records() if record.device == "cpu"])


def where() -> str:
    """Where the time goes, what the counted multiplications allow, and what the model foresees."""
    found = load(MEASURED)
    by_name = {one.workload: one for one in found}
    model = fitted([one for one in found if one.workload.startswith("mlp_")], by_name["mlp_2"])
    shown = [phase for phase in PHASES if phase != "optimiser"]
    head = ["workload", "plain, ms", *(f"{phase}, ms more" for phase in shown)]
    head += ["all, ms more", "foreseen, ms more", "ratio", "ratio of multiplications"]
    lines = [f"| {' | '.join(head)} |", f"| :-- |{' --: |' * (len(head) - 1)}"]
    for one in found:
        plain = sum(one.plain.values())
        more = [one.balanced[phase] - one.plain[phase] for phase in shown]
        cells = [f"{plain:.3g}", *(f"{value:.2f}" for value in more)]
        cells += [f"{measured_extra(one):.2f}", f"{model.extra(one):.2f}", f"{1 + measured_extra(one) / plain:.2f}"]
        cells.append(f"{one.balanced_multiplications / one.plain_multiplications:.3f}")
        lines.append(f"| `{one.workload}` | {' | '.join(cells)} |")
    environment = found[0].environment
    return "\n".join(
        [
            *lines,
            "",
            f"The model: {model.rate / 1e6:.0f} million multiplications per millisecond, {model.per_step:.2f} ms for a step, "
            f"{1e3 * model.per_task:.0f} µs for a task (torch {environment['torch']}, {environment['threads']} threads, "
            f"{environment['processor']}, commit {environment['commit'][:12]}).",
            "",
        ]
    )


TABLES = {"results/cost": table, "results/cost_phases.json": where}


def parts(name: str) -> tuple[str, str, str]:
    """The page before, in and after a table."""
    begin = f"<!-- table: {name} -->\n"
    before, rest = PAGE.read_text(encoding="utf-8").split(begin)
    inside, after = rest.split(END, 1)
    return before + begin, inside, END + after


def measure() -> list[Phases]:
    """Look at every workload phase by phase."""
    known = workloads("cpu")
    return [phases(name, known[name], rounds=10 if known[name].tasks[300:] else 40, threads=2) for name in TIMED]


def main() -> None:
    """Write tables and figure anew."""
    if sys.argv[1:] == ["phases"]:
        save(measure(), MEASURED)
    for name, generated in TABLES.items():
        before, _, after = parts(name)
        PAGE.write_text(before + generated() + after, encoding="utf-8")
    FIGURE.write_text(figure(), encoding="utf-8")


if __name__ == "__main__":
    main()
