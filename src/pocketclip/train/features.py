"""Embeddings of a locked image tower, computed once and kept beside the shards.

A tower that does not learn gives the same embedding of an image in every epoch. With all of them on disk a step costs
what the text tower costs. Source: Zhai et al. 2022, "LiT", section 3.2.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.utils.data import Dataset

from pocketclip.bundle import Bundle, load, seal_of
from pocketclip.data.batches import in_order
from pocketclip.data.images import BadImage
from pocketclip.data.shards import Split
from pocketclip.data.square import decode
from pocketclip.errors import TrainingError
from pocketclip.files import sync
from pocketclip.model.clip import CLIP
from pocketclip.progress import WorkProgress
from pocketclip.recipe.schema import ImageSettings, Recipe
from pocketclip.train.start import start_from

Values = np.memmap[tuple[int, ...], np.dtype[np.float16]]
Embedded = Callable[[Sequence[range]], Iterable[NDArray[np.float32]]]


def features_path(recipe: Recipe, split: Split) -> Path:
    """data.folder/features/SPLIT-FINGERPRINT.npy: another tower, other images or another size are another file.

    Raises BundleError where the bundle is damaged.
    """
    image = recipe.image.model_dump(include={"size", "mean", "std", "decoding"})
    said = json.dumps([seal_of(Path(recipe.train.start_from)), split.fingerprint(), image])
    return Path(split.folder) / "features" / f"{split.name}-{hashlib.sha256(said.encode()).hexdigest()[:16]}.npy"


def cache_features(recipe: Recipe, split: Split, console: Console) -> Path:
    """Embed all images of a split by the bundle that training starts from, or go on with that.

    Returns a file of float16 [rows, width], rows of length one, NaN where an image cannot be used.
    Raises TrainingError where it cannot be written, BundleError where the bundle is damaged.
    """
    path = features_path(recipe, split)
    if path.exists():
        return path
    bundle = load(recipe.train.start_from, recipe.train.device)
    model = CLIP(recipe)  # whose sizes are the bundle's, but whose preprocessing may be the recipe's own
    start_from(model, Path(recipe.train.start_from))
    bundle = replace(bundle, recipe=recipe, model=model.to(bundle.device.device).eval())
    embedded = image_embeddings(bundle, split, recipe.image, recipe.data.workers)
    shape = len(split), recipe.model.embedding_width
    try:
        fill(path, shape, embedded, recipe.evaluate.batch_size, console, "images")
    except OSError as error:
        raise TrainingError(
            f"{path}: cannot be written ({error.strerror}); make room, or set train.cache_features = false"
        ) from None
    return path


def fill(path: Path, shape: tuple[int, int], embedded: Embedded, each: int, console: Console, unit: str) -> None:
    """Make a file of float16 [rows, width] of embeddings, `each` rows at a time, or go on with one that was begun.

    embedded: ranges of rows -> their embeddings, in order. unit: what a row stands for. The file gets its name when it
    is whole.
    """
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    found = _begun(part, shape)
    done = _done(found, each)
    ranges = [range(start, min(start + each, len(found))) for start in range(done, len(found), each)]
    with WorkProgress(console, "embedding", unit, len(found), done) as progress:
        for rows, values in zip(ranges, embedded(ranges), strict=True):
            found[rows.start : rows.stop] = values
            found.flush()  # before the next ones are begun
            progress.advance(len(rows))
    del found
    sync(part)
    part.replace(path)
    sync(path.parent)


def _done(found: Values, each: int) -> int:
    """How many rows an earlier process has surely written; no embedding is all zeros, as unwritten rows are."""
    begun = bisect_left(range(0, len(found), each), True, key=lambda start: not found[start].any())
    return max(0, begun - 1) * each  # of the last ones it may have written a part


def _begun(part: Path, shape: tuple[int, int]) -> Values:
    """A file's array, zeros where nothing was written yet."""
    try:
        found = open_memmap(part, mode="r+")
        if found.shape == shape:
            return found
    except (FileNotFoundError, ValueError):  # or killed when it had half a header
        pass
    return open_memmap(part, mode="w+", dtype=np.float16, shape=shape)


class Squares(Dataset[tuple[Tensor, Tensor]]):
    """The images of some rows of a split: (which of the rows have one, bool; pixels of those, uint8)."""

    def __init__(self, split: Split, image: ImageSettings) -> None:
        self.split, self.image = split, image

    def __getitem__(self, rows: range) -> tuple[Tensor, Tensor]:
        self.split.announce(rows)
        good, pixels = torch.zeros(len(rows), dtype=torch.bool), []
        for place, row in enumerate(rows):
            try:
                pixels.append(decode(self.split.image(row), self.image))
                good[place] = True
            except BadImage:  # its reason is counted where it is met again
                continue
        size = self.image.size
        return good, torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0, size, size, 3, dtype=torch.uint8)


def image_embeddings(bundle: Bundle, split: Split, image: ImageSettings, workers: int) -> Embedded:
    """What a bundle makes of a split's images, for `fill`: NaN where one cannot be used.

    workers: processes that decode.
    """

    def embedded(ranges: Sequence[range]) -> Iterator[NDArray[np.float32]]:
        for good, pixels in in_order(Squares(split, image), ranges, workers):
            found = np.full((len(good), bundle.recipe.model.embedding_width), np.nan, dtype=np.float32)
            if len(pixels):
                found[good.numpy()] = bundle.encode_pixels(pixels).numpy()
            yield found

    return embedded
