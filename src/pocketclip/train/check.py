"""Price a recipe before it runs: count it, then time a few of its real steps and throw them away."""

import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch

from pocketclip.data.batches import Batch, TrainingBatches, load_batches
from pocketclip.data.shards import Split
from pocketclip.device import Device, choose_device
from pocketclip.errors import DataError
from pocketclip.model.budget import Budget, count_budget
from pocketclip.recipe.schema import Recipe
from pocketclip.train.learner import Learner
from pocketclip.train.loop import open_tokenizer, require_pairs
from pocketclip.train.memory import computed_tokens, fit_to_memory, memory_in_use

WARM_STEPS, TIMED_STEPS = 3, 9
TIMED_FLOPS = 2e13  # of a timed step, at most: a larger batch is timed by a part of it
# Dense bfloat16 products, FLOP/s, by the makers' data sheets.
CHIPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "RTX 4090": 165e12, "RTX 3090": 71e12}
# The share of it that a compiled training step of B/32@224 had on an H100 (docs/log.md, 2026-11-26).
UTILISATION = 0.29


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a run of this recipe will take on this machine.

    seconds: of training. memory_bytes: of this process (CPU) or of the GPU, while training. chunk_size: pairs embedded
    at a time; 0: all of a batch.
    """

    budget: Budget
    rows: int
    steps: int
    pairs_per_second: float
    seconds: float
    memory_bytes: float
    device: Device
    chunk_size: int


@dataclass(frozen=True, slots=True)
class Imagined:
    """Data that is not there: how many rows, and how many tokens each of their captions has."""

    rows: int
    caption_tokens: int

    def batch(self, recipe: Recipe, size: int) -> Batch:
        """Random pixels, of a side, and words."""
        pairs = recipe.train.batch_size
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (pairs, size, size, 3), dtype=torch.uint8, generator=generator)
        length = min(self.caption_tokens, recipe.text_tower.context_length)
        captions = pairs * recipe.caption.per_image
        tokens = torch.randint(recipe.tokenizer.vocabulary_size, (captions, length), generator=generator)
        return Batch((0, 0), pixels, tokens, torch.full((captions,), length - 1), torch.arange(pairs), Counter())


def check(recipe: Recipe, imagined: Imagined | None = None) -> Estimate:
    """Open the data and the tokenizer, or imagine them; count the budget, time some steps.

    Raises TrainingError if a pair at a time cannot fit this machine's memory, DataError if the rows are less than a
    batch, and what opening the data raises.
    """
    device = choose_device(recipe.train.device, recipe.train.precision)
    if imagined:
        rows, steps_per_epoch = imagined.rows, imagined.rows // recipe.train.batch_size
        if not steps_per_epoch:
            raise DataError(f"{rows} rows are less than one batch of train.batch_size = {recipe.train.batch_size}")
        some = [imagined.batch(_timed(recipe), recipe.image.size)]
    else:
        split = Split(recipe.data.folder, recipe.data.split)
        data = TrainingBatches(split, recipe, open_tokenizer(recipe).encode)
        rows, steps_per_epoch = len(split), data.steps_per_epoch
        some = [require_pairs(data[0, step], split) for step in range(min(3, steps_per_epoch))]
    tokens = float(np.mean([computed_tokens(batch, device) for batch in some]))
    fitted, budget = fit_to_memory(recipe, tokens, device)
    steps = recipe.train.steps_of_run(steps_per_epoch)
    learner = Learner(fitted, device, max(1, steps), rows)
    seconds_per_pair, memory, done = 0.0, 0.0, 0.0
    for size, share in recipe.image.phases:
        batches = (
            repeat(imagined.batch(_timed(recipe), size), WARM_STEPS + TIMED_STEPS)
            if imagined
            else _some_batches(learner, data, done, done + share)
        )
        timed, used = _time_steps(learner, batches)
        seconds_per_pair, memory, done = seconds_per_pair + share * timed, max(memory, used), done + share
    seconds = steps * recipe.train.batch_size * seconds_per_pair
    chunk = fitted.train.chunk_size
    return Estimate(budget, rows, steps, 1 / seconds_per_pair, seconds, memory, device, chunk)


def _timed(recipe: Recipe) -> Recipe:
    """The recipe with a batch that is quick enough to be timed."""
    pairs = int(TIMED_FLOPS / count_budget(recipe, recipe.text_tower.context_length, 4).flops_per_pair)
    size = max(2, min(recipe.train.batch_size, pairs))
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch_size": size})})


def _time_steps(learner: Learner, batches: Iterator[Batch]) -> tuple[float, float]:
    """(median seconds a pair, bytes in use at the most) of a few steps."""
    seconds: list[float] = []
    memory = 0
    began = time.monotonic()
    for number, batch in enumerate(batches):
        loss, _ = learner.step(batch, number)
        loss.item()  # waits for the device
        memory = max(memory, memory_in_use(learner.device))
        seconds.append((time.monotonic() - began) / len(batch.pixels))
        began = time.monotonic()
    return float(np.median(seconds[-TIMED_STEPS:])), float(memory)


def _some_batches(learner: Learner, batches: TrainingBatches, begin: float, end: float) -> Iterator[Batch]:
    """As many batches as are timed, of a part of the run (shares of it), made the way that the run makes them."""
    first = min(math.ceil(begin * batches.steps), batches.steps - 1)
    count, workers = WARM_STEPS + TIMED_STEPS, learner.recipe.data.workers
    last = max(first + 1, min(first + count, math.ceil(end * batches.steps), batches.steps))
    if workers:
        yield from load_batches(batches, first, last, workers)
    else:  # the same few again: where images are cached, a run decodes each but once
        for number in range(count):
            yield batches[divmod(first + number % min(WARM_STEPS, last - first), batches.steps_per_epoch)]


def describe(estimate: Estimate, chip: str = "") -> Sequence[tuple[str, str]]:
    """The estimate as (what, value with unit) lines; chip: one of CHIPS, whose time is told as well."""
    budget = estimate.budget
    total = budget.image_parameters + budget.text_parameters
    rate = budget.flops_per_pair * estimate.pairs_per_second
    device = estimate.device.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    lines = [
        (
            "parameters",
            f"{total / 1e6:.2f} M (image tower {budget.image_parameters / 1e6:.2f}, "
            f"text tower {budget.text_parameters / 1e6:.2f})",
        ),
        ("FLOPs a pair", f"{budget.flops_per_pair / 1e9:.3f} G (forward and backward)"),
        ("rows, steps", f"{estimate.rows:,} rows, {estimate.steps:,} steps"),
        ("device", f"{estimate.device.device}, {'bfloat16' if estimate.device.bfloat16 else 'float32'}"),
        (
            "memory",
            f"{estimate.memory_bytes / 1e6:,.0f} MB while training"
            + (f", {estimate.chunk_size} pairs embedded at a time" if estimate.chunk_size else ""),
        ),
        ("speed", f"{estimate.pairs_per_second:,.0f} pairs/s, {rate / 1e9:,.0f} GFLOP/s{utilisation(name, rate)}"),
        ("time", _duration(estimate.seconds)),
    ]
    if chip:
        pairs = estimate.seconds * estimate.pairs_per_second
        seconds = pairs * budget.flops_per_pair / (CHIPS[chip] * UTILISATION)
        of_rate = f"at {UTILISATION:.0%} of its {CHIPS[chip] / 1e12:,.0f} TFLOP/s, if compiled; not measured on it"
        lines.append((f"on one {chip}", f"{_duration(seconds)} {of_rate}"))
    return lines


def utilisation(name: str, rate: float) -> str:
    """The share that FLOP/s are of a GPU's rate, in words; nothing for a device that CHIPS does not know."""
    chip = next((chip for chip in CHIPS if chip in name), "")
    return f", {rate / CHIPS[chip]:.0%} of the {CHIPS[chip] / 1e12:,.0f} TFLOP/s of one {chip}" if chip else ""


def _duration(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds:,.0f} s ({seconds / 60:,.1f} min)"
    return f"{seconds / 3600:,.1f} h ({seconds / 86400:,.1f} days)"
