"""The loop: where it stops, what it records and what it refuses to save."""

from typing import NamedTuple

import jax.numpy as jnp
import pytest

from subspaces_jax.errors import NonFiniteLossError
from subspaces_jax.training import loop
from subspaces_jax.training.loop import fit, stops
from subspaces_jax.training.state import State


def test_stops_are_the_multiples_and_the_end():
    assert stops(0, 10, (4, 0)) == [4, 8, 10]
    assert stops(4, 10, (4, 3)) == [6, 8, 9, 10]
    assert stops(10, 10, (4,)) == []


class Report(NamedTuple):
    loss: jnp.ndarray
    bad: dict


class Recorder:
    """A training whose loss at a step is that step's number, and everything `fit` does to it, in order."""

    def __init__(self, bad_step=-1):
        self.events, self.rows, self.bad_step = [], {}, bad_step

    def advance(self, state, step, num_steps):
        assert int(state.step) == step
        self.events.append(f"advance {step}+{num_steps}")
        losses = jnp.arange(step + 1, step + num_steps + 1, dtype=jnp.float32)
        bad = self.bad_step if step < self.bad_step <= step + num_steps else -1
        report = Report(jnp.mean(losses), {"loss": jnp.int32(-1), "some_penalty": jnp.int32(bad)})
        return state._replace(step=state.step + num_steps), report

    def record(self, step, row):
        self.events.append(f"record {step}")
        self.rows[step] = row

    def save(self, step, state):
        assert int(state.step) == step
        self.events.append(f"save {step}")

    def evaluate(self, state):
        self.events.append(f"evaluate {int(state.step)}")
        return {"test_accuracy": 0.5}

    def fit(self, start=0, **options):
        periods = dict(num_steps=10, steps_per_epoch=5, examples_per_step=2, log_every=4, save_every=5) | options
        state = State(jnp.int32(start), {}, {}, (), None)
        calls = dict(record=self.record, save=self.save, evaluate=self.evaluate)
        return fit(state, self.advance, read=lambda report: {"loss": float(report.loss)}, **calls, **periods)


def test_it_stops_at_epochs_and_periods_and_saves_only_what_was_recorded():
    run = Recorder()
    assert int(run.fit().step) == 10
    assert [e for e in run.events if e.startswith("advance")] == [
        "advance 0+4",
        "advance 4+1",
        "advance 5+3",
        "advance 8+2",
    ]
    assert [e for e in run.events if not e.startswith("advance")] == [
        "record 4", "record 5", "save 5", "record 8", "record 10", "save 10"
    ]  # fmt: skip
    assert {step: row["loss"] for step, row in run.rows.items()} == {4: 2.5, 5: 5.0, 8: 7.0, 10: 9.5}
    assert run.rows[8].keys() == {"epoch", "loss", "images_per_second"} and run.rows[8]["epoch"] == 1.6


@pytest.mark.parametrize("evaluate_every", [0, 1, 4])
def test_the_rate_is_of_what_was_computed_and_not_of_what_was_saved_or_tested(evaluate_every, monkeypatch):
    """On a device that is done with a dispatch when it returns, of a second a step; saving and tests take ten."""
    run, now = Recorder(), [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(loop, "_is_ready", lambda report: True)
    advance, save, evaluate = run.advance, run.save, run.evaluate

    def slow(seconds, function, *args):
        now[0] += seconds
        return function(*args)

    run.advance = lambda state, step, num: slow(num, advance, state, step, num)
    run.save = lambda step, state: slow(10, save, step, state)
    run.evaluate = lambda state: slow(10, evaluate, state)
    run.fit(num_steps=15, evaluate_every=evaluate_every)
    rates = {step: row["images_per_second"] for step, row in run.rows.items()}
    assert rates == dict.fromkeys(range(1, 16) if evaluate_every == 1 else (4, 5, 8, 10, 12, 15), 2)


def test_a_resumed_run_stops_where_the_whole_one_does():
    whole, resumed = Recorder(), Recorder()
    whole.fit(), resumed.fit(start=5)
    assert resumed.events == whole.events[whole.events.index("save 5") + 1 :]


def test_scores_join_the_row_of_their_step():
    run = Recorder()
    run.fit(evaluate_every=4)
    assert {step for step, row in run.rows.items() if "test_accuracy" in row} == {4, 8, 10}


def test_rows_are_fetched_after_the_next_dispatch():
    run = Recorder()
    run.fit(save_every=0)
    assert run.events[:3] == ["advance 0+4", "advance 4+1", "record 4"]


@pytest.mark.parametrize("bad_step, saved", [(3, []), (7, ["save 5"]), (10, ["save 5"])])
def test_nothing_is_saved_from_a_loss_that_is_not_finite_on(bad_step, saved):
    run = Recorder(bad_step)
    with pytest.raises(NonFiniteLossError, match=f"the some penalty is not finite at step {bad_step} of 10"):
        run.fit()
    assert [event for event in run.events if event.startswith("save")] == saved


def test_the_beginning_may_be_kept_and_is_not_written_again_by_a_resumed_run():
    whole, resumed = Recorder(), Recorder()
    whole.fit(save_at=(0, 7))
    assert whole.events[0] == "save 0" and [e for e in whole.events if "save" in e] == [
        "save 0", "save 5", "save 7", "save 10"
    ]  # fmt: skip
    resumed.fit(start=5, save_at=(0, 7))
    assert "save 0" not in resumed.events


def test_it_ends_where_it_is_enough_and_saves_that():
    run = Recorder()
    assert int(run.fit(enough=lambda step, row: row["loss"] > 6).step) == 8
    assert run.events[-2:] == ["record 8", "save 8"] and max(run.rows) == 8
