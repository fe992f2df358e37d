"""Many runs of a small problem at once.

A step of a small network spends its time on calling operations rather than on computing. Here the networks of many runs are
stacked, and every operation is done for all of them by `torch.vmap`. The methods' own update rules are used, run by run.
"""
