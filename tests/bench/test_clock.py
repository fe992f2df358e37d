import gc

import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.bench.clock import interleaved, steps_at_a_stretch, warm_up


def test_methods_take_turns():
    taken = []
    steps = {name: (lambda name=name: taken.append(name), number) for name, number in (("a", 2), ("b", 1), ("c", 3))}
    seconds = interleaved(steps, 2, torch.device("cpu"))
    assert "".join(taken) == "aabcccaabccc"
    assert {name: len(found) for name, found in seconds.items()} == {"a": 2, "b": 2, "c": 2}
    assert all(second > 0 for found in seconds.values() for second in found)
    assert gc.get_freeze_count() == 0


def test_warming_up_goes_through_a_whole_period():
    taken = []
    warm_up(lambda: taken.append(1), 10)
    assert len(taken) > 10


@given(st.floats(1e-5, 10), st.sampled_from([1, 10]))
def test_a_stretch_is_long_enough_and_of_whole_periods(seconds, period):
    steps = steps_at_a_stretch(seconds, period)
    assert steps % period == 0
    assert steps * seconds >= 0.05 * (1 - 1e-9)
    assert steps == period or (steps - period) * seconds < 0.05
