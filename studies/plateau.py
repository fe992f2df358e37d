"""Why does uncertainty weighting reach a plateau while other methods go on?

Ten tasks of the toy at a constant learning rate, as in the paper, with interventions: s that starts at log L(0), s that
moves ten times as fast, weights scaled to the sum T, and an optimiser that forgets faster (beta2 = 0.99). Then a
problem on which all losses fall far below L(0), for the paper's own account: that the weights of uncertainty weighting
grow too large there.

Budget: 3 problems, 7 methods with 7 learning rates each, 1 tuning seed and 5 final seeds, 5000 steps: 250 runs, trained
together; about 16 minutes on one core. A larger machine would add steps: the paper shows 25,000.
"""

from equipoise.lab import Candidate, Range, Study, load_problem

TOY = {"size": "fifth", "num_tasks": 10, "steps": 5000}

study = Study(
    title="The plateau of uncertainty weighting",
    expectation=(
        "With ten tasks, uncertainty weighting from 0 has the largest loss and falls least at the end: its weights "
        "fall by orders of magnitude at once, and Adam's second moment remembers the large gradients from before. A "
        "start at log L(0) removes most of it, the sum T and beta2 = 0.99 some. Where all losses fall far below L(0), "
        "its weights grow without bound, and it is not behind the others."
    ),
    problems=[
        load_problem("toy", TOY),
        load_problem("toy", {**TOY, "betas": (0.9, 0.99)}),
        load_problem("conflict", {"capacity": "large", "degree": 0.25, "scale_ratio": 10.0, "steps": 5000}),
    ],
    methods=[
        Candidate("equal"),
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("gradnorm", label="GradNorm"),
        Candidate("uncertainty"),
        Candidate("uncertainty", {"initial": "losses"}, label="uncertainty from log L(0)"),
        Candidate("uncertainty", {"lr": 0.25}, label="uncertainty, rate of s tenfold"),
        Candidate("uncertainty", {"normalize": True}, label="uncertainty, sum of weights T"),
    ],
    space={"learning_rate": Range(2e-4, 1e-1, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=range(100, 105),
    sampler="sobol",
    vectorized=True,
)
