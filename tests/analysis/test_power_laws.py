"""Fits of power laws against SciPy's, planted answers and simulated intervals; filters of series."""

import warnings

import numpy as np
import pytest
from scipy.optimize import curve_fit

from subspaces_jax.analysis import fit_power_law, power_laws

T = np.arange(1.0, 101.0)


def noisy(scale, exponent, shift=1.0, num=100, seed=0, noise=0.1):
    t = np.arange(1.0, num + 1)
    return scale / (t + shift) ** exponent * (1 + noise * np.random.default_rng(seed).normal(size=num))


def by_scipy(t, y, infer_shift, start):
    """Scale, exponent[, shift] and their standard errors, on values divided by their largest."""
    law = (lambda t, c, r, s: c / (t + s) ** r) if infer_shift else (lambda t, c, r: c / (t + 1) ** r)
    unit = y.max()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, covariance = curve_fit(law, t, y / unit, start, xtol=1e-14, ftol=1e-14, gtol=1e-14, maxfev=20_000)
    errors = np.sqrt(np.diag(covariance))
    return np.append(unit, np.ones(len(found) - 1)) * found, np.append(unit, np.ones(len(found) - 1)) * errors


def test_a_fit_is_that_of_scipy_for_scales_of_any_size():
    scales = np.array([1.0, 7.1e-5, 6e-9, 3e12])
    runs = np.stack([noisy(scale, 0.61, seed=k) for k, scale in enumerate(scales)])
    law = fit_power_law(T, runs)
    assert law.scale.shape == (4,) and law.converged.all() and not law.at_bound.any()
    assert np.all(law.shift == 1) and np.all(law.shift_error == 0) and law.describe().startswith("converged in ")
    for k, run in enumerate(runs):
        found, errors = by_scipy(T, run, False, (1.0, 0.6))
        np.testing.assert_allclose([law.scale[k], law.exponent[k]], found, rtol=1e-6)
        np.testing.assert_allclose([law.scale_error[k], law.exponent_error[k]], errors, rtol=1e-5)
        residuals = run - found[0] / (T + 1) ** found[1]
        expected = 1 - np.sum(residuals**2) / np.sum((run - run.mean()) ** 2)
        np.testing.assert_allclose(law.r_squared[k], expected, rtol=1e-6)
        assert abs(law.exponent[k] - 0.61) < 4 * law.exponent_error[k]
    np.testing.assert_allclose(law(T)[2], law.scale[2] / (T + 1) ** law.exponent[2], rtol=1e-12)


def test_a_shift_is_found_beside_the_others():
    shifts = (1.0, 25.0, 180.0)
    runs = np.stack([noisy(0.05, 1.3, shift, 400, seed=k, noise=0.01) for k, shift in enumerate(shifts)])
    t = np.arange(1.0, 401.0)
    law = fit_power_law(t, runs, infer_shift=True)
    assert law.converged.all()
    for k, shift in enumerate(shifts):
        start = (0.05 / runs[k].max(), 1.3, shift)
        found, errors = by_scipy(t, runs[k], True, start)
        np.testing.assert_allclose([law.scale[k], law.exponent[k], law.shift[k]], found, rtol=2e-3)
        np.testing.assert_allclose([law.exponent_error[k], law.shift_error[k]], errors[1:], rtol=2e-3)
        assert abs(law.shift[k] - shift) < 4 * law.shift_error[k]


def test_exact_laws_are_found_exactly():
    law = fit_power_law(T, 6e-9 / (T + 1) ** 0.61)
    np.testing.assert_allclose([law.scale, law.exponent, law.r_squared], [6e-9, 0.61, 1.0], rtol=1e-9)
    law = fit_power_law(T - 1, 2.0 / (T + 6.5) ** 0.4, infer_shift=True)
    np.testing.assert_allclose([law.scale, law.exponent, law.shift], [2.0, 0.4, 7.5], rtol=1e-5)
    assert law.converged and law.num_points == 100


def test_points_that_do_not_count_change_nothing():
    """A run of 60 points padded to 100; what stands there may be anything."""
    runs = np.stack([noisy(1.0, 0.5, seed=1), np.append(noisy(1.0, 0.5, seed=2)[:60], np.full(40, np.nan))])
    law = fit_power_law(T, runs, where=np.isfinite(runs))
    found, errors = by_scipy(T[:60], runs[1, :60], False, (1.0, 0.5))
    np.testing.assert_allclose([law.scale[1], law.exponent[1]], found, rtol=1e-6)
    np.testing.assert_allclose([law.scale_error[1], law.exponent_error[1]], errors, rtol=1e-5)
    assert law.num_points.tolist() == [100, 60]


def test_intervals_cover_the_planted_exponent_as_often_as_they_say():
    """Of 400 runs with errors of one variance, 95 % +- 4 standard deviations of a binomial."""
    rng = np.random.default_rng(5)
    runs = 1e-4 * (1 / (T + 1) ** 0.6 + 0.01 * rng.normal(size=(400, 100)))
    low, high = fit_power_law(T, runs).interval(0.95)["exponent"]
    covered = np.mean((low < 0.6) & (0.6 < high))
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 400)
    low, high = fit_power_law(T, runs).interval(0.5)["exponent"]
    assert abs(np.mean((low < 0.6) & (0.6 < high)) - 0.5) < 4 * np.sqrt(0.25 / 400)


def test_bounds_hold_and_are_named():
    law = fit_power_law(T, T**0.5)
    assert law.exponent == 0 and law.at_bound and "ended at a bound" in law.describe()
    law = fit_power_law(T, 1 / (T + 1) ** 2.0, exponents=(0.0, 1.5))
    np.testing.assert_allclose(law.exponent, 1.5)
    assert law.r_squared < 1


def test_a_fit_that_is_stopped_says_what_was_tried(monkeypatch):
    monkeypatch.setattr(power_laws, "STEPS", 2)
    law = fit_power_law(T[:90], noisy(1.0, 0.5)[:90], exponents=(0.0, 9.0))
    assert not law.converged
    assert law.describe() == "1 of 1 fits did not converge (1 starts of at most 2 steps): their numbers mean nothing"


@pytest.mark.parametrize(
    "t, y, options, message",
    [
        (T, T[:5], {}, "expected t \\[n\\] or \\[..., n\\] and y, where \\[..., n\\], got \\(100,\\), \\(5,\\)"),
        (T[:1], T[:1], {}, "2 parameters need as many points, got 1"),
        (T[:2], T[:2], {"infer_shift": True}, "3 parameters need as many points, got 2"),
        (T, np.where(T == 3, np.nan, T), {}, "1 points are not finite or have t below 0"),
        (T - 5, T, {}, "4 points are not finite or have t below 0"),
        (T, -T, {}, "a series has no positive value"),
        (T, T, {"exponents": (1.0, 1.0)}, "exponents are a range \\(low, high\\)"),
        (T - 1, T, {"infer_shift": True, "shifts": (0.0, 1.0)}, "t \\+ shift is positive, but t has 0"),
    ],
)
def test_series_without_a_fit_are_refused(t, y, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        fit_power_law(t, y, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num, window, kept", [(100, 5, 60), (103, 5, 63), (6256, 27, 5794), (6, 3, 2)])
def test_extremes_of_windows_are_left_out(num, window, kept):
    y = np.random.default_rng(0).permutation(num).astype(float)
    t, left = power_laws.without_extremes(np.arange(1, num + 1), y, window)
    assert len(left) == len(t) == kept
    np.testing.assert_array_equal(y[t - 1], left)
    first = y[: len(np.array_split(y, num // window)[0])]
    assert not {first.max(), first.min()} & set(left)


def test_every_so_many_points_are_left_out():
    t, y = power_laws.without_period(np.arange(1, 8), np.arange(7.0), 3)
    assert t.tolist() == [1, 2, 4, 5, 7] and y.tolist() == [0, 1, 3, 4, 6]
    assert len(power_laws.without_period(np.arange(6), np.arange(6), 2)[0]) == 3
    assert len(power_laws.without_period(np.arange(6), np.arange(6), 0)[0]) == 6


@pytest.mark.parametrize(
    "left_out, option, message",
    [
        ("without_period", 1, "period is 0, for all points, or at least 2, got 1"),
        *[
            ("without_extremes", w, f"window is 0, for all points, or from 3 to their number 9, got {w}")
            for w in (1, 2)
        ],
        ("without_extremes", 10, "from 3 to their number 9, got 10"),
        ("without_extremes", 3, "the series is constant within every window of 3 points"),
    ],
)
def test_filters_that_leave_nothing_are_named(left_out, option, message):
    with pytest.raises(ValueError, match=message):
        getattr(power_laws, left_out)(np.arange(9), np.repeat(np.arange(3.0), 3), option)


def test_points_that_are_left_out_need_no_place_in_time():
    t = np.arange(200.0)
    y = 3.0 / (t + 1) ** 0.6
    for wrong in (-1.0, np.nan, 1e300):
        masked, where = t.copy(), np.ones((2, 200), bool)
        masked[0], where[:, 0] = wrong, False
        for infer_shift in (False, True):
            found = fit_power_law(masked, np.stack([y, 2 * y]), where=where, infer_shift=infer_shift)
            np.testing.assert_allclose(found.exponent, 0.6, rtol=1e-6)
            np.testing.assert_allclose(found.scale, [3, 6], rtol=1e-5)
