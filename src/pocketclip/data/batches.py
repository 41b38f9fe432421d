"""Shuffled training batches whose position is two numbers, (epoch, step).

Everything about a batch follows from the seed and its position: which rows (a true shuffle of the whole split), which
of a row's captions, which augmentation, how large its images are. A run can therefore stop anywhere and go on with the
same batches, with any number of workers, and of ranks, each of which makes its part of every batch.
"""

import atexit
import math
import multiprocessing
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from pocketclip.data.captions import UnknownWords
from pocketclip.data.images import BadImage, Cut, Pixels, middle
from pocketclip.data.shards import Split
from pocketclip.data.square import decode
from pocketclip.data.teacher import CHANGED, Taught, Teacher
from pocketclip.errors import DataError
from pocketclip.recipe.schema import ImageSettings, Recipe

Encode = Callable[[Sequence[str]], tuple[NDArray[np.int64], NDArray[np.int64]]]
Position = tuple[int, int]
Item = TypeVar("Item")
PROPORTIONS = (3 / 4, 4 / 3)  # of random cuts, width to height
TRIES = 10


@dataclass(frozen=True, slots=True)
class Batch:
    """Pairs, and what was dropped in making them.

    pixels: uint8 [pairs, size, size, 3], the size being that of this step of the run; or, where a locked tower has done
        its work, float32 [pairs, embedding width].
    tokens: int64 [pairs * captions, longest], the captions of one image after each other. ends: int64, of each of them.
    rows: int64 [pairs], which of the split's.
    dropped: reason -> rows left out; nothing takes their place, the batch is smaller.
    taught: what a teacher says of the same pairs, if there is one.
    """

    position: Position
    pixels: Tensor
    tokens: Tensor
    ends: Tensor
    rows: Tensor
    dropped: Counter[str]
    taught: Taught | None = None

    def pin_memory(self) -> "Batch":
        """The same in page-locked memory, from which a GPU copies in the background; torch's loader calls it."""
        return replace(
            self,
            pixels=self.pixels.pin_memory(),
            tokens=self.tokens.pin_memory(),
            ends=self.ends.pin_memory(),
            rows=self.rows.pin_memory(),
            taught=self.taught and self.taught.pin_memory(),
        )


class RowChance:
    """Random numbers of each row of a batch, its own: the same whichever rank makes it, after whatever rows."""

    def __init__(self, seed: int, epoch: int, step: int) -> None:
        key = np.random.SeedSequence([seed, epoch, step]).generate_state(2, np.uint64)
        self._bits = np.random.Philox(key=key)
        self._generator, self._state = np.random.Generator(self._bits), self._bits.state

    def of(self, place: int) -> np.random.Generator:
        """The generator, at the beginning of a row's numbers: Philox counts, and rows count in its highest digit."""
        self._state["state"]["counter"][3] = place  # a new generator would take seven times as long
        self._bits.state = self._state
        return self._generator


class TrainingBatches(Dataset[Batch]):
    """The batches of one split; indexed by position.

    rank, ranks: which part of each batch this process makes, of how many. features: a file of float16 [rows, width],
    the images' embeddings, which then come in the place of their pixels; NaN where an image cannot be used. teacher:
    whose embeddings of the same rows are in each batch too.
    """

    def __init__(
        self,
        split: Split,
        recipe: Recipe,
        encode: Encode,
        rank: int = 0,
        ranks: int = 1,
        features: Path | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self.split, self.encode, self.seed, self.rank, self.ranks = split, encode, recipe.seed, rank, ranks
        self.features, self.teacher, self.captions_per_image = features, teacher, recipe.caption.per_image
        self.image, self.batch_size = recipe.image, recipe.train.batch_size
        self.steps_per_epoch = len(split) // self.batch_size
        self.steps = recipe.train.steps_of_run(self.steps_per_epoch)
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
        chance = RowChance(self.seed, epoch, step)
        first, end = (self.batch_size * part // self.ranks for part in (self.rank, self.rank + 1))
        rows = rows[first:end]
        image = self.image.at((epoch * self.steps_per_epoch + step) / self.steps)
        if self.features:
            pixels = torch.empty(len(rows), self._features.shape[1])
        else:
            self.split.announce(row for row in rows if self._cached(row, image.size) is None)
            pixels = empty_pixels(len(rows), image.size, image.size, 3)
        room, used, captions, numbers = pixels.numpy(), list[int](), list[str](), list[int]()
        dropped: Counter[str] = Counter()
        for place, row in enumerate(rows, start=first):
            random = chance.of(place)
            found, choices = self._image(row, image, random), self.split.captions(row)
            if isinstance(found, str):
                dropped[found] += 1
            elif not choices:
                dropped["empty caption"] += 1
            else:
                room[len(used)] = found
                used.append(row)
                for number in self._drawn(len(choices), random):
                    captions.append(self._worded(choices[number], random))
                    numbers.append(number if captions[-1] == choices[number] else CHANGED)
        tokens, ends = self.encode(captions)
        taught = self.teacher.of(used, numbers) if self.teacher else None
        texts = (torch.from_numpy(tokens), torch.from_numpy(ends))
        return Batch(position, pixels[: len(used)], *texts, torch.tensor(used, dtype=torch.long), dropped, taught)

    def _drawn(self, count: int, random: np.random.Generator) -> list[int]:
        """Which of a row's captions are read, as different ones as it has."""
        if self.captions_per_image == 1:
            return [int(random.integers(count))]
        order = random.permutation(count)
        return [int(order[place % count]) for place in range(self.captions_per_image)]

    def _worded(self, caption: str, random: np.random.Generator) -> str:
        """A caption, now and then with an unknown word."""
        if self._unknown_words is None or random.random() >= self.unknown_share:
            return caption
        return self._unknown_words.replace(caption, random)

    @cached_property
    def _features(self) -> NDArray[np.float16]:
        found: NDArray[np.float16] = np.load(str(self.features), mmap_mode="r")
        return found

    def _image(self, row: int, image: ImageSettings, random: np.random.Generator) -> Pixels | NDArray[np.float16] | str:
        """A row's pixels or features, or the reason why it cannot be used."""
        found = self._seen(row, image, random)
        known = isinstance(found, str) or self.teacher is None or self.teacher.knows(row)
        return found if known else "image that the teacher cannot use"

    def _seen(self, row: int, image: ImageSettings, random: np.random.Generator) -> Pixels | NDArray[np.float16] | str:
        """A row's pixels or features, or the reason why there are none."""
        if self.features:
            known = self._features[row]
            return known if np.isfinite(known[0]) else str(self._pixels(row, image, None))  # which says why it is not
        augmented = random.random() < image.augmented
        found = self._pixels(row, image, random if augmented else None)
        if augmented and not isinstance(found, str):
            found = augment(found, image.shift, image.flip, random)
        return found

    def __getstate__(self) -> dict[str, object]:
        """A copy in a worker shuffles and caches for itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_order", "_features")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self.split))

    def _cached(self, row: int, size: int) -> Pixels | str | None:
        """What is kept of a row; one of another size was that of an earlier part of the run."""
        found = self._cache.get(row) if self._cache else None
        return found if isinstance(found, str) or (found is not None and len(found) == size) else None

    def _pixels(self, row: int, image: ImageSettings, random: np.random.Generator | None) -> Pixels | str:
        """The decoded image, or the reason why there is none; cut by chance where it is augmented."""
        known = self._cached(row, image.size)
        if known is not None:
            return known
        choose = partial(random_cut, share=image.crop, random=random) if random and image.crop < 1 else middle
        try:
            found: Pixels | str = decode(self.split.image(row), image, choose)
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
    return in_order(batches, [divmod(step, batches.steps_per_epoch) for step in range(start, end)], workers)


def in_order(data: Dataset[Item], positions: Sequence[object], workers: int) -> Iterator[Item]:
    """What a data set has at some positions, made ahead by so many processes."""
    if workers:
        atexit.unregister(_kill_workers)  # once, however often this is called
        atexit.register(_kill_workers)
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=cast("Sequence[int]", positions),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_ignore_stops,
    )
    return iter(loader)
