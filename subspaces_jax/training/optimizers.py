"""Learning-rate policies and optimizers, as Optax schedules and transformations.

A policy is a function of the epoch, counted from 0. It is given whole numbers, so that as in the subspace paper the
rate is constant within an epoch, unless it is marked `fractional`. Symbols: E epochs in all, W warm-up epochs, e the
epoch.

References: Wortsman et al., Learning Neural Network Subspaces, 2021, arXiv:2102.10472; Izmailov et al., Averaging
Weights Leads to Wider Optima and Better Generalization, 2018, arXiv:1803.05407 (SWA); Huang et al., Snapshot Ensembles,
2017, arXiv:1704.00109.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from subspaces_jax import trees
from subspaces_jax.training.regularity import p_variation_sgd

PyTree = Any
Policy = Callable[[jax.Array], jax.Array]


def fractional(policy: Policy) -> Policy:
    """The policy as one that `by_step` gives fractions of epochs, so that the rate changes every step."""
    policy.fractional = True  # type: ignore[attr-defined]  # a mark on the function, which `by_step` reads
    return policy


def cosine(peak: float, num_epochs: int, warmup: int = 0, every_step: bool = False) -> Policy:
    """Linear warm-up peak (e+1) / W, then peak (1 + cos(pi (e-W) / (E-W))) / 2: never 0 within the run.

    With `every_step` e is a fraction and the rate changes every step; a warm-up is then at its peak an epoch earlier.
    """
    span = max(num_epochs - warmup, 1)
    policy = _warmed_up(peak, warmup, lambda e: peak * _half_cosine((e - warmup) / span))
    return fractional(lambda e: jnp.minimum(policy(e), peak)) if every_step else policy


def constant(peak: float, num_epochs: int, warmup: int = 0) -> Policy:
    """Linear warm-up, then the peak."""
    return _warmed_up(peak, warmup, lambda e: jnp.full_like(e, peak))


def linear(peak: float, num_epochs: int, warmup: int = 0) -> Policy:
    """peak (1 - e/E), after a linear warm-up if W > 0 (the paper's has none)."""
    return _warmed_up(peak, warmup, lambda e: peak * (1.0 - e / num_epochs))


def piecewise(
    peak: float, num_epochs: int, warmup: int = 0, boundaries: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1
) -> Policy:
    """peak times `factor` for each boundary (a fraction of E) that e has reached: 80 and 120 of 160 epochs."""
    passed = lambda e: sum((e >= b * num_epochs).astype(jnp.float32) for b in boundaries)
    return _warmed_up(peak, warmup, lambda e: peak * factor ** passed(e))


def multistep(peak: float, num_epochs: int, warmup: int = 0, every: int = 30, factor: float = 0.1) -> Policy:
    """peak factor^(floor(e / every))."""
    return _warmed_up(peak, warmup, lambda e: peak * factor ** jnp.floor(e / every))


def swa_constant(peak: float, num_epochs: int, warmup: int = 0, swa_rate: float = 0.05) -> Policy:
    """The peak up to E/2, linearly down to `swa_rate` at 0.9 E, then `swa_rate`.

    Reference: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018,
    arXiv:1803.05407.
    """
    down = lambda e: jnp.clip((e / num_epochs - 0.5) / 0.4, 0.0, 1.0)
    return _warmed_up(peak, warmup, lambda e: peak + (swa_rate - peak) * down(e))


def plateau(peak: float, num_epochs: int, warmup: int = 0, low: float = 0.01) -> Policy:
    """The peak while a = (e+1) / E is at most 1/2, linearly down to `low` times the peak at a = 0.9, then that.

    Reference: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026.
    """
    down = lambda e: jnp.clip(((e + 1.0) / num_epochs - 0.5) / 0.4, 0.0, 1.0)
    return _warmed_up(peak, warmup, lambda e: peak * (1.0 - (1.0 - low) * down(e)))


def fge(peak: float, num_epochs: int, warmup: int = 0, low: float = 1e-4, cycle: int = 4) -> Policy:
    """A triangle every step: from the peak to `low` in the first half of each `cycle` of epochs, then back.

    Reference: Garipov et al., Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, 2018, arXiv:1802.10026.

    Raises:
        ValueError: a cycle that is odd or longer than the run.
    """
    fge_knots(num_epochs, cycle)
    towards = lambda e: 1.0 - jnp.abs(2.0 * jnp.mod(e, cycle) / cycle - 1.0)
    return fractional(_warmed_up(peak, warmup, lambda e: peak + (low - peak) * towards(e)))


def swa_cyclic(
    peak: float,
    num_epochs: int,
    warmup: int = 0,
    num_models: int = 3,
    swa_start: float = 0.75,
    swa_rate: float = 0.05,
) -> Policy:
    """A cosine from the peak to 0 at the first knot, then one from `swa_rate` to 0 between any two `swa_knots`.

    Reference: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization, 2018,
    arXiv:1803.05407.
    """
    knots = swa_knots(num_epochs, num_models, swa_start)
    if knots[0] <= warmup:
        raise ValueError(f"the first cycle ends with epoch {knots[0]}, and the warm-up has {warmup}: raise swa_start")
    return _cycles(peak, warmup, (warmup, *knots), (peak, *[swa_rate] * (len(knots) - 1)))


def snapshot_cyclic(peak: float, num_epochs: int, warmup: int = 0, num_models: int = 3) -> Policy:
    """M cosines from the peak to 0, restarting at `snapshot_knots`.

    Reference: Huang et al., Snapshot Ensembles: Train 1, Get M for Free, 2017, arXiv:1704.00109.
    """
    return _cycles(peak, warmup, snapshot_knots(num_epochs, num_models, warmup), (peak,) * num_models)


def swa_knots(num_epochs: int, num_models: int, swa_start: float = 0.75) -> tuple[int, ...]:
    """Epochs, counted from 1, after which M models are captured: from swa_start * E to E in equal whole steps.

    >>> swa_knots(160, 4)
    (120, 133, 146, 160)
    """
    start = int(swa_start * num_epochs)
    if num_models == 1:
        return (num_epochs,)
    if start < 1:
        raise ValueError(f"swa_start {swa_start} of {num_epochs} epochs is before the first one ends: raise it")
    step = (num_epochs - start) // (num_models - 1)
    if step < 1:
        raise ValueError(f"{num_models} models need at least {num_models - 1} epochs after {start} of {num_epochs}")
    return (*(start + i * step for i in range(num_models - 1)), num_epochs)


def fge_knots(num_epochs: int, cycle: int = 4) -> tuple[int, ...]:
    """Epochs, counted from 1, after which the rate of `fge` is at its minimum.

    >>> fge_knots(20, 4)
    (2, 6, 10, 14, 18)
    """
    if cycle < 2 or cycle % 2 or cycle > num_epochs:
        raise ValueError(f"cycle is an even number of epochs, at least 2 and at most {num_epochs}, got {cycle}")
    return tuple(range(cycle // 2, num_epochs + 1, cycle))


def snapshot_knots(num_epochs: int, num_models: int, warmup: int = 0) -> tuple[int, ...]:
    """Beginnings of M cycles of equal whole length after the warm-up, and the end of the last.

    >>> snapshot_knots(160, 3, 5)
    (5, 56, 107, 160)
    """
    step = (num_epochs - warmup) // num_models
    if step < 1:
        raise ValueError(f"{num_models} cycles need at least as many epochs after warm-up, got {num_epochs - warmup}")
    return (*(warmup + i * step for i in range(num_models)), num_epochs)


POLICIES: dict[str, Callable[..., Policy]] = {
    "cosine": cosine,
    "constant": constant,
    "linear": linear,
    "piecewise": piecewise,
    "multistep": multistep,
    "plateau": plateau,
    "fge": fge,
    "swa_constant": swa_constant,
    "swa_cyclic": swa_cyclic,
    "snapshot_cyclic": snapshot_cyclic,
}


def by_step(policy: Policy, steps_per_epoch: int) -> optax.Schedule:
    """An Optax schedule (a function of the step) that holds the policy's rate through each epoch; one marked
    `fractional` gets step / steps_per_epoch."""
    if getattr(policy, "fractional", False):
        return lambda step: policy(jnp.asarray(step).astype(jnp.float32) / steps_per_epoch)
    return lambda step: policy((step // steps_per_epoch).astype(jnp.float32))


def sgd(
    schedule: optax.Schedule, momentum: float = 0.9, weight_decay: float = 0.0, nesterov: bool = False
) -> optax.GradientTransformation:
    """SGD with heavy-ball momentum and coupled weight decay of every leaf of the stack, BatchNorm's included.

    g += weight_decay * w;  v = momentum * v + g;  w -= rate * v.
    """
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"momentum is in [0, 1), got {momentum}")
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(schedule, momentum or None, nesterov=nesterov)
    )


def adam(
    schedule: optax.Schedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Adam whose weight decay is coupled: it is part of the gradient, as in PyTorch's Adam.

    Reference: Kingma and Ba, Adam: A Method for Stochastic Optimization, 2014, arXiv:1412.6980.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(schedule, b1, b2, eps))


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adam": adam,
    "p_variation_sgd": p_variation_sgd,
}
OF_SHAPES = ("p_variation_sgd",)  # what is more than a rule for each number on its own


class RateState(NamedTuple):
    """Attributes:
    count: int32, steps taken.
    peak: of the schedule, an array like any other.
    learning_rate: of the last step.
    inner: of the optimizer.
    """

    count: jax.Array  # type: ignore[assignment]  # the field hides tuple.count
    peak: jax.Array
    learning_rate: jax.Array
    inner: PyTree


def with_peak_in_state(
    make: Callable[[Any], optax.GradientTransformation], schedule: Callable[[Any], optax.Schedule], peak: float
) -> optax.GradientTransformation:
    """An optimizer whose peak rate is part of its state, so that trainings of other rates are one program.

    Args:
        make: peak -> the optimizer with that peak.
        schedule: peak -> its learning rate as a function of the step.
        peak: that `init` puts into the state.
    """

    def init(params: PyTree) -> RateState:
        first = jnp.float32(peak)
        return RateState(jnp.int32(0), first, jnp.float32(schedule(first)(jnp.int32(0))), make(first).init(params))

    def update(updates: PyTree, state: RateState, params: PyTree | None = None) -> tuple[PyTree, RateState]:
        rate = jnp.float32(schedule(state.peak)(state.count))
        updates, inner = make(state.peak).update(updates, state.inner, params)
        return updates, RateState(state.count + 1, state.peak, rate, inner)

    return optax.GradientTransformation(init, update)


def freeze_endpoints(endpoints: Sequence[int], num_endpoints: int) -> optax.GradientTransformation:
    """Keeps some endpoints of a stack bit for bit: the last of a chain, after momentum and decay.

    An optimizer of the free rows alone would hold less, and moves more on a TPU: rows are cut out and put back.

    Args:
        endpoints: rows of the stack that do not move.
        num_endpoints: K.

    Raises:
        ValueError: an endpoint outside [0, K), or all of them.
    """
    if wrong := [k for k in endpoints if not 0 <= k < num_endpoints]:
        raise ValueError(f"there is no endpoint {wrong[0]}: the stack has 0 to {num_endpoints - 1}")
    free = jnp.asarray([k not in endpoints for k in range(num_endpoints)])
    if not free.any():
        raise ValueError(f"all {num_endpoints} endpoints are frozen: leave one to train")

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        keep = lambda leaf: jnp.where(free.reshape(-1, *[1] * (leaf.ndim - 1)), leaf, _still(leaf))
        return jax.tree.map(keep, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def freeze_leaves(names: Sequence[str]) -> optax.GradientTransformation:
    """Keeps some leaves of a tree bit for bit: the last of a chain, after momentum and decay.

    Args:
        names: of the leaves, "readin/kernel".

    Raises:
        ValueError: from `init`, a name that the parameters do not have.
    """

    def init(params: PyTree) -> PyTree:
        if missing := sorted(set(names) - trees.leaf_names(params).keys()):
            raise ValueError(
                f"there is no leaf {missing[0]} to freeze: there are {', '.join(trees.leaf_names(params))}"
            )
        return optax.EmptyState()

    def update(updates: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        leaves = [_still(leaf) if name in names else leaf for name, leaf in trees.leaf_names(updates).items()]
        return jax.tree.unflatten(jax.tree.structure(updates), leaves), state

    return optax.GradientTransformation(init, update)


def _still(leaf: jax.Array) -> jax.Array:
    return jnp.full_like(leaf, -0.0)  # which added to anything, to -0 too, changes no bit


def learning_rate(opt_state: PyTree, schedule: optax.Schedule) -> jax.Array:
    """The rate of the step that an optimizer's state has seen last.

    A state that holds a "learning_rate" of its own (one that adapts, or of `optax.inject_hyperparams`) says it; of
    others it is the schedule's at the last step that they have counted.
    """
    if held := _scalars(opt_state, "learning_rate"):
        return jnp.asarray(held[-1], jnp.float32)
    counts = _scalars(opt_state, "count")
    if not counts:
        raise ValueError("the optimizer's state holds neither a learning_rate nor a count of steps")
    return jnp.asarray(schedule(jnp.maximum(counts[-1] - 1, 0)), jnp.float32)


def _scalars(opt_state: PyTree, name: str) -> list[jax.Array]:
    """The fields of that name of the optimizer's own states; parameters may have such names too, and do not count."""
    own = lambda path, value: (
        len(path) < 2
        or not any(
            isinstance(key, jax.tree_util.DictKey) and getattr(before, "name", "") != "hyperparams"
            for before, key in zip(path, path[1:])
        )
    )
    return [value for path, value in optax.tree.get_all_with_path(opt_state, name) if own(path, value)]


def _half_cosine(fraction: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jnp.cos(jnp.pi * fraction))


def _warmed_up(peak: float, warmup: int, policy: Policy) -> Policy:
    def warmed_up(epoch: jax.Array) -> jax.Array:
        epoch = jnp.asarray(epoch, jnp.float32)
        return jnp.where(epoch < warmup, peak * (epoch + 1.0) / max(warmup, 1), policy(epoch))

    return warmed_up


def _cycles(peak: float, warmup: int, knots: tuple[int, ...], peaks: tuple[float, ...]) -> Policy:
    """In each [knot_i, knot_i+1) a cosine from peak_i to 0."""
    starts, ends = jnp.asarray(knots[:-1], jnp.float32), jnp.asarray(knots[1:], jnp.float32)

    def cycle(epoch: jax.Array) -> jax.Array:
        i = jnp.clip(jnp.searchsorted(starts, epoch, side="right") - 1, 0)
        return jnp.asarray(peaks, jnp.float32)[i] * _half_cosine((epoch - starts[i]) / (ends[i] - starts[i]))

    return _warmed_up(peak, warmup, cycle)
