"""Other tasks than classification through the same step, evaluation and studies: digits as targets of themselves, and
their labels as numbers."""

import jax
import numpy as np
import pytest
from test_configs import load

from subspaces_jax import checkpoints, geometry, records
from subspaces_jax.data import sources
from subspaces_jax.experiments import analyze, evaluate, plot, train

FIELDS = dict(network="mlp_64_64", augmentation="none", num_epochs=12, num_points=5, learning_rate=0.002, test_every=6)


def forward(params, images):
    """The MLP by hand, in float64, on digits normalised as the data set says."""
    x = (images.reshape(len(images), -1) / 255 - 0.3053) / 0.3762
    for i in range(3):
        layer = {name: np.asarray(value, np.float64) for name, value in params[f"Dense_{i}"].items()}
        x = x @ layer["kernel"] + layer["bias"]
        x = np.maximum(x, 0) if i < 2 else x
    return x


@pytest.mark.parametrize("task", ["regression", "regression(p=1.5)", "reconstruction(loss=mae)", "reconstruction(mse)"])
def test_a_line_learns_the_task_and_its_scores_are_those_of_its_networks(task, tmp_path):
    rate = 0.002 if "regression" in task else 0.3  # the sum over one number, the mean over 64 of them
    last = train.run(load("line_digits", task=task, **FIELDS | {"learning_rate": rate}), tmp_path)
    assert {"loss", "mae", "mse", "test_loss", "test_mae", "learning_rate"} <= last.keys() and "accuracy" not in last
    rows = records.read_metrics(tmp_path)
    assert last["mae"] < 0.75 * rows[0]["mae"]
    facts = evaluate.run(None, tmp_path)
    images, labels = sources.load("digits", "test")
    stack = checkpoints.restore(tmp_path).params
    for row, t in enumerate(np.linspace(0, 1, 5)):
        point = jax.tree.map(lambda leaf: (1 - t) * leaf[0] + t * leaf[1], stack)
        outputs = forward(point, images)
        targets = labels[:, None] if "regression" in task else images.reshape(len(images), -1) / 255
        assert facts["scores"]["mae"][row] == pytest.approx(np.abs(outputs - targets).mean(), rel=1e-3)
        assert facts["scores"]["mse"][row] == pytest.approx(((outputs - targets) ** 2).mean(), rel=1e-3)
    assert [column[0] for column in facts["columns"]] == ["loss", "mae", "mse"]
    assert evaluate.table(facts).splitlines()[0].split()[:4] == ["point", "loss", "MAE", "MSE"]
    arrays, _ = records.load_results(tmp_path, evaluate.RESULTS)
    assert ("outputs" in arrays) == ("regression" in task)
    assert ("pair_mse" in facts["scores"]) == ("regression" in task)
    assert {path.split("/")[-1] for path in plot.run(None, tmp_path)["figures"]} >= {"training.png"}
    study = analyze.run({"analysis": "line", "runs": f"{tmp_path},{tmp_path}", "num_points": 3}, tmp_path / "study")
    np.testing.assert_allclose(study["scores"]["mae"], facts["scores"]["mae"][2], rtol=1e-4)


def test_denoising_takes_noisy_inputs_and_clean_targets_and_refreshes_on_clean_ones(tmp_path):
    """With noise the training error is larger, of the very same weights; evaluated, there is none."""
    fields = dict(task="reconstruction(mse)", network="mlp_64", subspace="none", beta=0.0, learning_rate=0.0)
    config = load("line_digits", **FIELDS | fields | {"num_epochs": 1, "test_every": 1})
    clean = train.run(config, tmp_path / "clean")
    noisy = train.run(config | {"input_noise": 3.0}, tmp_path / "noisy")
    assert noisy["mse"] > 2 * clean["mse"] and noisy["test_mse"] == pytest.approx(clean["test_mse"])
    assert geometry.num_endpoints(checkpoints.restore(tmp_path / "noisy").params) == 1


def test_a_normalisation_of_ones_own(tmp_path):
    """Of given numbers, of none, and the data set's: the network is fed what they say."""
    fields = FIELDS | dict(subspace="none", beta=0.0, num_epochs=1, learning_rate=0.0, task="regression", test_every=0)
    images, labels = sources.load("digits", "test")
    for name, mean, std in (("dataset", 0.3053, 0.3762), ("given(mean=0.5, std=0.25)", 0.5, 0.25), ("none", 0.0, 1.0)):
        train.run(load("line_digits", normalisation=name, **fields), tmp_path / name)
        facts = evaluate.run(None, tmp_path / name)
        params = jax.tree.map(lambda leaf: leaf[0], checkpoints.restore(tmp_path / name).params)
        as_fed = ((images / 255 - mean) / std * 0.3762 + 0.3053) * 255
        expected = np.abs(forward(params, as_fed) - labels[:, None]).mean()
        assert facts["scores"]["mae"][0] == pytest.approx(expected, rel=1e-3)
