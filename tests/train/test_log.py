import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from pocketclip.errors import TrainingError
from pocketclip.train.log import MetricsLog, ProgressLine


def test_lines_are_readable_at_once_and_cut_back_on_resume(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path, 0) as log:
        log.write({"step": 10})
        kept = log.sync()
        log.write({"step": 20})
        assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [10, 20]
    with MetricsLog(path, kept) as log:  # what came after the checkpoint is trained, and logged, again
        log.write({"step": 20, "again": True})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"step": 10}, {"step": 20, "again": True}]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"metrics\.jsonl: cannot be written"):
        MetricsLog(tmp_path / "nowhere" / "metrics.jsonl", 0)


def test_the_live_line_has_loss_rate_memory_and_time_left() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160, color_system=None)
    with ProgressLine(console, steps=100, start=0) as line:
        line.update(40, 2.5, 1234.0, 600.0, 90.0)
    shown = screen.getvalue()
    for part in ("40/100", "loss 2.500", "1,234 pairs/s", "600 MB", "left"):
        assert part in shown, part


def test_without_a_terminal_a_tenth_of_the_run_is_a_line() -> None:
    screen = io.StringIO()
    with ProgressLine(Console(file=screen, width=160), steps=100, start=0) as line:
        for step in range(1, 101):
            line.update(step, 2.5, 1234.0, 600.0, 100.0 - step)
    lines = screen.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[4].startswith("step 50/100  loss 2.500  1,234 pairs/s  600 MB  50 s left")
