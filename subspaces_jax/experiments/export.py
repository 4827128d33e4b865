"""Networks of a run as files of weights."""

import pathlib
from typing import Any

import jax
from flax import serialization

from subspaces_jax import batch_stats, checkpoints, geometry, records, state_dicts
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import runs
from subspaces_jax.experiments.build import Experiment
from subspaces_jax.experiments.build.images import flat
from subspaces_jax.experiments.runs import Networks, Run
from subspaces_jax.networks import torch_names, weight_files

PLAIN = ".msgpack"  # as Flax has it: {"params": ..., "batch_stats": ...}, of any network


WHICH = ("endpoints", "midpoint", "captures", "snapshots")


def run(
    workdir: str | pathlib.Path,
    out: str | pathlib.Path,
    step: int | None = None,
    t: float | None = None,
    which: str = "endpoints",
    refresh: bool = True,
) -> list[pathlib.Path]:
    """Writes the networks of a run, or one point of its line or curve.

    Any network goes into a .msgpack, which `flax.serialization.msgpack_restore` reads: {"params", "batch_stats"}. Of
    `deep_residual` see `networks.weight_files`; of AlexNet, VGG and ResNet for ImageNet the state dicts of
    torchvision's, see `networks.torch_names`, which `initial` takes.

    Args:
        workdir: the run directory.
        out: the file, .msgpack, .npz or .pth, or .safetensors of a state dict; of several members or endpoints m it is
            "name_m.npz".
        step: of the checkpoint, None for the last.
        t: of a point of a line or curve, in [0, 1]; None for those that `which` names.
        which: endpoints (of a run of one network or of members, these), the midpoint (of captures, their mean),
            captures, or snapshots, as `runs.networks` has them.
        refresh: whether BatchNorm statistics of points are those of the training images there, as evaluation takes
            them, which reads the data; else, and of single networks, those of training.

    Returns:
        The files.

    Raises:
        ConfigError: a network of another kind, a t of what is no curve, or networks that the run does not have.
        RunDirectoryError, CheckpointError, DataError: see `errors`.
    """
    own, out = runs.open_run(workdir), pathlib.Path(out)
    network = own.experiment.model.network
    if out.suffix == state_dicts.SAFE:
        try:
            torch_names.layer_names(network)
        except ValueError as error:
            raise ConfigError(f"{workdir}: {error}") from None
    elif out.suffix != PLAIN and not hasattr(network, "weight_path"):
        raise ConfigError(
            f"{workdir} has networks without a path of blocks: export takes runs of deep_residual, to .safetensors "
            f"those of alexnet, imagenet_vgg and resnet, and to {PLAIN} any"
        )
    if which not in WHICH or t is not None and which != "endpoints":
        raise ConfigError(f"which is {which!r}: one of {', '.join(WHICH)}, and without it where t names a point")
    of_steps = {"captures": lambda: list(own.plan.captured_steps), "snapshots": lambda: runs.kept_steps(own)}
    if which != "endpoints" and (step is not None and which != "midpoint" or own.experiment.num_members > 1):
        raise ConfigError(
            f"which is {which!r}: all of a run of one network or subspace; of members, or of one step, leave it out"
        )
    found = runs.networks(own, which, step)
    found = found if t is None else _at(own, found, t)
    several = len(found.names) > 1
    place = lambda m: out.with_name(f"{out.stem}_{m}{out.suffix}") if several else out
    row = lambda m: jax.tree.map(lambda leaf: leaf[m], found.stack)
    variables = lambda m: {"params": row(m), "batch_stats": found.batch_stats}
    if own.experiment.num_members > 1:  # each has statistics of its own
        stats = checkpoints.restore(own.folder, found.step).batch_stats
        variables = lambda m: {"params": row(m), "batch_stats": jax.tree.map(lambda leaf: leaf[m], stats)}
    elif (
        refresh
        and own.experiment.refreshes
        and (which != "endpoints" or own.experiment.num_rows > 1)
        and jax.tree.leaves(found.batch_stats)
    ):
        variables = lambda m: _refreshed(own.experiment, {"params": row(m), "batch_stats": found.batch_stats})
    elif which in of_steps:
        steps = of_steps[which]()
        variables = lambda m: {"params": row(m), "batch_stats": checkpoints.restore(own.folder, steps[m]).batch_stats}
    if out.suffix == PLAIN:
        return [_plain(place(m), variables(m)) for m in range(len(found.names))]
    if out.suffix != state_dicts.SAFE:
        return [weight_files.save(place(m), row(m)) for m in range(len(found.names))]
    for m in range(len(found.names)):
        state_dicts.save(place(m), torch_names.to_torch(network, variables(m)))
    return [place(m) for m in range(len(found.names))]


def _at(own: Run, found: Networks, t: float) -> Networks:
    """The one network at t."""
    if not own.experiment.is_curve or not 0.0 <= t <= 1.0:
        raise ConfigError(
            f"t is {t:g} and {own.folder} trained {own.experiment.subspace_text}: a line or a curve has points at t in "
            "[0, 1]"
        )
    point = geometry.contract(found.stack, own.experiment.space.coordinates(t))
    return found._replace(stack=geometry.stack([point]), names=[f"{own.name} t = {t:g}"])


def _refreshed(made: Experiment, variables: dict[str, Any]) -> dict[str, Any]:
    """With the BatchNorm statistics that evaluation gives the network."""
    images, size = flat(made.data.train.images), made.eval_batch_size
    stats = batch_stats.refresh_batch_stats(
        made.model.apply_train, variables, images, made.refresh_key, size, made.mesh
    )
    return variables | {"batch_stats": stats}


def _plain(path: pathlib.Path, variables: dict[str, Any]) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    records.write_bytes(path, serialization.to_bytes(jax.device_get(variables)))
    return path
