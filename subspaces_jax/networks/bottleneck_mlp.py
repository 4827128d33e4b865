"""A multi-layer perceptron with linear bottlenecks."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.layers import FAN_OUT_NORMAL, BatchNorm


class BottleneckMLP(nn.Module):
    """Flatten, a dense layer of W units, blocks of two dense layers of B and W units with nothing between them,
    classifier.

    Dropout, BatchNorm where there is one, and ReLU follow the first layer and each block, in this order. Weights start
    normal with a deviation of sqrt(2 / fan_out), biases 0. On RGB images of 32x32 with 10 classes there are 37,809,162
    parameters, with BatchNorm 37,841,930. Features are what the classifier takes, [B, W].

    Attributes:
        num_classes: C.
        width: W.
        bottleneck: B.
        num_blocks: at least 0.
        batch_norm: whether there is BatchNorm.
        dropout: rate, in [0, 1); a config's field `dropout` takes its place where the call does not set it.
        dtype, axis_name: as in `CifarResNet`.

    Reference: Gamba et al., Hyperplane Arrangements of Trained ConvNets Are Biased, 2020, arXiv:2003.07797 (its code,
    where they are called mlp and mlp_bn).
    """

    num_classes: int
    width: int = 4096
    bottleneck: int = 1024
    num_blocks: int = 3
    batch_norm: bool = False
    dropout: float = 0.2
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, ...] -> logits [B, C]; train=True turns dropout on, and with BatchNorm normalises by the batch and
        updates "batch_stats"."""
        dense = partial(nn.Dense, kernel_init=FAN_OUT_NORMAL, dtype=self.dtype)
        x = dense(self.width)(images.reshape(images.shape[0], -1).astype(self.dtype))
        for block in range(self.num_blocks + 1):
            if block:
                x = dense(self.bottleneck)(x)
                self.sow("intermediates", f"b{block - 1}", x)
                x = dense(self.width)(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            if self.batch_norm:
                x = BatchNorm(not train, dtype=self.dtype, axis_name=self.axis_name)(x)
            x = nn.relu(x)
            self.sow("intermediates", f"h{block}", x)
        self.sow("intermediates", "features", x)
        return dense(self.num_classes)(x)

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`."""
        units = [None, "h0", *(f"{kind}{i + kind.count('h')}" for i in range(self.num_blocks) for kind in "bh"), None]
        table: AxisTable = {}
        for i, (rows, columns) in enumerate(zip(units[:-1], units[1:])):
            table |= {f"Dense_{i}/kernel": (rows, columns), f"Dense_{i}/bias": (columns,)}
            if self.batch_norm and columns and columns[0] == "h":
                table |= {f"BatchNorm_{columns[1:]}/{name}": (columns,) for name in ("scale", "bias")}
        return table
