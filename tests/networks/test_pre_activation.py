"""Pre-activation residual networks: against NumPy forward passes, and the numbers of the published architectures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import convolution, dense, drawn, normalised, relu
from scipy import stats

from subspaces_jax import trees
from subspaces_jax.networks import CifarWideResNet, PreResNet, axes


def bottlenecks(n, width=16):
    """Parameters of a PreResNet of bottlenecks on RGB images with 10 classes, added up stage by stage."""
    total, channels = 27 * width, width
    for inner in (width, 2 * width, 4 * width):
        first = 2 * channels + channels * inner + 2 * inner + 9 * inner**2 + 2 * inner + 4 * inner**2
        shortcut = channels * 4 * inner
        later = 2 * 4 * inner + 4 * inner**2 + 2 * inner + 9 * inner**2 + 2 * inner + 4 * inner**2
        total, channels = total + first + shortcut + (n - 1) * later, 4 * inner
    return total + 2 * channels + 10 * channels + 10


def basic_blocks(n, factor, width=16):
    """Parameters of n basic blocks a stage with `factor` times the width; a shortcut where channels change."""
    total, channels = 27 * width, width
    for inner in (factor * width, 2 * factor * width, 4 * factor * width):
        first = 2 * channels + 9 * channels * inner + 2 * inner + 9 * inner**2
        shortcut = channels * inner if channels != inner else 0
        later = 2 * (2 * inner + 9 * inner**2)
        total, channels = total + first + shortcut + (n - 1) * later, inner
    return total + 2 * channels + 10 * channels + 10


COUNTED = {
    "pre_resnet_20": (PreResNet(10, 20), basic_blocks(3, 1), 272_282, 21),
    "pre_resnet_11_8": (PreResNet(10, 11, 8, bottleneck=True), bottlenecks(1, 8), None, 13),
    "pre_resnet_110": (PreResNet(10), bottlenecks(12), 1_146_842, 112),
    "pre_resnet_164": (PreResNet(10, 164), bottlenecks(18), 1_703_258, 166),
    "cifar_wide_resnet_28_10": (CifarWideResNet(10), basic_blocks(4, 10), 36_479_194, 28),
    "cifar_wide_resnet_10_1": (CifarWideResNet(10, 10, 1), basic_blocks(1, 1), None, 9),
}


@pytest.mark.parametrize("name", COUNTED)
def test_numbers_of_parameters_and_convolutions(name):
    network, number, published, num_convolutions = COUNTED[name]
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert trees.num_parameters(params) == number == (published or number)
    assert sum(leaf.ndim == 4 for leaf in jax.tree.leaves(params)) == num_convolutions
    assert not [leaf for leaf in trees.leaf_names(params) if leaf.endswith("bias") and "Conv" in leaf]
    assert axes.units(network.unit_axes(), params)


def forward(network, params, images, sides, shared):
    """(logits, pooled map) in training, float64; a block's kernels have the given sides."""
    x = convolution(np.asarray(images, np.float64), params["Conv_0"])
    for index in range(3 * network.blocks_per_stage):
        block = params[f"PreActivationBlock_{index}"]
        stride = 2 if index and index % network.blocks_per_stage == 0 else 1
        active = y = relu(normalised(x, block["BatchNorm_0"]))
        for i in range(len(sides)):
            y = relu(normalised(y, block[f"BatchNorm_{i}"])) if i else y
            y = convolution(y, block[f"Conv_{i}"], stride if i == sides.index(3) else 1)
        shortcut = block.get(f"Conv_{len(sides)}")
        x = y + (x if shortcut is None else convolution(active if shared else x, shortcut, stride))
    pooled = relu(normalised(x, params["BatchNorm_0"])).mean((1, 2))
    return dense(pooled, params["Dense_0"]), pooled


@pytest.mark.parametrize(
    "network, sides, shared",
    [
        (PreResNet(5, 11, 2, bottleneck=True), (1, 3, 1), False),
        (CifarWideResNet(5, 10, 2, width=2), (3, 3), True),
        (PreResNet(5, 14, 2), (3, 3), False),
    ],
    ids=["bottlenecks", "wide", "basic"],
)
def test_forward_pass_is_that_of_numpy(network, sides, shared, getkey):
    images = jax.random.normal(getkey(), (3, 9, 7, 2))
    variables = drawn(network, images.shape[1:])
    run = jax.jit(lambda v: network.apply(v, images, train=True, mutable=["batch_stats", "intermediates"]))
    logits, kept = run(variables)
    expected, pooled = forward(network, variables["params"], images, sides, shared)
    np.testing.assert_allclose(kept["intermediates"]["features"][0], pooled, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_bottlenecks_begin_at_a_depth_of_44():
    convolutions = lambda depth: len(PreResNet(10, depth).plan.kernels)
    assert [convolutions(depth) for depth in (38, 47, 110, 164)] == [2, 3, 3, 3]


@pytest.mark.parametrize(
    "network, message",
    [
        (PreResNet(10, 44), r"9n \+ 2 with bottlenecks .* got 44"),
        (PreResNet(10, 21), r"6n \+ 2 with basic blocks .* got 21"),
        (PreResNet(10, 2), r"6n \+ 2 .* got 2"),
        (CifarWideResNet(10, 20), r"depth of 6n \+ 4 .* got 20"),
        (CifarWideResNet(10, 4), r"depth of 6n \+ 4 .* got 4"),
    ],
)
def test_other_depths_are_refused(network, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_initial_values(getkey):
    params = jax.jit(PreResNet(10, 8, 16).init)(getkey(), jnp.zeros((1, 8, 8, 3)))["params"]
    leaves = trees.leaf_names(params)
    kernels = [np.asarray(leaf) for leaf in leaves.values() if leaf.ndim == 4]
    scaled = [kernel * np.sqrt(kernel[..., 0, :].size / 2) for kernel in kernels]  # k k C_out
    assert all(stats.kstest(kernel.ravel(), "norm").pvalue > 1e-3 for kernel in scaled)
    norms = {name: leaf for name, leaf in leaves.items() if "BatchNorm" in name}
    assert norms and all(np.all(leaf == float(name.endswith("scale"))) for name, leaf in norms.items())
    classifier = np.concatenate([params["Dense_0"]["kernel"].ravel(), params["Dense_0"]["bias"]]) * 8
    assert np.abs(classifier).max() <= 1 and stats.kstest(classifier, "uniform", (-1, 2)).pvalue > 1e-3


def test_dropout_is_between_the_convolutions_of_a_block(getkey):
    """At a rate near 1 all branches are 0: shortcuts alone are left."""
    network = CifarWideResNet(5, 10, 1, 1 - 1e-7, width=2)
    images = jax.random.normal(getkey(), (3, 8, 8, 1))
    variables = drawn(network, images.shape[1:])
    run = lambda v, key: network.apply(v, images, train=True, mutable=["batch_stats"], rngs={"dropout": key})
    params = variables["params"]
    x = convolution(np.asarray(images, np.float64), params["Conv_0"])
    for index in (1, 2):
        block = params[f"PreActivationBlock_{index}"]
        x = convolution(relu(normalised(x, block["BatchNorm_0"])), block["Conv_2"], 2)
    expected = dense(relu(normalised(x, params["BatchNorm_0"])).mean((1, 2)), params["Dense_0"])
    np.testing.assert_allclose(jax.jit(run)(variables, getkey())[0], expected, rtol=1e-4, atol=1e-4)
