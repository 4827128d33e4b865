"""The loop: where it stops, what it records and what it refuses to save."""

import jax.numpy as jnp
import pytest

from subspaces_jax.errors import NonFiniteLossError
from subspaces_jax.training.loop import fit, stops
from subspaces_jax.training.state import State


def test_stops_are_the_multiples_and_the_end():
    assert stops(0, 10, (4, 0)) == [4, 8, 10]
    assert stops(4, 10, (4, 3)) == [6, 8, 9, 10]
    assert stops(10, 10, (4,)) == []


class Recorder:
    """A training whose loss at a step is that step's number, and everything `fit` does to it, in order."""

    def __init__(self, bad_step=-1):
        self.events, self.rows, self.bad_step = [], {}, bad_step

    def advance(self, state, step, num_steps):
        assert int(state.step) == step
        self.events.append(f"advance {step}+{num_steps}")
        losses = jnp.arange(step + 1, step + num_steps + 1, dtype=jnp.float32)
        bad = self.bad_step if step < self.bad_step <= step + num_steps else -1
        return state._replace(step=state.step + num_steps), {"loss": jnp.mean(losses), "bad_step": jnp.int32(bad)}

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
        periods = dict(num_steps=10, steps_per_epoch=5, images_per_step=2, log_every=4, save_every=5) | options
        state = State(jnp.int32(start), {}, {}, (), None)
        return fit(state, self.advance, record=self.record, save=self.save, evaluate=self.evaluate, **periods)


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
    assert run.rows[8]["epoch"] == 1.6 and "bad_step" not in run.rows[8]


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
    with pytest.raises(NonFiniteLossError, match=f"not finite at step {bad_step} of 10"):
        run.fit()
    assert [event for event in run.events if event.startswith("save")] == saved
