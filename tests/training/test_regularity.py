"""Training of deep residual networks against traces of the published code; the rate by p-variation; frozen leaves."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from subspaces_jax import tasks
from subspaces_jax.networks import DeepResidual
from subspaces_jax.training import optimizers, regularity, schedules

TRACES = {  # (task, recursion) -> loss and Omega before each of three steps, variations (2, 1, 1.5) after it
    ("regression", "skip"): (
        (1.40104475195, 0.458220685148, 0.304149510676),
        (0.0875652969969, 0.0286387928218, 0.0190093444173),
        (0.003920470279, 0.0055097494, 0.008842950724),
        (0.003923546563, 0.005529592607, 0.008924104239),
        (0.003920470279, 0.0055097494, 0.008842950724),
    ),
    ("regression", "inc_skip"): (
        (1.0097728699, 0.942619563218, 0.501606387933),
        (0.0631108043688, 0.0589137227011, 0.0313503992458),
        (0.3355719937, 0.9974503157, 2.895717736),
        (0.3355719937, 1.618783947, 5.004703135),
        (0.3355719937, 1.160654238, 3.361307189),
    ),
    ("regression", "linear_skip"): (
        (2.66336334918, 0.00420323896408, 0.00381128122031),
        (0.166460209324, 0.000262702435255, 0.00023820507627),
        (0.07050596541, 0.06890579856, 0.06754382095),
        (0.07068632492, 0.06964593322, 0.06954815008),
        (0.07050596541, 0.06890579856, 0.06754382095),
    ),
    ("classification", "skip"): (
        (1.75464314713, 1.69585034803, 1.65431995981),
        (0.0143004826464, 0.0139733011718, 0.0137195787058),
        (0.002334955907, 0.00369738901, 0.00468166939),
        (0.002335218437, 0.003697395421, 0.004682777547),
        (0.002334955907, 0.00369738901, 0.00468166939),
    ),
    ("classification", "inc_skip"): (
        (1.75392673558, 1.75392351172, 1.7539172359),
        (0.0142948954884, 0.0142948766825, 0.0142948413862),
        (0.002637737546, 0.005988849465, 0.01065496716),
        (0.002637737546, 0.007428525841, 0.01658827458),
        (0.002637737546, 0.005988849465, 0.01167554217),
    ),
    ("classification", "linear_skip"): (
        (1.75565040118, 1.53515260067, 1.49137957652),
        (0.0143125882034, 0.0129584403867, 0.0125511068643),
        (0.00940640891, 0.04920997247, 0.1273480808),
        (0.00940643791, 0.04944445291, 0.1279171591),
        (0.00940640891, 0.04920997247, 0.1273480808),
    ),
}
LIMITS = {"regression": (1e-4, 6.25e-6), "classification": (1.38629436112, 0.01171875)}  # of outputs that are 0


def golden_matrix(rows, columns):
    return np.sin(1.0 + np.arange(rows * columns).reshape(rows, columns)).astype(np.float32)


MEASURED = jax.jit(jax.vmap(regularity.variations(DeepResidual(1, 6, 2, 0.75, 1.0).weight_path, 2.0)))


def traced(task, recursion):
    """Loss, Omega and variations of three steps of gradient descent on all 8 examples; frozen leaves stay."""
    regression = task == "regression"
    num_in, num_out = (1, 1) if regression else (3, 4)
    inputs = jnp.linspace(-1.0, 1.0, 8 * num_in).reshape(8, num_in)
    labels = jnp.full(8, 0.01) if regression else jnp.arange(8) % 4
    network = DeepResidual(num_out, 6, 2, 0.75, 1.0, recursion)
    of_task = tasks.TASKS[task](detailed=True)
    targets = of_task.targets(inputs, labels)
    optimizer = optax.chain(optimizers.sgd(lambda step: 0.5, 0.0), optimizers.freeze_leaves(network.frozen))

    @jax.jit
    def run(params):
        state, rows, paths = optimizer.init(params), [], []

        def loss(params):
            outputs = network.apply({"params": params}, inputs)
            return jnp.mean(of_task.loss(outputs, targets)), outputs

        for _ in range(3):
            (value, outputs), gradients = jax.value_and_grad(loss, has_aux=True)(params)
            sums = of_task.scores(outputs, targets, jnp.ones(8)) | {tasks.BATCHES: 1}
            updates, state = optimizer.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            rows.append((value, of_task.read(sums)["gradient_norm_of_mean"]))
            paths.append({name: params[name] for name in ("blocks", "delta")})
        return params, rows, jax.tree.map(lambda *leaves: jnp.stack(leaves)[:, None], *paths)

    params = jax.jit(network.init)(jax.random.key(0), inputs)["params"]
    params["readin"]["kernel"] = jnp.asarray(golden_matrix(2, num_in).T)
    params["readout"]["kernel"] = jnp.asarray(golden_matrix(num_out, 2).T)
    after, rows, paths = run(params)
    variations = MEASURED(paths)
    for name in ("readin", "readout"):
        np.testing.assert_array_equal(after[name]["kernel"], params[name]["kernel"])
    assert after["delta"] == params["delta"] == np.float32(6**-0.75)
    return np.concatenate([np.array(rows).T, [variations[f"variation_{q}"] for q in ("2", "1", "1.5")]])


@pytest.mark.parametrize("task, recursion", TRACES)
def test_three_steps_are_those_of_the_published_code(task, recursion):
    np.testing.assert_allclose(traced(task, recursion), TRACES[task, recursion], rtol=2e-4)


@pytest.mark.parametrize("task", LIMITS)
def test_without_skips_outputs_vanish_and_nothing_moves(task):
    loss, omega, *variations = traced(task, "none")
    np.testing.assert_allclose([loss, omega], np.repeat(LIMITS[task], 3).reshape(2, 3), rtol=2e-3)
    assert np.max(variations) < 1e-6


def brute_force(points, p):
    """The p-variation over all subsequences of a short path."""
    inner = range(1, len(points) - 1)
    chosen = [(0, *c, len(points) - 1) for r in range(len(points) - 1) for c in itertools.combinations(inner, r)]
    return max(sum(np.linalg.norm(points[b] - points[a]) ** p for a, b in itertools.pairwise(rows)) for rows in chosen)


def of_path(points):
    return {"blocks": jnp.asarray(points, jnp.float32)[None]}


def test_the_rate_by_p_variation_is_found_anew_after_each_period():
    """factor * rate_0 / V^(2/p), by brute force, of the weights after two steps; the last rate is in the state."""
    rng = np.random.default_rng(0)
    rule = regularity.scale_by_p_variation(
        lambda step: 0.3, lambda params: params["blocks"], every=2, p=3.0, factor=2.0
    )
    params = of_path(rng.normal(size=(6, 2)))
    state, update = rule.init(params), jax.jit(rule.update)
    expected = 0.3
    for step in range(5):
        if step in (2, 4):
            expected = 2 * 0.3 / brute_force(np.asarray(params["blocks"][0], np.float64), 3.0) ** (2 / 3)
        gradients = of_path(rng.normal(size=(6, 2)))
        updates, state = update(gradients, state, params)
        np.testing.assert_allclose(updates["blocks"], -expected * gradients["blocks"], rtol=1e-5)
        np.testing.assert_allclose(optimizers.learning_rate(state, lambda step: 7.0), expected, rtol=1e-5)
        params = optax.apply_updates(params, updates)


def test_members_at_once_find_their_rates_only_when_they_are_due():
    """Of three under vmap: a callback counts, and their rates are those that each would have alone."""
    rng, found = np.random.default_rng(2), []

    def weight_path(params):
        jax.debug.callback(lambda points: found.append(points.shape), params["blocks"])
        return params["blocks"]

    rule = regularity.scale_by_p_variation(lambda step: 0.3, weight_path, every=3, p=2.0)
    params = {"blocks": jnp.asarray(rng.normal(size=(3, 1, 6, 2)), jnp.float32)}
    state, together = jax.vmap(rule.init)(params), jax.jit(jax.vmap(rule.update))
    counts = []
    for _ in range(5):
        updates, state = together(params, state, params)
        jax.effects_barrier()
        counts.append(len(found))
    assert counts == [0, 0, 0, 3, 3]
    expected = [2 * 0.3 / brute_force(np.asarray(points[0], np.float64), 2.0) for points in params["blocks"]]
    np.testing.assert_allclose(state.learning_rate, expected, rtol=1e-5)
    np.testing.assert_allclose(updates["blocks"], -state.learning_rate[:, None, None, None] * params["blocks"])


@pytest.mark.parametrize("points, most, expected", [((1.0, 1.0, 1.0), 0.0, 0.5), ((1.0, 1.0 + 2**-10, 1.0), 4.0, 4.0)])
def test_a_path_without_variation_leaves_the_rate_and_a_bound_holds(points, most, expected):
    rule = regularity.scale_by_p_variation(lambda step: 0.5, lambda params: params["blocks"], 1, p=1.0, most=most)
    params = of_path(np.array(points)[:, None])
    state = rule.init(params)
    for _ in range(2):
        _, state = jax.jit(rule.update)(params, state, params)
    assert float(state.learning_rate) == expected


def test_the_usual_factor_is_that_of_the_activation():
    path = lambda params: params["blocks"]
    params = of_path(np.array([[0.0], [2.0]]))
    for activation, factor in (("relu", 10.0), ("tanh", 2.0)):
        rule = regularity.p_variation_sgd(lambda step: 1.0, path, activation, steps_per_epoch=1, p=1.0)
        state = rule.init(params)
        for _ in range(2):
            _, state = jax.jit(rule.update)(params, state, params)
        assert float(optimizers.learning_rate(state, None)) == factor / 4


def test_frozen_leaves_keep_every_bit_through_rate_momentum_and_decay():
    params = {"a": {"kernel": jnp.array([1.0, -0.0])}, "b": jnp.array([2.0, 3.0])}
    rule = optax.chain(optimizers.adam(lambda step: 0.1, weight_decay=0.1), optimizers.freeze_leaves(["a/kernel"]))
    state, moved = rule.init(params), params
    for _ in range(3):
        updates, state = rule.update(jax.tree.map(jnp.ones_like, moved), state, moved)
        moved = optax.apply_updates(moved, updates)
    np.testing.assert_array_equal(np.signbit(moved["a"]["kernel"]), [False, True])
    np.testing.assert_array_equal(moved["a"]["kernel"], params["a"]["kernel"])
    assert (moved["b"] != params["b"]).all()
    with pytest.raises(ValueError, match="there is no leaf c to freeze: there are a/kernel, b"):
        optimizers.freeze_leaves(["c"]).init(params)


def test_a_peak_in_the_state_gives_the_rates_of_the_schedule_with_that_peak():
    of_peak = lambda peak: schedules.by_step(schedules.cosine(peak, 4, 1), 2)
    make = lambda peak: optimizers.sgd(of_peak(peak), 0.9)
    held, own = optimizers.with_peak_in_state(make, of_peak, 0.25), make(0.5)
    params = {"w": jnp.array([1.0, -2.0])}
    states = held.init(params)._replace(peak=jnp.float32(0.5)), own.init(params)
    for step in range(4):
        gradients = {"w": jnp.array([0.3, step - 1.0])}
        (first, held_state), (second, own_state) = (
            rule.update(gradients, state, params) for rule, state in zip((held, own), states)
        )
        states = held_state, own_state
        np.testing.assert_allclose(first["w"], second["w"], rtol=1e-6)
        np.testing.assert_allclose(
            optimizers.learning_rate(held_state, None), optimizers.learning_rate(own_state, of_peak(0.5)), rtol=1e-6
        )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: regularity.variations(None), "the network has no path of weights over its depth"),
        (lambda: regularity.variations(lambda params: params, 1.5), "p is at least 2, so that p/2 is at least 1"),
        (lambda: regularity.scale_by_p_variation(None, lambda params: params, 0), "every is a whole number of steps"),
        (lambda: regularity.scale_by_p_variation(None, lambda params: params, 1, p=0.5), "p is at least 1, got 0.5"),
        (lambda: regularity.p_variation_sgd(None, lambda params: params, "tanh", 1, factor=-1.0), "at least 0"),
    ],
)
def test_what_is_out_of_range_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
