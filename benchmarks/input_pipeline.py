"""From tars of JPEGs to batches of pixels: images a second of a core, beside OpenCLIP's transform and WebDataset.

    python benchmarks/input_pipeline.py --output input.json

Writes WebDataset tars of 10,000 rows, photograph-like JPEGs of 640 x 480 pixels (image_server.py), and makes batches of
256 from them, in turns, with

    ours         `load_batches` as training uses it: shuffled rows of all tars, captions to ids, uint8 pixels
    normalised   and what training does with them on its device first, here: float pixels as the others make them
    exact        ours with image.decoding = "exact"
    transform    Pillow and OpenCLIP's own transform, torch's loader stacks what comes; the same rows, no captions
    webdataset   OpenCLIP's own training pipeline over the `webdataset` library, with its tokenizer

each with the transform of training (random cuts that keep 90 % of the area) and with that of evaluation (the middle).
benchmarks/openclip.py says how to install OpenCLIP; `pip install webdataset pandas` as well.

Images a second of a core are counted in processor seconds of all processes, on one thread each, so that what else the
machine does counts little; by the clock they are shown as well. Workers are measured between their first batches and
their last, while as many are ready at the end as at the beginning.
"""

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from image_server import photos
from openclip import import_open_clip
from pocketclip.data import square
from pocketclip.data.batches import TrainingBatches, load_batches
from pocketclip.data.images import normalise, open_image, to_square
from pocketclip.data.rows import Row
from pocketclip.data.shards import Split, _mapped, write_shards
from pocketclip.recipe.schema import ImageSettings, Recipe, TokenizerSettings
from pocketclip.recipe.toml import parse_recipe
from pocketclip.tokenizer import learn_tokenizer, load_tokenizer, save_tokenizer

BATCH, SHARD = 256, 10_000
LEAST_SHARE = 0.9  # of the area that OpenCLIP's random cuts keep, its default
Batches = Iterator[int]  # how many images each batch holds, when it is there


def write_data(folder: Path, rows: int, distinct: int) -> None:
    """Tars of photographs with captions of 5 to 15 words, and a tokenizer learned from them; kept if they are there."""
    if (folder / "tokenizer.json").exists():
        return
    random = np.random.default_rng(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(random.choice(list(letters), size=random.integers(2, 9))) for _ in range(3000)]
    pictures = photos(distinct)

    def captions() -> Iterator[str]:
        for _ in range(rows):
            yield " ".join(words[place % len(words)] for place in random.zipf(1.3, size=random.integers(5, 16)))

    drawn = enumerate(captions())
    write_shards((Row(f"{n:09}", pictures[n % distinct], "jpg", (text,)) for n, text in drawn), folder, "train", SHARD)
    learned = learn_tokenizer(Split(folder, "train").every_caption(), TokenizerSettings(vocabulary_size=4096))
    save_tokenizer(learned, folder / "tokenizer.json")


def recipe_for(folder: Path, size: int, training: bool, decoding: str) -> Recipe:
    """Our defaults at a size, with OpenCLIP's random cuts or without."""
    image = {"size": size, "decoding": decoding, "crop": LEAST_SHARE if training else 1.0}
    values = {"data": {"folder": str(folder)}, "image": image, "train": {"batch_size": BATCH}}
    return parse_recipe(values | {"image_tower": {"patch_size": 16}}, "benchmarks/input_pipeline.py")


def our_batches(recipe: Recipe) -> TrainingBatches:
    """The batches that `train` would see."""
    folder = Path(recipe.data.folder)
    return TrainingBatches(Split(folder, "train"), recipe, load_tokenizer(folder / "tokenizer.json", 77).encode)


def ours(recipe: Recipe, batches: int, workers: int, normalised: bool = False) -> Batches:
    """Our pipeline."""
    for batch in load_batches(our_batches(recipe), 0, batches, workers):
        yield len(normalise(batch.pixels, recipe.image) if normalised else batch.pixels)


class Transformed(Dataset[torch.Tensor]):
    """The same rows through Pillow and OpenCLIP's transform; no captions."""

    def __init__(self, folder: Path, size: int, training: bool) -> None:
        self.split = Split(folder, "train")
        self.transform = import_open_clip().image_transform(size, is_train=training)

    def __getitem__(self, row: int) -> torch.Tensor:
        found: torch.Tensor = self.transform(Image.open(io.BytesIO(self.split.image(row))))
        return found


def transform(folder: Path, size: int, training: bool, batches: int, workers: int) -> Batches:
    """OpenCLIP's transform in torch's loader."""
    data = Transformed(folder, size, training)
    order = np.random.default_rng(0).permutation(len(data.split))[: batches * BATCH].tolist()
    for batch in DataLoader(data, BATCH, sampler=order, num_workers=workers):
        yield len(batch)


def webdataset(folder: Path, size: int, training: bool, batches: int, workers: int) -> Batches:
    """OpenCLIP's own pipeline: tars in turn, a shuffle buffer, its transform, its tokenizer."""
    open_clip = import_open_clip()
    build = import_module("open_clip_train.data").get_wds_dataset
    asked = SimpleNamespace(
        train_data=f"{folder}/train-{{00000..{len(list(folder.glob('*.tar'))) - 1:05}}}.tar",
        train_num_samples=batches * BATCH, train_data_upsampling_factors=None,
        seed=0, workers=workers, batch_size=BATCH, world_size=1,
    )  # fmt: skip
    made = build(asked, open_clip.image_transform(size, is_train=training), True, tokenizer=open_clip.SimpleTokenizer())
    for batch, _ in made.dataloader:
        yield len(batch)


def sides(folder: Path, size: int, training: bool) -> dict[str, Callable[[int, int], Batches]]:
    """Name -> (batches, workers) -> the batches."""
    scaled, exact = (recipe_for(folder, size, training, decoding) for decoding in ("scaled", "exact"))
    return {
        "ours": lambda batches, workers: ours(scaled, batches, workers),
        "normalised": lambda batches, workers: ours(scaled, batches, workers, normalised=True),
        "exact": lambda batches, workers: ours(exact, batches, workers),
        "transform": lambda batches, workers: transform(folder, size, training, batches, workers),
        "webdataset": lambda batches, workers: webdataset(folder, size, training, batches, workers),
    }


def processor() -> float:
    """Processor seconds of this process and its workers so far."""
    here = psutil.Process()
    return sum(sum(one.cpu_times()[:2]) for one in (here, *here.children(recursive=True)))


def timed(made: Batches, skipped: int, batches: int) -> dict[str, float]:
    """Images a second by the clock and by processor time, of some batches after others; waits for a batch, seconds."""
    for _ in range(skipped):
        next(made)
    waits, counted = [], 0
    began, spent = time.perf_counter(), processor()
    last = began
    for count in islice(made, batches):
        now = time.perf_counter()
        waits.append(now - last)
        counted, last = counted + count, now
    done = processor()
    return {
        "clock": counted / (last - began),
        "processor": counted / (done - spent),
        "median_wait": statistics.median(waits),
        "longest_wait": max(waits),
    }


def compare(folder: Path, size: int, training: bool, workers: int, asked: argparse.Namespace) -> dict[str, Any]:
    """All sides in turns; a first round warms up and is not counted."""
    rounds: dict[str, list[dict[str, float]]] = defaultdict(list)
    for turn in range(asked.rounds + 1):
        for name, make in sides(folder, size, training).items():
            # WebDataset fills its shuffle buffer first, and each worker has two batches ready.
            found = timed(make(asked.batches + 2 + 8 * workers, workers), 2 + 4 * workers, asked.batches)
            if turn:
                rounds[name].append(found)
    result: dict[str, Any] = {"size": size, "training": training, "workers": workers}
    for name, all_found in rounds.items():
        result[name] = {key: statistics.median(one[key] for one in all_found) for key in all_found[0]}
        ratios = [one["processor"] / other["processor"] for one, other in zip(rounds["ours"], all_found, strict=True)]
        result[name] |= {"ours_to_it": statistics.median(ratios), "lowest": min(ratios), "highest": max(ratios)}
    what = "training" if training else "evaluation"
    print(f"\n{size} px, transform of {what}, " + (f"{workers} workers" if workers else "one process"))
    print(f"{'':<12}{'images/s of a core':>20}{'by the clock':>14}{'ours to it':>12}{'rounds':>16}")
    for name in rounds:
        one = result[name]
        span = f"{one['lowest']:.2f} to {one['highest']:.2f}"
        print(
            f"{name:<12}{one['processor']:>20,.0f}{one['clock']:>14,.0f}{one['ours_to_it']:>12.2f}{span:>16}",
            flush=True,
        )
    return result


def stalls(folder: Path, size: int, workers: int, rows: int) -> dict[str, Any]:
    """Waits for a batch over many rows: taken as fast as they come, and by steps twice as long as a batch takes."""
    recipe, batches = recipe_for(folder, size, True, "scaled"), rows // BATCH
    fast = timed(ours(recipe, batches, workers), 2 * workers, batches - 4 * workers)
    step, waits = 2 * fast["median_wait"], []
    made = ours(recipe, batches, workers)
    for _ in range(2 * workers):
        next(made)
    while True:
        began = time.perf_counter()
        if next(made, None) is None:
            break
        waits.append(time.perf_counter() - began)
        time.sleep(step)
    waits = waits[3 * workers :]  # the workers have caught up with what was taken at once at first
    found = {"size": size, "rows": rows, "fast": fast, "step": step, "slow_median": statistics.median(waits)}
    found["slow_longest"] = max(waits)
    print(
        f"\n{size} px, {workers} workers, {rows:,} rows: a batch each {1e3 * fast['median_wait']:.0f} ms, "
        f"at most after {1e3 * fast['longest_wait']:.0f} ms; with steps of {1e3 * step:.0f} ms a wait of "
        f"{1e3 * found['slow_median']:.1f} ms, at most {1e3 * max(waits):.1f} ms"
    )
    return found


def parts(folder: Path, size: int, batches: int = 8) -> dict[str, float]:
    """Where the time of an image goes, processor milliseconds."""
    spent: dict[str, float] = defaultdict(float)
    inner = [0.0]

    def watched(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            outer, inner[0] = inner[0], 0.0
            began = time.process_time()
            try:
                return function(*given, **named)
            finally:
                whole = time.process_time() - began
                spent[name] += whole - inner[0]
                inner[0] = outer + whole

        return run

    made = our_batches(recipe_for(folder, size, True, "scaled"))
    make, made.encode = watched("the rest", made.__getitem__), watched("tokenise", made.encode)
    watch = {
        (made.split, "announce"): "read", (made.split, "image"): "read", (made.split, "captions"): "read",
        (square, "judged"): "judge", (square, "to_pixels"): "decode", (square, "resized"): "resize",
    }  # fmt: skip
    before = {place: getattr(*place) for place in watch}
    make((0, 0))
    spent.clear()
    for (owner, name), part in watch.items():
        setattr(owner, name, watched(part, before[owner, name]))
    for step in range(1, batches + 1):
        make((0, step))
    for (owner, name), function in before.items():
        setattr(owner, name, function)
    found = {name: 1e3 * seconds / (batches * BATCH) for name, seconds in spent.items()}
    print(f"\n{size} px: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()) + " ms an image")
    return found


def levels(folder: Path, size: int, number: int = 100) -> dict[str, float]:
    """How far scaled decoding is from the exact path, levels of 255."""
    split, settings = Split(folder, "train"), ImageSettings(size=size)
    data = [split.image(row) for row in range(number)]
    pairs = [(square.decode(one, settings), to_square(open_image(one), size)) for one in data]
    found = np.stack([np.abs(one.astype(int) - other.astype(int)) for one, other in pairs])
    result = {"mean": float(found.mean()), "p99": float(np.percentile(found, 99)), "most": float(found.max())}
    print(f"\n{size} px: scaled decoding differs by {result['mean']:.2f} levels, at most {result['most']:.0f}")
    return result


def reading(folder: Path, batches: int = 8) -> dict[str, float]:
    """Milliseconds a row by the clock to read shuffled rows, from the disk and from memory, announced or not."""
    split = Split(folder, "train")
    order = np.random.default_rng(1).permutation(len(split))
    found = {}
    for where in ("disk", "memory"):
        for how in ("in turn", "announced"):
            if where == "disk":
                _mapped.cache_clear()
                for path in folder.glob("*.tar"):
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            for start in range(0, batches * BATCH, BATCH):
                rows = order[start : start + BATCH].tolist()
                if how == "announced":
                    split.announce(rows)
                for row in rows:
                    split.image(row), split.captions(row)
            found[f"{where}, {how}"] = 1e3 * (time.perf_counter() - began) / (batches * BATCH)
    print("\nreading a row: " + ", ".join(f"{name} {value:.3f} ms" for name, value in found.items()))
    return found


def read_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where the tars are kept; else they are written anew and removed")
    parser.add_argument("--rows", type=int, default=2 * SHARD, help="rows that are written")
    parser.add_argument("--distinct", type=int, default=128, help="different photographs among them")
    parser.add_argument("--sizes", type=int, nargs="+", default=[112, 224], help="sides of the square, pixels")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side that count")
    parser.add_argument("--batches", type=int, default=6, help="batches of a turn that count")
    parser.add_argument("--workers", type=int, default=2, help="processes of the second comparison")
    parser.add_argument("--output", type=Path, help="where the figures go as JSON")
    return parser.parse_args()


def main() -> None:
    """Write the data, measure, print."""
    asked = read_arguments()
    torch.set_num_threads(1)
    import_open_clip()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        write_data(folder, asked.rows, asked.distinct)
        found: dict[str, Any] = {"reading": reading(folder)}
        for size in asked.sizes:
            found[f"levels_{size}"], found[f"parts_{size}"] = levels(folder, size), parts(folder, size)
            for training in (True, False):
                for workers in (0, asked.workers):
                    name = f"{size}_{'training' if training else 'evaluation'}_{workers}"
                    found[name] = compare(folder, size, training, workers, asked)
            found[f"stalls_{size}"] = stalls(folder, size, asked.workers, asked.rows)
    if asked.output:
        asked.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
