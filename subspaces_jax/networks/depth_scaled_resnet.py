"""Residual networks for small images whose branches are scaled down by their number, of depth 6n + 2."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.layers import KAIMING_NORMAL, TORCH_UNIFORM
from subspaces_jax.networks.residual_blocks import inner_units, layers

NUM_STAGES = 3
INITIALISATIONS = {"uniform": TORCH_UNIFORM, "kaiming": KAIMING_NORMAL}


class DepthScaledResNet(nn.Module):
    """3x3 stem, three stages of n blocks with W, 2W and 4W channels, global average pool, a dense classifier.

    A block is y = delta relu(BN(conv(x))), out = relu(shortcut(x) + delta BN(conv(y))): as in the published code delta,
    n^-exponent, is there twice. Where the shape changes the shortcut takes every other row and column and has the new
    channels as zeros, half of them on each side; it has no parameters. Depths 56, 104 and 224 and width 16 have
    853,018, 1,630,746 and 3,575,066 parameters on RGB images with 10 classes. Features are the pooled map.

    Attributes:
        num_classes: C.
        depth: 6n + 2 with n >= 1.
        width: channels of the first stage.
        exponent: of delta.
        block_initialisation: of the blocks' convolutions: "uniform" within +-1 / sqrt(fan_in), which is what the
            published code runs, or "kaiming", what it means. Stem and classifier are Kaiming-normal.
        dtype: dtype of the computation; parameters and BatchNorm statistics are float32.
        axis_name: mesh axis over which BatchNorm takes its statistics in training; None for each device's own.

    Reference: He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385, option A; delta as in
    the code beside the thesis "Weights regularity for residual neural networks in the depth limit".
    """

    num_classes: int
    depth: int = 56
    width: int = 16
    exponent: float = 0.75
    block_initialisation: str = "uniform"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def __post_init__(self) -> None:
        if self.block_initialisation not in INITIALISATIONS:
            known = " or ".join(INITIALISATIONS)
            raise ValueError(f"block_initialisation is {known}, got {self.block_initialisation!r}")
        super().__post_init__()

    @property
    def blocks_per_stage(self) -> int:
        """n of depth 6n + 2."""
        blocks, rest = divmod(self.depth - 2, 2 * NUM_STAGES)
        if blocks < 1 or rest:
            raise ValueError(f"DepthScaledResNet needs a depth of 6n + 2 (8, 14, 20, ...), got {self.depth}")
        return blocks

    @property
    def delta(self) -> float:
        """n^-exponent."""
        return float(self.blocks_per_stage) ** -self.exponent

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> logits [B, C]; train=True normalises by the batch and updates "batch_stats"."""
        conv, norm = layers(self.dtype, train, self.axis_name)
        in_block, _ = layers(self.dtype, train, self.axis_name, INITIALISATIONS[self.block_initialisation])
        x = nn.relu(norm()(conv(self.width, 3)(images.astype(self.dtype))))
        for stage in range(NUM_STAGES):
            for block in range(self.blocks_per_stage):
                stride, units = 2 if stage and not block else 1, inner_units(stage, block, 1)[0]
                x = ScaledBlock(self.width * 2**stage, stride, self.delta, in_block, norm, units)(x)
        x = jnp.mean(x, axis=(1, 2))
        self.sow("intermediates", "features", x)
        bound = x.shape[-1] ** -0.5
        bias = lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)
        return nn.Dense(self.num_classes, kernel_init=KAIMING_NORMAL, bias_init=bias, dtype=self.dtype)(x)

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`: of the blocks' inner maps alone, as shortcuts fix the streams' order."""
        table: AxisTable = {}

        def add(module: str, index: int, rows: str | None, columns: str | None) -> None:
            table[f"{module}Conv_{index}/kernel"] = (None, None, rows, columns)
            table.update({f"{module}BatchNorm_{index}/{name}": (columns,) for name in ("scale", "bias")})

        add("", 0, None, None)
        for number in range(NUM_STAGES * self.blocks_per_stage):
            units = inner_units(*divmod(number, self.blocks_per_stage), 1)[0]
            add(f"ScaledBlock_{number}/", 0, None, units)
            add(f"ScaledBlock_{number}/", 1, units, None)
        return table | {"Dense_0/kernel": (None, None), "Dense_0/bias": (None,)}


class ScaledBlock(nn.Module):
    """A block of a `DepthScaledResNet`.

    Attributes:
        features: output channels.
        stride: of the first convolution and of the shortcut.
        delta: what scales the branch, twice.
        conv, norm: constructors from `residual_blocks.layers`.
        units: the name under which the inner map is sown.
    """

    features: int
    stride: int
    delta: float
    conv: Any
    norm: Any
    units: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.delta * nn.relu(self.norm()(self.conv(self.features, 3, self.stride)(x)))
        self.sow("intermediates", self.units, y)
        y = self.delta * self.norm()(self.conv(self.features, 3)(y))
        x = x[:, :: self.stride, :: self.stride]
        new = self.features - x.shape[-1]
        return nn.relu(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2))) + y)
