"""What studies and connectors ask of the layers of an experiment's network: their names, inputs and loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import trees
from subspaces_jax.analysis import reinitialisation
from subspaces_jax.connecting import Criterion, Features, layer_inputs
from subspaces_jax.data import sources
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.schema import Field
from subspaces_jax.networks import axes
from subspaces_jax.networks.axes import AxisTable

PATCHES = Field("coarse", lambda value: value in ("coarse", "all"), "of maps, that weights are adjusted on")


def axis_table(made: Experiment) -> AxisTable:
    """`axes.table_of` an experiment's network, which has to have one.

    Raises:
        ConfigError: a network from elsewhere that does not say so.
    """
    if not (table := axes.table_of(made.model.network)):
        raise ConfigError("config.runs: a network from elsewhere needs a method `unit_axes`, see networks.axes")
    return table


def layers_of(made: Experiment) -> list[str]:
    """All layers of an experiment's network, in the order of its axis table, or of their names where it has none."""
    if table := axes.table_of(made.model.network):
        return axes.layers(table)
    return sorted(reinitialisation.layer_names(made.stack_shapes), key=trees.natural)


def features_of(settings: Any, made: Experiment, split: sources.Arrays | None = None) -> Features:
    """What the layers of an experiment's networks take from the images of a split as they are, batch by batch.

    Args:
        settings: "eval_batch_size" and "patches".
        made: the experiment, of networks without BatchNorm.
        split: None for the training split.
    """
    images, size = (made.data.scored_split("train") if split is None else split).images, settings.eval_batch_size
    starts = range(0, 0 if callable(images) else len(images), size)
    batches = images if callable(images) else lambda: (images[start : start + size] for start in starts)
    normalised = jax.jit(made.model.inputs)
    return Features(
        layer_inputs(made.model.network),
        lambda: (normalised(jnp.asarray(_real(batch) if isinstance(batch, tuple) else batch)) for batch in batches()),
        patches=settings.patches,
    )


def _real(batch: tuple[Any, ...]) -> Any:
    """The images of a streamed batch that are no padding."""
    return np.asarray(batch[0])[np.asarray(batch[2], bool)]


def criterion_of(made: Experiment) -> Criterion:
    """The mean loss of an experiment's task on its training images as they are, in a random order of each pass."""
    model, train = made.model, made.data.scored_split("train")

    def loss(params, images, labels):
        return jnp.mean(made.task.loss(model.apply({"params": params}, images), model.targets(images, labels)))

    def batches(size, seed):
        if callable(train.images):
            yield from (batch[:2] for batch in train.images() if np.all(batch[2]))
            return
        order, size = np.random.default_rng(seed).permutation(len(train.images)), min(size, len(train.images))
        for start in range(0, len(order) - size + 1, size):
            yield jax.tree.map(lambda leaf: leaf[order[start : start + size]], tuple(train))

    return Criterion(loss, batches)
