"""Barriers of loss and error on the straight segments between all pairs of networks.

results/barriers.npz has "tr_" and "te_" barriers [M, M] of the scores as `profiles` names them, "distances" [M, M], and
the scores themselves [M, M, T], of the segment from network i to network j.

Reference: Frankle et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis, 2020, arXiv:1912.05671.
"""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from subspaces_jax.analysis import paths
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments.schema import Field, at_least
from subspaces_jax.experiments.studies import members, profiles
from subspaces_jax.plots import barriers as plots
from subspaces_jax.plots import style

FIELDS: dict[str, Field] = profiles.FIELDS | {
    "num_points": Field(11, at_least(3), "of each segment, both ends included, at least 3"),
    "ends": Field("line", lambda value: value in paths.ENDS, "what a barrier rises above: line, or mean of the ends"),
}


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The matrices of barriers, every network scored once and each segment's inner points, BatchNorm refreshed."""
    opened = members.open_all(settings)
    networks = members.gathered(settings, opened, members.key_of(settings, "members"))
    num, made = len(networks.names), opened[0].experiment
    if num < 2:
        raise ConfigError(f"config.runs and config.members give {num} networks, barriers take at least two")
    arrays = between(settings, opened, networks, list(itertools.combinations(range(num), 2)))
    profiles_of = profiles.shown(arrays, made)
    matrices = {f"{name}_barrier": _symmetric(paths.barrier(values, ends=settings.ends), num)
                for name, values in profiles_of.items()}  # fmt: skip
    distances = _symmetric(arrays["distance"], num)
    facts = {
        "members": networks.names,
        "columns": profiles.columns(made),
        "barriers": {name: of.tolist() for name, of in matrices.items()},
        "distances": distances.tolist(),
        "title": members.title("barriers", opened),
    }
    ordered = {name: _both_ways(values, num) for name, values in profiles_of.items()}
    return matrices | ordered | {"distances": distances}, facts


def between(settings: Any, opened: Any, networks: Any, pairs: list[tuple[int, int]]) -> dict[str, np.ndarray]:
    """Scores on the segments between pairs of networks.

    Returns:
        {name: [P, T]} of P pairs, and "distance" [P].
    """
    num, each = len(networks.names), settings.num_points
    shares, eye = jnp.linspace(0.0, 1.0, each)[1:-1, None], jnp.eye(num)
    inner = [(1.0 - shares) * eye[i][None] + shares * eye[j][None] for i, j in pairs]
    scores = profiles.scored(settings, opened, networks, jnp.concatenate([eye, *inner]), label="barriers")
    rows = np.array(
        [[i, *range(num + p * (each - 2), num + (p + 1) * (each - 2)), j] for p, (i, j) in enumerate(pairs)]
    )
    found = {name: values[rows] for name, values in scores.items() if values.ndim == 1}
    there_and_on = paths.point_distances(networks.stack, eye[jnp.array(pairs).reshape(-1)])
    return found | {"distance": there_and_on[1::2]}


def table(facts: dict[str, Any]) -> str:
    """The first matrix of barriers on each split as text."""
    lines = [f"{m}: {name}" for m, name in enumerate(facts["members"])]
    for name, matrix in facts["barriers"].items():
        lines.append(f"{name.replace('_', ' ')}:")
        lines += ["  " + " ".join(f"{value:9.4f}" for value in row) for row in matrix]
    return "\n".join(lines)


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """A heat map of the barriers of each score on each split."""
    drawn, names = {}, [f"{m}" for m in range(len(facts["members"]))]
    for (name, title, unit, scale), (prefix, split) in itertools.product(facts["columns"], profiles.PREFIXES.items()):
        found = facts["barriers"].get(f"{prefix}_{name}_barrier")
        if found is not None:
            values, label = scale * np.asarray(found), style.label(f"barrier of the {split} {title}", unit)
            np.fill_diagonal(values, np.nan)
            drawn[f"barriers_{prefix}_{name}"] = plots.matrix(values, names, label=label, title=facts["title"])
    return drawn


def _symmetric(values: np.ndarray, num: int) -> np.ndarray:
    """Of all pairs i < j in order -> [M, M], zeros on the diagonal."""
    matrix = np.zeros((num, num))
    matrix[np.triu_indices(num, 1)] = values
    return matrix + matrix.T


def _both_ways(values: np.ndarray, num: int) -> np.ndarray:
    """[P, T] -> [M, M, T], from j to i backwards, and the networks themselves on the diagonal."""
    found = np.zeros((num, num, values.shape[-1]))
    for row, (i, j) in zip(values, itertools.combinations(range(num), 2)):
        found[i, j], found[j, i] = row, row[::-1]
        found[i, i], found[j, j] = row[0], row[-1]
    return found
