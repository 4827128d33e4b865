"""Figures 4 and 5 of the subspace paper: lines, curves and simplexes, layerwise too, against standard training.

    python -m launch.sweep --config=configs/sweep_cifar10.py --workdir=runs/cifar10 --config.fields=dtype=bfloat16

On a cluster add --config.cluster=slurm --config.cluster_options='gpus_per_node=1 timeout_min=240'. Not yet run here.
"""

from configs import base, sweep


def get_config(form: str = ""):
    config = sweep.get_config()
    config.config = "configs/cifar10.py"
    simplexes = (f"simplex_{n}{kind}" for n in range(2, 7) for kind in ("", "_layerwise"))
    config.variants = ("plain", "line", "line_layerwise", "curve", *simplexes)
    return base.in_form(config, form, sweep.tiny)
