"""Members on a shared trunk against NumPy, and costs against the numbers of the paper's code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_networks import made, planted

from subspaces_jax.connecting import Features, layer_inputs
from subspaces_jax.connecting.heads import cost_ratio, operations, with_last_layer, with_trunk
from subspaces_jax.networks import MLP, VGG

NET, SHAPE = MLP(3, (6, 5)), (8,)
IMAGES = np.random.default_rng(0).normal(size=(80, *SHAPE)).astype(np.float32)
FEATURES = Features(layer_inputs(NET), IMAGES)


def hidden(params, num):
    x = IMAGES.astype(np.float64)
    for i in range(num):
        x = np.maximum(x @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"], 0.0)
    return x


@pytest.mark.parametrize("num_layers", [1, 2])
def test_the_first_private_layer_is_fitted_to_the_trunk_and_the_later_ones_are_kept(num_layers):
    member, trunk = made(NET, SHAPE, 1), made(NET, SHAPE, 2)
    found = with_trunk(member, trunk, NET.unit_axes(), num_layers, FEATURES)
    first = 3 - num_layers
    for i in range(3):
        source = trunk if i < first else member
        np.testing.assert_array_equal(found[f"Dense_{i}"]["bias"], source[f"Dense_{i}"]["bias"])
        if i != first:
            np.testing.assert_array_equal(found[f"Dense_{i}"]["kernel"], source[f"Dense_{i}"]["kernel"])
    wanted = hidden(member, first) @ member[f"Dense_{first}"]["kernel"]
    expected = np.linalg.pinv(hidden(trunk, first), rcond=1e-6) @ wanted
    np.testing.assert_allclose(found[f"Dense_{first}"]["kernel"], expected, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_a_last_layer_fitted_to_given_features_is_the_one_of_numpy_on_the_whole_trunk(bias):
    """From features alone; of the bias, the member's, or fitted with a column of ones."""
    member, trunk = made(NET, SHAPE, 1), made(NET, SHAPE, 2)
    before, taken = hidden(member, 2), hidden(trunk, 2)
    found = with_last_layer(member, trunk, "Dense_2", *np.float32([before, taken]), bias=bias)
    for i in range(2):
        jax.tree.map(np.testing.assert_array_equal, found[f"Dense_{i}"], trunk[f"Dense_{i}"])
    head = member["Dense_2"]
    wanted = before @ head["kernel"] + (np.asarray(head["bias"]) if bias else 0)
    columns = np.hstack([taken, np.ones((80, 1))]) if bias else taken
    expected = np.linalg.pinv(columns, rcond=1e-6) @ wanted
    np.testing.assert_allclose(found["Dense_2"]["kernel"], expected[:5], atol=1e-3)
    np.testing.assert_allclose(found["Dense_2"]["bias"], expected[5] if bias else head["bias"], atol=1e-3)
    without = {"Dense_2": {"kernel": head["kernel"]}}
    with pytest.raises(ValueError, match="bias=True fits the bias of Dense_2, which has none: leave it out"):
        with_last_layer(without, without, "Dense_2", before, taken, bias=True)


def test_on_a_permuted_copy_of_its_own_trunk_a_network_is_itself():
    member, table = made(NET, SHAPE, 1), NET.unit_axes()
    found = with_trunk(member, planted(member, table)[0], table, 1, FEATURES)
    outputs = jax.jit(lambda params: NET.apply({"params": params}, IMAGES))
    np.testing.assert_allclose(outputs(found), outputs(member), atol=1e-4)
    whole = with_trunk(member, made(NET, SHAPE, 2), table, 3, FEATURES)
    jax.tree.map(np.testing.assert_array_equal, whole, member)


def test_the_bias_of_the_first_private_layer_can_be_fitted_too():
    member, trunk = made(NET, SHAPE, 1), made(NET, SHAPE, 2)
    found = with_trunk(member, trunk, NET.unit_axes(), 1, FEATURES, bias=True)["Dense_2"]
    wanted = hidden(member, 2) @ member["Dense_2"]["kernel"] + member["Dense_2"]["bias"]
    expected = np.linalg.lstsq(np.concatenate([hidden(trunk, 2), np.ones((80, 1))], axis=1), wanted, rcond=1e-6)[0]
    np.testing.assert_allclose(np.concatenate([found["kernel"], found["bias"][None]]), expected, atol=1e-4)
    assert np.max(np.abs(found["bias"] - member["Dense_2"]["bias"])) > 1e-2


def counts_of(network, shape):
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    return operations(params, network.unit_axes(), Features(layer_inputs(network), None), shape)


def test_costs_are_those_of_the_papers_code():
    """Seven members; VGG16 from layer 1 on, FC3 with one and two layers of their own."""
    counts = counts_of(VGG(10), (32, 32, 3))
    assert counts.sum() == pytest.approx(627.5e6, rel=1e-4)
    expected = ".995 .892 .840 .737 .686 .583 .479 .428 .325 .222 .196 .170 .144 .144 .143".split()
    found = [cost_ratio(counts, 16 - layer) for layer in range(1, 16)]
    np.testing.assert_allclose(found, [float(number) for number in expected], atol=6e-4)
    counts = counts_of(MLP(10, (6144, 2000), bias=False), (32, 32, 3))
    assert cost_ratio(counts, 2) == pytest.approx(0.481, abs=6e-4)
    assert cost_ratio(counts, 1) == pytest.approx(0.143, abs=6e-4)
    assert (cost_ratio(counts, 3), cost_ratio(counts, 0)) == (1.0, pytest.approx(1 / 7))


def test_bad_input_is_named():
    member = made(NET, SHAPE)
    with pytest.raises(ValueError, match="keeps 1 to 3 layers of its own, got 4"):
        with_trunk(member, member, NET.unit_axes(), 4, FEATURES)
    with pytest.raises(ValueError, match="expected 0 to 3 layers of at least 1 member, got 4 of 7"):
        cost_ratio(np.ones(3), 4)
