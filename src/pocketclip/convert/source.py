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
    model.load_state_dict({key: tensor.float().contiguous() for key, tensor in state.items()}, assign=True)
    tokenizer = CaptionTokenizer(source.tokenizer, recipe.text_tower.context_length, source.mend)
    check_vocabulary(tokenizer, recipe.tokenizer.vocabulary_size, source.end, str(source.path))
    return Bundle(model.eval(), recipe, tokenizer, {}, EXACT)


def _checked_state(source: Source) -> dict[str, Tensor]:
    """The weights without what is unused; every key is one of ours, none is missing, all hold real numbers."""
    state = {key: tensor for key, tensor in source.state.items() if not UNUSED.fullmatch(key)}
    if "logit_scale" in state and state["logit_scale"].numel() == 1:
        state["logit_scale"] = state["logit_scale"].reshape(())
    layers = {"image_tower": {"layers": _layers(state, "visual")}, "text_tower": {"layers": _layers(state, "text")}}
    with torch.device("meta"):
        expected = CLIP(parse_recipe(layers, str(source.path))).state_dict()
    unknown, missing = state.keys() - expected.keys(), expected.keys() - state.keys()
    if unknown or missing:
        found = [f"{_some(keys)} {what}" for keys, what in ((unknown, "unknown"), (missing, "missing")) if keys]
        raise ConvertError(
            f"{source.weights}: weights of another architecture ({'; '.join(found)}); of CLIP's models the vision "
            "transformers can be read"
        )
    for key, tensor in state.items():
        if tensor.dim() != expected[key].dim() or not tensor.is_floating_point() or tensor.numel() == 0:
            raise ConvertError(
                f"{source.weights}: weights of another architecture ({key} is {tensor.dtype} {list(tensor.shape)})"
            )
        if not tensor.isfinite().all():
            raise ConvertError(f"{source.weights}: {key} holds values that are no numbers; its training went wrong")
    return state


def _layers(state: Iterable[str], tower: str) -> int:
    found = (re.match(rf"{tower}\.transformer\.resblocks\.(\d+)\.", key) for key in state)
    return max(1, len({match[1] for match in found if match}))


def _some(keys: Iterable[str]) -> str:
    first, *more = sorted(keys)
    shown = ", ".join((first, *more[:2]))
    return f"{shown} and {len(more) - 2} more" if len(more) > 2 else shown


def _recipe(source: Source, state: dict[str, Tensor], name: str) -> Recipe:
    image_width, _, patch, _ = state["visual.conv1.weight"].shape
    side = math.isqrt(len(state["visual.positional_embedding"]) - 1)
    vocabulary, text_width = state["text.token_embedding.weight"].shape
    values: dict[str, Any] = {
        "name": name,
        "image": {"size": side * patch},
        "image_tower": {"width": image_width, "patch_size": patch, **_tower(state, "visual", image_width)},
        "text_tower": {
            "width": text_width,
            "context_length": len(state["text.positional_embedding"]),
            **_tower(state, "text", text_width),
        },
        "model": {"embedding_width": state["visual.proj"].shape[1]},
        "tokenizer": {
            "vocabulary_size": vocabulary,
            "mend": source.mend,
            "lowercase": CaptionTokenizer(source.tokenizer, 3).lowercase,
        },
    }
    for key, value in source.settings.items():
        section, _, field = key.partition(".")
        values[section][field] = value
    for section in ("image_tower", "text_tower"):
        if "activation" not in values[section]:
            raise ConvertError(
                f"{source.path}: does not say which activation it was trained with; add --activation gelu, or "
                "--activation quick_gelu for OpenAI's weights and models named so"
            )
        if "heads" not in values[section]:
            if values[section]["width"] % HEAD_WIDTH:
                raise ConvertError(
                    f"{source.path}: does not say how many attention heads it has, and a width of "
                    f"{values[section]['width']} does not tell; put it into a folder with its open_clip_config.json"
                )
            values[section]["heads"] = values[section]["width"] // HEAD_WIDTH
    return parse_recipe(values, str(source.path))


def _tower(state: dict[str, Tensor], tower: str, width: int) -> dict[str, Any]:
    hidden = len(state[f"{tower}.transformer.resblocks.0.mlp.c_fc.bias"])
    return {"layers": _layers(state, tower), "mlp_ratio": ratio(width, hidden)}


def ratio(width: int, hidden: int) -> float:
    """The perceptron's width in tower widths, such that the product, cut to an integer, gives it back."""
    exact = hidden / width
    return exact if int(width * exact) == hidden else math.nextafter(exact, math.inf)
