"""Analyses of checkpoints and of what evaluation kept of them."""

from subspaces_jax.analysis.hyperplanes import distance_from_init, orientation

__all__ = ["distance_from_init", "orientation"]
