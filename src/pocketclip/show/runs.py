"""The runs of a folder, a line each: how far it is and what came of it; no torch."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from pocketclip.errors import DataError, PocketCLIPError
from pocketclip.evaluate.results import read_lines, read_results
from pocketclip.recipe.toml import load_resolved
from pocketclip.show.run import count_parameters, json_object, read_evaluations

SIGNS = ("recipe.toml", "metrics.jsonl", "checkpoint", "bundle")  # of a run's folder one has at least one
COLUMNS = ("run", "state", "steps", "pairs", "loss", "pairs/s", "time", "top-1", "parameters")
STYLES = {"finished": "green", "running": "cyan", "stopped": "yellow", "damaged": "red"}


@dataclass(frozen=True)
class RunState:
    """What a run's files say of it.

    steps: of the whole run. loss: the last that was logged, nats. seconds: of training. top_1: split -> percent, of the
    bundle where it was evaluated, else the best so far. problem: what is wrong with a damaged one.
    """

    name: str
    state: Literal["finished", "running", "stopped", "damaged"]
    step: int | None = None
    steps: int | None = None
    pairs: int | None = None
    loss: float | None = None
    seconds: float | None = None
    top_1: dict[str, float] = field(default_factory=dict)
    parameters: int | None = None
    problem: str = ""


def list_runs(folder: Path) -> list[RunState]:
    """The runs in a folder, the one that was last at work last; a damaged one is among them and says what is wrong.

    Raises DataError where the folder is missing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; `pocketclip train` makes it, --runs names another")
    found = [one for one in folder.iterdir() if not one.name.startswith(".") and _signs(one)]
    return [_state(run) for run in sorted(found, key=lambda run: (_last_at_work(run), run.name))]


def to_json(run: RunState) -> str:
    """One run on one line."""
    return json.dumps(asdict(run), ensure_ascii=False)


def runs_table(runs: Sequence[RunState]) -> Table:
    """The runs as a table for people; nothing is cut, on a narrow terminal its lines are wrapped."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("run", "state", "top-1") else "right", no_wrap=True)
    for run in runs:
        table.add_row(*_cells(run))
    wide = Console(width=10_000)
    table.width = Measurement.get(wide, wide.options, table).maximum
    return table


def _signs(folder: Path) -> list[Path]:
    return [folder / name for name in SIGNS if (folder / name).exists()]


def _last_at_work(run: Path) -> float:
    return max(sign.stat().st_mtime for sign in _signs(run))


def _state(run: Path) -> RunState:
    try:
        return _read(run)
    except PocketCLIPError as error:
        return RunState(run.name, "damaged", problem=str(error))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return RunState(run.name, "damaged", problem=f"{run}: {type(error).__name__}: {error}")


def _read(run: Path) -> RunState:
    recipe = load_resolved(run / "recipe.toml")
    metrics = read_lines(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    last = metrics[-1] if metrics else {}
    step, steps = 0, None
    if metrics:
        step, steps = int(last["step"]), recipe.train.steps_of_run(round(last["step"] / last["epoch"]))
    finished = (run / "bundle").exists()
    if finished:
        last = json_object(run / "bundle" / "bundle.json", "delete the run's bundle and train on")["training"]
        step = int(last["steps"])
    return RunState(
        name=run.name,
        state="finished" if finished else "running" if _in_use(run / "training.lock") else "stopped",
        step=step,
        steps=steps or (step if finished else None),
        pairs=int(last.get("pairs", 0)),
        loss=float(last["loss"]) if "loss" in last else None,
        seconds=float(last.get("seconds", 0)),
        top_1=_top_1(run),
        parameters=count_parameters(run / "bundle" / "model.safetensors"),
    )


def _top_1(run: Path) -> dict[str, float]:
    if (run / "evaluation" / "results.json").exists():
        results = read_results(run / "evaluation" / "results.json")
        return {result.benchmark: float(result.top_1) for result in results}
    best: dict[str, float] = {}
    for line in read_evaluations(run):
        best[line["split"]] = max(float(line["top_1"]), best.get(line["split"], 0.0))
    return best


def _in_use(lock: Path) -> bool:
    """Whether a process trains in the folder: the system lets go of its lock when it ends."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # somebody else's folder, that cannot be written to
        return False


def _cells(run: RunState) -> Iterator[str]:
    yield escape(run.name)
    yield f"[{STYLES[run.state]}]{run.state}[/]"
    if run.problem:
        return
    yield f"{run.step:,}/{run.steps:,}" if run.steps else f"{run.step:,}"
    yield f"{run.pairs:,}"
    yield "" if run.loss is None else f"{run.loss:.3f}"
    yield f"{run.pairs / run.seconds:,.0f}" if run.pairs and run.seconds else ""
    yield _clock(run.seconds or 0)
    yield escape(", ".join(f"{split} {value:.1f} %" for split, value in run.top_1.items()))
    yield "" if run.parameters is None else f"{run.parameters / 1e6:.2f} M"


def _clock(seconds: float) -> str:
    """Hours, minutes, seconds: 1:02:03."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
