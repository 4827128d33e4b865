"""Assignments against brute force and planted permutations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import made, planted

from subspaces_jax.connecting.activations import match_activations
from subspaces_jax.connecting.matching import match, match_networks
from subspaces_jax.connecting.permutations import compose, identity, invert, permute
from subspaces_jax.connecting.products import inner_products
from subspaces_jax.connecting.universe import match_universe
from subspaces_jax.networks import MLP, CifarResNet, ConvFC, PreResNet, axes


def same(found, expected):
    assert found.keys() == expected.keys()
    for axis in expected:
        np.testing.assert_array_equal(found[axis], expected[axis], err_msg=axis)


@pytest.mark.parametrize("where", ["host", "device"])
def test_matching_has_the_least_cost_of_all_permutations(where):
    generator = np.random.default_rng(3)
    for n, d in ((1, 2), (4, 1), (6, 3)) if where == "host" else ((6, 3),):
        a, b = generator.normal(size=(n, d)), generator.normal(size=(n, d)) + 100.0  # far from the origin
        costs = np.sum((a[:, None] - b[None]) ** 2, axis=-1)
        best = min(itertools.permutations(range(n)), key=lambda order: costs[np.arange(n), order].sum())
        np.testing.assert_array_equal(match(a, b, where), best)


def test_inner_products_of_split_float32_have_the_digits_of_float64():
    generator = np.random.default_rng(4)
    a = np.maximum(generator.normal(size=(1000, 5)), 0).astype(np.float32)
    b = (generator.normal(size=(1000, 3)) * 10.0 ** generator.integers(-4, 4, 3) + 1e3).astype(np.float32)
    b[:, 0] = 0.0
    exact = np.array([[sum(map(np.longdouble, x * y)) for y in b.T.astype(np.longdouble)] for x in a.T])
    np.testing.assert_allclose(inner_products(a, b, "device"), exact.astype(np.float64), rtol=1e-10)
    with pytest.raises(ValueError, match=r"\[N, n\] and \[N, m\]"):
        inner_products(a, b[1:])
    with pytest.raises(ValueError, match="'host' or 'device', got 'moon'"):
        inner_products(a, b, "moon")


NETWORKS = [
    (MLP(3, (5, 8, 6)), (7,)),
    (ConvFC(3, (3, 4), (5,)), (9, 9, 2)),
    (CifarResNet(3, 8, 4), (8, 8, 3)),
    (PreResNet(3, 8, 4), (8, 8, 3)),
]


@pytest.mark.parametrize("network, shape", NETWORKS, ids=lambda of: type(of).__name__)
def test_weight_matching_recovers_a_planted_permutation(network, shape):
    params, table = made(network, shape), network.unit_axes()
    moved, expected = planted(params, table)
    noisy = jax.tree.map(lambda leaf, other: leaf + 0.05 * other, moved, made(network, shape, 5))
    same(match_networks(params, noisy, table), expected)


@pytest.mark.parametrize("network, shape", NETWORKS[:2], ids=lambda of: type(of).__name__)
def test_forward_matching_recovers_a_planted_permutation(network, shape):
    params, table = made(network, shape), network.unit_axes()
    moved, expected = planted(params, table)
    same(match_networks(params, moved, table, "incoming"), expected)


def test_of_one_hidden_layer_full_matching_is_that_of_whole_neurons():
    network, shape = MLP(2, (5,)), (3,)
    a, b = made(network, shape, 1), made(network, shape, 2)
    whole = [
        np.concatenate(
            [np.asarray(p["Dense_0"]["kernel"]).T, np.asarray(p["Dense_0"]["bias"])[:, None], p["Dense_1"]["kernel"]], 1
        )
        for p in (a, b)
    ]
    cost = lambda order, of: np.sum((of[0] - of[1][list(order)]) ** 2)
    best = min(itertools.permutations(range(5)), key=lambda order: cost(order, whole))
    np.testing.assert_array_equal(match_networks(a, b, network.unit_axes(), "full")["h0"], best)
    incoming = [of[:, :4] for of in whole]
    best = min(itertools.permutations(range(5)), key=lambda order: cost(order, incoming))
    np.testing.assert_array_equal(match_networks(a, b, network.unit_axes(), "incoming")["h0"], best)


def test_weight_matching_ends_where_no_change_of_one_axis_helps():
    network = MLP(2, (4, 4))
    a, b, table = made(network, (3,), 1), made(network, (3,), 2), network.unit_axes()
    found = match_networks(a, b, table, start=identity(a, table))
    inner = lambda orders: sum(
        float(np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64)))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(permute(b, table, orders)))
    )
    best = inner(found)
    for axis in found:
        for order in itertools.permutations(range(4)):
            assert inner(found | {axis: np.array(order)}) <= best + 1e-5


@pytest.mark.parametrize("measure", ["correlation", "distance"])
def test_activation_matching_recovers_a_planted_permutation(measure):
    network = ConvFC(3, (3, 4), (4,))
    params, table = made(network, (9, 9, 2)), network.unit_axes()
    params = jax.tree.map(lambda leaf: np.abs(leaf) if leaf.ndim == 1 else leaf, params)  # no unit is dead
    moved, expected = planted(params, table)
    images = np.random.default_rng(1).normal(size=(3, 16, 9, 9, 2)).astype(np.float32)

    @jax.jit
    def activations(params, images):
        return axes.sown(
            network.apply({"params": params}, images, mutable=["intermediates"])[1]["intermediates"], table
        )

    same(match_activations(activations, params, moved, table, images, measure), expected)
    with pytest.raises(ValueError, match="no batch"):
        match_activations(activations, params, moved, table, ())


def test_activation_measures_are_those_of_numpy():
    generator = np.random.default_rng(2)
    a, b = generator.normal(size=(2, 40, 5)) * [[[1.0, 2.0, 3.0, 4.0, 5.0]]] + 3.0
    a[:, 2] = 1.0  # never changes
    table = {"x": ("u",)}
    look = lambda variables, images: {"u": [jnp.asarray(variables["x"][images], jnp.float32)]}
    batches = np.split(np.arange(40), [7, 30])
    of = lambda similarities: max(
        itertools.permutations(range(5)), key=lambda order: similarities[np.arange(5), order].sum()
    )
    with np.errstate(invalid="ignore"):
        correlations = np.nan_to_num(np.corrcoef(a.T, b.T)[:5, 5:])
    found = match_activations(look, {"x": a}, {"x": b}, table, batches)["u"]
    assert correlations[np.arange(5), found].sum() == pytest.approx(correlations[np.arange(5), of(correlations)].sum())
    costs = np.sum((a[:, :, None] - b[:, None]) ** 2, axis=0)
    np.testing.assert_array_equal(
        match_activations(look, {"x": a}, {"x": b}, table, batches, "distance")["u"], of(-costs)
    )


RESIDUAL = {"in": (None, "s"), "up": ("s", "h"), "down": ("h", "s"), "out": ("flattened:s", None)}


def test_a_universe_brings_permuted_copies_together():
    """A residual network of a stream and an inner map, which is flattened at its end."""
    generator, table = np.random.default_rng(0), RESIDUAL
    shapes = {"in": (3, 6), "up": (6, 5), "down": (5, 6), "out": (12, 2)}
    params = {name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    copies = [params, *(planted(params, table, seed)[0] for seed in (1, 2))]
    found = match_universe(copies, table)
    moved = [permute(net, table, orders) for net, orders in zip(copies, found.permutations)]
    for other in moved[1:]:
        jax.tree.map(np.testing.assert_array_equal, moved[0], other)
    between = compose(found.permutations[1], invert(found.permutations[0]))
    jax.tree.map(np.testing.assert_array_equal, permute(copies[1], table, between), params)


def test_a_universe_of_random_networks_rises_and_never_ends_below_its_start():
    network, shape = MLP(3, (6, 5)), (4,)  # four networks that have nothing in common
    networks, table = [made(network, shape, seed) for seed in range(4)], network.unit_axes()

    def by_hand(permutations):
        flat = [
            np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in jax.tree.leaves(permute(net, table, orders))])
            for net, orders in zip(networks, permutations)
        ]
        return sum(np.dot(a, b) for a, b in itertools.combinations(flat, 2))

    nothing = [identity(net, table) for net in networks]
    found = match_universe(networks, table, start=nothing)
    assert np.all(np.diff(found.objective[:-1]) > 0) and len(found.objective) > 2
    assert found.objective[0] == pytest.approx(by_hand(nothing), rel=1e-4)
    assert found.objective[-1] == pytest.approx(by_hand(found.permutations), rel=1e-4)
    assert by_hand(found.permutations) > by_hand(nothing)
    pairwise = [nothing[0], *(match_networks(networks[0], net, table) for net in networks[1:])]
    assert by_hand(match_universe(networks, table).permutations) >= by_hand(pairwise) - 1e-4


def test_bad_input_is_named():
    a, b = made(MLP(2, (5,)), (3,)), made(MLP(2, (6,)), (3,))
    table = MLP(2, (5,)).unit_axes()
    with pytest.raises(ValueError, match=r"expected units \[n, d\]"):
        match(np.zeros((2, 3)), np.zeros((3, 3)))
    with pytest.raises(ValueError, match="not finite"):
        match(np.full((2, 2), np.nan), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"Dense_0/bias \(6,\) instead of \(5,\)"):
        match_networks(a, b, table)
    with pytest.raises(ValueError, match="rule is one of weights, incoming, full"):
        match_networks(a, a, table, "hungarian")
    with pytest.raises(ValueError, match="at least 2 networks"):
        match_universe([a], table)
    with pytest.raises(ValueError, match="differ in Dense_1/bias"):
        match_networks(a, a, {name: row for name, row in table.items() if name != "Dense_1/bias"})
    with pytest.raises(ValueError, match="measure is one of"):
        match_activations(None, a, a, table, (), "cosine")
