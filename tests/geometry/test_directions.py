"""Directions against NumPy: norms filter by filter, and the singular value decomposition of flattened networks."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax.geometry import contract, principal_directions, random_directions

SHAPES = {"Conv_0": {"kernel": (3, 3, 2, 4)}, "Dense_0": {"kernel": (5, 3), "bias": (3,)}, "Norm_0": {"scale": (4,)}}


def drawn(*leading):
    """A tree of normal weights of the shapes above, after `leading`."""
    rng = np.random.default_rng(3)
    draw = lambda shape: (2 * rng.normal(size=(*leading, *shape))).astype(np.float32)
    return jax.tree.map(draw, SHAPES, is_leaf=lambda shape: isinstance(shape, tuple))


@pytest.fixture
def params():
    return drawn()


def flat(stacked):
    leaves = [np.asarray(leaf, np.float64).reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(stacked)]
    return np.concatenate(leaves, axis=1)


def test_filters_have_the_norms_of_the_networks(params, getkey):
    directions = random_directions(params, getkey(), num=3)
    for layer in ("Conv_0", "Dense_0"):
        weights, found = (np.asarray(tree[layer]["kernel"], np.float64) for tree in (params, directions))
        for unit in range(weights.shape[-1]):
            for k in range(3):
                np.testing.assert_allclose(
                    np.linalg.norm(found[k, ..., unit]), np.linalg.norm(weights[..., unit]), rtol=1e-5
                )
    assert not np.any(directions["Dense_0"]["bias"]) and not np.any(directions["Norm_0"]["scale"])
    first, second, third = flat(directions)
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in ((first, second), (second, third))]
    assert np.max(np.abs(cosines)) < 0.5, "directions are drawn apart"


def test_layers_have_the_norms_of_the_networks(params, getkey):
    directions = random_directions(params, getkey(), normalise="layer", ignore_one_dimensional=False)
    for weights, found in zip(jax.tree.leaves(params), jax.tree.leaves(directions)):
        for one in np.asarray(found):
            np.testing.assert_allclose(np.linalg.norm(one), np.linalg.norm(weights), rtol=1e-5)
    unit_norms = np.linalg.norm(np.asarray(directions["Dense_0"]["kernel"])[0], axis=0)
    assert not np.allclose(unit_norms, np.linalg.norm(np.asarray(params["Dense_0"]["kernel"]), axis=0), rtol=1e-2)


def test_one_dimensional_leaves_are_random_where_they_count(params, getkey):
    """The paper's code copies the weights there, so that its directions share them."""
    directions = random_directions(params, getkey(), ignore_one_dimensional=False)
    bias, (first, second) = np.asarray(params["Dense_0"]["bias"]), np.asarray(directions["Dense_0"]["bias"])
    np.testing.assert_allclose(np.linalg.norm(first), np.linalg.norm(bias), rtol=1e-5)
    assert not np.allclose(np.abs(first), np.abs(bias), rtol=1e-2) and not np.allclose(first, second, rtol=1e-2)


def test_without_normalisation_directions_are_standard_normal(getkey):
    weights = {"kernel": np.full((50, 40), 100.0, np.float32)}
    found = np.asarray(random_directions(weights, getkey(), normalise="none")["kernel"])
    assert abs(found.mean()) < 0.1 and abs(found.std() - 1.0) < 0.1


def test_biases_of_several_axes_are_ignored_too_and_zeros_stay(getkey):
    params = {"query": {"kernel": np.ones((4, 2, 3), np.float32), "bias": np.ones((2, 3), np.float32)}}
    params["query"]["kernel"][..., 1] = 0.0
    directions = jax.tree.map(np.asarray, random_directions(params, getkey())["query"])
    assert not np.any(directions["bias"]) and not np.any(directions["kernel"][..., 1])
    assert np.all(np.isfinite(directions["kernel"])) and np.all(directions["kernel"][..., 0])


def test_a_leafs_direction_depends_on_its_name_and_the_key(params, getkey):
    key = getkey()
    whole, part = random_directions(params, key), random_directions({"Conv_0": params["Conv_0"]}, key)
    chex.assert_trees_all_equal(whole["Conv_0"], part["Conv_0"])
    other = random_directions(params, getkey())
    assert not np.allclose(whole["Conv_0"]["kernel"], other["Conv_0"]["kernel"])


def test_half_precision_stays_and_is_normalised(getkey):
    kernel = np.random.default_rng(0).normal(size=(300, 2)).astype(np.float16)
    found = np.asarray(random_directions({"kernel": kernel}, getkey())["kernel"])
    assert found.dtype == np.float16
    norms = np.linalg.norm(found[0].astype(np.float64), axis=0)
    np.testing.assert_allclose(norms, np.linalg.norm(kernel.astype(np.float64), axis=0), rtol=1e-2)


def test_directions_that_cannot_be_drawn_are_refused(params, getkey):
    with pytest.raises(ValueError, match="normalise is one of filter, layer, none, got 'row'"):
        random_directions(params, getkey(), normalise="row")
    with pytest.raises(ValueError, match="at least 1 direction, got num = 0"):
        random_directions(params, getkey(), num=0)
    with pytest.raises(ValueError, match="no leaf has two axes.* bias"):
        random_directions({"bias": np.ones(3)}, getkey())


@pytest.mark.parametrize("about", ["last", "mean"])
def test_principal_directions_are_singular_vectors(about):
    stacked = drawn(6)
    found = principal_directions(stacked, 3, about)
    rows = flat(stacked)
    differences = rows - (rows[-1] if about == "last" else rows.mean(0))
    _, singular, vectors = np.linalg.svd(differences, full_matrices=False)
    np.testing.assert_allclose(found.explained, (singular**2 / np.sum(singular**2))[:3], rtol=1e-6)
    directions = flat(found.directions)
    np.testing.assert_allclose(directions @ directions.T, np.eye(3), atol=1e-5)
    np.testing.assert_allclose(np.abs(directions @ vectors[:3].T), np.eye(3), atol=1e-5)
    np.testing.assert_allclose(found.coordinates, differences @ directions.T, atol=1e-5)
    assert np.all(found.coordinates[np.argmax(np.abs(found.coordinates), axis=0), range(3)] > 0)


def test_all_principal_directions_give_the_networks_back():
    stacked = drawn(4)
    found = principal_directions(stacked, 3)
    np.testing.assert_allclose(found.explained.sum(), 1.0)
    tree = jax.tree.map(lambda leaf, directions: np.concatenate([leaf[-1:], directions]), stacked, found.directions)
    for m, coordinates in enumerate(found.coordinates):
        point = contract(tree, jnp.asarray([1.0, *coordinates], jnp.float32))
        chex.assert_trees_all_close(point, jax.tree.map(lambda leaf: leaf[m], stacked), atol=1e-5)


def test_networks_on_a_line_span_one_direction():
    ends, shares = drawn(2), np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]], np.float32)
    line = jax.tree.map(lambda leaf: np.tensordot(shares, leaf, 1), ends)
    np.testing.assert_allclose(principal_directions(line, 1).explained, [1.0])
    same = jax.tree.map(lambda leaf: leaf[[0, 0, 0]], ends)
    for about in ("last", "mean"):
        with pytest.raises(ValueError, match="span 0 directions"):
            principal_directions(same, 1, about)
    with pytest.raises(ValueError, match="2 networks span 1 directions about their last, got num = 2"):
        principal_directions(ends, 2)
    with pytest.raises(ValueError, match="'last' or 'mean', got 'first'"):
        principal_directions(line, 1, "first")


@pytest.mark.parametrize("normalise", ["filter", "layer", "none"])
def test_orthogonal_directions_of_stacked_layers_are_so_in_each_layer_and_have_its_norm(normalise, getkey):
    """A leaf of five layers of very different norms; the leaf beside it stays."""
    rng = np.random.default_rng(4)
    kernel = (rng.normal(size=(5, 4, 3)) * 10.0 ** np.arange(5)[:, None, None]).astype(np.float32)
    params = {"blocks": {"kernel": kernel}, "readin": {"kernel": np.ones((2, 3), np.float32)}}
    options = dict(orthogonal=True, fixed=("readin/kernel",), layer_stacks=("blocks/kernel",), normalise=normalise)
    found = random_directions(params, getkey(), 3, **options)
    assert not np.any(found["readin"]["kernel"])
    blocks = np.asarray(found["blocks"]["kernel"], np.float64)
    for k in range(5):
        rows = blocks[:, k].reshape(3, -1)
        norms = np.linalg.norm(rows, axis=1)
        cosines = rows @ rows.T / np.outer(norms, norms)
        np.testing.assert_allclose(cosines, np.eye(3), atol=1e-5)
        if normalise != "none":
            np.testing.assert_allclose(norms, np.linalg.norm(kernel[k].astype(np.float64)), rtol=1e-5)
    if normalise == "filter":
        expected = np.linalg.norm(kernel.astype(np.float64), axis=1)
        np.testing.assert_allclose(np.linalg.norm(blocks, axis=2), np.repeat(expected[None], 3, 0), rtol=1e-5)


def test_more_orthogonal_directions_than_weights_are_zero_and_all_fixed_is_refused(getkey):
    params = {"kernel": np.ones((2, 1), np.float32)}
    found = np.asarray(random_directions(params, getkey(), 3, orthogonal=True)["kernel"])
    assert np.all(np.any(found[:2], axis=1)) and not np.any(found[2])
    with pytest.raises(ValueError, match="no leaf has two axes and moves.*the leaves are kernel"):
        random_directions(params, getkey(), fixed=("kernel",))


def test_random_directions_are_the_same_within_a_program(small_stack):
    params = jax.tree.map(lambda leaf: leaf[0], small_stack(1))
    expected = random_directions(params, jax.random.key(3))
    found = jax.jit(lambda params: random_directions(params, jax.random.key(3)))(params)
    chex.assert_trees_all_close(found, expected, rtol=1e-5)
