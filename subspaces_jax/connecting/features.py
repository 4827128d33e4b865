"""What each layer takes, as rows that its kernel multiplies: vectors of dense layers, patches of convolutions.

`inputs(variables, images [B, ...]) -> {layer: values [B, ..., units]}` stands for a network here, as of `axes.inputs`.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax.connecting.adjustment import Grams, grams
from subspaces_jax.networks import axes
from subspaces_jax.networks.axes import AxisTable

PyTree = Any
PATCHES = ("coarse", "all")


@dataclasses.dataclass(frozen=True)
class LayerInputs:
    """(params, images [B, ...]) -> {layer: values}, of a Flax module in eval mode; made by `layer_inputs`."""

    module: nn.Module
    rows: tuple

    def __call__(self, params: PyTree, images: jax.Array) -> dict[str, jax.Array]:
        _, kept = self.module.apply({"params": params}, images, mutable=["intermediates"])
        return axes.inputs(kept["intermediates"], dict(self.rows))


def layer_inputs(module: nn.Module, table: AxisTable | None = None) -> LayerInputs:
    """What the layers of a network without BatchNorm take, from its parameters alone.

    Args:
        module: that sows its activations, see `networks.axes`.
        table: its axis table; None for its own `unit_axes()`.
    """
    return LayerInputs(module, tuple((module.unit_axes() if table is None else table).items()))


class Features(NamedTuple):
    """Where features come from, and how they are gathered.

    Attributes:
        inputs: see the top of this file; hashable, compiled once for each layer.
        images: [N, ...]; or a function without arguments that begins one pass, an iterable of batches of images
            [B, ...] or of tuples that begin with them.
        batch_size: B of images [N, ...].
        patches: of convolutions, which are padded by half of their kernel: "coarse" takes those around 2x2 places of a
            map, (0, 0) to (H // 2, W // 2), as the paper's code does; "all" takes every place.
        every: of each batch every which image counts for convolutions.
        where: as in `products.inner_products`.
    """

    inputs: Callable[[PyTree, jax.Array], dict[str, jax.Array]]
    images: Any
    batch_size: int = 500
    patches: str = "coarse"
    every: int = 1
    where: str | None = None

    def grams(self, layer: str, kernel: Any, params_before: PyTree, params_taken: PyTree) -> Grams:
        """Of what one layer takes in two networks, for its kernel, which a fit is to reproduce.

        Raises:
            ValueError: a layer whose inputs are not known, another `patches`, or what `adjustment.grams` raises.
        """
        if self.patches not in PATCHES:
            raise ValueError(f"patches is one of {', '.join(PATCHES)}, got {self.patches!r}")
        options = (self.inputs, layer, kernel.shape[:-2], self.patches, self.every)
        rows = (_rows_of_both(*options, params_before, params_taken, images) for images in self._batches())
        return grams(rows, self.where, kernel)

    def _batches(self) -> Iterator[jax.Array]:
        if callable(self.images):
            yield from (batch[0] if isinstance(batch, tuple) else batch for batch in self.images())
        else:
            for start in range(0, len(self.images), self.batch_size):
                yield self.images[start : start + self.batch_size]


def rows(values: jax.Array, kernel_size: tuple[int, ...], patches: str = "all") -> jax.Array:
    """What a kernel multiplies, a row each time.

    Args:
        values: what a layer takes, [B, in], or [B, H, W, C] of a convolution with stride 1 padded by half its kernel.
        kernel_size: (k, k') of a convolution, () of a dense layer.
        patches: see `Features`.

    Returns:
        [B, in], or [B * places, k * k' * C] in the order of a kernel [k, k', C, out] whose last axis is left.
    """
    if not kernel_size:
        return values.reshape(-1, values.shape[-1])
    pads = [((size - 1) // 2, size // 2) for size in kernel_size]  # as Flax's "SAME"
    padded = jnp.pad(values, ((0, 0), *pads, (0, 0)))
    down, across = (_places(size, patches) for size in values.shape[1:3])
    shifted = [padded[:, down + i][:, :, across + j] for i in range(kernel_size[0]) for j in range(kernel_size[1])]
    return jnp.stack(shifted, axis=3).reshape(-1, len(shifted) * values.shape[-1])


def _places(size: int, patches: str) -> np.ndarray:
    return np.arange(size) if patches == "all" else np.unique([0, size // 2])


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _rows_of_both(inputs, layer, kernel_size, patches, every, params_before, params_taken, images):
    def taken(params):
        found = inputs(params, images)
        if layer not in found:
            raise ValueError(f"the inputs of {layer} are not known, those of {', '.join(found)} are")
        values = found[layer].astype(jnp.float32)
        return rows(values[::every] if kernel_size else values, kernel_size, patches)

    return taken(params_before), taken(params_taken)
