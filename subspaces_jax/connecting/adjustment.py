"""Weight adjustment: kernels fitted to other features than those that they were trained on, by least squares.

A layer that took features F (N examples) and is to take F' instead gets the kernel W' with F' W' ~ F W, of all that fit
best the one of least norm. All it needs of the data are F'^T F' and F'^T F, gathered batch by batch.

Reference: Anokhin and Yarotsky, Low-loss connection of weight vectors: distribution-based approaches, 2020,
arXiv:2008.00741, section 3.
"""

import operator
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Real

from subspaces_jax.arrays import Array
from subspaces_jax.connecting.products import inner_products, on_host

FLOOR = 1e-12  # singular values of 1e-6 of the greatest: below them are rounding errors of float32 features


class Grams(NamedTuple):
    """Sums over examples, float64 on the host.

    Attributes:
        own: F'^T F', [in, in], of the features that are to be taken.
        cross: F'^T F, [in, in], of those with the ones taken before; of a kernel less than half as wide F'^T F W,
            [in, out], which is fewer products.
        sums, sums_before: of F', [in], and of F, [in], or F W, [out].
        count: N.
    """

    own: Float64[np.ndarray, "in in"]
    cross: Float64[np.ndarray, "in before"]
    sums: Float64[np.ndarray, " in"]
    sums_before: Float64[np.ndarray, " before"]
    count: int  # type: ignore[assignment]  # the field hides tuple.count


class Adjusted(NamedTuple):
    """What `solve` finds.

    Attributes:
        kernel: of the shape of the old one.
        bias: [out], None where none was given.
        rank: of the features that are to be taken, at most `size`; where it is less, other kernels fit as well.
        size: their number, 1 more with a bias.
    """

    kernel: Float[jax.Array, "... out"]
    bias: Float[jax.Array, " out"] | None
    rank: int
    size: int


@np.errstate(invalid="ignore", over="ignore")  # refused below
def grams(
    batches: Iterable[tuple[Array, Array]], where: str | None = None, kernel: Float[Array, "*in out"] | None = None
) -> Grams:
    """What weight adjustment needs to know of the data.

    Args:
        batches: (features before [B, in], features to be taken [B, in]), float32; nothing else of them is kept.
        where: as in `products.inner_products`.
        kernel: what took the features before, as `solve` is given it; None where several are to be solved for.

    Raises:
        ValueError: no batch, batches of unlike shapes, or features that are not finite.
    """
    total: Grams | None = None
    for before, taken in batches:
        if np.shape(before) != np.shape(taken):
            raise ValueError(f"features before and after are [B, in], got {np.shape(before)} and {np.shape(taken)}")
        if kernel is not None and on_host(where) and 2 * kernel.shape[-1] < taken.shape[-1] == _num_rows(kernel):
            before = np.asarray(before, np.float64) @ np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
        sums, sums_before = (np.asarray(features).sum(axis=0, dtype=np.float64) for features in (taken, before))
        own, cross = inner_products(taken, taken, where), inner_products(taken, before, where)
        found = Grams(own, cross, sums, sums_before, len(taken))
        total = found if total is None else Grams._make(map(operator.add, total, found))
    if total is None:
        raise ValueError("no batch of features was given to adjust weights on")
    if not np.all(np.isfinite(total.own)) or not np.all(np.isfinite(total.cross)):
        raise ValueError("features are not finite: one of the networks has diverged")
    return total


def solve(
    found: Grams,
    kernel: Float[Array, "*in out"],
    bias: Float[Array, " out"] | None = None,
    *,
    floor: float = FLOOR,
    ridge: float = 0.0,
) -> Adjusted:
    """The kernel that does to the features to be taken what `kernel` did to those before.

    Args:
        found: of the features.
        kernel: [in, out] or [..., out], whose axes before the last are the features'.
        bias: [out]; where it is given, it is fitted too. Else it is left to the caller, and F' W' fits F W alone.
        floor: eigenvalues of F'^T F' of at most this share of the greatest count as 0.
        ridge: what is added to each eigenvalue, in units of their mean; 0 for plain least squares.

    Raises:
        ValueError: a kernel that does not take these features, or a negative floor or ridge.
    """
    size, out = len(found.own), kernel.shape[-1]
    if _num_rows(kernel) != size:
        raise ValueError(f"a kernel of shape {tuple(kernel.shape)} does not take {size} features")
    if floor < 0 or ridge < 0:
        raise ValueError(f"floor and ridge are at least 0, got {floor} and {ridge}")
    own, wanted, sums = found.own, found.cross, found.sums_before
    if wanted.shape[1] == size:
        weights = np.asarray(kernel, np.float64).reshape(size, out)
        wanted, sums = wanted @ weights, sums @ weights
    if bias is not None:
        offset = np.asarray(bias, np.float64)
        own = np.block([[own, found.sums[:, None]], [found.sums[None], np.full((1, 1), float(found.count))]])
        wanted = np.concatenate([wanted + found.sums[:, None] * offset, (sums + found.count * offset)[None]])
    values, vectors = np.linalg.eigh(own)
    kept = values > max(floor, len(values) * np.finfo(np.float64).eps) * values[-1]
    inverse = np.where(kept, 1.0 / (np.where(kept, values, 1.0) + ridge * np.mean(values)), 0.0)
    fitted = vectors @ (inverse[:, None] * (vectors.T @ wanted))
    new_kernel = jnp.asarray(fitted[:size].reshape(kernel.shape), kernel.dtype)
    new_bias = None if bias is None else jnp.asarray(fitted[size], bias.dtype)
    return Adjusted(new_kernel, new_bias, int(np.sum(kept)), len(values))


def adjust_weights(
    kernel: Float[Array, "*in out"],
    features_from: Real[Array, "..."],
    features_to: Real[Array, "..."],
    bias: Float[Array, " out"] | None = None,
    *,
    floor: float = FLOOR,
    ridge: float = 0.0,
    where: str | None = None,
) -> Float[jax.Array, "*in out"] | tuple[Float[jax.Array, "*in out"], Float[jax.Array, " out"] | None]:
    """The kernel of least norm with features_to @ kernel' ~ features_from @ kernel, by least squares.

    Args:
        kernel: [in, out], or [..., out] of a convolution whose patches the features are.
        features_from: [N, in], what the kernel takes.
        features_to: [N, in], what it is to take.
        bias: [out], fitted together with the kernel where it is given.
        floor, ridge: as in `solve`.
        where: as in `products.inner_products`.

    Returns:
        kernel' of the kernel's shape; with a bias (kernel', bias').

    Raises:
        ValueError: features or kernel of shapes that do not fit, or features that are not finite.
    """
    if np.ndim(features_from) != 2 or np.ndim(features_to) != 2:
        raise ValueError(f"expected features [N, in], got {np.shape(features_from)} and {np.shape(features_to)}")
    found = solve(grams([(features_from, features_to)], where, kernel), kernel, bias, floor=floor, ridge=ridge)
    return found.kernel if bias is None else (found.kernel, found.bias)


def _num_rows(kernel: Float[Array, "*in out"]) -> int:
    return int(np.prod(kernel.shape[:-1]))
