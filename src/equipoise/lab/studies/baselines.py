"""The methods that all studies of this project have in common, under the same labels."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.lab.studies.study import Candidate, Simplex


def baselines(*, epoch_steps: int, decades: float) -> list[Candidate]:
    """Equal and tuned static weights, the one-liners, uncertainty weighting and GradNorm.

    Args:
        epoch_steps: Steps of an epoch, for DWA.
        decades: The width of the search for static weights; see `Simplex`.
    """
    return [
        Candidate("equal"),
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("inverse_loss_variance", label="1 / loss variance"),
        Candidate("cov", label="CoV"),
        Candidate("dwa", {"epoch_steps": epoch_steps}, label="DWA"),
        Candidate("famo", label="FAMO"),
        Candidate("uncertainty"),
        Candidate("uncertainty", {"initial": "losses"}, label="uncertainty from log L(0)"),
        Candidate("gradnorm", label="GradNorm"),
        Candidate("gradnorm_closed_form", {"initial_weights": "balanced"}, label="closed form, balanced"),
        Candidate("static", label="tuned static", space={"weights": Simplex(decades=decades)}),
    ]


def toy_methods(scales: Sequence[float], *, decades: float) -> list[Candidate]:
    """The methods that are compared on the paper's toy: the baselines, PCGrad, and GradNorm in all its variants.

    Args:
        scales: The standard deviation of each task's targets.
        decades: The width of the search for static weights; see `Simplex`.
    """
    balanced = {"initial_weights": "balanced"}
    return [
        Candidate("equal"),
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("static", {"weights": tuple(1 / scale**2 for scale in scales)}, label="1 / target variance"),
        Candidate("inverse_loss_variance", label="1 / loss variance"),
        Candidate("cov", label="CoV"),
        Candidate("dwa", {"epoch_steps": 100}, label="DWA"),
        Candidate("famo", label="FAMO"),
        Candidate("uncertainty"),
        Candidate("uncertainty", {"initial": "losses"}, label="uncertainty from log L(0)"),
        Candidate("pcgrad", label="PCGrad"),
        Candidate("gradnorm", label="GradNorm"),
        *(Candidate("gradnorm", {"alpha": a}, label=f"GradNorm, alpha {a:g}") for a in (0.0, 0.12, 0.5, 3.0)),
        Candidate("gradnorm_closed_form", label="closed form"),
        Candidate("gradnorm_closed_form", balanced, label="closed form, balanced"),
        Candidate("static", label="tuned static", space={"weights": Simplex(decades=decades)}),
        Candidate("static", averaged_from="GradNorm", label="GradNorm static"),
    ]


def nested() -> list[Candidate]:
    """The closed form at both forks of a network with groups, or at one of them."""
    closed = "gradnorm_closed_form(initial_weights='balanced')"
    return [
        Candidate("nested", {"root": closed, "groups": closed}, label="nested: groups and tasks balanced"),
        Candidate("nested", {"root": closed, "groups": "equal"}, label="nested: groups balanced, tasks equal"),
        Candidate("nested", {"root": "equal", "groups": closed}, label="nested: groups equal, tasks balanced"),
    ]
