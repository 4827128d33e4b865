"""The data sets `constant` and `sine`: their laws, what their names hold, and what comes back from TFDS."""

import numpy as np
import pytest

from subspaces_jax.data import catalogue, functions, sources
from subspaces_jax.errors import DataError


def test_inputs_of_the_sine_are_as_nearly_orthogonal_as_the_theorem_asks():
    inputs, values = functions.examples("sine")
    bound = np.exp(-0.04) / (8 * 100_000)
    assert inputs.shape == (100_000, 1) and values.shape == (100_000,)
    assert 0.999 * 1.0959e-3 < np.abs(inputs).max() < 1.0959e-3
    extremes = np.array([inputs.min(), inputs.max()], np.float64)
    assert np.abs(np.outer(extremes, extremes)).max() < bound
    np.testing.assert_allclose(values, np.sin(np.pi * inputs[:, 0].astype(np.float64) / np.sqrt(bound)), atol=1e-5)
    assert abs(inputs.mean()) < 4 * np.sqrt(bound / 3 / 100_000)


def test_what_was_meant_is_an_option():
    inputs, values = functions.examples("sine/n_1000-wide")
    assert len(inputs) == 1000 and 0.99 < np.abs(inputs).max() <= 1
    np.testing.assert_allclose(values, np.sin(inputs[:, 0]), rtol=1e-6)
    assert (functions.examples("constant/n_20-c_0.1")[1] == np.float32(0.1)).all()


@pytest.mark.parametrize("name", ["constant/n_50", "sine/n_50-c_0.02"])
def test_they_come_back_from_tfds_split_and_in_one_order(name, tmp_path):
    train, test = (sources.load(name, split, data_dir=str(tmp_path)) for split in ("train", "test"))
    inputs, values = functions.examples(name)
    info = catalogue.info(name)
    assert (len(train.images), len(test.images)) == (info.num_train, info.num_test) == (45, 5)
    assert train.images.dtype == train.labels.dtype == np.float32 and train.images.shape == (45, 1)
    together = np.concatenate([train.images, test.images])[:, 0]
    order, of_all = np.argsort(together), np.argsort(inputs[:, 0])
    np.testing.assert_array_equal(together[order], inputs[of_all, 0])
    np.testing.assert_array_equal(np.concatenate([train.labels, test.labels])[order], values[of_all])
    assert set(test.images[:, 0]) == set(inputs[45:, 0])


def test_names_of_one_meaning_are_one_data_set():
    assert functions.canonical("sine") == functions.canonical("sine/n_100000-c_0.01") == "n_100000-c_0.01"
    assert functions.canonical("sine/c_0.1-wide") == "n_100000-c_0.1-wide"


@pytest.mark.parametrize(
    "name", ["constant/10000", "constant/n_9", "constant/n_10-wide", "sine/c_x", "sine/n_10wide", "sine/n_99999999"]
)
def test_other_names_are_refused(name):
    with pytest.raises(DataError, match=f"data set '{name}' is unknown: name its number of examples, 10 to 10,000,000"):
        catalogue.info(name)


def test_a_constant_is_the_number_that_its_name_has(tmp_path):
    for text, value in (
        ("0.123456789", 0.123456789),
        ("1234567", 1234567),
        ("1e9", 1e9),
        ("1e+20", 1e20),
        ("1e-7", 1e-7),
    ):
        labels = sources.load(f"constant/n_20-c_{text}", "train", data_dir=str(tmp_path)).labels
        assert (labels == np.float32(value)).all()
    assert functions.canonical("constant/n_20-c_0.10") == "n_20-c_0.1"
    assert functions.canonical("constant/n_20-c_2") == functions.canonical("constant/n_20-c_2.0") == "n_20-c_2"


@pytest.mark.parametrize(
    "name", ["constant/n_20-c_1e400", "constant/n_20-c_1e-60", "sine/n_20-c_200", "sine/n_20-c_44"]
)
def test_constants_of_which_float32_holds_nothing_are_refused(name):
    with pytest.raises(DataError, match="float32 holds no"):
        functions.options(name)
