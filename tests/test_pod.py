"""The launcher of TPU pods: what it prints, and what it refuses; no pod is there."""

import pathlib
import shlex
import subprocess
import sys

import pytest

from launch import pod
from subspaces_jax.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = ["launch.train", "--config=configs/line_digits.py:tiny", "--config.subspace=bezier(4)", "--workdir=/mnt/x y"]


def test_a_command_reaches_every_host_as_it_was_written():
    copy, start = pod.commands("my-pod", "us-central2-b", None, TRAIN)
    assert copy[:4] == start[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
    assert {"--worker=all", "--zone=us-central2-b"} <= set(copy) & set(start)
    (remote,) = [word.removeprefix("--command=") for word in start if word.startswith("--command=")]
    assert shlex.split(remote.rpartition("&& ")[2]) == ["python3", "-m", *TRAIN, "--coordinator=auto"]
    assert "--project=p" in pod.commands("a", "b", "p", TRAIN)[1]


def test_commands_are_printed_and_not_run():
    flags = ["--tpu=a", "--zone=b", "--print", "--"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.pod", *flags, *TRAIN], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert lines == pod.commands("a", "b", None, TRAIN)


@pytest.mark.parametrize("tpu, command, message", [(None, TRAIN, "name the pod"), ("a", [], "a module of launch/")])
def test_what_is_missing_is_said(tpu, command, message):
    with pytest.raises(ConfigError, match=message):
        pod.commands(tpu, "zone", None, command)
