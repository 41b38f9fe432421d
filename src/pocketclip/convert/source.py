"""A model of another project -> a bundle: sizes from its weights' shapes, the rest from what it says of itself."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from pocketclip.bundle import Bundle
from pocketclip.convert.vocabulary import check_vocabulary
from pocketclip.device import Device
from pocketclip.errors import ConvertError
from pocketclip.model.clip import CLIP
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import parse_recipe
from pocketclip.tokenizer import CaptionTokenizer

# Constants that some versions save beside the weights.
UNUSED = re.compile(r"(.*\.)?(attn_mask|position_ids|input_resolution|context_length|vocab_size)")
SCALARS = ("logit_scale", "logit_bias")  # some versions save them as vectors of one element
HEAD_WIDTH = 64  # of every published CLIP that comes without a configuration
EXACT = Device(torch.device("cpu"), bfloat16=False)


@dataclass(frozen=True)
class Source:
    """A model of another project, read but not checked yet.

    path: what was read. weights: the file of the weights. state: the weights, under our names.
    settings: what shapes do not tell, dotted keys of a recipe -> values.
    claims: sizes that the configuration names, dotted keys of a recipe -> its name for them and its value.
    end: the id at which the text tower reads a caption; None: at the highest one.
    """

    path: Path
    weights: Path
    state: dict[str, Tensor]
    settings: dict[str, Any]
    claims: dict[str, tuple[str, Any]]
    tokenizer: Tokenizer
    mend: bool
    end: int | None


def to_bundle(source: Source, name: str) -> Bundle:
    """Put a model of another project together as a bundle on the CPU, in float32.

    name: the recipe's.
    Raises ConvertError if the weights are not CLIP's, contradict themselves, the configuration or the tokenizer;
    RecipeError if a recipe cannot hold the sizes.
    """
    state = _checked_state(source)
    recipe = _recipe(source, state, name)
    for key, (their_name, value) in source.claims.items():
        section, _, field = key.partition(".")
        found = getattr(getattr(recipe, section), field)
        if found != value:
            raise ConvertError(
                f"{source.path}: its configuration contradicts its weights: {their_name} = {value!r}, the weights have "
                f"{found}; give the configuration that belongs to them"
            )
    with torch.device("meta"):
        model = CLIP(recipe)
    for key, wanted in model.state_dict().items():
        if state[key].shape != wanted.shape:
            raise ConvertError(
                f"{source.weights}: weights that contradict each other: {key} is {list(state[key].shape)}, "
                f"{list(wanted.shape)} would fit the others"
            )
    # assign: they become the parameters, instead of being copied into ones that were made up.
    exact = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()}
    model.load_state_dict({key: tensor.contiguous() for key, tensor in exact.items()}, assign=True)
    tokenizer = CaptionTokenizer(source.tokenizer, recipe.text_tower.context_length, source.mend)
    check_vocabulary(tokenizer, recipe.tokenizer.vocabulary_size, source.end, str(source.path))
    return Bundle(model.eval(), recipe, tokenizer, {}, EXACT)


def _checked_state(source: Source) -> dict[str, Tensor]:
    """The weights without what is unused; every key is one of ours, none is missing, all hold real numbers."""
    state = {key: tensor for key, tensor in source.state.items() if not UNUSED.fullmatch(key)}
    state |= {key: state[key].reshape(()) for key in SCALARS if key in state and state[key].numel() == 1}
    with torch.device("meta"):
        expected = CLIP(parse_recipe(_told_by_names(state), str(source.path))).state_dict()
    # Batch norm's first version did not count, and TorchScript does not say which version it saved.
    state |= {key: torch.tensor(0) for key in expected.keys() - state.keys() if key.endswith("num_batches_tracked")}
    unknown, missing = state.keys() - expected.keys(), expected.keys() - state.keys()
    if unknown or missing:
        found = [f"{_some(keys)} {what}" for keys, what in ((unknown, "unknown"), (missing, "missing")) if keys]
        raise ConvertError(
            f"{source.weights}: weights of another architecture ({'; '.join(found)}); only CLIP's own can be read"
        )
    for key, tensor in state.items():
        real = tensor.is_floating_point() == expected[key].is_floating_point()
        if tensor.dim() != expected[key].dim() or not real or tensor.numel() == 0:
            raise ConvertError(
                f"{source.weights}: weights of another architecture ({key} is {tensor.dtype} {list(tensor.shape)})"
            )
        if not tensor.isfinite().all():
            raise ConvertError(f"{source.weights}: {key} holds values that are no numbers; its training went wrong")
    return state


def _told_by_names(state: Iterable[str]) -> dict[str, Any]:
    """What the names of the weights tell of a recipe: layers, a ResNet's stages, the loss."""
    state = list(state)
    stages = [
        _count(state, rf"visual\.layer{number}\.(\d+)\.")
        for number in range(1, 1 + _count(state, r"visual\.layer(\d+)\."))
    ]
    image: dict[str, Any] = {"layers": max(1, _count(state, r"visual\.transformer\.resblocks\.(\d+)\."))}
    values = {
        "image_tower": image,
        "text_tower": {"layers": max(1, _count(state, r"text\.transformer\.resblocks\.(\d+)\."))},
        "train": {"loss": "sigmoid" if "logit_bias" in state else "softmax"},
    }
    if stages:
        patch = 2 ** (len(stages) + 1)
        values |= {
            "image_tower": {"stages": [max(1, one) for one in stages], "patch_size": patch},
            "image": {"size": patch},
        }
    return values


def _count(names: Iterable[str], pattern: str) -> int:
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def _some(keys: Iterable[str]) -> str:
    first, *more = sorted(keys)
    shown = ", ".join((first, *more[:2]))
    return f"{shown} and {len(more) - 2} more" if len(more) > 2 else shown


def _recipe(source: Source, state: dict[str, Tensor], name: str) -> Recipe:
    vocabulary, text_width = state["text.token_embedding.weight"].shape
    values = _told_by_names(state)
    image, text = values["image_tower"], values["text_tower"]
    if image.get("stages"):
        positions = state["visual.attnpool.positional_embedding"]
        embedding_width, pooled_width = state["visual.attnpool.c_proj.weight"].shape
        image["width"] = len(state["visual.conv3.weight"])
    else:
        positions, embedding_width = state["visual.positional_embedding"], state["visual.proj"].shape[1]
        pooled_width, _, image["patch_size"], _ = state["visual.conv1.weight"].shape
        image |= {"width": pooled_width, "mlp_ratio": _mlp_ratio(state, "visual", pooled_width)}
    context_length = len(state["text.positional_embedding"])
    text |= {"width": text_width, "context_length": context_length, "mlp_ratio": _mlp_ratio(state, "text", text_width)}
    size, image["cut_edges"] = _image_size(source, math.isqrt(len(positions) - 1), image["patch_size"])
    values |= {
        "name": name,
        "image": {"size": size, "decoding": "exact"},  # as all other projects decode images
        "model": {"embedding_width": embedding_width},
        "tokenizer": {
            "vocabulary_size": vocabulary,
            "mend": source.mend,
            "lowercase": CaptionTokenizer(source.tokenizer, 3).lowercase,
        },
    }
    for key, value in source.settings.items():
        section, _, field = key.partition(".")
        values[section][field] = value
    for tower, width in ((image, pooled_width), (text, text_width)):
        _require_told(source, tower, width)
    return parse_recipe(values, str(source.path))


def _image_size(source: Source, side: int, patch: int) -> tuple[int, bool]:
    """The image's side in pixels and whether patches leave its edges out, of which the weights know nothing."""
    _, claimed = source.claims.get("image.size", ("", None))
    size = claimed if isinstance(claimed, int) and claimed // patch == side else side * patch
    return size, size % patch > 0


def _require_told(source: Source, tower: dict[str, Any], width: int) -> None:
    """Fill in the heads that every published model has; raise ConvertError where a setting is not told at all.

    width: of the tower's attention.
    """
    if "activation" not in tower:
        raise ConvertError(
            f"{source.path}: does not say which activation it was trained with; add --activation gelu, or "
            "--activation quick_gelu for OpenAI's weights and models named so"
        )
    if "heads" not in tower:
        if width % HEAD_WIDTH:
            raise ConvertError(
                f"{source.path}: does not say how many attention heads it has, and a width of {width} does not tell; "
                "put it into a folder with its open_clip_config.json"
            )
        tower["heads"] = width // HEAD_WIDTH


def _mlp_ratio(state: dict[str, Tensor], tower: str, width: int) -> float:
    return ratio(width, len(state[f"{tower}.transformer.resblocks.0.mlp.c_fc.bias"]))


def ratio(width: int, hidden: int) -> float:
    """The perceptron's width in tower widths, such that the product, cut to an integer, gives it back."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else math.nextafter(exact, math.inf)
