"""Layers in NumPy, float64, for forward passes that share no code with the networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import trees


def drawn(network, image, seed=0):
    """Variables of a network from NumPy, which compiles nothing: kernels Kaiming-normal, other parameters up to 0.6
    from where BatchNorm starts, statistics as it starts them."""
    shapes = traced(network, tuple(image))
    rng = np.random.default_rng(seed)

    def draw(name, leaf):
        kind = name.rpartition("/")[2]
        if kind in ("mean", "var"):
            return jnp.full(leaf.shape, float(kind == "var"))
        if kind == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return jnp.asarray(rng.normal(0, np.sqrt(2 / fan_in), leaf.shape), jnp.float32)
        return jnp.asarray(float(kind == "scale") + rng.uniform(-0.6, 0.6, leaf.shape), jnp.float32)

    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, map(draw, trees.leaf_names(shapes), leaves))


@functools.cache
def traced(network, image):
    return jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *image)))


def windows(x, size, stride, pad=0, fill=0.0):
    """[B, H, W, C] -> [B, H', W', C, size, size]."""
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]


def convolution(x, tree, stride=1, pad=None):
    """With what a Conv owns; padded by half the kernel unless `pad` says otherwise."""
    kernel = np.asarray(tree["kernel"], np.float64)
    size = kernel.shape[0]
    y = np.einsum("bhwcij,ijco->bhwo", windows(x, size, stride, size // 2 if pad is None else pad), kernel)
    return y + np.asarray(tree["bias"]) if "bias" in tree else y


def normalised(x, tree):
    """BatchNorm with the batch's own statistics."""
    mean, variance = x.mean((0, 1, 2), keepdims=True), x.var((0, 1, 2), keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * np.asarray(tree["scale"]) + np.asarray(tree["bias"])


def dense(x, tree):
    y = x @ np.asarray(tree["kernel"], np.float64)
    return y + np.asarray(tree["bias"]) if "bias" in tree else y


def relu(x):
    return np.maximum(x, 0)
