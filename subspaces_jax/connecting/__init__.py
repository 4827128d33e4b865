"""Connecting networks that were trained apart: permutations, matching, weight adjustment and paths between them."""
