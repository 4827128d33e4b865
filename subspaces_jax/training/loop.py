"""The only training loop. It knows steps, rows and checkpoints, and nothing of what is trained."""

import time
from collections.abc import Callable, Collection, Iterable

import jax
import numpy as np

from subspaces_jax.errors import NonFiniteLossError
from subspaces_jax.training.state import State

Row = dict[str, float]


def stops(start: int, end: int, every: Iterable[int], at: Collection[int] = ()) -> list[int]:
    """The steps after `start` at which the loop stops: multiples of each of `every` (0 is never), `at`, and the end."""
    periods, single = [period for period in every if period > 0], {end, *at}
    return [step for step in range(start + 1, end + 1) if step in single or any(step % p == 0 for p in periods)]


def fit(
    state: State,
    advance: Callable[[State, int, int], tuple[State, dict[str, jax.Array]]],
    *,
    num_steps: int,
    steps_per_epoch: int,
    images_per_step: int,
    log_every: int,
    save_every: int,
    record: Callable[[int, Row], None],
    save: Callable[[int, State], None],
    save_at: Collection[int] = (),
    evaluate_every: int = 0,
    evaluate: Callable[[State], Row] | None = None,
) -> State:
    """Trains from state.step to num_steps.

    The loop stops at every epoch's end and at multiples of log_every, save_every and evaluate_every. At each stop it
    records a row; one dispatch later than it could, so that the device never waits for the host, except before it
    saves: nothing is saved whose loss was not seen to be finite.

    Args:
        state: the state to go on from.
        advance: (state, step, n) -> (state after n steps, metrics with "bad_step"); it never crosses an epoch.
        num_steps, steps_per_epoch: durations in steps.
        images_per_step: for the rate in images per second.
        log_every, save_every, evaluate_every: periods in steps, 0 for never; the end is always recorded and saved.
        record: takes (step, row); rows hold means since the last stop.
        save: takes (step, state).
        save_at: more steps to save at.
        evaluate: state -> scores, merged into the row of that step.

    Raises:
        NonFiniteLossError: the loss became NaN or infinite; names the step.
    """
    step = int(np.ravel(state.step)[0])  # members are all at the same step
    pending: tuple[int, int, dict, Row] | None = None
    clock = time.perf_counter()

    def flush() -> None:
        nonlocal pending, clock
        if pending is None:
            return
        stop, steps, metrics, scores = pending
        row = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if (bad_step := int(row.pop("bad_step"))) >= 0:
            raise NonFiniteLossError(
                f"the loss is not finite at step {bad_step} of {num_steps} (epoch {bad_step / steps_per_epoch:.2f}): "
                "lower learning_rate, lengthen the warm-up or check the data; checkpoints up to then are good"
            )
        now = time.perf_counter()
        rate, clock, pending = steps * images_per_step / max(now - clock, 1e-9), now, None
        record(stop, {"epoch": stop / steps_per_epoch} | row | scores | {"images_per_second": rate})

    for stop in stops(step, num_steps, (steps_per_epoch, log_every, save_every, evaluate_every), save_at):
        state, metrics = advance(state, step, stop - step)
        flush()
        scores = {}
        if evaluate is not None and evaluate_every and (stop % evaluate_every == 0 or stop == num_steps):
            scores = evaluate(state)
        pending, step = (stop, stop - step, metrics, scores), stop
        if stop == num_steps or stop in save_at or (save_every and stop % save_every == 0):
            flush()
            save(stop, state)
    flush()
    return state
