"""What a recipe costs, counted from its sizes: parameters, multiplications, memory. No weights are made.

Counts are of matrix products and convolutions alone, two operations a multiply-add, as the field does
(Kaplan et al. 2020, section 2.1); a training step costs three forward passes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pocketclip.model.clip import CLIP
from pocketclip.recipe.schema import Recipe, TransformerSettings

BYTES_PER_PARAMETER = 16  # float32: the weight, its gradient and AdamW's two moments
PROCESS_BYTES = 400e6  # Python, torch and their libraries, before any model


@dataclass(frozen=True, slots=True)
class Budget:
    """image_parameters, text_parameters: numbers. flops_per_pair: one training step's, for one pair.

    memory_bytes: weights, optimizer, activations of one batch and the process itself.
    """

    image_parameters: int
    text_parameters: int
    flops_per_pair: float
    memory_bytes: float


def count_budget(recipe: Recipe, caption_tokens: float, bytes_per_activation: int) -> Budget:
    """Count a recipe's cost.

    caption_tokens: how many tokens of a caption are computed, on average.
    bytes_per_activation: 2 in bfloat16, 4 in float32.
    """
    with torch.device("meta"):
        model = CLIP(recipe)
    image, image_values = _resnet_forward(model, recipe) if recipe.image_tower.stages else _image_forward(recipe)
    text, text_values = _transformer_forward(recipe.text_tower, caption_tokens, read_one=True)
    text += recipe.text_tower.width * recipe.model.embedding_width
    image_parameters = sum(p.numel() for p in model.visual.parameters())
    text_parameters = sum(p.numel() for p in model.text.parameters())
    activations = (image_values + text_values) * bytes_per_activation * recipe.train.batch_size
    memory = (image_parameters + text_parameters) * BYTES_PER_PARAMETER + activations + PROCESS_BYTES
    return Budget(image_parameters, text_parameters, 3 * 2 * (image + text), memory)


def _transformer_forward(settings: TransformerSettings, tokens: float, read_one: bool) -> tuple[float, float]:
    """(multiply-adds, values kept for the backward pass) of one sequence through the blocks.

    read_one: only one token is read of the last block, which then computes no more than keys and values for the others.
    Values: two norms' inputs and outputs, queries, keys, values, two copies of the attention matrix, its result,
    the perceptron's two wide layers.
    """
    width, mlp = settings.width, settings.mlp_width

    def block(queries: float) -> tuple[float, float]:
        products = 2 * (tokens + queries) * width**2 + 2 * queries * width * mlp + 2 * tokens * queries * width
        values = tokens * 4 * width + queries * (5 * width + 2 * mlp) + 2 * settings.heads * tokens * queries
        return products, values

    last = block(1 if read_one else tokens)
    products, values = ((settings.layers - 1) * one + end for one, end in zip(block(tokens), last, strict=True))
    return products, values


def _resnet_forward(model: CLIP, recipe: Recipe) -> tuple[float, float]:
    """The same of a ResNet, by running it without values."""
    kept = 0.0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += 0 if isinstance(tensor, nn.Parameter) else tensor.numel()
        return tensor

    pixels = torch.empty(1, 3, recipe.image.size, recipe.image.size, device="meta")
    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        model.train().visual(pixels)
    return counter.get_total_flops() / 2, kept


def _image_forward(recipe: Recipe) -> tuple[float, float]:
    tower, side = recipe.image_tower, recipe.image.size
    products, values, before = 0.0, 3.0 * side**2, 3
    for channels in tower.stem_channels:
        side //= 2
        products += side**2 * 9 * before * channels
        values += 3.0 * side**2 * channels
        before = channels
    patch = tower.patch_size // tower.stem_stride
    patches = (recipe.image.size // tower.patch_size) ** 2
    products += patches * patch**2 * before * tower.width
    by_class = tower.pool == "class"
    blocks, kept = _transformer_forward(tower, patches + by_class, read_one=by_class)
    return products + blocks + tower.width * recipe.model.embedding_width, values + kept
