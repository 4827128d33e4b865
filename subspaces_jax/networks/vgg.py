"""VGG for small images."""

import itertools
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import FLATTENED, AxisTable
from subspaces_jax.networks.layers import FAN_OUT_NORMAL, BatchNorm, Conv, max_pool, uniform_dense

BLOCKS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # convolutions, by depth
FACTORS = (1, 2, 4, 8, 8)  # of the blocks' channels


class VGG(nn.Module):
    """Five blocks of 3x3 convolutions with ReLU, 2x2 max pooling after each, two hidden dense layers, classifier.

    Blocks have W, 2W, 4W, 8W and 8W channels; all layers have biases, also convolutions that BatchNorm follows. Pools
    round down and leave a map of one pixel as it is: 32 -> 16 -> 8 -> 4 -> 2 -> 1, 28 -> 14 -> 7 -> 3 -> 1 -> 1.
    Dropout comes before both hidden layers. Kernels of convolutions start normal with a deviation of
    sqrt(2 / (k k C_out)) and biases 0, dense layers uniform within +-1 / sqrt(fan_in). Depth 16 on RGB images of 32x32
    with 10 classes has 15,245,130 parameters, with BatchNorm 15,253,578. Features are what the classifier takes,
    [B, hidden].

    Attributes:
        num_classes: C.
        depth: layers with kernels, 11, 13, 16 or 19.
        batch_norm: whether BatchNorm follows every convolution, before its ReLU.
        width: W.
        hidden: units of the two hidden dense layers.
        dropout: rate, in [0, 1); a config's field `dropout` takes its place where the call does not set it.
        dtype, axis_name: as in `CifarResNet`.

    Reference: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, 2014,
    arXiv:1409.1556; classifier and initial values as in Garipov et al., Loss Surfaces, Mode Connectivity, and Fast
    Ensembling of DNNs, 2018, arXiv:1802.10026, whose networks with BatchNorm run only half of their layers.
    """

    num_classes: int
    depth: int = 16
    batch_norm: bool = False
    width: int = 64
    hidden: int = 512
    dropout: float = 0.5
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def convolutions_per_block(self) -> tuple[int, ...]:
        """The number of convolutions of each block."""
        if self.depth not in BLOCKS:
            raise ValueError(f"VGG has a depth of {', '.join(map(str, BLOCKS))}, got {self.depth}")
        return BLOCKS[self.depth]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> logits [B, C]; train=True turns dropout on, and with BatchNorm normalises by the batch
        and updates "batch_stats"."""
        norm = partial(BatchNorm, not train, dtype=self.dtype, axis_name=self.axis_name)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        conv = partial(Conv, padding=1, use_bias=True, kernel_init=FAN_OUT_NORMAL, dtype=self.dtype)
        x, index = images.astype(self.dtype), 0
        for block, (number, factor) in enumerate(zip(self.convolutions_per_block, FACTORS)):
            for i in range(number):
                x = conv(factor * self.width, (3, 3))(x)
                x = nn.relu(norm()(x) if self.batch_norm else x)
                if i == number - 1:
                    x = max_pool(x, 2, 2)
                    x = drop(x) if block == len(FACTORS) - 1 else x
                self.sow("intermediates", f"c{index}", x)
                index += 1
        x = x.reshape(x.shape[0], -1)
        for unit in ("h0", "h1"):
            x = nn.relu(uniform_dense(x.shape[-1], self.hidden, dtype=self.dtype)(x))
            x = drop(x) if unit == "h0" else x
            self.sow("intermediates", unit, x)
        self.sow("intermediates", "features", x)
        return uniform_dense(x.shape[-1], self.num_classes, dtype=self.dtype)(x)

    def stage_starts(self) -> tuple[str, ...]:
        """The layers that begin a stage, see `networks.axes`."""
        first = itertools.accumulate(self.convolutions_per_block[:-1])
        return (*(f"Conv_{i}" for i in first), "Dense_0")

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`."""
        units = [f"c{i}" for i in range(sum(self.convolutions_per_block))]
        table: AxisTable = {}
        for i, (rows, columns) in enumerate(zip([None, *units], units)):
            table |= {f"Conv_{i}/kernel": (None, None, rows, columns), f"Conv_{i}/bias": (columns,)}
            if self.batch_norm:
                table |= {f"BatchNorm_{i}/{name}": (columns,) for name in ("scale", "bias")}
        for i, (rows, columns) in enumerate(((FLATTENED + units[-1], "h0"), ("h0", "h1"), ("h1", None))):
            table |= {f"Dense_{i}/kernel": (rows, columns), f"Dense_{i}/bias": (columns,)}
        return table
