"""LeNet-5 with ReLU and max pooling."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import FLATTENED, AxisTable
from subspaces_jax.networks.layers import convolution


class LeNet(nn.Module):
    """Two 5x5 convolutions with 2x2 max pooling, then dense layers of 120, 84 and C units.

    Convolutions are padded to keep the size, so that images from 8x8 up fit.

    Attributes:
        num_classes: C.
        dtype: dtype of the computation; parameters are float32.

    Reference: LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998.
    """

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> logits [B, C]. `train` changes nothing."""
        x = images.astype(self.dtype)
        for unit, features in (("c0", 6), ("c1", 16)):
            x = nn.Conv(features, (5, 5), dtype=self.dtype, conv_general_dilated=convolution)(x)
            x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
            self.sow("intermediates", unit, x)
        x = x.reshape(x.shape[0], -1)
        for unit, features in (("h0", 120), ("h1", 84)):
            x = nn.relu(nn.Dense(features, dtype=self.dtype)(x))
            self.sow("intermediates", unit, x)
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)

    def stage_starts(self) -> tuple[str, ...]:
        """The layers that begin a stage, see `networks.axes`."""
        return ("Conv_1", "Dense_0")

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`."""
        return {
            "Conv_0/kernel": (None, None, None, "c0"),
            "Conv_0/bias": ("c0",),
            "Conv_1/kernel": (None, None, "c0", "c1"),
            "Conv_1/bias": ("c1",),
            "Dense_0/kernel": (FLATTENED + "c1", "h0"),
            "Dense_0/bias": ("h0",),
            "Dense_1/kernel": ("h0", "h1"),
            "Dense_1/bias": ("h1",),
            "Dense_2/kernel": ("h1", None),
            "Dense_2/bias": (None,),
        }
