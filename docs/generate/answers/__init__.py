"""The answers to the questions of the paper's reviewers: nine pages from the committed records of studies.

``python -m docs.generate.answers`` writes them. With ``keep NAME FOLDER`` it takes over the records of ``equipoise study
studies/NAME.py --runs FOLDER``; with ``rerun NAME`` it does one run of a committed record again, drawn at random or given by
the first digits of its key, and says whether the test losses and metrics are the same to the last digit.
"""
