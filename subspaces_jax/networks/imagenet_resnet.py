"""Residual networks of four stages, for TinyImageNet and ImageNet."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.residual_blocks import (
    BasicBlock,
    BottleneckBlock,
    first_layers,
    inner_units,
    layers,
    residual_axes,
)

EXPANSION = 4  # of a bottleneck: output channels over those of the stage


class ImageNetResNet(nn.Module):
    """Stem, four stages with W, 2W, 4W and 8W channels (bottlenecks: four times as many), average pool, 1x1 classifier.

    Every convolution is bias-free and Kaiming-normal, the classifier included unless it is told to have a bias, which
    starts at 0: with one the networks are torchvision's. Strides are in the 3x3 convolutions;
    BatchNorm starts at scale 1 and bias 0. Features: with the stem for small images the last map before its ReLU, else
    the pooled map after it, as in the subspace paper.

    Attributes:
        num_classes: C.
        stage_sizes: blocks of each stage.
        bottleneck: bottleneck blocks instead of basic ones.
        small_images: a 3x3 stem of stride 1 instead of 7x7 of stride 2 and a max-pool.
        inner_factor: widens the inner maps of bottlenecks (2 for wide networks).
        width: W.
        classifier_bias: whether the classifier has a bias.
        dtype, axis_name: as in `CifarResNet`.

    Reference: He et al., Deep Residual Learning for Image Recognition, 2015, arXiv:1512.03385; Zagoruyko and Komodakis,
    Wide Residual Networks, 2016, arXiv:1605.07146; classifier and stems as in Wortsman et al., Learning Neural Network
    Subspaces, 2021, arXiv:2102.10472.
    """

    num_classes: int
    stage_sizes: Sequence[int]
    bottleneck: bool = False
    small_images: bool = False
    inner_factor: int = 1
    width: int = 64
    classifier_bias: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> logits [B, C]; train=True normalises by the batch and updates "batch_stats"."""
        if self.inner_factor != 1 and not self.bottleneck:
            raise ValueError(f"inner_factor widens bottlenecks, got {self.inner_factor} without: set bottleneck=True")
        conv, norm = layers(self.dtype, train, self.axis_name)
        stem = conv(self.width, 3) if self.small_images else conv(self.width, 7, 2)
        x = nn.relu(norm()(stem(images.astype(self.dtype))))
        if not self.small_images:
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        stream = "stem" if self.bottleneck else "s0"
        for stage, size in enumerate(self.stage_sizes):
            channels = self.width * 2**stage
            for number in range(size):
                stride = 2 if stage and not number else 1
                self.sow("intermediates", stream, x)
                block: nn.Module
                if self.bottleneck:
                    inner, units = self.inner_factor * channels, inner_units(stage, number, 2)
                    block = BottleneckBlock(EXPANSION * channels, inner, stride, conv, norm, units)
                else:
                    block = BasicBlock(channels, stride, conv, norm, inner_units(stage, number, 1))
                features = block(x)
                x, stream = nn.relu(features), f"s{stage}"
        x = jnp.mean(x, axis=(1, 2), keepdims=True)
        self.sow("intermediates", stream, x)
        self.sow("intermediates", "features", features if self.small_images else x)
        return conv(self.num_classes, 1, use_bias=self.classifier_bias)(x)[:, 0, 0, :]

    def stage_starts(self) -> tuple[str, ...]:
        """The layers that begin a stage, see `networks.axes`."""
        block = "BottleneckBlock" if self.bottleneck else "BasicBlock"
        return first_layers(block, self.stage_sizes, pooled_first=not self.small_images)

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`."""
        block, num_convs = ("BottleneckBlock", 3) if self.bottleneck else ("BasicBlock", 2)
        table = residual_axes(block, self.stage_sizes, num_convs, first_shortcut=self.bottleneck)
        return table | ({"Conv_1/bias": (None,)} if self.classifier_bias else {})


ResNet18 = partial(ImageNetResNet, stage_sizes=(2, 2, 2, 2))
ResNet34 = partial(ImageNetResNet, stage_sizes=(3, 4, 6, 3))
ResNet50 = partial(ImageNetResNet, stage_sizes=(3, 4, 6, 3), bottleneck=True)
ResNet101 = partial(ImageNetResNet, stage_sizes=(3, 4, 23, 3), bottleneck=True)
ResNet152 = partial(ImageNetResNet, stage_sizes=(3, 8, 36, 3), bottleneck=True)
BY_DEPTH = {18: ResNet18, 34: ResNet34, 50: ResNet50, 101: ResNet101, 152: ResNet152}
WideResNet50 = partial(ResNet50, inner_factor=2)
WideResNet101 = partial(ResNet101, inner_factor=2)
TinyImageNetResNet18 = partial(ResNet18, small_images=True)
TinyImageNetResNet50 = partial(ResNet50, small_images=True)
