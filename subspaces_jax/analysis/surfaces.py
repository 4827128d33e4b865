"""Surfaces over a plane of weight space: where to evaluate it, and at which levels to draw its contours."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Real

from subspaces_jax.arrays import Array
from subspaces_jax.geometry import Plane


def grid(
    corners: Any, num: int = 21, margins: float | Sequence[float] = 0.2
) -> tuple[Float[np.ndarray, " {num}"], Float[np.ndarray, " {num}"]]:
    """A regular grid over the box of some points of a plane, with margins around it.

    For a plane through three networks of which the third projects between the first two, this is the grid of the
    mode-connectivity paper; where it does not, that of the paper's code leaves the third point out.

    Args:
        corners: [P, 2] x and y, those of `Plane.corners` for example.
        num: G, points a side.
        margins: fractions of the box's sides, at least 0: one for all, or (left, right, bottom, top).

    Returns:
        x [G] and y [G], L2 distances in weight space.

    Raises:
        ValueError: points that span no box, fewer than 2 points a side, or margins of another form.

    Reference: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026.
    """
    places = np.asarray(corners, np.float64)
    if places.ndim != 2 or places.shape[1] != 2:
        raise ValueError(f"expected corners [P, 2], got shape {places.shape}")
    low, high = places.min(axis=0), places.max(axis=0)
    if not np.all(high > low):
        raise ValueError(f"the corners span no box: x and y go from {low.tolist()} to {high.tolist()}")
    if num < 2:
        raise ValueError(f"a grid has at least 2 points a side, got num = {num}")
    sides = np.asarray(margins, np.float64)
    if sides.shape not in ((), (4,)) or not np.all(sides >= 0):
        raise ValueError(f"margins are a fraction of at least 0, or four (left, right, bottom, top), got {margins}")
    left, right, bottom, top = np.broadcast_to(sides, 4)
    width, height = high - low
    x = np.linspace(low[0] - left * width, high[0] + right * width, num)
    return x, np.linspace(low[1] - bottom * height, high[1] + top * height, num)


def grid_points(plane: Plane, x: Real[Array, " num_x"], y: Real[Array, " num_y"]) -> Float[jax.Array, "_ 3"]:
    """Coordinates [X Y, 3] of all points of a grid, to contract `plane.endpoints` with.

    Of what is measured at them, `values.reshape(X, Y)[i, j]` is that at (x[i], y[j]).
    """
    both = np.meshgrid(np.asarray(x), np.asarray(y), indexing="ij")
    return plane.coordinates(*(jnp.asarray(of.ravel(), jnp.float32) for of in both))


def levels(
    values: Real[Array, "..."], vmax: float | None = None, log_alpha: float = -5.0, num: int = 7
) -> Float[np.ndarray, " {num}+1"]:
    """Contour levels whose distances from the lowest value grow geometrically, from exp(log_alpha) to the whole range.

    level_k = min + exp(log_alpha + k (ln(max - min) - log_alpha) / num), k = 0 ... num, with the first replaced by min.
    What is higher than the last level belongs to one band more.

    Args:
        values: of a surface, any shape; those that are not finite do not count.
        vmax: values are clipped to it; None for the largest.
        log_alpha: the logarithm of the smallest distance, in units of the values: -5 for a loss in nats, -1 for an
            error in percent. Where the range is no larger than exp(log_alpha), levels are equally spaced.
        num: bands between the lowest value and the highest.

    Returns:
        [num + 1], strictly increasing; around a constant surface a narrow band.

    Raises:
        ValueError: no finite value, `vmax` below all of them, or no bands.

    Reference: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026,
    figure 1, where (vmax, log_alpha) is (5, -5) for the training loss and (40, -1) for the test error.
    """
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    if not finite.size or num < 1:
        raise ValueError(f"expected finite values and at least 1 band, got {finite.size} values and num = {num}")
    low, high = float(finite.min()), float(finite.max())
    if vmax is not None and vmax <= low < high:
        raise ValueError(f"vmax = {vmax:g} is not above the lowest value, {low:g}; give a larger one or None")
    high = high if vmax is None else min(high, vmax)
    if high - low <= 1e-9 * abs(low):
        return np.linspace(low, low + (1e-6 * abs(low) or 1e-6), num + 1)
    log_range = np.log(high - low)
    if log_range <= log_alpha:
        return np.linspace(low, high, num + 1)
    found = low + np.exp(np.linspace(log_alpha, log_range, num + 1))
    found[0], found[-1] = low, high
    return found if np.all(np.diff(found) > 0) else np.linspace(low, high, num + 1)  # the first are lost to rounding
