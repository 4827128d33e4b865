"""How the blocks of a deep residual network start: fills that depend on the block alone, and truncated noise.

Symbols: L blocks, i = 0 ... L - 1, s = 1/gamma + 1 - alpha, m = L^-s. The names are those of the published code; the
published text has 1/d^2 where the code has 1/2, and m/2 for the deviation of `ntrunc` where the code has its root.

Reference: the code beside the thesis "Weights regularity for residual neural networks in the depth limit", after Cont,
Rossier and Xu, Convergence and Implicit Regularization Properties of Gradient Descent for Deep Residual Networks, 2022,
arXiv:2204.07261.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Fill = Callable[[np.ndarray, float, float], np.ndarray]


def _signed(base: np.ndarray, s: float) -> np.ndarray:
    return np.where(base < 0, -1.0, 1.0) * np.abs(base) ** s * 2.0**-s


FILLS: dict[str, Fill] = {  # (i [L] float64, L, s) -> the value of every entry of block i, [L]
    "constant": lambda i, depth, s: np.full_like(i, 0.5 * depth**-s),
    "lin_dec": lambda i, depth, s: (depth - i - 1) ** s * depth ** (-2 * s),
    "lin_inc": lambda i, depth, s: i**s * depth ** (-2 * s),
    "quad": lambda i, depth, s: ((depth - i - 1) * i) ** s * depth ** (-3 * s),
    "lin_dec_sym": lambda i, depth, s: _signed(depth - 2 * (i - 1), s) * depth ** (-2 * s),
    "lin_inc_sym": lambda i, depth, s: _signed(2 * i - depth, s) * depth ** (-2 * s),
}
TRUNCATED = "ntrunc"
INITIALISATIONS = ("constant", TRUNCATED, *[name for name in FILLS if name != "constant"])


def blocks(name: str, depth: int, alpha: float, gamma: float) -> Callable[..., jax.Array]:
    """A Flax initialiser (key, shape [L, d, d], dtype) of all blocks.

    `ntrunc` is a normal law of variance w = m/2 cut off at -w and w: where w is small, as it is for all but a few
    blocks, it is the uniform law of deviation w / sqrt(3). The published code falls back to the fill w where w is at
    most 1e-9; here it does not.

    Args:
        name: of INITIALISATIONS.
        depth: L.
        alpha, gamma: of s.
    """
    s = 1.0 / gamma + 1.0 - alpha

    def fill(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        values = FILLS[name](np.arange(depth, dtype=np.float64), float(depth), s)
        return jnp.broadcast_to(jnp.asarray(values, dtype)[:, None, None], shape)

    def truncated(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
        deviation = (0.5 * float(depth) ** -s) ** 0.5
        return deviation * jax.random.truncated_normal(key, -deviation, deviation, shape, dtype)

    return truncated if name == TRUNCATED else fill
