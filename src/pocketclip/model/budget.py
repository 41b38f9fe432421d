"""What a recipe costs, counted from its sizes: parameters, multiplications, memory. No weights are made.

Counts are of matrix products and convolutions alone, two operations a multiply-add, as the field does
(Kaplan et al. 2020, section 2.1); a training step costs three forward passes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pocketclip.model.clip import CLIP
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.towers import TransformerSettings

WEIGHT_BYTES = 4  # float32
STATE_BYTES = {"adamw": 12, "muon": 8}  # of a parameter that learns: its gradient, and two moments or one
LOSS_BYTES = 4 * 4 * (1 << 23)  # logits are computed in blocks of so many at the most; four copies of them
PROCESS_BYTES = 400e6  # Python, torch and their libraries, before any model


@dataclass(frozen=True, slots=True)
class Budget:
    """image_parameters, text_parameters: numbers. flops_per_pair: one training step's, for one image with its captions,
    the mean over a run whose images grow.

    memory_bytes: weights, optimizer, pixels, activations of as many pairs as are embedded at a time, the loss and the
    process itself.
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
    image, image_values = 0.0, 0.0
    for size, share in recipe.image.phases:  # the last is the largest
        one, image_values = _resnet_forward(model, size) if recipe.image_tower.stages else _image_forward(recipe, size)
        image += share * one
    recompute = recipe.train.recompute
    text, text_values = _transformer_forward(recipe.text_tower, caption_tokens, True, recompute)
    text += recipe.text_tower.width * recipe.model.embedding_width
    captions = recipe.caption.per_image
    batch, settings = recipe.train.batch_size, recipe.train
    rows = min(settings.chunk_size or batch, batch)
    flops, state, activations = 0.0, 0.0, 0.0
    parameters = []
    for tower, products, values, sizes in (
        (model.visual, image, image_values, recipe.image_tower),
        (model.text, captions * text, captions * text_values, recipe.text_tower),
    ):
        again = (rows < batch) + (settings.recompute and not sizes.locked)  # forward passes beside the first
        flops += 2 * products * (1 + again + 2 * (not sizes.locked))
        parameters.append(sum(one.numel() for one in tower.parameters()))
        per_parameter = WEIGHT_BYTES * (2 if settings.ema_decay else 1)
        per_parameter += 0 if sizes.locked else STATE_BYTES[settings.optimizer]
        state += parameters[-1] * per_parameter
        activations += 0 if sizes.locked else values * bytes_per_activation * rows
    pixels = 3 * recipe.image.size**2 * (batch + 4 * rows)  # as bytes, and normalised
    vectors = 4 * recipe.model.embedding_width * 3 * (1 + captions) * batch
    loss = min(LOSS_BYTES, 4 * 4 * batch**2) + vectors
    memory = state + activations + pixels + loss + PROCESS_BYTES
    return Budget(parameters[0], parameters[1], flops, memory)


def _transformer_forward(
    settings: TransformerSettings, tokens: float, read_one: bool, recompute: bool
) -> tuple[float, float]:
    """(multiply-adds, values kept for the backward pass) of one sequence through the blocks.

    read_one: only one token is read of the last block, which then computes no more than keys and values for the others.
    Values: two norms' inputs and outputs, queries, keys, values, two copies of the attention matrix, its result,
    the perceptron's two wide layers. recompute: of all blocks but the one at work only the inputs are kept.
    """
    width, mlp = settings.width, settings.mlp_width

    def block(queries: float) -> tuple[float, float]:
        products = 2 * (tokens + queries) * width**2 + 2 * queries * width * mlp + 2 * tokens * queries * width
        values = tokens * 4 * width + queries * (5 * width + 2 * mlp) + 2 * settings.heads * tokens * queries
        return products, values

    products, values = block(tokens)
    last_products, last_values = block(1 if read_one else tokens)
    kept = values + (settings.layers - 2) * tokens * width if recompute else (settings.layers - 1) * values
    return (settings.layers - 1) * products + last_products, kept + last_values


def _resnet_forward(model: CLIP, size: int) -> tuple[float, float]:
    """The same of a ResNet, by running it without values."""
    kept = 0.0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += 0 if isinstance(tensor, nn.Parameter) else tensor.numel()
        return tensor

    pixels = torch.empty(1, 3, size, size, device="meta")
    hooks = torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor)
    with FlopCounterMode(display=False) as counter, hooks:
        model.train().visual(pixels)
    return counter.get_total_flops() / 2, kept


def _image_forward(recipe: Recipe, size: int) -> tuple[float, float]:
    tower, side = recipe.image_tower, size
    products, values, before = 0.0, 3.0 * side**2, 3
    for channels in tower.stem_channels:
        side //= 2
        products += side**2 * 9 * before * channels
        values += 3.0 * side**2 * channels
        before = channels
    patch = tower.patch_size // tower.stem_stride
    patches = (size // tower.patch_size) ** 2
    products += patches * patch**2 * before * tower.width
    by_class, seen = tower.pool == "class", max(1, round(patches * (1 - tower.patch_dropout)))
    blocks, kept = _transformer_forward(tower, seen + by_class, by_class, recipe.train.recompute)
    return products + blocks + tower.width * recipe.model.embedding_width, values + kept
