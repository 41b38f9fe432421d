import base64
import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.numpy import save_file

from pocketclip.data.rows import Row
from pocketclip.data.shards import splits_in, write_manifest, write_shards
from pocketclip.errors import DataError
from pocketclip.evaluate.results import GroupResult, Result, write_results
from pocketclip.recipe.toml import parse_recipe, to_toml
from pocketclip.show import plots
from pocketclip.show.examples import best_and_worst, ranking, spread_images
from pocketclip.show.report import write_report
from pocketclip.show.run import FinishedRun

EVIL = '<script>alert("x")</script> & $x_1$'
CAPTIONS = [["a dog", "hound"], ["a cat"], ["hound"], [EVIL], ["犬 🫠"], ["a tree"]]
METRICS = [
    {"step": step, "epoch": step / 25, "pairs": 8 * step, "seconds": 2.0 * step, "loss": loss, "learning_rate": rate}
    | {"memory_mb": 100.0 + step}
    for step, loss, rate in ((10, 2.0, 1e-3), (20, 1.5, 5e-4), (25, 1.25, 0.0))
]


def image(number):
    content = io.BytesIO()
    Image.new("RGB", (12, 12), (40 * number, 0, 255 - 40 * number)).save(content, "PNG")
    return content.getvalue()


def rows(names):
    return [Row(str(n), image(n), "png", tuple(captions)) for n, captions in enumerate(names)]


def vectors():
    """Captions along the axes of a space; images that point at their first caption, but for the fifth."""
    texts = np.eye(7, dtype=np.float32)
    images = texts[[0, 2, 1, 3, 5, 5]] * 0.8 + texts[6] * 0.6
    return images, texts


CANDIDATES = ["a dog", "hound", "a cat", EVIL, "犬 🫠", "a tree", "a house"]


def predictions():
    images, texts = vectors()
    for row, captions in enumerate(CAPTIONS):
        scores = images[row] @ texts.T
        order = np.argsort(-scores, kind="stable")
        right = max(scores[CANDIDATES.index(caption)] for caption in captions)
        wrong = [score for score, caption in zip(scores, CANDIDATES, strict=True) if caption not in captions]
        yield {
            "row": row,
            "group": "animals" if row < 3 else "rest <b>",
            "captions": captions,
            "rank": int(sum(score >= right for score in wrong)),
            "best": [[CANDIDATES[n], round(float(scores[n]), 4)] for n in order[:3]],
        }


def result(split, dropped=None):
    groups = {"animals": GroupResult(3, 66.7, 100.0), "rest <b>": GroupResult(3, 33.3, 66.7)}
    recall = {f"{way}_recall@{k}": 10.0 * k for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)}
    sure = {"top_1": (20.0, 80.0)}
    accuracies = 50.0, 83.3, 90.0, 14.3, 71.4, 100.0, 50.0
    guessed = {name: value / 2 for name, value in recall.items()}
    return Result(split, 6, 7, *accuracies, groups, recall, dropped or {}, intervals=sure, chance_recall=guessed)


def make_run(folder):
    """A run's folder as training and evaluation leave it, invented."""
    data, run = folder / "data", folder / "runs" / "tiny"
    for split in ("train", "unseen"):
        write_shards(rows(CAPTIONS), data, split)
    write_manifest(data, {"source": "openmoji", "attribution": {"pictures": "By <Someone>", "licence": "CC BY-SA 4.0"}})
    values = {"name": "tiny", "data": {"folder": str(data)}, "image": {"size": 32}}
    values["train"] = {"batch_size": 8, "epochs": 1}
    (run / "bundle").mkdir(parents=True)
    (run / "recipe.toml").write_text(to_toml(parse_recipe(values, "test")), encoding="utf-8")
    (run / "environment.json").write_text(
        json.dumps({"device": "cpu", "precision": "float32", "packages": {"a": "1.2"}})
    )
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    training = {"steps": 25, "seconds": 50.0, "pairs": 200, "loss": 1.25, "dropped": {"damaged image": 3}}
    (run / "bundle" / "bundle.json").write_text(json.dumps({"format": 1, "training": training}))
    save_file({"a": np.zeros((3, 4)), "b": np.zeros(())}, run / "bundle" / "model.safetensors")
    images, texts = vectors()
    arrays = {"captions": np.frombuffer(json.dumps(CANDIDATES).encode(), np.uint8), "texts": texts.astype(np.float16)}
    (run / "evaluation").mkdir()
    for split in ("train", "unseen"):
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in predictions()]
        (run / "evaluation" / f"{split}-predictions.jsonl").write_text("".join(lines), encoding="utf-8")
        arrays[f"images_{split}"] = images.astype(np.float16)
    np.savez(run / "evaluation" / "embeddings.npz", **arrays)
    results = [result("train"), result("unseen", {"damaged image": 2})]
    write_results(run / "evaluation" / "results.json", "b", "seal", results)
    return run


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run to change; its figures are not really drawn, which would take most of the time."""
    content, about = io.BytesIO(), PngInfo()
    about.add_text("Software", plots.SOFTWARE)
    Image.new("RGB", (2, 2)).save(content, "PNG", pnginfo=about)
    monkeypatch.setattr(plots, "png", lambda _draw: content.getvalue())
    return make_run(tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A run with its report, to read only."""
    run = make_run(tmp_path_factory.mktemp("reported"))
    write_report(run)
    return run


def table(run, name):
    with (run / "figures" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_numbers_beside_the_figures_are_those_of_the_run(reported):
    training = table(reported, "training.csv")
    assert [float(line["loss"]) for line in training] == [2.0, 1.5, 1.25]
    assert [int(line["pairs"]) for line in training] == [80, 160, 200]
    assert [float(line["learning_rate"]) for line in training] == [1e-3, 5e-4, 0.0]
    assert table(reported, "accuracy.csv")[2:] == [
        {"split": "unseen", "k": "1", "accuracy": "50.0", "chance": "14.3"},
        {"split": "unseen", "k": "5", "accuracy": "83.3", "chance": "71.4"},
    ]
    assert table(reported, "groups-unseen.csv")[1] == {
        "group": "rest <b>",
        "images": "3",
        "top_1": "33.3",
        "top_5": "66.7",
        "chance_top_1": "14.3",
        "chance_top_5": "71.4",
    }
    recall = {(line["split"], line["direction"], line["k"]): line["recall"] for line in table(reported, "recall.csv")}
    assert recall["train", "image → caption", "5"] == "50.0"
    assert len(recall) == 12


def test_the_cosines_are_those_of_the_embeddings(reported):
    images, texts = vectors()
    lines = table(reported, "cosines-unseen.csv")
    for line in lines:
        expected = images[int(line["row"])] @ texts[CANDIDATES.index(line["caption"])]
        assert float(line["cosine"]) == pytest.approx(expected, abs=1e-3)
        assert line["right"] == str(line["caption"] in CAPTIONS[int(line["row"])])
    assert len(lines) == 25  # the third image shares a caption with the first and is passed over


def test_the_matrix_shows_evenly_spaced_images_without_a_common_caption(run):
    (split,) = FinishedRun(run).test_splits()
    assert spread_images(split, 10) == [0, 1, 3, 4, 5]
    assert spread_images(split, 3) == [0, 3, 4]
    assert spread_images(split, 2) == [0, 3]


def test_best_and_worst_go_by_rank_and_margin(run):
    (split,) = FinishedRun(run).test_splits()
    split.predictions[1]["best"] = [["a cat", 0.95], ["a dog", 0.5]]
    best, worst = best_and_worst(split, 2)
    assert best[0] == 1
    assert worst[0] == 4
    assert split.predictions[4]["rank"] == max(line["rank"] for line in split.predictions)
    everything = [*best_and_worst(split, 5)[0], *best_and_worst(split, 5)[1]]
    assert sorted(everything) == list(range(6))


def test_a_right_caption_that_the_best_miss_is_added_with_its_place_and_cosine(run):
    (split,) = FinishedRun(run).test_splits()
    bars = ranking(split, 4)["bars"]
    assert [bar["right"] for bar in bars] == [False, False, False, True]
    assert bars[-1]["caption"] == CAPTIONS[4][0]
    assert bars[-1]["place"] == split.predictions[4]["rank"] + 1
    assert bars[-1]["cosine"] == pytest.approx(0.0, abs=1e-3)
    assert [bar["right"] for bar in ranking(split, 1)["bars"]] == [True, False, False]


def test_the_rankings_are_kept_beside_their_figure(reported):
    (split,) = FinishedRun(reported).test_splits()
    kept = json.loads((reported / "figures" / "worst-unseen.json").read_text(encoding="utf-8"))
    assert kept == [ranking(split, number) for number in best_and_worst(split, 5)[1]]


def test_thumbnails_are_the_pictures_of_the_shards(run):
    (split,) = FinishedRun(run).test_splits()
    assert split.thumbnail(5, 32).tolist() == np.full((32, 32, 3), (200, 0, 55)).tolist()


def test_the_page_holds_every_figure_and_nothing_from_elsewhere(reported):
    html = (reported / "report.html").read_text(encoding="utf-8")
    pictures = {png.read_bytes() for png in (reported / "figures").glob("*.png")}
    held = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    assert {base64.b64decode(text) for text in held} == pictures
    assert len(pictures) == 7
    assert {png.stem for png in (reported / "figures").glob("*.png")} == {
        data.stem for data in (reported / "figures").iterdir() if data.suffix != ".png"
    }
    assert html.count("src=") == len(held)
    assert not re.search(r"href=|<link|<script|<iframe|@import|url\(", html)
    assert "Content-Security-Policy" in html


def test_what_comes_from_the_data_is_escaped(run):
    recipe = run / "recipe.toml"
    evil = run.parent.parent / "<script>"
    shutil.move(run.parent.parent / "data", evil)
    recipe.write_text(re.sub('folder = ".*"', f'folder = "{evil}"', recipe.read_text()))
    results = [result("unseen", {EVIL: 1})]
    write_results(run / "evaluation" / "results.json", "b", "seal", results)
    html = write_report(run).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;alert(&quot;x&quot;)" in html
    assert "By &lt;Someone&gt;" in html
    assert json.loads((run / "figures" / "best-unseen.json").read_text(encoding="utf-8"))


def test_the_page_states_the_figures_and_the_facts(reported):
    html = (reported / "report.html").read_text(encoding="utf-8")
    for text in (
        "<td>50.0 %<br><small>chance 14.3 %</small></td>",
        "<td>83.3 %<br><small>chance 71.4 %</small></td>",
        "<td>unseen</td><td>top-1</td><td>50.00</td><td>20.00</td><td>80.00</td><td>14.30</td>",
        "<td>unseen</td><td>mean over groups, top-1</td><td>50.00</td><td></td><td></td><td></td>",
        "<td>unseen</td><td>caption → image recall@5</td><td>50.00</td><td></td><td></td><td>25.00</td>",
        "unseen: 2 × damaged image",
        "3 × damaged image",
        "<td>4 pairs/s</td>",
        "<td>13</td>",
        "50 seconds",
        "1.250 (chance: 2.079)",
        "<td>125 MB at most</td>",
        "float32",
        "a 1.2",
        "CC BY-SA 4.0",
        "batch_size = 8",
        f"pocketclip train recipe.toml --runs {reported.parent}",
    ):
        assert text in html, text


@pytest.mark.parametrize(
    ("name", "verb"),
    [
        ("recipe.toml", "train"),
        ("environment.json", "train"),
        ("metrics.jsonl", "train"),
        ("bundle/bundle.json", "train"),
        ("evaluation/results.json", "evaluate"),
        ("evaluation/embeddings.npz", "evaluate"),
        ("evaluation/unseen-predictions.jsonl", "evaluate"),
    ],
)
def test_a_missing_file_is_named_with_the_verb_that_writes_it(run, name, verb):
    (run / name).unlink()
    with pytest.raises(DataError, match=f"{re.escape(name)}: missing; .*pocketclip {verb}"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_missing_shards_are_named(run):
    data = run.parent.parent / "data"
    for path in data.glob("unseen-*"):
        path.unlink()
    assert splits_in(data) == ["train"]
    with pytest.raises(DataError, match="no shards named unseen-"):
        write_report(run)


@pytest.mark.parametrize("names", [CAPTIONS[:3], CAPTIONS[::-1]], ids=["fewer", "others"])
def test_shards_that_changed_since_the_evaluation_are_refused(run, names):
    data = run.parent.parent / "data"
    for path in data.glob("unseen-*"):
        path.unlink()
    write_shards(rows(names), data, "unseen")
    with pytest.raises(DataError, match=r"row \d of unseen: .*; evaluate the run again"):
        write_report(run)


@pytest.mark.parametrize("name", ["environment.json", "bundle/bundle.json", "evaluation/embeddings.npz"])
def test_a_damaged_file_is_named(run, name):
    (run / name).write_text("[}")
    with pytest.raises(DataError, match=re.escape(name)):
        write_report(run)


def test_predictions_of_another_evaluation_are_refused(run):
    path = run / "evaluation" / "unseen-predictions.jsonl"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]), encoding="utf-8")
    with pytest.raises(DataError, match="different evaluations"):
        write_report(run)


def test_a_run_evaluated_on_its_training_split_alone_shows_that(run):
    write_results(run / "evaluation" / "results.json", "b", "seal", [result("train")])
    write_report(run)
    assert (run / "figures" / "cosines-train.png").exists()


def test_a_second_report_replaces_the_first(run):
    first = write_report(run).read_bytes()
    own = (run / "figures" / "training.png").read_bytes()
    (run / "figures" / "groups-gone.png").write_bytes(own)  # of an earlier evaluation
    (run / "figures" / "groups-gone.csv").write_text("")
    assert write_report(run).read_bytes() == first
    assert not list((run / "figures").glob("groups-gone.*"))


def test_what_no_report_wrote_is_not_lost_by_one(run):
    write_report(run)
    (run / "figures" / "mine.txt").write_text("notes")
    with pytest.raises(DataError, match=r"mine\.txt: no report wrote it, and .*figures would be replaced"):
        write_report(run)
    assert (run / "figures" / "mine.txt").read_text() == "notes"


def test_an_evaluation_of_another_bundle_is_not_taken_for_this_ones(run):
    path = run / "bundle" / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"seal": "another"}))
    with pytest.raises(DataError, match=r"results\.json: is of another bundle than lies beside it; evaluate again"):
        write_report(run)


def test_without_a_manifest_the_page_says_so(run):
    (run.parent.parent / "data" / "manifest.json").unlink()
    assert "names no author and no licence" in write_report(run).read_text(encoding="utf-8")
