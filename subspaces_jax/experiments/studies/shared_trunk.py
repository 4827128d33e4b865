"""Ensembles whose members share the trunk of the first network: what they lose, and what they cost.

WA(n) keeps n layers of every member, counted from the outputs; the first of them is fitted to what the trunk gives on
the training images, with base=test on the test images. Of dense networks the paper's WA(n) has the same number; of
VGG16 the paper's WA(j) counts from the inputs and is n = 16 - j here. Of networks with BatchNorm or with shortcuts, as
the paper's PreResNet110, members keep their last layer, fitted to the features that the trunk gives it.

results/shared_trunk.npz has, of M members, "ensemble_accuracy" [M] of the first 1, 2, ... M and "one_model_accuracy"
[M] of each, and of those on the trunk "ensemble_accuracy_adjusted" and "one_model_accuracy_adjusted", as the code of
Anokhin and Yarotsky 2020 (arXiv:2008.00741) has them, in percent. Of several n these last two are [A, M].

Reference: Anokhin and Yarotsky, Low-loss connection of weight vectors: distribution-based approaches, 2020,
arXiv:2008.00741.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from subspaces_jax import evaluation, geometry, trees
from subspaces_jax.analysis import ensembles
from subspaces_jax.connecting import cost_ratio, operations, with_last_layer, with_trunk
from subspaces_jax.connecting.chains import is_chain
from subspaces_jax.data import sources
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.build.images import flat
from subspaces_jax.experiments.evaluate import passes
from subspaces_jax.experiments.runs import Networks, Run
from subspaces_jax.experiments.schema import Field, anything, at_least
from subspaces_jax.experiments.studies import members, network_parts
from subspaces_jax.plots import together

FIELDS: dict[str, Field] = members.FIELDS | {
    "num_layers": Field(1, at_least(0), "n that each member keeps, counted from the outputs; 0 for every n < L"),
    "base": Field(
        "training",
        lambda value: value in ("training", "test"),
        "training or test: the images on which layers are fitted to the trunk",
    ),
    "bias": Field(False, anything, "whether the bias of a layer is fitted to the trunk with its kernel"),
    "patches": network_parts.PATCHES,
}


def run(settings: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Accuracies of members and of ensembles of the first 1, 2, ... M, apart and on the trunk of the first.

    Returns:
        Arrays: see the top of this file, and "num_layers", "cost_ratio" [A]. Facts: "members", "num_layers" [A],
        "operations" [L] of each layer for one image, "cost_ratio" [A] to as many networks apart.
    """
    opened = members.open_all(settings)
    networks = members.gathered(settings, opened, members.key_of(settings, "members"))
    made, own = opened[0].experiment, geometry.unstack(networks.stack)
    base = members.test_split(settings, made) if settings.base == "test" else made.data.scored_split("train")
    _check(made, networks)
    by_layers = is_chain(network_parts.axis_table(made)) and not jax.tree.leaves(networks.batch_stats)
    first = {"params": own[0], "batch_stats": networks.batch_stats}
    trunk = (_of_layers if by_layers else _of_features)(settings, made, first, base)
    counts = trunk.operations
    if settings.num_layers > len(counts):
        raise ConfigError(f"config.num_layers is {settings.num_layers}: the networks have {len(counts)} layers")
    kept = [settings.num_layers] if settings.num_layers else list(range(1, len(counts)))
    ensemble, alone = _accuracies(settings, opened, networks, "independent")
    on_trunk = []
    for n in kept:
        try:
            stack = geometry.stack([own[0], *(trunk.carrying(member, n) for member in own[1:])])
        except ValueError as error:
            raise ConfigError(f"config.runs: {error}") from None
        on_trunk.append(_accuracies(settings, opened, networks._replace(stack=stack), f"WA({n})"))
    ensembles_adjusted, alone_adjusted = (np.stack(rows) for rows in zip(*on_trunk))
    ratios = [cost_ratio(counts, n, len(own)) for n in kept]
    arrays = {
        "ensemble_accuracy": ensemble,
        "one_model_accuracy": alone,
        "ensemble_accuracy_adjusted": ensembles_adjusted[0] if settings.num_layers else ensembles_adjusted,
        "one_model_accuracy_adjusted": alone_adjusted[0] if settings.num_layers else alone_adjusted,
        "num_layers": np.array(kept),
        "cost_ratio": np.array(ratios),
    }
    facts = {
        "members": networks.names,
        "num_layers": kept,
        "operations": counts.tolist(),
        "cost_ratio": ratios,
        "accuracy": {name: values.tolist() for name, values in arrays.items() if "accuracy" in name},
        "title": "{network} on {dataset}, {num} members".format(**made.config, num=len(own)),
    }
    return arrays, facts


def table(facts: dict[str, Any]) -> str:
    """Accuracies in percent, a row a number of members, and what the ensemble of all costs."""
    of, kept = facts["accuracy"], facts["num_layers"]
    pairs = [("apart", of["one_model_accuracy"], of["ensemble_accuracy"])]
    adjusted = [np.atleast_2d(of[f"{name}_accuracy_adjusted"]) for name in ("one_model", "ensemble")]
    pairs += [(f"WA({n})", *rows) for n, *rows in zip(kept, *adjusted)]
    lines = [f"{'member':8}" + "".join(f"{name:>10}{'ensemble':>10}" for name, *_ in pairs)]
    for m in range(len(facts["members"])):
        lines.append(f"{m + 1:<8d}" + "".join(f"{one[m]:10.2f}{ensemble[m]:10.2f}" for _, one, ensemble in pairs))
    lines.append(f"{sum(facts['operations']) / 1e6:.3g} million operations a network and image; cost of the ensemble:")
    return "\n".join([*lines, *(f"WA({n}) {ratio:.3f}" for n, ratio in zip(kept, facts["cost_ratio"]))])


def figures(arrays: dict[str, np.ndarray], facts: dict[str, Any]) -> dict[str, Figure]:
    """Accuracy by the number of members; of several n also accuracy of all members against what they cost."""
    curves = {"independent": (arrays["ensemble_accuracy"], arrays["one_model_accuracy"])}
    adjusted = [np.atleast_2d(arrays[f"{name}_accuracy_adjusted"]) for name in ("ensemble", "one_model")]
    curves |= {f"WA({n})": (ensemble, one) for n, ensemble, one in zip(facts["num_layers"], *adjusted)}
    drawn = {"shared_trunk": together.ensembling(curves, facts["title"])}
    if len(facts["num_layers"]) > 1:
        costs = {name: ratio for name, ratio in zip(curves, [1.0, *facts["cost_ratio"]])}
        drawn["shared_trunk_costs"] = together.costs(curves, costs, facts["title"])
    return drawn


def _accuracies(settings: Any, opened: list[Run], networks: Networks, label: str) -> tuple[np.ndarray, np.ndarray]:
    """In percent, [M] of the ensembles of the first 1, 2, ... M members and [M] of each alone."""
    num = len(networks.names)
    arrays, test = members.scored(
        settings, opened, networks, jnp.eye(num), with_pairs=False, progress=members.progress(num, label).over
    )
    running = ensembles.subset_scores(arrays["logits"], test.labels, [range(m + 1) for m in range(num)])
    return 100.0 * running["accuracy"], 100.0 * np.asarray(arrays["accuracy"], np.float64)


class _Trunk(NamedTuple):
    """Attributes:
    operations: floating-point operations for one image of each layer, or of all before the last and of the last, [L].
    carrying: (member, n) -> the trunk with the member's last n layers, fitted to it.
    """

    operations: np.ndarray
    carrying: Callable[[Any, int], Any]


def _of_layers(settings: Any, made: Experiment, first: Any, base: sources.Arrays) -> _Trunk:
    """Of a chain of layers, each of which may be the first that members keep; `first` are variables."""
    table, features = network_parts.axis_table(made), network_parts.features_of(settings, made, base)
    trunk = first["params"]
    image = jax.eval_shape(made.model.inputs, jax.ShapeDtypeStruct((1, *made.data.info.image_shape), jnp.uint8))
    try:
        counts = operations(trunk, table, features, image.shape[1:])
    except ValueError as error:
        raise ConfigError(f"config.runs: {error}") from None
    return _Trunk(counts, lambda member, n: with_trunk(member, trunk, table, n, features, bias=settings.bias))


def _of_features(settings: Any, made: Experiment, first: Any, base: sources.Arrays) -> _Trunk:
    """Of any network that sows the features which its last layer takes; statistics are refreshed for each."""
    if (of_images := made.model.features) is None:
        raise ConfigError(f"config.runs: {made.network_text} sows no features, to which its last layer could be fitted")
    shared, layer, trunk = passes(made), network_parts.layers_of(made)[-1], first["params"]

    def features(params: Any) -> np.ndarray:
        variables = first | {"params": params}
        if made.refreshes:
            taken = (shared["train_images"], shared["key"], settings.eval_batch_size, made.mesh)
            variables["batch_stats"] = evaluation.refresh_batch_stats(shared["apply_train"], variables, *taken)
        found = evaluation.predict(of_images, variables, flat(base.images), settings.eval_batch_size, made.mesh)
        return np.asarray(found, np.float32).reshape(len(found), -1)

    of_trunk = features(trunk)
    carrying = lambda member: with_last_layer(member, trunk, layer, features(member), of_trunk, bias=settings.bias)
    image = jax.ShapeDtypeStruct((1, *made.data.info.image_shape), jnp.uint8)
    total = (jax.jit(made.model.apply).lower(first, image).cost_analysis() or {})["flops"]  # as XLA counts them
    head = 2 * int(np.prod(trees.leaf_names(trunk)[f"{layer}/kernel"].shape))
    # of its two layers, the trunk and the last, two are all that there is
    return _Trunk(np.array([int(total) - head, head]), lambda member, n: carrying(member) if n == 1 else member)


def _check(made: Experiment, networks: Networks) -> None:
    if len(networks.names) < 2:
        raise ConfigError("config.runs and config.members give 1 network, a shared trunk takes at least two")
    if made.task.name != "classification":
        raise ConfigError(f"config.runs: the accuracy of ensembles is of classifications, the task is {made.task.name}")
