"""The claims of the subspace paper on Fashion-MNIST: every variant with three seeds.

    python -m launch.sweep --config=configs/sweep_fashion_mnist.py --workdir=runs/fashion_mnist \
        --config.fields=idx_dir=/usr/share/datasets/fashion-mnist
"""

from configs import sweep

BASELINES = ("plain", "ensemble", "swa_constant", "swa_cyclic")
CURVES = ("line", "line_layerwise", "line,no_beta", "curve")
SIMPLEXES = tuple(f"simplex_{n}" for n in range(2, 7))
NOISE = tuple(
    f"{variant},noise_{percent}"
    for percent in (20, 40)
    for variant in ("plain,early_stopping", "line", "simplex_3", "swa_constant", "swa_cyclic", "label_smoothing", "dropout")
)


def get_config(form: str = ""):
    config = sweep.get_config(form)
    config.config = "configs/fashion_mnist.py"
    config.variants = (*BASELINES, *CURVES, *SIMPLEXES, *NOISE)
    return sweep.tiny(config) if form == "tiny" else config
