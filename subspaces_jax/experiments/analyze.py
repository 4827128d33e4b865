"""Analyses of trained runs together: a config names one of `studies` -> results/<its name>."""

import pathlib
import time
from types import SimpleNamespace
from typing import Any

from subspaces_jax import parallel, records
from subspaces_jax.errors import ConfigError
from subspaces_jax.experiments import schema
from subspaces_jax.experiments.schema import Config, Field
from subspaces_jax.experiments.studies import STUDIES

ANALYSIS = Field("ensemble", lambda value: value in STUDIES, f"one of {', '.join(STUDIES)}")
FIELDS: dict[str, Field] = {"analysis": ANALYSIS}  # names of the fields of all studies; defaults are each study's own
for _study in STUDIES.values():
    FIELDS |= _study.FIELDS


def run(config: Config, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Runs the study of the config and writes results/<its name> into `workdir`.

    Args:
        config: a mapping with "analysis", a name of `studies.STUDIES`, and fields of that study.
        workdir: the analysis' own folder.

    Returns:
        The facts of results/<name>.json; of networks "members" (what each is), "scores" {name: [T]} of the points of
        the analysis; where these are members or several averages "ensembles" of them (by size), "disagreement" and
        "total_variation" [T, T]; and for members "feature_cosine" [M, M].

    Raises:
        ConfigError, RunDirectoryError, CheckpointError, DataError: see `errors`.
    """
    config, clock = complete(config), time.perf_counter()
    settings, folder = SimpleNamespace(**config), records.resolve(workdir)
    name = settings.analysis
    if (folder / records.CONFIG).exists():  # another analysis' folder is refused before the work, not after
        records.write_header(folder, "study", config, complete=complete)
    arrays, facts = STUDIES[name].run(settings)
    facts |= {"config": config, "seconds": time.perf_counter() - clock}
    if parallel.is_main():
        with records.locked(workdir) as folder:
            records.write_header(folder, "study", config, complete=complete)
            records.save_results(folder, name, arrays, facts)
            for file, tree in getattr(STUDIES[name], "exports", lambda arrays, facts: ())(arrays, facts):
                records.save_json(folder, file, tree)
    return facts


def complete(config: Config) -> dict[str, Any]:
    """The config of a study with all of its fields, checked; fields of other studies have no influence and go.

    Raises:
        ConfigError: an unknown study or field, or a value out of range.
    """
    config = schema.upgrade(config)
    own = fields_of(config)
    return schema.checked({key: value for key, value in config.items() if key in own or key not in FIELDS}, own)


def fields_of(config: Config) -> dict[str, Field]:
    """The fields of the study that a config names.

    Raises:
        ConfigError: an unknown study.
    """
    name = config.get("analysis", ANALYSIS.default)
    if name not in STUDIES:
        raise ConfigError(f"config.analysis is {name!r}: it takes str, {ANALYSIS.meaning}")
    return {"analysis": ANALYSIS} | STUDIES[name].FIELDS


def table(facts: dict[str, Any]) -> str:
    """The study's results as text."""
    return STUDIES[SimpleNamespace(**facts["config"]).analysis].table(facts)
