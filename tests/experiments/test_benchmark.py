"""The benchmark's rows, on the smallest network: that each does its work, never how long it takes."""

import importlib.util

import jax
import numpy as np
import pytest

from subspaces_jax import evaluation
from subspaces_jax.experiments import benchmarks
from subspaces_jax.experiments.benchmarks import (
    connections,
    curves,
    deep_networks,
    deep_surfaces,
    hyperplanes,
    pruned,
    regularity,
    subspaces,
)
from subspaces_jax.experiments.build.programs import Programs

TINY = benchmarks.Problem("mlp_8", 8, 3, 16, num_units=12, num_examples=60, path_units=12, num_layers=20)


@pytest.fixture(scope="module")
def asked():
    """What the rows ask of the peer."""
    return []


@pytest.fixture(scope="module")
def measured(asked):
    def lpips(weights, images_a, images_b):
        asked.append((images_a.shape, images_b.shape))
        return lambda: None

    steps = lambda problem, num_steps: lambda: asked.append(num_steps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "SIDE", 3)
        patch.setattr(connections, "FEATURES", 5)
        patch.setattr(hyperplanes, "LARGE", "mlp_8_6")
        patch.setattr(hyperplanes, "THIN", "mlp_8_6")
        patch.setattr(hyperplanes, "CHECKPOINTS", 2)
        patch.setattr(deep_surfaces, "DEPTH", 4)
        patch.setattr(deep_surfaces, "SIDE", 3)
        patch.setattr(regularity, "NUM_PATHS", 2)
        patch.setattr(regularity, "EXPONENTS", (2.0,))
        patch.setattr(deep_networks, "DEPTH", 5)
        return benchmarks.run(TINY, rounds=1, peer=benchmarks.Peer(steps, steps, lpips))


def test_every_row_is_measured(measured):
    num = 36 + (importlib.util.find_spec("ot") is not None)
    assert len(measured) == num and len({row.name for row in measured}) == num
    assert all(row.low <= row.ratio <= row.high and np.isfinite(row.ratio) and row.seconds > 0 for row in measured)
    assert benchmarks.table(measured).count("\n") == num


def test_rows_of_the_peer_ask_it_for_as_much_work(measured, asked):
    images = (16, 64, 64, 3)
    assert asked == [benchmarks.STEPS] * 6 + [(images, images)]  # of three rows a warm-up and a round each


def test_ratios_are_of_runs_in_turn():
    calls = []
    row = benchmarks.compare("x", lambda: calls.append("ours"), lambda: calls.append("base"), rounds=2)
    assert calls == ["ours", "base", "base", "ours", "ours", "base"] and row.name == "x"


def test_every_way_to_score_points_looks_at_as_many_images(monkeypatch):
    """Of 3 points on both splits of 32 images."""
    seen, measure = [], evaluation.measure

    def counted(apply, variables, images, *args, **options):
        seen.append(len(images))
        return measure(apply, variables, images, *args, **options)

    for module in (evaluation, evaluation.passes, evaluation.points):
        monkeypatch.setattr(module, "measure", counted)
    for how in ("along", "calls", "points"):
        seen.clear()
        subspaces.profiler(TINY, 3, 32, how, "bezier(3)", both=True)()
        assert seen == [32] * 6, how


def test_a_plane_lies_around_a_curve_of_two_ends_and_a_bend_between_them():
    points = np.asarray(curves.plane(3))
    np.testing.assert_allclose(points.sum(axis=1), 1.0, atol=1e-6)
    controls = np.array([[0.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    x, y = np.meshgrid([-0.2, 0.5, 1.2], [-0.1, 0.25, 0.6], indexing="ij")
    np.testing.assert_allclose(points @ controls, np.stack([x, y], axis=-1).reshape(-1, 2), atol=1e-6)


def test_curve_rows_train_the_bend_alone(monkeypatch):
    made, advance = [], Programs.advance
    monkeypatch.setattr(Programs, "advance", lambda self, params: made.append(self.made) or advance(self, params))
    curves.curve_steps(TINY)
    assert made[0].frozen_endpoints == (0, 2) and made[0].space.num_endpoints == 3
    assert made[0].optimizer_settings.weight_decay == 0.0 < made[0].weight_decay


def test_rows_of_connections_do_the_same_work_both_ways(monkeypatch):
    a, b = connections.units(12)
    np.testing.assert_array_equal(connections.connecting.match(a, b), connections.by_distances(a, b))
    monkeypatch.setattr(connections, "BATCH", 25)
    adjusted = [way(*connections.features(60, 5)) for way in (connections.by_grams, connections.by_pseudoinverse)]
    np.testing.assert_allclose(*adjusted, atol=1e-4)
    once, each = (connections.path(12, once)() for once in (True, False))
    assert len(once) == len(each) == connections.POINTS
    jax.tree.map(np.testing.assert_array_equal, once, each)


def test_a_path_is_matched_once_or_at_every_point(monkeypatch):
    solved, connect = [], connections.connecting.connect
    monkeypatch.setattr(connections.connecting, "connect", lambda *args: solved.append(args) or connect(*args))
    counts = []
    for once in (True, False):
        connections.path(12, once)()
        counts.append(len(solved))
    assert counts == [1, 1 + connections.POINTS]


def test_optimal_transport_of_pot_is_the_same_assignment():
    pytest.importorskip("ot")
    a, b = connections.units(9)
    np.testing.assert_array_equal(connections.by_transport(a, b), connections.by_distances(a, b))


def test_without_pot_its_row_is_left_out_with_a_word(monkeypatch, caplog):
    rows = lambda: connections.rows(TINY, 1, None)
    monkeypatch.setattr(connections.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level("WARNING"):
        without = len(rows())
    assert caplog.messages == ["POT is not installed: matching is not compared with its solver"]
    monkeypatch.setattr(connections.importlib.util, "find_spec", lambda name: name)
    assert len(rows()) == without + 1 == 4
    assert benchmarks.run(TINY, 1, systems=()) == []


def test_statistics_and_resets_are_the_same_both_ways():
    params = hyperplanes.network("conv_fc((2, 3), (4,))", TINY)
    ours, base = hyperplanes.statistics(params)(), hyperplanes.by_numpy(jax.device_get(params))()
    assert [*ours] == [*base, "net"] and ours["Conv_1"]["projections"].shape == (3,)
    for layer, projections in base.items():
        np.testing.assert_allclose(ours[layer]["projections"], projections, atol=1e-5)
    together, alone = (way("mlp_8_6", TINY, 2)() for way in (hyperplanes.resets, hyperplanes.one_by_one))
    assert len(together) == 1 + 2 * 3
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize("p", (1.0, 1.5, 3.0))
def test_rows_of_regularity_find_the_same_number(p):
    """The pruned search by both its ways, the scan, and ours; of 45 points, which fill no dyadic block."""
    for kind in regularity.PATHS:
        path = regularity.paths(kind, 45)
        expected = pruned._by_numpy(path.astype(np.float64), p)
        np.testing.assert_allclose(pruned.variation(path, p), expected, rtol=1e-12)
        np.testing.assert_allclose(regularity.ours(path, p)(), expected, rtol=1e-5)
        np.testing.assert_allclose(regularity.scanned(path, p)(), expected, rtol=5e-3)
