"""VGG for small images."""

import itertools
from collections.abc import Callable, Sequence
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
        return blocks_of(self.depth)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> logits [B, C]; train=True turns dropout on, and with BatchNorm normalises by the batch
        and updates "batch_stats"."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        options = {"use_bias": True, "kernel_init": FAN_OUT_NORMAL, "dtype": self.dtype}
        conv = lambda features: Conv(features, (3, 3), padding=1, **options)
        norm = partial(BatchNorm, not train, dtype=self.dtype, axis_name=self.axis_name) if self.batch_norm else None
        number = self.convolutions_per_block
        channels = [(factor * self.width,) * convolutions for convolutions, factor in zip(number, FACTORS)]
        pool = lambda x, block: drop(max_pool(x, 2, 2)) if block == len(number) - 1 else max_pool(x, 2, 2)
        x = convolve(self, images.astype(self.dtype), channels, conv, pool, norm)
        x = x.reshape(x.shape[0], -1)
        for unit in ("h0", "h1"):
            x = nn.relu(uniform_dense(x.shape[-1], self.hidden, dtype=self.dtype)(x))
            x = drop(x) if unit == "h0" else x
            self.sow("intermediates", unit, x)
        self.sow("intermediates", "features", x)
        return uniform_dense(x.shape[-1], self.num_classes, dtype=self.dtype)(x)

    def stage_starts(self) -> tuple[str, ...]:
        """The layers that begin a stage, see `networks.axes`."""
        return starts_of(self.convolutions_per_block)

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`."""
        return axes_of(sum(self.convolutions_per_block), self.batch_norm)


def blocks_of(depth: int) -> tuple[int, ...]:
    """The number of convolutions of each block of a VGG."""
    if depth not in BLOCKS:
        raise ValueError(f"VGG has a depth of {', '.join(map(str, BLOCKS))}, got {depth}")
    return BLOCKS[depth]


def convolve(
    network: nn.Module,
    x: jax.Array,
    channels: Sequence[Sequence[int]],
    conv: Callable[[int], nn.Module],
    pool: Callable[[jax.Array, int], jax.Array],
    norm: Callable[[], nn.Module] | None = None,
) -> jax.Array:
    """Blocks of convolutions with ReLU, their units sown as "c0", "c1", ... of the network, in whose call this is.

    Args:
        network: whose layers they are.
        x: [B, H, W, C].
        channels: of the convolutions, by block.
        conv: channels -> a convolution.
        pool: (maps, number of the block) -> maps, after each block.
        norm: -> what comes between a convolution and its ReLU, None for nothing.
    """
    index = 0
    for block, features in enumerate(channels):
        for i, number in enumerate(features):
            x = conv(number)(x)
            x = nn.relu(norm()(x) if norm else x)
            x = pool(x, block) if i == len(features) - 1 else x
            network.sow("intermediates", f"c{index}", x)
            index += 1
    return x


def starts_of(blocks: Sequence[int]) -> tuple[str, ...]:
    """The layers that begin a stage, see `networks.axes.stage_starts`, of so many convolutions by block, each of which
    is pooled, and dense layers."""
    return (*(f"Conv_{first}" for first in itertools.accumulate(blocks[:-1])), "Dense_0")


def axes_of(num_convolutions: int, batch_norm: bool = False) -> AxisTable:
    """The axis table of convolutions one after another, two hidden dense layers and a classifier."""
    units = [f"c{i}" for i in range(num_convolutions)]
    table: AxisTable = {}
    for i, (rows, columns) in enumerate(zip([None, *units], units)):
        table |= {f"Conv_{i}/kernel": (None, None, rows, columns), f"Conv_{i}/bias": (columns,)}
        if batch_norm:
            table |= {f"BatchNorm_{i}/{name}": (columns,) for name in ("scale", "bias")}
    for i, (reads, writes) in enumerate(((FLATTENED + units[-1], "h0"), ("h0", "h1"), ("h1", None))):
        table |= {f"Dense_{i}/kernel": (reads, writes), f"Dense_{i}/bias": (writes,)}
    return table
