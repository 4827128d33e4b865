"""Power laws fitted to series of numbers, such as norms of gradients by step, and what is left out before."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Real

from subspaces_jax.arrays import Array

STEPS = 300  # evaluations at most, of a fit
SHIFTS = (0.3, 3.0, 30.0, 300.0)  # that a fit of the shift starts from, beside 1
TOLERANCE = 1e-14  # relative change of the sum of squares, or of the parameters, at which a fit ends
NEAR = 1e-6  # a bound: the method stays within


class PowerLaw(NamedTuple):
    """y = scale / (t + shift)^exponent, with standard errors; each [...], float64.

    Attributes:
        scale, exponent, shift: of least squares.
        scale_error, exponent_error, shift_error: standard errors for independent errors of one variance, from the
            curvature at the solution; 0 for a shift that is given, NaN where there are no more points than parameters.
        r_squared: 1 - sum of squared errors / sum of squared deviations from the mean, at most 1.
        converged: whether steps no longer lower the sum of squares.
        at_bound: whether exponent or shift is at the end of its range, where its standard error means little.
        num_points: that were fitted.
        num_steps: of the best start.
        num_starts: that were tried.
    """

    scale: np.ndarray
    exponent: np.ndarray
    shift: np.ndarray
    scale_error: np.ndarray
    exponent_error: np.ndarray
    shift_error: np.ndarray
    r_squared: np.ndarray
    converged: np.ndarray
    at_bound: np.ndarray
    num_points: np.ndarray
    num_steps: np.ndarray
    num_starts: int

    def __call__(self, t: Real[Array, " n"]) -> Float64[np.ndarray, "... n"]:
        """The law at t [n], [..., n]."""
        t = np.asarray(t, np.float64) + self.shift[..., None]
        return self.scale[..., None] * t ** -self.exponent[..., None]

    def interval(self, level: float = 0.95) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Confidence intervals {"scale", "exponent", "shift": (low, high)}, by Student's t."""
        from scipy.special import stdtrit  # takes a quarter of a second to import

        if not 0 < level < 1:
            raise ValueError(f"a level of confidence is in (0, 1), got {level}")
        free = self.num_points - 2 - np.any(self.shift_error != 0)
        quantile = stdtrit(np.maximum(free, 1), 0.5 + level / 2)
        names = ("scale", "exponent", "shift")
        centres, errors = ([getattr(self, name + end) for name in names] for end in ("", "_error"))
        return {n: (c - quantile * e, c + quantile * e) for n, c, e in zip(names, centres, errors)}

    def describe(self) -> str:
        """How the fits ended, in one line."""
        bad, bound = np.size(self.converged) - np.sum(self.converged), int(np.sum(self.at_bound))
        tried = f"{self.num_starts} starts of at most {STEPS} steps"
        if bad:
            return f"{bad} of {np.size(self.converged)} fits did not converge ({tried}): their numbers mean nothing"
        at_bound = f"; {bound} ended at a bound" if bound else ""
        return f"converged in {int(np.max(self.num_steps))} steps ({tried}){at_bound}"


def fit_power_law(
    t: Array,
    y: Array,
    infer_shift: bool = False,
    where: Array | None = None,
    exponents: tuple[float, float] = (0.0, 10.0),
    shifts: tuple[float, float] | None = None,
) -> PowerLaw:
    """Least squares of y = scale / (t + shift)^exponent within bounds, by `scipy.optimize.least_squares`.

    Values are divided by their largest before, and the scale's logarithm is fitted, so that it may be of any size; a
    fit of the shift starts from several.

    Args:
        t: [n] or [..., n], at least 0.
        y: [..., n], finite and somewhere positive.
        infer_shift: whether the shift is fitted, too; otherwise it is 1.
        where: [..., n], which points count; None for all. Runs of other lengths are padded.
        exponents: lowest and highest exponent.
        shifts: lowest and highest shift; None for 0 (or a thousandth of a step where t has 0) to ten times the
            largest t.

    Returns:
        A `PowerLaw` of [...].

    Raises:
        ValueError: shapes that do not fit, values that are not finite, fewer points than parameters, no positive
            value, or bounds that hold nothing.

    >>> t = np.arange(1.0, 50.0)
    >>> law = fit_power_law(t, 6e-9 / (t + 1) ** 0.6)
    >>> print(f"{law.scale:.2e} {law.exponent:.3f} {law.r_squared:.3f}")
    6.00e-09 0.600 1.000

    Reference: Branch, Coleman and Li, A Subspace, Interior, and Conjugate Gradient Method for Large-Scale
    Bound-Constrained Minimization Problems, 1999, for the method.
    """
    t, y, where = _checked(t, y, where, 2 + infer_shift)
    low = 0.0 if np.min(t) > 0 else 1e-3 * float(np.min(t[t > 0], initial=np.inf if np.any(t > 0) else 1.0))
    shifts = shifts or (low, 10.0 * max(float(np.max(t)), 1.0))
    for name, (lowest, highest) in {"exponents": exponents, "shifts": shifts}.items():
        if not lowest < highest < np.inf:
            raise ValueError(f"{name} are a range (low, high) of finite numbers, got ({lowest}, {highest})")
    if infer_shift and shifts[0] + np.min(t) <= 0:
        raise ValueError(f"t + shift is positive, but t has {np.min(t):g} and shifts begin at {shifts[0]:g}")
    batch = np.broadcast_shapes(t.shape[:-1], y.shape[:-1])
    flat = [np.broadcast_to(of, (*batch, y.shape[-1])).reshape(-1, y.shape[-1]) for of in (t, y, where)]
    lower, upper = np.array([-np.inf, exponents[0], shifts[0]]), np.array([np.inf, exponents[1], shifts[1]])
    starts = np.array((1.0, *SHIFTS)) if infer_shift else np.ones(1)
    starts = np.clip(starts, *shifts) if infer_shift else starts
    fits = [_best(t[w], y[w], starts, lower, upper, infer_shift) for t, y, w in zip(*flat)]
    return PowerLaw._make([*(np.array(of).reshape(batch) for of in zip(*fits)), len(starts)])


def without_period(
    t: Real[np.ndarray, " n"], y: Real[np.ndarray, " n"], period: int
) -> tuple[Real[np.ndarray, " m"], Real[np.ndarray, " m"]]:
    """The points [n] but every `period`-th one, such as the short last batch of each epoch; 0 leaves all.

    Raises:
        ValueError: a period of 1 or below 0, which leaves nothing.
    """
    if period < 0 or period == 1:
        raise ValueError(f"period is 0, for all points, or at least 2, got {period}, which leaves none")
    kept = np.arange(1, len(t) + 1) % period != 0 if period else slice(None)
    return t[kept], y[kept]


def without_extremes(
    t: Real[np.ndarray, " n"], y: Real[np.ndarray, " n"], window: int
) -> tuple[Real[np.ndarray, " m"], Real[np.ndarray, " m"]]:
    """The points [n] but those that are the largest or the smallest of their window; 0 leaves all.

    Windows are floor(n / window) consecutive ones of nearly equal length.

    Raises:
        ValueError: a window of 1 or 2 or below 0, or one that is longer than the series, which leave nothing, or a
            series that is constant within every window.
    """
    if not window:
        return t, y
    if not 3 <= window <= len(y):
        raise ValueError(f"window is 0, for all points, or from 3 to their number {len(y)}, got {window}")
    parts = np.array_split(y, len(y) // window)
    kept = np.concatenate([(part < part.max()) & (part > part.min()) for part in parts])
    if not kept.any():
        raise ValueError(f"the series is constant within every window of {window} points: set window = 0")
    return t[kept], y[kept]


def _checked(t, y, where, num_parameters):
    t, y = np.asarray(t, np.float64), np.asarray(y, np.float64)
    where = np.ones(y.shape, bool) if where is None else np.asarray(where, bool)
    try:
        fits = t.ndim and y.ndim and t.shape[-1] == y.shape[-1] and np.broadcast_shapes(t.shape, y.shape) == y.shape
        fits = fits and where.shape == y.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"expected t [n] or [..., n] and y, where [..., n], got {t.shape}, {y.shape}, {where.shape}")
    t = np.broadcast_to(t, y.shape)
    fewest = np.min(where.sum(axis=-1), initial=y.shape[-1])
    if fewest < num_parameters:
        raise ValueError(f"{num_parameters} parameters need as many points, got {fewest}")
    bad = where & ~(np.isfinite(y) & np.isfinite(t) & (t >= 0))
    if bad.any():
        raise ValueError(f"{int(bad.sum())} points are not finite or have t below 0: leave them out by `where`")
    if not np.all(np.any(where & (y > 0), axis=-1)):
        raise ValueError("a power law is positive, but a series has no positive value")
    return np.where(where, t, np.max(t, initial=1.0, where=where)), y, where


@np.errstate(over="ignore", invalid="ignore")  # of steps too far, which the method takes back
def _best(t, y, starts, lower, upper, infer_shift):
    """What a `PowerLaw` has of one series [n], but for the number of starts: the best fit from all of them."""
    from scipy.optimize import least_squares  # a quarter of a second to import

    unit, free = float(np.max(y)), slice(2 + infer_shift)
    y = y / unit
    middle = np.exp(np.mean(np.log(t + 1)))  # about which the scale is fitted
    fits = []
    for shift in starts:
        theta = lambda moved, shift=shift: (*moved, shift)[:3]
        fits.append(
            least_squares(
                lambda moved: _value(theta(moved), t, middle) - y,
                _start(t, y, middle, shift, lower, upper)[free],
                lambda moved: _jacobian(theta(moved), t, middle)[:, free],
                (lower[free], upper[free]),
                x_scale="jac", ftol=TOLERANCE, xtol=TOLERANCE, gtol=None, max_nfev=STEPS,
            )
        )  # fmt: skip
    best = min(fits, key=lambda fit: fit.cost)
    at_lower = np.isclose(best.x, lower[free], rtol=NEAR, atol=NEAR)
    at_upper = np.isclose(best.x, upper[free], rtol=NEAR, atol=NEAR)
    at_bounds = np.where(at_lower, lower[free], np.where(at_upper, upper[free], best.x))
    cost, (amplitude, exponent, shift) = 2 * best.cost, (*at_bounds, starts[0])[:3]
    # of the logarithm of the scale, which is that of the value at the middle and exponent times log(middle + shift)
    change = np.eye(3)[free, free]
    change[0] = np.array([1.0, np.log(middle + shift), exponent / (middle + shift)])[free]
    num, num_free = len(t), len(best.x)
    variance = np.linalg.pinv(best.jac.T @ best.jac) * (cost / (num - num_free) if num > num_free else np.nan)
    errors = np.zeros(3)
    errors[free] = np.sqrt(np.diagonal(change @ variance @ change.T))
    scale, spread = unit * np.exp(amplitude + exponent * np.log(middle + shift)), np.sum((y - y.mean()) ** 2)
    return (scale, exponent, shift, scale * errors[0], *errors[1:], 1 - cost / spread if spread > 0 else np.nan,
            best.success, bool(np.any(at_lower | at_upper)), num, best.nfev)  # fmt: skip


def _start(t, y, middle, shift, lower, upper):
    """A straight line through the logarithms of what is positive."""
    x, logs = np.log((t + shift) / (middle + shift))[y > 0], np.log(y[y > 0])
    spread = np.sum((x - x.mean()) ** 2)
    slope = np.sum((x - x.mean()) * (logs - logs.mean())) / spread if spread > 0 else 0.0
    exponent = np.clip(-slope, lower[1], upper[1])
    return np.array([logs.mean() + exponent * x.mean(), exponent, shift])


def _value(theta, t, middle):
    amplitude, exponent, shift = theta
    return np.exp(amplitude - exponent * np.log((t + shift) / (middle + shift)))


def _jacobian(theta, t, middle):
    """[n, 3] by the logarithm of the value at the middle, exponent and shift."""
    _, exponent, shift = theta
    x, by_shift = np.log((t + shift) / (middle + shift)), -exponent * (1 / (t + shift) - 1 / (middle + shift))
    return _value(theta, t, middle)[:, None] * np.stack([np.ones_like(x), -x, by_shift], axis=1)
