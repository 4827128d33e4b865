"""p-variation over depth of the networks along a trained curve, or along the segment between two networks.

results/path_variation.npz has "ts" [T], "dl", scores as `profiles` names them, and of each path that layers make
"variation/<layers>" [T, P], rooted, of weights scaled by L^beta.

Reference: Cont et al., Convergence and Implicit Regularization Properties of Gradient Descent for Deep Residual
Networks, 2022, arXiv:2204.07261.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from subspaces_jax import geometry
from subspaces_jax.analysis import paths, variation
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import runs
from subspaces_jax.experiments.runs import Networks, Run
from subspaces_jax.experiments.schema import Field
from subspaces_jax.experiments.studies import depth, members, profiles
from subspaces_jax.networks import axes
from subspaces_jax.plots import regularity as plots
from subspaces_jax.plots import style

FIELDS: dict[str, Field] = profiles.FIELDS | depth.FIELDS


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Of equally spaced points: of one run the curve that it trained, of two networks their segment."""
    opened = members.open_all(settings)
    networks, points = _path(settings, opened)
    made, exponents = opened[0].experiment, depth.exponents(settings)
    measure = variation.OverDepth(
        exponents, depth.beta(settings, made), depth.layers(settings), tuple(axes.table_of(made.model.network).items())
    )
    for name, network in zip(networks.names, geometry.unstack(networks.stack)):
        with depth.of_network(name):
            variation.check_finite(network)
            variation.layer_stacks(network, dict(measure.table), measure.layers)
    arrays = {"ts": np.linspace(0.0, 1.0, settings.num_points)}
    of_params: dict[str, Any] = {"variation": measure}
    arrays |= profiles.scored(settings, opened, networks, points, label="path", of_params=of_params, finite=False)
    arrays["dl"] = paths.point_distances(networks.stack, points)
    found = {name.removeprefix("variation/"): of for name, of in arrays.items() if name.startswith("variation/")}
    return arrays, {
        "members": networks.names,
        "exponents": list(exponents),
        "beta": measure.beta,
        "columns": profiles.columns(made),
        "summary": {name: _summary(values) for name, values in found.items()},
        "title": members.title("path", opened),
    }


def table(facts: dict[str, Any]) -> str:
    """Of each path of layers and exponent the variations of the ends, and the smallest and largest of the path."""
    lines = [
        f"{'rooted p-variation over depth':44}" + "".join(f"{head:>10}" for head in ("start", "end", "min", "max"))
    ]
    for name, of_exponents in facts["summary"].items():
        for p, numbers in zip(facts["exponents"], of_exponents):
            lines.append(f"{f'{name}, p = {p:g}':44}" + "".join(f"{number:10.4f}" for number in numbers))
    return "\n".join(lines)


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """Variations beside the first score."""
    found = {name.removeprefix("variation/"): of for name, of in arrays.items() if name.startswith("variation/")}
    name, text, unit, scale = facts["columns"][0]
    by_split = profiles.by_split(arrays, facts["columns"])
    scores = {style.label(text, unit): {split: scale * of[name] for split, of in by_split.items()}}
    figure = plots.along_path(arrays["ts"], found, facts["exponents"], scores, facts["title"])
    return {"path_variation": figure}


def _path(settings: Any, opened: list[Run]) -> tuple[Networks, Any]:
    """A stack and the coordinates of the points."""
    made = opened[0].experiment
    if len(opened) == 1 and made.is_curve:
        space = made.space
        return runs.networks(opened[0], "knots", step=members.steps_of(settings, 1)[0]), space.grid(settings.num_points)
    networks = members.gathered(settings, opened, members.key_of(settings, "members"))
    if len(networks.names) != 2:
        raise ConfigError(
            f"config.runs and config.members give {len(networks.names)} networks: a path is that of one run of a "
            "curve, or the segment between two networks"
        )
    return networks, geometry.Line().grid(settings.num_points)


def _summary(values: np.ndarray) -> list[list[float]]:
    """[T, P] -> of each exponent start, end, min and max."""
    return [[float(of[0]), float(of[-1]), float(of.min()), float(of.max())] for of in values.T]
