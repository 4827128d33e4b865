"""What the pre-activation residual networks share: their block, stages and axis table."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.residual_blocks import inner_units

Sow = Callable[[str, str, jax.Array], Any]


class Plan(NamedTuple):
    """The sizes of a pre-activation network.

    Attributes:
        stem: channels of its first convolution, 3x3.
        stages: of each stage the output channels of a block's convolutions; the last are those of its stream.
        num_blocks: of each stage.
        kernels: sides of a block's kernels; the first that is 3 has the stride, 2 where a stage but the first begins.
        shared: whether the convolution of a shortcut takes what the branch takes, after BatchNorm and ReLU; else the
            stream itself.
    """

    stem: int
    stages: tuple[tuple[int, ...], ...]
    num_blocks: int
    kernels: tuple[int, ...]
    shared: bool

    @property
    def first_stream(self) -> str:
        """The stream that the stem begins: its own where the first stage changes the channels."""
        return "s0" if self.stem == self.stages[0][-1] else "stem"


class PreActivationBlock(nn.Module):
    """BatchNorm, ReLU and convolution, two or three times, plus shortcut: a 1x1 convolution where the shape changes.

    Attributes:
        features: output channels of the convolutions.
        kernels, shared: as in `Plan`.
        stride: of the first 3x3 convolution and of the shortcut.
        conv, norm: constructors from `residual_blocks.layers`.
        units: from `inner_units`: the names under which the inner maps are sown.
        dropout: applied to the inner maps, None for none.
    """

    features: Sequence[int]
    kernels: Sequence[int]
    shared: bool
    stride: int
    conv: Any
    norm: Any
    units: Sequence[str]
    dropout: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """[B, H, W, channels] -> (the new stream, what was taken of the old one: by the branch, and by the shortcut's
        convolution where that is something else)."""
        y = taken = nn.relu(self.norm()(x))
        for i, (features, side) in enumerate(zip(self.features, self.kernels)):
            if i:
                y = nn.relu(self.norm()(y))
                y = y if self.dropout is None else self.dropout(y)
                self.sow("intermediates", self.units[i - 1], y)
            y = self.conv(features, side, self.stride if i == self.kernels.index(3) else 1)(y)
        if x.shape == y.shape:
            return x + y, (taken,)
        shortcut = self.conv(self.features[-1], 1, self.stride)(taken if self.shared else x)
        return shortcut + y, (taken,) if self.shared else (taken, x)


def pooled(plan: Plan, images: jax.Array, conv: Any, norm: Any, sow: Sow, dropout: Any = None) -> jax.Array:
    """[B, H, W, channels] -> the last map after BatchNorm and ReLU, averaged, [B, channels of the last stream].

    Called within a network's own call; `sow` is the network's, the rest as in `PreActivationBlock`.
    """
    x, stream = conv(plan.stem, 3)(images), plan.first_stream
    for stage, features in enumerate(plan.stages):
        for number in range(plan.num_blocks):
            stride = 2 if stage and not number else 1
            units = inner_units(stage, number, len(features) - 1)
            block = PreActivationBlock(features, plan.kernels, plan.shared, stride, conv, norm, units, dropout)
            x, taken = block(x)
            for value in taken:
                sow("intermediates", stream, value)
            stream = f"s{stage}"
    x = jnp.mean(nn.relu(norm()(x)), axis=(1, 2))
    sow("intermediates", stream, x)
    return x


def pre_activation_axes(plan: Plan) -> AxisTable:
    """The axis table of a network of a plan with a dense classifier, with names as those of `residual_axes`."""
    stream = plan.first_stream
    table: AxisTable = {"Conv_0/kernel": (None, None, None, stream)}
    scales = lambda module, index, unit: {f"{module}BatchNorm_{index}/{name}": (unit,) for name in ("scale", "bias")}
    index = 0
    for stage, features in enumerate(plan.stages):
        for number in range(plan.num_blocks):
            module, out = f"PreActivationBlock_{index}/", f"s{stage}"
            units = [stream, *inner_units(stage, number, len(features) - 1), out]
            for i, (rows, columns) in enumerate(zip(units[:-1], units[1:])):
                table |= scales(module, i, rows)
                table[f"{module}Conv_{i}/kernel"] = (None, None, rows, columns)
            if stream != out:
                table[f"{module}Conv_{len(features)}/kernel"] = (None, None, stream, out)
            stream, index = out, index + 1
    table |= scales("", 0, stream)
    return table | {"Dense_0/kernel": (stream, None), "Dense_0/bias": (None,)}
