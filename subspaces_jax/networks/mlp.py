"""Multi-layer perceptron."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.layers import uniform_dense

INITIALISATIONS = ("he_normal", "uniform")


class MLP(nn.Module):
    """Flatten, then dense layers with ReLU between them. Features are what the classifier takes.

    The dense networks of Anokhin and Yarotsky start uniform: with one hidden layer the call is
    `mlp((2000,), initialisation=uniform)`, and FC3, of 31,182,368 parameters on CIFAR-10,
    `mlp((6144, 2000), bias=False, initialisation=uniform)`. Without hidden layers, `mlp(())`, it is logistic
    regression.

    Attributes:
        num_classes: C.
        widths: units of the hidden layers.
        bias: whether layers have biases.
        initialisation: "he_normal", the classifier LeCun-normal and biases 0; or "uniform", weights and biases within
            +-1 / sqrt(fan_in), as PyTorch's.
        dtype: dtype of the computation; parameters are float32.

    Reference: Anokhin and Yarotsky, Low-loss connection of weight vectors: distribution-based approaches, 2020,
    arXiv:2008.00741.
    """

    num_classes: int
    widths: Sequence[int] = (256, 256)
    dtype: Any = jnp.float32
    bias: bool = True
    initialisation: str = "he_normal"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, ...] -> logits [B, C]. `train` changes nothing; it is there because every network takes it."""
        x = images.reshape(images.shape[0], -1).astype(self.dtype)
        for i, width in enumerate(self.widths):
            x = nn.relu(self._dense(i, width, x.shape[-1], nn.initializers.he_normal())(x))
            self.sow("intermediates", f"h{i}", x)
        self.sow("intermediates", "features", x)
        return self._dense(len(self.widths), self.num_classes, x.shape[-1], nn.initializers.lecun_normal())(x)

    def _dense(self, index: int, width: int, fan_in: int, usual: Any) -> nn.Dense:
        if self.initialisation not in INITIALISATIONS:
            raise ValueError(f"initialisation is {self.initialisation!r}: it takes {' or '.join(INITIALISATIONS)}")
        options = {"use_bias": self.bias, "dtype": self.dtype, "name": f"Dense_{index}"}
        if self.initialisation == "uniform":
            return uniform_dense(fan_in, width, **options)
        return nn.Dense(width, kernel_init=usual, **options)

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`."""
        names = [None, *(f"h{i}" for i in range(len(self.widths))), None]
        table: AxisTable = {}
        for i, (rows, columns) in enumerate(zip(names[:-1], names[1:])):
            table[f"Dense_{i}/kernel"] = (rows, columns)
            if self.bias:
                table[f"Dense_{i}/bias"] = (columns,)
        return table
