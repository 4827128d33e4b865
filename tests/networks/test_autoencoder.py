"""The autoencoder: against a NumPy forward pass, and the numbers and initial values of its specification."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_layers import convolution, dense, drawn, normalised
from scipy import stats

from subspaces_jax import tasks, trees
from subspaces_jax.networks import Autoencoder, checks
from subspaces_jax.networks.autoencoder import INITIALISATIONS


def of_size_32(width, latent, channels):
    """Parameters on 32x32 images, layer by layer."""
    encoder = 16 * (channels * width + 2 * width**2 + 8 * width**2 + 16 * width**2)
    decoder = 25 * (16 * width**2 + 8 * width**2 + 2 * width**2 + width * channels)
    norms = 2 * (2 * width + 4 * width) + 2 * (4 * width + 2 * width + width)
    return encoder + decoder + norms + (4 * width + 1) * latent + (latent + 1) * 4 * width


@pytest.mark.parametrize(
    "width, side, channels, number",
    [
        (64, 64, 3, 17_944_512),
        (32, 64, 3, 4_522_016),
        (16, 64, 3, 1_148_496),
        (64, 32, 3, 4_441_792),
        (64, 32, 3, of_size_32(64, 128, 3)),
        (16, 32, 1, of_size_32(16, 128, 1)),
    ],
)
def test_numbers_of_parameters(width, side, channels, number):
    network, images = Autoencoder(side**2 * channels, width), jnp.zeros((2, side, side, channels))
    outputs, variables = jax.eval_shape(network.init_with_output, jax.random.key(0), images)
    assert trees.num_parameters(variables["params"]) == number
    assert outputs.shape == images.shape
    convolutions = [leaf for leaf in trees.leaf_names(variables["params"]) if "Conv" in leaf]
    assert all(leaf.endswith("kernel") for leaf in convolutions) and len(convolutions) == (10 if side == 64 else 8)
    assert len(variables["batch_stats"]) == (7 if side == 64 else 5)


def upsampled(x, factor):
    """Linear between the centres of pixels along both axes, constant beyond the outermost."""
    for axis in (1, 2):
        at = (np.arange(factor * x.shape[axis]) + 0.5) / factor - 0.5
        x = np.apply_along_axis(lambda line: np.interp(at, np.arange(len(line)), line), axis, x)
    return x


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def forward(params, images):
    """(images, latent vectors) in training without dropout, float64, of 32x32 images."""
    layer = lambda name: params[name]
    x = leaky(convolution(images, layer("Conv_0"), 2, 1))
    for i in (1, 2):
        x = leaky(normalised(convolution(x, layer(f"Conv_{i}"), 2, 1), layer(f"BatchNorm_{i - 1}")))
    x = convolution(x, layer("Conv_3"), 2, 0)
    assert x.shape[1:3] == (1, 1)
    z = np.tanh(dense(x[:, 0, 0], layer("Dense_0")))
    x = leaky(dense(z, layer("Dense_1")))[:, None, None]
    for i, factor in enumerate((4, 2, 2)):
        x = convolution(upsampled(x, factor), layer(f"Conv_{4 + i}"))
        x = leaky(normalised(x, layer(f"BatchNorm_{2 + i}")))
    return np.tanh(convolution(upsampled(x, 2), layer("Conv_7"))), z


def test_forward_pass_is_that_of_numpy(getkey):
    network = Autoencoder(3072, 2, 4, "kaiming_uniform", dropout=0.0)
    images = jax.random.uniform(getkey(), (3, 32, 32, 3))
    variables = drawn(network, images.shape[1:])
    run = jax.jit(lambda v: network.apply(v, images, train=True, mutable=["batch_stats", "intermediates"]))
    outputs, kept = run(variables)
    expected, latent = forward(variables["params"], np.asarray(images, np.float64))
    np.testing.assert_allclose(kept["intermediates"]["features"][0], latent, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4)


DISTRIBUTIONS = {  # of a kernel's entries times the root of k k C_in, gain sqrt(2 / 1.04)
    "kaiming_normal": stats.norm(0, np.sqrt(2 / 1.04)),
    "kaiming_uniform": stats.uniform(-np.sqrt(6 / 1.04), 2 * np.sqrt(6 / 1.04)),
}


def is_of(kernel, name):
    """Whether a kernel's entries may have come from the distribution of that name."""
    root = np.sqrt(kernel[..., 0].size)
    distribution = DISTRIBUTIONS.get(name, stats.norm(0, 0.02 * root))
    return stats.kstest(np.ravel(kernel) * root, distribution.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["normal", *DISTRIBUTIONS])
def test_initial_values_of_kernels(name, getkey):
    kernel = INITIALISATIONS[name](getkey(), (4, 4, 8, 16))
    assert [other for other in INITIALISATIONS if is_of(kernel, other)] == [name]


def test_initial_values(getkey):
    variables = jax.jit(Autoencoder(3072, 8, 16, "kaiming_uniform").init)(getkey(), jnp.zeros((1, 32, 32, 3)))
    leaves = {name: np.asarray(leaf) for name, leaf in trees.leaf_names(variables["params"]).items()}
    assert all(is_of(leaf, "kaiming_uniform") for leaf in leaves.values() if leaf.ndim == 4)
    scales = np.concatenate([leaf for name, leaf in leaves.items() if name.endswith("scale")])
    assert stats.kstest((scales - 1) / 0.02, "norm").pvalue > 1e-3
    assert not any(np.any(leaf) for name, leaf in leaves.items() if "BatchNorm" in name and name.endswith("bias"))
    for name in ("Dense_0", "Dense_1"):
        entries = np.concatenate([leaves[f"{name}/kernel"].ravel(), leaves[f"{name}/bias"]])
        entries = entries * np.sqrt(leaves[f"{name}/kernel"].shape[0])
        assert np.abs(entries).max() <= 1 and stats.kstest(entries, "uniform", (-1, 2)).pvalue > 1e-3


@pytest.mark.parametrize(
    "network, image, message",
    [
        (Autoencoder(784), (28, 28, 1), "images of 32 x 32 or 64 x 64 pixels .* and is to give 784: resize or pad"),
        (Autoencoder(10), (32, 32, 3), "and is to give 10: .* its task is reconstruction"),
        (Autoencoder(3072), (64, 64, 3), "with 3072 outputs takes images of 32 x 32 x 3, .* got 64 x 64 x 3"),
        (Autoencoder(4096), (32, 32, 4), "takes images of 64 x 64 x 1, .* got 32 x 32 x 4"),
        (
            Autoencoder(3072, initialisation="he"),
            (32, 32, 3),
            "initialisation is 'he': it takes normal, kaiming_normal",
        ),
    ],
)
def test_what_is_refused(network, image, message):
    with pytest.raises(ValueError, match=message) as caught:
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image)))
    assert "\n" not in str(caught.value)


def test_it_is_taken_for_reconstruction():
    shape = tasks.reconstruction().output_shape((32, 32, 3), 10)
    traits = checks.check_network("autoencoder", Autoencoder(int(np.prod(shape)), 2, 3), (32, 32, 3), shape)
    assert traits == checks.Traits({"train": True}, {"train": False}, True, True, False, traits.params)
    assert traits.params["Conv_0"]["kernel"].shape == (4, 4, 3, 2)
