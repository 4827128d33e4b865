"""A network that knows nothing of this package: no axis table, no features, no `train`, GroupNorm, one shared layer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


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


class Classifier(nn.Module):
    """What the modules below are, each but for its fault; alone it is a network like any other."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = x.reshape(x.shape[0], -1)
        self.sow("intermediates", "features", x)
        return self.read(nn.Dense(self.num_classes)(nn.BatchNorm(use_running_average=not train)(x)), train)

    def read(self, outputs, train):
        return outputs


class Seven(Classifier):
    def read(self, outputs, train):
        return outputs[:, :7]


class Twelve(Classifier):
    def read(self, outputs, train):
        return jnp.pad(outputs, ((0, 0), (0, 2)))


class OneForAll(Classifier):
    """One row of outputs for a whole batch."""

    def read(self, outputs, train):
        return outputs.mean(0)


class Pair(Classifier):
    def read(self, outputs, train):
        return outputs, outputs[:, :4]


class PairInTraining(Classifier):
    def read(self, outputs, train):
        return {"logits": outputs} if train else outputs


class Nothing(Classifier):
    def read(self, outputs, train):
        return None


class Integers(Classifier):
    def read(self, outputs, train):
        return outputs.astype(jnp.int32)


class Complex(Classifier):
    def read(self, outputs, train):
        return outputs + 1j


class Divides(Classifier):
    def read(self, outputs, train):
        return outputs / (1 // (not train))


class LongWinded(Classifier):
    def read(self, outputs, train):
        raise RuntimeError("the first line\nthe second line")


class Interrupted(Classifier):
    def read(self, outputs, train):
        raise KeyboardInterrupt


class OutOfMemory(Classifier):
    def read(self, outputs, train):
        raise MemoryError


class NoGradient(Classifier):
    """Its loop's end is not known beforehand, so it cannot be differentiated."""

    def read(self, outputs, train):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x / 2, outputs)


class ComplexWeights(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        weights = self.param("w", nn.initializers.lecun_normal(), (x.shape[-1], self.num_classes), jnp.complex64)
        return (x @ weights).real


class NoParameters(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        return x.reshape(x.shape[0], -1)[:, : self.num_classes]


class OfOneBatch(nn.Module):
    """It has a bias for every example of the batch that it was initialised with."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))
        return x + self.param("bias", nn.initializers.zeros, x.shape)


class OverTheBatch(nn.Module):
    """BatchNorm over all devices, by the name of the step's axis."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))
        return nn.BatchNorm(use_running_average=not train, axis_name="batch")(x)


class ToldAtItsMaking(nn.Module):
    """Whether it trains is an attribute, so that its BatchNorm never learns."""

    num_classes: int
    train: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes)(nn.BatchNorm(use_running_average=not self.train)(x.reshape(x.shape[0], -1)))


class HalfFrozen(nn.Module):
    """One BatchNorm is frozen on purpose; it sows features in evaluation alone, and a loss."""

    num_classes: int

    @nn.compact
    def __call__(self, x, deterministic: bool):
        x = nn.BatchNorm(use_running_average=deterministic)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=True)(x)
        if deterministic:
            self.sow("intermediates", "features", x)
        self.sow("losses", "size", jnp.sum(x**2))
        return nn.Dense(self.num_classes)(x)


class Counts(nn.Module):
    """It keeps a whole number among its statistics."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        count = self.variable("batch_stats", "count", lambda: jnp.zeros((), jnp.int32))
        if train:
            count.value += 1
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class LateStatistics(nn.Module):
    """Training makes a statistic that was not there."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        if train:
            self.variable("batch_stats", "mean", lambda: jnp.mean(x))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class Patches(nn.Module):
    """It has statistics and is quick on large images."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Conv(4, (16, 16), strides=16)(x))
        return nn.Dense(self.num_classes)(nn.relu(x).mean((1, 2)))


class Small(nn.Module):
    """A convolution, BatchNorm and dropout, over as many devices as there are, and features: quick to compile."""

    num_classes: int
    axis_name: str | None = None
    dropout: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), strides=2, use_bias=False, dtype=self.dtype)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name, dtype=self.dtype)(x)
        x = nn.relu(x).reshape(x.shape[0], -1)
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(nn.Dropout(self.dropout, deterministic=not train)(x))


class Partitioned(nn.Module):
    """Its weights come in boxes that say over which mesh axes they lie."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
        return nn.Dense(self.num_classes, kernel_init=init)(x.reshape(x.shape[0], -1))


class Empty(nn.Module):
    """One of its parameters holds nothing."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        self.param("nothing", nn.initializers.zeros, (0, 3))
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


class Numbered(nn.Module):
    """Its parameters lie under whole numbers, as those of an `nnx.List` do."""

    num_classes: int

    @nn.compact
    def __call__(self, x):
        weights = self.param("parts", lambda key: {0: jax.random.normal(key, (x[0].size, self.num_classes))})
        return x.reshape(x.shape[0], -1) @ weights[0]
