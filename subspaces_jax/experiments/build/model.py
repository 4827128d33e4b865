"""The network of an experiment as the functions that training and evaluation take.

They are made once for the same arguments, so that what is compiled for them is compiled once a process.
"""

import contextlib
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from subspaces_jax import geometry, parallel
from subspaces_jax.data.catalogue import DatasetInfo
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import choices
from subspaces_jax.experiments.build.images import as_images, augmenter, floats, normaliser, with_own_order
from subspaces_jax.experiments.calls import DTYPES
from subspaces_jax.networks import checks, families
from subspaces_jax.tasks import Task
from subspaces_jax.training import objective
from subspaces_jax.training.objective import Objective

PyTree = Any
LABELS = {"classification": ("class",), "regression": ("class", "real")}  # DatasetInfo.label of tasks that need one
KEPT = 32  # of each kind of made functions: more than one command uses, and what they hold is small


class Model(NamedTuple):
    """A network as the functions that training and evaluation take; all take images as the data set holds them, or each
    of them flat (see `flat`).

    Attributes:
        network: the Flax module.
        init: (key, K) -> variables with stacked params.
        apply: eval mode, (variables, images) -> outputs [B, ...] of the task's shape, float32.
        apply_train: train mode on augmented, clean images, (variables, images, key) -> (outputs, batch_stats); for
            `batch_stats.refresh_batch_stats`.
        objective: what the step minimises.
        targets: (images, labels) -> the task's targets.
        features: eval mode, (variables, images) -> [B, ...]; None where the network sows none.
        augment: (keys [B], images) -> images as in training; None changes nothing.
        inputs: images as the data set holds them -> inputs of the network.
        at_points: eval mode, (stack, points [T, K], images) -> outputs [T, B, ...] of all points at once, see
            `analysis.points`; None where the network offers none.
        shapes: of the parameters of one network.
    """

    network: nn.Module
    init: Callable[[jax.Array, int], PyTree]
    apply: Callable[[PyTree, jax.Array], jax.Array]
    apply_train: Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]]
    objective: Objective
    targets: Callable[[jax.Array, PyTree], PyTree]
    features: Callable[[PyTree, jax.Array], jax.Array] | None
    augment: Callable[[jax.Array, jax.Array], jax.Array] | None
    inputs: Callable[[jax.Array], jax.Array]
    at_points: Callable[[PyTree, jax.Array, jax.Array], jax.Array] | None = None
    shapes: PyTree = None


class Settings(NamedTuple):
    """What a model is made of; fields of a config by their names, but for `pixel_seed` (None: pixels stay) and
    `own_orders` (whether training images carry an order of their pixels, see `corruption.with_orders`)."""

    network: str
    dtype: str
    matmul_precision: str
    rematerialise: str
    dropout: float
    batch_norm: str
    augmentation: str
    normalisation: str
    input_noise: float
    pixel_seed: int | None
    own_orders: bool
    with_features: bool


@lru_cache(KEPT)
def model(settings: Settings, info: DatasetInfo, task: Task) -> Model:
    """The model for a data set and a task.

    Raises:
        ConfigError: a network that is unknown, or that does not give what the task scores (names both), or a task that
            the data set's inputs cannot have.
    """
    shape = _output_shape(task, info)
    make = partial(network, settings, int(np.prod(shape)))
    module, in_step = make(), make(parallel.AXIS if settings.batch_norm == "global" else None)
    traits = _checked(settings, module, info, shape)
    if settings.with_features and not traits.sows_features:
        raise ConfigError(f"config.feature_diversity needs features, and {settings.network} sows none: set it to 0")
    train_options, eval_options = traits.train_options, traits.eval_options
    alone = (lambda function: checks.alone(function, parallel.AXIS)) if traits.binds_axis else lambda function: function
    normalise, augment = normaliser(settings.normalisation, settings.dtype, info), augmenter(settings, info)
    shaped = lambda outputs: outputs.astype(jnp.float32).reshape(outputs.shape[0], *shape)
    carrying = partial(as_images, info)  # an order of their pixels, some training images
    in_order = lambda images: with_own_order(info, carrying(images))

    run = partial(_in_precision, settings.matmul_precision)

    def init(key, num_endpoints):
        make = lambda key: geometry.init_stack(module, key, num_endpoints, _example(info), **eval_options)
        return alone(make)(key)

    def apply(variables, images):
        images = in_order(images)
        of_inputs = lambda inputs: run(module.apply, variables, inputs, **eval_options)
        return shaped(alone(of_inputs)(normalise(images)))

    def features(variables, images):
        images = in_order(images)
        keep = lambda inputs: run(module.apply, variables, inputs, **eval_options, mutable=["intermediates"])[1]
        return alone(keep)(normalise(images))["intermediates"]["features"][0]

    def at_points(stack, points, images):
        outputs = run(module.at_points, stack, points, normalise(in_order(images)))
        return outputs.astype(jnp.float32).reshape(*outputs.shape[:2], *shape)

    def train_mode(module, kept, variables, inputs, key):
        outputs, updated = run(
            module.apply, variables, inputs, **train_options, mutable=["batch_stats", *kept], rngs={"dropout": key}
        )
        found = updated["intermediates"]["features"][0] if kept else ()
        return shaped(outputs), updated.get("batch_stats", {}), found

    def apply_train(variables, images, key):
        images, keys = carrying(images), jax.random.split(key, images.shape[0])
        images = images if augment is None else augment(keys, images)
        return alone(lambda inputs: train_mode(module, (), variables, inputs, key)[:2])(normalise(images))

    def forward(variables, inputs, keys):
        with objective.dropout_by_example(keys):
            kept = ("intermediates",) if settings.with_features else ()
            return train_mode(in_step, kept, variables, inputs, keys[0])

    of_images = objective.supervised(
        _rematerialised(settings.rematerialise, forward),
        task,
        normalise=normalise,
        floats=floats,
        augment=augment,
        noise=settings.input_noise,
    )

    def of_batch(variables, batch, keys):
        return of_images(variables, batch | {"images": carrying(batch["images"])}, keys)

    return Model(
        module,
        init,
        apply,
        apply_train,
        of_batch,
        _targets(task, info),
        features if traits.sows_features else None,
        augment,
        lambda images: normalise(in_order(images)),
        at_points if hasattr(module, "at_points") else None,
        traits.params,
    )


def network(settings: Settings, num_outputs: int, axis_name: str | None = None) -> nn.Module:
    """The Flax module that settings.network calls, see `networks.families`.

    Args:
        num_outputs: what it takes for its number of classes.
        axis_name: over which BatchNorm takes its statistics.
    """
    text = settings.network
    options: dict[str, Any] = {"dtype": DTYPES[settings.dtype], "axis_name": axis_name, "dropout": settings.dropout}
    name = text.partition("(")[0].strip()
    try:
        if ":" in name:
            (call,) = choices.parse(text)
            if call.args:
                raise ValueError(f"{text!r}: write its options by name")
            return families.make_imported(name, num_outputs, options, dict(call.options))
        if name not in families.NETWORKS:
            made = families.by_name(text, num_outputs, **options)
        else:
            given = {"num_classes": num_outputs, "dtype": options["dtype"], "axis_name": axis_name}
            made = choices.make("network", text, families.NETWORKS, given, {"dropout": settings.dropout})
            if settings.dropout and not hasattr(made, "dropout"):
                raise ValueError(f"{text!r}, which has no dropout: set dropout=0")
        getattr(made, "blocks_per_stage", None)  # refuses depths that a CifarResNet cannot have
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"config.network is {error}") from None
    return made


def _in_precision(precision: str, function: Callable[..., Any], *args: Any, **keywords: Any) -> Any:
    """What the function gives, its products of float32 traced in that precision, and so those of its gradient."""
    with jax.default_matmul_precision(None if precision == "default" else precision):
        return function(*args, **keywords)


def _rematerialised(what: str, forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward pass whose gradient keeps nothing of it, or the results of products alone."""
    policies = {"all": None, "all_but_products": jax.checkpoint_policies.dots_saveable}
    return jax.checkpoint(forward, policy=policies[what]) if what in policies else forward


def _output_shape(task: Task, info: DatasetInfo) -> tuple[int, ...]:
    """The shape of an example's outputs, where the data set has what the task scores."""
    if info.label not in LABELS.get(task.name, (info.label,)):
        raise ConfigError(
            f"config.task is {task.name}, which takes labels of the kind {' or '.join(LABELS[task.name])}, and the "
            f"data set has {info.label!r}: choose another task or config.dataset"
        )
    try:
        return task.output_shape(info.image_shape, info.num_classes, info.label_shape)
    except ValueError as error:
        raise ConfigError(f"config.task: {error}") from None


def _checked(settings: Settings, module: nn.Module, info: DatasetInfo, shape: tuple[int, ...]) -> checks.Traits:
    """What the network gives: outputs of the task's shape, or flat. Those of the package have gradients."""
    flat = (int(np.prod(shape)),)
    check = partial(
        checks.check_network, settings.network, module, info.image_shape, axis_name=parallel.AXIS,
        dtype=DTYPES[settings.dtype], with_gradient=":" in settings.network,
    )  # fmt: skip
    try:
        if shape != flat:
            with contextlib.suppress(ValueError):
                return check(shape)
        return check(flat)
    except ValueError as error:
        raise ConfigError(f"config.network {' '.join(str(error).split())}") from None


def _example(info: DatasetInfo) -> jax.Array:
    return jnp.zeros((1, *info.image_shape), jnp.float32)


@lru_cache(KEPT)
def _targets(task: Task, info: DatasetInfo) -> Callable[[jax.Array, PyTree], PyTree]:
    inputs = lambda images: floats(with_own_order(info, as_images(info, images)))
    return lambda images, labels: task.targets(None if images is None else inputs(images), labels)
