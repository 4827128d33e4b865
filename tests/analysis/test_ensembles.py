"""Ensembles from logits, against loops in NumPy."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax.analysis import ensembles

M, N, C = 4, 57, 5


@pytest.fixture
def members():
    rng = np.random.default_rng(0)
    return 2 * rng.normal(size=(M, N, C)).astype(np.float32), rng.integers(0, C, N).astype(np.int32)


def softmax(logits):
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_an_ensemble_is_the_mean_of_probabilities(members):
    logits, labels = members
    found = ensembles.ensemble_scores(logits, labels, (0, 2, 3))
    mean = softmax(logits[[0, 2, 3]]).mean(0)
    assert found["accuracy"] == pytest.approx(np.mean(mean.argmax(-1) == labels))
    assert found["nll"] == pytest.approx(-np.log(mean[np.arange(N), labels]).mean(), rel=1e-5)
    assert found["logit_mean_accuracy"] == pytest.approx(np.mean(logits[[0, 2, 3]].sum(0).argmax(-1) == labels))
    accuracies = [np.mean(logits[m].argmax(-1) == labels) for m in (0, 2, 3)]
    assert found["member_accuracy"] == pytest.approx(np.mean(accuracies))


def test_diversity_is_the_mean_over_pairs(members):
    logits, labels = members
    found, probs = ensembles.ensemble_scores(logits, labels), softmax(logits)
    pairs = list(itertools.combinations(range(M), 2))
    predictions = probs.argmax(-1)
    differ = lambda i, j: predictions[i] != predictions[j]
    one_right = lambda i, j: (predictions[i] == labels) | (predictions[j] == labels)
    assert found["disagreement"] == pytest.approx(np.mean([differ(i, j).mean() for i, j in pairs]))
    assert found["disagreement_correct"] == pytest.approx(
        np.mean([(differ(i, j) & one_right(i, j)).mean() for i, j in pairs])
    )
    apart = [0.5 * np.abs(probs[i] - probs[j]).sum(-1).mean() for i, j in pairs]
    assert found["total_variation"] == pytest.approx(np.mean(apart), rel=1e-5)
    matrices = ensembles.pair_matrices(logits)
    for (i, j), distance in zip(pairs, apart):
        assert float(matrices["total_variation"][i, j]) == pytest.approx(distance, rel=1e-5)
        assert matrices["disagreement"][i, j] == matrices["disagreement"][j, i] == pytest.approx(differ(i, j).mean())
    assert np.all(np.diag(matrices["disagreement"]) == 0) and "disagreement_correct" not in matrices
    correct = ensembles.pair_matrices(logits, labels)["disagreement_correct"]
    for i, j in pairs:
        assert correct[i, j] == correct[j, i] == pytest.approx((differ(i, j) & one_right(i, j)).mean())


@pytest.mark.parametrize("squared", [False, True])
def test_feature_cosines_are_those_of_a_loop_in_parts_or_not(squared):
    features = np.random.default_rng(2).normal(size=(3, 11, 2, 4)).astype(np.float32)
    features[1, 4] = 0.0  # nothing in common with anything
    expected = np.zeros((3, 3))
    for i, j, n in itertools.product(range(3), range(3), range(11)):
        a, b = features[i, n].ravel().astype(np.float64), features[j, n].ravel().astype(np.float64)
        cosine = a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) if a.any() and b.any() else 0.0
        expected[i, j] += (cosine**2 if squared else cosine) / 11
    np.testing.assert_allclose(ensembles.feature_cosines(features, squared), expected, atol=1e-6)
    parts = (features[:, start : start + 5] for start in (0, 5, 10))
    np.testing.assert_allclose(ensembles.feature_cosines(parts, squared), expected, atol=1e-6)


def test_parts_of_features_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="features of 2 and of 3 members"):
        ensembles.feature_cosines([np.ones((2, 4, 1)), np.ones((3, 4, 1))])
    with pytest.raises(ValueError, match="got none"):
        ensembles.feature_cosines([])


def test_a_member_with_itself_is_the_member(members):
    """The negative control: nothing is gained, and nothing differs."""
    logits, labels = members
    alone, *repeated = (ensembles.ensemble_scores(logits, labels, (1,) * times) for times in (1, 2, 3, 7))
    assert all(scores == alone for scores in repeated)
    assert alone["total_variation"] == alone["disagreement"] == alone["disagreement_correct"] == 0
    of_members = ensembles.member_scores(logits, labels)
    for name, values in of_members.items():
        assert values.shape == (M,) and values[1] == pytest.approx(alone[name], rel=1e-6)


def test_three_members_by_hand():
    """Two examples of two classes; the third member turns the first example's vote and no other's."""
    odds = np.log(np.array([[[4, 1], [1, 1.5]], [[1, 4], [1, 1.5]], [[3, 2], [1, 9]]], np.float32))
    labels = np.array([0, 1])
    found = ensembles.subset_scores(odds, labels, [(0, 1), (1, 2), (0, 1, 2)])
    first = np.array([(0.8 + 0.2) / 2, (0.2 + 0.6) / 2, (0.8 + 0.2 + 0.6) / 3])
    second = np.array([0.6, (0.6 + 0.9) / 2, (0.6 + 0.6 + 0.9) / 3])
    np.testing.assert_allclose(found["nll"], -(np.log(first) + np.log(second)) / 2, rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"][1:], [0.5, 1.0])
    np.testing.assert_allclose(found["logit_mean_accuracy"][1:], [0.5, 1.0])
    np.testing.assert_allclose(found["member_accuracy"], [0.75, 0.75, 5 / 6])
    np.testing.assert_allclose(found["disagreement"], [0.5, 0.5, 1 / 3])
    np.testing.assert_allclose(found["disagreement_correct"], found["disagreement"])
    np.testing.assert_allclose(found["total_variation"], [0.3, (0.4 + 0.3) / 2, (0.6 + 0.7 + 0.5) / 6], rtol=1e-5)


def test_a_diverged_member_spoils_no_ensemble_but_its_own(members):
    logits, labels = members
    broken = logits.copy()
    broken[3] = np.nan
    expected = ensembles.ensemble_scores(logits, labels, (0, 1))
    assert ensembles.ensemble_scores(broken, labels, (0, 1)) == expected
    assert np.isnan(ensembles.ensemble_scores(broken, labels, (0, 3))["nll"])


def test_sizes_go_through_all_subsets(members):
    logits, labels = members
    found = ensembles.by_size(logits, labels)
    for size in range(1, M + 1):
        scores = [ensembles.ensemble_scores(logits, labels, s)["nll"] for s in itertools.combinations(range(M), size)]
        assert found["nll"][size - 1] == pytest.approx(np.mean(scores))
        spread = np.std(scores, ddof=1) if len(scores) > 1 else 0.0
        assert found["nll_std"][size - 1] == pytest.approx(spread)
    assert found["disagreement"][0] == 0 and found["accuracy_std"][-1] == 0


def test_few_subsets_are_distinct_and_the_same_in_every_call(members):
    logits, labels = members
    rng = np.random.default_rng(0)
    drawn = ensembles._subsets(10, 4, 7, rng)
    assert len(set(drawn)) == 7 and all(len(set(subset)) == 4 for subset in drawn)
    first, second = (ensembles.by_size(logits, labels, max_subsets=2, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first["nll"], second["nll"])


@pytest.mark.parametrize("subset", [(), (4,), (-1,)])
def test_members_that_are_not_there_are_refused(members, subset):
    with pytest.raises(ValueError, match=r"members .* of 4: name some of 0 to 3"):
        ensembles.ensemble_scores(*members, subset)


@pytest.mark.parametrize("logits", [jnp.zeros((0, 3, 2)), jnp.zeros((2, 4, 2)), jnp.zeros((3, 2))])
def test_shapes_that_do_not_fit_are_refused(logits):
    with pytest.raises(ValueError, match=r"expected logits \[M, N, C\]"):
        ensembles.by_size(logits, np.zeros(3, np.int32))


def test_all_sizes_are_scored_by_one_program(members):
    """Compiled once for each size, ten members took a quarter of a minute."""
    ensembles._of_some.clear_cache()
    ensembles.by_size(*members)
    assert ensembles._of_some._cache_size() == 1


def test_members_of_different_classes_and_no_subsets_are_refused():
    labels = np.zeros(3, np.int32)
    with pytest.raises(ValueError, match=r"differ in examples or classes: .* \[\(3, 2\), \(3, 4\)\]"):
        ensembles.ensemble_scores([np.zeros((3, 2)), np.zeros((3, 4))], labels)
    with pytest.raises(ValueError, match="at least one subset"):
        ensembles.subset_scores(np.zeros((2, 3, 2)), labels, [])
    with pytest.raises(ValueError, match="max_subsets = 0"):
        ensembles.by_size(np.zeros((2, 3, 2)), labels, max_subsets=0)
