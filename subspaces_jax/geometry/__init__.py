"""Subspaces of weight space: coordinates, contraction, penalties, directions, planes. Arrays in, arrays out."""

from subspaces_jax.geometry.contraction import contract, init_stack, num_endpoints, stack, unstack
from subspaces_jax.geometry.coordinates import Arc, Bezier, Chain, Line, Simplex, layerwise
from subspaces_jax.geometry.directions import Principal, principal_directions, random_directions
from subspaces_jax.geometry.penalties import (
    cosine_penalty,
    endpoint_statistics,
    pairwise_products,
    random_pair,
    weight_norms,
)
from subspaces_jax.geometry.planes import DirectedPlane, Plane, plane_along, plane_through

__all__ = [
    "Arc",
    "Bezier",
    "Chain",
    "DirectedPlane",
    "Line",
    "Plane",
    "Principal",
    "Simplex",
    "contract",
    "cosine_penalty",
    "endpoint_statistics",
    "init_stack",
    "layerwise",
    "num_endpoints",
    "pairwise_products",
    "plane_along",
    "plane_through",
    "principal_directions",
    "random_directions",
    "random_pair",
    "stack",
    "unstack",
    "weight_norms",
]
