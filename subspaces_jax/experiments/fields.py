"""What can be configured: every field of a config with its default, its range and its meaning.

A config is a flat mapping of fields; one that is left out has its default. Fields that choose hold calls, see
`choices`; the flat fields below that say "of ..." are the usual values of options of such calls.
"""

import math
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp

from subspaces_jax import geometry, tasks
from subspaces_jax.data import augmentation, subsets
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import choices
from subspaces_jax.networks import families
from subspaces_jax.training import optimizers, regularity, schedules

Config = Mapping[str, Any]
LARGEST = 2**31 - 1  # of whole numbers: steps and indices are int32
ENDS = "ends"  # the first and the last endpoint of a curve
INNER = ("linear", "fresh")
OVERRIDABLE = (  # what may change in the middle of a run: neither what it is nor how its steps are counted
    "num_epochs", "learning_rate", "schedule", "warmup_epochs", "momentum", "weight_decay", "label_smoothing",
    "dropout", "beta", "augmentation", "log_every", "checkpoint_every", "keep_every", "keep_steps", "keep_first",
    "test_every", "test_train", "stop", "num_workers", "eval_batch_size", "num_points", "num_refresh_batches",
    "data_dir", "idx_dir", "archive", "num_devices", "num_parts", "rematerialise", "matmul_precision", "profile_steps",
)  # fmt: skip
SEEDS = 2**32  # what a PRNG key tells apart


class Field(NamedTuple):
    """What a config field may hold.

    Attributes:
        default: where a config lacks the field, a stored one from before it was added included: what keeps the old
            behaviour. Its type is the field's.
        accepts: whether a value of that type is in range.
        meaning: for messages and lists.
    """

    default: Any
    accepts: Callable[[Any], bool]
    meaning: str

    @property
    def type(self) -> type:
        return type(self.default)


def _at_least(low: float, below: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: low <= value < below and (value <= LARGEST or type(value) is float or below < math.inf)


def _any(value: Any) -> bool:
    return True


def _fraction(value: float) -> bool:
    return 0.0 <= value <= 1.0


def _whole_numbers(value: str) -> bool:
    return all(part.isdigit() and int(part) <= LARGEST for part in choices.split(value))


def _two_steps(value: str) -> bool:
    """ "" or "first,last"."""
    if not value:
        return True
    steps = choices.split(value)
    return _whole_numbers(value) and len(steps) == 2 and int(steps[0]) < int(steps[1])


def _endpoints(value: str) -> bool:
    return all(part == ENDS for part in choices.split(value)) or _whole_numbers(value)


def _overridable(value: str) -> bool:
    return all(part in OVERRIDABLE for part in choices.split(value))


def _one_of(*names: str) -> Callable[[Any], bool]:
    return lambda value: value in names


def _choice(default: str, names: Mapping[str, Any], more: str) -> Field:
    return Field(default, _one_of(*names), f"one of {', '.join(names)}: {more}")


def _call(default: str, table: Mapping[str, Any], more: str) -> Field:
    return Field(default, bool, f"a call of {', '.join(table)}: {more}")


SUBSPACES: dict[str, Callable[..., Any]] = {
    "none": lambda: geometry.Simplex(1),
    "line": geometry.Line,
    "bezier": geometry.Bezier,
    "chain": geometry.Chain,
    "simplex": lambda num_endpoints=3: geometry.Simplex(num_endpoints),
}
AUGMENTATIONS: dict[str, Callable[..., tuple[Callable, ...]]] = {
    "none": lambda: (),
    "flip": lambda: (augmentation.random_flip,),
    "crop": lambda padding=4: (partial(augmentation.random_crop, padding=_whole("padding", padding)),),
    "shift1": lambda: AUGMENTATIONS["crop"](1),
    "crop_flip": lambda: (*AUGMENTATIONS["crop"](), *AUGMENTATIONS["flip"]()),
}
NORMALISATIONS: dict[str, Callable[..., tuple[tuple[float, ...], tuple[float, ...]] | None]] = {  # -> (mean, std)
    "dataset": lambda: None,
    "none": lambda: ((), ()),
    "given": lambda mean, std: (_numbers("mean", mean), _numbers("std", std)),
}
STATISTICS: dict[str, Callable[..., Any]] = {"none": lambda: None, "p_variation": regularity.variations}
CLASSES: dict[str, Callable[..., Callable[[int], Any] | None]] = {  # -> (number of classes) -> those that are used
    "all": lambda: None,
    "first": lambda num: partial(subsets.first_classes, num=_whole("num", num)),
    "drawn": lambda num, seed=0: partial(subsets.drawn_classes, num=_whole("num", num), seed=_whole("seed", seed)),
}
HOLDOUTS: dict[str, Callable[..., Callable[[Any], Any] | None]] = {  # -> (labels) -> rows to train on, and held out
    "none": lambda: None,
    "last": lambda fraction=0.1: lambda labels: subsets.last(len(labels), fraction),
    "drawn": lambda fraction=0.1, seed=0: lambda labels: subsets.last(len(labels), fraction, _whole("seed", seed)),
    "stratified": lambda fraction=0.1, seed=0: (
        lambda labels: subsets.stratified(labels, fraction, _whole("seed", seed))
    ),
}
STOPS: dict[str, Callable[..., int | None]] = {  # -> epochs within which a plateau ends training
    "never": lambda: None,
    "plateau": lambda within=0: _whole("within", within) or LARGEST,
}
SPLITS = ("test", "validation", "train")
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
PRECISIONS = ("default", "high", "highest")
REMATERIALISED = ("none", "all", "all_but_products")
LEAVES = ("auto", "flat", "shaped")
OVER_SAMPLES = ("auto", "vmap", "scan", "unroll")
CALLS: dict[str, tuple[Mapping[str, Callable[..., Any]], tuple[str, ...]]] = {  # field -> table, what the program gives
    "subspace": (SUBSPACES, ()),
    "task": (tasks.TASKS, ()),
    "optimizer": (
        optimizers.OPTIMIZERS,
        ("schedule", "weight_decay", "weight_path", "activation", "steps_per_epoch"),
    ),
    "schedule": (schedules.POLICIES, ("peak", "num_epochs", "warmup")),
    "augmentation": (AUGMENTATIONS, ()),
    "normalisation": (NORMALISATIONS, ()),
    "statistics": (STATISTICS, ("weight_path",)),
    "classes": (CLASSES, ()),
    "validation": (HOLDOUTS, ()),
    "stop": (STOPS, ()),
}

FIELDS: dict[str, Field] = {
    # the run
    "variant": Field("", _any, "a label: what figures and tables call the run; it changes nothing"),
    "seed": Field(0, _at_least(0, SEEDS), "a whole number from 0 up, below 2^32"),
    "num_devices": Field(0, _at_least(0), "devices to use, 0 for all"),
    "num_epochs": Field(160, _at_least(0), "at least 0; 0 saves the start and reads no data"),
    "batch_size": Field(128, _at_least(0), "examples per step over all devices and samples, 0 for the training split"),
    "log_every": Field(0, _at_least(0), "steps between rows of metrics; 0 for each epoch's end only"),
    "checkpoint_every": Field(1, _at_least(0), "epochs between checkpoints to resume from; 0 for the last only"),
    "keep_every": Field(0, _at_least(0), "epochs between checkpoints that are kept for good; 0 for none"),
    "keep_first": Field(
        0, _at_least(0), "epochs, the first ones, whose ends are kept for good, with the start and the last; 0 for none"
    ),
    "keep_steps": Field(
        "", _whole_numbers, "steps, from 0 on, separated by commas, whose checkpoints are kept for good"
    ),
    "profile_steps": Field("", _two_steps, "two steps, as in 100,110, between which JAX's profiler traces to profile/"),
    "test_every": Field(0, _at_least(0), "epochs between tests of the midpoint; 0 for none"),
    "test_train": Field(False, _any, "whether tests score the training split, too, without augmentation"),
    "stop": _call("never", STOPS, "where a test scores exactly as the one before, within some epochs or (0) in any"),
    "override": Field(
        "",
        _overridable,
        f"fields, separated by commas, that change in a run which is gone on with, of {', '.join(OVERRIDABLE)}",
    ),
    "num_members": Field(1, _at_least(1), "M, networks trained together, with seeds from seed on"),
    "member_options": Field(
        "",
        _any,
        "what members differ in: parts with ; between them, as in 'alpha=0.5 learning_rate=1; alpha=0.75', of "
        "learning_rate, seed and the network's initial options; each is that of num_members / parts members, with "
        "seeds from seed on; empty for seeds alone",
    ),
    "capture": Field(
        False, _any, "whether num_cycles checkpoints are kept: the cycles' ends, or equally spaced from swa_start"
    ),
    # data
    "dataset": Field("cifar10", bool, "a name of data.catalogue.DATASETS"),
    "data_dir": Field("", _any, "the TFDS data directory, empty for TFDS's own default"),
    "idx_dir": Field("", _any, "a folder of MNIST-format IDX files to prepare from, or empty"),
    "archive": Field("", _any, "what celeba, tiny_imagenet or imagenet_c is prepared from, or empty"),
    "image_size": Field(
        0, _at_least(0, 1025), "pixels, H and W to which images are resized bilinearly when they are read; 0 for none"
    ),
    "image_padding": Field(0, _at_least(0, 513), "black pixels on each side of images, after they are resized"),
    "classes": _call("all", CLASSES, "of the data set, in both splits; others are left out"),
    "validation": _call("none", HOLDOUTS, "part of the training split that is held out, and tested during training"),
    "shuffle": Field(
        True,
        _any,
        "whether each epoch has a new order; without, all have the same, and what does not fill a batch is never seen",
    ),
    "stream": Field(False, _any, "whether images of a data set that would fit on the device are streamed, too"),
    "num_workers": Field(0, _at_least(0, 1025), "processes that decode images of a stream, 0 for threads"),
    "augmentation": _call("none", AUGMENTATIONS, "of training images, several with | between them"),
    "normalisation": _call("dataset", NORMALISATIONS, "of inputs; dataset has the data set's own mean and deviation"),
    "input_noise": Field(0.0, _at_least(0.0), "standard deviation of noise on normalised training inputs, at least 0"),
    "num_train_examples": Field(0, _at_least(0), "of the training split, 0 for all"),
    "train_fraction": Field(
        1.0, lambda value: 0.0 < value <= 1.0, "of the training split, in (0, 1]; the first whole number of them"
    ),
    "label_noise": Field(0.0, _fraction, "fraction of training labels drawn anew, in [0, 1]"),
    "label_noise_kind": Field(
        "anew",
        _one_of("anew", "wrong"),
        "anew, this fraction drawn from all classes; or wrong, each label with this probability another class",
    ),
    "pixel_shuffle": Field(False, _any, "whether all images have their pixels in one other order"),
    "pixel_orders": Field(
        "shared", _one_of("shared", "own"), "of pixel_shuffle, one for all images; or each training image has its own"
    ),
    "corruption_seed": Field(0, _at_least(0), "of label_noise and pixel_shuffle, whatever the run's seed"),
    # the network and what it is to do
    "task": _call("classification", tasks.TASKS, "what outputs are scored against"),
    "network": Field(
        "cifar_resnet_20", bool, f"a call of {', '.join(families.NETWORKS)}; one of {families.EVERY_NAME}"
    ),
    "dropout": Field(0.0, _at_least(0.0, 1.0), "rate, in [0, 1), of networks that have it"),
    "dtype": _choice("float32", DTYPES, "of the computation; parameters are float32"),
    "matmul_precision": Field(
        "default", _one_of(*PRECISIONS), f"one of {', '.join(PRECISIONS)}: of products and convolutions of float32"
    ),
    "rematerialise": Field(
        "none", _one_of(*REMATERIALISED), f"one of {', '.join(REMATERIALISED)}: what the gradient computes again"
    ),
    "batch_norm": Field("device", _one_of("device", "global"), "statistics of each device, or of all (global)"),
    "initial": Field(
        "",
        _any,
        "run directories, separated by commas, whose networks (of one run: whose endpoints) the endpoints start from, "
        "runs/a@200 for its step 200, random for a network of random weights, files of torchvision's weights "
        "(.safetensors, .pth), or Flax checkpoints of other programs, .msgpack or a folder of Orbax; two are the ends "
        "of a curve; empty for random weights",
    ),
    "inner_endpoints": Field(
        "linear", _one_of(*INNER), "how those between two initial ends start: on the line between them, or fresh"
    ),
    "fork": Field(
        "", _any, "runs/a@200: a run that training goes on from at that step, with this config's seed; empty for none"
    ),
    # the subspace
    "subspace": _call("line", SUBSPACES, "what is trained"),
    "num_endpoints": Field(0, _at_least(0), "K of bezier, chain and simplex, 0 for the subspace's usual number"),
    "frozen_endpoints": Field(
        "", _endpoints, "endpoints that stay as they are, separated by commas, or ends; empty for none"
    ),
    "layerwise": Field(False, _any, "whether every module draws its own point"),
    "beta": Field(1.0, _at_least(0.0), "coefficient of the cosine penalty, at least 0; 0 for one network"),
    "num_samples": Field(1, _at_least(1), "S, points drawn per step, at least 1"),
    "feature_diversity": Field(
        0.0, _at_least(0.0), "coefficient of the similarity of two samples' features, at least 0"
    ),
    "over_samples": Field("auto", _one_of(*OVER_SAMPLES), f"one of {', '.join(OVER_SAMPLES)}, for members too"),
    "leaves": Field("auto", _one_of(*LEAVES), f"one of {', '.join(LEAVES)}: how a step holds the stack, see README"),
    "num_parts": Field(
        1, _at_least(1), "of a batch, whose gradients are added up one after another in the memory of one"
    ),
    "own_coordinates": Field(False, _any, "whether each device draws its own points"),
    # the optimizer
    "optimizer": _call("sgd", optimizers.OPTIMIZERS, "of the stack"),
    "learning_rate": Field(0.1, _at_least(0.0), "at least 0"),
    "schedule": _call("cosine", schedules.POLICIES, "policy of the learning rate"),
    "warmup_epochs": Field(5, _at_least(0), "at least 0"),
    "swa_learning_rate": Field(0.05, _at_least(0.0), "at least 0, of the swa schedules"),
    "swa_start": Field(0.75, _fraction, "fraction of the epochs, of swa_cyclic and capture"),
    "num_cycles": Field(3, _at_least(1), "models of the cyclic schedules, and captured ones"),
    "multistep_every": Field(30, _at_least(1), "epochs, of multistep"),
    "momentum": Field(0.9, _at_least(0.0, 1.0), "in [0, 1), of sgd"),
    "weight_decay": Field(1e-4, _at_least(0.0), "at least 0"),
    "decay": Field("endpoints", _one_of("endpoints", "point"), "what decays: endpoints, or the sampled point"),
    "statistics": _call("none", STATISTICS, "of the weights, in every row of metrics"),
    "label_smoothing": Field(0.0, _fraction, "in [0, 1], of classification"),
    # evaluation
    "eval_split": Field("test", _one_of(*SPLITS), f"what is scored, one of {', '.join(SPLITS)}"),
    "num_points": Field(21, _at_least(2), "points of a curve, or to a side of a simplex, at least 2"),
    "num_refresh_batches": Field(0, _at_least(0), "of a stream, to refresh BatchNorm statistics; 0 for one pass"),
    "eval_batch_size": Field(500, _at_least(1), "at least 1"),
}

SWEEP_FIELDS: dict[str, Field] = {
    "config": Field("", _any, "a config file that takes variants after a colon; empty for the defaults"),
    "variants": Field(
        ("",),
        lambda value: value and all(isinstance(variant, str) for variant in value),
        "of the config, strings, in which parts with = are fields, as in 'line,beta=0.5'",
    ),
    "seeds": Field(
        (0, 1, 2),
        lambda value: value and all(type(seed) is int and 0 <= seed < SEEDS for seed in value),
        "whole numbers from 0 up, at least one",
    ),
    "fields": Field("", _any, "overrides of the config's fields, as in 'num_epochs=5 dtype=bfloat16'"),
    "cluster": Field(
        "", _one_of("", "local", "slurm"), "empty for here, one after another; slurm or local for submitit's"
    ),
    "cluster_options": Field("", _any, "parameters of submitit, as in 'gpus_per_node=1 timeout_min=240'"),
}

RENAMED: dict[str, str] = {}  # fields of stored configs by their old names


def upgrade(config: Config) -> dict[str, Any]:
    """A stored config under today's names of its fields."""
    return {RENAMED.get(name, name): value for name, value in config.items()}


def checked(config: Config, fields: Mapping[str, Field]) -> dict[str, Any]:
    """The config as a plain dict, every field known, well-typed and in range; one that is left out has its default.

    Raises:
        ConfigError: names the field, what it got and what it takes.
    """
    config = dict(config)
    if extra := sorted(config.keys() - fields.keys()):
        raise ConfigError(unknown_field(extra[0], fields))
    config = {name: config.get(name, field.default) for name, field in fields.items()}
    for name, field in fields.items():
        value = config[name]
        if field.type is float and type(value) is int:
            config[name] = value = float(value)
        if field.type is tuple and type(value) is list:  # as JSON has it
            config[name] = value = tuple(value)
        if (
            type(value) is not field.type
            or isinstance(value, float)
            and not math.isfinite(value)
            or not field.accepts(value)
        ):
            raise ConfigError(f"config.{name} is {value!r}: it takes {field.type.__name__}, {field.meaning}")
    return config


def from_text(name: str, text: str, fields: Mapping[str, Field] = FIELDS) -> Any:
    """The value that `text` stands for in the field `name`.

    Raises:
        ConfigError: no such field, or text that is not of its type.
    """
    if name not in fields:
        raise ConfigError(unknown_field(name, fields))
    kind = fields[name].type
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return kind(text)
    except (KeyError, ValueError):
        raise ConfigError(f"config.{name} is {text!r}: it takes {kind.__name__}, {fields[name].meaning}") from None


def key_values(text: str) -> dict[str, str]:
    """ "a=1 b=x" as {"a": "1", "b": "x"}; spaces within parentheses or quotes belong to the value."""
    try:
        pairs = [part.partition("=") for part in choices.split(text, " ")]
    except ConfigError as error:
        raise ConfigError(f"{text!r} is not name=value, separated by spaces ({error})") from None
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ConfigError(f"{wrong[0]!r} in {text!r} has no value: write name=value, separated by spaces")
    return {name: _unquoted(value) for name, _, value in pairs}


def unknown_field(name: str, fields: Mapping[str, Field]) -> str:
    """The message for a field that does not exist."""
    return f"config field {unknown(name, fields)}"


def unknown(name: str, known: Mapping[str, Any]) -> str:
    """The name, and what it may have meant."""
    return f"{name!r}, which is unknown: {choices.did_you_mean(name, known)}"


def _unquoted(text: str) -> str:
    """Without the quotes around it, as a shell would read it; those of a call's own arguments stay."""
    return shlex.split(text)[0] if text[:1] in ("'", '"') else text


def _whole(name: str, value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{name} is a whole number from 0 up, got {value!r}")
    return value


def _numbers(name: str, values: Any) -> tuple[float, ...]:
    values = values if isinstance(values, tuple) else (values,)
    if not values or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        raise ValueError(f"{name} is a number or a tuple of them, got {values!r}")
    if name == "std" and min(values) <= 0:
        raise ValueError(f"std is positive, got {values!r}")
    return tuple(float(value) for value in values)
