"""AlexNet, as torchvision has it."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.layers import (
    FAN_OUT_NORMAL,
    TORCH_UNIFORM,
    Conv,
    adaptive_average_pool,
    max_pool,
    uniform_bias,
    uniform_dense,
)
from subspaces_jax.networks.vgg import axes_of, starts_of

LAYERS = ((1, 11, 4, 2), (3, 5, 1, 2), (6, 3, 1, 1), (4, 3, 1, 1), (4, 3, 1, 1))  # factor of W, kernel, stride, padding
POOLED = (0, 1, 4)  # convolutions that 3x3 max pooling of stride 2 follows
SIDE = 6  # of the map that the dense layers take


class AlexNet(nn.Module):
    """Five convolutions with ReLU, 3x3 max pooling of stride 2 after three of them, average pooling to 6x6, two hidden
    dense layers, classifier.

    Convolutions have W, 3W, 6W, 4W and 4W channels and kernels of 11, 5, 3, 3 and 3 pixels, the first a stride of 4.
    Images of 224x224 come to a map of 6x6; of smaller ones the map is repeated. Dropout comes before both hidden
    layers. Weights and biases start uniform within +-1 / sqrt(fan_in); on images that are not RGB the first
    convolution starts normal with a deviation of sqrt(2 / (k k C_out)) and biases 0. There are 61,100,840 parameters
    with 1000 classes and 57,044,810 with 10. Features are what the classifier takes, [B, hidden].

    Attributes:
        num_classes: C.
        width: W.
        hidden: units of the two hidden dense layers.
        dropout: rate, in [0, 1); a config's field `dropout` takes its place where the call does not set it.
        dtype: dtype of the computation; parameters are float32.

    Reference: Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014, arXiv:1404.5997; pools
    and initial values as in torchvision; other channels as in Gamba et al., Hyperplane Arrangements of Trained ConvNets
    Are Biased, 2020, arXiv:2003.07797.
    """

    num_classes: int
    width: int = 64
    hidden: int = 4096
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> logits [B, C]; train=True turns dropout on."""
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        x = images.astype(self.dtype)
        for i, (factor, size, stride, padding) in enumerate(LAYERS):
            options = {"padding": padding, "use_bias": True, "dtype": self.dtype} | _initial(x.shape[-1], size, i == 0)
            x = nn.relu(Conv(factor * self.width, (size, size), stride, **options)(x))
            x = max_pool(x, 3, 2) if i in POOLED else x
            x = drop()(adaptive_average_pool(x, SIDE)) if i == len(LAYERS) - 1 else x
            self.sow("intermediates", f"c{i}", x)
        x = x.reshape(x.shape[0], -1)
        for unit in ("h0", "h1"):
            x = nn.relu(uniform_dense(x.shape[-1], self.hidden, dtype=self.dtype)(x))
            x = drop()(x) if unit == "h0" else x
            self.sow("intermediates", unit, x)
        self.sow("intermediates", "features", x)
        return uniform_dense(x.shape[-1], self.num_classes, dtype=self.dtype)(x)

    def stage_starts(self) -> tuple[str, ...]:
        """The layers that begin a stage, see `networks.axes`."""
        return starts_of((1, 1, 3))

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`."""
        return axes_of(len(LAYERS))


def _initial(channels: int, size: int, is_first: bool) -> dict[str, Any]:
    """How a convolution starts."""
    if is_first and channels != 3:
        return {"kernel_init": FAN_OUT_NORMAL}
    return {"kernel_init": TORCH_UNIFORM, "bias_init": uniform_bias(size * size * channels)}
