"""Networks that were trained apart, brought to one order of units, and the means of their weights before and after.

results/matched.npz has scores [n + 2] of the n matched networks, of the mean of the networks as they are, and of the
mean of the matched ones, in this order; and "permutations/<axis>" [n, units], that of each network to the common order.

References: Crisostomi et al., C2M3: Cycle-Consistent Multi-Model Merging, 2024, arXiv:2405.17897; Ainsworth et al., Git
Re-Basin: Merging Models modulo Permutation Symmetries, 2023, arXiv:2209.04836.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

from subspaces_jax import geometry
from subspaces_jax.connecting import Permutations, identity, match_networks, match_universe, permute
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments.schema import Field
from subspaces_jax.experiments.studies import members, network_parts
from subspaces_jax.networks.axes import AxisTable
from subspaces_jax.plots import together

FIELDS: dict[str, Field] = members.FIELDS
MEANS = ("mean as they are", "mean of the matched")


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scores of matched networks and of both means, BatchNorm statistics refreshed at each.

    Returns:
        Arrays: see the top of this file. Facts: those of `members.facts_of`, "members" with the means last;
        "moved" {axis: share of units that change their place, of each network}; "distances" {"as they are", "matched"}
        of each network to the mean.
    """
    opened = members.open_all(settings)
    networks = members.gathered(settings, opened, members.key_of(settings, "members"))
    own, made = geometry.unstack(networks.stack), opened[0].experiment
    if len(own) < 2:
        raise ConfigError("config.runs and config.members give 1 network, matching takes at least two")
    table = network_parts.axis_table(made)
    found = _to_one_order(own, table)
    matched = geometry.stack([permute(network, table, one) for network, one in zip(own, found)])
    middle = geometry.Simplex(len(own)).midpoint
    means = [geometry.contract(stack, middle) for stack in (networks.stack, matched)]
    rows = networks._replace(stack=geometry.stack([*geometry.unstack(matched), *means]))
    arrays, test = members.scored(
        settings, opened, rows, jnp.eye(len(own) + 2), with_pairs=False,
        progress=members.progress(len(own) + 2, "matched").over,
    )  # fmt: skip
    facts = members.facts_of(opened, [*networks.names, *MEANS], arrays, test.labels, together=False)
    orders = {axis: np.stack([one[axis] for one in found]) for axis in found[0]}
    facts |= {
        "moved": {axis: np.mean(of != np.arange(of.shape[1]), axis=1).tolist() for axis, of in orders.items()},
        "distances": {
            name: _distances(stack) for name, stack in (("as they are", networks.stack), ("matched", matched))
        },
        "title": f"{len(own)} networks brought to one order: " + "{network} on {dataset}".format(**made.config),
    }
    arrays |= {f"permutations/{axis}": of for axis, of in orders.items()}
    return arrays | {"labels": np.asarray(test.labels)}, facts


def table(facts: dict[str, Any]) -> str:
    """Scores of each matched network and of both means; distances to the mean before and after."""
    columns = facts["columns"][:3]
    width = max(map(len, facts["members"]))
    lines = [" " * width + "".join(f"{f'{title} {unit}'.strip():>14}" for _, title, unit, _ in columns)]
    for row, name in enumerate(facts["members"]):
        cells = (f"{scale * facts['scores'][score][row]:14.4f}" for score, _, _, scale in columns)
        lines.append(f"{name:{width}}" + "".join(cells))
    for name, lengths in facts["distances"].items():
        lines.append(f"distance to the mean, {name}: {', '.join(f'{length:.3f}' for length in lengths)}")
    return "\n".join(lines)


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """The first score of the networks and of both means."""
    name, text, unit, scale = facts["columns"][0]
    values = scale * np.asarray(arrays[name])
    rows = {"networks": values[:-2], MEANS[0]: values[-2:-1], MEANS[1]: values[-1:]}
    return {"matched": together.scores_of(rows, f"test {text}", unit, facts["title"])}


def _to_one_order(networks: list[Any], table: AxisTable) -> list[Permutations]:
    """The permutation of each; of two the first stays as it is."""
    try:
        if len(networks) > 2:
            return match_universe(networks, table).permutations
        first, second = networks
        return [identity(first, table), match_networks(first, second, table)]
    except ValueError as error:
        raise ConfigError(f"config.runs: {error}") from None


def _distances(stack: Any) -> list[float]:
    """Of each row to the mean of all."""
    rows = geometry.unstack(stack)
    mean = geometry.contract(stack, geometry.Simplex(len(rows)).midpoint)
    return [float(optax.tree.norm(optax.tree.sub(row, mean))) for row in rows]
