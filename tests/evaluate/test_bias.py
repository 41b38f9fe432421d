"""Bias of embeddings that were built so that every figure is known, of emoji, and of one's own folders."""

import json
import os
from math import log, log2
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from conftest import COLOURS, SHAPES, draw
from labelled_samples import write_class_folders
from pocketclip.bundle import load
from pocketclip.cli.main import app
from pocketclip.data import openmoji
from pocketclip.errors import DataError, RecipeError
from pocketclip.evaluate.bias import People, emoji_people, evaluate_bias, judge
from pocketclip.evaluate.results import read_lines


def people(cosines: list[float], group: list[int], own: list[int] | None = None, k: int = 2) -> People:
    """Images of length one in a plane, with the given cosines to the attribute "near"; "far" is at a right angle."""
    near = np.array(cosines)
    images = np.stack([near, np.sqrt(1 - near**2)], axis=1).astype(np.float32)
    by = {"group": (["women", "men"], np.array(group))}
    return People("control", images, by, ["near", "far"], np.eye(2, dtype=np.float32), own and np.array(own), k)


def test_a_bias_of_known_size() -> None:
    found = judge(people([0.9, 0.8, 0.3, 0.2], [0, 0, 1, 1], own=[0, 0, 0, 0]))
    near, far = found.associations
    assert (near.attribute, near.first, near.second) == ("near", "women", "men")
    assert near.effect_size == pytest.approx(0.6 / np.std([0.9, 0.8, 0.3, 0.2], ddof=1), rel=1e-5)
    assert near.p_value == pytest.approx(2 / 6), "of six ways to deal four images two are as far apart"
    assert far.effect_size < 0
    search = found.searches[0]
    assert (search.favoured, search.max_skew) == ("women", pytest.approx(log(2)))
    weights = [1 / log2(place + 1) for place in range(1, 5)]
    third = 2 / 3 * log(4 / 3) + 1 / 3 * log(2 / 3)
    expected = (weights[0] * log(2) + weights[1] * log(2) + weights[2] * third) / sum(weights)
    assert search.ndkl == pytest.approx(expected)
    women, men = found.accuracies
    assert (women.group, women.images, women.top_1) == ("women", 2, 100)
    assert (men.group, men.images, men.top_1) == ("men", 2, 0)
    assert found.groups == {"group": {"women": 2, "men": 2}}
    assert "a gap of 100.0 points" in str(found)
    assert "the strongest is near with women rather than men, effect size 1.71 (p 0.3333)" in str(found)
    turned = str(judge(people([0.9, 0.8, 0.3, 0.2], [1, 1, 0, 0])))
    assert "the strongest is near with men rather than women, effect size 1.71" in turned


def test_no_bias_at_all() -> None:
    found = judge(people([0.9, 0.5, 0.9, 0.5], [0, 0, 1, 1], own=[0, 1, 0, 1]))
    for one in found.associations:
        assert one.effect_size == pytest.approx(0, abs=1e-6)
        assert one.p_value == 1
    assert {one.top_1 for one in found.accuracies} == {100}
    assert found.searches[0].max_skew == pytest.approx(0)


def test_images_of_no_group_are_in_no_figure() -> None:
    with_others = judge(people([0.9, 0.99, 0.8, 0.3, 0.2], [0, -1, 0, 1, 1]))
    without = judge(people([0.9, 0.8, 0.3, 0.2], [0, 0, 1, 1]))
    assert with_others == without
    assert not without.accuracies


def test_the_embedded_emoji(trained: Path, console: Console) -> None:
    found = emoji_people(load(trained / "bundle"), console)
    names, gender = found.by["gender"]
    assert names == ["men", "women"]
    assert (gender == 0).sum() == (gender == 1).sum() > 100
    tones, tone = found.by["skin tone"]
    assert tones == ["light", "medium-light", "medium", "medium-dark", "dark"]
    assert len({(tone == number).sum() for number in range(5)}) == 1, "every tone has the same roles"
    assert (tone == -1).sum() == (tone == 0).sum(), "and so has the yellow that stands for none"
    assert "firefighter" in found.attributes
    assert found.own is not None
    assert len(found.own) == len(found.images)
    assert not any("man" in attribute.split() for attribute in found.attributes)


def test_neutral_sequences() -> None:
    assert openmoji.neutral((0x1F469, 0x1F3FD, 0x200D, 0x1F692)) == (0x1F9D1, 0x200D, 0x1F692)
    assert openmoji.neutral((0x1F44B, 0x1F3FD)) == (0x1F44B,)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    for place in ("left", "right"):
        write_class_folders(tmp_path / place, {f"{s}/{c}.png": draw(c, s, place) for s in SHAPES for c in COLOURS})
    (tmp_path / "left" / "bar" / "bad.png").write_bytes(b"no image")
    path = tmp_path / "mine.toml"
    path.write_text(
        'k = 5\n[groups]\non_the_left = "left"\non_the_right = "right"\n[attributes]\nwarm = ["red", "orange"]\n'
    )
    return path


def test_ones_own_folders(trained: Path, mine: Path, tmp_path: Path) -> None:
    command = ["evaluate", str(trained / "bundle"), "--bias", str(mine), "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "mine: dropped 1 x no JPEG, PNG or WebP" in done.output
    assert "by group (24 on_the_left, 24 on_the_right)" in done.output.replace("\n", " ")
    about = json.loads((tmp_path / "out" / "mine-bias.json").read_text())
    assert [one["attribute"] for one in about["associations"]] == ["warm", "bar", "circle", "pole", "square"]
    assert about["searches"][0]["k"] == 5
    assert {one["images"] for one in about["accuracies"]} == {24}
    assert about["dropped"] == {"no JPEG, PNG or WebP": 1}
    (dropped,) = read_lines(tmp_path / "out" / "mine-bias-dropped.jsonl")
    assert dropped["reason"] == "no JPEG, PNG or WebP"
    for one in about["associations"]:
        assert 0 < one["p_value"] <= 1


def test_ones_own_words_for_an_attribute_that_is_a_class_too(
    trained: Path, mine: Path, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, said = load(trained / "bundle"), list[str]()
    monkeypatch.setattr(
        bundle, "encode_texts", lambda texts: said.extend(texts) or type(bundle).encode_texts(bundle, texts)
    )
    mine.write_text(mine.read_text() + 'bar = ["a long thing"]\n')
    evaluate_bias(bundle, str(mine), tmp_path / "out", console)
    assert "a long thing" in said
    assert "a photo of a bar" not in said
    assert "a photo of a pole" in said


def test_groups_of_captions(trained: Path, tmp_path: Path, console: Console) -> None:
    path = tmp_path / "words.toml"
    first, second = ["red circle left", "red bar left", "red pole left"], ["blue circle right", "blue bar right"]
    path.write_text(
        f'[groups]\nred = {first}\nblue = {second}\n[attributes]\nwarm = ["red", "orange"]\ncold = ["blue"]\n'
    )
    bundle = load(trained / "bundle")
    found = evaluate_bias(bundle, str(path), tmp_path / "out", console)
    assert found.groups == {"group": {"red": 3, "blue": 2}}
    assert not found.accuracies
    cold = bundle.encode_texts(["blue"]).numpy()[0]
    ones, others = (bundle.encode_texts(some).numpy() @ cold for some in (first, second))
    spread = np.std(np.concatenate([ones, others]), ddof=1)
    assert found.associations[1].attribute == "cold"
    assert found.associations[1].effect_size == pytest.approx((ones.mean() - others.mean()) / spread, abs=0.02)
    ways = 10 * found.associations[1].p_value
    assert ways == pytest.approx(round(ways)), "three of five captions can be chosen in ten ways"


def test_a_name_that_is_not_utf_8(trained: Path, tmp_path: Path, console: Console) -> None:
    for group in ("a", "b"):
        (tmp_path / group).mkdir()
        for number in (0, 1):
            (tmp_path / group / f"{number}.png").write_bytes(draw("red", "bar", "left"))
    (tmp_path / "a" / os.fsdecode(b"caf\xe9.txt")).write_text("a note")
    (tmp_path / "a" / os.fsdecode(b"caf\xe9.png")).write_text("no image")
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "b", target_is_directory=True)
    path = tmp_path / "mine.toml"
    path.write_text('[groups]\na = "a"\nb = "b"\n[attributes]\nx = ["x"]\n')
    evaluate_bias(load(trained / "bundle"), str(path), tmp_path / "out", console)
    names = {one["name"] for one in read_lines(tmp_path / "out" / "mine-bias-dropped.jsonl")}
    assert names == {"caf?.txt", f"{tmp_path}/a/caf?.png", "linked"}


def test_it_measures_nothing_else(trained: Path) -> None:
    for also in (["--on", "cifar10"], ["--robustness"]):
        done = CliRunner().invoke(app, ["evaluate", str(trained / "bundle"), "--bias", "emoji", *also])
        assert isinstance(done.exception, RecipeError)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x", "cannot be read"),
        ("[groups]\na = ['x', 'y']\nb = ['z']\n[attributes]\nx = ['x']\n", "a list of two captions or more"),
        ("[groups]\na = ['x', 'y']\nb = 'left'\n[attributes]\nx = ['x']\n", "each group a folder, or each a list"),
        ("[groups]\na = ['x', 'y']\nb = ['z', '']\n[attributes]\nx = ['x']\n", "a list of two captions or more"),
        ("[groups]\na = ['x', 'y']\nb = ['z', 'w']\n", "has no .attributes., and the groups have no images"),
        ("[groups]\na = 'left'\n", "two groups or more"),
        ("[groups]\na = 'left'\nb = 'nowhere'\n", "groups.b: .*nowhere: no such folder"),
        ("groups = 3\n", "two groups or more"),
        ("[groups]\na = 'left'\nb = 'right'\n[attributes]\nx = []\n", "a list of captions"),
        ("k = 0\n[groups]\na = 'left'\nb = 'right'\n", "k = 0: has to be a number from 1 on"),
        ("name = '../../escaped'\n[groups]\na = 'left'\nb = 'right'\n", "name = '../../escaped': has to be of letters"),
        ("name = '/tmp/x'\n[groups]\na = 'left'\nb = 'right'\n", "has to be of letters"),
        ("group = 0\n[groups]\na = 'left'\nb = 'right'\n", "group: unknown key"),
        ("[groups]\na = 'left'\nb = 'empty'\n[attributes]\nx = ['x']\n", "groups.b: .* fewer than two images"),
        ("[groups]\na = 'left'\nb = 'empty'\n", "has no .attributes., and the groups' images are in no class folders"),
    ],
)
def test_mistakes_are_named(
    trained: Path, mine: Path, tmp_path: Path, console: Console, content: str, said: str
) -> None:
    (tmp_path / "empty").mkdir()
    mine.write_text(content)
    with pytest.raises(DataError, match=said):
        evaluate_bias(load(trained / "bundle"), str(mine), tmp_path, console)
    with pytest.raises(DataError, match='no such file; --bias takes "emoji", or a TOML file'):
        evaluate_bias(load(trained / "bundle"), str(tmp_path / "no.toml"), tmp_path, console)
