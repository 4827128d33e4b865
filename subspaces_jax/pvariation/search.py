"""The best predecessor of every point of a path: V[j] = max over m < j of V[m] + d(m, j)^p."""

import jax
import jax.numpy as jnp
from jax import lax

from subspaces_jax.pvariation import distances


def predecessors(points: jax.Array, exponents: tuple[float, ...], norm: str, method: str, block_size: int) -> jax.Array:
    """[L, D] and P exponents -> [P, L] int32, each point's predecessor on a best path to it; that of point 0 is 0."""
    num = points.shape[0]
    rows = lax.map(lambda x: distances.sizes(points - x, norm), points)
    ahead = jnp.arange(num)

    def of_exponent(p):
        costs = distances.powers(rows, p, norm)

        def push(state, j):
            values, found = state
            new = values[j] + costs[j]
            better = (ahead > j) & (new > values)
            return (jnp.where(better, new, values), jnp.where(better, j, found)), None

        start = jnp.zeros(num, points.dtype) - (ahead > 0), jnp.zeros(num, jnp.int32)
        return lax.scan(push, start, jnp.arange(num, dtype=jnp.int32))[0][1]

    return jnp.stack([of_exponent(p) for p in exponents])
