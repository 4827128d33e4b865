"""Paths over depth and over training against NumPy in float64 and a search of all partitions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax.analysis import training_variation, variation

PS = (1.0, 2.5)


def every_partition(path, p):
    """The rooted p-variation of a short path by trying every subsequence that has both ends."""
    path = np.asarray(path, np.float64).reshape(len(path), -1)
    inner, best = range(1, len(path) - 1), 0.0
    for size in range(len(inner) + 1):
        for chosen in itertools.combinations(inner, size):
            kept = path[[0, *chosen, len(path) - 1]]
            best = max(best, np.sum(np.linalg.norm(np.diff(kept, axis=0), axis=1) ** p))
    return best ** (1 / p)


@pytest.fixture(scope="module")
def deep():
    """A residual network's tree with six blocks, and dense layers of other shapes beside them."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {"blocks": {"kernel": draw(6, 3, 3)}, "readin": draw(5, 3), "readout": draw(3, 2), "delta": np.float32(0.5)}


@pytest.fixture(scope="module")
def dense():
    """Twelve dense layers, of which ten have one shape: sorted by letters Dense_10 would come before Dense_2."""
    rng = np.random.default_rng(1)
    sizes = [5, *[4] * 11, 2]
    layer = lambda i: {"kernel": rng.normal(size=sizes[i : i + 2]).astype(np.float32), "bias": np.zeros(sizes[i + 1])}
    return {f"Dense_{i}": layer(i) for i in range(12)}


def test_over_depth_has_the_norms_entries_and_variations_of_the_scaled_blocks(deep):
    found = variation.over_depth(deep, PS, beta=0.25, positions=((0, 0), (2, 1)))
    assert found.keys() == {"blocks"}
    path = 6**0.25 * deep["blocks"]["kernel"].astype(np.float64)
    of = found["blocks"]
    np.testing.assert_allclose(of["depth"], np.arange(1, 7) / 6)
    np.testing.assert_allclose(of["norm"], np.sqrt((path**2).sum((1, 2))), rtol=1e-6)
    np.testing.assert_allclose(of["entries"], [path[:, 0, 0], path[:, 2, 1]], rtol=1e-6)
    np.testing.assert_allclose(of["variation"], [every_partition(path, p) for p in PS], rtol=1e-5)


def test_dense_layers_come_in_the_order_of_the_network(dense):
    kernels = np.stack([dense[f"Dense_{i}"]["kernel"] for i in range(1, 11)])
    ((name, stack),) = variation.layer_stacks(dense).items()
    assert name == "Dense_1 to Dense_10"
    np.testing.assert_array_equal(stack, kernels)
    backwards = {f"Dense_{i}/kernel": (f"h{i}", f"h{i + 1}") for i in reversed(range(12))}
    ((name, stack),) = variation.layer_stacks(dense, backwards).items()
    assert name == "Dense_10 to Dense_1"
    np.testing.assert_array_equal(stack, kernels[::-1])
    ((name, stack),) = variation.layer_stacks(dense, layers=("Dense_[2-4]",)).items()
    assert name == "Dense_2 to Dense_4"
    np.testing.assert_array_equal(stack, kernels[1:4])


def test_every_shape_of_several_makes_a_path_of_its_own():
    kernel = lambda *shape: {"kernel": np.ones(shape, np.float32)}
    params = {"Conv_0": kernel(3, 3, 1, 4), "Conv_1": kernel(3, 3, 4, 4), "Conv_2": kernel(3, 3, 4, 4)}
    params |= {"Conv_3": kernel(3, 3, 4, 8), "Conv_4": kernel(3, 3, 8, 8), "Conv_5": kernel(3, 3, 8, 8)}
    shapes = {name: stack.shape for name, stack in variation.layer_stacks(params).items()}
    assert shapes == {"Conv_1 to Conv_2": (2, 3, 3, 4, 4), "Conv_4 to Conv_5": (2, 3, 3, 8, 8)}
    numbers = jnp.arange(2 * 9 * 16.0).reshape(2, 3, 3, 4, 4)
    np.testing.assert_array_equal(variation.entries(numbers, ((1, 2),)), np.asarray(numbers)[None, :, 1, 1, 1, 2])


def test_the_measure_of_a_point_is_jitted_and_equals_that_of_the_network(deep):
    measure = variation.OverDepth(PS, 0.25, ("blocks",))
    assert measure == variation.OverDepth(PS, 0.25, ("blocks",)) and hash(measure) is not None
    (found,) = jax.jit(lambda params: measure(params))(deep).values()
    np.testing.assert_allclose(found, variation.over_depth(deep, PS, beta=0.25)["blocks"]["variation"], rtol=1e-6)


@pytest.mark.parametrize(
    "change, arguments, message",
    [
        ({}, {"layers": ("Dense_*",)}, "have the same shape, Dense_\\* names Dense_0 \\(5, 4\\), Dense_1 \\(4, 4\\)"),
        ({}, {"layers": ("Conv_*",)}, "Conv_\\* names 0 layers, a path has at least two; layers are Dense_0, "),
        ({}, {"layers": ("Dense_3",)}, "Dense_3 names 1 layers"),
        ({}, {"exponents": (0.5,)}, "finite numbers of at least 1, got \\(0.5,\\)"),
        ({}, {"positions": ((0, 4),)}, "position \\(0,4\\) lies outside layers of 4 x 4"),
        ({"Dense_7": {"kernel": np.full((4, 4), np.nan)}}, {}, "weights are not finite in Dense_7/kernel"),
    ],
)
def test_what_makes_no_path_is_named(dense, change, arguments, message):
    with pytest.raises(ValueError, match=message):
        variation.over_depth(dense | change, **arguments)


def test_a_network_without_layers_of_one_shape_is_refused_with_its_shapes():
    params = {"Dense_0": {"kernel": np.ones((3, 4))}, "Dense_1": {"kernel": np.ones((4, 2))}}
    message = "no two layers have the same shape.*Dense_0 \\(3, 4\\), Dense_1 \\(4, 2\\)"
    with pytest.raises(ValueError, match=message):
        variation.layer_stacks(params)


def test_over_training_has_the_variations_of_the_net_its_layers_and_its_beginning(deep):
    """Seven checkpoints that drift and shake, about a network a hundred times as long as their way."""
    rng = np.random.default_rng(2)
    steps = np.linspace(0, 1, 7)
    move = lambda leaf: (
        np.float32(100 * leaf) + np.stack([np.float32(t * leaf + 0.3 * rng.normal(size=np.shape(leaf))) for t in steps])
    )
    stacked = jax.tree.map(move, deep) | {"readin": np.repeat(deep["readin"][None], 7, 0)}
    found = training_variation.over_training(stacked, PS)
    flat = np.concatenate([np.asarray(leaf, np.float64).reshape(7, -1) for leaf in jax.tree.leaves(stacked)], axis=1)
    np.testing.assert_allclose(found["net"], [every_partition(flat, p) for p in PS], rtol=1e-5)
    running = [[every_partition(flat[:s], p) if s > 1 else 0 for p in PS] for s in range(1, 8)]
    np.testing.assert_allclose(found["running"], running, rtol=1e-5)
    blocks = [[every_partition(stacked["blocks"]["kernel"][:, k], p) for p in PS] for k in range(6)]
    np.testing.assert_allclose(found["layers/blocks"], blocks, rtol=1e-5)
    np.testing.assert_allclose(found["layers/readout"], [every_partition(stacked["readout"], p) for p in PS], rtol=1e-5)
    np.testing.assert_array_equal(found["layers/readin"], 0.0)
    with pytest.raises(ValueError, match="from two checkpoints on, got 1"):
        training_variation.over_training(jax.tree.map(lambda leaf: leaf[:1], stacked))


def test_layers_of_a_training_come_in_order_with_all_their_parameters(dense):
    rng = np.random.default_rng(3)
    stacked = jax.tree.map(lambda leaf: leaf + rng.normal(size=(4, *leaf.shape)), dense)
    found = training_variation.over_training(stacked, (2.0,))
    names = [name for name in found if name.startswith("layers/")]
    assert names == [f"layers/Dense_{i}" for i in range(12)]
    kernel, bias = (stacked["Dense_10"][name].reshape(4, -1) for name in ("kernel", "bias"))
    expected = every_partition(np.concatenate([kernel, bias], axis=1), 2.0)
    np.testing.assert_allclose(found["layers/Dense_10"], [expected], rtol=1e-5)


def test_a_training_that_begins_with_small_steps_has_a_variation_from_the_first_on():
    steps = np.array([0, 1e-4, 1.0, 100.0]).reshape(4, 1, 1) * np.ones((1, 2, 2))
    running = training_variation.over_training({"a": {"kernel": steps}}, (2.0, 8.0))["running"]
    np.testing.assert_allclose(running, 2 * steps[:, 0, :1] * np.ones((1, 2)), rtol=1e-6)
