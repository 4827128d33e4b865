"""Scores over a plane of weight space: through three networks, along random directions, or along those of a training.

results/plane.npz has "x" and "y" [G] in units of distance, "grid" [G, G, 2], scores [G, G] as `profiles` names them,
"bend_coordinates" [P, 2] of the networks that the plane was made of, "curve_coordinates" [T, 2] of a curve or a
training projected onto it, and for planes through three networks "alphas" and "betas" [G], x and y over the sides.

References: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026; Li et
al., Visualizing the Loss Landscape of Neural Nets, 2018, arXiv:1712.09913.
"""

from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspaces_jax import geometry
from subspaces_jax.analysis import surfaces
from subspaces_jax.errors import ConfigError, RunDirectoryError
from subspaces_jax.experiments import choices, runs
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.runs import Networks, Run
from subspaces_jax.experiments.schema import Field, anything, at_least
from subspaces_jax.experiments.studies import members, profiles
from subspaces_jax.networks import axes as axis_tables
from subspaces_jax.plots import surfaces as plots

THROUGH = ("networks", "random", "trajectory")
CURVE_POINTS = 61
SCALES = {"tr_loss": (5.0, -5.0), "te_err": (40.0, -1.0)}  # (vmax, log_alpha) of the mode-connectivity paper
FIELDS: dict[str, Field] = profiles.FIELDS | {
    "num_points": Field(21, at_least(2), "of a side of the plane, at least 2"),
    "through": Field(
        "networks",
        lambda value: value in THROUGH,
        "networks: of a curve its ends and bend, or three members, the first two along x; random: directions from one "
        "network; trajectory: principal directions of a run's kept checkpoints",
    ),
    "margins": Field(0.2, lambda value: 0.0 <= value, "around what the plane is made of, in its sides"),
    "extent": Field(1.0, lambda value: 0.0 < value, "of random directions, in their lengths, on each side"),
    "normalise": Field(
        "filter", lambda value: value in geometry.directions.NORMALISATIONS, "random directions: filter, layer or none"
    ),
    "orthogonal": Field(
        False, anything, "whether random directions are orthogonal in each filter, or each layer otherwise"
    ),
}


class Chosen(NamedTuple):
    """A plane, the networks that it is made of, corners of what is to be seen, and what is projected onto it."""

    plane: geometry.Plane
    names: list[str]
    marks: np.ndarray
    corners: np.ndarray
    margins: float
    projected: np.ndarray
    facts: dict[str, Any]


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scores of a grid over the plane, BatchNorm refreshed at each of its points."""
    opened = members.open_all(settings)
    made = opened[0].experiment
    networks, chosen = {"networks": _through, "random": _random, "trajectory": _trajectory}[settings.through](
        settings, opened
    )
    x, y = surfaces.grid(chosen.corners, settings.num_points, chosen.margins)
    points, shape = surfaces.grid_points(chosen.plane, x, y), (len(x), len(y))
    stack = networks._replace(stack=chosen.plane.endpoints)
    if profiles.offers_all_at_once(settings, made):
        scores = profiles.scored_at_once(settings, opened, stack, points)
    else:
        scores = profiles.scored(settings, opened, stack, points, label="plane", finite=False)
    arrays = {name: values.reshape(shape) for name, values in scores.items()}
    arrays |= {"x": x, "y": y, "grid": np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1)}
    arrays |= {"bend_coordinates": chosen.marks, "curve_coordinates": chosen.projected}
    if settings.through == "networks":
        arrays |= {"alphas": x / chosen.plane.length, "betas": y / chosen.plane.height}
    facts = {"members": chosen.names, "columns": profiles.columns(made), "title": members.title("plane", opened)}
    return arrays, facts | {"step": networks.step} | chosen.facts


def table(facts: dict[str, Any]) -> str:
    """What the plane is made of."""
    lines = [f"{m}: {name}" for m, name in enumerate(facts["members"])]
    if "explained" in facts:
        shares = ", ".join(f"{100 * share:.1f} %" for share in facts["explained"])
        lines.append(f"the axes explain {shares} of the training's squared distances")
    return "\n".join(lines)


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """Contours and reliefs: of a classification training loss and test error, else the first score of both splits."""
    panels, axes = _surfaces(arrays, facts), plots.AXES
    if "explained" in facts:
        first, second = (
            f"direction {i + 1} ({100 * share:.0f} %), $L_2$ distance" for i, share in enumerate(facts["explained"])
        )
        axes = (first, second)
    drawn = {
        "contours": plots.contours(
            arrays["x"], arrays["y"], panels, title=facts["title"], axes=axes, **_marks(arrays, facts)
        ),
        "reliefs": plots.reliefs(arrays["x"], arrays["y"], panels, title=facts["title"], axes=axes),
    }
    return {f"plane_{name}": figure for name, figure in drawn.items()}


def panel(axis: Axes, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Contours of the last surface of `figures`, for an overview."""
    surface = _surfaces(arrays, facts)[-1]
    plots.draw(axis, arrays["x"], arrays["y"], surface, num_levels=5, aspect="auto", **_marks(arrays, facts))


def _surfaces(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> list[plots.Surface]:
    columns = {name: (title, unit, scale) for name, title, unit, scale in facts["columns"]}
    first = next(iter(columns))
    wanted = ("tr_loss", "te_err") if "err" in columns else (f"tr_{first}", f"te_{first}")
    panels = []
    for key in wanted:
        if key in arrays and np.isfinite(arrays[key]).any():
            title, unit, scale = columns[key[3:]]
            split = profiles.PREFIXES[key[:2]]
            text = f"{split} {title} ({unit})" if unit else f"{split} {title}"
            vmax, log_alpha = _scales(key, scale * arrays[key]) if "err" in columns else (None, -5.0)
            panels.append(plots.Surface(scale * arrays[key], text, vmax, log_alpha))
    if not panels:
        raise RunDirectoryError("no point of the plane has a finite score: there is nothing to draw")
    return panels


def _marks(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Any]:
    """The networks of the plane, and the curve where there is one."""
    marks, line = arrays["bend_coordinates"], arrays["curve_coordinates"]
    if not len(line):
        return {"networks": marks}
    if facts["config"]["through"] == "trajectory":
        return {"networks": marks, "curve": line, "curve_name": "training"}
    return {"ends": marks[:2], "bends": marks[2:], "curve": line}


def _scales(key: str, values: np.ndarray) -> tuple[float | None, float]:
    """Of the paper where they leave something to see."""
    vmax, log_alpha = SCALES[key]
    lowest = np.min(values, initial=np.inf, where=np.isfinite(values))
    return (vmax, log_alpha) if lowest < 0.9 * vmax else (None, log_alpha)


def _through(settings: Any, opened: list[Run]) -> tuple[Networks, Chosen]:
    """Of a curve its ends and bend, or three members."""
    made, projected = opened[0].experiment, np.zeros((0, 2))
    if len(opened) == 1 and made.is_curve and made.space.num_endpoints > 2:
        networks = runs.networks(opened[0], "knots", step=members.steps_of(settings, 1)[0])
        knots = geometry.unstack(networks.stack)
        at = lambda point: geometry.contract(networks.stack, point)
        bend = knots[1] if len(knots) == 3 else at(made.space.midpoint)
        plane = _plane(knots[0], knots[-1], bend)
        curve = made.space.grid(CURVE_POINTS)
        projected = np.array([plane.project(at(point)) for point in curve])
        names = ["first end", "last end", "bend"]
    else:
        networks = members.gathered(settings, opened, members.key_of(settings, "members"))
        if len(networks.names) != 3:
            raise ConfigError(
                f"config.runs and config.members give {len(networks.names)} networks: a plane goes through three, or "
                "through one run of a curve"
            )
        plane, names = _plane(*geometry.unstack(networks.stack)), networks.names
    corners = np.concatenate([plane.corners, projected])
    return networks, Chosen(plane, names, plane.corners, corners, settings.margins, projected, {})


def _random(settings: Any, opened: list[Run]) -> tuple[Networks, Chosen]:
    """Two random directions from one network."""
    networks = members.gathered(settings, opened, members.key_of(settings, "members"))
    if len(networks.names) != 1:
        raise ConfigError(f"random directions start from one network, config.runs gives {len(networks.names)}")
    (network,) = geometry.unstack(networks.stack)
    key = members.key_of(settings, "directions")
    directions = geometry.random_directions(
        network, key, normalise=settings.normalise, orthogonal=settings.orthogonal, **_leaves(opened[0].experiment)
    )
    plane = geometry.plane_along(network, directions)
    far = settings.extent * np.array([[-plane.length, -plane.height], [plane.length, plane.height]])
    return networks, Chosen(plane, networks.names, np.zeros((1, 2)), far, 0.0, np.zeros((0, 2)), {})


def _leaves(made: Experiment) -> dict[str, Any]:
    """Of a network the leaves that stay as they are, and those that hold several layers."""
    network = made.model.network
    table = axis_tables.table_of(network)
    return {"fixed": getattr(network, "frozen", ()), "layer_stacks": tuple(axis_tables.layer_stacks(table))}


def _trajectory(settings: Any, opened: list[Run]) -> tuple[Networks, Chosen]:
    """The two directions along which the kept checkpoints of a run lie furthest from the last."""
    if len(opened) != 1:
        raise ConfigError(f"a trajectory is that of one run, config.runs names {len(opened)}")
    if settings.steps:
        raise ConfigError("a trajectory goes through all checkpoints that were kept: leave config.steps empty")
    networks, num = runs.networks(opened[0], "snapshots"), opened[0].experiment.num_members
    chosen_members = choices.split(settings.only)
    if num > 1 or chosen_members:
        if len(chosen_members) != 1 or int(chosen_members[0]) >= num:
            raise ConfigError(
                f"{opened[0].folder} has {num} members, and a trajectory is that of one: config.only is "
                f"{settings.only!r}, name one from 0 to {num - 1}"
            )
        rows = slice(int(chosen_members[0]), None, num)  # all members of one step, then those of the next
        stack = jax.tree.map(lambda leaf: leaf[rows], networks.stack)
        networks = networks._replace(stack=stack, names=networks.names[rows])
    try:
        found = geometry.principal_directions(networks.stack)
    except ValueError as error:
        raise ConfigError(f"config.through=trajectory: {error}; keep more checkpoints (keep_every)") from None
    plane = geometry.plane_along(geometry.unstack(networks.stack)[-1], found.directions)
    facts = {"explained": found.explained.tolist()}
    chosen = Chosen(
        plane, networks.names, np.zeros((1, 2)), found.coordinates, settings.margins, found.coordinates, facts
    )
    return networks, chosen


def _plane(first: Any, last: Any, bend: Any) -> geometry.Plane:
    try:
        return geometry.plane_through(first, last, bend)
    except ValueError as error:
        raise ConfigError(f"config.runs: {error}") from None
