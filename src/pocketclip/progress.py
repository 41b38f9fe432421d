"""One live line for long work: how much, how fast, how long yet; plain lines where there is no terminal."""

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class WorkProgress:
    """Counts work towards a known or unknown total.

    unit: what is counted ("rows", "MB"). start: what an earlier run had done, which says nothing about this one's rate.
    """

    def __init__(self, console: Console, what: str, unit: str, total: float | None, start: float = 0) -> None:
        self.console, self.what, self.unit, self.total = console, what, unit, total
        self.done, self._start, self._began, self._said = start, start, time.monotonic(), time.monotonic()
        self._line = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[state]}"),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._line.add_task(what, total=total, state="")
        self._line.update(self._task, completed=start)

    def __enter__(self) -> Self:
        self._line.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._line.stop()

    def advance(self, amount: float, note: str = "") -> None:
        """More is done; note: a few words on how it goes."""
        self.done += amount
        now = time.monotonic()
        rate = (self.done - self._start) / max(1e-9, now - self._began)
        of = "" if self.total is None else f" of {self.total:,.0f}"
        state = f"{self.done:,.0f}{of} {self.unit}  {rate:,.1f} {self.unit}/s  {note}".rstrip()
        self._line.update(self._task, completed=self.done, state=state)
        if not self.console.is_terminal and now - self._said > 10:
            self._said = now
            left = f"  {(self.total - self.done) / max(1e-9, rate):,.0f} s left" if self.total else ""
            self.console.print(f"{self.what}: {state}{left}", highlight=False)
