"""Figures of a benchmark: what is taken for what, what damage costs, whether words take the model in."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pocketclip.data.images import Pixels, open_image
from pocketclip.show.curves import COLOURS
from pocketclip.show.plots import BLACK, BLUE, PALE, SKY, SMALL, VERMILION, WIDTH, Table, signed
from pocketclip.show.text import fitted

MARKS = ("o", "s", "^", "D", "v", "P")
READABLE = 16  # classes of which a matrix with values can be read


def confusion(classes: Sequence[str], counts: NDArray[np.int64]) -> Figure:
    """For each class (row) the share of its images that were taken for each class (column), percent.

    counts: [classes, classes], at most READABLE of them.
    """
    shares = 100 * counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    count, left, head, right = len(classes), 1.9, 1.1, 0.75  # the last name leans to the right
    cell = min(0.5, (WIDTH - left - right) / count)
    height = head + count * cell + 0.35
    figure = Figure((WIDTH, height))
    axes = figure.add_axes((left / WIDTH, 0.35 / height, count * cell / WIDTH, count * cell / height))
    axes.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(shares):
        if counts[row, column]:
            ink = BLACK if value > 50 else "white"
            weight = "bold" if row == column else "normal"
            axes.text(column, row, f"{value:.0f}", size=SMALL, ha="center", va="center", color=ink, weight=weight)
    names = [fitted(name, 24) for name in classes]
    axes.set_yticks(range(count), names)
    axes.set_xticks(
        range(count), [fitted(name, 16) for name in classes], rotation=45, ha="left", rotation_mode="anchor"
    )
    axes.tick_params(length=0, labeltop=True, labelbottom=False, top=True)
    axes.set_xlabel("taken for (column), % of each class's images (row)")
    return figure


def mistakes(table: Table) -> Figure:
    """The most frequent mistakes as bars. table: true, taken_for, images, share in percent."""
    figure = Figure((WIDTH, 0.9 + 0.3 * len(table)), layout="constrained")
    axes = figure.subplots()
    for number, line in enumerate(table):
        axes.barh(number, line["share"], height=0.8, color=SKY)
        note = f"{line['share']:.0f} % ({line['images']:,})"
        axes.annotate(note, (line["share"], number), (6, 0), textcoords="offset points", va="center", size=SMALL)
    _name_rows(axes, [f"{fitted(line['true'], 24)} → {fitted(line['taken_for'], 24)}" for line in table])
    axes.set_xlim(0, 1.7 * max(line["share"] for line in table))
    axes.set_xlabel("images of the first class that\nwere taken for the second (%)")
    return figure


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """A name beside each of the rows 0, 1, 2, ..., the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def damages(table: Table, chance: float) -> Figure:
    """Top-1 over the strength of each kind of damage, with its 95 % interval.

    table: kind, strength (0 for the images as they are), top_1, low, high. chance: percent.
    """
    kinds = list(dict.fromkeys(line["kind"] for line in table if line["strength"]))
    (whole,) = [line for line in table if not line["strength"]]
    figure = Figure((WIDTH, 4.2), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True, sharey=True).flat
    for number, (axes, kind) in enumerate(zip(grid, kinds, strict=False)):
        lines = [whole, *(line for line in table if line["kind"] == kind)]
        places = [line["strength"] for line in lines]
        axes.fill_between(places, [one["low"] for one in lines], [one["high"] for one in lines], color=PALE)
        axes.plot(places, [one["top_1"] for one in lines], color=COLOURS[number], marker=MARKS[number], markersize=4)
        axes.axhline(chance, color=BLACK, linestyle="--", linewidth=1)
        axes.set_title(kind)
    for axes in figure.axes:
        axes.set(xlim=(0, 5.2), ylim=(0, min(102, 1.1 * max(line["high"] for line in table)) or 1))
        axes.set_xticks(range(6))
    figure.supxlabel("strength of the damage (0: the images as they are)", size=10)
    figure.supylabel("top-1 (%), its 95 % interval; dashed: chance", size=10)
    return figure


def writings(table: Table, as_it_is: float, chances: tuple[float, float]) -> Figure:
    """What a word of a wrong class, and its letters scrambled, cost; and how often the word was believed.

    table: kind, detail, top_1, taken_in, a line for the word and one for its letters, way of writing by way of writing.
    as_it_is: top-1 of the images without any writing, percent. chances: of top_1 and of taken_in, percent.
    """
    details = list(dict.fromkeys(line["detail"] for line in table))
    kinds = list(dict.fromkeys(line["kind"] for line in table))
    figure = Figure((WIDTH, 1.3 + 0.55 * len(details)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = "top-1 (%)", "the written class came first (%)"
    for axes, column, label, chance in zip(panels, ("top_1", "taken_in"), labels, chances, strict=True):
        for number, kind in enumerate(kinds):
            values = [next(one[column] for one in table if (one["kind"], one["detail"]) == (kind, d)) for d in details]
            places = np.arange(len(details)) + (number - 0.5) * 0.4
            axes.barh(places, values, height=0.36, color=(VERMILION, SKY)[number], label=kind)
            for place, value in zip(places, values, strict=True):
                note = f"{value:.1f}"
                over = {"facecolor": "white", "linewidth": 0, "pad": 0.5}  # the dashed line
                axes.annotate(
                    note, (value, place), (4, 0), textcoords="offset points", va="center", size=SMALL, bbox=over
                )
        axes.set(xlabel=label, xlim=(0, 1.2 * max(1.0, as_it_is, *chances, *(one[column] for one in table))))
        axes.tick_params(axis="y", length=0)
        axes.axvline(chance, color=BLACK, linestyle=":", linewidth=1.2, label="chance")
    panels[0].axvline(as_it_is, color=BLACK, linestyle="--", linewidth=1.2, label="without writing", zorder=0)
    panels[0].set_yticks(range(len(details)), details)
    panels[0].set_ylim(len(details) - 0.5, -0.5)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False)
    return figure


def before_and_after(examples: Sequence[dict[str, Any]]) -> Figure:
    """Images with their nearest classes, before and after a word was written on them.

    examples: right, word, before and after with image (PNG in base64) and best, [class, cosine] each.
    """
    row = 1.6
    figure = Figure((WIDTH, row * len(examples) + 0.3))
    height = figure.get_figheight()
    values = [cosine for one in examples for when in ("before", "after") for _, cosine in one[when]["best"]]
    limits = min(0.0, *values), max(0.0, *values) or 1.0
    for number, one in enumerate(examples):
        top = height - number * row
        figure.text(
            0.1 / WIDTH,
            (top - 0.1) / height,
            f"{fitted(' / '.join(one['right']), 36)}, then with “{fitted(one['word'], 30)}”",
            weight="bold",
            va="top",
        )
        for side, when in enumerate(("before", "after")):
            left = 0.1 + side * WIDTH / 2
            picture = figure.add_axes((left / WIDTH, (top - 1.4) / height, 1.0 / WIDTH, 1.0 / height))
            picture.imshow(pixels_of(one[when]["image"]))
            picture.axis("off")
            bars = figure.add_axes(((left + 1.1) / WIDTH, (top - 1.4) / height, 1.9 / WIDTH, 1.0 / height))
            _classes(bars, one, one[when]["best"], limits)
    figure.text(0.5, 0.12 / height, "cosine; blue: the right class, red: the written one", ha="center", size=SMALL)
    return figure


def pixels_of(encoded: str) -> Pixels:
    """An image that an evaluation kept: a PNG in base64 -> uint8 [height, width, 3]."""
    return np.asarray(open_image(base64.b64decode(encoded)))


def _classes(axes: Axes, one: dict[str, Any], best: Sequence[tuple[str, float]], limits: tuple[float, float]) -> None:
    side = axes.get_yaxis_transform()
    for place, (name, cosine) in enumerate(best):
        colour = SKY if name in one["right"] else VERMILION if name == one["word"] else PALE
        axes.barh(place, cosine, height=0.86, color=colour)
        axes.text(0.02, place, fitted(name, 24), transform=side, va="center", size=SMALL, clip_on=True)
        axes.text(1.01, place, signed(cosine), transform=side, va="center", size=SMALL)
    axes.set(xlim=limits, ylim=(len(best) - 0.5, -0.5))
    axes.axis("off")


def associations(table: Table) -> Figure:
    """Effect sizes of attributes between two groups; filled where p is below 0.05.

    table: attribute, first, second, effect_size, p_value, the strongest first. Where not all lines are of the same two
    groups each says its own.
    """
    pairs = {(line["first"], line["second"]) for line in table}
    if len(pairs) == 1:
        ((first, second),) = pairs
        names = [fitted(line["attribute"], 30) for line in table]
        sides = f"above 0: nearer to {fitted(first, 18)}, below 0: to {fitted(second, 18)}"
    else:
        names = [
            f"{fitted(line['attribute'], 24)}\n{fitted(line['first'], 14)} / {fitted(line['second'], 14)}"
            for line in table
        ]
        sides = "above 0: nearer to the first group, below 0: to the second"
    figure = Figure((WIDTH, 1.0 + (0.27 if len(pairs) == 1 else 0.4) * len(table)), layout="constrained")
    axes = figure.subplots()
    for number, line in enumerate(table):
        sure = line["p_value"] < 0.05
        axes.plot([0, line["effect_size"]], [number, number], color=PALE, linewidth=2, zorder=1)
        face = BLUE if sure else "white"
        axes.plot(line["effect_size"], number, "o", color=BLUE, markerfacecolor=face, zorder=2)
    reach = 1.15 * max(0.2, *(abs(line["effect_size"]) for line in table))
    axes.axvline(0, color=BLACK, linewidth=1)
    axes.set_xlim(-reach, reach)
    _name_rows(axes, names)
    axes.set_xlabel(f"effect size (standard deviations)\n{sides}\nfilled: p < 0.05")
    return figure


def searches(table: Table) -> Figure:
    """How much the first results of a search favour one group. table: attribute, k, max_skew, favoured."""
    figure = Figure((WIDTH, 0.9 + 0.27 * len(table)), layout="constrained")
    axes = figure.subplots()
    for number, line in enumerate(table):
        axes.barh(number, line["max_skew"], height=0.8, color=SKY)
        favoured = fitted(line["favoured"], 20) if line["max_skew"] >= 0.005 else "nobody"
        note = f"{line['max_skew']:.2f} {favoured}"
        axes.annotate(note, (line["max_skew"], number), (6, 0), textcoords="offset points", va="center", size=SMALL)
    _name_rows(axes, [fitted(line["attribute"], 30) for line in table])
    axes.set_xlim(0, 1.6 * max(0.1, *(line["max_skew"] for line in table)))
    axes.set_xlabel(f"MaxSkew of a search's first {table[0]['k']} results (nats)\nand the group that they favour")
    return figure


def group_accuracies(table: Table) -> Figure:
    """Top-1 of each group with its 95 % interval. table: by, group, images, top_1, low, high, chance, in percent."""
    figure = Figure((WIDTH, 0.9 + 0.34 * len(table)), layout="constrained")
    axes = figure.subplots()
    for number, line in enumerate(table):
        spread = [[line["top_1"] - line["low"]], [line["high"] - line["top_1"]]]
        axes.errorbar(line["top_1"], number, xerr=spread, fmt="o", color=BLUE, ecolor=SKY, capsize=3)
    _name_rows(axes, [f"{fitted(line['by'] + ': ' + line['group'], 28)} ({line['images']:,})" for line in table])
    axes.axvline(table[0]["chance"], color=BLACK, linestyle="--", linewidth=1)
    axes.set_xlim(0, 103)
    axes.set_xlabel("top-1 (%) with its 95 % interval, by group\n(images in it); dashed: chance")
    axes.grid(axis="x", color="#EEEEEE")
    return figure
