"""The paper's toy at a fifth of its size, with two tasks: does any way of balancing beat equal weights once all are tuned?"""

from equipoise.lab import Candidate, Range, Simplex, Study, load_problem

TRIALS = 12

study = Study(
    title="The toy at a fifth of its size, two tasks",
    expectation=(
        "With the learning rate tuned for every method, 1 / L(0), tuned static weights and GradNorm in closed form, balanced "
        "from the first batch, are level; GradNorm as published and uncertainty weighting are behind. Uncertainty weighting "
        "that starts at log L(0) closes its gap."
    ),
    problems=[load_problem("toy", {"size": "fifth", "num_tasks": 2})],
    methods=[
        Candidate("equal"),
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("uncertainty"),
        Candidate("uncertainty", {"initial": "losses"}, label="uncertainty from log L(0)"),
        Candidate("gradnorm"),
        Candidate("gradnorm_closed_form", {"initial_weights": "balanced"}, label="closed form, balanced"),
        Candidate("static", label="tuned static", space={"weights": Simplex(decades=5)}),
        Candidate("static", averaged_from="gradnorm", label="GradNorm static"),
        Candidate("single_task", label="single task"),
    ],
    space={"learning_rate": Range(3e-4, 1e-1, log=True)},
    trials=TRIALS,
    tuning_seeds=[0, 1],
    seeds=[100, 101, 102, 103, 104],
    steps=2000,
)
