"""Many steps in one dispatch, in the form in which they take the state, and what they report."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from subspaces_jax.parallel import MEMBERS
from subspaces_jax.tasks import BATCHES, Sums
from subspaces_jax.training import flat
from subspaces_jax.training.state import State
from subspaces_jax.training.step import Scalars, Step, mean_over_first, row_at
from subspaces_jax.training.still import free_part, put_back

PyTree = Any
NEVER = np.int32(np.iinfo(np.int32).max)


class Form(NamedTuple):
    """In which the steps of a dispatch take the state. flat: with `training.flat` leaves. still: without these
    endpoints, see `training.still`."""

    flat: bool = False
    still: tuple[int, ...] = ()


class Report(NamedTuple):
    """What several steps report.

    Attributes:
        steps: how many.
        totals: `Record.means` summed over the steps (and averaged over members).
        sums: of the task's scores over all examples, [M, ...] of members.
        last: statistics after the last step (averaged over members).
        bad: of each name of totals the first step, counted from 1, at which it was not finite, or -1.
        each: {"totals": totals, "last": last} of each member, [M], where they are asked for.
    """

    steps: jax.Array
    totals: Scalars
    sums: Sums
    last: Scalars
    bad: Scalars
    each: dict[str, Scalars] = {}


def in_form(state: State, form: Form) -> tuple[State, PyTree | None, PyTree | None]:
    """A state as the steps of a dispatch take it, and the shapes and the stack that they take beside it."""
    shapes = flat.shapes_of(state) if form.flat else None
    state = flat.of_state(state) if form.flat else state
    return (free_part(state, form.still), shapes, state.params) if form.still else (state, shapes, None)


def as_whole(state: State, whole: State, form: Form) -> State:
    """A later state in a form, as `whole` is."""
    if form.still:
        state = put_back(state, flat.of_state(whole) if form.flat else whole, form.still)
    return flat.as_shaped(state, whole) if form.flat else state


def make_advance(
    step: Step,
    statistics: Callable[[State], Scalars] | None = None,
    each: bool = False,
    form: Form = Form(),
) -> Callable[..., Any]:
    """Many steps in one dispatch, their number being an argument, so that any number compiles once.

    Args:
        step: from `make_step` or `over_members`.
        statistics: of a training's state, taken once after the last step; of members, the means of theirs.
        each: whether members report totals and statistics of their own, too.
        form: in which the steps take the state, `step` having been made for it. Same numbers up to rounding.

    Returns:
        (state, data, indices [steps, (M,) S, b] of an epoch, num_steps) -> (state, Report), for `pmapped`. Takes
        rows of `indices` from state.step modulo their number on; the caller keeps within the epoch.
    """

    def advance(state, data, indices, num_steps):
        whole, (state, shapes, stack) = state, in_form(state, form)
        # traced once for its shapes and for the loop
        of_form = jax.jit(lambda state, data, indices: step(state, data, indices, shapes, stack), inline=True)
        row = jnp.ravel(state.step)[0] % indices.shape[0]  # members are all at the same step
        members = state.step.ndim > 0

        def body(i, carry):
            state, total, bad = carry
            state, record = of_form(state, data, lax.dynamic_index_in_dim(indices, row + i, keepdims=False))
            now = jnp.ravel(state.step)[0]
            finite = {name: jnp.all(jnp.isfinite(value)) for name, value in record.means.items()}
            bad = {name: jnp.where(finite[name], bad[name], jnp.minimum(bad[name], now)) for name in bad}
            return state, jax.tree.map(jnp.add, total, record), bad

        found = jax.eval_shape(of_form, state, data, indices[0])[1]
        zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), found)
        never = {name: NEVER for name in found.means}
        state, total, bad = lax.fori_loop(0, num_steps, body, (state, zeros, never))
        state = as_whole(state, whole, form)
        bad = {name: jnp.where(at == NEVER, -1, at) for name, at in lax.pmin(bad, MEMBERS).items()}
        totals = lax.pmean(jax.tree.map(jnp.mean, total.means), MEMBERS)
        sums = jax.tree.map(lambda x: lax.all_gather(x, MEMBERS, tiled=True), total.sums) if members else total.sums
        last, of_members = {}, {}
        if statistics is not None:
            found = jax.vmap(statistics)(state) if members else statistics(state)
            last = lax.pmean(mean_over_first(found) if members else found, MEMBERS)
            if members and each:
                gathered = lambda tree: jax.tree.map(lambda x: lax.all_gather(x, MEMBERS, tiled=True), tree)
                of_members = gathered({"totals": total.means, "last": found})
        return state, Report(num_steps, totals, sums, last, bad, of_members)

    return advance


def joined(first: Report, second: Report) -> Report:
    """The report of the steps of `first` and then those of `second`."""
    add = lambda a, b: jax.tree.map(jnp.add, a, b)
    bad = {name: jnp.where(first.bad[name] < 0, second.bad[name], first.bad[name]) for name in first.bad}
    each = second.each and second.each | {"totals": add(first.each["totals"], second.each["totals"])}
    return Report(
        first.steps + second.steps,
        add(first.totals, second.totals),
        add(first.sums, second.sums),
        second.last,
        bad,
        each,
    )


def row_of(report: Report, read: Callable[[Sums], Scalars]) -> dict[str, float]:
    """The numbers of a report that the host has fetched: means over steps, scores of the task (of members, their
    means), statistics after the last step; where members report theirs, those of member m as "loss_m"."""
    over_steps = lambda total: float(np.float32(total) / np.float32(report.steps))
    means = {name: over_steps(total) for name, total in report.totals.items()}
    sums = report.sums if np.ndim(report.sums["count"]) else jax.tree.map(lambda x: x[None], report.sums)
    members = [read(row_at(sums, m) | {BATCHES: report.steps}) for m in range(len(sums["count"]))]
    scores = {name: float(np.mean([member[name] for member in members])) for name in members[0]}
    row = scores | means | {name: float(value) for name, value in report.last.items()}
    if report.each:
        for m, member in enumerate(members):
            own: dict[str, Any] = {name: over_steps(total[m]) for name, total in report.each["totals"].items()}
            own = member | own | {name: values[m] for name, values in report.each["last"].items()}
            row |= {f"{name}_{m}": float(value) for name, value in own.items()}
    return row
