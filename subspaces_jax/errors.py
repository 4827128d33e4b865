"""Errors a user can cause and mend: each message is one line that names the culprit and what to do.

The launch scripts print these without a traceback and exit with status 2. Everything else that is raised is a bug of
ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


class SubspacesError(Exception):
    """Base of all errors that the user can mend."""


class ConfigError(SubspacesError, ValueError):
    """A config field is unknown, ill-typed, out of range or at odds with another."""


class DataError(SubspacesError, ValueError):
    """A data set is unknown, not prepared, damaged or of the wrong form."""


class CheckpointError(SubspacesError, ValueError):
    """A checkpoint is missing, damaged or of another architecture."""


class RunDirectoryError(SubspacesError, OSError):
    """The run directory is missing, holds another run or is in use by a live one."""


class NonFiniteLossError(SubspacesError, FloatingPointError):
    """The training loss became NaN or infinite."""


class NonFiniteOutputError(SubspacesError, FloatingPointError):
    """The outputs of a network that is evaluated are NaN or infinite."""


def first_line(error: BaseException) -> str:
    """What went wrong, short enough for a message: the first line of what another library says, or the error's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]


def did_you_mean(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """For a message: what the name may have meant, or `otherwise`, without it all that there is."""
    known = list(known)
    if near := difflib.get_close_matches(name, known, n=3, cutoff=0.5):
        return f"did you mean {' or '.join(near)}?"
    return f"there are {', '.join(known)}" if otherwise is None else otherwise
