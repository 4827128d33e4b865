"""Connecting networks that were trained apart: permutations, matching, weight adjustment and paths between them.

Pure functions of parameter trees and axis tables, see `networks.axes`: no run directories, no configs.
"""

from subspaces_jax.connecting.activations import match_activations
from subspaces_jax.connecting.adjustment import Adjusted, Grams, adjust_weights, grams, solve
from subspaces_jax.connecting.connectors import CONNECTORS, connect, needs_table
from subspaces_jax.connecting.couplings import Flow
from subspaces_jax.connecting.features import Features, layer_inputs
from subspaces_jax.connecting.flows import Criterion, fit_bijection, fit_flow
from subspaces_jax.connecting.heads import cost_ratio, operations, with_last_layer, with_trunk
from subspaces_jax.connecting.matching import match, match_networks
from subspaces_jax.connecting.methods import METHODS
from subspaces_jax.connecting.paths import Path, Sampled
from subspaces_jax.connecting.permutations import (
    Permutations,
    compose,
    function_difference,
    identity,
    invert,
    permute,
    permute_batch_stats,
)
from subspaces_jax.connecting.pieces import Piece
from subspaces_jax.connecting.universe import Universe, match_universe

__all__ = [
    "CONNECTORS",
    "METHODS",
    "Adjusted",
    "Criterion",
    "Features",
    "Flow",
    "Grams",
    "Path",
    "Permutations",
    "Piece",
    "Sampled",
    "Universe",
    "adjust_weights",
    "compose",
    "connect",
    "cost_ratio",
    "fit_bijection",
    "fit_flow",
    "function_difference",
    "grams",
    "identity",
    "invert",
    "layer_inputs",
    "match",
    "match_activations",
    "match_networks",
    "match_universe",
    "needs_table",
    "operations",
    "permute",
    "permute_batch_stats",
    "solve",
    "with_last_layer",
    "with_trunk",
]
