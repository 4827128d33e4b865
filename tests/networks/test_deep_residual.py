"""Deep residual networks against golden numbers of the published code, in float64, and blocks against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax import trees
from subspaces_jax.networks import DepthScaledResNet, axes, deep_initialisations, residual_blocks
from subspaces_jax.networks.deep_residual import DeepResidual, flow, published_weights
from subspaces_jax.networks.depth_scaled_resnet import ScaledBlock

GOLDEN = {  # recursion -> activation -> outputs of two inputs
    "skip": {
        "tanh": (0.3079410572, -0.3675540147, 0.7854537680, -0.5305660014),
        "relu": (0.4505279688, -0.5181646641, 0.9784831791, -0.7340302741),
        "elu": (0.3129637738, -0.3728958200, 0.7963934921, -0.5417465372),
        "gelu": (0.3183574578, -0.3762972771, 0.7711379457, -0.5252747860),
        "sigmoid": (2.2070141785, -2.3673315681, 2.6235683873, -2.4881232576),
    },
    "inc_skip": {
        "tanh": (0.3724388503, -0.4281484897, 0.7875736393, -0.5530592074),
        "relu": (0.3517732315, -0.4071876298, 0.7610561263, -0.5261579703),
        "elu": (0.3718512692, -0.4275530077, 0.7867508561, -0.5522204220),
        "gelu": (0.3425798643, -0.3978180796, 0.7495592755, -0.5146988572),
        "sigmoid": (0.5601635561, -0.6184852338, 0.9619432290, -0.7302707781),
    },
    "linear_skip": {
        "tanh": (0.3012884823, -0.3645981357, 0.8214211616, -0.5561295290),
        "relu": (0.3259082057, -0.3876817957, 0.8225370100, -0.5695245810),
        "elu": (0.3075082907, -0.3715049037, 0.8485930699, -0.5805238428),
        "gelu": (0.3170203297, -0.3777494419, 0.8144911894, -0.5592876415),
        "sigmoid": (0.3358262294, -0.4026395175, 0.7690999857, -0.5346435173),
    },
    "none": {
        "tanh": (-2.66e-8, 2.01e-8, 1.094e-7, -8.35e-8),
        "relu": (1.5396e-5, -1.64817e-5, 2.85947e-5, -3.05426e-5),
        "elu": (-2.71e-8, 2.05e-8, 1.086e-7, -8.3e-8),
        "sigmoid": (0.4736105756, -0.4996633894, 0.4736105761, -0.4996633898),
    },
}
INITIAL = {  # L = 5, alpha = 0.5, gamma = 1
    "constant": [0.0447213595] * 5,
    "lin_dec": [0.064, 0.0415692194, 0.0226274170, 0.008, 0.0],
    "lin_inc": [0.0, 0.008, 0.0226274170, 0.0415692194, 0.064],
    "quad": [0.0, 0.0037180640, 0.0057243340, 0.0037180640, 0.0],
    "lin_dec_sym": [0.0523832034, 0.0316227766, 0.0146969385, 0.0028284271, -0.0028284271],
    "lin_inc_sym": [-0.0316227766, -0.0146969385, -0.0028284271, 0.0028284271, 0.0146969385],
}


def golden_matrix(rows, columns, scale):
    return scale * np.sin(1.0 + np.arange(rows * columns).reshape(rows, columns))


def golden_params():
    weights = np.stack([golden_matrix(3, 3, 0.3 * k / 4) for k in range(1, 5)])
    return {
        "readin": {"kernel": golden_matrix(3, 2, 1.0).T},
        "blocks": {"kernel": weights.swapaxes(1, 2)},
        "readout": {"kernel": golden_matrix(2, 3, 1.0).T},
        "delta": np.float64(0.5),
    }


@pytest.mark.parametrize("recursion", GOLDEN)
def test_outputs_are_those_of_the_published_code(recursion):
    with jax.enable_x64(True):
        params, inputs = golden_params(), jnp.array([[0.5, -1.0], [1.0, 0.25]])
        make = lambda activation: DeepResidual(
            2, 4, 3, recursion=recursion, activation=activation, dtype=jnp.float64, segment=3
        )
        run = lambda params, inputs: {name: make(name).apply({"params": params}, inputs) for name in GOLDEN[recursion]}
        outputs = jax.jit(run)(params, inputs)
    for activation, expected in GOLDEN[recursion].items():
        tolerance = {"rtol": 5e-3, "atol": 1e-10} if recursion == "none" else {"rtol": 1e-9}
        np.testing.assert_allclose(np.ravel(outputs[activation]), expected, **tolerance, err_msg=activation)


@pytest.mark.parametrize("name", INITIAL)
def test_blocks_start_as_in_the_published_code(name):
    found = deep_initialisations.blocks(name, 5, 0.5, 1.0)(jax.random.key(0), (5, 2, 2))
    np.testing.assert_allclose(found, np.broadcast_to(np.array(INITIAL[name])[:, None, None], (5, 2, 2)), rtol=1e-6)


@pytest.mark.parametrize("gamma, width, deviation", [(1.0, 1.58114e-3, 9.129e-4), (10.0, 0.0997631, 0.05706)])
def test_truncated_noise_is_cut_off_at_its_variance(gamma, width, deviation):
    """Of 100 blocks and alpha = 0.75; deviations as the published code gives them, width / sqrt(3) in the limit."""
    make = jax.jit(deep_initialisations.blocks("ntrunc", 100, 0.75, gamma), static_argnums=1)
    found = np.asarray(make(jax.random.key(1), (100, 15, 15)))
    assert 0.99 * width < np.abs(found).max() <= width * (1 + 1e-5)
    np.testing.assert_allclose(found.std(), deviation, rtol=0.01)
    assert abs(found.mean()) < 4 * deviation / np.sqrt(found.size)


def test_the_initial_variation_of_truncated_noise_is_the_same_at_every_depth(getkey):
    """gamma = 1: the sum of steps of L^(1 - alpha) W is 0.5 d sqrt(2 / 3), for uniform steps of that size."""
    for depth in (50, 400):
        network = DeepResidual(1, depth, 15, 0.75, 1.0, initialisation="ntrunc")
        start = jax.jit(lambda key: network.weight_path(network.init(key, jnp.zeros((1, 2)))["params"]))
        path = np.asarray(start(getkey()))
        assert path.shape == (depth, 225)
        steps = np.linalg.norm(np.diff(path, axis=0), axis=-1).sum() * depth / (depth - 1)
        np.testing.assert_allclose(steps, 0.5 * 15 * np.sqrt(2 / 3), rtol=0.01)


def test_gradients_do_not_depend_on_what_is_kept(getkey, recursion="inc_skip"):
    h, kernel = jax.random.normal(getkey(), (3, 2)), 0.3 * jax.random.normal(getkey(), (7, 2, 2))
    value = jax.jit(
        jax.value_and_grad(lambda kernel, segment: jnp.sum(flow(h, kernel, 0.5, recursion, "tanh", segment) ** 2)),
        static_argnums=1,
    )
    whole, parts = value(kernel, 7), value(kernel, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, parts)
    small = 1e-3 * jax.random.normal(getkey(), kernel.shape)
    numeric = (value(kernel + small, 7)[0] - value(kernel - small, 7)[0]) / 2
    np.testing.assert_allclose(numeric, np.vdot(whole[1], small), rtol=1e-2, atol=1e-5)


def test_gradients_keep_about_the_root_of_the_depth():
    """Of 12,000 blocks the program for the gradient holds a few hundred hidden states at a time, not 12,000."""
    depth, rows, width = 12_000, 100, 3
    loss = lambda kernel, h: jnp.sum(flow(h, kernel, 0.01, "skip", "tanh"))
    shapes = jax.ShapeDtypeStruct((depth, width, width), jnp.float32), jax.ShapeDtypeStruct((rows, width), jnp.float32)
    held = jax.jit(jax.grad(loss)).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert held < 0.2 * depth * rows * width * 4


def test_the_axis_table_names_every_parameter_and_all_that_is_read_is_sown(getkey):
    network, images = DeepResidual(10, 6, 5, recursion="inc_skip", initialisation="ntrunc"), jnp.ones((3, 4, 4, 1))
    variables = jax.jit(network.init)(getkey(), images)
    params = variables["params"]
    table = network.unit_axes()
    assert axes.units(table, params) == {"h": 5}
    run = jax.jit(lambda variables: network.apply(variables, images, mutable=["intermediates"]))
    outputs, sown = run(variables)
    found = axes.inputs(sown["intermediates"], table)
    assert list(found) == ["blocks", "readout"]
    np.testing.assert_allclose(found["readout"] @ params["readout"]["kernel"], outputs, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["blocks"], images.reshape(3, -1) @ params["readin"]["kernel"], rtol=1e-5)
    order = np.array([3, 1, 4, 0, 2])
    permuted = {
        "readin": {"kernel": params["readin"]["kernel"][:, order]},
        "blocks": {"kernel": params["blocks"]["kernel"][:, order][:, :, order]},
        "readout": {"kernel": params["readout"]["kernel"][order]},
        "delta": params["delta"],
    }
    np.testing.assert_allclose(run({"params": permuted})[0], outputs, rtol=1e-4, atol=1e-6)


def test_the_path_of_weights_is_scaled_by_each_networks_own_factor(getkey):
    networks = [DeepResidual(1, 16, 2, alpha, initialisation="ntrunc") for alpha in (0.5, 0.75)]
    params = [jax.jit(network.init)(getkey(), jnp.zeros((1, 2)))["params"] for network in networks]
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    paths = networks[0].weight_path(stack)
    for path, one, alpha in zip(paths, params, (0.5, 0.75)):
        weights = np.asarray(published_weights(one)).swapaxes(1, 2).reshape(16, 4)
        np.testing.assert_allclose(path, 16.0 ** (1 - alpha) * weights, rtol=1e-6)
    learned = DeepResidual(1, 16, 2, 0.75, learn_delta=True)
    found = jax.jit(learned.init)(getkey(), jnp.zeros((1, 2)))["params"]
    assert float(found["delta"]) == 1.0 and learned.frozen == ("readin/kernel", "readout/kernel")
    np.testing.assert_allclose(learned.weight_path(found), np.full((16, 4), 2 * 0.5 * 16**-2.25), rtol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"depth": 0}, "depth is a whole number from 1 up, got 0"),
        ({"width": -1}, "width is a whole number from 1 up, got -1"),
        ({"gamma": 0.0}, "gamma is positive, got 0.0"),
        ({"recursion": "skp"}, "recursion is one of skip, none, linear_skip, inc_skip, got 'skp'"),
        ({"activation": "swish"}, "activation is one of tanh, relu, elu, gelu, sigmoid, got 'swish'"),
        ({"initialisation": "zero"}, "initialisation is one of constant, ntrunc, "),
    ],
)
def test_what_a_network_cannot_be_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        DeepResidual(10, **options)


@pytest.mark.parametrize("depth, count", [(56, 853_018), (104, 1_630_746)])
def test_networks_scaled_by_depth_have_the_published_number_of_parameters(depth, count):
    """And so does 224, with 3,575,066: the number is linear in the depth."""
    network = DepthScaledResNet(10, depth)
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert trees.num_parameters(shapes) == count
    assert axes.units(network.unit_axes(), shapes)["s2b0c0"] == 64
    assert network.delta == pytest.approx({56: 0.19245, 104: 0.11944}[depth], abs=1e-5)


def test_a_network_scaled_by_depth_is_its_shortcuts_where_the_branches_are_zero(getkey):
    """Every other pixel, the new channels zeros on both sides, pooled and through the classifier."""
    network, images = DepthScaledResNet(3, 8, 2), jax.random.normal(getkey(), (2, 8, 8, 1))
    params = jax.jit(lambda key: network.init(key, images))(getkey())
    blocks = {name: leaf for name, leaf in params["params"].items() if name.startswith("ScaledBlock")}
    bound = 2**-0.5 / 3
    first = np.asarray(blocks["ScaledBlock_0"]["Conv_0"]["kernel"])
    assert 0.7 * bound < np.abs(first).max() <= bound
    silent = params["params"] | jax.tree.map(jnp.zeros_like, blocks)
    outputs, sown = jax.jit(lambda p: network.apply(params | {"params": p}, images, mutable=["intermediates"]))(silent)
    (features,) = sown["intermediates"]["features"]
    kernel = np.asarray(silent["Conv_0"]["kernel"])
    padded = np.pad(np.asarray(images), ((0, 0), (1, 1), (1, 1), (0, 0)))
    at = lambda i, j: np.einsum("bhwc,hwco->bo", padded[:, i : i + 3, j : j + 3], kernel) / np.sqrt(1 + 1e-5)
    stem = np.mean([np.maximum(at(i, j), 0) for i in (0, 4) for j in (0, 4)], axis=0)
    np.testing.assert_allclose(features, np.pad(stem, ((0, 0), (3, 3))), rtol=1e-5, atol=1e-6)
    dense = silent["Dense_0"]
    expected = np.asarray(features) @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"])
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)


def test_a_branch_is_scaled_twice(getkey):
    """Identity convolutions of stride 2 from 2 channels to 4: the branch is in the first two, the shortcut between
    zeros."""
    conv, norm = residual_blocks.layers(jnp.float32, False, None)
    block = ScaledBlock(4, 2, 0.3, conv, norm, "h")
    images = jax.random.normal(getkey(), (1, 4, 4, 2))
    variables = jax.jit(block.init)(getkey(), images)
    identity = lambda leaf: jnp.zeros_like(leaf).at[1, 1].set(jnp.eye(*leaf.shape[2:])) if leaf.ndim == 4 else leaf
    found = jax.jit(block.apply)(variables | {"params": jax.tree.map(identity, variables["params"])}, images)
    kept = np.asarray(images)[:, ::2, ::2]
    branch = np.pad(0.3**2 * np.maximum(kept, 0), ((0, 0), (0, 0), (0, 0), (0, 2)))
    shortcut = np.pad(kept, ((0, 0), (0, 0), (0, 0), (1, 1)))
    np.testing.assert_allclose(found, np.maximum(branch + shortcut, 0), rtol=1e-4, atol=1e-6)
