"""The quickstart beside OpenCLIP: the same pictures, captions, machine and seconds of training, in one run.

    pocketclip pack openmoji data/openmoji
    pocketclip tokenizer quickstart
    python benchmarks/quickstart_vs_openclip.py --output quickstart_vs_openclip.json

Ours is `recipes/quickstart.toml` through `pocketclip.train.loop.train`, checkpoint and bundle included. OpenCLIP is its
own `CLIP` of the same widths, depths and heads with patches of 8 pixels, its tokenizer and context length, its loss,
training transform, optimizer, published hyper-parameters and mixed precision, at a batch of 128. Each side's step rate
is measured first, and its schedule is then laid out to end in the given seconds. Sizes that suit our recipe need not
suit OpenCLIP: `--peer` gives it others, so that it can be shown at its best, for example
`--peer image_tower.layers=4 text_tower.layers=3 image_tower.width=192 image_tower.heads=3`.

What is done in OpenCLIP's favour: it has as long as ours really took, if that is longer than asked for; its pictures
are decoded before its clock starts, ours on ours; it draws a caption of each row at random, where its own reader of
shards knows only the first; its warm-up is the same share of the run as ours, as the 10,000 steps that it warms up by
default would not end in the time. Its pictures are prepared in the training process, like ours (the towers keep the
cores busy in either case); the time that this takes is printed. benchmarks/openclip.py says how to install it.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from openclip import OpenCLIPLearner, import_open_clip
from pocketclip.bundle import Bundle, load
from pocketclip.data.batches import TrainingBatches
from pocketclip.data.images import normalise, open_image
from pocketclip.data.shards import Split
from pocketclip.device import Device, choose_device, describe_environment
from pocketclip.errors import PocketCLIPError
from pocketclip.evaluate.benchmarks.catalogue import find
from pocketclip.evaluate.everything import evaluate_place
from pocketclip.evaluate.results import Result
from pocketclip.evaluate.splits import evaluate_splits
from pocketclip.recipe.schema import ImageSettings, Recipe
from pocketclip.recipe.toml import load_recipe
from pocketclip.train.learner import Learner
from pocketclip.train.loop import open_tokenizer, train

PATCH_SIZE = 8  # OpenCLIP's, pixels: 64 tokens at 64 pixels
PEER_BATCH_SIZE = 128
WARM_STEPS, TIMED_STEPS = 3, 9


@dataclass(frozen=True)
class Outcome:
    """One side's training and evaluation. seconds: of training; data_seconds: those of preparing batches in it."""

    name: str
    parameters: int
    steps: int
    pairs: int
    seconds: float
    data_seconds: float | None
    results: list[Result]


def seconds_per_step(step: Callable[[int], Any]) -> float:
    """The median over a few steps, after some that warm up; `step` gets a number and does its work to the end."""
    seconds = []
    for number in range(WARM_STEPS + TIMED_STEPS):
        began = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[WARM_STEPS:])


def fitted_recipe(recipe: Recipe, device: Device, seconds: float) -> Recipe:
    """The recipe with as many epochs as fit into the time, at least one."""
    batches = TrainingBatches(Split(recipe.data.folder, recipe.data.split), recipe, open_tokenizer(recipe).encode)
    learner = Learner(recipe, device, WARM_STEPS + TIMED_STEPS)

    def step(number: int) -> float:
        return learner.step(batches[0, number % min(WARM_STEPS, batches.steps_per_epoch)], number)[0].item()

    epochs = max(1, int(seconds / seconds_per_step(step) / batches.steps_per_epoch))
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": epochs})})


def run_ours(recipe: Recipe, device: Device, seconds: float, folder: Path, console: Console) -> Outcome:
    """Train and evaluate the recipe."""
    fitted = fitted_recipe(recipe, device, seconds)
    began = time.perf_counter()
    trained = train(fitted, folder / "ours", console)
    spent = time.perf_counter() - began
    bundle = load(trained)
    last = json.loads((folder / "ours" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    results = _evaluate(bundle, fitted, folder / "ours" / "evaluation", console)
    parameters = sum(parameter.numel() for parameter in bundle.model.parameters())
    return Outcome("PocketCLIP", parameters, last["step"], last["pairs"], spent, None, results)


class PeerBatches:
    """Batches as OpenCLIP's loader makes them: its training transform, its tokenizer, the last ragged batch dropped."""

    def __init__(self, recipe: Recipe) -> None:
        open_clip = import_open_clip()
        self.split, self.batch_size = Split(recipe.data.folder, recipe.data.split), recipe.train.batch_size
        self.pictures: list[Image.Image] = [open_image(self.split.image(row)) for row in range(len(self.split))]
        self.captions = [self.split.captions(row) for row in range(len(self.split))]
        self.transform = open_clip.image_transform(recipe.image.size, is_train=True)
        self.tokenizer = open_clip.SimpleTokenizer()
        self.random = np.random.default_rng(recipe.seed)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Without end: float32 images [pairs, 3, size, size] and ids [pairs, 77], every epoch shuffled anew."""
        while True:
            order = self.random.permutation(len(self.pictures))
            for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
                rows = order[start : start + self.batch_size]
                images = torch.stack([self.transform(self.pictures[row]) for row in rows])
                captions = [self.captions[row][self.random.integers(len(self.captions[row]))] for row in rows]
                yield images, self.tokenizer(captions)


class PeerBundle:
    """What our evaluation asks of a trained model, answered by OpenCLIP's."""

    def __init__(self, learner: OpenCLIPLearner, recipe: Recipe) -> None:
        self.learner, self.recipe, self.device, self.seal = learner, recipe, learner.device, ""
        self.model = learner.model.eval()
        self.tokenizer = import_open_clip().SimpleTokenizer()
        self.preprocessing = ImageSettings(size=recipe.image.size)  # mean and std: OpenAI's, its defaults too

    @torch.inference_mode()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """uint8 [batch, size, size, 3], shrunk and cut as by its transform for evaluation -> rows of length one."""
        images = normalise(pixels.to(self.learner.device.device), self.preprocessing)
        with self.learner.autocast():
            return self.model.encode_image(images, normalize=True).float().cpu()

    @torch.inference_mode()
    def encode_texts(self, captions: Sequence[str]) -> Tensor:
        """Captions -> float32 [captions, embedding width], each row of length one."""
        found = []
        for start in range(0, len(captions), self.recipe.evaluate.batch_size):
            tokens = self.tokenizer(captions[start : start + self.recipe.evaluate.batch_size])
            with self.learner.autocast():
                texts = self.model.encode_text(tokens.to(self.learner.device.device), normalize=True)
            found.append(texts.float().cpu())
        return torch.cat(found)


def run_theirs(recipe: Recipe, device: Device, seconds: float, folder: Path, console: Console) -> Outcome:
    """Train and evaluate OpenCLIP."""
    batches = PeerBatches(recipe)
    stream = iter(batches)
    trial = OpenCLIPLearner(recipe, device, PATCH_SIZE, WARM_STEPS + TIMED_STEPS, WARM_STEPS)
    steps = max(2, int(seconds / seconds_per_step(lambda number: trial.step(*next(stream), number).item())))
    learner = OpenCLIPLearner(recipe, device, PATCH_SIZE, steps, max(1, round(recipe.train.warmup * steps)))
    preparing, began = 0.0, time.perf_counter()
    for number in range(steps):
        asked = time.perf_counter()
        images, texts = next(stream)
        preparing += time.perf_counter() - asked
        loss = learner.step(images, texts, number).item()
        if number * 10 // steps != (number + 1) * 10 // steps:
            console.print(f"OpenCLIP: step {number + 1}/{steps}  loss {loss:.3f}", highlight=False)
    spent = time.perf_counter() - began
    results = _evaluate(cast("Bundle", PeerBundle(learner, recipe)), recipe, folder / "open_clip", console)
    parameters = sum(parameter.numel() for parameter in learner.model.parameters())
    return Outcome("OpenCLIP", parameters, steps, steps * batches.batch_size, spent, preparing, results)


def _evaluate(bundle: Bundle, recipe: Recipe, folder: Path, console: Console) -> list[Result]:
    splits = [split for split in recipe.evaluate.splits if split != recipe.data.split]
    found = evaluate_splits(bundle, Path(recipe.data.folder), splits, folder, console, folder.name) if splits else []
    places = [find(one, Path(recipe.evaluate.folder)) for one in recipe.evaluate.benchmarks]
    return found + [evaluate_place(bundle, place, folder, console, folder.name) for place in places]


def show(found: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Print who took what, and the table."""
    environment = found["environment"]
    print(
        f"\n{environment['device']}, {environment['precision']}, {environment['threads']} threads; "
        f"torch {environment['packages']['torch']}, open_clip {found['open_clip_version']}"
    )
    for one in outcomes:
        loading = "" if one.data_seconds is None else f", {one.data_seconds:.1f} s of them preparing batches"
        print(
            f"{one.name}: {one.parameters / 1e6:.2f} M parameters, {one.steps:,} steps, {one.pairs:,} pairs "
            f"in {one.seconds:.1f} s of training ({one.pairs / one.seconds:,.0f} pairs/s{loading})"
        )
    print(f"sizes: OpenCLIP {found['open_clip']['sizes']}, PocketCLIP {found['ours']['sizes']}")
    print(f"\n{'':<30}{'captions':>9}" + "".join(f"{name:>12}" for name in ("chance", *(o.name for o in outcomes))))
    for first, *others in zip(*(one.results for one in outcomes), strict=True):
        for label, chance, name in (
            ("top-1", first.chance_top_1, "top_1"),
            ("top-5", first.chance_top_5, "top_5"),
        ):
            figures = [chance, *(getattr(result, name) for result in (first, *others))]
            print(f"{first.benchmark + ', ' + label + ', %':<30}{first.candidates:>9,}", end="")
            print("".join(f"{figure:>12.2f}" for figure in figures))
    for split, ratio in found["top_1_ratio"].items():
        print(f"top-1 on {split}: " + ("OpenCLIP has none right" if ratio is None else f"{ratio:.1f} x OpenCLIP's"))


def compare(settings: argparse.Namespace, folder: Path) -> tuple[dict[str, Any], list[Outcome]]:
    """Run both; returns the figures as JSON, and the outcomes."""
    console = Console()
    data = [f"data.folder={json.dumps(settings.data)}"] if settings.data else []
    data += [] if settings.seed is None else [f"seed={settings.seed}"]
    recipe = load_recipe(settings.recipe, data)
    changes = [f"train.batch_size={PEER_BATCH_SIZE}", "evaluate.explained=0", *settings.peer]
    peer = load_recipe(settings.recipe, [*data, *changes])
    device = choose_device(recipe.train.device, recipe.train.precision)
    ours = run_ours(recipe, device, settings.seconds, folder, console)
    theirs = run_theirs(peer, device, max(settings.seconds, ours.seconds), folder, console)
    pairs = zip(ours.results, theirs.results, strict=True)
    found = {
        "environment": describe_environment(device),
        "open_clip_version": version("open_clip_torch"),
        "seconds_asked": settings.seconds,
        "ours": {**asdict(ours), "sizes": _sizes(recipe)},
        "open_clip": {**asdict(theirs), "sizes": _sizes(peer)},
        "top_1_ratio": {one.benchmark: one.top_1 / other.top_1 if other.top_1 else None for one, other in pairs},
    }
    return found, [theirs, ours]


def _sizes(recipe: Recipe) -> dict[str, Any]:
    towers = {"image": recipe.image_tower, "text": recipe.text_tower}
    sizes = {
        name: {"width": tower.width, "layers": tower.layers, "heads": tower.heads} for name, tower in towers.items()
    }
    return {**sizes, "batch_size": recipe.train.batch_size}


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=150.0, help="of training, for each side")
    parser.add_argument("--recipe", default="quickstart", help="recipe file, or the name of one that comes with us")
    parser.add_argument("--data", help="folder of shards and tokenizer.json; else the recipe's")
    parser.add_argument("--seed", type=int, help="of both sides; else the recipe's")
    parser.add_argument(
        "--peer", nargs="+", default=[], help="sizes that differ for OpenCLIP, as key=value of a recipe"
    )
    parser.add_argument("--output", type=Path, help="where the figures go as JSON")
    return parser.parse_args()


def main() -> None:
    """Run both sides, print, write."""
    settings = read_arguments()
    import_open_clip()
    try:
        with tempfile.TemporaryDirectory() as folder:
            found, outcomes = compare(settings, Path(folder))
    except PocketCLIPError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    show(found, outcomes)
    if settings.output:
        settings.output.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
