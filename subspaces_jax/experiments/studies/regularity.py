"""How regular weights are over depth: norms, single entries and p-variations of networks of several depths.

Networks whose configs differ in nothing but their seed are repetitions of each other, and make a group; groups that
differ in their depth and in what follows from it make a family. results/regularity.npz has of group g, of n
repetitions of L layers, "<g>/depth" [L], "<g>/norm" [n, L], "<g>/entries" [n, positions, L] and "<g>/variation"
[n, P], all of the weights scaled by L^beta; p-variations are rooted.

Reference: Cont et al., Convergence and Implicit Regularization Properties of Gradient Descent for Deep Residual
Networks, 2022, arXiv:2204.07261.
"""

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspaces_jax import records
from subspaces_jax.analysis import variation
from subspaces_jax.experiments import choices
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.fields import UNTOLD
from subspaces_jax.experiments.schema import Field
from subspaces_jax.experiments.studies import depth, members
from subspaces_jax.networks import axes, families
from subspaces_jax.plots import regularity as plots
from subspaces_jax.plots import style, tables

FIELDS: dict[str, Field] = {name: members.FIELDS[name] for name in ("runs", "steps")} | depth.FIELDS | {
    "positions": Field(
        "(0,0)",
        lambda value: depth.positions(value) is not None,
        "(row,column) of the entries that are shown as paths, from 0, separated by commas",
    ),
    "band": Field("sd", lambda value: value in plots.BANDS, "around means of repetitions: sd, or sem, sd / sqrt(n)"),
}  # fmt: skip


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Of every network of every run, in groups of repetitions."""
    opened = members.open_any(settings)
    found = [
        (network, name, path)
        for one, step in zip(opened, members.steps_of(settings, len(opened)))
        for network in depth.networks(one, step)
        for name, path in _paths(settings, network).items()
    ]
    groups: dict[Any, list[Any]] = {}
    for network, name, path in found:
        told = _told(network.experiment)
        groups.setdefault((name, len(path["depth"]), tuple(sorted(told.items()))), []).append((network, path))
    in_families = sorted(zip(_families(list(groups)), groups), key=lambda of: (of[1][0], of[0], of[1][1]))
    arrays, facts = {}, []
    for g, (names, key) in enumerate(in_families):
        networks, paths = zip(*groups[key])
        arrays |= {f"{g}/{name}": np.stack([path[name] for path in paths]) for name in paths[0] if name != "depth"}
        arrays[f"{g}/depth"] = paths[0]["depth"]
        of_group = {"family": names, "layers": key[0], "num_layers": key[1], "num": len(paths)}
        of_group["beta"] = depth.beta(settings, networks[0].experiment)
        of_group["members"] = [network.name for network in networks]
        facts.append(of_group | {"variation": arrays[f"{g}/variation"].tolist()})
    title = "{network} on {dataset}".format(**opened[0].config) if len(opened) == 1 else ""
    return arrays, {"groups": facts, "exponents": list(depth.exponents(settings)), "title": title}


def summary(facts: dict[str, Any]) -> tables.Table:
    """A row a group: of each exponent mean and sample standard deviation over repetitions, and the largest."""
    titles = [(f"{p:g}-variation{of}", 3) for p in facts["exponents"] for of in ("", ", largest")]
    rows = []
    for group in facts["groups"]:
        values = np.asarray(group["variation"])
        cells: list[tuple[float, float | None]] = [
            cell
            for of in values.T
            for cell in ((float(of.mean()), float(style.spread(of)) if len(of) > 1 else None), (float(of.max()), None))
        ]
        rows.append(tables.Row(_label(group), group["num"], cells))
    return tables.Table(rows, tuple(titles), ("layers", "repetitions"))


def table(facts: dict[str, Any]) -> str:
    """The summary as text, with the scales of the weights."""
    betas = sorted({group["beta"] for group in facts["groups"]})
    scales = ", ".join(f"{beta:.3g}" for beta in betas)
    return f"{tables.text(summary(facts))}\np-variations are rooted, of weights scaled by L^beta, beta = {scales}"


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """Norms and entries against depth, and variations against the number of layers, a panel a family."""
    every = _drawn(arrays, facts)
    own, drawn = SimpleNamespace(**facts["config"]), {}
    positions = depth.positions(own.positions) or ()
    drawn["regularity_norms"] = plots.norms(every, own.band, facts["title"])
    drawn["regularity_entries"] = plots.entries(every, positions, own.band, facts["title"])
    if len({group.num_layers for group in every}) > 1:
        drawn["regularity_variations"] = plots.variations(every, facts["exponents"], own.band, facts["title"])
    return drawn


def panel(axis: Axes, arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> None:
    """Norms against depth of the first family, for an overview."""
    every = _drawn(arrays, facts)
    plots.draw_norms(axis, [group for group in every if group.family == every[0].family], facts["config"]["band"])


def _drawn(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> list[plots.Group]:
    """The groups as figures take them."""
    return [
        plots.Group(group["num_layers"], _family(group), records.below(arrays, str(g)))
        for g, group in enumerate(facts["groups"])
    ]


def _paths(settings: Any, network: depth.Network) -> dict[str, dict[str, np.ndarray]]:
    made = network.experiment
    with depth.of_network(network.name):
        return variation.over_depth(
            network.params,
            depth.exponents(settings),
            beta=depth.beta(settings, made),
            positions=depth.positions(settings.positions) or (),
            table=axes.table_of(made.model.network),
            layers=depth.layers(settings),
        )


def _told(made: Experiment) -> dict[str, str]:
    """What makes a network different from others, the options of its call one by one."""
    told = {name: str(value) for name, value in made.config.items() if name not in UNTOLD}
    text = told.pop("network")
    name = text.partition("(")[0]
    options = choices.options("network", text, families.NETWORKS) if name in families.NETWORKS else {}
    return {"network": name} | {option: str(value) for option, value in options.items()} | told


def _families(keys: Sequence[Any]) -> list[str]:
    """What tells groups of one name and depth apart, in as few fields as do; "" where the depth does."""
    told = [dict(pairs) for _, _, pairs in keys]
    every = dict.fromkeys(itertools.chain(*told))
    differing = [name for name in every if len({of.get(name) for of in told}) > 1 and name != "depth"]
    same = lambda names: {(key[0], key[1], *map(of.get, names)) for key, of in zip(keys, told)}
    chosen: list[str] = []
    for name in differing:
        if len(same(chosen)) < len(keys) and len(same([*chosen, name])) > len(same(chosen)):
            chosen.append(name)
    return [", ".join(f"{name} = {of[name]}" for name in chosen if name in of) for of in told]


def _family(group: dict[str, Any]) -> str:
    """The title of a panel."""
    layers = "" if group["layers"] == "blocks" else group["layers"]
    return ", ".join(part for part in (group["family"], layers) if part)


def _label(group: dict[str, Any]) -> str:
    return ", ".join(part for part in (f"L = {group['num_layers']}", _family(group)) if part)
