"""The claims of the subspace paper on Fashion-MNIST: every variant with three seeds.

    python -m launch.sweep --config=configs/sweep_fashion_mnist.py --workdir=runs/fashion_mnist \
        --config.fields=idx_dir=/usr/share/datasets/fashion-mnist

69 runs, two CPU-core hours and a half; two sweeps of other seeds may work in one folder at once. The lab book,
configs/README.md, has the results.
"""

from configs import base, sweep

BASELINES = ("plain", "swa_constant", "swa_cyclic")
CURVES = ("line", "line_layerwise", "line,no_beta", "curve")
SIMPLEXES = tuple(f"simplex_{n}" for n in range(3, 7))  # a simplex of 2 is a line
SAMPLES = ("line,samples_2", "line,samples_2_diverse")
NOISE_20 = tuple(f"{variant},noise_20" for variant in ("early_stopping", "swa_constant", "line"))
NOISE_40 = tuple(
    f"{variant},noise_40"
    for variant in ("early_stopping", "swa_constant", "swa_cyclic", "label_smoothing", "dropout", "line", "simplex_3")
)


def get_config(form: str = ""):
    config = sweep.get_config()
    config.config = "configs/fashion_mnist.py"
    config.variants = (*BASELINES, *CURVES, *NOISE_40, *SIMPLEXES, *NOISE_20, *SAMPLES)
    return base.in_form(config, form, sweep.tiny)
