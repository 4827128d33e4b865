"""A network that knows nothing of this package: no axis table, no features, no `train`, GroupNorm, one shared layer."""

from typing import Any

import flax.linen as nn


class OutsideNet(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.GroupNorm(num_groups=2)(nn.Conv(8, (3, 3))(x))
        shared = nn.Dense(8)
        return nn.Dense(self.num_classes)(shared(nn.gelu(shared(x))).mean((1, 2)))


class NoKernels(nn.Module):
    """Its weights have a name of their own, and it takes a dtype."""

    num_classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1).astype(self.dtype)
        return x @ self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], self.num_classes)).astype(self.dtype)
