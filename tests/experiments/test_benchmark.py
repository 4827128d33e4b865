"""The benchmark's rows, on the smallest network: that each does its work, never how long it takes."""

import numpy as np
import pytest

from subspaces_jax.experiments import benchmarks


@pytest.fixture(scope="module")
def measured():
    return benchmarks.run(benchmarks.Problem("mlp_8", 8, 3, 16), rounds=1, peer=lambda problem, steps: lambda: None)


def test_every_row_is_measured(measured):
    assert len(measured) == 14 and len({row.name for row in measured}) == 14
    assert all(row.low <= row.ratio <= row.high and np.isfinite(row.ratio) and row.seconds > 0 for row in measured)
    assert benchmarks.table(measured).count("\n") == 14


def test_ratios_are_of_runs_in_turn():
    calls = []
    row = benchmarks.compare("x", lambda: calls.append("ours"), lambda: calls.append("base"), rounds=2)
    assert calls == ["ours", "base", "base", "ours", "ours", "base"] and row.name == "x"
