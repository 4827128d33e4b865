"""Analyses of checkpoints and of what evaluation kept of them."""

from subspaces_jax.analysis.hyperplanes import distance_from_init, orientation
from subspaces_jax.analysis.power_laws import PowerLaw, fit_power_law

__all__ = ["PowerLaw", "distance_from_init", "fit_power_law", "orientation"]
