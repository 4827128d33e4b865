"""A family of runs: variants of one config over seeds, with what is derived of them, for a paper's tables and figures.

Variants are the names that runs carry, whatever their folders are called.

Reference: Wortsman et al., Learning Neural Network Subspaces, 2021, arXiv:2102.10472.
"""

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from subspaces_jax import metrics, records
from subspaces_jax.analysis import ensembles
from subspaces_jax.errors import ConfigError, RunDirectoryError
from subspaces_jax.experiments import choices, evaluate
from subspaces_jax.experiments.schema import Field, anything
from subspaces_jax.plots import families, tables

FIELDS: dict[str, Field] = {
    "runs": Field("", anything, "folders of sweeps, or run directories, separated by commas"),
}
ALIKE = ("task", "dataset", "network")  # of the runs of a variant
STANDARD, CALIBRATED = "plain", ("plain", "swa_constant", "line", "curve")
Runs = dict[str, list[pathlib.Path]]  # the finished runs of each variant, by seed
Family = dict[str, list[dict[str, Any]]]  # their facts


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """What tables and figures show of a family.

    Returns:
        Arrays: the bins of reliability, "reliability/<variant>/<name>". Facts: "family" and "derived" {variant: [facts
        of each seed]}, derived being ensembles of independent networks and best epochs; "rows" {variant: [rows of
        metrics of each seed]}; "standard" and "pair", the facts of single networks and of ensembles of two.
    """
    folders = choices.split(settings.runs)
    if not folders:
        raise ConfigError("config.runs names no sweep: set config.runs=DIR")
    runs = finished(folders)
    if not runs:
        raise RunDirectoryError(
            f"no finished runs in {settings.runs}: run python -m launch.sweep --workdir={folders[0]} first"
        )
    family = {variant: [_facts(path) for path in paths] for variant, paths in runs.items()}
    for variant, of_variant in family.items():
        if len({facts["config"]["num_points"] for facts in of_variant}) > 1:
            raise RunDirectoryError(
                f"the runs of {variant} in {settings.runs} were evaluated at different numbers of points: evaluate "
                "them alike"
            )
        _check_alike(runs[variant], of_variant)
    columns = {str(facts["columns"]) for of_variant in family.values() for facts in of_variant if "columns" in facts}
    if len(columns) > 1:
        raise RunDirectoryError(f"the runs in {settings.runs} are of different tasks: name those of one")
    standard = family.get(STANDARD, [])
    classified = _classifies(family)
    of_plain = {num: _ensembles(runs[STANDARD], num) for num in range(2, len(standard) + 1)} if classified else {}
    best = _best_epochs(runs, family)
    clean = {name: paths for name, paths in runs.items() if not family[name][0]["config"]["label_noise"]}
    facts = {
        "title": _title(folders),
        "family": family,
        "derived": {f"{STANDARD}, ensemble of {num}": of for num, of in of_plain.items()}
        | {f"{name}, best epoch": of for name, of in best.items()},
        "best": best,
        "standard": standard,
        "pair": of_plain.get(2, []),
        "rows": {name: [records.read_metrics(path) for path in paths] for name, paths in clean.items()},
    }
    bins = _bins(clean, family) if classified and CALIBRATED[0] in clean else {}
    arrays = {
        f"reliability/{variant}/{name}": np.asarray(values)
        for variant, of in bins.items()
        for name, values in of.items()
    }
    return arrays, facts


def summary(facts: dict[str, Any]) -> tables.Table:
    """The rows of the table: variants, and what is derived of them."""
    return tables.of_family(dict(sorted((facts["family"] | facts["derived"]).items())))


def table(facts: dict[str, Any]) -> str:
    """The family's table as Markdown."""
    return tables.text(summary(facts))


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """Profiles with bands over seeds, simplexes by size, label noise, reliability, dynamics: those that there are."""
    family, standard, title = facts["family"], facts["standard"], facts["title"]
    clean = {name: family[name] for name in facts["rows"]}
    bins: dict[str, dict[str, np.ndarray]] = {}
    for name, values in arrays.items():
        _, variant, column = name.split("/")
        bins.setdefault(variant, {})[column] = values
    drawn = {}
    if _classifies(family):
        drawn = {
            "profiles": families.profiles(clean, standard, facts["pair"], title),
            "simplexes": families.simplex_sizes(clean, standard, title),
            "label_noise": families.label_noise(family, facts["best"], title),
            "reliability": families.reliability(bins, title) if bins else None,
        }
    drawn["dynamics"] = families.dynamics(facts["rows"], title)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def finished(folders: Sequence[str | pathlib.Path]) -> Runs:
    """The finished runs in folders of sweeps, or that are these folders, by variant and seed.

    Raises:
        RunDirectoryError: two folders have the same variant and seed.
    """
    found: dict[str, dict[int, pathlib.Path]] = {}
    for folder in map(records.resolve, folders):
        for path in [folder] if _is_run(folder) else sorted(folder.glob("*")):
            if path.is_dir() and _is_run(path) and is_finished(path):
                seed = _facts(path)["config"]["seed"]
                first = found.setdefault(variant := variant_of(path), {}).setdefault(seed, path)
                if first != path:
                    raise RunDirectoryError(f"{first} and {path} are both {variant} with seed {seed}: name one of them")
    return {variant: [path for _, path in sorted(by_seed.items())] for variant, by_seed in sorted(found.items())}


def _classifies(family: Family) -> bool:
    """Whether the one task that its runs have is a classification."""
    return "accuracy" in next(iter(family.values()))[0]["scores"]


def _check_alike(paths: Sequence[pathlib.Path], of_variant: Sequence[dict[str, Any]]) -> None:
    configs = [facts["config"] for facts in of_variant]
    for path, config in zip(paths, configs):
        for field in ALIKE:
            if config.get(field) != configs[0].get(field):
                raise RunDirectoryError(
                    f"{path} has {field} {config.get(field)!r} but {paths[0]} has {configs[0].get(field)!r}, and both "
                    "are called the same: give one another variant"
                )


def is_finished(workdir: str | pathlib.Path) -> bool:
    """Whether a run has been trained to its end and evaluated there; damaged results are none."""
    try:
        facts = _facts(workdir)
        return facts["step"] == facts.get("num_steps")
    except (RunDirectoryError, KeyError, TypeError):
        return False


def variant_of(workdir: str | pathlib.Path) -> str:
    """The name that a run carries; of one from before it was stored, what its sweep named the folder after."""
    header = records.read_header(workdir)
    if header.variant or header.format > 1:
        return header.variant or "{subspace} of {network}".format(**header.config)
    return pathlib.Path(workdir).name.rpartition("_")[0].replace("+", ",")


def _is_run(path: pathlib.Path) -> bool:
    try:
        return records.read_header(path).kind == "train"
    except RunDirectoryError:
        return False


def _facts(workdir: str | pathlib.Path) -> dict[str, Any]:
    return records.load_facts(workdir, evaluate.RESULTS)


def _arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    return records.load_results(workdir, evaluate.RESULTS)[0]


def _title(folders: Sequence[str]) -> str:
    try:
        return "{config} {fields}".format(**records.read_header(folders[0]).config).strip()
    except (RunDirectoryError, KeyError):
        return pathlib.Path(folders[0]).name


def _ensembles(runs: Sequence[pathlib.Path], num: int) -> list[dict[str, Any]]:
    """The ensembles of any `num` runs of one network each, as facts of one network each."""
    arrays = [_arrays(path) for path in runs]
    scores = [
        ensembles.ensemble_scores(np.stack([run["logits"][0] for run in subset]), subset[0]["labels"])
        for subset in itertools.combinations(arrays, num)
    ]
    return [{"scores": {name: [value] for name, value in of_one.items()}, "midpoint": None} for of_one in scores]


def _best_epochs(runs: Runs, family: Family) -> Family:
    """The variants "early_stopping" with the best test accuracy of any epoch, which no one can know beforehand."""
    found: Family = {}
    for name, paths in runs.items():
        if name.startswith("early_stopping"):
            logs = [records.read_metrics(path) for path in paths]
            tested = [[row["test_accuracy"] for row in rows if "test_accuracy" in row] for rows in logs]
            if all(tested):
                found[name] = [facts | {"scores": {"accuracy": [max(of)]}} for facts, of in zip(family[name], tested)]
    return found


def _bins(runs: Runs, family: Family) -> dict[str, dict[str, Any]]:
    """Reliability of the midpoint, and of a line's ensemble of ends, over the test sets of all seeds."""
    bins = {}
    for name in CALIBRATED:
        if name in runs:
            arrays = [_arrays(path) for path in runs[name]]
            probs = [_softmax(run["logits"]) for run in arrays]  # of a seed: [T, N, C]
            labels = np.concatenate([run["labels"] for run in arrays])
            midpoints = [of[facts["midpoint"] or 0] for of, facts in zip(probs, family[name])]
            bins[name] = metrics.reliability(np.concatenate(midpoints), labels, 20)
            if name == "line":
                ends = np.concatenate([0.5 * (of[0] + of[-1]) for of in probs])
                bins["line,ensemble of the ends"] = metrics.reliability(ends, labels, 20)
    return bins


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
