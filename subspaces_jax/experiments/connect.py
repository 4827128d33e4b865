"""Paths between two networks that were trained apart, without training: config -> run directory of its own.

results/path.npz has, of T points, "ts" in [0, pieces], "dl" (distance from the point before), "tr_" and "te_" with
loss, nll, err and acc, each also with _min, _max, _avg and _int (mean over arc length), and "computation_time" in
seconds, as the code of Anokhin and Yarotsky 2020 (arXiv:2008.00741) has them; errors and accuracies in percent; the
loss is, as of all paths here, the nll with the L2 term of the networks' training, which theirs is without. The networks
at the joints of the pieces are the run's checkpoint, the knots of a chain: any evaluation takes them, and so does
`initial`, to train a curve between matched ends.
"""

import pathlib
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure

from subspaces_jax import checkpoints, geometry, records
from subspaces_jax.analysis import paths
from subspaces_jax.checkpoints import Resumable
from subspaces_jax.connecting import CONNECTORS, Path, Sampled, needs_table
from subspaces_jax.errors import ConfigError, RunDirectoryError
from subspaces_jax.experiments import build, choices, runs, schema
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.fields import ONE_NETWORK
from subspaces_jax.experiments.runs import Networks, Run
from subspaces_jax.experiments.schema import Config, Field, at_least
from subspaces_jax.experiments.studies import members, network_parts, profiles
from subspaces_jax.networks import axes
from subspaces_jax.plots import curves

RESULTS = "path"
GIVEN = ("params_a", "params_b", "table", "features", "others", "criterion")
FIELDS: dict[str, Field] = profiles.FIELDS | {
    "connector": Field("linear", bool, f"a call of {', '.join(CONNECTORS)}: how the two are connected"),
    "num_points": Field(21, at_least(2), "of the whole path, at least 2"),
    "num_refined": Field(3, at_least(0), "more points on each side of the worst one; 0 leaves it as found"),
    "patches": network_parts.PATCHES,
}
OF_PATH = ("runs", "steps", "members", "only", "num_draws", "seed", "connector", "patches")  # not of how it is scored
# what the chain of knots is not, of what the networks' runs may have been
ALONE = ONE_NETWORK | {"capture": False, "keep_every": 0, "keep_first": 0, "keep_steps": "", "profile_steps": ""}


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Connects two networks, scores points of the path on both splits, and keeps its knots as a checkpoint.

    Args:
        config: a mapping with fields of FIELDS; "runs" names two runs, or one that gives two networks. More, for the
            connectors flow and bijection only, are networks that these are fitted to beside the two.
        workdir: the path's own run directory.

    Returns:
        The facts of results/path.json: "connector", "num_pieces", "members", "others" (networks that the path was
        fitted to beside them), "length", "summary" of the scores, "worst" {split: {"t", "acc"}} (of a classification),
        "ranks" {layer: (rank, number)} of features that weights were adjusted to, "columns", "seconds".

    Raises:
        ConfigError, RunDirectoryError, CheckpointError, DataError: see `errors`.
    """
    clock, config = time.perf_counter(), schema.checked(config, FIELDS)
    settings, folder = SimpleNamespace(**config), records.resolve(workdir)
    if jax.process_count() > 1:
        raise ConfigError("paths are made in one process: leave --coordinator out")
    choices.check("connector", settings.connector, CONNECTORS, GIVEN)
    if (folder / records.CONFIG).exists():
        _check_own(folder, settings)
    opened = members.open_all(settings)
    networks, made = members.gathered(settings, opened, members.key_of(settings, "members")), opened[0].experiment
    path, others = connected(settings, made, networks), networks.names[2:]
    networks = networks._replace(names=networks.names[:2])
    arrays, worst = _scored(settings, opened, networks, path)
    arrays["computation_time"] = np.asarray(time.perf_counter() - clock)
    facts = {
        "connector": settings.connector,
        "variant": settings.connector,
        "num_pieces": path.num_pieces,
        "members": networks.names,
        "others": others,
        "step": 0,
        "length": float(np.sum(arrays["dl"])),
        "columns": profiles.columns(made),
        "summary": profiles.summary(arrays, profiles.columns(made)),
        "worst": worst,
        "ranks": {layer: [int(number) for number in of] for layer, of in path.ranks.items()},
        "config": config,
        "title": "{connector}: {network} on {dataset}".format(**made.config, connector=settings.connector),
        "seconds": float(arrays["computation_time"]),
    }
    with records.locked(folder):
        _keep(folder, made, path, networks, settings.connector)
        records.save_results(folder, RESULTS, arrays, facts)
    return facts


def connected(settings: Any, made: Experiment, networks: Networks) -> Path:
    """The path between two networks of one experiment; more are what a flow or a bijection is fitted to, too."""
    takes = partial(choices.takes, "connector", settings.connector, CONNECTORS)
    if (num := len(networks.names)) < 2 or num > 2 and not takes("others"):
        raise ConfigError(f"config.runs and config.members give {num} networks, a path connects two")
    a, b, *others = geometry.unstack(networks.stack)
    looks_at_layers = needs_table(choices.parse(settings.connector)[0].name)
    table = network_parts.axis_table(made) if looks_at_layers else axes.table_of(made.model.network)
    given = {"params_a": a, "params_b": b, "table": table, "others": others}
    given |= {"features": network_parts.features_of(settings, made)} if takes("features") else {}
    given |= {"criterion": network_parts.criterion_of(made)} if takes("criterion") else {}
    return choices.make("connector", settings.connector, CONNECTORS, given)


def table(facts: dict[str, Any]) -> str:
    """The reference's table: scores of the path, its length, its worst points."""
    lines = [profiles.summary_table({"path": facts["summary"]}, facts["columns"])]
    lines.append(f"{facts['num_pieces']} pieces, length {facts['length']:.3f}")
    for split, worst in facts["worst"].items():
        lines.append(f"worst {split} accuracy {worst['acc']:.3f} % at t = {worst['t']:.3f}")
    deficient = [f"{layer} {rank} of {num}" for layer, (rank, num) in facts["ranks"].items() if rank < num]
    if deficient:
        lines.append(f"features that do not determine the weights adjusted to them, by rank: {', '.join(deficient)}")
    return "\n".join(lines)


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """Scores along the path."""
    shown = {facts["connector"]: profiles.by_split(arrays, facts["columns"])}
    return {"path": curves.connection(shown, facts["columns"], arrays["ts"], facts["title"])}


def _scored(
    settings: Any, opened: list[Run], networks: Networks, path: Path
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scores of the grid and, of a classification, the worst points, looked for again between their neighbours."""
    ts = path.grid(settings.num_points)
    sampled = path.at(ts)
    arrays = {"ts": ts} | _of(settings, opened, networks, sampled, "path")
    arrays["dl"] = paths.point_distances(sampled.tree, sampled.points, sampled.params_at)
    arrays |= profiles.statistics(arrays["dl"], arrays)
    worst = {}
    for prefix, split in profiles.PREFIXES.items():
        if f"{prefix}_acc" not in arrays:
            continue
        lowest = int(np.argmin(arrays[f"{prefix}_acc"]))
        found = {"t": float(ts[lowest]), "acc": float(arrays[f"{prefix}_acc"][lowest])}
        if settings.num_refined:
            sides = (lowest > 0) + (lowest < len(ts) - 1)
            around = path.around(ts, lowest, sides * (settings.num_refined + 1) + 1)
            around = np.array([t for t in around if not np.any(np.isclose(t, ts))])  # of the grid they are known
            own = SimpleNamespace(**vars(settings) | ({"splits": "test"} if prefix == "te" else {}))
            finer = _of(own, opened, networks, path.at(around), f"worst {split}")[f"{prefix}_acc"]
            if finer.min() < found["acc"]:
                found = {"t": float(around[np.argmin(finer)]), "acc": float(finer.min())}
        worst[split] = found
    return arrays, worst


def _of(settings: Any, opened: list[Run], networks: Networks, sampled: Sampled, label: str) -> Any:
    of_tree = networks._replace(stack=sampled.tree)
    return profiles.scored(settings, opened, of_tree, sampled.points, sampled.params_at, label=label)


def _check_own(folder: pathlib.Path, settings: Any) -> None:
    """Refuses a folder that holds something else than this path."""
    header = records.read_header(folder)
    if header.kind != "connect":
        raise RunDirectoryError(f"workdir {folder} holds a run of the kind {header.kind}: name another workdir")
    if header.variant != settings.connector:
        raise RunDirectoryError(
            f"workdir {folder} holds another path (connector = {header.variant!r} there, {settings.connector!r} here): "
            "name another workdir"
        )
    if not (folder / records.RESULTS / f"{RESULTS}.json").exists():
        return
    try:
        there = records.load_facts(folder, RESULTS).get("config")
    except records.DamagedError:
        return  # they are made anew, and the weights are compared
    if not isinstance(there, dict):
        return
    there = there | {"runs": _folders(there.get("runs", ""))}
    asked = vars(settings) | {"runs": _folders(settings.runs)}
    if differing := [name for name in OF_PATH if there.get(name, FIELDS[name].default) != asked[name]]:
        name = differing[0]
        raise RunDirectoryError(
            f"workdir {folder} holds another path ({name} = {there.get(name)!r} there, {asked[name]!r} here): name "
            "another workdir"
        )


def _folders(text: str) -> str:
    """Runs by their absolute paths."""
    return ",".join(str(pathlib.Path(part).expanduser().absolute()) for part in choices.split(text))


def _check_knots(folder: pathlib.Path, knots: Any) -> None:
    """Refuses a folder whose checkpoint has other weights, as where a run that it connects has been trained further."""
    if not checkpoints.has_any(folder):
        return
    there = jax.tree.leaves(checkpoints.restore(folder).params)
    here = jax.tree.leaves(jax.device_get(knots))
    if len(there) != len(here) or any(not np.array_equal(a, b) for a, b in zip(there, here)):
        raise RunDirectoryError(
            f"workdir {folder} holds a path between other weights than its runs have now: name another workdir"
        )


def _keep(folder: pathlib.Path, made: Experiment, path: Path, networks: Networks, connector: str) -> None:
    """The run directory of the chain of knots, and its checkpoint."""
    knots = geometry.stack([path.params(k) for k in range(path.num_pieces + 1)])
    _check_knots(folder, knots)
    config = build.check(made.config | ALONE | {"subspace": f"chain({path.num_pieces + 1})", "variant": connector})
    plan = {"steps_per_epoch": 1, "num_steps": 0, "captured_steps": [], "kept_steps": []}
    header = records.write_header(folder, "connect", config, plan, connector, runs.complete)
    state = Resumable(knots, networks.batch_stats, {}, jax.random.key_data(jax.random.key(0)))
    with checkpoints.open_manager(folder, keep_steps=(0,)) as manager:
        checkpoints.save(manager, 0, state, config, header.run_id)
