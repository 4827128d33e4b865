"""What the field knows of networks' weights, on digits: minutes, with fixed seeds, so left out of the default run."""

import jax
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from test_configs import load

from subspaces_jax import evaluation, geometry
from subspaces_jax.experiments import build, runs, train
from subspaces_jax.experiments.evaluate import passes
from subspaces_jax.networks import axes

pytestmark = pytest.mark.slow
FIELDS = dict(augmentation="none", num_epochs=40, learning_rate=0.05)
PLAIN = dict(subspace="none", beta=0.0)


def networks(config, folder):
    train.run(config, folder)
    run = runs.open_run(folder)
    return runs.networks(run, "endpoints").stack, run.experiment


def losses(stack, made, num_points=11):
    """The test loss along the segment between two rows, statistics refreshed at each point."""
    points = geometry.Line().grid(num_points)
    shared = passes(made) | {
        "keep_outputs": False,
        "batch_stats": made.model.init(jax.random.key(0), 1).get("batch_stats", {}),
    }
    return evaluation.along(stack, points, with_pairs=False, **shared)["nll"]


def test_the_midpoint_of_a_trained_line_is_no_worse_than_that_between_two_networks(tmp_path):
    fields = FIELDS | dict(network="cifar_resnet_8_8", learning_rate=0.1)
    line, made = networks(load("line_digits", **fields), tmp_path / "line")
    ends = [networks(load("line_digits", seed=seed, **fields | PLAIN), tmp_path / str(seed))[0] for seed in (0, 1)]
    apart = jax.tree.map(lambda *rows: np.concatenate(rows), *ends)
    of_line, of_two = losses(line, made), losses(apart, made)
    barrier = lambda values: values.max() - 0.5 * (values[0] + values[-1])
    assert of_line[5] <= of_two[5] and barrier(of_line) < 0.5 * barrier(of_two)


def matched(stack, table):
    """The second of two networks of one hidden layer, its units put in the places of the first's most alike ones."""
    units = axes.units(table, jax.tree.map(lambda leaf: leaf[0], stack))
    ((name, num),) = units.items()
    rows = [[], []]
    for leaf, axis in table.items():
        module, weight = leaf.split("/")
        for k in (0, 1):
            if name in axis:
                values = np.moveaxis(np.asarray(stack[module][weight][k]), axis.index(name), 0).reshape(num, -1)
                rows[k].append(values)
    a, b = (np.concatenate(parts, axis=1) for parts in rows)
    order = linear_sum_assignment(a @ b.T, maximize=True)[1]

    def permuted(module, weight, leaf):
        axis = table[f"{module}/{weight}"]
        return np.take(leaf, order, axis=axis.index(name)) if name in axis else leaf

    second = {m: {w: permuted(m, w, np.asarray(leaf[1])) for w, leaf in of.items()} for m, of in stack.items()}
    return jax.tree.map(lambda first, other: np.stack([np.asarray(first[0]), other]), stack, second)


def test_the_barrier_after_matching_is_smaller_than_before(tmp_path):
    """By the axis table of the network and exact assignment; the matched network computes what it did."""
    config = load("line_digits", **FIELDS | PLAIN | dict(network="mlp_512"))
    first, made = networks(config, tmp_path / "0")
    second, _ = networks(config | {"seed": 1}, tmp_path / "1")
    stack = jax.tree.map(lambda *rows: np.concatenate(rows), first, second)
    after = matched(stack, build.experiment(config).model.network.unit_axes())
    values, of_matched = losses(stack, made), losses(after, made)
    np.testing.assert_allclose(of_matched[[0, -1]], values[[0, -1]], rtol=1e-3)
    assert of_matched.max() - of_matched[[0, -1]].max() < 0.5 * (values.max() - values[[0, -1]].max())
