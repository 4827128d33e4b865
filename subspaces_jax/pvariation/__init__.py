"""p-variation of paths of points, exact, on the device: how rough a network's weights are over its depth."""

from subspaces_jax.pvariation.variation import (
    METHODS,
    bellman_residual,
    p_variation,
    p_variation_partition,
    running_p_variation,
)

__all__ = ["METHODS", "bellman_residual", "p_variation", "p_variation_partition", "running_p_variation"]
