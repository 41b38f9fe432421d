"""The figures of a report, each drawn from the table that is kept beside it.

Seven inches wide, so that a page shows them at their own size, and no letter smaller than 9 points. Colours are
Okabe and Ito's, which colour-blind readers tell apart; cividis for matrices.
"""

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from pocketclip.data.images import Pixels
from pocketclip.show.text import fitted, installed_families

Table = list[dict[str, Any]]

BLUE, SKY, ORANGE, VERMILION, BLACK, PALE = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#000000", "#DDDDDD"
WIDTH = 7.0  # inches; 672 CSS pixels
DOTS_PER_INCH = 192  # two dots a CSS pixel
SMALL = 9.0  # points
SMALLEST_CELL, LARGEST_CELL, LARGEST_ROW = 0.44, 1.2, 0.47  # inches; a value needs the first, two lines the last
RIGHT = "\N{CHECK MARK}"
SOFTWARE = "PocketCLIP"  # what a figure says that it was drawn by


def style() -> dict[Any, Any]:
    """What all figures have in common, as matplotlib's settings; figures are made and drawn under these."""
    return {
        "font.family": list(installed_families()),
        "font.size": 10.0,
        "axes.titlesize": 10.0,
        "axes.labelsize": 10.0,
        "legend.fontsize": SMALL,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "text.parse_math": False,  # captions may hold dollars
    }


def png(draw: Callable[[], Figure]) -> bytes:
    """Draw a figure and encode it; the same figure gives the same bytes."""
    content = io.BytesIO()
    with mpl.rc_context(style()):
        figure = draw()
        FigureCanvasAgg(figure)
        figure.savefig(content, format="png", dpi=DOTS_PER_INCH, metadata={"Software": SOFTWARE})
    return content.getvalue()


def training(table: Table, chance: float | None) -> Figure:
    """The loss over pairs seen, with its smoothed course and its value at chance; below, the learning rate over steps.

    table: step, pairs, loss, smoothed_loss, learning_rate. chance: None where it is not known.
    """
    column = {name: [line[name] for line in table] for name in table[0]}
    figure = Figure((WIDTH, 5.2), layout="constrained")
    loss, rate = figure.subplots(2, 1, height_ratios=(2.4, 1))
    if chance is not None:
        loss.axhline(chance, color=VERMILION, linestyle="--", label=f"chance, {chance:.2f}")
    loss.plot(column["pairs"], column["loss"], color=SKY, linewidth=0.8, marker=".", label="as logged")
    loss.plot(column["pairs"], column["smoothed_loss"], color=BLUE, linewidth=2, label="smoothed")
    loss.set(
        xlabel="image-caption pairs seen",
        ylabel="contrastive loss (nats)",
        ylim=(0, 1.05 * max(chance or 0, *column["loss"])),
    )
    loss.set_xlim(0, 1.02 * column["pairs"][-1])
    loss.xaxis.set_major_formatter(EngFormatter(sep=""))
    loss.legend(frameon=False)
    rate.plot(column["step"], column["learning_rate"], color=BLUE, marker="." if len(table) < 20 else "")
    rate.set(xlabel="optimisation steps", ylabel="learning rate", ylim=(0, None))
    rate.set_xlim(0, 1.02 * column["step"][-1])
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return figure


def smoothed(values: Sequence[float]) -> list[float]:
    """Mean over a centred window of about a twentieth of the values, at least three; narrower towards the ends."""
    half = max(1, len(values) // 40)
    reach = (min(half, position, len(values) - 1 - position) for position in range(len(values)))
    return [float(np.mean(values[position - width : position + width + 1])) for position, width in enumerate(reach)]


def accuracy(table: Table) -> Figure:
    """Top-1 and top-5 of each split as bars, each with a mark where blind guessing would end.

    table: split, k, accuracy, chance, the last two in percent.
    """
    splits = list(dict.fromkeys(line["split"] for line in table))
    figure = Figure((WIDTH, 1.1 + 0.75 * len(splits)), layout="constrained")
    axes = figure.subplots()
    lines = {f"top-{k}": [line for line in table if line["k"] == k] for k in (1, 5)}
    right = {label: [line["accuracy"] for line in some] for label, some in lines.items()}
    chance = {label: [line["chance"] for line in some] for label, some in lines.items()}
    _bars(axes, [fitted(split, 24, 2) for split in splits], right, chance)
    _percent_axis([axes], 1.55 * max(max(line["accuracy"], line["chance"]) for line in table))
    axes.set_xlabel("images with a right caption among the first k (%)")
    _legend(figure, axes)
    return figure


def groups(table: Table) -> Figure:
    """Top-1 and top-5 of each group of one split, with marks as in `accuracy`.

    table: group, images, and in percent top_1, top_5, chance_top_1, chance_top_5.
    """
    names = [f"{fitted(line['group'], 26)} ({line['images']:,})" for line in table]
    figure = Figure((WIDTH, 1.1 + 0.5 * len(names)), layout="constrained")
    axes = figure.subplots()
    right, chance = (
        {f"top-{k}": [line[f"{kind}top_{k}"] for line in table] for k in (1, 5)} for kind in ("", "chance_")
    )
    _bars(axes, names, right, chance, said=False)
    _percent_axis([axes], 1.15 * max(max(line["top_5"], line["chance_top_5"]) for line in table))
    axes.set_xlabel("right among the first k (%), by group or class (images in it)")
    _legend(figure, axes)
    return figure


def recall(table: Table) -> Figure:
    """Recall@k of each split, from images to captions and from captions to images.

    table: split, direction, k, and in percent recall and chance.
    """
    splits = list(dict.fromkeys(line["split"] for line in table))
    directions = list(dict.fromkeys(line["direction"] for line in table))
    cuts = sorted({line["k"] for line in table})
    figure = Figure((WIDTH, 1.4 + 0.8 * len(splits)), layout="constrained")
    panels = figure.subplots(1, len(directions), sharey=True, squeeze=False)[0]
    for axes, direction in zip(panels, directions, strict=True):
        lines = [line for line in table if line["direction"] == direction]
        names = [fitted(split, 24, 2) for split in splits]
        found, chance = (
            {f"recall@{k}": [line[value] for line in lines if line["k"] == k] for k in cuts}
            for value in ("recall", "chance")
        )
        _bars(axes, names, found, chance, said=False)
        axes.set(title=direction, xlabel="found among the first k (%)")
    _percent_axis(panels, 1.3 * max(max(line["recall"], line["chance"]) for line in table))
    _legend(figure, panels[0])
    return figure


def cosines(
    thumbnails: Sequence[Pixels],
    captions: Sequence[str],
    matrix: NDArray[np.floating[Any]],
    framed: Sequence[tuple[int, int]] = (),
) -> Figure:
    """The cosine of every image with every caption, the highest of each image in bold.

    matrix: [captions, images]. framed: captions and images that belong together.
    """
    rows, columns = matrix.shape
    left, foot, head = 2.2, 0.3, 0.08
    cell = min(LARGEST_CELL, max(SMALLEST_CELL, (WIDTH - left - 0.1) / columns))
    tall = min(cell, LARGEST_ROW)
    width, height = left + columns * cell + 0.1, head + cell + rows * tall + foot
    figure = Figure((max(WIDTH, width), height))
    width = figure.get_figwidth()
    axes = figure.add_axes((left / width, foot / height, columns * cell / width, rows * tall / height))
    place = (left / width, (foot + rows * tall) / height, columns * cell / width, cell / height)
    pictures = figure.add_axes(place, sharex=axes)
    scale = Normalize(float(matrix.min()), float(matrix.max()))
    axes.imshow(matrix, cmap="cividis", norm=scale, aspect="auto")
    for (caption, image), value in np.ndenumerate(matrix):
        weight = "bold" if value == matrix[:, image].max() else "normal"
        ink = BLACK if scale(value) > 0.5 else "white"
        axes.text(image, caption, signed(value), size=SMALL, ha="center", va="center", color=ink, weight=weight)
    for caption, image in framed:
        frame = Rectangle((image - 0.46, caption - 0.46), 0.92, 0.92, fill=False, edgecolor=VERMILION, linewidth=2.5)
        axes.add_patch(frame)
    for number, pixels in enumerate(thumbnails):
        pictures.imshow(pixels, extent=(number - 0.46, number + 0.46, 0.04, 0.96), aspect="auto")
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.set_yticks(range(rows), [fitted(caption, 30, 2) for caption in captions])
    axes.tick_params(length=0, labelbottom=False)
    axes.set_xlabel("cosine of image (column) and caption (row)")
    pictures.set_ylim(0, 1)
    pictures.axis("off")
    return figure


def rankings(thumbnails: Sequence[Pixels], shown: Sequence[dict[str, Any]], candidates: int) -> Figure:
    """Images one below the other, each with the captions that the model put first and their cosines as bars.

    shown: captions, rank and bars, as `examples.ranking` gives them.
    """
    head, bar, foot = 0.36, 0.2, 0.5
    band = head + bar * max(len(one["bars"]) for one in shown) + 0.15
    height = len(shown) * band + foot
    figure = Figure((WIDTH, height))
    values = [line["cosine"] for one in shown for line in one["bars"]]
    limits = min(0.0, *values), max(0.0, *values) or 1.0
    for number, (pixels, one) in enumerate(zip(thumbnails, shown, strict=True)):
        top = height - number * band
        place = f"place {one['rank'] + 1:,} of {candidates:,}"
        figure.text(
            0.1 / WIDTH, (top - 0.12) / height, fitted(" / ".join(one["captions"]), 56), weight="bold", va="top"
        )
        figure.text(1 - 0.1 / WIDTH, (top - 0.12) / height, place, ha="right", va="top", size=SMALL)
        image = figure.add_axes((0.1 / WIDTH, (top - head - 0.9) / height, 0.9 / WIDTH, 0.9 / height))
        image.imshow(pixels)
        image.axis("off")
        tall = bar * len(one["bars"])
        axes = figure.add_axes((1.75 / WIDTH, (top - head - tall) / height, 4.7 / WIDTH, tall / height))
        _ranked_bars(axes, one["bars"], limits)
    axes.set_xlabel("cosine of image and caption")
    axes.tick_params(axis="x", labelbottom=True, length=3)
    return figure


def _ranked_bars(axes: Axes, bars: Sequence[dict[str, Any]], limits: tuple[float, float]) -> None:
    """One image's captions on bars, from the first place down; the right ones blue and ticked."""
    side = axes.get_yaxis_transform()
    for number, bar in enumerate(bars):
        axes.barh(number, bar["cosine"], height=0.84, color=SKY if bar["right"] else PALE)
        axes.text(0.01, number, fitted(bar["caption"], 67), transform=side, va="center", size=SMALL, clip_on=True)
        axes.text(1.01, number, signed(bar["cosine"], 3), transform=side, va="center", size=SMALL)
    axes.set_yticks(range(len(bars)), [f"{RIGHT if bar['right'] else ''} {bar['place']:,}" for bar in bars])
    axes.set(xlim=limits, ylim=(len(bars) - 0.5, -0.5))
    axes.axvline(0, color=PALE, linewidth=0.8, zorder=0)
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[["left", "bottom"]].set_visible(False)


def _bars(
    axes: Axes,
    names: Sequence[str],
    series: dict[str, list[float]],
    chance: dict[str, list[float]] | None = None,
    said: bool = True,
) -> None:
    """Horizontal bars in groups, the first name on top, each with its value at its end and a mark at its chance.

    said: whether chance is written beside the value.
    """
    thickness = 0.8 / len(series)
    for number, (label, values) in enumerate(series.items()):
        places = np.arange(len(names)) + (number - (len(series) - 1) / 2) * thickness
        axes.barh(places, values, height=0.9 * thickness, color=(BLUE, SKY, ORANGE)[number], label=label)
        notes, ends = [percent(value) for value in values], values
        if chance:
            guessed = chance[label]
            if said:
                notes = [f"{note} (chance {percent(value)})" for note, value in zip(notes, guessed, strict=True)]
            ends = [max(pair) for pair in zip(values, guessed, strict=True)]
            low, high = places - thickness / 2, places + thickness / 2
            axes.vlines(guessed, low, high, color=BLACK, linewidth=2, label="" if number else "chance")
        for note, end, place in zip(notes, ends, places, strict=True):
            axes.annotate(note, (end, place), (6, 0), textcoords="offset points", va="center", size=SMALL)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _percent_axis(panels: Iterable[Axes], end: float) -> None:
    """The same scale for all panels, with room for the labels beyond the bars, but no tick above 100 %."""
    for axes in panels:
        axes.set_xlim(0, end or 1.0)
        axes.set_xticks([tick for tick in axes.get_xticks() if tick <= min(100, axes.get_xlim()[1])])


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda number: not isinstance(handles[number], BarContainer))
    figure.legend(
        [handles[n] for n in order],
        [labels[n] for n in order],
        loc="outside upper center",
        ncols=len(labels),
        frameon=False,
    )


def percent(value: float) -> str:
    """A share in percent, one decimal, two where the first would hide it."""
    return f"{value:.1f} %" if value >= 1 or value == 0 else f"{value:.2f} %"


def signed(value: float, decimals: int = 2) -> str:
    """A number with a minus sign that is as wide as a plus; none before a zero."""
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")
