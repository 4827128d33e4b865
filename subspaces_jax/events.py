"""Scalars as TensorBoard events. tensorboardX takes half a second to import, and few need it."""

import pathlib
import struct
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from subspaces_jax.errors import RunDirectoryError

_LENGTH, _CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")


class Events:
    """One file of events. Writes at once: a full disk ends the thread of a SummaryWriter, whose queue then waits for
    ever.

    Args:
        folder: made if need be.
        resume_from: the step that the run goes on from; TensorBoard hides later ones of earlier files.
    """

    def __init__(self, folder: pathlib.Path, resume_from: int = 0):
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), f".{resume_from}")
        self._add(step=resume_from + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, row: dict[str, float]) -> None:
        """The numbers of one step; on the disk when this returns."""
        for name, value in row.items():
            self._add(step=step, summary=scalar(name, value))
        self._writer.flush()

    def close(self) -> None:
        """Ends the file."""
        self._writer.close()

    def _add(self, **content: Any) -> None:
        self._writer.write_event(Event(wall_time=time.time(), **content))


def read_scalars(path: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """{name: [(step, value), ...]} of one file of events, of ours or of another writer, in the order of the file.

    A last event that a kill cut short is left out.

    Raises:
        RunDirectoryError: the file cannot be read or is no file of events.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for event in _events(path):
        for value in event.summary.value:
            if (number := _number(value)) is not None:
                found.setdefault(value.tag, []).append((event.step, number))
    return found


def _events(path: pathlib.Path) -> Iterator[Event]:
    """TFRecords: a length and its checksum, so many bytes and theirs."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunDirectoryError(f"{path} cannot be read: {error.strerror}") from None
    place, before = 0, _LENGTH.size + _CHECKSUM.size
    while place + before <= len(content):
        header = content[place : place + _LENGTH.size]
        (length,), (checksum,) = _LENGTH.unpack(header), _CHECKSUM.unpack_from(content, place + _LENGTH.size)
        end = place + before + length
        if checksum != masked_crc32c(header):
            raise RunDirectoryError(f"{path} is no file of TensorBoard events, or is damaged at byte {place}")
        if end + _CHECKSUM.size > len(content):
            return
        try:
            yield Event.FromString(content[place + before : end])
        except DecodeError:
            raise RunDirectoryError(f"{path} is damaged: there is no event at byte {place}") from None
        place = end + _CHECKSUM.size


def _number(value: Any) -> float | None:
    """What a summary holds if it is one number: a scalar, or, as TensorFlow 2 writes it, a tensor of one."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    tensor = value.tensor
    if not value.HasField("tensor") or any(axis.size != 1 for axis in tensor.tensor_shape.dim):
        return None
    numbers = [*tensor.float_val, *tensor.double_val]
    if not numbers and tensor.dtype in _TYPES:
        numbers = np.frombuffer(tensor.tensor_content, _TYPES[tensor.dtype]).tolist()
    return float(numbers[0]) if len(numbers) == 1 else None


_TYPES = {1: "<f4", 2: "<f8"}  # of TensorFlow's numbers of dtypes
