"""What can be configured: every field of a config with its type, its range and its meaning."""

import difflib
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp

from subspaces_jax import geometry
from subspaces_jax.data import augmentation
from subspaces_jax.errors import ConfigError
from subspaces_jax.networks import families
from subspaces_jax.training import optimizers

Config = Mapping[str, Any]


class Field(NamedTuple):
    """What a config field may hold."""

    type: type
    accepts: Callable[[Any], bool]
    meaning: str


def _at_least(low: float) -> Callable[[Any], bool]:
    return lambda value: value >= low


def _any(value: Any) -> bool:
    return True


def _fraction(value: float) -> bool:
    return 0.0 <= value <= 1.0


def _whole_numbers(value: str) -> bool:
    return not value or all(part.strip().isdigit() for part in value.split(","))


def _one_of(*names: str) -> Callable[[Any], bool]:
    return lambda value: value in names


def _choice(names: Mapping[str, Any], more: str) -> Field:
    return Field(str, _one_of(*names), f"one of {', '.join(names)}: {more}")


SUBSPACES: dict[str, tuple[int, Callable[[int], Any]]] = {  # name -> (usual number of endpoints, constructor)
    "none": (1, geometry.Simplex),
    "line": (2, lambda num: geometry.Line()),
    "bezier": (3, geometry.Bezier),
    "chain": (3, geometry.Chain),
    "simplex": (3, geometry.Simplex),
}
AUGMENTATIONS: dict[str, tuple[Callable, ...]] = {
    "none": (),
    "flip": (augmentation.random_flip,),
    "crop": (augmentation.random_crop,),
    "shift1": (partial(augmentation.random_crop, padding=1),),
    "crop_flip": (augmentation.random_crop, augmentation.random_flip),
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
FIELDS: dict[str, Field] = {
    # the run
    "seed": Field(int, _at_least(0), "a whole number from 0 up"),
    "num_devices": Field(int, _at_least(0), "devices to use, 0 for all"),
    "num_epochs": Field(int, _at_least(1), "at least 1"),
    "batch_size": Field(int, _at_least(1), "images per step over all devices and samples, at least 1"),
    "log_every": Field(int, _at_least(0), "steps between rows of metrics; 0 for each epoch's end only"),
    "checkpoint_every": Field(int, _at_least(0), "epochs between checkpoints to resume from; 0 for the last only"),
    "keep_every": Field(int, _at_least(0), "epochs between checkpoints that are kept for good; 0 for none"),
    "keep_steps": Field(
        str, _whole_numbers, "steps, separated by commas, whose checkpoints are kept for good; empty for none"
    ),
    "test_every": Field(int, _at_least(0), "epochs between tests of the midpoint; 0 for none"),
    "num_members": Field(int, _at_least(1), "M, networks trained together, with seeds from seed on"),
    "capture": Field(
        bool, _any, "whether num_cycles checkpoints are kept: the cycles' ends, or equally spaced from swa_start"
    ),
    # data
    "dataset": Field(str, bool, "a name of data.catalogue.DATASETS"),
    "data_dir": Field(str, _any, "the TFDS data directory, empty for TFDS's own default"),
    "idx_dir": Field(str, _any, "a folder of MNIST-format IDX files to prepare from, or empty"),
    "archive": Field(str, _any, "what tiny_imagenet or imagenet_c is prepared from, or empty"),
    "num_workers": Field(int, _at_least(0), "processes that decode images of a stream, 0 for threads"),
    "augmentation": _choice(AUGMENTATIONS, "of training images"),
    "num_train_examples": Field(int, _at_least(0), "of the training split, 0 for all"),
    "label_noise": Field(float, _fraction, "fraction of training labels drawn anew, in [0, 1]"),
    "pixel_shuffle": Field(bool, _any, "whether all images have their pixels in one other order"),
    "corruption_seed": Field(int, _at_least(0), "of label_noise and pixel_shuffle, whatever the run's seed"),
    # the network
    "network": Field(str, bool, f"one of {families.EVERY_NAME}"),
    "dropout": Field(float, lambda value: 0.0 <= value < 1.0, "rate, in [0, 1), for networks that have it"),
    "dtype": _choice(DTYPES, "of the computation; parameters are float32"),
    "batch_norm": Field(str, _one_of("device", "global"), "statistics of each device, or of all (global)"),
    "initial": Field(
        str,
        _any,
        "run directories, separated by commas, whose networks (of one run: whose endpoints) the endpoints start from; "
        "empty for random weights",
    ),
    # the subspace
    "subspace": _choice(SUBSPACES, "what is trained"),
    "num_endpoints": Field(int, _at_least(0), "K, 0 for the subspace's usual number"),
    "layerwise": Field(bool, _any, "whether every module draws its own point"),
    "beta": Field(float, _at_least(0.0), "coefficient of the cosine penalty, at least 0"),
    "num_samples": Field(int, _at_least(1), "S, points drawn per step, at least 1"),
    "feature_diversity": Field(
        float, _at_least(0.0), "coefficient of the similarity of two samples' features, at least 0"
    ),
    "over_samples": Field(str, _one_of("auto", "vmap", "scan"), "auto, vmap or scan, for members too"),
    "own_coordinates": Field(bool, _any, "whether each device draws its own points"),
    # the optimizer
    "learning_rate": Field(float, _at_least(0.0), "at least 0"),
    "schedule": _choice(optimizers.POLICIES, "policy of the learning rate"),
    "warmup_epochs": Field(int, _at_least(0), "at least 0"),
    "swa_learning_rate": Field(float, _at_least(0.0), "at least 0, for the swa schedules"),
    "swa_start": Field(float, _fraction, "fraction of the epochs, for swa_cyclic and capture"),
    "num_cycles": Field(int, _at_least(1), "models of the cyclic schedules, and captured ones"),
    "multistep_every": Field(int, _at_least(1), "epochs, for multistep"),
    "momentum": Field(float, lambda value: 0.0 <= value < 1.0, "in [0, 1)"),
    "weight_decay": Field(float, _at_least(0.0), "at least 0"),
    "decay": Field(str, _one_of("endpoints", "point"), "what decays: endpoints, or the sampled point"),
    "label_smoothing": Field(float, _fraction, "in [0, 1]"),
    # evaluation
    "num_points": Field(int, _at_least(2), "points of a curve, or to a side of a simplex, at least 2"),
    "num_refresh_batches": Field(int, _at_least(0), "of a stream, to refresh BatchNorm statistics; 0 for one pass"),
    "eval_batch_size": Field(int, _at_least(1), "at least 1"),
}


SWEEP_FIELDS: dict[str, Field] = {
    "config": Field(str, bool, "a config file that takes variants after a colon"),
    "variants": Field(
        tuple,
        lambda value: value and all(isinstance(variant, str) for variant in value),
        "of the config, strings, in which parts with = are fields, as in 'line,beta=0.5'",
    ),
    "seeds": Field(tuple, lambda value: all(type(seed) is int for seed in value), "whole numbers"),
    "fields": Field(str, _any, "overrides of the config's fields, as in 'num_epochs=5 dtype=bfloat16'"),
    "cluster": Field(
        str, _one_of("", "local", "slurm"), "empty for here, one after another; slurm or local for submitit's"
    ),
    "cluster_options": Field(str, _any, "parameters of submitit, as in 'gpus_per_node=1 timeout_min=240'"),
}


AVERAGES = ("mean", "random", "random_layerwise", "random_per_weight", "towards_each", "swag", "swag_diagonal")
ANALYSIS_FIELDS: dict[str, Field] = {
    "analysis": Field(str, _one_of("ensemble", "average", "line"), "ensemble, average or line"),
    "average": Field(str, _one_of(*AVERAGES), f"one of {', '.join(AVERAGES)}"),
    "runs": Field(str, _any, "run directories, separated by commas"),
    "steps": Field(str, _any, "of the checkpoints, one a run, separated by commas; empty for the last ones"),
    "members": Field(
        str,
        _one_of("midpoint", "endpoints", "random", "captures"),
        "what each run gives: midpoint (or network), endpoints, random points of its subspace, captures",
    ),
    "num_draws": Field(int, _at_least(1), "random members a run, or random averages, at least 1"),
    "num_points": Field(int, _at_least(2), "of a line, at least 2"),
    "t": Field(float, _fraction, "weight of the nearest network, for the average towards_each"),
    "test_dataset": Field(str, _any, "another data set's test split, empty for the runs' own"),
    "test_archive": Field(str, _any, "what that data set is prepared from, or empty"),
    "seed": Field(int, _at_least(0), "of random members and averages"),
    "eval_batch_size": Field(int, _at_least(1), "at least 1"),
}


def checked(config: Config, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The config as a plain dict, every field known, present, well-typed and in range.

    Raises:
        ConfigError: names the field, what it got and what it takes.
    """
    config = dict(config)
    if extra := sorted(config.keys() - fields.keys()):
        raise ConfigError(unknown_field(extra[0], fields))
    if missing := sorted(fields.keys() - config.keys()):
        raise ConfigError(f"config fields are missing: {', '.join(missing)}")
    for name, field in fields.items():
        value = config[name]
        if field.type is float and type(value) is int:
            config[name] = value = float(value)
        if type(value) is not field.type or not field.accepts(value):
            raise ConfigError(f"config.{name} is {value!r}: it takes {field.type.__name__}, {field.meaning}")
    return config


def key_values(text: str) -> dict[str, Any]:
    """ "a=1 b=x" as {"a": 1, "b": "x"}."""
    try:
        pairs = [pair.partition("=") for pair in shlex.split(text)]
    except ValueError as error:
        raise ConfigError(f"{text!r} is not name=value, separated by spaces ({error})") from None
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ConfigError(f"{wrong[0]!r} in {text!r} has no value: write name=value, separated by spaces")
    return {name: int(value) if value.isdigit() else value for name, _, value in pairs}


def unknown_field(name: str, fields: Mapping[str, Field]) -> str:
    """The message for a field that does not exist."""
    return f"config field {unknown(name, fields)}"


def unknown(name: str, known: Mapping[str, Any]) -> str:
    """The name, and what it may have meant."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    return f"{name!r}, which is unknown: {hint}"
