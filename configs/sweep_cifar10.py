"""Figure 4 of the subspace paper: lines, layerwise lines and curves against standard training and ensembles.

    python -m launch.sweep --config=configs/sweep_cifar10.py --workdir=runs/cifar10 --config.fields=dtype=bfloat16

On a cluster add --config.cluster=slurm --config.cluster_options='gpus_per_node=1 timeout_min=240'. Not yet run here.
"""

from configs import base, sweep


def get_config(form: str = ""):
    config = sweep.get_config()
    config.config = "configs/cifar10.py"
    config.variants = ("plain", "line", "line_layerwise", "curve")
    return base.in_form(config, form, sweep.tiny)
