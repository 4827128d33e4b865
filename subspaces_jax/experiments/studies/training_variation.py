"""How regular the way of the weights through a training is: p-variation over the checkpoints that runs kept.

results/training_variation.npz has of network i, a run's midpoint or a member, "<i>/steps" [S], "<i>/net" [P] and
"<i>/running" [S, P] of all weights, up to each checkpoint; "<i>/layers/<name>" [P], or [L, P] of the blocks of a leaf
[L, d, d]; and of networks that are paths over depth "<i>/depth/<layers>" [S, P], the variation of that path at each
step, of weights scaled by L^beta. All are rooted.

Reference: Cont et al., Convergence and Implicit Regularization Properties of Gradient Descent for Deep Residual
Networks, 2022, arXiv:2204.07261.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from subspaces_jax import geometry
from subspaces_jax.analysis import training_variation, variation
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import runs
from subspaces_jax.experiments.runs import Run
from subspaces_jax.experiments.schema import Field
from subspaces_jax.experiments.studies import depth, members
from subspaces_jax.networks import axes
from subspaces_jax.plots import regularity as plots

FIELDS: dict[str, Field] = {"runs": members.FIELDS["runs"]} | depth.FIELDS


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Of every network of every run."""
    arrays, facts = {}, []
    for one in members.open_any(settings):
        steps = runs.kept_steps(one)
        if len(steps) < 2:
            raise ConfigError(f"{one.folder} kept one checkpoint, of step {steps[0]}: a training has two or more")
        for network, stacked in _networks(one, steps):
            found = _measured(settings, network, stacked) | {"steps": np.array(steps)}
            arrays |= {f"{len(facts)}/{name}": values for name, values in found.items()}
            values = {name: of.tolist() for name, of in found.items() if name == "net" or name.startswith("layers/")}
            facts.append({"name": network.name, "num_steps": len(steps), "variation": values})
    return arrays, {"networks": facts, "exponents": list(depth.exponents(settings))}


def table(facts: dict[str, Any]) -> str:
    """Of each network the variations of all weights and of its layers; of stacked layers the largest."""
    lines = [f"{'rooted p-variation over training':44}" + "".join(f"{f'p = {p:g}':>12}" for p in facts["exponents"])]
    for network in facts["networks"]:
        lines.append(f"{network['name']}, {network['num_steps']} checkpoints")
        for name, values in network["variation"].items():
            numbers = np.atleast_2d(values)
            head = name.removeprefix("layers/") if name != "net" else "all weights"
            head += f", largest of {len(numbers)} layers" if len(numbers) > 1 else ""
            lines.append(f"  {head:42}" + "".join(f"{value:12.4f}" for value in numbers.max(axis=0)))
    return "\n".join(lines)


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """Variations over training against step and layer, and over depth against step."""
    exponents, names = facts["exponents"], [network["name"] for network in facts["networks"]]
    of = lambda i, name: arrays[f"{i}/{name}"]
    running = {name: (of(i, "steps"), of(i, "running")) for i, name in enumerate(names)}
    layers = {name: _rows(network["variation"]) for name, network in zip(names, facts["networks"])}
    drawn = {
        "training_variation": plots.over_steps(running, exponents, "$p$-variation over training"),
        "training_variation_layers": plots.over_layers(layers, exponents),
    }
    over_depth = {}
    for i, name in enumerate(names):
        prefix = f"{i}/depth/"
        found = {key.removeprefix(prefix): values for key, values in arrays.items() if key.startswith(prefix)}
        label = lambda layers: name if len(found) == 1 else f"{name}, {layers}"
        over_depth |= {label(layers): (of(i, "steps"), values) for layers, values in found.items()}
    if over_depth:
        drawn["depth_variation"] = plots.over_steps(over_depth, exponents, "$p$-variation over depth")
    return drawn


def _networks(one: Run, steps: list[int]) -> list[tuple[depth.Network, Any]]:
    """Each network of a run, of its last kept step, and its weights at all of them, leaves [S, ...]."""
    at_steps = zip(*(depth.networks(one, step) for step in steps))
    members = [(of[-1], geometry.stack([network.params for network in of])) for of in at_steps]
    name = lambda m: f"{one.name}, member {m}" if len(members) > 1 else one.name
    return [(network._replace(name=name(m)), stacked) for m, (network, stacked) in enumerate(members)]


def _measured(settings: Any, network: depth.Network, stacked: Any) -> dict[str, np.ndarray]:
    made, exponents = network.experiment, depth.exponents(settings)
    table, layers = axes.table_of(made.model.network), depth.layers(settings)
    with depth.of_network(network.name):
        found = training_variation.over_training(stacked, exponents, table=table)
        if not layers and not _has_path(network.params, table):
            return found
        variation.layer_stacks(network.params, table, layers)
    measure = variation.OverDepth(exponents, depth.beta(settings, made), layers, tuple(table.items()))
    of_steps = _at_each(measure, stacked)
    return found | {f"depth/{name}": np.asarray(values) for name, values in of_steps.items()}


@partial(jax.jit, static_argnums=0)
def _at_each(measure, stacked):
    return jax.lax.map(measure, stacked)


def _has_path(params: Any, table: Any) -> bool:
    """Whether some layers have one shape."""
    try:
        return bool(variation.layer_stacks(params, table))
    except ValueError:
        return False


def _rows(variations: dict[str, Any]) -> np.ndarray:
    """[layers, P] of all layers in order, those of a stack one by one."""
    return np.concatenate([np.atleast_2d(values) for name, values in variations.items() if name != "net"])
