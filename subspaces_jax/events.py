"""Scalars as TensorBoard events. tensorboardX takes half a second to import, and only training writes rows."""

import pathlib
import time
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


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
