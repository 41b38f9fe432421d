"""OpenCLIP's folders and checkpoints, and OpenAI's: read, and written for `local-dir:`.

Formats: open_clip 3.3.0, `factory.py` and `model.py`; OpenAI's CLIP, `model.py`. Both put the text tower's names beside
`visual.`; OpenCLIP's `CustomTextCLIP` puts them under `text.`, as we do.
"""

import json
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
from pocketclip.convert.vocabulary import find_tokenizer, installed_places, is_openais
from pocketclip.convert.weights import read_json, read_weights
from pocketclip.errors import ConvertError

CONFIGURATION = "open_clip_config.json"
WEIGHTS = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
)
OURS = "pocketclip"  # our own part of the configuration, which OpenCLIP does not look at

# What CLIPVisionCfg and CLIPTextCfg hold where a configuration says nothing.
IMAGE_DEFAULTS = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
TEXT_DEFAULTS = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12, "mlp_ratio": 4.0}
STAGES, POOLED = 4, 32  # of its ResNets; the width of what their attention pools, in widths of the first stage
# Values of other keys that mean what our towers do; a key that is off (null, false, 0) means it too.
EXPECTED = {"pos_embed_type": "learnable", "proj_type": "linear", "block_type": "default"}
# Keys that change nothing in what the towers compute, at most how they are trained.
WITHOUT_EFFECT = {"patch_dropout", "output_tokens", "final_ln_after_pool", "pad_id", "eos_id", "hf_tokenizer_name"}
UNUSED_PARTS = ("attn_pooler_", "timm_", "hf_")  # settings of parts that another key would have to turn on


def read_open_clip(folder: Path, tokenizer: Path | None) -> Source:
    """Read a folder with open_clip_config.json, weights and, unless it is OpenAI's vocabulary, a tokenizer.

    tokenizer: a file or folder, instead of the folder's own.
    Raises ConvertError for what is missing, damaged, or asks for what our towers cannot do.
    """
    path = folder / CONFIGURATION
    whole = read_json(path)
    model, preprocessing = _part(whole, "model_cfg", path), _part(whole, "preprocess_cfg", path)
    image = {**IMAGE_DEFAULTS, **_part(model, "vision_cfg", path)}
    text = {**TEXT_DEFAULTS, **_part(model, "text_cfg", path)}
    pool = text.pop("pool_type", "argmax")
    _refuse_others(path, "vision_cfg", {**image, "pool_type": image.get("pool_type", "tok") != "tok"}, IMAGE_DEFAULTS)
    kinds = {**text, "pool_type": pool not in ("argmax", "eos"), "tokenizer_kwargs": _unlike_ours(text)}
    _refuse_others(path, "text_cfg", kinds, TEXT_DEFAULTS)
    _check_preprocessing(path, preprocessing)
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), folder / WEIGHTS[0])
    activation = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return Source(
        path=path,
        weights=weights,
        state=named(read_weights(weights)),
        settings={
            "image_tower.heads": _image_heads(image, path),
            "text_tower.heads": text["heads"],
            "image_tower.activation": activation,
            "text_tower.activation": activation,
            **{f"image.{key}": preprocessing[key] for key in ("mean", "std") if preprocessing.get(key)},
        },
        claims=_claims(model, image, text, path),
        tokenizer=_tokenizer([tokenizer] if tokenizer else [folder], path, not text.get("hf_tokenizer_name")),
        mend=bool(_part(whole, OURS, path).get("mend", True)),
        end=_number({"eos_id": 2, **text}, "eos_id", path) if pool == "eos" else None,
    )


def read_checkpoint(path: Path, tokenizer: Path | None, activation: str | None) -> Source:
    """Read weights without a configuration: OpenAI's, OpenCLIP's or a training checkpoint of OpenCLIP's.

    activation: which one they were trained with; OpenAI's own files say so.
    Raises ConvertError for what is missing, damaged or not theirs.
    """
    state = read_weights(path)
    if any(key.startswith("vision_model.") for key in state):
        raise ConvertError(f"{path}: weights of Hugging Face's; give the folder, with its config.json")
    if activation is None and "input_resolution" in state:  # which only OpenAI's archives hold
        activation = "quick_gelu"
    settings = {f"{tower}.activation": activation for tower in ("image_tower", "text_tower") if activation}
    found = _tokenizer([tokenizer] if tokenizer else [], path, openais=True)
    return Source(path, path, named(state), settings, {}, found, mend=True, end=None)


def write_open_clip(bundle: Bundle, folder: Path) -> None:
    """Write a folder that `open_clip.create_model_from_pretrained("local-dir:...")` and `get_tokenizer` read.

    Raises ConvertError naming what OpenCLIP's towers cannot do.
    """
    image, text = bundle.recipe.image_tower, bundle.recipe.text_tower
    others = [f"image_tower.activation = {image.activation!r} and text_tower.activation = {text.activation!r}"]
    others = others if image.activation != text.activation and not image.stages else []
    others += [f"image_tower.stages = {list(image.stages)}"] if len(image.stages) not in (0, STAGES) else []
    require_plain(bundle.recipe, "OpenCLIP", others)
    (folder / CONFIGURATION).write_text(json.dumps(_configuration(bundle), indent=2) + "\n", encoding="utf-8")
    (folder / WEIGHTS[0]).write_bytes(to_safetensors(bundle.model.state_dict(), metadata={"format": "pt"}))
    bundle.tokenizer.save(folder)


def open_clip_embeddings(folder: Path, some: Sample, tokens: Tensor | None = None) -> Embeddings | None:
    """What OpenCLIP itself gives with such a folder; None where it is not installed.

    tokens: [captions, context length], instead of what the folder's tokenizer makes of the captions.
    """
    try:
        import open_clip
    except (ImportError, RuntimeError):  # the latter where its torchvision is of another torch
        return None
    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    if tokens is None:
        tokens = open_clip.get_tokenizer(name)(list(some.captions))
    pixels = torch.stack([preprocess(Image.fromarray(one.numpy())) for one in some.pixels])
    with torch.inference_mode():
        vectors = model.eval().encode_image(pixels), model.encode_text(tokens)
    return Embeddings(*(F.normalize(one.float(), dim=-1) for one in vectors))


def named(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of `CustomTextCLIP`, whichever of the two layouts they come in."""
    if "token_embedding.weight" not in state:
        return state
    apart = ("visual.", "logit_")
    return {key if key.startswith(apart) else f"text.{key}": tensor for key, tensor in state.items()}


def _configuration(bundle: Bundle) -> dict[str, Any]:
    recipe, tokenizer, bias = bundle.recipe, bundle.tokenizer, bundle.model.logit_bias
    image, text = recipe.image_tower, recipe.text_tower
    return {
        "model_cfg": {
            "embed_dim": recipe.model.embedding_width,
            "custom_text": True,  # the weights' names
            "quick_gelu": text.activation == "quick_gelu",
            "init_logit_bias": None if bias is None else float(bias.detach()),
            "vision_cfg": {
                "image_size": recipe.image.size,
                "patch_size": image.patch_size,
                "width": image.width,
                "layers": list(image.stages) or image.layers,
                "head_width": image.width * (POOLED if image.stages else 1) // image.heads,
                "mlp_ratio": image.mlp_ratio,
            },
            "text_cfg": {
                "context_length": text.context_length,
                "vocab_size": recipe.tokenizer.vocabulary_size,
                "width": text.width,
                "layers": text.layers,
                "heads": text.heads,
                "mlp_ratio": text.mlp_ratio,
                "pool_type": "eos",
                "eos_id": tokenizer.end,
                "pad_id": tokenizer.end,
                # For OpenAI's vocabulary OpenCLIP has its own; else any name makes it look into the folder.
                **({} if is_openais(tokenizer) else {"hf_tokenizer_name": "."}),
            },
        },
        "preprocess_cfg": {
            "size": recipe.image.size,
            "mode": "RGB",
            "mean": recipe.image.mean,
            "std": recipe.image.std,
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
        OURS: {"mend": tokenizer.mend},
    }


def _tokenizer(places: list[Path], path: Path, openais: bool) -> Any:
    found = find_tokenizer([*places, *(installed_places() if openais else [])])
    if found is None:
        raise ConvertError(
            f"{path}: comes without a tokenizer; name one with --tokenizer: its tokenizer.json, or OpenAI's "
            "bpe_simple_vocab_16e6.txt.gz, which the packages of OpenCLIP and OpenAI's CLIP hold"
        )
    return found


def _claims(
    model: dict[str, Any], image: dict[str, Any], text: dict[str, Any], path: Path
) -> dict[str, tuple[str, Any]]:
    claims = {
        "model.embedding_width": ("embed_dim", model.get("embed_dim")),
        "image.size": ("vision_cfg.image_size", image["image_size"]),
        "text_tower.context_length": ("text_cfg.context_length", text["context_length"]),
        "tokenizer.vocabulary_size": ("text_cfg.vocab_size", text["vocab_size"]),
        "image_tower.width": ("vision_cfg.width", image["width"]),
    }
    towers = [("text_tower", "text_cfg", text)]
    if isinstance(image["layers"], list):
        claims["image_tower.stages"] = ("vision_cfg.layers", tuple(image["layers"]))
    else:
        claims["image_tower.patch_size"] = ("vision_cfg.patch_size", image["patch_size"])
        towers.append(("image_tower", "vision_cfg", image))
    for section, name, part in towers:
        claims[f"{section}.width"] = (f"{name}.width", part["width"])
        claims[f"{section}.layers"] = (f"{name}.layers", part["layers"])
        mlp_width = int(_number(part, "width", path) * _number(part, "mlp_ratio", path))
        claims[f"{section}.mlp_width"] = (f"{name}.width * mlp_ratio", mlp_width)
    return claims


def _image_heads(image: dict[str, Any], path: Path) -> Any:
    pooled = POOLED if isinstance(image["layers"], list) else 1
    return _number(image, "width", path) * pooled // max(1, _number(image, "head_width", path))


def _part(content: dict[str, Any], key: str, path: Path) -> dict[str, Any]:
    part = content.get(key) or {}
    if not isinstance(part, dict):
        raise ConvertError(f"{path}: {key} is no JSON object; copy it again")
    return part


def _number(part: dict[str, Any], key: str, path: Path) -> Any:
    value = part[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 2**31:
        raise ConvertError(f"{path}: {key} = {value!r} is no size of a CLIP's; copy it again")
    return value


def _refuse_others(path: Path, name: str, part: dict[str, Any], known: dict[str, Any]) -> None:
    for key, value in part.items():
        unused = key in WITHOUT_EFFECT or (key.startswith(UNUSED_PARTS) and not key.endswith("_model_name"))
        if key not in known and not unused and value and value != EXPECTED.get(key):
            raise ConvertError(f"{path}: {name}.{key} is nothing that our towers can do; such a model cannot be read")


def _unlike_ours(text: dict[str, Any]) -> bool:
    """Whether captions are cleaned otherwise than OpenCLIP does by default; `tokenizer_kwargs` of its configuration."""
    arguments = text.get("tokenizer_kwargs") or {}
    usual = "whitespace" if text.get("hf_tokenizer_name") else "lower"
    return bool(arguments) and arguments != {"clean": usual}


def _check_preprocessing(path: Path, preprocessing: dict[str, Any]) -> None:
    for key, usual in (("mode", ("RGB",)), ("interpolation", ("bicubic", "random")), ("resize_mode", ("shortest",))):
        if preprocessing.get(key, usual[0]) not in usual:
            raise ConvertError(
                f"{path}: preprocess_cfg.{key} = {preprocessing[key]!r}: images are read with {usual[0]!r} here, which "
                "would give other embeddings; such a model cannot be read"
            )
