import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import RESNET, edit, exact, huggingface_folder, plain_recipe, random_bundle
from PIL import Image
from torch.nn import functional as F

from pocketclip.bundle import Bundle
from pocketclip.convert.convert import convert
from pocketclip.convert.huggingface import from_huggingface, read_huggingface, to_huggingface
from pocketclip.convert.source import to_bundle
from pocketclip.convert.weights import read_weights
from pocketclip.errors import ConvertError, RecipeError

TEXTS = ["a red circle", "Two DOGS!", "ein Stadtplan von São Paulo " * 5]
RANDOM = np.random.default_rng(0)
IMAGES = [Image.fromarray(RANDOM.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return huggingface_folder(tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture
def copy(theirs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(theirs, tmp_path / "copy"))


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_bundle(
        tmp_path_factory.mktemp("ours") / "bundle", plain_recipe(text_tower={"activation": "quick_gelu"})
    )


def by_transformers(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of the images and texts above, as a user of transformers would get them."""
    import transformers

    model = transformers.CLIPModel.from_pretrained(folder)
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    limits = {"padding": True, "truncation": True, "max_length": model.config.text_config.max_position_embeddings}
    inputs = processor(text=TEXTS, images=IMAGES, return_tensors="pt", **limits)
    with torch.inference_mode():
        found = model(**inputs)
    return found.image_embeds, found.text_embeds


def by_us(bundle: Bundle) -> tuple[torch.Tensor, torch.Tensor]:
    return bundle.encode_images(IMAGES), bundle.encode_texts(TEXTS)


def assert_same(found: tuple[torch.Tensor, torch.Tensor], wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert F.cosine_similarity(other[0], other[1], dim=0) < 0.999  # else all would be the same
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_clip_model_becomes_a_bundle(theirs: Path, tmp_path: Path) -> None:
    import transformers

    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "image_mean": [0.4, 0.5, 0.6]}
    folder = Path(shutil.copytree(theirs, tmp_path / "theirs"))
    transformers.CLIPImageProcessor(**size).save_pretrained(folder)
    converted = convert(folder, tmp_path / "bundle")
    assert converted.format == "bundle"
    assert {name.split()[0] for name in converted.differences} == {"read", "transformers"}
    bundle = exact(tmp_path / "bundle")
    assert bundle.recipe.image.mean == (0.4, 0.5, 0.6)
    assert bundle.recipe.image_tower.activation == "quick_gelu"
    assert_same(by_us(bundle), by_transformers(folder))
    origin = bundle.description["training"]
    assert (origin["converted_from"], origin["weights"]) == ("huggingface", "model.safetensors")


def test_a_bundle_becomes_a_clip_model_and_comes_back(ours: Path, tmp_path: Path) -> None:
    differences = convert(ours, tmp_path / "hf", "huggingface").differences
    assert {name.split()[0] for name in differences} == {"read", "transformers"}
    assert max(differences.values()) < 1e-5
    before = exact(ours)
    assert_same(by_us(before), by_transformers(tmp_path / "hf"))
    convert(tmp_path / "hf", tmp_path / "again")
    after = exact(tmp_path / "again")
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], tensor), name
    for section in ("image_tower", "text_tower", "model", "tokenizer"):
        assert getattr(after.recipe, section) == getattr(before.recipe, section)
    assert after.recipe.image.mean == before.recipe.image.mean
    assert after.tokenizer.fingerprint() == before.tokenizer.fingerprint()


def test_names_go_both_ways(theirs: Path, ours: Path) -> None:
    for state in (read_weights(theirs / "model.safetensors"), to_huggingface(exact(ours).model.state_dict())):
        again = to_huggingface(from_huggingface(state))
        assert again.keys() == state.keys()
        assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
    assert set(from_huggingface(read_weights(theirs / "model.safetensors"))) >= {"visual.proj", "text.text_projection"}


@pytest.mark.parametrize("form", ["pickled", "sharded"])
def test_other_forms_of_weights(form: str, copy: Path, theirs: Path) -> None:
    import transformers

    state = read_weights(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    if form == "pickled":
        torch.save({**state, "text_model.embeddings.position_ids": torch.arange(20)[None]}, copy / "pytorch_model.bin")
    else:
        transformers.CLIPModel.from_pretrained(theirs).save_pretrained(copy, max_shard_size="100KB")
        assert (copy / "model.safetensors.index.json").is_file()
    found, wanted = (to_bundle(read_huggingface(folder, None), "x").model.state_dict() for folder in (copy, theirs))
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_configurations_of_old_versions(copy: Path, theirs: Path, tmp_path: Path) -> None:
    """The end's id is 2, which means the highest one; a second part of the configuration has the last word."""
    text = json.loads((copy / "config.json").read_text())["text_config"]
    edit(copy / "config.json", text_config={**text, "hidden_act": "gelu"}, text_config_dict={**text, "eos_token_id": 2})
    found = read_huggingface(copy, None)
    assert found.end is None
    assert found.settings["text_tower.activation"] == "quick_gelu"
    edit(copy / "config.json", text_config={**text, "eos_token_id": 2}, text_config_dict=None)
    convert(copy, tmp_path / "bundle")
    assert_same(by_us(exact(tmp_path / "bundle")), by_us(to_bundle(read_huggingface(theirs, None), "x")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "siglip"}, r"config\.json: model_type = 'siglip'"),
        ({"text_config": [1]}, r"config\.json: text_config is no JSON object"),
        ({"vision_config__layer_norm_eps": 1e-6}, r"vision_config\.layer_norm_eps"),
        (
            {"vision_config__hidden_size": 64},
            r"contradicts its weights: vision_config\.hidden_size = 64, the weights have 32",
        ),
        ({"text_config__num_hidden_layers": None}, r"text_config\.num_hidden_layers = 12, the weights have 2"),
        ({"text_config__intermediate_size": "96"}, r"text_config\.intermediate_size = '96'"),
        ({"projection_dim": 512}, r"projection_dim = 512, the weights have 24"),
        ({"text_config__eos_token_id": 7}, r"of another vocabulary: it ends captions with id \d+, .* at id 7"),
        ({"text_config__eos_token_id": [7]}, r"eos_token_id = \[7\]: has to be a number"),
        ({"vision_config__num_attention_heads": 5}, r"heads = 5 does not divide width = 32"),
        ({"vision_config__hidden_act": "gelu_new"}, r"image_tower\.activation = 'gelu_new'"),
    ],
)
def test_configurations_that_do_not_fit(changes: dict[str, Any], message: str, copy: Path, tmp_path: Path) -> None:
    edit(copy / "config.json", **changes)
    with pytest.raises((ConvertError, RecipeError), match=message) as caught:
        convert(copy, tmp_path / "bundle")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    ("key", "value"),
    [("do_center_crop", False), ("resample", 2), ("size", {"height": 32, "width": 32}), ("crop_size", 64)],
)
def test_other_preprocessing_is_refused(name: str, key: str, value: object, copy: Path) -> None:
    content: dict[str, Any] = {"size": 32, "crop_size": 32, "image_mean": [0.1, 0.2, 0.3]}
    whole = {"image_processor": content} if name == "processor_config.json" else content
    (copy / name).write_text(json.dumps(whole))
    assert read_huggingface(copy, None).settings["image.mean"] == [0.1, 0.2, 0.3]
    content[key] = value
    (copy / name).write_text(json.dumps(whole))
    with pytest.raises(ConvertError, match=rf"{name}: {key} = .*: .* is done here"):
        read_huggingface(copy, None)


def test_a_missing_tokenizer_is_asked_for(copy: Path, theirs: Path, tmp_path: Path) -> None:
    (copy / "vocab.json").unlink()
    with pytest.raises(ConvertError, match=r"comes without a tokenizer; name its tokenizer\.json with --tokenizer"):
        convert(copy, tmp_path / "bundle")
    convert(copy, tmp_path / "bundle", tokenizer=theirs)
    assert_same(by_us(exact(tmp_path / "bundle")), by_us(to_bundle(read_huggingface(theirs, None), "x")))


@pytest.mark.parametrize(
    ("sections", "formats", "message"),
    [
        ({"image_tower": {"stem_channels": [16, 32]}}, "both", r"image_tower\.stem_channels = \[16, 32\]"),
        ({"image_tower": {"pool": "mean"}}, "both", r"image_tower\.pool = 'mean'"),
        (
            {"image_tower": {**RESNET, "stages": [1, 1, 1], "patch_size": 16}},
            "both",
            r"image_tower\.stages = \[1, 1, 1\]",
        ),
        ({"image": {"size": 64}, "image_tower": RESNET}, "huggingface", r"image_tower\.stages = \[1, 2, 1, 1\]"),
        ({"train": {"loss": "sigmoid"}}, "huggingface", r"a logit_bias \(train\.loss = 'sigmoid'\)"),
    ],
)
def test_what_others_cannot_hold(sections: dict[str, Any], formats: str, message: str, tmp_path: Path) -> None:
    source = random_bundle(tmp_path / "bundle", plain_recipe(**sections))
    for to in ("huggingface", "open_clip") if formats == "both" else (formats,):
        with pytest.raises(ConvertError, match=f"has no model with {message}; --to onnx"):
            convert(source, tmp_path / "other", to)  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_images_that_patches_do_not_fill(tmp_path: Path) -> None:
    recipe = plain_recipe(image={"size": 35}, image_tower={"cut_edges": True})
    source = random_bundle(tmp_path / "bundle", recipe)
    for to in ("huggingface", "open_clip"):
        assert max(convert(source, tmp_path / to, to).differences.values()) < 1e-5  # type: ignore[arg-type]
        convert(tmp_path / to, tmp_path / f"{to}-again")
        found = exact(tmp_path / f"{to}-again").recipe
        assert (found.image.size, found.image_tower.cut_edges) == (35, True)
