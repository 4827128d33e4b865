"""How a logged number falls with time: y = scale / (t + shift)^exponent for each of several runs, side by side.

results/power_law.npz has "t", "values", "kept" (whether a point was fitted) and "law" (its fit), each [R, n] with NaN
where a run is shorter.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from subspaces_jax import records
from subspaces_jax.analysis import power_laws
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import choices, runs
from subspaces_jax.experiments.schema import Field, anything, at_least
from subspaces_jax.plots import power_laws as drawn

FIELDS: dict[str, Field] = {
    "runs": Field("", anything, "run directories, or folders or files of TensorBoard events, with commas"),
    "series": Field("gradient_norm", bool, "the name of the number, as in metrics.jsonl"),
    "period": Field(0, at_least(0), "every so many-th point is left out; 0 for none"),
    "window": Field(
        0,
        at_least(0),
        "the largest and the smallest of so many points are left out; 0 for none",
    ),
    "scaling": Field(1.0, lambda value: 0 < value < np.inf, "units of t a step: 1 / steps of an epoch for epochs"),
    "infer_shift": Field(False, anything, "whether the shift is fitted; otherwise it is 1"),
    "level": Field(0.95, lambda value: 0 < value < 1, "of confidence intervals, in (0, 1)"),
}
PARAMETERS = ("scale", "exponent", "shift")
COLUMNS = (*PARAMETERS, *(f"{name}_error" for name in PARAMETERS), "r_squared", "converged", "at_bound")


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The points of every run and their law.

    Returns:
        Arrays as above. Facts: "names"; "fits", for each run what `analysis.power_laws.PowerLaw` says of it with
        "num_points" and "interval" {parameter: [low, high]}; "status", how the fits ended; "series", "level", "title".

    Raises:
        ConfigError: no run, or filters that leave nothing.
    """
    names = choices.split(settings.runs)
    if not names:
        raise ConfigError("config.runs names no run: set config.runs=DIR")
    points = [_points(settings, name) for name in names]
    longest = max(len(t) for t, _, _ in points)
    t, values, kept = (np.stack([_padded(of[i], longest) for of in points]) for i in range(3))
    kept = kept == 1
    try:
        law = power_laws.fit_power_law(np.where(kept, t, 1.0), values, settings.infer_shift, kept)
    except ValueError as error:
        raise ConfigError(f"config.series {settings.series!r} of {settings.runs} has no law: {error}") from None
    intervals = law.interval(settings.level)
    fits = [
        {column: getattr(law, column)[k].item() for column in (*COLUMNS, "num_points")}
        | {"interval": {name: [float(end[k]) for end in ends] for name, ends in intervals.items()}}
        for k in range(len(names))
    ]
    arrays = {"t": t, "values": values, "kept": kept, "law": np.stack([_law(fit, of) for fit, of in zip(fits, t)])}
    names = runs.told_apart(names)
    facts = {"names": names, "fits": fits, "status": law.describe(), "series": settings.series}
    return arrays, facts | {"level": settings.level, "title": f"{settings.series} of {', '.join(names)}"}


def table(facts: dict[str, Any]) -> str:
    """The law of each run, its parameters with standard errors."""
    lines = [f"{'run':32}{'points':>8}" + "".join(f"{name:>24}" for name in PARAMETERS) + f"{'R^2':>8}"]
    for name, fit in zip(facts["names"], facts["fits"]):
        cells = (f"{fit[of]:.4g} ± {fit[of + '_error']:.2g}" for of in PARAMETERS)
        numbers = "".join(f"{cell:>24}" for cell in cells) + f"{fit['r_squared']:8.4f}"
        lines.append(f"{name:32}{fit['num_points']:8d}{numbers}{'' if fit['converged'] else '  not converged'}")
    return "\n".join([*lines, facts["status"]])


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """Points and laws on logarithmic axes."""
    return {"power_law": drawn.laws(arrays, facts["fits"], facts["names"], facts["series"], facts["title"])}


def _points(settings, name):
    """t, values and whether a point is fitted, as 1 or 0; each [n]."""
    steps, values = records.read_series(name, settings.series)
    t, index = steps * settings.scaling, np.arange(len(steps))
    left = np.isfinite(values) & (t >= 0)
    try:
        chosen, of_chosen = power_laws.without_period(index[left], values[left], settings.period)
        chosen, _ = power_laws.without_extremes(chosen, of_chosen, settings.window)
    except ValueError as error:
        raise ConfigError(f"config.runs has {name}, of which {settings.series!r} cannot be filtered: {error}") from None
    return t, values, np.isin(index, chosen).astype(float)


def _padded(values, num):
    return np.append(values, np.full(num - len(values), np.nan))


def _law(fit, t):
    with np.errstate(invalid="ignore", divide="ignore"):
        return fit["scale"] * (t + fit["shift"]) ** -fit["exponent"]
