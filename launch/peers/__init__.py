"""The same work in PyTorch, idiomatic, on the same threads or GPU: what the benchmark compares with.

layouts.py   weights of our networks under PyTorch's names, and back; NumPy only
residual.py  residual networks, their training steps, and curves between them
features.py  LPIPS
"""
