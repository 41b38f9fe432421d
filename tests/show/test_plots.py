import io
import math
import warnings
from functools import partial

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from pocketclip.show import plots
from pocketclip.show.text import UNKNOWN, fitted


@pytest.fixture(autouse=True)
def drawn_in_our_style():
    with mpl.rc_context(plots.style()):
        yield


def square(colour):
    return np.full((8, 8, 3), colour, np.uint8)


def widths(axes):
    return [[bar.get_width() for bar in bars] for bars in axes.containers if isinstance(bars, BarContainer)]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def visible_box(text):
    box = text.get_window_extent().padded(-1)
    return Bbox.intersection(box, text.get_clip_box()) if text.get_clip_on() and text.get_clip_box() else box


def overlaps(figure: Figure):
    """Whether any two texts of one axes lie over each other, or one leaves the figure."""
    figure.canvas.draw()
    whole = figure.bbox
    for axes in (axes for axes in figure.axes if axes.axison):
        shown = [text for text in (*axes.texts, *axes.get_yticklabels()) if text.get_text()]
        boxes = [visible_box(text) for text in shown]
        if any(box.x0 < whole.x0 or box.x1 > whole.x1 for box in boxes):
            return True
        if any(one.overlaps(other) for n, one in enumerate(boxes) for other in boxes[:n]):
            return True
    return False


ACCURACY = [
    {"split": "train", "k": 1, "accuracy": 40.0, "chance": 2.0},
    {"split": "train", "k": 5, "accuracy": 75.0, "chance": 10.0},
    {"split": "unseen", "k": 1, "accuracy": 0.0, "chance": 2.5},
    {"split": "unseen", "k": 5, "accuracy": 12.5, "chance": 11.0},
]


def test_accuracy_draws_every_value_and_every_chance():
    figure = plots.accuracy(ACCURACY)
    axes = figure.axes[0]
    assert widths(axes) == [[40.0, 0.0], [75.0, 12.5]]
    marks = [[segment[0][0] for segment in lines.get_segments()] for lines in axes.collections]
    assert marks == [[2.0, 2.5], [10.0, 11.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["train", "unseen"]
    assert "0.0 % (chance 2.5 %)" in texts(axes)
    assert not overlaps(figure)


def test_no_percent_axis_goes_beyond_a_hundred():
    table = [line | {"accuracy": 100.0} for line in ACCURACY]
    assert max(plots.accuracy(table).axes[0].get_xticks()) == 100


def test_all_zero_is_drawn_too():
    table = [line | {"accuracy": 0.0} for line in ACCURACY]
    assert plots.png(partial(plots.accuracy, table))
    axes = plots.accuracy(table).axes[0]
    end = axes.get_xlim()[1]
    assert all(note.xy[0] < end for note in axes.texts), "each value is inside its axes, and is drawn"
    assert len(axes.texts) == len(table)


def test_groups_name_the_number_of_images():
    table = [
        {"group": "people", "images": 1280, "top_1": 50.0, "top_5": 75.0, "chance_top_1": 2.0, "chance_top_5": 9.0},
        {"group": "flags $a_1$", "images": 3, "top_1": 0.0, "top_5": 100.0, "chance_top_1": 3.0, "chance_top_5": 11.0},
    ]
    figure = plots.groups(table)
    axes = figure.axes[0]
    assert widths(axes) == [[50.0, 0.0], [75.0, 100.0]]
    marks = [[segment[0][0] for segment in lines.get_segments()] for lines in axes.collections]
    assert marks == [[2.0, 3.0], [9.0, 11.0]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["people (1,280)", "flags $a_1$ (3)"]
    assert not any(label.get_parse_math() for label in axes.get_yticklabels())


def test_recall_has_a_panel_a_direction_on_one_scale():
    table = [
        {"split": split, "direction": direction, "k": k, "recall": 10.0 * k + number + shift, "chance": 1.0 * k}
        for number, split in enumerate(("train", "unseen"))
        for shift, direction in enumerate(("image → caption", "caption → image"))
        for k in (1, 5)
    ]
    one, other = plots.recall(table).axes
    assert (one.get_title(), other.get_title()) == ("image → caption", "caption → image")
    assert widths(one) == [[10.0, 11.0], [50.0, 51.0]]
    assert widths(other) == [[11.0, 12.0], [51.0, 52.0]]
    assert one.get_xlim() == other.get_xlim()
    assert list(one.get_xticks()) == list(other.get_xticks())


def test_training_draws_the_log_its_smoothing_and_chance():
    losses = [4.0, 3.0, 2.6, 2.0]
    table = [
        {"step": 10 * n, "pairs": 80 * n, "loss": loss, "smoothed_loss": smooth, "learning_rate": 1e-3 / n}
        for n, (loss, smooth) in enumerate(zip(losses, plots.smoothed(losses), strict=True), start=1)
    ]
    loss, rate = plots.training(table, math.log(8)).axes
    chance, raw, smooth = loss.get_lines()
    assert list(chance.get_ydata()) == pytest.approx([math.log(8)] * 2)
    assert (list(raw.get_xdata()), list(raw.get_ydata())) == ([80, 160, 240, 320], losses)
    assert list(smooth.get_ydata()) == plots.smoothed(losses)
    assert list(rate.get_lines()[0].get_xdata()) == [10, 20, 30, 40]
    assert list(rate.get_lines()[0].get_ydata()) == [line["learning_rate"] for line in table]
    assert loss.get_ylim()[0] == 0
    assert loss.get_ylim()[1] > 4


def test_smoothing_is_a_centred_mean_that_keeps_the_ends():
    assert plots.smoothed([6.0, 3.0, 0.0, 3.0]) == pytest.approx([6.0, 3.0, 2.0, 3.0])
    assert plots.smoothed([1.5]) == [1.5]


def test_cosines_print_every_value_frame_the_diagonal_and_embolden_each_columns_best():
    matrix = np.array([[0.9, 0.1], [-0.25, 0.05]])
    figure = plots.cosines([square(0), square(255)], ["a dog", "a cat"], matrix, [(0, 0), (1, 1)])
    axes = figure.axes[0]
    assert texts(axes) == ["0.90", "0.10", "−0.25", "0.05"]
    assert [text.get_text() for text in axes.texts if text.get_weight() == "bold"] == ["0.90", "0.10"]
    frames = [(patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2) for patch in axes.patches]
    assert np.allclose(frames, [(0, 0), (1, 1)])
    assert np.array_equal(axes.images[0].get_array(), matrix)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a dog", "a cat"]


def test_ten_long_captions_and_negative_cosines_do_not_collide():
    captions = [f"{n} " + "couple with heart woman medium-dark skin tone " * 3 for n in range(10)]
    matrix = -np.linspace(0, 1, 100).reshape(10, 10)
    assert not overlaps(plots.cosines([square(0)] * 10, captions, matrix, [(n, n) for n in range(10)]))


@pytest.mark.parametrize(("images", "captions"), [(1, 2), (2, 2), (3, 20), (20, 3), (20, 20)])
def test_matrices_of_any_shape_are_readable(images, captions):
    matrix = -np.linspace(0, 0.99, images * captions).reshape(captions, images)
    names = [f"{n} a caption that is long enough for two lines" for n in range(captions)]
    figure = plots.cosines([square(0)] * images, names, matrix)
    assert not overlaps(figure)
    assert len(figure.axes[0].texts) == images * captions
    assert figure.get_figwidth() <= 12


def shown():
    bars = [
        {"place": 1, "caption": "a cat", "cosine": 0.5, "right": False},
        {"place": 2, "caption": "a dog", "cosine": 0.25, "right": True},
        {"place": 1017, "caption": "long " * 40, "cosine": -0.125, "right": False},
    ]
    return {"row": 3, "captions": ["a dog"], "rank": 1, "bars": bars}


def test_rankings_mark_the_right_caption_by_colour_and_by_sign():
    figure = plots.rankings([square(9)], [shown()], 2000)
    image, axes = figure.axes
    assert np.array_equal(image.images[0].get_array(), square(9))
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.25, -0.125]
    colours = [bar.get_facecolor() for bar in axes.patches]
    assert colours[0] == colours[2] != colours[1]
    assert [label.get_text().strip() for label in axes.get_yticklabels()] == ["1", "✓ 2", "1,017"]
    assert [text.get_text() for text in figure.texts] == ["a dog", "place 2 of 2,000"]
    assert not overlaps(figure)


def test_letters_are_at_least_nine_points():
    figures = [plots.accuracy(ACCURACY), plots.rankings([square(9)], [shown()], 2000)]
    sizes = [text.get_fontsize() for figure in figures for axes in figure.axes for text in axes.texts]
    assert min(sizes) >= 9


@pytest.mark.parametrize("text", ["$x_1$ for 5 $", "犬と猫", "😀🫠 grin", "שלום", "a\u200db\nc\t\0d", "e\u0301", ""])
def test_any_caption_can_be_drawn_without_a_warning(text):
    one = shown() | {"captions": [text or " "]}
    one["bars"][0]["caption"] = text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png = plots.png(partial(plots.rankings, [square(9)], [one], 10))
        plots.png(partial(plots.cosines, [square(9)], [text], np.ones((1, 1))))
    assert Image.open(io.BytesIO(png)).size[0] == plots.WIDTH * plots.DOTS_PER_INCH


def test_the_same_figure_gives_the_same_bytes():
    assert plots.png(partial(plots.accuracy, ACCURACY)) == plots.png(partial(plots.accuracy, ACCURACY))


def test_captions_are_wrapped_cut_and_freed_of_unknown_glyphs():
    assert fitted("a short one", 20) == "a short one"
    assert fitted("one two three four", 8, 2) == "one two\nthree…"
    assert fitted("irritating", 5) == "irri…"
    assert fitted("\U0001fae0\u200d grin", 20) == f"{UNKNOWN} grin"


@pytest.mark.parametrize(
    "text",
    [
        "a dog " * 20,
        "A DOG " * 20,
        "IMG_2023_07_14_HOLIDAY_MADEIRA_0001" * 3,
        "W" * 90,
        "☔" * 40,
        "iiii " * 30,
        "Größe " * 20,
    ],
)
def test_a_line_is_never_wider_than_its_columns(text):
    figure = Figure((20, 2))
    renderer = FigureCanvasAgg(figure).get_renderer()
    line, small = (
        figure.text(0, 0.5, shown).get_window_extent(renderer).width
        for shown in (fitted(text, 30), "etaoin shrdlu cmfwyp" * 2)
    )
    assert line < 1.1 * 30 / 40 * small, "thirty columns"
    assert line > 0.6 * 30 / 40 * small or "i" in text, "and they are made use of"


def test_percentages_keep_what_one_decimal_would_hide():
    assert [plots.percent(value) for value in (0, 0.027, 1, 99.96)] == ["0.0 %", "0.03 %", "1.0 %", "100.0 %"]
