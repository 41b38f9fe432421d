"""Embeddings of a locked image tower, computed once and kept beside the shards.

A tower that does not learn gives the same embedding of an image in every epoch. With all of them on disk a step costs
what the text tower costs. Source: Zhai et al. 2022, "LiT", section 3.2.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from rich.console import Console

from pocketclip.bundle import Bundle, load
from pocketclip.data.images import BadImage
from pocketclip.data.shards import Split
from pocketclip.data.square import decode
from pocketclip.errors import TrainingError
from pocketclip.files import sync
from pocketclip.progress import WorkProgress
from pocketclip.recipe.schema import Recipe


def features_path(recipe: Recipe, split: Split) -> Path:
    """data.folder/features/SPLIT-FINGERPRINT.npy: another tower, other images or another size are another file."""
    weights = json.loads((Path(recipe.train.start_from) / "bundle.json").read_text(encoding="utf-8"))["sha256"]
    image = recipe.image.model_dump(include={"size", "mean", "std", "decoding"})
    said = json.dumps([weights["model.safetensors"], split.fingerprint(), image])
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
    part, record = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.rows")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        done = int(record.read_text()) if part.exists() and record.exists() else 0
        shape = (len(split), recipe.model.embedding_width)
        features = open_memmap(part, mode="r+" if done else "w+", dtype=np.float16, shape=None if done else shape)
        with WorkProgress(console, "features", "images", len(split), done) as progress:
            for start in range(done, len(split), recipe.evaluate.batch_size):
                rows = range(start, min(start + recipe.evaluate.batch_size, len(split)))
                features[start : rows.stop] = _embedded(bundle, split, recipe, rows)
                features.flush()
                record.write_text(str(rows.stop))  # what is said to be done is on the disk
                progress.advance(len(rows))
        del features
        sync(part)
        part.replace(path)
        record.unlink()
    except OSError as error:
        raise TrainingError(
            f"{path}: cannot be written ({error.strerror}); make room, or set train.cache_features = false"
        ) from None
    return path


def _embedded(
    bundle: Bundle, split: Split, recipe: Recipe, rows: range
) -> np.ndarray[tuple[int, int], np.dtype[np.float16]]:
    found = np.full((len(rows), recipe.model.embedding_width), np.nan, dtype=np.float16)
    good, pixels = [], []
    for place, row in enumerate(rows):
        try:
            pixels.append(decode(split.image(row), recipe.image))
            good.append(place)
        except BadImage:  # its reason is counted where it is met again
            continue
    if good:
        found[good] = bundle.encode_pixels(torch.from_numpy(np.stack(pixels))).numpy().astype(np.float16)
    return found
