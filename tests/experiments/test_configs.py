"""Every config, run tiny from training to figures; and the fields of configs against those that build reads."""

import importlib
import json
import pathlib

import jax
import numpy as np
import pytest
from matplotlib import image

from configs import variants
from launch import app
from subspaces_jax import checkpoints, geometry, records, trees
from subspaces_jax.data import corruption
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import build, evaluate, fields, plot, train
from subspaces_jax.plots import style

FOLDER = pathlib.Path(__file__).parents[2] / "configs"
SMALL = "outside_module:Small"  # a convolution, BatchNorm and dropout, quick to compile
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "base", "variants"))
SWEEPS = [name for name in NAMES if name.startswith("sweep")]
CONFIGS = [name for name in NAMES if name not in (*SWEEPS, "analyze", "connect")]
FAMILIES = ["cifar10", "fashion_mnist", "imagenet", "tiny_imagenet"]


def assert_drawn(paths, names):
    """Figures of these names, each as PDF and PNG, with lines in several colours on white."""
    paths = [pathlib.Path(path) for path in paths]
    assert {path.stem for path in paths} == names and len(paths) == 2 * len(names)
    for path in paths:
        if path.suffix == ".png":
            pixels = image.imread(path)[..., :3]
            ink = (pixels < 0.98).any(-1)
            colourful = ink & (np.ptp(pixels, axis=-1) > 0.2)
            assert 0.005 < ink.mean() < 0.5 and colourful.any(), path
        else:
            assert path.read_bytes().startswith(b"%PDF") and path.read_bytes().rstrip().endswith(b"%%EOF")


def assert_made(monkeypatch, workdir, names):
    """Figures of these names with lines in them, but not drawn, which takes longer than the run."""

    def name(figure, folder, name):
        assert any(axes.lines for axes in figure.axes)
        return [pathlib.Path(folder) / f"{name}.{ending}" for ending in ("pdf", "png")]

    monkeypatch.setattr(style, "save", name)
    made = {pathlib.Path(path).name for path in plot.run(None, workdir)["figures"]}
    assert made == {f"{name}.{ending}" for name in names for ending in ("pdf", "png")}


def module_of(name):
    return importlib.import_module(f"configs.{name}")


def load(name, form="tiny", **fields):
    config = module_of(name).get_config(form)
    config.update({"num_devices": 1} | fields)
    return app.to_dict(config)


def test_accuracies_of_classes_are_told_all_or_the_least_and_the_greatest():
    facts = {"scores": {name: [0.5] for name, *_ in evaluate.COLUMNS}, "midpoint": 0}
    (line,) = [
        line for line in evaluate.table(facts | {"class_accuracy": [0.5, None, 1.0]}).splitlines() if "class" in line
    ]
    assert line == "accuracy of classes at point 0: 50.0, 100.0 %"
    many = evaluate.table(facts | {"class_accuracy": [0.5, None, 0.25, *[0.75] * 9]})
    assert "at point 0: 25.0 % (class 2) to 75.0 % (class" in many


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_runs_tiny_from_training_to_figures(name, tmp_path):
    config = load(name, num_epochs=1)
    if "digits" not in name and name != "deep_residual":  # what the others have of networks is made below
        config["network"] = SMALL if config["task"] == "classification" else "mlp_8"
    last = train.run(config, tmp_path)
    assert last["step"] == 1437 // config["batch_size"] and np.isfinite(last["loss"])
    facts = evaluate.run(None, tmp_path)
    num_points = 1 if config["subspace"] == "none" else config["num_points"]
    score = facts["columns"][0][0]
    assert score == ("accuracy" if config["task"].startswith("classification") else "loss")
    assert len(facts["scores"][score]) == num_points
    assert evaluate.table(facts).count("\n") == num_points + 1 + (score == "accuracy")
    arrays, read_back = records.load_results(tmp_path, evaluate.RESULTS)
    assert read_back["scores"] == facts["scores"]
    assert score == "loss" or arrays["logits"].shape == (num_points, 360, 10)
    if score == "accuracy":
        share = np.bincount(arrays["labels"]) / 360
        np.testing.assert_allclose(arrays["class_accuracy"] @ share, facts["scores"]["accuracy"], rtol=1e-5)
        assert facts["class_accuracy"] == arrays["class_accuracy"][facts["midpoint"]].tolist()
    figures = plot.run(None, tmp_path)["figures"]
    assert_drawn(figures, {"training", "profile"} if num_points > 1 else {"training"})
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["config"] == config and stored["kind"] == "train" and stored["format"] == 2
    assert stored["facts"]["steps_per_epoch"] == stored["facts"]["num_steps"] == last["step"]
    assert checkpoints.restore(tmp_path).config == config
    assert list((tmp_path / "events").iterdir())


@pytest.mark.parametrize("name", [*CONFIGS, "base"])
def test_every_config_has_the_fields_that_are_known_and_says_how_to_run_it(name):
    made = build.experiment(app.to_dict(module_of(name).get_config()), without_data=True)
    assert made.config.keys() == fields.FIELDS.keys() and trees.num_parameters(made.stack_shapes) > 10_000
    assert name == "base" or f"--config=configs/{name}.py" in module_of(name).__doc__


@pytest.mark.parametrize(
    "name, form, count, expected",
    [
        ("mode_connectivity", "vgg16", 15_245_130, {"num_epochs": 200, "learning_rate": 0.05, "weight_decay": 5e-4}),
        ("mode_connectivity", "vgg16,chain,cifar100", 3 * 15_291_300, {"num_epochs": 600, "dataset": "cifar100"}),
        ("mode_connectivity", "small,bezier", 3 * 19_800, {"frozen_endpoints": "ends", "decay": "point"}),
        ("mode_connectivity", "small,fge", 19_800, {"capture": True, "schedule": "fge(low=0.005, cycle=4)"}),
        (
            "hyperplanes",
            "orientation_cifar10,vgg19_bn,upscaled_padded",
            139_622_218,
            {"image_padding": 56, "dropout": 0.5},
        ),
        ("autoencoders", "celeba,kaiming_uniform", 17_944_512, {"learning_rate": 1e-4, "weight_decay": 1e-6}),
        (
            "deep_residual",
            "cifar10",
            3072 * 15 + 100 * 225 + 150 + 1,
            {"learning_rate": 9.0, "num_epochs": 39, "train_fraction": 0.25, "batch_size": 0, "seed": 1234},
        ),
        ("deep_residual", "constant", 1 + 128 + 1 + 1, {"dataset": "constant/n_10000", "num_epochs": 25}),
        ("deep_residual", "digits,alphas", 9 * (64 * 15 + 32 * 225 + 150 + 1), {"num_members": 9}),
        ("autoencoders", "laplacian,bezier", 3 * 70_872, {"task": "reconstruction(loss=laplacian, levels=4)"}),
    ],
)
def test_recipes_are_those_of_the_papers(name, form, count, expected):
    """VGG16 with 100 classes has 90 rows of 512 weights and a bias more."""
    config = app.to_dict(module_of(name).get_config(form))
    assert config.items() >= expected.items() and config["variant"] == form
    assert trees.num_parameters(build.experiment(config, without_data=True).stack_shapes) == count


@pytest.mark.parametrize(
    "name, form, augmentation, normalisation",
    [
        ("hyperplanes", "reinit_cifar10", "flip|crop(padding=4)", "mean=(0.4914, 0.4822, 0.4465), std=(0.2023, "),
        ("hyperplanes", "orientation_cifar100", "flip|crop(padding=4)", "mean=(0.5071, 0.4865, 0.4409), std=(0.2009, "),
        ("hyperplanes", "orientation_cifar10,alexnet", "flip|crop(padding=4)", "4465), std=(0.1953, 0.1925, 0.1942)"),
        ("hyperplanes", "orientation_cifar10,upscaled_padded", "flip|crop(padding=4)", "mean=(0.1229, 0.1206, 0.1117)"),
        ("mode_connectivity", "pre_resnet164,bezier", "crop(padding=4)|flip", "4465), std=(0.2023, 0.1994, 0.2010)"),
        ("mode_connectivity", "vgg16", "flip|crop(padding=4)", "dataset"),
    ],
)
def test_images_are_prepared_as_in_the_papers(name, form, augmentation, normalisation):
    config = build.check(app.to_dict(module_of(name).get_config(form)))
    assert config["augmentation"] == augmentation and normalisation in config["normalisation"]


@pytest.mark.parametrize(
    "form, expected",
    [
        ("line,label_smoothing", {"subspace": "line", "beta": 1.0, "label_smoothing": 0.1}),
        ("dropout,simplex_4", {"subspace": "simplex", "num_endpoints": 4, "beta": 1.0, "dropout": 0.2}),
        ("early_stopping,noise_20", {"subspace": "none", "beta": 0.0, "test_every": 4, "label_noise": 0.2}),
        ("dropout,plain", {"subspace": "none", "beta": 0.0, "dropout": 0.2}),
        ("noise_40", {"subspace": "line", "label_noise": 0.4}),
    ],
)
def test_variants_change_only_what_they_name(form, expected):
    assert load("fashion_mnist", form).items() >= expected.items()


@pytest.mark.parametrize(
    "name, form, message",
    [
        ("fashion_mnist", "line,swa_constant", "variant 'swa_constant' sets subspace otherwise"),
        ("fashion_mnist", "simplex_3,simplex_4", "variant 'simplex_4' sets num_endpoints otherwise"),
        ("fashion_mnist", "noise_20,noise_40", "variant 'noise_40' sets label_noise otherwise"),
        ("fashion_mnist", "lines", "variant 'lines' is unknown"),
        *[(name, "simplex_3", "variant 'simplex_3' is unknown: there is tiny") for name in ("line_digits", "sweep")],
        ("plain_fashion_mnist", "tiney", "variant 'tiney' is unknown"),
        ("sweep_tiny_imagenet", "tiny,line", "variant 'tiny,line' is unknown"),
        ("mode_connectivity", "vgg16,bezie", "variant 'bezie' is unknown: there are vgg16, "),
        ("mode_connectivity", "ends,bezier", "variants ends and bezier contradict each other"),
        ("deep_residual", "constant,sine", "variants constant and sine contradict each other"),
        ("deep_residual", "resnet_56,alphas", "variants resnet_56 and alphas contradict each other"),
        ("autoencoders", "normal,kaiming_normal", "variants normal and kaiming_normal contradict each other"),
    ],
)
def test_forms_that_mean_nothing_are_refused(name, form, message):
    with pytest.raises(ValueError, match=message):
        module_of(name).get_config(form)


@pytest.mark.parametrize("variant", variants.VARIANTS)
def test_every_variant_of_every_family_is_a_good_config(variant):
    for name in FAMILIES:
        takes_it = "dropout" not in variant or name in ("cifar10", "fashion_mnist")
        for form in [variant, f"{variant},tiny"] if takes_it else [f"{variant},tiny"]:
            build.check(app.to_dict(module_of(name).get_config(form)))


@pytest.mark.parametrize(
    "variant", [name for name in variants.VARIANTS if not name.startswith(("simplex_3", "simplex_4", "simplex_5"))]
)
def test_every_variant_runs_tiny_from_training_to_figures(variant, tmp_path, monkeypatch):
    network = SMALL if variant == "dropout" else "mlp_16"
    config = load("fashion_mnist", f"{variant},tiny", network=network)
    last = train.run(config, tmp_path)
    assert np.isfinite(last["loss"])
    facts = evaluate.run(None, tmp_path)
    assert np.isfinite(facts["scores"]["nll"]).all()
    assert ("ensembles" in facts) == (variant in ("ensemble", "swa_constant", "swa_cyclic", "snapshots"))
    is_curve = any(name.startswith("pair_") for name in facts["scores"])
    names = {"training", "profile"} if is_curve else {"training"}
    if variant in ("plain", "ensemble", "line", "curve", "simplex_2"):  # what the figures of the others look like, too
        assert_drawn(plot.run(None, tmp_path)["figures"], names)
    else:
        assert_made(monkeypatch, tmp_path, names)
    assert is_curve == (config["subspace"] in ("line", "bezier"))


def test_variants_go_together_and_unknown_ones_are_named():
    config = load("fashion_mnist", "simplex_4,noise_20,tiny")
    assert config["num_endpoints"] == 4 and config["label_noise"] == 0.2 and config["dataset"] == "digits"
    with pytest.raises(ValueError, match="variant 'lines' is unknown: there are plain, "):
        load("cifar10", "lines")


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"learning_rat": 0.1}, "config field 'learning_rat', which is unknown: did you mean learning_rate"),
        ({"num_epochs": 2.5}, "config.num_epochs is 2.5: it takes int, at least 0"),
        ({"learning_rate": "fast"}, "config.learning_rate is 'fast': it takes float"),
        ({"layerwise": 1}, "config.layerwise is 1: it takes bool"),
        ({"beta": -1.0}, "config.beta is -1.0: it takes float, coefficient"),
        ({"learning_rate": float("nan")}, "config.learning_rate is nan"),
        ({"momentum": 1.0}, "config.momentum is 1.0: it takes float, in \\[0, 1\\)"),
        ({"schedule": "cosin"}, "config.schedule is 'cosin': it takes one of cosine, .*; did you mean cosine"),
        ({"schedule": "cosine(every_ste=True)"}, "its option 'every_ste' is unknown: did you mean every_step"),
        ({"schedule": "cosine(peak=0.3)"}, "its option 'peak' is unknown"),
        ({"task": "regression(p=0.5)"}, "config.task 'regression\\(p=0.5\\)': p is a finite number of at least 1"),
        ({"optimizer": "sgd(momentum=1.5)"}, "momentum is in \\[0, 1\\), got 1.5"),
        ({"augmentation": "crop(padding=-1)|flip"}, "padding is a whole number from 0 up, got -1"),
        ({"normalisation": "given(mean=0.5, std=0)"}, "std is positive"),
        ({"normalisation": "given(mean=(0.5, 0.5), std=(1, 1))"}, "as many numbers as 1 channels"),
        ({"frozen_endpoints": "2"}, "config.frozen_endpoints: there is no endpoint 2: the stack has 0 to 1"),
        ({"seed": 2**32}, "config.seed is 4294967296: it takes int, a whole number from 0 up, below 2\\^32"),
        ({"seed": 2**32 - 1, "num_members": 2, "subspace": "none", "beta": 0.0}, "last member's seed is to be below"),
        ({"log_every": 2**31}, "config.log_every is 2147483648: it takes int"),
        ({"learning_rate": float("inf")}, "config.learning_rate is inf"),
        ({"dataset": "digit"}, "config.dataset: data set 'digit' is unknown: did you mean digits"),
        ({"network": "resnet_20"}, "config.network is 'resnet_20': write resnet_18"),
        ({"network": "cifar_resnet_21"}, "needs a depth of 6n \\+ 2 .* got 21"),
        ({"network": "cifar_resnet(dept=8)"}, "its option 'dept' is unknown: did you mean depth"),
        ({"network": "cifar_resnet(depth=9)"}, "needs a depth of 6n"),
        ({"network": "resnet(depth=20)"}, "there is no such size: write resnet_18"),
        ({"network": "cifar_resnet_8_0"}, "config.network is 'cifar_resnet_8_0', did you mean cifar_resnet"),
        ({"network": "mlp_8", "dropout": 0.1}, "which has no dropout"),
        ({"network": "outside_module:OutsideNet", "dropout": 0.1}, "which takes no dropout: it cannot be 0.1"),
        ({"network": "outside_module:OutsideNet", "dtype": "bfloat16"}, "which takes no dtype: it cannot be bfloat16"),
        (
            {"network": "vision_transformer_3_32_3_4"},
            "'vision_transformer_3_32_3_4' fails in .*patches of 3 do not divide",
        ),
        ({"network": "vision_transformer_2_32_3_5"}, "fails in .*5 heads do not divide"),
        ({"network": "outside_module:Noisy"}, "outside_module:Noisy' .*noise"),
        ({"network": "outside_module:Constant"}, "outside_module:Constant' .*constants"),
        ({"network": "outside_module:Empty"}, "outside_module:Empty' has the parameter nothing without a number"),
        (
            {"network": "outside_module:Numbered"},
            "outside_module:Numbered' has parameters under the key 0, which comes",
        ),
        ({"schedule": "swa_cyclic", "swa_start": 0.5, "warmup_epochs": 1}, "raise swa_start"),
        ({"subspace": "none", "beta": 0.0, "capture": True, "swa_start": 0.3}, "swa_start 0.3 of 2 epochs is before"),
        ({"keep_steps": "1,x"}, "config.keep_steps is '1,x': it takes str, steps, from 0 on"),
        ({"keep_steps": "1,99"}, "config.keep_steps has 99, and the run has steps 0 to 22"),
        ({"num_members": 2}, "config.num_members trains single networks"),
        ({"capture": True}, "config.capture keeps checkpoints of one network"),
        ({"feature_diversity": 1.0}, "feature_diversity compares two samples"),
        ({"label_noise": 1.5}, "config.label_noise is 1.5: it takes float"),
        ({"num_train_examples": 5000}, "num_train_examples is 5000, but digits has 1437"),
        ({"subspace": "lines"}, "config.subspace is 'lines': it takes one of .*did you mean line"),
        ({"subspace": "bezier(3)", "num_endpoints": 4}, "num_endpoints is 4 but subspace 'bezier\\(3\\)' has 3"),
        ({"num_endpoints": 3}, "config.num_endpoints is 3 but subspace 'line' has 2"),
        ({"subspace": "bezier", "num_endpoints": 1}, "Bezier needs an integer num_endpoints of at least 2, got 1"),
        ({"subspace": "none"}, "beta and config.layerwise need a subspace"),
        ({"schedule": "snapshot_cyclic", "num_cycles": 50}, "50 cycles need"),
    ],
)
def test_a_wrong_field_is_named(changed, message, tmp_path):
    config = load("line_digits") | changed
    with pytest.raises(ConfigError, match=message) as caught:
        train.run(config, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_field_that_is_left_out_has_its_default():
    config = load("line_digits") | {"beta": 0.25}
    del config["momentum"], config["seed"]
    assert build.check(config) == config | {"momentum": 0.9, "seed": 0}
    assert build.check({}) == app.to_dict(module_of("base").get_config())


def test_whole_numbers_are_taken_for_floats():
    assert build.check(load("line_digits") | {"learning_rate": 1})["learning_rate"] == 1.0


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"batch_size": 2000}, "batch_size is 2000 but the data have 1437 examples"),
        (
            {"batch_size": 30, "num_samples": 4},
            "batch_size is 30, which 4 samples .* on 1 devices do not divide.* multiple of 4",
        ),
        ({"num_devices": 99}, "num_devices is 99 but there are"),
        ({"dataset": "cifar10"}, "cifar10 is not prepared in .*tfds.builder\\(.cifar10"),
    ],
)
def test_what_does_not_fit_the_data_or_the_machine_is_named(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message) as caught:
        train.run(load("line_digits") | changed, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


VARIANTS = {
    "layerwise": dict(layerwise=True, num_samples=2),
    "bezier": dict(subspace="bezier"),
    "simplex": dict(subspace="simplex", num_endpoints=4, layerwise=True),
    "chain": dict(subspace="chain", decay="point", label_smoothing=0.1),
    "mlp": dict(network="mlp_16", schedule="swa_cyclic", num_epochs=4, warmup_epochs=0, num_cycles=2),
    "lenet": dict(network="lenet", augmentation="crop_flip", log_every=3),
    "bfloat16": dict(dtype="bfloat16", batch_norm="global", own_coordinates=True, test_every=1),
}


def test_any_flax_module_trains_as_a_line_with_no_change(tmp_path):
    config = load("line_digits", network="outside_module:OutsideNet", num_points=3, layerwise=True)
    last = train.run(config, tmp_path)
    assert np.isfinite(last["loss"]) and np.isfinite(last["distance"])
    scores = evaluate.run(None, tmp_path)["scores"]
    assert np.isfinite(scores["pair_nll"]).all() and "pair_feature_cosine" not in scores
    last = train.run(config | {"network": "outside_module:NoKernels", "dtype": "bfloat16"}, tmp_path / "no_kernels")
    assert np.isfinite(last["loss"]) and 0 <= last["cosine_squared"] <= 1
    last = train.run(config | {"network": "outside_module:Partitioned"}, tmp_path / "boxed")
    assert np.isfinite(last["loss"]) and checkpoints.restore(tmp_path / "boxed").params["Dense_0"]["kernel"].ndim == 3
    assert np.isfinite(evaluate.run(None, tmp_path / "boxed")["scores"]["nll"]).all()
    diverse = config | {"feature_diversity": 1.0, "num_samples": 2}
    with pytest.raises(ConfigError, match="outside_module:OutsideNet sows none"):
        train.run(diverse, tmp_path / "diverse")


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_run(name, tmp_path):
    config = load("line_digits") | {"num_epochs": 1, "num_points": 3, "network": SMALL} | VARIANTS[name]
    last = train.run(config, tmp_path)
    assert np.isfinite(last["loss"]) and np.isfinite(last["distance"])
    assert ("test_accuracy" in last) == (config["test_every"] > 0)
    scores = evaluate.run(None, tmp_path)["scores"]
    assert np.isfinite(scores["nll"]).all()
    is_curve = config["subspace"] != "simplex"
    assert_drawn(plot.run(None, tmp_path)["figures"], {"training", "profile"} if is_curve else {"training"})


def test_a_module_that_must_be_told_whether_it_trains(tmp_path):
    config = load("line_digits", network="outside_module:MustBeTold", augmentation="none", num_epochs=1, num_points=3)
    train.run(config, tmp_path)
    assert np.isfinite(evaluate.run(None, tmp_path)["scores"]["nll"]).all()
    model, found = build.experiment(config).model, checkpoints.restore(tmp_path)
    variables = {"params": geometry.unstack(found.params)[0], "batch_stats": found.batch_stats}
    images = build.experiment(config).data.test.images[:50]
    trained = model.apply_train(variables, images, jax.random.key(0))[0]
    assert float(np.abs(trained - model.apply(variables, images)).max()) > 1e-3, "statistics and dropout of a batch"


def test_pixels_are_shuffled_after_augmentation():
    """Training images become crops and mirror images first, so that one order holds for them and the test images."""
    config = load("fashion_mnist", pixel_shuffle=True, corruption_seed=3, augmentation="crop_flip")
    plain = config | {"pixel_shuffle": False}
    both = build.experiment(plain), build.experiment(config)
    images, keys = both[1].data.train.images[:8], jax.random.split(jax.random.key(0), 8)
    np.testing.assert_array_equal(images, both[0].data.train.images[:8])
    augmented, shuffled = (np.asarray(of.model.augment(keys, images)) for of in both)
    np.testing.assert_array_equal(shuffled, corruption.pixel_shuffle(augmented, 3))
    assert (shuffled != augmented).any()
    tests = [of.data.test.images for of in both]
    np.testing.assert_array_equal(tests[1], corruption.pixel_shuffle(tests[0], 3))
