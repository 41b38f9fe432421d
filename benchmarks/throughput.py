"""Training speed of ViT-B/32 at 224 pixels, or another size, beside OpenCLIP's: pairs a second, both in one process, in
turns.

    python benchmarks/throughput.py --data data/openmoji --output throughput.json --profile
    python benchmarks/throughput.py --data data/openmoji --image S/16@112 --text S --batch-size 4096 --compile

Both towers have the same sizes, the captions are the same and so are their token ids (OpenCLIP's tokenizer makes
them), the pixels are random. Ours does a whole step of `pocketclip.train.learner.Learner`: it normalises the pixels,
computes no padding behind the captions and clips gradients. OpenCLIP gets normalised float pixels and 77
tokens, as its data loader makes them. benchmarks/openclip.py says how to install it.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from openclip import OpenCLIPLearner, import_open_clip
from pocketclip.data.batches import Batch
from pocketclip.data.images import normalise
from pocketclip.data.shards import Split
from pocketclip.device import Device, choose_device, describe_environment
from pocketclip.errors import PocketCLIPError
from pocketclip.model.budget import count_budget
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import parse_recipe
from pocketclip.recipe.zoo import IMAGE_TOWERS, TEXT_TOWERS
from pocketclip.train.learner import Learner
from pocketclip.train.memory import computed_tokens

BATCHES = 4  # different batches that all steps go through in turn
PINNED = torch.cuda.is_available()
SCHEDULE_STEPS = 10_000  # the length of the run that the learning rates are made for
MATRIX_SIDES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192)}


@dataclass(frozen=True, slots=True)
class Pairs:
    """The same pairs as each side takes them: our batch; their normalised images and 77 token ids."""

    ours: Batch
    images: Tensor
    texts: Tensor


@dataclass(frozen=True, slots=True)
class Speed:
    """One side's figures: pairs/s a round, operations a pair (training), the same count without padding."""

    rounds: list[float]
    flops_per_pair: float
    useful_flops_per_pair: float

    @property
    def pairs_per_second(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.rounds)


def recipe_for(
    batch_size: int, vocabulary_size: int, compiled: bool = False, image: str = "B/32@224", text: str = "B"
) -> Recipe:
    """Towers of the zoo's sizes with OpenCLIP's vocabulary."""
    training = {"batch_size": batch_size, "compile": compiled}
    towers = {"image_tower": {"size": image}, "text_tower": {"size": text}}
    sizes = {"tokenizer": {"vocabulary_size": vocabulary_size}, "train": training}
    return parse_recipe(towers | sizes, "benchmarks/throughput.py")


def draw_pairs(recipe: Recipe, folder: Path, batches: int = BATCHES, normalised: bool = True) -> list[Pairs]:
    """Some batches of random pixels and captions of the data set, the first of each row.

    normalised: whether OpenCLIP's images are made too, which take much memory.
    """
    tokenizer = import_open_clip().SimpleTokenizer()
    split, random = Split(folder, "train"), np.random.default_rng(recipe.seed)
    size, pairs = recipe.image.size, recipe.train.batch_size
    found = []
    for number in range(batches):
        rows = random.choice(len(split), size=pairs, replace=pairs > len(split))
        texts = tokenizer([split.captions(int(row))[0] for row in rows])
        ends = texts.argmax(dim=1)  # the end token has the highest id
        pixels = torch.from_numpy(random.integers(0, 256, size=(pairs, size, size, 3), dtype=np.uint8))
        ours = Batch((0, number), pixels, texts[:, : int(ends.max()) + 1], ends, torch.from_numpy(rows), Counter())
        found.append(Pairs(ours, normalise(pixels[: pairs if normalised else 0], recipe.image), texts))
    return [Pairs(one.ours.pin_memory(), *pinned(one.images, one.texts)) for one in found] if PINNED else found


def pinned(*tensors: Tensor) -> list[Tensor]:
    """The same in page-locked memory, as both data loaders make it for a GPU."""
    return [one.pin_memory() for one in tensors]


def wait(device: Device) -> None:
    """Until the device has done what it was given."""
    if device.device.type == "cuda":
        torch.cuda.synchronize(device.device)


def time_rounds(
    ours: Learner, theirs: OpenCLIPLearner, pairs: list[Pairs], rounds: int, steps: int
) -> tuple[list[float], list[float]]:
    """(ours, theirs): pairs/s of each round of `steps` steps, in turns; a first round warms up and is not counted."""
    speeds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        for side, speed in enumerate(speeds):
            wait(ours.device)
            began = time.perf_counter()
            for number in range(turn * steps, (turn + 1) * steps):
                given = pairs[number % len(pairs)]
                if side == 0:
                    ours.step(given.ours, number)
                else:
                    theirs.step(given.images, given.texts, number)
            wait(ours.device)
            taken = time.perf_counter() - began
            if turn:
                speed.append(steps * len(given.texts) / taken)
            else:
                print(f"warming up: {('ours', 'OpenCLIP')[side]} {taken:.1f} s for {steps} steps", flush=True)
        if turn:
            print(
                f"round {turn}: ours {speeds[0][-1]:.2f}, OpenCLIP {speeds[1][-1]:.2f} pairs/s, "
                f"ratio {speeds[0][-1] / speeds[1][-1]:.2f}",
                flush=True,
            )
    return speeds


def matrix_rate(device: Device, repeats: int = 3) -> float:
    """The best rate of a square matrix product in the training's precision, operations a second."""
    best = 0.0
    for side in MATRIX_SIDES[device.device.type]:
        kind = torch.bfloat16 if device.bfloat16 else torch.float32
        left, right = (torch.randn(side, side, device=device.device).to(kind) for _ in range(2))
        left @ right
        for _ in range(repeats):
            wait(device)
            began = time.perf_counter()
            left @ right
            wait(device)
            best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


def counted_flops(theirs: OpenCLIPLearner, given: Pairs) -> float:
    """What torch counts in OpenCLIP's forward pass, times three for a training step; operations a pair."""
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        theirs.model(given.images.to(theirs.device.device), given.texts.to(theirs.device.device))
    return 3 * counter.get_total_flops() / len(given.texts)


def profile_ours(learner: Learner, pairs: list[Pairs], steps: int, rows: int) -> list[dict[str, Any]]:
    """The operations that take longest in our step by themselves: milliseconds a step, calls a step, share."""
    activities = [ProfilerActivity.CPU]
    if learner.device.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for number in range(steps):
            learner.step(pairs[number % len(pairs)].ours, number)
        wait(learner.device)
    averages = profiler.key_averages()
    name = "self_device_time_total" if ProfilerActivity.CUDA in activities else "self_cpu_time_total"
    total = sum(getattr(entry, name) for entry in averages)
    order = sorted(averages, key=lambda entry: getattr(entry, name), reverse=True)
    return [
        {
            "operation": entry.key,
            "milliseconds": getattr(entry, name) / 1e3 / steps,
            "calls": entry.count / steps,
            "percent": 100 * getattr(entry, name) / total,
        }
        for entry in order[:rows]
    ]


def measure(recipe: Recipe, device: Device, settings: argparse.Namespace) -> dict[str, Any]:
    """Everything that the script prints, as JSON."""
    pairs = draw_pairs(recipe, settings.data)
    lengths = [computed_tokens(given.ours, device) for given in pairs]
    ours = Learner(recipe, device, SCHEDULE_STEPS)
    warmup = max(1, round(recipe.train.warmup * SCHEDULE_STEPS))
    theirs = OpenCLIPLearner(recipe, device, recipe.image_tower.patch_size, SCHEDULE_STEPS, warmup)
    our_rounds, their_rounds = time_rounds(ours, theirs, pairs, settings.rounds, settings.steps)
    trimmed = count_budget(recipe, statistics.mean(lengths), 2).flops_per_pair
    padded = counted_flops(theirs, pairs[0])
    speeds = {"ours": Speed(our_rounds, trimmed, trimmed), "open_clip": Speed(their_rounds, padded, trimmed)}
    rate = matrix_rate(device)
    return {
        "environment": describe_environment(device),
        "open_clip_version": version("open_clip_torch"),
        "sizes": f"{settings.image} + {settings.text}{', compiled' if settings.compile else ''}",
        "batch_size": recipe.train.batch_size,
        "steps_a_round": settings.steps,
        "tokens": {"ours": lengths, "open_clip": pairs[0].texts.shape[1]},
        "parameters": {
            "ours": sum(parameter.numel() for parameter in ours.model.parameters()),
            "open_clip": sum(parameter.numel() for parameter in theirs.model.parameters()),
        },
        "matrix_flops_per_second": rate,
        **{side: _figures(speed, rate) for side, speed in speeds.items()},
        "ratios": [one / other for one, other in zip(our_rounds, their_rounds, strict=True)],
        "ratio": speeds["ours"].pairs_per_second / speeds["open_clip"].pairs_per_second,
        "profile": profile_ours(ours, pairs, settings.steps, settings.rows) if settings.profile else [],
    }


def _figures(speed: Speed, rate: float) -> dict[str, Any]:
    return {
        "pairs_per_second": speed.pairs_per_second,
        "rounds": speed.rounds,
        "flops_per_pair": speed.flops_per_pair,
        "percent_of_matrix_rate": 100 * speed.pairs_per_second * speed.flops_per_pair / rate,
        "useful_percent_of_matrix_rate": 100 * speed.pairs_per_second * speed.useful_flops_per_pair / rate,
    }


def show(found: dict[str, Any]) -> None:
    """Print the figures as a table, and the profile."""
    environment = found["environment"]
    print(f"\n{found['sizes']}, batch {found['batch_size']}", end=", ")
    print(f"{environment['device']}, {environment['precision']}, {environment['threads']} threads", end="; ")
    print(f"torch {environment['packages']['torch']}, open_clip {found['open_clip_version']}")
    print(f"matrix products alone: {found['matrix_flops_per_second'] / 1e9:,.0f} GFLOP/s")
    print(f"{'':<12}{'pairs/s':>9}{'tokens':>9}{'GFLOP/pair':>12}{'% of rate':>11}{'useful %':>10}")
    for side, name in (("ours", "PocketCLIP"), ("open_clip", "OpenCLIP")):
        one, tokens = found[side], np.mean(found["tokens"][side])
        print(
            f"{name:<12}{one['pairs_per_second']:>9.2f}{tokens:>9.1f}{one['flops_per_pair'] / 1e9:>12.1f}"
            f"{one['percent_of_matrix_rate']:>11.1f}{one['useful_percent_of_matrix_rate']:>10.1f}"
        )
    ratios = found["ratios"]
    print(f"ratio {found['ratio']:.2f} (of the medians); single rounds {min(ratios):.2f} to {max(ratios):.2f}")
    if found["profile"]:
        print(f"\n{'our step, by own time':<55}{'ms':>9}{'calls':>8}{'%':>7}")
    for entry in found["profile"]:
        print(
            f"{entry['operation'][:54]:<55}{entry['milliseconds']:>9.1f}{entry['calls']:>8.0f}{entry['percent']:>7.1f}"
        )


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/openmoji"), help="folder that `pocketclip pack` wrote")
    parser.add_argument("--image", default="B/32@224", choices=IMAGE_TOWERS, help="size of the image towers")
    parser.add_argument("--text", default="B", choices=TEXT_TOWERS, help="size of the text towers")
    parser.add_argument("--batch-size", type=int, default=32, help="pairs a step")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side that count")
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    parser.add_argument("--compile", action="store_true", help="ours with train.compile")
    parser.add_argument("--profile", action="store_true", help="also list what takes the time in our step")
    parser.add_argument("--rows", type=int, default=20, help="operations that the profile lists")
    parser.add_argument("--output", type=Path, help="where the figures go as JSON")
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    settings = read_arguments()
    vocabulary_size = import_open_clip().SimpleTokenizer().vocab_size
    sizes = settings.compile, settings.image, settings.text
    try:
        found = measure(recipe_for(settings.batch_size, vocabulary_size, *sizes), choose_device(), settings)
    except PocketCLIPError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    show(found)
    if settings.output:
        settings.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
