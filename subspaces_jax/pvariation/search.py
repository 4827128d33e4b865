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
ROWS = 256  # points whose distances from all others are one product of matrices


def predecessors(
    points: jax.Array, exponents: tuple[float, ...], norm: str, method: str, block_size: int | None, all_points: bool
) -> jax.Array:
    """[B, L, D] -> [P, B, L], by a method of `variation.METHODS`; unless `all_points`, of those that are needed only.

    On a CPU one path is done after the other: its distances stay in the cache, and a block that cannot matter costs
    nothing.
    """
    num, dim = points.shape[1:]
    block_size = min(block_size or default_block_size(num), num)
    searches = {
        "push": partial(push, exponents=exponents, norm=norm),
        "fixed_point": partial(fixed_point, exponents=exponents, norm=norm),
        "blocked": partial(blocked, exponents=exponents, norm=norm, block_size=block_size),
    }
    on_line = dim == 1 and not all_points
    usual = "blocked" if on_line or num > WHOLE else "fixed_point"
    on_cpu, elsewhere = (searches[auto if method == "auto" else method] for auto in ("blocked", usual))
    if method == "auto" and on_line:
        on_cpu = elsewhere = partial(of_extrema, search=lambda of, count: searches["blocked"](of, count=count))
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


def blocked(
    points: jax.Array,
    exponents: tuple[float, ...],
    norm: str,
    block_size: int,
    count: jax.Array | None = None,
) -> jax.Array:
    """Block after block of points: earlier blocks, the nearest first, where they can matter; then within the block.

    The distances of two blocks are found when they are needed. They are not where, for every point j of the later
    block and with c the centre and r the radius of the earlier one, V at its end + (d(c, j) + r)^p is at most what j
    has already: values do not decrease along a path, and the triangle inequality bounds all steps from the block. Where
    `count` is given, points from there on have no predecessors.
    """
    num = len(points)
    num_blocks = -(-num // block_size)
    points = jnp.pad(points, ((0, num_blocks * block_size - num), (0, 0)), mode="edge")
    blocks = points.reshape(num_blocks, block_size, -1)
    near = jnp.moveaxis(distances.bands(points, norm).reshape(-1, num_blocks, block_size), 1, 0)
    centres = jnp.mean(blocks, axis=1)
    radii = jnp.max(distances.distance(distances.sizes(blocks - centres[:, None], norm), norm), axis=1)
    between = partial(distances.between, norm=norm, direct=distances.is_direct(*points.shape))
    powers = lambda sizes: jnp.stack([distances.powers(sizes, p, norm) for p in exponents])
    size_of = lambda distance: distance * distance if norm == "l2" else distance

    def block(values_of, j):
        """[P, n, b] values of the blocks before j -> with those of block j, and its points' predecessors [P, b]."""
        start, ends = j * block_size, values_of[:, :, -1]
        within = powers(distances.banded(between(blocks[j], blocks[j]), near[j]))
        solve = jax.vmap(lambda costs, values, before: _pushed(costs, values, before, start))
        first = jnp.where(j > 0, ends[:, j - 1] + powers(near[j, 1, 0]), 0)
        values = jnp.full((len(exponents), block_size), -jnp.inf, points.dtype).at[:, 0].set(first)
        before = jnp.zeros(values.shape, jnp.int32).at[:, 0].set(jnp.maximum(start - 1, 0))
        state = solve(within, values, before)
        slack = 1e-3 * (radii[j] + radii)  # of distances that are products of matrices
        far = distances.distance(between(blocks[j], centres), norm) + radii + slack
        bounds = ends[:, None] + powers(size_of(far))  # [P, b, n]

        def offered(state, i, sizes):
            values, before = state
            offers = values_of[:, i, :, None] + powers(sizes)
            best = jnp.max(offers, axis=1)
            places = jnp.arange(block_size, dtype=jnp.int32)[:, None]
            first = jnp.min(jnp.where(offers >= best[:, None], places, block_size), axis=1)
            better = best >= values
            return jnp.where(better, best, values), jnp.where(better, i * block_size + first, before)

        def next_of(values, i):
            matters = jnp.any(bounds >= values[:, :, None], axis=(0, 1)) & (jnp.arange(num_blocks) < i)
            return jnp.max(jnp.where(matters, jnp.arange(num_blocks), -1))

        def adjacent(state):
            sizes = between(blocks[j - 1], blocks[j])
            return offered(state, j - 1, distances.banded(sizes, near[j], block_size))

        def earlier(state):
            i, state = state
            values, before = offered(state, i, between(blocks[i], blocks[j]))
            return next_of(values, i), (values, before)

        state = lax.cond(j > 0, adjacent, lambda state: state, state)
        _, state = lax.while_loop(lambda state: state[0] >= 0, earlier, (next_of(state[0], j - 1), state))
        values, before = solve(within, *state)
        return values_of.at[:, j].set(values), before

    def add(j, state):
        values_of, found = state
        values_of, before = block(values_of, j)
        return values_of, found.at[:, j].set(before)

    zeros = jnp.zeros((len(exponents), num_blocks, block_size), points.dtype)
    last = num_blocks if count is None else -(-count // block_size)
    _, found = lax.fori_loop(0, last, add, (zeros, zeros.astype(jnp.int32)))
    return found.reshape(len(exponents), -1)[:, :num]


def of_extrema(points: jax.Array, search) -> jax.Array:
    """Predecessors on the real line, [L, 1], by a search (points, count) among the first and last point and the strict
    local extrema, which are the only ones that a best partition for an exponent of at least 1 needs.

    Those of the other points are 0.
    """
    num = len(points)
    index = jnp.arange(num)
    step = jnp.sign(jnp.diff(points[:, 0], prepend=points[0, 0]))
    moves = jnp.where(step != 0, index, num)
    next_move = lax.cummin(jnp.append(moves[1:], num), reverse=True)
    turns = (step != 0) & (next_move < num) & (step != step[jnp.minimum(next_move, num - 1)])
    kept = turns | (index == 0) | (index == num - 1)
    count = jnp.sum(kept)
    order = jnp.where(index < count, jnp.argsort(~kept, stable=True), num - 1).astype(jnp.int32)
    found = order[search(points[order], count)]
    return jnp.zeros_like(found).at[:, jnp.where(index < count, order, num)].set(found, mode="drop")


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
    """[L, L], rows of ROWS points about their own mean."""
    num, dim = points.shape
    rows = jnp.pad(points, ((0, -num % ROWS), (0, 0)), mode="edge") if num > ROWS else points
    between = partial(distances.between, b=points, norm=norm, direct=distances.is_direct(num, dim))
    found = lax.map(between, rows.reshape(-1, min(ROWS, num), dim)).reshape(-1, num)[:num]
    return distances.banded(found, distances.bands(points, norm))
