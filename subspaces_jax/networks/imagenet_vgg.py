"""VGG for ImageNet, as torchvision has it."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.layers import FAN_OUT_NORMAL, SMALL_NORMAL, BatchNorm, Conv, adaptive_average_pool, max_pool
from subspaces_jax.networks.vgg import FACTORS, axes_of, blocks_of, convolve, starts_of

KERNELS = {"fan_out": FAN_OUT_NORMAL, "normal": SMALL_NORMAL}  # of convolutions, by the name of the initialisation
SIDE = 7  # of the map that the dense layers take


class ImageNetVGG(nn.Module):
    """Five blocks of 3x3 convolutions with ReLU, 2x2 max pooling after each, average pooling to 7x7, dense layers.

    Blocks have W, 2W, 4W, 8W and 8W channels; all layers have biases. Images of any size are taken: one of 32x32 comes
    to a map of one pixel, which is repeated 49 times. Dropout follows both hidden layers. Depth 16 has 138,357,544
    parameters with 1000 classes, 134,301,514 with 10, and BatchNorm adds 8,448. Features are what the classifier takes,
    [B, hidden].

    Attributes:
        num_classes: C.
        depth: layers with kernels, 11, 13, 16 or 19.
        batch_norm: whether BatchNorm follows every convolution, before its ReLU.
        initialisation: of convolutions, "fan_out", normal with a deviation of sqrt(2 / (k k C_out)), or "normal", with
            one of 0.01, which dense layers have in both; biases start at 0.
        width: W.
        hidden: units of the two hidden dense layers.
        dropout: rate, in [0, 1); a config's field `dropout` takes its place where the call does not set it.
        dtype, axis_name: as in `CifarResNet`.

    Reference: Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, 2014,
    arXiv:1409.1556; classifier and initial values as in torchvision, and "normal" as vgg19_orig of Gamba et al.,
    Hyperplane Arrangements of Trained ConvNets Are Biased, 2020, arXiv:2003.07797.
    """

    num_classes: int
    depth: int = 16
    batch_norm: bool = False
    initialisation: str = "fan_out"
    width: int = 64
    hidden: int = 4096
    dropout: float = 0.5
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> logits [B, C]; train=True turns dropout on, and with BatchNorm normalises by the batch
        and updates "batch_stats"."""
        if self.initialisation not in KERNELS:
            raise ValueError(f"initialisation is {self.initialisation!r}: it takes {' or '.join(KERNELS)}")
        options = {"use_bias": True, "kernel_init": KERNELS[self.initialisation], "dtype": self.dtype}
        conv = lambda features: Conv(features, (3, 3), padding=1, **options)
        norm = partial(BatchNorm, not train, dtype=self.dtype, axis_name=self.axis_name) if self.batch_norm else None
        number = blocks_of(self.depth)
        channels = [(factor * self.width,) * convolutions for convolutions, factor in zip(number, FACTORS)]
        last = len(number) - 1
        pool = lambda x, block: adaptive_average_pool(max_pool(x, 2, 2), SIDE) if block == last else max_pool(x, 2, 2)
        x = convolve(self, images.astype(self.dtype), channels, conv, pool, norm)
        x = x.reshape(x.shape[0], -1)
        for unit in ("h0", "h1"):
            x = nn.relu(nn.Dense(self.hidden, kernel_init=SMALL_NORMAL, dtype=self.dtype)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            self.sow("intermediates", unit, x)
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, kernel_init=SMALL_NORMAL, dtype=self.dtype)(x)

    def stage_starts(self) -> tuple[str, ...]:
        """The layers that begin a stage, see `networks.axes`."""
        return starts_of(blocks_of(self.depth))

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`."""
        return axes_of(sum(blocks_of(self.depth)), self.batch_norm)
