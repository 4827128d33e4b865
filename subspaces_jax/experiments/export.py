"""Networks of a run as files of weights."""

import pathlib

import jax

from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import runs
from subspaces_jax.networks import weight_files


def run(workdir: str | pathlib.Path, out: str | pathlib.Path, step: int | None = None) -> list[pathlib.Path]:
    """Writes the networks of a run of `deep_residual`, see `networks.weight_files`.

    Args:
        workdir: the run directory.
        out: the file, .npz or .pth; of several members or endpoints m it is "name_m.npz".
        step: of the checkpoint, None for the last.

    Returns:
        The files.

    Raises:
        ConfigError: a network of another kind.
        RunDirectoryError, CheckpointError, DataError: see `errors`.
    """
    own, out = runs.open_run(workdir), pathlib.Path(out)
    if not hasattr(own.experiment.model.network, "weight_path"):
        raise ConfigError(f"{workdir} has networks without a path of blocks: export takes runs of deep_residual")
    found = runs.networks(own, "endpoints", step)
    several = len(found.names) > 1
    place = lambda m: out.with_name(f"{out.stem}_{m}{out.suffix}") if several else out
    row = lambda m: jax.tree.map(lambda leaf: leaf[m], found.stack)
    return [weight_files.save(place(m), row(m)) for m in range(len(found.names))]
