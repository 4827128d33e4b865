"""Notebooks in the test suite: small, and with data in a folder of their own."""

import os
import tempfile

os.environ.setdefault("SUBSPACES_JAX_EPOCHS", "3")
os.environ.setdefault("SUBSPACES_JAX_NETWORK", "mlp_16")  # in the place of networks that take long to compile
os.environ.setdefault("TFDS_DATA_DIR", tempfile.mkdtemp())
