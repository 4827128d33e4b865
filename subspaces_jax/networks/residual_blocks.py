"""What the residual networks share: their blocks, normalisation and axis table."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.layers import KAIMING_NORMAL, BatchNorm, Conv


def layers(
    dtype: Any, train: bool, axis_name: str | None, kernel_init: Any = KAIMING_NORMAL
) -> tuple[Callable[..., nn.Module], Callable[..., nn.Module]]:
    """(conv, norm): conv(features, size, stride) padded by size // 2 on every side, and `BatchNorm`."""
    usual = {"dtype": dtype, "kernel_init": kernel_init}
    conv = lambda features, size, stride=1, **options: Conv(
        features, (size, size), stride, padding=size // 2, **usual, **options
    )
    return conv, partial(BatchNorm, not train, dtype=dtype, axis_name=axis_name)


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN-dropout plus shortcut; the shortcut is a 1x1 convolution and BN where the shape changes.

    The ReLU that ends the block is left to the network.

    Attributes:
        features: output channels.
        stride: of the first convolution and of the shortcut.
        conv, norm: constructors from `layers`.
        units: from `inner_units`: the name under which the inner map is sown.
        dropout: applied to the branch, None for none.
    """

    features: int
    stride: int
    conv: Any
    norm: Any
    units: Sequence[str]
    dropout: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm()(self.conv(self.features, 3, self.stride)(x)))
        self.sow("intermediates", self.units[0], y)
        y = self.norm()(self.conv(self.features, 3)(y))
        if self.dropout is not None:
            y = self.dropout(y)
        if x.shape != y.shape:
            x = self.norm()(self.conv(self.features, 1, self.stride)(x))
        return x + y


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with BN, ReLU between them, plus shortcut as in `BasicBlock`.

    Attributes:
        features: output channels.
        inner: channels of the first two convolutions.
        stride: of the 3x3 convolution and of the shortcut.
        conv, norm: constructors from `layers`.
        units: from `inner_units`: the names under which the two inner maps are sown.
    """

    features: int
    inner: int
    stride: int
    conv: Any
    norm: Any
    units: Sequence[str]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = nn.relu(self.norm()(self.conv(self.inner, 1)(x)))
        self.sow("intermediates", self.units[0], y)
        y = nn.relu(self.norm()(self.conv(self.inner, 3, self.stride)(y)))
        self.sow("intermediates", self.units[1], y)
        y = self.norm()(self.conv(self.features, 1)(y))
        if x.shape != y.shape:
            x = self.norm()(self.conv(self.features, 1, self.stride)(x))
        return x + y


def inner_units(stage: int, block: int, num: int) -> tuple[str, ...]:
    """The names of the `num` inner maps of a stage's block: "s0b1c0" is the first one of block 1 of stage 0."""
    return tuple(f"s{stage}b{block}c{i}" for i in range(num))


def first_layers(
    block: str, stage_sizes: Sequence[int], pooled_first: bool = False, layer: str = "Conv_0"
) -> tuple[str, ...]:
    """The layers that begin the stages of blocks after the first, see `networks.axes.stage_starts`.

    Args:
        block: the class name of the blocks.
        stage_sizes: blocks of each stage.
        pooled_first: whether the stem is pooled, so that the first stage of blocks begins one, too.
        layer: the first one of a block.
    """
    firsts = [0, *itertools.accumulate(stage_sizes)][:-1]
    return tuple(f"{block}_{first}/{layer}" for first in firsts[0 if pooled_first else 1 :])


def residual_axes(block: str, stage_sizes: Sequence[int], num_convs: int, first_shortcut: bool) -> AxisTable:
    """The axis table of a stem, stages of blocks and a 1x1 classifier; see `networks.axes`.

    One name a residual stream ("s0", or "stem" where the first stage changes the channels), one an inner map
    ("s0b1c0"). A shortcut's convolution comes after its branch, which is where the blocks call it.

    Args:
        block: the class name of the blocks.
        stage_sizes: blocks of each stage.
        num_convs: of a block, without the shortcut.
        first_shortcut: whether the first stage begins with a convolution in the shortcut; all others do.
    """
    table: AxisTable = {}

    def add(module: str, index: int, rows: str | None, columns: str | None, norm: bool = True) -> None:
        table[f"{module}Conv_{index}/kernel"] = (None, None, rows, columns)
        if norm:
            table.update({f"{module}BatchNorm_{index}/{name}": (columns,) for name in ("scale", "bias")})

    stream = "stem" if first_shortcut else "s0"
    add("", 0, None, stream)
    index = 0
    for stage, size in enumerate(stage_sizes):
        for number in range(size):
            module, out = f"{block}_{index}/", f"s{stage}"
            inner = inner_units(stage, number, num_convs - 1)
            for i, (rows, columns) in enumerate(zip([stream, *inner], [*inner, out])):
                add(module, i, rows, columns)
            if stream != out:
                add(module, num_convs, stream, out)
            stream, index = out, index + 1
    add("", 1, stream, None, norm=False)
    return table
