"""What a training run carries from step to step: arrays only."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

PyTree = Any


class State(NamedTuple):
    """Attributes:
    step: int32 scalar, the number of steps taken.
    params: stack of the endpoints, leaves [K, ...].
    batch_stats: BatchNorm statistics of no particular point (a running mean over the points drawn), not stacked.
    opt_state: of the Optax optimizer over the stack.
    key: the run's PRNG key. It never changes: what a step draws depends on (key, step) alone.
    """

    step: jax.Array
    params: PyTree
    batch_stats: PyTree
    opt_state: PyTree
    key: jax.Array


def init_state(variables: PyTree, optimizer: optax.GradientTransformation, key: jax.Array) -> State:
    """The state before the first step, from the variables of `geometry.init_stack`."""
    params = variables["params"]
    return State(jnp.int32(0), params, variables.get("batch_stats", {}), optimizer.init(params), key)
