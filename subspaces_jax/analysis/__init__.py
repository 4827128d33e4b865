"""Analyses of checkpoints and of what evaluation kept of them."""
