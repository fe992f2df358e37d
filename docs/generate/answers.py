"""The answers to the questions of the paper's reviewers: a page for each study, from its committed records.

``python -m docs.generate.answers`` writes the pages. ``python -m docs.generate.answers keep NAME FOLDER`` first takes over the
records of ``equipoise study studies/NAME.py --runs FOLDER``.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from equipoise.lab.results.forest import to_svg
from equipoise.lab.store.store import Store
from equipoise.lab.studies.run import replay_study
from equipoise.lab.studies.source import load_study
from equipoise.lab.studies.summary import summary
from equipoise.lab.studies.tuning import to_document

from .pages import ROOT
from .thin import thinned

PAGES = ROOT / "docs" / "answers"
RECORDS = ROOT / "results" / "studies"


@dataclass(frozen=True)
class Answer:
    """A question, and the words that do not come from records.

    Attributes:
        question: The question in one line.
        limits: The limits of the study: where its answer ends.
    """

    question: str
    limits: str


ANSWERS = {
    "toy_fifth": Answer(
        "Is the toy experiment fair: what do baselines do that are trained on the metric that is evaluated, when the "
        "learning rate of every method is tuned?",
        "The toy has a fifth of its size here, two tasks, one draw of its matrices and Adam; the table says which runs have "
        "not converged after 2000 steps. Ten tasks, the full size, SGD and longer runs are not answered by this page. A first "
        "run with learning rates up to 0.03 had its best ones at that edge; the range was then widened for all methods.",
    ),
}
"""By the name of the study's file."""


def pages() -> dict[Path, str]:
    """The text of every page and picture by its path."""
    found = {}
    links = []
    for name, answer in ANSWERS.items():
        study = load_study(ROOT / "studies" / f"{name}.py")
        command = f"equipoise study studies/{name}.py"
        found_again = replay_study(study, Store(RECORDS / name).load_all())
        results = [replace(each, comparison=replace(each.comparison, command=command)) for each in found_again]
        head, rest = to_document(results).split("\n## ", 1)
        pictures = {f"{name}_{number}.svg": to_svg(result.comparison) for number, result in enumerate(results)}
        shown = "\n\n".join(
            f"![Change of every method against the reference, with intervals.]({file})" for file in pictures
        )
        text = f"{head}\n**Question.** {answer.question}\n\n**Limits.** {answer.limits}\n\n**Made by** `{command}`\n\n{shown}"
        found[PAGES / f"{name}.md"] = f"{text}\n\n## {rest}"
        found |= {PAGES / file: picture for file, picture in pictures.items()}
        said = " ".join(summary(result) for result in results)
        links.append(f"- [{study.title}]({name}.md). {answer.question} {said}")
    lines = [
        "# Answers to the reviewers",
        "",
        "Each page is generated from committed records of a study with the same search",
    ]
    lines += ["for every method; the expectation was written before the runs.", "", *links, ""]
    lines += ["How it is implemented: [implementation](../how/implementation.md). What Section 3.1 means:"]
    lines += [
        "[the method, step by step](../how/gradnorm.md).",
        "",
        "```{toctree}",
        ":hidden:",
        "",
        *ANSWERS,
        "```",
        "",
    ]
    found[PAGES / "index.md"] = "\n".join(lines)
    return found


def keep(name: str, folder: Path) -> None:
    """Commit-sized copies of a study's records, in the place of those that were there.

    Runs whose weights are averaged and trained with again keep their whole log.
    """
    study = load_study(ROOT / "studies" / f"{name}.py")
    followed = {each.averaged_from for each in study.methods}
    whole = {each.method for each in study.methods if each.label in followed}
    shutil.rmtree(RECORDS / name, ignore_errors=True)
    store = Store(RECORDS / name)
    for record in Store(folder).load_all():
        final = record.spec.method in whole and record.spec.seed in study.seeds
        store.save(record if final else thinned(record))


def main() -> None:
    """Write the pages."""
    if sys.argv[1:2] == ["keep"]:
        keep(sys.argv[2], Path(sys.argv[3]))
    PAGES.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
