"""Images against captions: which of them a model puts first for each image, and which image for each caption."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketclip.evaluate.accuracy import by_group, chance, clustered_interval, intervals, mean_top_1
from pocketclip.evaluate.results import CUTS, Result
from pocketclip.evaluate.zero_shot import Embeddings, best_captions, ranks, top_k
from pocketclip.files import whole_file

SHOWN = 5


@dataclass(frozen=True)
class CaptionedImages:
    """Images that could be embedded.

    images: [images, width]. captions: each one's own, distinct. groups: each one's group. dropped: why others are not
    there.
    """

    images: Embeddings
    captions: list[list[str]]
    groups: list[str]
    dropped: Counter[str]


@dataclass(frozen=True)
class Candidates:
    """The distinct captions that images are compared with. texts: [captions, width]."""

    captions: list[str]
    texts: Embeddings


@dataclass(frozen=True)
class Recall:
    """Recall@1/5/10 by its name, percent; what chance would give; and its 95 % intervals, by bootstrap over images."""

    values: dict[str, float]
    chance: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def recall(images: Embeddings, texts: Embeddings, true: Sequence[Sequence[int]]) -> Recall:
    """How often an image finds one of its captions, and a caption one of its images.

    images: [images, width]; texts: [captions, width], the captions of these images alone, each once.
    true: for each image the indices of its captions.
    """
    owners: list[list[int]] = [[] for _ in texts]
    for image, captions in enumerate(true):
        for caption in captions:
            owners[caption].append(image)
    to_text, to_image = ranks(images, texts, true), ranks(texts, images, owners)
    right = {"image_to_text": list(map(len, true)), "text_to_image": list(map(len, owners))}
    drawn = {"image_to_text": range(len(images)), "text_to_image": [own[0] for own in owners]}
    found = Recall({}, {}, {})
    for way, rank, candidates in (("image_to_text", to_text, len(texts)), ("text_to_image", to_image, len(images))):
        for k in CUTS:
            name = f"{way}_recall@{k}"
            found.values[name] = top_k(rank, k)
            found.chance[name] = chance(np.array(right[way]), candidates, k)
            found.intervals[name] = clustered_interval(rank < k, np.array(drawn[way]))
    return found


def judge(
    name: str, embedded: CaptionedImages, candidates: Candidates, kind: str = "captions"
) -> tuple[Result, NDArray[np.int64]]:
    """The figures, and the rank of each image's best true caption."""
    texts, true = candidates.texts, true_of(embedded, candidates)
    rank = ranks(embedded.images, texts, true)
    own = sorted({index for captions in true for index in captions})
    place = {index: position for position, index in enumerate(own)}
    groups = by_group(rank, embedded.groups)
    right = np.array([len(captions) for captions in true])
    found = recall(embedded.images, texts[own], [[place[c] for c in captions] for captions in true])
    result = Result(
        benchmark=name,
        images=len(true),
        candidates=len(texts),
        top_1=top_k(rank, 1),
        top_5=top_k(rank, 5),
        top_10=top_k(rank, 10),
        chance_top_1=chance(right, len(texts), 1),
        chance_top_5=chance(right, len(texts), 5),
        chance_top_10=chance(right, len(texts), 10),
        mean_group_top_1=mean_top_1(groups),
        groups=groups,
        recall=found.values,
        dropped=dict(embedded.dropped),
        kind=kind,
        intervals=intervals(rank, groups) | found.intervals,
        chance_recall=found.chance,
    )
    return result, rank


def true_of(embedded: CaptionedImages, candidates: Candidates) -> list[list[int]]:
    """For each image the numbers of its captions among the candidates."""
    number = {caption: index for index, caption in enumerate(candidates.captions)}
    return [[number[caption] for caption in captions] for captions in embedded.captions]


def write_predictions(
    path: Path,
    names: Sequence[Mapping[str, Any]],
    embedded: CaptionedImages,
    candidates: Candidates,
    rank: NDArray[np.int64],
) -> None:
    """A line an image: what it is called, its captions, its rank, its best captions with cosines."""
    best, cosines = best_captions(embedded.images, candidates.texts, SHOWN)
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for number, name in enumerate(names):
            shown = zip(best[number], cosines[number], strict=True)
            line = {
                **name,
                "captions": embedded.captions[number],
                "rank": int(rank[number]),
                "best": [[candidates.captions[c], round(float(s), 4)] for c, s in shown],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
