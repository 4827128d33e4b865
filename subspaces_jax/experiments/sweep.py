"""A family of runs: variants of one config over seeds, one after another on this machine or as jobs of a cluster.

The folder of a sweep holds config.json (what all its runs share), one run directory a run, named <variant>_<seed>, and
logs/ with what each printed. A run is finished once it is evaluated; the same command again does what is left.
"""

import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from subspaces_jax import records
from subspaces_jax.errors import ConfigError, RunDirectoryError
from subspaces_jax.experiments import evaluate
from subspaces_jax.experiments.fields import SWEEP_FIELDS, Config, checked, key_values

Family = dict[str, list[dict[str, Any]]]


class Job(NamedTuple):
    """One run: its name, the command that trains, evaluates and plots it, and where it goes."""

    name: str
    command: list[str]
    workdir: pathlib.Path


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Runs what is not finished, in the order of the seeds, so that every variant has its first seed first.

    Args:
        config: a mapping with the fields of `fields.SWEEP_FIELDS`.
        workdir: the sweep's folder.

    Returns:
        {"finished": before this call, "ran": by it}, numbers of runs.

    Raises:
        RunDirectoryError: runs failed (names each with its last line; the others went on), or the folder holds a sweep
            of another config.
    """
    config = checked(config, SWEEP_FIELDS)
    folder = pathlib.Path(workdir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    records.write_config(folder, {name: config[name] for name in ("config", "fields")})
    all_jobs = jobs(config, folder)
    left = [job for job in all_jobs if not is_finished(job.workdir)]
    (folder / "logs").mkdir(exist_ok=True)
    if config["cluster"]:
        statuses = _submitted(left, folder, config["cluster"], key_values(config["cluster_options"]))
    else:
        progress = records.Progress(len(left), unit="run", label="sweep")
        statuses = [run_job(job) for job in progress.over(left)]
    failed = [job for job, status in zip(left, statuses) if status]
    if failed:
        reasons = "; ".join(f"{job.name}: {_last_line(folder, job)}" for job in failed[:3])
        raise RunDirectoryError(
            f"{len(failed)} of {len(left)} runs failed ({reasons}); the same command does them again"
        )
    return {"finished": len(all_jobs) - len(left), "ran": len(left)}


def jobs(config: Config, folder: pathlib.Path) -> list[Job]:
    """All runs of a sweep, one a variant and seed, whether finished or not."""
    common = key_values(config["fields"])
    for variant in config["variants"]:
        if "/" in variant:
            raise ConfigError(
                f"config.variants holds {variant!r}, and run directories are named after variants: "
                "give fields with a / in config.fields"
            )
    if "seed" in common or any(part.startswith("seed=") for part in ",".join(config["variants"]).split(",")):
        raise ConfigError("config.fields and config.variants may not set seed: config.seeds does")
    shared = [f"--config.{name}={value}" for name, value in common.items()]
    made = []
    for seed in config["seeds"]:
        for variant in config["variants"]:
            workdir = workdir_of(folder, variant or pathlib.Path(config["config"]).stem, seed)
            parts = variant.split(",")
            form = ",".join(part for part in parts if "=" not in part)
            own = [f"--config.{part}" for part in parts if "=" in part]
            flags = [f"--config={config['config']}:{form}".rstrip(":"), f"--workdir={workdir}", f"--config.seed={seed}"]
            made.append(Job(workdir.name, [sys.executable, "-m", "launch.train", *flags, *shared, *own], workdir))
    return made


def workdir_of(folder: str | pathlib.Path, variant: str, seed: int) -> pathlib.Path:
    """The run directory of a variant and a seed."""
    return pathlib.Path(folder) / f"{variant.replace(',', '+')}_{seed}"


def folders(folder: str | pathlib.Path, variant: str) -> list[pathlib.Path]:
    """The finished run directories of a variant, by seed."""
    paths = [
        path for path in pathlib.Path(folder).glob("*_*") if path.name.rpartition("_")[0] == variant.replace(",", "+")
    ]
    return sorted(filter(is_finished, paths), key=lambda path: int(path.name.rpartition("_")[2]))


def is_finished(workdir: pathlib.Path) -> bool:
    """Whether a run has been trained to its end and evaluated there."""
    try:
        facts = records.load_facts(workdir, evaluate.RESULTS)
    except RunDirectoryError:
        return False
    return facts["step"] == facts.get("num_steps")


def run_job(job: Job) -> int:
    """Runs one job to its end, its output going to logs/, and returns its exit status; 0 if it was done meanwhile."""
    if is_finished(job.workdir):
        return 0
    with open(job.workdir.parent / "logs" / f"{job.name}.txt", "a") as log:
        print("$", shlex.join(job.command), file=log, flush=True)
        return subprocess.run(job.command, stdout=log, stderr=subprocess.STDOUT).returncode


def load(workdir: str | pathlib.Path) -> Family:
    """The evaluated runs of a sweep: variant -> facts of its seeds, see `evaluate.run`; without those not finished."""
    finished = [path.name for path in sorted(pathlib.Path(workdir).glob("*_*")) if is_finished(path)]
    if not finished:
        raise RunDirectoryError(f"no finished runs in {workdir}: run python -m launch.sweep --workdir={workdir} first")
    variants = dict.fromkeys(name.rpartition("_")[0].replace("+", ",") for name in finished)
    family = {
        variant: [records.load_facts(path, evaluate.RESULTS) for path in folders(workdir, variant)]
        for variant in variants
    }
    for variant, runs in family.items():
        if len({run["config"]["num_points"] for run in runs}) > 1:
            raise RunDirectoryError(
                f"the runs of {variant} in {workdir} were evaluated at different numbers of points: evaluate them alike"
            )
    return family


def _submitted(left: Sequence[Job], folder: pathlib.Path, cluster: str, options: dict[str, Any]) -> list[int]:
    """Exit statuses of jobs that submitit runs on a cluster ("slurm"), or in processes of its own here ("local")."""
    try:
        import submitit  # the extra "cluster"

        executor = submitit.AutoExecutor(folder=folder / "jobs", cluster=cluster)
        executor.update_parameters(**options)
    except ImportError:
        raise ConfigError("config.cluster needs submitit: pip install -e '.[cluster]'") from None
    except (NameError, TypeError, ValueError, RuntimeError) as error:  # what it makes of options and missing clusters
        raise ConfigError(f"config.cluster {cluster!r} with {options}: {' '.join(str(error).split())}") from None
    submitted = executor.map_array(run_job, left) if left else []
    progress = records.Progress(len(left), unit="run", label="sweep")
    return [_status(job) for job in progress.over(submitted)]


def _status(job: Any) -> int:
    """The exit status of a cluster's job; 1 where the cluster ended it or lost it."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        return job.result()
    except (FailedJobError, UncompletedJobError):
        return 1


def _last_line(folder: pathlib.Path, job: Job) -> str:
    path = folder / "logs" / f"{job.name}.txt"
    lines = path.read_text().strip().splitlines() if path.exists() else []
    return lines[-1][:200] if lines else "no output"
