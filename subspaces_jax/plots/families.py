"""Figures of a family of runs: variants of one config over seeds, from their results alone.

A family is {variant: [facts of each seed]}, facts being those of `experiments.evaluate`. Bands and bars are sample
standard deviations over seeds.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from subspaces_jax.plots import style
from subspaces_jax.plots.paths import t_of

Facts = dict[str, Any]
Family = dict[str, list[Facts]]
BEST_EPOCH = "optimal early stopping"

LOOKS = {  # variant: label, colour, marker; in the order of legends
    "plain": ("standard training", "#555555", ""),
    "early_stopping": ("standard training", "#555555", ""),
    BEST_EPOCH: (BEST_EPOCH, "#999933", "."),
    "swa_constant": ("SWA (high constant rate)", "#009E73", "o"),
    "swa_cyclic": ("SWA (cyclic)", "#888888", "s"),
    "label_smoothing": ("label smoothing", "#000000", "*"),
    "dropout": ("dropout", "#E69F00", "p"),
    "line": ("line", "#0072B2", "x"),
    "line_layerwise": ("line (layerwise)", "#D55E00", "d"),
    "line,no_beta": (r"line, $\beta = 0$", "#56B4E9", "+"),
    "line,samples_2": ("line, two samples", "#117733", "1"),
    "line,samples_2_diverse": ("line, two samples, diverse", "#332288", "2"),
    "curve": ("curve", "#CC79A7", "^"),
    "curve_layerwise": ("curve (layerwise)", "#AA4499", "v"),
    "simplex_3": ("simplex of 3", "#882255", "h"),
    "simplex_4": ("simplex of 4", "#AA4466", "h"),
    "simplex_5": ("simplex of 5", "#CC6677", "h"),
    "simplex_6": ("simplex of 6", "#DD99AA", "h"),
}
OTHERS = ("#88CCEE", "#44AA99", "#661100", "#6699CC", "#DDCC77", "#000000")  # colours of variants that have no look


def profiles(
    family: Family, standard: Sequence[Facts] = (), pair: Sequence[Facts] = (), title: str = ""
) -> Figure | None:
    """Accuracy and calibration along curves: solid, the ensemble of t with 1 - t; dashed, the network at t.

    Args:
        family: its variants with two-point ensembles are drawn.
        standard: facts of runs of one network, a dashed grey band.
        pair: of ensembles of two such networks, a dotted grey band.
        title: above the figure.

    Returns:
        A figure, or None where the family has no curve.
    """
    curves = {name: runs for name, runs in family.items() if all("pair_accuracy" in run["scores"] for run in runs)}
    if not curves:
        return None
    with style.panels(2, height=3.3) as (figure, axes):
        for axis, score, label in zip(axes, ("accuracy", "ece_20"), (f"{_split(family)} accuracy (%)", "ECE (%)")):
            for name, (text, colour, marker) in looks(curves).items():
                runs = curves[name]
                t = t_of(runs[0])
                _band(
                    axis, t, [run["scores"][f"pair_{score}"] for run in runs], color=colour, marker=marker, label=text
                )
                _band(axis, t, [run["scores"][score] for run in runs], color=colour, linestyle="--")
            if standard:
                _level(axis, [run["scores"][score][0] for run in standard], "--", "standard training")
            if pair:
                _level(axis, [two["scores"][score][0] for two in pair], ":", "standard ensemble of two")
            for style_of_line, text in (("-", "ensemble of $t$ and $1-t$"), ("--", "network at $t$")):
                axis.plot([], [], color="black", linestyle=style_of_line, label=text)
            axis.set(xlabel="$t$", ylabel=label, xlim=(0.0, 1.0))
        return style.finished(figure, axes[0], title)


def simplex_sizes(family: Family, standard: Sequence[Facts] = (), title: str = "") -> Figure | None:
    """Accuracy and calibration of the midpoint of simplexes by their number of vertices, global and layerwise.

    Of the variants "line", "simplex_<n>", and these with "_layerwise".
    """
    kinds = {False: ("simplex midpoint", "#0072B2", "o"), True: ("layerwise simplex midpoint", "#D55E00", "d")}
    found: dict[bool, dict[int, list[Facts]]] = {False: {}, True: {}}
    for name, runs in family.items():
        if match := re.fullmatch(r"(?:line|simplex_(\d+))(_layerwise)?", name):
            found[match.group(2) is not None][int(match.group(1) or 2)] = runs
    if max(map(len, found.values())) < 2:
        return None
    with style.panels(2, height=2.9) as (figure, axes):
        for axis, score, label in zip(axes, ("accuracy", "ece_20"), (f"{_split(family)} accuracy (%)", "ECE (%)")):
            for layerwise, by_size in found.items():
                sizes = sorted(by_size)
                values = [[100 * at_midpoint(run, score) for run in by_size[n]] for n in sizes]
                text, colour, marker = kinds[layerwise]
                bars = [style.spread(v) for v in values]
                axis.errorbar(
                    sizes, [np.mean(v) for v in values], bars, color=colour, marker=marker, label=text, capsize=2
                )
            if standard:
                _level(axis, [run["scores"][score][0] for run in standard], "--", "standard training")
            axis.set(xlabel="vertices $n$", ylabel=label, xticks=sorted(set(found[False]) | set(found[True])))
        return style.finished(figure, axes[0], title)


def ensemble_sizes(by_size: dict[str, Sequence[float]], title: str = "") -> Figure:
    """Accuracy and calibration of ensembles by their number of members, bars over subsets of that size.

    Args:
        by_size: as of `analysis.ensembles.by_size`: {name: [M]}, with deviations under name + "_std".
        title: above the figure.
    """
    with style.panels(2, height=2.7) as (figure, axes):
        for axis, score, label in zip(axes, ("accuracy", "ece_20"), ("test accuracy (%)", "ECE (%)")):
            sizes = np.arange(1, len(by_size[score]) + 1)
            values, bars = (100 * np.asarray(by_size[name]) for name in (score, f"{score}_std"))
            axis.errorbar(sizes, values, bars, color=style.COLOURS["single"], marker="o", label="ensemble", capsize=2)
            axis.set(xlabel="members", ylabel=label)
            style.whole_numbers(axis)
        return style.finished(figure, axes[0], title)


def label_noise(family: Family, best_epochs: Family | None = None, title: str = "") -> Figure | None:
    """Accuracy of the midpoint (SWA: of the mean) by the fraction of noisy labels, a line a method.

    Args:
        family: variants named "<method>" and "<method>,noise_<percent>".
        best_epochs: the variants "early_stopping" with the scores of their runs' best epochs: one more method.
        title: above the figure.
    """
    methods: dict[str, dict[float, list[float]]] = {}
    best = {name.replace("early_stopping", BEST_EPOCH): runs for name, runs in (best_epochs or {}).items()}
    for name, runs in (family | best).items():
        method = (
            ",".join(part for part in name.split(",") if not part.startswith(("noise_", "label_noise="))) or "usual"
        )
        noise = 100 * runs[0]["config"]["label_noise"]
        if method == "early_stopping":  # which trains as plain does
            if name.replace(method, "plain") in family:
                continue
            method = "plain"
        methods.setdefault(method, {}).setdefault(noise, []).extend(at_midpoint(run, "accuracy") for run in runs)
    shown = {method: by_noise for method, by_noise in methods.items() if max(by_noise) > 0}
    if not shown:
        return None
    with style.panels(1, height=3.2) as (figure, (axis,)):
        for method, (text, colour, marker) in looks(shown).items():
            by_noise = shown[method]
            levels = sorted(by_noise)
            means, bars = zip(*((100 * np.mean(by_noise[x]), 100 * style.spread(by_noise[x])) for x in levels))
            axis.errorbar(levels, means, bars, color=colour, marker=marker or ".", label=text, capsize=2)
        kinds = {run["config"].get("label_noise_kind", "anew") for runs in family.values() for run in runs}
        axis.set(xlabel="wrong labels (%)" if kinds == {"wrong"} else "labels drawn anew (%)",
                 ylabel=f"{_split(family)} accuracy (%)")  # fmt: skip
        return style.finished(figure, axis, title)


def reliability(bins: dict[str, dict[str, np.ndarray]], title: str = "") -> Figure:
    """Reliability diagrams: accuracy less confidence by confidence, one line a method.

    Args:
        bins: {variant: result of `metrics.reliability`}, for at most five methods.
        title: above the figure.
    """
    with style.panels(1, height=3.0) as (figure, (axis,)):
        axis.axhline(0.0, color=style.COLOURS["reference"], linewidth=0.8)
        for name, (text, colour, marker) in looks(bins).items():
            result = bins[name]
            full = np.asarray(result["count"]) >= 10  # fewer say little
            confidence, accuracy = (100 * np.asarray(result[name])[full] for name in ("confidence", "accuracy"))
            axis.plot(confidence, accuracy - confidence, color=colour, marker=marker or ".", label=text)
        axis.set(xlabel="confidence (%)", ylabel="accuracy $-$ confidence (points)")
        return style.finished(figure, axis, title)


def dynamics(rows: dict[str, list[list[dict[str, float]]]], title: str = "") -> Figure | None:
    """Squared cosine and distance of endpoints through training, bands over seeds.

    Args:
        rows: {variant: rows of metrics.jsonl of each seed}; those with "distance" are drawn.
        title: above the figure.
    """
    shown = {name: runs for name, runs in rows.items() if runs and "distance" in runs[0][0]}
    if not shown:
        return None
    panels = (
        ("loss", "training loss", "log"),
        ("cosine_squared", r"$\cos^2$", "log"),
        ("distance", "distance", "linear"),
    )
    with style.panels(len(panels), height=2.6) as (figure, axes):
        for axis, (column, label, scale) in zip(axes, panels):
            axis.set_yscale(scale)
            for name, (text, colour, _) in looks(shown).items():
                runs = shown[name]
                length = min(map(len, runs))
                values = np.array([[row[column] for row in run[:length]] for run in runs])
                epochs = [row["epoch"] for row in runs[0][:length]]
                _band(axis, epochs, values, scale=1.0, color=colour, label=text)
            axis.set(xlabel="epoch", ylabel=label)
        return style.finished(figure, axes[0], title)


def _split(family: Family) -> str:
    """The split that the runs were scored on."""
    return str(next(iter(family.values()))[0].get("split", "test"))


def at_midpoint(facts: Facts, score: str) -> float:
    """A score at the midpoint (of captures: of their mean); without one, the mean over members, or of one network its
    own."""
    values = facts["scores"][score]
    return float(np.mean(values)) if facts["midpoint"] is None else values[facts["midpoint"]]


def looks(variants: Iterable[str]) -> dict[str, tuple[str, str, str]]:
    """{variant: (label, colour, marker)} in the order of legends: those of LOOKS, then the others by name."""
    variants = set(variants)
    others = sorted(variants - LOOKS.keys())
    colours = dict(zip(others, itertools.cycle(OTHERS)))
    known = {name: LOOKS[name] for name in LOOKS if name in variants}
    return known | {
        name: (style.named(name.replace("_", " ").replace(",", ", ")), colours[name], "") for name in others
    }


def _band(axis: Axes, x: Any, values: Any, scale: float = 100.0, **options: Any) -> None:
    style.band(axis, x, scale * np.asarray(values), **options)


def _level(axis: Axes, values: Sequence[float], linestyle: str, label: str) -> None:
    mean, width, colour = 100 * float(np.mean(values)), 100 * style.spread(values), style.COLOURS["reference"]
    axis.axhline(mean, linestyle=linestyle, color=colour, label=label)
    axis.axhspan(mean - width, mean + width, color=colour, alpha=0.12, linewidth=0)
