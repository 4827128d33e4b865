"""Inner products of many float32 vectors with the digits of float64.

On a CPU they are float64 products of NumPy. On an accelerator without fast float64 each factor is split in four slices
of 8 bits, whose products and their sums over 256 rows are whole multiples of one unit and fit in a float32's 24 bits:
they are exact in whatever order the device adds them, and even where it rounds factors to bfloat16 or TF32. What is
summed further is kept as a pair of float32 numbers.

Reference: Ozaki et al., Error-free transformations of matrix multiplication by using fast routines of matrix
multiplication and its applications, 2012.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Float32, Float64, Real

from subspaces_jax.arrays import Array

BITS, SLICES, ROWS = 8, 4, 256  # 2 * 8 bits and log2(256) make 24
SMALLEST = -90  # exponent of the smallest column that keeps all its digits


class Pair(NamedTuple):
    """A sum of two float32 arrays of the same shape, `low` the rounding error of `high`."""

    high: jax.Array
    low: jax.Array


@np.errstate(invalid="ignore", over="ignore")  # of numbers that are not finite, whose sums are the caller's to judge
def inner_products(
    a: Real[Array, "..."], b: Real[Array, "..."], where: str | None = None
) -> Float64[np.ndarray, "n m"]:
    """a^T b in float64, on the host.

    Args:
        a: [N, n], float32 or float64.
        b: [N, m].
        where: "host" for NumPy's float64, "device" for split float32; None for the host where the device is a CPU.

    Returns:
        [n, m] float64. "device" errs by at most about 2^-32 of the product of the two columns' largest entries a row.

    Raises:
        ValueError: another number of rows, or another `where`.
    """
    host = on_host(where)
    if np.ndim(a) != 2 or np.ndim(b) != 2 or a.shape[0] != b.shape[0]:
        raise ValueError(f"expected arrays [N, n] and [N, m], got shapes {np.shape(a)} and {np.shape(b)}")
    if host:
        left = np.asarray(a, np.float64)
        return left.T @ (left if a is b else np.asarray(b, np.float64))  # of one array BLAS takes half of the products
    found = _split_products(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    return np.asarray(found.high, np.float64) + np.asarray(found.low, np.float64)


def on_host(where: str | None) -> bool:
    """Whether products are NumPy's float64, see `inner_products`."""
    where = where or ("host" if jax.default_backend() == "cpu" else "device")
    if where not in ("host", "device"):
        raise ValueError(f"where is 'host' or 'device', got {where!r}")
    return where == "host"


@jax.jit
def _split_products(a: Float32[jax.Array, "N n"], b: Float32[jax.Array, "N m"]) -> Pair:
    zero = jnp.zeros((a.shape[1], b.shape[1]), jnp.float32)

    def add_rows(total, rows):
        return _added(total, *rows), None

    blocks = lambda x: jnp.pad(x, ((0, -x.shape[0] % ROWS), (0, 0))).reshape(-1, ROWS, x.shape[1])
    return lax.scan(add_rows, Pair(zero, zero), (blocks(a), blocks(b)))[0]


def _added(total: Pair, a: jax.Array, b: jax.Array) -> Pair:
    """The sum and a^T b of up to 256 rows."""
    product = partial(jnp.einsum, "ij,ik->jk", precision="highest")
    slices_a, slices_b = _slices(a), _slices(b)
    for order in reversed(range(SLICES + 1)):  # the smallest first; what is left out lies below float32's own digits
        for i in range(max(0, order - SLICES + 1), min(order, SLICES - 1) + 1):
            total = _sum(total, product(slices_a[i], slices_b[order - i]))
    return total


def _slices(x: Float32[jax.Array, "N n"]) -> list[Float[jax.Array, "N n"]]:
    """[N, n] -> slices whose sum it is to 32 bits of each column's largest entry; each of up to 8 bits and a sign."""
    _, exponent = jnp.frexp(jnp.max(jnp.abs(x), axis=0, keepdims=True))
    exponent, slices = jnp.maximum(exponent, SMALLEST), []
    for i in range(1, SLICES + 1):
        unit = jnp.ldexp(jnp.float32(1.0), exponent - BITS * i)
        slices.append(jnp.round(x / unit) * unit)
        x = x - slices[-1]
    return slices


def _sum(total: Pair, x: jax.Array) -> Pair:
    """Knuth's error-free sum: high + low is exact but for the rounding of `low`."""
    high = total.high + x
    back = high - total.high
    return Pair(high, total.low + ((total.high - (high - back)) + (x - back)))
