"""The causes of the toy's gaps, by intervention, at a fifth and at the full size."""

from __future__ import annotations

from equipoise.lab.results.comparison import Comparison

from .contrasts import against, contrast, interval, listed, said
from .gaps import CLOSED, GRADNORM, INITIAL, PLAIN, STARTED, closed, gap_table, gaps_and_methods, of_gradnorm
from .page import Prediction, table
from .predictions import expected
from .records import results

LOW_FLOOR, LOG_SPACE, NO_PULL = "GradNorm, floor 1e-5", "log space", "closed form, alpha 0, balanced"
VARIANTS = {
    LOW_FLOOR: "a floor of 1e-5",
    LOG_SPACE: "weights in log space",
    f"{LOG_SPACE}, balanced": "weights in log space, balanced from the first batch",
    CLOSED: "the closed form, balanced",
    NO_PULL: "the same with alpha 0",
}
"""The variants of GradNorm at the full size, in words."""


def of_causes() -> str:
    """The gaps under each intervention, as a table, and every method against equal weights."""
    found = {_named(*key): comparison for key, comparison in _causes().items()}
    return gaps_and_methods([(GRADNORM, INITIAL), (CLOSED, INITIAL), (PLAIN, STARTED)], found)


def of_causes_expected() -> list[Prediction]:
    """The expectations of the study of causes, held against its figures."""
    causes = _causes()
    plain = causes[False, 0.999]
    heads = closed((GRADNORM, INITIAL), plain, causes[True, 0.999], 1 / 2)
    memory = closed((PLAIN, STARTED), plain, causes[False, 0.99], 1 / 2)
    both = causes[True, 0.99]
    labels = list(both.runs)
    pairs = [contrast(both, "both", other, one) for number, one in enumerate(labels) for other in labels[number + 1 :]]
    told = [each for each in pairs if each.outcome in ("better", "worse")]
    words = [f"{len(told)} of {len(pairs)} pairs are told apart.", *(said(each, where=False) for each in told)]
    return [
        Prediction(
            "toy_causes",
            "Heads in proportion to their scale close most of the gap between GradNorm and 1 / L(0)",
            *heads,
        ),
        Prediction(
            "toy_causes",
            "beta2 = 0.99 closes most of that between uncertainty weighting from 0 and from log L(0)",
            *memory,
        ),
        Prediction("toy_causes", "with both, no method is told apart from another.", not told, " ".join(words)),
    ]


def of_full_causes() -> str:
    """Every variant of GradNorm at the full size against 1 / L(0), and the gaps under each intervention, as tables."""
    found, (memory, heads) = {"full size": _full_causes()}, _full_heads()
    each = {"as it is": found["full size"], "beta2 0.99": memory, "scaled heads": heads}
    gaps = gap_table([(GRADNORM, INITIAL), (CLOSED, INITIAL)], each)
    return f"{table(against(found, INITIAL), found)}\n\n{gaps}"


def of_full_causes_expected() -> list[Prediction | None]:
    """The expectations of the study of causes at the full size, held against its figures."""
    study, found, (memory, heads) = "toy_full_causes", _full_causes(), _full_heads()

    def halved(label: str) -> tuple[bool | None, str]:
        return closed((GRADNORM, INITIAL), found, found, 1 / 2, (label, INITIAL))

    pairs = [(f"{LOG_SPACE}, balanced", LOG_SPACE), (NO_PULL, CLOSED)]
    started, unpulled = (contrast(found, "the full size", *pair) for pair in pairs)
    return [
        Prediction(
            study,
            "with a floor of 1e-5 the gap of GradNorm to 1 / L(0) is half of what it is or less",
            *halved(LOW_FLOOR),
        ),
        Prediction(study, "so it is in log space, which has no floor.", *halved(LOG_SPACE)),
        expected(
            study,
            "in log space, GradNorm balanced from the first batch is ahead of GradNorm from equal weights.",
            [started],
            "better",
        ),
        expected(study, "the closed form with alpha 0 is ahead of that with alpha 1.5.", [unpulled], "better"),
        Prediction(
            "toy_full_heads",
            "with beta2 = 0.99 the gap of GradNorm to 1 / L(0) is half of what it is with 0.999 or less.",
            *closed((GRADNORM, INITIAL), found, memory, 1 / 2),
        ),
        Prediction(
            "toy_full_heads",
            "With heads in proportion to their scale, the gap of the closed form balanced from the first batch is half of what "
            "it is without or less.",
            *closed((CLOSED, INITIAL), found, heads, 1 / 2),
        ),
    ]


def told_of_causes() -> str:
    """The gap of GradNorm to 1 / L(0) as it is, when Adam forgets faster, and with heads that know their scale."""
    gaps = {key: interval(of_gradnorm(comparison)) for key, comparison in _causes().items()}
    steps = next(iter(_causes().values())).spec.steps
    return (
        f"By intervention, with {steps:,} steps: that gap is {gaps[False, 0.999]} as it is, {gaps[False, 0.99]} where Adam "
        f"forgets ten times as fast (beta2 = 0.99), and {gaps[True, 0.999]} with heads in proportion to their scale."
    )


def told_of_full_causes() -> str:
    """The interventions at the full size that close at least half of the gap to 1 / L(0), and those that do not."""
    found, (memory, heads) = _full_causes(), _full_heads()
    tried = {words: (found, label) for label, words in VARIANTS.items()}
    tried |= {"beta2 = 0.99": (memory, GRADNORM), "heads in proportion to their scale": (heads, GRADNORM)}
    gaps = {words: contrast(each, "", label, INITIAL).difference for words, (each, label) in tried.items()}
    whole = of_gradnorm(found)
    parts = []
    for wanted in (True, False):
        some = [f"{words} ({interval(gap)})" for words, gap in gaps.items() if (gap.mean <= whole.mean / 2) is wanted]
        parts.append(listed(some) or "nothing that was tried")
    return (
        f"At the full size, with {found.spec.steps:,} steps, the gap of GradNorm to 1 / L(0) is {interval(whole)}. Its mean is "
        f"half of that or less with {parts[0]}, and more than half with {parts[1]}; the last tables of this page have them all."
    )


def _causes() -> dict[tuple[bool, float], Comparison]:
    """The four interventions by whether heads are scaled, and by beta2."""
    found = {}
    for result in results("toy_causes"):
        settings = result.comparison.spec.problem_settings
        found[settings["scaled_heads"], settings["betas"][1]] = result.comparison
    return found


def _full_causes() -> Comparison:
    """The variants of GradNorm at the full size."""
    return results("toy_full_causes")[0].comparison


def _full_heads() -> tuple[Comparison, Comparison]:
    """The full size with an Adam that forgets sooner, and with heads in proportion to their scale."""
    memory, heads = (result.comparison for result in results("toy_full_heads"))
    return memory, heads


def _named(scaled: bool, beta2: float) -> str:
    return f"{'scaled heads' if scaled else 'plain heads'}, beta2 {beta2:g}"
