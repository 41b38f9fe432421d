"""Shuffled training batches whose position is two numbers, (epoch, step).

Everything random about a batch follows from the seed and its position: which rows (a true shuffle of the whole split),
which of a row's captions, which augmentation. A run can therefore stop anywhere and go on with the same batches, with
any number of workers.
"""

import atexit
import math
import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pocketclip.data.captions import UnknownWords
from pocketclip.data.images import BadImage, Cut, Pixels, middle
from pocketclip.data.shards import Split
from pocketclip.data.square import decode
from pocketclip.errors import DataError
from pocketclip.recipe.schema import Recipe

Encode = Callable[[Sequence[str]], tuple[NDArray[np.int64], NDArray[np.int64]]]
Position = tuple[int, int]
PROPORTIONS = (3 / 4, 4 / 3)  # of random cuts, width to height
TRIES = 10


@dataclass(frozen=True, slots=True)
class Batch:
    """Pairs, and what was dropped in making them.

    pixels: uint8 [pairs, size, size, 3]. tokens: int64 [pairs, longest]. ends: int64 [pairs].
    dropped: reason -> rows left out; nothing takes their place, the batch is smaller.
    """

    position: Position
    pixels: Tensor
    tokens: Tensor
    ends: Tensor
    dropped: Counter[str]

    def pin_memory(self) -> "Batch":
        """The same in page-locked memory, from which a GPU copies in the background; torch's loader calls it."""
        return replace(
            self, pixels=self.pixels.pin_memory(), tokens=self.tokens.pin_memory(), ends=self.ends.pin_memory()
        )


class TrainingBatches(Dataset[Batch]):
    """The batches of one split; indexed by position."""

    def __init__(self, split: Split, recipe: Recipe, encode: Encode) -> None:
        self.split, self.encode, self.seed = split, encode, recipe.seed
        self.image, self.batch_size = recipe.image, recipe.train.batch_size
        self.steps_per_epoch = len(split) // self.batch_size
        if not self.steps_per_epoch:
            raise DataError(
                f"{split.folder}: split {split.name} has {len(split)} rows, less than one batch of "
                f"train.batch_size = {self.batch_size}; lower it or pack more rows"
            )
        self._order = lru_cache(maxsize=2)(self._shuffle)
        self.unknown_share = recipe.caption.unknown_words
        self._unknown_words = UnknownWords(split.every_caption()) if self.unknown_share else None
        self._cache: dict[int, Pixels | str] | None = {} if recipe.data.cache else None

    def __getitem__(self, position: Position) -> Batch:
        epoch, step = position
        rows = self._order(epoch)[step * self.batch_size : (step + 1) * self.batch_size].tolist()
        self.split.announce(row for row in rows if row not in (self._cache or ()))
        random = np.random.default_rng([self.seed, epoch, step])
        pixels = empty_pixels(len(rows), self.image.size, self.image.size, 3)
        room, captions = pixels.numpy(), list[str]()
        dropped: Counter[str] = Counter()
        for row in rows:
            augmented = random.random() < self.image.augmented
            found, choices = self._pixels(row, random if augmented else None), self.split.captions(row)
            if isinstance(found, str):
                dropped[found] += 1
            elif not choices:
                dropped["empty caption"] += 1
            else:
                if augmented:
                    found = augment(found, self.image.shift, self.image.flip, random)
                room[len(captions)] = found
                captions.append(self._drawn(choices, random))
        tokens, ends = self.encode(captions)
        return Batch(position, pixels[: len(captions)], torch.from_numpy(tokens), torch.from_numpy(ends), dropped)

    def _drawn(self, captions: list[str], random: np.random.Generator) -> str:
        """One of a row's captions, now and then with an unknown word."""
        caption = captions[random.integers(len(captions))]
        if self._unknown_words and random.random() < self.unknown_share:
            return self._unknown_words.replace(caption, random)
        return caption

    def __getstate__(self) -> dict[str, object]:
        """A copy in a worker shuffles and caches for itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_order"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.split))

    def _pixels(self, row: int, random: np.random.Generator | None) -> Pixels | str:
        """The decoded image, or the reason why there is none; cut by chance where it is augmented."""
        if self._cache is not None and row in self._cache:
            return self._cache[row]
        choose = partial(random_cut, share=self.image.crop, random=random) if random and self.image.crop < 1 else middle
        try:
            found: Pixels | str = decode(self.split.image(row), self.image, choose)
        except BadImage as error:
            found = str(error)
        if self._cache is not None:
            self._cache[row] = found if isinstance(found, str) else found.copy()  # not a view of a larger one
        return found


def empty_pixels(*shape: int) -> Tensor:
    """Memory for a batch, uint8; in a worker the training process has it too, and the loader need not copy it there."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # As torch's own collation does it.
    shared = torch.UntypedStorage._new_shared(math.prod(shape))  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(shared).view(shape)


def random_cut(width: int, height: int, size: int, share: float, random: np.random.Generator) -> Cut:
    """A part of an image that keeps at least `share` of its area, as torchvision's RandomResizedCrop draws it.

    What does not fit into the image is drawn again; at last the largest middle of allowed proportions is taken.
    """
    narrowest, widest = PROPORTIONS
    for area, proportion, right, down in random.random((TRIES, 4)).tolist():
        pixels = width * height * (share + (1 - share) * area)
        ratio = narrowest * (widest / narrowest) ** proportion  # uniform in its logarithm
        wide, high = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(right * (width - wide + 1)), int(down * (height - high + 1))
            return Cut(left, top, wide, high, size, size)
    wide, high = min(width, max(1, round(height * widest))), min(height, max(1, round(width / narrowest)))
    return Cut((width - wide) // 2, (height - high) // 2, wide, high, size, size)


def augment(pixels: Pixels, shift: float, flip: bool, random: np.random.Generator) -> Pixels:
    """Shift by up to `shift` of the side in both directions, edges repeated, and mirror half of the time.

    uint8 [size, size, 3] -> the same shape.
    """
    reach = round(shift * len(pixels))
    if reach:
        down, right = random.integers(-reach, reach + 1, size=2)
        places = np.arange(len(pixels))
        rows, columns = (places + down).clip(0, len(pixels) - 1), (places + right).clip(0, len(pixels) - 1)
        pixels = pixels[rows][:, columns]
    if flip and random.random() < 0.5:
        pixels = pixels[:, ::-1]
    return pixels


def _ignore_stops(_worker: int) -> None:
    """Ctrl-C and a service's stop reach workers too; the training process acts on them, and it still needs its batch.

    Workers end when it does: torch's loader sees to that, and `_kill_workers` where an error has left it unfinished.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _kill_workers() -> None:
    """At the process' end, before Python asks its children to end and waits for them: they do not hear that."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would call their end an error
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def load_batches(batches: TrainingBatches, start: int, end: int, workers: int) -> Iterator[Batch]:
    """The batches from the run's step `start` up to `end`, in order; steps count on across epochs.

    workers: processes that prepare batches ahead; they change the speed, never the batches.
    """
    if workers:
        atexit.unregister(_kill_workers)  # once, however often this is called
        atexit.register(_kill_workers)
    positions = [divmod(step, batches.steps_per_epoch) for step in range(start, end)]
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=cast("Sequence[int]", positions),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_stops,
    )
    return iter(loader)
