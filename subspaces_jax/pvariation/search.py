"""The best predecessor of every point of a path, by Bellman's equation V[j] = max over m < j of V[m] + d(m, j)^p.

Three ways to the same answer. All take points [L, D] and P exponents above 1 and give [P, L] int32: each point's
predecessor on a best path to it, the earliest of equally good ones; that of point 0 is 0.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from subspaces_jax.pvariation import distances

WHOLE = 8192  # points of which accelerators hold all distances at once
GAPS = 1  # steps apart, up to which points of blocks are near: blocks are small, and so are their rounding errors
ROWS = 256  # points whose distances from all others are one product of matrices


def predecessors(
    points: jax.Array, exponents: tuple[float, ...], norm: str, method: str, block_size: int | None, all_points: bool
) -> jax.Array:
    """[B, L, D] -> [P, B, L], by a method of `variation.METHODS`; unless `all_points`, of those that are needed only.

    On a CPU one path is done after the other: its distances stay in the cache, and a block that cannot matter costs
    nothing.
    """
    num, dim = points.shape[1:]
    options: dict[str, Any] = {"exponents": exponents, "norm": norm}
    of_blocks: Callable[[int], Callable[..., jax.Array]] = lambda usual: partial(
        blocked, block_size=min(block_size or usual, num), **options
    )
    whole = {"push": partial(push, **options), "fixed_point": partial(fixed_point, **options)}
    usual = default_block_size(num)
    on_cpu, elsewhere = of_blocks(usual), of_blocks(2 * usual)  # there steps cost more than distances
    if method == "auto" and dim == 1 and not all_points:
        on_cpu, elsewhere = (
            partial(of_extrema, search=lambda of, count, by=by: by(of, count=count)) for by in (on_cpu, elsewhere)
        )
    elif method == "auto" and num <= WHOLE:
        elsewhere = whole["fixed_point"]
    elif method in whole:
        on_cpu = elsewhere = whole[method]
    each = lambda found: jnp.moveaxis(found, 1, 0)
    return lax.platform_dependent(
        points, cpu=lambda of: each(lax.map(on_cpu, of)), default=lambda of: each(jax.vmap(elsewhere)(of))
    )


def default_block_size(num: int) -> int:
    """About half of the root of the number of points: a row of bounds costs less than the distances within a block."""
    return min(max(32, 1 << max((num - 1).bit_length() - 1, 0) // 2), 512)


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

    The distances of two blocks are found when they are needed. They are not where V at the end of the earlier one, plus
    (d(c, c') + r + r')^p with c, c' the centres and r, r' the radii of both, is less than the first point of the later
    one has already: values do not decrease along a path, and the triangle inequality bounds all steps between the two.
    Where `count` is given, points from there on have no predecessors.
    """
    num = len(points)
    num_blocks = -(-num // block_size)
    padded = jnp.pad(points, ((0, num_blocks * block_size - num), (0, 0)), mode="edge")
    near = distances.bands(padded, norm, GAPS).reshape(-1, num_blocks, block_size)
    blocks = padded.reshape(num_blocks, block_size, -1)
    centres = jnp.mean(blocks, axis=1)
    blocks = blocks - centres[:, None]
    direct = distances.is_direct(*points.shape)
    powers = lambda sizes: jnp.stack([distances.powers(sizes, p, norm) for p in exponents])
    extents = distances.sizes(blocks, norm)
    middle = jnp.mean(centres, axis=0, keepdims=True)
    bounds = powers(distances.reaches(centres - middle, jnp.max(extents, axis=1), norm, direct))
    block_index, places = jnp.arange(num_blocks), jnp.arange(block_size, dtype=jnp.int32)

    def costs_of(i, j):
        """[P, b, b] of steps from block i to block j."""
        moved = blocks[j] + (centres[j] - centres[i])[None]
        found = distances.between(blocks[i], moved, norm, direct, extents[i])
        steps = places[None] + (j - i) * block_size - places[:, None]
        for gap in range(1, GAPS + 1):
            found = jnp.where(steps == gap, near[gap - 1, j][None], found)
        return powers(found)

    def block(values_of, j):
        """[P, n, b] values of the blocks before j -> those of block j, and its points' predecessors, [P, b]."""
        ends = values_of[:, :, -1]

        def next_of(values, i):
            matters = jnp.any(ends + bounds[:, j] >= values[:, :1], axis=0) & (block_index < i)
            return jnp.max(jnp.where(matters, block_index, -1))

        def earlier(state):
            i, values, before = state
            best, offers = _best(values_of[:, i], costs_of(i, j))

            def take():
                better = best >= values
                return jnp.where(better, best, values), jnp.where(better, _first(offers, i), before)

            values, before = lax.cond(jnp.any(best >= values), take, lambda: (values, before))
            return next_of(values, i), values, before

        start = jnp.full((len(exponents), block_size), -jnp.inf, points.dtype)
        start = start.at[:, 0].set(jnp.where(j > 0, -jnp.inf, 0))
        state = (j - 1, start, jnp.zeros(start.shape, jnp.int32))
        _, reached, before = lax.while_loop(lambda state: state[0] >= 0, earlier, state)
        costs = jnp.where((places[None] > places[:, None])[None], costs_of(j, j), -jnp.inf)
        push = lambda m, values: jnp.maximum(values, values[:, m, None] + costs[:, m])
        values = lax.fori_loop(0, block_size, push, reached)
        best, offers = _best(values, costs)
        return values, jnp.where(best > reached, _first(offers, j), before)

    def add(j, state):
        values_of, found = state
        values, before = block(values_of, j)
        return values_of.at[:, j].set(values), found.at[:, j].set(before)

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


def _best(values, costs):
    """The best that points of values [P, b] offer by steps of costs [P, b, b]: [P, b]; and all that they offer."""
    offers = values[:, :, None] + costs
    return jnp.max(offers, axis=1), offers


def _first(offers, block):
    """The first of a block's points whose offer [P, b, b] is the best one. By one pass: XLA may compute offers once
    more, rounded otherwise, and where they are compared with a maximum that it took before none may be equal to it."""
    return (block * offers.shape[1] + jnp.argmax(offers, axis=1)).astype(jnp.int32)


def _pushed(costs, values, before):
    """Values [N] and predecessors of points that offer steps of these costs [N, N] to one another, first to last."""
    index = jnp.arange(len(values), dtype=jnp.int32)

    def offer(state, given):
        values, before = state
        m, row = given
        new = values[m] + row
        better = (index > m) & (new > values)
        return (jnp.where(better, new, values), jnp.where(better, m, before)), None

    return lax.scan(offer, (values, before), (index, costs))[0]


def _all_sizes(points, norm):
    """[L, L], rows of ROWS points about their own mean."""
    num, dim = points.shape
    rows = jnp.pad(points, ((0, -num % ROWS), (0, 0)), mode="edge") if num > ROWS else points
    direct = distances.is_direct(num, dim)

    def of_rows(rows):
        centre = jnp.mean(rows, axis=0)
        return distances.between(rows - centre[None], points - centre[None], norm, direct)

    found = lax.map(of_rows, rows.reshape(-1, min(ROWS, num), dim)).reshape(-1, num)[:num]
    return distances.banded(found, distances.bands(points, norm))
