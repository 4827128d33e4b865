"""Orientation of the hyperplanes that units cut their inputs with, and how far layers have moved.

A unit's weights are the normal of its hyperplane; of a convolution every position has one, and the normals are shifted
copies of each other. All of them make the same angle with the line of equal inputs {t 1}, so that one number tells how
a filter is oriented: the projection of its weights on the vector of ones. Where it is negative, a move along +1, the
diagonal of the orthant that outputs of ReLU live in, turns the filter off everywhere. Biases, BatchNorm and data do not
enter.

Kernels [H, W, in, out] are convolutions, [in, out] dense layers; others, such as those of attention, do not count, and
so no layer of a stack does: `jax.vmap` of these functions takes stacks, of endpoints or of snapshots.

References: Gamba et al., Hyperplane Arrangements of Trained ConvNets Are Biased, 2020, arXiv:2003.07797; Carlsson,
Geometry of Deep Convolutional Networks, 2019, arXiv:1905.08922.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Float32, Integer, Real

from subspaces_jax import trees
from subspaces_jax.arrays import Array

PyTree = Any
NET = "net"  # all layers' filters together
SMALL = 1e-30  # squared norms above it, and below its inverse, are taken as they are


def orientation(
    params: PyTree,
    normalize: bool = False,
    with_dense: bool = False,
    *,
    with_pointwise: bool = False,
    layers: Sequence[str] | None = None,
) -> dict[str, dict[str, jax.Array]]:
    """Projections of every filter on the vector of ones, by layer.

    rho_n = sum_i w_ni, or with `normalize` the cosine sum_i w_ni / (|w_n| sqrt(d)), over the d = H W C_in weights of
    filter n. Per layer and of all filters together ("net", in which wide layers weigh more): "mean" of rho and "mass",
    the fraction of filters with rho <= 0: 0.5 without bias, 1 where all filters are negative.

    Args:
        params: a parameter tree, leaves [...].
        normalize: whether projections are cosines, in [-1, 1]; "mass" is the same either way. A filter of zeros has
            NaN, and so the mean; NaN is in no mass.
        with_dense: whether dense layers count too, the classifier among them.
        with_pointwise: whether convolutions of 1x1 count too.
        layers: the layers' names in the order of the forward pass, as `networks.axes.layers` gives them; by default
            the order of names, numbers as numbers.

    Returns:
        {layer: {"projections": [N], "mean", "mass"}, "net": {...}}, in that order (`jax.vmap` sorts by name).

    Raises:
        ValueError: no layer that counts, one that is called "net", or `layers` that are not those of the tree.

    Example:
        >>> float(orientation({"Dense_0": {"kernel": jnp.ones((4, 2))}}, True, True)["net"]["mean"])
        1.0
    """
    kernels = counted(params, with_dense, with_pointwise, layers)
    rows = _statistics(list(kernels.values()), normalize)
    return dict(zip((*kernels, NET), rows))


def distance_from_init(
    params: PyTree,
    init_params: PyTree,
    with_dense: bool = False,
    *,
    with_pointwise: bool = False,
    layers: Sequence[str] | None = None,
) -> dict[str, dict[str, jax.Array]]:
    """How far each layer's weights are from their initial values, relative to these: |W - W0|_F / |W0|_F ("l2") and
    max |W - W0| / max |W0| ("linf").

    Args:
        params, with_dense, with_pointwise, layers: as of `orientation`; biases do not count.
        init_params: the same tree before training; a kernel of zeros makes distances infinite, or NaN.

    Returns:
        {layer: {"l2", "linf"}}.

    Raises:
        ValueError: as of `orientation`, or trees that differ (the message lists how).
    """
    if difference := trees.describe_mismatch(init_params, params):
        raise ValueError(f"init_params are of another architecture than params: {difference}")
    kernels, initial = (counted(tree, with_dense, with_pointwise, layers) for tree in (params, init_params))
    return dict(zip(kernels, _distances(list(kernels.values()), list(initial.values()))))


def counted(
    params: PyTree, with_dense: bool = False, with_pointwise: bool = False, layers: Sequence[str] | None = None
) -> dict[str, Any]:
    """{layer: kernel} of the layers that count, in order; arguments and errors as of `orientation`."""
    kernels = {name.rpartition("/")[0] or name: leaf for name, leaf in trees.leaf_names(params).items()
               if trees.is_kernel(name)}  # fmt: skip
    names = sorted(kernels, key=trees.natural) if layers is None else [name for name in layers if name in kernels]
    if missing := [name for name in kernels if name not in names]:
        raise ValueError(f"layers do not name {', '.join(missing)}, of which the tree has kernels")
    if len(set(names)) != len(names):
        raise ValueError(f"layers name one layer twice: {', '.join(names)}")
    found = {name: kernels[name] for name in names if _counts(kernels[name].shape, with_dense, with_pointwise)}
    if not found:
        shapes = ", ".join(f"{name} {tuple(kernels[name].shape)}" for name in names[:4]) or "none"
        raise ValueError(
            f"no layer counts; the tree's kernels are {shapes}: set with_dense or with_pointwise, and take a stack "
            "with jax.vmap"
        )
    if NET in found:
        raise ValueError(f"a layer is called {NET!r}, as are all filters together: rename it")
    return found


def fan_in(kernel: Any) -> int:
    """d, the number of weights of one filter."""
    return int(np.prod(kernel.shape[:-1]))


class Oriented(NamedTuple):
    """`orientation` as a measure of parameters for `evaluation.along`: params -> {"<layer>/mass", ...}, flat.

    Attributes: as the arguments of `orientation`; `layers` as a tuple, so that it is hashable.
    """

    normalize: bool = False
    with_dense: bool = False
    with_pointwise: bool = False
    layers: tuple[str, ...] | None = None

    def __call__(self, params: PyTree) -> dict[str, jax.Array]:
        """Of one network."""
        found = orientation(params, self.normalize, self.with_dense, with_pointwise=self.with_pointwise,
                            layers=self.layers)  # fmt: skip
        return {f"{layer}/{name}": value for layer, row in found.items() for name, value in row.items()}


def mass(projections: Any) -> Any:
    """The fraction of projections [..., N] that are at most 0, NaN being none of them, [...] float64."""
    return np.mean(np.asarray(projections) <= 0, axis=-1)


def bias_score(mass: Any, num_filters: int) -> dict[str, Any]:
    """How far masses are from those of filters without bias, whose signs are fair coins: mass N ~ Binomial(N, 1/2).

    Args:
        mass: [...], fractions.
        num_filters: N.

    Returns:
        {"z": 2 sqrt(N) (mass - 1/2), "p_value": of the exact two-sided test}, [...] float64.
    """
    from scipy.special import bdtr  # takes a quarter of a second to import

    mass = np.asarray(mass, np.float64)
    count = np.round(mass * num_filters)
    fewer = np.minimum(count, num_filters - count)
    p_value = np.minimum(1.0, 2.0 * bdtr(fewer, num_filters, 0.5))
    return {"z": 2.0 * np.sqrt(num_filters) * (mass - 0.5), "p_value": p_value}


def null_quantile(share: Any, fan_in: int) -> Any:
    """Quantiles of the cosine rho of a Gaussian filter of d weights: (1 + rho) / 2 ~ Beta((d - 1) / 2, (d - 1) / 2),
    whose mean is 0 and variance 1 / d.

    Args:
        share: [...], probabilities.
        fan_in: d, at least 2.

    Raises:
        ValueError: d below 2, where the cosine is -1 or 1.
    """
    from scipy.special import betaincinv

    if fan_in < 2:
        raise ValueError(f"the null law takes filters of at least 2 weights, got {fan_in}")
    half = 0.5 * (fan_in - 1)
    return 2.0 * betaincinv(half, half, np.asarray(share, np.float64)) - 1.0


def null_cdf(projections: Any, fan_in: int) -> Any:
    """The cumulative distribution of that law at `projections` [...]; for tests of a layer against it."""
    from scipy.special import betainc

    half = 0.5 * (fan_in - 1)
    return betainc(half, half, np.clip(0.5 * (1.0 + np.asarray(projections, np.float64)), 0.0, 1.0))


def histogram(projections: Real[Array, "*shape N"], edges: Any) -> Integer[np.ndarray, "*shape bins"]:
    """Counts [..., bins] of projections [..., N] between edges [bins + 1], the last bin with both of its ends."""
    values = np.asarray(projections, np.float64)
    rows = [np.histogram(row[np.isfinite(row)], edges)[0] for row in values.reshape(-1, values.shape[-1])]
    return np.stack(rows).reshape(*values.shape[:-1], -1)


def _counts(shape: tuple[int, ...], with_dense: bool, with_pointwise: bool) -> bool:
    if len(shape) == 4:
        return with_pointwise or tuple(shape[:2]) != (1, 1)
    return with_dense and len(shape) == 2


@partial(jax.jit, static_argnames="normalize")
def _statistics(kernels, normalize):
    projections = [_projections(kernel, normalize) for kernel in kernels]
    return [
        {"projections": values, "mean": jnp.mean(values), "mass": jnp.mean((values <= 0).astype(jnp.float32))}
        for values in (*projections, jnp.concatenate(projections))
    ]


def _projections(kernel: Real[Array, "... N"], normalize: bool) -> Float32[jax.Array, " N"]:
    weights = jnp.asarray(kernel, jnp.float32).reshape(-1, kernel.shape[-1])
    if not normalize:
        return jnp.sum(weights, axis=0)
    sums, squares = jnp.sum(weights, axis=0), jnp.sum(weights * weights, axis=0)
    in_range = jnp.all((squares > SMALL) & (squares < 1.0 / SMALL))
    cosines = lax.cond(in_range, lambda w: sums / jnp.sqrt(squares), _scaled_cosines, weights)
    return jnp.clip(cosines * np.float32(weights.shape[0] ** -0.5), -1.0, 1.0)


def _scaled_cosines(weights: Float[jax.Array, "d N"]) -> Float[jax.Array, " N"]:
    """[d, N] -> [N], cosines times sqrt(d); for weights whose squares leave float32's range, in one pass more."""
    weights = weights / jnp.max(jnp.abs(weights), axis=0, keepdims=True)
    return jnp.sum(weights, axis=0) / jnp.linalg.norm(weights, axis=0)


@jax.jit
def _distances(kernels, initial):
    rows = []
    for kernel, start in zip(kernels, initial):
        kernel, start = jnp.asarray(kernel, jnp.float32), jnp.asarray(start, jnp.float32)
        largest = jnp.max(jnp.abs(start))
        moved = (kernel - start) / largest
        l2 = jnp.linalg.norm(jnp.ravel(moved)) / jnp.linalg.norm(jnp.ravel(start / largest))
        rows.append({"l2": l2, "linf": jnp.max(jnp.abs(moved))})
    return rows
