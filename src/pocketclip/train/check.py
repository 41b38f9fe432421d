"""Price a recipe before it runs: count it, then time a few of its real steps and throw them away."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import torch

from pocketclip.data.batches import Batch, TrainingBatches, load_batches
from pocketclip.data.shards import Split
from pocketclip.device import Device, choose_device
from pocketclip.errors import TrainingError
from pocketclip.model.budget import Budget, count_budget
from pocketclip.recipe.schema import Recipe
from pocketclip.train.learner import Learner
from pocketclip.train.loop import memory_in_use, open_tokenizer, require_pairs

WARM_STEPS, TIMED_STEPS = 3, 9


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run of this recipe will take on this machine.

    seconds: of training. memory_bytes: of this process (CPU) or of the GPU, while training.
    """

    budget: Budget
    rows: int
    steps: int
    pairs_per_second: float
    seconds: float
    memory_bytes: float
    device: Device


def check(recipe: Recipe) -> Estimate:
    """Open the data and the tokenizer, count the budget, time some steps.

    Raises TrainingError if the batch cannot fit this machine's memory, and what opening the data raises.
    """
    device = choose_device(recipe.train.device, recipe.train.precision)
    tokenizer = open_tokenizer(recipe)
    split = Split(recipe.data.folder, recipe.data.split)
    batches = TrainingBatches(split, recipe, tokenizer.encode)
    some = [require_pairs(batches[0, step], split) for step in range(min(3, batches.steps_per_epoch))]
    tokens = np.mean([computed_tokens(batch, device) for batch in some])
    budget = count_budget(recipe, float(tokens), 2 if device.bfloat16 else 4)
    free = free_memory(device)
    if budget.memory_bytes > free:
        raise TrainingError(
            f"train.batch_size = {recipe.train.batch_size}: training needs about {budget.memory_bytes / 1e9:.1f} GB, "
            f"{free / 1e9:.1f} GB are free; lower it, or the towers' width or layers"
        )
    steps = batches.steps_per_epoch * recipe.train.epochs
    seconds_per_step, memory = _time_steps(Learner(recipe, device, steps), batches)
    return Estimate(
        budget,
        len(split),
        steps,
        recipe.train.batch_size / seconds_per_step,
        steps * seconds_per_step,
        memory,
        device,
    )


def computed_tokens(batch: Batch, device: Device) -> float:
    """Tokens a caption that the text tower computes: on the CPU its own, on a GPU the batch's longest (padding too)."""
    return float((batch.ends + 1).float().mean()) if device.device.type == "cpu" else float(batch.tokens.shape[1])


def _time_steps(learner: Learner, batches: TrainingBatches) -> tuple[float, float]:
    """(median seconds a step, bytes in use at the most) of a few steps on real batches."""
    seconds: list[float] = []
    memory = 0
    began = time.monotonic()
    for number, batch in enumerate(_some_batches(learner, batches)):
        loss, _ = learner.step(batch, number)
        loss.item()  # waits for the device
        memory = max(memory, memory_in_use(learner.device))
        seconds.append(time.monotonic() - began)
        began = time.monotonic()
    return float(np.median(seconds[-TIMED_STEPS:])), float(memory)


def _some_batches(learner: Learner, batches: TrainingBatches) -> Iterator[Batch]:
    """As many batches as are timed, made the way that the run makes them."""
    count, workers = WARM_STEPS + TIMED_STEPS, learner.recipe.data.workers
    if workers:
        yield from load_batches(batches, 0, min(count, learner.steps), workers)
    else:  # the same few again: where images are cached, a run decodes each but once
        for number in range(count):
            yield batches[0, number % min(WARM_STEPS, batches.steps_per_epoch)]


def free_memory(device: Device) -> float:
    """Bytes that a run could use on the device now."""
    if device.device.type == "cuda":
        return float(torch.cuda.mem_get_info(device.device)[0])
    return float(psutil.virtual_memory().available)


def describe(estimate: Estimate) -> Sequence[tuple[str, str]]:
    """The estimate as (what, value with unit) lines."""
    budget = estimate.budget
    total = budget.image_parameters + budget.text_parameters
    rate = budget.flops_per_pair * estimate.pairs_per_second
    return (
        (
            "parameters",
            f"{total / 1e6:.2f} M (image tower {budget.image_parameters / 1e6:.2f}, "
            f"text tower {budget.text_parameters / 1e6:.2f})",
        ),
        ("FLOPs a pair", f"{budget.flops_per_pair / 1e9:.3f} G (forward and backward)"),
        ("rows, steps", f"{estimate.rows:,} rows, {estimate.steps:,} steps"),
        ("device", f"{estimate.device.device}, {'bfloat16' if estimate.device.bfloat16 else 'float32'}"),
        ("memory", f"{estimate.memory_bytes / 1e6:,.0f} MB while training"),
        ("speed", f"{estimate.pairs_per_second:,.0f} pairs/s, {rate / 1e9:,.0f} GFLOP/s"),
        ("time", f"{estimate.seconds:,.0f} s ({estimate.seconds / 60:,.1f} min)"),
    )
