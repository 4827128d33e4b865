"""The training step: one for plain training, lines, curves and simplexes.

A step sees one device's share of a batch as indices [S, b]: S samples of b examples each. It draws S points of the
subspace, takes the mean loss of each (point, part) pair, means over pairs and devices, adds the cosine penalty once,
and updates the endpoints. Plain training is K = 1, S = 1 and no penalty: the same step.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from subspaces_jax import rngs
from subspaces_jax.geometry import contract, cosine_penalty, random_pair
from subspaces_jax.parallel import AXIS, MEMBERS
from subspaces_jax.training.state import State

PyTree = Any
Metrics = dict[str, jax.Array]
Step = Callable[[State, jax.Array, jax.Array, jax.Array], tuple[State, Metrics]]
NEVER = np.int32(np.iinfo(np.int32).max)


def make_step(
    apply: Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]],
    subspace: Any,
    optimizer: optax.GradientTransformation,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array],
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    num_samples: int = 1,
    over_samples: str = "vmap",
    beta: float = 0.0,
    point_decay: float = 0.0,
    own_coordinates: bool = False,
    feature_diversity: float = 0.0,
) -> Step:
    """The step as a function of one device's share; `parallel.pmapped` or `make_advance` maps it over devices.

    Args:
        apply: train mode, (variables, images [b, ...], key) -> (outputs, new batch_stats), the outputs being a pair of
            them and features [b, ...] if there is a `feature_diversity`.
        subspace: from `geometry`; `sample` draws the coordinates.
        optimizer: an Optax transformation of the stack.
        loss: (outputs, labels) -> one value per example.
        augment: (keys [b], images [b, ...]) -> images; None changes nothing.
        num_samples: S, points drawn per step and device.
        over_samples: "vmap" takes the S pairs at once, "scan" one after another with the gradient inside. Same numbers.
        beta: coefficient of the cosine penalty of one random pair of endpoints a step.
        point_decay: coefficient of |w(t)|^2 / 2, weight decay of the drawn point rather than of the endpoints.
        own_coordinates: whether each device draws its own points.
        feature_diversity: coefficient of `feature_similarity`, which needs two samples. All S pairs are then held at
            once.

    Returns:
        (state, images [N, ...], labels [N], indices [S, b]) -> (state, metrics), the metrics being means over the whole
        batch: "loss" (nats, without penalty and decay), "accuracy" (fraction), "penalty" (before beta), and
        "feature_similarity" (before its coefficient).
    """
    if over_samples not in ("vmap", "scan"):
        raise ValueError(f'over_samples is "vmap" or "scan", got {over_samples!r}')
    if feature_diversity and num_samples < 2:
        raise ValueError(f"feature_diversity compares two samples of a batch, got num_samples={num_samples}")

    def pair_loss(params, coordinates, images, labels, batch_stats, key):
        point = contract(params, coordinates)
        outputs, batch_stats = apply({"params": point, "batch_stats": batch_stats}, images, key)
        outputs, features = outputs if feature_diversity else (outputs, ())
        losses = loss(outputs, labels)
        chex.assert_shape(losses, labels.shape)
        value = jnp.mean(losses)
        metrics = {"loss": value, "accuracy": jnp.mean((jnp.argmax(outputs, -1) == labels).astype(jnp.float32))}
        if point_decay:
            value += point_decay * 0.5 * optax.tree.norm(point, squared=True)
        return value, (metrics, batch_stats, features)

    def data_gradients(params, batch_stats, coordinates, images, labels, keys, pair_key):
        """Gradient of the mean over S pairs, and the means over S of metrics and batch_stats."""
        gradient = jax.value_and_grad(pair_loss, has_aux=True)
        if num_samples == 1:
            args = jax.tree.map(lambda leaf: leaf[0], (coordinates, images, labels))
            (_, aux), grads = gradient(params, *args, batch_stats, keys[0])
            return grads, *aux[:2]
        if over_samples == "vmap" or feature_diversity:
            map_pairs = jax.vmap if over_samples == "vmap" else _unrolled

            def mean_loss(params):
                all_pairs = map_pairs(pair_loss, (None, 0, 0, 0, None, 0))
                values, aux = all_pairs(params, coordinates, images, labels, batch_stats, keys)
                metrics, batch_stats_after = _mean_over_first(aux[:2])
                value = jnp.mean(values)
                if feature_diversity:
                    similarity = feature_similarity(aux[2], coordinates, *random_pair(pair_key, num_samples))
                    metrics["feature_similarity"] = similarity
                    value += feature_diversity * similarity
                return value, (metrics, batch_stats_after)

            (_, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
            return grads, *aux

        def add_pair(total, pair):
            *args, key = pair
            (_, aux), grads = gradient(params, *args, batch_stats, key)
            return jax.tree.map(jnp.add, total, grads), aux[:2]

        total, aux = lax.scan(add_pair, jax.tree.map(jnp.zeros_like, params), (coordinates, images, labels, keys))
        return jax.tree.map(lambda g: g / num_samples, total), *_mean_over_first(aux)

    def step(state, images, labels, indices):
        chex.assert_shape(indices, (num_samples, None))
        key, device = jax.random.fold_in(state.key, state.step), lax.axis_index(AXIS)
        coordinates_key = rngs.stream(key, "coordinates")
        if own_coordinates:
            coordinates_key = jax.random.fold_in(coordinates_key, device)
        coordinates = subspace.sample(coordinates_key, (num_samples,))
        batch_images = jnp.take(images, indices, axis=0)
        if augment is not None:
            image_keys = _image_keys(rngs.stream(key, "augmentation"), indices.shape, device)
            batch_images = jax.vmap(augment)(image_keys, batch_images)
        apply_keys = jax.random.split(jax.random.fold_in(rngs.stream(key, "apply"), device), num_samples)
        batch_labels = jnp.take(labels, indices, axis=0)

        pair_key = rngs.stream(key, "feature_pair")
        grads, metrics, batch_stats = data_gradients(
            state.params, state.batch_stats, coordinates, batch_images, batch_labels, apply_keys, pair_key
        )
        grads, metrics, batch_stats = lax.pmean((grads, metrics, batch_stats), AXIS)
        if beta:
            pair = random_pair(rngs.stream(key, "pair"), subspace.num_endpoints)
            metrics["penalty"], penalty_grads = jax.value_and_grad(cosine_penalty)(state.params, *pair)
            grads = jax.tree.map(lambda g, p: g + beta * p, grads, penalty_grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, batch_stats, opt_state, state.key), metrics

    return step


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
    first, second = (jnp.ravel(jnp.take(features, n, axis=0)).astype(jnp.float32) for n in (i, j))
    norms = jnp.sum(first**2) * jnp.sum(second**2)
    cosine_squared = jnp.sum(first * second) ** 2 / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)
    apart = [0.5 * jnp.sum(jnp.abs(leaf[i] - leaf[j])) for leaf in jax.tree.leaves(coordinates)]
    return sum(apart) / len(apart) * cosine_squared


def over_members(step: Step, how: str) -> Step:
    """The step of M trainings that have nothing to do with one another but the data, as one.

    Args:
        step: of one training.
        how: "vmap", or "scan" for one after another.

    Returns:
        A step whose state, indices and metrics have a leading axis [M].
    """

    def mapped(state, images, labels, indices):
        one = lambda pair: step(pair[0], images, labels, pair[1])
        return jax.vmap(one)((state, indices)) if how == "vmap" else lax.map(one, (state, indices))

    return mapped


def make_advance(step: Step, statistics: Callable[[PyTree], Metrics] | None = None) -> Callable[..., Any]:
    """Many steps in one dispatch, their number being an argument, so that any number compiles once.

    Args:
        step: from `make_step`.
        statistics: of the stack, taken once after the last step.

    Returns:
        (state, images, labels, indices [steps of an epoch, S, b], num_steps) -> (state, metrics), for `pmapped`. Takes
        rows of `indices` from state.step modulo their number on; the caller keeps within the epoch. Metrics are means
        over the steps (and members), the statistics, and "bad_step": the first step, counted from 1, whose loss or
        penalty was not finite, or -1.
    """

    def advance(state, images, labels, indices, num_steps):
        row = jnp.ravel(state.step)[0] % indices.shape[0]  # members are all at the same step

        def body(i, carry):
            state, sums, bad_step = carry
            state, metrics = step(state, images, labels, lax.dynamic_index_in_dim(indices, row + i, keepdims=False))
            finite = jnp.all(jnp.isfinite(sum(metrics.values())))
            bad_step = jnp.where(finite, bad_step, jnp.minimum(bad_step, jnp.ravel(state.step)[0]))
            return state, jax.tree.map(jnp.add, sums, metrics), bad_step

        shapes = jax.eval_shape(step, state, images, labels, indices[0])[1]
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        state, sums, bad_step = lax.fori_loop(0, num_steps, body, (state, zeros, NEVER))
        bad_step = lax.pmin(bad_step, MEMBERS)
        metrics = lax.pmean(jax.tree.map(lambda x: jnp.mean(x) / num_steps, sums), MEMBERS)
        metrics |= statistics(state.params) if statistics else {}
        return state, metrics | {"bad_step": jnp.where(bad_step == NEVER, -1, bad_step)}

    return advance


def _image_keys(key: jax.Array, shape: tuple[int, int], device: jax.Array) -> jax.Array:
    """One key an example, from its place in the whole batch: sample by sample, and within a sample device by device."""
    samples, size = shape
    per_sample = size * lax.axis_size(AXIS)
    places = jnp.arange(samples)[:, None] * per_sample + device * size + jnp.arange(size)[None, :]
    return jax.vmap(jax.vmap(lambda place: jax.random.fold_in(key, place)))(places)


def _unrolled(function: Callable, in_axes: tuple[int | None, ...]) -> Callable:
    """As `jax.vmap`, one after another: on CPU a vmap over kernels is a grouped convolution."""

    def mapped(*args):
        size = next(jax.tree.leaves(arg)[0].shape[0] for arg, axis in zip(args, in_axes) if axis == 0)
        row = lambda n: [arg if axis is None else jax.tree.map(lambda x: x[n], arg) for arg, axis in zip(args, in_axes)]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(function(*row(n)) for n in range(size)))

    return mapped


def _mean_over_first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), tree)
