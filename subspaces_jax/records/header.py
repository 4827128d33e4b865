"""config.json: what a run directory is, and the config that it is of."""

import json
import os
import pathlib
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from subspaces_jax.errors import RunDirectoryError
from subspaces_jax.records.files import DamagedError, NotWhatWasWritten, read_json, resolve
from subspaces_jax.records.names import CONFIG, METRICS
from subspaces_jax.writing import write_text

FORMAT = 2
KINDS = ("train", "connect", "study", "sweep")


class Header(NamedTuple):
    """What config.json says of the folder it lies in.

    Attributes:
        kind: one of KINDS.
        format: of the file; 1, the config alone, is what the package wrote before headers.
        run_id: 16 hex digits made when the folder was first written, "" in format 1.
        variant: the label of the run within its sweep, or "".
        facts: what the config comes to: steps_per_epoch, num_steps, kept_steps, ...
        config: the flat config.
    """

    kind: str
    format: int
    run_id: str
    variant: str
    facts: dict[str, Any]
    config: dict[str, Any]


def write_header(
    folder: pathlib.Path,
    kind: str,
    config: dict[str, Any],
    facts: dict[str, Any] | None = None,
    variant: str = "",
    complete: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config,
    may_differ: Sequence[str] = (),
) -> Header:
    """Writes config.json, or checks that the one that is there is of the same kind and config.

    Args:
        folder: the run directory.
        kind: one of KINDS.
        config: the flat config, of JSON's types. A field "variant" in it is a label, and never a difference, nor is
            "override".
        facts: see Header.
        variant: likewise.
        complete: fills what a stored config lacks with defaults and reads its renamed fields, before it is compared.
        may_differ: fields that replace those that are there. The header keeps what was changed as "overrides" among its
            facts, one {field: [before, now]} a time.

    Returns:
        The header that is on the disk, which may be of an earlier call and of format 1.

    Raises:
        RunDirectoryError: the folder holds another kind or config; names the fields that differ.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: one of {', '.join(KINDS)}")
    path = folder / CONFIG
    if not path.exists():
        if (folder / METRICS).exists() or (folder / "checkpoints").exists():
            raise RunDirectoryError(f"workdir {folder} holds a run without its {CONFIG}: name another workdir")
        run_id = secrets.token_hex(8)
        header = {"format": FORMAT, "kind": kind, "run_id": run_id, "variant": variant, "facts": facts or {}}
        write_text(path, json.dumps(header | {"config": config}, indent=2, sort_keys=True) + "\n")
        return read_header(folder)
    found = read_header(folder)
    if found.kind != kind:
        raise RunDirectoryError(
            f"workdir {folder} holds a run of kind {found.kind!r}, not {kind!r}: name another workdir"
        )
    there, here = complete(found.config), json.loads(json.dumps(config))
    names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
    names = [name for name in names if name not in ("variant", "override")]
    if fixed := [name for name in names if name not in may_differ or found.format < FORMAT]:
        differences = ", ".join(f"{name} = {there.get(name)!r} there, {here.get(name)!r} here" for name in fixed[:4])
        raise RunDirectoryError(f"workdir {folder} holds a run of another config ({differences}): name another workdir")
    if names:
        changed = {name: [there.get(name), here.get(name)] for name in names}
        facts = (facts or {}) | {"overrides": [*found.facts.get("overrides", []), changed]}
        header = found._replace(config=config, facts=facts)._asdict()
        write_text(path, json.dumps(header, indent=2, sort_keys=True) + "\n")
        return read_header(folder)
    return found


def read_header(workdir: str | os.PathLike) -> Header:
    """What the run directory is, with its config. Both formats are read.

    Raises:
        RunDirectoryError: config.json is missing or of a newer version of the package.
        DamagedError: it is there and cannot be read.
    """
    path = resolve(workdir) / CONFIG
    try:
        found = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise RunDirectoryError(
            f"{path.parent} is no run directory ({CONFIG} is missing): name a trained one"
        ) from None
    except NotWhatWasWritten as error:
        raise DamagedError(f"{path} is damaged ({error}): restore it from the checkpoint's config") from None
    if "format" not in found:
        kind = "sweep" if {"fields", "config"} <= found.keys() else "study" if "analysis" in found else "train"
        return Header(kind, 1, "", str(found.get("variant", "")), {}, found)
    if isinstance(found["format"], int) and found["format"] > FORMAT:
        raise RunDirectoryError(
            f"{path} was written by a newer version of the package (format {found['format']}, this one knows "
            f"{FORMAT}): install that"
        )
    types = {"format": int, "kind": str, "run_id": str, "variant": str, "facts": dict, "config": dict}
    bad = [name for name, kind in types.items() if not isinstance(found.get(name), kind)]
    if bad or found["kind"] not in KINDS or not re.fullmatch("[0-9a-f]{16}", found["run_id"]):
        what = f"{bad[0]!r} is missing or ill-typed" if bad else f"kind {found['kind']!r}, run_id {found['run_id']!r}"
        raise DamagedError(f"{path} is damaged ({what}): restore it from the checkpoint's config")
    return Header(**{name: found[name] for name in types})


def read_config(workdir: str | os.PathLike) -> dict[str, Any]:
    """The config of a run, see `read_header`."""
    return read_header(workdir).config
