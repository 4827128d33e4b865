"""A convolutional autoencoder of images of 32x32 and 64x64."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.layers import BatchNorm, Conv, uniform_dense

SLOPE = 0.2  # of a LeakyReLU
SIDES = {side * side * channels: side for side in (32, 64) for channels in (1, 3)}  # of images, by number of values
FIRST = 4  # side of the map that the encoder's last convolution takes and the decoder's first one gives
GAIN = 2 / (1 + SLOPE**2)
INITIALISATIONS = {  # of kernels of convolutions
    "normal": nn.initializers.normal(0.02),
    "kaiming_normal": nn.initializers.variance_scaling(GAIN, "fan_in", "normal"),
    "kaiming_uniform": nn.initializers.variance_scaling(GAIN, "fan_in", "uniform"),
}


class Autoencoder(nn.Module):
    """4x4 convolutions of stride 2 down to one pixel, a latent vector after tanh, upsampling and 5x5 convolutions.

    Encoder of 64x64 images: F, 2F, 4F and 8F channels at 32, 16, 8 and 4 pixels, with BatchNorm but in the first,
    LeakyReLU of slope 0.2 and dropout; 8F at one pixel; E latent units. Decoder: 8F units, LeakyReLU; bilinear
    upsampling to 4, 8, 16 and 32 pixels with 8F, 4F, 2F and F channels, each with BatchNorm, LeakyReLU and dropout; the
    image at 64 pixels, tanh. Images of 32x32 have one stage less on each side: 4F is the most. Convolutions are
    bias-free, BatchNorm starts with scales of N(1, 0.02) and biases 0, dense layers uniform within +-1 / sqrt(fan_in).

    With E = 128 and 3 channels F = 64, 32 and 16 have 17,944,512, 4,522,016 and 1,148,496 parameters, and F = 64 on
    32x32 images 4,441,792. Features are the latent vector, [B, E], within [-1, 1].

    Attributes:
        num_classes: the number of values of an image, H W channels; those that are given are to be of that size, 32x32
            or 64x64 with 1 or 3 channels.
        width: F.
        latent: E.
        initialisation: of convolutions: "normal" of deviation 0.02; "kaiming_normal" or "kaiming_uniform" for the slope
            of the LeakyReLU.
        dropout: rate, in [0, 1), of single values; a config's field `dropout` takes its place where the call does not
            set it.
        dtype, axis_name: as in `CifarResNet`.

    Reference: AEproject, Through the void: interpolating paths for autoencoder's parameters, 2022, the code at
    github.com/antonzub99/AEproject.
    """

    num_classes: int
    width: int = 64
    latent: int = 128
    initialisation: str = "normal"
    dropout: float = 0.05
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> [B, H, W, channels] within [-1, 1]; train=True turns dropout on, normalises by the
        batch and updates "batch_stats"."""
        self._check(images.shape)
        scale = lambda key, shape, dtype=jnp.float32: 1 + 0.02 * jax.random.normal(key, shape, dtype)
        norm = partial(BatchNorm, not train, dtype=self.dtype, axis_name=self.axis_name, scale_init=scale)
        conv = partial(Conv, kernel_init=INITIALISATIONS[self.initialisation], dtype=self.dtype)
        active = lambda x: nn.leaky_relu(x, SLOPE)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        factors = self._factors

        x = images.astype(self.dtype)
        for i, factor in enumerate(factors):
            x = conv(factor * self.width, (4, 4), 2, padding=1)(x)
            x = drop(active(norm()(x) if i else x))
            self.sow("intermediates", f"e{i}", x)
        x = conv(factors[-1] * self.width, (4, 4), 2, padding=0)(x)[:, 0, 0, :]
        self.sow("intermediates", f"e{len(factors)}", x)
        x = jnp.tanh(uniform_dense(x.shape[-1], self.latent, dtype=self.dtype)(x))
        self.sow("intermediates", "z", x)
        self.sow("intermediates", "features", x)

        x = active(uniform_dense(self.latent, factors[-1] * self.width, dtype=self.dtype)(x))[:, None, None, :]
        for i, factor in enumerate(reversed(factors)):
            x = _upsampled(x, 2 if i else FIRST)
            self.sow("intermediates", f"d{i}", x)
            x = drop(active(norm()(conv(factor * self.width, (5, 5), padding=2)(x))))
        x = _upsampled(x, 2)
        self.sow("intermediates", f"d{len(factors)}", x)
        return jnp.tanh(conv(images.shape[-1], (5, 5), padding=2)(x))

    @property
    def _side(self) -> int:
        if self.num_classes not in SIDES:
            raise ValueError(f"Autoencoder gives images of 32 x 32 or 64 x 64 pixels with 1 or 3 channels, which are "
                             f"{', '.join(map(str, SIDES))} values, and is to give {self.num_classes}: resize or pad "
                             "images; its task is reconstruction")  # fmt: skip
        return SIDES[self.num_classes]

    @property
    def _factors(self) -> list[int]:
        """Channels of the encoder's maps over F, down to the one of FIRST pixels."""
        return [2**i for i in range((self._side // FIRST).bit_length() - 1)]

    def _check(self, shape: tuple[int, ...]) -> None:
        expected = (self._side, self._side, self.num_classes // self._side**2)
        if shape[1:] != expected:
            text = lambda sizes: " x ".join(map(str, sizes))
            raise ValueError(f"Autoencoder with {self.num_classes} outputs takes images of {text(expected)}, which it "
                             f"gives, got {text(shape[1:])}")  # fmt: skip
        if self.initialisation not in INITIALISATIONS:
            raise ValueError(f"initialisation is {self.initialisation!r}: it takes {', '.join(INITIALISATIONS)}")

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`: "e0", ... of the encoder, "z", and "d0", ... of the decoder, which are
        sown after upsampling."""
        num = len(self._factors)
        encoder, decoder = [f"e{i}" for i in range(num + 1)], [f"d{i}" for i in range(num + 1)]
        table: AxisTable = {}
        norms = 0

        def add(conv: int, rows: str | None, columns: str | None, norm: bool) -> None:
            nonlocal norms
            table[f"Conv_{conv}/kernel"] = (None, None, rows, columns)
            if norm:
                table.update({f"BatchNorm_{norms}/{name}": (columns,) for name in ("scale", "bias")})
                norms += 1

        for i, (rows, columns) in enumerate(zip([None, *encoder], encoder)):
            add(i, rows, columns, norm=0 < i < num)
        for i, (rows, columns) in enumerate(((encoder[-1], "z"), ("z", decoder[0]))):
            table |= {f"Dense_{i}/kernel": (rows, columns), f"Dense_{i}/bias": (columns,)}
        for i, (reads, writes) in enumerate(zip(decoder, [*decoder[1:], None])):
            add(num + 1 + i, reads, writes, norm=writes is not None)
        return table


def _upsampled(x: jax.Array, factor: int) -> jax.Array:
    """[B, H, W, C] -> [B, factor H, factor W, C], bilinear between the centres of pixels."""
    batch, height, width, channels = x.shape
    return jax.image.resize(x, (batch, factor * height, factor * width, channels), "bilinear")
