"""The one idea: a point is a contraction of the leading axis."""

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax.geometry import (
    Bezier,
    Line,
    Simplex,
    contract,
    contraction,
    init_stack,
    layerwise,
    num_endpoints,
    stack,
    unstack,
)


@pytest.mark.parametrize("k", [0, 1, 2])
def test_one_hot_coordinates_return_the_endpoint_bit_for_bit(small_stack, k):
    stacked = small_stack(3)
    chex.assert_trees_all_equal(contract(stacked, jnp.eye(3)[k]), unstack(stacked)[k])
    largest = {"a": jnp.full((3, 2), np.finfo(np.float32).max) * jnp.array([[1.0], [-1.0], [1.0]])}
    chex.assert_trees_all_equal(contract(largest, jnp.eye(3)[k]), {"a": largest["a"][k]})


def test_contraction_equals_numpy(small_stack, getkey):
    stacked, coordinates = small_stack(4), Simplex(4).sample(getkey())
    expected = jax.tree.map(lambda leaf: np.tensordot(np.asarray(coordinates, np.float64), leaf, 1), stacked)
    chex.assert_trees_all_close(
        contract(stacked, coordinates), jax.tree.map(np.float32, expected), rtol=1e-5, atol=1e-6
    )


def test_gradient_of_an_endpoint_is_its_coordinate_times_the_gradient_at_the_point(small_stack):
    stacked, coordinates = small_stack(3), Bezier(3).coordinates(jnp.float32(0.3))
    loss = lambda params: sum(jnp.sum(jnp.sin(leaf) ** 2) for leaf in jax.tree.leaves(params))
    of_stack = jax.grad(lambda s: loss(contract(s, coordinates)))(stacked)
    of_point = jax.grad(loss)(contract(stacked, coordinates))
    for k, endpoint in enumerate(unstack(of_stack)):
        chex.assert_trees_all_close(endpoint, jax.tree.map(lambda g: coordinates[k] * g, of_point), rtol=1e-6)


def test_equal_coordinates_in_all_layers_equal_global_ones_bit_for_bit(small_stack):
    stacked, coordinates = small_stack(2), Line().coordinates(jnp.float32(0.37))
    prefix = jax.tree.map(lambda _: coordinates, layerwise(Line(), stacked).sample(jax.random.key(0)))
    chex.assert_trees_all_equal(contract(stacked, prefix), contract(stacked, coordinates))


def test_each_layer_takes_its_own_coordinates(small_stack):
    stacked = small_stack(2)
    prefix = layerwise(Line(), stacked).sample(jax.random.key(1))
    point = contract(stacked, prefix)
    np.testing.assert_array_equal(point["Dense_0"]["kernel"], contract(stacked["Dense_0"], prefix["Dense_0"])["kernel"])
    np.testing.assert_array_equal(
        point["inner"]["scale"], contract(stacked["inner"], prefix["inner"]["scale"])["scale"]
    )


def test_bfloat16_stack_contracts_in_float32(small_stack):
    stacked = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), small_stack(2))
    assert {leaf.dtype for leaf in jax.tree.leaves(contract(stacked, Line().midpoint))} == {jnp.dtype("float32")}


def test_stack_and_unstack_are_inverse(small_stack):
    stacked = small_stack(3)
    chex.assert_trees_all_equal(stack(unstack(stacked)), stacked)
    assert num_endpoints(stacked) == 3


def test_stack_refuses_other_architectures_and_names_the_leaves(small_stack):
    params = unstack(small_stack(1))[0]
    other = {**params, "Dense_0": {"kernel": jnp.zeros((4, 5))}}
    with pytest.raises(ValueError, match=r"parameters 1 .*- Dense_0/bias \(5,\).*Dense_0/kernel \(4, 5\) instead of"):
        stack([params, other])
    with pytest.raises(ValueError, match="at least one"):
        stack([])


def test_num_endpoints_refuses_what_is_no_stack(small_stack):
    with pytest.raises(ValueError, match="share their leading axis"):
        num_endpoints({"a": jnp.zeros((2, 3)), "b": jnp.zeros((3, 3))})


class _Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))


def test_init_stack_draws_independent_endpoints_and_does_not_stack_statistics(getkey):
    variables = init_stack(_Normed(), getkey(), 3, jnp.ones((2, 5)))
    kernels = variables["params"]["Dense_0"]["kernel"]
    assert kernels.shape == (3, 5, 4)
    assert not np.array_equal(kernels[0], kernels[1]) and not np.array_equal(kernels[1], kernels[2])
    assert variables["batch_stats"]["BatchNorm_0"]["mean"].shape == (4,)
    with pytest.raises(ValueError, match="at least 1"):
        init_stack(_Normed(), getkey(), 0, jnp.ones((2, 5)))


class _WithState(nn.Module):
    """Draws a state of its own, beside parameters."""

    @nn.compact
    def __call__(self, x):
        state = self.variable("codes", "code", lambda: jax.random.normal(self.make_rng("params"), (3,)))
        return nn.Dense(2)(x) + state.value.sum()


def test_each_endpoint_is_an_initialisation_and_every_other_state_that_of_the_first(getkey):
    key, x = getkey(), jnp.ones((2, 5))
    found = init_stack(_WithState(), key, 3, x)
    alone = [_WithState().init(k, x) for k in jax.random.split(key, 3)]
    chex.assert_trees_all_equal(found, {"params": stack([one["params"] for one in alone]), "codes": alone[0]["codes"]})


def test_any_module_applies_to_a_point(getkey):
    variables = init_stack(_Normed(), getkey(), 2, jnp.ones((2, 5)))
    point = {**variables, "params": contract(variables["params"], Line().midpoint)}
    assert _Normed().apply(point, jnp.ones((2, 5))).shape == (2, 4)


@pytest.mark.parametrize("num, coordinates", [(5, 1), (1, 3), (3, 2)])
def test_coordinates_of_another_number_are_refused(num, coordinates):
    with pytest.raises(ValueError, match=rf"expected \({num},\) coordinates of a stack, got \({coordinates},\)"):
        contract({"a": jnp.ones((num, 3))}, jnp.ones(coordinates))


def test_trees_of_several_kinds_of_mappings_are_stacked(small_stack):
    a, b = unstack(small_stack(2))
    chex.assert_trees_all_equal(stack([a, flax.core.freeze(b)]), stack([a, b]))


def test_taking_a_stack_apart_compiles_one_program_whatever_its_length(small_stack):
    contraction._row.clear_cache()
    for num in (2, 5):
        rows = unstack(small_stack(num))
        assert len(rows) == num and all(row["Dense_0"]["kernel"].shape == (3, 5) for row in rows)
    assert contraction._row._cache_size() == 2  # one a K, not one a row
    assert len(jax.jit(unstack)(small_stack(3))) == 3
