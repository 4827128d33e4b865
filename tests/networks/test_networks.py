"""Every network through shared properties, and the architecture's own numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax import trees
from subspaces_jax.networks import MLP, CifarResNet, LeNet, axes

NETWORKS = {  # network, images it takes, number of parameters
    "mlp": (MLP(10, (32, 16)), (8, 8, 1), 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10),
    "lenet": (LeNet(10), (28, 28, 1), 156 + 2_416 + 120 * (16 * 7 * 7 + 1) + 84 * 121 + 10 * 85),
    "lenet8": (LeNet(10), (8, 8, 1), None),
    "cifar_resnet_8_4": (CifarResNet(10, 8, 4), (8, 8, 1), None),
    "cifar_resnet_20": (CifarResNet(10, 20), (32, 32, 3), 272_464),
    "cifar_resnet_32": (CifarResNet(10, 32), (32, 32, 3), 466_896),
    "cifar_resnet_56": (CifarResNet(10, 56), (32, 32, 3), 855_760),
}
SMALL = [name for name in NETWORKS if name not in ("cifar_resnet_32", "cifar_resnet_56")]


def shapes(name):
    network, image, _ = NETWORKS[name]
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image)))


def initialised(name, getkey, batch=6):
    network, image, _ = NETWORKS[name]
    images = jax.random.normal(getkey(), (batch, *image))
    return network, jax.jit(network.init)(getkey(), images[:1]), images


@pytest.mark.parametrize("name", [name for name in NETWORKS if NETWORKS[name][2]])
def test_number_of_parameters(name):
    assert trees.num_parameters(shapes(name)["params"]) == NETWORKS[name][2]


@pytest.mark.parametrize("name", NETWORKS)
def test_axis_table_names_every_parameter(name):
    network, params = NETWORKS[name][0], shapes(name)["params"]
    assert axes.units(network.unit_axes(), params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", SMALL)
def test_permuting_the_units_of_an_axis_leaves_the_function_unchanged(name, getkey):
    network, variables, images = initialised(name, getkey)
    table, params = network.unit_axes(), variables["params"]
    orders = {axis: np.random.default_rng(1).permutation(n) for axis, n in axes.units(table, params).items()}

    def permute(path_and_leaf):
        name, leaf = path_and_leaf
        for dimension, axis in enumerate(table[name]):
            if axis is None:
                continue
            order = orders[axis.removeprefix(axes.FLATTENED)]
            if axis.startswith(axes.FLATTENED):  # channels come last in a flattened map
                order = (np.arange(0, leaf.shape[dimension], len(order))[:, None] + order[None]).ravel()
            leaf = jnp.take(leaf, order, axis=dimension)
        return leaf

    leaves, structure = jax.tree.flatten(params)
    permuted = jax.tree.unflatten(structure, map(permute, zip(trees.leaf_names(params), leaves)))
    # in train mode, so that BatchNorm's statistics are those of the permuted maps
    run = jax.jit(lambda p: network.apply({**variables, "params": p}, images, train=True, mutable=["batch_stats"])[0])
    np.testing.assert_allclose(run(permuted), run(params), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_dtypes(name, getkey):
    network, variables, images = initialised(name, getkey)
    assert network.apply(variables, images).shape == (6, 10)
    half = network.clone(dtype=jnp.bfloat16)
    logits, updated = half.apply(variables, images, train=True, mutable=["batch_stats"])
    assert logits.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updated))


def test_resnet_starts_as_the_paper_says():
    network, image, _ = NETWORKS["cifar_resnet_20"]
    variables = jax.jit(network.init)(jax.random.key(3), jnp.zeros((1, *image)))
    kernels = trees.select(variables["params"], trees.is_kernel)
    assert len(kernels) == 22 and sum(kernel.size for kernel in kernels) == 270_896
    # E|v|^2 over all convolutions is twice the sum of their output channels
    squares = sum(float(jnp.sum(kernel**2)) for kernel in kernels)
    np.testing.assert_allclose(squares, 1_588, rtol=0.02)
    norms = {name: leaf for name, leaf in trees.leaf_names(variables["params"]).items() if "BatchNorm" in name}
    assert len(norms) == 42
    assert all(np.all(leaf == float(name.endswith("scale"))) for name, leaf in norms.items())
    assert "bias" not in {name.rsplit("/")[-1] for name in trees.leaf_names(variables["params"]) if "Conv" in name}


def test_resnet_is_fully_convolutional_in_size(getkey):
    network, variables, _ = initialised("cifar_resnet_8_4", getkey)
    assert network.apply(variables, jnp.zeros((2, 28, 28, 1))).shape == (2, 10)


@pytest.mark.parametrize("depth", [7, 2, 21, 0])
def test_resnet_refuses_other_depths(depth):
    with pytest.raises(ValueError, match=f"depth of 6n \\+ 2 .* got {depth}"):
        CifarResNet(10, depth).init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


@pytest.mark.parametrize(
    "table, message",
    [
        ({"a": ("h",)}, "differ in b"),
        ({"a": ("h",), "b": ("h",), "c": (None,)}, "differ in c"),
        ({"a": ("h",), "b": ("h", None)}, "axis h has 3 units elsewhere but 2 in b"),
        ({"a": ("h",), "b": (None,)}, r"b has shape \(2, 2\) but axes"),
        ({"a": ("h",), "b": (axes.FLATTENED + "h", None)}, "no whole number of positions"),
    ],
)
def test_a_wrong_axis_table_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        axes.units(table, {"a": np.zeros(3), "b": np.zeros((2, 2))})
