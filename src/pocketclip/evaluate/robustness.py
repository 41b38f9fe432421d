"""How much accuracy a model loses when its images are damaged, and whether words that are written on them take it in.

Beside each word of a wrong class the same letters are drawn in another order: what they cost is what a label hides, and
only the rest is reading.
"""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from pocketclip.bundle import Bundle
from pocketclip.data.images import BadImage, Pixels
from pocketclip.evaluate.accuracy import chance, interval
from pocketclip.evaluate.corruptions import AMOUNTS, STRENGTHS, WRITINGS, Writing, corrupt, write
from pocketclip.evaluate.embed import Encoded, square
from pocketclip.evaluate.explain import encoded_png
from pocketclip.evaluate.zero_shot import Embeddings, best_captions, ranks, top_k
from pocketclip.files import whole_file
from pocketclip.progress import WorkProgress

EXAMPLES, SHOWN = 4, 5
AS_IT_IS, WORD, SCRAMBLED = "as it is", "word of a wrong class", "its letters scrambled"


@dataclass(frozen=True)
class Names:
    """Images, and what they are told apart by.

    names: of each image. true: for each image the numbers of its right candidates. candidates: classes or captions.
    """

    name: str
    names: list[str]
    true: list[list[int]]
    candidates: list[str]


@dataclass(frozen=True)
class Task(Names):
    """The same with the images as the model sees them, uint8 [side, side, 3], and with texts: [candidates, width]."""

    squares: list[Pixels]
    texts: Embeddings


@dataclass(frozen=True, slots=True)
class Line:
    """Accuracy under one condition, percent.

    kind: of corruption, or what is written. strength: 1 to 5; 0 where there is none. detail: how a word is drawn.
    chance: top-1 of blind guessing. taken_in: images for which the written class came first; of scrambled letters, the
        class that they were taken from.
    """

    kind: str
    strength: int
    detail: str
    top_1: float
    low: float
    high: float
    chance: float
    taken_in: float | None = None


def evaluate_robustness(bundle: Bundle, task: Task, output: Path, console: Console) -> list[Line]:
    """Evaluate a task's images under every condition; returns the lines of the table, the undamaged images first.

    Writes them into NAME-robustness.csv, and examples into NAME-robustness.json.
    """
    wrong = wrong_candidates(task)
    words = [task.candidates[number] for number in wrong]
    scrambled = [scramble(word, number) for number, word in enumerate(words)]
    passes = 1 + len(AMOUNTS) * len(STRENGTHS) + 2 * len(WRITINGS)
    with WorkProgress(
        console, f"{task.name} under {passes} conditions", "images", passes * len(task.squares)
    ) as progress:
        first, line = _judged(bundle, task, AS_IT_IS, 0, "", lambda pixels, _: pixels, progress)
        lines = [line]
        for kind in AMOUNTS:
            for strength in STRENGTHS:
                change = _corruption(kind, strength)
                lines.append(
                    _judged(bundle, task, kind, strength, str(AMOUNTS[kind][strength - 1]), change, progress)[1]
                )
        for writing in WRITINGS:
            for kind, texts in ((WORD, words), (SCRAMBLED, scrambled)):
                change = _writing(texts, writing)
                lines.append(_judged(bundle, task, kind, 0, str(writing), change, progress, wrong)[1])
    _write(output, bundle.seal, task, lines, _examples(bundle, task, first, words))
    return lines


def wrong_candidates(task: Task) -> list[int]:
    """For each image a candidate that is not right for it, by lot."""
    random = np.random.default_rng(0)
    found = []
    for right in task.true:
        possible = np.setdiff1d(np.arange(len(task.candidates)), right)
        found.append(int(random.choice(possible)) if len(possible) else right[0])
    return found


def scramble(word: str, number: int) -> str:
    """The same letters in another order, where they have one."""
    random = np.random.default_rng(number)
    letters = list(word)
    for _ in range(10):
        random.shuffle(letters)
        if "".join(letters) != word:
            break
    return "".join(letters)


def _corruption(kind: str, strength: int) -> Callable[[Pixels, int], Pixels]:
    return lambda pixels, number: corrupt(pixels, kind, strength, number)


def _writing(words: Sequence[str], writing: Writing) -> Callable[[Pixels, int], Pixels]:
    return lambda pixels, number: write(pixels, words[number], writing)


def _judged(
    bundle: Bundle,
    task: Task,
    kind: str,
    strength: int,
    detail: str,
    change: Callable[[Pixels, int], Pixels],
    progress: WorkProgress,
    wrong: Sequence[int] = (),
) -> tuple[NDArray[np.int64], Line]:
    """The rank of each image's best right candidate, and the line of the table."""
    images = _embedded(bundle, task.squares, change, progress)
    rank = ranks(images, task.texts, task.true)
    low, high = interval(rank, 1)
    taken_in = 100 * float(np.mean(best_captions(images, task.texts, 1)[0][:, 0] == wrong)) if len(wrong) else None
    blind = chance(np.array(list(map(len, task.true))), len(task.candidates), 1)
    return rank, Line(kind, strength, detail, top_k(rank, 1), low, high, blind, taken_in)


def _embedded(
    bundle: Bundle,
    squares: Sequence[Pixels],
    change: Callable[[Pixels, int], Pixels],
    progress: WorkProgress | None = None,
) -> Embeddings:
    found = []
    size = bundle.recipe.evaluate.batch_size
    for start in range(0, len(squares), size):
        batch = np.stack([change(one, number) for number, one in enumerate(squares[start : start + size], start)])
        found.append(bundle.encode_pixels(torch.from_numpy(batch)).numpy())
        if progress:
            progress.advance(len(batch))
    return np.concatenate(found)


def _examples(bundle: Bundle, task: Task, rank: NDArray[np.int64], words: Sequence[str]) -> list[dict[str, Any]]:
    """The first images that were told right, with their best candidates before and after a word was written."""
    numbers = [*np.flatnonzero(rank == 0)[:EXAMPLES]] or list(range(min(EXAMPLES, len(task.squares))))
    writing = WRITINGS[-1]
    before = [task.squares[number] for number in numbers]
    after = [write(task.squares[number], words[number], writing) for number in numbers]
    shown = []
    for number, images in zip(numbers, zip(before, after, strict=True), strict=True):
        about = {
            "name": task.names[number],
            "right": [task.candidates[c] for c in task.true[number]],
            "word": words[number],
        }
        for when, pixels in zip(("before", "after"), images, strict=True):
            embedding = _embedded(bundle, [pixels], lambda one, _: one)
            best, cosines = best_captions(embedding, task.texts, SHOWN)
            about[when] = {
                "image": encoded_png(pixels),
                "best": [[task.candidates[c], round(float(s), 4)] for c, s in zip(best[0], cosines[0], strict=True)],
            }
        shown.append(about)
    return shown


def _write(output: Path, seal: str, task: Task, lines: Sequence[Line], examples: list[dict[str, Any]]) -> None:
    about = {"seal": seal, "images": len(task.squares), "candidates": len(task.candidates), "examples": examples}
    with whole_file(output / f"{task.name}-robustness.json") as temporary:
        temporary.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with (
        whole_file(output / f"{task.name}-robustness.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        writer = csv.DictWriter(file, list(asdict(lines[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(line) for line in lines)


def some_of(bundle: Bundle, names: Names, texts: Embeddings, images: Iterable[tuple[str, Encoded]]) -> Task:
    """At most `evaluate.robustness_images` of the images, evenly spaced.

    images: those of the source with their names, of which `names` has the ones that can be used.
    """
    true = dict(zip(names.names, names.true, strict=True))
    squares = squares_of(bundle, images, evenly(list(true), bundle.recipe.evaluate.robustness_images))
    own = [true[one] for one in squares]
    return Task(names.name, list(squares), own, names.candidates, list(squares.values()), texts)


def evenly(names: Sequence[str], most: int) -> list[str]:
    """At most so many of the names, evenly spaced."""
    numbers = np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)
    return [names[number] for number in np.unique(numbers)]


def squares_of(bundle: Bundle, images: Iterable[tuple[str, Encoded]], wanted: Sequence[str]) -> dict[str, Pixels]:
    """What the model sees of some images, by their names; all others of the source are passed over."""
    left, found = set(wanted), dict[str, Pixels]()
    for name, image in images:
        if name in left:
            try:
                found[name] = square(image, bundle.recipe.image)
                left.remove(name)
            except BadImage:  # of two of one name it is the other that was evaluated
                continue
        if not left:
            break
    return {name: found[name] for name in wanted if name in found}
