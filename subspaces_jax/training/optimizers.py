"""Optimizers of a stack, as Optax transformations; their rates are in `schedules`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from subspaces_jax import trees
from subspaces_jax.training.regularity import p_variation_sgd

PyTree = Any


def sgd(
    schedule: optax.Schedule, momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False
) -> optax.GradientTransformation:
    """SGD with heavy-ball momentum and coupled weight decay of every leaf of the stack, BatchNorm's included.

    g += weight_decay * w;  v = momentum * v + g;  w -= rate * v.
    """
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum is in [0, 1), got {momentum}")
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum or None, nesterov=nesterov)
    )


def adam(
    schedule: optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Adam whose weight decay is coupled: it is part of the gradient, as in PyTorch's Adam.

    Reference: Kingma and Ba, Adam: A Method for Stochastic Optimization, 2014, arXiv:1412.6980.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(schedule, b1, b2, eps))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adam": adam,
    "p_variation_sgd": p_variation_sgd,
}
LABELLED = ("hyperparams", "inner_states")  # dicts in states of Optax whose keys are labels, and no parameters
ELEMENTWISE = ("sgd", "adam")  # a rule for each number on its own, so that weights may be laid out in other shapes


class RateState(NamedTuple):
    """Attributes:
    count: int32, steps taken.
    peak: of the schedule, an array like any other.
    learning_rate: of the last step.
    inner: of the optimizer.
    """

    count: jax.Array  # type: ignore[assignment]  # the field hides tuple.count
    peak: jax.Array
    learning_rate: jax.Array
    inner: PyTree


def with_peak_in_state(
    make: Callable[[Any], optax.GradientTransformation], schedule: Callable[[Any], optax.Schedule], peak: float
) -> optax.GradientTransformation:
    """An optimizer whose peak rate is part of its state, so that trainings of other rates are one program.

    Args:
        make: peak -> the optimizer with that peak.
        schedule: peak -> its learning rate as a function of the step.
        peak: that `init` puts into the state.
    """

    def init(params: PyTree) -> RateState:
        first = jnp.float32(peak)
        return RateState(jnp.int32(0), first, jnp.float32(schedule(first)(jnp.int32(0))), make(first).init(params))

    def update(updates: PyTree, state: RateState, params: PyTree | None = None) -> tuple[PyTree, RateState]:
        rate = jnp.float32(schedule(state.peak)(state.count))
        updates, inner = make(state.peak).update(updates, state.inner, params)
        return updates, RateState(state.count + 1, state.peak, rate, inner)

    return optax.GradientTransformation(init, update)


def freeze_endpoints(endpoints: Sequence[int], num_endpoints: int) -> optax.GradientTransformation:
    """Keeps some endpoints of a stack bit for bit: the last of a chain, after momentum and decay.

    Steps leave such endpoints out, see `still`, but where a penalty or the optimizer is of the whole stack.

    Args:
        endpoints: rows of the stack that do not move.
        num_endpoints: K.

    Raises:
        ValueError: an endpoint outside [0, K), or all of them.
    """
    if wrong := [k for k in endpoints if not 0 <= k < num_endpoints]:
        raise ValueError(f"there is no endpoint {wrong[0]}: the stack has 0 to {num_endpoints - 1}")
    free = jnp.asarray([k not in endpoints for k in range(num_endpoints)])
    if not free.any():
        raise ValueError(f"all {num_endpoints} endpoints are frozen: leave one to train")

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        keep = lambda leaf: jnp.where(free.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, _still(leaf))
        return jax.tree.map(keep, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def freeze_leaves(names: Sequence[str]) -> optax.GradientTransformation:
    """Keeps some leaves of a tree bit for bit: the last of a chain, after momentum and decay.

    Args:
        names: of the leaves, "readin/kernel".

    Raises:
        ValueError: from `init`, a name that the parameters do not have.
    """

    def init(params: PyTree) -> PyTree:
        if missing := sorted(set(names) - trees.leaf_names(params).keys()):
            raise ValueError(
                f"there is no leaf {missing[0]} to freeze: there are {', '.join(trees.leaf_names(params))}"
            )
        return optax.EmptyState()

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        leaves = [_still(leaf) if name in names else leaf for name, leaf in trees.leaf_names(updates).items()]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), state

    return optax.GradientTransformation(init, update)


def _still(leaf: jax.Array) -> jax.Array:
    return jnp.full_like(leaf, -0.0)  # which added to anything, to -0 too, changes no bit


def learning_rate(opt_state: PyTree, schedule: optax.Schedule) -> jax.Array:
    """The rate of the step that an optimizer's state has seen last.

    A state that holds a "learning_rate" of its own (one that adapts, or of `optax.inject_hyperparams`) says it; of
    others it is the schedule's at the last step that they have counted.
    """
    if held := _scalars(opt_state, "learning_rate"):
        return jnp.asarray(held[-1], jnp.float32)
    counts = _scalars(opt_state, "count")
    if not counts:
        raise ValueError("the optimizer's state holds neither a learning_rate nor a count of steps")
    return jnp.asarray(schedule(jnp.maximum(counts[-1] - 1, 0)), jnp.float32)


def _scalars(opt_state: PyTree, name: str) -> list[jax.Array]:
    """The fields of that name of the optimizer's own states; parameters may have such names too, and do not count."""
    own = lambda path, value: (
        len(path) < 2
        or not any(
            isinstance(key, jax.tree_util.DictKey) and getattr(before, "name", "") not in LABELLED
            for before, key in zip(path, path[1:])
        )
    )
    return [value for path, value in optax.tree.get_all_with_path(opt_state, name) if own(path, value)]
