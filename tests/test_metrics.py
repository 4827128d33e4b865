"""Scores against a worked example by hand, closed forms and plain NumPy loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

from subspaces_jax import losses, metrics

pytestmark = pytest.mark.usefixtures("strict_dtypes")

# Six predictions of two classes and what follows from them by hand.
PROBS = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55], [0.6, 0.4], [1.0, 0.0]], jnp.float32)
LABELS = jnp.array([0, 1, 1, 0, 0, 0])


def test_worked_example():
    np.testing.assert_allclose(metrics.accuracy(PROBS, LABELS), 4 / 6, rtol=1e-6)
    of_label = [0.9, 0.2, 0.7, 0.45, 0.6, 1.0]
    np.testing.assert_allclose(metrics.negative_log_likelihood(PROBS, LABELS), -np.log(of_label).mean(), rtol=1e-5)
    squares = [2 * (1 - p) ** 2 for p in of_label]
    np.testing.assert_allclose(metrics.brier_score(PROBS, LABELS), np.mean(squares), rtol=1e-5)
    # with 2 bins all six confidences (.9 .8 .7 .55 .6 1.) share the upper one: |4 - 4.55| / 6
    np.testing.assert_allclose(metrics.expected_calibration_error(PROBS, LABELS, 2), 0.55 / 6, rtol=1e-5)
    # with 4 bins [.5, .75) holds .7+ .55- .6+ and [.75, 1] holds .9+ .8- 1.+
    expected = (abs(2 - 1.85) + abs(2 - 2.7)) / 6
    np.testing.assert_allclose(metrics.expected_calibration_error(PROBS, LABELS, 4), expected, rtol=1e-5)


def random_predictions(seed, shape):
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(shape[-1]), size=shape[:-1]).astype(np.float32)
    return probs, rng.integers(0, shape[-1], shape[-2])


def ece_by_loop(probs, labels, num_bins):
    """The definition, one example at a time."""
    gap = [0.0] * num_bins
    for p, label in zip(probs, labels):
        b = min(int(np.floor(np.float32(num_bins) * p.max())), num_bins - 1)
        gap[b] += float(p.argmax() == label) - float(p.max())
    return sum(map(abs, gap)) / len(labels)


@pytest.mark.parametrize("num_bins", [1, 15, 20])
def test_ece_equals_the_definition(num_bins):
    probs, labels = random_predictions(0, (200, 5))
    found = metrics.expected_calibration_error(jnp.asarray(probs), jnp.asarray(labels), num_bins)
    np.testing.assert_allclose(found, ece_by_loop(probs, labels, num_bins), atol=1e-5)


def test_agrees_with_scikit_learn():
    probs, labels = random_predictions(1, (150, 4))
    args = jnp.asarray(probs), jnp.asarray(labels)
    expected = sklearn.metrics.accuracy_score(labels, probs.argmax(-1))
    np.testing.assert_allclose(metrics.accuracy(*args), expected, rtol=1e-6)
    expected = sklearn.metrics.recall_score(labels, probs.argmax(-1), average=None)
    np.testing.assert_allclose(metrics.class_accuracy(*args), expected, rtol=1e-6)
    exact = probs.astype(np.float64) / probs.sum(-1, keepdims=True, dtype=np.float64)
    expected = sklearn.metrics.log_loss(labels, exact)
    np.testing.assert_allclose(metrics.negative_log_likelihood(*args), expected, rtol=1e-4)
    expected = sklearn.metrics.brier_score_loss(labels, exact, labels=range(4), scale_by_half=False)
    np.testing.assert_allclose(metrics.brier_score(*args), expected, rtol=1e-4)


@pytest.mark.parametrize("confidence, correct, expected", [(1.0, 1.0, 0.0), (0.95, 0.5, 0.45), (1.0, 0.0, 1.0)])
def test_ece_of_a_constant_predictor(confidence, correct, expected):
    probs = np.tile(np.array([[confidence, 1 - confidence]], np.float32), (100, 1))
    labels = (np.arange(100) >= 100 * correct).astype(np.int32)
    found = metrics.expected_calibration_error(jnp.asarray(probs), jnp.asarray(labels), 20)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_calibrated_data_have_no_calibration_error():
    rng = np.random.default_rng(2)
    confidence = rng.uniform(0.5, 1.0, 100_000).astype(np.float32)
    labels = (rng.uniform(size=confidence.size) > confidence).astype(np.int32)
    probs = jnp.asarray(np.stack([confidence, 1 - confidence], -1))
    assert metrics.expected_calibration_error(probs, jnp.asarray(labels)) < 0.01


def test_every_metric_maps_over_leading_axes():
    probs, labels = random_predictions(3, (2, 3, 40, 5))
    probs, labels = jnp.asarray(probs), jnp.asarray(labels)
    for name, values in metrics.summary(probs, labels).items():
        assert values.shape == (2, 3), name
        one = metrics.summary(probs[1, 2], labels)[name]
        np.testing.assert_allclose(values[1, 2], one, rtol=1e-5)


def test_distances_between_predictions():
    a, b = (jnp.asarray(random_predictions(seed, (50, 4))[0]) for seed in (4, 5))
    expected = np.mean(0.5 * np.abs(np.asarray(a) - np.asarray(b)).sum(-1))
    np.testing.assert_allclose(metrics.total_variation(a, b), expected, rtol=1e-5)
    np.testing.assert_allclose(metrics.disagreement(a, b), np.mean(np.argmax(a, -1) != np.argmax(b, -1)), rtol=1e-6)
    assert metrics.total_variation(a, a) == metrics.disagreement(a, a) == 0
    one_hot = jnp.eye(2, dtype=jnp.float32)
    assert metrics.total_variation(one_hot, one_hot[::-1]) == metrics.disagreement(one_hot, one_hot[::-1]) == 1


def test_a_certain_mistake_has_a_finite_loss():
    nll = metrics.negative_log_likelihood(jnp.array([[1.0, 0.0]], jnp.float32), jnp.array([1]))
    assert np.isfinite(nll) and nll > 80


@pytest.mark.parametrize("probs, labels", [((3, 2), (4,)), ((3,), (3,)), ((3, 2), (3, 1))])
def test_wrong_shapes_are_refused(probs, labels):
    for metric in (metrics.accuracy, metrics.brier_score, metrics.expected_calibration_error):
        with pytest.raises(ValueError, match="expected probs"):
            metric(jnp.zeros(probs), jnp.zeros(labels, jnp.int32))
    with pytest.raises(ValueError, match="two arrays"):
        metrics.total_variation(jnp.zeros((3, 2)), jnp.zeros((4, 2)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_is_that_of_smoothed_labels(smoothing):
    rng = np.random.default_rng(6)
    logits, labels = rng.normal(size=(30, 5)).astype(np.float32), rng.integers(0, 5, 30)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    targets = (1 - smoothing) * np.eye(5)[labels] + smoothing / 5
    found = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(found, -(targets * log_probs).sum(-1), rtol=1e-5)


def test_cross_entropy_is_float32_whatever_the_network_computes_in():
    found = losses.cross_entropy(jnp.ones((2, 3), jnp.bfloat16), jnp.zeros(2, jnp.int32), 0.1)
    assert found.dtype == jnp.float32


def test_cross_entropy_refuses_to_broadcast():
    with pytest.raises(AssertionError):
        losses.cross_entropy(jnp.zeros((3, 2)), jnp.zeros(1, jnp.int32))


def test_reliability_bins_are_those_of_the_calibration_error(getkey):
    probs = jax.nn.softmax(3 * jax.random.normal(getkey(), (2, 200, 4)))
    labels = jax.random.randint(getkey(), (200,), 0, 4)
    bins = metrics.reliability(probs, labels, 10)
    bins = {name: np.asarray(values) for name, values in bins.items()}
    for row in range(2):
        confidence, right = np.asarray(probs[row]).max(-1), np.asarray(probs[row]).argmax(-1) == np.asarray(labels)
        for b in range(10):
            inside = (confidence >= b / 10) & (confidence < (b + 1) / 10)
            assert bins["count"][row, b] == inside.sum()
            expected = (confidence[inside].mean(), right[inside].mean()) if inside.any() else (0.0, 0.0)
            np.testing.assert_allclose((bins["confidence"][row, b], bins["accuracy"][row, b]), expected, rtol=1e-5)
    gaps = bins["count"] / 200 * np.abs(bins["accuracy"] - bins["confidence"])
    np.testing.assert_allclose(gaps.sum(-1), metrics.expected_calibration_error(probs, labels, 10), rtol=1e-4)


def test_disagreement_with_one_right_by_hand():
    labels = jnp.array([0, 0, 1, 1])
    a, b = jax.nn.one_hot(jnp.array([0, 1, 1, 0]), 3), jax.nn.one_hot(jnp.array([0, 2, 2, 1]), 3)
    assert metrics.disagreement(a, b) == 0.75 and metrics.disagreement_correct(a, b, labels) == 0.5


def test_feature_cosine_by_hand():
    a = jnp.array([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0], [2.0, 0.0]], jnp.float32)
    b = jnp.array([[4.0, 3.0], [0.0, 7.0], [1.0, 1.0], [-5.0, 0.0]], jnp.float32)
    np.testing.assert_allclose(metrics.feature_cosine(a, b), (0.96 + 0.0 + 0.0 - 1.0) / 4, atol=1e-7)
    np.testing.assert_allclose(metrics.feature_cosine(a, b, squared=True), (0.96**2 + 1.0) / 4, rtol=1e-6)
    both = metrics.feature_cosine(jnp.stack([a, b]), jnp.stack([b, b]))
    np.testing.assert_allclose(both, [(0.96 - 1.0) / 4, 1.0], atol=1e-6)
    np.testing.assert_allclose(metrics.feature_cosine(1e12 * a, 1e-12 * b), (0.96 - 1.0) / 4, atol=1e-7)  # no overflow
    with pytest.raises(ValueError, match="two arrays"):
        metrics.feature_cosine(a, b[:3])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_summed_in_float32(dtype):
    rng = np.random.default_rng(0)
    probs = jnp.asarray(rng.dirichlet([0.3] * 4, 5000), dtype)
    labels, single = jnp.asarray(rng.integers(0, 4, 5000)), probs.astype(jnp.float32)
    for metric in (metrics.negative_log_likelihood, metrics.brier_score, metrics.expected_calibration_error):
        np.testing.assert_allclose(metric(probs, labels), metric(single, labels), rtol=1e-6)
    np.testing.assert_allclose(
        metrics.total_variation(probs, probs[::-1]), metrics.total_variation(single, single[::-1])
    )
    assert metrics.reliability(probs, labels)["count"].sum() == 5000
    certain = jnp.array([[1.0, 0.0]], dtype)
    np.testing.assert_allclose(metrics.negative_log_likelihood(certain, jnp.array([1])), 87.33655, rtol=1e-5)


def test_what_is_not_a_number_has_no_accuracy():
    probs, labels = np.full((2, 4, 3), 1 / 3, np.float32), np.array([0, 0, 1, 2])
    probs[1, 2] = np.nan
    np.testing.assert_array_equal(metrics.accuracy(probs, labels), [0.5, np.nan])
    np.testing.assert_array_equal(metrics.class_accuracy(probs, labels), [[1, 0, 0], [1, np.nan, 0]])
    four_classes = np.pad(probs, ((0, 0), (0, 0), (0, 1)))
    np.testing.assert_array_equal(metrics.class_accuracy(four_classes, labels)[0], [1, 0, 0, np.nan])
    assert np.isnan(metrics.summary_sums(probs[1], labels, jnp.ones(4))["accuracy"])
    assert metrics.summary_sums(probs[1], labels, jnp.array([1, 1, 0, 1]))["accuracy"] == 2


def test_the_largest_logits_are_those_that_argmax_takes():
    logits = jnp.array([[-0.0, 0.0, -1.0], [0.0, -0.0, 2.0]])
    labels = jnp.array([0, 2])
    assert metrics.among_top(logits, labels, 1).all() and metrics.accuracy(logits, labels) == 1
    assert metrics.among_top(logits, jnp.array([2, 1]), 2).tolist() == [False, False]
    assert metrics.among_top(logits, jnp.array([2, 1]), 9).all()
