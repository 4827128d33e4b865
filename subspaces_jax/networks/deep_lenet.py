"""A LeNet of six 3x3 convolutions and three dense layers."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.layers import FAN_AVERAGE_UNIFORM, Conv, adaptive_average_pool, max_pool
from subspaces_jax.networks.vgg import axes_of, convolve, starts_of

CONVOLUTIONS = ((6, 6), (16, 16), (64, 64))  # channels, by block
SIDE = 3  # of the map that the dense layers take


class DeepLeNet(nn.Module):
    """Three blocks of two 3x3 convolutions with ReLU and 2x2 max pooling, average pooling to 3x3, dense layers of 120,
    84 and C units.

    Blocks have 6, 16 and 64 channels. Dropout follows both hidden dense layers. Kernels start uniform with a variance
    of 4 / (fan_in + fan_out), biases 0. On RGB images with 10 classes there are 130,160 parameters, on grey ones
    130,052. Features are what the classifier takes, [B, 84].

    Attributes:
        num_classes: C.
        dropout: rate, in [0, 1); a config's field `dropout` takes its place where the call does not set it.
        dtype: dtype of the computation; parameters are float32.

    Reference: Gamba et al., Hyperplane Arrangements of Trained ConvNets Are Biased, 2020, arXiv:2003.07797 (its code,
    where it is called lenet).
    """

    num_classes: int
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> logits [B, C]; train=True turns dropout on."""
        conv = lambda features: Conv(
            features, (3, 3), padding=1, use_bias=True, kernel_init=FAN_AVERAGE_UNIFORM, dtype=self.dtype
        )
        pool = lambda x, block: adaptive_average_pool(max_pool(x, 2, 2), SIDE) if block == 2 else max_pool(x, 2, 2)
        x = convolve(self, images.astype(self.dtype), CONVOLUTIONS, conv, pool)
        x = x.reshape(x.shape[0], -1)
        for unit, features in (("h0", 120), ("h1", 84)):
            x = nn.relu(nn.Dense(features, kernel_init=FAN_AVERAGE_UNIFORM, dtype=self.dtype)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            self.sow("intermediates", unit, x)
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, kernel_init=FAN_AVERAGE_UNIFORM, dtype=self.dtype)(x)

    def stage_starts(self) -> tuple[str, ...]:
        """The layers that begin a stage, see `networks.axes`."""
        return starts_of(list(map(len, CONVOLUTIONS)))

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`."""
        return axes_of(sum(map(len, CONVOLUTIONS)))
