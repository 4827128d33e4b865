"""The polygonal chain through any number of networks: scores along straight segments from each to the next.

results/chain.npz has "ts" in [0, K - 1], a knot at each whole number, "dl", and scores as `profiles` names them.

Reference: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from subspaces_jax import geometry
from subspaces_jax.analysis import paths
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments.schema import Field, at_least
from subspaces_jax.experiments.studies import members, profiles
from subspaces_jax.plots import curves

FIELDS: dict[str, Field] = profiles.FIELDS | {
    "num_points": Field(6, at_least(2), "of each segment, both ends included, at least 2"),
}


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scores of the points of all segments, knots counted once, BatchNorm refreshed at each."""
    opened = members.open_all(settings)
    networks = members.gathered(settings, opened, members.key_of(settings, "members"))
    num, each = len(networks.names), settings.num_points
    if num < 2:
        raise ConfigError(f"config.runs and config.members give {num} networks, a chain takes at least two")
    total = (each - 1) * (num - 1) + 1
    points = geometry.Chain(num).grid(total)
    arrays = {"ts": np.linspace(0.0, num - 1.0, total)}
    arrays |= profiles.scored(settings, opened, networks, points, label="chain")
    arrays["dl"] = paths.point_distances(networks.stack, points)
    arrays |= profiles.statistics(arrays["dl"], arrays)
    segments = [slice(k * (each - 1), (k + 1) * (each - 1) + 1) for k in range(num - 1)]
    made = opened[0].experiment
    facts = {
        "members": networks.names,
        "columns": profiles.columns(made),
        "lengths": [float(np.sum(arrays["dl"][rows][1:])) for rows in segments],
        "barriers": [profiles.barriers({k: v[rows] for k, v in arrays.items() if np.ndim(v)}, made)
                     for rows in segments],
        "title": members.title("chain", opened),
    }  # fmt: skip
    return arrays, facts


def table(facts: dict[str, Any]) -> str:
    """Length and barriers of each segment."""
    lines = [f"{'segment':10}{'length':>10}" + "".join(f"{name:>12}" for name in facts["barriers"][0])]
    for k, (length, barriers) in enumerate(zip(facts["lengths"], facts["barriers"])):
        lines.append(f"{f'{k} to {k + 1}':10}{length:10.3f}" + "".join(f"{v:12.4f}" for v in barriers.values()))
    return "\n".join(lines)


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """Scores along the chain."""
    paths = {"chain": profiles.by_split(arrays, facts["columns"])}
    return {"chain": curves.connection(paths, facts["columns"], arrays["ts"], facts["title"])}
