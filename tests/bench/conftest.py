import pytest

from equipoise.bench.record import Cost, Record


@pytest.fixture
def make_record():
    """Builds a record; the ratios of a method to the plain step are ``ratio``, ``1.1 ratio``, ... of round after round."""

    def make(workload="mlp_3", num_tasks=3, ratios=None, rounds=15, not_run=None, **other):
        ratios = {"gradnorm": 1.5} if ratios is None else ratios
        floor = [0.1 * (1 + r % 3) for r in range(rounds)]
        costs = {"plain": Cost(10, tuple(floor), 2**20)}
        for method, ratio in ratios.items():
            seconds = tuple(ratio * (1 + 0.1 * r) * second for r, second in enumerate(floor))
            costs[method] = Cost(1, seconds, int(1.25 * 2**20))
        environment = {"torch": "2.13.0", "threads": 1, "date": "2026-01-02T03:04:05+00:00"}
        fields = {"line": "A network.", "last_shared": "the sixth layer", "settings": {"width": 512}, "device": "cpu"}
        fields |= {"costs": costs, "not_run": not_run or {}, "environment": environment}
        return Record(workload=workload, num_tasks=num_tasks, **(fields | other))

    return make
