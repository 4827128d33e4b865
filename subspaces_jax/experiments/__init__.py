"""Experiments: each module is a library function `run(config, workdir) -> dict`; `build` alone reads a config."""
