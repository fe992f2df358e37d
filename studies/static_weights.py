"""Random static weights, and how far they lie from the weights that GradNorm has on average: the paper's figure.

All at one learning rate, as in the paper. The distance is that of the logarithms of the weights.

Budget: 2 problems, 63 static weights at Sobol's points with 1 seed, GradNorm and equal weights, 5 final seeds, 3000
steps: 180 runs, trained together; about 5 minutes on one core.
"""

from equipoise.lab import Candidate, Simplex, Study, load_problem

study = Study(
    title="Random static weights and the weights of GradNorm",
    expectation=(
        "As the paper says, the farther static weights lie from GradNorm's mean weights, the worse they are with ten "
        "tasks; with two tasks the best static weights do not lie at GradNorm's."
    ),
    problems=[
        load_problem(
            "toy", {"size": "fifth", "num_tasks": tasks, "schedule": "cosine", "steps": 3000, "learning_rate": 0.01}
        )
        for tasks in (2, 10)
    ],
    methods=[
        Candidate("equal"),
        Candidate("inverse_initial_loss", label="1 / L(0)"),
        Candidate("gradnorm", label="GradNorm"),
        Candidate("static", averaged_from="GradNorm", label="GradNorm static"),
        Candidate("static", label="tuned static", space={"weights": Simplex(decades=3)}, trials=63),
    ],
    space={},
    trials=1,
    tuning_seeds=[0],
    seeds=range(100, 105),
    sampler="sobol",
    vectorized=True,
)
