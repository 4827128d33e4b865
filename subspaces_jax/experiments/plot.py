"""Figures and tables of a run, or of the runs of a sweep, from their files alone."""

import itertools
import pathlib
from typing import Any

import numpy as np

from subspaces_jax import metrics, records
from subspaces_jax.analysis import ensembles
from subspaces_jax.experiments import evaluate, sweep
from subspaces_jax.plots import families, paths, style, tables, training

FAMILY = "family"
CALIBRATED = ("plain", "swa_constant", "line", "curve")


def run(config: Any, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Draws what the files of a run, an analysis or a sweep hold, into its folder figures.

    Of a run: training dynamics, and the profile of a path where it was evaluated. Of an analysis: the profile of a
    line, ensembles by size. Of a sweep: profiles with bands over seeds, simplexes by size, label noise, reliability,
    dynamics, and the table as CSV and LaTeX.

    Args:
        config: not needed and not read; every experiment takes (config, workdir).
        workdir: a run directory, or the folder of a sweep.

    Returns:
        {"figures": paths of the files written, "table": a sweep's table as Markdown, "" of a run}.

    Raises:
        RunDirectoryError: no run directory, or nothing in it to draw.
    """
    folder = pathlib.Path(workdir)
    facts = records.read_config(folder)
    if "fields" in facts:
        written, table = _of_sweep(folder, facts)
    else:
        written, table = _of_analysis(folder, facts) if "analysis" in facts else _of_run(folder, facts), ""
    return {"figures": [str(path) for path in written], "table": table}


def _of_analysis(folder: pathlib.Path, config: dict[str, Any]) -> list[pathlib.Path]:
    facts = records.load_results(folder, config["analysis"])[1]
    title = f"{config['analysis']} of {config['runs']}"
    if "ensembles" in facts:
        figure = families.ensemble_sizes(facts["ensembles"], title)
    else:
        figure = paths.profile(facts, title) if "pair_accuracy" in facts["scores"] else None
    return style.save(figure, folder / records.FIGURES, config["analysis"]) if figure is not None else []


def _of_run(folder: pathlib.Path, config: dict[str, Any]) -> list[pathlib.Path]:
    title = f"{config['subspace']} of {config['network']} on {config['dataset']}, seed {config['seed']}"
    written = []
    if rows := records.read_metrics(folder):
        written += style.save(training.dynamics(rows, title), folder / records.FIGURES, "training")
    scores = records.load_results(folder, evaluate.RESULTS)[1]
    if "pair_accuracy" in scores["scores"]:
        written += style.save(paths.profile(scores, title), folder / records.FIGURES, "profile")
    return written


def _of_sweep(folder: pathlib.Path, shared: dict[str, Any]) -> tuple[list[pathlib.Path], str]:
    family = sweep.load(folder)
    standard, title = family.get("plain", []), f"{shared['config']} {shared['fields']}".strip()
    of_plain = {num: _ensembles(sweep.folders(folder, "plain"), num) for num in range(2, len(standard) + 1)}
    best = _best_epochs(folder, family)
    clean = {name: runs for name, runs in family.items() if not runs[0]["config"]["label_noise"]}
    rows = {name: [records.read_metrics(path) for path in sweep.folders(folder, name)] for name in clean}
    drawn = {
        "profiles": families.profiles(clean, standard, of_plain.get(2, []), title),
        "simplexes": families.simplex_sizes(clean, standard, title),
        "label_noise": families.label_noise(family, best, title),
        "reliability": families.reliability(_bins(folder, clean), title) if CALIBRATED[0] in clean else None,
        "dynamics": families.dynamics(rows, title),
    }
    derived = {f"plain, ensemble of {num}": runs for num, runs in of_plain.items()}
    derived |= {f"{name}, best epoch": runs for name, runs in best.items()}
    summary = tables.summary(dict(sorted((family | derived).items())))
    written = tables.write(summary, folder / records.FIGURES, FAMILY)
    for name, figure in drawn.items():
        written += style.save(figure, folder / records.FIGURES, name) if figure is not None else []
    return written, tables.text(summary)


def _ensembles(runs: list[pathlib.Path], num: int) -> list[families.Facts]:
    """The ensembles of any `num` runs of one network each, as facts of one network each."""
    arrays = [records.load_results(path, evaluate.RESULTS)[0] for path in runs]
    scores = [
        ensembles.ensemble_scores(np.stack([run["logits"][0] for run in subset]), subset[0]["labels"])
        for subset in itertools.combinations(arrays, num)
    ]
    return [{"scores": {name: [value] for name, value in of_one.items()}, "midpoint": None} for of_one in scores]


def _best_epochs(folder: pathlib.Path, family: sweep.Family) -> sweep.Family:
    """The variants "early_stopping" with the best test accuracy of any epoch, which no one can know beforehand."""
    found: sweep.Family = {}
    for name, runs in family.items():
        if name.startswith("early_stopping"):
            logs = [records.read_metrics(path) for path in sweep.folders(folder, name)]
            tested = [[row["test_accuracy"] for row in rows if "test_accuracy" in row] for rows in logs]
            if all(tested):
                found[name] = [run | {"scores": {"accuracy": [max(of)]}} for run, of in zip(runs, tested)]
    return found


def _bins(folder: pathlib.Path, family: sweep.Family) -> dict[str, dict[str, np.ndarray]]:
    """Reliability of the midpoint, and of a line's ensemble of ends, over the test sets of all seeds."""
    bins = {}
    for name in CALIBRATED:
        if name in family:
            arrays = [records.load_results(path, evaluate.RESULTS)[0] for path in sweep.folders(folder, name)]
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
