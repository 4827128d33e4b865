"""Analyses of checkpoints and of what evaluation kept of them."""

from subspaces_jax.analysis.power_laws import PowerLaw, fit_power_law

__all__ = ["PowerLaw", "fit_power_law"]
