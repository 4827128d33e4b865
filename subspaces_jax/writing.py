"""Files that are written whole or not at all, and are on the disk then."""

import errno
import os
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all; it is on the disk when this returns."""
    write_bytes(path, text.encode())


def write_bytes(path: pathlib.Path, content: bytes | memoryview) -> None:
    """Likewise, of bytes."""
    with replacing(path) as file:
        file.write(content)


@contextmanager
def replacing(path: pathlib.Path, temporary: pathlib.Path | None = None) -> Iterator[IO[bytes]]:
    """Gives a temporary file beside `path`, opened, and has it take its place: power may fail at any point."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}") if temporary is None else temporary
    try:
        with naming(path), open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: pathlib.Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that do not know it need no more
            raise
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Gives an OSError of writing, of a full disk for one, the name of the file."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
