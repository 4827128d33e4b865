"""Files that a user names, read within bounds: regular ones, and no more of one than a file of its kind may hold."""

import os
import pathlib
import stat
from typing import IO

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def check_regular(path: str | os.PathLike) -> None:
    """Refuses what is no regular file, before it is opened: a named pipe would make its reader wait for ever.

    Raises:
        OSError: it is none, or not there.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'of a special kind')}, not a regular file")


def read(path: pathlib.Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes. OSError where it is another one or cannot be read."""
    check_regular(path)
    with open(path, "rb") as file:
        return read_all(file, limit)


def free_memory() -> int | None:
    """Bytes that the machine could still give, None where it does not say."""
    try:
        rows = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, LookupError, ValueError):
        return None


def read_all(file: IO[bytes], limit: int) -> bytes:
    """What is left of an open file, at most `limit` bytes. OSError where there is more."""
    content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"it holds more than {limit:,} bytes, which no such file does")
    return content
