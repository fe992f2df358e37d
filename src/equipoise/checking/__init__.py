"""One batch looked at before training, or where the weights look wrong: the audit of the first step, as a report."""

from equipoise.checking.check import check as check
from equipoise.checking.report import CheckReport as CheckReport
from equipoise.checking.report import Finding as Finding
