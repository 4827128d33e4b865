"""A training in steps."""

from typing import NamedTuple

from subspaces_jax.data import batches
from subspaces_jax.experiments.build import training as build_training
from subspaces_jax.experiments.schema import Config


class Plan(NamedTuple):
    """A run in steps: of an epoch, of the whole, those after which checkpoints are captured for averages and snapshots,
    and those whose checkpoints stay for good."""

    steps_per_epoch: int
    num_steps: int
    captured_steps: tuple[int, ...]
    kept_steps: tuple[int, ...]


def plan(config: Config, settings: build_training.OptimizerSettings, num_examples: int) -> Plan:
    """The plan of a checked config for that many training examples."""
    epoch = batches.steps_per_epoch(num_examples, config["batch_size"] or num_examples)
    captured = build_training.capture_steps(settings, epoch) if config["capture"] else ()
    named = build_training.kept_steps(
        config["keep_steps"], config["keep_every"], config["num_epochs"], epoch, config["keep_first"]
    )
    kept = tuple(sorted({*captured, *named} or ({0} if not config["num_epochs"] else set())))
    return Plan(epoch, config["num_epochs"] * epoch, captured, kept)
