"""Which images of a split the figures show, by fixed rules: nobody picks."""

from typing import Any

from pocketclip.show.run import EvaluatedSplit


def spread_images(split: EvaluatedSplit, count: int) -> list[int]:
    """Numbers of up to `count` predictions, evenly spaced, no two with a caption in common.

    An image that shares a caption with one before gives way to the next, so what is right for one is wrong for all
    the others.
    """
    total = len(split.predictions)
    starts = [total * position // count for position in range(count)]
    chosen: list[int] = []
    taken: set[str] = set()
    for start, end in zip(starts, [*starts[1:], total], strict=True):
        for number in range(start, end):
            captions = split.predictions[number]["captions"]
            if taken.isdisjoint(captions):
                chosen.append(number)
                taken.update(captions)
                break
    return chosen


def best_and_worst(split: EvaluatedSplit, count: int) -> tuple[list[int], list[int]]:
    """Numbers of up to `count` best and worst predictions each; none is in both.

    Best: the right caption came first, by the largest margin to the first wrong one (then lower ranks, should there
    be too few). Worst: the right caption came last, by rank.
    """
    predictions = split.predictions
    order = sorted(range(len(predictions)), key=lambda number: _quality(predictions[number]))
    count = min(count, (len(order) + 1) // 2)
    return order[:count], order[count:][::-1][:count]


def ranking(split: EvaluatedSplit, number: int) -> dict[str, Any]:
    """One prediction with a bar for each of its best captions, and one more for the right one if it is not among them.

    Returns row, group, captions, rank and bars: place (1 is the first), caption, cosine, right.
    """
    prediction = split.predictions[number]
    own = prediction["captions"]
    bars = [
        {"place": place, "caption": caption, "cosine": cosine, "right": caption in own}
        for place, (caption, cosine) in enumerate(prediction["best"], start=1)
    ]
    if not any(bar["right"] for bar in bars):
        cosines = split.captions.cosines(split.images[number : number + 1], own)[0]
        best = int(cosines.argmax())
        cosine = round(float(cosines[best]), 4)
        bars.append({"place": prediction["rank"] + 1, "caption": own[best], "cosine": cosine, "right": True})
    return {name: prediction[name] for name in ("row", "group", "captions", "rank")} | {"bars": bars}


def _quality(prediction: dict[str, Any]) -> tuple[int, float]:
    """Smaller is better: the rank, then the margin between the right caption and the first wrong one."""
    best = prediction["best"]
    if prediction["rank"] or not best:
        return prediction["rank"], 0.0
    wrong = [cosine for caption, cosine in best if caption not in prediction["captions"]]
    return 0, (wrong[0] if wrong else best[-1][1]) - best[0][1]
