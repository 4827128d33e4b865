"""From a config to objects. This file alone reads a config: a flat mapping of the fields in `fields.FIELDS`.

Durations are epochs here and steps below.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import FlaxError

from subspaces_jax import checkpoints, geometry, losses, parallel, records
from subspaces_jax.data import augmentation, batches, catalogue, corruption, sources
from subspaces_jax.errors import ConfigError, DataError, RunDirectoryError
from subspaces_jax.experiments.fields import AUGMENTATIONS, DTYPES, FIELDS, SUBSPACES, Config, checked
from subspaces_jax.networks import families
from subspaces_jax.training import optimizers
from subspaces_jax.training import step as training_step

PyTree = Any


class Model(NamedTuple):
    """A network as the functions that training and evaluation take; all take images as the data set holds them."""

    network: nn.Module
    init: Callable[[jax.Array, int], PyTree]  # (key, K) -> variables with stacked params
    apply: Callable[[PyTree, jax.Array], jax.Array]  # eval mode -> outputs, float32
    apply_train: Callable[[PyTree, jax.Array, jax.Array], tuple[jax.Array, PyTree]]  # augments; for refresh_batch_stats
    apply_step: Callable[[PyTree, jax.Array, jax.Array], tuple[Any, PyTree]]  # inside the pmapped step
    features: Callable[[PyTree, jax.Array], jax.Array] | None  # eval mode -> [B, ...]; None where the network sows none
    augment: Callable[[jax.Array, jax.Array], jax.Array]


def check(config: Config) -> dict[str, Any]:
    """The config as a plain dict, every field known, present, well-typed and in range.

    Raises:
        ConfigError: names the field, what it got and what it takes.
    """
    config = checked(config, FIELDS)
    try:
        catalogue.info(config["dataset"])
    except DataError as error:
        raise ConfigError(f"config.dataset: {error}") from None
    made = subspace(config)
    _check_network(config)
    if config["num_members"] > 1 and (made.num_endpoints > 1 or config["capture"]):
        raise ConfigError(
            "config.num_members trains single networks: set subspace='none' and capture=False, or num_members=1"
        )
    if config["capture"] and made.num_endpoints > 1:
        raise ConfigError("config.capture keeps checkpoints of one network: set subspace='none', or capture=False")
    if config["initial"] and config["num_members"] > 1:
        raise ConfigError("config.initial is for one training: set num_members=1, or initial='' for random weights")
    if config["feature_diversity"] and config["num_samples"] < 2:
        raise ConfigError("config.feature_diversity compares two samples of a batch: set num_samples=2 or more")
    return config


def config_of(workdir: str | pathlib.Path) -> dict[str, Any]:
    """The config that a run directory was made with, checked.

    Raises:
        RunDirectoryError: it is none, or the folder of a sweep or of an analysis.
    """
    config = records.read_config(workdir)
    for name, kind in (("fields", "a sweep"), ("analysis", "an analysis")):
        if name in config:
            raise RunDirectoryError(f"{workdir} is the folder of {kind}: name the directory of a run")
    return check(config)


def _check_network(config: Config) -> None:
    """Whether the network can be made and takes the data set's images: traced, nothing is computed."""
    shape = catalogue.info(config["dataset"]).image_shape
    module = network(config, 2)
    train, images = families.train_options(module, True), jnp.zeros((2, *shape))

    def once(key):
        variables = module.init(key, images, **families.train_options(module, False))
        if ":" in config["network"]:  # one from elsewhere may ask of training what it gets none of
            kept = {name: variables[name] for name in ("params", "batch_stats") if name in variables}
            module.apply(kept, images, **train, mutable=["batch_stats"], rngs={"dropout": key})
        return variables

    try:
        jax.eval_shape(once, jax.random.key(0))
    except (TypeError, ValueError, ZeroDivisionError, FlaxError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"config.network {config['network']!r} cannot be trained on images of shape {shape} ({reason[:200]}): "
            "choose another network or data set"
        ) from None


def subspace(config: Config) -> Any:
    """The subspace without its layerwise form, which needs parameters."""
    name, num = config["subspace"], config["num_endpoints"]
    usual, make = SUBSPACES[name]
    try:
        made = make(num or usual)
    except ValueError as error:
        raise ConfigError(f"config.num_endpoints: {error}") from None
    if num and made.num_endpoints != num or name == "none" and num > 1:
        raise ConfigError(f"config.num_endpoints is {num} but subspace {name!r} has {usual}: set 0 or {usual}")
    if config["beta"] and made.num_endpoints < 2 or config["layerwise"] and made.num_endpoints < 2:
        raise ConfigError(
            f"config.beta and config.layerwise need a subspace, got {name!r}: set beta=0 and layerwise=False"
        )
    return made


def network(config: Config, num_classes: int, axis_name: str | None = None) -> nn.Module:
    """The Flax module named by config.network, see `networks.families`."""
    options = {"dtype": DTYPES[config["dtype"]], "axis_name": axis_name, "dropout": config["dropout"]}
    try:
        made = families.by_name(config["network"], num_classes, **options)
        getattr(made, "blocks_per_stage", None)  # refuses depths that a CifarResNet cannot have
    except ValueError as error:
        raise ConfigError(f"config.network is {error}") from None
    return made


def model(config: Config) -> Model:
    """The network of the config for the config's data set."""
    info = catalogue.info(config["dataset"])
    normalise = partial(augmentation.normalise, mean=info.mean, std=info.std, dtype=DTYPES[config["dtype"]])
    module = network(config, info.num_classes)
    in_step = network(config, info.num_classes, parallel.AXIS if config["batch_norm"] == "global" else None)
    parts = AUGMENTATIONS[config["augmentation"]]
    if config["pixel_shuffle"] and not info.streams:  # a stream's images come augmented and shuffled
        parts += (lambda keys, images: corruption.pixel_shuffle(images, config["corruption_seed"]),)
    augment = augmentation.compose(*parts)
    train_options, eval_options = (families.train_options(module, train) for train in (True, False))

    def init(key, num_endpoints):
        images = jnp.zeros((1, *info.image_shape), jnp.float32)
        return geometry.init_stack(module, key, num_endpoints, images, **eval_options)

    def apply(variables, images):
        return module.apply(variables, normalise(images), **eval_options).astype(jnp.float32)

    def features(variables, images):
        _, kept = module.apply(variables, normalise(images), **eval_options, mutable=["intermediates"])
        return kept["intermediates"]["features"][0]

    def train_mode(module, kept, variables, images, key):
        outputs, updated = module.apply(
            variables, normalise(images), **train_options, mutable=["batch_stats", *kept], rngs={"dropout": key}
        )
        outputs = outputs.astype(jnp.float32)
        if kept:
            outputs = outputs, updated["intermediates"]["features"][0]
        return outputs, updated.get("batch_stats", {})

    def apply_train(variables, images, key):
        keys = jax.random.split(key, images.shape[0])
        return train_mode(module, (), variables, augment(keys, images), key)

    kept = ("intermediates",) if config["feature_diversity"] else ()
    apply_step = partial(train_mode, in_step, kept)
    return Model(module, init, apply, apply_train, apply_step, features if _sows(config, module) else None, augment)


def _sows(config: Config, module: nn.Module) -> bool:
    """Whether a network leaves features: all of ours do, one from elsewhere is asked."""
    if ":" not in config["network"]:
        return True
    image = jnp.zeros((1, *catalogue.info(config["dataset"]).image_shape))
    options = families.train_options(module, False)
    init = lambda key: module.init_with_output(key, image, mutable=True, **options)[1]
    sows = "features" in jax.eval_shape(init, jax.random.key(0)).get("intermediates", {})
    if config["feature_diversity"] and not sows:
        raise ConfigError(f"config.feature_diversity needs features, and {config['network']} sows none: set it to 0")
    return sows


def data(config: Config, split: str) -> sources.Arrays:
    """One split of the config's data set, corrupted as the config says: training labels, and pixels of the test split.

    Pixels of training images are shuffled after augmentation, by it, see `model`.

    NumPy arrays; of a data set that streams, images are a function that begins one pass, see `evaluation`, in training
    form for "train", and the training labels, which only training reads, are not there ([N] zeros).
    """
    if streams(config):
        return _streamed(config, split)
    images, labels = sources.load(config["dataset"], split, **_folders(config))
    if split == "train":
        num = config["num_train_examples"] or len(labels)
        if num > len(labels):
            raise ConfigError(
                f"config.num_train_examples is {num}, but {config['dataset']} has {len(labels)}: at most that"
            )
        images, labels = images[:num], labels[:num]
        num_classes = catalogue.info(config["dataset"]).num_classes
        labels = corruption.noisy_labels(labels, config["label_noise"], num_classes, config["corruption_seed"])
    elif config["pixel_shuffle"]:
        images = corruption.pixel_shuffle(images, config["corruption_seed"])
    return sources.Arrays(images, labels)


def streams(config: Config) -> bool:
    """Whether the config's data set is read image by image."""
    return catalogue.info(config["dataset"]).streams


def train_stream(config: Config, batch_size: int, start_step: int = 0, part: tuple[int, int] = (0, 1)) -> Any:
    """The training batches of a data set that streams, from `start_step` on; see `data.stream`.

    Args:
        batch_size: of what this process reads.
        start_step: batches to leave out.
        part: (i, n) for every n-th example from i on, where n processes share a batch.
    """
    from subspaces_jax.data import stream  # Grain takes a second to import

    info, source = catalogue.info(config["dataset"]), _source(config, "train")
    relabel = None
    if config["label_noise"]:
        noise = (len(source), config["label_noise"], info.num_classes, config["corruption_seed"])
        relabel = corruption.label_noise(*noise)[part[0] :: part[1]]
    return stream.train_stream(
        sources.Part(source, *part),
        batch_size,
        image_size=info.image_shape[0],
        seed=config["seed"],
        relabel=relabel,
        pixel_seed=_pixel_seed(config),
        start_step=start_step,
        num_workers=config["num_workers"],
    )


def _pixel_seed(config: Config) -> int | None:
    return config["corruption_seed"] if config["pixel_shuffle"] else None


def _source(config: Config, split: str) -> Any:
    if config["num_train_examples"]:
        raise ConfigError(
            f"config.num_train_examples is for data sets that fit on the device, {config['dataset']} streams: "
            "set it to 0"
        )
    return sources.open_source(config["dataset"], split, **_folders(config))


def _streamed(config: Config, split: str) -> sources.Arrays:
    from subspaces_jax.data import stream

    source, size = _source(config, split), config["eval_batch_size"]
    if split == "train":
        num_batches = min(config["num_refresh_batches"] or len(source) // size, len(source) // size)
        return sources.Arrays(partial(_some, config, size, num_batches), np.zeros(len(source), np.int32))
    crop = catalogue.info(config["dataset"]).image_shape[0]
    # ImageNet-C's files are such crops themselves
    resize = crop if config["dataset"].startswith("imagenet_c") else round(crop / 0.875)
    options = {"resize": resize, "crop": crop, "pixel_seed": _pixel_seed(config), "num_workers": config["num_workers"]}
    begin = partial(stream.eval_stream, source, size, **options)
    return sources.Arrays(begin, np.array([label for _, label in source], np.int32))


def _some(config: Config, batch_size: int, num_batches: int) -> Iterator[Any]:
    stream = train_stream(config, batch_size)
    try:
        yield from itertools.islice(stream, num_batches)
    finally:
        stream.close()


def _folders(config: Config) -> dict[str, str | None]:
    return {name: config[name] or None for name in ("data_dir", "idx_dir", "archive")}


def capture_steps(config: Config, steps_per_epoch: int) -> tuple[int, ...]:
    """Steps after which checkpoints are kept for averages and snapshots: none without config.capture."""
    num_epochs, models = config["num_epochs"], config["num_cycles"]
    if not config["capture"]:
        return ()
    try:
        if config["schedule"] == "snapshot_cyclic":
            knots = optimizers.snapshot_knots(num_epochs, models, config["warmup_epochs"])[1:]
        else:
            knots = optimizers.swa_knots(num_epochs, models, config["swa_start"])
    except ValueError as error:
        raise ConfigError(f"config.num_cycles: {error}") from None
    return tuple(epoch * steps_per_epoch for epoch in knots)


def kept_steps(config: Config, steps_per_epoch: int) -> tuple[int, ...]:
    """Steps whose checkpoints stay for good: captures, multiples of keep_every, and keep_steps."""
    num_steps, every = config["num_epochs"] * steps_per_epoch, config["keep_every"] * steps_per_epoch
    named = [int(step) for step in config["keep_steps"].split(",") if step]
    if wrong := [step for step in named if not 0 < step <= num_steps]:
        raise ConfigError(
            f"config.keep_steps has {wrong[0]}, and the run has steps 1 to {num_steps}: name some of these"
        )
    regular = range(every, num_steps + 1, every) if every else ()
    return tuple(sorted({*capture_steps(config, steps_per_epoch), *regular, *named}))


def num_rows(config: Config) -> int:
    """Rows of the stack that a run's checkpoints hold: endpoints, or members."""
    return max(subspace(config).num_endpoints, config["num_members"])


def restored(
    config: Config, made: Model, workdir: str | pathlib.Path, step: int | None = None
) -> checkpoints.Checkpoint:
    """The checkpoint of a run with this config; refuses one of another architecture than `made` has."""
    expected = jax.eval_shape(lambda: made.init(jax.random.key(0), num_rows(config)))["params"]
    return of_one_network(config, checkpoints.restore(workdir, step, like=expected))


def of_one_network(config: Config, checkpoint: checkpoints.Checkpoint) -> checkpoints.Checkpoint:
    """With batch statistics of the form that one network has: of members, the first one's."""
    if config["num_members"] == 1:
        return checkpoint
    return checkpoint._replace(batch_stats=jax.tree.map(lambda leaf: leaf[0], checkpoint.batch_stats))


def schedule(config: Config, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate as a function of the step."""
    options: dict[str, dict[str, Any]] = {
        "swa_constant": {"swa_rate": config["swa_learning_rate"]},
        "swa_cyclic": {
            "swa_rate": config["swa_learning_rate"],
            "swa_start": config["swa_start"],
            "num_models": config["num_cycles"],
        },
        "snapshot_cyclic": {"num_models": config["num_cycles"]},
        "multistep": {"every": config["multistep_every"]},
    }
    name = config["schedule"]
    try:
        policy = optimizers.POLICIES[name](
            config["learning_rate"], config["num_epochs"], config["warmup_epochs"], **options.get(name, {})
        )
    except ValueError as error:
        raise ConfigError(f"config.schedule {name!r}: {error}") from None
    return optimizers.by_step(policy, steps_per_epoch)


def optimizer(config: Config, rate: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer of the stack."""
    decays = config["weight_decay"] if config["decay"] == "endpoints" else 0.0
    return optimizers.sgd(rate, config["momentum"], decays)


def step(config: Config, made: Model, space: Any, transformation: optax.GradientTransformation) -> training_step.Step:
    """The training step of one device's share."""
    over_samples = config["over_samples"]
    if over_samples == "auto":  # on CPU a vmap over kernels is a grouped convolution, several times slower
        over_samples = "scan" if jax.default_backend() == "cpu" else "vmap"
    of_one = training_step.make_step(
        made.apply_step,
        space,
        transformation,
        loss=partial(losses.cross_entropy, label_smoothing=config["label_smoothing"]),
        augment=made.augment if config["augmentation"] != "none" or config["pixel_shuffle"] else None,
        num_samples=config["num_samples"],
        over_samples=over_samples,
        beta=config["beta"],
        point_decay=config["weight_decay"] if config["decay"] == "point" else 0.0,
        own_coordinates=config["own_coordinates"],
        feature_diversity=config["feature_diversity"],
    )
    return training_step.over_members(of_one, over_samples) if config["num_members"] > 1 else of_one


def mesh(config: Config) -> jax.sharding.Mesh:
    """The device mesh; the batch must split evenly over a member's devices and samples."""
    made = parallel.device_mesh(config["num_devices"] or None, config["num_members"])
    devices = made.shape[parallel.AXIS]
    parts = devices * config["num_samples"]
    if config["batch_size"] % parts:
        raise ConfigError(
            f"config.batch_size is {config['batch_size']}, which {config['num_samples']} samples (config.num_samples) "
            f"on {devices} devices do not divide: choose a multiple of {parts}"
        )
    return made


def steps_per_epoch(config: Config, num_examples: int) -> int:
    """Full batches in an epoch."""
    return batches.steps_per_epoch(num_examples, config["batch_size"])
