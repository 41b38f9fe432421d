import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from conftest import draw, example_rows
from pocketclip.bundle import load
from pocketclip.data.rows import Row
from pocketclip.data.shards import Split, write_shards
from pocketclip.errors import DataError
from pocketclip.evaluate.results import read_lines, read_results
from pocketclip.evaluate.splits import evaluate_splits


def test_figures_equal_a_plain_count(trained: Path, folder: Path, tmp_path: Path, console: Console) -> None:
    bundle = load(trained / "bundle")
    bundle.recipe = bundle.recipe.model_copy(
        update={"evaluate": bundle.recipe.evaluate.model_copy(update={"batch_size": 7})}
    )
    results = evaluate_splits(bundle, folder, ["train", "test"], tmp_path, console, "x")
    splits = {name: Split(folder, name) for name in ("train", "test")}
    candidates = {caption for split in splits.values() for caption in split.every_caption()}
    texts = dict(zip(sorted(candidates), bundle.encode_texts(sorted(candidates)), strict=True))
    for result in results:
        split = splits[result.benchmark]
        ranks, groups = [], []
        for row in range(len(split)):
            image = bundle.encode_images([split.image(row)])[0]
            scores = sorted(((image @ text).item(), caption) for caption, text in texts.items())[::-1]
            ranks.append(min(place for place, (_, caption) in enumerate(scores) if caption in split.captions(row)))
            groups.append(split.metadata(row)["group"])
        assert result.images == len(split)
        assert result.candidates == len(candidates) == 96
        assert result.top_1 == pytest.approx(100 * np.mean([rank < 1 for rank in ranks]))
        assert result.top_5 == pytest.approx(100 * np.mean([rank < 5 for rank in ranks]))
        assert result.chance_top_1 == pytest.approx(100 * 2 / 96)
        assert result.chance_top_5 == pytest.approx(100 * (1 - np.prod([(94 - i) / (96 - i) for i in range(5)])))
        for name, group in result.groups.items():
            members = [rank < 1 for rank, other in zip(ranks, groups, strict=True) if other == name]
            assert (group.images, group.top_1) == (len(members), pytest.approx(100 * np.mean(members)))
        assert result.mean_group_top_1 == pytest.approx(np.mean([group.top_1 for group in result.groups.values()]))
        lines = read_lines(tmp_path / f"{result.benchmark}-predictions.jsonl")
        assert [line["rank"] for line in lines] == ranks
    assert read_results(tmp_path / "results.json") == results
    arrays = np.load(tmp_path / "embeddings.npz")
    assert arrays["images_train"].shape == (45, 32)


def test_the_small_model_learned_and_generalises(trained: Path, folder: Path, tmp_path: Path, console: Console) -> None:
    train, test = evaluate_splits(load(trained / "bundle"), folder, ["train", "test"], tmp_path, console, "x")
    assert train.top_1 > 80
    assert test.top_5 > 60


def test_the_same_image_twice_gives_the_same_vector(trained: Path) -> None:
    bundle = load(trained / "bundle")
    image, other = draw("red", "square", "left"), draw("blue", "pole", "right")
    alone = bundle.encode_images([image])
    torch.testing.assert_close(bundle.encode_images([other, image, image])[1:], alone.expand(2, -1), atol=1e-6, rtol=0)
    assert not bundle.model.training


def test_bad_rows_are_counted(trained: Path, tmp_path: Path, console: Console) -> None:
    rows = [
        *example_rows(test=True),
        Row("bad", b"no image", "jpg", ("red square left",)),
        Row("mute", draw("red", "bar", "left"), "png", (" ",)),
    ]
    write_shards(rows, tmp_path, "test")
    (result,) = evaluate_splits(load(trained / "bundle"), tmp_path, ["test"], tmp_path / "out", console, "x")
    assert result.dropped == {"no JPEG, PNG or WebP": 1, "empty caption": 1}
    assert result.images == 3
    write_shards(rows[-2:], tmp_path, "hopeless")
    with pytest.raises(DataError, match="no image of split hopeless can be used"):
        evaluate_splits(load(trained / "bundle"), tmp_path, ["hopeless"], tmp_path / "out", console, "x")
    with pytest.raises(DataError, match=r"'nope' is not in .*, which has hopeless, test"):
        evaluate_splits(load(trained / "bundle"), tmp_path, ["nope"], tmp_path / "out", console, "x")


def test_damaged_results_are_named(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(DataError, match="missing"):
        read_results(path)
    for content in ("{", "[]", json.dumps({"format": 3}), json.dumps({"format": 3, "results": [{}]})):
        path.write_text(content)
        with pytest.raises(DataError, match=r"results\.json: damaged"):
            read_results(path)
    path.write_text(json.dumps({"format": 99, "results": []}))
    with pytest.raises(DataError, match="format 99"):
        read_results(path)
