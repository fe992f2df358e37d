"""All pages, their index, and the tables of the studies."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from equipoise.checking.rules import RULES
from equipoise.lab.results.markdown import escape
from equipoise.lab.studies.tuning import to_document

from ..pages import ROOT
from . import baselines, biology, dense, groups, overfitting, plateau, savings, toy, when
from .page import CORRECTION, has_tables, prose, written
from .records import budget, has_figures, is_there, results, study

PAGES = ROOT / "docs" / "answers"
ANSWERS: dict[str, ModuleType] = {
    "toy": toy,
    "plateau": plateau,
    "baselines": baselines,
    "groups": groups,
    "biology": biology,
    "when": when,
    "overfitting": overfitting,
    "dense": dense,
    "savings": savings,
}
"""The module of every page, in the order of the index.

``STUDIES`` are the names of its studies, ``NEEDED`` those without which there is no page; ``page`` gives the page.
"""


def missing() -> dict[str, list[str]]:
    """The studies without records, by the name of the page that asks for them."""
    lacking = {name: [s for s in answer.STUDIES if not has_figures(s)] for name, answer in ANSWERS.items()}
    return {name: some for name, some in lacking.items() if some}


def shown() -> dict[str, ModuleType]:
    """The answers that have the records which they cannot do without."""
    return {name: answer for name, answer in ANSWERS.items() if all(map(has_figures, answer.NEEDED))}


def studies() -> list[str]:
    """The studies behind the pages whose records have been committed."""
    named = dict.fromkeys(study for answer in shown().values() for study in answer.STUDIES)
    return list(filter(is_there, named))


def pages() -> dict[Path, str]:
    """The text of every page and picture by its path."""
    found = {}
    lines = []
    for name, answer in shown().items():
        page = answer.page()
        found[PAGES / f"{name}.md"] = written(name, page)
        found |= {PAGES / f"{picture}.svg": svg for picture, svg in {name: page.picture, **page.further}.items()}
        lines.append(f"1. [{page.title}]({name}.md). *{page.question}* {prose(page.line)}")
    for name in filter(has_tables, studies()):
        found[PAGES / "tables" / f"{name}.md"] = f"---\norphan: true\n---\n\n{to_document(list(results(name)))}"
    found[PAGES / "studies.md"] = _studies()
    found[PAGES / "index.md"] = _index(lines)
    return found


def _studies() -> str:
    """The page with the budget of every study and the commands that make its records again."""
    names = dict.fromkeys(name for answer in shown().values() for name in answer.STUDIES if has_figures(name))
    parts = [_STUDIES, *map(_study, names)]
    return "\n\n".join(parts) + "\n"


def _study(name: str) -> str:
    title = escape(study(name).title)
    if has_tables(name):
        title = f"[{title}](tables/{name}.md)"
    return f"## {name}\n\n{title}. {budget(name)}"


_STUDIES = """# The studies behind the answers

To repeat all runs of a study, here `plateau`:

```sh
equipoise study studies/plateau.py --runs runs/plateau
```

To replace the committed records by the new ones:

```sh
python -m docs.generate.answers keep plateau runs/plateau
```

To run one committed record again, drawn at random, and compare it to the last digit:

```sh
python -m docs.generate.answers rerun plateau
```

On another kind of processor the last digits differ from the first step on, and a run that depends on them, such as one with
a large learning rate, may take another course.

All pages are written from the committed records by `make answers`. The title of a study links to its tables (every row, and
the search of every method), unless it has too many problems for them. Its file `studies/NAME.py` has the expectation, which was
written before the runs. Below stand the planned cost of each study, what a larger machine would add, and the actual cost."""


def _index(lines: list[str]) -> str:
    return f"""# Answers to the reviewers

Two reviews of the GradNorm paper asked the following questions. Each answer is generated from the committed records of studies
that give every method the same search and compare the methods on other seeds. The expectations were written down before the
runs, and the pages say where the figures disagree with them.

{chr(10).join(lines)}

A difference counts if its paired t-test is significant after {CORRECTION}, and the last step agrees. The correction was
changed after the runs: before, it covered all differences of a table, so that one comparison could have different verdicts on
different pages. Now it has the same verdict on all pages.

Two questions are answered in words: [what Section 3.1 means](../how/gradnorm.md), and
[how it is implemented](../how/implementation.md). [One page](studies.md) has the budgets, tables and commands of all studies.

```{{toctree}}
:hidden:

{chr(10).join(shown())}
studies
```
"""


def write() -> None:
    """Write the pages in the place of those that are there, and the rules of thumb that `equipoise.check` quotes."""
    texts = pages()
    for path in [*PAGES.glob("*.*"), *PAGES.glob("tables/*")]:
        if path not in texts:
            path.unlink()
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    if "when" in shown():
        RULES.write_text(when.rules(), encoding="utf-8")
