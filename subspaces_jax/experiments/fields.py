"""What can be configured: every field of a config with its default, its range and its meaning.

A config is a flat mapping of fields; one that is left out has its default. Fields that choose hold calls, see `calls`;
the flat fields below that say "of ..." are the usual values of options of such calls. Groups of fields say what a field
is for: what tells two networks apart, what evaluation may change, what one network does not have follow from them.
"""

from collections.abc import Mapping
from typing import Any

from subspaces_jax import tasks
from subspaces_jax.experiments import choices
from subspaces_jax.experiments.calls import (
    AUGMENTATIONS,
    CLASSES,
    DTYPES,
    HOLDOUTS,
    LEAVES,
    NORMALISATIONS,
    OVER_SAMPLES,
    PRECISIONS,
    REMATERIALISED,
    SPLITS,
    STATISTICS,
    STOPS,
    SUBSPACES,
)  # fmt: skip
from subspaces_jax.experiments.schema import SEEDS, Field, anything, at_least, fraction, one_of, whole_numbers
from subspaces_jax.networks import families
from subspaces_jax.training import optimizers, schedules

ENDS = "ends"  # the first and the last endpoint of a curve
INNER = ("linear", "fresh")
OVERRIDABLE = (  # what may change in the middle of a run: neither what it is nor how its steps are counted
    "num_epochs", "learning_rate", "schedule", "warmup_epochs", "momentum", "weight_decay", "label_smoothing",
    "dropout", "beta", "augmentation", "crops", "log_every", "checkpoint_every", "keep_every", "keep_steps",
    "keep_first", "test_every", "test_train", "stop", "num_workers", "eval_batch_size", "num_points",
    "num_refresh_batches", "refresh", "data_dir", "idx_dir", "archive", "num_devices", "num_parts", "rematerialise",
    "matmul_precision", "profile_steps",
)  # fmt: skip


def _two_steps(value: str) -> bool:
    """ "" or "first,last"."""
    if not value:
        return True
    steps = choices.split(value)
    return whole_numbers(value) and len(steps) == 2 and int(steps[0]) < int(steps[1])


def _endpoints(value: str) -> bool:
    return all(part == ENDS for part in choices.split(value)) or whole_numbers(value)


def _overridable(value: str) -> bool:
    return all(part in OVERRIDABLE for part in choices.split(value))


def _choice(default: str, names: Mapping[str, Any], more: str) -> Field:
    return Field(default, one_of(*names), f"one of {', '.join(names)}: {more}")


def _call(default: str, table: Mapping[str, Any], more: str) -> Field:
    return Field(default, bool, f"a call of {', '.join(table)}: {more}")


LABELS: dict[str, Field] = {  # what a run is called, and what changes where it is gone on with
    "variant": Field("", anything, "a label: what figures and tables call the run; it changes nothing"),
    "override": Field(
        "",
        _overridable,
        f"fields, separated by commas, that change in a run which is gone on with, of {', '.join(OVERRIDABLE)}",
    ),
}
DATA: dict[str, Field] = {  # what is learned
    "dataset": Field("cifar10", bool, "a name of data.catalogue.DATASETS"),
    "image_size": Field(
        0, at_least(0, 1025), "pixels, H and W to which images are resized bilinearly when they are read; 0 for none"
    ),
    "image_padding": Field(0, at_least(0, 513), "black pixels on each side of images, after they are resized"),
    "classes": _call("all", CLASSES, "of the data set, in both splits; others are left out"),
    "validation": _call("none", HOLDOUTS, "part of the training split that is held out, and tested during training"),
    "shuffle": Field(
        True,
        anything,
        "whether each epoch has a new order; without, all have the same, and what does not fill a batch is never seen",
    ),
    "augmentation": _call("none", AUGMENTATIONS, "of training images, several with | between them"),
    "crops": Field(
        "random",
        one_of("random", "middle"),
        "of training images that stream in all sizes: random, and mirrored half of the time, or the middle, as in "
        "evaluation",
    ),
    "normalisation": _call("dataset", NORMALISATIONS, "of inputs; dataset has the data set's own mean and deviation"),
    "input_noise": Field(0.0, at_least(0.0), "standard deviation of noise on normalised training inputs, at least 0"),
    "num_train_examples": Field(0, at_least(0), "of the training split, 0 for all"),
    "train_fraction": Field(
        1.0, lambda value: 0.0 < value <= 1.0, "of the training split, in (0, 1]; the first whole number of them"
    ),
    "label_noise": Field(0.0, fraction, "fraction of training labels drawn anew, in [0, 1]"),
    "label_noise_kind": Field(
        "anew",
        one_of("anew", "wrong"),
        "anew, this fraction drawn from all classes; or wrong, each label with this probability another class",
    ),
    "pixel_shuffle": Field(False, anything, "whether all images have their pixels in one other order"),
    "pixel_orders": Field(
        "shared", one_of("shared", "own"), "of pixel_shuffle, one for all images; or each training image has its own"
    ),
    "corruption_seed": Field(0, at_least(0), "of label_noise and pixel_shuffle, whatever the run's seed"),
}
NETWORK: dict[str, Field] = {  # what learns, and what it is to do
    "task": _call("classification", tasks.TASKS, "what outputs are scored against"),
    "network": Field(
        "cifar_resnet_20", bool, f"a call of {', '.join(families.NETWORKS)}; one of {families.EVERY_NAME}"
    ),
    "dropout": Field(0.0, at_least(0.0, 1.0), "rate, in [0, 1), of networks that have it"),
    "dtype": _choice("float32", DTYPES, "of the computation; parameters are float32"),
    "matmul_precision": Field(
        "default", one_of(*PRECISIONS), f"one of {', '.join(PRECISIONS)}: of products and convolutions of float32"
    ),
    "batch_norm": Field("device", one_of("device", "global"), "statistics of each device, or of all (global)"),
}
MEMBERS: dict[str, Field] = {  # repetitions, which differ by chance (or as member_options say)
    "seed": Field(0, at_least(0, SEEDS), "a whole number from 0 up, below 2^32"),
    "num_members": Field(1, at_least(1), "M, networks trained together, with seeds from seed on"),
    "member_options": Field(
        "",
        anything,
        "what members differ in: parts with ; between them, as in 'alpha=0.5 learning_rate=1; alpha=0.75', of "
        "learning_rate, seed and the network's initial options; each is that of num_members / parts members, with "
        "seeds from seed on; empty for seeds alone",
    ),
}
SUBSPACE: dict[str, Field] = {  # what a set of networks has that one network lacks, and where it starts
    "initial": Field(
        "",
        anything,
        "run directories, separated by commas, whose networks (of one run: whose endpoints) the endpoints start from, "
        "runs/a@200 for its step 200, random for a network of random weights, files of torchvision's weights "
        "(.safetensors, .pth), or Flax checkpoints of other programs, .msgpack or a folder of Orbax; two are the ends "
        "of a curve; empty for random weights",
    ),
    "inner_endpoints": Field(
        "linear", one_of(*INNER), "how those between two initial ends start: on the line between them, or fresh"
    ),
    "fork": Field(
        "",
        anything,
        "runs/a@200: a run that training goes on from at that step, with this config's seed; empty for none",
    ),
    "subspace": _call("line", SUBSPACES, "what is trained"),
    "num_endpoints": Field(0, at_least(0), "K of bezier, chain and simplex, 0 for the subspace's usual number"),
    "frozen_endpoints": Field(
        "", _endpoints, "endpoints that stay as they are, separated by commas, or ends; empty for none"
    ),
    "layerwise": Field(False, anything, "whether every module draws its own point"),
    "beta": Field(1.0, at_least(0.0), "coefficient of the cosine penalty, at least 0; 0 for one network"),
    "num_samples": Field(1, at_least(1), "S, points drawn per step, at least 1"),
    "feature_diversity": Field(
        0.0, at_least(0.0), "coefficient of the similarity of two samples' features, at least 0"
    ),
    "own_coordinates": Field(False, anything, "whether each device draws its own points"),
}
TRAINING: dict[str, Field] = {  # how weights move
    "num_epochs": Field(160, at_least(0), "at least 0; 0 saves the start and reads no data"),
    "batch_size": Field(128, at_least(0), "examples per step over all devices and samples, 0 for the training split"),
    "optimizer": _call("sgd", optimizers.OPTIMIZERS, "of the stack"),
    "learning_rate": Field(0.1, at_least(0.0), "at least 0"),
    "schedule": _call("cosine", schedules.POLICIES, "policy of the learning rate"),
    "warmup_epochs": Field(5, at_least(0), "at least 0"),
    "swa_learning_rate": Field(0.05, at_least(0.0), "at least 0, of the swa schedules"),
    "swa_start": Field(0.75, fraction, "fraction of the epochs, of swa_cyclic and capture"),
    "num_cycles": Field(3, at_least(1), "models of the cyclic schedules, and captured ones"),
    "capture": Field(
        False, anything, "whether num_cycles checkpoints are kept: the cycles' ends, or equally spaced from swa_start"
    ),
    "multistep_every": Field(30, at_least(1), "epochs, of multistep"),
    "momentum": Field(0.9, at_least(0.0, 1.0), "in [0, 1), of sgd"),
    "weight_decay": Field(1e-4, at_least(0.0), "at least 0"),
    "decay": Field("endpoints", one_of("endpoints", "point"), "what decays: endpoints, or the sampled point"),
    "label_smoothing": Field(0.0, fraction, "in [0, 1], of classification"),
    "stop": _call("never", STOPS, "where a test scores exactly as the one before, within some epochs or (0) in any"),
}
STEP: dict[str, Field] = {  # how a step is computed; its numbers are the same up to rounding
    "over_samples": Field("auto", one_of(*OVER_SAMPLES), f"one of {', '.join(OVER_SAMPLES)}, for members too"),
    "leaves": Field("auto", one_of(*LEAVES), f"one of {', '.join(LEAVES)}: how a step holds the stack, see README"),
    "num_parts": Field(
        1, at_least(1), "of a batch, whose gradients are added up one after another in the memory of one"
    ),
    "rematerialise": Field(
        "none", one_of(*REMATERIALISED), f"one of {', '.join(REMATERIALISED)}: what the gradient computes again"
    ),
}
HOST: dict[str, Field] = {  # where data lie, and what computes
    "num_devices": Field(0, at_least(0), "devices to use, 0 for all"),
    "num_workers": Field(0, at_least(0, 1025), "processes that decode images of a stream, 0 for threads"),
    "data_dir": Field("", anything, "the TFDS data directory, empty for TFDS's own default"),
    "idx_dir": Field("", anything, "a folder of MNIST-format IDX files to prepare from, or empty"),
    "archive": Field("", anything, "what celeba, tiny_imagenet or imagenet_c is prepared from, or empty"),
    "stream": Field(False, anything, "whether images of a data set that would fit on the device are streamed, too"),
}
RECORDS: dict[str, Field] = {  # what a run writes
    "log_every": Field(0, at_least(0), "steps between rows of metrics; 0 for each epoch's end only"),
    "checkpoint_every": Field(1, at_least(0), "epochs between checkpoints to resume from; 0 for the last only"),
    "keep_every": Field(0, at_least(0), "epochs between checkpoints that are kept for good; 0 for none"),
    "keep_first": Field(
        0, at_least(0), "epochs, the first ones, whose ends are kept for good, with the start and the last; 0 for none"
    ),
    "keep_steps": Field(
        "", whole_numbers, "steps, from 0 on, separated by commas, whose checkpoints are kept for good"
    ),
    "test_every": Field(0, at_least(0), "epochs between tests of the midpoint; 0 for none"),
    "test_train": Field(False, anything, "whether tests score the training split, too, without augmentation"),
    "statistics": _call("none", STATISTICS, "of the weights, in every row of metrics"),
    "profile_steps": Field("", _two_steps, "two steps, as in 100,110, between which JAX's profiler traces to profile/"),
}
EVALUATION: dict[str, Field] = {  # what is scored, and how
    "eval_split": Field("test", one_of(*SPLITS), f"what is scored, one of {', '.join(SPLITS)}"),
    "num_points": Field(21, at_least(2), "points of a curve, or to a side of a simplex, at least 2"),
    "refresh": Field(
        True,
        anything,
        "whether BatchNorm statistics are those of training images at each point; without, those of the checkpoint, as "
        "for networks that were published with theirs",
    ),
    "num_refresh_batches": Field(0, at_least(0), "of a stream, to refresh BatchNorm statistics; 0 for one pass"),
    "eval_batch_size": Field(500, at_least(1), "at least 1"),
}
FIELDS: dict[str, Field] = {
    **LABELS,
    **DATA,
    **NETWORK,
    **MEMBERS,
    **SUBSPACE,
    **TRAINING,
    **STEP,
    **HOST,
    **RECORDS,
    **EVALUATION,
}

FREE = tuple({**LABELS, **EVALUATION, **HOST})  # what an evaluation may have otherwise than the run that it is of
# what does not make networks different, but for chance
UNTOLD = {**LABELS, **MEMBERS, **STEP, **HOST, **RECORDS, **EVALUATION}.keys()
ONE_NETWORK: dict[str, Any] = {  # the config of one network, whatever set of them a config is of
    name: field.default for name, field in (SUBSPACE | MEMBERS).items() if name != "seed"
} | {"subspace": "none", "beta": 0.0}

SWEEP_FIELDS: dict[str, Field] = {
    "config": Field("", anything, "a config file that takes variants after a colon; empty for the defaults"),
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
    "fields": Field("", anything, "overrides of the config's fields, as in 'num_epochs=5 dtype=bfloat16'"),
    "cluster": Field(
        "", one_of("", "local", "slurm"), "empty for here, one after another; slurm or local for submitit's"
    ),
    "cluster_options": Field("", anything, "parameters of submitit, as in 'gpus_per_node=1 timeout_min=240'"),
}
