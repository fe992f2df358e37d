"""What a user runs first when the weights look wrong."""

from equipoise.diagnosis._check import check as check
from equipoise.diagnosis._report import CheckReport as CheckReport
from equipoise.diagnosis._report import Finding as Finding
