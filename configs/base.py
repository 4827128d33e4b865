"""Every field with its usual value: the other configs are differences from this one.

The default, meaning and range of each field are in subspaces_jax/experiments/fields.py (FIELDS).
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from subspaces_jax.experiments import choices, fields


def get_config() -> ConfigDict:
    return ConfigDict({name: field.default for name, field in fields.FIELDS.items()})


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


def words(form: str, known: tuple[str, ...]) -> list[str]:
    """The words of a config's form, "small,bezier".

    Raises:
        ValueError: one is unknown; names those that there are.
    """
    names = choices.split(form)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"variant {unknown[0]!r} is unknown: there are {', '.join(known)}")
    return names


def one_of(names: list[str], among: tuple[str, ...], usual: str) -> str:
    """The one of `names` that is `among` those that exclude each other; `usual` where there is none.

    Raises:
        ValueError: there are several.
    """
    chosen = [name for name in names if name in among]
    if len(chosen) > 1:
        raise ValueError(f"variants {' and '.join(chosen)} contradict each other: choose one")
    return chosen[0] if chosen else usual
