"""The methods that all studies of this project have in common, under the same labels."""

from __future__ import annotations

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


def nested() -> list[Candidate]:
    """The closed form at both forks of a network with groups, or at one of them."""
    closed = "gradnorm_closed_form(initial_weights='balanced')"
    return [
        Candidate("nested", {"root": closed, "groups": closed}, label="nested: groups and tasks balanced"),
        Candidate("nested", {"root": closed, "groups": "equal"}, label="nested: groups balanced, tasks equal"),
        Candidate("nested", {"root": "equal", "groups": closed}, label="nested: groups equal, tasks balanced"),
    ]
