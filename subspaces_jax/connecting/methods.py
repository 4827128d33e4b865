"""Connect methods: from samples of one network's weights to samples of another's, drawn from one distribution.

A method takes two arrays of one shape [n, d], a row a unit, and a share t in [0, 1], and gives n samples. Every method
gives exactly the first array at t = 0 and the second at t = 1. m stands for the mean of all 2n rows, c and s for
cos(pi t / 2) and sin(pi t / 2). Where each row of the second array is independent of its row of the first and both have
the same distribution, arcs keep its covariance at every t, which a line halves midway.

What a method does before it knows t, on the host in float64, is its `prepare`; what is left, `at`, is jitted.

Reference: Anokhin and Yarotsky, Low-loss connection of weight vectors: distribution-based approaches, 2020,
arXiv:2008.00741, section 3 (equations 5 and 6 for the line and the arc).
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from subspaces_jax.arrays import Array
from subspaces_jax.geometry import Arc

State = dict[str, Any]
SMALLEST = 1e-12  # of the greatest eigenvalue: directions of less are not told from rounding


class Method(NamedTuple):
    """A connect method, called with (samples_a [n, d], samples_b [n, d], t) -> [n, d].

    Attributes:
        prepare: (samples_a, samples_b), float64 on the host -> what `at` needs, a dictionary of arrays.
        at: (state, t) -> samples [n, d], for t in (0, 1).
        options: how many principal components, for methods that take `num_components`.
    """

    prepare: Callable[..., State]
    at: Callable[[State, jax.Array], jax.Array]
    options: tuple = ()

    def __call__(self, samples_a: Array, samples_b: Array, t: jax.Array) -> jax.Array:
        if np.ndim(samples_a) != 2 or np.shape(samples_a) != np.shape(samples_b):
            shapes = f"{np.shape(samples_a)} and {np.shape(samples_b)}"
            raise ValueError(f"expected samples [n, d] of two networks, got shapes {shapes}")
        if not 0 <= t <= 1:
            raise ValueError(f"t lies in [0, 1], got {t}")
        return _point(self, self.state(samples_a, samples_b), np.float32(t))

    def state(self, samples_a: Array, samples_b: Array) -> State:
        """What is known of two sets of samples before t is: with "a" and "b" themselves."""
        a, b = (np.asarray(samples, np.float64) for samples in (samples_a, samples_b))
        prepared = {name: np.asarray(value, np.float32) for name, value in self.prepare(a, b, *self.options).items()}
        between = lambda samples: None if jnp.issubdtype(jnp.result_type(samples), jnp.floating) else jnp.float32
        own = {"a": samples_a, "b": samples_b}
        return prepared | {name: jnp.asarray(samples, between(samples)) for name, samples in own.items()}

    def point(self, state: State, t: jax.Array) -> jax.Array:
        """The samples [n, d] at t in [0, 1], exact at the ends; jittable."""
        between = self.at(state, jnp.asarray(t, jnp.float32)).astype(state["a"].dtype)
        return jnp.where(t <= 0, state["a"], jnp.where(t >= 1, state["b"], between))

    def with_components(self, num: int | None) -> "Method":
        """The method with a number of principal components, None for all.

        Raises:
            ValueError: a method without components, or fewer than 1.
        """
        if not self.options:
            raise ValueError("this method takes no principal components; arc_pca and inverse_cdf_pca do")
        if num is not None and num < 1:
            raise ValueError(f"a method has at least 1 principal component, got {num}")
        return self._replace(options=(num,))


@partial(jax.jit, static_argnums=0)
def _point(method, state, t):
    return method.point(state, t)


def _no_state(a, b):
    return {}


def _linear(state, t):
    return (1.0 - t) * state["a"] + t * state["b"]


def _mean(a, b):
    return {"mean": _centre(a, b)}


def _arc(state, t):
    """m + c (a - m) + s (b - m)."""
    cosine, sine, rest = Arc().coordinates(t)
    return cosine * state["a"] + sine * state["b"] + rest * state["mean"]


def _arc_without_mean(state, t):
    cosine, sine, _ = Arc().coordinates(t)
    return cosine * state["a"] + sine * state["b"]


def _principal(a, b, num):
    """Coordinates of both along the principal components of the pooled samples, and what lies outside of them."""
    mean = _centre(a, b)
    _, _, components = np.linalg.svd(np.concatenate([a, b]) - mean, full_matrices=False)
    components = components[:num]
    inner = [(samples - mean) @ components.T for samples in (a, b)]
    rest = [samples - mean - coordinates @ components for samples, coordinates in zip((a, b), inner)]
    return inner, rest, {"components": components, "mean": mean}


def _arc_pca_state(a, b, num):
    (inner_a, inner_b), (rest_a, rest_b), state = _principal(a, b, num)
    return state | {"inner_a": inner_a, "inner_b": inner_b, "rest_a": rest_a, "rest_b": rest_b}


def _arc_pca(state, t):
    cosine, sine, _ = Arc().coordinates(t)
    return _of_components(state, cosine * state["inner_a"] + sine * state["inner_b"], t)


def _of_components(state, coordinates, t):
    back = jnp.einsum("nk,kd->nd", coordinates, state["components"], precision="highest")
    return back + state["mean"] + (1.0 - t) * state["rest_a"] + t * state["rest_b"]


def _normal_scores(a, b):
    """Normal quantiles of both, coordinate by coordinate, by the distribution function of the pooled samples.

    The i-th of 2n order statistics has the probability (i - 1/2) / 2n, equal ones that of their mean rank.
    """
    from scipy.special import ndtri
    from scipy.stats import rankdata  # takes half a second to import

    pooled = np.concatenate([a, b])
    scores = ndtri((rankdata(pooled, axis=0) - 0.5) / len(pooled))
    return {"scores_a": scores[: len(a)], "scores_b": scores[len(a) :], "sorted": np.sort(pooled, axis=0)}


def _inverse_cdf(state, t):
    """The arc between normal scores, back through the pooled samples, linear between their order statistics."""
    cosine, sine, _ = Arc().coordinates(t)
    pooled = state["sorted"]
    ranks = norm.cdf(cosine * state["scores_a"] + sine * state["scores_b"]) * len(pooled) - 0.5
    ranks = jnp.clip(ranks, 0.0, len(pooled) - 1.0)
    below = jnp.minimum(jnp.floor(ranks).astype(jnp.int32), max(len(pooled) - 2, 0))
    low, high = (jnp.take_along_axis(pooled, index, axis=0) for index in (below, below + 1))
    return low + (ranks - below) * (high - low)


def _inverse_pca_state(a, b, num):
    (inner_a, inner_b), (rest_a, rest_b), state = _principal(a, b, num)
    return state | _normal_scores(inner_a, inner_b) | {"rest_a": rest_a, "rest_b": rest_b}


def _inverse_pca(state, t):
    return _of_components(state, _inverse_cdf(state, t), t)


def _diagonal_state(a, b):
    """Coordinates in which the covariance of a is 1 and that of b diagonal, in the span of all samples.

    Directions in which a does not vary are given its smallest variance that is told from rounding.
    """
    mean = _centre(a, b)
    _, sizes, components = np.linalg.svd(np.concatenate([a, b]) - mean, full_matrices=False)
    components = components[: max(1, np.sum(sizes > np.sqrt(SMALLEST) * sizes[0]))]
    inner = [(samples - mean) @ components.T for samples in (a, b)]
    covariances = [np.atleast_2d(np.cov(coordinates, rowvar=False, bias=True)) for coordinates in inner]
    values, vectors = np.linalg.eigh(covariances[0])
    scale = max(values[-1], sizes[0] ** 2 / len(a), np.finfo(np.float64).tiny)  # of one sample the variance is 0
    roots = np.sqrt(np.maximum(values, SMALLEST * scale))
    whiten = vectors / roots
    _, turn = np.linalg.eigh(whiten.T @ covariances[1] @ whiten)
    back = (turn.T * roots) @ vectors.T @ components
    scores = _normal_scores(*(coordinates @ whiten @ turn for coordinates in inner))
    return scores | {"back": back, "mean": mean}


def _diagonal(state, t):
    return jnp.einsum("nk,kd->nd", _inverse_cdf(state, t), state["back"], precision="highest") + state["mean"]


def _centre(a, b):
    return np.mean(np.concatenate([a, b]), axis=0, keepdims=True)


METHODS: dict[str, Method] = {
    "linear": Method(_no_state, _linear),  # (1 - t) a + t b
    "arc": Method(_mean, _arc),  # m + c (a - m) + s (b - m)
    "arc_without_mean": Method(_no_state, _arc_without_mean),  # c a + s b
    "arc_pca": Method(_arc_pca_state, _arc_pca, (None,)),  # the arc in principal components, linear outside of them
    "inverse_cdf": Method(_normal_scores, _inverse_cdf),  # the arc of each coordinate's normal scores
    "inverse_cdf_pca": Method(_inverse_pca_state, _inverse_pca, (None,)),  # the same of principal components
    "simultaneous_diagonalisation": Method(_diagonal_state, _diagonal),  # inverse CDF where both are diagonal
}
REFERENCE_NAMES = {  # of the paper's code
    "lin_connect": "linear",
    "lin_mean_connect": "linear",
    "arc_connect": "arc",
    "arc_connect_nomean": "arc_without_mean",
    "arc_connect_PCA": "arc_pca",
    "inverse_connect": "inverse_cdf",
    "inverse_connect_PCA": "inverse_cdf_pca",
    "simul_diag_connect": "simultaneous_diagonalisation",
}


def by_name(name: str, num_components: int | None = None) -> Method:
    """The method of a name of METHODS or of the paper's code.

    Raises:
        ValueError: unknown, or components of a method that has none.
    """
    found = METHODS.get(REFERENCE_NAMES.get(name, name))
    if found is None:
        raise ValueError(f"there is no connect method {name!r}: one of {', '.join(METHODS)}")
    return found if num_components is None else found.with_components(num_components)


linear, arc, arc_without_mean, arc_pca, inverse_cdf, inverse_cdf_pca, simultaneous_diagonalisation = METHODS.values()
