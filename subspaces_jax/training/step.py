"""The training step: one for plain training, lines, curves and simplexes, whatever the task.

A step sees one device's share of a batch as indices [S, b]: S samples of b examples each. It draws S points of the
subspace, takes the mean objective of each (point, part) pair, means over pairs and devices, adds the cosine penalty
once, and updates the endpoints. Plain training is K = 1, S = 1 and no penalty: the same step.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from subspaces_jax import rngs
from subspaces_jax.geometry import cosine_penalty, random_pair
from subspaces_jax.geometry.penalties import squared_cosine
from subspaces_jax.parallel import AXIS
from subspaces_jax.tasks import Sums
from subspaces_jax.training import flat
from subspaces_jax.training.objective import Objective
from subspaces_jax.training.state import State
from subspaces_jax.training.still import point as drawn

PyTree = Any
Scalars = dict[str, jax.Array]
FORMS = ("vmap", "scan", "unroll")


class Record(NamedTuple):
    """What a step reports. means: scalars, of which a row has the mean over steps. sums: of the task's scores."""

    means: Scalars
    sums: Sums


Step = Callable[..., tuple[State, Record]]  # see `make_step`


def make_step(
    objective: Objective,
    subspace: Any,
    optimizer: optax.GradientTransformation,
    *,
    num_samples: int = 1,
    over_samples: str = "vmap",
    beta: float = 0.0,
    point_decay: float = 0.0,
    own_coordinates: bool = False,
    feature_diversity: float = 0.0,
    num_parts: int = 1,
    still: Sequence[int] = (),
) -> Step:
    """The step as a function of one device's share; `parallel.pmapped` of it, or of `dispatch.make_advance`.

    Args:
        objective: (variables, batch, keys [b]) -> (loss [b], Aux), see `training.objective`; Aux has features if there
            is a `feature_diversity`.
        subspace: from `geometry`; `sample` draws the coordinates.
        optimizer: an Optax transformation of the stack.
        num_samples: S, points drawn per step and device.
        over_samples: "vmap" takes the S pairs at once; "scan" one after another in a loop, and "unroll" without one,
            with the gradient inside, so that only one pair is held at a time. Same numbers.
        beta: coefficient of the cosine penalty of one random pair of endpoints a step.
        point_decay: coefficient of |w(t)|^2 / 2, weight decay of the drawn point rather than of the endpoints.
        own_coordinates: whether each device draws its own points.
        feature_diversity: coefficient of `feature_similarity`, which needs two samples. All S pairs are then held at
            once.
        num_parts: of the examples of every sample, whose gradients are added up one part after another in the memory
            of one. The same numbers but for BatchNorm, which sees a part as it does a device's share.
        still: endpoints that are not in the state but in the `stack` that the step is given, see `training.still`;
            they draw no penalty.

    Returns:
        (state, data with leaves [N, ...], indices [S, b], shapes=None, stack=None) -> (state, Record), means and sums
        over the whole batch: "loss" (without penalty and decay), "penalty" (before beta), "feature_similarity" (before
        its coefficient). `shapes` are those of one network's leaves where the state's are `training.flat`, `stack` is
        that of all endpoints where some are `still`.
    """
    if over_samples not in FORMS:
        raise ValueError(f"over_samples is one of {', '.join(FORMS)}, got {over_samples!r}")
    if feature_diversity and num_samples < 2:
        raise ValueError(f"feature_diversity compares two samples of a batch, got num_samples={num_samples}")
    if beta and still:
        raise ValueError(f"the penalty is of all endpoints, got beta={beta} with endpoints that are still")

    def point_loss(shapes, point, batch, keys, batch_stats):
        losses, aux = objective({"params": flat.shaped(point, shapes), "batch_stats": batch_stats}, batch, keys)
        chex.assert_shape(losses, keys.shape)
        value = jnp.mean(losses)
        record = Record({"loss": value}, aux.sums)
        if point_decay:
            value += point_decay * 0.5 * optax.tree.norm(point, squared=True)
        return value, (record, aux.batch_stats, aux.features if feature_diversity else ())

    def data_gradients(shapes, stack, params, batch_stats, coordinates, batch, keys, pair_key):
        """Gradient of the mean over S pairs, their record, and the mean over S of batch_stats.

        `params`, by which it is, is the state's; of a single sample its point.
        """
        of_point = partial(point_loss, shapes)
        if num_samples == 1:
            (_, aux), grads = jax.value_and_grad(of_point, has_aux=True)(params, *row_at((batch, keys), 0), batch_stats)
            return grads, *aux[:2]
        pair_loss = lambda params, coordinates, *rest: of_point(drawn(params, coordinates, still, stack), *rest)
        gradient = jax.value_and_grad(pair_loss, has_aux=True)
        pairs = (coordinates, batch, keys)
        if over_samples == "vmap" or feature_diversity:

            def mean_loss(params):
                values, (record, stats, features) = mapped(
                    lambda pair: pair_loss(params, *pair, batch_stats), pairs, over_samples
                )
                record, value = _joined(record), jnp.mean(values)
                if feature_diversity:
                    similarity = feature_similarity(features, coordinates, *random_pair(pair_key, num_samples))
                    record.means["feature_similarity"] = similarity
                    value += feature_diversity * similarity
                return value, (record, mean_over_first(stats))

            (_, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
            return grads, *aux

        def add_pair(total, pair):
            (_, aux), grads = gradient(params, *pair, batch_stats)
            return jax.tree.map(jnp.add, total, grads), aux[:2]

        zeros, unroll = jax.tree.map(jnp.zeros_like, params), over_samples == "unroll"
        total, (record, stats) = lax.scan(add_pair, zeros, pairs, unroll=unroll)
        return jax.tree.map(lambda g: g / num_samples, total), _joined(record), mean_over_first(stats)

    def step(state, data, indices, shapes=None, stack=None):
        chex.assert_shape(indices, (num_samples, None))
        key = jax.random.fold_in(state.key, state.step)
        device = lax.axis_index(AXIS)
        coordinates_key = rngs.stream(key, "coordinates")
        if own_coordinates:
            coordinates_key = jax.random.fold_in(coordinates_key, device)
        coordinates = subspace.sample(coordinates_key, (num_samples,))
        batch = jax.tree.map(lambda leaf: jnp.take(leaf, indices, axis=0), data)
        keys = _example_keys(rngs.stream(key, "augmentation"), indices.shape, device)
        pair_key = rngs.stream(key, "feature_pair")
        gradients = in_parts(partial(data_gradients, shapes, stack), num_parts)
        weights, to_stack = state.params, lambda grads: grads
        if num_samples == 1:
            weights, pullback = jax.vjp(
                lambda params: drawn(params, row_at(coordinates, 0), still, stack), state.params
            )
            to_stack = lambda grads: pullback(grads)[0]
        grads, record, batch_stats = gradients(weights, state.batch_stats, coordinates, batch, keys, pair_key)
        if own_coordinates:
            grads, to_stack = to_stack(grads), lambda grads: grads
        grads, means, batch_stats = lax.pmean((grads, record.means, batch_stats), AXIS)
        grads = to_stack(grads)  # devices that share their point exchange its gradient alone, not one of K networks
        sums = lax.psum(record.sums, AXIS)
        if beta:
            pair = random_pair(rngs.stream(key, "pair"), subspace.num_endpoints)
            penalty = partial(cosine_penalty, select=flat.weights(shapes))
            means["penalty"], penalty_grads = jax.value_and_grad(penalty)(state.params, *pair)
            grads = jax.tree.map(lambda g, p: g + beta * p, grads, penalty_grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, batch_stats, opt_state, state.key), Record(means, sums)

    return step


def in_parts(gradients: Callable[..., tuple[PyTree, Record, PyTree]], num: int) -> Callable[..., Any]:
    """The gradients of a batch [S, b, ...] as those of `num` parts of it, taken one after another.

    Args:
        gradients: (params, batch_stats, coordinates, batch, keys, key) -> (mean gradients, record, batch_stats).
        num: of equal parts along b.
    """
    if num == 1:
        return gradients

    def of_all(params, batch_stats, coordinates, batch, keys, key):
        split = lambda leaf: jnp.moveaxis(leaf.reshape(leaf.shape[0], num, -1, *leaf.shape[2:]), 1, 0)

        def add(total, part):
            grads, *others = gradients(params, batch_stats, coordinates, *part, key)
            return jax.tree.map(jnp.add, total, grads), others

        zeros = jax.tree.map(jnp.zeros_like, params)
        total, (records, stats) = lax.scan(add, zeros, jax.tree.map(split, (batch, keys)))
        return jax.tree.map(lambda g: g / num, total), _joined(records), mean_over_first(stats)

    return of_all


def feature_similarity(features: jax.Array, coordinates: PyTree, i: jax.Array, j: jax.Array) -> jax.Array:
    """How alike samples i and j of a batch are, by their distance: d(c_i, c_j) <F_i, F_j>^2 / (|F_i|^2 |F_j|^2).

    F is all features of a sample's part of the batch as one vector; the parts show different images. d is half the L1
    distance of the coordinates, on a line |t_i - t_j|, and the mean over modules where they draw their own.

    Args:
        features: [S, b, ...].
        coordinates: [S, K], or a tree of them.
        i, j: which two, integer scalars.

    Returns:
        A scalar in [0, 1].

    Reference: Wortsman et al., Learning Neural Network Subspaces, 2021, arXiv:2102.10472, appendix B.
    """
    cosine_squared = squared_cosine([features.reshape(features.shape[0], -1)], i, j)
    apart = [0.5 * jnp.sum(jnp.abs(leaf[i] - leaf[j])) for leaf in jax.tree.leaves(coordinates)]
    return sum(apart) / len(apart) * cosine_squared


def over_members(step: Step, how: str) -> Step:
    """The step of M trainings that have nothing to do with one another but the data, as one.

    Args:
        step: of one training.
        how: a name of FORMS.

    Returns:
        A step whose state, indices and record have a leading axis [M].
    """
    return lambda state, data, indices, shapes=None, stack=None: mapped(
        lambda item: step(item[0], data, item[1], shapes, item[2]), (state, indices, stack), how
    )


def mapped(function: Callable[[Any], Any], items: PyTree, how: str) -> Any:
    """`function` of each row of a tree: at once ("vmap"), in a loop ("scan"), or one after another ("unroll")."""
    if how == "vmap":
        return jax.vmap(function)(items)
    return lax.scan(lambda carry, item: (carry, function(item)), (), items, unroll=how == "unroll")[1]


def _example_keys(key: jax.Array, shape: tuple[int, int], device: jax.Array) -> jax.Array:
    """One key an example, from its place in the whole batch: sample by sample, and within a sample device by device."""
    samples, size = shape
    per_sample = size * lax.axis_size(AXIS)
    places = jnp.arange(samples)[:, None] * per_sample + device * size + jnp.arange(size)[None, :]
    return jax.vmap(jax.vmap(lambda place: jax.random.fold_in(key, place)))(places)


def row_at(tree: PyTree, n: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[n], tree)


def _joined(records: Record) -> Record:
    """Of S pairs: the means of means, the sums of sums."""
    return Record(mean_over_first(records.means), jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), records.sums))


def mean_over_first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), tree)
