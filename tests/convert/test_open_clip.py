import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from models import RESNET, edit, exact, import_open_clip, plain_recipe, random_bundle, shaken, write_vocabulary
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from pocketclip.convert.convert import convert
from pocketclip.convert.open_clip import named, read_open_clip
from pocketclip.errors import ConvertError, RecipeError

TEXTS = ["a red circle", "Two DOGS!", "ein Stadtplan von São Paulo " * 5]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_bundle(tmp_path_factory.mktemp("ours") / "bundle")


@pytest.fixture
def theirs(ours: Path, tmp_path: Path) -> Path:
    convert(ours, tmp_path / "theirs", "open_clip")
    return tmp_path / "theirs"


def test_a_bundle_comes_back_as_it_went(ours: Path, theirs: Path, tmp_path: Path) -> None:
    convert(theirs, tmp_path / "again")
    before, after = exact(ours), exact(tmp_path / "again")
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], tensor), name
    for section in ("image_tower", "text_tower", "model", "tokenizer"):
        assert getattr(after.recipe, section) == getattr(before.recipe, section)
    assert after.recipe.image.mean == before.recipe.image.mean
    assert after.tokenizer.fingerprint() == before.tokenizer.fingerprint()
    assert after.description["training"]["converted_from"] == "open_clip"


def test_openais_layout_of_names_is_read_too(ours: Path, theirs: Path) -> None:
    path = theirs / "open_clip_model.safetensors"
    state = load_file(path)
    flat = {name.removeprefix("text."): tensor for name, tensor in state.items()}
    assert flat.keys() != state.keys()
    assert named(flat).keys() == named(state).keys() == state.keys()
    path.unlink()
    torch.save(
        {"state_dict": {f"module.{name}": one for name, one in flat.items()}}, theirs / "open_clip_pytorch_model.bin"
    )
    found = read_open_clip(theirs, None).state
    assert all(torch.equal(found[name], tensor) for name, tensor in exact(ours).model.state_dict().items())


@pytest.mark.parametrize(
    "sections",
    [{"image": {"size": 64}, "image_tower": {**RESNET, "activation": "quick_gelu"}}, {"train": {"loss": "sigmoid"}}],
)
def test_resnets_and_biases_come_back_too(sections: dict[str, Any], tmp_path: Path) -> None:
    source = random_bundle(tmp_path / "bundle", plain_recipe(**sections))
    convert(source, tmp_path / "theirs", "open_clip")
    convert(tmp_path / "theirs", tmp_path / "again")
    before, after = exact(source), exact(tmp_path / "again")
    assert before.model.state_dict().keys() == after.model.state_dict().keys()
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(after.model.state_dict()[name], tensor), name
    assert after.recipe.image_tower.stages == before.recipe.image_tower.stages
    assert after.recipe.image_tower.heads == before.recipe.image_tower.heads
    assert after.recipe.train.loss == before.recipe.train.loss


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_the_activation_travels(activation: str, tmp_path: Path) -> None:
    tower = {"activation": activation}
    source = random_bundle(tmp_path / "bundle", plain_recipe(image_tower=tower, text_tower=tower))
    convert(source, tmp_path / "theirs", "open_clip")
    found = read_open_clip(tmp_path / "theirs", None)
    assert found.settings["image_tower.activation"] == found.settings["text_tower.activation"] == activation


def test_two_activations_are_refused(tmp_path: Path) -> None:
    source = random_bundle(tmp_path / "bundle", plain_recipe(image_tower={"activation": "quick_gelu"}))
    with pytest.raises(
        ConvertError, match=r"OpenCLIP has no model with image_tower\.activation = 'quick_gelu' and text"
    ):
        convert(source, tmp_path / "theirs", "open_clip")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_cfg": [1]}, "model_cfg is no JSON object"),
        ({"model_cfg": {}}, "heads = 12 does not divide width = 32"),
        ({"model_cfg__embed_dim": 512}, "embed_dim = 512, the weights have 24"),
        ({"model_cfg__vision_cfg__width": 64}, r"vision_cfg\.width = 64, the weights have 32"),
        ({"model_cfg__vision_cfg__mlp_ratio": 4.0}, r"vision_cfg\.width \* mlp_ratio = 128, the weights have 96"),
        ({"model_cfg__vision_cfg__layers": None}, r"vision_cfg\.layers = 12, the weights have 2"),
        ({"model_cfg__vision_cfg__patch_size": [8, 8]}, r"vision_cfg\.patch_size = \[8, 8\]"),
        ({"model_cfg__vision_cfg__head_width": 0}, "head_width = 0 is no size"),
        ({"model_cfg__vision_cfg__head_width": "8"}, "head_width = '8' is no size"),
        ({"model_cfg__vision_cfg__head_width": True}, "head_width = True is no size"),
        ({"model_cfg__vision_cfg__mlp_ratio": math.nan}, "mlp_ratio = nan is no size"),
        ({"model_cfg__vision_cfg__head_width": 9}, "heads = 3 does not divide"),
        ({"model_cfg__vision_cfg__timm_model_name": "vit"}, r"vision_cfg\.timm_model_name is nothing"),
        ({"model_cfg__vision_cfg__attentional_pool": True}, r"vision_cfg\.attentional_pool is nothing"),
        ({"model_cfg__vision_cfg__pool_type": "avg"}, r"vision_cfg\.pool_type is nothing"),
        ({"model_cfg__vision_cfg__pos_embed_type": "sin_cos_2d"}, r"vision_cfg\.pos_embed_type is nothing"),
        ({"model_cfg__vision_cfg__no_ln_pre": True}, r"vision_cfg\.no_ln_pre is nothing"),
        ({"model_cfg__text_cfg__hf_model_name": "bert"}, r"text_cfg\.hf_model_name is nothing"),
        ({"model_cfg__text_cfg__no_causal_mask": True}, r"text_cfg\.no_causal_mask is nothing"),
        ({"model_cfg__text_cfg__pool_type": "last"}, r"text_cfg\.pool_type is nothing"),
        ({"model_cfg__text_cfg__act_kwargs": {"approximate": "tanh"}}, r"text_cfg\.act_kwargs is nothing"),
        ({"model_cfg__text_cfg__tokenizer_kwargs": {"clean": "canonicalize"}}, "tokenizer_kwargs is nothing"),
        ({"model_cfg__text_cfg__pool_type": "argmax"}, "of another vocabulary: it ends .* with id 1, .* at id 399"),
        ({"model_cfg__text_cfg__eos_id": 2}, "of another vocabulary: it ends captions with id 1, .* at id 2"),
        ({"model_cfg__text_cfg__eos_id": None}, "of another vocabulary: it ends captions with id 1, .* at id 2"),
        ({"preprocess_cfg__interpolation": "bilinear"}, r"preprocess_cfg\.interpolation = 'bilinear'"),
        ({"preprocess_cfg__resize_mode": "squash"}, r"preprocess_cfg\.resize_mode = 'squash'"),
        ({"preprocess_cfg__mean": "grey"}, r"image\.mean = 'grey'"),
    ],
)  # fmt: skip
def test_configurations_that_do_not_fit(changes: dict[str, Any], message: str, theirs: Path, tmp_path: Path) -> None:
    edit(theirs / "open_clip_config.json", **changes)
    with pytest.raises((ConvertError, RecipeError), match=message) as caught:
        convert(theirs, tmp_path / "bundle")
    assert "open_clip_config.json" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_settings_that_change_nothing_do_not_matter(theirs: Path, tmp_path: Path) -> None:
    off = {
        "ls_init_value": None,
        "qk_norm": False,
        "patch_dropout": 0.5,
        "pos_embed_type": "learnable",
        "pool_type": "tok",
    }
    for name, value in {**off, "final_ln_after_pool": True, "attn_pooler_heads": 8, "timm_pool": "avg"}.items():
        edit(theirs / "open_clip_config.json", **{f"model_cfg__vision_cfg__{name}": value})
    edit(theirs / "open_clip_config.json", model_cfg__text_cfg__tokenizer_kwargs={"clean": "whitespace"})
    edit(
        theirs / "open_clip_config.json",
        model_cfg__text_cfg__proj_type="linear",
        preprocess_cfg__interpolation="random",
    )
    convert(theirs, tmp_path / "bundle")


def test_others_captions_are_mended(theirs: Path) -> None:
    assert not read_open_clip(theirs, None).mend  # as the bundle was, says our part of the configuration
    edit(theirs / "open_clip_config.json", pocketclip=None)
    assert read_open_clip(theirs, None).mend


def test_weights_without_a_configuration(tmp_path: Path) -> None:
    """Heads 64 wide, the activation and OpenAI's vocabulary from the command line."""
    tower = {"activation": "quick_gelu", "width": 64, "heads": 1}
    vocabulary = write_vocabulary(tmp_path)
    sizes = {"vocabulary_size": len(vocabulary)}
    recipe = plain_recipe(
        image_tower=tower, text_tower=tower, tokenizer=sizes, image={"mean": [0.48145466, 0.4578275, 0.40821073]}
    )
    wanted = exact(random_bundle(tmp_path / "bundle", recipe))
    path = tmp_path / "epoch_3.pt"
    state = {f"module.{name.removeprefix('text.')}": tensor for name, tensor in wanted.model.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, path)
    with pytest.raises(ConvertError, match=r"epoch_3\.pt: comes without a tokenizer"):
        convert(path, tmp_path / "found", activation="quick_gelu")
    with pytest.raises(ConvertError, match=r"epoch_3\.pt: does not say which activation"):
        convert(path, tmp_path / "found", tokenizer=tmp_path)
    convert(path, tmp_path / "found", tokenizer=tmp_path, activation="quick_gelu")
    found = exact(tmp_path / "found")
    assert found.recipe.image_tower == wanted.recipe.image_tower
    assert found.recipe.image.mean == wanted.recipe.image.mean
    assert found.recipe.tokenizer.mend
    for name, tensor in wanted.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], tensor), name
    torch.save({**state, "module.input_resolution": torch.tensor(32)}, path)  # which OpenAI's own files hold
    convert(path, tmp_path / "openai", tokenizer=tmp_path)
    assert exact(tmp_path / "openai").recipe.image_tower.activation == "quick_gelu"


def test_hugging_faces_weights_without_their_configuration(tmp_path: Path) -> None:
    save_file({"vision_model.post_layernorm.bias": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ConvertError, match=r"weights of Hugging Face's; give the folder, with its config\.json"):
        convert(tmp_path / "model.safetensors", tmp_path / "bundle")


def by_open_clip(folder: Path, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings as a user of OpenCLIP would get them; pixels: [images, 3, size, size], normalised."""
    open_clip = import_open_clip()
    model, _ = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    with torch.inference_mode():
        return model.eval().encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)


def assert_same(found: tuple[torch.Tensor, torch.Tensor], wanted: tuple[torch.Tensor, torch.Tensor]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert F.cosine_similarity(other[0], other[1], dim=0) < 0.999  # else all would be the same
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.peer
@pytest.mark.parametrize(
    "sections", [{}, {"image": {"size": 64}, "image_tower": RESNET}, {"train": {"loss": "sigmoid"}}]
)
def test_open_clip_loads_what_was_written(sections: dict[str, Any], tmp_path: Path) -> None:
    import_open_clip()
    recipe = plain_recipe(**sections)
    source = random_bundle(tmp_path / "bundle", recipe)
    differences = convert(source, tmp_path / "theirs", "open_clip").differences
    assert "open_clip_torch 3.3.0" in differences
    bundle, pixels = exact(source), torch.randn(3, 3, recipe.image.size, recipe.image.size)
    with torch.inference_mode():
        found = bundle.model.encode_images(pixels), bundle.encode_texts(TEXTS)
    assert_same(found, by_open_clip(tmp_path / "theirs", pixels))


@pytest.mark.peer
def test_open_clips_resnets_become_bundles(tmp_path: Path) -> None:
    """With heads that are not as wide as usual, and OpenAI's activation in the text tower."""
    open_clip = import_open_clip()
    from open_clip import model as models

    image = {"layers": [1, 2, 1, 1], "width": 16, "head_width": 32, "patch_size": None, "image_size": 64}
    text = {"layers": 2, "width": 32, "heads": 2, "context_length": 20}
    whole = {"embed_dim": 24, "quick_gelu": True, "vision_cfg": image, "text_cfg": text}
    torch.manual_seed(0)
    model = shaken(models.CLIP(**whole, init_logit_bias=-3.0))
    folder = tmp_path / "theirs"
    folder.mkdir()
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    configuration = {"model_cfg": {**whole, "init_logit_bias": -10}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(configuration))
    assert convert(folder, tmp_path / "bundle").differences["open_clip_torch 3.3.0"] < 1e-5
    bundle, pixels = exact(tmp_path / "bundle"), torch.randn(3, 3, 64, 64)
    assert bundle.recipe.image_tower.heads == 16
    assert bundle.model.logit_bias.item() == model.logit_bias.item()
    with torch.inference_mode():
        found = bundle.model.encode_images(pixels), bundle.encode_texts(TEXTS)
        tokens = open_clip.get_tokenizer("ViT-B-32")(TEXTS, 20)
        assert_same(found, (model.encode_image(pixels, normalize=True), model.encode_text(tokens, normalize=True)))


@pytest.mark.peer
@pytest.mark.parametrize("custom_text", [True, False])
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_open_clips_models_become_bundles(custom_text: bool, quick_gelu: bool, tmp_path: Path) -> None:
    """Small ones, of either layout of names, with the vocabulary that OpenCLIP has built in."""
    open_clip = import_open_clip()
    from open_clip import model as models

    image = {"layers": 2, "width": 48, "head_width": 16, "mlp_ratio": 2.7, "patch_size": 8, "image_size": 32}
    text = {"layers": 3, "width": 32, "heads": 2, "context_length": 20}
    whole = {"embed_dim": 24, "quick_gelu": quick_gelu, "vision_cfg": image, "text_cfg": text}
    torch.manual_seed(0)
    model = shaken((models.CustomTextCLIP if custom_text else models.CLIP)(**whole))
    folder = tmp_path / "theirs"
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    preprocessing = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    configuration = {"model_cfg": {**whole, "custom_text": custom_text}, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(configuration))
    assert "open_clip_torch 3.3.0" in convert(folder, tmp_path / "bundle").differences
    bundle, pixels = exact(tmp_path / "bundle"), torch.randn(3, 3, 32, 32)
    assert bundle.recipe.image.std == (0.2, 0.3, 0.4)
    with torch.inference_mode():
        found = (
            bundle.model.encode_images(pixels),
            bundle.encode_texts([*TEXTS[:2], "caf&eacute; &amp; &#8220;Größe&#8221;  ðŸ¶ " * 4]),
        )
        wanted = model.encode_image(pixels, normalize=True)
        tokens = open_clip.get_tokenizer("ViT-B-32")(
            [*TEXTS[:2], "caf&eacute; &amp; &#8220;Größe&#8221;  ðŸ¶ " * 4], 20
        )
        assert_same(found, (wanted, model.encode_text(tokens, normalize=True)))
    differences = convert(tmp_path / "bundle", tmp_path / "again", "open_clip").differences
    assert max(differences.values()) < 1e-5
    text_cfg = json.loads((tmp_path / "again" / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert "hf_tokenizer_name" not in text_cfg  # it is OpenAI's: OpenCLIP takes its own
