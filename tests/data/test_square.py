"""What a model sees, held against the whole image's decoding and Pillow's resizing."""

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from scipy.stats import ks_2samp

from pocketclip.data import square
from pocketclip.data.batches import random_cut
from pocketclip.data.images import LONGEST, Pixels, middle, open_image, to_square
from pocketclip.data.square import decode
from pocketclip.recipe.schema import ImageSettings

PHOTOS = ("china.jpg", "flower.jpg")  # scikit-learn's, 640 x 427 pixels


@lru_cache
def photo(name: str, width: int = 640, height: int = 427, quality: int = 95) -> bytes:
    picture = Image.open(io.BytesIO(files("sklearn.datasets.images").joinpath(name).read_bytes()))
    buffer = io.BytesIO()
    picture.resize((width, height), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def exactly(data: bytes, size: int) -> Pixels:
    """The definition, in two steps: the short side to `size`, then the middle, rounded as torchvision rounds."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    long = int(size * max(image.size) / min(image.size))
    shape = (size, long) if image.width <= image.height else (long, size)
    left, top = round((shape[0] - size) / 2), round((shape[1] - size) / 2)
    resized = image.resize(shape, Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + size, top + size)))


def levels(one: Pixels, other: Pixels) -> Pixels:
    return np.abs(one.astype(int) - other.astype(int))


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 99))
def test_the_exact_path_is_resizing_and_then_cutting(width: int, height: int, size: int, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    found = decode(buffer.getvalue(), ImageSettings(size=size, decoding="exact"))
    assert found.shape == (size, size, 3)
    if max(width, height) <= LONGEST * min(width, height):
        assert (found == exactly(buffer.getvalue(), size)).all()
    assert (found == to_square(open_image(buffer.getvalue()), size)).all()


@pytest.mark.parametrize("size", [64, 112, 160, 224])
@pytest.mark.parametrize("sides", [(640, 427), (427, 640), (513, 513), (905, 601), (1801, 1201)])
@pytest.mark.parametrize("name", PHOTOS)
def test_scaled_decoding_stays_close_to_the_exact_path(name: str, sides: tuple[int, int], size: int) -> None:
    # A square that lies half a pixel off differs by 4 to 9 levels in the mean, and by 100 and more in the worst.
    data = photo(name, *sides)
    difference = levels(decode(data, ImageSettings(size=size)), exactly(data, size))
    assert difference.mean() < 3
    assert difference.max() < 60
    reach = min(sides) / size
    if reach < 2:  # decoded whole: only the resizing is another one
        assert difference.max() <= 2


@pytest.mark.parametrize("rest", range(8))
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_jpeg_whose_sides_are_no_multiple_is_not_stretched(scale: int, rest: int) -> None:
    side = 8 * 40 + rest
    picture = Image.new("RGB", (side, side), "white")
    far = side - 24
    ImageDraw.Draw(picture).rectangle((far, far, side, side), fill="black")  # its inner corner lies near the far edge
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    size = 320 // scale

    def edge(pixels: Pixels) -> float:
        """Where the last row turns from white to black, pixels."""
        return float(pixels[-1, :, 0].sum() / 255)

    found, exact = decode(buffer.getvalue(), ImageSettings(size=size)), exactly(buffer.getvalue(), size)
    assert abs(edge(found) - edge(exact)) < 0.15


def decoded_sizes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Height and width of what is decoded from now on."""
    seen: list[tuple[int, int]] = []
    to_pixels = square.to_pixels

    def noted(*arguments: object) -> Pixels:
        pixels: Pixels = to_pixels(*arguments)
        seen.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(square, "to_pixels", noted)
    return seen


@pytest.mark.parametrize(
    ("sides", "size", "decoded"),
    [((640, 480), 224, (240, 320)), ((640, 480), 112, (120, 160)), ((640, 480), 241, (480, 640)),
     ((480, 640), 120, (160, 120)), ((480, 640), 121, (320, 240)), ((1600, 1601), 200, (201, 200)),
     ((1600, 1600), 10, (200, 200)), ((30, 20), 224, (20, 30))],
)  # fmt: skip
def test_a_jpeg_is_decoded_no_larger_than_needed_and_never_smaller(
    sides: tuple[int, int], size: int, decoded: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = decoded_sizes(monkeypatch)
    decode(photo("china.jpg", *sides), ImageSettings(size=size))
    assert seen == [decoded]


@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 130), st.floats(0.01, 1), st.integers(0, 2**32))
def test_random_cuts_lie_inside_and_keep_their_share(
    width: int, height: int, size: int, share: float, seed: int
) -> None:
    cut = random_cut(width, height, size, share, np.random.default_rng(seed))
    assert 0 <= cut.left <= width - cut.width
    assert 0 <= cut.top <= height - cut.height
    assert (cut.columns, cut.rows, cut.right, cut.down) == (size, size, 0, 0)
    assert (cut.width + 0.5) / (cut.height - 0.5) >= 3 / 4 - 1e-9 or cut.width == width
    assert (cut.width - 0.5) / (cut.height + 0.5) <= 4 / 3 + 1e-9 or cut.height == height
    if 3 / 4 <= width / height <= 4 / 3:
        assert (cut.width + 0.5) * (cut.height + 0.5) >= share * width * height


CUTS = [((640, 480), 0.9), ((300, 300), 0.08), ((333, 1000), 0.5)]


def compare_cuts(sides: tuple[int, int], share: float, theirs: Callable[[], tuple[int, int, int, int]]) -> None:
    """Many cuts, ours and `theirs` (left, top, wide, high): area, logarithm of the proportion, place."""
    random = np.random.default_rng(0)
    cuts = [random_cut(*sides, 64, share, random) for _ in range(4000)]
    one, other = ([(cut.left, cut.top, cut.width, cut.height) for cut in cuts], [theirs() for _ in range(4000)])
    for found, expected in zip(measures(one, *sides), measures(other, *sides), strict=True):
        assert ks_2samp(found, expected).pvalue > 1e-4


def measures(cuts: list[tuple[int, int, int, int]], width: int, height: int) -> list[np.ndarray]:
    left, top, wide, high = np.array(cuts, float).T
    right, down = left / np.maximum(width - wide, 1), top / np.maximum(height - high, 1)
    return [wide * high / (width * height), np.log(wide / high), right, down]


@pytest.mark.parametrize(("sides", "share"), CUTS)
def test_random_cuts_are_uniform_in_area_logarithm_of_proportion_and_place(
    sides: tuple[int, int], share: float
) -> None:
    random, (width, height) = np.random.default_rng(1), sides

    def plainly() -> tuple[int, int, int, int]:
        for _ in range(10):
            area = width * height * random.uniform(share, 1)
            proportion = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
            wide, high = int(np.rint((area * proportion) ** 0.5)), int(np.rint((area / proportion) ** 0.5))
            if wide <= width and high <= height:
                return random.integers(width - wide + 1), random.integers(height - high + 1), wide, high
        wide, high = min(width, height * 4 // 3), min(height, round(width * 4 / 3))
        return (width - wide) // 2, (height - high) // 2, wide, high

    compare_cuts(sides, share, plainly)


@pytest.mark.peer
@pytest.mark.parametrize(("sides", "share"), CUTS)
def test_random_cuts_are_drawn_as_torchvision_draws_them(sides: tuple[int, int], share: float) -> None:
    open_clip_transforms()
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    image = Image.new("RGB", sides)

    def theirs() -> tuple[int, int, int, int]:
        top, left, high, wide = RandomResizedCrop.get_params(image, [share, 1.0], [3 / 4, 4 / 3])
        return left, top, wide, high

    compare_cuts(sides, share, theirs)


@pytest.mark.peer
@pytest.mark.parametrize("sides", [(640, 427), (427, 640), (300, 300), (71, 333)])
def test_the_exact_path_is_open_clips_evaluation(sides: tuple[int, int]) -> None:
    data = photo("flower.jpg", *sides)
    transform = open_clip_transforms()(112, is_train=False, mean=(0.0,) * 3, std=(1.0,) * 3)
    theirs = (transform(Image.open(io.BytesIO(data))) * 255).round().byte().permute(1, 2, 0).numpy()
    assert (decode(data, ImageSettings(size=112, decoding="exact")) == theirs).all()


def open_clip_transforms() -> Callable[..., Callable]:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    from openclip import import_open_clip

    return import_open_clip().image_transform


@pytest.mark.parametrize("turned", [1, 2, 3, 6])
@pytest.mark.parametrize("sides", [(803, 601), (808, 604), (800, 600)])
@pytest.mark.parametrize(("share", "size"), [(0.9, 100), (0.4, 48), (0.2, 33)])
def test_a_random_cut_of_a_scaled_jpeg_is_that_of_the_whole_one(
    share: float, size: int, sides: tuple[int, int], turned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = with_exif(photo("china.jpg", *sides), turned)
    seen = decoded_sizes(monkeypatch)
    for seed in range(10):
        upright = sides if turned < 5 else sides[::-1]
        cut = random_cut(*upright, size, share, np.random.default_rng(seed))
        scaled = decode(data, ImageSettings(size=size), lambda *_, cut=cut: cut)
        scale = round(max(sides) / max(seen[-1]))
        assert scale in (1, 2, 4, 8)
        assert scale == 1 or min(cut.width, cut.height) / scale >= size, "never larger than what was decoded"
        larger = 2 * scale <= 8 and (turned == 1 or all(side % (2 * scale) == 0 for side in sides))
        assert not larger or min(cut.width, cut.height) / (2 * scale) < size, "and no larger than needed"
        # The cut's corner is moved to a whole decoded pixel, by less than one of the result's.
        moved = replace(cut, left=cut.left // scale * scale, top=cut.top // scale * scale)
        exact = decode(data, ImageSettings(size=size, decoding="exact"), lambda *_, moved=moved: moved)
        assert levels(scaled, exact).mean() < 4
        assert scale > 1 or levels(scaled, exact).max() <= 2


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize("sides", [(803, 601), (808, 600)])
def test_a_turned_photo_is_seen_as_an_upright_one(turned: int, sides: tuple[int, int]) -> None:
    data = with_exif(photo("china.jpg", *sides), turned)
    for size in (70, 140, 280):
        expected = to_square(open_image(data), size)
        assert levels(decode(data, ImageSettings(size=size)), expected).mean() < 3


def with_exif(data: bytes, turned: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turned
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("sides", [(3000, 3), (3, 3000), (4000, 1), (1, 1)])
@pytest.mark.parametrize("decoding", ["scaled", "exact"])
def test_long_thin_images_take_no_more_memory_than_what_is_seen(
    sides: tuple[int, int], decoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bounded(pixels: Pixels, width: float, height: float, columns: int, rows: int) -> Pixels:
        assert columns * rows <= LONGEST * 32 * 32
        return resized(pixels, width, height, columns, rows)

    resized = square.resized
    monkeypatch.setattr(square, "resized", bounded)
    noise = np.random.default_rng(0).integers(0, 256, (*sides[::-1], 3), dtype=np.uint8)
    for kind in ("JPEG", "PNG"):
        buffer = io.BytesIO()
        Image.fromarray(noise).save(buffer, kind)
        for choose in (middle, partial(random_cut, share=0.5, random=np.random.default_rng(0))):
            pixels = decode(buffer.getvalue(), ImageSettings(size=32, decoding=decoding), choose)
            assert pixels.shape == (32, 32, 3)
