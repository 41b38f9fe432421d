import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import pocketclip
from conftest import draw
from pocketclip.bundle import save_bundle
from pocketclip.errors import BundleError, DataError
from pocketclip.files import whole_file, whole_folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained / "bundle", tmp_path / "bundle"))


def test_every_parameter_survives_a_reload(trained: Path, tmp_path: Path) -> None:
    bundle = pocketclip.load(trained / "bundle")
    with torch.no_grad():
        bundle.model.logit_scale.fill_(1.2345)
    save_bundle(tmp_path / "again", bundle.model, bundle.recipe, bundle.tokenizer, {})
    again = pocketclip.load(tmp_path / "again")
    state = again.model.state_dict()
    for name, value in bundle.model.state_dict().items():
        assert torch.equal(value, state[name]), name
    assert again.recipe == bundle.recipe
    caption = ["red circle left"]
    assert torch.equal(bundle.encode_texts(caption), again.encode_texts(caption))


def test_one_flipped_byte_is_found_wherever_it_is(copy: Path) -> None:
    for path in sorted(copy.iterdir()):
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 2):
            content = bytearray(whole)
            content[place] ^= 1
            path.write_bytes(content)
            with pytest.raises(BundleError, match=rf"{path.name}: (damaged|format)"):
                pocketclip.load(copy)
        path.write_bytes(whole)
    pocketclip.load(copy)


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_whoever_may_read_one_file_may_read_all(copy: Path) -> None:
    assert len({path.stat().st_mode for path in copy.iterdir()}) == 1


def test_missing_and_foreign_files_are_named(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle"):
        pocketclip.load(tmp_path / "nowhere")
    (copy / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json: missing"):
        pocketclip.load(copy)
    for content, message in (("{", "damaged"), ('{"format": 99, "sha256": {}}', "format 99")):
        (copy / "bundle.json").write_text(content)
        with pytest.raises(BundleError, match=message):
            pocketclip.load(copy)


def test_images_come_as_paths_bytes_or_pillow(trained: Path, tmp_path: Path) -> None:
    bundle = pocketclip.load(trained / "bundle")
    data = draw("green", "square", "right")
    (tmp_path / "a.png").write_bytes(data)
    found = bundle.encode_images([tmp_path / "a.png", str(tmp_path / "a.png"), data, Image.open(tmp_path / "a.png")])
    assert found.shape == (4, 32)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-6, rtol=0)
    assert bundle.encode_images([]).shape == bundle.encode_texts([]).shape == (0, 32)
    with pytest.raises(DataError, match=r"missing\.png: cannot be read"):
        bundle.encode_images([tmp_path / "missing.png"])
    (tmp_path / "text.jpg").write_text("text")
    with pytest.raises(DataError, match=r"text\.jpg: no JPEG, PNG or WebP"):
        bundle.encode_images([tmp_path / "text.jpg"])


def test_parts_of_a_batch_are_embedded_as_the_whole_is(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = pocketclip.load(trained / "bundle", "cpu")
    size = bundle.recipe.image.size
    pixels = torch.randint(0, 256, (7, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, seen = bundle.encode_pixels(pixels), list[int]()
    tower = bundle.model.visual
    tower.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    monkeypatch.setattr("pocketclip.bundle.TOKENS_IN_CACHE", 3 * (size // bundle.recipe.image_tower.patch_size) ** 2)
    assert torch.allclose(bundle.encode_pixels(pixels), whole, atol=1e-2 if bundle.device.bfloat16 else 1e-6)
    monkeypatch.setattr("pocketclip.bundle.TOKENS_IN_CACHE", 1)
    bundle.encode_pixels(pixels)
    assert seen == [3, 2, 2] + 7 * [1], "even parts of at most three images, and one image where it is too large"


def test_the_right_caption_wins(trained: Path) -> None:
    bundle = pocketclip.load(trained / "bundle")
    captions = ["red circle left", "blue pole right", "green bar left"]
    images = [draw(*caption.split()) for caption in captions]
    assert (bundle.encode_images(images) @ bundle.encode_texts(captions).T).argmax(1).tolist() == [0, 1, 2]


def test_files_and_folders_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    (tmp_path / "file").write_text("old")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "folder") as temporary:
        (temporary / "new").write_text("new")
        raise RuntimeError
    with pytest.raises(RuntimeError), whole_file(tmp_path / "file") as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert (tmp_path / "file").read_text() == (tmp_path / "folder" / "old").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    with whole_folder(tmp_path / "folder") as temporary:
        (temporary / "new").write_text("new")
    with whole_file(tmp_path / "file") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "file").read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "new"]
