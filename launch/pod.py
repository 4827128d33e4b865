"""Runs a command of this folder on all hosts of a Cloud TPU pod, through gcloud; --print only shows what it would run.

python -m launch.pod --tpu=NAME --zone=us-central2-b --print -- \
    launch.train --config=configs/imagenet.py:line --workdir=/mnt/runs/line --config.dtype=bfloat16

This folder is copied to every host and the package installed there; then every host runs the command with
--coordinator=auto. The run directory must lie on a disk that all hosts have mounted, as Filestore's.
"""

import shlex
import subprocess

from absl import flags

from launch import app
from subspaces_jax.errors import ConfigError

_TPU = flags.DEFINE_string("tpu", None, "name of the TPU VM")
_ZONE = flags.DEFINE_string("zone", None, "its zone")
_PROJECT = flags.DEFINE_string("project", None, "its project, gcloud's own where none is named")
_PRINT = flags.DEFINE_bool("print", False, "print the commands and run none of them")
FOLDER = "subspaces_jax"


def commands(tpu: str, zone: str, project: str | None, command: list[str]) -> list[list[str]]:
    """What is run: the folder's way to all hosts, and the command on each.

    Args:
        tpu, zone, project: of the pod.
        command: a module of launch/ and its flags.

    Raises:
        ConfigError: the pod is not named, or the command is no module of launch/.
    """
    if not tpu or not zone:
        raise ConfigError("--tpu and --zone name the pod, as in --tpu=my-pod --zone=us-central2-b")
    if not command or not command[0].startswith("launch."):
        raise ConfigError("after -- comes a module of launch/ and its flags, as in -- launch.train --config=...")
    where = [f"--zone={zone}", "--worker=all", *([f"--project={project}"] if project else [])]
    joined = shlex.join(["python3", "-m", *command, "--coordinator=auto"])
    remote = f"cd {FOLDER} && pip install -q -e '.[tpu]' && {joined}"
    gcloud = ["gcloud", "compute", "tpus", "tpu-vm"]
    return [
        [*gcloud, "scp", "--recurse", ".", f"{tpu}:{FOLDER}", *where],
        [*gcloud, "ssh", tpu, *where, f"--command={remote}"],
    ]


def run(argv, interrupts):
    for line in commands(_TPU.value, _ZONE.value, _PROJECT.value, list(argv[1:])):
        print(shlex.join(line), flush=True)
        if _PRINT.value:
            continue
        try:
            status = subprocess.run(line, check=False).returncode
        except FileNotFoundError:
            raise ConfigError("gcloud is not installed: see cloud.google.com/sdk, or use --print") from None
        if status:
            raise ConfigError(f"gcloud ended with status {status}: see above")


if __name__ == "__main__":
    app.program(run)
