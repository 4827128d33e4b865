"""Residual networks for small images, of depth 6n + 2 and any width."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.residual_blocks import BasicBlock, first_layers, inner_units, layers, residual_axes

NUM_STAGES = 3


class CifarResNet(nn.Module):
    """3x3 stem, three stages of n basic blocks with W, 2W and 4W channels, global average pool, 1x1 classifier.

    Every convolution is bias-free and Kaiming-normal, the classifier included; BatchNorm starts at scale 1 and bias 0.
    Depth 20 and width 16 on RGB images with 10 classes have 272,464 parameters. Features are the last map before its
    ReLU, [B, H/4, W/4, 4 * width].

    Attributes:
        num_classes: C.
        depth: 6n + 2 with n >= 1.
        width: channels of the first stage.
        dropout: rate, in [0, 1), of every block's branch in training, before it is added.
        dtype: dtype of the computation; parameters and BatchNorm statistics are float32.
        axis_name: mesh axis over which BatchNorm takes its statistics in training; None for each device's own.

    Reference: He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385; shortcuts and classifier
    as in Wortsman et al., Learning Neural Network Subspaces, 2021, arXiv:2102.10472.
    """

    num_classes: int
    depth: int = 20
    width: int = 16
    dropout: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def blocks_per_stage(self) -> int:
        """n of depth 6n + 2."""
        blocks, rest = divmod(self.depth - 2, 2 * NUM_STAGES)
        if blocks < 1 or rest:
            raise ValueError(f"CifarResNet needs a depth of 6n + 2 (8, 14, 20, ...), got {self.depth}")
        return blocks

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> logits [B, C]; train=True normalises by the batch and updates "batch_stats"."""
        conv, norm = layers(self.dtype, train, self.axis_name)
        x, stream = nn.relu(norm()(conv(self.width, 3)(images.astype(self.dtype)))), "s0"
        for stage in range(NUM_STAGES):
            for block in range(self.blocks_per_stage):
                dropout = nn.Dropout(self.dropout, deterministic=not train) if self.dropout else None
                stride = 2 if stage and not block else 1
                self.sow("intermediates", stream, x)
                units = inner_units(stage, block, 1)
                features = BasicBlock(self.width * 2**stage, stride, conv, norm, units, dropout)(x)
                x, stream = nn.relu(features), f"s{stage}"
        self.sow("intermediates", "features", features)
        x = jnp.mean(x, axis=(1, 2), keepdims=True)
        self.sow("intermediates", stream, x)
        return conv(self.num_classes, 1)(x)[:, 0, 0, :]

    def stage_starts(self) -> tuple[str, ...]:
        """The layers that begin a stage, see `networks.axes`."""
        return first_layers("BasicBlock", [self.blocks_per_stage] * NUM_STAGES)

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`."""
        return residual_axes("BasicBlock", [self.blocks_per_stage] * NUM_STAGES, 2, first_shortcut=False)
