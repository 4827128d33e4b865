"""A sweep's fields with their usual values: which variants of which config, over which seeds, and where they run.

    python -m launch.sweep --config=configs/sweep.py --workdir=runs/digits

The meaning of each field is in subspaces_jax/experiments/fields.py (SWEEP_FIELDS).
"""

from ml_collections import ConfigDict

from configs import base
from subspaces_jax.experiments import fields


def get_config(form: str = "") -> ConfigDict:
    config = ConfigDict({name: field.default for name, field in fields.SWEEP_FIELDS.items()})
    config.config = "configs/line_digits.py"
    return base.in_form(config, form, tiny)


def tiny(config: ConfigDict) -> ConfigDict:
    """Two seeds of the first variants, tiny."""
    config.seeds = (0, 1)
    config.variants = tuple(f"{variant},tiny".strip(",") for variant in config.variants[:2])
    return config
