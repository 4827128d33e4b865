"""Paths between two networks without training (Anokhin and Yarotsky 2020, arXiv:2008.00741).

The word after the colon is the connector, by any of its names: linear, arc, ot, linear_wa, arc_wa, ot_wa,
linear_butterfly, arc_butterfly, ot_butterfly, or that of the paper's code (PointFinderStepWiseInverse ...); flow and
bijection, for one hidden layer, need flowjax, the extra "flows", and are fitted to every run that is named, the first
two of which are connected.

    python -m launch.train --config=configs/dense.py:one_100 --config.seed=0 --workdir=runs/one/0 \
        --config.idx_dir=/usr/share/datasets/fashion-mnist
    python -m launch.train --config=configs/dense.py:one_100 --config.seed=1 --workdir=runs/one/1 \
        --config.idx_dir=/usr/share/datasets/fashion-mnist
    python -m launch.connect --config=configs/connect.py:ot_wa --config.runs=runs/one/0,runs/one/1 \
        --workdir=runs/one/ot_wa
    python -m launch.analyze --config=configs/analyze.py:connections --config.runs=runs/one/ot_wa --workdir=runs/one/all

A curve between matched ends is a training that starts from such a path:

    python -m launch.train --config=configs/dense.py:one_100,bezier --config.initial=runs/one/ot \
        --workdir=runs/one/curve --config.idx_dir=/usr/share/datasets/fashion-mnist

Options of a connector are those of its call: --config.connector='ot_wa(interpolation=arc)'; with reference=True it does
as the paper's code does, with bias=True biases are fitted with the weights that are adjusted. The meaning of each field
is in FIELDS of subspaces_jax/experiments/connect.py.
"""

from ml_collections import ConfigDict

from subspaces_jax.connecting import CONNECTORS
from subspaces_jax.experiments import connect


def get_config(form: str = "linear") -> ConfigDict:
    config = ConfigDict({name: field.default for name, field in connect.FIELDS.items()})
    if form not in CONNECTORS:
        raise ValueError(f"variant {form!r} is unknown: there are {', '.join(CONNECTORS)}")
    config.connector = form
    return config
