"""Evaluation during training: how good the weights are so far.

evaluations.jsonl    a line an evaluation and split
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from pocketclip.bundle import Bundle
from pocketclip.evaluate.results import Result
from pocketclip.evaluate.splits import measure_splits, require_splits
from pocketclip.recipe.schema import Recipe
from pocketclip.tokenizer import CaptionTokenizer
from pocketclip.train.learner import Learner
from pocketclip.train.log import MetricsLog

RECALLS = ("image_to_text_recall@1", "text_to_image_recall@1")


@dataclass(frozen=True)
class Seen:
    """What evaluations have found so far; a checkpoint keeps it.

    step: of the last one. seconds: that all of them took. log_bytes: length of evaluations.jsonl.
    """

    step: int = 0
    seconds: float = 0.0
    log_bytes: int = 0


class Watch:
    """Evaluates a learner's weights, as the bundle would have them, every so many epochs and at the end.

    Nothing that training depends on is changed. All ranks call the same methods; the first evaluates while others wait.
    Raises DataError for a split that is missing.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, learner: Learner, tokenizer: CaptionTokenizer, console: Console
    ) -> None:
        self.recipe, self.folder, self.learner, self.tokenizer = recipe, folder, learner, tokenizer
        self.console, self.ranks, self.seen = console, learner.ranks, Seen()
        self.data = Path(recipe.data.folder)
        self.interval = recipe.evaluate.every * learner.steps / recipe.train.epochs  # steps
        if self.interval:
            self.ranks.first_does(lambda: require_splits(self.data, recipe.evaluate.splits))

    def due(self, step: int) -> bool:
        """Whether the weights after a step are to be evaluated, and have not been."""
        if not self.interval or step <= self.seen.step:
            return False
        before, now = (int(number / self.interval + 1e-6) for number in (step - 1, step))
        return now > before or step == self.learner.steps

    def evaluate(self, step: int, pairs: int, seconds: float) -> float:
        """Evaluate the weights after a step; returns the seconds that it took.

        pairs, seconds: of training so far.
        """
        began = time.monotonic()
        self.seen = self.ranks.first_does(lambda: self._evaluate(step, pairs, seconds))
        return time.monotonic() - began

    def _evaluate(self, step: int, pairs: int, seconds: float) -> Seen:
        began = time.monotonic()
        results = self._measure()
        took = time.monotonic() - began
        epoch = step * self.recipe.train.epochs / self.learner.steps
        position = {"step": step, "epoch": epoch, "pairs": pairs, "seconds": seconds}
        length = self._write([position | _figures(result) | {"evaluation_seconds": took} for result in results])
        found = ", ".join(f"{one.benchmark} top-1 {one.top_1:.1f} %, top-5 {one.top_5:.1f} %" for one in results)
        self.console.print(f"step {step}/{self.learner.steps}  {found}  evaluated in {took:.1f} s", highlight=False)
        return replace(self.seen, step=step, seconds=self.seen.seconds + took, log_bytes=length)

    def _measure(self) -> list[Result]:
        model = self.learner.finished()
        bundle = Bundle(model, self.recipe, self.tokenizer, {}, self.learner.device)
        with evaluation_mode(model):
            return measure_splits(bundle, self.data, self.recipe.evaluate.splits)

    def _write(self, lines: Sequence[dict[str, Any]]) -> int:
        """Append to the log, in the place of what a killed process may have written; returns its length in bytes."""
        with MetricsLog(self.folder / "evaluations.jsonl", self.seen.log_bytes) as log:
            for line in lines:
                log.write(line)
            return log.sync()


def _figures(result: Result) -> dict[str, Any]:
    """What the log keeps of a result; accuracies and recalls in percent."""
    names = ("images", "candidates", "top_1", "top_5", "chance_top_1", "chance_top_5")
    figures = {name: getattr(result, name) for name in names}
    return {"split": result.benchmark} | figures | {name: result.recall[name] for name in RECALLS}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """What is random or learns from batches is off in the block; then each part is as it was, locked ones too."""
    before = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
