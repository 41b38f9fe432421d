"""What each technique gains or costs on the quickstart's data: accuracy over seeds, and time a pair.

    python benchmarks/techniques.py --data data/openmoji --runs runs/techniques
    python benchmarks/techniques.py --data data/openmoji --runs runs/techniques --time

Each line of TECHNIQUES changes the quickstart's recipe in one point and is trained with each seed; what is compared is
top-1 on `compositions`, with the same seed's run of the line it names as its base. Runs that are there are not trained
again, so that several of these may work beside each other on different `--only`, the bases first. `--time` times some
steps of each line and of the quickstart, in turns; it wants the machine for itself, and the teacher's run to be there.

What no recipe can switch off, as it changes no result, is replaced by what others do (PLAINLY): texts filled up to the
context length, the loss from the whole matrix; and the memory said to be too small for a whole batch.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from pocketclip.bundle import load
from pocketclip.data.batches import TrainingBatches
from pocketclip.data.shards import Split
from pocketclip.device import choose_device
from pocketclip.evaluate.results import Result, read_results
from pocketclip.evaluate.splits import evaluate_splits
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import load_recipe
from pocketclip.tokenizer import CaptionTokenizer
from pocketclip.train.learner import Learner
from pocketclip.train.loop import open_tokenizer, train
from pocketclip.train.memory import computed_tokens, fit_to_memory
from pocketclip.train.teach import open_teacher, teach


@dataclass(frozen=True, slots=True)
class Technique:
    """Settings that differ from the quickstart's, the line that it is compared with, and what PLAINLY is replaced."""

    settings: tuple[str, ...] = ()
    base: str = "as it is"
    plainly: str = ""


encode_trimmed = CaptionTokenizer.encode


def encode_filled_up(
    tokenizer: CaptionTokenizer, captions: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Captions of the context length, whatever they need."""
    tokens, ends = encode_trimmed(tokenizer, captions)
    room = tokenizer.context_length - tokens.shape[1]
    return np.pad(tokens, ((0, 0), (0, room)), constant_values=tokenizer.end), ends


def whole_matrix_loss(
    images: Tensor, texts: Tensor, scale: Tensor, captions: Tensor, label_smoothing: float, _ranks: object
) -> Tensor:
    """What `softmax_loss` computes, by its definition, with all logits kept."""
    logits, same = scale * images @ texts.T, captions[:, None] == captions
    loss = torch.zeros((), device=images.device)
    for matrix in (logits, logits.T):
        positives = matrix.masked_fill(~same, -torch.inf).logsumexp(1)
        target = (1 - label_smoothing) * positives + label_smoothing * matrix.mean(1)
        loss = loss + (matrix.logsumexp(1) - target).mean() / 2
    return loss


SMALL_MEMORY = 0.57e9  # bytes; half a batch of the quickstart fits
PLAINLY: dict[str, dict[str, Any]] = {
    "": {},
    "text": {
        "pocketclip.tokenizer.CaptionTokenizer.encode": encode_filled_up,
        "pocketclip.model.transformer.packed_rows": lambda *_: None,
    },
    "loss": {"pocketclip.train.learner.softmax_loss": whole_matrix_loss},
    "memory": {"pocketclip.train.memory.free_memory": lambda _: SMALL_MEMORY},
}


PLAIN, ONE = (
    "train.label_smoothing=0",
    "caption.per_image=1",
)  # the global loss knows neither smoothing nor two captions
SMALL = (PLAIN, ONE, "train.batch_size=64", "train.learning_rate=1e-3")
TEACHER = "as it is"  # whose bundle of seed 0 teaches
TECHNIQUES = {
    "as it is": Technique(),
    "no smoothing": Technique((PLAIN,)),
    "sigmoid loss": Technique((PLAIN, "train.loss=sigmoid"), "no smoothing"),
    "no smoothing, one caption": Technique((PLAIN, ONE), "no smoothing"),
    "batch of 64, one caption": Technique(SMALL, "no smoothing, one caption"),
    "global loss, batch of 64, one caption": Technique((*SMALL, "train.loss=global"), "batch of 64, one caption"),
    "patch dropout 0.25": Technique(("image_tower.patch_dropout=0.25",)),
    "averaged weights": Technique(("train.ema_decay=0.99",)),
    "one caption an image": Technique((ONE,)),
    "Muon": Technique(("train.optimizer=muon",)),
    "small images first": Technique(("image.growth=[[48, 0.5]]",)),
    "distillation": Technique(("train.distillation=0.5",)),
    "layer decay 0.8": Technique(("train.layer_decay=0.8",)),
    "text filled up to its context": Technique(plainly="text"),
    "loss of the whole matrix": Technique(plainly="loss"),
    "compiled blocks": Technique(("train.compile=true",)),
    "recomputed blocks": Technique(("train.recompute=true",)),
    "parts of 64": Technique(("train.chunk_size=64",)),
    "parts that fit 0.57 GB": Technique(plainly="memory"),
}
SEEDS = (0, 1, 2)
TIMED_STEPS = 3


def recipe_of(name: str, seed: int, settings: argparse.Namespace) -> Recipe:
    """A line's recipe."""
    slug = name.replace(" ", "-").replace(",", "")
    changes = [f"name={slug}-{seed}", f"seed={seed}", f"data.folder={settings.data}", *TECHNIQUES[name].settings]
    if name == "distillation":
        changes.append(f"train.teacher={settings.runs / (TEACHER.replace(' ', '-') + '-0') / 'bundle'}")
    return load_recipe("quickstart", changes)


def replaced(name: str) -> ExitStack:
    """While it is open, a line's parts of the engine are replaced by plain ones."""
    stack = ExitStack()
    for target, replacement in PLAINLY[TECHNIQUES[name].plainly].items():
        stack.enter_context(mock.patch(target, replacement))
    return stack


def run(recipe: Recipe, settings: argparse.Namespace, console: Console) -> list[Result]:
    """Train and evaluate, or read what was found."""
    folder = settings.runs / recipe.name
    results = folder / "evaluation" / "results.json"
    if not results.exists():
        if recipe.train.teacher:
            teach(recipe, console)
        bundle = train(recipe, folder, console)
        splits = recipe.evaluate.splits
        evaluate_splits(load(bundle), Path(recipe.data.folder), splits, results.parent, console, str(bundle))
    return read_results(results)


def top_1(name: str, split: str, settings: argparse.Namespace, console: Console) -> list[float]:
    """Percent, of each seed."""
    found = []
    for seed in settings.seeds:
        with replaced(name):
            results = run(recipe_of(name, seed, settings), settings, console)
        found.append(next(result.top_1 for result in results if result.benchmark == split))
    return found


def measure(settings: argparse.Namespace) -> None:
    """Train what is missing; print a line each."""
    console = Console(stderr=True)
    print("| technique | compositions, top-1 % | beside its base, seed by seed | unseen, top-1 % |\n|---|---|---|---|")
    for name in settings.only or TECHNIQUES:
        found, unseen = (top_1(name, split, settings, console) for split in ("compositions", "unseen"))
        base = TECHNIQUES[name].base
        beside = ""
        if base != name:
            differences = [a - b for a, b in zip(found, top_1(base, "compositions", settings, console), strict=True)]
            beside = f"{statistics.mean(differences):+.1f} ({', '.join(f'{one:+.1f}' for one in differences)})"
        shown = f"{statistics.mean(found):.1f} ({min(found):.1f} to {max(found):.1f})"
        print(f"| {name} | {shown} | {beside} | {statistics.mean(unseen):.1f} |", flush=True)


def seconds_of(name: str, settings: argparse.Namespace) -> float:
    """Median seconds a pair of some steps, at the beginning of a run whose images are decoded."""
    recipe = recipe_of(name, 0, settings)
    split, device = Split(recipe.data.folder, recipe.data.split), choose_device()
    teacher = open_teacher(recipe, split) if recipe.train.distillation else None
    batches = TrainingBatches(split, recipe, open_tokenizer(recipe).encode, teacher=teacher)
    recipe, _ = fit_to_memory(recipe, computed_tokens(batches[0, 0], device), device)
    learner = Learner(recipe, device, batches.steps, len(split))
    some = [batches[0, step] for step in range(2)]
    taken = []
    for step in range(2 + TIMED_STEPS):
        began = time.perf_counter()
        loss, _ = learner.step(some[step % 2], step)
        loss.item()
        taken.append((time.perf_counter() - began) / len(some[step % 2].pixels))
    return statistics.median(taken[2:])


def time_all(settings: argparse.Namespace) -> None:
    """Time a pair of each line beside its base's, in turns."""
    print("| technique | time a pair beside the quickstart's |\n|---|---|")
    ratios: dict[str, list[float]] = {name: [] for name in settings.only or TECHNIQUES}
    for _ in range(settings.rounds):
        for name, found in ratios.items():
            with replaced(name):
                seconds = seconds_of(name, settings)
            found.append(seconds / seconds_of("as it is", settings))
    for name, found in ratios.items():
        print(f"| {name} | {statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}) |")


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/openmoji"), help="folder that `pocketclip pack` wrote")
    parser.add_argument("--runs", type=Path, default=Path("runs/techniques"), help="folder of the runs")
    parser.add_argument("--only", nargs="*", choices=TECHNIQUES, help="some of the lines")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS)
    parser.add_argument("--time", action="store_true", help="time steps instead")
    parser.add_argument("--rounds", type=int, default=5, help="turns of timing")
    settings = parser.parse_args()
    (time_all if settings.time else measure)(settings)


if __name__ == "__main__":
    main()
