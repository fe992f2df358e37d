"""Twelve assays of toxicity: imbalanced labels, a part of them missing.

Budget: 137 runs of 300 steps at 5 s, 11 minutes on one core. Without single-task training, whose twelve searches would take as
long as the rest. A larger machine would add it, tuning seeds, and 8 trials for every weight that is searched.
"""

from equipoise.lab import Candidate, Range, Study, load_problem
from equipoise.lab.studies.baselines import baselines

study = Study(
    title="Tox21: twelve assays",
    expectation=(
        "Before training all losses are log 2, so that 1 / L(0) is level with equal weights. No method is ahead of "
        "equal weights by more than 2 % of the task-normalised test loss or by 0.01 of the mean AUROC; GradNorm is "
        "level with them. Static weights from seven trials are no better than equal ones."
    ),
    problems=[load_problem("tox21", {})],
    methods=[
        *baselines(epoch_steps=48, decades=1),
        Candidate("static", averaged_from="GradNorm", label="GradNorm static"),
    ],
    space={"learning_rate": Range(3e-4, 3e-2, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=[100, 101, 102, 103, 104],
    steps=300,
    sampler="sobol",
)
