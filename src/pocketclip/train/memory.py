"""Whether a recipe fits the memory, and how many pairs can be embedded at a time where a whole batch does not."""

import psutil
import torch

from pocketclip.data.batches import Batch
from pocketclip.device import Device
from pocketclip.errors import TrainingError
from pocketclip.model.budget import Budget, count_budget
from pocketclip.model.transformer import packed_rows
from pocketclip.recipe.schema import Recipe

USABLE = 0.9  # of the free memory: other programs want some, and what is counted is not all


def fit_to_memory(recipe: Recipe, caption_tokens: float, device: Device, ranks: int = 1) -> tuple[Recipe, Budget]:
    """The recipe with a chunk size that fits the device, and what it costs.

    caption_tokens: computed, on average. ranks: processes that each hold a part of the batch, on devices of their own.
    Where `train.chunk_size` is 0 the batch is halved until a part of it fits. Raises TrainingError where nothing does.
    """
    free = free_memory(device)
    part = max(2, -(-recipe.train.batch_size // ranks))
    bytes_per_activation = 2 if device.bfloat16 else 4
    chunk = min(recipe.train.chunk_size or part, part)
    while True:
        fitted = recipe
        if chunk < part:
            fitted = _with(recipe, chunk_size=chunk)
        budget = count_budget(_with(fitted, batch_size=part), caption_tokens, bytes_per_activation)
        if budget.memory_bytes <= USABLE * free:
            return fitted, budget
        if recipe.train.chunk_size or chunk == 1:
            raise TrainingError(_too_large(recipe, chunk, budget, free))
        chunk = -(-chunk // 2)


def _with(recipe: Recipe, **changes: int) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})


def _too_large(recipe: Recipe, chunk: int, budget: Budget, free: float) -> str:
    said = f"train.batch_size = {recipe.train.batch_size}"
    if recipe.train.chunk_size:
        said, advice = f"train.chunk_size = {chunk}", "lower it, or leave it at 0"
    else:
        advice = "lower it, or the towers' width or layers, or set train.recompute"
    needed = f"{budget.memory_bytes / 1e9:.1f} GB" + (
        "" if recipe.train.chunk_size else " even with one pair at a time"
    )
    return f"{said}: training needs about {needed}, {free / 1e9:.1f} GB are free; {advice}"


def computed_tokens(batch: Batch, device: Device) -> float:
    """Tokens a caption that the text tower computes: its own and some padding, or up to the longest of its batch."""
    length = batch.tokens.shape[1]
    rows = packed_rows(batch.ends, length, device.device)
    return length if rows is None else rows / len(batch.ends)


def free_memory(device: Device) -> float:
    """Bytes that a run could use on the device now."""
    if device.device.type == "cuda":
        return float(torch.cuda.mem_get_info(device.device)[0])
    return float(psutil.virtual_memory().available)


def memory_in_use(device: Device) -> int:
    """Bytes: of the GPU at most so far, or of this process now."""
    if device.device.type == "cuda":
        return torch.cuda.max_memory_allocated(device.device)
    return int(psutil.Process().memory_info().rss)
