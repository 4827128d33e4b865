"""The best predecessor of every point of a path, by Bellman's equation V[j] = max over m < j of V[m] + d(m, j)^p.

Three ways to the same answer. All take points [L, D] and P exponents above 1 and give [P, L] int32: each point's
predecessor on a best path to it, the earliest of equally good ones; that of point 0 is 0.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from subspaces_jax.pvariation import distances

WHOLE = 8192  # points of which accelerators hold all distances at once


def predecessors(
    points: jax.Array, exponents: tuple[float, ...], norm: str, method: str, block_size: int | None
) -> jax.Array:
    """[B, L, D] -> [P, B, L], by a method of `variation.METHODS`.

    On a CPU one path is done after the other: its distances stay in the cache, and a branch that is not taken costs
    nothing.
    """
    num = points.shape[1]
    block_size = min(block_size or default_block_size(num), num)
    one = {
        "push": partial(push, exponents=exponents, norm=norm),
        "fixed_point": partial(fixed_point, exponents=exponents, norm=norm),
        "blocked": partial(blocked, exponents=exponents, norm=norm, block_size=block_size),
    }
    on_cpu = one["blocked" if method == "auto" else method]
    elsewhere = one["blocked" if num > WHOLE else "fixed_point"] if method == "auto" else on_cpu
    each = lambda found: jnp.moveaxis(found, 1, 0)
    return lax.platform_dependent(
        points, cpu=lambda of: each(lax.map(on_cpu, of)), default=lambda of: each(jax.vmap(elsewhere)(of))
    )


def default_block_size(num: int) -> int:
    """About the root of the number of points, so that a row of blocks is as large as a block."""
    return min(max(64, 1 << ((num - 1).bit_length() + 1) // 2), 1024)


def push(points: jax.Array, exponents: tuple[float, ...], norm: str) -> jax.Array:
    """Point after point: each offers its value and one more step to all that follow."""
    sizes, index = _all_sizes(points, norm), jnp.arange(len(points), dtype=jnp.int32)

    def of_exponent(p):
        values = jnp.where(index > 0, -jnp.inf, 0).astype(points.dtype)
        return _pushed(distances.powers(sizes, p, norm), values, jnp.zeros_like(index))[1]

    return jnp.stack([of_exponent(p) for p in exponents])


def fixed_point(points: jax.Array, exponents: tuple[float, ...], norm: str) -> jax.Array:
    """All points at once, until nothing grows: first one step more, then any number of steps from point to point.

    What a round finds is the value of true partitions, and Bellman's equation over indices that only grow has one
    solution. At most one round more than the best partition has steps that pass over points.
    """
    num = len(points)
    sizes, before = _all_sizes(points, norm), jnp.tri(num, num, -1, bool).T
    tolerance = 4 * jnp.finfo(points.dtype).eps

    def of_exponent(p):
        costs = jnp.where(before, distances.powers(sizes, p, norm), -jnp.inf)
        run = jnp.concatenate([jnp.zeros(1, points.dtype), jnp.cumsum(jnp.diagonal(costs, 1))])

        def go_on(state):
            values, gain, rounds = state
            return (gain > tolerance * values[-1]) & (rounds < num)

        def again(state):
            values, _, rounds = state
            reached = jnp.maximum(values, jnp.max(values[:, None] + costs, axis=0))
            new = jnp.maximum(reached, run + lax.cummax(reached - run))
            return new, jnp.max(new - values), rounds + 1

        values, _, _ = lax.while_loop(go_on, again, (run, jnp.full((), jnp.inf, points.dtype), 0))
        return jnp.argmax(values[:, None] + costs, axis=0).astype(jnp.int32)

    return jnp.stack([of_exponent(p) for p in exponents])


def blocked(points: jax.Array, exponents: tuple[float, ...], norm: str, block_size: int) -> jax.Array:
    """Block after block of points: earlier blocks, the nearest first, where they can matter; then within the block.

    The distances of two blocks are found when they are needed. They are not where, for every point j of the later
    block and with c the centre and r the radius of the earlier one, V at its end + (d(c, j) + r)^p is at most what j
    has already: values do not decrease along a path, and the triangle inequality bounds all steps from the block.
    """
    num = len(points)
    num_blocks = -(-num // block_size)
    points = jnp.pad(points, ((0, num_blocks * block_size - num), (0, 0)), mode="edge")
    near = distances.bands(points, norm)
    blocks = points.reshape(num_blocks, block_size, -1)
    centres = jnp.mean(blocks, axis=1)
    radii = jnp.max(distances.distance(distances.sizes(blocks - centres[:, None], norm), norm), axis=1)
    inside, many = jnp.arange(block_size, dtype=jnp.int32), jnp.asarray(exponents, points.dtype)[:, None]
    powers = lambda sizes: jnp.stack([distances.powers(sizes, p, norm) for p in exponents])

    def sizes_of(i, j):
        found = distances.between(blocks[i], blocks[j], norm)
        exact = lambda: distances.banded(found, near, i * block_size + inside, j * block_size + inside)
        return lax.cond(i + 1 >= j, exact, lambda: found)

    def block(state, j):
        ends, values_of = state  # [P, n] at the last point of each block, [P, n, b]
        within = powers(sizes_of(j, j))
        first = jnp.where(j > 0, ends[:, j - 1] + powers(near[1, j * block_size]), 0)
        values = jnp.full((len(exponents), block_size), -jnp.inf, points.dtype).at[:, 0].set(first)
        before = jnp.zeros(values.shape, jnp.int32).at[:, 0].set(jnp.maximum(j * block_size - 1, 0))
        solve = jax.vmap(lambda costs, values, before: _pushed(costs, values, before, j * block_size))
        values, before = solve(within, values, before)
        reach = distances.distance(jax.vmap(lambda c: distances.sizes(blocks[j] - c, norm))(centres), norm)
        reach = jnp.stack([(reach + radii[:, None]) ** p for p in exponents], axis=1)  # [n, P, b]

        def earlier(k, state):
            i = j - 1 - k

            def look(state):
                values, before = state
                offers = values_of[:, i][:, :, None] + powers(sizes_of(i, j))
                best = jnp.max(offers, axis=1)

                def take(state):
                    values, before = state
                    found = (i * block_size + jnp.argmax(offers, axis=1)).astype(jnp.int32)
                    better = best >= values
                    return jnp.where(better, best, values), jnp.where(better, found, before)

                return lax.cond(jnp.any(best >= values), take, lambda state: state, state)

            matters = jnp.any(ends[:, i][:, None] + reach[i] >= state[0])
            return lax.cond(matters, look, lambda state: state, state)

        old = values
        values, before = lax.fori_loop(0, j, earlier, (values, before))
        values, before = lax.cond(
            jnp.any(values > old), lambda: solve(within, values, before), lambda: (values, before)
        )
        return (ends.at[:, j].set(values[:, -1]), values_of.at[:, j].set(values)), before

    start = jnp.zeros((len(exponents), num_blocks), points.dtype)
    _, found = lax.scan(block, (start, jnp.zeros((*start.shape, block_size), points.dtype)), jnp.arange(num_blocks))
    return jnp.moveaxis(found, 0, 1).reshape(len(exponents), -1)[:, :num]


def _pushed(costs, values, before, offset=0):
    """Values [N] and predecessors of points that offer steps of these costs [N, N] to one another, first to last."""
    index = jnp.arange(len(values), dtype=jnp.int32)

    def offer(state, given):
        values, before = state
        m, row = given
        new = values[m] + row
        better = (index > m) & (new > values)
        return (jnp.where(better, new, values), jnp.where(better, offset + m, before)), None

    return lax.scan(offer, (values, before), (index, costs))[0]


def _all_sizes(points, norm):
    index = jnp.arange(len(points))
    return distances.banded(distances.between(points, points, norm), distances.bands(points, norm), index, index)
