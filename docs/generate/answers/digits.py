"""Two overlaid digits: a benchmark of the literature, by accuracy, with PCGrad and single-task training."""

from __future__ import annotations

from . import everything
from .contrasts import Contrast, against
from .everything import EQUAL
from .measures import LOSS_CHANGE, mean_metric
from .page import Prediction, table
from .predictions import chosen, expected, no_better, not_ahead

STUDY = "multimnist"
ACCURACY = mean_metric("", "mean accuracy", 0.01, higher_is_better=True)


def by_accuracy() -> list[Contrast]:
    """Every method against equal weights. None where the study has no records yet."""
    return against(everything.of(STUDY), EQUAL, ACCURACY)


def table_by_accuracy() -> str:
    """The same as a table."""
    return table(by_accuracy(), everything.of(STUDY))


def predictions() -> list[Prediction | None]:
    """The study's expectation, part by part; single-task training is no joint method, and is compared by itself."""
    losses, accuracies = against(everything.of(STUDY), EQUAL, LOSS_CHANGE), by_accuracy()
    alone = against(everything.alone(everything.of(STUDY)), EQUAL, ACCURACY)
    words = "No method is ahead of equal weights by more than 2 % of the task-normalised test loss"
    return [
        expected(STUDY, "1 / L(0) is level with equal weights.", chosen(losses, STUDY, "1 / L(0)"), "level"),
        not_ahead(STUDY, words, losses, 2.0),
        not_ahead(STUDY, "by 0.01 of the mean accuracy, PCGrad included.", accuracies, 0.01),
        expected(
            STUDY,
            "Single-task training is ahead of equal weights in the mean accuracy.",
            alone,
            "better",
        ),
        no_better(
            STUDY,
            "Static weights from seven trials are no better than equal ones.",
            chosen(losses, STUDY, "tuned static"),
        ),
    ]
