"""5x5 convolutions and dense layers: the ConvFC networks of mode connectivity."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import FLATTENED, AxisTable
from subspaces_jax.networks.layers import FAN_OUT_NORMAL, Conv, max_pool, uniform_dense


class ConvFC(nn.Module):
    """5x5 convolutions, each with ReLU and 3x3 max pooling of stride 2, then dense layers with ReLU, classifier.

    Convolutions are padded to keep the size and pools are not, 32 -> 15 -> 7 -> 3. Kernels of convolutions start normal
    with a deviation of sqrt(2 / (k k C_out)) and biases 0, dense layers uniform within +-1 / sqrt(fan_in). On RGB
    images of 32x32 with 10 classes there are 2,422,634 parameters. Features are what the classifier takes, a flattened
    map where there are no dense layers before it.

    The other networks of the family are calls: ConvFCNoBias is `conv_fc(bias=False)`, with depths of its own, and
    Conv2FC1 is `conv_fc((32, 64), ())`.

    Attributes:
        num_classes: C.
        channels: of the convolutions, at least one.
        widths: units of the hidden dense layers.
        bias: whether layers have biases.
        dtype: dtype of the computation; parameters are float32.

    Reference: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026
    (its code); Anokhin and Yarotsky, Low-loss connection of weight vectors, 2020, arXiv:2008.00741 (the variants).
    """

    num_classes: int
    channels: Sequence[int] = (32, 64, 128)
    widths: Sequence[int] = (1000, 1000)
    bias: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> logits [B, C]. `train` changes nothing."""
        if not self.channels:
            raise ValueError("ConvFC needs at least one convolution, got channels=(): an mlp has none")
        options = {"use_bias": self.bias, "dtype": self.dtype}
        x = images.astype(self.dtype)
        for i, channels in enumerate(self.channels):
            x = Conv(channels, (5, 5), padding=2, kernel_init=FAN_OUT_NORMAL, **options)(x)
            x = max_pool(nn.relu(x), 3, 2)
            self.sow("intermediates", f"c{i}", x)
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths):
            x = nn.relu(uniform_dense(x.shape[-1], width, **options)(x))
            self.sow("intermediates", f"h{i}", x)
        self.sow("intermediates", "features", x)
        return uniform_dense(x.shape[-1], self.num_classes, **options)(x)

    def stage_starts(self) -> tuple[str, ...]:
        """The layers that begin a stage, see `networks.axes`."""
        return (*(f"Conv_{i}" for i in range(1, len(self.channels))), "Dense_0")

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`."""
        convolutions = [f"c{i}" for i in range(len(self.channels))]
        dense = [*(f"h{i}" for i in range(len(self.widths))), None]
        table: AxisTable = {}
        for i, (rows, columns) in enumerate(zip([None, *convolutions], convolutions)):
            table |= {f"Conv_{i}/kernel": (None, None, rows, columns), f"Conv_{i}/bias": (columns,)}
        for i, (reads, writes) in enumerate(zip([FLATTENED + convolutions[-1], *dense], dense)):
            table |= {f"Dense_{i}/kernel": (reads, writes), f"Dense_{i}/bias": (writes,)}
        return table if self.bias else {leaf: axes for leaf, axes in table.items() if not leaf.endswith("bias")}
