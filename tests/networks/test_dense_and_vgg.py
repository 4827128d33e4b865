"""Dense networks, ConvFC and VGG: against NumPy forward passes, and the numbers and initial values of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import convolution, dense, drawn, normalised, relu, windows
from scipy import stats

from subspaces_jax import trees
from subspaces_jax.networks import MLP, VGG, ConvFC, families

MNIST, CIFAR = (28, 28, 1), (32, 32, 3)
BIASED, UNBIASED = {"initialisation": "uniform"}, {"initialisation": "uniform", "bias": False}
# Numbers of the specification of the paper of Anokhin and Yarotsky; those of ConvFC from the shapes of its layers.
PUBLISHED = {
    "logistic regression": (MLP(10, ()), MNIST, 7_850),
    "LinearOneLayer": (MLP(10, (2000,), **BIASED), MNIST, 1_590_010),
    "LinearOneLayer100": (MLP(10, (100,), **BIASED), CIFAR, 308_310),
    "LinearOneLayer500": (MLP(10, (500,), **BIASED), CIFAR, 1_541_510),
    "LinearOneLayer1000": (MLP(10, (1000,), **BIASED), CIFAR, 3_083_010),
    "LinearOneLayer2000": (MLP(10, (2000,), **BIASED), CIFAR, 6_166_010),
    "Linear3NoBias": (MLP(10, (6144, 2000), **UNBIASED), CIFAR, 31_182_368),
    "Linear5NoBias": (MLP(10, (6144, 2000, 1000, 1000), **UNBIASED), CIFAR, 34_172_368),
    "Linear7NoBias": (MLP(10, (6144, 2000, 1000, 1000, 1000, 1000), **UNBIASED), CIFAR, 36_172_368),
    "ConvFC": (ConvFC(10), CIFAR, (2_400 + 51_200 + 204_800 + 1_152_000 + 1_010_000) + (32 + 64 + 128 + 2_010)),
    "ConvFCNoBias": (ConvFC(10, bias=False), CIFAR, 2_400 + 51_200 + 204_800 + 1_152_000 + 1_010_000),
    "Conv2FC1": (ConvFC(10, (32, 64), ()), CIFAR, 2_432 + 51_264 + 3136 * 10 + 10),
    "VGG16": (VGG(10), CIFAR, 15_245_130),
    "VGG16BN": (VGG(10, batch_norm=True), CIFAR, 15_245_130 + 2 * 4_224),
    "VGG19": (VGG(10, 19), CIFAR, 15_245_130 + 9 * 256**2 + 256 + 2 * (9 * 512**2 + 512)),
    "VGG16h2k": (VGG(10, hidden=2000), CIFAR, 14_714_688 + 513 * 2000 + 2001 * 2000 + 20_010),
    "VGG16MNIST": (VGG(10), MNIST, 15_245_130 - 2 * 9 * 64),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_of_parameters(name):
    network, image, number = PUBLISHED[name]
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image)))["params"]
    assert trees.num_parameters(params) == number


@pytest.mark.parametrize(
    "network, image, maps",
    [
        (ConvFC(5, (3, 4), (6, 5)), (13, 8, 2), [(6, 3), (2, 1)]),
        (ConvFC(5, (3, 4), (), bias=False), (6, 5, 1), [(2, 2), (1, 1)]),  # a map of 2x2 under a window of 3x3
    ],
    ids=["biases", "no biases"],
)
def test_conv_fc_is_that_of_numpy(network, image, maps, getkey):
    params, images = drawn(network, image)["params"], jax.random.normal(getkey(), (3, *image))
    x = np.asarray(images, np.float64)
    for i, size in enumerate(maps):
        x = relu(convolution(x, params[f"Conv_{i}"]))
        x = windows(x, min(3, *x.shape[1:3]), 2).max((4, 5))
        assert x.shape[1:3] == size
    x = x.reshape(len(x), -1)
    for i in range(len(network.widths)):
        x = relu(dense(x, params[f"Dense_{i}"]))
    logits, kept = jax.jit(lambda p: network.apply({"params": p}, images, mutable=["intermediates"]))(params)
    np.testing.assert_allclose(kept["intermediates"]["features"][0], x, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, dense(x, params[f"Dense_{len(network.widths)}"]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg_is_that_of_numpy(batch_norm, getkey):
    network = VGG(5, 11, batch_norm, width=2, hidden=6, dropout=0.0)
    params, images = drawn(network, (19, 9, 2))["params"], jax.random.normal(getkey(), (3, 19, 9, 2))
    x, index = np.asarray(images, np.float64), 0
    for number, size in zip((1, 1, 2, 2, 2), [(9, 4), (4, 2), (2, 1), (1, 1), (1, 1)]):
        for _ in range(number):
            x = convolution(x, params[f"Conv_{index}"])
            x = relu(normalised(x, params[f"BatchNorm_{index}"]) if batch_norm else x)
            index += 1
        rows, columns = size
        x = np.stack([[x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2)) for j in range(columns)]
                      for i in range(rows)]).transpose(2, 0, 1, 3)  # fmt: skip
    x = x.reshape(len(x), -1)
    for name in ("Dense_0", "Dense_1"):
        x = relu(dense(x, params[name]))
    run = jax.jit(lambda p: network.apply({"params": p}, images, train=True, mutable=["batch_stats", "intermediates"]))
    logits, kept = run(params)
    np.testing.assert_allclose(kept["intermediates"]["features"][0], x, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(logits, dense(x, params["Dense_2"]), rtol=1e-3, atol=1e-3)


def test_dropout_of_vgg_is_before_both_hidden_layers(getkey):
    """At a rate near 1 nothing of the maps and nothing of the first hidden layer is left."""
    network = VGG(5, 11, width=2, hidden=8, dropout=1 - 1e-7)
    params, images = drawn(network, (8, 8, 1))["params"], jax.random.normal(getkey(), (3, 8, 8, 1))
    options = {"train": True, "mutable": ["intermediates"], "rngs": {"dropout": getkey()}}
    logits, kept = jax.jit(lambda p: network.apply({"params": p}, images, **options))(params)
    kept = kept["intermediates"]
    assert np.any(kept["c6"][0]) and not np.any(kept["c7"][0]) and not np.any(kept["h0"][0])
    hidden = relu(np.asarray(params["Dense_1"]["bias"]))
    assert np.any(hidden)
    np.testing.assert_allclose(kept["h1"][0], np.broadcast_to(hidden, (3, 8)), rtol=1e-6)
    np.testing.assert_allclose(logits, np.broadcast_to(dense(hidden, params["Dense_2"]), (3, 5)), rtol=1e-5, atol=1e-6)


def uniform(leaves):
    """p-value of entries within +-1 having come from a uniform distribution."""
    values = np.concatenate([np.ravel(leaf) for leaf in leaves])
    assert np.abs(values).max() <= 1
    return stats.kstest(values, "uniform", (-1, 2)).pvalue


def test_initial_values(getkey):
    variables = jax.jit(VGG(50, 11, width=8, hidden=200).init)(getkey(), jnp.zeros((1, 32, 32, 3)))
    params = variables["params"]
    for i in range(8):
        kernel = np.asarray(params[f"Conv_{i}"]["kernel"])
        scaled = kernel * np.sqrt(9 * kernel.shape[-1] / 2)
        assert stats.kstest(scaled.ravel(), "norm").pvalue > 1e-3
        assert not np.any(params[f"Conv_{i}"]["bias"])
    for network, image in ((None, None), (MLP(50, (200, 100), initialisation="uniform"), (8, 8, 1))):
        if network is not None:
            params = jax.jit(network.init)(getkey(), jnp.zeros((1, *image)))["params"]
        layers = [layer for name, layer in params.items() if name.startswith("Dense")]
        assert len(layers) == 3
        for leaf in ("kernel", "bias"):
            assert uniform([layer[leaf] * np.sqrt(layer["kernel"].shape[0]) for layer in layers]) > 1e-3


@pytest.mark.parametrize(
    "network, message",
    [
        (MLP(10, (3,), initialisation="lecun"), "initialisation is 'lecun': it takes he_normal or uniform"),
        (VGG(10, 12), "depth of 11, 13, 16, 19, got 12"),
        (ConvFC(10, ()), "at least one convolution"),
    ],
)
def test_options_that_are_refused(network, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))


def test_calls_name_them():
    assert families.NETWORKS["conv_fc"](10, (32, 64), ()) == ConvFC(10, (32, 64), (), True)
    assert families.by_name("vgg_19", 10, dropout=0.0) == VGG(10, 19, dropout=0.0)
