"""Multi-layer perceptron."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable


class MLP(nn.Module):
    """Flatten, then dense layers with ReLU between them. Features are what the classifier takes.

    Attributes:
        num_classes: C.
        widths: units of the hidden layers.
        dtype: dtype of the computation; parameters are float32.
    """

    num_classes: int
    widths: Sequence[int] = (256, 256)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, ...] -> logits [B, C]. `train` changes nothing; it is there because every network takes it."""
        x = images.reshape(images.shape[0], -1).astype(self.dtype)
        for i, width in enumerate(self.widths):
            x = nn.relu(
                nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.he_normal(), name=f"Dense_{i}")(x)
            )
            self.sow("intermediates", f"h{i}", x)
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name=f"Dense_{len(self.widths)}")(x)

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`."""
        names = [None, *(f"h{i}" for i in range(len(self.widths))), None]
        table: AxisTable = {}
        for i, (rows, columns) in enumerate(zip(names[:-1], names[1:])):
            table[f"Dense_{i}/kernel"] = (rows, columns)
            table[f"Dense_{i}/bias"] = (columns,)
        return table
