"""Whether the fields of a config agree with one another, and with what is known of its data set."""

from typing import Any

from subspaces_jax import tasks
from subspaces_jax.data import catalogue
from subspaces_jax.errors import ConfigError, DataError
from subspaces_jax.experiments import choices
from subspaces_jax.experiments.build import members as build_members
from subspaces_jax.experiments.build import training as build_training
from subspaces_jax.experiments.calls import CALLS
from subspaces_jax.experiments.fields import FIELDS
from subspaces_jax.experiments.schema import SEEDS, Config, checked


def check(config: Config) -> dict[str, Any]:
    """The config as a plain dict, every field known, well-typed and in range; one that is left out has its default.

    Raises:
        ConfigError: names the field, what it got and what it takes.
    """
    config = checked(config, FIELDS)
    for field, (table, given) in CALLS.items():
        choices.check(field, config[field], table, given, pipeline=field == "augmentation")
    try:
        known = catalogue.info(config["dataset"])
    except DataError as error:
        raise ConfigError(f"config.dataset: {error}") from None
    for name in ("image_size", "image_padding", "stream"):
        if config[name] and known.input_dtype != "uint8":
            raise ConfigError(
                f"config.{name} is for images, and {config['dataset']} has real inputs: leave it {FIELDS[name].default}"
            )
    if config["num_train_examples"] and config["train_fraction"] != 1.0:
        raise ConfigError("config.num_train_examples and config.train_fraction both say how many: set one of them")
    if not config["batch_size"] and (known.streams or config["stream"]):
        raise ConfigError(f"config.batch_size is 0, and {config['dataset']} streams: name a number of examples")
    if config["label_noise"] and known.label != "class":
        raise ConfigError(f"config.label_noise is for classes, and {config['dataset']} has none: set it to 0")
    _check_data(config, known)
    stops = choices.parse(config["stop"])[0].name != "never"
    if stops and not config["test_every"]:
        raise ConfigError(f"config.stop is {config['stop']!r}, and there are no tests: set test_every, or stop='never'")
    if stops and config["capture"]:
        raise ConfigError(
            f"config.stop is {config['stop']!r}, and captures are of the whole training: set stop='never', or "
            "capture=False"
        )
    if config["label_smoothing"] and not choices.takes("task", config["task"], tasks.TASKS, "label_smoothing"):
        raise ConfigError(f"config.label_smoothing is for classification, and the task is {config['task']!r}: set it 0")
    several = build_training.subspace(
        config["subspace"], config["num_endpoints"], needs_several=config["beta"] > 0 or config["layerwise"]
    )
    if config["num_members"] > 1 and (several.num_endpoints > 1 or config["capture"]):
        raise ConfigError(
            "config.num_members trains single networks: set subspace='none' and capture=False, or num_members=1"
        )
    if config["seed"] + config["num_members"] > SEEDS:
        raise ConfigError(
            f"config.seed is {config['seed']} and config.num_members {config['num_members']}: the last member's seed "
            "is to be below 2^32"
        )
    if config["capture"] and several.num_endpoints > 1:
        raise ConfigError("config.capture keeps checkpoints of one network: set subspace='none', or capture=False")
    if not config["refresh"] and (config["num_members"] > 1 or config["capture"]):
        raise ConfigError(
            "config.refresh=False is for checkpoints of one set of statistics, and members and captures have one each: "
            "leave it True"
        )
    build_members.check(config)
    if config["initial"] and config["num_members"] > 1:
        raise ConfigError("config.initial is for one training: set num_members=1, or initial='' for random weights")
    if config["fork"] and (config["initial"] or choices.source(config["fork"]).step is None):
        raise ConfigError(
            f"config.fork is {config['fork']!r}: it takes a run and its step, as in runs/a@200, and initial='' with it"
        )
    if config["feature_diversity"] and config["num_samples"] < 2:
        raise ConfigError("config.feature_diversity compares two samples of a batch: set num_samples=2 or more")
    return config


def _check_data(config: dict[str, Any], known: catalogue.DatasetInfo) -> None:
    """Options of data that cannot be had together."""
    held = choices.parse(config["validation"])[0].name
    if known.label != "class" and (choices.parse(config["classes"])[0].name != "all" or held == "stratified"):
        raise ConfigError(
            f"config.classes and a stratified config.validation are for classes, and {config['dataset']} has none: "
            "leave classes 'all' and validation 'none' or 'drawn(0.1)'"
        )
    own = config["pixel_shuffle"] and config["pixel_orders"] == "own"
    if own and (known.streams or config["stream"] or known.input_dtype != "uint8"):
        raise ConfigError(
            "config.pixel_orders is 'own', which takes images in memory: choose 'shared', or stream=False"
        )
    if config["crops"] != "random" and not known.streams:
        raise ConfigError(
            f"config.crops is for images that stream in all sizes, and those of {config['dataset']} are whole: leave "
            "it 'random', and say with augmentation what is done to them"
        )
    if config["image_padding"] and known.streams:
        raise ConfigError(
            f"config.image_padding pads whole images, and those of {config['dataset']} are crops: set it 0"
        )
    if config["eval_split"] == "validation" and held == "none":
        raise ConfigError(
            "config.eval_split is 'validation', and config.validation holds nothing out: set it, or 'test'"
        )
