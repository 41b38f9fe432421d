"""What a run tells: metrics.jsonl for programs, one live line for people."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pocketclip.errors import TrainingError
from pocketclip.train.tensorboard import TensorBoard


class MetricsLog:
    """metrics.jsonl: one JSON object a line, appended; cut back to a checkpoint's length when a run goes on.

    path: None for a rank that keeps no log. board: gets the same lines.
    """

    def __init__(self, path: Path | None, length: int, board: TensorBoard | None = None) -> None:
        self._board = board
        if path is None:
            self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
            return
        try:
            self._file = path.open("ab")
            self._file.truncate(min(length, path.stat().st_size))  # a longer one would be filled up with zeros
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise TrainingError(f"{path}: cannot be written: {error.strerror}; choose another run folder") from None

    def write(self, values: dict[str, Any]) -> None:
        """Append one line, to be read by others at once."""
        self._file.write(json.dumps(values).encode() + b"\n")
        self._file.flush()
        if self._board:
            self._board.write(values)

    def sync(self) -> int:
        """Put all lines on the disk; returns the file's length in bytes."""
        os.fsync(self._file.fileno())
        if self._board:
            self._board.flush()
        return self._file.tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class ProgressLine:
    """A live line with loss, rate, time left and memory; plain lines now and then where there is no terminal."""

    def __init__(self, console: Console, steps: int, start: int) -> None:
        self.console, self.steps, self._said = console, steps, start * 10 // steps
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.3f}  {task.fields[rate]:,.0f} pairs/s  {task.fields[memory]:,.0f} MB"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=steps, completed=start, loss=0.0, rate=0.0, memory=0.0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, step: int, loss: float, rate: float, memory: float, seconds_left: float) -> None:
        """Show the state after `step` steps; rate in pairs/s, memory in MB."""
        self._progress.update(self._task, completed=step, loss=loss, rate=rate, memory=memory)
        if not self.console.is_terminal and step * 10 // self.steps > self._said:
            self._said = step * 10 // self.steps
            self.console.print(
                f"step {step}/{self.steps}  loss {loss:.3f}  {rate:,.0f} pairs/s  {memory:,.0f} MB  "
                f"{seconds_left:.0f} s left",
                highlight=False,
            )
