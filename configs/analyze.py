"""Trained networks together. The form names the analysis, a module of studies, or a kind of average.

    python -m launch.analyze --config=configs/analyze.py:ensemble --config.runs=runs/a,runs/b --workdir=runs/a_and_b
    python -m launch.analyze --config=configs/analyze.py:swag \
        --config.runs=runs/swa --config.members=captures --workdir=runs/swag
    python -m launch.analyze --config=configs/analyze.py:line --config.runs=runs/a,runs/b --workdir=runs/between

A trained curve beside its segment, a chain, the barriers of all pairs, forks of one run, surfaces:

    python -m launch.analyze --config=configs/analyze.py:curve --config.runs=runs/bezier --workdir=runs/of_bezier
    python -m launch.analyze --config=configs/analyze.py:chain --config.runs=runs/a,runs/b,runs/c --workdir=runs/chain
    python -m launch.analyze --config=configs/analyze.py:barriers --config.runs=runs/a,runs/b --workdir=runs/barriers
    python -m launch.analyze --config=configs/analyze.py:instability \
        --config.runs=runs/fork_0,runs/fork_200 --workdir=runs/instability
    python -m launch.analyze --config=configs/analyze.py:plane --config.runs=runs/bezier --workdir=runs/plane
    python -m launch.analyze --config=configs/analyze.py:plane --config.through=random \
        --config.runs=runs/a --workdir=runs/around_a

A fork is a run that goes on from a kept step of another with noise of its own, two members of it in one program:

    python -m launch.train --config=configs/mode_connectivity.py:small,ends --config.fork=runs/a@200 \
        --config.num_members=2 --config.seed=10 --workdir=runs/fork_200

Networks brought to one order of units, and the last layers of several on the trunk of the first, for every number of
them:

    python -m launch.analyze --config=configs/analyze.py:matched --config.runs=runs/a,runs/b,runs/c \
        --workdir=runs/matched
    python -m launch.analyze --config=configs/analyze.py:shared_trunk --config.num_layers=0 \
        --config.runs=runs/a,runs/b,runs/c --workdir=runs/shared_trunk

How regular weights are, over depth of networks of several depths, over a training that kept checkpoints, and along a
trained line or curve; and the surface around a deep network, in directions that are orthogonal in every layer:

    python -m launch.analyze --config=configs/analyze.py:regularity --config.runs=runs/L_32,runs/L_128 \
        --config.exponents=1,1.5,2 --workdir=runs/regularity
    python -m launch.analyze --config=configs/analyze.py:training_variation --config.runs=runs/L_32 \
        --workdir=runs/over_training
    python -m launch.analyze --config=configs/analyze.py:path_variation --config.runs=runs/line --workdir=runs/along
    python -m launch.analyze --config=configs/analyze.py:plane --config.through=random --config.normalise=layer \
        --config.orthogonal --config.extent=2.5 --config.num_points=101 --config.runs=runs/L_128 --workdir=runs/surface

ImageNet-C (BatchNorm statistics from clean training images):

    python -m launch.analyze --config=configs/analyze.py \
        --config.runs=runs/imagenet/line_0 --workdir=runs/imagenet/snow \
        --config.test_dataset=imagenet_c/snow_1 --config.test_archive=imagenet-c

What a sweep's figures and tables show, gathered from several sweeps:

    python -m launch.analyze --config=configs/analyze.py:family --config.runs=runs/a,runs/b --workdir=runs/family

How a number that runs logged falls with the step; sources are run directories or TensorBoard event files:

    python -m launch.analyze --config=configs/analyze.py:power_law --config.runs=runs/deep \
        --config.series=gradient_norm --config.window=5 --workdir=runs/decay

Which way hyperplanes face, and what is lost where layers are set to earlier or fresh values; along a line with
--config.num_points:

    python -m launch.analyze --config=configs/analyze.py:orientation --config.runs=runs/a,runs/b --workdir=runs/facing
    python -m launch.analyze --config=configs/analyze.py:reinit --config.runs=runs/a --config.num_fresh=1 \
        --workdir=runs/resets

Several of these results in one figure, a panel each:

    python -m launch.analyze --config=configs/analyze.py:overview --config.runs=runs/line,runs/plane,runs/facing \
        --config.titles='a line|a plane|hyperplanes' --workdir=runs/overview

The meaning of each field is in the FIELDS of subspaces_jax/experiments/studies/, one module a study.
"""

from ml_collections import ConfigDict

from subspaces_jax.experiments.studies import STUDIES, average


def get_config(form: str = "ensemble") -> ConfigDict:
    study = form if form in STUDIES else "average"
    config = ConfigDict({"analysis": study} | {name: field.default for name, field in STUDIES[study].FIELDS.items()})
    if form in average.AVERAGES:
        config.average = form
    elif form not in STUDIES:
        raise ValueError(f"variant {form!r} is unknown: there are {', '.join((*STUDIES, *average.AVERAGES))}")
    return config
