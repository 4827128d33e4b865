"""Pre-activation residual networks for small images."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.layers import FAN_OUT_NORMAL, uniform_dense
from subspaces_jax.networks.pre_activation import Plan, pooled, pre_activation_axes
from subspaces_jax.networks.residual_blocks import first_layers, layers

NUM_STAGES = 3
EXPANSION = 4  # of a bottleneck: output channels over inner ones
FIRST_BOTTLENECK = 44  # depth from which blocks are bottlenecks


class PreResNet(nn.Module):
    """3x3 stem, three stages of n pre-activation blocks, BatchNorm, ReLU, global average pool, dense classifier.

    Stages have W, 2W and 4W channels inside; bottlenecks give four times as many. The shortcut's convolution takes the
    stream itself, without BatchNorm. Convolutions are bias-free and start normal with a deviation of
    sqrt(2 / (k k C_out)), the classifier uniform within +-1 / sqrt(fan_in), BatchNorm at scale 1 and bias 0. Depths
    110 and 164 on RGB images with 10 classes have 1,146,842 and 1,703,258 parameters. Features are what the classifier
    takes, [B, 4 * width], of bottlenecks [B, 16 * width].

    Attributes:
        num_classes: C.
        depth: 9n + 2 of bottlenecks, 6n + 2 of basic blocks, n >= 1.
        width: W.
        bottleneck: whether blocks are bottlenecks; None has them from depth 44 on.
        dtype, axis_name: as in `CifarResNet`.

    Reference: He et al., Identity Mappings in Deep Residual Networks, 2016, arXiv:1603.05027; shortcuts and initial
    values as in Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026.
    """

    num_classes: int
    depth: int = 110
    width: int = 16
    bottleneck: bool | None = None
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def blocks_per_stage(self) -> int:
        """n of the depth."""
        per_block = 3 if self._has_bottlenecks else 2
        blocks, rest = divmod(self.depth - 2, per_block * NUM_STAGES)
        if blocks < 1 or rest:
            form = "9n + 2 with bottlenecks" if self._has_bottlenecks else "6n + 2 with basic blocks"
            raise ValueError(f"PreResNet needs a depth of {form} (from {FIRST_BOTTLENECK} on bottlenecks unless "
                             f"bottleneck says otherwise), got {self.depth}")  # fmt: skip
        return blocks

    @property
    def plan(self) -> Plan:
        """The sizes of the network."""
        inner = [self.width * 2**stage for stage in range(NUM_STAGES)]
        if self._has_bottlenecks:
            stages = tuple((w, w, EXPANSION * w) for w in inner)
            return Plan(self.width, stages, self.blocks_per_stage, (1, 3, 1), shared=False)
        return Plan(self.width, tuple((w, w) for w in inner), self.blocks_per_stage, (3, 3), shared=False)

    @property
    def _has_bottlenecks(self) -> bool:
        return self.depth >= FIRST_BOTTLENECK if self.bottleneck is None else self.bottleneck

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> logits [B, C]; train=True normalises by the batch and updates "batch_stats"."""
        conv, norm = layers(self.dtype, train, self.axis_name, FAN_OUT_NORMAL)
        x = pooled(self.plan, images.astype(self.dtype), conv, norm, self.sow)
        self.sow("intermediates", "features", x)
        return uniform_dense(x.shape[-1], self.num_classes, dtype=self.dtype)(x)

    def stage_starts(self) -> tuple[str, ...]:
        """The layers that begin a stage, see `networks.axes`."""
        return first_layers("PreActivationBlock", [self.plan.num_blocks] * len(self.plan.stages), layer="BatchNorm_0")

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`."""
        return pre_activation_axes(self.plan)
