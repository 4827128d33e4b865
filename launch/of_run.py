"""The config of a run that is there, as a config file whose form is the run directory."""

from ml_collections import ConfigDict

from subspaces_jax.experiments import runs


def get_config(workdir: str) -> ConfigDict:
    return ConfigDict(runs.open_run(workdir).config)
