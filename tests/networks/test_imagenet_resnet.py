"""Residual networks of four stages: against a NumPy forward pass, and the numbers of the published architectures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import convolution, normalised, windows

from subspaces_jax import trees
from subspaces_jax.networks import (
    ImageNetResNet,
    ResNet18,
    ResNet50,
    ResNet101,
    TinyImageNetResNet18,
    TinyImageNetResNet50,
    WideResNet101,
)

# Both blocks, both stems, a block without a shortcut's convolution, and sizes that strides of 2 do not divide.
THIN = {
    "basic, small": (ImageNetResNet(5, (1, 2, 1, 1), small_images=True, width=4), (11, 9, 3)),
    "bottleneck, large": (ImageNetResNet(5, (2, 1), bottleneck=True, inner_factor=2, width=4), (21, 23, 3)),
}
# network, side of the images, convolutions, BatchNorm layers, parameters: torchvision's without the biases of the
# classifier, and those of the subspace paper's code for small images
PUBLISHED = {
    "resnet_18": (ResNet18(1000), 224, 21, 20, 11_689_512 - 1000),
    "resnet_101": (ResNet101(1000), 224, 105, 104, 44_549_160 - 1000),
    "wide_resnet_101_2": (WideResNet101(1000), 224, 105, 104, 126_886_696 - 1000),
    "tiny_imagenet_resnet_50": (TinyImageNetResNet50(200), 64, 54, 53, 23_909_952),
}


def conv_norm(x, tree, index, stride=1):
    """A convolution and BatchNorm with the batch's own statistics."""
    return normalised(convolution(x, tree[f"Conv_{index}"], stride), tree[f"BatchNorm_{index}"])


def forward(network, params, images):
    """(logits, last map before its ReLU, pooled map) in training, float64."""
    strides = (1, 2, 1) if network.bottleneck else (2, 1)  # where a stage reduces the map
    name = "BottleneckBlock" if network.bottleneck else "BasicBlock"
    x = np.maximum(conv_norm(np.asarray(images, np.float64), params, 0, 1 if network.small_images else 2), 0)
    if not network.small_images:
        x = windows(x, 3, 2, 1, -np.inf).max((4, 5))
    firsts = np.cumsum([0, *network.stage_sizes])
    for index in range(firsts[-1]):
        block = params[f"{name}_{index}"]
        reduces = index in firsts[1:]
        y = x
        for i, stride in enumerate(strides):
            y = conv_norm(np.maximum(y, 0) if i else y, block, i, stride if reduces else 1)
        shortcut = f"Conv_{len(strides)}" in block
        last = y + (conv_norm(x, block, len(strides), 2 if reduces else 1) if shortcut else x)
        x = np.maximum(last, 0)
    pooled = x.mean((1, 2), keepdims=True)
    return pooled[:, 0, 0] @ np.asarray(params["Conv_1"]["kernel"])[0, 0], last, pooled


@pytest.mark.parametrize("name", THIN)
def test_forward_pass_is_that_of_numpy(name, getkey):
    network, image = THIN[name]
    images = jax.random.normal(getkey(), (3, *image))
    variables = jax.jit(network.init)(getkey(), images)
    noise = lambda leaf: leaf + 0.3 * jax.random.normal(getkey(), leaf.shape)  # no scale of 1, no bias of 0
    params = jax.tree.map(lambda leaf: noise(leaf) if leaf.ndim == 1 else leaf, variables["params"])
    run = jax.jit(lambda v, x: network.apply(v, x, train=True, mutable=["batch_stats", "intermediates"]))
    logits, kept = run({**variables, "params": params}, images)
    expected, last, pooled = forward(network, params, images)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    features = last if network.small_images else pooled
    np.testing.assert_allclose(kept["intermediates"]["features"][0], features, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_of_the_published_networks(name):
    network, side, num_convs, num_norms, num_parameters = PUBLISHED[name]
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]
    names = trees.leaf_names(params)
    assert trees.num_parameters(params) == num_parameters
    assert sum(map(trees.is_kernel, names)) == num_convs
    assert sum(name.endswith("scale") for name in names) == num_norms


@pytest.mark.parametrize(
    "network, side, expected",
    [
        (TinyImageNetResNet18(200), 64, [(64, 64), (32, 128), (16, 256), (8, 512)]),
        (ResNet50(1000), 224, [(56, 256), (28, 512), (14, 1024), (7, 2048)]),
    ],
    ids=["tiny_imagenet_resnet_18", "resnet_50"],
)
def test_maps_of_the_stages(network, side, expected):
    blocks = lambda module, _: type(module).__name__ in ("BasicBlock", "BottleneckBlock")
    images = jnp.zeros((2, side, side, 3))
    init = lambda: network.init_with_output(
        jax.random.key(0), images, capture_intermediates=blocks, mutable=["params", "batch_stats", "intermediates"]
    )
    maps = jax.eval_shape(init)[1]["intermediates"]
    in_order = sorted((name for name in maps if "Block" in name), key=lambda name: int(name.rsplit("_")[-1]))
    shapes = [maps[name]["__call__"][0].shape for name in in_order]
    ends = np.cumsum(network.stage_sizes) - 1
    assert [shapes[end] for end in ends] == [(2, side, side, channels) for side, channels in expected]


def test_kernels_start_with_a_squared_norm_of_twice_their_output_channels(getkey):
    network = ImageNetResNet(64, (1, 1), bottleneck=True, width=16)
    params = jax.jit(network.init)(getkey(), jnp.zeros((1, 32, 32, 3)))["params"]
    kernels = trees.select(params, trees.is_kernel)
    for kernel in kernels:  # |v|^2 is the variance of an entry times a chi-squared variable
        relative = float(jnp.sum(kernel**2)) / (2 * kernel.shape[-1])
        assert abs(relative - 1) < 5 * np.sqrt(2 / kernel.size), kernel.shape


def test_dtype_of_the_computation_reaches_every_layer():
    network = ImageNetResNet(5, (1, 1), bottleneck=True, width=4, dtype=jnp.bfloat16)
    captured = jax.eval_shape(
        lambda: network.init_with_output(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), capture_intermediates=True)
    )
    variables = captured[1]
    outputs = jax.tree.leaves(variables["intermediates"]) + [captured[0]]
    assert {leaf.dtype for leaf in outputs} == {jnp.dtype("bfloat16")}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}


def test_basic_blocks_have_no_inner_maps_to_widen():
    with pytest.raises(ValueError, match="inner_factor widens bottlenecks, got 2 without"):
        ImageNetResNet(10, (1,), inner_factor=2).init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
