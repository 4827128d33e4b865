"""The only training loop. It knows steps, rows and checkpoints, and nothing of what is trained."""

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

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
    advance: Callable[[State, int, int], tuple[State, Any]],
    *,
    num_steps: int,
    steps_per_epoch: int,
    examples_per_step: int,
    log_every: int,
    save_every: int,
    read: Callable[[Any], Row],
    record: Callable[[int, Row], None],
    save: Callable[[int, State], None],
    save_at: Collection[int] = (),
    stop_at: Collection[int] = (),
    evaluate_every: int = 0,
    evaluate: Callable[[State], Row] | None = None,
    enough: Callable[[int, Row], bool] | None = None,
) -> State:
    """Trains from state.step to num_steps.

    The loop stops at every epoch's end and at multiples of log_every, save_every and evaluate_every. At each stop it
    records a row; one dispatch later than it could, so that the device never waits for the host, except before it
    saves: nothing is saved whose loss was not seen to be finite.

    Args:
        state: the state to go on from.
        advance: (state, step, n) -> (state after n steps, a report with "bad", see `dispatch.Report`); it never crosses
            an epoch.
        num_steps, steps_per_epoch: durations in steps.
        examples_per_step: for the rate in examples per second, over what was computed since the row before, and the
            time that training took for it: tests and saves are not in it.
        log_every, save_every, evaluate_every: periods in steps, 0 for never; the end is always recorded and saved.
        read: a report on the host -> the numbers of its row.
        record: takes (step, row); rows hold what has been since the last stop.
        save: takes (step, state).
        save_at: more steps to save at; 0 is the state that a new run starts from.
        stop_at: more steps that end a dispatch.
        evaluate_every, evaluate: state -> scores, merged into the row of that step.
        enough: (step, row) -> whether to end here; rows are then recorded at once. What it ended at is saved.

    Raises:
        NonFiniteLossError: the loss, or what else is minimised, became NaN or infinite; names it and the step.
    """
    step = int(step_of(state))
    pending: tuple[int, Any, Row] | None = None
    latest: tuple[int, Any] = (step, ())
    clock, counted, rate = time.perf_counter(), step, 0.0
    ended = False
    if step == 0 and 0 in save_at:
        save(0, state)

    def flush() -> None:
        nonlocal pending, clock, counted, rate, ended
        if pending is None:
            return
        stop, report, scores = pending
        report = jax.device_get(report)
        bad = {name: int(at) for name, at in report.bad.items() if at >= 0}
        if bad:
            name = min(bad, key=bad.__getitem__)
            raise NonFiniteLossError(
                f"the {name.replace('_', ' ')} is not finite at step {bad[name]} of {num_steps} "
                f"(epoch {bad[name] / steps_per_epoch:.2f}): lower learning_rate, lengthen the warm-up or check the "
                "data; checkpoints up to then are good"
            )
        row = read(report)
        pending, now = None, time.perf_counter()
        done = latest[0] if _is_ready(latest[1]) else stop  # a CPU may be done with the next dispatch, too
        if done > counted:
            rate = (done - counted) * examples_per_step / max(now - clock, 1e-9)
            clock, counted = now, done
        row = {"epoch": stop / steps_per_epoch} | row | scores | {"images_per_second": rate}
        record(stop, row)
        ended = enough is not None and enough(stop, row)

    for stop in stops(step, num_steps, (steps_per_epoch, log_every, save_every, evaluate_every), {*save_at, *stop_at}):
        state, report = advance(state, step, stop - step)
        latest = (stop, report)
        flush()
        scores = {}
        if evaluate is not None and evaluate_every and (stop % evaluate_every == 0 or stop == num_steps):
            jax.block_until_ready(report)
            begun = time.perf_counter()
            scores = evaluate(state)
            clock += time.perf_counter() - begun
        pending, step = (stop, report, scores), stop
        saves = stop == num_steps or stop in save_at or (save_every and stop % save_every == 0)
        if saves or enough is not None:
            flush()
        if saves or ended:
            save(stop, state)
            clock = time.perf_counter()
        if ended:
            break
    flush()
    return state


class Plateau:
    """Ends a training where a test scores exactly as the one before: `enough` of `fit`.

    Args:
        score: name in a row of what is compared.
        within: the last epoch at which it ends.
        rows: those of an earlier part of the same training, in order.

    Attributes:
        ended_at: the step at which it ended, None where it has not.
    """

    def __init__(self, score: str, within: int, rows: Iterable[Row] = ()):
        self._score, self._within = score, within
        self._before: float | None = None
        self.ended_at: int | None = None
        for row in rows:
            self(int(row["step"]), row)

    def __call__(self, step: int, row: Row) -> bool:
        if self._score in row:
            if row[self._score] == self._before and row["epoch"] <= self._within and self.ended_at is None:
                self.ended_at = step
            self._before = row[self._score]
        return self.ended_at is not None


def _is_ready(report: Any) -> bool:
    leaves = [leaf for leaf in jax.tree.leaves(report) if isinstance(leaf, jax.Array)]
    return all(leaf.is_ready() for leaf in leaves)  # type: ignore[attr-defined]


def step_of(state: State) -> int:
    """The step that a state is at; members are all at the same, and may lie on other processes' devices."""
    step = state.step
    return int(np.ravel(step.addressable_data(0) if isinstance(step, jax.Array) else step)[0])
