"""How an experiment trains: its task, subspace, optimizer and schedule, from named arguments.

Durations are epochs in a config and steps below.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import optax

from subspaces_jax import tasks
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import choices
from subspaces_jax.experiments.build.model import KEPT
from subspaces_jax.experiments.calls import STATISTICS, SUBSPACES
from subspaces_jax.tasks import Task
from subspaces_jax.training import optimizers, schedules


class NetworkTraits(NamedTuple):
    """What an optimizer takes of a network that has it: names of `frozen` leaves, its `weight_path` over depth, and its
    `activation`."""

    frozen: tuple[str, ...]
    weight_path: Callable[[Any], jax.Array] | None
    activation: str


class OptimizerSettings(NamedTuple):
    """Fields of a config by their names, but for `weight_decay` (0 where the point decays), `frozen` endpoints and
    `peak_in_state` (whether members have rates of their own)."""

    optimizer: str
    schedule: str
    learning_rate: float
    num_epochs: int
    warmup_epochs: int
    momentum: float
    weight_decay: float
    frozen: tuple[int, ...]
    swa_learning_rate: float
    swa_start: float
    num_cycles: int
    multistep_every: int
    peak_in_state: bool

    @property
    def of_schedule(self) -> dict[str, Any]:
        """The schedule's options, as the call sets them or the flat fields do."""
        usual = {
            "swa_rate": self.swa_learning_rate,
            "swa_start": self.swa_start,
            "num_models": self.num_cycles,
            "every": self.multistep_every,
        }
        return usual | choices.options("schedule", self.schedule, schedules.POLICIES, usual)


@lru_cache(KEPT)
def task(text: str, label_smoothing: float) -> Task:
    """The task that a config's call makes."""
    return choices.make("task", text, tasks.TASKS, usual={"label_smoothing": label_smoothing})


def subspace(text: str, num_endpoints: int, needs_several: bool = False) -> Any:
    """The subspace without its layerwise form, which needs parameters.

    Args:
        text: a call of SUBSPACES.
        num_endpoints: of the config, 0 for the usual number or the call's own.
        needs_several: whether a penalty or layerwise draws, of beta or layerwise, need more than one endpoint.
    """
    usual = {"num_endpoints": num_endpoints} if num_endpoints else {}
    made = choices.make("subspace", text, SUBSPACES, usual=usual)
    if num_endpoints and made.num_endpoints != num_endpoints:
        raise ConfigError(
            f"config.num_endpoints is {num_endpoints} but subspace {text!r} has {made.num_endpoints}: set 0 or "
            f"{made.num_endpoints}"
        )
    if needs_several and made.num_endpoints < 2:
        raise ConfigError(
            f"config.beta and config.layerwise need a subspace, got {text!r}: set beta=0 and layerwise=False"
        )
    return made


def traits(network: Any) -> NetworkTraits:
    """Of any Flax module."""
    path = getattr(network, "weight_path", None)
    return NetworkTraits(tuple(getattr(network, "frozen", ())), path, str(getattr(network, "activation", "")))


@lru_cache(KEPT)
def schedule(settings: OptimizerSettings, steps_per_epoch: int) -> optax.Schedule:
    """The learning rate as a function of the step."""
    return _schedule(settings, steps_per_epoch, settings.learning_rate)


def _schedule(settings: OptimizerSettings, steps_per_epoch: int, peak: Any) -> optax.Schedule:
    of_schedule = settings.of_schedule
    given = {"peak": peak, "num_epochs": settings.num_epochs, "warmup": settings.warmup_epochs}
    policy = choices.make("schedule", settings.schedule, schedules.POLICIES, given, usual=of_schedule)
    return schedules.by_step(policy, steps_per_epoch)


@lru_cache(KEPT)
def optimizer(
    settings: OptimizerSettings,
    steps_per_epoch: int,
    num_endpoints: int,
    network: NetworkTraits,
    of_free: bool = False,
) -> optax.GradientTransformation:
    """The optimizer of the stack, which leaves frozen endpoints and leaves as they are; or `of_free` endpoints alone,
    with a state of the same form."""
    of_peak = lambda peak: _schedule(settings, steps_per_epoch, peak)
    make = lambda rate: choices.make(
        "optimizer",
        settings.optimizer,
        optimizers.OPTIMIZERS,
        given={
            "schedule": rate,
            "weight_decay": settings.weight_decay,
            "steps_per_epoch": steps_per_epoch,
            "weight_path": network.weight_path,
            "activation": network.activation,
        },
        usual={"momentum": settings.momentum},
    )
    if settings.peak_in_state:
        made = optimizers.with_peak_in_state(lambda peak: make(of_peak(peak)), of_peak, settings.learning_rate)
    else:
        made = make(schedule(settings, steps_per_epoch))
    still = [optimizers.freeze_leaves(network.frozen)] if network.frozen else []
    try:
        if settings.frozen:
            freeze = optimizers.freeze_endpoints(settings.frozen, num_endpoints)
            still.append(optax.identity() if of_free else freeze)
    except ValueError as error:
        raise ConfigError(f"config.frozen_endpoints: {error}") from None
    return optax.chain(made, *still) if still else made


@lru_cache(KEPT)
def weight_statistics(text: str, network: NetworkTraits) -> Callable[[Any], dict[str, jax.Array]] | None:
    """Stack -> numbers of a row, as a config's call makes it, or None."""
    return choices.make("statistics", text, STATISTICS, given={"weight_path": network.weight_path})


def capture_steps(settings: OptimizerSettings, steps_per_epoch: int) -> tuple[int, ...]:
    """Steps after which checkpoints are captured for averages and snapshots."""
    of_schedule, num_epochs = settings.of_schedule, settings.num_epochs
    name = choices.parse(settings.schedule)[0].name
    try:
        if name == "snapshot_cyclic":
            knots = schedules.snapshot_knots(num_epochs, of_schedule["num_models"], settings.warmup_epochs)[1:]
        elif name == "fge":
            knots = schedules.fge_knots(num_epochs, of_schedule.get("cycle", 4))
        else:
            knots = schedules.swa_knots(num_epochs, of_schedule["num_models"], of_schedule["swa_start"])
    except ValueError as error:
        raise ConfigError(f"config.num_cycles: {error}") from None
    return tuple(epoch * steps_per_epoch for epoch in knots)


def kept_steps(
    text: str, keep_every: int, num_epochs: int, steps_per_epoch: int, keep_first: int = 0
) -> tuple[int, ...]:
    """Steps whose checkpoints stay for good: multiples of keep_every epochs, those that are named, and where keep_first
    is set the start, the ends of the first keep_first epochs, and the last."""
    num_steps, every = num_epochs * steps_per_epoch, keep_every * steps_per_epoch
    named = [int(step) for step in choices.split(text)]
    if wrong := [step for step in named if not 0 <= step <= num_steps]:
        raise ConfigError(
            f"config.keep_steps has {wrong[0]}, and the run has steps 0 to {num_steps}: name some of these"
        )
    regular = range(every, num_steps + 1, every) if every else ()
    first = {*range(0, min(keep_first, num_epochs) * steps_per_epoch + 1, steps_per_epoch), num_steps}
    return tuple(sorted({*regular, *named, *(first if keep_first else ())}))
