"""Networks of a few units and random weights, drawn by NumPy: nothing is compiled for them."""

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax.connecting.permutations import identity, invert, permute


def made(network, shape, seed=0):
    """Standard normal parameters of a network for images of a shape, divided by the root of what a unit reads."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)))["params"]
    generator = np.random.default_rng(seed)
    draw = lambda leaf: (generator.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))).astype(np.float32)
    return jax.tree.map(draw, shapes)


def planted(params, table, seed=7):
    """A network with its units in a random order, and the permutations that bring it back."""
    generator = np.random.default_rng(seed)
    orders = {axis: generator.permutation(order) for axis, order in identity(params, table).items()}
    return permute(params, table, orders), invert(orders)
