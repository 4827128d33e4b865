"""Figures 4 and 5 of the subspace paper on TinyImageNet: curves, and simplexes of 2 to 6, global and layerwise.

    python -m launch.sweep --config=configs/sweep_tiny_imagenet.py \
        --workdir=runs/tiny_imagenet --config.fields=dtype=bfloat16

Not yet run here.
"""

from configs import base, sweep, sweep_cifar10


def get_config(form: str = ""):
    config = sweep_cifar10.get_config()
    config.config = "configs/tiny_imagenet.py"
    simplexes = [f"simplex_{n}{kind}" for n in range(2, 7) for kind in ("", "_layerwise")]
    config.variants = (*config.variants, *simplexes)
    return base.in_form(config, form, sweep.tiny)
