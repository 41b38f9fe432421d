import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch.nn import functional as F

import pocketclip
from conftest import draw, small_recipe
from pocketclip.device import choose_device
from pocketclip.errors import BundleError, RecipeError, TrainingError
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import load_recipe
from pocketclip.train.learner import Learner
from pocketclip.train.loop import train
from train.test_optimizer import a_batch


def recipe_from(trained: Path, folder: Path, tmp_path: Path, *lines: str) -> Recipe:
    file = tmp_path / "tune.toml"
    train_lines = 'batch_size = 15, epochs = 2, warmup = 0.1, device = "cpu", precision = "float32"'
    given = (
        f'name = "tune"\ndata.folder = "{folder}"\ntrain = {{ start_from = "{trained / "bundle"}", {train_lines} }}\n'
    )
    file.write_text(given)
    return load_recipe(file, lines)


def learner(recipe: Recipe) -> Learner:
    return Learner(recipe, choose_device("cpu", "float32"), 10)


def test_sizes_preprocessing_and_weights_are_the_bundles(trained: Path, folder: Path, tmp_path: Path) -> None:
    recipe = recipe_from(trained, folder, tmp_path)
    bundle = pocketclip.load(trained / "bundle")
    for section in ("image_tower", "text_tower", "tokenizer"):
        assert getattr(recipe, section) == getattr(bundle.recipe, section)
    assert (recipe.image.mean, recipe.image.size) == (bundle.recipe.image.mean, 32)
    assert recipe.image.shift == 0, "augmentation is each run's own"
    found = learner(recipe).model.state_dict()
    for name, value in bundle.model.state_dict().items():
        assert torch.equal(found[name], value), name


def test_what_the_recipe_says_counts(trained: Path, folder: Path, tmp_path: Path) -> None:
    recipe = recipe_from(trained, folder, tmp_path, "image.mean=[0.5, 0.5, 0.5]", "text_tower.layers=3")
    assert recipe.image.mean == (0.5, 0.5, 0.5)
    with pytest.raises(TrainingError, match=r"another architecture \(text\.tr.*resblocks\.1.*missing there, 24 d"):
        learner(recipe)
    with pytest.raises(TrainingError, match=r"another architecture .* there and "):
        learner(recipe_from(trained, folder, tmp_path, "text_tower.width=48"))


def test_a_bundle_that_is_none_or_damaged_is_named(trained: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"train\.start_from = 'nowhere': no bundle.*pocketclip convert"):
        recipe_from(trained, folder, tmp_path, "train.start_from=nowhere")
    shutil.copytree(trained / "bundle", tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"")
    with pytest.raises(BundleError, match="damaged"):
        learner(recipe_from(trained, folder, tmp_path, f"train.start_from={tmp_path / 'damaged'}"))


@pytest.mark.parametrize("changes", ["image_tower.locked_layers=1", "train.interpolation=0.5"])
def test_settings_that_need_a_start_say_so(changes: str, tmp_path: Path) -> None:
    (tmp_path / "r.toml").touch()
    with pytest.raises(RecipeError, match=r"train\.start_from"):
        load_recipe(tmp_path / "r.toml", [changes])


def test_positions_of_another_image_size_are_interpolated(trained: Path, folder: Path, tmp_path: Path) -> None:
    recipe = recipe_from(trained, folder, tmp_path, "image.size=64")
    found = learner(recipe).model
    before = load_file(trained / "bundle" / "model.safetensors")["visual.positional_embedding"]
    grid = before.view(4, 4, 32).permute(2, 0, 1)[None]
    expected = F.interpolate(grid, size=(8, 8), mode="bicubic", antialias=True)[0].permute(1, 2, 0).reshape(64, 32)
    torch.testing.assert_close(found.visual.positional_embedding.detach(), expected)
    pixels = torch.randn(2, 3, 32, 32)
    small = pocketclip.load(trained / "bundle").model.encode_images(pixels)
    large = found.eval().encode_images(F.interpolate(pixels, scale_factor=2, mode="bilinear"))
    assert ((small * large).sum(1) > 0.5).all(), "the same picture, larger, is nearly the same"


@pytest.mark.parametrize(("image", "text"), [(1, 0), (5, 1), (0, 0), (1, 1)])
def test_what_is_locked_stays_bit_for_bit_and_the_rest_learns(
    image: int, text: int, folder: Path, tmp_path: Path
) -> None:
    console, sizes = Console(quiet=True), {"layers": 2}
    train(small_recipe(folder, image_tower=sizes, text_tower=sizes), tmp_path / "first", console)
    changes = [f"image_tower.locked_layers={image}", f"text_tower.locked_layers={text}"]
    one = learner(recipe_from(tmp_path / "first", folder, tmp_path, *changes))
    before = {name: value.clone() for name, value in one.model.state_dict().items()}
    for step in range(3):
        one.step(a_batch(), step)
    for name, value in one.model.state_dict().items():
        tower, locked = name.partition(".")[0], image if name.startswith("visual") else text
        block = int(name.split(".")[3]) if "resblocks" in name else -1
        above = block < 0 and any(part in name for part in ("ln_post", "ln_final", "proj"))
        still = tower != "logit_scale" and locked > 0 and (locked >= 2 or (not above and block < locked))
        assert torch.equal(value, before[name]) == still, name


def test_interpolation_is_a_mean_of_both_ends(trained: Path, folder: Path, tmp_path: Path, console: Console) -> None:
    start = load_file(trained / "bundle" / "model.safetensors")
    ends = {}
    for share in (1.0, 0.25, 0.0):
        recipe = recipe_from(trained, folder, tmp_path, f"train.interpolation={share}", f"name=at{share}")
        ends[share] = load_file(train(recipe, tmp_path / str(share), console) / "model.safetensors")
    for name, value in start.items():
        if value.is_floating_point():
            torch.testing.assert_close(ends[0.0][name], value, msg=name)
            torch.testing.assert_close(ends[0.25][name], 0.75 * value + 0.25 * ends[1.0][name], msg=name)
    assert not torch.equal(ends[1.0]["visual.proj"], start["visual.proj"])


def test_the_tokenizer_is_the_bundles(trained: Path, folder: Path, tmp_path: Path, console: Console) -> None:
    data = tmp_path / "data"
    shutil.copytree(folder, data)
    (data / "tokenizer.json").unlink()
    bundle = train(recipe_from(trained, data, tmp_path), tmp_path / "run", console)
    tuned, before = pocketclip.load(bundle), pocketclip.load(trained / "bundle")
    assert tuned.tokenizer.fingerprint() == before.tokenizer.fingerprint()
    assert tuned.encode_images([draw("red", "bar", "left")]).shape == (1, 32)
