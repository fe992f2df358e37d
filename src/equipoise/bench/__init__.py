"""The cost of balancing: time and memory of a training step, beside a plain one and beside other packages."""
