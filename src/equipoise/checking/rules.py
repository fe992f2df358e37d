"""Rules of thumb: where GradNorm was ahead of other weights in a study of generated problems, and how often they are right."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from equipoise.checking.report import CheckReport, apart

Outcome = Literal["ahead", "no difference", "behind"]

RULES = Path(__file__).with_name("rules.json")
"""The rules that held up on problems that they were not fitted on: ``python -m docs.generate.answers`` writes them."""

_MEASURED = {
    "norm_ratio": "the largest gradient norm is at least {:.3g} times the smallest",
    "loss_ratio": "the largest loss is at least {:.3g} times the smallest",
    "cosine": "the gradients have cosines of at least {:.2f}",
}
EQUAL = "equal weights"
OPTIMIZERS = {"adam": "Adam", "sgd": "SGD"}
"""The optimisers of the study, as they are written."""


@dataclass(frozen=True)
class Rule:
    """One answer where a measured number reaches a threshold, another one elsewhere.

    Attributes:
        measured: The number: a key of the result of `measured`.
        threshold: The threshold.
        optimizer: The only optimiser with which the first answer holds; empty: with any.
        there: The answer where the number reaches the threshold.
        elsewhere: The other answer.
    """

    measured: str
    threshold: float
    optimizer: str
    there: Outcome
    elsewhere: Outcome

    def answer(self, values: Mapping[str, float], optimizer: str) -> Outcome:
        """The forecast of the rule for a first batch and an optimiser."""
        applies = self.optimizer in ("", optimizer) and values[self.measured] >= self.threshold
        return self.there if applies else self.elsewhere

    def __str__(self) -> str:
        trained = f", with {OPTIMIZERS[self.optimizer]}," if self.optimizer else ""
        return f"{self.there} where{trained} {_MEASURED[self.measured].format(self.threshold)}, else {self.elsewhere}"


@dataclass(frozen=True)
class RuleOfThumb:
    """A rule about two methods, with its record.

    Attributes:
        method: The method.
        opponent: The method that it is compared with.
        rule: The rule.
        hits: On how many problems that it was not fitted on it is right.
        problems: The number of these.
        base: On how many of them the same answer everywhere is right.
        base_answer: That answer.
    """

    method: str
    opponent: str
    rule: Rule
    hits: int
    problems: int
    base: int
    base_answer: Outcome

    def says(self, values: Mapping[str, float]) -> str:
        """The rule on a first batch, in words."""
        answers = {self.rule.answer(values, optimizer): optimizer for optimizer in OPTIMIZERS}
        by_optimizer = [f"{found} with {OPTIMIZERS[optimizer]}" for found, optimizer in answers.items()]
        found = " and ".join(by_optimizer) if len(answers) > 1 else next(iter(answers))
        return (
            f"rule of thumb, {self.method} against {self.opponent}: {self.rule}; so here: {found} (right on {self.hits} of "
            f"{self.problems} generated problems; “{self.base_answer}” everywhere, on {self.base})"
        )


def measured(report: CheckReport) -> dict[str, float]:
    """The numbers that rules look at: ratios of the largest to the smallest, and the smallest cosine; NaN where unknown."""
    known = report.cosines[~report.cosines.isnan()]
    return {
        "norm_ratio": apart(report.gradient_norms / report.weights)[0],
        "loss_ratio": apart(report.losses.abs())[0],
        "cosine": known.min().item() if len(known) else torch.nan,
    }


def quoted(report: CheckReport) -> list[str]:
    """The forecasts of the rules for a report, and where none held up; nothing where there are no two gradients."""
    if (report.gradient_norms > 0).sum() < 2:
        return []
    values = measured(report)
    some = json.loads(RULES.read_text(encoding="utf-8"))
    rules = [RuleOfThumb(**{**each, "rule": Rule(**each["rule"])}) for each in some]
    said = [each.says(values) for each in rules]
    if all(each.opponent != EQUAL for each in rules):
        said.append(f"no rule of thumb held up that tells from one batch whether GradNorm will be ahead of {EQUAL}")
    return said
