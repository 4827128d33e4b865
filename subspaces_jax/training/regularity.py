"""How rough a network's weights are over its depth, in training: as numbers of a row, and as a learning rate.

What is measured is a path of weights, (params with leaves [..., ...]) -> points [..., L, D], as `networks.DeepResidual`
has one. Variations are rooted here: V^(1/q), with V of `pvariation.p_variation`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from subspaces_jax.pvariation import p_variation

PyTree = Any
WeightPath = Callable[[PyTree], jax.Array]
FACTORS = {"relu": 10.0}  # of the learning rate by p-variation, by activation
USUAL_FACTOR = 2.0


class VariationRateState(NamedTuple):
    """Attributes:
    count: int32, steps taken.
    learning_rate: of the last step, or before the first one its own.
    """

    count: jax.Array  # type: ignore[assignment]  # the field hides tuple.count
    learning_rate: jax.Array


def variations(weight_path: WeightPath, p: float = 2.0) -> Callable[[PyTree], dict[str, jax.Array]]:
    """A stack [K, ...] -> the rooted variations of exponents p/2, 3p/4 and p, means over its K networks.

    Names are "variation_1", "variation_1.5" and "variation_2" for p = 2.

    Args:
        weight_path: of the network.
        p: at least 2, as half of it is an exponent, too.

    Raises:
        ValueError: p below 2, or no path.
    """
    _check_path(weight_path)
    if not p >= 2.0:
        raise ValueError(f"p is at least 2, so that p/2 is at least 1, got {p}")
    exponents = (0.5 * p, 0.75 * p, float(p))

    def of_stack(params: PyTree) -> dict[str, jax.Array]:
        found = jnp.mean(p_variation(weight_path(params), exponents, rooted=True), axis=-1)
        return {f"variation_{q:g}": value for q, value in zip(exponents, found)}

    return of_stack


def scale_by_p_variation(
    schedule: optax.Schedule,
    weight_path: WeightPath,
    every: int,
    *,
    p: float = 2.0,
    factor: float = USUAL_FACTOR,
    most: float = 0.0,
) -> optax.GradientTransformation:
    """The learning rate factor * rate_0 / V^(2/p), V the p-variation of the weights: rough paths stop.

    rate_0 is the schedule's. It is found anew after every `every` steps, for those that follow, and costs nothing in
    between, in trainings under `jax.vmap` either, if these are all at the same step; until then the rate is the
    schedule's first. Of several networks the roughest counts. A path without any variation leaves the rate as it
    was. Where weights hardly vary, as at a constant start, the rate is greater than any step can bear unless `most` is
    set.

    Args:
        schedule: rate_0 as a function of the step.
        weight_path: of the network.
        every: steps between two rates, from 1 up.
        p: at least 1.
        factor: positive.
        most: the largest rate; 0 for none.

    Raises:
        ValueError: what is out of range, or no path.
    """
    _check_path(weight_path)
    if every < 1:
        raise ValueError(f"every is a whole number of steps from 1 up, got {every}")
    if not p >= 1.0:
        raise ValueError(f"p is at least 1, got {p}")
    if not factor > 0.0 or not most >= 0.0:
        raise ValueError(f"factor is positive and most at least 0, got {factor} and {most}")

    def found(params: PyTree, base: jax.Array, before: jax.Array) -> jax.Array:
        rooted = jnp.max(p_variation(weight_path(params), p, rooted=True))
        varies = rooted > 0.0
        rate = factor * base / jnp.square(jnp.where(varies, rooted, 1.0))
        rate = jnp.minimum(rate, most) if most else rate
        return jnp.where(varies | jnp.isnan(rooted), rate, before).astype(jnp.float32)

    when = _only_where_due(found)

    def init(params: PyTree) -> VariationRateState:
        return VariationRateState(jnp.int32(0), jnp.float32(schedule(jnp.int32(0))))

    def update(updates: PyTree, state: VariationRateState, params: PyTree = None) -> tuple[PyTree, VariationRateState]:
        if params is None:
            raise ValueError("the learning rate by p-variation needs the parameters: update(updates, state, params)")
        due = (state.count > 0) & (state.count % every == 0)
        base = jnp.float32(schedule(state.count))
        rate = when(due, params, base, state.learning_rate)
        scaled = jax.tree.map(lambda leaf: -rate.astype(leaf.dtype) * leaf, updates)
        return scaled, VariationRateState(state.count + 1, rate)

    return optax.GradientTransformation(init, update)


def _only_where_due(found: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """(due, params, base, before) -> `found` of the last three where due, and the rate before elsewhere.

    Of several at once under `jax.vmap`, which would take both sides of every condition, nothing is found where none is
    due.
    """
    keep = lambda params, base, before: before

    @jax.custom_batching.custom_vmap
    def when(due: jax.Array, params: PyTree, base: jax.Array, before: jax.Array) -> jax.Array:
        return lax.cond(due, found, keep, params, base, before)

    @when.def_vmap
    def of_members(num: int, is_mapped: PyTree, *given: PyTree) -> tuple[jax.Array, bool]:
        repeat = lambda leaf, mapped: leaf if mapped else jnp.broadcast_to(leaf, (num, *jnp.shape(leaf)))
        due, *given = jax.tree.map(repeat, list(given), list(is_mapped))
        anew = lambda params, base, before: jnp.where(due, jax.vmap(found)(params, base, before), before)
        return lax.cond(jnp.any(due), anew, keep, *given), True

    return when


def p_variation_sgd(
    schedule: optax.Schedule,
    weight_path: WeightPath,
    activation: str,
    steps_per_epoch: int,
    p: float = 2.0,
    factor: float = 0.0,
    every: int = 0,
    most: float = 0.0,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """SGD at the learning rate of `scale_by_p_variation`.

    Args:
        schedule, weight_path, p, most: see there.
        activation: of the network, for the usual factor.
        steps_per_epoch: for the usual `every`.
        factor: 0 for 10 with ReLU and 2 otherwise.
        every: steps, 0 for an epoch's.
        momentum: in [0, 1).
        weight_decay: coupled, of every leaf.

    Raises:
        ValueError: what is out of range, or a network without a path.
    """
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum is in [0, 1), got {momentum}")
    if every < 0 or factor < 0.0:
        raise ValueError(f"every and factor are at least 0, 0 for the usual ones, got {every} and {factor}")
    factor = factor or FACTORS.get(activation, USUAL_FACTOR)
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum) if momentum else optax.identity(),
        scale_by_p_variation(schedule, weight_path, every or steps_per_epoch, p=p, factor=factor, most=most),
    )


def _check_path(weight_path: WeightPath | None) -> None:
    if weight_path is None:
        raise ValueError("the network has no path of weights over its depth: choose one that has, deep_residual")
