"""Averages of weights against NumPy over the stored iterates, and the law of SWAG's draws."""

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from subspaces_jax import geometry
from subspaces_jax.training import averages

AVERAGES = {"swa": averages.SWA, "swag_2": averages.swag(2), "swag_9": averages.swag(9)}
M = 6


@pytest.fixture
def stack(getkey):
    return {"a": jax.random.normal(getkey(), (M, 3)), "b": {"kernel": 5 + jax.random.normal(getkey(), (M, 2, 2))}}


@pytest.mark.parametrize("name", AVERAGES)
def test_what_is_read_is_the_mean(name, stack):
    read = AVERAGES[name].read(averages.of_stack(AVERAGES[name], stack))
    chex.assert_trees_all_close(read, jax.tree.map(lambda leaf: np.mean(np.asarray(leaf), axis=0), stack), rtol=1e-5)


@pytest.mark.parametrize("name", AVERAGES)
def test_a_constant_is_its_own_average_and_its_only_draw(name, stack):
    constant = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1] / 3, leaf.shape), stack)
    state = averages.of_stack(AVERAGES[name], constant)
    first = jax.tree.map(lambda leaf: leaf[0], constant)
    chex.assert_trees_all_close(AVERAGES[name].read(state), first, rtol=1e-6)
    chex.assert_trees_all_close(averages.swag_sample(state, jax.random.key(0)), first, rtol=1e-5)


@pytest.mark.parametrize("name", AVERAGES)
def test_jitted_updates_are_the_same_and_trace_once(name, stack):
    chex.clear_trace_counter()
    update = jax.jit(chex.assert_max_traces(AVERAGES[name].update, 1))
    state = AVERAGES[name].init(jax.tree.map(lambda leaf: leaf[0], stack))
    for m in range(M):
        state = update(state, jax.tree.map(lambda leaf: leaf[m], stack))
    chex.assert_trees_all_close(state, averages.of_stack(AVERAGES[name], stack), rtol=1e-5)


def test_variance_is_that_of_all_iterates_and_the_last_ones_are_kept(stack):
    state = averages.of_stack(averages.swag(2), stack)
    variance = jax.tree.map(lambda squares: squares / state.count, state.squares)
    chex.assert_trees_all_close(variance, jax.tree.map(lambda leaf: np.var(np.asarray(leaf), axis=0), stack), rtol=1e-4)
    np.testing.assert_array_equal(np.sort(state.latest["a"], axis=0), np.sort(stack["a"][-2:], axis=0))


def test_a_large_mean_leaves_no_negative_variance(getkey):
    rows = {"w": 1e4 + 1e-4 * jax.random.normal(getkey(), (50, 40))}
    state = averages.of_stack(averages.swag(3), rows)
    assert np.all(state.squares["w"] >= 0)
    assert np.all(np.isfinite(averages.swag_sample(state, getkey())["w"]))


@pytest.mark.parametrize("rank", [0, M])
def test_draws_have_the_mean_and_covariance_of_the_fit(rank, stack, getkey):
    """Half the diagonal and half the sample covariance at full rank; the whole diagonal without it."""
    rows = np.asarray(stack["a"], np.float64)
    state = averages.of_stack(averages.swag(rank), {"a": stack["a"]})
    draws = jax.vmap(lambda key: averages.swag_sample(state, key)["a"])(jax.random.split(getkey(), 40_000))
    diagonal = np.diag(rows.var(axis=0))
    expected = 0.5 * diagonal + 0.5 * np.cov(rows.T) if rank else diagonal
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.all(np.abs(np.cov(np.asarray(draws).T) - expected) < 0.05 * scale)
    assert np.all(np.abs(np.mean(draws, axis=0) - rows.mean(0)) < 0.05 * np.sqrt(np.diag(expected)))


@pytest.mark.parametrize("rank, low_rank, scale", [(M, True, 1.0), (M + 2, True, 0.3), (3, True, 1.0), (M, False, 2.0)])
def test_covariance_between_leaves_and_of_fewer_iterates(rank, low_rank, scale, stack, getkey):
    """The low-rank part ties the leaves together, and is of the last `rank` less the mean of all."""
    rows = np.concatenate([np.asarray(leaf, np.float64).reshape(M, -1) for leaf in jax.tree.leaves(stack)], axis=1)
    state = averages.of_stack(averages.swag(rank), stack)
    draw = lambda key: ravel_pytree(averages.swag_sample(state, key, low_rank, scale))[0]
    draws = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(getkey(), 40_000)), np.float64)
    deviations = (rows - rows.mean(0))[-rank:]
    diagonal, low = np.diag(rows.var(axis=0)), deviations.T @ deviations / (len(deviations) - 1)
    expected = scale * (0.5 * (diagonal + low) if low_rank else diagonal)
    scales = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert np.all(np.abs(np.cov(draws.T) - expected) < 5 * np.sqrt(2 / 40_000) * scales)


def test_what_does_not_fit_is_refused(getkey):
    with pytest.raises(ValueError, match="at least 0, got -1"):
        averages.swag(-1)
    uneven = {"a": jnp.zeros((2, 3)), "b": jnp.zeros((3, 3))}
    for average in (lambda: averages.of_stack(averages.SWA, uneven), lambda: averages.per_weight(uneven, getkey())):
        with pytest.raises(ValueError, match="share their leading axis"):
            average()


def test_a_sequence_is_one_trace_however_long(stack):
    """Unrolled over the rows, twenty checkpoints of a residual network took minutes to compile."""
    chex.clear_trace_counter()
    average = averages.swag(3)
    traced = average._replace(update=chex.assert_max_traces(average.update, 1))
    chex.assert_trees_all_close(averages.of_stack(traced, stack), averages.of_stack(average, stack))


def test_another_architecture_cannot_join(stack):
    state = averages.SWA.init(jax.tree.map(lambda leaf: leaf[0], stack))
    with pytest.raises(ValueError, match=r"another architecture cannot join an average: .*a \(4,\) instead of \(3,\)"):
        averages.SWA.update(state, {"a": jnp.zeros(4), "b": {"kernel": jnp.zeros((2, 2))}})


def test_every_scalar_has_coordinates_of_its_own():
    """Of one-hot networks the mixture shows its coordinates: Dirichlet(1, 1, 1) has variance 2 / (9 * 4)."""
    shown = averages.per_weight(
        {"w": jnp.stack([jnp.ones(50_000), jnp.zeros(50_000), jnp.zeros(50_000)])}, jax.random.key(1)
    )["w"]
    assert float(jnp.mean(shown)) == pytest.approx(1 / 3, abs=0.005)
    assert float(jnp.var(shown)) == pytest.approx(1 / 18, rel=0.03)
    assert abs(np.corrcoef(shown[:-1], shown[1:])[0, 1]) < 0.02


def test_mixtures_stay_between_the_networks(stack, getkey):
    mixed = averages.per_weight(stack, getkey())
    for leaf, rows in zip(jax.tree.leaves(mixed), jax.tree.leaves(stack)):
        assert np.all((leaf <= rows.max(0) + 1e-6) & (leaf >= rows.min(0) - 1e-6))


def test_points_towards_each_network(stack):
    points = averages.endpoint_coordinates(M, 0.75)
    np.testing.assert_allclose(points.sum(1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(np.diag(points), 0.75, rtol=1e-6)
    np.testing.assert_allclose(points[0, 1:], 0.05, rtol=1e-5)
    np.testing.assert_array_equal(averages.endpoint_coordinates(M, 1.0), np.eye(M))
    towards = geometry.contract(stack, points[2])
    others = np.delete(np.asarray(stack["a"]), 2, axis=0)
    np.testing.assert_allclose(towards["a"], 0.75 * stack["a"][2] + 0.25 * others.mean(0), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match="at least 2, got 1"):
        averages.endpoint_coordinates(1, 0.5)


def test_with_double_precision_enabled_averages_stay_in_single(getkey):
    with jax.enable_x64(True):
        state = averages.of_stack(averages.swag(rank=2), {"w": jnp.arange(6.0).reshape(3, 2)})
        assert state.mean["w"].dtype == averages.swag_sample(state, getkey())["w"].dtype == jnp.float32
    np.testing.assert_allclose(state.mean["w"], [2.0, 3.0])


def test_weights_in_another_kind_of_mapping_join_an_average():
    rows = [{"Dense_0": {"kernel": jnp.full((2, 2), value)}} for value in (1.0, 3.0)]
    state = averages.SWA.update(averages.SWA.init(rows[0]), rows[0])
    state = averages.SWA.update(state, flax.core.freeze(rows[1]))
    assert type(state.mean) is dict and float(state.mean["Dense_0"]["kernel"][0, 0]) == 2.0
