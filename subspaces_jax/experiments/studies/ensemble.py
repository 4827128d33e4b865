"""Ensembles of networks, by size, and how far their members are from each other in outputs and features.

References: Lakshminarayanan et al., Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles, 2017,
arXiv:1612.01474; Fort et al., Deep Ensembles: A Loss Landscape Perspective, 2019, arXiv:1912.02757.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from subspaces_jax.analysis import ensembles
from subspaces_jax.experiments.schema import Field
from subspaces_jax.experiments.studies import members
from subspaces_jax.plots import families

FIELDS: dict[str, Field] = members.FIELDS
PyTree = Any


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Scores of each member, of ensembles by size and of those of the first 1, 2, ... M ("running", of any task);
    "feature_cosine" [M, M] where networks sow features."""
    opened = members.open_all(settings)
    networks = members.gathered(settings, opened, members.key_of(settings, "members"))
    made, num, held = opened[0].experiment, len(networks.names), {}
    by_pass = made.task.name != "classification" and num > 1  # of others there are no logits to average
    holds = bool(made.model.features) or by_pass
    arrays, test = members.scored(
        settings,
        opened,
        networks,
        jnp.eye(num),
        with_pairs=False,
        visit=held.__setitem__ if holds else lambda t, variables: None,
        progress=members.progress(num, "ensemble").over,
    )
    facts = members.facts_of(opened, networks.names, arrays, test.labels, together=True)
    in_order = [held[m] for m in sorted(held)]
    if by_pass:
        facts["running"] = members.running(settings, made, in_order, test)
    if held and made.model.features:
        facts["feature_cosine"] = _feature_cosines(made.model, in_order, test.images, settings.eval_batch_size)
    return arrays | {"labels": np.asarray(test.labels)}, facts | {"title": f"ensemble of {settings.runs}"}


table = members.table


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """Accuracy and calibration by the number of members, where there are several."""
    if "ensembles" not in facts:
        return {}
    return {"ensemble": families.ensemble_sizes(facts["ensembles"], title_of(facts, "ensemble"))}


def title_of(facts: dict[str, Any], name: str) -> str:
    """Of a figure; results from before titles were stored have the runs in their config."""
    return facts.get("title") or f"{name} of {facts['config']['runs']}"


def _feature_cosines(model: Any, networks: list[PyTree], images: Any, size: int) -> list[list[float]]:
    """[M, M], the features of one batch at a time."""
    features = jax.jit(model.features)
    starts = [] if callable(images) else range(0, len(images), size)
    parts = (images[i : i + size] for i in starts)
    if callable(images):
        parts = (batch[mask] for batch, _, mask in images())
    return ensembles.feature_cosines(
        jnp.stack([features(network, part) for network in networks]) for part in parts
    ).tolist()
