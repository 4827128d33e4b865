"""How far a long job is, how fast it goes and how long it will take."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

SECONDS_BETWEEN_LINES = 5.0


class Progress:
    """A progress line with rate and time left: a bar on a terminal, a line every few seconds elsewhere."""

    def __init__(self, total: int, done: int = 0, unit: str = "step", label: str = ""):
        self._start, self._done, self._total, self._unit, self._label = done, done, total, unit, label
        self._clock = self._last = time.perf_counter()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=unit, desc=label, dynamic_ncols=True)

    def update(self, done: int, text: str = "") -> None:
        """`done` of the total are done; `text` says what else is worth knowing."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(done - self._done)
        self._done, now = done, time.perf_counter()
        if self._bar is None and (now - self._last >= SECONDS_BETWEEN_LINES or done == self._total):
            self._last = now
            rate = (done - self._start) / max(now - self._clock, 1e-9)
            left = (self._total - done) / max(rate, 1e-9)
            text = f"  {text}" if text else ""
            print(
                f"{self._label} {self._unit} {done}/{self._total}{text}  {_duration(left)} left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        """Ends the line."""
        if self._bar is not None:
            self._bar.close()

    def over(self, items: Sequence[Any]) -> Iterator[Any]:
        """Yields `items`, counting each as done once the next is asked for."""
        for i, item in enumerate(items, start=1):
            yield item
            self.update(i)
        self.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
