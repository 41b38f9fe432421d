"""Which patches of an image count for a caption, drawn over it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from pocketclip.data.images import Pixels
from pocketclip.show.plots import BLUE, SMALL, VERMILION, WIDTH, signed
from pocketclip.show.text import fitted

SIDE = 3.4  # inches, two of which are as wide as a page
FOR_AND_AGAINST = LinearSegmentedColormap.from_list("for and against", [BLUE, "white", VERMILION])
COLOUR, VISIBLE = 0.35, 0.75  # how much of the image's colours stay, and of a patch's colour at most
NUMBERED = 8  # patches a side, up to which their values are written
MEANING = "what a patch adds to the cosine (orange) or takes from it (blue)"
Patches = NDArray[np.floating[Any]]


def explanations(
    image: Pixels, captions: Sequence[str], cosines: Sequence[float], patches: Sequence[Patches]
) -> Figure:
    """The image once for each caption, with its patches coloured by what they add to the cosine.

    patches: [rows, columns] each. One scale for all, so that captions can be compared.
    """
    columns = min(2, len(captions))
    rows = -(-len(captions) // columns)
    figure = Figure((WIDTH if columns > 1 else SIDE + 1.3, 0.9 + rows * (SIDE + 0.55)), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    largest = max(float(np.abs(one).max()) for one in patches) or 1.0
    for axes, caption, cosine, values in zip(panels, captions, cosines, patches, strict=False):
        shown = _draw(axes, image, values, largest)
        axes.set_title(f"{fitted(caption, 40)}\ncosine {signed(cosine)}")
    for axes in panels[len(captions) :]:
        axes.axis("off")
    _scale(figure, shown)
    return figure


def explained(images: Sequence[Pixels], about: Sequence[Sequence[dict[str, Any]]]) -> Figure:
    """A row an image: as the model saw it, then with the patches that count for each of its captions.

    about: for each image its captions: caption, cosine, patches. Each row has its own scale.
    """
    columns = 1 + max(map(len, about))
    side = WIDTH / columns - 0.1
    figure = Figure((WIDTH, 0.8 + len(images) * (side + 0.6)), layout="constrained")
    grid = figure.subplots(len(images), columns, squeeze=False)
    for row, image, some in zip(grid, images, about, strict=True):
        values = [np.array(one["patches"]) for one in some]
        largest = max(float(np.abs(one).max()) for one in values) or 1.0
        row[0].imshow(image)
        for axes in row:
            axes.axis("off")
        for axes, one, patches in zip(row[1:], some, values, strict=False):
            shown = _draw(axes, image, patches, largest, numbered=False)
            axes.set_title(f"{fitted(one['caption'], 26, 2)}\ncosine {signed(one['cosine'])}", size=SMALL)
    _scale(figure, shown, ticks=False)
    return figure


def _draw(axes: Axes, image: Pixels, values: Patches, largest: float, numbered: bool = True) -> AxesImage:
    """Patches over a faded image; nothing is coloured where nothing is added."""
    extent = (0, values.shape[1], values.shape[0], 0)
    faded = COLOUR * image + (1 - COLOUR) * image.mean(axis=2, keepdims=True)
    axes.imshow(faded.astype(np.uint8), extent=extent)
    norm = TwoSlopeNorm(0, -largest, largest)
    shown = axes.imshow(
        values, cmap=FOR_AND_AGAINST, norm=norm, alpha=VISIBLE * np.abs(values) / largest, extent=extent
    )
    axes.axis("off")
    if numbered and max(values.shape) <= NUMBERED:
        for (row, column), value in np.ndenumerate(values):
            text = axes.text(column + 0.5, row + 0.5, signed(float(value)), size=SMALL, ha="center", va="center")
            text.set_path_effects([withStroke(linewidth=2.5, foreground="white")])  # the image below may be black
    return shown


def _scale(figure: Figure, shown: AxesImage, ticks: bool = True) -> None:
    """What the colours mean; without numbers where each row has its own."""
    bar = figure.colorbar(shown, ax=figure.axes, orientation="horizontal", shrink=0.6, aspect=40, pad=0.02)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    bar.set_label(MEANING if ticks else f"{MEANING}; each row has its own scale")
    if not ticks:
        bar.set_ticks([])
