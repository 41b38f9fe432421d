"""A report of benchmarks, damage and bias: from a real evaluation to figures and their numbers."""

import base64
import csv
import io
import json
import shutil
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from conftest import COLOURS, SHAPES, draw
from labelled_samples import write_class_folders
from pocketclip.cli.main import app
from pocketclip.show import benchmarks, plots
from pocketclip.show.report import write_report
from show.test_plots import overlaps


@pytest.fixture(scope="module")
def evaluated(trained: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was evaluated on all there is."""
    place = tmp_path_factory.mktemp("evaluated")
    run = place / "run"
    shutil.copytree(trained, run)
    write_class_folders(place / "shapes", {f"{s}/{c}.png": draw(c, s, "left") for s in SHAPES for c in COLOURS})
    many = {f"{c} {s} {p}/a.png": draw(c, s, p) for s in SHAPES for c in COLOURS for p in ("left", "right")}
    write_class_folders(place / "many", many)
    command = ["evaluate", str(run / "bundle"), f"data.folder={folder}"]
    for more in (
        ["evaluate.explained=2"],
        ["--on", f"{place / 'shapes'},{place / 'many'}", "--robustness"],
        ["--bias", "emoji"],
    ):
        done = CliRunner().invoke(app, [*command, *more])
        assert done.exit_code == 0, done.output
    return run


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def cut_labels(figure: Figure) -> list[str]:
    """Axes' labels that do not lie whole within the figure."""
    labels = [label for axes in figure.axes for label in (axes.xaxis.label, axes.yaxis.label)]
    width, height = figure.bbox.size
    boxes = {label.get_text(): label.get_window_extent() for label in labels if label.get_text()}
    return [text for text, box in boxes.items() if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height]


def test_the_report_shows_all_of_it(evaluated: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    page = write_report(run).read_text(encoding="utf-8")
    figures = run / "figures"
    for name in (
        "classes-shapes", "classes-many", "confusion-shapes", "confusion-many", "damage-shapes", "writing-shapes",
        "written-shapes", "associations-emoji-gender", "associations-emoji-skin-tone",
        "searches-emoji-gender", "searches-emoji-skin-tone", "group-accuracy-emoji", "explained-test",
    ):  # fmt: skip
        assert (figures / f"{name}.png").read_bytes().startswith(b"\x89PNG"), name
        assert f"figures/{name}." in page
    results = json.loads((run / "evaluation" / "results.json").read_text())["results"]
    (shapes,) = [one for one in results if one["benchmark"] == "shapes"]
    assert {line["group"]: float(line["top_1"]) for line in table(figures / "classes-shapes.csv")} == {
        name: one["top_1"] for name, one in shapes["groups"].items()
    }
    counts = table(figures / "confusion-shapes.csv")
    assert sum(int(line[name]) for line in counts for name in SHAPES) == 24
    mistakes = table(figures / "confusion-many.csv")
    (many,) = [one for one in results if one["benchmark"] == "many"]
    assert sum(int(line["images"]) for line in mistakes) == round(48 * (1 - many["top_1"] / 100))
    damage = table(figures / "damage-shapes.csv")
    assert len(damage) == 31
    assert float(damage[0]["top_1"]) == pytest.approx(shapes["top_1"])
    assert len(table(figures / "writing-shapes.csv")) == 16
    about = json.loads((run / "evaluation" / "emoji-bias.json").read_text())
    strongest = table(figures / "associations-emoji-gender.csv")[0]
    sizes = {one["attribute"]: one["effect_size"] for one in about["associations"] if one["by"] == "gender"}
    assert float(strongest["effect_size"]) == sizes[strongest["attribute"]]
    assert abs(float(strongest["effect_size"])) == max(map(abs, sizes.values()))
    assert "image" not in json.loads((figures / "written-shapes.json").read_text())[0]["before"]
    first = json.loads((figures / "explained-test.json").read_text())[0]
    assert [len(one["patches"]) for one in first] == [4, 4], "its own caption and a wrong one"
    added = first[0]["cosine"] - first[0]["cosine_of_mean_colour"]
    assert np.sum(first[0]["patches"]) == pytest.approx(added, abs=0.03)


def test_what_another_bundle_left_is_passed_over(evaluated: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(plots, "png", lambda _draw: b"a figure")
    run = tmp_path / "run"
    shutil.copytree(evaluated, run)
    for name in ("emoji-bias.json", "shapes-robustness.json"):
        path = run / "evaluation" / name
        path.write_text(path.read_text().replace('"seal": "', '"seal": "another '))
    write_report(run)
    names = {path.name for path in (run / "figures").iterdir()}
    assert "damage-many.png" in names
    assert not {name for name in names if "emoji" in name or name.startswith(("damage-shapes", "writing-shapes"))}


@pytest.fixture
def _style():
    with mpl.rc_context(plots.style()):
        yield


@pytest.mark.usefixtures("_style")
@pytest.mark.parametrize("count", [2, 10, 16])
def test_confusion_prints_shares_of_rows(count: int) -> None:
    counts = np.arange(count * count).reshape(count, count)
    names = [f"a class of a rather long name {n}" for n in range(count)]
    figure = benchmarks.confusion(names, counts)
    assert not overlaps(figure)
    shown = figure.axes[0].texts[-1].get_text()
    assert shown == f"{100 * (count * count - 1) / counts[-1].sum():.0f}"


@pytest.mark.usefixtures("_style")
def test_the_other_figures_are_readable() -> None:
    mistakes = [
        {
            "true": "a class of a rather long name " * 2,
            "taken_for": "another " * 9,
            "images": 1000 - n,
            "share": 90.0 - n,
        }
        for n in range(20)
    ]
    damage = [{"kind": "as it is", "strength": 0.0, "top_1": 80.0, "low": 70.0, "high": 90.0}]
    damage += [
        {"kind": kind, "strength": float(n), "top_1": 80.0 - n, "low": 70.0 - n, "high": 90.0 - n}
        for kind in "abcdef"
        for n in range(1, 6)
    ]
    written = [
        {"kind": kind, "detail": f"20 % high, middle, contrast 0.{n}", "top_1": 70.0, "taken_in": 25.0}
        for n in range(8)
        for kind in ("word of a wrong class", "its letters scrambled")
    ]
    biased = [
        {"attribute": "an occupation " * 4, "first": "women", "second": "men"}
        | {"effect_size": 1.2 - 0.2 * n, "p_value": 0.01 * n}
        for n in range(12)
    ]
    several = [line | {"second": "medium-light tones"} for line in biased[:6]] + biased[6:]
    found = [{"attribute": "an occupation " * 4, "k": 10, "max_skew": 1.2, "favoured": "medium-light"}] * 9
    groups = [
        {"by": "skin tone", "group": "medium-light", "images": 46, "top_1": 50.0, "low": 40.0, "high": 60.0}
        | {"chance": 4.3}
    ] * 7
    for figure in (
        benchmarks.mistakes(mistakes),
        benchmarks.damages(damage, 10.0),
        benchmarks.writings(written, 80.0, (10.0, 7.0)),
        benchmarks.associations(biased),
        benchmarks.associations(several),
        benchmarks.searches(found),
        benchmarks.group_accuracies(groups),
    ):
        FigureCanvasAgg(figure)  # which lays it out when it draws
        assert not overlaps(figure)
        assert not cut_labels(figure)
    damaged = benchmarks.damages(damage, 10.0)
    assert damaged.axes[0].lines[0].get_ydata().tolist() == [80.0, 79.0, 78.0, 77.0, 76.0, 75.0]
    panels = benchmarks.writings(written, 80.0, (10.0, 7.0)).axes
    dotted = [[line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] for axes in panels]
    assert dotted == [[10.0], [7.0]]
    dots = [line for line in benchmarks.associations(biased).axes[0].lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [line["p_value"] >= 0.05 for line in biased]
    labels = [label.get_text() for label in benchmarks.associations(several).axes[0].get_yticklabels()]
    assert labels[0].partition("\n")[2].startswith("women / medium-")
    assert labels[-1].endswith("\nwomen / men")
    bars = benchmarks.searches([line | {"max_skew": 0.1 * n} for n, line in enumerate(found)]).axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([0.1 * n for n in range(9)])
    figure = benchmarks.searches([line | {"max_skew": 0.0} for line in found])
    assert {note.get_text() for note in figure.axes[0].texts} == {"0.00 nobody"}
    figure = benchmarks.searches([{"attribute": "a" * 60, "k": 10_000, "max_skew": 0.1, "favoured": "w"}])
    label = figure.axes[0].xaxis.label
    FigureCanvasAgg(figure).draw()
    assert label.get_window_extent().x1 < figure.bbox.x1, "the label of the axis is inside the figure too"


@pytest.mark.usefixtures("_style")
def test_before_and_after_mark_the_right_and_the_written_class() -> None:
    content = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(content, "PNG")
    image = base64.b64encode(content.getvalue()).decode()
    one = {
        "right": ["cat"],
        "word": "dog",
        "before": {"image": image, "best": [["cat", 0.5], ["dog", 0.25], ["a third", -0.125]]},
        "after": {"image": image, "best": [["dog", 0.625], ["cat", 0.25], ["a third", -0.125]]},
    }
    figure = benchmarks.before_and_after([one, one])
    bars = [axes for axes in figure.axes if axes.patches]
    assert [patch.get_width() for patch in bars[1].patches] == [0.625, 0.25, -0.125]
    before, after = ([patch.get_facecolor() for patch in axes.patches] for axes in bars[:2])
    assert before[0] == after[1]
    assert before[1] == after[0]
    assert len({before[0], before[1], before[2]}) == 3


def test_an_evaluation_alone_is_shown_as_in_a_runs_report(evaluated: Path, tmp_path: Path) -> None:
    run, alone = tmp_path / "run", tmp_path / "b32-evaluation"
    shutil.copytree(evaluated, run)
    shutil.copytree(run / "evaluation", alone)
    write_report(run)
    done = CliRunner().invoke(app, ["report", str(alone)])
    assert done.exit_code == 0, done.output
    found = {path.name for path in (alone / "figures").iterdir()}
    every = {path.name for path in (run / "figures").iterdir()}
    training = {"training", "cosines-test", "best-test", "worst-test", "groups-test"}
    assert {name.partition(".")[0] for name in every - found} <= training
    assert found < every
    for name in found:
        assert (alone / "figures" / name).read_bytes() == (run / "figures" / name).read_bytes(), name
    page = (alone / "report.html").read_text(encoding="utf-8")
    assert "<h1>b32-evaluation</h1>" in page
    assert page.count("data:image/png") == sum(name.endswith(".png") for name in found)
    assert CliRunner().invoke(app, ["report", str(alone)]).exit_code == 0, "its own are replaced"
    (alone / "report.html").write_text("precious")
    refused = CliRunner().invoke(app, ["report", str(alone)])
    assert "report.html: no report wrote it" in str(refused.exception)
    assert (alone / "report.html").read_text() == "precious"
    beside = CliRunner().invoke(app, ["report", str(run), str(alone), "--output", str(tmp_path / "both.html")])
    assert beside.exit_code == 0, beside.output


def test_bias_alone(evaluated: Path, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    shutil.copy(evaluated / "evaluation" / "emoji-bias.json", tmp_path / "only")
    assert CliRunner().invoke(app, ["report", str(tmp_path / "only")]).exit_code == 0
    assert (tmp_path / "only" / "figures" / "associations-emoji-gender.png").exists()
