"""Runs that lie elsewhere: the weights of a checkpoint behind a URL, copied here to be read.

Any file system that fsspec knows will do, gs://, s3://, https:// or hf:// among them. Run directories that are written
to are local folders, see `records`.
"""

import pathlib
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from subspaces_jax import records
from subspaces_jax.errors import CheckpointError, RunDirectoryError, first_line


@contextmanager
def copied(url: str, folder: str, step: int | None, leave_out: Sequence[str]) -> Iterator[tuple[pathlib.Path, int]]:
    """Gives a local copy of a run, of its config and one checkpoint, for as long as the block lasts; and the step.

    Args:
        url: of the run directory.
        folder: within it, that has the checkpoints, each in a folder named after its step.
        step: None for the last.
        leave_out: items of the checkpoint that nobody will read.

    Raises:
        CheckpointError: no such checkpoint.
        RunDirectoryError: the place cannot be reached, or fsspec or its part for that protocol is not installed.
    """
    with tempfile.TemporaryDirectory() as here:
        local = pathlib.Path(here) / "run"
        with _telling(url):
            chosen = _fetch(url, folder, step, leave_out, local)
        yield local, chosen


def _fetch(url: str, folder: str, step: int | None, leave_out: Sequence[str], local: pathlib.Path) -> int:
    """Copies what `copied` gives to `local`, and returns the step."""
    import fsspec  # of the extra "remote"

    system, root = fsspec.core.url_to_fs(url)
    names = {_last(path) for path in system.ls(f"{root}/{folder}", detail=False)}
    there = sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))
    if not there or step not in (None, *there):
        raise CheckpointError(f"no checkpoint{'' if step is None else f' of step {step}'} in {url}: there are {there}")
    chosen = there[-1] if step is None else step
    (local / folder / str(chosen)).mkdir(parents=True)
    if system.exists(f"{root}/{records.CONFIG}"):
        system.get(f"{root}/{records.CONFIG}", str(local / records.CONFIG))
    for path in system.ls(f"{root}/{folder}/{chosen}", detail=False):
        if _last(path) not in leave_out:
            system.get(path, str(local / folder / str(chosen) / _last(path)), recursive=True)
    return chosen


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


@contextmanager
def _telling(url: str) -> Iterator[None]:
    """One line for what file systems raise, each its own way."""
    try:
        yield
    except (CheckpointError, RunDirectoryError):
        raise
    except ImportError as error:
        raise RunDirectoryError(
            f"{url} needs what is not installed ({first_line(error)}): pip install -e '.[remote]', and what fsspec "
            "takes for that protocol"
        ) from None
    except FileNotFoundError:
        raise CheckpointError(f"no checkpoints at {url}: name the run's own directory") from None
    except Exception as error:  # of clients of clouds: credentials, time-outs, protocols
        raise RunDirectoryError(f"{url} cannot be read ({type(error).__name__}: {first_line(error)})") from None
