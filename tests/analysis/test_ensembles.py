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
    assert found["disagreement_correct"] == pytest.approx(np.mean([(differ(i, j) & one_right(i, j)).mean() for i, j in pairs]))
    apart = [0.5 * np.abs(probs[i] - probs[j]).sum(-1).mean() for i, j in pairs]
    assert found["total_variation"] == pytest.approx(np.mean(apart), rel=1e-5)
    matrices = ensembles.pair_matrices(logits)
    for (i, j), distance in zip(pairs, apart):
        assert float(matrices["total_variation"][i, j]) == pytest.approx(distance, rel=1e-5)
        assert matrices["disagreement"][i, j] == matrices["disagreement"][j, i] == pytest.approx(differ(i, j).mean())
    assert np.all(np.diag(matrices["disagreement"]) == 0)


def test_a_member_with_itself_is_the_member(members):
    """The negative control: nothing is gained, and nothing differs."""
    logits, labels = members
    alone, twice = (ensembles.ensemble_scores(logits, labels, subset) for subset in ((1,), (1, 1)))
    assert twice == pytest.approx(alone, abs=1e-7) and twice["accuracy"] == alone["accuracy"] and twice["disagreement"] == 0


def test_sizes_go_through_all_subsets(members):
    logits, labels = members
    found = ensembles.by_size(logits, labels)
    for size in range(1, M + 1):
        scores = [ensembles.ensemble_scores(logits, labels, s)["nll"] for s in itertools.combinations(range(M), size)]
        assert found["nll"][size - 1] == pytest.approx(np.mean(scores)) and found["nll_std"][size - 1] == pytest.approx(np.std(scores))
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
