import csv
import io
import json
import re
import shutil
from functools import partial

import matplotlib as mpl
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from pocketclip.cli.main import app
from pocketclip.errors import DataError, PocketCLIPError
from pocketclip.recipe.toml import load_resolved, to_toml
from pocketclip.show import curves, plots
from pocketclip.show.compare import write_comparison
from pocketclip.show.report import write_report
from show.test_report import EVIL, METRICS, make_run

EVALUATIONS = [
    {"split": split, "step": step, "pairs": 8 * step, "seconds": 2.0 * step, "top_1": top, "top_5": 50.0}
    | {"chance_top_1": 14.3, "evaluation_seconds": 0.5}
    for step, tops in ((10, (20.0, 5.0)), (20, (60.0, 15.0)))
    for split, top in zip(("train", "unseen"), tops, strict=True)
]


def small_figure():
    content, about = io.BytesIO(), PngInfo()
    about.add_text("Software", plots.SOFTWARE)
    Image.new("RGB", (1, 1)).save(content, "PNG", pnginfo=about)
    return content.getvalue()


FIGURE = small_figure()


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A finished run and one that is half done, of a lower rate; figures are not really drawn."""
    monkeypatch.setattr(plots, "png", lambda _draw: FIGURE)
    one = make_run(tmp_path)
    write_lines(one / "evaluations.jsonl", EVALUATIONS)
    other = one.parent / "half"
    other.mkdir()
    recipe = load_resolved(one / "recipe.toml")
    changes = {"learning_rate": 1e-4, "ema_decay": 0.5}
    recipe = recipe.model_copy(update={"name": "half", "train": recipe.train.model_copy(update=changes)})
    (other / "recipe.toml").write_text(to_toml(recipe))
    write_lines(other / "metrics.jsonl", METRICS[:2])
    return one, other


def table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_the_page_says_in_what_they_differ_and_what_came_of_it(runs):
    page = write_comparison(runs, runs[0].parent / "compare.html")
    facts = {name: values for name, *values in table(page.with_suffix("") / "runs.csv")}
    assert facts.pop("run of PocketCLIP") == ["tiny", "half"]
    assert facts["train.learning_rate"] == ["0.0005", "0.0001"]
    assert facts["train.ema_decay"] == ["0.0", "0.5"]
    assert not {"name", "train.batch_size", "seed"} & facts.keys()
    assert facts["Pairs seen"] == ["200", "160"]
    assert facts["Loss at the end"] == ["1.250", "1.500"]
    assert facts["Speed"] == ["4 pairs/s", "4 pairs/s"]
    assert facts["Parameters"] == ["13", ""]
    assert facts["Images of unseen"] == ["6 against 7 captions", ""]
    assert facts["Top-1 on unseen"] == ["50.0 % (20.0 to 80.0; chance 14.30)", ""]
    assert facts["Image → caption recall@5 on unseen"] == ["50.0 % (chance 25.00)", ""]
    html = page.read_text(encoding="utf-8")
    assert "<td>50.0 %<br><small>20.0 to 80.0<br>chance 14.30</small></td>" in html
    for below, behind in (("<br><small>", " ("), ("<br>", "; "), ("</small></td>", ")</td>")):
        html = html.replace(below, behind)
    for name, values in facts.items():
        assert f">{name}</th>" in html
        assert all(f">{value}</td>" in html or f">{value}</th>" in html for value in values)
    assert html.count("data:image/png;base64,") == 2
    assert "not to be compared" not in html


def test_the_numbers_behind_the_figures_lie_beside_them(runs):
    beside = write_comparison(runs, runs[0].parent / "compare.html").with_suffix("")
    head, *lines = table(beside / "loss.csv")
    assert head == ["run", "step", "pairs", "seconds", "loss", "smoothed_loss"]
    assert [line[:5] for line in lines[2:4]] == [
        ["tiny", "25", "200", "50.0", "1.25"],
        ["half", "10", "80", "20.0", "2.0"],
    ]
    assert [line[:6] for line in table(beside / "accuracy-in-training.csv")[1:3]] == [
        ["tiny", "train", "10", "80", "20.0", "20.0"],
        ["tiny", "unseen", "10", "80", "20.0", "5.0"],
    ]
    assert (beside / "loss.png").read_bytes() == FIGURE


def test_earlier_comparisons_are_replaced_and_passed_over(runs):
    folder = runs[0].parent
    write_comparison(runs, folder / "compare.html")
    again = write_comparison(sorted(folder.iterdir()), folder / "compare.html")
    assert table(again.with_suffix("") / "runs.csv")[0] == ["run of PocketCLIP", "half", "tiny"]
    with pytest.raises(DataError, match="no run's folder"):
        write_comparison([folder / "compare.html"], folder / "compare.html")


def test_no_folder_that_is_something_else_is_replaced(runs):
    thesis = runs[0].parent / "thesis"
    thesis.mkdir()
    (thesis / "chapter").write_text("precious")
    with pytest.raises(DataError, match="holds no comparison"):
        write_comparison(runs, runs[0].parent / "thesis.html")
    assert (thesis / "chapter").read_text() == "precious"
    (thesis / "runs.csv").write_text("my,own,runs\n")
    with pytest.raises(DataError, match="holds no comparison"):
        write_comparison(runs, runs[0].parent / "thesis.html")
    page = write_comparison(runs, runs[0].parent / "compare.html")
    assert write_comparison(runs, page) == page
    (page.with_suffix("") / "notes.txt").write_text("precious")
    with pytest.raises(DataError, match=r"notes\.txt: no report wrote it"):
        write_comparison(runs, page)
    assert (page.with_suffix("") / "notes.txt").read_text() == "precious"


def test_losses_of_unlike_batches_come_with_a_warning(runs):
    recipe = load_resolved(runs[1] / "recipe.toml")
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch_size": 4})})
    (runs[1] / "recipe.toml").write_text(to_toml(recipe))
    page = write_comparison(runs, runs[0].parent / "compare.html")
    assert "their losses are not to be compared" in page.read_text()


def test_two_of_the_same_name_go_by_their_paths_and_nothing_is_not_escaped(runs, tmp_path):
    elsewhere = tmp_path / "<b>" / "tiny"
    shutil.copytree(runs[0], elsewhere)
    write_lines(elsewhere / "evaluations.jsonl", [line | {"split": EVIL} for line in EVALUATIONS])
    (elsewhere / "environment.json").write_text(json.dumps({"device": EVIL}))
    html = write_comparison([runs[0], elsewhere], tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;/tiny</th>" in html
    assert "<script" not in html
    assert "<b>" not in html


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("metrics.jsonl", None, r"half.metrics\.jsonl: missing"),
        ("metrics.jsonl", '{"step": 10}\n', r"half.metrics\.jsonl: line 1 is damaged \(no pairs\)"),
        ("recipe.toml", None, r"half.recipe\.toml: cannot be read"),
        ("evaluations.jsonl", "{}\n", r"half.evaluations\.jsonl: line 1 is damaged \(no split\)"),
        ("metrics.jsonl", "[1]\n", r"half.metrics\.jsonl: line 1 is damaged"),
        ("evaluations.jsonl", "nothing\n", r"half.evaluations\.jsonl: damaged"),
    ],
)
def test_what_is_damaged_is_named(runs, file, content, said):
    (runs[1] / file).unlink() if content is None else (runs[1] / file).write_text(content)
    with pytest.raises(PocketCLIPError, match=said):
        write_comparison(runs, runs[0].parent / "compare.html")
    assert not (runs[0].parent / "compare.html").exists()


def test_one_runs_report_has_its_accuracy_during_training_and_its_choice(runs):
    bundle = runs[0] / "bundle" / "bundle.json"
    known = json.loads(bundle.read_text())
    known["training"] |= {"best": {"by": "unseen", "value": 60.0, "step": 20}, "ended_early": "it <was> enough"}
    bundle.write_text(json.dumps(known))
    html = write_report(runs[0]).read_text(encoding="utf-8")
    assert "Zero-shot accuracy during training" in html
    assert "those after step 20, the best by unseen" in html
    assert "it &lt;was&gt; enough" in html
    assert re.search(r"of 1 epoch that were planned, split", html)
    assert len(table(runs[0] / "figures" / "accuracy-in-training.csv")) == 1 + len(EVALUATIONS)


LOSSES = [
    {"run": run, "pairs": pairs, "seconds": rate * pairs, "loss": loss, "smoothed_loss": loss - 0.1}
    for run, rate in (("a", 30.0), ("b", 60.0))
    for pairs, loss in ((100, 3.0), (200, 2.0))
]


def test_losses_are_drawn_over_pairs_and_over_time():
    with mpl.rc_context(plots.style()):
        over_pairs, over_time = curves.losses(LOSSES).axes
    lines = {line.get_label(): line for line in over_time.get_lines()}
    assert list(lines["b"].get_xdata()) == [100 * 60 / 3600, 200 * 60 / 3600]
    assert list(lines["b"].get_ydata()) == [2.9, 1.9]
    assert over_time.get_xlabel() == "training time (hours)"
    assert lines["a"].get_color() != lines["b"].get_color()
    raw, smooth = over_pairs.get_lines()[:2]
    assert list(raw.get_xdata()) == [100, 200]
    assert list(raw.get_ydata()) == [3.0, 2.0]
    assert raw.get_color() == smooth.get_color()
    assert raw.get_alpha() < 1


def test_accuracies_have_a_row_a_split_and_each_run_the_colour_it_has_elsewhere():
    evaluations = [{"run": "b", **line} for line in EVALUATIONS]
    with mpl.rc_context(plots.style()):
        figure = curves.accuracies(evaluations, "run", ["a", "b"])
        (_, other), (legend,) = curves.losses(LOSSES).axes[0].get_lines()[1::2], figure.legends
    axes = figure.axes
    assert len(axes) == 4
    assert [one.get_ylabel() for one in axes[::2]] == ["train: top-1 (%)", "unseen: top-1 (%)"]
    (line,) = axes[2].get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([80, 160], [5.0, 15.0])
    assert line.get_color() == other.get_color()
    assert [text.get_text() for text in legend.get_texts()] == ["b"]
    assert axes[3].get_xlabel() == "training time (seconds)"


def test_a_legend_tells_runs_apart_whose_paths_begin_alike():
    names = [f"/home/someone/experiments/2026/{which}/quickstart" for which in ("first", "second")] + ["_mine"]
    table = [line | {"run": name} for name in names for line in LOSSES[:2]]
    with mpl.rc_context(plots.style()):
        (legend,) = curves.losses(table).legends
    shown = [text.get_text().strip() for text in legend.get_texts()]
    assert len(set(shown)) == len(names)
    assert [name.endswith(one.removeprefix("…")) for name, one in zip(names, shown, strict=True)] == [True] * 3
    assert all(len(one) <= 30 for one in shown)
    lines = [handle.get_color() for handle in legend.get_lines()]
    assert len(set(lines)) == len(names)


def test_nine_runs_are_told_apart_and_an_accuracy_of_zero_is_drawn():
    table = [line | {"run": str(n)} for n in range(9) for line in LOSSES[:2]]
    with mpl.rc_context(plots.style()):
        lines = curves.losses(table).axes[0].get_lines()[1::2]
        assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9
        evaluations = [{"run": "b", **line, "top_1": 0.0} for line in EVALUATIONS]
    assert plots.png(partial(curves.accuracies, evaluations, "split", ["train", "unseen"]))


def test_results_of_anybody_stand_beside_runs(runs, tmp_path):
    theirs = tmp_path / "theirs.json"
    shutil.copy(runs[0] / "evaluation" / "results.json", theirs)
    page = write_comparison([runs[0], theirs], tmp_path / "compare.html")
    facts = {name: values for name, *values in table(page.with_suffix("") / "runs.csv")}
    assert facts["run of PocketCLIP"] == ["tiny", "theirs"]
    assert facts["Top-1 on unseen"] == ["50.0 % (20.0 to 80.0; chance 14.30)"] * 2
    assert facts["Pairs seen"] == ["200", ""]
    (tmp_path / "mine.html").write_text("precious")
    with pytest.raises(PocketCLIPError, match=r"mine\.html: is there and holds no comparison"):
        write_comparison([theirs], tmp_path / "mine.html")
    done = CliRunner().invoke(app, ["report", str(theirs)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "compare.html").exists()
    alone = write_comparison([theirs, theirs], tmp_path / "alone.html")
    assert "Figures" in alone.read_text()


def test_crossings_are_said(runs, tmp_path):
    lines = [line | {"top_1": 70.0 - line["top_1"]} for line in EVALUATIONS]
    write_lines(runs[1] / "evaluations.jsonl", lines)
    html = write_comparison(runs, tmp_path / "compare.html").read_text(encoding="utf-8")
    assert "On train, tiny overtakes half after 28 seconds, at 35.0 %." in html
