"""Residual networks for small images, of depth 6n + 2 and any width."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.layers import Conv

NUM_STAGES = 3


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN plus shortcut, then ReLU; the shortcut is a 1x1 convolution and BN where the shape changes.

    Attributes:
        features: output channels.
        stride: of the first convolution and of the shortcut.
        conv, norm: constructors of the layers.
    """

    features: int
    stride: int
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(self.features, (3, 3), strides=self.stride)(x)
        y = nn.relu(self.norm()(y))
        y = self.norm()(self.conv(self.features, (3, 3))(y))
        if x.shape != y.shape:
            x = self.norm()(self.conv(self.features, (1, 1), strides=self.stride)(x))
        return nn.relu(x + y)


class CifarResNet(nn.Module):
    """3x3 stem, three stages of n basic blocks with W, 2W and 4W channels, global average pool, 1x1 classifier.

    Every convolution is bias-free and Kaiming-normal, the classifier included; BatchNorm starts at scale 1 and bias 0.
    Depth 20 and width 16 on RGB images with 10 classes have 272,464 parameters.

    Attributes:
        num_classes: C.
        depth: 6n + 2 with n >= 1.
        width: channels of the first stage.
        dtype: dtype of the computation; parameters and BatchNorm statistics are float32.
        axis_name: mesh axis over which BatchNorm takes its statistics in training; None for each device's own.

    Reference: He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385; shortcuts and classifier
    as in Wortsman et al., Learning Neural Network Subspaces, 2021, arXiv:2102.10472.
    """

    num_classes: int
    depth: int = 20
    width: int = 16
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
        conv = partial(Conv, dtype=self.dtype)
        norm = partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        x = nn.relu(norm()(conv(self.width, (3, 3))(images.astype(self.dtype))))
        for stage in range(NUM_STAGES):
            for block in range(self.blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(self.width * 2**stage, stride, conv, norm)(x)
        x = jnp.mean(x, axis=(1, 2), keepdims=True)
        return conv(self.num_classes, (1, 1))(x)[:, 0, 0, :]

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`: one name a residual stream ("s0"), one a block's inner map ("s0b1")."""
        conv = lambda rows, columns: (None, None, rows, columns)
        table: AxisTable = {"Conv_0/kernel": conv(None, "s0"), "Conv_1/kernel": conv(f"s{NUM_STAGES - 1}", None)}
        norms = {"BatchNorm_0": "s0"}
        stream, index = "s0", 0
        for stage in range(NUM_STAGES):
            for block in range(self.blocks_per_stage):
                module, inner, out = f"BasicBlock_{index}", f"s{stage}b{block}", f"s{stage}"
                table[f"{module}/Conv_0/kernel"] = conv(stream, inner)
                table[f"{module}/Conv_1/kernel"] = conv(inner, out)
                norms |= {f"{module}/BatchNorm_0": inner, f"{module}/BatchNorm_1": out}
                if stream != out:
                    table[f"{module}/Conv_2/kernel"] = conv(stream, out)
                    norms[f"{module}/BatchNorm_2"] = out
                stream, index = out, index + 1
        for module, axis in norms.items():
            table |= {f"{module}/scale": (axis,), f"{module}/bias": (axis,)}
        return table
