"""Figures of what changes while runs train: over pairs seen on the left, over training time on the right."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from pocketclip.show.plots import BLACK, BLUE, ORANGE, SKY, VERMILION, WIDTH, Table
from pocketclip.show.text import fitted

GREEN, PURPLE = "#009E73", "#CC79A7"  # Okabe and Ito's too
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
DASHES = ("-", "--", ":")  # where there are more lines than colours
LABELS, LETTERS = 3, 30  # in a row of a legend, of each


def losses(table: Table) -> Figure:
    """The loss of each run, smoothed, with what was logged pale behind it.

    table: run, pairs, seconds, loss, smoothed_loss.
    """
    runs = list(dict.fromkeys(line["run"] for line in table))
    figure = Figure((WIDTH, 3.6 + _legend_height(runs)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for number, run in enumerate(runs):
        lines = [line for line in table if line["run"] == run]
        look = _look(number)
        for axes, places in zip(panels, _places(lines, table), strict=True):
            axes.plot(places, [line["loss"] for line in lines], **look | {"linewidth": 0.7}, alpha=0.35)
            axes.plot(places, [line["smoothed_loss"] for line in lines], **look, label=run)
    _finish(panels, table)
    panels[0].set(ylabel="contrastive loss (nats)", ylim=(0, 1.05 * max(line["loss"] for line in table)))
    _legend(figure, runs)
    return figure


def accuracies(table: Table, lines_by: str, names: Sequence[str]) -> Figure:
    """Zero-shot top-1 during training, with marks where it was evaluated.

    table: run, split, pairs, seconds, top_1 in percent.
    lines_by: `run` draws a line a run, in a row of panels for each split; `split` a line a split, all in one row.
    names: of the runs or splits, each with a colour of its own, whether it has lines or not.
    """
    rows = list(dict.fromkeys(line["split"] for line in table)) if lines_by == "run" else [""]
    figure = Figure((WIDTH, 0.6 + 2.2 * len(rows) + _legend_height(names)), layout="constrained")
    grid = figure.subplots(len(rows), 2, sharex="col", sharey="row", squeeze=False)
    for row, panels in zip(rows, grid, strict=True):
        shown = [line for line in table if row in ("", line["split"])]
        for number, name in enumerate(names):
            lines = [line for line in shown if line[lines_by] == name]
            for axes, places in zip(panels, _places(lines, table), strict=True):
                if lines:
                    values = [line["top_1"] for line in lines]
                    axes.plot(places, values, **_look(number), marker=".")
        _finish(panels, table)
        panels[0].set_ylabel(f"{fitted(row, 16)}: top-1 (%)" if row else "top-1 (%)")
        panels[0].set_ylim(0, min(102, 1.15 * max(line["top_1"] for line in shown)) or 1)
    for axes in grid[:-1].flat:
        axes.set_xlabel("")
    drawn = {line[lines_by] for line in table}
    _legend(figure, names, [name in drawn for name in names])
    return figure


def _look(number: int) -> dict[str, Any]:
    dashes = DASHES[number // len(COLOURS) % len(DASHES)]
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": dashes, "linewidth": 2}


def _places(lines: Table, table: Table) -> tuple[list[float], list[float]]:
    """Where lines lie over pairs and over time."""
    seconds, _ = _unit(table)
    return [line["pairs"] for line in lines], [line["seconds"] / seconds for line in lines]


def _unit(table: Table) -> tuple[float, str]:
    """Seconds of a unit of time in which the whole table reads well, and its name."""
    longest = max(line["seconds"] for line in table)
    return (1, "seconds") if longest < 120 else (60, "minutes") if longest < 7200 else (3600, "hours")


def _finish(panels: Sequence[Axes], table: Table) -> None:
    seconds, unit = _unit(table)
    over_pairs, over_time = panels
    over_pairs.set(xlabel="image-caption pairs seen", xlim=(0, 1.02 * max(line["pairs"] for line in table)))
    over_pairs.xaxis.set_major_formatter(EngFormatter(sep=""))
    over_time.set(xlabel=f"training time ({unit})", xlim=(0, 1.02 * max(line["seconds"] for line in table) / seconds))
    for axes in panels:
        axes.grid(axis="y", color="#EEEEEE")
        axes.set_axisbelow(True)


def _legend_height(names: Sequence[str]) -> float:
    return 0.2 * -(-len(names) // LABELS)


def _legend(figure: Figure, names: Sequence[str], drawn: Sequence[bool] = ()) -> None:
    """One legend for the lines of all panels. drawn: which of the names have some; all where nothing is said."""
    shown = [number for number in range(len(names)) if not drawn or drawn[number]]
    handles = [Line2D([], [], **_look(number)) for number in shown]
    labels = short_labels([names[number] for number in shown], LETTERS)
    figure.legend(handles, labels, loc="outside upper center", ncols=min(LABELS, len(shown)), frameon=False)


def short_labels(names: Sequence[str], letters: int) -> list[str]:
    """Names cut to so many letters at the end; where two would be one, at the beginning, which paths have in common."""
    found = [fitted(name, letters) for name in names]
    if len(set(found)) < len(set(names)):
        found = [fitted(name if len(name) <= letters else f"…{name[-letters * 4 // 5 :]}", letters) for name in names]
    return [f" {label}" if label.startswith("_") else label for label in found]  # which matplotlib passes over
