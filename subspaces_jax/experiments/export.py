"""Networks of a run as files of weights."""

import pathlib

import jax

from subspaces_jax import state_dicts
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import runs
from subspaces_jax.networks import torch_names, weight_files


def run(workdir: str | pathlib.Path, out: str | pathlib.Path, step: int | None = None) -> list[pathlib.Path]:
    """Writes the networks of a run: of `deep_residual` see `networks.weight_files`; of AlexNet, VGG and ResNet for
    ImageNet the state dicts of torchvision's, see `networks.torch_names`, which `initial` takes.

    Args:
        workdir: the run directory.
        out: the file, .npz or .pth, or .safetensors of a state dict; of several members or endpoints m it is
            "name_m.npz".
        step: of the checkpoint, None for the last.

    Returns:
        The files.

    Raises:
        ConfigError: a network of another kind.
        RunDirectoryError, CheckpointError, DataError: see `errors`.
    """
    own, out = runs.open_run(workdir), pathlib.Path(out)
    network = own.experiment.model.network
    if out.suffix == state_dicts.SAFE:
        try:
            torch_names.layer_names(network)
        except ValueError as error:
            raise ConfigError(f"{workdir}: {error}") from None
    elif not hasattr(network, "weight_path"):
        raise ConfigError(
            f"{workdir} has networks without a path of blocks: export takes runs of deep_residual, and to .safetensors "
            "those of alexnet, imagenet_vgg and resnet"
        )
    found = runs.networks(own, "endpoints", step)
    several = len(found.names) > 1
    place = lambda m: out.with_name(f"{out.stem}_{m}{out.suffix}") if several else out
    row = lambda m: jax.tree.map(lambda leaf: leaf[m], found.stack)
    if out.suffix != state_dicts.SAFE:
        return [weight_files.save(place(m), row(m)) for m in range(len(found.names))]
    for m in range(len(found.names)):
        variables = {"params": row(m), "batch_stats": found.batch_stats}
        state_dicts.save(place(m), torch_names.to_torch(network, variables))
    return [place(m) for m in range(len(found.names))]
