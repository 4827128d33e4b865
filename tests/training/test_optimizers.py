"""Learning-rate policies against numbers of the subspace paper's code, SGD against PyTorch's rule written out."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from subspaces_jax.training import optimizers, schedules


def rates(policy, epochs):
    return [float(policy(jnp.float32(epoch))) for epoch in epochs]


def test_cosine_with_warmup():
    found = rates(schedules.cosine(0.1, 160, 5), [0, 1, 2, 3, 4, 5, 80, 159])
    np.testing.assert_allclose(found, [0.02, 0.04, 0.06, 0.08, 0.1, 0.1, 0.05253, 1.03e-5], rtol=5e-3)
    np.testing.assert_allclose(rates(schedules.cosine(0.1, 200, 5), [199]), [6.5e-6], rtol=0.01)


@pytest.mark.parametrize(
    "policy, epochs, expected",
    [
        (schedules.constant(0.2, 10, 2), [0, 1, 2, 9], [0.1, 0.2, 0.2, 0.2]),
        (schedules.linear(0.2, 10), [0, 5, 9], [0.2, 0.1, 0.02]),
        (schedules.piecewise(0.1, 160), [0, 79, 80, 119, 120, 159], [0.1, 0.1, 0.01, 0.01, 0.001, 0.001]),
        (schedules.multistep(0.1, 90, every=30), [0, 29, 30, 60, 89], [0.1, 0.1, 0.01, 0.001, 0.001]),
        (schedules.swa_constant(0.1, 160), [0, 80, 112, 144, 159], [0.1, 0.1, 0.075, 0.05, 0.05]),
    ],
)
def test_policies(policy, epochs, expected):
    np.testing.assert_allclose(rates(policy, epochs), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "num_models, knots",
    [
        (1, (160,)),
        (2, (120, 160)),
        (3, (120, 140, 160)),
        (4, (120, 133, 146, 160)),
        (6, (120, 128, 136, 144, 152, 160)),
    ],
)
def test_swa_knots_of_the_paper(num_models, knots):
    assert schedules.swa_knots(160, num_models) == knots
    assert schedules.swa_knots(80, num_models)[-1] == 80  # the reference has 160 epochs wired in


def test_cyclic_policies_restart_at_their_knots():
    swa = schedules.swa_cyclic(0.1, 160, 5, num_models=3)
    np.testing.assert_allclose(rates(swa, [5, 120, 140]), [0.1, 0.05, 0.05], rtol=1e-5)
    expected = [0.05 * (1 + np.cos(np.pi * (119 - 5) / 115)), 0.025 * (1 + np.cos(np.pi * 19 / 20))]
    np.testing.assert_allclose(rates(swa, [119, 139]), expected, rtol=1e-3)
    assert schedules.snapshot_knots(160, 3, 5) == (5, 56, 107, 160)
    snapshot = schedules.snapshot_cyclic(0.1, 160, 5, num_models=3)
    np.testing.assert_allclose(rates(snapshot, [0, 5, 56, 107]), [0.02, 0.1, 0.1, 0.1], rtol=1e-5)
    np.testing.assert_allclose(rates(schedules.swa_cyclic(0.1, 40, num_models=1), [20]), [0.05], rtol=1e-5)


def test_impossible_cycles_are_refused():
    with pytest.raises(ValueError, match="9 models need at least 8 epochs after 7 of 10"):
        schedules.swa_knots(10, 9)
    with pytest.raises(ValueError, match="5 cycles need"):
        schedules.snapshot_knots(6, 5, 2)
    for start in (0.05, 0.125):
        with pytest.raises(ValueError, match="the warm-up has 5: raise swa_start"):
            schedules.swa_cyclic(0.1, 40, 5, num_models=3, swa_start=start)


def test_every_policy_is_finite_and_bounded_by_its_peak():
    for name, policy in schedules.POLICIES.items():
        found = rates(policy(0.1, 40, 3), range(40))
        assert np.isfinite(found).all() and min(found) >= 0 and max(found) == pytest.approx(0.1), name


def test_rate_is_constant_within_an_epoch():
    schedule = schedules.by_step(schedules.cosine(0.1, 4, 1), steps_per_epoch=3)
    found = [float(schedule(jnp.int32(step))) for step in range(12)]
    for epoch in range(4):
        assert len(set(found[3 * epoch : 3 * epoch + 3])) == 1
    assert len(set(found)) == 3  # warm-up ends where the cosine begins


def test_sgd_is_pytorchs_rule():
    """g += decay w; v = momentum v + g; w -= rate v, written out in NumPy."""
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=5), np.zeros(5)
    optimizer = optimizers.sgd(lambda step: 0.1, 0.9, 0.01)
    params = jnp.asarray(w, jnp.float32)
    state = optimizer.init(params)
    for _ in range(6):
        g = rng.normal(size=5)
        updates, state = optimizer.update(jnp.asarray(g, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        v = 0.9 * v + g + 0.01 * w
        w = w - 0.1 * v
    np.testing.assert_allclose(params, w, rtol=1e-5)


def test_a_fractional_policy_changes_every_step_and_others_every_epoch():
    held, every = (schedules.by_step(schedules.cosine(0.1, 4, every_step=on), 5) for on in (False, True))
    steps = range(20)
    np.testing.assert_allclose(
        [float(every(jnp.int32(s))) for s in steps], [0.05 * (1 + np.cos(np.pi * s / 20)) for s in steps], rtol=1e-5
    )
    assert len({float(held(jnp.int32(s))) for s in steps}) == 4


def test_adam_has_coupled_decay():
    """PyTorch's rule written out in float64."""
    rng = np.random.default_rng(0)
    w, gradients = rng.normal(size=3), rng.normal(size=(4, 3))
    optimizer = optimizers.adam(lambda step: 0.1, weight_decay=0.3)
    params, state = jnp.asarray(w, jnp.float32), None
    state, m, v = optimizer.init(params), 0.0, 0.0
    for n, gradient in enumerate(gradients, start=1):
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        g = gradient + 0.3 * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.1 * (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.999**n)) + 1e-8)
    np.testing.assert_allclose(params, w, rtol=1e-4)


@pytest.mark.parametrize("still", [(0, 2), (1,), (2,)])
def test_frozen_endpoints_keep_their_bits_through_momentum_and_decay(still):
    params = {"a": jax.random.normal(jax.random.key(0), (3, 4, 2)), "b": jnp.array([-0.0, 1.0, 0.0])}
    free = optimizers.sgd(lambda step: 0.1, 0.9, 0.1)
    frozen = optax.chain(free, optimizers.freeze_endpoints(still, 3))
    found, whole = params, params
    states = frozen.init(params), free.init(params)
    for _ in range(3):
        gradients = jax.tree.map(jnp.ones_like, params)
        updates, first = frozen.update(gradients, states[0], found)
        found = optax.apply_updates(found, updates)
        updates, second = free.update(gradients, states[1], whole)
        whole, states = optax.apply_updates(whole, updates), (first, second)
    for k in range(3):
        expected = params if k in still else whole
        row = lambda tree: jax.tree.map(lambda leaf: leaf[k], tree)
        chex.assert_trees_all_equal(row(found), row(expected))
        bits = lambda tree: jax.tree.map(np.signbit, jax.device_get(row(tree)))
        chex.assert_trees_all_equal(bits(found), bits(expected))


@pytest.mark.parametrize("endpoints, message", [((3,), "no endpoint 3: the stack has 0 to 2"), ((0, 1, 2), "all 3")])
def test_endpoints_that_cannot_be_frozen_are_named(endpoints, message):
    with pytest.raises(ValueError, match=message):
        optimizers.freeze_endpoints(endpoints, 3)


@pytest.mark.parametrize("names", [("w",), ("count", "learning_rate")])
def test_the_learning_rate_is_read_from_the_state(names):
    """Of a schedule's count, of one that the optimizer holds, whatever the parameters are called."""
    params = {name: jnp.ones((2, 3)) for name in names}
    rate = lambda step: 0.1 / (1 + step)
    held = optax.inject_hyperparams(optax.sgd)(learning_rate=0.7)
    for optimizer, expected in (
        (optimizers.sgd(rate), 0.1 / 3),
        (optimizers.adam(rate), 0.1 / 3),
        (optax.chain(optax.add_decayed_weights(0.1), held), 0.7),
        (optax.multi_transform({"all": optax.adam(rate)}, jax.tree.map(lambda _: "all", params)), 0.1 / 3),
    ):
        state = optimizer.init(params)
        for _ in range(3):
            _, state = optimizer.update(params, state, params)
        assert float(optimizers.learning_rate(state, rate)) == pytest.approx(expected)
    with pytest.raises(ValueError, match="neither a learning_rate nor a count"):
        optimizers.learning_rate(optax.EmptyState(), rate)


def test_steps_may_be_plain_numbers_and_fractions_of_epochs_are_not_cut_short():
    rate = schedules.by_step(schedules.cosine(0.1, 20), 10)
    assert float(rate(37)) == float(rate(jnp.int32(37)))
    assert schedules.swa_knots(100, 2, 0.29) == (29, 100)


def test_a_warm_up_never_exceeds_the_peak_within_an_epoch():
    for warmup in (1, 2, 3):
        rate = schedules.by_step(schedules.fge(0.1, 20, warmup=warmup), 100)
        rates = np.array([float(rate(step)) for step in range(0, 100 * warmup, 7)])
        assert rates.max() <= np.float32(0.1) and np.all(np.diff(rates) >= 0) and rates[0] == np.float32(0.1 / warmup)


def test_every_drop_of_multistep_is_on_time_compiled_or_not(optimised):
    for every in range(1, 130):
        rate = schedules.by_step(schedules.multistep(1.0, 2000, every=every, factor=0.5), 1)
        for step in (every - 1, every, 2 * every - 1, 2 * every, 5 * every):
            assert float(rate(step)) == 0.5 ** (step // every), (every, step)
    for every in (41, 47, 55, 61, 83, 97, 109):
        rate = jax.jit(
            schedules.by_step(schedules.multistep(1.0, 2000, every=every, factor=0.5), 1), compiler_options=optimised
        )
        assert [float(rate(k * every)) for k in range(1, 6)] == [0.5**k for k in range(1, 6)]
