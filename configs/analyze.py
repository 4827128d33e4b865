"""Trained networks together. The form names the analysis: ensemble, line, or a kind of average.

    python -m launch.analyze --config=configs/analyze.py:ensemble --config.runs=runs/a,runs/b --workdir=runs/a_and_b
    python -m launch.analyze --config=configs/analyze.py:swag \
        --config.runs=runs/swa --config.members=captures --workdir=runs/swag
    python -m launch.analyze --config=configs/analyze.py:line --config.runs=runs/a,runs/b --workdir=runs/between

ImageNet-C (BatchNorm statistics from clean training images):

    python -m launch.analyze --config=configs/analyze.py \
        --config.runs=runs/imagenet/line_0 --workdir=runs/imagenet/snow \
        --config.test_dataset=imagenet_c/snow_1 --config.test_archive=imagenet-c

The meaning of each field is in subspaces_jax/experiments/fields.py (ANALYSIS_FIELDS).
"""

from ml_collections import ConfigDict


def get_config(form: str = "ensemble") -> ConfigDict:
    config = ConfigDict()
    config.analysis = form if form in ("ensemble", "line") else "average"
    config.average = "mean" if form in ("ensemble", "line", "average") else form
    config.runs = ""
    config.steps = ""
    config.members = "midpoint"
    config.num_draws = 6
    config.num_points = 21
    config.t = 0.75
    config.test_dataset = ""
    config.test_archive = ""
    config.seed = 0
    config.eval_batch_size = 500
    return config
