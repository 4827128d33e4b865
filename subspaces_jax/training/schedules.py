"""Learning-rate policies, as Optax schedules.

A policy is a function of the epoch, counted from 0. It is given whole numbers, so that as in the subspace paper the
rate is constant within an epoch, unless it is marked `fractional`. Symbols: E epochs in all, W warm-up epochs, e the
epoch.

References: Wortsman et al., Learning Neural Network Subspaces, 2021, arXiv:2102.10472; Izmailov et al., Averaging
Weights Leads to Wider Optima and Better Generalization, 2018, arXiv:1803.05407 (SWA); Huang et al., Snapshot Ensembles,
2017, arXiv:1704.00109.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

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

    def drops(e):
        found = jnp.floor(e / every)  # which compiled may be a product with 1 / every, a little less than it
        return found + (e >= (found + 1) * every)

    return _warmed_up(peak, warmup, lambda e: peak * factor ** drops(e))


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
    start = int(swa_start * num_epochs + 1e-9)  # 0.29 * 100 is 28.999...
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
    return lambda step: policy((jnp.asarray(step) // steps_per_epoch).astype(jnp.float32))


def _half_cosine(fraction: jax.Array) -> jax.Array:
    return 0.5 * (1.0 + jnp.cos(jnp.pi * fraction))


def _warmed_up(peak: float, warmup: int, policy: Policy) -> Policy:
    def warmed_up(epoch: jax.Array) -> jax.Array:
        epoch = jnp.asarray(epoch, jnp.float32)
        rising = peak * jnp.minimum((epoch + 1.0) / max(warmup, 1), 1.0)  # within an epoch at most the peak
        return jnp.where(epoch < warmup, rising, policy(epoch))

    return warmed_up


def _cycles(peak: float, warmup: int, knots: tuple[int, ...], peaks: tuple[float, ...]) -> Policy:
    """In each [knot_i, knot_i+1) a cosine from peak_i to 0."""
    starts, ends = jnp.asarray(knots[:-1], jnp.float32), jnp.asarray(knots[1:], jnp.float32)

    def cycle(epoch: jax.Array) -> jax.Array:
        i = jnp.clip(jnp.searchsorted(starts, epoch, side="right") - 1, 0)
        return jnp.asarray(peaks, jnp.float32)[i] * _half_cosine((epoch - starts[i]) / (ends[i] - starts[i]))

    return _warmed_up(peak, warmup, cycle)
