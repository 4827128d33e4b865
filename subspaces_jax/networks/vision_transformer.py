"""A small vision transformer: attention and LayerNorm instead of convolutions and BatchNorm."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.layers import convolution


class VisionTransformer(nn.Module):
    """Patches, learned positions, pre-LayerNorm blocks of attention and MLP, mean over patches, linear classifier.

    Features are the mean over patches after the last LayerNorm, [B, width].

    Attributes:
        num_classes: C.
        patch: height and width of a patch; it divides those of the images.
        width: of the residual stream.
        depth: blocks.
        num_heads: of attention; it divides `width`.
        dropout: rate, in [0, 1), of both branches in training.
        dtype: dtype of the computation; parameters are float32.

    Reference: Dosovitskiy et al., An Image is Worth 16x16 Words, 2020, arXiv:2010.11929.
    """

    num_classes: int
    patch: int = 4
    width: int = 64
    depth: int = 4
    num_heads: int = 4
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, H, W, channels] -> logits [B, C]; `train` turns dropout on."""
        batch, height, width, _ = images.shape
        if height % self.patch or width % self.patch:
            raise ValueError(f"patches of {self.patch} do not divide images of {height} x {width}: choose a divisor")
        if self.width % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide a width of {self.width}: choose a divisor")
        size = (self.patch, self.patch)
        embed = nn.Conv(self.width, size, size, "VALID", dtype=self.dtype, conv_general_dilated=convolution)
        x = embed(images.astype(self.dtype)).reshape(batch, -1, self.width)
        x += self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(self.dtype)
        drop = nn.Dropout(self.dropout, deterministic=not train)
        for i in range(self.depth):
            attention = nn.MultiHeadDotProductAttention(
                self.num_heads, dtype=self.dtype, attention_fn=self._attention(i), name=f"attention_{i}"
            )
            x += drop(attention(self._sown("stream", nn.LayerNorm(dtype=self.dtype)(x))))
            normed = self._sown("stream", nn.LayerNorm(dtype=self.dtype)(x))
            hidden = nn.gelu(nn.Dense(4 * self.width, dtype=self.dtype, name=f"up_{i}")(normed))
            x += drop(nn.Dense(self.width, dtype=self.dtype, name=f"down_{i}")(self._sown(f"h{i}", hidden)))
        x = self._sown("stream", jnp.mean(nn.LayerNorm(dtype=self.dtype)(x), axis=1))
        self.sow("intermediates", "features", x)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="classifier")(x)

    def _sown(self, unit: str, x: jax.Array) -> jax.Array:
        self.sow("intermediates", unit, x)
        return x

    def _attention(self, block: int) -> Callable[..., jax.Array]:
        """Flax's own attention, which sows queries, keys and what the heads give, [B, patches, heads, places] each."""

        @functools.wraps(nn.dot_product_attention)  # Flax passes the options that the signature has
        def attention(query, key, value, **options):
            self._sown(f"qk{block}", query)
            self._sown(f"qk{block}", key)
            return self._sown(f"v{block}", nn.dot_product_attention(query, key, value, **options))

        return attention

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`: the stream, and per block the MLP's units and the places within a head,
        which all heads permute alike ("qk": of queries and keys)."""
        norm = lambda number: {f"LayerNorm_{number}/{name}": ("stream",) for name in ("scale", "bias")}
        table: AxisTable = {
            "Conv_0/kernel": (None, None, None, "stream"),
            "Conv_0/bias": ("stream",),
            "positions": (None, None, "stream"),
        }
        for i in range(self.depth):
            table |= norm(2 * i)
            for name, places in (("query", f"qk{i}"), ("key", f"qk{i}"), ("value", f"v{i}")):
                table[f"attention_{i}/{name}/kernel"] = ("stream", None, places)
                table[f"attention_{i}/{name}/bias"] = (None, places)
            table |= {f"attention_{i}/out/kernel": (None, f"v{i}", "stream"), f"attention_{i}/out/bias": ("stream",)}
            table |= norm(2 * i + 1)
            table |= {f"up_{i}/kernel": ("stream", f"h{i}"), f"up_{i}/bias": (f"h{i}",)}
            table |= {f"down_{i}/kernel": (f"h{i}", "stream"), f"down_{i}/bias": ("stream",)}
        return table | norm(2 * self.depth) | {"classifier/kernel": ("stream", None), "classifier/bias": (None,)}
