"""The training step: one for plain training, lines, curves and simplexes.

A step sees one device's share of a batch as indices [S, b]: S samples of b examples each. It draws S points of the
subspace, takes the mean loss of each (point, part) pair, means over pairs and devices, adds the cosine penalty once, and
updates the endpoints. Plain training is K = 1, S = 1 and no penalty: the same step.
"""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax import lax

from subspaces_jax import rngs
from subspaces_jax.geometry import contract, cosine_penalty, random_pair
from subspaces_jax.parallel import AXIS
from subspaces_jax.training.state import State

PyTree = Any
Metrics = dict[str, jax.Array]
Step = Callable[[State, jax.Array, jax.Array, jax.Array], tuple[State, Metrics]]


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
) -> Step:
    """The step as a function of one device's share; `parallel.pmapped` or `make_advance` maps it over devices.

    Args:
        apply: train mode, (variables, images [b, ...], key) -> (outputs, new batch_stats).
        subspace: from `geometry`; `sample` draws the coordinates.
        optimizer: an Optax transformation of the stack.
        loss: (outputs, labels) -> one value per example.
        augment: (keys [b], images [b, ...]) -> images; None changes nothing.
        num_samples: S, points drawn per step and device.
        over_samples: "vmap" takes the S pairs at once, "scan" one after another with the gradient inside. Same numbers.
        beta: coefficient of the cosine penalty of one random pair of endpoints a step.
        point_decay: coefficient of |w(t)|^2 / 2, weight decay of the drawn point rather than of the endpoints.
        own_coordinates: whether each device draws its own points.

    Returns:
        (state, images [N, ...], labels [N], indices [S, b]) -> (state, metrics), the metrics being means over the whole
        batch: "loss" (nats, without penalty and decay), "accuracy" (fraction), "penalty" (before beta).
    """
    if over_samples not in ("vmap", "scan"):
        raise ValueError(f'over_samples is "vmap" or "scan", got {over_samples!r}')

    def pair_loss(params, coordinates, images, labels, batch_stats, key):
        point = contract(params, coordinates)
        outputs, batch_stats = apply({"params": point, "batch_stats": batch_stats}, images, key)
        losses = loss(outputs, labels)
        chex.assert_shape(losses, labels.shape)
        value = jnp.mean(losses)
        metrics = {"loss": value, "accuracy": jnp.mean((jnp.argmax(outputs, -1) == labels).astype(jnp.float32))}
        if point_decay:
            value += point_decay * 0.5 * optax.tree.norm(point, squared=True)
        return value, (metrics, batch_stats)

    def data_gradients(params, batch_stats, coordinates, images, labels, keys):
        """Gradient of the mean over S pairs, and the means over S of metrics and batch_stats."""
        if num_samples == 1:
            first = lambda tree: jax.tree.map(lambda leaf: leaf[0], tree)
            args = first((coordinates, images, labels))
            (_, aux), grads = jax.value_and_grad(pair_loss, has_aux=True)(params, *args, batch_stats, keys[0])
            return grads, aux
        if over_samples == "vmap":

            def mean_loss(params):
                in_axes = (None, 0, 0, 0, None, 0)
                values, aux = jax.vmap(pair_loss, in_axes)(params, coordinates, images, labels, batch_stats, keys)
                return jnp.mean(values), _mean_over_first(aux)

            (_, aux), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
            return grads, aux

        def add_pair(total, pair):
            *args, key = pair
            (_, aux), grads = jax.value_and_grad(pair_loss, has_aux=True)(params, *args, batch_stats, key)
            return jax.tree.map(jnp.add, total, grads), aux

        total, aux = lax.scan(add_pair, jax.tree.map(jnp.zeros_like, params), (coordinates, images, labels, keys))
        return jax.tree.map(lambda g: g / num_samples, total), _mean_over_first(aux)

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

        grads, (metrics, batch_stats) = data_gradients(
            state.params, state.batch_stats, coordinates, batch_images, batch_labels, apply_keys
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


def make_advance(step: Step, statistics: Callable[[PyTree], Metrics] | None = None) -> Callable[..., Any]:
    """Many steps in one dispatch, their number being an argument, so that any number compiles once.

    Args:
        step: from `make_step`.
        statistics: of the stack, taken once after the last step.

    Returns:
        (state, images, labels, indices [steps of an epoch, S, b], num_steps) -> (state, metrics), for `pmapped`. Takes
        rows of `indices` from state.step modulo their number on; the caller keeps within the epoch. Metrics are means
        over the steps, the statistics, and "bad_step": the first step, counted from 1, whose loss or penalty was not
        finite, or -1.
    """

    def advance(state, images, labels, indices, num_steps):
        row = state.step % indices.shape[0]

        def body(i, carry):
            state, sums, bad_step = carry
            state, metrics = step(state, images, labels, lax.dynamic_index_in_dim(indices, row + i, keepdims=False))
            finite = jnp.isfinite(sum(metrics.values()))
            bad_step = jnp.where((bad_step < 0) & ~finite, state.step, bad_step)
            return state, jax.tree.map(jnp.add, sums, metrics), bad_step

        shapes = jax.eval_shape(step, state, images, labels, indices[0])[1]
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
        state, sums, bad_step = lax.fori_loop(0, num_steps, body, (state, zeros, jnp.int32(-1)))
        metrics = jax.tree.map(lambda x: x / num_steps, sums)
        return state, metrics | (statistics(state.params) if statistics else {}) | {"bad_step": bad_step}

    return advance


def _image_keys(key: jax.Array, shape: tuple[int, int], device: jax.Array) -> jax.Array:
    """One key an example, from its place in the whole batch: sample by sample, and within a sample device by device."""
    samples, size = shape
    per_sample = size * lax.axis_size(AXIS)
    places = jnp.arange(samples)[:, None] * per_sample + device * size + jnp.arange(size)[None, :]
    return jax.vmap(jax.vmap(lambda place: jax.random.fold_in(key, place)))(places)


def _mean_over_first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), tree)
