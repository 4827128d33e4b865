"""Averages of weights: the mean, random mixtures, points towards each network, draws of SWAG.

References: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018, arXiv:1803.05407;
Maddox et al., A Simple Baseline for Bayesian Uncertainty in Deep Learning, 2019, arXiv:1902.02476.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from subspaces_jax import geometry
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments.schema import Field
from subspaces_jax.experiments.studies import ensemble, members
from subspaces_jax.training import averages

PyTree = Any
SWAG_RANK = 20
AVERAGES = ("mean", "random", "random_layerwise", "random_per_weight", "towards_each", "swag", "swag_diagonal")
FIELDS: dict[str, Field] = members.FIELDS | {
    "average": Field("mean", lambda value: value in AVERAGES, f"one of {', '.join(AVERAGES)}"),
    "t": Field(0.75, lambda value: 0.0 <= value <= 1.0, "weight of the nearest network, of towards_each, in [0, 1]"),
}


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scores of one or several averages of the members' weights, and of ensembles of these."""
    opened = members.open_all(settings)
    networks = members.gathered(settings, opened, members.key_of(settings, "members"))
    num = len(networks.names)
    if num < 2:
        raise ConfigError(
            f"config.runs and config.members give {num} networks, an analysis 'average' takes at least two"
        )
    tree, points, params_at = _points(settings, networks.stack, num, members.key_of(settings, "points"))
    how_many = jax.tree.leaves(points)[0].shape[0]
    arrays, test = members.scored(
        settings, opened, networks._replace(stack=tree), points, params_at,
        with_pairs=False, progress=members.progress(how_many, "average").over,
    )  # fmt: skip
    facts = members.facts_of(opened, networks.names, arrays, test.labels, together=True)
    return arrays | {"labels": np.asarray(test.labels)}, facts | {"title": f"average of {settings.runs}"}


table = members.table


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """Ensembles of the averages, where there are several."""
    return {f"average{name.removeprefix('ensemble')}": of for name, of in ensemble.figures(arrays, facts).items()}


def _points(
    settings: Any, stack: PyTree, num: int, key: Any
) -> tuple[PyTree, PyTree, Callable[[PyTree, PyTree], PyTree]]:
    """A tree, the points to score, leaves [T, ...], and (tree, point) -> params."""
    simplex, draws = geometry.Simplex(num), settings.num_draws
    keys = jax.random.split(key, draws)
    kinds: dict[str, Callable[[], tuple[PyTree, Callable]]] = {
        "mean": lambda: (simplex.midpoint[None], geometry.contract),
        "random": lambda: (simplex.sample(key, (draws,)), geometry.contract),
        "random_layerwise": lambda: (geometry.layerwise(simplex, stack).sample(key, (draws,)), geometry.contract),
        "random_per_weight": lambda: (keys, averages.per_weight),
        "towards_each": lambda: (averages.endpoint_coordinates(num, settings.t), geometry.contract),
        "swag": lambda: (keys, averages.swag_sample),
        "swag_diagonal": lambda: (keys, averages.swag_sample),
    }
    if settings.average.startswith("swag"):  # fitted once
        rank = min(num, SWAG_RANK) if settings.average == "swag" else 0
        stack = jax.jit(averages.of_stack, static_argnums=0)(averages.swag(rank), stack)
    return stack, *kinds[settings.average]()
