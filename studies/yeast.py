"""Fourteen functions of yeast genes: does balancing matter where all losses are of one size?

Budget: 310 runs of 200 steps at 1.5 s, 8 minutes on one core. Tuned static weights have as many trials as any other method,
which is few for fourteen weights. A larger machine would add tuning seeds and 8 trials for every weight that is searched.
"""

from equipoise.lab import Candidate, Range, Study, load_problem
from equipoise.lab.studies.baselines import baselines

study = Study(
    title="Yeast: fourteen functions of a gene",
    expectation=(
        "All losses are cross entropies of a similar size. With the learning rate tuned, no method is ahead of equal "
        "weights by more than 2 % of the task-normalised test loss, GradNorm and 1 / L(0) are level with them, and "
        "static weights from seven trials are no better than equal ones. Every way of joint training is ahead of "
        "single-task training in the mean AUROC."
    ),
    problems=[load_problem("yeast", {})],
    methods=[
        *baselines(epoch_steps=11, decades=1),
        Candidate("static", averaged_from="GradNorm", label="GradNorm static"),
        Candidate("single_task", label="single task"),
    ],
    space={"learning_rate": Range(3e-4, 3e-2, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=[100, 101, 102, 103, 104],
    steps=200,
    sampler="sobol",
)
