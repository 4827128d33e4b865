"""Where commands keep what XLA has compiled, so that the next one need not compile it again."""

import contextlib
import os
import pathlib
import platform
import warnings
import zlib

import jax

MOST_BYTES = 2 * 2**30  # of a folder; a command adds some megabytes


def keep_compiled() -> None:
    """What XLA compiles is kept in ~/.cache/subspaces_jax for later commands on such a processor, unless JAX's own
    variable says otherwise: JAX_COMPILATION_CACHE_DIR names another folder, or as "" none."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "subspaces_jax"
        folder /= processor()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return
    if not os.access(folder, os.W_OK):
        return
    make_room(folder)
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")  # it is compiled, then
    jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # dozens of small ones take seconds, too


def make_room(folder: pathlib.Path) -> None:
    """Deletes the programs that were not used for longest, where all of them are more than MOST_BYTES: one that another
    command reads at the moment is compiled again."""
    with contextlib.suppress(OSError):
        found = [(path.stat(), path) for path in folder.iterdir() if path.is_file()]
        excess = sum(stat.st_size for stat, _ in found) - MOST_BYTES
        for stat, path in sorted(found, key=lambda item: max(item[0].st_atime, item[0].st_mtime)):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= stat.st_size


def processor() -> str:
    """What this processor can do, as a name: programs compiled for another may end with an illegal instruction here,
    and hosts of a cluster share a home."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    features = [line for line in lines if line.startswith(("flags", "Features"))][:1] or lines[:1]
    return f"{platform.machine()}-{zlib.crc32(''.join(features).encode()):08x}"
