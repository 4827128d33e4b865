"""Residual networks of one width and any depth, whose weights are a path over depth.

All blocks are one leaf [L, d, d], passed through by one scan that keeps about sqrt(L) hidden states for the gradient
and computes the others again. Kernels have Flax's layout: blocks/kernel[k] is the transpose of the published W_{k+1},
see `published_weights`.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from subspaces_jax.networks import deep_initialisations
from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.networks.deep_initialisations import INITIALISATIONS
from subspaces_jax.networks.layers import TORCH_UNIFORM

PyTree = Any
Activation = Callable[[jax.Array], jax.Array]

ACTIVATIONS: dict[str, Activation] = {
    "tanh": jnp.tanh,
    "relu": nn.relu,
    "elu": nn.elu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "sigmoid": nn.sigmoid,
}
# (h [..., d], kernel of the block before, kernel [d, d], delta, activation, times: (h, kernel) -> h @ kernel) -> h; the
# first block's "before" is 0
RECURSIONS: dict[str, Callable[..., jax.Array]] = {
    "skip": lambda h, before, kernel, delta, act, times: h + delta * act(times(h, kernel)),
    "none": lambda h, before, kernel, delta, act, times: delta * act(times(h, kernel)),
    "linear_skip": lambda h, before, kernel, delta, act, times: h + times(act(h), kernel),
    "inc_skip": lambda h, before, kernel, delta, act, times: h + times(act(times(h, before)), (kernel - before).mT),
}
UNROLL = 4  # blocks of one iteration of the scan: it is bound by latency, not by arithmetic


class Blocks(nn.Module):
    """The blocks of a `DeepResidual`, whose attributes these are."""

    depth: int
    recursion: str
    activation: str
    initial: Callable[..., jax.Array]
    segment: int

    @nn.compact
    def __call__(self, h: jax.Array, delta: jax.Array) -> jax.Array:
        """h_0 [N, d] -> h_L [N, d]."""
        kernel = self.param("kernel", self.initial, (self.depth, h.shape[-1], h.shape[-1])).astype(h.dtype)
        return flow(h, kernel, delta.astype(h.dtype), self.recursion, self.activation, self.segment)


class DeepResidual(nn.Module):
    """Flatten, a linear map to width d, L residual blocks and a linear map to the outputs, all without biases.

        skip         h_k = h_{k-1} + delta act(W_k h_{k-1})
        none         h_k = delta act(W_k h_{k-1})                     outputs of order L^(-alpha L): 0 for deep ones
        linear_skip  h_k = h_{k-1} + W_k act(h_{k-1})
        inc_skip     h_k = h_{k-1} + (W_k - W_{k-1})^T act(W_{k-1} h_{k-1}),  W_0 = 0

    delta = L^-alpha is a parameter, so that networks of other alpha and one depth are one program; the last two
    recursions do not use it, though alpha is in their initial values. Inputs are flattened in the order H, W, channels,
    where the published code has channels first: the same network, its columns of the readin in another order. Readin
    and readout start uniform within +-1 / sqrt(fan_in) and stay so; delta stays, too, unless it is learned.

    Attributes:
        num_classes: C, or values to predict.
        depth: L, from 1 up.
        width: d, from 1 up.
        alpha: of delta, and of the scale L^(1 - alpha) under which the weights are a path.
        gamma: positive, of the initial values, see `deep_initialisations`: increments of the scaled path are of size
            L^(-1/gamma).
        recursion: a name of RECURSIONS.
        initialisation: of the blocks, a name of INITIALISATIONS.
        activation: a name of ACTIVATIONS.
        learn_delta: whether delta is trained; it then starts at 1, as in the published code.
        segment: blocks between two hidden states that are kept for the gradient, L for all of them; 0 for about
            sqrt(L).
        dtype: dtype of the computation; parameters are float32.

    Reference: Cont, Rossier and Xu, Convergence and Implicit Regularization Properties of Gradient Descent for Deep
    Residual Networks, 2022, arXiv:2204.07261.
    """

    num_classes: int
    depth: int = 10
    width: int = 10
    alpha: float = 0.5
    gamma: float = 0.5
    recursion: str = "skip"
    initialisation: str = "constant"
    activation: str = "tanh"
    learn_delta: bool = False
    segment: int = 0
    dtype: Any = jnp.float32

    initial_options = ("alpha", "gamma", "initialisation")  # that change initial values alone

    def __post_init__(self) -> None:
        for name in ("depth", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is a whole number from 1 up, got {getattr(self, name)}")
        if not self.gamma > 0:
            raise ValueError(f"gamma is positive, got {self.gamma}")
        if self.segment < 0:
            raise ValueError(f"segment is a whole number from 0 up, got {self.segment}")
        for name, known in (
            ("recursion", RECURSIONS),
            ("initialisation", INITIALISATIONS),
            ("activation", ACTIVATIONS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, got {getattr(self, name)!r}")
        super().__post_init__()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """[B, ...] -> outputs [B, C]. `train` changes nothing."""
        x = images.reshape(images.shape[0], -1).astype(self.dtype)
        linear = lambda size, name: nn.Dense(
            size, use_bias=False, kernel_init=TORCH_UNIFORM, dtype=self.dtype, name=name
        )
        first = 1.0 if self.learn_delta else float(self.depth) ** -self.alpha
        delta = self.param("delta", lambda key: jnp.float32(first))
        h = linear(self.width, "readin")(x)
        self.sow("intermediates", "h", h)
        initial = deep_initialisations.blocks(self.initialisation, self.depth, self.alpha, self.gamma)
        h = Blocks(self.depth, self.recursion, self.activation, initial, self.segment, name="blocks")(h, delta)
        self.sow("intermediates", "h", h)
        self.sow("intermediates", "features", h)
        return linear(self.num_classes, "readout")(h)

    @property
    def frozen(self) -> tuple[str, ...]:
        """The leaves that training leaves as they are, see `training.optimizers.freeze_leaves`."""
        return ("readin/kernel", "readout/kernel", *(() if self.learn_delta else ("delta",)))

    def weight_path(self, params: PyTree) -> jax.Array:
        """The scaled weights of all blocks as points, [..., L, d d]: L^(1 - alpha) W_k, of params with leaves [...].

        The factor is L delta where delta stays, so that it is each network's own.
        """
        kernel = jnp.asarray(params["blocks"]["kernel"])
        factor = self.depth ** (1.0 - self.alpha) if self.learn_delta else self.depth * jnp.asarray(params["delta"])
        return kernel.reshape(*kernel.shape[:-2], -1) * jnp.asarray(factor, kernel.dtype)[..., None, None]

    def at_points(self, stack: PyTree, points: jax.Array, images: jax.Array) -> jax.Array:
        """Outputs of many points of a stack of these networks at once, without the weights of any: one pass over the
        blocks for all of them.

        Args:
            stack: leaves [K, ...].
            points: [T, K] coordinates.
            images: [B, ...], as `__call__` takes them.

        Returns:
            [T, B, C], those of `contract(stack, points[t])`.
        """
        x = images.reshape(images.shape[0], -1).astype(self.dtype)
        points = points.astype(self.dtype)
        readin, kernel, readout, delta = (
            stack[name]["kernel"].astype(self.dtype) if name != "delta" else stack[name].astype(self.dtype)
            for name in ("readin", "blocks", "readout", "delta")
        )
        times = (times_weights if jax.default_backend() == "cpu" else times_products)(points)
        act, update = ACTIVATIONS[self.activation], RECURSIONS[self.recursion]
        delta = jnp.einsum("tk,k->t", points, delta, precision="highest")[:, None, None]
        h = jnp.einsum("tk,kbd->tbd", points, jnp.matmul(x, readin), precision="highest")
        pairs = with_before(jnp.swapaxes(kernel, 0, 1))
        h, _ = lax.scan(lambda h, pair: (update(h, *pair, delta, act, times), None), h, pairs, unroll=UNROLL)
        return times(h, readout)

    def unit_axes(self) -> AxisTable:
        """The axis table, see `networks.axes`: all blocks read and write one residual stream."""
        return {
            "readin/kernel": (None, "h"),
            "delta": (),
            "blocks/kernel": (None, "h", "h"),
            "readout/kernel": ("h", None),
        }


def flow(
    h: jax.Array, kernel: jax.Array, delta: jax.Array, recursion: str, activation: str, segment: int = 0
) -> jax.Array:
    """h_0 [N, d] through the blocks kernel [L, d, d], L from 1 up, to h_L [N, d].

    Args:
        h, kernel: kernels in Flax's layout, those that multiply rows from the right.
        delta: scalar.
        recursion, activation: names of RECURSIONS and ACTIVATIONS.
        segment: blocks whose hidden states the gradient computes again together, 0 for about sqrt(L).
    """
    act, update, depth = ACTIVATIONS[activation], RECURSIONS[recursion], len(kernel)
    segment = min(segment or math.isqrt(depth), depth)
    pairs = with_before(kernel) if recursion == "inc_skip" else ((), kernel)
    block = lambda h, pair: (update(h, *pair, delta, act, jnp.matmul), None)
    through = lambda h, blocks: (lax.scan(block, h, blocks, unroll=min(UNROLL, segment))[0], None)
    if segment == depth:
        return through(h, pairs)[0]
    whole = depth // segment * segment
    head = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, segment, *leaf.shape[1:]), pairs)
    h, _ = lax.scan(jax.checkpoint(through), h, head)
    if whole == depth:
        return h
    return jax.checkpoint(through)(h, jax.tree.map(lambda leaf: leaf[whole:], pairs))[0]


def times_products(points: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(h [T, B, d], kernels [K, d, e]) -> sum_k points[t, k] h[t] @ kernels[k], [T, B, e]: by K products of all points'
    rows at once, which suits accelerators."""

    def times(h, kernels):
        products = [(h.reshape(-1, h.shape[-1]) @ kernel).reshape(*h.shape[:2], -1) for kernel in kernels]
        return sum(points[:, k, None, None] * product for k, product in enumerate(products))

    return times


def times_weights(points: jax.Array) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The same by the weights of one block at all points, [T, d, e], and a product a point, which suits a CPU."""
    return lambda h, kernels: jnp.matmul(h, jnp.einsum("tk,kde->tde", points, kernels, precision="highest"))


def with_before(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each block the kernel of the block before it, of the first 0, and its own: both [L, ...]."""
    return jnp.concatenate([jnp.zeros_like(kernel[:1]), kernel[:-1]]), kernel


def published_weights(params: PyTree) -> jax.Array:
    """W_1 ... W_L, [..., L, d, d], as the published code holds them, each of which acts on columns."""
    return jnp.swapaxes(jnp.asarray(params["blocks"]["kernel"]), -1, -2)
