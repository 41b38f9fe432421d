"""What each technique gains or costs on the quickstart's data: accuracy over seeds, and time a pair.

    python benchmarks/techniques.py --data data/openmoji --runs runs/techniques
    python benchmarks/techniques.py --data data/openmoji --runs runs/techniques --time

Each line of TECHNIQUES changes the quickstart's recipe in one point and is trained with each seed; what is compared is
top-1 on `compositions`, with the same seed's run of the line it names as its base. Runs that are there are not trained
again, so that several of these may work beside each other on different `--only`, the bases first. `--time` times some
steps of each line and of the quickstart, in turns; it wants the machine for itself.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from pocketclip.bundle import load
from pocketclip.data.batches import TrainingBatches
from pocketclip.data.shards import Split
from pocketclip.device import choose_device
from pocketclip.evaluate.results import Result, read_results
from pocketclip.evaluate.splits import evaluate_splits
from pocketclip.recipe.schema import Recipe
from pocketclip.recipe.toml import load_recipe
from pocketclip.train.learner import Learner
from pocketclip.train.loop import open_tokenizer, train
from pocketclip.train.teach import teach


@dataclass(frozen=True, slots=True)
class Technique:
    """Settings that differ from the quickstart's, and the line that it is compared with."""

    settings: tuple[str, ...] = ()
    base: str = "as it is"


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
    "recomputed blocks": Technique(("train.recompute=true",)),
    "parts of 64": Technique(("train.chunk_size=64",)),
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
    batches = TrainingBatches(split, recipe, open_tokenizer(recipe).encode)
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
            if name != "distillation":  # needs the teacher's files
                found.append(seconds_of(name, settings) / seconds_of("as it is", settings))
    for name, found in ratios.items():
        if found:
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
