"""Deep residual networks from config to run directory: members that differ in options, and what goes with them."""

import json

import jax
import numpy as np
import pytest

from configs import deep_residual as deep_residual_configs
from subspaces_jax import checkpoints
from subspaces_jax.data import functions
from subspaces_jax.errors import ConfigError, DataError
from subspaces_jax.experiments import build, export, train
from subspaces_jax.networks import deep_residual, weight_files

CONFIG = {
    "dataset": "sine/n_60",
    "task": "regression(p=2, detailed=True)",
    "network": "deep_residual(depth=5, width=2, alpha=0.75, gamma=1.0, initialisation=ntrunc)",
    "subspace": "none",
    "beta": 0.0,
    "schedule": "cosine",
    "warmup_epochs": 1,
    "learning_rate": 2.0,
    "num_epochs": 3,
    "batch_size": 0,
    "num_devices": 1,
    "checkpoint_every": 0,
    "statistics": "p_variation(p=2)",
    "seed": 4,
}
OPTIONS = "alpha=0.5 learning_rate=0.5; alpha=1.0 gamma=2.0"


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """Four members, two of each part, and the rows of their metrics."""
    folder = tmp_path_factory.mktemp("deep") / "members"
    config = CONFIG | {"num_members": 4, "member_options": OPTIONS}
    train.run(config, folder)
    return folder, config, read_rows(folder)


def test_recipes_of_convolutional_networks_have_the_published_rates():
    for depth, rate in ((56, 6.119), (104, 8.085), (224, 11.419)):
        config = deep_residual_configs.get_config(f"resnet_{depth}")
        assert config.learning_rate == pytest.approx(rate, abs=1e-3) and config.network.endswith(f"(depth={depth})")
        assert (config.num_epochs, config.batch_size, config.momentum, config.weight_decay) == (16, 128, 0.0, 0.0)


def read_rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_members_are_runs_of_their_own(members, tmp_path):
    folder, config, rows = members
    together = checkpoints.restore(folder).params
    alone = {
        "learning_rate": 0.5,
        "seed": 5,
        "network": CONFIG["network"].replace("0.75", "0.5"),
    }
    train.run(CONFIG | alone, tmp_path)
    own = checkpoints.restore(tmp_path).params
    for name, leaf in (("blocks", own["blocks"]["kernel"]), ("readin", own["readin"]["kernel"])):
        np.testing.assert_allclose(leaf[0], together[name]["kernel"][1], rtol=1e-6, atol=1e-9)
    assert own["delta"][0] == together["delta"][1]
    for row, own_row in zip(rows, read_rows(tmp_path), strict=True):
        for name in ("loss", "learning_rate", "variation_1", "variation_1.5", "variation_2", "gradient_norm_of_mean"):
            np.testing.assert_allclose(row[f"{name}_1"], own_row[name], rtol=1e-5, err_msg=name)
            mean = np.mean([row[f"{name}_{m}"] for m in range(4)])
            np.testing.assert_allclose(row[name], mean, rtol=1e-5, err_msg=name)
    assert {row["learning_rate_3"] / row["learning_rate_0"] for row in rows} == {4.0}


def test_members_have_the_options_and_seeds_of_their_part(members):
    folder, config, _ = members
    made = build.experiment(config)
    assert [member.seed for member in made.members] == [4, 5, 4, 5]
    found = [(network.alpha, network.gamma) for network in (member.model.network for member in made.members)]
    assert found == [(0.5, 1.0)] * 2 + [(1.0, 2.0)] * 2
    params = checkpoints.restore(folder).params
    np.testing.assert_allclose(params["delta"], [5**-0.5, 5**-0.5, 1 / 5, 1 / 5], rtol=1e-6)
    start = jax.jit(lambda: build.experiment(CONFIG).model.init(jax.random.key(0), 1))()["params"]
    assert params["readin"]["kernel"].shape == (4, *start["readin"]["kernel"].shape[1:])


def test_all_of_the_training_split_is_one_batch_in_which_every_example_counts(members):
    _, config, rows = members
    made = build.experiment(config)
    assert made.plan.steps_per_epoch == 1 and made.batch_size == 54 == len(made.data.train.images)
    assert rows[0]["gradient_norm"] / rows[0]["gradient_norm_of_mean"] == pytest.approx(54**2)
    fewer = build.experiment(CONFIG | {"train_fraction": 0.25})
    assert fewer.data.num_examples == fewer.batch_size == 13
    np.testing.assert_array_equal(fewer.data.train.images, made.data.train.images[:13])


def test_networks_of_a_run_become_files_and_networks_again(members, tmp_path):
    folder, _, _ = members
    params = checkpoints.restore(folder).params
    paths = export.run(folder, tmp_path / "out" / "deep_5.npz")
    assert [path.name for path in paths] == [f"deep_5_{m}.npz" for m in range(4)]
    weights = weight_files.load(paths[2])
    row = jax.tree.map(lambda leaf: leaf[2], params)
    np.testing.assert_array_equal(weights["blocks"], deep_residual.published_weights(row))
    assert weights["readin"].shape == (2, 1) and weights["readout"].shape == (1, 2)
    jax.tree.map(np.testing.assert_array_equal, weight_files.to_params(weights), row)
    del weights["readin"]
    with pytest.raises(ValueError, match="the weights have no readin"):
        weight_files.to_params(weights)
    jax.tree.map(np.testing.assert_array_equal, weight_files.to_params(weights, row), row)
    with pytest.raises(ValueError, match=r"blocks has shape \(4, 2, 2\), and the network's has \(5, 2, 2\)"):
        weight_files.to_params({"blocks": weights["blocks"][:4]}, row)


def test_lists_of_tensors_are_read_and_written(members, tmp_path):
    torch = pytest.importorskip("torch")
    blocks = [torch.full((2, 2), float(k)) + torch.tensor([[0.0, 1.0], [0.0, 0.0]]) for k in range(3)]
    torch.save(blocks, tmp_path / "resnet_3.pth")
    weights = weight_files.load(tmp_path / "resnet_3.pth")
    np.testing.assert_array_equal(weights["blocks"][2], [[2.0, 3.0], [2.0, 2.0]])
    params = jax.tree.map(lambda leaf: leaf[0], checkpoints.restore(members[0]).params)
    written = torch.load(weight_files.save(tmp_path / "own.pth", params), weights_only=True)
    assert len(written) == 5 and written[0].dtype == torch.float32
    np.testing.assert_array_equal(written[3], deep_residual.published_weights(params)[3])


def test_files_that_are_no_weights_are_refused(tmp_path, monkeypatch):
    (tmp_path / "a.npz").write_bytes(b"PK nothing")
    (tmp_path / "b.pth").write_bytes(b"nothing")
    np.savez(tmp_path / "c.npz", blocks=np.zeros((3, 2, 1)))
    for name in ("a.npz", "missing.npz"):
        with pytest.raises(DataError, match="cannot be read as weights"):
            weight_files.load(tmp_path / name)
    with pytest.raises(DataError, match=r"blocks of shape \(3, 2, 1\), expected \[L, d, d\]"):
        weight_files.load(tmp_path / "c.npz")
    monkeypatch.setattr(weight_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="needs torch: pip install torch, or use an .npz"):
        weight_files.load(tmp_path / "b.pth")


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"member_options": "depth=3; depth=4"},
            "member_options has depth: members of deep_residual.* may differ in lea",
        ),
        ({"member_options": "alpha=0.5; alpha=0.6; alpha=1.0"}, "3 parts and config.num_members is 4"),
        ({"member_options": "alpha"}, "'alpha' in 'alpha' has no value"),
        ({"member_options": "learning_rate=fast; seed=1"}, "config.learning_rate is 'fast'"),
        ({"member_options": "alpha=a; alpha=1.0"}, "its option alpha takes float, got 'a'"),
        ({"member_options": OPTIONS, "initial": "runs/a"}, "member_options is of members at random weights"),
        ({"statistics": "p_variation(p=1)"}, "p is at least 2, so that p/2 is at least 1, got 1"),
        ({"network": "mlp_4"}, "the network has no path of weights over its depth"),
        ({"network": "deep_residual(depth=0)"}, "depth is a whole number from 1 up"),
        ({"train_fraction": 0.0}, "config.train_fraction is 0.0: it takes float"),
        ({"train_fraction": 0.5, "num_train_examples": 3}, "both say how many"),
        ({"dataset": "imagenet2012", "task": "classification"}, "config.batch_size is 0, and imagenet2012 streams"),
    ],
)
def test_a_wrong_field_is_named_before_data_are_read(changed, message, monkeypatch):
    monkeypatch.setattr(functions, "examples", None)
    with pytest.raises(ConfigError, match=message) as caught:
        build.experiment(CONFIG | {"num_members": 4} | changed)
    assert "\n" not in str(caught.value)
