"""One batch looked at before training, or where the weights look wrong: the audit of the first step, as a report."""

from equipoise.check.check import check as check
from equipoise.check.report import CheckReport as CheckReport
from equipoise.check.report import Finding as Finding
