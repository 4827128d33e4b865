"""Every field with its usual value: the other configs are differences from this one.

The meaning and range of each field are in subspaces_jax/experiments/fields.py (FIELDS).
"""

from collections.abc import Callable

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.seed = 0
    config.num_devices = 0
    config.num_epochs = 160
    config.batch_size = 128
    config.log_every = 0
    config.checkpoint_every = 1
    config.keep_every = 0
    config.keep_steps = ""
    config.test_every = 0
    config.num_members = 1
    config.capture = False

    config.dataset = "cifar10"
    config.data_dir = ""
    config.idx_dir = ""
    config.archive = ""
    config.num_workers = 0
    config.augmentation = "none"
    config.num_train_examples = 0
    config.label_noise = 0.0
    config.pixel_shuffle = False
    config.corruption_seed = 0

    config.network = "cifar_resnet_20"
    config.dropout = 0.0
    config.dtype = "float32"
    config.batch_norm = "device"
    config.initial = ""

    config.subspace = "line"
    config.num_endpoints = 0
    config.layerwise = False
    config.beta = 1.0
    config.num_samples = 1
    config.feature_diversity = 0.0
    config.over_samples = "auto"
    config.own_coordinates = False

    config.learning_rate = 0.1
    config.schedule = "cosine"
    config.warmup_epochs = 5
    config.swa_learning_rate = 0.05
    config.swa_start = 0.75
    config.num_cycles = 3
    config.multistep_every = 30
    config.momentum = 0.9
    config.weight_decay = 1e-4
    config.decay = "endpoints"
    config.label_smoothing = 0.0

    config.num_points = 21
    config.num_refresh_batches = 0
    config.eval_batch_size = 500
    return config


def tiny(config: ConfigDict) -> ConfigDict:
    """The form of seconds that the tests run: digits, two epochs of a thin shallow network, five points."""
    config.dataset = "digits"
    config.idx_dir = ""
    config.num_train_examples = 0
    config.network = "cifar_resnet_8_4" if "resnet" in config.network else config.network
    config.num_epochs = 2
    config.batch_size = 128
    config.warmup_epochs = 0
    config.num_cycles = min(config.num_cycles, 2)
    config.swa_start = 0.5
    config.test_every = min(config.test_every, 1)
    config.num_points = 5
    return config


def in_form(config: ConfigDict, form: str, make_tiny: Callable[[ConfigDict], ConfigDict] = tiny) -> ConfigDict:
    """The config, made tiny where `form` says so.

    Raises:
        ValueError: any other form.
    """
    if form not in ("", "tiny"):
        raise ValueError(f"variant {form!r} is unknown: there is tiny")
    return make_tiny(config) if form else config
