"""A family of runs: variants of one config over seeds, one after another on this machine or as jobs of a cluster.

The folder of a sweep holds config.json (what all its runs share), one run directory a run, named <variant>_<seed>,
logs/ with what each printed, and results/family of all that are finished. A run is finished once it is evaluated; the
same command again does what is left.
"""

import contextlib
import importlib.util
import logging
import pathlib
import sys
import traceback
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from subspaces_jax import records
from subspaces_jax.errors import ConfigError, RunDirectoryError, SubspacesError
from subspaces_jax.experiments import build, choices, evaluate, plot, train
from subspaces_jax.experiments.fields import FIELDS, SWEEP_FIELDS
from subspaces_jax.experiments.schema import Config, checked, from_text, key_values
from subspaces_jax.experiments.studies import family
from subspaces_jax.experiments.studies.family import is_finished

LOGS = "logs"


class Job(NamedTuple):
    """One run.

    Attributes:
        name: of its folder.
        config: a config file, "" for the defaults.
        form: what stands after the file's colon.
        fields: overrides, texts by name.
        workdir: where it goes.
    """

    name: str
    config: str
    form: str
    fields: dict[str, str]
    workdir: pathlib.Path

    @property
    def log(self) -> pathlib.Path:
        """What it printed."""
        return self.workdir.parent / LOGS / f"{self.name}.txt"


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Runs what is not finished, in the order of the seeds, so that every variant has its first seed first.

    Args:
        config: a mapping with fields of `fields.SWEEP_FIELDS`.
        workdir: the sweep's folder.

    Returns:
        {"finished": before this call, "ran": by it}, numbers of runs.

    Raises:
        RunDirectoryError: runs failed (names each with its last line; the others went on), or the folder holds a sweep
            of another config.
    """
    config = checked(config, SWEEP_FIELDS)
    settings = SimpleNamespace(**config)
    folder = records.resolve(workdir)
    all_jobs = jobs(config, folder)
    folder.mkdir(parents=True, exist_ok=True)
    records.write_header(folder, "sweep", {name: config[name] for name in ("config", "fields")})
    left = [job for job in all_jobs if not is_finished(job.workdir)]
    (folder / LOGS).mkdir(exist_ok=True)
    if settings.cluster:
        statuses = _submitted(left, folder, settings.cluster, key_values(settings.cluster_options))
    else:
        progress = records.Progress(len(left), unit="run", label="sweep")
        statuses = [run_job(job) for job in progress.over(left)]
    failed = [job for job, status in zip(left, statuses) if status]
    if len(failed) < len(all_jobs):
        gather(folder)
    if failed:
        reasons = "; ".join(f"{job.name}: {last_line(job.log)}" for job in failed[:3])
        raise RunDirectoryError(
            f"{len(failed)} of {len(left)} runs failed ({reasons}); the same command does them again"
        )
    return {"finished": len(all_jobs) - len(left), "ran": len(left)}


def gather(workdir: str | pathlib.Path) -> dict[str, Any]:
    """Writes results/family of a sweep's finished runs, for figures and tables, and returns its facts."""
    folder = records.resolve(workdir)
    arrays, facts = family.run(SimpleNamespace(runs=str(folder)))
    records.save_results(folder, plot.FAMILY, arrays, facts)
    return facts


def jobs(config: Config, folder: pathlib.Path) -> list[Job]:
    """All runs of a sweep, one a variant and seed, whether finished or not."""
    settings = SimpleNamespace(**checked(config, SWEEP_FIELDS))
    common = key_values(settings.fields)
    parts = {variant: choices.split(variant) for variant in settings.variants}
    for variant in settings.variants:
        if "/" in variant:
            raise ConfigError(
                f"config.variants holds {variant!r}, and run directories are named after variants: "
                "give fields with a / in config.fields"
            )
    own = {variant: [part.partition("=") for part in of if _is_field(part)] for variant, of in parts.items()}
    if "seed" in common or any(name == "seed" for of in own.values() for name, _, _ in of):
        raise ConfigError("config.fields and config.variants may not set seed: config.seeds does")
    made = []
    for seed in settings.seeds:
        for variant in settings.variants:
            name = variant or pathlib.Path(settings.config or "default").stem
            workdir = workdir_of(folder, name, seed)
            form = ",".join(part for part in parts[variant] if not _is_field(part))
            fields = {"variant": name, "seed": str(seed)} | common | {key: value for key, _, value in own[variant]}
            made.append(Job(workdir.name, settings.config, form, fields, workdir))
    return made


def workdir_of(folder: str | pathlib.Path, variant: str, seed: int) -> pathlib.Path:
    """The run directory of a variant and a seed."""
    return pathlib.Path(folder) / f"{variant.replace(',', '+')}_{seed}"


def config_of(job: Job) -> dict[str, Any]:
    """The config of a job: its file's, with its overrides.

    Raises:
        ConfigError: the file cannot be loaded, or a field is wrong.
    """
    config: dict[str, Any] = dict(from_file(job.config, job.form)) if job.config else {}
    if job.form and not job.config:
        raise ConfigError(f"config.variants has {job.form!r}, and config.config is empty: variants are a file's")
    return build.check(config | {name: from_text(name, text, FIELDS) for name, text in job.fields.items()})


def from_file(path: str, form: str) -> dict[str, Any]:
    """What `get_config(form)` of a config file gives, as plain values.

    Raises:
        ConfigError: no such file, or one that raises: with its last line.
    """
    file = pathlib.Path(path).expanduser().absolute()
    try:
        spec = importlib.util.spec_from_file_location(f"_config_{file.stem}", file)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(f"{file} is no file of Python")
        module = importlib.util.module_from_spec(spec)
        with _importable(pathlib.Path.cwd(), file.parent.parent):
            spec.loader.exec_module(module)
            found = module.get_config(form) if form else module.get_config()
        return found.copy_and_resolve_references().to_dict() if hasattr(found, "to_dict") else dict(found)
    except Exception as error:  # whatever a config file of the user's raises
        text = str(error).strip() or type(error).__name__
        missing = isinstance(error, (FileNotFoundError, AttributeError))
        raise ConfigError(f"config file {path} cannot be loaded: {text}" if missing else text) from None


def run_job(job: Job) -> int:
    """Trains, evaluates and draws one run, its output going to logs/, and returns 0, or 2 for what the user can mend
    and 1 for the rest; 0 if it was done meanwhile."""
    if is_finished(job.workdir):
        return 0
    job.workdir.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "a") as log:
        handler = logging.StreamHandler(log)
        logging.getLogger("subspaces_jax").addHandler(handler)
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            try:
                print("$", job.name, flush=True)
                config = config_of(job)
                train.run(config, job.workdir)
                print(evaluate.table(evaluate.run(None, job.workdir)))
                plot.run(None, job.workdir)
                return 0
            except SubspacesError as error:
                print(f"error: {' '.join(str(error).split())}", file=log)
                return 2
            except Exception:  # one run's end is not that of the others
                traceback.print_exc(file=log)
                return 1
            finally:
                logging.getLogger("subspaces_jax").removeHandler(handler)


def _is_field(part: str) -> bool:
    return "=" in part.partition("(")[0]


@contextlib.contextmanager
def _importable(*folders: pathlib.Path):
    """Config files import each other from where commands are given, or from the folder of their package."""
    before = list(sys.path)
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        sys.path[:] = before


def _submitted(left: Sequence[Job], folder: pathlib.Path, cluster: str, options: dict[str, Any]) -> list[int]:
    """Exit statuses of jobs that submitit runs on a cluster ("slurm"), or in processes of its own here ("local")."""
    options = {name: int(value) if value.isdigit() else value for name, value in options.items()}
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


def last_line(path: pathlib.Path) -> str:
    """Of the log of a run."""
    lines = path.read_text().strip().splitlines() if path.exists() else []
    return lines[-1][:200] if lines else "no output"
