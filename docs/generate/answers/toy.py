"""The toy, made fair."""

from __future__ import annotations

from .contrasts import against, block, contrast, said, standing
from .page import Page, Prediction, table
from .pictures import forest
from .records import results

STUDIES = ("toy_fifth",)


def page() -> Page:
    """The page."""
    found = {"T = 2, Adam": results("toy_fifth")[0].comparison}
    contrasts = against(found, "equal")
    planned = block(
        contrast(comparison, problem, method, "1 / L(0)")
        for problem, comparison in found.items()
        for method in ("gradnorm", "closed form, balanced")
    )
    return Page(
        title="Is the toy fair?",
        asked_by="review 2",
        question="What do baselines do on the toy that are trained on the evaluated metric, once every method has its "
        "own learning rate?",
        line=" ".join(map(said, planned)),
        answer=[*(standing(problem, comparison) for problem, comparison in found.items()), *map(said, planned)],
        predictions=[
            Prediction(
                "toy_fifth",
                "GradNorm as published and uncertainty weighting are behind",
                all(each.outcome == "worse" for each in planned[:1]),
                said(planned[0]),
            )
        ],
        picture=forest(contrasts, "Every method against equal weights"),
        alt="Difference of every method from equal weights, with intervals",
        table=table(contrasts, found),
        for_user="Give every method its own learning rate before you compare them, and standardise the targets: a rate "
        "that all share favours the method whose rate it happens to be.",
        limits="The toy has a fifth of its size here, two tasks, one draw of its matrices and Adam; the tables say "
        "which runs have not converged after 2000 steps. Ten tasks, the full size, SGD and longer runs are not "
        "answered by this page.",
        studies=STUDIES,
    )
