"""Many images -> their embeddings, decoded ahead of the model; what cannot be decoded is named, never replaced."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from pocketclip.bundle import Bundle
from pocketclip.data.images import LARGEST_IMAGE, BadImage, Pixels, read_file, to_square
from pocketclip.data.square import decode
from pocketclip.errors import DataError
from pocketclip.evaluate.zero_shot import Embeddings
from pocketclip.progress import WorkProgress
from pocketclip.recipe.schema import ImageSettings

THREADS = min(16, os.cpu_count() or 1)
Encoded = bytes | Path | Pixels
Item = TypeVar("Item")
Kept = TypeVar("Kept")


def square(image: Encoded, settings: ImageSettings) -> Pixels:
    """What the model sees of an image, uint8 [size, size, 3]; raises BadImage.

    image: encoded, in a file, or uint8 [height, width, 3], which is resized as `image.decoding = "exact"` does.
    """
    if isinstance(image, np.ndarray):
        return to_square(Image.fromarray(image), settings.size)
    return decode(image if isinstance(image, bytes) else read_file(image, LARGEST_IMAGE), settings)


def square_of_file(path: Path, settings: ImageSettings) -> Pixels:
    """The same of one image that is asked for; raises DataError naming it."""
    try:
        return square(path, settings)
    except BadImage as error:
        raise DataError(f"{path}: {error}") from None


def embed_images(
    bundle: Bundle,
    items: Iterable[Item],
    image: Callable[[Item], Encoded],
    refuse: Callable[[Item, str], None],
    keep: Callable[[Item], Kept],
    progress: WorkProgress | None = None,
) -> tuple[list[Kept], Embeddings]:
    """Embed the image of each item, in order.

    image: what to decode; may raise BadImage. refuse: is told of an item whose image cannot be used, and why.
    keep: what is to be remembered of an item that was embedded; of the image itself nothing, as many would fill the
        memory.
    Returns what is remembered, and float32 [items, embedding width], rows of length one.
    """
    kept: list[Kept] = []
    batch: list[Pixels] = []
    found = [np.zeros((0, bundle.recipe.model.embedding_width), np.float32)]
    with progress or nullcontext():
        for item, pixels in _decoded(bundle, items, image):
            if progress:
                progress.advance(1)
            if isinstance(pixels, str):
                refuse(item, pixels)
                continue
            kept.append(keep(item))
            batch.append(pixels)
            if len(batch) == bundle.recipe.evaluate.batch_size:
                found.append(_embed(bundle, batch))
                batch = []
    if batch:
        found.append(_embed(bundle, batch))
    return kept, np.concatenate(found)


def _decoded(
    bundle: Bundle, items: Iterable[Item], image: Callable[[Item], Encoded]
) -> Iterator[tuple[Item, Pixels | str]]:
    """Each item with its pixels, or with why there are none.

    A GPU finds two batches decoded ahead of it. On a CPU decoding and the model take turns, as both use all cores and
    would wait for each other.
    """

    def work(item: Item) -> Pixels | str:
        try:
            return square(image(item), bundle.recipe.image)
        except BadImage as error:
            return str(error)

    size = bundle.recipe.evaluate.batch_size
    batches_ahead = 0 if bundle.device.device.type == "cpu" else 2
    waiting: deque[list[tuple[Item, Future[Pixels | str]]]] = deque()
    source = iter(items)
    with ThreadPoolExecutor(THREADS) as pool:
        while True:
            while len(waiting) <= batches_ahead and (some := list(islice(source, size))):
                waiting.append([(item, pool.submit(work, item)) for item in some])
            if not waiting:
                return
            for item, future in waiting.popleft():
                yield item, future.result()


def _embed(bundle: Bundle, batch: list[Pixels]) -> Embeddings:
    embeddings: Embeddings = bundle.encode_pixels(torch.from_numpy(np.stack(batch))).numpy()
    return embeddings


def progress_of(console: Console | None, what: str, total: int | None) -> WorkProgress | None:
    """A line that shows how far it is; None where nobody looks."""
    return WorkProgress(console, f"embedding {what}", "images", total) if console else None
