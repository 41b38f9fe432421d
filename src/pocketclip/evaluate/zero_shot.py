"""Zero-shot classification: each image against every caption of a set, by cosine."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Embeddings = NDArray[np.float32]
BLOCK = 1024
SCORES = 1 << 24  # cosines that are held at a time, whatever the number of captions


def rows_at_once(candidates: int) -> int:
    """How many images' cosines with so many captions are held at a time."""
    return max(1, min(BLOCK, SCORES // max(1, candidates)))


def best_captions(images: Embeddings, texts: Embeddings, count: int) -> tuple[NDArray[np.int64], Embeddings]:
    """For each image the `count` captions of the highest cosine, best first, and those cosines.

    images: [images, width], texts: [captions, width], rows of length one. Ties go to the caption that comes first.
    Returns two arrays [images, count].
    """
    count = min(count, len(texts))
    found, cosines = [np.zeros((0, count), np.int64)], [np.zeros((0, count), np.float32)]
    block = rows_at_once(len(texts))
    for start in range(0, len(images), block):
        scores = images[start : start + block] @ texts.T
        order = _first(scores, count)
        found.append(order)
        cosines.append(np.take_along_axis(scores, order, axis=1))
    return np.concatenate(found), np.concatenate(cosines)


def _first(scores: Embeddings, count: int) -> NDArray[np.int64]:
    """The places of the `count` highest in each row, as a stable sort of all would give them."""
    if not count or 2 * count >= scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")[:, :count]
    some = np.sort(np.argpartition(-scores, count - 1, axis=1)[:, :count], axis=1)
    values = np.take_along_axis(scores, some, axis=1)
    order = np.take_along_axis(some, np.argsort(-values, axis=1, kind="stable"), axis=1)
    least = values.min(axis=1, keepdims=True)
    unsure = ~((scores >= least).sum(axis=1) == count)  # equal ones at the end, or what is no number
    order[unsure] = np.argsort(-scores[unsure], axis=1, kind="stable")[:, :count]
    return order


def ranks(images: Embeddings, texts: Embeddings, true: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """The rank of each image's best true caption among all captions; 0 is the first place.

    true: for each image the indices of the captions that are right for it, at least one.
    A wrong caption with the very same cosine counts as ahead, and so does everything where a cosine is no number, so
    that equal or broken scores never look like success.
    """
    result = np.empty(len(images), dtype=np.int64)
    block = rows_at_once(len(texts))
    for start in range(0, len(images), block):
        scores = images[start : start + block] @ texts.T
        for row, score in enumerate(scores, start=start):
            right = np.zeros(len(score), dtype=bool)
            right[list(true[row])] = True
            result[row] = int((~(score[~right] < score[right].max())).sum())
    return result


def top_k(ranks: NDArray[np.int64], k: int) -> float:
    """The share of ranks that are below k, in percent."""
    return 100.0 * float(np.mean(ranks < k))
