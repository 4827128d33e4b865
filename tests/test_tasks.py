"""Tasks against NumPy: losses, additive scores, ensembles, and what padding may hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from subspaces_jax import metrics, tasks

N, C = 103, 5


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    return (
        rng.normal(size=(N, C)).astype(np.float32),
        rng.normal(size=(N, C)).astype(np.float32),
        rng.integers(0, C, N).astype(np.int32),
    )


def softmax(logits):
    powers = np.exp(np.asarray(logits, np.float64))
    return powers / powers.sum(-1, keepdims=True)


def by_hand(probs, labels, num_bins):
    """Accuracy, nll, Brier and ECE in float64, bin by bin."""
    one_hot, right = np.eye(C)[labels], probs.argmax(-1) == labels
    confidence = probs.max(-1)
    ece = 0.0
    for b in range(num_bins):
        inside = np.clip(np.floor(confidence * num_bins), 0, num_bins - 1) == b
        ece += abs(right[inside].sum() - confidence[inside].sum()) / len(labels)
    nll = -np.log(probs[np.arange(len(labels)), labels]).mean()
    return right.mean(), nll, ((probs - one_hot) ** 2).sum(-1).mean(), ece


def in_parts(task, *arrays, size=32):
    """The scores of padded batches added up, the padding being NaN."""
    total = None
    for start in range(0, N, size):
        part = [np.asarray(array[start : start + size]) for array in arrays]
        mask = np.arange(size) < len(part[0])
        padded = [
            np.concatenate([x, np.full((size - len(x), *x.shape[1:]), np.nan if x.dtype.kind == "f" else 0, x.dtype)])
            for x in part
        ]
        sums = task.scores(*map(jnp.asarray, padded), jnp.asarray(mask))
        total = sums if total is None else jax.tree.map(jnp.add, total, sums)
    return {name: float(value) for name, value in task.read(total).items()}


@pytest.mark.parametrize("num_bins", [15, 20])
def test_classification_scores_are_those_of_the_whole_split(predictions, num_bins):
    logits, _, labels = predictions
    found = in_parts(tasks.classification(), logits, labels)
    expected = by_hand(softmax(logits), labels, num_bins)
    names = ("accuracy", "nll", "brier", f"ece_{num_bins}")
    np.testing.assert_allclose([found[name] for name in names], expected, rtol=1e-5)
    whole = metrics.summary(jax.nn.softmax(jnp.asarray(logits)), jnp.asarray(labels))
    assert found == pytest.approx({name: float(value) for name, value in whole.items()}, rel=1e-5)


def test_an_ensemble_of_classifiers_predicts_the_mean_of_probabilities(predictions):
    logits, others, labels = predictions
    task = tasks.classification()
    together = task.mean(jnp.stack([logits, others]))
    mean = 0.5 * (softmax(logits) + softmax(others))
    np.testing.assert_allclose(softmax(together), mean, rtol=1e-5)
    apart = tasks.read(task.compare(*map(jnp.asarray, (logits, others, labels)), jnp.ones(N)))
    differ = np.mean(logits.argmax(-1) != others.argmax(-1))
    distance = 0.5 * np.abs(softmax(logits) - softmax(others)).sum(-1).mean()
    of_logits = np.mean((logits + others).argmax(-1) == labels)
    np.testing.assert_allclose(
        [float(apart[name]) for name in ("disagreement", "total_variation", "logit_mean_accuracy")],
        [differ, distance, of_logits],
        rtol=1e-5,
    )


def test_label_smoothing_changes_the_loss_and_no_score(predictions):
    logits, _, labels = map(jnp.asarray, predictions)
    plain, smooth = tasks.classification(), tasks.classification(label_smoothing=0.1)
    log_probs = np.log(softmax(logits))
    nll = -log_probs[np.arange(N), np.asarray(labels)]
    np.testing.assert_allclose(plain.loss(logits, labels), nll, rtol=1e-5)
    np.testing.assert_allclose(smooth.loss(logits, labels), 0.9 * nll - 0.1 * log_probs.mean(-1), rtol=1e-5)
    for name, value in plain.scores(logits, labels, jnp.ones(N)).items():
        np.testing.assert_array_equal(value, smooth.scores(logits, labels, jnp.ones(N))[name])


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_regression_is_the_sum_of_powers(p):
    rng = np.random.default_rng(1)
    task, outputs, labels = tasks.regression(p), rng.normal(size=(N, 3)), rng.normal(size=(N, 3))
    targets = task.targets(None, jnp.asarray(labels, jnp.float32))
    difference = np.abs(outputs - labels)
    loss = task.loss(jnp.asarray(outputs, jnp.float32), targets)
    np.testing.assert_allclose(loss, (difference**p).sum(-1), rtol=1e-4)
    found = in_parts(task, outputs.astype(np.float32), np.asarray(targets))
    expected = {"loss": (difference**p).sum(-1).mean(), "mae": difference.mean(), "mse": (difference**2).mean()}
    assert found == pytest.approx(expected, rel=1e-4)
    assert task.targets(None, jnp.arange(4)).shape == (4, 1), "classes may be taken for numbers"
    assert [task.output_shape((8, 8, 1), 10, shape) for shape in ((), (3,), (2, 2))] == [(1,), (3,), (4,)]
    narrow = jnp.zeros((N, 1))  # which NumPy would spread over the targets
    for compared in (task.loss, lambda *pair: task.scores(*pair, jnp.ones(N))):
        with pytest.raises(ValueError, match=rf"regression compares .* of one shape: \({N}, 1\) and \({N}, 3\)"):
            compared(narrow, targets)


@pytest.mark.parametrize("loss", ["mae", "mse"])
def test_reconstruction_scores_outputs_against_inputs(loss):
    rng = np.random.default_rng(2)
    inputs, outputs = (rng.random((N, 4, 4, 2)).astype(np.float32) for _ in range(2))
    task = tasks.reconstruction(loss)
    targets = task.targets(jnp.asarray(inputs), ())
    assert task.output_shape((4, 4, 2), 10) == (4, 4, 2)
    found = in_parts(task, outputs, np.asarray(targets))
    difference = np.asarray(outputs, np.float64) - inputs
    expected = {"mae": np.abs(difference).mean(), "mse": (difference**2).mean()}
    assert found == pytest.approx(expected | {"loss": expected[loss]}, rel=1e-4)
    np.testing.assert_allclose(task.mean(jnp.stack([outputs, inputs])), 0.5 * (outputs + inputs), rtol=1e-6)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: tasks.classification(1.5), "label_smoothing is a fraction"),
        (lambda: tasks.classification(top=-1), "top is a number of classes"),
        (lambda: tasks.regression(0.5), "p is a finite number of at least 1, got 0.5"),
        (lambda: tasks.reconstruction("mea"), "loss is one of mae, mse, laplacian, got 'mea'"),
    ],
)
def test_what_a_task_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_score_of_several_guesses(predictions):
    logits, _, labels = predictions
    plain = in_parts(tasks.classification(), logits, labels)
    rank = np.sum(logits > logits[np.arange(N), labels][:, None], axis=-1)
    for top in (1, 3, C, C + 2):
        found = in_parts(tasks.classification(top=top), logits, labels)
        assert found == pytest.approx(plain | {f"top_{top}": np.mean(rank < top)}, rel=1e-6)
    assert tasks.classification(top=5).columns[-1] == ("top_5", "top 5", "%", 100.0)
    assert 0.0 < np.mean(rank < 1) < np.mean(rank < 3) < 1.0


def test_a_detailed_classification_adds_scores_and_changes_none(predictions):
    logits, _, labels = predictions
    labels = np.where(labels == 3, 2, labels)  # class 3 is predicted and never right
    logits = logits - 100.0 * (np.arange(C) == 4)  # class 4 is labelled and never predicted
    plain, found = (in_parts(tasks.classification(0.1, detailed), logits, labels) for detailed in (False, True))
    assert found.items() >= plain.items()
    predicted = logits.argmax(-1)
    recall = [np.mean(predicted[labels == c] == c) if (labels == c).any() else 0.0 for c in range(C)]
    precision = [np.mean(labels[predicted == c] == c) if (predicted == c).any() else 0.0 for c in range(C)]
    smooth = 0.9 * np.eye(C)[labels] + 0.1 / C
    expected = {f"{name}_micro": np.mean(predicted == labels) for name in ("accuracy", "precision", "recall")}
    expected |= {"recall_macro": np.mean(recall), "precision_macro": np.mean(precision)}
    expected |= {"gradient_norm": ((softmax(logits) - smooth) ** 2).sum(-1).mean()}
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found["accuracy_macro"] == found["recall_macro"] and expected["recall_macro"] > 0.05


def test_macro_scores_leave_out_classes_that_are_absent():
    probs, labels = jnp.eye(4)[jnp.array([0, 0, 1, 1])], jnp.array([0, 0, 1, 0])
    found = metrics.of_confusion(metrics.confusion_sums(probs, labels, jnp.array([1, 1, 1, 1])))
    expected = {"recall_macro": (2 / 3 + 1) / 2, "precision_macro": (1 + 1 / 2) / 2, "accuracy_micro": 0.75}
    assert {name: float(found[name]) for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_the_gradient_norm_of_a_regression_is_that_of_automatic_differentiation(p):
    outputs, targets = (jax.random.normal(jax.random.key(i), (6, 3)) for i in range(2))
    task = tasks.regression(p, detailed=True)
    sums = task.scores(outputs, targets, jnp.ones(6))
    gradients = jax.vmap(jax.grad(lambda y, t: task.loss(y[None], t[None])[0]))(outputs, targets)
    found = task.read(sums | {tasks.BATCHES: 2})
    assert float(found["gradient_norm"]) == pytest.approx(float(jnp.sum(gradients**2) / 6), rel=1e-5)
    assert float(found["gradient_norm_of_mean"]) == pytest.approx(float(found["gradient_norm"]) / 9)
    assert found.keys() - task.read(sums).keys() == {"gradient_norm_of_mean"}


def test_the_gradient_norm_of_a_classifier_starts_below_its_bound_as_that_of_uniform_outputs():
    task = tasks.classification(detailed=True)
    found = task.read(task.scores(jnp.zeros((8, 10)), jnp.arange(8), jnp.ones(8)))
    assert float(found["gradient_norm"]) == pytest.approx(0.9)
