"""Two overlaid digits: the benchmark on which combining task gradients was first shown, with a small convolutional network.

Budget: 168 runs of 400 steps at 9 s, 25 minutes on one core. The digits are the 5000 that a package carries. A larger machine
would add tuning seeds, runs to rest, all 60,000 digits, and MGDA. Before the expectation was written two runs had been seen,
with equal weights and with GradNorm, at the problem's own learning rate.
"""

from equipoise.lab import Candidate, Range, Study, load_problem
from equipoise.lab.studies.baselines import baselines

study = Study(
    title="Two overlaid digits",
    expectation=(
        "Both losses are cross entropies over ten digits and of one size, so that 1 / L(0) is level with equal weights. "
        "No method is ahead of equal weights by more than 2 % of the task-normalised test loss or by 0.01 of the mean "
        "accuracy, PCGrad included. Single-task training is ahead of equal weights in the mean accuracy. Static weights "
        "from seven trials are no better than equal ones."
    ),
    problems=[load_problem("multimnist", {})],
    methods=[
        *baselines(epoch_steps=79, decades=1),
        Candidate("pcgrad", label="PCGrad"),
        Candidate("static", averaged_from="GradNorm", label="GradNorm static"),
        Candidate("single_task", label="single task"),
    ],
    space={"learning_rate": Range(3e-4, 3e-2, log=True)},
    trials=7,
    tuning_seeds=[0],
    seeds=[100, 101, 102, 103, 104],
    steps=400,
    sampler="sobol",
)
