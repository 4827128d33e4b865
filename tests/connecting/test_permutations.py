"""Permuted networks against the originals' outputs; orders by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import made

from subspaces_jax.connecting.permutations import (
    compose,
    function_difference,
    identity,
    invert,
    permute,
    permute_batch_stats,
)
from subspaces_jax.networks import MLP, ConvFC

RNG = np.random.default_rng(0)


def orders(params, table):
    return {axis: RNG.permutation(order) for axis, order in identity(params, table).items()}


@pytest.mark.parametrize("network, shape", [(MLP(3, (5, 6)), (7,)), (ConvFC(3, (2, 3), (4,)), (9, 9, 2))])
def test_a_permuted_network_computes_the_same_function_with_other_weights(network, shape, getkey):
    images = jax.random.normal(getkey(), (4, *shape))
    params, table = made(network, shape), network.unit_axes()
    apply = jax.jit(lambda params, images: network.apply({"params": params}, images))
    around = {axis: np.roll(order, 1) for axis, order in identity(params, table).items()}
    moved = permute(params, table, around)
    assert function_difference(apply, params, moved, images) < 1e-5
    wrong = moved | {"Dense_0": params["Dense_0"]}
    assert function_difference(apply, params, wrong, images) > 1e-2
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(moved)) if a.size > 3)


def test_rows_of_a_flattened_map_move_position_by_position():
    table = {"c": ("u",), "d": ("flattened:u", None)}
    params = {"c": jnp.array([0.0, 1.0]), "d": jnp.arange(6.0)[:, None]}
    moved = permute(params, table, {"u": np.array([1, 0])})
    np.testing.assert_array_equal(moved["c"], [1, 0])
    np.testing.assert_array_equal(moved["d"][:, 0], [1, 0, 3, 2, 5, 4])


def test_composition_is_one_permutation_after_the_other_and_the_inverse_undoes_it():
    network = MLP(3, (5, 6))
    params, table = made(network, (4,)), network.unit_axes()
    first, then = orders(params, table), orders(params, table)
    twice, once = permute(permute(params, table, first), table, then), permute(params, table, compose(first, then))
    back = permute(twice, table, invert(compose(first, then)))
    for a, b in ((twice, once), (back, params)):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert compose({"h0": np.array([1, 0])}, {"h1": np.array([0])}).keys() == {"h0", "h1"}


def test_statistics_move_with_the_scales_beside_them():
    table = {"BatchNorm_0/scale": ("u",), "BatchNorm_0/bias": ("u",)}
    stats = {"BatchNorm_0": {"mean": jnp.array([1.0, 2.0, 3.0]), "var": jnp.array([4.0, 5.0, 6.0])}}
    moved = permute_batch_stats(stats, table, {"u": np.array([2, 0, 1])})["BatchNorm_0"]
    np.testing.assert_array_equal(moved["mean"], [3, 1, 2])
    np.testing.assert_array_equal(moved["var"], [6, 4, 5])
    with pytest.raises(ValueError, match="no scale beside BatchNorm_0/mean, BatchNorm_0/var"):
        permute_batch_stats(stats, {}, {})


@pytest.mark.parametrize(
    "table, wanted, message",
    [
        ({"a": ("u",)}, {}, "axis table and parameters differ in b"),
        ({"a": ("u",), "b": ("u",)}, {"v": np.arange(2)}, "no units 'v': the axis table has u"),
        ({"a": ("u",), "b": ("u",)}, {"u": np.array([0, 0])}, "the order of u is no permutation of its 2 units"),
        ({"a": ("u",), "b": ("u",)}, {"u": np.arange(3)}, "the order of u is no permutation of its 2 units"),
    ],
)
def test_bad_input_is_named(table, wanted, message):
    with pytest.raises(ValueError, match=message):
        permute({"a": jnp.zeros(2), "b": jnp.zeros(2)}, table, wanted)
