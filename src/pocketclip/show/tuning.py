"""What fine-tuning has changed, for the report: a table and a figure of each split before and after."""

from collections.abc import Sequence
from functools import partial
from html import escape

import numpy as np
from matplotlib.figure import Figure

from pocketclip.evaluate.changes import Change, what_it_has_forgotten
from pocketclip.show.plots import BLACK, BLUE, ORANGE, SMALL, VERMILION, WIDTH, Table, percent
from pocketclip.show.text import fitted

ARROW = 3.0  # points; there is no room for one between marks that are nearer


def changes_table(changes: Sequence[Change]) -> Table:
    """The numbers of the figure, a line a split; percent and points."""
    return [
        {
            "split": one.split,
            "images": one.images,
            "before": one.before,
            "after": one.after,
            "difference": one.difference,
            "standard_error": one.standard_error,
            "gained": one.gained,
            "lost": one.lost,
            "p_value": one.p_value,
            "forgotten": one.forgotten,
            "chance": one.chance,
        }
        for one in changes
    ]


def draw_changes(table: Table) -> Figure:
    """Each split's top-1 before (ring) and after (disc), an arrow between them, and a mark where guessing would end.

    table: as `changes_table` gives it.
    """
    figure = Figure((WIDTH, 1.3 + 0.5 * len(table)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(table))
    column = {name: [line[name] for line in table] for name in table[0]}
    axes.vlines(column["chance"], places - 0.16, places + 0.16, color=BLACK, linewidth=2, label="chance")
    for place, line in zip(places, table, strict=True):
        worst, colour = ("forgotten: ", VERMILION) if line["forgotten"] else ("", BLUE)
        if abs(line["difference"]) > ARROW:
            arrow = {"arrowstyle": "->", "color": colour, "linewidth": 2, "shrinkA": 7, "shrinkB": 4}
            axes.annotate("", (line["after"], place), (line["before"], place), arrowprops=arrow)
        note = f"({worst}{line['difference']:+.1f} ± {2 * line['standard_error']:.1f} points)"
        note = f"{percent(line['before'])} → {percent(line['after'])}  {note}".replace("-", "\N{MINUS SIGN}")
        axes.annotate(note, (0, place - 0.33), (4, 0), textcoords="offset points", va="center", size=SMALL)
    mark = partial(axes.plot, linestyle="", marker="o", zorder=3, clip_on=False)
    mark(column["before"], places, label="before", markersize=11, color=ORANGE, fillstyle="none", markeredgewidth=2)
    mark(column["after"], places, label="after", markersize=6, color=BLUE)
    names = [f"{fitted(line['split'], 22)} ({line['images']:,})" for line in table]
    axes.set_yticks(places, names)
    axes.set(xlim=(0, 102), ylim=(len(table) - 0.6, -0.6), xlabel="images whose right caption came first (%)")
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def changes_section(changes: Sequence[Change]) -> str:
    """The same as a table of the page, with a plain sentence where something was forgotten; HTML, or nothing."""
    if not changes:
        return ""
    heads = ("Split", "Images", "Top-1 before", "Top-1 after", "Difference, points", "Gained", "Lost", "p")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    lines = [
        f"<tr><td>{escape(one.split)}</td><td>{one.images:,}</td><td>{percent(one.before)}</td>"
        f"<td>{percent(one.after)}</td>"
        f"<td>{one.difference:+.1f}<br><small>standard error {one.standard_error:.1f}</small></td>"
        f"<td>{one.gained:,}</td><td>{one.lost:,}</td><td>{one.p_value:.2g}</td></tr>"
        for one in changes
    ]
    forgotten = what_it_has_forgotten(changes)
    warning = f"<p><strong>Warning: {escape(forgotten)}</strong></p>" if forgotten else ""
    return f"""<h2>Before and after fine-tuning</h2>
{warning}
<div class="wide"><table><thead><tr>{head}</tr></thead>
<tbody>{"".join(lines)}</tbody></table></div>
<p>Gained and lost are images that only one of both has right; p is how often luck alone would move as many more of
them one way (McNemar's exact test).</p>"""
