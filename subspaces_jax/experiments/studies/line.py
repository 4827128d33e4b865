"""The straight line between any two networks.

Reference: Goodfellow et al., Qualitatively characterizing neural network optimization problems, 2015, arXiv:1412.6544.
"""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from subspaces_jax import geometry
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments.evaluate import COLUMNS
from subspaces_jax.experiments.schema import Field, at_least
from subspaces_jax.experiments.studies import members
from subspaces_jax.experiments.studies.ensemble import title_of
from subspaces_jax.plots import paths

FIELDS: dict[str, Field] = members.FIELDS | {
    "num_points": Field(21, at_least(2), "of the line, at least 2"),
}


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scores of equally spaced points, each alone and as an ensemble with its mirror image."""
    opened = members.open_all(settings)
    networks = members.gathered(settings, opened, members.key_of(settings, "members"))
    if (num := len(networks.names)) != 2:
        raise ConfigError(f"config.runs and config.members give {num} networks, an analysis 'line' takes exactly two")
    arrays, test = members.scored(
        settings, opened, networks, geometry.Line().grid(settings.num_points),
        with_pairs=opened[0].experiment.task.keeps_outputs,
        progress=members.progress(settings.num_points, "line").over,
    )  # fmt: skip
    facts = members.facts_of(opened, networks.names, arrays, test.labels, together=False)
    return arrays | {"labels": np.asarray(test.labels)}, facts | {"title": f"line of {settings.runs}"}


table = members.table


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """The profile of the line."""
    return {"line": paths.profile(facts | {"columns": facts.get("columns", COLUMNS)}, title_of(facts, "line"))}
