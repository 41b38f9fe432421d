"""Figures of anybody's own images, from the command line."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from conftest import draw
from pocketclip.bundle import load
from pocketclip.cli.main import app
from pocketclip.errors import DataError
from pocketclip.show import explanation, plots
from pocketclip.show.pictures import thumbnail

CAPTIONS = ["red circle left", "a pole in blue, right", "green bar left"]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = []
    for number, what in enumerate((("red", "circle", "left"), ("blue", "pole", "right"))):
        path = tmp_path / f"{number}.png"
        path.write_bytes(draw(*what))
        paths.append(path)
    return paths


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.txt"
    path.write_text("\ufeff" + "\n\n".join(CAPTIONS) + "\n", encoding="utf-8")
    return path


def run(*arguments: object):
    return CliRunner().invoke(app, [str(one) for one in arguments])


def test_a_matrix_is_what_the_model_says(trained: Path, images: list[Path], captions: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.png"
    done = run("matrix", *images, "--captions", captions, "--bundle", trained / "bundle", "--output", output)
    assert done.exit_code == 0, done.output
    assert "2 images against 3 captions" in done.output
    head, *rows = csv.reader(output.with_suffix(".csv").read_text(encoding="utf-8").splitlines())
    assert head == ["caption", *map(str, images)]
    assert [row[0] for row in rows] == CAPTIONS
    bundle = load(trained / "bundle")
    expected = (bundle.encode_texts(CAPTIONS) @ bundle.encode_images(images).T).numpy()
    assert np.array([row[1:] for row in rows]).astype(float) == pytest.approx(expected, abs=1e-5)
    assert output.read_bytes().startswith(b"\x89PNG")


def test_what_is_no_figure_of_ours_is_never_replaced(trained: Path, images: list[Path], tmp_path: Path) -> None:
    captions = images[0].with_suffix(".csv")
    captions.write_text("\n".join(CAPTIONS))
    before = images[0].read_bytes()
    asked = ["matrix", *images, "--captions", captions, "--bundle", trained / "bundle", "--output"]
    for output, kept in ((images[0], "0.png"), (tmp_path / "free.png", "free.csv")):
        (tmp_path / "free.csv").write_text("mine")
        done = run(*asked, output)
        assert isinstance(done.exception, DataError)
        assert f"{kept}: is there, and not a figure of PocketCLIP's; choose another --output" in str(done.exception)
    assert images[0].read_bytes() == before
    assert captions.read_text() == "\n".join(CAPTIONS)
    assert (tmp_path / "free.csv").read_text() == "mine"
    for _ in range(2):  # one's own may be drawn anew
        assert run(*asked, tmp_path / "m.png").exit_code == 0
    done = run(
        "explain", images[1], "[/]", "a [red] :dog:", "--bundle", trained / "bundle", "--output", tmp_path / "e.png"
    )
    assert done.exit_code == 0, done.output
    assert "[/]: cosine" in done.output
    assert "a [red] :dog:: cosine" in done.output


def test_thumbnails_are_upright(tmp_path: Path) -> None:
    lying = Image.new("RGB", (40, 20), "red")
    lying.paste("blue", (0, 0, 20, 20))
    about = Image.Exif()
    about[0x0112] = 6  # the camera was turned: the left side belongs at the top
    content = io.BytesIO()
    lying.save(content, "JPEG", exif=about, quality=95)
    (tmp_path / "a.jpg").write_bytes(content.getvalue())
    shown = thumbnail(tmp_path / "a.jpg").astype(int)
    assert shown.shape == (160, 160, 3)
    assert (shown[20, :, 2] > 200).all()
    assert (shown[-20, :, 0] > 200).all()


def test_mistakes_are_named(trained: Path, images: list[Path], captions: Path, tmp_path: Path) -> None:
    model = ("--bundle", trained / "bundle")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "bad.png").write_bytes(b"no image")
    many = [images[0]] * 21
    for arguments, message in (
        ((*many, "--captions", captions), "21 images: more than 20 cannot be read in one figure"),
        ((*images, "--captions", tmp_path / "none.txt"), "none.txt: cannot be read"),
        ((*images, "--captions", tmp_path / "empty.txt"), "holds no caption"),
        ((*images, "--captions", captions, "--output", tmp_path / "x.jpg"), "the figure is a PNG"),
        ((tmp_path / "bad.png", "--captions", captions), "bad.png: no JPEG, PNG or WebP"),
    ):
        done = run("matrix", *arguments, *model)
        assert isinstance(done.exception, DataError), message
        assert message in str(done.exception)
    done = run("explain", tmp_path / "bad.png", "a cat", *model)
    assert "bad.png: no JPEG, PNG or WebP" in str(done.exception)


def test_an_explanation_adds_up(trained: Path, images: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "e.png"
    done = run("explain", images[0], *CAPTIONS[:2], "--bundle", trained / "bundle", "--output", output)
    assert done.exit_code == 0, done.output
    first, second = json.loads(output.with_suffix(".json").read_text())
    assert (first["caption"], second["caption"]) == tuple(CAPTIONS[:2])
    assert first["cosine"] > second["cosine"]
    assert np.sum(first["patches"]) == pytest.approx(first["cosine"] - first["cosine_of_mean_colour"], abs=0.03)
    assert f"{CAPTIONS[0]}: cosine {first['cosine']:.3f}" in done.output
    assert output.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_figure_of_an_explanation_shows_its_values(count: int) -> None:
    import matplotlib as mpl

    values = np.array([[0.25, -0.5], [0.0, 0.125]])
    image = np.full((32, 32, 3), 128, np.uint8)
    with mpl.rc_context(plots.style()):
        figure = explanation.explanations(image, ["a caption"] * count, [0.125] * count, [values] * count)
        panels = [axes for axes in figure.axes if axes.get_title()]
        assert len(panels) == count
        for axes in panels:
            assert axes.get_title() == "a caption\ncosine 0.12"
            assert [text.get_text() for text in axes.texts] == ["0.25", "−0.50", "0.00", "0.12"]
            assert np.array_equal(axes.images[1].get_array(), values)
            low, high = axes.images[1].get_clim()
            assert (low, high) == (-0.5, 0.5), "no colour where nothing is added"
