"""A network that knows nothing of this package: no axis table, no features, no `train`, GroupNorm, one shared layer."""

from typing import Any

import flax.linen as nn
import jax


class OutsideNet(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.GroupNorm(num_groups=2)(nn.Conv(8, (3, 3))(x))
        shared = nn.Dense(8)
        return nn.Dense(self.num_classes)(shared(nn.gelu(shared(x))).mean((1, 2)))


class MustBeTold(nn.Module):
    """It is always to be told whether it trains, and sows nothing."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dropout(0.1, deterministic=not train)(x.reshape(x.shape[0], -1))
        return nn.Dense(self.num_classes)(nn.BatchNorm(use_running_average=not train)(x))


class Noisy(nn.Module):
    """It asks for random numbers under a name that no one gives them by."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = x + (jax.random.normal(self.make_rng("noise"), x.shape) if train else 0.0)
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class Constant(nn.Module):
    """It has variables that are neither trained nor statistics."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        scale = self.variable("constants", "scale", lambda: 2.0).value
        return nn.Dense(self.num_classes)(scale * x.reshape(x.shape[0], -1))


class NoKernels(nn.Module):
    """Its weights have a name of their own, and it takes a dtype."""

    num_classes: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1).astype(self.dtype)
        return x @ self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], self.num_classes)).astype(self.dtype)
