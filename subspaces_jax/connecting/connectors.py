"""Connectors by name: general names, those of the paper's tables and those of its code."""

from collections.abc import Callable
from functools import partial
from typing import Any

from subspaces_jax.connecting.butterfly import butterfly, weight_adjusted
from subspaces_jax.connecting.flows import bijection, flow
from subspaces_jax.connecting.paths import Path
from subspaces_jax.connecting.simultaneous import direct, simultaneous, transported, whole_neurons
from subspaces_jax.errors import did_you_mean
from subspaces_jax.networks.axes import AxisTable

PyTree = Any
arc: dict[str, Any] = {"interpolation": "arc"}

CONNECTORS: dict[str, Callable[..., Path]] = {  # name -> constructor(params_a, params_b, table, ...)
    "simultaneous": simultaneous,
    "one_hidden_layer": whole_neurons,
    "ot": transported,
    "wa": weight_adjusted,
    "ot_wa": partial(weight_adjusted, transport=True),
    "butterfly": butterfly,
    "ot_butterfly": partial(butterfly, transport=True),
    # of the paper's tables
    "linear": direct,
    "arc": partial(direct, **arc),
    "linear_wa": weight_adjusted,
    "arc_wa": partial(weight_adjusted, **arc),
    "linear_butterfly": butterfly,
    "arc_butterfly": partial(butterfly, **arc),
    "flow": flow,
    "bijection": bijection,
    # of its code
    "PointFinderSimultaneous": simultaneous,
    "PointFinderWithBias": whole_neurons,
    "PointFinderTransportation": transported,
    "PointFinderInverseWithBias": weight_adjusted,
    "PointFinderInverseWithBiasOT": partial(weight_adjusted, transport=True),
    "PointFinderStepWiseButterfly": butterfly,
    "PointFinderStepWiseInverse": weight_adjusted,
    "PointFinderStepWiseTransportation": partial(butterfly, transport=True),
    "PointFinderStepWiseInverseOT": partial(weight_adjusted, transport=True),
    "PointFinderStepWiseButterflyConvWBias": butterfly,
    "PointFinderStepWiseButterflyConvWBiasWA": weight_adjusted,
    "PointFinderStepWiseButterflyConvWBiasOT": partial(butterfly, transport=True),
    "PointFinderStepWiseButterflyConvWBiasOTWA": partial(weight_adjusted, transport=True),
}


def connect(method: str, params_a: PyTree, params_b: PyTree, table: AxisTable | None = None, **options: Any) -> Path:
    """The path of a connector between two networks that were trained apart.

    Args:
        method: a name of CONNECTORS.
        params_a, params_b: two networks of one architecture.
        table: their axis table, which all but "simultaneous" need; without it "linear" and "arc" connect every leaf by
            itself, which in networks with one hidden layer is not the paper's "Arc".
        options: of the connector: `interpolation` and `num_components` of all, `rule` and `seed` of "ot", what
            `butterfly.StepWise` has of those that go layer by layer, of which they need `features`, and of "flow" and
            "bijection" what `flows` says; the latter needs a `criterion`.

    Raises:
        ValueError: an unknown name, networks that differ, or what the connector refuses.

    >>> import numpy as np
    >>> path = connect("arc", {"w": np.array([1.0, 0.0])}, {"w": np.array([0.0, 1.0])})
    >>> path.num_pieces, path.params(1.0)
    (1, {'w': Array([0., 1.], dtype=float32)})
    """
    if method not in CONNECTORS:
        raise ValueError(f"there is no connector {method!r}: {did_you_mean(method, CONNECTORS)}")
    connector = CONNECTORS[method]
    if table is None and needs_table(method):
        raise ValueError(f"{method} needs the axis table of the networks: pass module.unit_axes()")
    return connector(params_a, params_b, table, **options)


def needs_table(method: str) -> bool:
    """Whether a connector looks at layers, not at weights alone."""
    connector = CONNECTORS[method]
    return getattr(connector, "func", connector) not in (direct, simultaneous)
