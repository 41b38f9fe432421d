"""Evaluate a bundle on splits of a data set: zero-shot against all its captions, and retrieval."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from pocketclip.bundle import Bundle
from pocketclip.data.images import BadImage
from pocketclip.data.shards import Split, splits_in
from pocketclip.errors import DataError
from pocketclip.evaluate.captions import Candidates, CaptionedImages, judge, true_of, write_predictions
from pocketclip.evaluate.embed import embed_images, progress_of
from pocketclip.evaluate.explain import write_explained
from pocketclip.evaluate.results import Result, write_results
from pocketclip.evaluate.robustness import Names, evaluate_robustness, evenly, some_of, squares_of
from pocketclip.evaluate.zero_shot import best_captions
from pocketclip.files import whole_file


@dataclass(frozen=True)
class EmbeddedSplit(CaptionedImages):
    """The images of a split that could be embedded. rows: their numbers in the split."""

    rows: list[int]


def evaluate_splits(
    bundle: Bundle, folder: Path, names: Sequence[str], output: Path, console: Console, bundle_name: str
) -> list[Result]:
    """Evaluate on the named splits and write results.json, predictions and embeddings into `output`.

    Every image is compared with every distinct caption of all splits in the folder, whichever split it stands in.
    Raises DataError for a split that is missing or in which no image can be read.
    """
    candidates = _candidates(bundle, folder, names)
    texts = candidates.texts.astype(np.float16)
    arrays: dict[str, NDArray[Any]] = {"captions": _as_json(candidates.captions), "texts": texts}
    results, every = [], dict[str, EmbeddedSplit]()
    for name in names:
        embedded = every[name] = embed_split(bundle, Split(folder, name), console)
        result, rank = judge(name, embedded, candidates)
        results.append(result)
        _write_predictions(output / f"{name}-predictions.jsonl", embedded, candidates, rank)
        if bundle.recipe.evaluate.explained:
            _explain(bundle, Split(folder, name), embedded, candidates, output)
        arrays[f"rows_{name}"] = np.array(embedded.rows, dtype=np.int64)
        arrays[f"images_{name}"] = embedded.images.astype(np.float16)
    with whole_file(output / "embeddings.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    write_results(output / "results.json", bundle_name, bundle.seal, results)
    if bundle.recipe.evaluate.robustness:  # it takes longest
        for name, embedded in every.items():
            _try_robustness(bundle, Split(folder, name), embedded, candidates, output, console)
    return results


def _explain(bundle: Bundle, split: Split, embedded: EmbeddedSplit, candidates: Candidates, output: Path) -> None:
    """What the similarity of some images comes from, with their own caption and with the nearest wrong one."""
    chosen = evenly([str(row) for row in embedded.rows], bundle.recipe.evaluate.explained)
    squares = squares_of(bundle, ((name, split.image(int(name))) for name in chosen), chosen)
    numbers = [embedded.rows.index(int(name)) for name in chosen]
    place = {caption: number for number, caption in enumerate(candidates.captions)}
    captions = []
    for number in numbers:
        own = embedded.captions[number]
        order = best_captions(embedded.images[number : number + 1], candidates.texts, len(own) + 1)[0][0]
        wrong = [candidates.captions[one] for one in order if candidates.captions[one] not in own]
        captions.append([own[0], *wrong[:1]])
    texts = [candidates.texts[[place[one] for one in some]] for some in captions]
    write_explained(bundle, list(squares.values()), captions, texts, output / f"{split.name}-explained.json")


def _try_robustness(
    bundle: Bundle, split: Split, embedded: EmbeddedSplit, candidates: Candidates, output: Path, console: Console
) -> None:
    """The same captions told from some of the same images, damaged."""
    names = Names(split.name, list(map(str, embedded.rows)), true_of(embedded, candidates), candidates.captions)
    images = ((str(row), split.image(row)) for row in embedded.rows)
    evaluate_robustness(bundle, some_of(bundle, names, candidates.texts, images), output, console)


def measure_splits(bundle: Bundle, folder: Path, names: Sequence[str]) -> list[Result]:
    """The figures that `evaluate_splits` gives, and no files."""
    if not names:
        return []
    candidates = _candidates(bundle, folder, names)
    return [judge(name, embed_split(bundle, Split(folder, name)), candidates)[0] for name in names]


def require_splits(folder: Path, names: Sequence[str]) -> list[str]:
    """The splits in a folder; raises DataError if one of the named is not there."""
    known = splits_in(folder)
    for name in names:
        if name not in known:
            raise DataError(
                f"evaluate.splits: {name!r} is not in {folder}, which has {', '.join(known) or 'no shards'}"
            )
    return known


def _candidates(bundle: Bundle, folder: Path, names: Sequence[str]) -> Candidates:
    known = require_splits(folder, names)
    captions = list(dict.fromkeys(caption for name in known for caption in Split(folder, name).every_caption()))
    return Candidates(captions, bundle.encode_texts(captions).numpy())


def _as_json(captions: list[str]) -> NDArray[np.uint8]:
    """Texts as the bytes of a JSON list: NumPy would give each the room of the longest."""
    return np.frombuffer(json.dumps(captions, ensure_ascii=False).encode(), dtype=np.uint8)


def embed_split(bundle: Bundle, split: Split, console: Console | None = None) -> EmbeddedSplit:
    """Embed every image of a split; rows without a caption or a readable image are counted, never replaced.

    console: where a terminal shows how far it is.
    """
    captions: dict[int, list[str]] = {}

    def image(row: int) -> bytes:
        captions[row] = list(dict.fromkeys(split.captions(row)))
        if not captions[row]:
            raise BadImage("empty caption")
        return split.image(row)

    dropped: Counter[str] = Counter()

    def refuse(_: int, reason: str) -> None:
        dropped[reason] += 1

    progress = progress_of(console, split.name, len(split))
    rows, images = embed_images(bundle, range(len(split)), image, refuse, int, progress)
    if not rows:
        raise DataError(f"{split.folder}: no image of split {split.name} can be used: {dict(dropped)}")
    groups = [str(split.metadata(row).get("group", "all")) for row in rows]
    return EmbeddedSplit(images, [captions[row] for row in rows], groups, dropped, rows)


def _write_predictions(path: Path, embedded: EmbeddedSplit, candidates: Candidates, rank: NDArray[np.int64]) -> None:
    names = [{"row": row, "group": group} for row, group in zip(embedded.rows, embedded.groups, strict=True)]
    write_predictions(path, names, embedded, candidates, rank)
