"""The problems of the lab, by the name that the command line knows them by."""

from equipoise.lab._problem import Problem
from equipoise.lab.problems._multimnist import MultiMNIST as MultiMNIST
from equipoise.lab.problems._toy import Toy as Toy
from equipoise.lab.problems._yeast import Yeast as Yeast

PROBLEMS: dict[str, type[Problem]] = {"toy": Toy, "yeast": Yeast, "multimnist": MultiMNIST}
"""Every problem that comes with the library."""
