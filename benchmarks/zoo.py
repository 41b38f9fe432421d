"""Every size of the zoo on this machine: counted, built, one real training step, one real resume; prices of whole runs.

    python benchmarks/zoo.py --output zoo.json  # all sizes, then the runs
    python benchmarks/zoo.py --sizes L/14@224 --no-runs

Each image tower comes with the text tower S, then each other text tower with the image tower S/16@112. A size is a
process of its own, so that its memory is its own. "Step": a step on two random pairs gives a finite loss and a
gradient, and moves weights. "Resumed": after the first of two steps a checkpoint is written and read back into a new
model, and the second step leaves every tensor of model and optimizer as it is without that, bit for bit. Memory is
what the process had at most until its first step was done, beside what `check` counts for that.

The runs are priced by `pocketclip check`, which times a few of their real steps: only of use on a machine that is
otherwise idle. For the GPU it divides operations by a share of the maker's rate.
"""

import argparse
import gc
import hashlib
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pocketclip.device import Device, choose_device, describe_environment
from pocketclip.model.budget import count_budget
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import load_recipe, parse_recipe
from pocketclip.recipe.zoo import IMAGE_TOWERS, TEXT_TOWERS
from pocketclip.train.check import Imagined, check, describe
from pocketclip.train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from pocketclip.train.learner import Learner
from pocketclip.train.memory import computed_tokens

PAIRS, TOKENS, STEPS = 2, 16, 2
SIZES = [(image, "S") for image in IMAGE_TOWERS] + [("S/16@112", text) for text in TEXT_TOWERS if text != "S"]
ROWS = 21_900_000  # of WKIT
# The first implementation's runs: recipes/wkit-b32.toml, and what differs from it.
RUNS = {
    "B/32@224, text B, 4 epochs": [],
    "B/16@112, text B, 4 epochs": ["image_tower.size=B/16@112"],
    "S/16@112, text S, 4 epochs": ["image_tower.size=S/16@112", "text_tower.size=S"],
    "B/32@224, text B, fine-tuning of 100 steps": ["train.steps=100"],
}


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one size. Bytes, seconds and operations of a pair's training step; why: what went wrong."""

    image: str
    text: str
    image_parameters: int
    text_parameters: int
    flops_per_pair: float
    counted_bytes: float
    peak_bytes: float = 0.0
    seconds: float = 0.0
    loss: float = math.nan
    built: bool = False
    stepped: bool = False
    resumed: bool = False
    why: str = ""


def recipe_of(image: str, text: str, **training: Any) -> Recipe:
    """Two towers by their sizes, all else by default, in batches of two."""
    sizes = {"image_tower": {"size": image}, "text_tower": {"size": text}}
    return parse_recipe(sizes | {"train": {"batch_size": PAIRS, **training}}, f"{image}, {text}")


def try_size(image: str, text: str) -> Trial:
    """Count, build, step, resume; to be called in a process of its own, whose memory is measured."""
    recipe = recipe_of(image, text)
    device = choose_device(recipe.train.device, recipe.train.precision)
    tokens = computed_tokens(Imagined(PAIRS, TOKENS).batch(recipe, recipe.image.size), device)
    budget = count_budget(recipe, tokens, 2 if device.bfloat16 else 4)
    counted = (budget.image_parameters, budget.text_parameters, budget.flops_per_pair, budget.memory_bytes)
    found: dict[str, Any] = {}
    try:
        with tempfile.TemporaryDirectory() as folder:
            for result in step_and_resume(recipe, device, Path(folder)):
                found |= result
    except Exception as error:  # the table tells of it
        found["why"] = f"{type(error).__name__}: {error}"
    return Trial(image, text, *counted, **found)


def step_and_resume(recipe: Recipe, device: Device, folder: Path) -> Iterator[dict[str, Any]]:
    """One step, then a second one with and without a stop between them; what was found, as it is found."""
    batch = Imagined(PAIRS, TOKENS).batch(recipe, recipe.image.size)
    learner = Learner(recipe, device, STEPS)
    yield {"built": True}
    before = digests(learner.state())
    began = time.perf_counter()
    loss, gradient = learner.step(batch, 0)
    finite = math.isfinite(loss.item()) and math.isfinite(gradient.item()) and gradient.item() > 0
    seconds, after = time.perf_counter() - began, learner.state()
    moved = sum(before.get(name) != digest for name, digest in digests(after).items() if name.startswith("model."))
    yield {"loss": loss.item(), "seconds": seconds, "stepped": finite and moved > 0, "peak_bytes": peak_memory(device)}
    save_checkpoint(folder, Checkpoint(1, after, {}))
    learner.step(batch, 1)
    undisturbed = digests(learner.state())
    del learner, after
    gc.collect()
    learner = Learner(recipe, device, STEPS)
    checkpoint = load_checkpoint(folder)
    assert checkpoint is not None
    learner.restore(checkpoint.tensors)
    learner.step(batch, checkpoint.step)
    yield {"resumed": digests(learner.state()) == undisturbed}


def digests(state: Any, name: str = "") -> dict[str, str]:
    """The SHA-256 of each tensor, and each other value as text, in a nested state."""
    if isinstance(state, Tensor):
        bytes_ = state.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        return {name: hashlib.sha256(bytes_).hexdigest()}
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {key: value for part, one in items for key, value in digests(one, f"{name}{part}.").items()}
    return {name: repr(state)}


def peak_memory(device: Device) -> float:
    """Bytes that this process has had at most, or of a GPU's memory that it has had."""
    if device.device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device.device))
    lines = Path("/proc/self/status").read_text().splitlines()  # not getrusage, which knows of the parent's
    return float(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def try_sizes(sizes: list[tuple[str, str]]) -> list[Trial]:
    """One process after the other."""
    spawn, found = multiprocessing.get_context("spawn"), []
    for image, text in sizes:
        with ProcessPoolExecutor(1, spawn) as pool:
            found.append(pool.submit(try_size, image, text).result())
        print(line_of(found[-1]), flush=True)
    return found


HEADS = "image tower | text tower | image, M | text, M | GFLOPs a pair | GB counted | GB measured | s a step"
HEAD = f"| {HEADS} | built | step | resumed |\n{'|---' * 11}|"


def line_of(trial: Trial) -> str:
    """A row of the table."""
    done = ["yes" if one else f"no {trial.why}".strip() for one in (trial.built, trial.stepped, trial.resumed)]
    return (
        f"| `{trial.image}` | `{trial.text}` | {trial.image_parameters / 1e6:.2f} | {trial.text_parameters / 1e6:.2f} "
        f"| {trial.flops_per_pair / 1e9:.2f} | {trial.counted_bytes / 1e9:.2f} | {trial.peak_bytes / 1e9:.2f} "
        f"| {trial.seconds:.2f} | {' | '.join(done)} |"
    )


def price_runs(chip: str) -> dict[str, dict[str, str]]:
    """What `pocketclip check` says of each run, on this machine and on one GPU."""
    print(f"\n| run | steps | M parameters | pairs/s here | here | on one {chip} |\n|---|---|---|---|---|---|")
    found = {}
    for name, overrides in RUNS.items():
        estimate = check(load_recipe("wkit-b32", overrides), Imagined(ROWS, 12))
        found[name] = dict(describe(estimate, chip))
        parameters = (estimate.budget.image_parameters + estimate.budget.text_parameters) / 1e6
        print(
            f"| {name} | {estimate.steps:,} | {parameters:.1f} | {estimate.pairs_per_second:.1f} "
            f"| {found[name]['time']} | {found[name][f'on one {chip}']} |",
            flush=True,
        )
    return found


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", help="of image towers, alone; else all, and the text towers")
    parser.add_argument("--runs", action=argparse.BooleanOptionalAction, default=True, help="price whole runs too")
    parser.add_argument("--chip", default="H100", help="the GPU whose time is estimated")
    parser.add_argument("--output", type=Path, help="where the figures go as JSON")
    return parser.parse_args()


def main() -> None:
    """Try all sizes, price all runs."""
    asked = read_arguments()
    environment = describe_environment(choose_device("auto", "auto"))
    print(
        f"{environment['processor']}, {environment['precision']}, {PAIRS} pairs of {TOKENS} tokens\n\n{HEAD}",
        flush=True,
    )
    trials = try_sizes([one for one in SIZES if not asked.sizes or (one[0] in asked.sizes and one[1] == "S")])
    runs = price_runs(asked.chip) if asked.runs else {}
    if asked.output:
        found = {"environment": environment, "sizes": [asdict(trial) for trial in trials], "runs": runs}
        asked.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
