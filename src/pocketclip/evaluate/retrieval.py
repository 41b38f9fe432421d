"""Retrieval on a benchmark of images with several captions each."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from pocketclip.bundle import Bundle
from pocketclip.data.images import BadImage
from pocketclip.data.labelled.captioned import Captioned, open_captioned
from pocketclip.data.labelled.kinds import Dropped
from pocketclip.errors import DataError
from pocketclip.evaluate.benchmarks.catalogue import Place
from pocketclip.evaluate.captions import Candidates, CaptionedImages, judge, true_of, write_predictions
from pocketclip.evaluate.dropped import counted, say, write_dropped
from pocketclip.evaluate.embed import embed_images, progress_of
from pocketclip.evaluate.results import Result, write_results
from pocketclip.evaluate.robustness import Names, evaluate_robustness, some_of


@dataclass(frozen=True)
class EmbeddedSet(CaptionedImages):
    """A benchmark's images that could be embedded. names: of each. lost: all others."""

    names: list[str]
    lost: list[Dropped]


def measure_captioned(bundle: Bundle, place: Place) -> Result:
    """A benchmark's figures, and no files."""
    return _judged(bundle, place, _embedded(bundle, place))[0]


def evaluate_captioned(bundle: Bundle, place: Place, output: Path, console: Console, bundle_name: str) -> Result:
    """Find a benchmark's captions by its images and its images by its captions.

    Writes results.json, NAME-predictions.jsonl and NAME-dropped.jsonl; what could not be used is counted and named on
    the console. A caption that two images have is one, and right for both. Raises DataError where the source cannot be
    read or has no image of use.
    """
    embedded = _embedded(bundle, place, console)
    result, candidates, rank = _judged(bundle, place, embedded)
    names = [{"name": name} for name in embedded.names]
    write_predictions(output / f"{place.name}-predictions.jsonl", names, embedded, candidates, rank)
    write_dropped(output / f"{place.name}-dropped.jsonl", embedded.lost)
    write_results(output / "results.json", bundle_name, bundle.seal, [result])
    say(place.name, embedded.lost, console)
    if bundle.recipe.evaluate.robustness:  # it takes longest
        about = Names(place.name, embedded.names, true_of(embedded, candidates), candidates.captions)
        images = ((item.name, item.image) for item in open_captioned(place.path, place.name).items([]))
        evaluate_robustness(bundle, some_of(bundle, about, candidates.texts, images), output, console)
    return result


def _embedded(bundle: Bundle, place: Place, console: Console | None = None) -> EmbeddedSet:
    source, lost = open_captioned(place.path, place.name), list[Dropped]()

    def image(item: Captioned) -> bytes | Path:
        if not _distinct(item):
            raise BadImage("no caption")
        return item.image

    def refuse(item: Captioned, reason: str) -> None:
        lost.append(Dropped(item.name, reason))

    def keep(item: Captioned) -> tuple[str, list[str]]:
        return item.name, _distinct(item)

    progress = progress_of(console, place.name, source.total)
    kept, images = embed_images(bundle, source.items(lost), image, refuse, keep, progress)
    if not kept:
        reasons = ", ".join(f"{count:,} x {reason}" for reason, count in counted(lost).items()) or "there is none"
        raise DataError(f"{place.path}: no image can be used: {reasons}")
    names, captions = [name for name, _ in kept], [some for _, some in kept]
    return EmbeddedSet(images, captions, ["all"] * len(names), Counter(counted(lost)), names, lost)


def _distinct(item: Captioned) -> list[str]:
    """An image's captions, each once, without white space at their ends."""
    return list(dict.fromkeys(filter(None, map(str.strip, item.captions))))


def _judged(bundle: Bundle, place: Place, embedded: EmbeddedSet) -> tuple[Result, Candidates, NDArray[np.int64]]:
    every = list(dict.fromkeys(caption for some in embedded.captions for caption in some))
    candidates = Candidates(every, bundle.encode_texts(every).numpy())
    result, rank = judge(place.name, embedded, candidates, "retrieval")
    return result, candidates, rank
