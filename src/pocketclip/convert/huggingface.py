"""Hugging Face's `CLIPModel` folders: read, and written for `CLIPModel` and `CLIPProcessor`.

Format: transformers 5.23.0, `configuration_clip.py` and `modeling_clip.py`.
"""

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.nn import functional as F

from pocketclip.bundle import Bundle
from pocketclip.convert.check import Embeddings, Sample, require_plain
from pocketclip.convert.source import Source
from pocketclip.convert.vocabulary import find_tokenizer
from pocketclip.convert.weights import read_json, read_sharded, read_weights
from pocketclip.errors import ConvertError

CONFIGURATION = "config.json"
WEIGHTS, INDEX, PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
PREPROCESSING = ("preprocessor_config.json", "processor_config.json")  # the latter holds the former in a part of it

# Our names, as patterns, and theirs. The projections are linear layers there, whose weight is the other way round.
NAMES = (
    ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
    ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    ("visual.ln_pre.", "vision_model.pre_layrnorm."),
    ("visual.ln_post.", "vision_model.post_layernorm."),
    ("visual.proj", "visual_projection.weight"),
    ("text.transformer.resblocks.", "text_model.encoder.layers."),
    ("text.token_embedding.", "text_model.embeddings.token_embedding."),
    ("text.positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ("text.ln_final.", "text_model.final_layer_norm."),
    ("text.text_projection", "text_projection.weight"),
)
NAMES_IN_BLOCKS = (
    (".ln_1.", ".layer_norm1."),
    (".ln_2.", ".layer_norm2."),
    (".mlp.c_fc.", ".mlp.fc1."),
    (".mlp.c_proj.", ".mlp.fc2."),
    (".attn.out_proj.", ".self_attn.out_proj."),
)
TRANSPOSED = ("visual.proj", "text.text_projection")
PARTS = ("q_proj", "k_proj", "v_proj")  # in the order in which our one projection holds them

# Sizes: our key, their part of the configuration (none: the whole), their key, what holds where they say nothing.
SIZES = (
    ("model.embedding_width", "", "projection_dim", 512),
    ("image.size", "vision_config", "image_size", 224),
    ("image_tower.patch_size", "vision_config", "patch_size", 32),
    ("image_tower.width", "vision_config", "hidden_size", 768),
    ("image_tower.layers", "vision_config", "num_hidden_layers", 12),
    ("image_tower.mlp_width", "vision_config", "intermediate_size", 3072),
    ("tokenizer.vocabulary_size", "text_config", "vocab_size", 49408),
    ("text_tower.context_length", "text_config", "max_position_embeddings", 77),
    ("text_tower.width", "text_config", "hidden_size", 512),
    ("text_tower.layers", "text_config", "num_hidden_layers", 12),
    ("text_tower.mlp_width", "text_config", "intermediate_size", 2048),
)
SETTINGS = (
    ("image_tower.heads", "vision_config", "num_attention_heads", 12),
    ("image_tower.activation", "vision_config", "hidden_act", "quick_gelu"),
    ("text_tower.heads", "text_config", "num_attention_heads", 8),
    ("text_tower.activation", "text_config", "hidden_act", "quick_gelu"),
)
OLD_END = 2  # stands in old configurations of OpenAI's models; transformers reads them at the highest id then


def read_huggingface(folder: Path, tokenizer: Path | None) -> Source:
    """Read a folder with config.json of a `CLIPModel`, its weights, tokenizer and preprocessing.

    tokenizer: a file or folder, instead of the folder's own.
    Raises ConvertError for what is missing, damaged, or asks for what our towers cannot do.
    """
    path = folder / CONFIGURATION
    whole = read_json(path)
    kind = whole.get("model_type")
    if kind != "clip":
        raise ConvertError(f"{path}: model_type = {kind!r}; of Hugging Face's models CLIPModel alone can be read")
    parts = {name: _part(whole, name, path) for name in ("vision_config", "text_config")} | {"": whole}
    for name in ("vision_config", "text_config"):
        if parts[name].get("layer_norm_eps", 1e-5) != 1e-5:
            raise ConvertError(f"{path}: {name}.layer_norm_eps is not 1e-5, as our towers have it; it cannot be read")
    claims = {
        ours: (f"{part}.{theirs}" if part else theirs, parts[part].get(theirs, default))
        for ours, part, theirs, default in SIZES
    }
    end = parts["text_config"].get("eos_token_id", 49407)
    if end is not None and type(end) is not int:
        raise ConvertError(f"{path}: text_config.eos_token_id = {end!r}: has to be a number")
    weights = next((folder / name for name in (WEIGHTS, INDEX, PICKLED) if (folder / name).is_file()), folder / WEIGHTS)
    found = find_tokenizer([tokenizer or folder])
    if found is None:
        raise ConvertError(f"{folder}: comes without a tokenizer; name its tokenizer.json with --tokenizer")
    return Source(
        path=path,
        weights=weights,
        state=from_huggingface(read_sharded(weights) if weights.name == INDEX else read_weights(weights)),
        settings={ours: parts[part].get(theirs, default) for ours, part, theirs, default in SETTINGS}
        | _preprocessing(folder, claims["image.size"][1]),
        claims=claims,
        tokenizer=found,
        mend=False,
        end=None if end == OLD_END else end,
    )


def write_huggingface(bundle: Bundle, folder: Path) -> None:
    """Write a folder that `CLIPModel` and `CLIPProcessor` read with `from_pretrained`.

    Raises ConvertError naming what `CLIPModel` cannot do.
    """
    recipe, tokenizer = bundle.recipe, bundle.tokenizer
    # With 2 for an end it would read captions at their highest id, as transformers does with old configurations.
    others = ["captions that end with id 2"] if tokenizer.end == OLD_END else []
    others += [f"image_tower.stages = {list(recipe.image_tower.stages)}"] if recipe.image_tower.stages else []
    others += ["a logit_bias (train.loss = 'sigmoid')"] if bundle.model.logit_bias is not None else []
    require_plain(recipe, "Hugging Face", others)
    size = recipe.image.size
    preprocessing = {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": Image.Resampling.BICUBIC.value,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": recipe.image.mean,
        "image_std": recipe.image.std,
    }
    for name, content in ((CONFIGURATION, _configuration(bundle)), (PREPROCESSING[0], preprocessing)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    weights = to_huggingface(bundle.model.state_dict())
    (folder / WEIGHTS).write_bytes(to_safetensors(weights, metadata={"format": "pt"}))
    tokenizer.save(folder)


def huggingface_embeddings(folder: Path, some: Sample, tokens: Tensor | None = None) -> Embeddings | None:
    """What transformers itself gives with such a folder; None where it is not installed.

    tokens: [captions, context length], instead of what the folder's tokenizer makes of the captions.
    """
    try:
        transformers: Any = import_module("transformers")
        messages, before = transformers.logging, transformers.logging.get_verbosity()
        messages.set_verbosity_error()  # it has much to say, about itself
        messages.disable_progress_bar()
        _ = transformers.CLIPModel, transformers.CLIPImageProcessor  # imports them
    except (ImportError, RuntimeError):  # the latter where its torchvision is of another torch
        return None
    try:
        return _embeddings(transformers, folder, some, tokens)
    finally:
        messages.set_verbosity(before)
        messages.enable_progress_bar()


def _embeddings(transformers: Any, folder: Path, some: Sample, tokens: Tensor | None) -> Embeddings:
    model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True).float()
    size = some.pixels.shape[1]
    if any((folder / name).is_file() for name in PREPROCESSING):
        processor = transformers.CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
    else:
        processor = transformers.CLIPImageProcessor(
            size={"shortest_edge": size}, crop_size={"height": size, "width": size}
        )
    pixels = processor([Image.fromarray(one.numpy()) for one in some.pixels], return_tensors="pt")["pixel_values"]
    if tokens is None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        cut = {"padding": True, "truncation": True, "max_length": model.config.text_config.max_position_embeddings}
        tokens = tokenizer(list(some.captions), return_tensors="pt", **cut)["input_ids"]
    with torch.inference_mode():
        images = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        texts = model.text_projection(model.text_model(input_ids=tokens).pooler_output)
    return Embeddings(F.normalize(images, dim=-1), F.normalize(texts, dim=-1))


def from_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `CLIPModel` under our names; unknown ones keep theirs."""
    state = dict(state)
    for first in [key for key in state if f".self_attn.{PARTS[0]}." in key]:
        keys = [first.replace(PARTS[0], part) for part in PARTS]
        if {state[key].shape if key in state else None for key in keys} == {state[first].shape} != {torch.Size()}:
            name = first.replace(f".self_attn.{PARTS[0]}.", ".attn.in_proj_")
            state[name] = torch.cat([state.pop(key) for key in keys])
    names = [(theirs, ours) for ours, theirs in (*NAMES, *NAMES_IN_BLOCKS)]
    renamed = {_renamed(key, names): tensor for key, tensor in state.items()}
    return {key: tensor.T if key in TRANSPOSED and tensor.dim() == 2 else tensor for key, tensor in renamed.items()}


def to_huggingface(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights under the names of a `CLIPModel`."""
    split: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if ".attn.in_proj_" in key:
            for part, third in zip(PARTS, tensor.chunk(3), strict=True):
                split[key.replace(".attn.in_proj_", f".self_attn.{part}.")] = third.contiguous()
        else:
            split[key] = tensor.T.contiguous() if key in TRANSPOSED else tensor
    return {_renamed(key, [*NAMES, *NAMES_IN_BLOCKS]): tensor for key, tensor in split.items()}


def _renamed(key: str, names: list[tuple[str, str]]) -> str:
    for before, after in names:
        pattern = re.escape(before) if before.startswith(".") else f"^{re.escape(before)}"
        key = re.sub(pattern if before.endswith(".") else f"{pattern}$", after, key)
    return key


def _configuration(bundle: Bundle) -> dict[str, Any]:
    recipe, tokenizer = bundle.recipe, bundle.tokenizer
    end, start = tokenizer.end, tokenizer.start
    width = recipe.model.embedding_width
    whole: dict[str, Any] = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "dtype": "float32",
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": width},
        "text_config": {
            "model_type": "clip_text_model",
            "projection_dim": width,
            "bos_token_id": start,
            "eos_token_id": end,
            "pad_token_id": end,
        },
    }
    for ours, part, theirs, _ in (*SIZES, *SETTINGS):
        section, _, field = ours.partition(".")
        (whole[part] if part else whole)[theirs] = getattr(getattr(recipe, section), field)
    return whole


def _part(whole: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """A part of config.json; old ones say some of it in a second part, which has the last word."""
    parts = [whole.get(key) or {} for key in (name, f"{name}_dict")]
    if not all(isinstance(part, dict) for part in parts):
        raise ConvertError(f"{path}: {name} is no JSON object; copy it again")
    return {**parts[0], **parts[1]}


def _preprocessing(folder: Path, size: Any) -> dict[str, Any]:
    """Mean and std as the folder says, after a check that the rest of it is what we do too."""
    path = next((folder / name for name in PREPROCESSING if (folder / name).is_file()), None)
    if path is None:
        return {}
    whole = read_json(path)
    found = whole.get("image_processor", whole)
    if not isinstance(found, dict):
        raise ConvertError(f"{path}: image_processor is no JSON object; copy it again")
    usual = {
        "do_resize": (True,),
        "size": ({"shortest_edge": size}, size),
        "resample": (Image.Resampling.BICUBIC.value,),
        "do_center_crop": (True,),
        "crop_size": ({"height": size, "width": size}, size),
        "do_rescale": (True,),
        "do_normalize": (True,),
    }
    for key, values in usual.items():
        if found.get(key, values[0]) not in values:
            raise ConvertError(
                f"{path}: {key} = {found[key]!r}: {values[0]!r} is done here, which would give other embeddings; "
                "such a model cannot be read"
            )
    return {f"image.{ours}": found[f"image_{ours}"] for ours in ("mean", "std") if found.get(f"image_{ours}")}
