"""NNX modules as the Linen modules that everything else takes: split and merged at each call by Flax's own bridge."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from flax import nnx
from flax.nnx import bridge


class NnxNetwork(bridge.ToLinen):
    """A network written as an `nnx.Module`; parameters and statistics have the names that they have there.

    It is told that it trains by its own `train()` and `eval()`. Dropout draws one mask for a device's share of a batch,
    where Linen modules here draw one an example.
    """

    def __call__(self, inputs: jax.Array, train: bool = False) -> jax.Array:  # type: ignore[override]  # it takes what all networks here take
        return super().__call__(inputs, nnx_method=_training if train else _evaluating)


def adapted(make: Callable[..., nnx.Module], options: Mapping[str, Any]) -> NnxNetwork:
    """The Linen form of what `make(**options, rngs=...)` gives."""
    return NnxNetwork(partial(_made, make), kwargs=dict(options), metadata_fn=None)


def _made(make: Callable[..., nnx.Module], rngs: nnx.Rngs, **options: Any) -> nnx.Module:
    """The module; streams that nobody gave, as of dropout in an evaluation, have keys, too."""
    streams = {name: rngs[name]() for name in ("params", "dropout", "default") if name in rngs}
    return make(rngs=nnx.Rngs(**{"default": next(iter(streams.values()))} | streams), **options)


def _training(module: nnx.Module, inputs: jax.Array) -> jax.Array:
    module.train()
    return module(inputs)


def _evaluating(module: nnx.Module, inputs: jax.Array) -> jax.Array:
    module.eval()
    return module(inputs)
