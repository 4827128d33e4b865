"""Wide residual networks for small images."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.layers import FAN_OUT_NORMAL, uniform_dense
from subspaces_jax.networks.pre_activation import Plan, pooled, pre_activation_axes
from subspaces_jax.networks.residual_blocks import first_layers, layers

NUM_STAGES = 3


class CifarWideResNet(nn.Module):
    """3x3 stem of W channels, three stages of n wide pre-activation blocks, BatchNorm, ReLU, global average pool, dense
    classifier.

    Stages have kW, 2kW and 4kW channels. In the paper's form, of which depth 28 and factor 10 on RGB images with 10
    classes has 36,479,194 parameters: bias-free convolutions, the stride in a block's first one, a shortcut's
    convolution after the branch's first BatchNorm and ReLU. Garipov et al. give every convolution a bias, the stride to
    the second one, and the stream itself to the shortcut. Convolutions start normal with a deviation of
    sqrt(2 / (k k C_out)), the classifier uniform within +-1 / sqrt(fan_in), BatchNorm at scale 1 and bias 0. Features
    are what the classifier takes, [B, 4 * factor * width].

    Attributes:
        num_classes: C.
        depth: 6n + 4 with n >= 1.
        factor: k.
        dropout: rate, in [0, 1), between a block's convolutions in training.
        width: W.
        dtype, axis_name: as in `CifarResNet`.

    Reference: Zagoruyko and Komodakis, Wide Residual Networks, 2016, arXiv:1605.07146.
    """

    num_classes: int
    depth: int = 28
    factor: int = 10
    dropout: float = 0.0
    width: int = 16
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def blocks_per_stage(self) -> int:
        """n of depth 6n + 4."""
        blocks, rest = divmod(self.depth - 4, 2 * NUM_STAGES)
        if blocks < 1 or rest:
            raise ValueError(f"CifarWideResNet needs a depth of 6n + 4 (10, 16, 22, 28, ...), got {self.depth}")
        return blocks

    @property
    def plan(self) -> Plan:
        """The sizes of the network."""
        stages = tuple((self.factor * self.width * 2**stage,) * 2 for stage in range(NUM_STAGES))
        return Plan(self.width, stages, self.blocks_per_stage, (3, 3), shared=True)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> logits [B, C]; train=True normalises by the batch and updates "batch_stats"."""
        conv, norm = layers(self.dtype, train, self.axis_name, FAN_OUT_NORMAL)
        dropout = nn.Dropout(self.dropout, deterministic=not train) if self.dropout else None
        x = pooled(self.plan, images.astype(self.dtype), conv, norm, self.sow, dropout)
        self.sow("intermediates", "features", x)
        return uniform_dense(x.shape[-1], self.num_classes, dtype=self.dtype)(x)

    def stage_starts(self) -> tuple[str, ...]:
        """The layers that begin a stage, see `networks.axes`."""
        return first_layers("PreActivationBlock", [self.plan.num_blocks] * len(self.plan.stages), layer="BatchNorm_0")

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`."""
        return pre_activation_axes(self.plan)
