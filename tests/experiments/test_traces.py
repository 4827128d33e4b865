"""What a process has traced it does not trace again: another command of the same form finds its programs."""

import contextlib

import jax
import pytest
from test_configs import SMALL, load

from subspaces_jax.experiments import evaluate, train

TRACED = "/jax/core/compile/jaxpr_trace_duration"


@contextlib.contextmanager
def traces():
    """Names of the functions that are traced within, in order, appended to a list."""
    found = []

    def listen(event, seconds, fun_name="", **_):
        if event == TRACED:
            found.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


FORMS = {
    "line": {"network": "mlp_8"},
    "tested": {"network": SMALL, "test_every": 1},
    "members": {"subspace": "none", "beta": 0.0, "num_members": 2, "network": "mlp_8"},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_second_run_of_the_same_form_traces_nothing(form, tmp_path):
    """Of another seed, in another folder; and the evaluation of the first once more."""
    rate = 0.0711  # of no other test: what that had traced would not be traced here
    config = load("line_digits", num_epochs=2, num_points=3, learning_rate=rate, **FORMS[form])
    with traces() as first:
        train.run(config, tmp_path / "a")
        evaluate.run(None, tmp_path / "a")
    with traces() as second:
        evaluate.run(None, tmp_path / "a")
        train.run(config | {"seed": 1}, tmp_path / "b")
        evaluate.run(None, tmp_path / "b")
    assert "advance" in first
    assert second == []
