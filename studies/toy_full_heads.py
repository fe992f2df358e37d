"""The paper's toy at its full size, two tasks: Adam's memory, and heads that know their scale, by intervention.

The interventions of `toy_causes`, in runs as long as those of `toy_full_long`, which have neither.

Budget: 2 problems, 3 methods with 3 learning rates each, 1 tuning seed and 5 final seeds, 8000 steps: 48 runs, trained
together; about 13 minutes on one core. A larger machine would add both at once, other methods and seeds.
"""

from equipoise.lab import Candidate, Range, Study, load_problem

study = Study(
    title="The toy at its full size: Adam's memory and heads that know their scale",
    expectation=(
        "As at a fifth of the size: with beta2 = 0.99 the gap of GradNorm to 1 / L(0) is half of what it is with 0.999 or "
        "less. With heads in proportion to their scale, the gap of the closed form balanced from the first batch is half of "
        "what it is without or less."
    ),
    problems=[
        load_problem("toy", {"num_tasks": 2, "schedule": "cosine", "steps": 8000, **intervention})
        for intervention in ({"betas": (0.9, 0.99)}, {"scaled_heads": True})
    ],
    methods=[
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("gradnorm", label="GradNorm"),
        Candidate("gradnorm_closed_form", {"initial_weights": "balanced"}, label="closed form, balanced"),
    ],
    space={"learning_rate": Range(1e-3, 1.6e-2, log=True)},
    trials=3,
    tuning_seeds=[0],
    seeds=range(100, 105),
    sampler="sobol",
    reference="1 / L(0)",
    vectorized=True,
)
