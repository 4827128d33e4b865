"""The compiled steps of an experiment: its mesh, the form of a dispatch, the step, orders of examples, first states.

What is compiled is made once for the same arguments.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from subspaces_jax import geometry, parallel, rngs
from subspaces_jax.data import batches
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import choices
from subspaces_jax.experiments.build.model import KEPT
from subspaces_jax.training import optimizers
from subspaces_jax.training.dispatch import Form, make_advance
from subspaces_jax.training.objective import Objective
from subspaces_jax.training.state import State, init_state
from subspaces_jax.training.step import Step, make_step, over_members

COMPILED = 8  # steps kept compiled: a program and what it was traced from take tens of megabytes
# By evidence, see configs/README.md: on CPU a vmap over kernels is a grouped convolution, 2 to 9 times slower, and a
# loop compiles once; on TPU unrolled samples of a convolutional network move a tenth fewer bytes. On GPU not measured.
FORMS = {"cpu": "scan", "tpu": "unroll"}
OTHERWISE = "vmap"
LANES = 128  # examples of a sample on a device below which a TPU pads the feature maps of a convolutional network


class StepSettings(NamedTuple):
    """How a step is taken; fields of a config by their names, but for `point_decay` (0 where endpoints decay)."""

    num_samples: int
    over_samples: str
    beta: float
    point_decay: float
    own_coordinates: bool
    feature_diversity: float
    num_parts: int


def mesh(
    num_devices: int,
    num_members: int,
    batch_size: int,
    num_samples: int,
    num_parts: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """The device mesh, over `devices` or all that are here; the batch must split evenly over a member's devices,
    samples and parts."""
    made = parallel.device_mesh(num_devices or None, num_members, devices)
    num_shares = made.shape[parallel.AXIS]
    parts = num_shares * num_samples * num_parts
    if batch_size % parts:
        of_parts = f" in {num_parts} parts (config.num_parts)" if num_parts > 1 else ""
        raise ConfigError(
            f"config.batch_size is {batch_size}, which {num_samples} samples (config.num_samples){of_parts} "
            f"on {num_shares} devices do not divide: choose a multiple of {parts}"
        )
    return made


def form(over_samples: str, platform: str) -> str:
    """How samples and members are taken: as said, or what is best on the platform."""
    if over_samples != "auto":
        return over_samples
    return FORMS.get(platform, OTHERWISE)


def in_flat_leaves(leaves: str, optimizer: str, platform: str, many_steps: bool) -> bool:
    """Whether a dispatch takes its steps on `training.flat` leaves: as said, or on a TPU where it has many of them."""
    takes_them = takes_flat_leaves(optimizer)
    if leaves == "flat" and not takes_them:
        raise ConfigError(
            f"config.leaves is flat, and the optimizer {optimizer} needs the shapes of layers: set shaped"
        )
    return leaves == "flat" or (leaves == "auto" and platform == "tpu" and many_steps and takes_them)


def still_endpoints(frozen: tuple[int, ...], beta: float, optimizer: str) -> tuple[int, ...]:
    """Frozen endpoints that a dispatch leaves out of the state: all, but where a penalty or the optimizer is of the
    whole stack."""
    return frozen if not beta and takes_flat_leaves(optimizer) else ()


def takes_flat_leaves(optimizer: str) -> bool:
    """Whether an optimizer does to each number what it does whatever the shape of its leaf."""
    return choices.parse(optimizer)[0].name in optimizers.ELEMENTWISE


def thin_parts(batch_size: int, num_samples: int, device_mesh: Mesh) -> str | None:
    """What to say where samples of a batch are too few examples for the devices, or None."""
    devices = device_mesh.shape[parallel.AXIS]
    part = batch_size // (num_samples * devices)
    if parallel.platform(device_mesh) != "tpu" or num_samples == 1 or part >= LANES:
        return None
    return (
        f"config.num_samples splits a batch into {part} examples a device and sample, which a TPU pads to {LANES}: a "
        f"step moves up to {LANES / part:.1f} times the bytes; with batch_size={LANES * num_samples * devices} it does "
        "not"
    )


@lru_cache(KEPT)
def step(
    objective: Objective,
    space: Any,
    transformation: optax.GradientTransformation,
    settings: StepSettings,
    num_members: int,
    platform: str,
    still: tuple[int, ...] = (),
) -> Step:
    """The training step of one device's share."""
    how = form(settings.over_samples, platform)
    options = settings._replace(over_samples=how)._asdict()
    of_one = make_step(objective, space, transformation, still=still, **options)
    return over_members(of_one, how) if num_members > 1 else of_one


def of_members(num_members: int) -> PartitionSpec:
    """How a state lies on the devices: whole on each, or each group of devices with members of its own."""
    return PartitionSpec(parallel.MEMBERS) if num_members > 1 else PartitionSpec()


@lru_cache(KEPT)
def statistics(
    rate: optax.Schedule, num_endpoints: int, of_weights: Callable[[Any], dict[str, jax.Array]] | None = None
) -> Callable[[State], dict[str, jax.Array]]:
    """What a row says of a training's state: the learning rate of its last step, statistics `of_weights`, and how
    endpoints lie."""

    def of_state(state: State) -> dict[str, jax.Array]:
        found = {"learning_rate": optimizers.learning_rate(state.opt_state, rate)}
        found |= of_weights(state.params) if of_weights else {}
        return found | geometry.endpoint_statistics(state.params) if num_endpoints > 1 else found

    return of_state


@lru_cache(COMPILED)
def advance(
    step: Step,
    of_state: Callable[[State], dict[str, jax.Array]],
    device_mesh: Mesh,
    num_members: int,
    each: bool = False,
    form: Form = Form(),
) -> Callable[..., Any]:
    """Compiled (state, data, indices [steps, (M,) S, b], num_steps) -> (state, Report), data on every device.

    Args:
        step, of_state, each, form: as `training.dispatch.make_advance` takes them.
    """
    whole, members = PartitionSpec(), of_members(num_members)
    return parallel.pmapped(
        make_advance(step, of_state, each, form),
        device_mesh,
        in_specs=(members, whole, split_indices(num_members), whole),
        out_specs=(members, whole),
        donate_argnums=(0,),
    )


@lru_cache(COMPILED)
def advance_on_batch(
    step: Step,
    of_state: Callable[[State], dict[str, jax.Array]],
    device_mesh: Mesh,
    num_members: int,
    num_samples: int,
    each: bool = False,
    form: Form = Form(),
) -> Callable[..., Any]:
    """Compiled (state, batch [(M,) B, ...]) -> (state, Report): one step on a batch of a stream."""
    members = of_members(num_members)
    of_one = make_advance(step, of_state, each, form)

    def one(state, batch):
        """One step on this device's share: its examples in order, split into samples, and before that into members."""
        shape = batch["images"].shape[: 1 + len(members)]
        size = math.prod(shape)
        indices = jnp.arange(size, dtype=jnp.int32).reshape(1, *shape[:-1], num_samples, shape[-1] // num_samples)
        flat = jax.tree.map(lambda leaf: leaf.reshape(size, *leaf.shape[len(shape) :]), batch)
        return of_one(state, flat, indices, 1)

    split = PartitionSpec(*members, parallel.AXIS)
    return parallel.pmapped(one, device_mesh, (members, split), (members, PartitionSpec()), donate_argnums=(0,))


def split_indices(num_members: int) -> PartitionSpec:
    """How indices [steps, (members,) samples, batch] lie on the devices."""
    return PartitionSpec(None, *of_members(num_members), None, parallel.AXIS)


@lru_cache(COMPILED)
def epoch_order(
    num_examples: int, batch_size: int, num_samples: int, num_members: int, device_mesh: Mesh, shuffle: bool = True
) -> Callable[[jax.Array, Any], jax.Array]:
    """Compiled (keys [M], number of the epoch) -> indices of its batches, [steps, (M,) S, b]."""
    steps = batches.steps_per_epoch(num_examples, batch_size)

    def indices_of(order_keys, number):
        rows = lambda key: (
            batches.epoch_indices(key, number, num_examples, batch_size)
            if shuffle
            else jnp.arange(steps * batch_size, dtype=jnp.int32)
        )
        orders = jax.vmap(rows)(order_keys).reshape(num_members, steps, num_samples, -1)
        return orders.swapaxes(0, 1) if num_members > 1 else orders[0]

    return jax.jit(indices_of, out_shardings=NamedSharding(device_mesh, split_indices(num_members)))


def state_of(
    init: Callable, transformation: optax.GradientTransformation, num_endpoints: int, num_members: int
) -> Callable[[jax.Array], State]:
    """Keys [M] -> the state of one training, or [M, ...] of several; member m starts as a run of its own with its key
    does."""

    def make(key):
        variables = init(rngs.stream(key, "init"), num_endpoints)
        return init_state(variables, transformation, rngs.stream(key, "train"))

    return jax.vmap(make) if num_members > 1 else lambda keys: make(keys[0])


@lru_cache(COMPILED)
def initial_state(
    init: Callable, transformation: optax.GradientTransformation, num_endpoints: int, num_members: int, platform: str
) -> Callable[[jax.Array], State]:
    """`state_of`, compiled."""
    make = state_of(init, transformation, num_endpoints, num_members)
    return jax.jit(make, compiler_options=_options_of_random(platform))


@lru_cache(COMPILED)
def random_stack(init: Callable, num_endpoints: int, platform: str) -> Callable[[jax.Array], Any]:
    """Key -> parameters of random weights, leaves [K, ...], compiled."""
    return jax.jit(lambda key: init(key, num_endpoints)["params"], compiler_options=_options_of_random(platform))


def _options_of_random(platform: str) -> dict[str, int] | None:
    """LLVM takes 12 s to optimise the random numbers of a ResNet-8 on CPU, and 1 s not to; the program runs once."""
    return {"xla_backend_optimization_level": 0} if platform == "cpu" else None


def joined_states(parts: Sequence[State]) -> State:
    """States of several groups of members, each with leaves [M_i, ...], as one; of one member without that axis."""
    rows = [part if part.step.ndim else jax.tree.map(lambda leaf: leaf[None], part) for part in parts]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *rows)
