"""Figures from result dicts and nothing else: every figure can be redrawn without a network or an accelerator."""
