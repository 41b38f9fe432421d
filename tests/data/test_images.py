import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from simplejpeg import decode_jpeg

from pocketclip.data.images import BadImage, judged, normalise, open_image, orientation, to_pixels, to_square
from pocketclip.data.shrink import shrink
from pocketclip.data.square import decode, resized
from pocketclip.recipe.schema import ImageSettings


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def png_bomb(side: int) -> bytes:
    """A valid PNG of side x side black pixels in a few kilobytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    line = zlib.compressobj(9)
    packed = b"".join(line.compress(bytes(1 + side // 8)) for _ in range(side)) + line.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_by_its_header() -> None:
    bomb = png_bomb(30_000)
    assert len(bomb) < 200_000
    with pytest.raises(BadImage, match="more than 50000000 pixels"):
        open_image(bomb)
    with pytest.raises(BadImage, match="more than 50000000 pixels"):  # between our limit and where Pillow warns, too
        open_image(png_bomb(8_000))


@pytest.mark.parametrize(("side", "most"), [(30_000, 1_000_000), (10_000, 99_999_999), (10_000, 1), (50, 2499)])
def test_the_limit_that_was_set_is_the_one_that_is_named(side: int, most: int) -> None:
    with pytest.raises(BadImage, match=f"more than {most} pixels"):
        open_image(png_bomb(side), most_pixels=most)


def test_a_limit_above_pillows_warning_is_kept_and_above_its_error_is_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # it warns above, and refuses above twice as many
    assert open_image(png_bomb(40), most_pixels=5000).size == (40, 40)
    with pytest.raises(BadImage, match="more than 2000 pixels"):
        open_image(png_bomb(50), most_pixels=5000)


def plainly(data: bytes, at_least: int) -> Image.Image:
    """The definition: turned, laid on white, RGB, each a new image."""
    with Image.open(io.BytesIO(data)) as image:
        if at_least and image.format in ("JPEG", "MPO"):
            image.draft(image.mode, (at_least, at_least))
        upright = ImageOps.exif_transpose(image)
    if upright.mode == "I;16":
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    if upright.has_transparency_data:
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    return upright.convert("RGB")


@pytest.mark.parametrize("turned", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "mode"),
    [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "L"),
     ("PNG", "1"), ("PNG", "P"), ("PNG", "I;16"), ("WEBP", "RGB"), ("WEBP", "RGBA")],
)  # fmt: skip
def test_pixels_are_those_of_the_plain_way(kind: str, mode: str, turned: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 140, 4), dtype=np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(noise.view(np.uint16)[..., 0])
    else:
        picture = Image.fromarray(noise).resize((140, 90), Image.Resampling.BICUBIC, (0, 0, 35, 22))
        picture = picture.convert("RGB").convert(mode) if mode in ("P", "1", "CMYK") else picture.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = turned
    data = encoded(picture, kind, exif=exif)
    for at_least, scale in ((0, 1), (45, 2), (20, 4), (11, 8)):
        expected = plainly(data, at_least)
        found = open_image(data, at_least)
        assert (found.mode, found.size) == ("RGB", expected.size)
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))
        pixels = to_pixels(data, judged(data), scale if kind == "JPEG" else 1)
        np.testing.assert_array_equal(pixels, np.asarray(expected))
        torch.from_numpy(pixels)  # warns where the memory may not be written to
    small, extension = shrink(data, 20, 100)
    resized = plainly(data, 20)
    scale = 20 / min(resized.size)
    wanted = [max(20, round(side * scale)) for side in resized.size]
    expected = Image.open(io.BytesIO(encoded(resized.resize(wanted, Image.Resampling.BICUBIC), "JPEG", quality=100)))
    found = Image.open(io.BytesIO(small))
    assert (extension, found.format, found.size) == ("jpg", "JPEG", expected.size)
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 4  # a level or two before JPEG
    assert shrink(data, 90, 90) == (data, {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind])


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"quality": 30, "optimize": True},
    ],
)
def test_each_kind_of_jpeg_has_the_pixels_of_the_plain_way(options: dict[str, int | bool]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise).resize((203, 131), Image.Resampling.BICUBIC), "JPEG", **options)
    for at_least, scale in ((0, 1), (65, 2), (32, 4), (16, 8)):
        np.testing.assert_array_equal(to_pixels(data, judged(data), scale), np.asarray(plainly(data, at_least)))


def test_a_jpeg_with_a_second_picture_behind_it_is_a_jpeg() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    data = encoded(noise, "MPO", save_all=True, append_images=[Image.new("RGB", (96, 64))], quality=95)
    assert judged(data).format == "MPO"
    for at_least, scale in ((0, 1), (32, 2)):
        expected = np.asarray(plainly(data, at_least))
        np.testing.assert_array_equal(to_pixels(data, judged(data), scale), expected)
        np.testing.assert_array_equal(np.asarray(open_image(data, at_least)), expected)
    assert shrink(data, 64, 90) == (data, "jpg")
    assert shrink(data, 32, 90)[1] == "jpg"


def test_what_one_decoder_calls_damaged_the_other_may_read() -> None:
    good = encoded(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")
    start = good.index(b"\xff\xda")
    odd = good[:start] + b"\x00\x01\x02" + good[start:]  # bytes between markers: a warning, not an error
    with pytest.raises(ValueError, match="extraneous"):
        decode_jpeg(odd)
    np.testing.assert_array_equal(to_pixels(odd, judged(odd), 2), np.asarray(plainly(odd, 32)))
    with pytest.raises(BadImage, match="damaged image"):
        to_pixels(good[:-200], judged(good[:-200]), 2)


def test_an_orientation_that_does_not_exist_turns_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    data = encoded(Image.new("RGB", (60, 40)), "JPEG", exif=exif)
    assert orientation(judged(data)) == 77
    assert to_pixels(data, judged(data), 1).shape == (40, 60, 3)


@settings(max_examples=100)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 120), st.integers(1, 120), st.integers(0, 99))
def test_resizing_is_that_of_pillow(width: int, height: int, new_width: int, new_height: int, seed: int) -> None:
    # Not from black to white: what overshoots is cut at 0 and 255 between the two directions, whose order differs.
    noise = np.random.default_rng(seed).integers(64, 192, (height, width, 3), dtype=np.uint8)
    expected = Image.fromarray(noise).resize((new_width, new_height), Image.Resampling.BICUBIC)
    found = resized(noise, width, height, new_width, new_height)
    assert np.abs(found.astype(int) - np.asarray(expected, int)).max() <= 2


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no JPEG, PNG or WebP"),
        (b"just some text in a file named .jpg", "no JPEG, PNG or WebP"),
        (b"GIF89a" + bytes(20), "no JPEG, PNG or WebP"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no JPEG, PNG or WebP"),
        (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:700], "damaged image"),
    ],
)
def test_bad_bytes_give_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        to_pixels(data, judged(data), 1)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_anywhere_is_an_image_or_a_reason(data: st.DataObject) -> None:
    good = bytearray(
        encoded(Image.radial_gradient("L").resize((40, 30)), data.draw(st.sampled_from(["JPEG", "PNG", "WEBP"])))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        cut = bytes(good[: data.draw(st.integers(1, len(good)))])
        decoding = data.draw(st.sampled_from(["scaled", "exact"]))
        assert decode(cut, ImageSettings(size=8, decoding=decoding)).shape == (8, 8, 3)
    except BadImage as error:
        assert str(error)


def test_transparency_is_laid_on_white_and_exif_turns_the_image() -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (to_square(open_image(encoded(clear)), 8) == 255).all()
    picture = Image.new("RGB", (16, 8), "white")
    picture.paste("black", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned right: what was left is on top
    upright = np.asarray(open_image(encoded(picture, "JPEG", exif=exif, quality=95)))
    assert upright.shape == (16, 8, 3)
    assert upright[:6].mean() < 20 < 235 < upright[10:].mean()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "I;16", "LA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.new(mode, (9, 7))
    pixels = decode(encoded(image, "JPEG" if mode == "CMYK" else "PNG"), ImageSettings(size=8))
    assert pixels.shape == (8, 8, 3)


def test_to_square_keeps_the_middle() -> None:
    wide = Image.new("RGB", (300, 100), "white")
    wide.paste("black", (100, 0, 200, 100))
    assert to_square(wide, 50).max() < 20
    assert (to_square(wide.resize((50, 50)), 50) == np.asarray(wide.resize((50, 50)))).all()


def test_normalise_is_zero_mean_and_unit_deviation_for_the_images_own_statistics() -> None:
    pixels = torch.randint(0, 256, (5, 12, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    unit = pixels.double() / 255
    mean, std = unit.mean((0, 1, 2)), unit.std((0, 1, 2))
    found = normalise(pixels, ImageSettings(mean=tuple(mean.tolist()), std=tuple(std.tolist())))
    assert found.shape == (5, 3, 12, 12)
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std((0, 2, 3)), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(found[1, 2, 3, 4], ((unit[1, 3, 4, 2] - mean[2]) / std[2]).float())


def test_sixteen_bits_of_grey_are_scaled_not_clipped() -> None:
    ramp = np.tile(np.linspace(0, 65535, 64, dtype=np.uint16), (64, 1))
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    np.testing.assert_allclose(decode(file.getvalue(), ImageSettings(size=64))[..., 0], ramp / 257, atol=1)
